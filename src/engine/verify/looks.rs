//! A user may change while it is compared: a difference is told when two looks, a pause apart, have both found it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::difference::Difference;

/// The most differences of a look that are kept to be compared with the next one. A user with more is told all that the next
/// look finds.
pub const FOUND_MAX: usize = 10_000;
/// The most looks. A user in whom each look finds other differences is told what the last one found.
pub const LOOKS_MAX: usize = 5;

/// Before the second look; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// What a look found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    differences: BTreeSet<Difference>,
    mailboxes: BTreeSet<Vec<u8>>,
    /// There were more than are kept.
    has_more: bool,
}

impl Found {
    /// Adds a difference.
    pub fn add(&mut self, difference: Difference) {
        if !self.mailboxes.contains(&difference.mailbox) {
            self.mailboxes.insert(difference.mailbox.clone());
        }
        if self.differences.len() < FOUND_MAX {
            self.differences.insert(difference);
        } else if !self.differences.contains(&difference) {
            self.has_more = true;
        }
    }
}

/// What to do after a look.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// All is equal.
    Equal,
    /// These are differences; the comparison is over.
    Tell(BTreeSet<Difference>),
    /// All differences were told as they were found; the comparison is over.
    Told,
    /// Wait, and look at these mailboxes again.
    Again {
        /// How long to wait.
        pause: Duration,
        /// Which mailboxes.
        mailboxes: BTreeSet<Vec<u8>>,
    },
}

/// The looks at one user.
#[derive(Debug, Default)]
pub struct Looks {
    looks: usize,
    previous: Option<Found>,
}

impl Looks {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether what the next look finds is to be told as it is found: it is too much to be kept.
    #[must_use]
    pub fn tells_at_once(&self) -> bool {
        self.previous.as_ref().is_some_and(|found| found.has_more)
    }

    /// A look is over.
    pub fn handle_look(&mut self, found: Found) -> Next {
        let told = self.tells_at_once();
        self.looks += 1;
        if found.differences.is_empty() {
            return Next::Equal;
        }
        if told {
            return Next::Told;
        }
        if let Some(previous) = &self.previous {
            let both = &previous.differences & &found.differences;
            if !both.is_empty() {
                return Next::Tell(both);
            }
            if self.looks >= LOOKS_MAX {
                return Next::Tell(found.differences);
            }
        }
        let mailboxes = found.mailboxes.clone();
        let pause = FIRST_PAUSE * (1 << self.looks.saturating_sub(1).min(8));
        self.previous = Some(found);
        Next::Again { pause, mailboxes }
    }
}

#[cfg(test)]
mod tests {
    use super::super::difference::{Value, What};
    use super::*;

    fn found(uids: impl IntoIterator<Item = u32>) -> Found {
        let mut found = Found::default();
        for uid in uids {
            found.add(Difference::of_mail(
                b"A",
                uid,
                What::Size,
                Value::Number(1),
                Value::Number(2),
            ));
        }
        found
    }

    fn pause_of(next: Next) -> u64 {
        match next {
            Next::Again { pause, mailboxes } => {
                assert_eq!(mailboxes, BTreeSet::from([b"A".to_vec()]));
                pause.as_secs()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_two_looks_found_is_told() {
        assert_eq!(Looks::new().handle_look(found([])), Next::Equal);
        let mut looks = Looks::new();
        assert_eq!(pause_of(looks.handle_look(found([1, 2]))), 1);
        assert_eq!(looks.handle_look(found([])), Next::Equal);
        let mut looks = Looks::new();
        assert_eq!(pause_of(looks.handle_look(found([1, 2]))), 1);
        assert_eq!(
            looks.handle_look(found([2, 3])),
            Next::Tell(found([2]).differences)
        );
    }

    #[test]
    fn a_user_that_never_rests_is_told_in_the_end() {
        let mut looks = Looks::new();
        let pauses: Vec<u64> = (1..5)
            .map(|n| pause_of(looks.handle_look(found([n]))))
            .collect();
        assert_eq!(pauses, [1, 2, 4, 8]);
        assert_eq!(
            looks.handle_look(found([9])),
            Next::Tell(found([9]).differences)
        );
    }

    #[test]
    fn at_the_limit_all_is_kept_and_past_it_the_next_look_tells_at_once() {
        let max = u32::try_from(FOUND_MAX).unwrap();
        for (count, at_once) in [(max, false), (max + 1, true)] {
            let mut looks = Looks::new();
            assert!(!looks.tells_at_once());
            pause_of(looks.handle_look(found(1..=count)));
            assert_eq!(looks.tells_at_once(), at_once);
            let next = looks.handle_look(found(1..=count));
            assert_eq!(next == Next::Told, at_once);
        }
    }
}
