//! The writer of a mail process: takes notifications from the channel and brings them to the aggregator.
//!
//! Each line is in the fifo before the hook's caller goes on. What the fifo refuses waits here, merged by
//! user, and is tried again with growing delays for the life of the process: at later hooks, by a
//! timeout where the process runs an ioloop, and at deinit, then also over the socket.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::fifo::{Explained, Fifo, Refusal, text};
use super::socket::{self, LastResort, SyncFailureKind};
use crate::engine::time::Mono;
use crate::engine::{Notification, Outage, Pending, Priority};
use crate::host::timeout::RetryTimeout;

/// Notifications between a hook and the writer. The writer empties it at once.
const CHANNEL_CAPACITY: usize = 256;
/// A fifo that is full for a shorter time is a burst, not a fault.
const FULL_QUIET: Duration = Duration::from_secs(5);
/// So many users are named in a warning, the others counted.
const WARNING_USERS_MAX: usize = 10;

/// The two ends of the channel: hooks push without touching the writer's state.
pub fn channel() -> (Sender<Notification>, Receiver<Notification>) {
    bounded(CHANNEL_CAPACITY)
}

/// The writer's state.
pub struct Notifier {
    started: Instant,
    receiver: Receiver<Notification>,
    pending: Pending,
    target: Option<Target>,
    fifo_outage: Outage<Refusal>,
    sync_outage: Outage<SyncFailureKind>,
    /// More users than may wait, and the socket does not take them either.
    overflow_outage: Outage<()>,
    retry: Option<RetryTimeout>,
}

struct Target {
    fifo: Fifo,
    socket_path: PathBuf,
}

impl Notifier {
    pub fn new(receiver: Receiver<Notification>) -> Self {
        Self {
            started: Instant::now(),
            receiver,
            pending: Pending::default(),
            target: None,
            fifo_outage: Outage::default(),
            sync_outage: Outage::default(),
            overflow_outage: Outage::default(),
            retry: None,
        }
    }

    /// Where the aggregator listens. All users of a process have the same `base_dir`; the first one counts.
    pub fn set_base_dir(&mut self, base_dir: &Path) {
        self.target.get_or_insert_with(|| Target {
            fifo: Fifo::new(base_dir.join("replication-notify-fifo")),
            socket_path: base_dir.join("replication-notify"),
        });
    }

    /// Brings what is in the channel to the fifo, or lets it wait.
    pub fn drain(&mut self) {
        let now = self.now();
        if !self.pending.is_empty() && self.fifo_outage.may_try(now) {
            self.try_pending();
        }
        while let Ok(notification) = self.receiver.try_recv() {
            self.take(notification);
        }
        self.arm_retry();
    }

    /// The retry timeout has fired.
    pub fn handle_retry(&mut self) {
        self.retry = None;
        self.drain();
    }

    /// No retry any more: it would come again and again to a plugin that has stepped aside.
    pub fn disarm(&mut self) {
        self.retry = None;
    }

    /// Tries what waits, due or not: a user goes.
    pub fn flush(&mut self) {
        self.drain();
        self.try_pending();
        self.arm_retry();
    }

    /// Asks for a sync of the user and waits for it, `timeout` at most. A sync that did not succeed becomes
    /// a `high` notification.
    pub fn sync(&mut self, username: &[u8], timeout: Duration) {
        let Some(target) = &self.target else { return };
        let Err(failure) = socket::sync(&target.socket_path, username, timeout) else {
            // It began after everything that waited for this user was saved.
            self.pending.remove(username);
            if self.sync_outage.handle_success().is_some() {
                log::info!("replication: Waiting for syncs works again");
            }
            return;
        };
        if self
            .sync_outage
            .handle_failure(self.now(), failure.kind(), Duration::ZERO)
        {
            log::warn!(
                "replication({}): Sync failure: {failure} ({}); mail is delivered and replicated in the \
                 background; not logged again by this process until it changes",
                String::from_utf8_lossy(username),
                target.socket_path.display(),
            );
        }
        self.take(Notification {
            username: username.into(),
            priority: Priority::High,
        });
        self.arm_retry();
    }

