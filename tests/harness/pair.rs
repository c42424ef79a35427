//! Two nodes that replicate to each other, with DESIGN.md's configuration and the daemons of the target.

use super::compare::differences;
use super::configuration::{Format, Replication};
use super::ports::Port;
use super::proxy::Proxy;
use super::{Node, Outcome, PATIENCE, Target, User, check, wait_for};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// How a pair is to be set up.
#[derive(Clone, Debug)]
pub struct Builder {
    a: Target,
    b: Target,
    users: Vec<User>,
    extra: [String; 2],
    sync_timeout: Option<&'static str>,
    replica: Replica,
    hostnames: [&'static str; 2],
    format: Format,
    mail_plugins: Option<&'static str>,
    one_way: bool,
    faulty: bool,
    crashes_only: bool,
    clock_ahead: bool,
}

/// Where `mail_replica` comes from and leads.
#[derive(Clone, Debug)]
enum Replica {
    /// Everybody's is the other node's port.
    Port,
    /// The same, as a field of each user's userdb entry.
    Userdb,
    /// The same, by `tcps:`; whether they trust each other's certificate.
    Tls(bool),
    /// Everybody's is `remote:` to the other node, `a` or `b`, by this `dsync_remote_cmd`.
    Command(String),
}

/// Where `dsync_remote_cmd` finds the configuration of the node that `remote:` calls `a` or `b`.
#[derive(Debug)]
pub struct Links(TempDir);

impl Links {
    /// Nowhere, as yet.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn new(target: &Target) -> Outcome<Self> {
        let dir = tempfile::Builder::new()
            .prefix("dr-links-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(target.outside("/tmp".as_ref()))?;
        Ok(Self(dir))
    }

    /// A `dsync_remote_cmd` that runs the other node's dsync-server, of this host name, in which `%{host}` is `a` or `b`. As after ssh
    /// nothing of this node's environment is there: on 2.4 it leads to this node's configuration.
    #[must_use]
    pub fn command(&self, target: &Target, hostname: &str) -> String {
        let name = self.0.path().file_name().unwrap_or_default();
        let user = target.series().pick("%u", "%{user}");
        format!(
            "/usr/bin/env -i DOVECOT_HOSTNAME={hostname} /usr/bin/doveadm -c /tmp/{}/%{{host}} dsync-server -u{user}",
            name.to_string_lossy()
        )
    }

    /// To the nodes of the pair.
    ///
    /// # Errors
    /// When a link cannot be made.
    pub fn lead_to(&self, pair: &Pair) -> Outcome {
        for (name, node) in [("a", &pair.a), ("b", &pair.b)] {
            symlink(node.inside().join("dovecot.conf"), self.0.path().join(name))?;
        }
        Ok(())
    }
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
    replication: [Replication; 2],
    extra: [String; 2],
    _certificates: Vec<TempDir>,
    /// The links to them, in the same order, of a pair that [`Builder::faults`] made.
    pub proxies: Vec<Proxy>,
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

    /// Lines at the end of the nodes' dovecot.conf, of each node its own.
    #[must_use]
    pub fn config_of(mut self, lines: [String; 2]) -> Self {
        for (extra, lines) in self.extra.iter_mut().zip(lines) {
            extra.push_str(&lines);
        }
        self
    }

    /// `replication_sync_timeout` of both nodes.
    #[must_use]
    pub fn sync_timeout(mut self, value: &'static str) -> Self {
        self.sync_timeout = Some(value);
        self
    }

    /// For [`super::faults`]: each reaches the other through a proxy and has small disks.
    #[must_use]
    pub fn faults(mut self) -> Self {
        self.faulty = true;
        self
    }

    /// Both may log any error or warning but those of a crash.
    #[must_use]
    pub fn crashes_only(mut self) -> Self {
        self.crashes_only = true;
        self
    }

    /// The first node's clock is an hour ahead.
    #[must_use]
    pub fn clock_ahead(mut self) -> Self {
        self.clock_ahead = true;
        self
    }

    /// `remote:` to the other node, whose `%{host}` is `a` or `b`, by this command.
    #[must_use]
    pub fn replica_by_command(mut self, command: &str) -> Self {
        self.replica = Replica::Command(command.to_owned());
        self
    }

