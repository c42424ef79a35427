//! Stock's daemons and ours, by number of users: start, memory, CPU per sync, status, latency, burst.

use crate::burst::{self, Burst};
use crate::daemon_sides::{Daemons, Start, executables};
use crate::fakes::name;
use crate::node::Side;
use crate::report::{NOTHING, Table, digits, line, ratio, seconds};
use crate::statistics::{maximum, median, ratios};
use crate::{Outcome, Setup, in_turn, progress};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::{Duration, Instant};

/// Starts with a warm store.
const WARM_STARTS: usize = 5;
const OVERVIEWS: usize = 20;
const LISTINGS: usize = 3;
/// Notifications whose way to the dsync is timed. They go by the clock and not one after the other: a
/// daemon that stands still holds up all that come meanwhile, and each of them counts.
const LATENCIES: usize = 150;
const LATENCY_INTERVAL: Duration = Duration::from_millis(20);
const LATENCY_LIMIT: Duration = Duration::from_secs(10);
/// Syncs for the CPU figure, in rounds, in steps that stock's aggregator survives.
const SYNC_ROUNDS: usize = 5;
const SYNCS_PER_ROUND: usize = 4_000;
const STEP: usize = 50;
const STEP_LIMIT: Duration = Duration::from_secs(3);
/// So few that the memory is the process's own.
const BASE_USERS: usize = 10;

/// What was measured of one side; times in seconds, memory in bytes.
#[derive(Default)]
struct Figures {
    cold: Option<Start>,
    listed_bytes: f64,
    imported: Option<Start>,
    warm: Vec<Start>,
    bytes: f64,
    peak_bytes: f64,
    overview: Vec<f64>,
    listing: Vec<f64>,
    latency: Vec<f64>,
    latency_missing: usize,
    busy_latency: Vec<f64>,
    busy_missing: usize,
    sync_cpu: Vec<f64>,
    aggregator_cpu: Vec<f64>,
    sync_wall: Vec<f64>,
    unsynced: usize,
    burst: Option<Burst>,
    panics: usize,
    failure: Option<String>,
}

/// A side with its figures; it is left alone after its first failure.
struct Candidate {
    daemons: Daemons,
    figures: Figures,
    base_bytes: f64,
}

impl Candidate {
    fn step(&mut self, what: &str, run: impl FnOnce(&Daemons, &mut Figures) -> Outcome) {
        if self.figures.failure.is_some() {
            return;
        }
        progress(&format!(
            "{} users, {}: {what}",
            self.daemons.users,
            self.daemons.side.as_str()
        ));
        if let Err(error) = run(&self.daemons, &mut self.figures) {
            self.figures.failure = Some(format!("{what}: {error}"));
        }
    }
}

/// A figure that is taken once each round.
type ByRound = fn(&Figures) -> &Vec<f64>;

/// Compares the CPU per sync alone, round by round, and prints a table for all sizes.
///
/// # Errors
/// When Dovecot itself does not start.
pub fn compare_syncs(setup: &Setup) -> Outcome {
    let head = ["per sync", "stock", "ours", "ours/stock"];
    let mut table = Table::new("CPU per sync", &head);
    for &users in &setup.users {
        let mut candidates = Vec::new();
        for side in [Side::Stock, Side::Ours] {
            let daemons = Daemons::new(setup, side, users, &format!("syncs-{users}"))?;
            daemons.write_state()?;
            daemons.start()?;
            candidates.push(Candidate {
                daemons,
                figures: Figures::default(),
                base_bytes: 0.0,
            });
        }
        // The first round is for what a process does once.
        for round in 0..=setup.rounds {
            for candidate in in_turn(&mut candidates, round) {
                candidate.step("CPU per sync", |daemons, figures| {
                    measure_syncs(daemons, round, figures)
                });
            }
        }
        let [stock, ours] = [0, 1].map(|at: usize| candidates.get(at).map(|c| &c.figures));
        let (Some(stock), Some(ours)) = (stock, ours) else {
            continue;
        };
        let figures: [(&str, ByRound); 3] = [
            ("CPU of the replicator", |figures| &figures.sync_cpu),
            ("CPU of the aggregator", |figures| &figures.aggregator_cpu),
            ("time", |figures| &figures.sync_wall),
        ];
        for (what, figure) in figures {
            let of = |figures| figure(figures).get(1..).unwrap_or_default();
            let (stock, ours) = (of(stock), of(ours));
            table.row(vec![
                format!("{what}, {users} users"),
                seconds(median(stock)),
                seconds(median(ours)),
                ratio(&ratios(ours, stock)),
            ]);
        }
        for failure in candidates.iter().filter_map(|c| c.figures.failure.as_ref()) {
            table.note(format!("{users} users: failed at {failure}"));
        }
    }
    table.print();
    Ok(())
}

