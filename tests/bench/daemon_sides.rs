//! One side's aggregator and replicator under a real Dovecot, between the fakes.

use crate::fakes::{Fakes, record};
use crate::node::{Home, Node, Side, true_name};
use crate::process::{self, signal, wait_gone};
use crate::{Outcome, Setup};
use rustix::process::Signal;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a daemon may take for anything.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two questions whether all users are known.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// The executables of a side, if they are all there.
///
/// # Errors
/// The name of what is missing.
pub fn executables(setup: &Setup, side: Side) -> Outcome<[PathBuf; 2]> {
    let mut found = [PathBuf::new(), PathBuf::new()];
    for (path, name) in found.iter_mut().zip(["aggregator", "replicator"]) {
        *path = match side {
            Side::Ours => setup.ours.join(name),
            Side::Stock | Side::None => true_name(&setup.stock.join(name)),
        };
        if !path.is_file() {
            return Err(format!("no {}", path.display()).into());
        }
    }
    Ok(found)
}

/// Links to a side's executables in a node's directory, under the names that their processes are
/// then found by.
///
/// # Errors
/// When one is missing.
pub fn link_executables(setup: &Setup, side: Side, home: &Home) -> Outcome<[PathBuf; 2]> {
    let links = ["aggregator", "replicator"].map(|name| home.path.join(name));
    for (link, executable) in links.iter().zip(executables(setup, side)?) {
        symlink(executable, link)?;
    }
    Ok(links)
}

/// A side's daemons, of a number of users.
pub struct Daemons {
    pub side: Side,
    pub node: Node,
    pub fakes: Fakes,
    pub users: usize,
    fifo: File,
}

/// How long a start took.
#[derive(Clone, Copy)]
pub struct Start {
    /// From the first client's connect to a status that knows all users, in seconds.
    pub seconds: f64,
    /// CPU seconds of the replicator by then.
    pub cpu: f64,
}

impl Daemons {
    /// Starts a Dovecot; the replicator starts with its first client.
    ///
    /// # Errors
    /// When Dovecot does not start.
    pub fn new(setup: &Setup, side: Side, users: usize, name: &str) -> Outcome<Daemons> {
        let home = Home::new(&setup.work, &format!("{name}-{}", side.as_str()))?;
        let [aggregator, replicator] = link_executables(setup, side, &home)?;
        let fakes = Fakes::start(&home.path, users)?;
        let config = format!(
            "\
protocols =
replication_full_sync_interval = 30 days
service aggregator {{
  executable = {}
  fifo_listener replication-notify-fifo {{
    mode = 0600
  }}
}}
service replicator {{
  executable = {}
  unix_listener replicator-doveadm {{
    mode = 0600
  }}
}}
{}",
            aggregator.display(),
            replicator.display(),
            fakes.config()
        );
        let node = home.start(&config)?;
        let fifo = OpenOptions::new()
            .write(true)
            .open(node.path("run/replication-notify-fifo"))?;
        Ok(Daemons {
            side,
            node,
            fakes,
            users,
            fifo,
        })
    }

    /// Puts a stock `replicator.db` in the place of all state: every user has been synced lately.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_state(&self) -> Outcome {
        let state = self.node.path("state");
        for entry in fs::read_dir(&state)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_file() && name.starts_with("replica") {
                fs::remove_file(path)?;
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let mut file = BufWriter::new(File::create(state.join("replicator.db"))?);
        for user in 0..self.users {
            file.write_all(record(user, now).as_bytes())?;
        }
        Ok(file.flush()?)
    }

    /// Starts the replicator by connecting to it, and waits until it knows all users.
    ///
    /// # Errors
    /// When it does not come to know them.
    pub fn start(&self) -> Outcome<Start> {
        let start = Instant::now();
        loop {
            let mut client = self.status_client()?;
            while start.elapsed() < LIMIT {
                // A replicator may serve its first client only later: then another asks.
                let Ok(status) = client.overview() else { break };
                if status.known == self.users {
                    let seconds = start.elapsed().as_secs_f64();
                    let cpu = process::cpu(self.node.process("replicator")?)?;
                    return Ok(Start { seconds, cpu });
                }
                sleep(POLL_INTERVAL);
            }
            if start.elapsed() >= LIMIT {
                return Err(format!(
                    "{} does not know {} users\n{}",
                    self.side.as_str(),
                    self.users,
                    self.node.log()
                )
                .into());
            }
            sleep(POLL_INTERVAL);
        }
    }

