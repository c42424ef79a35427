//! The table of users and their rows, one row per replica.
//!
//! Small on purpose: an idle user costs its `User`, its name and a slot of the index, and no allocation of its own. Rows
//! beyond the first, and all that only busy rows need, are in side tables. Order is the order of the slots, never that of a hash.

use std::collections::BTreeMap;

use super::config::{MAX_REPLICAS, MAX_USERNAME_BYTES, MAX_USERS};
use super::names::{NameRef, Names};
use super::peers::PeerId;
use super::record::Stale;
use super::status::Bucket;
use crate::engine::Priority;
use crate::engine::time::UnixSecs;

/// A slot of the table; used again after its user is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct UserId(pub(super) u32);

/// One replica of a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RowId {
    pub(super) user: UserId,
    pub(super) replica: u8,
}

/// Whether a sync was cut off, so that a full one could take a mail that is half over for one that was expunged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Cut {
    #[default]
    No,
    /// Since the start no sync has left a state: there may have been one of which nobody told.
    Unknown,
    Known,
    /// And dsync did not go on from the mailboxes as they were put into the state, with their first modseq.
    RefusedOnce,
    /// Nor, again and again, with their last; or the peer has synced the user.
    Refused,
}

/// What is kept of each (user, replica).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) last_update: UnixSecs,
    pub(super) last_fast_sync: UnixSecs,
    pub(super) last_full_sync: UnixSecs,
    pub(super) last_success: UnixSecs,
    /// None: the user's replicas are not looked up yet.
    pub(super) peer: Option<PeerId>,
    /// Of the changes that no sync was started for since.
    pub(super) priority: Priority,
    /// The last sync failed: what it was for is still pending.
    pub(super) failed: bool,
    pub(super) force_full: bool,
    pub(super) has_state: bool,
    pub(super) stale: Stale,
    /// What the last full sync took. No more than twice what the one before took, and a second: it may have waited for a lock.
    pub(super) full_sync_secs: u8,
    /// To be synced once because the machine went down uncleanly.
    pub(super) resync: bool,
    /// Since the last sync that left a state.
    pub(super) cut: Cut,
    /// Waits in the journal to be written.
    pub(super) dirty: bool,
}

impl Row {
    pub(super) fn is_pending(&self) -> bool {
        self.priority != Priority::None || self.failed || self.force_full
    }
}

/// What is kept of each user.
#[derive(Clone, Debug)]
pub(super) struct User {
    name: NameRef,
    /// When userdb was asked last, in seconds of the monotonic clock plus one; 0: not since the start.
    pub(super) checked_secs: u32,
    row: Row,
    /// The generation of the last listing that had the user; 0: none.
    pub(super) listed: u8,
    /// userdb has `noreplicate`, or no replica.
    pub(super) left_out: bool,
    /// Where the counters have the user.
    pub(super) bucket: Bucket,
    has_more_rows: bool,
}

#[derive(Debug, Default)]
pub(super) struct Users {
    names: Names,
    blocks: Vec<Vec<Option<User>>>,
    free: Vec<UserId>,
    index: Index,
    more_rows: BTreeMap<UserId, Vec<Row>>,
}

const BLOCK_USERS: usize = 4096;

impl Users {
    pub(super) fn len(&self) -> usize {
        self.index.len
    }

    /// One more than the highest slot ever used.
    pub(super) fn slots(&self) -> u32 {
        let full = self.blocks.len().saturating_sub(1) * BLOCK_USERS;
        let last = self.blocks.last().map_or(0, Vec::len);
        u32::try_from(full + last).unwrap_or(u32::MAX)
    }

    pub(super) fn find(&self, name: &[u8]) -> Option<UserId> {
        self.index.find(hash(name), |id| self.name(id) == name)
    }

