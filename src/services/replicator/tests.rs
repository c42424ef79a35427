//! The daemon between faked neighbours: auth, doveadm-server and a peer, each a thread on a socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::{DOVEADM_LISTENER, NOTIFY_LISTENER, Replicator, Settings};
use crate::engine::replicator::MAX_UNKNOWN;
use crate::engine::time::{Mono, Now, UnixSecs};
use crate::services::daemon::Daemon;

mod handover;
mod idle;
mod mailbox_list;
mod measure;

const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// What the faked doveadm-server does with a request.
#[derive(Clone)]
enum Answer {
    Reply(&'static [u8]),
    Hang,
    Close,
    /// Replies, and ends though it says that it is ready for another.
    ReplyAndClose(&'static [u8]),
    /// Replies to the first command of a connection, and ends on another.
    ReplyToFirst(&'static [u8]),
}

/// What our doveadm module says of a sync that went well.
const READY: &[u8] = b"STATE\t\tready\t\n+\n";

type AnswerOf = dyn FnMut(&str) -> Answer + Send;

/// The neighbours, as a test sets them.
struct Neighbours {
    answer: Mutex<Box<AnswerOf>>,
    users: Mutex<Vec<String>>,
    fields: Mutex<String>,
    /// Connections to doveadm-server: begun, and ended by the daemon.
    connections: AtomicUsize,
    ended: AtomicUsize,
    /// Whether doveadm-server greets a connection that is made now.
    greets: AtomicBool,
    /// What doveadm-server answers to a listing of a user's mailboxes.
    mailboxes: Mutex<&'static [u8]>,
}

struct Setup {
    directory: tempfile::TempDir,
    neighbours: Arc<Neighbours>,
    requests: Receiver<String>,
    peer: Option<TcpListener>,
    settings: Settings,
}

fn listen(directory: &Path, name: &str, mut serve: impl FnMut(UnixStream) + Send + 'static) {
    let path = directory.join(name);
    let listener = UnixListener::bind(&path).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, mode).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            match stream {
                Ok(stream) => serve(stream),
                Err(_) => return,
            }
        }
    });
}

fn serve_doveadm(stream: UnixStream, neighbours: &Neighbours, requests: &Sender<String>) {
    let greets = neighbours.greets.load(Relaxed);
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    let mut line = String::new();
    let _ = reader.read_line(&mut line);
    if !greets {
        // It is held for as long as the client waits.
        let _ = reader.read_to_end(&mut Vec::new());
        return;
    }
    assert!(line.starts_with("VERSION\tdoveadm-server\t1\t"), "{line}");
    let _ = stream.write_all(b"+\n");
    for at in 0.. {
        line.clear();
        if reader.read_line(&mut line).is_ok_and(|length| length == 0) {
            neighbours.ended.fetch_add(1, Relaxed);
            return;
        }
        let line = line.trim_end_matches('\n').to_owned();
        if line.contains("\tmailbox status\t") {
            // Not one of those for syncs, which are counted.
            neighbours.connections.fetch_sub(1, Relaxed);
            let _ = stream.write_all(*neighbours.mailboxes.lock().unwrap());
            return;
        }
        let answer = (neighbours.answer.lock().unwrap())(&line);
        let _ = requests.send(line);
        match answer {
            Answer::ReplyToFirst(_) if at > 0 => {}
            Answer::Reply(bytes) | Answer::ReplyToFirst(bytes) => {
                let _ = stream.write_all(bytes);
                if bytes.windows(5).any(|part| part == b"ready") {
                    continue;
                }
            }
            Answer::ReplyAndClose(bytes) => {
                let _ = stream.write_all(bytes);
            }
            Answer::Hang => {
                let _ = stream.read(&mut [0; 1]);
            }
            Answer::Close => {}
        }
        return;
    }
}

