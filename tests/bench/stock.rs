//! Comparisons with stock on real Dovecots: the mail plugin, the daemons, and end to end.
//!
//! All sides of a comparison run in one process run, in turn, so that what disturbs the machine
//! disturbs all of them. Known defects of stock are figures here, not failures. Left out on purpose:
//! a judgement; `docs/benchmarks.md` says what the figures should be.

mod burst;
mod clients;
mod daemon_sides;
mod daemons;
mod end_to_end;
mod fakes;
mod fifo;
mod node;
mod plugin;
mod process;
mod report;
mod statistics;

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What a step of a comparison ends in.
type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// What is compared with what, and how much of it.
struct Setup {
    /// A directory of this run, removed by the driver.
    work: PathBuf,
    /// Where our plugin and daemons are.
    ours: PathBuf,
    /// Where stock's daemons are.
    stock: PathBuf,
    rounds: usize,
    users: Vec<usize>,
    deliveries: usize,
    seed: u64,
}

impl Setup {
    fn from_env(version: &str) -> Outcome<Setup> {
        let path = |name: &str, default: PathBuf| env::var_os(name).map_or(default, PathBuf::from);
        let users = env::var("BENCH_USERS").unwrap_or_else(|_| "10000 100000 1000000".to_owned());
        let users: Result<Vec<usize>, _> = users.split_whitespace().map(str::parse).collect();
        let work =
            env::var_os("BENCH_WORK").ok_or("run tests/bench/bench: BENCH_WORK is not set")?;
        Ok(Setup {
            work: PathBuf::from(work),
            ours: path("BENCH_OURS", Path::new("build").join(version)).canonicalize()?,
            stock: path("BENCH_STOCK", PathBuf::from("/usr/lib/dovecot")),
            rounds: number("BENCH_ROUNDS", 20)?,
            users: users.map_err(|error| format!("BENCH_USERS: {error}"))?,
            deliveries: number("BENCH_DELIVERIES", 100)?,
            seed: number("SEED", fastrand::u64(..))?,
        })
    }
}

fn number<T: std::str::FromStr>(name: &str, default: T) -> Outcome<T>
where
    T::Err: std::fmt::Display,
{
    match env::var(name) {
        Ok(value) => value
            .parse()
            .map_err(|error| format!("{name}: {error}").into()),
        Err(_) => Ok(default),
    }
}

/// The sides of a comparison, beginning with another one each round.
fn in_turn<T>(sides: &mut [T], round: usize) -> impl Iterator<Item = &mut T> {
    let (later, sooner) = sides.split_at_mut(round % sides.len().max(1));
    sooner.iter_mut().chain(later)
}

/// Says on stderr what is being measured; stdout is the report.
fn progress(what: &str) {
    eprintln!("bench: {what}");
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("bench: {error}");
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome {
    let output = Command::new("dovecot").arg("--version").output()?;
    let full_version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let version = full_version.split_whitespace().next().unwrap_or_default();
    let setup = Setup::from_env(version)?;
    // cargo bench adds its own.
    let mut wanted: Vec<String> = env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if wanted.is_empty() {
        wanted = ["plugin", "daemons", "end-to-end"]
            .map(str::to_owned)
            .to_vec();
    }
    report::machine(&full_version, &setup);
    for comparison in &wanted {
        match comparison.as_str() {
            "plugin" => plugin::compare(&setup)?,
            "daemons" => daemons::compare(&setup)?,
            "syncs" => daemons::compare_syncs(&setup)?,
            "end-to-end" => end_to_end::compare(&setup)?,
            other => return Err(format!("unknown comparison {other:?}").into()),
        }
    }
    report::load("at the end");
    Ok(())
}
