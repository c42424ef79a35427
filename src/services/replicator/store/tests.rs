//! The store on real files, with crashes, a full disk and corruption.

use super::*;

fn options(directory: &Path) -> StoreOptions {
    StoreOptions {
        state_dir: directory.to_owned(),
        default_target: b"tcp:peer".to_vec(),
        boot_id: "boot-1".into(),
    }
}

struct Opened {
    store: Store,
    records: Vec<Record>,
    boot: Boot,
    logs: Vec<String>,
}

fn wait(store: &mut Store, mut done: impl FnMut(StoreEvent) -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        store.handle_timeout(Mono(u64::MAX));
        if let Ok(event) = store.events.recv_timeout(Duration::from_millis(20)) {
            if done(event) {
                return;
            }
        }
    }
    panic!("the store did not answer");
}

fn open(options: StoreOptions) -> Opened {
    let mut store = Store::open(options, || {}).unwrap();
    let (mut records, mut logs, mut boot) = (Vec::new(), Vec::new(), Boot::Trusted);
    wait(&mut store, |event| match event {
        StoreEvent::Loaded(batch) => {
            records.extend(batch);
            false
        }
        StoreEvent::Ready(ready) => {
            boot = ready;
            true
        }
        StoreEvent::Lost => {
            records.clear();
            false
        }
        StoreEvent::Log(_, text) => {
            logs.push(text);
            false
        }
        _ => false,
    });
    Opened {
        store,
        records,
        boot,
        logs,
    }
}

fn record(username: &str) -> Record {
    Record {
        username: username.into(),
        target: b"tcp:peer".to_vec(),
        priority: Priority::High,
        last_update: UnixSecs(1_700_000_000),
        failures: 3,
        reason: "peer is away".into(),
        ..Record::default()
    }
}

fn put(seq: u64, record: Record, state: StateChange) -> Write {
    Write {
        seq,
        change: RecordChange::Put { record, state },
    }
}

fn wait_stored(store: &mut Store, seq: u64) {
    wait(
        store,
        |event| matches!(event, StoreEvent::Stored(done) if done >= seq),
    );
}

fn read(store: &mut Store, username: &str) -> Vec<u8> {
    store.cached_states.clear();
    if let Some(state) = store.read_state(7, username.as_bytes(), b"tcp:peer") {
        return state;
    }
    store.send_reads();
    let mut found = None;
    wait(store, |event| match event {
        StoreEvent::States(states) => {
            found = states.into_iter().find(|(token, _)| *token == 7);
            true
        }
        _ => false,
    });
    found.unwrap().1
}

#[test]
fn what_was_stored_is_there_after_reopening_state_and_all() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open(options(directory.path()));
    assert_eq!(opened.boot, Boot::Unclean, "a new store knows nobody");
    let other = Record {
        username: vec![b'u', 0xff, 0xc3],
        has_state: true,
        ..record("x")
    };
    let store = &mut opened.store;
    store.write(
        Mono(0),
        put(1, record("u1"), StateChange::Set(b"S1".to_vec())),
    );
    store.write(Mono(0), put(2, other.clone(), StateChange::Keep));
    store.write(
        Mono(0),
        Write {
            seq: 3,
            change: RecordChange::BootSettled,
        },
    );
    assert_eq!(
        store.read_state(1, b"u1", b"tcp:peer"),
        Some(b"S1".to_vec())
    );
    wait_stored(store, 3);
    assert_eq!(read(store, "u1"), b"S1");
    opened.store.close();

    let mut opened = open(options(directory.path()));
    assert_eq!(opened.records, [record("u1"), other]);
    assert_eq!(opened.boot, Boot::Trusted);
    assert!(opened.logs.is_empty(), "{:?}", opened.logs);
    let store = &mut opened.store;
    assert_eq!(read(store, "u1"), b"S1");
    store.write(
        Mono(0),
        Write {
            seq: 1,
            change: RecordChange::Remove {
                username: b"u1".to_vec(),
                target: b"tcp:peer".to_vec(),
            },
        },
    );
    store.write(Mono(0), put(2, record("u1"), StateChange::Keep));
    wait_stored(store, 2);
    assert_eq!(read(store, "u1"), b"", "a removed record's state is gone");
}