    /// How many of these there seem to be. Of a million users each `find` waits for the memory three times; here one wait
    /// is for all of them, step by step, and what `find` will look at is then in the processor's caches.
    pub(super) fn look_ahead<'a>(&self, names: impl Iterator<Item = &'a [u8]>) -> usize {
        let hashes: Vec<u64> = names.map(hash).collect();
        let filled = hashes.iter().filter(|hash| self.index.is_filled(**hash));
        std::hint::black_box(filled.count());
        let ids: Vec<UserId> = hashes
            .iter()
            .filter_map(|hash| self.index.find(*hash, |_| true))
            .collect();
        let users: Vec<&User> = ids.iter().filter_map(|id| self.get(*id)).collect();
        let named = users
            .iter()
            .filter(|user| !self.names.get(user.name).is_empty());
        named.count()
    }

    /// A user with one row without a replica. None: the table is full, or the name too long or empty.
    pub(super) fn insert(&mut self, name: &[u8]) -> Option<UserId> {
        if name.is_empty() || name.len() > MAX_USERNAME_BYTES || self.len() >= MAX_USERS {
            return None;
        }
        if let Some(id) = self.find(name) {
            return Some(id);
        }
        let user = User {
            name: self.names.insert(name)?,
            checked_secs: 0,
            row: Row::default(),
            listed: 0,
            left_out: false,
            bucket: Bucket::Uncounted,
            has_more_rows: false,
        };
        let id = match self.free.pop() {
            Some(id) => {
                *self.slot_mut(id)? = Some(user);
                id
            }
            None => {
                let id = UserId(self.slots());
                match self.blocks.last_mut() {
                    Some(block) if block.len() < BLOCK_USERS => block.push(Some(user)),
                    _ => {
                        let mut block = Vec::with_capacity(BLOCK_USERS);
                        block.push(Some(user));
                        self.blocks.push(block);
                    }
                }
                id
            }
        };
        let Self {
            names,
            blocks,
            index,
            ..
        } = self;
        index.insert(hash(name), id, |id| hash(name_of(names, blocks, id)));
        Some(id)
    }

    pub(super) fn remove(&mut self, id: UserId) {
        let Some(user) = self.get(id) else {
            return;
        };
        let name = user.name;
        let Self {
            names,
            blocks,
            index,
            ..
        } = self;
        index.remove(hash(names.get(name)), id, |id| {
            hash(name_of(names, blocks, id))
        });
        self.names.remove(name);
        self.more_rows.remove(&id);
        if let Some(slot) = self.slot_mut(id) {
            *slot = None;
        }
        self.free.push(id);
    }

    pub(super) fn get(&self, id: UserId) -> Option<&User> {
        user_of(&self.blocks, id)
    }

    pub(super) fn get_mut(&mut self, id: UserId) -> Option<&mut User> {
        self.slot_mut(id)?.as_mut()
    }

    /// Empty if there is no such user.
    pub(super) fn name(&self, id: UserId) -> &[u8] {
        name_of(&self.names, &self.blocks, id)
    }

    pub(super) fn row(&self, id: RowId) -> Option<&Row> {
        let user = self.get(id.user)?;
        match id.replica.checked_sub(1) {
            None => Some(&user.row),
            Some(more) => self.more_rows.get(&id.user)?.get(usize::from(more)),
        }
    }

    pub(super) fn row_mut(&mut self, id: RowId) -> Option<&mut Row> {
        match id.replica.checked_sub(1) {
            None => Some(&mut self.get_mut(id.user)?.row),
            Some(more) => self.more_rows.get_mut(&id.user)?.get_mut(usize::from(more)),
        }
    }

    /// How many rows the user has; 0: no such user.
    pub(super) fn replicas(&self, id: UserId) -> u8 {
        let Some(user) = self.get(id) else { return 0 };
        let more = match user.has_more_rows {
            true => self.more_rows.get(&id).map_or(0, Vec::len),
            false => 0,
        };
        u8::try_from(1 + more).unwrap_or(u8::MAX)
    }

    pub(super) fn row_ids(&self, user: UserId) -> impl Iterator<Item = RowId> + use<> {
        (0..self.replicas(user)).map(move |replica| RowId { user, replica })
    }

    pub(super) fn rows(&self, user: UserId) -> impl Iterator<Item = &Row> {
        self.row_ids(user).filter_map(|id| self.row(id))
    }

    /// Replaces the rows, of which there is one at least, and `MAX_REPLICAS` and one without a replica at most.
    pub(super) fn set_rows(&mut self, id: UserId, rows: Vec<Row>) {
        debug_assert!(!rows.is_empty() && rows.len() <= MAX_REPLICAS + 1);
        let mut rows = rows.into_iter();
        let first = rows.next().unwrap_or_default();
        let more: Vec<Row> = rows.collect();
        let Some(user) = self.get_mut(id) else { return };
        user.row = first;
        user.has_more_rows = !more.is_empty();
        if more.is_empty() {
            self.more_rows.remove(&id);
        } else {
            self.more_rows.insert(id, more);
        }
    }

    fn slot_mut(&mut self, id: UserId) -> Option<&mut Option<User>> {
        let slot = id.0 as usize;
        self.blocks
            .get_mut(slot / BLOCK_USERS)?
            .get_mut(slot % BLOCK_USERS)
    }
}

