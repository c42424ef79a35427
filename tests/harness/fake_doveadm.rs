//! A `doveadm-server` that syncs nothing: it records what the replicator asks for and answers as told.
//!
//! Source of the protocol: Dovecot 2.3, `src/doveadm/client-connection-tcp.c`, minor version 0.

use super::{Outcome, PATIENCE, wait_for};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SOCKET: &str = "doveadm-server";

/// A sync that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whose.
    pub username: String,
    /// The arguments after `sync`.
    pub arguments: Vec<String>,
}

impl Request {
    /// Whether it was to be a full sync.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.arguments.iter().any(|argument| argument == "-f")
    }
}

#[derive(Debug, Default)]
struct State {
    requests: Vec<Request>,
    /// Whose they were.
    usernames: BTreeSet<String>,
    hanging: BTreeSet<String>,
    /// Kept open until the end: these syncs never finish.
    hung: Vec<UnixStream>,
}

/// The server; it ends with its process.
#[derive(Clone, Debug)]
pub struct FakeDoveadm {
    state: Arc<Mutex<State>>,
    dir: Arc<tempfile::TempDir>,
}

impl FakeDoveadm {
    /// Listens in a directory of its own in `tmp`.
    ///
    /// # Errors
    /// When it cannot.
    pub fn listen(tmp: &Path) -> Outcome<FakeDoveadm> {
        let dir = tempfile::Builder::new()
            .prefix("dr-fake-")
            .tempdir_in(tmp)?;
        let path = dir.path().join(SOCKET);
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        let fake = FakeDoveadm {
            state: Arc::default(),
            dir: Arc::new(dir),
        };
        let server = fake.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                // One that is cut off is the replicator's affair.
                std::thread::spawn(move || server.serve(stream).ok());
            }
        });
        Ok(fake)
    }

    /// The socket's path for a Dovecot for which `tmp` is /tmp.
    #[must_use]
    pub fn path_in_tmp(&self) -> String {
        let name = self.dir.path().file_name().unwrap_or_default();
        format!("/tmp/{}/{SOCKET}", name.to_string_lossy())
    }

    /// The syncs of this user never finish.
    pub fn hang(&self, username: &str) {
        self.lock().hanging.insert(username.to_owned());
    }

    /// All requests so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.lock().requests.clone()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        let mut state = self.lock();
        state.requests.clear();
        state.usernames.clear();
    }

    /// Waits until syncs of `count` different users have been asked for. They may take as long as the
    /// machine needs: what is lost shows as a number that stands still.
    ///
    /// # Errors
    /// When the number stands still for [`PATIENCE`]; the message says at how many.
    pub fn wait_users(&self, count: usize) -> Outcome {
        loop {
            let before = self.lock().usernames.len();
            if before >= count {
                return Ok(());
            }
            let users = || self.lock().usernames.len();
            wait_for(
                &format!("syncs of {count} users, more than {before}"),
                PATIENCE,
                || Ok((users() > before).then_some(())),
            )?;
        }
    }

    /// Waits for a sync of `username`.
    ///
    /// # Errors
    /// When none is asked for.
    pub fn wait_request(&self, username: &str) -> Outcome<Request> {
        wait_for(&format!("a sync of {username}"), PATIENCE, || {
            let state = self.lock();
            Ok(state
                .requests
                .iter()
                .find(|request| request.username == username)
                .cloned())
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: UnixStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut stream = stream;
        let mut line = String::new();
        reader.read_line(&mut line)?;
        stream.write_all(b"+\n")?;
        // Stock's replicator uses a connection again and again.
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let mut fields = line
                .trim_end_matches('\n')
                .split('\t')
                .skip(1)
                .map(str::to_owned);
            let username = fields.next().unwrap_or_default();
            let request = Request {
                username: username.clone(),
                arguments: fields.skip(1).collect(),
            };
            let mut state = self.lock();
            state.requests.push(request);
            state.usernames.insert(username.clone());
            if state.hanging.contains(&username) {
                state.hung.push(stream);
                return Ok(());
            }
            drop(state);
            stream.write_all(b"STATE\t\n+\n")?;
        }
    }
}