/// Compares the daemons at each size and prints a table each.
///
/// # Errors
/// When Dovecot itself does not start.
pub fn compare(setup: &Setup) -> Outcome {
    let mut sides = Vec::new();
    for side in [Side::Stock, Side::Ours] {
        match executables(setup, side) {
            Ok(_) => sides.push(side),
            Err(missing) => line(&format!("\ndaemons: {} left out: {missing}", side.as_str())),
        }
    }
    let mut bases = Vec::new();
    for &side in &sides {
        bases.push(base_bytes(setup, side).unwrap_or_else(|error| {
            line(&format!(
                "daemons: {} with {BASE_USERS} users: {error}",
                side.as_str()
            ));
            f64::NAN
        }));
    }
    for &users in &setup.users {
        let mut candidates = Vec::new();
        for (&side, &base_bytes) in sides.iter().zip(&bases) {
            let daemons = Daemons::new(setup, side, users, &format!("daemons-{users}"))?;
            candidates.push(Candidate {
                daemons,
                figures: Figures::default(),
                base_bytes,
            });
        }
        measure(&mut candidates, setup.seed);
        print(users, &candidates);
    }
    Ok(())
}

fn base_bytes(setup: &Setup, side: Side) -> Outcome<f64> {
    let daemons = Daemons::new(setup, side, BASE_USERS, "daemons-base")?;
    daemons.write_state()?;
    daemons.start()?;
    daemons.memory("VmRSS")
}

fn measure(candidates: &mut [Candidate], seed: u64) {
    for candidate in &mut *candidates {
        candidate.step("first start, users listed", |daemons, figures| {
            // All are due: nothing is answered, or they would all be synced.
            daemons.fakes.hold(true);
            figures.cold = Some(daemons.start()?);
            figures.listed_bytes = daemons.memory("VmRSS")?;
            daemons.stop()?;
            daemons.fakes.hold(false);
            daemons.write_state()
        });
        candidate.step("start with a stock replicator.db", |daemons, figures| {
            figures.imported = Some(daemons.start()?);
            Ok(())
        });
    }
    for round in 0..WARM_STARTS {
        for candidate in in_turn(candidates, round) {
            candidate.step("warm start", |daemons, figures| {
                daemons.stop()?;
                figures.warm.push(daemons.start()?);
                figures.bytes = daemons.memory("VmRSS")?;
                Ok(())
            });
        }
    }
    for candidate in &mut *candidates {
        candidate.step("status", measure_overview);
        candidate.step("status of all", measure_listing);
    }
    for candidate in &mut *candidates {
        candidate.step("a notification's way", |daemons, figures| {
            (figures.latency, figures.latency_missing) = latencies(daemons, 0)?;
            Ok(())
        });
        candidate.step("the same during status of all", measure_busy_latency);
    }
    for round in 0..SYNC_ROUNDS {
        for candidate in in_turn(candidates, round) {
            candidate.step("CPU per sync", |daemons, figures| {
                measure_syncs(daemons, round, figures)
            });
        }
    }
    for candidate in &mut *candidates {
        candidate.step("burst", |daemons, figures| {
            figures.burst = Some(burst::run(daemons, seed)?);
            Ok(())
        });
        candidate.step("memory at the end", |daemons, figures| {
            figures.peak_bytes = daemons.memory("VmHWM")?;
            Ok(())
        });
        candidate.figures.panics = candidate.daemons.panics();
    }
}

fn measure_overview(daemons: &Daemons, figures: &mut Figures) -> Outcome {
    let mut client = daemons.status_client()?;
    for _ in 0..OVERVIEWS {
        let start = Instant::now();
        client.overview()?;
        figures.overview.push(start.elapsed().as_secs_f64());
    }
    Ok(())
}