fn user_of(blocks: &[Vec<Option<User>>], id: UserId) -> Option<&User> {
    let slot = id.0 as usize;
    blocks
        .get(slot / BLOCK_USERS)?
        .get(slot % BLOCK_USERS)?
        .as_ref()
}

fn name_of<'a>(names: &'a Names, blocks: &[Vec<Option<User>>], id: UserId) -> &'a [u8] {
    user_of(blocks, id).map_or(&[], |user| names.get(user.name))
}

/// The same for a name on every machine and in every run. FNV-1a, and a mix so that all bits count.
pub(super) fn hash(name: &[u8]) -> u64 {
    let fnv = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (fnv ^ (fnv >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed ^ (mixed >> 32)
}

/// From names to slots: open addressing, linear probing, three quarters full at most.
///
/// An entry is the slot and, in the highest byte, a part of the name's hash, so that a look at another user's name is rare.
#[derive(Debug, Default)]
struct Index {
    entries: Vec<u32>,
    len: usize,
}

const SLOT_BITS: u32 = 24;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;
/// No entry: its slot is beyond `MAX_USERS`.
const EMPTY: u32 = u32::MAX;
const _: () = assert!(MAX_USERS < SLOT_MASK as usize);

fn entry(hash: u64, id: UserId) -> u32 {
    ((hash >> 56) as u32) << SLOT_BITS | id.0
}

fn slot(entry: u32) -> UserId {
    UserId(entry & SLOT_MASK)
}

impl Index {
    fn find(&self, hash: u64, is_it: impl Fn(UserId) -> bool) -> Option<UserId> {
        let mut at = self.home(hash)?;
        loop {
            let found = self.entries.get(at).copied().filter(|e| *e != EMPTY)?;
            let id = slot(found);
            if found == entry(hash, id) && is_it(id) {
                return Some(id);
            }
            at = self.next(at);
        }
    }

    /// Whether a user's entry is where that of this hash would be, if it was not pushed on.
    fn is_filled(&self, hash: u64) -> bool {
        let entry = self.home(hash).and_then(|at| self.entries.get(at));
        entry.is_some_and(|entry| *entry != EMPTY)
    }

    fn insert(&mut self, hash: u64, id: UserId, hash_of: impl Fn(UserId) -> u64) {
        if (self.len + 1) * 4 > self.entries.len() * 3 {
            let size = (self.entries.len() * 2).max(64);
            let old = std::mem::replace(&mut self.entries, vec![EMPTY; size]);
            for id in old.into_iter().filter(|e| *e != EMPTY).map(slot) {
                self.put(hash_of(id), id);
            }
        }
        self.put(hash, id);
        self.len += 1;
    }

    fn put(&mut self, hash: u64, id: UserId) {
        let Some(mut at) = self.home(hash) else {
            return;
        };
        while self.entries.get(at).is_some_and(|e| *e != EMPTY) {
            at = self.next(at);
        }
        self.set(at, entry(hash, id));
    }

    /// Closes the gap by moving back what was pushed past it.
    fn remove(&mut self, hash: u64, id: UserId, hash_of: impl Fn(UserId) -> u64) {
        let Some(mut gap) = self.home(hash) else {
            return;
        };
        let wanted = entry(hash, id);
        while let Some(found) = self.entries.get(gap).filter(|e| **e != wanted) {
            if *found == EMPTY {
                return;
            }
            gap = self.next(gap);
        }
        self.len -= 1;
        let mut at = self.next(gap);
        while let Some(&moved) = self.entries.get(at).filter(|e| **e != EMPTY) {
            let home = self.home(hash_of(slot(moved))).unwrap_or(at);
            if self.distance(home, at) >= self.distance(gap, at) {
                self.set(gap, moved);
                gap = at;
            }
            at = self.next(at);
        }
        self.set(gap, EMPTY);
    }

    fn set(&mut self, at: usize, entry: u32) {
        if let Some(place) = self.entries.get_mut(at) {
            *place = entry;
        }
    }

    fn home(&self, hash: u64) -> Option<usize> {
        let mask = u64::try_from(self.entries.len()).ok()?.checked_sub(1)?;
        usize::try_from(hash & mask).ok()
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.entries.len() - 1)
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.entries.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_agrees_with_a_map_under_random_inserts_and_removes() {
        let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().expect("a number"));
        println!("SEED={seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut users = Users::default();
        let mut model: BTreeMap<Vec<u8>, UserId> = BTreeMap::new();
        for _ in 0..20_000 {
            let name = format!("u{}@example.com", rng.u32(..500)).into_bytes();
            if rng.bool() {
                let id = users.insert(&name).expect("room");
                assert_eq!(*model.entry(name).or_insert(id), id);
            } else if let Some(id) = model.remove(&name) {
                users.remove(id);
            }
            assert_eq!(users.len(), model.len());
        }
        for n in 0..500 {
            let name = format!("u{n}@example.com").into_bytes();
            assert_eq!(users.find(&name), model.get(&name).copied());
        }
        assert!(users.slots() <= 500);
    }

    #[test]
    fn names_that_are_looked_up_ahead_are_those_that_are_found() {
        let mut users = Users::default();
        let names: Vec<String> = (0..5000).map(|n| format!("u{n}")).collect();
        for name in &names {
            users.insert(name.as_bytes());
        }
        let known = || names.iter().map(String::as_bytes);
        assert_eq!(users.look_ahead(known()), 5000);
        assert!(users.look_ahead([&b"nobody"[..]].into_iter()) <= 1);
        assert_eq!(Users::default().look_ahead(known()), 0);
    }

    #[test]
    fn longest_username_is_taken_and_a_longer_or_empty_one_is_not() {
        let mut users = Users::default();
        assert!(users.insert(&[b'u'; MAX_USERNAME_BYTES]).is_some());
        assert!(users.insert(&[b'u'; MAX_USERNAME_BYTES + 1]).is_none());
        assert!(users.insert(b"").is_none());
        assert_eq!(users.len(), 1);
    }

    #[test]
    fn rows_beyond_the_first_come_and_go() {
        let mut users = Users::default();
        let id = users.insert(b"u1").expect("room");
        assert_eq!(users.replicas(id), 1);
        users.set_rows(id, vec![Row::default(); 3]);
        let third = RowId {
            user: id,
            replica: 2,
        };
        users.row_mut(third).expect("third").force_full = true;
        assert_eq!(users.rows(id).filter(|row| row.force_full).count(), 1);
        users.set_rows(id, vec![Row::default()]);
        assert_eq!(users.row(third), None);
        users.remove(id);
        assert_eq!(users.replicas(id), 0);
    }
}
