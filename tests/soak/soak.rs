//! `make soak`: random writing on both nodes, with faults and pauses, and a table of what came of it.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `MINUTES` | how long | 10 |
//! | `SEED` | decides all choices | random, printed |
//! | `VERSIONS` | `2.3.19.1`, `2.4.1`, ..., or two of them: `2.3.19.1+2.4.1` | this machine's |
//! | `FORMATS` | of `maildir sdbox mdbox` | all, one after the other |
//! | `FAULTS` | `no`, or some of the table's, with commas: `SIGKILL dsync,link cut` | all |
//! | `CLOCK` | `ahead`: the first node's by an hour | right |
//! | `USERS`, `SECS`, `PATIENCE` | users; seconds of load in a round; seconds that equality may take | 3, 20, 90 |
//! | `MAILBOXES` | `no`: none is made, renamed or deleted | all |
//! | `KEEP` | `1`: the nodes of a round that ended wrong go on | ended |
//! | `STOCK` | `1`: stock's plugin and daemons, to compare | ours |

#[path = "../harness/mod.rs"]
mod harness;

use harness::convergence::{Course, Journey, Round};
use harness::faults::Fault;
use harness::load::Operations;
use harness::{Failed, Format, Implementation, Outcome, Target};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let done = harness::disk::in_own_mounts().and_then(|()| run());
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("soak: {}", failed.message().unwrap_or("failed"));
            ExitCode::FAILURE
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn number(name: &str) -> Outcome<Option<u64>> {
    let parse = |value: String| {
        value
            .parse()
            .map_err(|_| format!("{name}={value}: not a number"))
    };
    Ok(variable(name).map(parse).transpose()?)
}

fn run() -> Outcome {
    let seed = number("SEED")?.unwrap_or_else(|| fastrand::u64(..));
    let minutes = number("MINUTES")?.unwrap_or(10);
    let targets = targets()?;
    let formats = formats()?;
    println!("SEED={seed}");
    let each = Duration::from_secs(minutes * 60) / u32::try_from(formats.len())?;
    let mut wrong = 0;
    for format in formats {
        let mut course = Course::of(&targets[0], &targets[1], format, seed);
        course.load = Duration::from_secs(number("SECS")?.unwrap_or(20));
        course.patience = Duration::from_secs(number("PATIENCE")?.unwrap_or(90));
        course.faults = faults()?;
        course.users = usize::try_from(number("USERS")?.unwrap_or(3))?;
        course.mailboxes = variable("MAILBOXES").is_none_or(|mailboxes| mailboxes != "no");
        course.clock_ahead = variable("CLOCK").is_some_and(|clock| clock == "ahead");
        let name = format!(
            "{} + {}, {}",
            targets[0].name(),
            targets[1].name(),
            format.name()
        );
        println!("\n{name}");
        let mut journey = course.begin()?;
        let rounds = go_on(&mut journey, each)?;
        wrong += rounds
            .iter()
            .filter(|round| !round.wrong.is_empty())
            .count();
        table(&journey, &rounds);
        if wrong > 0 && variable("KEEP").is_some() {
            for node in [journey.pair.a, journey.pair.b] {
                let (path, port) = (node.path(""), node.imap_port());
                println!(
                    "{} imap {port} pid {}",
                    path.display(),
                    node.leave_running()?
                );
            }
            break;
        }
        journey.pair.finish()?;
    }
    match wrong {
        0 => Ok(()),
        wrong => Err(Failed::from(format!(
            "{wrong} rounds ended wrong; SEED={seed}"
        ))),
    }
}

fn targets() -> Outcome<[Target; 2]> {
    let is_ours = variable("STOCK").is_none();
    let all = Target::all_staged();
    let find = |version: Option<&str>| {
        let target = all.iter().find(|target| {
            (target.implementation == Implementation::Ours) == is_ours
                && version.map_or(target.root.is_none(), |version| target.version == version)
        });
        let target = target.ok_or(format!("no Dovecot {}", version.unwrap_or("")))?;
        match &target.missing {
            None => Ok(target.clone()),
            Some(missing) => Err(Failed::from(missing)),
        }
    };
    let versions = variable("VERSIONS");
    let mut versions = versions.iter().flat_map(|versions| versions.split('+'));
    let a = find(versions.next())?;
    let b = versions
        .next()
        .map_or(Ok(a.clone()), |version| find(Some(version)))?;
    Ok([a, b])
}

