//! What the kernel tells about a process: CPU, memory, children.

use crate::Outcome;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// CPU seconds that all threads of a process have used so far, in user and system mode.
///
/// # Errors
/// When it is gone, or the kernel does not account for it (`CONFIG_SCHED_INFO`).
pub fn cpu(pid: u32) -> Outcome<f64> {
    let mut nanoseconds = 0_u64;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let first = text.split_whitespace().next().ok_or("empty schedstat")?;
        nanoseconds += first.parse::<u64>()?;
    }
    Ok(nanoseconds as f64 / 1e9)
}

/// A memory figure of /proc/PID/status in bytes: `VmRSS`, `VmHWM`.
///
/// # Errors
/// When the process is gone.
pub fn memory(pid: u32, field: &str) -> Outcome<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(kib.ok_or("no such field")?.parse::<f64>()? * 1024.0)
}

/// The children of `parent` that are called `name`.
pub fn children(parent: u32, name: &str) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let children = children.unwrap_or_default();
    let called = |pid: &u32| {
        let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        comm.trim_end() == name
    };
    children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .filter(called)
        .collect()
}

/// Sends a signal; a process that is gone is not an error.
pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // Gone is what was wanted.
        let _sent = kill_process(pid, signal);
    }
}

/// Waits until a process is gone.
///
/// # Errors
/// When it stays longer than `limit`.
pub fn wait_gone(pid: u32, limit: Duration) -> Outcome {
    wait_until(&format!("the end of process {pid}"), limit, || {
        !Path::new(&format!("/proc/{pid}")).exists()
    })
}

/// Looks every millisecond.
///
/// # Errors
/// When it did not come true within `limit`.
pub fn wait_until(what: &str, limit: Duration, mut look: impl FnMut() -> bool) -> Outcome {
    let start = Instant::now();
    while !look() {
        if start.elapsed() > limit {
            return Err(format!("{what}: not within {limit:?}").into());
        }
        sleep(Duration::from_millis(1));
    }
    Ok(())
}
