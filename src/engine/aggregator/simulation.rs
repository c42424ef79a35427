//! Random schedules with crashes between any two actions, on the engine and a model of what is
//! outside: fifo, journal, connection and a replicator that may be ours or stock's.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::fifo::FifoHead;
use super::link::{RECONNECT_MAX, STOCK_AFTER};
use super::table::Table;
use super::*;

const FIFO_CAPACITY: usize = 300;
const USERS: u64 = 12;

struct Process {
    engine: Aggregator,
    head: FifoHead,
    /// Whether the journal has all records that were taken.
    journal_ok: bool,
    clients: BTreeMap<ClientId, (Vec<u8>, u64)>,
}

struct Peer {
    acknowledges: bool,
    to_peer: VecDeque<u8>,
    line: Vec<u8>,
    to_us: Vec<u8>,
    stored_to: u64,
    told_to: u64,
    asked: Vec<(u64, Vec<u8>, u64)>,
}

struct World {
    random: fastrand::Rng,
    now: Mono,
    step: u64,
    fifo: Vec<u8>,
    journal: Vec<u8>,
    journal_works: bool,
    process: Option<Process>,
    peer: Option<Peer>,
    /// Changed since the replicator last heard of them.
    dirty: BTreeSet<Vec<u8>>,
    /// When the line of the last successful sync reached the replicator.
    synced: BTreeMap<Vec<u8>, u64>,
    next_client: ClientId,
    ours: bool,
    plus: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        Self {
            now: Mono(0),
            step: 0,
            fifo: Vec::new(),
            journal: Vec::new(),
            journal_works: true,
            process: None,
            peer: None,
            dirty: BTreeSet::new(),
            synced: BTreeMap::new(),
            next_client: 0,
            ours: random.u8(..4) > 0,
            plus: 0,
            random,
        }
    }

    fn start(&mut self) {
        let mut engine = Aggregator::with_table(Table::with_limits(5, 1000));
        let (all, _) = engine.handle_journal(&self.journal);
        assert!(all, "the journal holds no more than a table");
        // Written aside and renamed: whole or not at all.
        self.journal = engine.snapshot();
        self.process = Some(Process {
            engine,
            head: FifoHead::default(),
            journal_ok: true,
            clients: BTreeMap::new(),
        });
    }

    fn kill_aggregator(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        let records = process.engine.take_journal();
        if self.journal_works && process.journal_ok && !records.is_empty() {
            // Killed in the middle of the write.
            let torn = self.random.usize(..records.len());
            self.journal.extend_from_slice(&records[..torn]);
        }
        if self.random.bool() {
            self.peer = None;
        } else if let Some(peer) = &mut self.peer {
            // What the socket has is still read, then comes EOF: nobody hears the answers.
            while let Some(byte) = peer.to_peer.pop_front() {
                if byte != b'\n' {
                    peer.line.push(byte);
                    continue;
                }
                let line = std::mem::take(&mut peer.line);
                if let Some(user) = line.split(|&b| b == b'\t').nth(1) {
                    self.dirty.remove(user);
                }
            }
            self.peer = None;
        }
        self.assert_restart();
    }

    /// While nobody runs, the fifo must make the master start an aggregator, if there is work.
    fn assert_restart(&self) {
        assert!(
            self.dirty.is_empty() || !self.fifo.is_empty(),
            "nothing starts an aggregator for {:?}",
            self.dirty
        );
    }

    fn flush_journal(&mut self) {
        let Some(process) = &mut self.process else {
            return;
        };
        if !self.journal_works {
            process.engine.take_journal();
            process.journal_ok = false;
        } else if process.journal_ok {
            self.journal.extend(process.engine.take_journal());
        } else {
            self.journal = process.engine.snapshot();
            process.journal_ok = true;
        }
    }

    fn look(&mut self) {
        if let Some(process) = &mut self.process {
            let piece = self.random.usize(1..200);
            let head = &mut process.head;
            while process.engine.handle_fifo(head, &self.fifo, piece) && self.random.bool() {}
        }
    }

    fn take(&mut self) {
        if let Some(process) = &mut self.process {
            let empty = process.engine.is_empty();
            let journaled = process.journal_ok && process.engine.is_journal_taken();
            let mut taken = process.head.may_take(journaled, empty);
            if taken > 1 && self.random.bool() {
                taken = self.random.usize(1..=taken);
            }
            self.fifo.drain(..taken);
            process.head.handle_taken(taken);
        }
    }

    fn transmit(&mut self) {
        let Some(process) = &mut self.process else {
            return;
        };
        if process.engine.poll_connect(self.now) {
            if self.random.u8(..4) == 0 {
                process
                    .engine
                    .handle_disconnected(self.now, "connect failed");
                return;
            }
            process.engine.handle_connected(self.now);
            self.peer = Some(Peer {
                acknowledges: self.ours,
                to_peer: VecDeque::new(),
                line: Vec::new(),
                to_us: Vec::new(),
                stored_to: 0,
                told_to: 0,
                asked: Vec::new(),
            });
        }
        let Some(peer) = &mut self.peer else {
            return;
        };
        let output = process.engine.poll_transmit();
        let length = output.len();
        if length > 0 {
            let written = self.random.usize(1..=length);
            peer.to_peer.extend(&output[..written]);
            process.engine.handle_transmitted(written);
        }
    }

    fn replicator(&mut self) {
        let Some(peer) = &mut self.peer else {
            return;
        };
        for _ in 0..self.random.usize(..60) {
            let Some(byte) = peer.to_peer.pop_front() else {
                break;
            };
            if byte != b'\n' {
                peer.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut peer.line);
            let fields: Vec<&[u8]> = line.split(|&b| b == b'\t').collect();
            if fields[0] == b"VERSION" {
                if peer.acknowledges {
                    peer.to_us
                        .extend_from_slice(b"VERSION\treplicator-notify\t1\t1\n");
                }
                continue;
            }
            let id: u64 = std::str::from_utf8(fields[3]).unwrap().parse().unwrap();
            assert_eq!(id, peer.stored_to + 1, "ids grow by one");
            peer.stored_to = id;
            self.dirty.remove(fields[1]);
            if fields[2] == b"sync" {
                peer.asked.push((id, fields[1].to_vec(), self.step));
            }
        }
        if !peer.asked.is_empty() && self.random.bool() {
            let at = self.random.usize(..peer.asked.len());
            let (id, user, asked_at) = peer.asked.swap_remove(at);
            let good = self.random.bool();
            if good {
                let synced = self.synced.entry(user).or_default();
                *synced = asked_at.max(*synced);
            }
            let sign = if good { '+' } else { '-' };
            peer.to_us.extend(format!("{sign}\t{id}\n").bytes());
        }
        if peer.acknowledges && peer.told_to < peer.stored_to {
            peer.told_to = self.random.u64(peer.told_to + 1..=peer.stored_to);
            peer.to_us.extend(format!("A\t{}\n", peer.told_to).bytes());
        }
        if let Some(process) = &mut self.process {
            let length = self.random.usize(..=peer.to_us.len());
            let bytes: Vec<u8> = peer.to_us.drain(..length).collect();
            process.engine.handle_replicator_input(&bytes).unwrap();
        }
    }

    fn kill_replicator(&mut self) {
        // A stock replicator loses what it had; only ours is asked to lose nothing.
        if self.ours && self.peer.take().is_some() {
            if let Some(process) = &mut self.process {
                process.engine.handle_disconnected(self.now, "EOF");
            }
        }
    }

    fn write_fifo(&mut self) {
        let user = format!("u{}", self.random.u64(..USERS));
        let word = self.random.choice(["low", "high", "sync"]).unwrap();
        let line = match self.random.u8(..10) {
            0 => b"garbage\n".to_vec(),
            1 => b"\n".to_vec(),
            _ => format!("{user}\t{word}\n").into_bytes(),
        };
        if self.fifo.len() + line.len() <= FIFO_CAPACITY {
            if line.contains(&b'\t') {
                self.dirty.insert(user.into_bytes());
            }
            self.fifo.extend(line);
        }
    }

    fn client(&mut self) {
        let user = format!("w{}", self.random.u64(..2)).into_bytes();
        let Some(process) = &mut self.process else {
            return;
        };
        if process.clients.len() > 4 || self.random.u8(..8) == 0 {
            if let Some((client, _)) = process.clients.pop_first() {
                process.engine.handle_client_closed(client);
            }
            return;
        }
        self.next_client += 1;
        process.engine.handle_client_opened(self.next_client);
        let line = [&user[..], b"\tsync\n"].concat();
        if process.engine.handle_client_input(self.next_client, &line) == line.len() {
            process.clients.insert(self.next_client, (user, self.step));
        } else {
            process.engine.handle_client_closed(self.next_client);
        }
    }

    fn answers(&mut self) {
        let Some(process) = &mut self.process else {
            return;
        };
        while let Some((client, answer)) = process.engine.poll_answer() {
            let Some((user, since)) = process.clients.remove(&client) else {
                continue;
            };
            process.engine.handle_client_closed(client);
            if answer == b"+\n" {
                self.plus += 1;
                let synced = self.synced.get(&user).copied().unwrap_or_default();
                assert!(synced > since, "+ for a sync that began before its request");
            }
        }
    }

    fn act(&mut self) {
        self.step += 1;
        self.now = self.now + Duration::from_millis(self.random.u64(..40));
        if let Some(process) = &mut self.process {
            process.engine.handle_timeout(self.now);
        }
        match self.random.u8(..100) {
            0..30 => self.write_fifo(),
            30..42 => self.look(),
            42..52 => self.flush_journal(),
            52..64 => self.take(),
            64..76 => self.transmit(),
            76..88 => self.replicator(),
            88..91 => self.kill_aggregator(),
            91..93 => self.kill_replicator(),
            93 => self.journal_works = self.random.u8(..4) > 0,
            94..97 => self.client(),
            _ => self.answers(),
        }
        if self.process.is_none() && self.random.u8(..4) == 0 {
            self.start();
        }
    }

    /// No more writes and no more crashes: all must arrive.
    fn settle(&mut self) {
        self.journal_works = true;
        if self.process.is_none() {
            self.start();
        }
        for _ in 0..2000 {
            self.step += 1;
            self.now = self.now + RECONNECT_MAX;
            if !self.ours && self.random.u8(..50) == 0 {
                self.now = self.now + STOCK_AFTER;
            }
            self.look();
            self.flush_journal();
            self.take();
            self.transmit();
            self.replicator();
            self.answers();
            let process = self.process.as_mut().unwrap();
            process.engine.handle_timeout(self.now);
        }
    }
}

