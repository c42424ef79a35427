//! The service on a real fifo and real sockets, without Dovecot.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream as StdStream};
use std::path::Path;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags};

use super::fifo::test_fifo;
use super::*;
use crate::engine::time::UnixSecs;

/// How long anything awaited may take.
const PATIENCE: Duration = Duration::from_secs(20);

struct Host {
    began: Instant,
    daemon: Aggregator,
}

impl Host {
    fn start(dir: &Path, state_dir: &Path) -> Self {
        Self::start_with(
            dir,
            state_dir,
            &dir.join("replicator").display().to_string(),
            0,
        )
    }

    fn start_with(dir: &Path, state_dir: &Path, host: &str, port: u16) -> Self {
        let config = Config {
            state_dir: state_dir.to_owned(),
            replicator_host: host.to_owned(),
            replicator_port: port,
            owner: None,
        };
        let prepared = Prepared::open(&config).unwrap();
        let began = Instant::now();
        let mut daemon = Aggregator::start(prepared, Now::default()).unwrap();
        daemon.handle_connection(Now::default(), "fifo", test_fifo(dir), true);
        Self { began, daemon }
    }

    fn now(&self) -> Now {
        Now {
            mono: Mono(0) + self.began.elapsed(),
            wall: UnixSecs(1),
        }
    }

    fn client(&mut self) -> StdStream {
        let (ours, theirs) = StdStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        self.daemon
            .handle_connection(self.now(), "replication-notify", theirs.into(), false);
        ours
    }

    /// Runs until `other` is readable.
    fn until_readable(&mut self, other: BorrowedFd<'_>) {
        loop {
            let now = self.now();
            assert!(now.mono.since(Mono(0)) < PATIENCE, "nothing came");
            let next = self.daemon.next_timeout().unwrap_or(now.mono + PATIENCE);
            let wait = next.since(now.mono);
            let mut fds = [PollFd::from_borrowed_fd(other, PollFlags::IN)];
            rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap();
            if !fds[0].revents().is_empty() {
                return;
            }
            // What comes to `other` from outside is not watched while this waits.
            self.daemon.poll_events(wait.min(Duration::from_millis(20)));
            self.daemon.handle_timeout(self.now());
        }
    }

    fn line(&mut self, from: &mut BufReader<StdStream>) -> String {
        if from.buffer().is_empty() {
            let raw = from.get_ref().try_clone().unwrap();
            self.until_readable(raw.as_fd());
        }
        let mut line = String::new();
        from.read_line(&mut line).unwrap();
        line
    }

    fn accept(&mut self, listener: &UnixListener) -> BufReader<StdStream> {
        self.until_readable(listener.as_fd());
        self.greet(listener.accept().unwrap().0)
    }

    fn greet(&mut self, stream: StdStream) -> BufReader<StdStream> {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut reader = BufReader::new(stream);
        assert_eq!(self.line(&mut reader), "VERSION\treplicator-notify\t1\t1\n");
        reader
            .get_mut()
            .write_all(b"VERSION\treplicator-notify\t1\t1\n")
            .unwrap();
        reader
    }

    /// Handles what is ready until all is handed on.
    fn until_empty(&mut self) {
        while self.daemon.users() > 0 {
            assert!(
                self.now().mono.since(Mono(0)) < PATIENCE,
                "not acknowledged"
            );
            self.daemon.poll_events(Duration::from_millis(100));
            self.daemon.work(self.now());
        }
    }
}

fn fifo_content(dir: &Path) -> Vec<u8> {
    let mut fifo = Fifo::new(test_fifo(dir)).unwrap();
    fifo.look().unwrap();
    fifo.seen().1.to_vec()
}

#[test]
fn notifications_reach_the_replicator_merged_and_leave_fifo_and_journal_when_acknowledged() {
    let (dir, state_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let listener = UnixListener::bind(dir.path().join("replicator")).unwrap();
    let mut host = Host::start(dir.path(), state_dir.path());
    let mut replicator = host.accept(&listener);
    let writer = test_fifo(dir.path());
    rustix::io::write(&writer, b"a\tlow\ngarbage\nb\thigh\na\tlow\n").unwrap();
    assert_eq!(host.line(&mut replicator), "U\tb\thigh\t1\n");
    assert_eq!(host.line(&mut replicator), "U\ta\tlow\t2\n");
    assert_eq!(fifo_content(dir.path()), b"a\tlow\n", "the last line stays");
    replicator.get_mut().write_all(b"A\t2\n").unwrap();
    host.until_empty();
    assert_eq!(fifo_content(dir.path()), b"");
    host.daemon.handle_shutdown(host.now());
    drop(host);
    let journals = std::fs::read_dir(state_dir.path().join("replication-aggregator"));
    assert_eq!(journals.unwrap().count(), 0);
}

#[test]
fn what_a_killed_process_held_is_adopted_by_the_next() {
    let (dir, state_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut host = Host::start(dir.path(), state_dir.path());
    let writer = test_fifo(dir.path());
    rustix::io::write(&writer, b"a\tlow\nb\thigh\n").unwrap();
    while host.daemon.users() < 2 {
        host.daemon.poll_events(Duration::from_millis(100));
        host.daemon.work(host.now());
    }
    assert_eq!(fifo_content(dir.path()), b"b\thigh\n");
    // Nothing is written when it is dropped: it is as after SIGKILL.
    drop(host);
    let listener = UnixListener::bind(dir.path().join("replicator")).unwrap();
    let mut host = Host::start(dir.path(), state_dir.path());
    let mut replicator = host.accept(&listener);
    assert_eq!(host.line(&mut replicator), "U\tb\thigh\t1\n");
    assert_eq!(host.line(&mut replicator), "U\ta\tlow\t2\n");
}

#[test]
fn without_a_journal_lines_stay_in_the_fifo_until_they_are_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("replicator")).unwrap();
    let mut host = Host::start(dir.path(), &dir.path().join("missing"));
    let mut replicator = host.accept(&listener);
    let writer = test_fifo(dir.path());
    rustix::io::write(&writer, b"a\tlow\nb\tlow\n").unwrap();
    assert_eq!(host.line(&mut replicator), "U\ta\tlow\t1\n");
    assert_eq!(host.line(&mut replicator), "U\tb\tlow\t2\n");
    assert_eq!(fifo_content(dir.path()), b"a\tlow\nb\tlow\n");
    replicator.get_mut().write_all(b"A\t2\n").unwrap();
    host.until_empty();
    assert_eq!(fifo_content(dir.path()), b"");
}

