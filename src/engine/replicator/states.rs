//! dsync's incremental states of a row: that of the last successful sync, and that of the one before.
//!
//! A state says up to where both sides agree in each mailbox. What a client changes on this side while a sync runs may lie below
//! what that sync's state says, and no later sync that begins from it would look there: dsync takes the peer's highest modseq for
//! the common one (`dsync-mailbox-import.c`, `dsync_mailbox_import_deinit()` of 2.3.19.1 and 2.4.1). So a sync begins from the state of the
//! one before the last: the change is notified, the sync that follows begins from what was true before it. It costs a second look
//! at what the last sync brought, and a second full sync for a user who is new.
//!
//! The text in the store: `<before> TAB <last>`, each tab-escaped; either may be empty. Without a TAB it is one state that is both, as
//! stock's `replicator.db` has it.

use crate::engine::strescape::{append_tabescaped, tabunescape};

/// The states of the last two successful syncs; empty: none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncStates {
    before: Vec<u8>,
    last: Vec<u8>,
}

impl SyncStates {
    /// What the store has.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let mut fields = text.split(|&byte| byte == b'\t').map(tabunescape);
        let before = fields.next().unwrap_or_default();
        let last = fields.next().unwrap_or_else(|| before.clone());
        Self { before, last }
    }

    /// What the next sync begins from; empty: nothing, it is a full one.
    #[must_use]
    pub fn base(&self) -> &[u8] {
        &self.before
    }

    /// What the store is to have after a sync that left `state`.
    #[must_use]
    pub fn after(&self, state: &[u8]) -> Vec<u8> {
        if self.last.is_empty() && state.is_empty() {
            return Vec::new();
        }
        let mut text = Vec::with_capacity(self.last.len() + state.len() + 1);
        append_tabescaped(&mut text, &self.last);
        text.push(b'\t');
        append_tabescaped(&mut text, state);
        text
    }
}

/// Whether a sync can begin from what the store has.
pub(super) fn has_base(text: &[u8]) -> bool {
    text.first().is_some_and(|&byte| byte != b'\t')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sync_begins_from_the_state_of_the_one_before_the_last() {
        let mut text = Vec::new();
        let mut bases = Vec::new();
        for state in ["A", "B\t", "C", "", "D", "E"] {
            let states = SyncStates::parse(&text);
            bases.push(String::from_utf8(states.base().to_vec()).unwrap());
            assert_eq!(has_base(&text), !states.base().is_empty());
            text = states.after(state.as_bytes());
        }
        assert_eq!(bases, ["", "", "A", "B\t", "C", ""]);
        assert_eq!(SyncStates::parse(&text).base(), b"D");
        assert_eq!(SyncStates::default().after(b""), b"");
    }

    #[test]
    fn single_state_is_begun_from_at_once() {
        let states = SyncStates::parse(b"stock");
        assert!(has_base(b"stock"));
        assert_eq!(states.base(), b"stock");
        assert_eq!(states.after(b"N"), b"stock\tN");
    }
}