fn first_seed() -> u64 {
    std::env::var("SEED").map_or_else(|_| fastrand::u64(..1 << 40), |seed| seed.parse().unwrap())
}

#[test]
fn nothing_is_lost_whatever_is_killed_between_any_two_actions() {
    let (first, mut plus) = (first_seed(), 0);
    for seed in first..first + 300 {
        println!("SEED={seed}");
        let mut world = World::new(seed);
        for _ in 0..1500 {
            world.act();
        }
        world.settle();
        assert_eq!(world.dirty, BTreeSet::new());
        assert_eq!(world.fifo, b"");
        let process = world.process.unwrap();
        assert!(process.engine.is_empty());
        assert_eq!(process.engine.waiters(), 0, "every waiter has an answer");
        assert_eq!(process.engine.snapshot_len(), journal::HEADER.len());
        plus += world.plus;
    }
    assert!(plus > 0, "some waiters were told +");
}

/// How many bytes of the fifo's content are merged.
fn merge(engine: &mut Aggregator, content: &[u8]) -> usize {
    let mut head = FifoHead::default();
    engine.handle_fifo(&mut head, content, content.len());
    head.merged()
}

#[test]
fn fifo_is_merged_in_pieces_of_whole_lines() {
    let mut engine = Aggregator::default();
    let mut head = FifoHead::default();
    let content = b"u1\tlow\nu2\tlow\nu3\tlow\nu4";
    let mut merged = Vec::new();
    while engine.handle_fifo(&mut head, content, 8) {
        merged.push(head.merged());
    }
    assert_eq!(merged, [14]);
    assert_eq!((head.merged(), engine.users()), (21, 3));
    assert!(!engine.handle_fifo(&mut head, content, 8));
}

