//! Who waits to be handed on: one entry per user, whatever number of notifications came for them.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::engine::Priority;

/// Most users at a time. With [`MAX_NAME_BYTES`] it keeps the process far below Dovecot's default
/// `vsz_limit` of 256 MiB.
pub const MAX_USERS: usize = 1 << 18;
/// Most bytes of all usernames together.
pub const MAX_NAME_BYTES: usize = 16 << 20;

/// A username that several places refer to.
pub type Username = Arc<[u8]>;

#[derive(Debug)]
struct Entry {
    name: Username,
    /// Not yet sent, or again since.
    pending: Priority,
    /// Where it stands in its queue.
    seq: u64,
    /// Sent and not yet acknowledged.
    sent: Priority,
    /// The line that sent it last.
    sent_id: u64,
    /// What the journal has.
    journaled: Priority,
}

impl Entry {
    const fn new(name: Username) -> Self {
        Self {
            name,
            pending: Priority::None,
            seq: 0,
            sent: Priority::None,
            sent_id: 0,
            journaled: Priority::None,
        }
    }
}

/// Who is to be sent: a queue per priority, in the order of waiting.
#[derive(Debug, Default)]
struct Queues {
    low: BTreeMap<u64, Username>,
    high: BTreeMap<u64, Username>,
    sync: BTreeMap<u64, Username>,
}

impl Queues {
    fn of(&mut self, priority: Priority) -> Option<&mut BTreeMap<u64, Username>> {
        match priority {
            Priority::None => None,
            Priority::Low => Some(&mut self.low),
            Priority::High => Some(&mut self.high),
            Priority::Sync => Some(&mut self.sync),
        }
    }

    fn set_pending(&mut self, entry: &mut Entry, to: Priority) {
        let from = std::mem::replace(&mut entry.pending, to);
        if from == to {
            return;
        }
        if let Some(queue) = self.of(from) {
            queue.remove(&entry.seq);
        }
        if let Some(queue) = self.of(to) {
            queue.insert(entry.seq, Arc::clone(&entry.name));
        }
    }
}

/// The merge table. Bounded by [`MAX_USERS`] and [`MAX_NAME_BYTES`].
#[derive(Debug)]
pub struct Table {
    users: HashMap<Username, Entry>,
    queues: Queues,
    next_seq: u64,
    name_bytes: usize,
    max_users: usize,
    max_name_bytes: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self::with_limits(MAX_USERS, MAX_NAME_BYTES)
    }
}

impl Table {
    /// A table with limits of its own.
    #[must_use]
    pub fn with_limits(max_users: usize, max_name_bytes: usize) -> Self {
        Self {
            users: HashMap::new(),
            queues: Queues::default(),
            next_seq: 0,
            name_bytes: 0,
            max_users,
            max_name_bytes,
        }
    }

    /// How many users wait or are not yet acknowledged.
    #[must_use]
    pub fn len(&self) -> usize {
        self.users.len()
    }

    /// Whether nobody waits and all is acknowledged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// The bytes of all usernames.
    #[must_use]
    pub const fn name_bytes(&self) -> usize {
        self.name_bytes
    }

    /// Merges a notification. `None`: there is no room for one more user. True: the journal needs a record.
    pub fn put(&mut self, username: &[u8], priority: Priority) -> Option<bool> {
        let entry = match self.users.get_mut(username) {
            Some(entry) => entry,
            None => {
                let name_bytes = self.name_bytes.saturating_add(username.len());
                if self.users.len() >= self.max_users || name_bytes > self.max_name_bytes {
                    return None;
                }
                self.name_bytes = name_bytes;
                let name = Username::from(username);
                let slot = self.users.entry(Arc::clone(&name));
                slot.or_insert_with(|| Entry::new(name))
            }
        };
        if entry.pending == Priority::None {
            entry.seq = self.next_seq;
            self.next_seq = self.next_seq.saturating_add(1);
        }
        let kept = priority.min(Priority::High);
        let needs_record = kept > entry.journaled;
        entry.journaled = entry.journaled.max(kept);
        let pending = entry.pending.max(priority);
        self.queues.set_pending(entry, pending);
        Some(needs_record)
    }

    /// The user that is to be sent next: the highest priority, of these the one that waits longest.
    #[must_use]
    pub fn next(&self) -> Option<(&Username, Priority)> {
        [
            (&self.queues.sync, Priority::Sync),
            (&self.queues.high, Priority::High),
            (&self.queues.low, Priority::Low),
        ]
        .into_iter()
        .find_map(|(queue, priority)| queue.first_key_value().map(|(_, user)| (user, priority)))
    }

    /// What is pending for the user was sent by line `id`.
    pub fn handle_sent(&mut self, username: &Username, id: u64) {
        if let Some(entry) = self.users.get_mut(username) {
            entry.sent = entry.sent.max(entry.pending);
            entry.sent_id = id;
            self.queues.set_pending(entry, Priority::None);
        }
    }

    /// Line `id` of the user is safe. True if with it nothing is left of the user.
    pub fn handle_acked(&mut self, username: &Username, id: u64) -> bool {
        let Slot::Occupied(mut slot) = self.users.entry(Arc::clone(username)) else {
            return false;
        };
        let entry = slot.get_mut();
        if entry.sent_id > id {
            return false;
        }
        entry.sent = Priority::None;
        if entry.pending != Priority::None {
            return false;
        }
        slot.remove();
        self.name_bytes = self.name_bytes.saturating_sub(username.len());
        true
    }

