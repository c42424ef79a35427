//! A real Dovecot in a directory of its own.
//!
//! Its modules are a directory of links to the distribution's, with our plugin in the place of
//! stock's where the target is ours. Nothing of the installation is changed. Mail belongs to an
//! unprivileged uid, users are lines of a passwd-file.

mod builder;
mod upgrade;

pub use builder::Builder;

use super::client::{Imap, Lmtp, Pop3, Sieve};
use super::configuration::{Format, Mail};
use super::disk::Disk;
use super::ports::Port;
use super::reader::{Line, Reader};
use super::target::{PLUGIN, Target};
use super::{Outcome, PATIENCE, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The uid and gid of all mail: no user of any system has it.
pub const VMAIL: u32 = 5_000;
/// The system's user that owns mail where a service must name one, and its uid on every Debian.
pub const MAIL_USER: (&str, u32) = ("mail", 8);
/// Every test user's password.
pub const PASSWORD: &str = "secret";
/// A `mail_replica` that nothing in these tests connects to.
pub const REPLICA: &str = "tcp:127.0.0.1:9";

/// A mail user: a line of the passwd-file.
#[derive(Clone, Debug)]
pub struct User {
    name: String,
    fields: String,
    /// Whose mail it is, if not the owner's of all.
    uid: Option<u32>,
}

impl User {
    /// A user without `mail_replica`.
    #[must_use]
    pub fn local(name: &str) -> User {
        User {
            name: name.to_owned(),
            fields: String::new(),
            uid: None,
        }
    }

    /// With mail of an owner of its own: this uid, and the gid of the same number.
    #[must_use]
    pub fn owned_by(mut self, uid: u32) -> User {
        self.uid = Some(uid);
        self
    }

    /// A user with a `mail_replica`.
    #[must_use]
    pub fn replicated(name: &str) -> User {
        Self::local(name).with("mail_replica", REPLICA)
    }

    /// With a userdb field; the passwd-file allows no space in `value`.
    #[must_use]
    pub fn with(mut self, key: &str, value: &str) -> User {
        let _ = write!(self.fields, " userdb_{key}={value}");
        self
    }

    /// Makes the home of a user whose mail the owner of all may not write.
    fn make_home(&self, mail: &Path) -> Outcome {
        if let Some(uid) = self.uid {
            let home = mail.join(&self.name);
            fs::create_dir(&home)?;
            chown(&home, Some(uid), Some(uid))?;
        }
        Ok(())
    }

    fn line(&self, inside: &Path, uid: u32) -> String {
        let (name, uid) = (&self.name, self.uid.unwrap_or(uid));
        let home = inside.join("mail").join(name);
        let (home, fields) = (home.display(), self.fields.trim_start());
        format!("{name}:{{PLAIN}}{PASSWORD}:{uid}:{uid}::{home}::{fields}\n")
    }
}

/// What its dovecot.conf is made of, but for what the target decides and what a test adds.
#[derive(Debug)]
struct Setup {
    mail_plugins: String,
    format: Format,
    services: bool,
    valgrind: bool,
    valgrind_services: bool,
}

/// A Dovecot that runs; it is stopped and its log is looked at when it is finished or dropped.
#[derive(Debug)]
pub struct Node {
    /// What it is made of.
    pub target: Target,
    /// What stands in the aggregator's place.
    pub reader: Reader,
    setup: Setup,
    dir: Option<tempfile::TempDir>,
    inside: PathBuf,
    hostname: String,
    master: Mutex<Option<Child>>,
    disks: Vec<Disk>,
    clock_ahead: bool,
    crashes_only: bool,
    imap: Port,
    lmtp: Port,
    pop3: Port,
    sieve: Port,
    messages: Mutex<String>,
    expected: Mutex<Vec<String>>,
    logins: Mutex<HashMap<String, usize>>,
    users: Vec<String>,
    lenient: bool,
    tolerated: Mutex<Vec<String>>,
    is_kept: bool,
    /// Where the log's end begins.
    ends_at: Mutex<Option<usize>>,
}

/// The pids of a process's children that are called `name`.
///
/// # Errors
/// When it is gone.
pub fn child_processes(parent: u32, name: &str) -> Outcome<Vec<i32>> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    let called = |pid: &&str| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm"));
        comm.is_ok_and(|comm| comm.trim_end() == name)
    };
    let pids = children.split_whitespace().filter(called);
    Ok(pids.filter_map(|pid| pid.parse().ok()).collect())
}