fn up(engine: &mut Aggregator, now: Mono, acknowledges: bool) {
    assert!(engine.poll_connect(now));
    engine.handle_connected(now);
    if acknowledges {
        engine
            .handle_replicator_input(b"VERSION\treplicator-notify\t1\t1\n")
            .unwrap();
    }
}

fn sent(engine: &mut Aggregator) -> String {
    let output = String::from_utf8(engine.poll_transmit().to_vec()).unwrap();
    engine.handle_transmitted(output.len());
    output
}

#[test]
fn notifications_are_merged_and_sent_by_priority_with_growing_ids() {
    let mut engine = Aggregator::default();
    assert_eq!(
        merge(
            &mut engine,
            b"a\tlow\nb\thigh\na\tlow\nc\tlow\nc\tsync\nx\tl"
        ),
        32
    );
    up(&mut engine, Mono(0), true);
    assert_eq!(
        sent(&mut engine),
        "VERSION\treplicator-notify\t1\t1\nU\tb\thigh\t1\nU\tc\thigh\t2\nU\ta\tlow\t3\n"
    );
    engine.handle_replicator_input(b"A\t2\n").unwrap();
    assert_eq!(engine.users(), 1);
    engine.handle_replicator_input(b"A\t3\n").unwrap();
    assert!(engine.is_empty());
}