    /// The connection is gone: what it did not acknowledge waits again, in its old place. A sync
    /// comes back as high, for its waiters have been answered.
    pub fn handle_lost(&mut self, username: &Username) {
        if let Some(entry) = self.users.get_mut(username) {
            let pending = entry.pending.max(entry.sent.min(Priority::High));
            entry.sent = Priority::None;
            entry.sent_id = 0;
            self.queues.set_pending(entry, pending);
        }
    }

    /// Nobody waits for the user's sync any more: it becomes high.
    pub fn handle_no_waiter(&mut self, username: &Username) {
        if let Some(entry) = self.users.get_mut(username) {
            let pending = entry.pending.min(Priority::High);
            self.queues.set_pending(entry, pending);
        }
    }

    /// The key of a user who is in the table.
    #[must_use]
    pub fn key(&self, username: &[u8]) -> Option<Username> {
        self.users
            .get_key_value(username)
            .map(|(key, _)| Arc::clone(key))
    }

    /// All users with what a journal is to keep of them, in the order in which they came.
    #[must_use]
    pub fn journaled(&self) -> Vec<(&[u8], Priority)> {
        let mut entries: Vec<&Entry> = self.users.values().collect();
        entries.sort_unstable_by_key(|entry| entry.seq);
        let journaled = entries.into_iter();
        journaled
            .map(|entry| (&entry.name[..], entry.journaled))
            .collect()
    }

    /// How many users are to be sent.
    #[must_use]
    pub fn pending(&self) -> usize {
        let Queues { low, high, sync } = &self.queues;
        low.len()
            .saturating_add(high.len())
            .saturating_add(sync.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(table: &Table) -> Option<(String, Priority)> {
        table
            .next()
            .map(|(u, p)| (String::from_utf8_lossy(u).into_owned(), p))
    }

    #[test]
    fn highest_priority_goes_first_and_of_these_the_longest_waiting() {
        let mut table = Table::default();
        for (user, priority) in [
            ("a", Priority::Low),
            ("b", Priority::High),
            ("c", Priority::Low),
            ("c", Priority::High),
            ("b", Priority::Low),
            ("d", Priority::Sync),
        ] {
            table.put(user.as_bytes(), priority);
        }
        let mut order = Vec::new();
        while let Some((user, priority)) = next(&table) {
            let key = table.key(user.as_bytes()).unwrap();
            table.handle_sent(&key, order.len() as u64 + 1);
            order.push((user, priority));
        }
        let expected = [
            ("d", Priority::Sync),
            ("b", Priority::High),
            ("c", Priority::High),
            ("a", Priority::Low),
        ];
        assert_eq!(order, expected.map(|(u, p)| (u.to_owned(), p)));
        assert_eq!((table.len(), table.pending()), (4, 0));
    }

    #[test]
    fn change_after_the_send_survives_the_acknowledgement() {
        let mut table = Table::default();
        assert_eq!(table.put(b"u", Priority::High), Some(true));
        let key = table.key(b"u").unwrap();
        table.handle_sent(&key, 1);
        assert_eq!(
            table.put(b"u", Priority::Low),
            Some(false),
            "the journal has it as high"
        );
        assert!(!table.handle_acked(&key, 1));
        assert_eq!(next(&table), Some(("u".into(), Priority::Low)));
        table.handle_sent(&key, 2);
        assert!(
            !table.handle_acked(&key, 1),
            "an old acknowledgement is not for line 2"
        );
        assert!(table.handle_acked(&key, 2));
        assert!(table.is_empty());
        assert_eq!(table.name_bytes(), 0);
    }

    #[test]
    fn what_a_lost_connection_did_not_acknowledge_waits_again() {
        let mut table = Table::default();
        table.put(b"u", Priority::Sync);
        let key = table.key(b"u").unwrap();
        table.handle_sent(&key, 1);
        table.put(b"u", Priority::Low);
        table.handle_lost(&key);
        assert_eq!(next(&table), Some(("u".into(), Priority::High)));
        assert_eq!(table.pending(), 1);
    }

    #[test]
    fn table_takes_its_maximum_of_users_and_one_more_only_if_known() {
        let mut table = Table::with_limits(2, 100);
        table.put(b"a", Priority::Low);
        table.put(b"b", Priority::Low);
        assert_eq!(table.put(b"c", Priority::Low), None);
        assert_eq!(table.put(b"a", Priority::Low), Some(false));
        let key = table.key(b"a").unwrap();
        table.handle_sent(&key, 1);
        assert!(table.handle_acked(&key, 1));
        assert_eq!(table.put(b"c", Priority::Low), Some(true));
    }

    #[test]
    fn names_are_taken_up_to_their_maximum_of_bytes() {
        let mut table = Table::with_limits(100, 4);
        table.put(b"abc", Priority::Low);
        assert_eq!(table.put(b"de", Priority::Low), None);
        assert_eq!(table.put(b"d", Priority::Low), Some(true));
    }
}