    /// The process ends: the fifo once more, then the socket, then a warning.
    pub fn finish(mut self) {
        self.retry = None;
        self.flush();
        self.retry = None;
        if self.pending.is_empty() {
            return;
        }
        let Some(target) = &self.target else { return };
        let result = LastResort::connect(&target.socket_path).and_then(|socket| {
            self.pending
                .hand_on(|user, priority| socket.send(user, priority))
        });
        if let Err(errno) = result {
            log::warn!(
                "replication: Couldn't send the final notification of {}: {} is not writable and {}: {}; \
                 the next change or full sync of these users replicates it",
                named(&self.pending),
                target.fifo.path().display(),
                target.socket_path.display(),
                text(errno),
            );
        }
    }

    fn now(&self) -> Mono {
        Mono(0) + self.started.elapsed()
    }

    fn take(&mut self, notification: Notification) {
        let now = self.now();
        if self.pending.is_empty() || self.fifo_outage.may_try(now) {
            match self.write(&notification.username, notification.priority) {
                Ok(()) => return,
                Err(_refusal) => {}
            }
        }
        if let Err(notification) = self.pending.merge(notification) {
            self.overflow(&notification);
        }
    }

    fn write(&mut self, username: &[u8], priority: Priority) -> Result<(), Refusal> {
        let now = self.now();
        let Some(target) = &mut self.target else {
            return Ok(());
        };
        match target.fifo.write(username, priority) {
            Ok(()) => {
                if self.fifo_outage.handle_success().is_some() {
                    log::info!(
                        "replication: {} takes notifications again",
                        target.fifo.path().display()
                    );
                }
                Ok(())
            }
            Err(refusal @ Refusal::TooLong) => {
                // No later try can succeed.
                log::error!("replication: {}", Explained(target.fifo.path(), refusal));
                Ok(())
            }
            Err(refusal) => {
                let quiet = if refusal == Refusal::Full {
                    FULL_QUIET
                } else {
                    Duration::ZERO
                };
                if self.fifo_outage.handle_failure(now, refusal, quiet) {
                    log::error!(
                        "replication: {} - changes wait in this process and are tried again",
                        Explained(target.fifo.path(), refusal)
                    );
                }
                Err(refusal)
            }
        }
    }

    fn try_pending(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        // What refused is logged by write(); what is left waits on.
        let _refusal = pending.hand_on(|username, priority| self.write(username, priority));
        self.pending = pending;
    }

    fn arm_retry(&mut self) {
        if self.pending.is_empty() {
            self.retry = None;
        } else if self.retry.is_none() {
            let delay = self.fifo_outage.next_try_in(self.now()).unwrap_or_default();
            self.retry = RetryTimeout::new(delay);
        }
    }

    fn overflow(&mut self, notification: &Notification) {
        let now = self.now();
        let Some(target) = &self.target else { return };
        let sent = LastResort::connect(&target.socket_path)
            .and_then(|socket| socket.send(&notification.username, notification.priority));
        let Err(errno) = sent else {
            let _told = self.overflow_outage.handle_success();
            return;
        };
        if self.overflow_outage.handle_failure(now, (), Duration::ZERO) {
            log::warn!(
                "replication({}): Couldn't send notification: {} users wait already and {}: {}; not logged \
                 again by this process until it changes; doveadm replicator replicate '*' makes up for it",
                String::from_utf8_lossy(&notification.username),
                self.pending.len(),
                target.socket_path.display(),
                text(errno),
            );
        }
    }
}

/// Pushes into the channel, emptying it by `drain` if it should be full.
pub fn push(sender: &Sender<Notification>, notification: Notification, drain: impl FnOnce()) {
    if let Err(TrySendError::Full(notification)) = sender.try_send(notification) {
        drain();
        let _ = sender.try_send(notification);
    }
}

fn named(pending: &Pending) -> String {
    let names: Vec<_> = pending
        .usernames()
        .take(WARNING_USERS_MAX)
        .map(String::from_utf8_lossy)
        .collect();
    match pending.len().saturating_sub(names.len()) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}