#[test]
fn waiter_gets_minus_at_once_while_the_replicator_is_away_and_the_user_goes_on_as_high() {
    let mut engine = Aggregator::default();
    assert!(engine.poll_connect(Mono(0)));
    engine.handle_client_opened(1);
    engine.handle_client_input(1, b"u\tsync\n");
    assert_eq!(engine.poll_answer(), None, "the connect has not failed yet");
    engine.handle_disconnected(Mono(0), "connect(replicator) failed: Connection refused");
    let refusal = Some((1, b"-Replicator not reachable\n".to_vec()));
    assert_eq!(engine.poll_answer(), refusal);
    engine.handle_client_input(1, b"u\tsync\n");
    assert_eq!(engine.poll_answer(), refusal);
    up(&mut engine, Mono(60_000), true);
    assert!(sent(&mut engine).ends_with("\nU\tu\thigh\t1\n"));
}

#[test]
fn answers_reach_the_waiters_of_their_line_and_later_waiters_get_a_line_of_their_own() {
    let mut engine = Aggregator::default();
    up(&mut engine, Mono(0), true);
    for client in 1..=3 {
        engine.handle_client_opened(client);
    }
    engine.handle_client_input(1, b"u\tsync\n");
    engine.handle_client_input(2, b"u\tsync\n");
    assert!(sent(&mut engine).ends_with("\nU\tu\tsync\t1\n"));
    engine.handle_client_input(3, b"u\tsync\n");
    assert_eq!(sent(&mut engine), "U\tu\tsync\t2\n");
    engine
        .handle_replicator_input(b"-\t1\tpeer is\x01naway\n")
        .unwrap();
    assert_eq!(engine.poll_answer(), Some((1, b"-peer is away\n".to_vec())));
    assert_eq!(engine.poll_answer(), Some((2, b"-peer is away\n".to_vec())));
    assert_eq!(engine.poll_answer(), None);
    engine.handle_replicator_input(b"+\t2\n").unwrap();
    assert_eq!(engine.poll_answer(), Some((3, b"+\n".to_vec())));
}

#[test]
fn waiter_that_hung_up_before_the_send_asks_for_no_sync() {
    let mut engine = Aggregator::default();
    up(&mut engine, Mono(0), true);
    engine.handle_client_opened(1);
    engine.handle_client_input(1, b"u\tsync\n");
    engine.handle_client_closed(1);
    assert!(sent(&mut engine).ends_with("\nU\tu\thigh\t1\n"));
    assert_eq!(engine.waiters(), 0);
}

#[test]
fn waiters_are_taken_up_to_their_maximum() {
    let mut engine = Aggregator::default();
    up(&mut engine, Mono(0), true);
    engine.handle_client_opened(1);
    let requests = b"u\tsync\n".repeat(MAX_WAITERS);
    assert_eq!(engine.handle_client_input(1, &requests), requests.len());
    assert_eq!(engine.poll_answer(), None);
    engine.handle_client_input(1, b"u\tsync\n");
    assert_eq!(
        engine.poll_answer(),
        Some((1, b"-Too many waiters\n".to_vec()))
    );
}