#[test]
fn only_a_boot_that_ended_uncleanly_is_distrusted() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open(options(directory.path()));
    opened.store.write(
        Mono(0),
        Write {
            seq: 1,
            change: RecordChange::BootSettled,
        },
    );
    wait_stored(&mut opened.store, 1);
    opened.store.close();
    let next_boot = |id: &str| StoreOptions {
        boot_id: id.into(),
        ..options(directory.path())
    };
    let opened = open(next_boot("boot-2"));
    assert_eq!(opened.boot, Boot::Trusted, "it was closed cleanly");
    // As the file is when the machine loses its power now.
    let copy = tempfile::tempdir().unwrap();
    for suffix in ["", "-wal"] {
        let name = format!("{FILE_NAME}{suffix}");
        std::fs::copy(directory.path().join(&name), copy.path().join(&name)).unwrap();
    }
    let same = StoreOptions {
        boot_id: "boot-2".into(),
        ..options(copy.path())
    };
    assert_eq!(open(same).boot, Boot::Trusted, "the machine is still up");
    drop(opened);
    let copied = tempfile::tempdir().unwrap();
    let mut opened = open(next_boot("boot-2"));
    // The thread answers when the disk has it that the store is in use.
    read(&mut opened.store, "u");
    for suffix in ["", "-wal"] {
        let name = format!("{FILE_NAME}{suffix}");
        std::fs::copy(directory.path().join(&name), copied.path().join(&name)).unwrap();
    }
    drop(opened);
    let lost_power = StoreOptions {
        boot_id: "boot-3".into(),
        ..options(copied.path())
    };
    let opened = open(lost_power.clone());
    assert_eq!(opened.boot, Boot::Unclean);
    opened.store.close();
    assert_eq!(open(lost_power).boot, Boot::Unclean, "not yet settled");
}

#[test]
fn an_unreadable_store_is_set_aside_and_said_once() {
    let seed = std::env::var("SEED").map_or_else(|_| fastrand::u64(..), |s| s.parse().unwrap());
    println!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for case in 0..12 {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        let mut opened = open(options(directory.path()));
        for seq in 1..=200 {
            let record = record(&format!("user{seq}"));
            opened
                .store
                .write(Mono(0), put(seq, record, StateChange::Keep));
        }
        wait_stored(&mut opened.store, 200);
        opened.store.close();
        let mut bytes = std::fs::read(&path).unwrap();
        match case {
            0 => bytes = b"not a database, but longer than a header of SQLite would be.".repeat(40),
            1 => bytes.truncate(bytes.len() / 2),
            2 => bytes[68..72].fill(0xee),
            3 => bytes[60..64].copy_from_slice(&99_u32.to_be_bytes()),
            _ => {
                let from = 1024 + random.usize(..bytes.len() - 2048);
                random.fill(&mut bytes[from..from + 1024]);
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        let opened = open(options(directory.path()));
        let aside = std::fs::read_dir(directory.path())
            .unwrap()
            .filter(|entry| {
                let name = entry.as_ref().unwrap().file_name();
                name.to_string_lossy().contains(".corrupt-")
            })
            .count();
        if case < 4 {
            assert!(aside >= 1, "case {case}");
        }
        if aside > 0 {
            assert_eq!(opened.records, []);
            assert_eq!(opened.boot, Boot::Unclean);
            assert_eq!(opened.logs.len(), 1, "{:?}", opened.logs);
        }
    }
}

#[test]
fn a_second_process_waits_until_the_first_hands_over() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = open(options(directory.path()));
    let mut second = Store::open(options(directory.path()), || {}).unwrap();
    assert!(
        second
            .events
            .recv_timeout(Duration::from_millis(200))
            .is_err()
    );
    first
        .store
        .write(Mono(0), put(1, record("late"), StateChange::Keep));
    first.store.close();
    let mut records = Vec::new();
    wait(&mut second, |event| match event {
        StoreEvent::Loaded(batch) => {
            records.extend(batch);
            false
        }
        StoreEvent::Ready(_) => true,
        _ => false,
    });
    assert_eq!(records, [record("late")]);
}

#[test]
fn a_full_disk_is_said_once_and_nothing_is_reported_stored_until_it_has_room() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open(options(directory.path()));
    let store = &mut opened.store;
    store.set_max_pages(20);
    let count = 2000;
    for seq in 1..=count {
        store.write(
            Mono(0),
            put(seq, record(&format!("user{seq}")), StateChange::Keep),
        );
    }
    let mut errors = Vec::new();
    let mut stored = 0;
    let end = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < end {
        store.handle_timeout(Mono(u64::MAX));
        match store.events.recv_timeout(Duration::from_millis(50)) {
            Ok(StoreEvent::Log(Level::Error, text)) => errors.push(text),
            Ok(StoreEvent::Stored(seq)) => stored = seq,
            _ => {}
        }
    }
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(stored < count);
    store.set_max_pages(1_000_000);
    wait_stored(store, count);
    opened.store.close();
    assert_eq!(open(options(directory.path())).records.len(), 2000);
}

