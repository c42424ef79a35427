//! No plugin, stock's and ours: CPU and time per change, deliveries per second.

use crate::clients::{Imap, Lmtp, message};
use crate::fifo::Fifo;
use crate::node::{Home, Node, Side};
use crate::report::{Table, digits, ratio, seconds, with_interval};
use crate::statistics::{differences, median, ratios};
use crate::{Outcome, Setup, in_turn, process, progress};
use std::time::Instant;

const SIDES: [Side; 3] = [Side::None, Side::Stock, Side::Ours];
/// Messages of the mailbox whose flags change.
const MESSAGES: usize = 100;
/// Commands that change one flag each; not measured, then measured.
const WARM_STORES: usize = 50;
const STORES: usize = 500;
/// Commands that change a flag of all messages at once.
const WIDE_STORES: usize = 10;
const WARM_DELIVERIES: usize = 10;
const DELIVERIES: usize = 200;

/// A node with one side's plugin; nobody but the bench reads its fifo.
struct Candidate {
    node: Node,
    fifo: Fifo,
    figures: Vec<Round>,
}

/// What one round measured, in seconds per change or delivery.
#[derive(Default)]
struct Round {
    change_cpu: f64,
    change_wall: f64,
    change_lines: f64,
    wide_cpu: f64,
    delivery_cpu: f64,
    delivery_wall: f64,
    delivery_lines: f64,
}

impl Candidate {
    fn start(setup: &Setup, side: Side) -> Outcome<Candidate> {
        let home = Home::new(&setup.work, &format!("plugin-{}", side.as_str()))?;
        home.link_modules(setup, side)?;
        let users: Vec<String> = (0..setup.rounds).map(user).collect();
        home.write_users(&users)?;
        // Made by the bench: the master's aggregator has no listener.
        let fifo = Fifo::create(&home.path.join("run/replication-notify-fifo"))?;
        let config = config(&home, side);
        let node = home.start(&config)?;
        Ok(Candidate {
            node,
            fifo,
            figures: Vec::new(),
        })
    }

    fn measure(&mut self, round: usize) -> Outcome {
        let mut figures = Round::default();
        self.measure_changes(round, &mut figures)?;
        self.measure_deliveries(round, &mut figures)?;
        self.figures.push(figures);
        Ok(())
    }

    fn measure_changes(&self, round: usize, figures: &mut Round) -> Outcome {
        let mut imap = Imap::start(&self.node.path("dovecot.conf"), &user(round))?;
        for number in 0..MESSAGES {
            imap.append(&message(&format!("m{number}")))?;
        }
        imap.ok("SELECT INBOX")?;
        let mut flip = Flip::default();
        for _ in 0..WARM_STORES {
            imap.ok(&flip.one())?;
        }
        let lines = self.fifo.lines();
        let (cpu, start) = (process::cpu(imap.pid())?, Instant::now());
        for _ in 0..STORES {
            imap.ok(&flip.one())?;
        }
        let (wall, cpu_end) = (start.elapsed(), process::cpu(imap.pid())?);
        figures.change_wall = wall.as_secs_f64() / STORES as f64;
        figures.change_cpu = (cpu_end - cpu) / STORES as f64;
        imap.ok(&flip.all())?;
        let cpu = process::cpu(imap.pid())?;
        for _ in 0..WIDE_STORES {
            imap.ok(&flip.all())?;
        }
        let changes = WIDE_STORES * MESSAGES;
        figures.wide_cpu = (process::cpu(imap.pid())? - cpu) / changes as f64;
        imap.logout()?;
        figures.change_lines = (self.fifo.lines() - lines) as f64 / STORES as f64;
        Ok(())
    }

    fn measure_deliveries(&self, round: usize, figures: &mut Round) -> Outcome {
        let mut lmtp = Lmtp::connect(&self.node.path("run/lmtp"))?;
        let user = user(round);
        for number in 0..WARM_DELIVERIES {
            lmtp.deliver(&user, &message(&format!("w{number}")))?;
        }
        let pid = self.node.process("lmtp")?;
        let lines = self.fifo.lines();
        let (cpu, start) = (process::cpu(pid)?, Instant::now());
        for number in 0..DELIVERIES {
            lmtp.deliver(&user, &message(&format!("d{number}")))?;
        }
        let (wall, cpu_end) = (start.elapsed(), process::cpu(pid)?);
        figures.delivery_wall = wall.as_secs_f64() / DELIVERIES as f64;
        figures.delivery_cpu = (cpu_end - cpu) / DELIVERIES as f64;
        figures.delivery_lines = (self.fifo.lines() - lines) as f64 / DELIVERIES as f64;
        Ok(())
    }

    fn of(&self, figure: impl Fn(&Round) -> f64) -> Vec<f64> {
        self.figures.iter().map(figure).collect()
    }
}

/// STORE commands that always change something.
#[derive(Default)]
struct Flip {
    stores: usize,
}

