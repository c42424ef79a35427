//! What is to be written, and what waits until it is.
//!
//! A row is written as it is when the driver takes the write, so that changes in between cost one write. `upto` numbers
//! are counts of entries: what was promised at a count is safe when all entries up to it are.

use std::collections::{BTreeMap, VecDeque};

use super::action::{Action, ConnectionId};
use super::record::{RecordChange, StateChange};
use super::unknown::UnknownId;
use super::users::RowId;

#[derive(Debug)]
pub(super) enum Entry {
    /// The row as it is then.
    Row(RowId),
    Change(RecordChange),
}

/// What an acknowledgement waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    Upto(u64),
    /// First for this name to be looked up.
    Unknown(UnknownId),
    /// It is not given: the line was not taken.
    Never,
}

/// From this many on, acknowledgements of one connection are merged.
const MAX_UNMERGED_ACKS: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Journal {
    entries: VecDeque<Entry>,
    pushed: u64,
    taken: u64,
    /// The last one given to the driver, and the last that is safe.
    given: u64,
    stored: u64,
    states: BTreeMap<RowId, StateChange>,
    acks: BTreeMap<ConnectionId, VecDeque<(u64, Need)>>,
    answers: VecDeque<(u64, Action)>,
}

impl Journal {
    pub(super) fn push(&mut self, entry: Entry) {
        self.entries.push_back(entry);
        self.pushed += 1;
    }

    pub(super) fn upto(&self) -> u64 {
        self.pushed
    }

    /// The next entry and its number. An entry that turns out to be nothing is not `given`.
    pub(super) fn take(&mut self) -> Option<(u64, Entry)> {
        let entry = self.entries.pop_front()?;
        self.taken += 1;
        Some((self.taken, entry))
    }

    pub(super) fn given(&mut self, seq: u64) {
        self.given = seq;
    }

    pub(super) fn stored(&mut self, seq: u64) {
        self.stored = self.stored.max(seq.min(self.given));
    }

    /// With the row's next write.
    pub(super) fn set_state(&mut self, row: RowId, state: StateChange) {
        self.states.insert(row, state);
    }

    pub(super) fn take_state(&mut self, row: RowId) -> Option<StateChange> {
        self.states.remove(&row)
    }

    pub(super) fn acknowledge(&mut self, connection: ConnectionId, line: u64, need: Need) {
        let acks = self.acks.entry(connection).or_default();
        if let (Need::Upto(upto), Some((last, Need::Upto(last_upto)))) =
            (need, acks.back().copied())
        {
            if upto == last_upto || acks.len() >= MAX_UNMERGED_ACKS {
                acks.pop_back();
                acks.push_back((line.max(last), need));
                return;
            }
        }
        acks.push_back((line, need));
    }

    pub(super) fn answer_when_stored(&mut self, action: Action) {
        self.answers.push_back((self.pushed, action));
    }

    pub(super) fn connection_closed(&mut self, connection: ConnectionId) {
        self.acks.remove(&connection);
    }

    /// What can be said now. `is_open`: the lookup of the name is still to come.
    pub(super) fn settled(&mut self, is_open: impl Fn(UnknownId) -> bool) -> Vec<Action> {
        let safe = match self.stored >= self.given {
            true => self.taken,
            false => self.stored,
        };
        let upto = self.pushed;
        let mut actions = Vec::new();
        for (connection, acks) in &mut self.acks {
            let mut acknowledged = None;
            while let Some((line, need)) = acks.front_mut() {
                match *need {
                    Need::Upto(upto) if upto <= safe => {
                        acknowledged = Some(*line);
                        acks.pop_front();
                    }
                    Need::Unknown(id) if !is_open(id) => {
                        let closed = acks.iter_mut().take_while(
                            |(_, need)| matches!(*need, Need::Unknown(id) if !is_open(id)),
                        );
                        closed.for_each(|(_, need)| *need = Need::Upto(upto));
                    }
                    Need::Upto(_) | Need::Unknown(_) | Need::Never => break,
                }
            }
            if let Some(line) = acknowledged {
                actions.push(Action::Acknowledge {
                    connection: *connection,
                    line,
                });
            }
        }
        while self.answers.front().is_some_and(|(upto, _)| *upto <= safe) {
            actions.extend(self.answers.pop_front().map(|(_, answer)| answer));
        }
        actions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGGREGATOR: ConnectionId = ConnectionId(1);

    fn lines(actions: &[Action]) -> Vec<u64> {
        let lines = actions.iter().filter_map(|action| match action {
            Action::Acknowledge { line, .. } => Some(*line),
            _ => None,
        });
        lines.collect()
    }

    fn write(journal: &mut Journal) -> u64 {
        let (seq, _) = journal.take().expect("an entry");
        journal.given(seq);
        seq
    }

    #[test]
    fn line_is_acknowledged_when_all_before_it_is_stored() {
        let mut journal = Journal::default();
        journal.push(Entry::Change(RecordChange::BootSettled));
        journal.acknowledge(AGGREGATOR, 1, Need::Upto(journal.upto()));
        journal.acknowledge(AGGREGATOR, 2, Need::Unknown(UnknownId(9)));
        journal.push(Entry::Change(RecordChange::BootSettled));
        journal.acknowledge(AGGREGATOR, 3, Need::Upto(journal.upto()));
        assert_eq!(journal.settled(|_| true), []);
        let first = write(&mut journal);
        let second = write(&mut journal);
        assert_eq!(journal.settled(|_| true), []);
        journal.stored(first);
        assert_eq!(lines(&journal.settled(|_| true)), [1]);
        journal.stored(second);
        assert_eq!(journal.settled(|_| true), []);
        assert_eq!(lines(&journal.settled(|_| false)), [3]);
    }

    #[test]
    fn entry_that_came_to_nothing_holds_nothing_up() {
        let mut journal = Journal::default();
        journal.push(Entry::Change(RecordChange::BootSettled));
        journal.acknowledge(AGGREGATOR, 1, Need::Upto(journal.upto()));
        journal.take().expect("an entry");
        assert_eq!(lines(&journal.settled(|_| true)), [1]);
    }

    #[test]
    fn acknowledgements_stay_bounded_and_move_on_under_constant_load() {
        let mut journal = Journal::default();
        let mut acknowledged = 0;
        for line in 1..=10_000 {
            journal.push(Entry::Change(RecordChange::BootSettled));
            journal.acknowledge(AGGREGATOR, line, Need::Upto(journal.upto()));
            assert!(journal.acks[&AGGREGATOR].len() <= MAX_UNMERGED_ACKS);
            let seq = write(&mut journal);
            if line % 5_000 == 0 {
                journal.stored(seq - 2_500);
                acknowledged = *lines(&journal.settled(|_| true)).last().expect("some");
            }
        }
        assert!(acknowledged >= 1_000);
    }
}