fn serve_auth(stream: UnixStream, neighbours: &Neighbours) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    let _ = stream.write_all(b"VERSION\t1\t2\nSPID\t1\n");
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
        let fields: Vec<&str> = line.trim_end().split('\t').collect();
        let mut answer = String::new();
        match fields.as_slice() {
            ["USER", id, user, ..] => {
                let known = neighbours.users.lock().unwrap().iter().any(|u| u == user);
                let extra = neighbours.fields.lock().unwrap().clone();
                if known {
                    answer = format!("USER\t{id}\t{user}\tuid=8{extra}\n");
                } else {
                    answer = format!("NOTFOUND\t{id}\n");
                }
            }
            ["LIST", id, ..] => {
                for user in neighbours.users.lock().unwrap().iter() {
                    answer.push_str(&format!("LIST\t{id}\t{user}\n"));
                }
                answer.push_str(&format!("DONE\t{id}\t\n"));
            }
            _ => {}
        }
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
        line.clear();
    }
}

fn serve_peer(listener: TcpListener) {
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut hello = [0; 64];
            let _ = stream.read(&mut hello);
            let _ = stream.write_all(b"-\n");
        }
    });
}

impl Setup {
    fn new(users: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let neighbours = Arc::new(Neighbours {
            answer: Mutex::new(Box::new(|_| Answer::Reply(b"STATE\t\n+\n"))),
            users: Mutex::new(users.iter().map(|&user| user.to_owned()).collect()),
            fields: Mutex::new(String::new()),
            connections: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            greets: AtomicBool::new(true),
            mailboxes: Mutex::new(b"\n-TEMPFAIL\n"),
        });
        let (sender, requests) = channel();
        let served = Arc::clone(&neighbours);
        listen(directory.path(), "doveadm-server", move |stream| {
            let (served, sender) = (Arc::clone(&served), sender.clone());
            served.connections.fetch_add(1, Relaxed);
            std::thread::spawn(move || serve_doveadm(stream, &served, &sender));
        });
        let served = Arc::clone(&neighbours);
        listen(directory.path(), "auth-userdb", move |stream| {
            let served = Arc::clone(&served);
            std::thread::spawn(move || serve_auth(stream, &served));
        });
        let peer = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = format!("tcp:{}", peer.local_addr().unwrap());
        let settings = Settings {
            base_dir: directory.path().to_owned(),
            state_dir: directory.path().to_owned(),
            mail_replica: vec![target],
            ..Settings::default()
        };
        Self {
            directory,
            neighbours,
            requests,
            peer: Some(peer),
            settings,
        }
    }

    /// With a peer that answers.
    fn with_peer(users: &[&str]) -> Self {
        let mut setup = Self::new(users);
        setup.peer_comes_up();
        setup
    }

    fn peer_comes_up(&mut self) {
        serve_peer(self.peer.take().unwrap());
    }

    fn answer(&self, answer: impl FnMut(&str) -> Answer + Send + 'static) {
        *self.neighbours.answer.lock().unwrap() = Box::new(answer);
    }

    fn start(&self) -> Running {
        Running::new(&self.settings)
    }
}

fn clock(origin: Instant, ahead: Duration) -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + ahead;
    Now {
        mono: Mono(1) + origin.elapsed() + ahead,
        wall: UnixSecs(u32::try_from(wall.as_secs()).unwrap()),
    }
}

