//! Mailboxes that dsync renamed: another sync follows.
//!
//! Where both nodes gave one name to two mailboxes, or renamed one, dsync works out on each side what is to be renamed, and the two
//! sides may come to different names; it ends with OK nevertheless (`dsync-mailbox-tree-sync.c` of 2.3.13 to 2.4.5, tried). The next sync
//! makes them one, and renames again to do so: only one without a rename says that all is well.
//!
//! Of each node only its own dsync processes tell, so what one node sees it follows itself. Should syncs never come to an end with it,
//! the pauses between them grow, up to the slowest pace.

use std::time::Duration;

use super::Replicator;
use super::log::Level;
use super::queue::{Place, millis, pause_after_change};
use super::users::RowId;
use crate::engine::time::{Mono, Now};
use crate::engine::{FastMap, Priority};

/// After this many in a row the administrator is told: the pause is 5 s then.
const RENAMES_REPORTED: u32 = 8;
/// Those whose time is over are looked for when there are so many, or twice as many as were left the last time.
const FEW: usize = 64;

/// How often dsync renamed mailboxes lately.
#[derive(Debug)]
struct Lately {
    renames: u32,
    last: Mono,
}

/// Of the rows whose mailboxes were renamed lately.
#[derive(Debug, Default)]
pub(super) struct Renames {
    rows: FastMap<RowId, Lately>,
    looked_through_at: usize,
}

impl Renames {
    /// One more: how many there were in a row. They are forgotten `remembered` after the last.
    fn count(&mut self, now: Mono, row: RowId, remembered: Duration) -> u32 {
        let is_over = |lately: &Lately| now.since(lately.last) > remembered;
        if self.rows.len() >= self.looked_through_at.max(FEW) {
            self.rows.retain(|_, lately| !is_over(lately));
            self.looked_through_at = self.rows.len() * 2;
        }
        let none = Lately {
            renames: 0,
            last: now,
        };
        let lately = self.rows.entry(row).or_insert(none);
        if is_over(lately) {
            lately.renames = 0;
        }
        lately.last = now;
        lately.renames = lately.renames.saturating_add(1);
        lately.renames
    }
}

impl Replicator {
    /// A dsync process of this node has renamed mailboxes of the user.
    pub(super) fn handle_renamed(&mut self, now: Now, username: &[u8]) {
        let user = self.users.find(username);
        let Some(user) = user.filter(|user| !self.is_left_out(*user)) else {
            return;
        };
        let running = self.running_sync(user).map(|running| {
            running.renamed = true;
            running.row
        });
        for id in self.users.row_ids(user) {
            if Some(id) != running {
                self.sync_after_renames(now, id);
            }
        }
        self.advance(now);
    }

    /// To be synced again; the row's own sync is over.
    pub(super) fn sync_after_renames(&mut self, now: Now, id: RowId) {
        let longest = self.config.retry_max_interval;
        // Longer than the longest pause between two.
        let renames = self.renames.count(now.mono, id, longest * 2);
        let pause = self.jitter.shorten(pause_after_change(renames, longest));
        if renames == RENAMES_REPORTED {
            let text = "Each sync renames mailboxes, the next ones come at a slower pace";
            self.say_of_row(Level::Info, id, text.to_owned());
        }
        let place = self.queue.place(id);
        let failures = self.queue.failures(id);
        let Some(row) = self.users.row_mut(id) else {
            return;
        };
        if !row.is_pending() {
            row.last_update = now.wall;
        }
        row.priority = row.priority.max(Priority::Low);
        self.touch(id);
        let at = now.mono + pause;
        let at = match place {
            Place::Idle => at,
            // For the full sync of a row that settles, or another one like this.
            Place::Retry(before) if failures == 0 => at.min(before),
            _ => return self.recount(id.user),
        };
        self.totals.healed_renames += 1;
        let work = self.queue.work_mut(id);
        work.since = millis(now.mono);
        work.after_renames = true;
        self.place(id, Place::Retry(at));
    }
}

#[cfg(test)]
mod tests {
    use super::super::users::UserId;
    use super::*;

    #[test]
    fn renames_are_counted_by_row_and_forgotten() {
        let row = |user, replica| RowId {
            user: UserId(user),
            replica,
        };
        let minute = Duration::from_secs(60);
        let mut renames = Renames::default();
        let mut now = Mono(0);
        assert_eq!(renames.count(now, row(1, 0), minute), 1);
        assert_eq!(renames.count(now, row(1, 0), minute), 2);
        assert_eq!(renames.count(now, row(1, 1), minute), 1);
        assert_eq!(renames.count(now, row(2, 0), minute), 1);
        now = now + minute;
        assert_eq!(renames.count(now, row(1, 0), minute), 3);
        now = now + minute + Duration::from_millis(1);
        assert_eq!(renames.count(now, row(1, 0), minute), 1);
        for user in 0..10 * u32::try_from(FEW).unwrap() {
            now = now + Duration::from_secs(2);
            renames.count(now, row(user, 0), minute);
        }
        assert!(renames.rows.len() <= FEW, "{}", renames.rows.len());
    }
}
