//! When a row is due although nothing was notified: for its full sync, or for its first one.
//!
//! Each user has a phase, made from the name, and is due once in each interval when its phase comes. So the work of an interval is spread
//! over all of it, in each run alike, and nothing has to be kept for it. A phase that passed before the `horizon` (the start,
//! a jump of the clock) does not count: a start is no storm.

use std::time::Duration;

use super::users::{Row, hash};
use crate::engine::time::UnixSecs;

/// First syncs of users that nobody notified: this many in a second at most.
const FIRST_SYNCS_PER_SEC: u64 = 10;
const DAY_SECS: u32 = 24 * 60 * 60;

/// When the phase of the user came last.
fn last_phase(username: &[u8], interval_secs: u32, now: UnixSecs) -> u32 {
    let interval = u64::from(interval_secs.max(1));
    let phase = hash(username) % interval;
    let past = (u64::from(now.0) + phase) % interval;
    now.0
        .saturating_sub(u32::try_from(past).unwrap_or(u32::MAX))
}

pub(super) fn secs(interval: Duration) -> u32 {
    u32::try_from(interval.as_secs()).unwrap_or(u32::MAX)
}

/// Over how long the first syncs of so many users are spread, in seconds.
pub(super) fn first_sync_spread_secs(users: usize) -> u32 {
    let users = u64::try_from(users).unwrap_or(u64::MAX);
    u32::try_from(users / FIRST_SYNCS_PER_SEC).map_or(DAY_SECS, |secs| secs.clamp(1, DAY_SECS))
}

/// Whether the user, never synced or to be synced once more, is to be synced now.
pub(super) fn is_first_sync_due(
    username: &[u8],
    spread_secs: u32,
    horizon: UnixSecs,
    now: UnixSecs,
) -> bool {
    last_phase(username, spread_secs, now) > horizon.0
}

/// Whether the full sync of this row is due. An interval of 0: never.
pub(super) fn is_full_sync_due(
    username: &[u8],
    row: &Row,
    interval_secs: u32,
    horizon: UnixSecs,
    now: UnixSecs,
) -> bool {
    if interval_secs == 0 {
        return false;
    }
    let phase = last_phase(username, interval_secs, now);
    let last = row.last_full_sync;
    // A time in the future is from before the clock was set back: it says nothing.
    let is_old = last > now || (last.0 < phase && now.0 - last.0 >= interval_secs / 2);
    phase > horizon.0 && is_old
}

/// Seconds until the phase of the user comes next.
pub(super) fn secs_to_phase(username: &[u8], interval_secs: u32, now: UnixSecs) -> u32 {
    let last = last_phase(username, interval_secs, now);
    interval_secs.saturating_sub(now.0.saturating_sub(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u32 = 1_700_000_000;

    fn names() -> impl Iterator<Item = Vec<u8>> {
        (0..10_000).map(|n| format!("u{n}@example.com").into_bytes())
    }

    #[test]
    fn no_full_sync_is_due_at_the_start_and_all_are_within_an_interval() {
        let row = Row::default();
        let due = |secs: u32| {
            names()
                .filter(|name| {
                    is_full_sync_due(name, &row, DAY_SECS, UnixSecs(NOW), UnixSecs(NOW + secs))
                })
                .count()
        };
        assert_eq!(due(0), 0);
        for hour in 1..24 {
            let expected = 10_000 * hour as usize / 24;
            let counted = due(hour * 3600);
            assert!(counted.abs_diff(expected) < 300, "{hour}: {counted}");
        }
        assert_eq!(due(DAY_SECS), 10_000);
    }

    #[test]
    fn full_sync_is_due_once_in_an_interval() {
        for name in names().take(100) {
            let mut row = Row::default();
            let mut syncs = Vec::new();
            for hour in 1..=240 {
                let now = UnixSecs(NOW + hour * 3600);
                if is_full_sync_due(&name, &row, DAY_SECS, UnixSecs(NOW), now) {
                    row.last_full_sync = now;
                    syncs.push(hour);
                }
            }
            assert_eq!(syncs.len(), 10, "{syncs:?}");
        }
    }

    #[test]
    fn last_full_sync_in_the_future_does_not_hold_it_up() {
        let row = Row {
            last_full_sync: UnixSecs(NOW + 10 * DAY_SECS),
            ..Row::default()
        };
        let now = UnixSecs(NOW + DAY_SECS);
        assert!(is_full_sync_due(b"u1", &row, DAY_SECS, UnixSecs(NOW), now));
        assert!(!is_full_sync_due(b"u1", &row, 0, UnixSecs(NOW), now));
    }

    #[test]
    fn first_syncs_of_few_users_come_soon_and_of_many_are_spread() {
        assert_eq!(first_sync_spread_secs(3), 1);
        assert_eq!(first_sync_spread_secs(10_000), 1000);
        assert_eq!(first_sync_spread_secs(100_000_000), DAY_SECS);
        for name in names().take(10) {
            let now = UnixSecs(NOW + 1);
            assert!(is_first_sync_due(&name, 1, UnixSecs(NOW), now));
        }
    }
}