impl Node {
    /// A node of `target` that is still to be set up.
    #[must_use]
    pub fn of(target: &Target) -> Builder<'_> {
        Builder {
            target,
            mail_plugins: "notify replication acl",
            extra: String::new(),
            users: Vec::new(),
            fifo: true,
            socket: true,
            valgrind: false,
            lenient: false,
            services: false,
            valgrind_services: false,
            hostname: "test-node",
            format: Format::default(),
            disk_mebibytes: None,
            clock_ahead: false,
            crashes_only: false,
        }
    }

    fn start(builder: Builder<'_>) -> Outcome<Node> {
        if let Some(missing) = &builder.target.missing {
            return Err(missing.into());
        }
        let target = builder.target.clone();
        let dir = tempfile::Builder::new()
            .prefix("dr-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(target.outside(Path::new("/tmp")))?;
        let name = dir.path().file_name().ok_or("no name")?;
        let inside = Path::new("/tmp").join(name);
        for (sub, mode) in [("run", 0o755), ("state", 0o755), ("valgrind", 0o1777)] {
            fs::create_dir(dir.path().join(sub))?;
            fs::set_permissions(dir.path().join(sub), fs::Permissions::from_mode(mode))?;
        }
        let uid = if builder.services { MAIL_USER.1 } else { VMAIL };
        for sub in ["mail", "shared"] {
            fs::create_dir(dir.path().join(sub))?;
            chown(dir.path().join(sub), Some(uid), Some(uid))?;
        }
        let mut disks = Vec::new();
        for (sub, size) in ["mail", "state"]
            .iter()
            .zip(builder.disk_mebibytes.into_iter().flatten())
        {
            // State is root's.
            let uid = if *sub == "mail" { uid } else { 0 };
            disks.push(Disk::mount(&dir.path().join(sub), size, uid)?);
        }
        if builder.clock_ahead {
            super::check(target.root.is_none(), || {
                "no clock of its own in a root".to_owned()
            })?;
            fs::copy(FAKETIME, dir.path().join("faketime.so"))?;
        }
        link_modules(&target, &dir.path().join("modules"))?;
        let lines: String = builder
            .users
            .iter()
            .map(|user| user.line(&inside, uid))
            .collect();
        fs::write(dir.path().join("users"), lines)?;
        for user in &builder.users {
            user.make_home(&dir.path().join("mail"))?;
        }

        let reader = Reader::new(&dir.path().join("run"), VMAIL);
        let node = Node {
            reader,
            setup: Setup {
                mail_plugins: builder.mail_plugins.to_owned(),
                format: builder.format,
                services: builder.services,
                valgrind: builder.valgrind,
                valgrind_services: builder.valgrind_services,
            },
            dir: Some(dir),
            inside,
            hostname: builder.hostname.to_owned(),
            master: Mutex::default(),
            disks,
            clock_ahead: builder.clock_ahead,
            crashes_only: builder.crashes_only,
            imap: Port::take()?,
            lmtp: Port::take()?,
            pop3: Port::take()?,
            sieve: Port::take()?,
            messages: Mutex::default(),
            expected: Mutex::default(),
            logins: Mutex::default(),
            users: builder.users.iter().map(|user| user.name.clone()).collect(),
            lenient: builder.lenient,
            tolerated: Mutex::default(),
            is_kept: false,
            ends_at: Mutex::default(),
            target,
        };
        fs::write(node.path("dovecot.conf"), node.dovecot_conf(&builder.extra))?;
        *Self::lock(&node.master) = Some(node.spawn()?);
        node.wait_ready()?;
        if builder.fifo {
            node.reader.create_fifo()?;
        }
        if builder.socket {
            node.reader.create_socket()?;
        }
        Ok(node)
    }

    fn spawn(&self) -> Outcome<Child> {
        let stderr = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("stderr"))?;
        let mut command = self.command("dovecot");
        command
            .args(["-F", "-c"])
            .arg(self.inside.join("dovecot.conf"));
        Ok(command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()?)
    }

    fn wait_ready(&self) -> Outcome {
        let pid = self
            .dir
            .as_ref()
            .map(|dir| dir.path().join("run/master.pid"));
        let pid = pid.ok_or("finished")?;
        let started = wait_for("the master", PATIENCE, || {
            let mut master = Self::lock(&self.master);
            if let Some(status) = master.as_mut().ok_or("not started")?.try_wait()? {
                return Err(format!("dovecot ended: {status}").into());
            }
            // Written when the listeners are there.
            Ok(pid.exists().then_some(()))
        });
        started.map_err(|error| {
            let message = error.message().unwrap_or("?");
            let stderr = fs::read_to_string(self.path("stderr")).unwrap_or_default();
            format!("{message}\n{stderr}\n{}", self.log()).into()
        })
    }

    fn dovecot_conf(&self, extra: &str) -> String {
        let setup = &self.setup;
        let dir = self.inside.display().to_string();
        let series = self.target.series();
        let imap = setup
            .valgrind
            .then(|| format!("{} /usr/lib/dovecot/imap", valgrind(&self.inside)));
        let mail = Mail {
            version: &self.target.version,
            dir: &dir,
            plugins: &setup.mail_plugins,
            format: setup.format,
            plugin_dir: self
                .target
                .has_own_modules()
                .then(|| format!("{dir}/modules")),
            ports: [&self.imap, &self.lmtp, &self.pop3, &self.sieve].map(Port::number),
            imap,
        };
        let aggregator = if setup.services { "" } else { NO_AGGREGATOR };
        let clock: String = clock_environment(&self.inside)
            .iter()
            .filter(|_| self.clock_ahead)
            .map(|(name, value)| series.environment(name, value))
            .collect();
        let mail = mail.render(series);
        // Debian 13's rustc compares what an Option may hold before it looks whether it does.
        let undefined = series.pick("yes", "no");
        let valgrind = valgrind(&self.inside) + " --undef-value-errors=" + undefined;
        let services = ["aggregator", "replicator"].into_iter();
        let valgrind: String = services
            .filter(|_| setup.valgrind_services)
            .map(|name| {
                format!(
                    "service {name} {{\n  executable = {valgrind} /usr/lib/dovecot/{name}\n}}\n"
                )
            })
            .collect();
        format!("{mail}{aggregator}{clock}{valgrind}{extra}")
    }

    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A path in the node's directory, as this machine sees it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        let dir = self.dir.as_ref().map(tempfile::TempDir::path);
        dir.unwrap_or(Path::new("/nonexistent")).join(name)
    }

    /// The node's directory as Dovecot sees it.
    #[must_use]
    pub fn inside(&self) -> &Path {
        &self.inside
    }

    /// Where the plugin's fifo is, as Dovecot logs it.
    #[must_use]
    pub fn fifo_as_logged(&self) -> String {
        format!("{}/run/{}", self.inside.display(), super::reader::FIFO)
    }

    /// A program of the target with this node's own host name; paths are Dovecot's.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.target.command(program);
        command.env("DOVECOT_HOSTNAME", &self.hostname);
        if self.clock_ahead {
            command.envs(clock_environment(&self.inside));
        }
        command
    }

    /// The file systems of its own.
    #[must_use]
    pub fn disks(&self) -> &[Disk] {
        &self.disks
    }

    /// Makes the user's home and an empty INBOX (Maildir), which has a UIDVALIDITY, without Dovecot.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make_inbox(&self, user: &str) -> Outcome {
        let home = self.path("mail").join(user);
        let maildir = home.join("Maildir");
        let owner = fs::metadata(self.path("mail"))?;
        for dir in [home, maildir.clone()]
            .into_iter()
            .chain(["cur", "new", "tmp"].map(|sub| maildir.join(sub)))
        {
            fs::create_dir(&dir)?;
            chown(&dir, Some(owner.uid()), Some(owner.gid()))?;
        }
        let uidlist = maildir.join("dovecot-uidlist");
        fs::write(&uidlist, "3 V1000 N1 G00000000000000000000000000000002\n")?;
        chown(&uidlist, Some(owner.uid()), Some(owner.gid()))?;
        Ok(())
    }

    /// How many mails the user's INBOX (Maildir) holds, without opening it.
    #[must_use]
    pub fn mails(&self, user: &str) -> usize {
        let inbox = self.path("mail").join(user).join("Maildir");
        let files = |sub| fs::read_dir(inbox.join(sub)).map_or(0, Iterator::count);
        files("new") + files("cur")
    }

    /// Waits until the user's INBOX (Maildir) holds `count` mails, without opening it.
    ///
    /// # Errors
    /// When they do not come.
    pub fn wait_mails(&self, user: &str, count: usize) -> Outcome {
        wait_for(&format!("{count} mails of {user}"), PATIENCE, || {
            Ok((self.mails(user) >= count).then_some(()))
        })
    }

    /// Tells it to stop; [`Node::stop`] waits for its end.
    ///
    /// # Errors
    /// When it is stopped already.
    pub fn begin_stop(&self) -> Outcome {
        let master = Self::lock(&self.master);
        let master = master.as_ref().ok_or("stopped already")?;
        let pid = i32::try_from(master.id()).ok().and_then(Pid::from_raw);
        Ok(kill_process(pid.ok_or("no pid")?, Signal::TERM)?)
    }

    /// Stops it; what it has stays, and [`Node::restart`] starts it again.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&self) -> Outcome {
        // It may have been told already and be gone.
        let _gone = self.begin_stop();
        let mut master = Self::lock(&self.master).take().ok_or("stopped already")?;
        wait_for("the master's end", PATIENCE, || Ok(master.try_wait()?))?;
        Ok(())
    }

    /// Starts it again after [`Node::stop`].
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&self) -> Outcome {
        *Self::lock(&self.master) = Some(self.spawn()?);
        self.wait_ready()
    }

    /// The port of IMAP on 127.0.0.1.
    #[must_use]
    pub fn imap_port(&self) -> u16 {
        self.imap.number()
    }

    /// The port of LMTP on 127.0.0.1.
    #[must_use]
    pub fn lmtp_port(&self) -> u16 {
        self.lmtp.number()
    }

    /// An IMAP session of `user`, logged in.
    ///
    /// # Errors
    /// When the login fails.
    pub fn imap(&self, user: &str) -> Outcome<Imap> {
        let mut imap = Imap::connect(self.imap.number())?;
        imap.ok(&format!("LOGIN {user} {PASSWORD}"))?;
        self.logged_in(user);
        Ok(imap)
    }

    /// An LMTP session after LHLO.
    ///
    /// # Errors
    /// When it is refused.
    pub fn lmtp(&self) -> Outcome<Lmtp> {
        Lmtp::connect(self.lmtp.number())
    }

    /// A POP3 session of `user`.
    ///
    /// # Errors
    /// When the login fails.
    pub fn pop3(&self, user: &str) -> Outcome<Pop3> {
        let pop3 = Pop3::login(self.pop3.number(), user, PASSWORD)?;
        self.logged_in(user);
        Ok(pop3)
    }

    /// A ManageSieve session of `user`.
    ///
    /// # Errors
    /// When the login fails.
    pub fn sieve(&self, user: &str) -> Outcome<Sieve> {
        let sieve = Sieve::login(self.sieve.number(), user, PASSWORD)?;
        self.logged_in(user);
        Ok(sieve)
    }

    /// Runs `doveadm` and fails unless it ends with 0. What it says is looked at as the log is.
    ///
    /// # Errors
    /// When it fails.
    pub fn doveadm(&self, args: &[&str]) -> Outcome<String> {
        let output = self.run(self.doveadm_command(args), b"")?;
        super::check(output.status.success(), || {
            let stderr = String::from_utf8_lossy(&output.stderr);
            format!("doveadm {args:?}: {}: {stderr}", output.status)
        })?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// `doveadm` with `args`, not yet run.
    #[must_use]
    pub fn doveadm_command(&self, args: &[&str]) -> Command {
        let mut command = self.command("doveadm");
        command.arg("-c").arg(self.inside.join("dovecot.conf"));
        command.args(args);
        command
    }

    /// `dovecot-lda` for `user`, not yet run.
    #[must_use]
    pub fn lda_command(&self, user: &str) -> Command {
        let mut command = self.command("/usr/lib/dovecot/dovecot-lda");
        command.arg("-c").arg(self.inside.join("dovecot.conf"));
        command.args(["-d", user]);
        command
    }

    /// `dovecot-lda` for `user` under valgrind, not yet run.
    #[must_use]
    pub fn lda_under_valgrind(&self, user: &str) -> Command {
        let valgrind = valgrind(&self.inside);
        let mut words = valgrind.split_whitespace();
        let mut command = self.command(words.next().unwrap_or("valgrind"));
        command.args(words).arg("/usr/lib/dovecot/dovecot-lda");
        command.arg("-c").arg(self.inside.join("dovecot.conf"));
        command.args(["-d", user]);
        command
    }

    /// Delivers `message` through `dovecot-lda`.
    ///
    /// # Errors
    /// When it does not end with 0.
    pub fn lda(&self, user: &str, message: &str) -> Outcome {
        let output = self.run(self.lda_command(user), message.as_bytes())?;
        super::check(output.status.success(), || {
            format!("dovecot-lda: {}: {}", output.status, self.log())
        })
    }

    /// Runs a command of this node with `input`; what it says on stderr is looked at as the log is.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, mut command: Command, input: &[u8]) -> Outcome<Output> {
        let mut child = command
            .current_dir(self.path("valgrind"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // A command that does not read its input has closed it.
        let _written = child.stdin.take().map(|mut stdin| stdin.write_all(input));
        let output = child.wait_with_output()?;
        Self::lock(&self.messages).push_str(&String::from_utf8_lossy(&output.stderr));
        Ok(output)
    }

    /// Everything logged so far, and what commands said on stderr.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(self.path("log")).unwrap_or_default();
        let mut text = String::from_utf8_lossy(&log).into_owned();
        text.push_str(&Self::lock(&self.messages));
        text
    }

    /// The lines of the log that have `text`.
    #[must_use]
    pub fn log_lines(&self, text: &str) -> Vec<String> {
        let log = self.log();
        let lines = log.lines().filter(|line| line.contains(text));
        lines.map(str::to_owned).collect()
    }

    /// Waits for a line with `text` in the log.
    ///
    /// # Errors
    /// When it does not come.
    pub fn wait_log(&self, text: &str) -> Outcome<Vec<String>> {
        wait_for(&format!("log line {text:?}"), PATIENCE, || {
            let lines = self.log_lines(text);
            Ok((!lines.is_empty()).then_some(lines))
        })
    }

    /// An error or a warning with `text` is what the test is about; it must come.
    pub fn expect_log(&self, text: &str) {
        Self::lock(&self.expected).push(text.to_owned());
    }

    /// An error or a warning with `text` may come, depending on when a fault hits.
    pub fn tolerate_log(&self, text: &str) {
        Self::lock(&self.tolerated).push(text.to_owned());
    }

    /// The node, or its peer, is going to be stopped: a dsync that runs may lose its peer. What is logged from now on is wrong only if
    /// it tells of a crash.
    pub fn begin_end(&self) {
        *Self::lock(&self.ends_at) = Some(self.log().len());
    }

    /// Waits until the processes that served `user`'s logins so far are gone, and with them all
    /// that a plugin does at deinit.
    ///
    /// # Errors
    /// When one stays.
    pub fn wait_sessions_end(&self, user: &str) -> Outcome {
        let pids = self.session_pids(user)?;
        wait_for(&format!("the end of {user}'s {pids:?}"), PATIENCE, || {
            let gone = |pid: &&i32| !Path::new(&format!("/proc/{pid}")).exists();
            Ok((pids.iter().filter(gone).count() == pids.len()).then_some(()))
        })
    }

    /// Waits until no process `name` of this node is left.
    ///
    /// # Errors
    /// When one stays.
    pub fn wait_no_process(&self, name: &str) -> Outcome {
        wait_for(&format!("the end of all {name}"), PATIENCE, || {
            Ok(self.processes(name)?.is_empty().then_some(()))
        })
    }

    /// The pids of this node's processes that are called `name`.
    ///
    /// # Errors
    /// When the node is finished.
    pub fn processes(&self, name: &str) -> Outcome<Vec<i32>> {
        let master = Self::lock(&self.master).as_ref().ok_or("finished")?.id();
        child_processes(master, name)
    }

    fn logged_in(&self, user: &str) {
        *Self::lock(&self.logins).entry(user.to_owned()).or_default() += 1;
    }

    /// The pids of the processes that `user`'s logins were handed to, in their order.
    ///
    /// # Errors
    /// When not all logins are in the log.
    pub fn session_pids(&self, user: &str) -> Outcome<Vec<i32>> {
        // The log may be behind the clients.
        let logins = Self::lock(&self.logins).get(user).copied().unwrap_or(0);
        wait_for(&format!("{logins} logins of {user}"), PATIENCE, || {
            let lines = self.log_lines(&format!(": user=<{user}>"));
            let pids: Vec<i32> = lines
                .iter()
                .filter_map(|line| {
                    let (_, rest) = line.split_once("mpid=")?;
                    rest.split(',').next()?.parse().ok()
                })
                .collect();
            Ok((pids.len() >= logins).then_some(pids))
        })
    }

    /// The lines of `user` after its sessions have ended.
    ///
    /// # Errors
    /// When a session does not end.
    pub fn lines_at_end(&self, user: &str) -> Outcome<Vec<Line>> {
        self.wait_sessions_end(user)?;
        Ok(self.reader.lines_of(&[user]))
    }

    /// SIGKILL to a process of this node.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn kill(&self, pid: i32) -> Outcome {
        self.signal(pid, Signal::KILL)
    }

    /// A signal to a process of this node.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn signal(&self, pid: i32, signal: Signal) -> Outcome {
        let pid = Pid::from_raw(pid).ok_or("no pid")?;
        Ok(kill_process(pid, signal)?)
    }

    /// The text of all valgrind reports, after the processes have ended.
    ///
    /// # Errors
    /// When there is none.
    pub fn valgrind_reports(&self) -> Outcome<Vec<String>> {
        let mut reports = Vec::new();
        for entry in fs::read_dir(self.path("valgrind"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "log") {
                reports.push(String::from_utf8_lossy(&fs::read(path)?).into_owned());
            }
        }
        super::check(!reports.is_empty(), || "no valgrind report".to_owned())?;
        Ok(reports)
    }

    /// Stops it and says what was wrong: core files, panics, unexpected errors, expected ones that
    /// did not come, garbage on fifo or socket.
    ///
    /// # Errors
    /// What was wrong.
    pub fn finish(mut self) -> Outcome {
        self.stop_and_look()
    }

    fn stop_and_look(&mut self) -> Outcome {
        let Some(mut master) = Self::lock(&self.master).take() else {
            return Ok(());
        };
        if let Some(pid) = i32::try_from(master.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself; its log says why.
            let _gone = kill_process(pid, Signal::TERM);
        }
        let ended = wait_for("the master's end", PATIENCE, || Ok(master.try_wait()?));
        if ended.is_err() {
            master.kill()?;
            master.wait()?;
        }
        let mut wrong = self.judge_log();
        let strangers = self.reader.lines().into_iter();
        let strangers = strangers.filter(|line| !self.users.contains(&line.user));
        wrong.extend(strangers.map(|line| format!("no user of this node: {line:?}")));
        wrong.extend(
            ended
                .err()
                .and_then(|failed| failed.message().map(str::to_owned)),
        );
        wrong.extend(self.reader.malformed());
        let dir = self.path("");
        find_cores(&dir, &mut wrong)?;
        // A process that is not the master's child may still write here: try, then leave it.
        let is_kept = self.is_kept || std::env::var_os("DOVECOT_TEST_KEEP").is_some();
        if wrong.is_empty() && !is_kept {
            self.disks.clear();
            self.dir = None;
            return Ok(());
        }
        for disk in self.disks.drain(..) {
            disk.keep()?;
        }
        let kept = self.dir.take().map(tempfile::TempDir::keep);
        super::check(wrong.is_empty(), || {
            let kept = kept.unwrap_or_default();
            format!("{} ({})", wrong.join("\n"), kept.display())
        })
    }

    /// Its directory stays when it ends, whatever its log says; where that is.
    pub fn keep(&mut self) -> PathBuf {
        self.is_kept = true;
        self.path("")
    }

    /// Leaves it running for an admin to look around, who stops it by the pid that is returned.
    ///
    /// # Errors
    /// When it has been stopped already.
    pub fn leave_running(mut self) -> Outcome<u32> {
        let master = Self::lock(&self.master).take();
        let pid = master.ok_or("stopped already")?.id();
        if let Some(dir) = self.dir.take() {
            let _kept = dir.keep();
        }
        Ok(pid)
    }

    fn judge_log(&self) -> Vec<String> {
        if self.lenient {
            return Vec::new();
        }
        self.wrong_lines()
    }

    /// The lines of the log that nobody expected, and the expectations that were not met.
    #[must_use]
    pub fn wrong_lines(&self) -> Vec<String> {
        let expected = Self::lock(&self.expected);
        let tolerated = Self::lock(&self.tolerated);
        let known = |line: &str| {
            expected
                .iter()
                .chain(tolerated.iter())
                .any(|text| line.contains(text))
        };
        let log = self.log();
        let is_wrong = if self.crashes_only { is_crash } else { is_bad };
        let died = if self.crashes_only {
            died_of_dovecot(&log)
        } else {
            Vec::new()
        };
        let ends_at = Self::lock(&self.ends_at).unwrap_or(log.len());
        let (before, end) = log.split_at_checked(ends_at).unwrap_or((&log, ""));
        let before = before.lines().filter(|line| is_wrong(line));
        let end = end.lines().filter(|line| is_crash(line));
        let mut wrong: Vec<String> = before
            .chain(end)
            .filter(|line| !known(line) && !died.iter().any(|process| line.contains(process)))
            // What 2.4 passes on of its peer's log is judged there.
            .filter(|line| !(self.crashes_only && line.contains(": dsync-remote(")))
            .map(str::to_owned)
            .collect();
        for text in expected.iter() {
            if !log.contains(text) {
                wrong.push(format!("expected in the log, did not come: {text:?}"));
            }
        }
        wrong
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Err(failed) = self.stop_and_look() {
            super::run::report(failed.message().unwrap_or("?").to_owned());
        }
    }
}