impl Flip {
    fn one(&mut self) -> String {
        let number = self.stores % MESSAGES + 1;
        let sign = if self.stores / MESSAGES % 2 == 0 {
            '+'
        } else {
            '-'
        };
        self.stores += 1;
        format!("STORE {number} {sign}FLAGS.SILENT (\\Flagged)")
    }

    fn all(&mut self) -> String {
        self.stores += 1;
        let sign = if self.stores % 2 == 0 { '+' } else { '-' };
        format!("STORE 1:* {sign}FLAGS.SILENT (\\Answered)")
    }
}

fn user(round: usize) -> String {
    format!("user{round}")
}

fn config(home: &Home, side: Side) -> String {
    let dir = home.path.display();
    let plugins = match side {
        Side::None => "",
        Side::Stock | Side::Ours => "notify replication",
    };
    format!(
        "\
mail_plugin_dir = {dir}/modules
mail_plugins = {plugins}
protocols = lmtp
passdb {{
  driver = passwd-file
  args = {dir}/users
}}
userdb {{
  driver = passwd-file
  args = {dir}/users
}}
protocol lmtp {{
  postmaster_address = postmaster@example.org
}}
service lmtp {{
  process_limit = 1
}}
service aggregator {{
  fifo_listener replication-notify-fifo {{
    mode = 0
  }}
  unix_listener replication-notify {{
    mode = 0
  }}
}}
service stats {{
  unix_listener stats-writer {{
    mode = 0666
  }}
}}
plugin {{
  mail_replica = tcp:127.0.0.1:9
}}
"
    )
}

/// Runs the rounds and prints the two tables.
///
/// # Errors
/// When a node does not start or refuses a command.
pub fn compare(setup: &Setup) -> Outcome {
    let mut candidates = Vec::new();
    for side in SIDES {
        candidates.push(Candidate::start(setup, side)?);
    }
    for round in 0..setup.rounds {
        progress(&format!("plugin: round {} of {}", round + 1, setup.rounds));
        for candidate in in_turn(&mut candidates, round) {
            candidate.measure(round)?;
        }
    }
    let [none, stock, ours] = candidates.as_slice() else {
        return Err("three sides".into());
    };
    let named = || SIDES.iter().zip([none, stock, ours]);

    let head = [
        "plugin",
        "CPU per change",
        "added to none's",
        "ratio to none",
        "ratio to stock",
        "time per change",
        "ratio to none",
        "ratio to stock",
        "CPU per change of 100",
        "lines",
    ];
    let mut table = Table::new(
        "Hook path: an IMAP session changes a flag, one change per command; and of 100 mails per command",
        &head,
    );
    for (side, candidate) in named() {
        let cpu = candidate.of(|round| round.change_cpu);
        let wall = candidate.of(|round| round.change_wall);
        let (none_cpu, stock_cpu) = (none.of(|r| r.change_cpu), stock.of(|r| r.change_cpu));
        let (none_wall, stock_wall) = (none.of(|r| r.change_wall), stock.of(|r| r.change_wall));
        table.row(vec![
            side.as_str().to_owned(),
            seconds(median(&cpu)),
            with_interval(&differences(&cpu, &none_cpu), seconds),
            ratio(&ratios(&cpu, &none_cpu)),
            ratio(&ratios(&cpu, &stock_cpu)),
            seconds(median(&wall)),
            ratio(&ratios(&wall, &none_wall)),
            ratio(&ratios(&wall, &stock_wall)),
            seconds(median(&candidate.of(|round| round.wide_cpu))),
            digits(median(&candidate.of(|round| round.change_lines))),
        ]);
    }
    table.note(format!(
        "{} interleaved rounds of {STORES} changes each; medians, ratios by round [95 % interval]; \
         CPU is the imap process's; lines: what the fifo got per change.",
        setup.rounds
    ));
    table.print();

    let head = [
        "plugin",
        "deliveries/s",
        "ratio to none",
        "ratio to stock",
        "CPU per delivery",
        "ratio to none",
        "ratio to stock",
        "lines",
    ];
    let mut table = Table::new("LMTP deliveries, one session, one user", &head);
    for (side, candidate) in named() {
        let rate = |candidate: &Candidate| candidate.of(|round| 1.0 / round.delivery_wall);
        let cpu = |candidate: &Candidate| candidate.of(|round| round.delivery_cpu);
        table.row(vec![
            side.as_str().to_owned(),
            digits(median(&rate(candidate))),
            ratio(&ratios(&rate(candidate), &rate(none))),
            ratio(&ratios(&rate(candidate), &rate(stock))),
            seconds(median(&cpu(candidate))),
            ratio(&ratios(&cpu(candidate), &cpu(none))),
            ratio(&ratios(&cpu(candidate), &cpu(stock))),
            digits(median(&candidate.of(|round| round.delivery_lines))),
        ]);
    }
    table.note(format!(
        "{} interleaved rounds of {DELIVERIES} deliveries each; aim: at least 0.98 of none's rate, \
         and no less than stock's; CPU is the lmtp process's.",
        setup.rounds
    ));
    table.print();
    Ok(())
}