#[test]
fn a_stock_replicator_db_is_taken_over_once_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let stock = directory.path().join(STOCK_FILE_NAME);
    let content = "u1\t2\t1700000000\t1700000001\t1700000002\t1\tAbC=\t1700000003\n\
         bad line\n\
         u2\t9\t1\t1\t1\t0\t\t1\n\
         a\u{1}tb\t0\t1\t2\t3\t0\t\t4\n\
         torn\t1\t17";
    std::fs::write(&stock, content).unwrap();
    let mut opened = open(options(directory.path()));
    let expected = Record {
        username: b"u1".to_vec(),
        target: b"tcp:peer".to_vec(),
        priority: Priority::High,
        last_update: UnixSecs(1_700_000_000),
        last_fast_sync: UnixSecs(1_700_000_001),
        last_full_sync: UnixSecs(1_700_000_002),
        last_success: UnixSecs(1_700_000_003),
        failures: 1,
        has_state: true,
        ..Record::default()
    };
    assert_eq!(opened.records.len(), 2);
    assert_eq!(opened.records[0].username, b"a\tb");
    assert_eq!(opened.records[1], expected);
    assert_eq!(read(&mut opened.store, "u1"), b"AbC=");
    assert!(
        opened.logs[0].contains("2 users taken over, 3 lines"),
        "{:?}",
        opened.logs
    );
    opened.store.close();
    assert_eq!(std::fs::read_to_string(&stock).unwrap(), content);
    std::fs::write(&stock, "u9\t0\t0\t0\t0\t0\t\t0\n").unwrap();
    assert_eq!(open(options(directory.path())).records.len(), 2);
}

/// `cargo test --release ... -- --ignored --nocapture measure_`
#[test]
#[ignore = "a measurement"]
fn measure_a_million_records() {
    let temporary = tempfile::tempdir().unwrap();
    let directory =
        std::env::var("STORE_DIR").map_or_else(|_| temporary.path().to_owned(), PathBuf::from);
    let count = 1_000_000;
    if !directory.join(FILE_NAME).exists() {
        let mut opened = open(options(&directory));
        let begun = Instant::now();
        for seq in 1..=count {
            let user = format!("user{seq:07}@example.com");
            let change = StateChange::Set(b"AQAAAHm4+Jk=".to_vec());
            opened.store.write(Mono(0), put(seq, record(&user), change));
            while opened.store.events.try_recv().is_ok() {}
        }
        let last = |event| matches!(event, StoreEvent::Stored(seq) if seq == count);
        wait(&mut opened.store, last);
        println!("{count} records written in {:?}", begun.elapsed());
        opened.store.close();
    }
    let begun = Instant::now();
    let mut store = Store::open(options(&directory), || {}).unwrap();
    let mut loaded = 0;
    wait(&mut store, |event| match event {
        StoreEvent::Loaded(records) => {
            loaded += records.len();
            false
        }
        event => matches!(event, StoreEvent::Ready(_)),
    });
    println!("{loaded} records loaded in {:?}", begun.elapsed());
}

#[test]
fn a_state_is_copied_as_the_writes_before_it_left_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open(options(directory.path()));
    let store = &mut opened.store;
    let unknown = Record {
        target: vec![],
        ..record("u")
    };
    let copy = |seq| put(seq, record("u"), StateChange::CopyFrom(vec![]));
    let remove = |seq| Write {
        seq,
        change: RecordChange::Remove {
            username: b"u".to_vec(),
            target: vec![],
        },
    };
    store.write(
        Mono(0),
        put(1, unknown.clone(), StateChange::Set(b"S".to_vec())),
    );
    store.write(Mono(0), copy(2));
    store.write(Mono(0), remove(3));
    assert_eq!(read(store, "u"), b"S");
    store.write(Mono(0), put(4, unknown, StateChange::Set(b"T".to_vec())));
    wait_stored(store, 4);
    store.write(Mono(0), copy(5));
    store.write(Mono(0), remove(6));
    wait_stored(store, 6);
    assert_eq!(read(store, "u"), b"T");
    opened.store.close();
    let mut opened = open(options(directory.path()));
    assert_eq!(opened.records, [record("u")]);
    assert_eq!(read(&mut opened.store, "u"), b"T");
}