#[test]
fn garbage_is_one_report_a_minute_and_the_rest_goes_on() {
    let mut engine = Aggregator::default();
    let garbage = [
        &b"\xff\xfe\tlow\nnothing\nu1\turgent\na\0b\tlow\n"[..],
        &[b'x'; 70_000],
        b"\nu\tlow\n",
    ]
    .concat();
    assert_eq!(merge(&mut engine, &garbage), garbage.len());
    assert_eq!(engine.users(), 1);
    assert_eq!(
        engine.poll_event(Mono(0)),
        Some(Event::BadInput(5, LineError::TooLong))
    );
    merge(&mut engine, b"nothing\nnothing\n");
    assert_eq!(engine.poll_event(Mono(59_999)), None);
    assert_eq!(
        engine.next_timeout(),
        Some(Mono(0)),
        "the connect comes first"
    );
    assert_eq!(
        engine.poll_event(Mono(60_000)),
        Some(Event::BadInput(2, LineError::MissingField))
    );
    engine.handle_client_opened(1);
    engine.handle_client_input(1, b"nothing\nv\tlow\n");
    assert_eq!(engine.users(), 2);
    assert_eq!(
        engine.poll_answer(),
        Some((1, b"-Invalid input\n".to_vec()))
    );
}

#[test]
fn full_table_leaves_lines_in_the_fifo_until_there_is_room() {
    let mut engine = Aggregator::with_table(Table::with_limits(2, 1000));
    assert_eq!(merge(&mut engine, b"a\tlow\nb\tlow\nc\tlow\na\thigh\n"), 12);
    up(&mut engine, Mono(0), true);
    sent(&mut engine);
    assert_eq!(merge(&mut engine, b"c\tlow\na\thigh\n"), 0);
    engine.handle_replicator_input(b"A\t1\n").unwrap();
    assert_eq!(merge(&mut engine, b"c\tlow\n"), 6);
}

#[test]
fn reconnects_come_after_growing_delays_and_one_event_tells_of_them() {
    let mut engine = Aggregator::default();
    let (mut now, mut delays, mut events) = (Mono(0), Vec::new(), Vec::new());
    assert!(engine.poll_connect(now));
    for _ in 0..7 {
        assert!(!engine.poll_connect(now));
        engine.handle_disconnected(now, "refused");
        let begin = now;
        while !engine.poll_connect(now) {
            now = engine.next_timeout().unwrap();
            events.extend(engine.poll_event(now).map(|event| (now, event)));
        }
        delays.push(now.since(begin).as_millis());
    }
    assert_eq!(delays, [100, 200, 400, 800, 1600, 2000, 2000]);
    let told = Event::Disconnected("refused".into());
    assert_eq!(events, [(Mono(0) + AWAY_QUIET, told)]);
    engine.handle_disconnected(now, "refused");
    now = engine.next_timeout().unwrap();
    merge(&mut engine, b"u\tlow\n");
    up(&mut engine, now, true);
    assert_eq!(engine.poll_event(now), Some(Event::Connected(1, true)));
    engine.handle_disconnected(now, "EOF");
    assert_eq!(engine.next_timeout(), Some(now + RECONNECT_MIN));
}

#[test]
fn replicator_that_is_back_soon_is_not_spoken_of() {
    let mut engine = Aggregator::default();
    up(&mut engine, Mono(0), true);
    engine.handle_disconnected(Mono(2_000), "EOF");
    up(&mut engine, Mono(3_000), true);
    assert_eq!(engine.poll_event(Mono(60_000)), None);
    engine.handle_disconnected(Mono(60_000), "EOF");
    let at = Mono(60_000) + AWAY_QUIET;
    assert_eq!(engine.poll_event(at - Duration::from_millis(1)), None);
    assert_eq!(
        engine.poll_event(at),
        Some(Event::Disconnected("EOF".into()))
    );
    assert_eq!(engine.poll_event(at), None);
}

#[test]
fn connect_that_hangs_is_given_up_at_its_time() {
    let mut engine = Aggregator::default();
    assert!(engine.poll_connect(Mono(0)));
    assert!(!engine.handle_timeout(Mono(9_999)));
    assert!(engine.handle_timeout(Mono(10_000)));
}

#[test]
fn stock_replicator_that_never_answers_has_what_was_written_after_its_time() {
    let mut engine = Aggregator::default();
    merge(&mut engine, b"u\tlow\n");
    up(&mut engine, Mono(0), false);
    sent(&mut engine);
    engine.handle_timeout(Mono(0) + STOCK_AFTER - Duration::from_millis(1));
    assert_eq!(engine.users(), 1);
    engine.handle_timeout(Mono(0) + STOCK_AFTER);
    assert!(engine.is_empty());
    merge(&mut engine, b"v\thigh\n");
    sent(&mut engine);
    assert!(engine.is_empty());
}