fn faults() -> Outcome<Vec<Fault>> {
    let all = harness::faults::ALL;
    match variable("FAULTS").as_deref() {
        None => Ok(all.to_vec()),
        Some("no") => Ok(Vec::new()),
        Some(names) => {
            let find = |name: &str| {
                let found = all.into_iter().find(|fault| fault.name() == name.trim());
                found.ok_or(Failed::from(format!("FAULTS: no {name}")))
            };
            names.split(',').map(find).collect()
        }
    }
}

fn formats() -> Outcome<Vec<Format>> {
    let all = [Format::Maildir, Format::Sdbox, Format::Mdbox];
    let Some(wanted) = variable("FORMATS") else {
        return Ok(all.to_vec());
    };
    let find = |name| {
        let found = all.into_iter().find(|format| format.name() == name);
        found.ok_or(Failed::from(format!("FORMATS={name}")))
    };
    wanted.split_whitespace().map(find).collect()
}

fn go_on(journey: &mut Journey, duration: Duration) -> Outcome<Vec<Round>> {
    let end = Instant::now() + duration;
    let mut rounds = Vec::new();
    while Instant::now() < end {
        let round = journey.round()?;
        let faults: Vec<_> = round.faults.keys().map(|fault| fault.name()).collect();
        let equal = round.equal_after.map_or("never".to_owned(), shown);
        println!(
            "round {}: equal after {equal}{}; {}",
            rounds.len() + 1,
            match round.waited_for_lock {
                true => ", most of it for the lock of a process that died on a full disk",
                false => "",
            },
            faults.join(", ")
        );
        let is_wrong = !round.wrong.is_empty();
        for wrong in &round.wrong {
            println!("  {wrong}");
        }
        let told = if is_wrong {
            journey.told(&round)
        } else {
            String::new()
        };
        rounds.push(round);
        if is_wrong {
            println!("{told}");
            break;
        }
    }
    Ok(rounds)
}

fn shown(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn table(journey: &Journey, rounds: &[Round]) {
    let operations: Operations = journey.operations();
    println!(
        "\n  {:<24}{:>8}{:>10}{:>14}",
        "operation", "done", "refused", "not answered"
    );
    for (name, [done, refused, unanswered]) in operations {
        println!("  {name:<24}{done:>8}{refused:>10}{unanswered:>14}");
    }
    let mut faults = BTreeMap::new();
    for (fault, hit) in rounds.iter().flat_map(|round| &round.faults) {
        let (times, hits) = faults.entry(fault.name()).or_insert((0, 0));
        *times += 1;
        *hits += hit;
    }
    println!("\n  {:<24}{:>8}{:>10}", "fault", "times", "hit");
    for (name, (times, hits)) in faults {
        println!("  {name:<24}{times:>8}{hits:>10}");
    }
    let mut times: Vec<_> = rounds
        .iter()
        .filter_map(|round| round.equal_after)
        .collect();
    times.sort_unstable();
    let median = times
        .get(times.len() / 2)
        .copied()
        .map_or("-".to_owned(), shown);
    let worst = times.last().copied().map_or("-".to_owned(), shown);
    println!(
        "\n  {} rounds, {} equal; time to equality: median {median}, worst {worst}",
        rounds.len(),
        times.len()
    );
    let back: usize = rounds.iter().map(|round| round.back).max().unwrap_or(0);
    let doubled = rounds
        .iter()
        .map(|round| round.doubled_by_faults)
        .max()
        .unwrap_or(0);
    println!(
        "  {} mails; expunged and back: {back}; doubled by faults: {doubled}",
        journey.mails()
    );
    healed(journey);
}

/// What the replicators say that they healed.
fn healed(journey: &Journey) {
    let mut lines = BTreeMap::new();
    for node in [&journey.pair.a, &journey.pair.b] {
        for line in node.log_lines("replicator: Info: ") {
            let (_, text) = line.split_once("Info: ").unwrap_or(("", &line));
            let text: String = text
                .chars()
                .map(|letter| if letter.is_ascii_digit() { '#' } else { letter })
                .collect();
            *lines.entry(text).or_insert(0) += 1;
        }
    }
    println!("\n  the replicators say (info):");
    for (text, times) in lines {
        println!("  {times:>6} x {text}");
    }
}