    /// The host names that the nodes' Dovecots see.
    #[must_use]
    pub fn hostnames(mut self, hostnames: [&'static str; 2]) -> Self {
        self.hostnames = hostnames;
        self
    }

    /// How mail is stored on both nodes; Maildir if nothing is said.
    #[must_use]
    pub fn format(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// `tcps:` to the other node's port, with a certificate made for this; or with one each, unknown to the other.
    #[must_use]
    pub fn replica_by_tls(mut self, trusted: bool) -> Self {
        self.replica = Replica::Tls(trusted);
        self
    }

    /// Only the first node's replicator syncs; the second has no `mail_replica`.
    #[must_use]
    pub fn one_way(mut self) -> Self {
        self.one_way = true;
        self
    }

    /// The words of both nodes' `mail_plugins`; without `replication` only an order syncs.
    #[must_use]
    pub fn mail_plugins(mut self, plugins: &'static str) -> Self {
        self.mail_plugins = Some(plugins);
        self
    }

    /// `mail_replica` is in each user's userdb entry and nowhere else.
    #[must_use]
    pub fn replica_by_userdb(mut self) -> Self {
        self.replica = Replica::Userdb;
        self
    }

    /// Starts both.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start(self) -> Outcome<Pair> {
        let ports = [Port::take()?, Port::take()?];
        let mut replication = [Replication::default(), Replication::default()];
        let mut certificates = Vec::new();
        let mut proxies = Vec::new();
        if self.faulty {
            for port in &ports {
                proxies.push(Proxy::start(port.number())?);
            }
        }
        let reached_at = |node: usize| {
            let proxy = proxies.get(node).map(Proxy::number);
            proxy.unwrap_or_else(|| ports[node].number())
        };
        let mut start = |own: usize| {
            let target = if own == 0 { &self.a } else { &self.b };
            let peer = format!("tcp:127.0.0.1:{}", reached_at(1 - own));
            let mut users = self.users.clone();
            let mut tls = None;
            let is_silent = self.one_way && own == 1;
            let mut replicas = match &self.replica {
                Replica::Port => vec![peer],
                Replica::Tls(trusted) => {
                    let common = certificates.first().filter(|_| *trusted);
                    let dir = certificate(target, common.map(TempDir::path))?;
                    let name = dir.path().file_name().ok_or("no name")?.to_string_lossy();
                    tls = Some(format!("/tmp/{name}"));
                    certificates.push(dir);
                    vec![peer.replacen("tcp:", "tcps:", 1)]
                }
                Replica::Command(_) => vec![format!("remote:{}", ["b", "a"][own])],
                Replica::Userdb if is_silent => Vec::new(),
                Replica::Userdb => {
                    let with = |user: User| user.with("mail_replica", &peer);
                    users = users.into_iter().map(with).collect();
                    Vec::new()
                }
            };
            if is_silent {
                replicas.clear();
            }
            let command = match &self.replica {
                Replica::Command(command) => Some(command.clone()),
                _ => None,
            };
            replication[own] = Replication {
                command,
                port: Some(ports[own].number()),
                replicas,
                sync_timeout: self.sync_timeout.map(str::to_owned),
                tls,
            };
            let mut builder = Node::of(target);
            if !target.is_ours() {
                // Stock's daemons log errors with DESIGN.md's configuration (STOCK.md 10).
                builder = builder.lenient();
            }
            if let Some(plugins) = self.mail_plugins {
                builder = builder.mail_plugins(plugins);
            }
            if self.faulty {
                // A soak writes some 6 MiB in a round.
                builder = builder.small_disks(192, 16);
            }
            if self.crashes_only {
                builder = builder.crashes_only();
            }
            if self.clock_ahead && own == 0 {
                builder = builder.clock_ahead();
            }
            builder
                .services()
                .hostname(self.hostnames[own])
                .format(self.format)
                .users(users)
                .config(&replication[own].render(target.series()))
                .config(&self.extra[own])
                .start()
        };
        let (a, b) = (start(0)?, start(1)?);
        Ok(Pair {
            a,
            b,
            ports,
            replication,
            extra: self.extra,
            _certificates: certificates,
            proxies,
        })
    }
}

/// A directory of the target's `/tmp` with a certificate of 127.0.0.1, which is its own CA, and its key: new ones, or those that
/// are in `common`.
fn certificate(target: &Target, common: Option<&Path>) -> Outcome<TempDir> {
    let dir = tempfile::Builder::new()
        .prefix("dr-tls-")
        .permissions(fs::Permissions::from_mode(0o755))
        .tempdir_in(target.outside(Path::new("/tmp")))?;
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| dir.path().join(name));
    if let Some(common) = common {
        fs::copy(common.join("certificate.pem"), certificate)?;
        fs::copy(common.join("key.pem"), key)?;
        return Ok(dir);
    }
    let output = Command::new("openssl")
        .args([
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
        ])
        .args(["-subj", "/CN=127.0.0.1", "-addext"])
        .args(["subjectAltName=IP:127.0.0.1", "-keyout"])
        .arg(key)
        .arg("-out")
        .arg(certificate)
        .output()?;
    check(output.status.success(), || format!("openssl: {output:?}"))?;
    Ok(dir)
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
            replica: Replica::Port,
            hostnames: ["node-a", "node-b"],
            format: Format::default(),
            mail_plugins: None,
            one_way: false,
            faulty: false,
            crashes_only: false,
            clock_ahead: false,
        }
    }

    /// Makes the first node (0) or the second (1), which is stopped, one of `target`, with the same settings in its syntax.
    ///
    /// # Errors
    /// As [`Node::upgrade`].
    pub fn upgrade(&mut self, own: usize, target: &Target) -> Outcome {
        let config = self.replication[own].render(target.series()) + &self.extra[own];
        let node = if own == 0 { &mut self.a } else { &mut self.b };
        node.upgrade(target, &config)
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

    /// Waits until no replicator has anything to do: a sync that loses its peer would be an error in the log.
    ///
    /// # Errors
    /// When one is still at work.
    pub fn wait_idle(&self) -> Outcome {
        for node in [&self.a, &self.b] {
            let is_zero = |line: &str| line.split_whitespace().last() == Some("0");
            wait_for("an idle replicator", PATIENCE, || {
                let queued = node.doveadm(&["replicator", "status"])?;
                let syncs = node.doveadm(&["replicator", "dsync-status"])?;
                // The last two lines count users: those who failed, and all.
                let queued = queued.lines().take(5).all(is_zero);
                Ok((queued && !syncs.contains("Waiting for")).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Stops both and says what was wrong on either.
    ///
    /// # Errors
    /// What was wrong.
    pub fn finish(self) -> Outcome {
        self.a.begin_end();
        self.b.begin_end();
        let a = self.a.finish();
        self.b.finish().and(a)
    }
}
