//! Names that were notified and that no userdb lookup has confirmed yet.
//!
//! Bounded; nothing in it is acknowledged, so that what is lost with it comes again.

use std::collections::{BTreeMap, BTreeSet};

use super::action::{CommandDone, CommandId, LookupId};
use super::config::MAX_UNKNOWN;
use crate::engine::Priority;
use crate::engine::time::Mono;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct UnknownId(pub(super) u64);

#[derive(Debug)]
pub(super) struct Unknown {
    pub(super) name: Box<[u8]>,
    /// None: nobody told of a change.
    pub(super) priority: Priority,
    pub(super) force_full: bool,
    pub(super) commands: Vec<(CommandId, CommandDone)>,
    /// Lookups in a row that userdb could not answer.
    pub(super) failures: u32,
    pub(super) notifications: u64,
    /// When the lookup is due; None: it is under way.
    due: Option<Mono>,
}

#[derive(Debug, Default)]
pub(super) struct UnknownUsers {
    by_id: BTreeMap<UnknownId, Unknown>,
    by_name: BTreeMap<Box<[u8]>, UnknownId>,
    due: BTreeSet<(Mono, UnknownId)>,
    looking_up: BTreeMap<LookupId, UnknownId>,
    last: u64,
}

impl UnknownUsers {
    pub(super) fn is_full(&self) -> bool {
        self.by_id.len() >= MAX_UNKNOWN
    }

    /// The entry of the name, made if there is none. None: the table is full.
    pub(super) fn entry(&mut self, name: &[u8], now: Mono) -> Option<(UnknownId, &mut Unknown)> {
        let id = match self.by_name.get(name) {
            Some(id) => *id,
            None if self.is_full() => return None,
            None => {
                self.last += 1;
                let id = UnknownId(self.last);
                self.by_name.insert(name.into(), id);
                self.due.insert((now, id));
                let unknown = Unknown {
                    name: name.into(),
                    priority: Priority::None,
                    force_full: false,
                    commands: Vec::new(),
                    failures: 0,
                    notifications: 0,
                    due: Some(now),
                };
                self.by_id.insert(id, unknown);
                id
            }
        };
        Some((id, self.by_id.get_mut(&id)?))
    }

    pub(super) fn contains(&self, id: UnknownId) -> bool {
        self.by_id.contains_key(&id)
    }

    pub(super) fn lookups(&self) -> usize {
        self.looking_up.len()
    }

    pub(super) fn next_due(&self) -> Option<Mono> {
        self.due.first().map(|(at, _)| *at)
    }

    /// Begins the lookup that is due; returns the name.
    pub(super) fn begin_lookup(&mut self, now: Mono, lookup: LookupId) -> Option<Vec<u8>> {
        let (at, id) = *self.due.first()?;
        if at > now {
            return None;
        }
        self.due.pop_first();
        let unknown = self.by_id.get_mut(&id)?;
        unknown.due = None;
        self.looking_up.insert(lookup, id);
        Some(unknown.name.to_vec())
    }

    /// Whose lookup this was; None: not one of these.
    pub(super) fn end_lookup(&mut self, lookup: LookupId) -> Option<UnknownId> {
        self.looking_up.remove(&lookup)
    }

    pub(super) fn get_mut(&mut self, id: UnknownId) -> Option<&mut Unknown> {
        self.by_id.get_mut(&id)
    }

    pub(super) fn retry_at(&mut self, id: UnknownId, at: Mono) {
        if let Some(unknown) = self.by_id.get_mut(&id) {
            if let Some(due) = unknown.due.replace(at) {
                self.due.remove(&(due, id));
            }
            self.due.insert((at, id));
        }
    }

    pub(super) fn remove(&mut self, id: UnknownId) -> Option<Unknown> {
        let unknown = self.by_id.remove(&id)?;
        self.by_name.remove(&unknown.name);
        if let Some(due) = unknown.due {
            self.due.remove(&(due, id));
        }
        Some(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_table_still_merges_and_takes_no_other_name() {
        let mut unknown = UnknownUsers::default();
        for n in 0..MAX_UNKNOWN {
            assert!(!unknown.is_full());
            assert!(unknown.entry(format!("u{n}").as_bytes(), Mono(1)).is_some());
        }
        assert!(unknown.is_full());
        assert!(unknown.entry(b"u0", Mono(1)).is_some());
        assert!(unknown.entry(b"more", Mono(1)).is_none());
        let lookup = LookupId(1);
        assert_eq!(unknown.begin_lookup(Mono(0), lookup), None);
        assert_eq!(unknown.begin_lookup(Mono(1), lookup), Some(b"u0".to_vec()));
        let id = unknown.end_lookup(lookup).expect("under way");
        unknown.remove(id);
        assert!(unknown.entry(b"more", Mono(1)).is_some());
    }
}