/// The daemon, its listeners, and the loop that its host is otherwise.
struct Running {
    daemon: Replicator,
    poll: Poll,
    listeners: Vec<(&'static str, UnixListener)>,
    origin: Instant,
    /// The daemon's clock is so far ahead.
    ahead: Duration,
    accepted: usize,
    closed: usize,
}

impl Running {
    fn new(settings: &Settings) -> Self {
        let origin = Instant::now();
        let daemon = Replicator::new(settings.clone(), clock(origin, Duration::ZERO)).unwrap();
        let poll = Poll::new().unwrap();
        let registry = poll.registry();
        registry
            .register(
                &mut SourceFd(&daemon.poll_fd()),
                Token(9),
                Interest::READABLE,
            )
            .unwrap();
        let mut listeners = Vec::new();
        for name in [NOTIFY_LISTENER, DOVEADM_LISTENER] {
            let path = settings.base_dir.join(name);
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(path).unwrap();
            listener.set_nonblocking(true).unwrap();
            let fd = listener.as_raw_fd();
            registry
                .register(
                    &mut SourceFd(&fd),
                    Token(listeners.len()),
                    Interest::READABLE,
                )
                .unwrap();
            listeners.push((name, listener));
        }
        Self {
            daemon,
            poll,
            listeners,
            origin,
            ahead: Duration::ZERO,
            accepted: 0,
            closed: 0,
        }
    }

    fn now(&self) -> Now {
        clock(self.origin, self.ahead)
    }

    /// One round of the loop, of at most this long.
    fn turn(&mut self, longest: Duration) {
        let until_due = match self.daemon.next_timeout() {
            Some(due) => due.since(self.now().mono).min(longest),
            None => longest,
        };
        let mut events = Events::with_capacity(16);
        self.poll.poll(&mut events, Some(until_due)).unwrap();
        for (name, listener) in &self.listeners {
            while let Ok((stream, _)) = listener.accept() {
                let now = clock(self.origin, self.ahead);
                self.accepted += 1;
                self.daemon
                    .handle_connection(now, name, OwnedFd::from(stream), false);
            }
        }
        self.daemon.handle_ready(self.now());
        if self
            .daemon
            .next_timeout()
            .is_some_and(|due| due <= self.now().mono)
        {
            self.daemon.handle_timeout(self.now());
        }
        self.closed += self.daemon.take_closed_connections();
    }

    fn run_until<T>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<T>) -> T {
        let end = Instant::now() + LONGEST_WAIT;
        loop {
            if let Some(found) = done(self) {
                return found;
            }
            assert!(Instant::now() < end, "waited in vain for {what}");
            self.turn(Duration::from_millis(5));
        }
    }

    /// What a client is sent, up to these last bytes.
    fn read_until(&mut self, client: &mut UnixStream, last: &str) -> String {
        client.set_nonblocking(true).unwrap();
        let mut text = Vec::new();
        let last = last.as_bytes().to_vec();
        self.run_until(&format!("{last:?}"), |_| {
            let mut buffer = [0; 4096];
            if let Ok(length) = client.read(&mut buffer) {
                text.extend_from_slice(&buffer[..length]);
            }
            text.ends_with(&last).then_some(())
        });
        String::from_utf8(text).unwrap()
    }

    fn aggregator(&self, minor: u8) -> UnixStream {
        let mut client = self.connect(NOTIFY_LISTENER);
        let version = format!("VERSION\treplicator-notify\t1\t{minor}\n");
        client.write_all(version.as_bytes()).unwrap();
        client
    }

    fn connect(&self, name: &str) -> UnixStream {
        let (_, listener) = self.listeners.iter().find(|(n, _)| *n == name).unwrap();
        let address = listener.local_addr().unwrap();
        UnixStream::connect(address.as_pathname().unwrap()).unwrap()
    }

    fn ask(&mut self, command: &str, last: &str) -> String {
        let mut client = self.connect(DOVEADM_LISTENER);
        let text = format!("VERSION\treplicator-doveadm-client\t1\t0\n{command}\n");
        client.write_all(text.as_bytes()).unwrap();
        let answer = self.read_until(&mut client, last);
        let hello = "VERSION\treplicator-doveadm-server\t1\t0\n";
        answer.strip_prefix(hello).unwrap().to_owned()
    }

    fn wait_quiet(&mut self, setup: &Setup, syncs: usize) {
        for _ in 0..syncs {
            self.run_until("a sync", |_| setup.requests.try_recv().ok());
        }
        self.run_until("quiet", |running| {
            let status = running.ask("STATUS-DSYNC", "\n\n");
            status
                .lines()
                .all(|line| line.is_empty() || line.starts_with('\t'))
                .then_some(())
        });
    }
}

