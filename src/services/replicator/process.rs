//! The process that runs a dsync: whether it gets on, and its end.

use std::fs;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Most processes that are ended with a worker.
const MAX_CHILDREN: usize = 16;

/// What a doveadm process has read and written so far, in bytes; `None` if it is gone or may not be looked at.
pub(super) fn io_bytes(pid: i32) -> Option<u64> {
    if !is_doveadm(pid) {
        return None;
    }
    let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    let mut total = 0_u64;
    for line in text.lines() {
        if let Some(("rchar" | "wchar", value)) = line.split_once(": ") {
            total = total.saturating_add(value.parse().ok()?);
        }
    }
    Some(total)
}

/// Whether it is what served the connection: the number may be another process's by now.
fn is_doveadm(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|name| name.trim_end().starts_with("doveadm"))
}

/// How a process is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// As the master would; doveadm may finish its sync first.
    Asked,
    /// In the midst of its sync. With our module it ends without the master's noting that it was killed.
    AtOnce,
    Killed,
}

/// Sends a signal to a doveadm process and to the processes that it started (`ssh`). True if it was there.
pub(super) fn end(pid: i32, how: End) -> bool {
    let signal = match how {
        End::Asked => Signal::TERM,
        End::AtOnce => Signal::USR2,
        End::Killed => Signal::KILL,
    };
    if !is_doveadm(pid) {
        return false;
    }
    let children =
        fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut found = false;
    for (at, pid) in std::iter::once(Some(pid))
        .chain(children.split_whitespace().map(|pid| pid.parse().ok()))
        .take(MAX_CHILDREN + 1)
        .enumerate()
    {
        let sent = pid
            .and_then(Pid::from_raw)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            .is_some_and(|process| pidfd_send_signal(&process, signal).is_ok());
        found |= sent && at == 0;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_no_doveadm_is_left_alone() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(!end(pid, End::Killed));
        assert_eq!(child.try_wait().unwrap(), None);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(io_bytes(pid), None);
    }
}
