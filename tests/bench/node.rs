//! A real Dovecot in a directory of its own, ended by its pid when dropped.
//!
//! The driver (`bench`) ends what a killed bench leaves, by the pid files.

use crate::process::{children, signal, wait_until};
use crate::{Outcome, Setup};
use rustix::process::Signal;
use std::fs::{self, File};
use std::os::unix::fs::{chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The owner of all mail. Dovecot wants a name for the owner of a socket: Debian's own, without a login.
pub const VMAIL: u32 = 8;
pub const VMAIL_NAME: &str = "mail";
const PLUGIN: &str = "lib20_replication_plugin.so";
const START_LIMIT: Duration = Duration::from_secs(20);

/// Whose program or module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// No replication at all.
    None,
    /// The distribution's.
    Stock,
    /// This project's.
    Ours,
}

impl Side {
    pub fn as_str(self) -> &'static str {
        match self {
            Side::None => "none",
            Side::Stock => "stock",
            Side::Ours => "ours",
        }
    }
}

/// The directory of a node that is still to be started.
pub struct Home {
    pub path: PathBuf,
}

impl Home {
    /// Makes the directory with what every node needs in it.
    ///
    /// # Errors
    /// When it is there already.
    pub fn new(parent: &Path, name: &str) -> Outcome<Home> {
        let path = parent.join(name);
        fs::create_dir(&path)?;
        for sub in ["run", "state", "mail"] {
            fs::create_dir(path.join(sub))?;
        }
        chown(path.join("mail"), Some(VMAIL), Some(VMAIL))?;
        Ok(Home { path })
    }

    /// A `mail_plugin_dir`: links to the distribution's modules, with the side's plugin among them.
    ///
    /// # Errors
    /// When a plugin is missing.
    pub fn link_modules(&self, setup: &Setup, side: Side) -> Outcome {
        let installed = Path::new("/usr/lib/dovecot/modules");
        let modules = self.path.join("modules");
        fs::create_dir(&modules)?;
        for entry in fs::read_dir(installed)? {
            let name = entry?.file_name();
            if name != PLUGIN {
                symlink(installed.join(&name), modules.join(&name))?;
            }
        }
        let plugin = match side {
            Side::None => return Ok(()),
            Side::Stock => true_name(&installed.join(PLUGIN)),
            Side::Ours => setup.ours.join(PLUGIN),
        };
        if !plugin.is_file() {
            return Err(format!("no {}", plugin.display()).into());
        }
        Ok(symlink(plugin, modules.join(PLUGIN))?)
    }

    /// A passwd-file of users with homes below `mail`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_users(&self, users: &[String]) -> Outcome {
        let line = |user: &String| {
            let home = self.path.join("mail").join(user);
            format!(
                "{user}:{{PLAIN}}secret:{VMAIL}:{VMAIL}::{}::\n",
                home.display()
            )
        };
        Ok(fs::write(
            self.path.join("users"),
            users.iter().map(line).collect::<String>(),
        )?)
    }

    /// Starts Dovecot with what all nodes have and `config`, and waits until it takes connections.
    ///
    /// # Errors
    /// When it does not start; the log is in the message.
    pub fn start(self, config: &str) -> Outcome<Node> {
        self.start_as(Command::new("dovecot"), config)
    }

    /// The same, with this side's files in Dovecot's library directory: doveadm has its modules there and nowhere else.
    ///
    /// # Errors
    /// As [`Home::start`].
    pub fn start_installed(self, setup: &Setup, side: Side, config: &str) -> Outcome<Node> {
        if side != Side::Ours {
            return self.start(config);
        }
        let library = setup.ours.join("lib");
        if !library.is_dir() {
            return Err(format!("no {}: run `make stage`", library.display()).into());
        }
        let mut command = Command::new("tests/roots/with-ours");
        command.arg(library).args(["--", "dovecot"]);
        self.start_as(command, config)
    }

    fn start_as(self, mut dovecot: Command, config: &str) -> Outcome<Node> {
        let dir = self.path.display();
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let common = format!(
            "\
base_dir = {dir}/run
state_dir = {dir}/state
log_path = {dir}/log
instance_name = bench-{name}
ssl = no
listen = 127.0.0.1
default_vsz_limit = 0
first_valid_uid = {VMAIL}
mail_location = maildir:~/Maildir
mail_fsync = never
"
        );
        fs::write(self.path.join("dovecot.conf"), common + config)?;
        let master = dovecot
            .args(["-F", "-c"])
            .arg(self.path.join("dovecot.conf"))
            // dsync takes two nodes of one host name for one.
            .env("DOVECOT_HOSTNAME", format!("bench-{name}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.path.join("stderr"))?)
            .spawn()?;
        let mut node = Node {
            dir: self.path,
            master,
        };
        let pid_file = node.dir.join("run/master.pid");
        let mut ended = None;
        let started = wait_until("Dovecot's start", START_LIMIT, || {
            ended = node.master.try_wait().ok().flatten();
            // Written when the listeners are there.
            ended.is_some() || pid_file.exists()
        });
        if started.is_err() || ended.is_some() {
            let stderr = fs::read_to_string(node.dir.join("stderr")).unwrap_or_default();
            return Err(format!("Dovecot did not start: {stderr}\n{}", node.log()).into());
        }
        Ok(node)
    }
}

/// Where a file of the distribution is: beside its name if `make install` has diverted it.
pub fn true_name(path: &Path) -> PathBuf {
    let mut diverted = path.as_os_str().to_owned();
    diverted.push(".distrib");
    let diverted = PathBuf::from(diverted);
    if diverted.exists() {
        diverted
    } else {
        path.to_owned()
    }
}

/// A Dovecot that runs.
pub struct Node {
    dir: PathBuf,
    master: Child,
}

impl Node {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The processes of this node that are called `name`.
    pub fn processes(&self, name: &str) -> Vec<u32> {
        children(self.master.id(), name)
    }

    /// The one process that is called `name`.
    ///
    /// # Errors
    /// When there is none, or more.
    pub fn process(&self, name: &str) -> Outcome<u32> {
        match self.processes(name).as_slice() {
            [pid] => Ok(*pid),
            pids => Err(format!("{name} processes: {pids:?}\n{}", self.log()).into()),
        }
    }

    /// The end of the log.
    pub fn log(&self) -> String {
        let log = fs::read(self.path("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        let last = lines.len().saturating_sub(30);
        lines.get(last..).unwrap_or_default().join("\n")
    }

    /// How many lines of the log have `text`.
    pub fn count_log(&self, text: &str) -> usize {
        let log = fs::read(self.path("log")).unwrap_or_default();
        String::from_utf8_lossy(&log)
            .lines()
            .filter(|line| line.contains(text))
            .count()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        signal(self.master.id(), Signal::TERM);
        let limit = Duration::from_secs(15);
        let master = &mut self.master;
        let ended = wait_until("the master's end", limit, || {
            matches!(master.try_wait(), Ok(Some(_)) | Err(_))
        });
        if ended.is_err() {
            // Killed or gone: both end it.
            let _ended = self.master.kill().and_then(|()| self.master.wait());
        }
    }
}