fn measure_listing(daemons: &Daemons, figures: &mut Figures) -> Outcome {
    let mut client = daemons.status_client()?;
    for _ in 0..LISTINGS {
        let start = Instant::now();
        let lines = client.listing()?;
        if lines != daemons.users {
            return Err(format!("{lines} lines").into());
        }
        figures.listing.push(start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// The times from fifo to dsync, and how many never came. Users from `first` on are named.
fn latencies(daemons: &Daemons, first: usize) -> Outcome<(Vec<f64>, usize)> {
    let mut sent = Vec::new();
    let start = Instant::now();
    for number in 0..LATENCIES {
        let due = start + LATENCY_INTERVAL * u32::try_from(number)?;
        sleep(due.saturating_duration_since(Instant::now()));
        let user = (first + number) % daemons.users;
        daemons.notify(format!("{}\thigh\n", name(user)).as_bytes())?;
        // Were the fifo full, the wait for it would be a part of the way.
        sent.push((user, due));
    }
    let limit = Instant::now() + LATENCY_LIMIT;
    let came = |&(user, due): &(usize, Instant)| {
        let left = limit.saturating_duration_since(Instant::now());
        daemons
            .fakes
            .wait_sync(user, due, left)
            .map(|latency| latency.as_secs_f64())
    };
    let times: Vec<f64> = sent.iter().filter_map(came).collect();
    let missing = sent.len() - times.len();
    Ok((times, missing))
}

fn measure_busy_latency(daemons: &Daemons, figures: &mut Figures) -> Outcome {
    let mut client = daemons.status_client()?;
    let done = AtomicBool::new(false);
    scope(|scope| {
        let lister = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                client.listing()?;
            }
            Outcome::Ok(())
        });
        let measured = latencies(daemons, LATENCIES);
        done.store(true, Ordering::Relaxed);
        lister.join().map_err(|_| "the listing panicked")??;
        (figures.busy_latency, figures.busy_missing) = measured?;
        Ok(())
    })
}

fn measure_syncs(daemons: &Daemons, round: usize, figures: &mut Figures) -> Outcome {
    let cpu = || (daemons.cpu("replicator"), daemons.cpu("aggregator"));
    let before = cpu();
    let count = daemons.fakes.count();
    let start = Instant::now();
    let mut stalled = 0;
    for step in 0..SYNCS_PER_ROUND / STEP {
        let first = 2 * LATENCIES + round * SYNCS_PER_ROUND + step * STEP;
        let users: Vec<usize> = (first..first + STEP)
            .map(|user| user % daemons.users)
            .collect();
        let lines: String = users
            .iter()
            .map(|&user| format!("{}\tlow\n", name(user)))
            .collect();
        let since = Instant::now();
        daemons.notify(lines.as_bytes())?;
        for &user in &users {
            if stalled < 2 && daemons.fakes.wait_sync(user, since, STEP_LIMIT).is_none() {
                stalled += 1;
            }
        }
        if stalled >= 2 {
            break;
        }
    }
    let wall = start.elapsed().as_secs_f64();
    let syncs = daemons.fakes.count() - count;
    figures.unsynced += SYNCS_PER_ROUND.saturating_sub(syncs);
    let after = cpu();
    figures.sync_cpu.push((after.0 - before.0) / syncs as f64);
    figures
        .aggregator_cpu
        .push((after.1 - before.1) / syncs as f64);
    figures.sync_wall.push(wall / syncs as f64);
    Ok(())
}

/// A line of the table: what, where it should be, how it is read from the figures, how it is shown.
type Row = (
    &'static str,
    &'static str,
    fn(&Figures) -> f64,
    fn(f64) -> String,
);

/// The same of bytes, which are shown less the process's own and by user.
type BytesRow = (&'static str, &'static str, fn(&Figures) -> f64);

fn start_seconds(start: Option<&Start>) -> f64 {
    start.map_or(f64::NAN, |start| start.seconds)
}

fn of_warm(figures: &Figures, figure: fn(&Start) -> f64) -> f64 {
    median(&figures.warm.iter().map(figure).collect::<Vec<_>>())
}

fn of_burst(figures: &Figures, figure: fn(&Burst) -> Option<f64>) -> f64 {
    figures.burst.as_ref().and_then(figure).unwrap_or(f64::NAN)
}

fn count(value: f64) -> String {
    if value.is_nan() {
        NOTHING.to_owned()
    } else {
        format!("{value:.0}")
    }
}

