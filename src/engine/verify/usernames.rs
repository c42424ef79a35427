//! A listing of any length, worked through in order of the names and in bounded memory: each time it is heard anew, the next names stay.

use std::collections::BTreeSet;

/// The most names that are kept at once.
pub const USERNAMES_MAX: usize = 10_000;

/// The next names of a listing that comes in any order.
#[derive(Debug)]
pub struct Usernames {
    /// Names up to this one are done.
    done: Option<Vec<u8>>,
    names: BTreeSet<Vec<u8>>,
    max: usize,
    /// The listing had more names than are kept.
    has_more: bool,
}

impl Default for Usernames {
    fn default() -> Self {
        Self::with_max(USERNAMES_MAX)
    }
}

impl Usernames {
    const fn with_max(max: usize) -> Self {
        Self {
            done: None,
            names: BTreeSet::new(),
            max,
            has_more: true,
        }
    }

    /// Whether the listing is to be heard: nothing of what was kept is left, and there may be more.
    #[must_use]
    pub fn wants_listing(&self) -> bool {
        self.names.is_empty() && self.has_more
    }

    /// The listing begins.
    pub fn begin(&mut self) {
        self.has_more = false;
    }

    /// A name of the listing.
    pub fn add(&mut self, name: Vec<u8>) {
        if self.done.as_ref().is_some_and(|done| name <= *done) {
            return;
        }
        if self.names.len() == self.max {
            self.has_more = true;
            if self.names.last().is_some_and(|last| name >= *last) {
                return;
            }
            self.names.pop_last();
        }
        self.names.insert(name);
    }

    /// The next name.
    pub fn next_name(&mut self) -> Option<Vec<u8>> {
        let name = self.names.pop_first()?;
        self.done = Some(name.clone());
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(count: u32, max: usize) -> (Vec<u32>, u32) {
        let mut names = Usernames::with_max(max);
        let (mut seen, mut listings) = (Vec::new(), 0);
        while names.wants_listing() {
            names.begin();
            listings += 1;
            // In an order that is not theirs.
            for n in 0..count {
                names.add(format!("u{:05}", (n * 7919) % count).into_bytes());
                assert!(names.names.len() <= max);
            }
            while let Some(name) = names.next_name() {
                seen.push(String::from_utf8(name).unwrap()[1..].parse().unwrap());
            }
        }
        (seen, listings)
    }

    #[test]
    fn every_name_comes_once_in_order_and_few_are_kept() {
        for (count, listings) in [(0, 1), (1, 1), (10, 1), (11, 2), (100, 10), (101, 11)] {
            let (seen, heard) = all(count, 10);
            assert_eq!(seen, (0..count).collect::<Vec<_>>());
            assert_eq!(heard, listings, "{count}");
        }
    }
}
