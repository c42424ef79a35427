//! What stands in the place of auth, of doveadm-server and of the peer, for one node.
//!
//! The auth-userdb socket lists and knows users by number; doveadm-server answers each dsync at once,
//! or holds it until it is told to let go; the peer greets and no more. All of them tell when each
//! user's dsync came.

use crate::Outcome;
use dovecot_replication::engine::strescape::split_tabescaped;
use std::fs;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

/// More than `replication_max_conns`, so that a held dsync never keeps another from being seen.
const WORKERS: usize = 16;
/// As many letters as the state of a mailbox or two.
const STATE: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The name of a user by its number.
pub fn name(number: usize) -> String {
    format!("u{number:07}@example.org")
}

fn number(name: &[u8]) -> Option<usize> {
    std::str::from_utf8(name.get(1..8)?).ok()?.parse().ok()
}

/// A user that has been synced, as a line of stock's `replicator.db` says it.
pub fn record(number: usize, now: u64) -> String {
    let seen = now - 600 - (number % 3600) as u64;
    format!(
        "{}\t0\t{seen}\t{seen}\t{seen}\t0\t{STATE}\t{seen}\n",
        name(number)
    )
}

/// What the fakes have seen.
#[derive(Default)]
struct Seen {
    /// When each user's last dsync came.
    syncs: Vec<Option<Instant>>,
    count: usize,
    hold: bool,
    stopped: bool,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sockets and the threads behind them.
pub struct Fakes {
    shared: Arc<Shared>,
    auth: PathBuf,
    doveadm: PathBuf,
    peer: u16,
    threads: Vec<JoinHandle<()>>,
}

impl Fakes {
    /// Begins to listen in `dir`, with `users` users.
    ///
    /// # Errors
    /// When a socket cannot be made.
    pub fn start(dir: &Path, users: usize) -> Outcome<Fakes> {
        let (auth, doveadm) = (dir.join("auth-userdb"), dir.join("doveadm-server"));
        let shared = Arc::new(Shared::default());
        shared.lock().syncs.resize(users, None);
        let mut threads = Vec::new();

        let listener = UnixListener::bind(&auth)?;
        let state = Arc::clone(&shared);
        threads.push(spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if state.lock().stopped {
                    return;
                }
                // A client that closes in the middle is the daemon's right.
                spawn(move || serve_auth(client, users).is_ok());
            }
        }));

        let listener = Arc::new(UnixListener::bind(&doveadm)?);
        // As Dovecot's own: by it ours knows that no password will be asked for.
        fs::set_permissions(&doveadm, fs::Permissions::from_mode(0o600))?;
        for _ in 0..WORKERS {
            let (listener, state) = (Arc::clone(&listener), Arc::clone(&shared));
            threads.push(spawn(move || {
                while let Ok((client, _)) = listener.accept() {
                    if state.lock().stopped {
                        return;
                    }
                    // So is this.
                    let _served = serve_doveadm(&client, &state);
                }
            }));
        }

        let listener = TcpListener::bind("127.0.0.1:0")?;
        let peer = listener.local_addr()?.port();
        let state = Arc::clone(&shared);
        threads.push(spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if state.lock().stopped {
                    return;
                }
                spawn(move || greet(&client).is_ok());
            }
        }));
        Ok(Fakes {
            shared,
            auth,
            doveadm,
            peer,
            threads,
        })
    }

    /// The settings that lead to the fakes.
    pub fn config(&self) -> String {
        format!(
            "auth_socket_path = {}\ndoveadm_socket_path = {}\nplugin {{\n  mail_replica = tcp:127.0.0.1:{}\n}}\n",
            self.auth.display(),
            self.doveadm.display(),
            self.peer
        )
    }

    /// Holds every dsync from now on, or lets all go.
    pub fn hold(&self, hold: bool) {
        self.shared.lock().hold = hold;
        self.shared.changed.notify_all();
    }

    /// How many dsyncs have come.
    pub fn count(&self) -> usize {
        self.shared.lock().count
    }

    /// Waits until `user` has a dsync that came after `since`; `None` if it does not within `limit`.
    pub fn wait_sync(&self, user: usize, since: Instant, limit: Duration) -> Option<Duration> {
        let after = |seen: &Seen| {
            let came = seen.syncs.get(user).copied().flatten();
            came.filter(|&came| came >= since).map(|came| came - since)
        };
        let seen = self.shared.lock();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(seen, limit, |seen| after(seen).is_none());
        let (seen, _) = waited.unwrap_or_else(PoisonError::into_inner);
        after(&seen)
    }

    /// How many of `users` have a dsync that came after `since`, and when the last of them did.
    pub fn synced(&self, users: &[usize], since: Instant) -> (usize, Option<Instant>) {
        let seen = self.shared.lock();
        let came = |&user: &usize| seen.syncs.get(user).copied().flatten();
        let times: Vec<Instant> = users
            .iter()
            .filter_map(came)
            .filter(|&at| at >= since)
            .collect();
        (times.len(), times.iter().max().copied())
    }
}

