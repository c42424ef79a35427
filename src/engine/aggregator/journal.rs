//! What an aggregator holds, as it is kept on disk.
//!
//! One text file per process: a header line with name and version, then one line per record:
//! ```text
//! dovecot-replication-aggregator 1
//! <crc> \t + \t <username> \t <low|high>      the user waits to be handed on
//! <crc> \t - \t <username>                    the user was handed on
//! ```
//! `<crc>` is CRC-32 (IEEE) of what follows its tab up to the LF, as 8 hex digits; usernames are
//! tab-escaped. Records hold in their order; `+` of a user that waits keeps the higher priority. A
//! line that is torn or damaged is counted and left out: the writer of a torn line was killed before
//! it took the notification from the fifo, so that it is still there. Outlives SIGKILL; not synced
//! to disk, because after an unclean boot the replicator syncs every user anyway.

use crate::engine::Priority;
use crate::engine::aggregator::line::MAX_USERNAME;
use crate::engine::strescape::{append_tabescaped, split_tabescaped};

/// The first line of a journal.
pub const HEADER: &[u8] = b"dovecot-replication-aggregator 1\n";
/// Longest record, in bytes with its LF: 8 for the checksum, 12 for the rest, each byte of a name escaped.
pub const MAX_RECORD: usize = 20 + 2 * MAX_USERNAME;

/// One line of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The user waits, with this priority (low or high).
    Put(Vec<u8>, Priority),
    /// The user was handed on.
    Done(Vec<u8>),
}

/// Appends a record: what `body` appends, behind its checksum.
fn append_record(journal: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    let start = journal.len();
    journal.extend_from_slice(b"        \t");
    let body_start = journal.len();
    body(journal);
    let crc = crc32fast::hash(journal.get(body_start..).unwrap_or_default());
    if let Some(field) = journal.get_mut(start..start.saturating_add(8)) {
        field.copy_from_slice(format!("{crc:08x}").as_bytes());
    }
    journal.push(b'\n');
}

/// Appends the record that `username` waits. A sync is kept as high: its waiter does not outlive us.
pub fn append_put(journal: &mut Vec<u8>, username: &[u8], priority: Priority) {
    append_record(journal, |body| {
        body.extend_from_slice(b"+\t");
        append_tabescaped(body, username);
        body.push(b'\t');
        body.extend_from_slice(priority.min(Priority::High).as_str().as_bytes());
    });
}

/// Appends the record that `username` was handed on.
pub fn append_done(journal: &mut Vec<u8>, username: &[u8]) {
    append_record(journal, |body| {
        body.extend_from_slice(b"-\t");
        append_tabescaped(body, username);
    });
}

fn parse_record(line: &[u8]) -> Option<Record> {
    let (crc, body) = (line.get(..8)?, line.get(9..)?);
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?, 16).ok()?;
    if line.get(8) != Some(&b'\t') || crc != crc32fast::hash(body) {
        return None;
    }
    let mut fields = split_tabescaped(body);
    match (fields.next()?.as_slice(), fields.next()?, fields.next()) {
        (b"+", username, Some(word)) => match Priority::parse(&word)? {
            priority @ (Priority::Low | Priority::High) => Some(Record::Put(username, priority)),
            Priority::None | Priority::Sync => None,
        },
        (b"-", username, None) => Some(Record::Done(username)),
        _ => None,
    }
}

/// The records of a journal in their order; `None` for each line that could not be read. The
/// header of another version, or a damaged one, is such a line.
pub fn records(journal: &[u8]) -> impl Iterator<Item = Option<Record>> {
    let body = journal.strip_prefix(HEADER).unwrap_or(journal);
    body.split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(parse_record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_journal(journal: &[u8]) -> (Vec<Record>, usize) {
        let damaged = records(journal).filter(Option::is_none).count();
        (records(journal).flatten().collect(), damaged)
    }

    #[test]
    fn records_come_back_as_they_were_written() {
        let mut journal = HEADER.to_vec();
        append_put(&mut journal, b"a\tb\n", Priority::Low);
        append_put(&mut journal, b"u", Priority::Sync);
        append_done(&mut journal, b"u");
        let (records, damaged) = parse_journal(&journal);
        assert_eq!(damaged, 0);
        assert_eq!(
            records,
            [
                Record::Put(b"a\tb\n".to_vec(), Priority::Low),
                Record::Put(b"u".to_vec(), Priority::High),
                Record::Done(b"u".to_vec()),
            ]
        );
    }

    #[test]
    fn version_1_reads_as_it_was_first_written() {
        let journal = b"dovecot-replication-aggregator 1\n55c56147\t+\tu1\thigh\n";
        let mut fresh = HEADER.to_vec();
        append_put(&mut fresh, b"u1", Priority::High);
        assert_eq!(
            String::from_utf8_lossy(&fresh),
            String::from_utf8_lossy(journal)
        );
    }

    #[test]
    fn torn_tail_and_damaged_line_are_left_out_and_counted() {
        let mut journal = HEADER.to_vec();
        append_put(&mut journal, b"first", Priority::Low);
        let second_at = journal.len();
        append_put(&mut journal, b"second", Priority::High);
        for torn in second_at..journal.len() - 1 {
            let (records, damaged) = parse_journal(&journal[..torn]);
            assert_eq!(records, [Record::Put(b"first".to_vec(), Priority::Low)]);
            assert_eq!(damaged, usize::from(torn > second_at));
        }
        journal[second_at - 3] ^= 1;
        let (records, damaged) = parse_journal(&journal);
        assert_eq!(records, [Record::Put(b"second".to_vec(), Priority::High)]);
        assert_eq!(damaged, 1);
        assert_eq!(parse_journal(b"\0\0\0\0").1, 1);
    }

    #[test]
    fn longest_name_makes_no_longer_record_than_the_maximum() {
        let mut journal = Vec::new();
        append_put(&mut journal, &[1; MAX_USERNAME], Priority::High);
        assert!(journal.len() <= MAX_RECORD);
    }
}
