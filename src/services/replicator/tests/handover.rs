//! What is handed over when a process, or the store, comes to its end.

use super::*;
use crate::services::replicator::{AGGREGATOR_SOCKET, store};

#[test]
fn a_store_that_becomes_unreadable_in_use_is_begun_anew_with_a_sync_of_everybody() {
    let setup = Setup::with_peer(&["u1", "u2"]);
    let mut running = setup.start();
    running.wait_quiet(&setup, 2);
    let now = running.now();
    running.daemon.handle_shutdown(now);
    drop(running);

    // Nothing of the file is cached yet: the first commit reads it.
    let mut running = setup.start();
    running.run_until("the store", |running| {
        running.daemon.is_loaded().then_some(())
    });
    let path = setup.directory.path().join(store::FILE_NAME);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1024..].fill(0xee);
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(&bytes).unwrap();
    let mut client = running.aggregator(1);
    client.write_all(b"U\tu1\tlow\t1\n").unwrap();
    client.set_nonblocking(true).unwrap();
    running.run_until("the end of the connection", |_| {
        let mut buffer = [0; 64];
        loop {
            match client.read(&mut buffer) {
                Ok(0) => return Some(()),
                Ok(length) => {
                    let text = String::from_utf8_lossy(&buffer[..length]);
                    assert!(!text.contains("A\t"), "acknowledged, but not stored");
                }
                Err(_) => return None,
            }
        }
    });
    let mut synced = std::collections::BTreeSet::new();
    running.run_until("a sync of everybody", |running| {
        while let Ok(request) = setup.requests.try_recv() {
            if running.daemon.is_loaded() {
                synced.insert(user_of(&request).to_owned());
            }
        }
        (synced.len() == 2).then_some(())
    });
    running.wait_quiet(&setup, 0);
    let set_aside = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        name.contains(".corrupt-").then_some(name)
    };
    let directory = std::fs::read_dir(setup.directory.path()).unwrap();
    assert!(directory.filter_map(set_aside).count() >= 1);
}

#[test]
fn an_aggregator_is_greeted_while_the_store_is_not_loaded_and_its_lines_wait() {
    let setup = Setup::with_peer(&["u1"]);
    let mut first = setup.start();
    first.run_until("the store", |running| {
        running.daemon.is_loaded().then_some(())
    });
    // The first holds the lock.
    let mut second = setup.start();
    let mut client = second.aggregator(1);
    client.write_all(b"U\tu1\thigh\t1\n").unwrap();
    second.read_until(&mut client, "VERSION\treplicator-notify\t1\t1\n");
    assert!(!second.daemon.is_loaded());
    let now = first.now();
    first.daemon.handle_shutdown(now);
    drop(first);
    while setup.requests.try_recv().is_ok() {}
    second.read_until(&mut client, "A\t1\n");
    second.run_until("a sync", |_| setup.requests.try_recv().ok());
}

#[test]
fn a_journal_that_an_aggregator_left_makes_the_master_start_another() {
    let setup = Setup::with_peer(&["u1"]);
    let socket = setup.directory.path().join(AGGREGATOR_SOCKET);
    let master = UnixListener::bind(socket).unwrap();
    master.set_nonblocking(true).unwrap();
    let is_called = |_: &mut Running| master.accept().ok().map(drop);

    let mut running = setup.start();
    running.wait_quiet(&setup, 1);
    assert!(is_called(&mut running).is_none(), "nothing was left");
    let client = running.aggregator(1);
    running.run_until("the connection", |running| {
        (running.accepted >= 2).then_some(())
    });
    let journals = setup.directory.path().join("replication-aggregator");
    std::fs::create_dir(&journals).unwrap();
    std::fs::write(journals.join("1-1.journal"), b"").unwrap();
    drop(client);
    running.run_until("a call after its end", is_called);

    let now = running.now();
    running.daemon.handle_shutdown(now);
    drop(running);
    let mut running = setup.start();
    running.run_until("a call at start", is_called);
}
