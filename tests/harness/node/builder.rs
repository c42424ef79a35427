//! How a node is to be set up, before it is started.

use super::{Disk, Format, Node, User};
use crate::harness::{Outcome, Target};

/// How a node is to be set up.
#[derive(Debug)]
pub struct Builder<'a> {
    pub(super) target: &'a Target,
    pub(super) mail_plugins: &'a str,
    pub(super) extra: String,
    pub(super) users: Vec<User>,
    pub(super) fifo: bool,
    pub(super) socket: bool,
    pub(super) valgrind: bool,
    pub(super) lenient: bool,
    pub(super) services: bool,
    pub(super) valgrind_services: bool,
    pub(super) hostname: &'a str,
    pub(super) format: Format,
    pub(super) disk_mebibytes: Option<[u32; 2]>,
    pub(super) clock_ahead: bool,
    pub(super) crashes_only: bool,
}

impl<'a> Builder<'a> {
    /// The words of the global `mail_plugins`; without it `notify replication acl`.
    #[must_use]
    pub fn mail_plugins(mut self, plugins: &'a str) -> Self {
        self.mail_plugins = plugins;
        self
    }

    /// Adds users. All are known at start: auth reads a changed passwd-file once a second only.
    #[must_use]
    pub fn users(mut self, users: impl IntoIterator<Item = User>) -> Self {
        self.users.extend(users);
        self
    }

    /// Lines at the end of dovecot.conf.
    #[must_use]
    pub fn config(mut self, lines: &str) -> Self {
        self.extra.push_str(lines);
        self.extra.push('\n');
        self
    }

    /// The fifo is not there at start.
    #[must_use]
    pub fn without_fifo(mut self) -> Self {
        self.fifo = false;
        self
    }

    /// The socket is not there at start.
    #[must_use]
    pub fn without_socket(mut self) -> Self {
        self.socket = false;
        self
    }

    /// The target's own aggregator and replicator run, as dovecot.conf has them; there is no reader.
    #[must_use]
    pub fn services(mut self) -> Self {
        self.services = true;
        self.without_fifo().without_socket()
    }

    /// The host name that Dovecot sees.
    #[must_use]
    pub fn hostname(mut self, hostname: &'a str) -> Self {
        self.hostname = hostname;
        self
    }

    /// How mail is stored; Maildir if nothing is said.
    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// Mail and state are on file systems of their own, of so many MiB; see [`Disk`].
    #[must_use]
    pub fn small_disks(mut self, mail_mebibytes: u32, state_mebibytes: u32) -> Self {
        self.disk_mebibytes = Some([mail_mebibytes, state_mebibytes]);
        self
    }

    /// Its clock is an hour ahead; only for this machine's own Dovecot.
    #[must_use]
    pub fn clock_ahead(mut self) -> Self {
        self.clock_ahead = true;
        self
    }

    /// Any error or warning may be logged, but for what crashes say: for faults.
    #[must_use]
    pub fn crashes_only(mut self) -> Self {
        self.crashes_only = true;
        self
    }

    /// `imap` runs under valgrind; reports are read by [`Node::valgrind_reports`].
    #[must_use]
    pub fn valgrind(mut self) -> Self {
        self.valgrind = true;
        self
    }

    /// The target's aggregator and replicator run under valgrind.
    #[must_use]
    pub fn valgrind_services(mut self) -> Self {
        self.valgrind_services = true;
        self
    }

    /// Whatever it logs is right: for the stock plugin's defects.
    #[must_use]
    pub fn lenient(mut self) -> Self {
        self.lenient = true;
        self
    }

    /// Starts it, lets `body` test it and finishes it.
    ///
    /// # Errors
    /// What `body` found wrong, and then what [`Node::finish`] did.
    pub fn test(self, body: impl FnOnce(&Node) -> Outcome) -> Outcome {
        let node = self.start()?;
        let tested = body(&node);
        let finished = node.finish();
        let wrong = [tested.err(), finished.err()];
        let wrong: Vec<String> = wrong
            .iter()
            .flatten()
            .filter_map(|failed| failed.message().map(str::to_owned))
            .collect();
        crate::harness::check(wrong.is_empty(), || wrong.join("\n"))
    }

    /// Starts it and waits until it takes connections.
    ///
    /// # Errors
    /// When it does not start; the log is in the message.
    pub fn start(self) -> Outcome<Node> {
        Node::start(self)
    }
}
