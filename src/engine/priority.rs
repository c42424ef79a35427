//! The priority of a notification, in Dovecot's words and order.
//!
//! Source: Dovecot 2.3, `replication-common.h`.

use std::fmt;

/// How urgently a user is to be synced. The order is Dovecot's: a higher priority wins a merge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Priority {
    /// Nothing is waiting.
    #[default]
    None = 0,
    /// Any change but new mail.
    Low = 1,
    /// New mail.
    High = 2,
    /// New mail whose delivery waits for the sync.
    Sync = 3,
}

impl Priority {
    /// All priorities, lowest first.
    pub const ALL: [Priority; 4] = [Self::None, Self::Low, Self::High, Self::Sync];

    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Low => "low",
            Self::High => "high",
            Self::Sync => "sync",
        }
    }

    /// The priority that the word names; `None` if it names none.
    #[must_use]
    pub fn parse(word: &[u8]) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|p| p.as_str().as_bytes() == word)
    }

    /// The priority of a number as `replicator.db` has it (0 to 3).
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|p| *p as u8 == number)
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_numbers_name_the_priority_that_prints_them() {
        for priority in Priority::ALL {
            assert_eq!(
                Priority::parse(priority.as_str().as_bytes()),
                Some(priority)
            );
            assert_eq!(Priority::from_number(priority as u8), Some(priority));
        }
        for bad in [&b""[..], b"LOW", b"low ", b"urgent", b"\xff"] {
            assert_eq!(Priority::parse(bad), None);
        }
        assert_eq!(Priority::from_number(4), None);
    }
}
