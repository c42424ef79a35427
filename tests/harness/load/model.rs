//! What must, may and must not be there after the load.
//!
//! A mail has an id of its own in its subject. Each APPEND, delivery, COPY or MOVE that was answered OK
//! makes an instance of it in a place, each EXPUNGE or MOVE takes one away. What replication owes:
//!
//! - One instance made and none taken away, in a place that is never deleted: it is there, once.
//! - One made, one or more taken away (both nodes may take the same one): it is not there.
//! - More made, such as by a MOVE on both nodes at once: at least one unless some were taken away,
//!   and no more than were made, less one if any was taken away.
//! - In mailboxes that are deleted the least is none.
//!
//! A command that was not answered may have been done: it widens what is right.

use super::names::{Group, group_of};
use std::collections::BTreeMap;

/// Where instances are counted: a mailbox that keeps its name, or all those that change theirs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A mailbox, by name.
    Mailbox(String),
    /// All of a group.
    Group(Group),
    /// A mailbox that dsync gave a name of its own, such as `x-temp-2`: one of a group that changes names.
    Strayed,
}

impl Place {
    /// Where a mail in the mailbox `name` is counted.
    #[must_use]
    pub fn of(name: &str) -> Place {
        match group_of(name) {
            Some(Group::Kept) => Place::Mailbox(name.to_owned()),
            Some(group) => Place::Group(group),
            None => Place::Strayed,
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was answered OK and did it.
    Surely,
    /// There was no answer, or one that does not say.
    Perhaps,
}

#[derive(Clone, Debug, Default)]
struct Count {
    made: u32,
    perhaps_made: u32,
    taken: u32,
    perhaps_taken: u32,
}

impl Count {
    fn least(&self, place: &Place) -> u32 {
        let certain = self.taken + self.perhaps_taken == 0 && self.made > 0;
        u32::from(certain && *place != Place::Group(Group::Deleted))
    }

    fn most(&self) -> u32 {
        let made = self.made + self.perhaps_made;
        made.saturating_sub(u32::from(self.taken > 0))
    }
}

/// Of one user: each id, and in which places it has been.
#[derive(Clone, Debug, Default)]
pub struct Model {
    mails: BTreeMap<String, BTreeMap<Place, Count>>,
}

/// How often each id is in each place.
pub type Census = BTreeMap<(String, Place), u32>;

/// So many mails of a kind are named.
const SHOWN: usize = 4;

/// What is wrong with a census.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Mail that must be there and is not.
    pub lost: Vec<String>,
    /// Mail that is there more often than it was made.
    pub doubled: Vec<String>,
    /// The same among mailboxes that clients of both nodes renamed at once, under names that dsync gave them too.
    pub doubled_by_renames: Vec<String>,
    /// Mail that was taken away and is there.
    pub back: Vec<String>,
}

impl Verdict {
    /// Whether all is as it must be.
    #[must_use]
    pub fn is_right(&self) -> bool {
        self.lost.is_empty() && self.doubled.is_empty() && self.back.is_empty()
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = [
            ("lost", &self.lost),
            ("doubled", &self.doubled),
            ("expunged, and back", &self.back),
        ];
        for (what, mails) in all {
            if !mails.is_empty() {
                let shown: Vec<_> = mails.iter().take(SHOWN).map(String::as_str).collect();
                writeln!(f, "{what}: {}: {}", mails.len(), shown.join("; "))?;
            }
        }
        Ok(())
    }
}

impl Model {
    /// An instance of `id` came into the mailbox.
    pub fn made(&mut self, id: &str, mailbox: &str, done: Done) {
        let count = self.count(id, mailbox);
        match done {
            Done::Surely => count.made += 1,
            Done::Perhaps => count.perhaps_made += 1,
        }
    }

    /// An instance of `id` was taken out of the mailbox.
    pub fn taken(&mut self, id: &str, mailbox: &str, done: Done) {
        let count = self.count(id, mailbox);
        match done {
            Done::Surely => count.taken += 1,
            Done::Perhaps => count.perhaps_taken += 1,
        }
    }

    /// Whether `id` was ever in the mailbox's place.
    #[must_use]
    pub fn knows(&self, id: &str, mailbox: &str) -> bool {
        let places = self.mails.get(id);
        places.is_some_and(|places| places.contains_key(&Place::of(mailbox)))
    }

    /// How many ids there have been.
    #[must_use]
    pub fn mails(&self) -> usize {
        self.mails.len()
    }

    fn count(&mut self, id: &str, mailbox: &str) -> &mut Count {
        let places = self.mails.entry(id.to_owned()).or_default();
        places.entry(Place::of(mailbox)).or_default()
    }

    /// What is wrong with what was found.
    #[must_use]
    pub fn judge(&self, census: &Census) -> Verdict {
        let mut verdict = Verdict::default();
        let found_in = |id: &str, place: &Place| {
            let found = census.get(&(id.to_owned(), place.clone()));
            found.copied().unwrap_or(0)
        };
        for (id, places) in &self.mails {
            let mut strayed = found_in(id, &Place::Strayed);
            for (place, count) in places {
                let mut found = found_in(id, place);
                if let Place::Group(_) = place {
                    // What has strayed counts where it is missed.
                    let missed = count.least(place).saturating_sub(found).min(strayed);
                    strayed -= missed;
                    found += missed;
                }
                let text = || format!("{id} in {place:?}: {found} of {count:?}");
                if found < count.least(place) {
                    verdict.lost.push(text());
                } else if found > count.most()
                    && count.taken > 0
                    && found <= count.made + count.perhaps_made
                {
                    verdict.back.push(text());
                } else if found > count.most() && is_renamed(place) {
                    verdict.doubled_by_renames.push(text());
                } else if found > count.most() {
                    verdict.doubled.push(text());
                }
            }
            let most: u32 = places
                .iter()
                .filter(|(place, _)| matches!(place, Place::Group(_)))
                .map(|(place, count)| count.most().saturating_sub(found_in(id, place)))
                .sum();
            if strayed > most {
                let text = format!("{id}: {strayed} strayed");
                let is_of_group = |place: &Place| matches!(place, Place::Group(_));
                match places.keys().any(is_of_group) {
                    true => verdict.doubled_by_renames.push(text),
                    false => verdict.doubled.push(text),
                }
            }
        }
        for ((id, place), found) in census {
            let knows = |places: &BTreeMap<Place, Count>| places.contains_key(place);
            if *place != Place::Strayed && !self.mails.get(id).is_some_and(knows) {
                let text = format!("{id} in {place:?}: {found}, never put there");
                verdict.doubled.push(text);
            }
        }
        verdict
    }
}

/// Clients of both nodes rename such mailboxes at once.
fn is_renamed(place: &Place) -> bool {
    matches!(place, Place::Group(Group::Renamed | Group::Deleted))
}