const ROWS: [Row; 22] = [
    (
        "first start, users listed",
        "",
        |f| start_seconds(f.cold.as_ref()),
        seconds,
    ),
    (
        "first start with a stock replicator.db",
        "",
        |f| start_seconds(f.imported.as_ref()),
        seconds,
    ),
    (
        "warm start, median",
        "<= stock",
        |f| of_warm(f, |start| start.seconds),
        seconds,
    ),
    (
        "warm start, CPU of the replicator",
        "",
        |f| of_warm(f, |start| start.cpu),
        seconds,
    ),
    (
        "status, median",
        "< 10 ms",
        |f| median(&f.overview),
        seconds,
    ),
    ("status, longest", "", |f| maximum(&f.overview), seconds),
    ("status '*', median", "", |f| median(&f.listing), seconds),
    ("fifo to dsync, median", "", |f| median(&f.latency), seconds),
    (
        "fifo to dsync, longest",
        "",
        |f| maximum(&f.latency),
        seconds,
    ),
    (
        "the same during status '*', median",
        "<= 10 ms",
        |f| median(&f.busy_latency),
        seconds,
    ),
    (
        "the same during status '*', longest",
        "<= 10 ms",
        |f| maximum(&f.busy_latency),
        seconds,
    ),
    (
        "notifications that took > 10 s",
        "0",
        |f| (f.latency_missing + f.busy_missing) as f64,
        count,
    ),
    (
        "CPU of the replicator per sync",
        "<= stock",
        |f| median(&f.sync_cpu),
        seconds,
    ),
    (
        "CPU of the aggregator per sync",
        "",
        |f| median(&f.aggregator_cpu),
        seconds,
    ),
    ("time per sync", "", |f| median(&f.sync_wall), seconds),
    ("syncs that did not come", "0", |f| f.unsynced as f64, count),
    (
        "burst: taken from the fifo",
        "",
        |f| of_burst(f, |burst| burst.taken),
        seconds,
    ),
    (
        "burst: queued in the replicator",
        "0.1 s",
        |f| of_burst(f, |burst| burst.queued),
        seconds,
    ),
    (
        "burst: users queued",
        "all",
        |f| of_burst(f, |b| Some(b.queued_users as f64)),
        count,
    ),
    (
        "burst: answered, until the last dsync",
        "",
        |f| of_burst(f, |burst| burst.synced),
        seconds,
    ),
    (
        "burst: users lost",
        "0",
        |f| of_burst(f, |burst| Some(burst.lost as f64)),
        count,
    ),
    ("panics of the daemons", "0", |f| f.panics as f64, count),
];

fn print(users: usize, candidates: &[Candidate]) {
    let mut head = vec!["figure"];
    head.extend(
        candidates
            .iter()
            .map(|candidate| candidate.daemons.side.as_str()),
    );
    head.extend(["ours/stock", "aim"]);
    let mut table = Table::new(&format!("Daemons, {users} users"), &head);
    let mut add = |what: &str, aim: &str, values: &[f64], show: fn(f64) -> String| {
        let mut row = vec![what.to_owned()];
        row.extend(values.iter().map(|&value| show(value)));
        row.push(match values {
            [stock, ours] if *stock > 0.0 && ours.is_finite() => format!("{:.3}", ours / stock),
            _ => NOTHING.to_owned(),
        });
        row.push(aim.to_owned());
        table.row(row);
    };
    let per_user: [BytesRow; 3] = [
        ("resident bytes per user, warm start", "<= 120", |figures| {
            figures.bytes
        }),
        (
            "resident bytes per user, users listed only",
            "",
            |figures| figures.listed_bytes,
        ),
        ("resident bytes per user, peak", "", |figures| {
            figures.peak_bytes
        }),
    ];
    for (what, aim, figure) in per_user {
        let values: Vec<f64> = candidates
            .iter()
            .map(|candidate| match figure(&candidate.figures) {
                0.0 => f64::NAN,
                bytes => (bytes - candidate.base_bytes) / users as f64,
            })
            .collect();
        add(what, aim, &values, digits);
    }
    for (what, aim, figure, show) in ROWS {
        let values: Vec<f64> = candidates
            .iter()
            .map(|candidate| figure(&candidate.figures))
            .collect();
        add(what, aim, &values, show);
    }
    for candidate in candidates {
        let side = candidate.daemons.side.as_str();
        table.note(format!(
            "{side}: {:.1} MB resident with {BASE_USERS} users",
            candidate.base_bytes / 1e6
        ));
        if let Some(failure) = &candidate.figures.failure {
            table.note(format!("{side} failed at {failure}"));
        }
        if let Some(burst) = &candidate.figures.burst {
            table.note(format!(
                "{side}: the burst of {} lines named {} users",
                burst::NOTIFICATIONS,
                burst.users
            ));
        }
    }
    table.print();
}