#[test]
fn waiter_gets_the_replicators_answer_and_minus_at_once_when_it_is_gone() {
    let (dir, state_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let listener = UnixListener::bind(dir.path().join("replicator")).unwrap();
    let mut host = Host::start(dir.path(), state_dir.path());
    let mut replicator = host.accept(&listener);
    let mut client = BufReader::new(host.client());
    client.get_mut().write_all(b"u\tsync\n").unwrap();
    assert_eq!(host.line(&mut replicator), "U\tu\tsync\t1\n");
    replicator.get_mut().write_all(b"A\t1\n+\t1\n").unwrap();
    assert_eq!(host.line(&mut client), "+\n");
    client.get_mut().write_all(b"u\tsync\n").unwrap();
    assert_eq!(host.line(&mut replicator), "U\tu\tsync\t2\n");
    drop(replicator);
    drop(listener);
    assert_eq!(host.line(&mut client), "-Replicator not reachable\n");
    assert_eq!(host.daemon.users(), 1, "it goes on without its waiter");
    drop(client);
    while host.daemon.take_closed_connections() == 0 {
        host.daemon.poll_events(Duration::from_millis(100));
        host.daemon.work(host.now());
    }
}

#[test]
fn fifo_takes_nothing_more_after_shutdown_and_what_it_held_is_in_the_journal() {
    let (dir, state_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut host = Host::start(dir.path(), state_dir.path());
    let writer = test_fifo(dir.path());
    rustix::io::write(&writer, b"a\tlow\n").unwrap();
    host.daemon.handle_shutdown(host.now());
    assert!(rustix::io::write(&writer, b"b\tlow\n").is_err());
    drop(host);
    let dir = state_dir.path().join("replication-aggregator");
    let journal = std::fs::read_dir(dir).unwrap().next().unwrap().unwrap();
    let content = std::fs::read_to_string(journal.path()).unwrap();
    assert!(content.contains("\t+\ta\tlow\n"), "{content}");
}

/// Fills the fifo with a line of each of so many users as fit in, and lines that mean nothing between them; how many users.
fn fill_with_users(dir: &Path) -> usize {
    let writer = test_fifo(dir);
    (0..)
        .take_while(|user| {
            let garbage = if user % 100 == 0 { "\0\u{ff}\n" } else { "" };
            let line = format!("{garbage}u{user}@example.com\tlow\n");
            rustix::io::write(&writer, line.as_bytes()).is_ok()
        })
        .count()
}

#[test]
fn full_fifo_is_merged_in_one_turn_after_the_other() {
    let (dir, state_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut host = Host::start(dir.path(), state_dir.path());
    let users = fill_with_users(dir.path());
    host.daemon.handle_ready(host.now());
    let first = host.daemon.users();
    assert!((1..users).contains(&first), "{first} of {users} at once");
    while host.daemon.users() < users {
        // More is to be done at once, and nothing else wakes it.
        assert_eq!(host.daemon.next_timeout(), Some(Mono(0)));
        host.daemon.handle_timeout(host.now());
    }
}

#[test]
fn full_fifo_is_in_the_journal_after_shutdown() {
    let (dir, state_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut host = Host::start(dir.path(), state_dir.path());
    let users = fill_with_users(dir.path());
    host.daemon.handle_shutdown(host.now());
    drop(host);
    let dir = state_dir.path().join("replication-aggregator");
    let journal = std::fs::read_dir(dir).unwrap().next().unwrap().unwrap();
    let content = std::fs::read_to_string(journal.path()).unwrap();
    assert_eq!(content.matches("\t+\tu").count(), users);
}

#[test]
fn replicator_on_another_host_is_reached_by_tcp_again_and_again() {
    let (dir, state_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut host = Host::start_with(dir.path(), state_dir.path(), "127.0.0.1", port);
    let writer = test_fifo(dir.path());
    rustix::io::write(&writer, b"a\tlow\n").unwrap();
    for _ in 0..2 {
        host.until_readable(listener.as_fd());
        let stream = OwnedFd::from(listener.accept().unwrap().0);
        let mut replicator = host.greet(StdStream::from(stream));
        assert_eq!(host.line(&mut replicator), "U\ta\tlow\t1\n");
    }
}