fn user_of(request: &str) -> &str {
    request.split('\t').nth(1).unwrap()
}

#[test]
fn a_notification_leads_to_a_sync_and_is_acknowledged() {
    let setup = Setup::with_peer(&["u1"]);
    let mut running = setup.start();
    running.wait_quiet(&setup, 1);
    let mut client = running.aggregator(1);
    client
        .write_all(b"U\tu1\tlow\t1\nnonsense\nU\tu1\turgent\t2\n")
        .unwrap();
    let answer = running.read_until(&mut client, "A\t2\n");
    assert!(answer.starts_with("VERSION\treplicator-notify\t1\t1\n"));
    let request = running.run_until("the sync", |_| setup.requests.try_recv().ok());
    assert_eq!(
        request, "\tu1\tsync\t-d\t-N\t-l\t30\t-U\t-s\tSTATE",
        "the second sync is incremental"
    );
}

#[test]
fn more_unknown_names_than_there_is_room_for_are_all_acknowledged() {
    let setup = Setup::with_peer(&[]);
    let mut running = setup.start();
    let mut client = running.aggregator(1);
    let count = MAX_UNKNOWN + 2000;
    let lines: String = (1..=count)
        .map(|id| format!("U\tnobody{id}\tlow\t{id}\n"))
        .collect();
    let mut unsent = lines.as_bytes();
    client.set_nonblocking(true).unwrap();
    running.run_until("all lines are taken", |_| {
        // Nothing is taken while there is no room.
        let sent = client.write(unsent).unwrap_or(0);
        unsent = &unsent[sent..];
        unsent.is_empty().then_some(())
    });
    running.read_until(&mut client, &format!("A\t{count}\n"));
}

#[test]
fn a_waiter_gets_plus_after_a_sync_that_began_after_it_asked() {
    let setup = Setup::with_peer(&["u1"]);
    let mut running = setup.start();
    running.wait_quiet(&setup, 1);
    for minor in [0, 1] {
        let mut client = running.aggregator(minor);
        client.write_all(b"U\tu1\tsync\t1\n").unwrap();
        let answer = running.read_until(&mut client, "+\t1\n");
        assert_eq!(answer.contains("VERSION"), minor == 1, "{answer:?}");
        assert!(setup.requests.try_recv().is_ok());
        drop(client);
    }
    let closed = running.closed;
    running.run_until("the close", |running| {
        (running.closed == running.accepted || running.closed > closed + 1).then_some(())
    });
}

#[test]
fn a_failing_sync_is_retried_soon_keeps_its_state_and_shows_its_reason() {
    let setup = Setup::with_peer(&["u1"]);
    let mut running = setup.start();
    running.wait_quiet(&setup, 1);
    let mut times = 0;
    setup.answer(move |_| {
        times += 1;
        if times == 1 {
            Answer::Close
        } else if times == 2 {
            Answer::Reply(b"\n-TEMPFAIL\n")
        } else {
            Answer::Reply(b"NEW\t\n+\n")
        }
    });
    let mut client = running.aggregator(1);
    client.write_all(b"U\tu1\thigh\t1\n").unwrap();
    for _ in 0..3 {
        let request = running.run_until("a try", |_| setup.requests.try_recv().ok());
        assert!(request.ends_with("\t-s\tSTATE"), "{request}");
        let shown = running.ask("SHOW\tu1", "\n\n");
        assert!(shown.starts_with("u1\t1\ttcp:127.0.0.1:"), "{shown}");
    }
    running.wait_quiet(&setup, 0);
    let shown = running.ask("SHOW\tu1", "\n\n");
    let fields: Vec<&str> = shown.trim_end().split('\t').collect();
    assert_eq!(
        (fields[3], fields[8], fields[9]),
        ("none", "0", ""),
        "{shown}"
    );
}

