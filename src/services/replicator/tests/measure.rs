//! Measurements of the daemon, by hand: `cargo test --release -- --ignored measure_the_daemon`.

use super::*;

/// The neighbours of the measurements, in a process of their own.
#[test]
fn child_that_serves() {
    let Ok(directory) = std::env::var("REPLICATOR_BENCH_CHILD") else {
        return;
    };
    let count: usize = std::env::var("USERS").unwrap().parse().unwrap();
    let neighbours = Arc::new(Neighbours {
        answer: Mutex::new(Box::new(|_| Answer::Reply(b"STATE\t\n+\n"))),
        users: Mutex::new(Vec::new()),
        fields: Mutex::new(String::new()),
        connections: AtomicUsize::new(0),
        ended: AtomicUsize::new(0),
        greets: AtomicBool::new(true),
        mailboxes: Mutex::new(b"\n-TEMPFAIL\n"),
    });
    let directory = PathBuf::from(directory);
    let served = Arc::clone(&neighbours);
    listen(&directory, "doveadm-server", move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        let _ = reader.read_line(&mut line);
        let _ = stream.write_all(b"+\n");
        let _ = reader.read_line(&mut line);
        if let Answer::Reply(bytes) = (served.answer.lock().unwrap())("") {
            let _ = stream.write_all(bytes);
        }
    });
    listen(&directory, "auth-userdb", move |stream| {
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut stream = std::io::BufWriter::new(stream);
            let _ = stream.write_all(b"VERSION\t1\t2\nSPID\t1\n");
            let mut line = String::new();
            let _ = stream.flush();
            while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
                let fields: Vec<&str> = line.trim_end().split('\t').collect();
                if let ["USER", id, user, ..] = fields.as_slice() {
                    let _ = writeln!(stream, "USER\t{id}\t{user}\tuid=8");
                } else if let ["LIST", id, ..] = fields.as_slice() {
                    for number in 0..count {
                        let _ = writeln!(stream, "LIST\t{id}\tuser{number:07}@example.com");
                    }
                    let _ = writeln!(stream, "DONE\t{id}\t");
                }
                let _ = stream.flush();
                line.clear();
            }
        });
    });
    std::thread::sleep(Duration::from_secs(300));
}

fn cpu_time() -> Duration {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path().join("schedstat");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let nanos = text.split(' ').next().unwrap_or_default();
        total += nanos.parse::<u64>().unwrap_or(0);
    }
    Duration::from_nanos(total)
}

fn resident_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages = text.split(' ').nth(1).unwrap();
    pages.parse::<usize>().unwrap() * 4096
}

/// `USERS=1000000 cargo test --release ... -- --ignored --nocapture measure_`
#[test]
#[ignore = "a measurement"]
fn measure_the_daemon() {
    let count: usize = std::env::var("USERS").map_or(10_000, |s| s.parse().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let peer = TcpListener::bind("127.0.0.1:0").unwrap();
    let settings = Settings {
        base_dir: directory.path().to_owned(),
        state_dir: directory.path().to_owned(),
        mail_replica: vec![format!("tcp:{}", peer.local_addr().unwrap())],
        ..Settings::default()
    };
    serve_peer(peer);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "services::replicator::tests::measure::child_that_serves",
        ])
        .env("REPLICATOR_BENCH_CHILD", directory.path())
        .env("USERS", count.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while !directory.path().join("auth-userdb").exists() {
        std::thread::yield_now();
    }
    let before = resident_bytes();
    let begun = Instant::now();
    let mut running = Running::new(&settings);
    running.run_until("the listing", |running| {
        (running.daemon.engine.counters().known_users as usize >= count).then_some(())
    });
    println!(
        "first listing of {count}: {:?}, cpu {:?}",
        begun.elapsed(),
        cpu_time()
    );
    for round in 1..=3 {
        let done = running.daemon.engine.totals().syncs_ok;
        let mut client = running.aggregator(1);
        let rounds = count.min(10_000);
        let mut text = String::new();
        for number in 0..rounds {
            text.push_str(&format!(
                "U\tuser{number:07}@example.com\thigh\t{}\n",
                number + 1
            ));
        }
        client.set_nonblocking(true).unwrap();
        let (cpu, at) = (cpu_time(), Instant::now());
        let mut sent = 0;
        let mut acks = [0; 4096];
        let goal = done + rounds as u64;
        while running.daemon.engine.totals().syncs_ok < goal && at.elapsed() < LONGEST_WAIT {
            if sent < text.len() {
                sent += client.write(&text.as_bytes()[sent..]).unwrap_or(0);
            }
            let _ = client.read(&mut acks);
            running.turn(Duration::from_millis(5));
        }
        let syncs = running.daemon.engine.totals().syncs_ok - done;
        let each = (cpu_time() - cpu) / u32::try_from(syncs.max(1)).unwrap();
        println!(
            "round {round}: {syncs} syncs in {:?}, cpu each {each:?}",
            at.elapsed()
        );
    }
    let mut lister = running.connect(DOVEADM_LISTENER);
    lister
        .write_all(b"VERSION\treplicator-doveadm-client\t1\t0\nSTATUS\t*\n")
        .unwrap();
    let listed = std::thread::spawn(move || {
        let begun = Instant::now();
        let lines = BufReader::new(lister).lines();
        let count = lines
            .take_while(|line| !line.as_ref().unwrap().is_empty())
            .count();
        (count - 1, begun.elapsed())
    });
    let mut client = running.aggregator(1);
    let mut worst = Duration::ZERO;
    let mut times = 0;
    while !listed.is_finished() {
        let started = running.daemon.engine.totals().syncs_started;
        let at = Instant::now();
        let user = times % count.min(10_000);
        let line = format!("U\tuser{user:07}@example.com\thigh\t{}\n", times + 1);
        client.write_all(line.as_bytes()).unwrap();
        while running.daemon.engine.totals().syncs_started == started && !listed.is_finished() {
            running.turn(Duration::from_millis(5));
        }
        worst = worst.max(at.elapsed());
        times += 1;
    }
    println!(
        "status '*': {:?}; {times} notifications meanwhile, the slowest to its dsync {worst:?}",
        listed.join().unwrap()
    );
    let now = running.now();
    running.daemon.handle_shutdown(now);
    drop(running);
    let begun = Instant::now();
    let mut running = Running::new(&settings);
    running.run_until("the store", |running| {
        running.daemon.is_loaded().then_some(())
    });
    println!(
        "load of {} records: {:?}",
        running.daemon.engine.counters().known_users,
        begun.elapsed()
    );
    for _ in 0..100 {
        running.turn(Duration::from_millis(5));
    }
    println!(
        "resident: {} bytes a user",
        resident_bytes().saturating_sub(before) / count
    );
    child.kill().unwrap();
    child.wait().unwrap();
}