#[test]
fn writes_wait_to_be_grouped_but_not_when_somebody_waits_for_them() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open(options(directory.path()));
    let store = &mut opened.store;
    assert_eq!(store.next_timeout(), None);
    store.hurry(Mono(0));
    assert_eq!(store.next_timeout(), None);
    store.write(Mono(5), put(1, record("u"), StateChange::Keep));
    store.write(Mono(9), put(2, record("v"), StateChange::Keep));
    assert_eq!(store.next_timeout(), Some(Mono(5) + GROUP_INTERVAL));
    store.hurry(Mono(9));
    assert_eq!(store.next_timeout(), Some(Mono(9) + HURRIED_INTERVAL));
    store.hurry(Mono(10));
    assert_eq!(store.next_timeout(), Some(Mono(9) + HURRIED_INTERVAL));
    store.handle_timeout(Mono(9) + HURRIED_INTERVAL);
    wait_stored(store, 2);
    assert_eq!(store.next_timeout(), None);
}

/// The state that is asked for, without the time going on.
fn read_now(store: &mut Store, username: &str) -> Vec<u8> {
    let key = (username.as_bytes(), &b"tcp:peer"[..]);
    if let Some(state) = store.read_state(7, key.0, key.1) {
        return state;
    }
    store.send_reads();
    loop {
        match store.events.recv().unwrap() {
            StoreEvent::States(states) => {
                if let Some((_, state)) = states.into_iter().find(|(token, _)| *token == 7) {
                    return state;
                }
            }
            StoreEvent::StatesAhead(states) => store.take_states_ahead(states),
            _ => {}
        }
    }
}

fn store_states(store: &mut Store, usernames: &[&str]) {
    let mut seq = 0;
    for username in usernames {
        seq += 1;
        let change = StateChange::Set(format!("state of {username}").into_bytes());
        store.write(Mono(0), put(seq, record(username), change));
    }
    store.handle_timeout(Mono(0) + GROUP_INTERVAL);
    wait_stored(store, seq);
    store.forget_all_cached();
}

#[test]
fn a_read_does_not_end_the_grouping_of_writes() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open(options(directory.path()));
    let store = &mut opened.store;
    store_states(store, &["u"]);
    store.write(Mono(100), put(2, record("u"), StateChange::Keep));
    assert_eq!(read_now(store, "u"), b"state of u");
    assert_eq!(store.next_timeout(), Some(Mono(100) + GROUP_INTERVAL));
}

#[test]
fn states_are_read_ahead_with_one_that_is_wanted() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open(options(directory.path()));
    let store = &mut opened.store;
    store_states(store, &["u", "v", "w"]);
    assert!(!store.may_read_ahead());
    assert_eq!(store.read_state(1, b"u", b"tcp:peer"), None);
    assert!(store.may_read_ahead());
    store.read_ahead(b"v", b"tcp:peer");
    assert_eq!(read_now(store, "u"), b"state of u");
    let state = store.read_state(2, b"v", b"tcp:peer");
    assert_eq!(state.unwrap(), b"state of v");
    assert_eq!(store.read_state(3, b"w", b"tcp:peer"), None);
}

#[test]
fn a_state_read_ahead_never_replaces_a_newer_one() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open(options(directory.path()));
    let store = &mut opened.store;
    store_states(store, &["u", "v"]);
    for forgotten in [false, true] {
        let newer = format!("newer, {forgotten}").into_bytes();
        assert_eq!(store.read_state(1, b"u", b"tcp:peer"), None);
        store.read_ahead(b"v", b"tcp:peer");
        store.send_reads();
        assert!(!store.may_read_ahead());
        store.write(
            Mono(100),
            put(3, record("v"), StateChange::Set(newer.clone())),
        );
        store.handle_timeout(Mono(100) + GROUP_INTERVAL);
        if forgotten {
            store.forget_all_cached();
        }
        assert_eq!(read_now(store, "v"), newer);
        wait_stored(store, 3);
        store.forget_all_cached();
    }
}

#[test]
fn states_in_memory_are_bounded() {
    let directory = tempfile::tempdir().unwrap();
    let mut opened = open(options(directory.path()));
    let store = &mut opened.store;
    let key_bytes = key_of(b"u0", b"tcp:peer").len();
    let state = vec![b'S'; MAX_CACHED_STATE_BYTES / 2 - key_bytes - CACHED_STATE_OVERHEAD_BYTES];
    for username in ["u0", "u1", "u1"] {
        store.cache(username.as_bytes(), b"tcp:peer", &state);
    }
    assert_eq!(store.cached_states.len(), 1);
    store.cache(b"u0", b"tcp:peer", &state);
    assert_eq!(store.cached_states.len(), 2);
    assert_eq!(store.cached_bytes, MAX_CACHED_STATE_BYTES);
    store.cache(b"u2", b"tcp:peer", b"");
    assert_eq!(store.cached_states.len(), 1);
    store.forget_cached(b"u2", b"tcp:peer");
    assert_eq!((store.cached_states.len(), store.cached_bytes), (0, 0));
}