    /// Ends the replicator as the master does, and waits until it is gone.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&self) -> Outcome {
        for pid in self.node.processes("replicator") {
            signal(pid, Signal::TERM);
            wait_gone(pid, LIMIT)?;
        }
        Ok(())
    }

    /// A memory figure of the replicator in bytes, see [`process::memory`].
    ///
    /// # Errors
    /// When it does not run.
    pub fn memory(&self, field: &str) -> Outcome<f64> {
        process::memory(self.node.process("replicator")?, field)
    }

    /// CPU seconds of the daemon so far; 0 while it does not run.
    pub fn cpu(&self, name: &str) -> f64 {
        let pids = self.node.processes(name);
        pids.into_iter()
            .filter_map(|pid| process::cpu(pid).ok())
            .sum()
    }

    /// A client of `replicator-doveadm`.
    ///
    /// # Errors
    /// When it cannot connect.
    pub fn status_client(&self) -> Outcome<StatusClient> {
        StatusClient::connect(&self.node.path("run/replicator-doveadm"))
    }

    /// Writes lines into the fifo; waits while it is full.
    ///
    /// # Errors
    /// When the fifo is gone.
    pub fn notify(&self, lines: &[u8]) -> Outcome {
        let mut fifo = &self.fifo;
        Ok(fifo.write_all(lines)?)
    }

    /// Bytes that the aggregator has still to take.
    ///
    /// # Errors
    /// When the fifo is gone.
    pub fn fifo_used(&self) -> Outcome<u64> {
        let path = self.node.path("run/replication-notify-fifo");
        let fifo = OpenOptions::new().read(true).write(true).open(path)?;
        Ok(rustix::io::ioctl_fionread(&fifo)?)
    }

    /// How many processes of this side have died of a bug.
    pub fn panics(&self) -> usize {
        self.node.count_log("Panic: ") + self.node.count_log("panicked at")
    }
}

/// What `STATUS` says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Overview {
    /// Users with a `sync`, `high` or `low` request.
    pub queued: usize,
    /// All users.
    pub known: usize,
}

/// A connection to `replicator-doveadm`.
pub struct StatusClient {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
}

impl StatusClient {
    fn connect(socket: &std::path::Path) -> Outcome<StatusClient> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut stream = BufReader::with_capacity(1 << 18, stream);
        stream
            .get_mut()
            .write_all(b"VERSION\treplicator-doveadm-client\t1\t0\n")?;
        let mut client = StatusClient {
            stream,
            line: Vec::new(),
        };
        if client
            .read_line()?
            .starts_with(b"VERSION\treplicator-doveadm-server\t1\t")
        {
            return Ok(client);
        }
        Err(format!("greeted {:?}", String::from_utf8_lossy(&client.line)).into())
    }

    fn read_line(&mut self) -> Outcome<&[u8]> {
        self.line.clear();
        self.stream.read_until(b'\n', &mut self.line)?;
        match self.line.strip_suffix(b"\n") {
            Some(line) => Ok(line),
            None => Err(ErrorKind::UnexpectedEof.to_string().into()),
        }
    }

    /// `STATUS`.
    ///
    /// # Errors
    /// When the connection ends.
    pub fn overview(&mut self) -> Outcome<Overview> {
        self.stream.get_mut().write_all(b"STATUS\n")?;
        let mut overview = Overview::default();
        loop {
            let line = String::from_utf8_lossy(self.read_line()?).into_owned();
            let Some((label, value)) = line.split_once('\t') else {
                return Ok(overview);
            };
            let value: usize = value.parse()?;
            match label {
                "Queued 'sync' requests" | "Queued 'high' requests" | "Queued 'low' requests" => {
                    overview.queued += value;
                }
                "Total number of known users" => overview.known = value,
                _ => {}
            }
        }
    }

    /// `STATUS` of all users, read to its end: how many lines it had.
    ///
    /// # Errors
    /// When the connection ends.
    pub fn listing(&mut self) -> Outcome<usize> {
        self.stream.get_mut().write_all(b"STATUS\t*\n")?;
        let mut lines = 0;
        while !self.read_line()?.is_empty() {
            lines += 1;
        }
        Ok(lines)
    }
}
