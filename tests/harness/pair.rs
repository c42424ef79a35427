//! Two nodes that replicate to each other, with DESIGN.md's configuration and the daemons of the target.

use super::compare::differences;
use super::node::MAIL_USER;
use super::ports::Port;
use super::{Node, Outcome, Target, User, wait_for};
use std::time::Duration;

/// How a pair is to be set up.
#[derive(Clone, Debug)]
pub struct Builder {
    a: Target,
    b: Target,
    users: Vec<User>,
    extra: [String; 2],
    sync_timeout: Option<&'static str>,
}

/// Two Dovecots, each the other's `mail_replica`.
#[derive(Debug)]
pub struct Pair {
    /// The first.
    pub a: Node,
    /// The second.
    pub b: Node,
    /// The ports of their `service doveadm`, in the same order.
    pub ports: [Port; 2],
}

impl Builder {
    /// Adds users that both nodes know.
    #[must_use]
    pub fn users(mut self, users: impl IntoIterator<Item = User>) -> Self {
        self.users.extend(users);
        self
    }

    /// Lines at the end of both nodes' dovecot.conf.
    #[must_use]
    pub fn config(mut self, lines: &str) -> Self {
        for extra in &mut self.extra {
            extra.push_str(lines);
            extra.push('\n');
        }
        self
    }

    /// `replication_sync_timeout` of both nodes.
    #[must_use]
    pub fn sync_timeout(mut self, value: &'static str) -> Self {
        self.sync_timeout = Some(value);
        self
    }

    /// Starts both.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start(self) -> Outcome<Pair> {
        let ports = [Port::take()?, Port::take()?];
        let start = |own: usize| {
            let target = if own == 0 { &self.a } else { &self.b };
            let conf = configuration(
                ports[own].number(),
                ports[1 - own].number(),
                self.sync_timeout,
            );
            Node::of(target)
                .mail_plugins("$mail_plugins notify replication acl")
                .services()
                .hostname(["node-a", "node-b"][own])
                .users(self.users.iter().cloned())
                .config(&conf)
                .config(&self.extra[own])
                .start()
        };
        let (a, b) = (start(0)?, start(1)?);
        Ok(Pair { a, b, ports })
    }
}

impl Pair {
    /// A pair of one target.
    #[must_use]
    pub fn of(target: &Target) -> Builder {
        Self::mixed(target, target)
    }

    /// A pair of two targets.
    #[must_use]
    pub fn mixed(a: &Target, b: &Target) -> Builder {
        Builder {
            a: a.clone(),
            b: b.clone(),
            users: Vec::new(),
            extra: Default::default(),
            sync_timeout: None,
        }
    }

    /// Waits until the comparer finds no difference for any of `users`.
    ///
    /// # Errors
    /// The differences that are left after `patience`.
    pub fn wait_equal(&self, users: &[&str], patience: Duration) -> Outcome {
        let mut last = Vec::new();
        let equal = wait_for("equality", patience, || {
            last.clear();
            for user in users {
                // A mailbox may go between two looks: that is a difference too.
                last.extend(
                    differences(&self.a, &self.b, user).unwrap_or_else(|failed| {
                        vec![format!("{user}: {}", failed.message().unwrap_or("?"))]
                    }),
                );
            }
            Ok(last.is_empty().then_some(()))
        });
        equal.map_err(|error| {
            let what = error.message().unwrap_or("?").to_owned();
            last.truncate(20);
            format!(
                "{what}\n{}\nlog of a:\n{}\nlog of b:\n{}",
                last.join("\n"),
                self.a.log(),
                self.b.log()
            )
            .into()
        })
    }

    /// Stops both and says what was wrong on either.
    ///
    /// # Errors
    /// What was wrong.
    pub fn finish(self) -> Outcome {
        let a = self.a.finish();
        self.b.finish().and(a)
    }
}

/// DESIGN.md's configuration, but for addresses, ports and the name of the mail user.
fn configuration(own_port: u16, peer_port: u16, sync_timeout: Option<&str>) -> String {
    let timeout = sync_timeout.map(|value| format!("  replication_sync_timeout = {value}\n"));
    let (user, _) = MAIL_USER;
    format!(
        "\
service replicator {{
  process_min_avail = 1
  unix_listener replicator-doveadm {{
    mode = 0600
  }}
}}
service aggregator {{
  fifo_listener replication-notify-fifo {{
    user = {user}
  }}
  unix_listener replication-notify {{
    user = {user}
  }}
}}
dsync_remote_cmd = doveadm dsync-server -u%u
replication_max_conns = 10
service doveadm {{
  inet_listener {{
    port = {own_port}
  }}
}}
doveadm_port = {own_port}
doveadm_password = Pa$$word
plugin {{
  mail_replica = tcp:127.0.0.1:{peer_port}
{timeout}}}
",
        timeout = timeout.unwrap_or_default(),
    )
}
