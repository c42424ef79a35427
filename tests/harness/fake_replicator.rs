//! A `replicator-doveadm` socket with nothing behind it: it answers as told and records what it is sent.

use super::{Outcome, PATIENCE, wait_for};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const GREETING: &[u8] = b"VERSION\treplicator-doveadm-server\t1\t0\n";
const CLIENT_GREETING: &str = "VERSION\treplicator-doveadm-client\t1\t0\n";

#[derive(Debug, Default)]
struct State {
    answer: Vec<u8>,
    requests: Vec<String>,
    malformed: Vec<String>,
}

/// The server; it ends with its process.
#[derive(Clone, Debug, Default)]
pub struct FakeReplicator {
    state: Arc<Mutex<State>>,
}

impl FakeReplicator {
    /// Listens on a socket that only root may open.
    ///
    /// # Errors
    /// When it cannot.
    pub fn listen(path: &Path) -> Outcome<FakeReplicator> {
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        let fake = FakeReplicator::default();
        let server = fake.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = server.clone();
                // A client that does not wait for an answer breaks the pipe.
                std::thread::spawn(move || server.serve(stream).ok());
            }
        });
        Ok(fake)
    }

    /// Answers so from now on, and forgets what came before.
    pub fn answer(&self, answer: &str) {
        let mut state = self.lock();
        state.answer = answer.into();
        state.requests.clear();
    }

    /// The requests so far, as they came.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    /// Waits for this request.
    ///
    /// # Errors
    /// When it does not come; the message says what came.
    pub fn wait_request(&self, request: &str) -> Outcome {
        wait_for(&format!("{request:?}"), PATIENCE, || {
            Ok(self.requests().iter().any(|r| r == request).then_some(()))
        })
        .map_err(|failed| {
            let came = self.requests();
            format!("{}, but {came:?}", failed.message().unwrap_or("?")).into()
        })
    }

    /// What was no greeting.
    #[must_use]
    pub fn malformed(&self) -> Vec<String> {
        self.lock().malformed.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, mut stream: UnixStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut greeting = String::new();
        reader.read_line(&mut greeting)?;
        // Waited for before it is read on: a client may write all it has to say and close.
        let _closed = stream.write_all(GREETING);
        let mut request = String::new();
        reader.read_line(&mut request)?;
        if request.starts_with("SERVING\t") {
            return self.serve_dsync_server(&mut stream, &mut reader);
        }
        let mut state = self.lock();
        if greeting != CLIENT_GREETING {
            state.malformed.push(greeting);
        }
        let answer = state.answer.clone();
        // A client that only looks whether somebody listens asks nothing.
        if !request.is_empty() {
            state.requests.push(request);
        }
        drop(state);
        stream.write_all(&answer)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        reader.read_to_end(&mut Vec::new())?;
        Ok(())
    }

    /// All that a dsync-server says has one connection; that it begins and ends is not recorded.
    fn serve_dsync_server(
        &self,
        stream: &mut UnixStream,
        reader: &mut impl BufRead,
    ) -> std::io::Result<()> {
        for request in reader.lines() {
            let request = request?;
            if request != "SERVED" {
                let mut state = self.lock();
                state.requests.push(request + "\n");
                let answer = state.answer.clone();
                drop(state);
                stream.write_all(&answer)?;
            }
        }
        Ok(())
    }
}