#[test]
fn the_queue_and_the_states_survive_a_restart() {
    let setup = Setup::with_peer(&["u1", "u2"]);
    let mut running = setup.start();
    running.wait_quiet(&setup, 2);
    setup.answer(|_| Answer::Hang);
    let mut client = running.aggregator(1);
    client
        .write_all(b"U\tu1\thigh\t1\nU\tu2\tlow\t2\n")
        .unwrap();
    running.read_until(&mut client, "A\t2\n");
    let now = running.now();
    running.daemon.handle_shutdown(now);
    drop(running);
    while setup.requests.try_recv().is_ok() {}
    setup.answer(|_| Answer::Reply(b"NEW\t\n+\n"));
    let mut running = setup.start();
    let mut users: Vec<String> = Vec::new();
    for _ in 0..2 {
        let request = running.run_until("a sync", |_| setup.requests.try_recv().ok());
        assert!(request.ends_with("\t-s\tSTATE"), "{request}");
        users.push(user_of(&request).to_owned());
    }
    users.sort();
    assert_eq!(users, ["u1", "u2"]);
}

#[test]
fn a_sync_without_progress_is_ended_at_the_deadline_and_tried_again() {
    let setup = Setup::with_peer(&["u1"]);
    let mut running = setup.start();
    running.wait_quiet(&setup, 1);
    setup.answer(|_| Answer::Hang);
    let mut client = running.aggregator(0);
    client.write_all(b"U\tu1\thigh\n").unwrap();
    running.run_until("the sync", |_| setup.requests.try_recv().ok());
    running.run_until("the handshake", |running| {
        let status = running.ask("STATUS-DSYNC", "\n\n");
        status
            .starts_with("u1\tincremental\tWaiting for dsync to finish\n")
            .then_some(())
    });
    setup.answer(|_| Answer::Reply(b"NEW\t\n+\n"));
    let step = Duration::from_secs(30);
    let request = running.run_until("the next try", |running| {
        running.ahead += step;
        setup.requests.try_recv().ok()
    });
    assert_eq!(user_of(&request), "u1");
}

#[test]
fn a_peer_that_is_away_costs_no_dsync_and_all_go_on_when_it_returns() {
    let mut setup = Setup::new(&["u1", "u2", "u3"]);
    let address = setup.peer.take().unwrap().local_addr().unwrap();
    let mut running = setup.start();
    let down = running.run_until("the breaker", |running| {
        let peers = running.ask("PEERS", "\n");
        peers.contains("\tdown\t").then_some(peers)
    });
    assert!(down.contains("failed: Connection refused"), "{down}");
    let mut client = running.aggregator(1);
    client.write_all(b"U\tu1\tsync\t1\n").unwrap();
    let asked = Instant::now();
    let hello = running.read_until(&mut client, "\n");
    assert!(hello.starts_with("VERSION\t"), "{hello}");
    client.set_nonblocking(true).unwrap();
    let mut answer = hello.into_bytes();
    running.run_until("the answer", |_| {
        let mut buffer = [0; 256];
        let length = client.read(&mut buffer).unwrap_or(0);
        answer.extend_from_slice(&buffer[..length]);
        String::from_utf8_lossy(&answer)
            .contains("\n-\t1\t")
            .then_some(())
    });
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );
    assert!(setup.requests.try_recv().is_err(), "no dsync was started");
    serve_peer(TcpListener::bind(address).unwrap());
    let back = Instant::now();
    for _ in 0..3 {
        running.run_until("the syncs", |_| setup.requests.try_recv().ok());
    }
    assert!(
        back.elapsed() < Duration::from_secs(3),
        "{:?}",
        back.elapsed()
    );
}