/// The reader takes the aggregator's place.
const NO_AGGREGATOR: &str = "\
service aggregator {
  fifo_listener replication-notify-fifo {
    mode = 0
  }
  unix_listener replication-notify {
    mode = 0
  }
}
";

const BAD: [&str; 6] = [
    "Warning: ",
    "Error: ",
    "Fatal: ",
    "Panic: ",
    "Raw backtrace",
    "core dumped",
];

fn is_bad(line: &str) -> bool {
    // How every node is ended.
    if line.contains("master: Warning: Killed with signal 15") {
        return false;
    }
    // Dovecot's words for a process that had to wait for the CPU.
    let is_late_stats = line.contains("stats-writer") && line.contains("Timeout waiting for");
    // A process that starts while the node is ended or reloads.
    let is_late_start = line.contains("Fatal: Failed to read configuration: fd_read() failed")
        || (line.contains("Fatal: Error reading configuration: read(")
            && line.contains("Connection reset by peer"));
    if is_late_stats || is_late_start || line.contains("Warning: Time moved forwards by ") {
        return false;
    }
    // A panic of Rust code is one whatever its level.
    BAD.iter().any(|word| line.contains(word)) || line.contains("panicked at")
}

/// Dovecot's own assertions that loads with faults have met (docs/limits.md).
const ASSERTIONS: [&str; 6] = [
    ">: Panic: file dsync-",
    " (mail_index_sync_map): assertion failed: ",
    " (mailbox_get_metadata): assertion failed: ",
    " (maildir_save_sync_index): assertion failed: (first_uid != 0)",
    ">: Panic: Leaked view for index ",
    "/dovecot.list.index.log, write-lock, F_SETLKW) locking failed: Resource deadlock avoided",
];

