//! What is printed: a line for the machine, and one table per comparison.

use crate::Setup;
use crate::statistics::{median, median_interval};
use std::fs;
use std::io::{Write, stdout};
use std::thread::available_parallelism;

/// What stands in a cell whose side is missing or has failed.
pub const NOTHING: &str = "-";

/// A table with a head, printed with aligned columns.
pub struct Table {
    title: String,
    notes: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(title: &str, head: &[&str]) -> Table {
        Table {
            title: title.to_owned(),
            notes: Vec::new(),
            rows: vec![head.iter().map(|&cell| cell.to_owned()).collect()],
        }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// A line under the table.
    pub fn note(&mut self, note: String) {
        self.notes.push(note);
    }

    pub fn print(&self) {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        line(&format!("\n{}", self.title));
        for (number, row) in self.rows.iter().enumerate() {
            let cells = row.iter().zip(&widths).enumerate();
            let cells: Vec<String> = cells
                .map(|(column, (cell, &width))| match column {
                    0 => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                })
                .collect();
            line(cells.join("  ").trim_end());
            if number == 0 {
                line(&"-".repeat(widths.iter().sum::<usize>() + 2 * columns.saturating_sub(1)));
            }
        }
        for note in &self.notes {
            line(note);
        }
    }
}

/// A line of the report, on stdout at once.
pub fn line(text: &str) {
    // Nobody listens any more: the driver's limit ends the run.
    let _written = writeln!(stdout(), "{text}").and_then(|()| stdout().flush());
}

/// The machine, the Dovecot, the sizes.
pub fn machine(dovecot: &str, setup: &Setup) {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name\t: "));
    let cores = available_parallelism().map_or(0, usize::from);
    line(&format!(
        "machine: {cores} cores ({}), Linux {}, Dovecot {dovecot}",
        model.unwrap_or("unknown"),
        kernel.trim(),
    ));
    line(&format!(
        "sizes: {} rounds, users {:?}, {} deliveries, SEED={}",
        setup.rounds, setup.users, setup.deliveries, setup.seed
    ));
    load("at the start");
}

/// How busy the machine is: figures of a busy one are worth less.
pub fn load(when: &str) {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split_whitespace().take(3).collect();
    line(&format!("load {when}: {}", load.join(" ")));
}

/// A time in seconds, in the unit that suits it.
pub fn seconds(value: f64) -> String {
    let (value, unit) = match value.abs() {
        none if none.is_nan() => return NOTHING.to_owned(),
        small if small < 1e-3 => (value * 1e6, "us"),
        middle if middle < 1.0 => (value * 1e3, "ms"),
        _ => (value, "s"),
    };
    format!("{} {unit}", digits(value))
}

/// Three digits that count.
pub fn digits(value: f64) -> String {
    match value.abs() {
        none if none.is_nan() => NOTHING.to_owned(),
        small if small < 9.995 => format!("{value:.2}"),
        middle if middle < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// A median ratio with its interval, by round.
pub fn ratio(ratios: &[f64]) -> String {
    with_interval(ratios, |value| format!("{value:.3}"))
}

/// A median with its interval.
pub fn with_interval(values: &[f64], show: impl Fn(f64) -> String) -> String {
    let middle = median(values);
    match median_interval(values) {
        _ if middle.is_nan() => NOTHING.to_owned(),
        Some((low, high)) => format!("{} [{}, {}]", show(middle), show(low), show(high)),
        None => show(middle),
    }
}