#[test]
fn several_replicas_are_named_one_by_one() {
    let setup = Setup::with_peer(&["u1"]);
    let second = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("tcp:{}", second.local_addr().unwrap());
    serve_peer(second);
    *setup.neighbours.fields.lock().unwrap() = format!("\tmail_replica2={target}");
    let mut running = setup.start();
    let mut requests = Vec::new();
    for _ in 0..2 {
        requests.push(running.run_until("a sync", |_| setup.requests.try_recv().ok()));
    }
    requests.sort();
    let mut expected =
        [setup.settings.mail_replica[0].clone(), target].map(|target| format!("\t-s\t\t{target}"));
    expected.sort();
    for request in &requests {
        assert!(
            request.starts_with("\tu1\tsync\t-N\t-l\t30\t-U\t"),
            "{request}"
        );
        let known = expected.iter().any(|end| request.ends_with(end.as_str()));
        assert!(known, "{request} of {expected:?}");
    }
    assert_ne!(requests[0], requests[1]);
}

#[test]
fn a_peers_notify_is_taken_from_a_client_that_hangs_up_at_once() {
    let setup = Setup::with_peer(&["u1"]);
    let mut running = setup.start();
    running.wait_quiet(&setup, 1);
    let mut client = running.connect(DOVEADM_LISTENER);
    client
        .write_all(b"VERSION\treplicator-doveadm-client\t1\t0\nNOTIFY\tu1\tf\tPEERSTATE\n")
        .unwrap();
    drop(client);
    let before = running.accepted;
    running.run_until("the close", |running| {
        (running.accepted > before && running.closed == running.accepted).then_some(())
    });
    let mut aggregator = running.aggregator(0);
    aggregator.write_all(b"U\tu1\tlow\n").unwrap();
    let request = running.run_until("the sync", |_| setup.requests.try_recv().ok());
    assert!(request.ends_with("\t-s\tPEERSTATE"), "{request}");
}

#[test]
fn a_dsync_server_that_ends_without_a_word_has_cut_its_sync_off() {
    let setup = Setup::with_peer(&["u1"]);
    let mut running = setup.start();
    running.wait_quiet(&setup, 1);
    for (told, first_is_full) in [("SERVING\tu1\n", false), ("SERVING\tu1\nSERVED\n", true)] {
        let mut client = running.connect(DOVEADM_LISTENER);
        let text = format!("VERSION\treplicator-doveadm-client\t1\t0\n{told}");
        client.write_all(text.as_bytes()).unwrap();
        let before = running.accepted;
        drop(client);
        running.run_until("the close", |running| {
            (running.accepted > before && running.closed == running.accepted).then_some(())
        });
        running.ask("REPLICATE\tlow\tf\tu1", "+1\n");
        let mut requests = Vec::new();
        running.run_until("the full sync", |_| {
            requests.extend(setup.requests.try_recv());
            requests
                .iter()
                .any(|request| request.contains("\t-f\t"))
                .then_some(())
        });
        assert_eq!(
            requests[0].contains("\t-f\t"),
            first_is_full,
            "{requests:?}"
        );
    }
}