/// How the log names the processes that ended in one of those: `doveadm(USER)<PID>`.
pub fn died_of_dovecot(log: &str) -> Vec<&str> {
    let is_known = |line: &&str| {
        let mut known = ASSERTIONS.iter();
        line.contains(">: Panic: ") && known.any(|assertion| line.contains(assertion))
    };
    let panics = log.lines().filter(is_known);
    let processes = panics.filter_map(|line| line.split_whitespace().nth(3));
    processes
        .filter_map(|name| name.split_inclusive('>').next())
        .collect()
}

fn is_crash(line: &str) -> bool {
    // What the replicator gives as the reason is in the log of the process that died, too.
    if line.contains(" replicator: Warning: ") && line.contains(": Sync failed: ") {
        return false;
    }
    let words = ["Panic: ", "Raw backtrace", "(core dumped)", "panicked at"];
    words.iter().any(|word| line.contains(word))
}

/// Debian's libfaketime.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// What makes a process' clock an hour ahead; time that only passes is left alone.
fn clock_environment(inside: &Path) -> [(&'static str, String); 3] {
    [
        ("LD_PRELOAD", format!("{}/faketime.so", inside.display())),
        ("FAKETIME", "+1h".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
}

fn valgrind(inside: &Path) -> String {
    format!(
        "/usr/bin/valgrind --quiet --vgdb=no --leak-check=full --show-leak-kinds=definite,indirect,possible \
         --keep-debuginfo=yes --num-callers=40 --child-silent-after-fork=yes \
         --log-file={}/valgrind/%p.log",
        inside.display()
    )
}

/// Nothing is done where the target's own modules will do.
fn link_modules(target: &Target, modules: &Path) -> Outcome {
    if !target.has_own_modules() {
        return Ok(());
    }
    let installed = Path::new("/usr/lib/dovecot/modules");
    fs::create_dir(modules)?;
    for entry in fs::read_dir(target.outside(installed))? {
        let name = entry?.file_name();
        if name == PLUGIN {
            continue;
        }
        symlink(installed.join(&name), modules.join(&name))?;
    }
    if let Some(plugin) = &target.plugin {
        fs::copy(plugin, modules.join(PLUGIN))?;
    } else {
        symlink(stock_plugin(target)?, modules.join(PLUGIN))?;
    }
    Ok(())
}

/// Where the distribution's plugin is: elsewhere if `make install` has diverted it.
///
/// # Errors
/// When the target has no dpkg-divert.
pub fn stock_plugin(target: &Target) -> Outcome<String> {
    let path = format!("/usr/lib/dovecot/modules/{PLUGIN}");
    let output = target
        .command("dpkg-divert")
        .args(["--truename", &path])
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn find_cores(dir: &Path, found: &mut Vec<String>) -> Outcome {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find_cores(&path, found)?;
        } else if entry.file_name().to_string_lossy().starts_with("core") {
            found.push(format!("core file {}", path.display()));
        }
    }
    Ok(())
}

/// How long stock's plugin keeps a notification back, with room for a slow machine.
pub const STOCK_DELAY: Duration = Duration::from_millis(500);
