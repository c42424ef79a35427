//! What may be taken from the fifo, and when.
//!
//! The driver looks without taking (`tee(2)`), and takes only what this type allows. A line is taken
//! when the journal has it or all was handed on. The last line stays in the fifo until all was
//! handed on: a fifo that is not empty makes Dovecot's master start an aggregator should this one
//! be killed, and the journal that it leaves behind is adopted at once.

use super::line::LineSplitter;

/// The head of a fifo: what is merged and not yet taken.
#[derive(Debug, Default)]
pub struct FifoHead {
    /// Finds the lines.
    pub(super) splitter: LineSplitter,
    merged: usize,
    last_line: usize,
}

impl FifoHead {
    /// How many bytes at the head of the fifo were merged already.
    #[must_use]
    pub const fn merged(&self) -> usize {
        self.merged
    }

    /// The next `used` bytes, which `seen` begins with, were merged.
    pub(super) fn handle_merged(&mut self, seen: &[u8], used: usize) {
        let used_bytes = seen.get(..used).unwrap_or(seen);
        if used_bytes.is_empty() {
            return;
        }
        self.merged = self.merged.saturating_add(used_bytes.len());
        let before_lf = match used_bytes.split_last() {
            Some((b'\n', before)) => before,
            // Inside a line that is too long: nothing of it is worth being kept.
            _ => {
                self.last_line = 0;
                return;
            }
        };
        self.last_line = match before_lf.iter().rposition(|&byte| byte == b'\n') {
            Some(at) => before_lf.len().saturating_sub(at),
            None => used_bytes.len(),
        };
    }

    /// How many bytes may be taken now.
    #[must_use]
    pub const fn may_take(&self, journaled: bool, all_handed_on: bool) -> usize {
        if all_handed_on {
            self.merged
        } else if journaled {
            self.merged.saturating_sub(self.last_line)
        } else {
            0
        }
    }

    /// The driver took this many bytes.
    pub const fn handle_taken(&mut self, taken: usize) {
        self.merged = self.merged.saturating_sub(taken);
        if self.merged < self.last_line {
            self.last_line = self.merged;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_line_stays_until_all_was_handed_on() {
        let mut head = FifoHead::default();
        head.handle_merged(b"a\tlow\nbb\tlow\nhalf", 13);
        assert_eq!(head.may_take(false, false), 0);
        assert_eq!(head.may_take(true, false), 6);
        head.handle_taken(6);
        assert_eq!(head.may_take(true, false), 0);
        head.handle_merged(b"\n", 1);
        assert_eq!(head.may_take(true, false), 7);
        assert_eq!(head.may_take(true, true), 8);
        head.handle_taken(8);
        assert_eq!(head.merged(), 0);
    }

    #[test]
    fn line_that_is_too_long_is_not_kept() {
        let mut head = FifoHead::default();
        head.handle_merged(&[b'x'; 5000], 5000);
        assert_eq!(head.may_take(true, false), 5000);
    }

    #[test]
    fn without_a_journal_nothing_is_taken_before_it_is_handed_on() {
        let mut head = FifoHead::default();
        head.handle_merged(b"a\tlow\n", 6);
        assert_eq!(
            (head.may_take(false, false), head.may_take(false, true)),
            (0, 6)
        );
    }
}