impl Drop for Fakes {
    fn drop(&mut self) {
        self.shared.lock().stopped = true;
        self.hold(false);
        // Each thread waits in accept().
        for _ in 0..WORKERS {
            let _woken = UnixStream::connect(&self.doveadm);
        }
        let _woken = UnixStream::connect(&self.auth);
        let _woken = TcpStream::connect(("127.0.0.1", self.peer));
        for thread in self.threads.drain(..) {
            // It had nothing to say.
            let _ended = thread.join();
        }
        for socket in [&self.auth, &self.doveadm] {
            let _removed = fs::remove_file(socket);
        }
    }
}

fn lines(input: &UnixStream) -> io::Result<impl Iterator<Item = io::Result<Vec<Vec<u8>>>> + use<>> {
    let lines = BufReader::new(input.try_clone()?).split(b'\n');
    Ok(lines.map(|line| Ok(split_tabescaped(&line?).collect())))
}

fn serve_auth(client: UnixStream, users: usize) -> io::Result<()> {
    let lines = lines(&client)?;
    let mut output = BufWriter::with_capacity(65_536, client);
    output.write_all(b"VERSION\t1\t1\nSPID\t1\n")?;
    output.flush()?;
    for line in lines {
        let line = line?;
        let field = |place: usize| line.get(place).map_or(&b""[..], Vec::as_slice);
        let id = String::from_utf8_lossy(field(1)).into_owned();
        match field(0) {
            b"LIST" => {
                for user in 0..users {
                    writeln!(output, "LIST\t{id}\t{}", name(user))?;
                }
                writeln!(output, "DONE\t{id}")?;
            }
            b"USER" if number(field(2)).is_some_and(|user| user < users) => {
                let user = String::from_utf8_lossy(field(2));
                writeln!(
                    output,
                    "USER\t{id}\t{user}\tuid=5000\tgid=5000\thome=/nonexistent"
                )?;
            }
            b"USER" => writeln!(output, "NOTFOUND\t{id}")?,
            b"VERSION" => {}
            _ => writeln!(output, "FAIL\t{id}")?,
        }
        output.flush()?;
    }
    Ok(())
}

fn serve_doveadm(mut client: &UnixStream, shared: &Shared) -> io::Result<()> {
    // Stock waits for the greeting only before it reads on; ours may wait before it writes.
    let mut lines = lines(client)?;
    let Some(version) = lines.next().transpose()? else {
        return Ok(());
    };
    let framed = version.get(3).is_some_and(|minor| minor != b"0");
    client.write_all(if framed {
        b"VERSION\tdoveadm-client\t1\t1\n+\n"
    } else {
        b"+\n"
    })?;
    // As Dovecot: one command after the other, for a client that does not hang up in between.
    for command in lines {
        let command = command?;
        {
            let mut seen = shared.lock();
            seen.count += 1;
            let user = command.get(1).and_then(|user| number(user));
            if let Some(sync) = user.and_then(|user| seen.syncs.get_mut(user)) {
                *sync = Some(Instant::now());
            }
            shared.changed.notify_all();
            if seen.hold {
                drop(shared.changed.wait_while(seen, |seen| seen.hold));
            }
        }
        // With what our doveadm module adds; stock's replicator takes the first field, and hangs up.
        let answer = format!("{STATE}\t\tready\t\n+\n");
        let mut output = Vec::new();
        if framed {
            let length = u32::try_from(answer.len()).unwrap_or(u32::MAX);
            output.push(0);
            output.extend(length.to_be_bytes());
        }
        output.extend(answer.as_bytes());
        client.write_all(&output)?;
    }
    Ok(())
}

fn greet(mut client: &TcpStream) -> io::Result<()> {
    client.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut lines = BufReader::new(client.try_clone()?).lines();
    if lines.next().transpose()?.is_some() {
        client.write_all(b"-\n")?;
        // Until the client has what it wants.
        lines.next().transpose()?;
    }
    Ok(())
}