#[test]
fn a_listing_that_nobody_reads_holds_no_notification_up() {
    let users: Vec<String> = (0..20_000).map(|n| format!("user{n:06}")).collect();
    let names: Vec<&str> = users.iter().map(String::as_str).collect();
    let mut setup = Setup::with_peer(&names);
    setup.settings.replication_full_sync_interval = Duration::ZERO;
    setup.settings.replication_max_conns = 1;
    let mut running = setup.start();
    running.run_until("the listing", |running| {
        let status = running.ask("STATUS", "\n\n");
        status
            .contains("Total number of known users\t20000\n")
            .then_some(())
    });
    let mut stuck = running.connect(DOVEADM_LISTENER);
    stuck
        .write_all(b"VERSION\treplicator-doveadm-client\t1\t0\nSTATUS\t*\n")
        .unwrap();
    for _ in 0..50 {
        running.turn(Duration::from_millis(1));
    }
    let connection_bytes: usize = running
        .daemon
        .connections
        .iter()
        .flatten()
        .map(|connection| connection.socket.unsent())
        .sum();
    assert!(connection_bytes < 256 * 1024, "{connection_bytes}");
    let mut client = running.aggregator(1);
    client.write_all(b"U\tuser000005\tsync\t1\n").unwrap();
    running.read_until(&mut client, "\t1\n");
    // The one who reads at last gets every user once.
    let listed = running.read_until(&mut stuck, "\n\n");
    assert_eq!(listed.lines().count(), 1 + 20_000 + 1);
    assert!(listed.contains("\nuser019999\t"));
    // One who never reads is cut off.
    let mut stuck = running.connect(DOVEADM_LISTENER);
    stuck
        .write_all(b"VERSION\treplicator-doveadm-client\t1\t0\nSTATUS\t*\n")
        .unwrap();
    for _ in 0..50 {
        running.turn(Duration::from_millis(1));
    }
    let closed = running.closed;
    running.run_until("the end of the stuck client", |running| {
        running.ahead += Duration::from_secs(30);
        (running.closed > closed).then_some(())
    });
}

#[test]
fn an_unreadable_store_leads_to_a_sync_of_everybody() {
    let setup = Setup::with_peer(&["u1", "u2"]);
    let mut running = setup.start();
    running.wait_quiet(&setup, 2);
    let now = running.now();
    running.daemon.handle_shutdown(now);
    drop(running);
    let path = setup.directory.path().join(super::store::FILE_NAME);
    for content in [&b"garbage"[..], b""] {
        std::fs::write(&path, content).unwrap();
        let mut running = setup.start();
        running.wait_quiet(&setup, 2);
        let now = running.now();
        running.daemon.handle_shutdown(now);
    }
}

/// The process that `what_was_acknowledged_survives_sigkill` kills.
#[test]
fn child_that_is_killed() {
    let Ok(directory) = std::env::var("REPLICATOR_TEST_CHILD") else {
        return;
    };
    let settings = Settings {
        base_dir: PathBuf::from(&directory),
        state_dir: PathBuf::from(&directory),
        mail_replica: vec!["tcp:127.0.0.1:1".into()],
        ..Settings::default()
    };
    let mut running = Running::new(&settings);
    let end = Instant::now() + LONGEST_WAIT;
    while Instant::now() < end {
        running.turn(Duration::from_millis(50));
    }
}