#[test]
fn writes_of_one_record_are_merged_with_what_becomes_of_its_state() {
    let mut batch = Batch::default();
    batch.add(put(1, record("u"), StateChange::Set(b"S".to_vec())));
    batch.add(put(2, record("u"), StateChange::Keep));
    let key = key_of(b"u", b"tcp:peer");
    assert_eq!(batch.changes.len(), 1);
    assert_eq!(batch.state_of(&key), Some(&b"S"[..]));
    batch.add(Write {
        seq: 3,
        change: RecordChange::Remove {
            username: b"u".to_vec(),
            target: b"tcp:peer".to_vec(),
        },
    });
    batch.add(put(4, record("u"), StateChange::Keep));
    assert_eq!(batch.state_of(&key), Some(&b""[..]));
    assert_eq!((batch.changes.len(), batch.last_seq), (1, 4));
}

/// `tests/data/replication-1.sqlite3` has what version 1 wrote.
#[test]
fn a_store_of_version_1_is_taken_over_states_and_all() {
    let directory = tempfile::tempdir().unwrap();
    let of_version_1 = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/replication-1.sqlite3"
    );
    std::fs::copy(of_version_1, directory.path().join(FILE_NAME)).unwrap();
    let base = Record {
        target: b"tcp:peer".to_vec(),
        last_update: UnixSecs(1_700_000_000),
        last_fast_sync: UnixSecs(1_700_000_001),
        last_full_sync: UnixSecs(1_700_000_002),
        last_success: UnixSecs(1_700_000_003),
        has_state: true,
        ..Record::default()
    };
    let expected = [
        Record {
            username: b"u1".to_vec(),
            priority: Priority::High,
            stale: Stale::State,
            ..base.clone()
        },
        Record {
            username: b"u1".to_vec(),
            target: b"tcp:other".to_vec(),
            failures: 3,
            force_full: true,
            reason: "peer is away".into(),
            ..base.clone()
        },
        Record {
            username: b"u2".to_vec(),
            has_state: false,
            ..base.clone()
        },
        Record {
            username: b"u3".to_vec(),
            priority: Priority::Low,
            stale: Stale::Changes,
            ..base
        },
    ];
    let long = b"long ".repeat(600);
    for start in ["first", "second"] {
        let mut opened = open(options(directory.path()));
        assert_eq!(opened.records, expected, "{start}");
        assert_eq!(opened.boot, Boot::Trusted);
        assert!(opened.logs.is_empty(), "{:?}", opened.logs);
        assert_eq!(read(&mut opened.store, "u1"), b"S1");
        assert_eq!(read(&mut opened.store, "u2"), b"");
        assert_eq!(read(&mut opened.store, "u3"), long);
        // A write that leaves the state where it is.
        let kept = put(1, expected[3].clone(), StateChange::Keep);
        opened.store.write(Mono(0), kept);
        wait_stored(&mut opened.store, 1);
        assert_eq!(read(&mut opened.store, "u3"), long);
        opened.store.close();
    }
}

#[test]
fn a_store_of_version_1_that_cannot_be_taken_over_yet_is_left_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE_NAME);
    let of_version_1 = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/replication-1.sqlite3"
    );
    std::fs::copy(of_version_1, &path).unwrap();
    // Somebody else's lock stands for a full disk: what was begun is rolled back, and tried again.
    let holder = Connection::open(&path).unwrap();
    holder.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut store = Store::open(options(directory.path()), || {}).unwrap();
    wait(&mut store, |event| match event {
        StoreEvent::Log(Level::Error, text) => {
            assert!(text.contains("cannot be opened"), "{text}");
            true
        }
        StoreEvent::Lost | StoreEvent::Ready(_) => panic!("{event:?}"),
        _ => false,
    });
    holder.execute_batch("COMMIT").unwrap();
    let mut loaded = 0;
    wait(&mut store, |event| match event {
        StoreEvent::Loaded(records) => {
            loaded += records.len();
            false
        }
        StoreEvent::Lost => panic!("{event:?}"),
        event => matches!(event, StoreEvent::Ready(_)),
    });
    assert_eq!(loaded, 4);
    assert_eq!(read(&mut store, "u1"), b"S1");
}