#[test]
fn what_was_acknowledged_survives_sigkill() {
    let names: Vec<String> = (0..500).map(|n| format!("u{n}")).collect();
    let users: Vec<&str> = names.iter().map(String::as_str).collect();
    let setup = Setup::new(&users);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "services::replicator::tests::child_that_is_killed",
        ])
        .env("REPLICATOR_TEST_CHILD", setup.directory.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let path = setup.directory.path().join(NOTIFY_LISTENER);
    let end = Instant::now() + LONGEST_WAIT;
    let mut client = loop {
        match UnixStream::connect(&path) {
            Ok(client) => break client,
            Err(_) => assert!(Instant::now() < end, "the child does not listen"),
        }
        std::thread::yield_now();
    };
    client.set_read_timeout(Some(LONGEST_WAIT)).unwrap();
    let mut text = String::from("VERSION\treplicator-notify\t1\t1\n");
    for (at, user) in users.iter().enumerate() {
        text.push_str(&format!("U\t{user}\thigh\t{}\n", at + 1));
    }
    client.write_all(text.as_bytes()).unwrap();
    let mut acknowledged = 0;
    let mut lines = BufReader::new(client).lines();
    while acknowledged < 100 {
        let line = lines.next().unwrap().unwrap();
        if let Some(number) = line.strip_prefix("A\t") {
            acknowledged = number.parse().unwrap();
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let mut running = setup.start();
    let pending = running.run_until("the store", |running| {
        let status = running.ask("STATUS", "\n\n");
        let high = status
            .lines()
            .find_map(|line| line.strip_prefix("Queued 'high' requests\t"))?;
        high.parse::<usize>().ok()
    });
    assert!(pending >= acknowledged, "{pending} of {acknowledged}");
}

/// What the machine's own doveadm prints of our answers; `None` if it has no `replicator` command.
fn doveadm(running: &mut Running, arguments: &[&str]) -> Option<(String, i32)> {
    let config = running.listeners[1]
        .1
        .local_addr()
        .unwrap()
        .as_pathname()
        .unwrap()
        .with_file_name("doveadm-test.conf");
    std::fs::write(&config, "ssl = no\nlog_path = /dev/stderr\n").unwrap();
    let socket = config.with_file_name(DOVEADM_LISTENER);
    let mut child = Command::new("doveadm")
        .arg("-c")
        .arg(&config)
        .arg("replicator")
        .arg(arguments[0])
        .arg("-a")
        .arg(&socket)
        .args(&arguments[1..])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let status = running.run_until("doveadm", |_| child.try_wait().unwrap());
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    Some((text, status.code().unwrap_or(-1)))
}

#[test]
fn stock_doveadm_prints_our_answers_as_it_prints_stocks() {
    let version = Command::new("doveadm").arg("--version").output();
    if !version.is_ok_and(|version| version.stdout.starts_with(b"2.3.1")) {
        eprintln!("skipped: there is no doveadm of 2.3.10 to 2.3.19 here");
        return;
    }
    let setup = Setup::with_peer(&["u1"]);
    let mut running = setup.start();
    running.wait_quiet(&setup, 1);
    let (text, code) = doveadm(&mut running, &["status"]).unwrap();
    assert_eq!(code, 0);
    assert_eq!(
        text,
        "Queued 'sync' requests        0\nQueued 'high' requests        0\n\
         Queued 'low' requests         0\nQueued 'failed' requests      0\n\
         Queued 'full resync' requests 0\nWaiting 'failed' requests     0\n\
         Total number of known users   1\n"
    );
    let (text, _) = doveadm(&mut running, &["status", "u*"]).unwrap();
    let mut lines = text.lines();
    let header = lines.next().unwrap();
    let columns: Vec<&str> = header.split("  ").filter(|c| !c.is_empty()).collect();
    assert!(
        header.starts_with("username") && header.trim_end().ends_with("failed"),
        "{columns:?}"
    );
    let row: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!((row[0], row[1], row[5]), ("u1", "none", "-"), "{row:?}");
    for time in &row[2..5] {
        assert_eq!((time.len(), &time[..7]), (8, "00:00:0"), "{row:?}");
    }
    let (text, _) = doveadm(&mut running, &["dsync-status"]).unwrap();
    assert!(text.contains("-    Not connected"), "{text:?}");
    let (text, code) = doveadm(&mut running, &["replicate", "-f", "-p", "high", "*"]).unwrap();
    assert_eq!((text.as_str(), code), ("1 users updated\n", 0));
    let request = running.run_until("the full sync", |_| setup.requests.try_recv().ok());
    assert!(request.contains("\t-f\t-s\t"), "{request}");
    let (_, code) = doveadm(&mut running, &["replicate", "-p", "soon", "*"]).unwrap();
    assert_eq!(code, 64);
    let (_, code) = doveadm(&mut running, &["remove", "nobody"]).unwrap();
    assert_eq!(code, 64);
    let (_, code) = doveadm(&mut running, &["remove", "u1"]).unwrap();
    assert_eq!(code, 0);
    let (text, _) = doveadm(&mut running, &["status"]).unwrap();
    assert!(
        text.ends_with("Total number of known users   0\n"),
        "{text}"
    );
    let (_, code) = doveadm(&mut running, &["add", "u1"]).unwrap();
    assert_eq!(code, 0);
}
