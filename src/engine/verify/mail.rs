//! A mail as both nodes must have it.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::rows::{InvalidAnswer, Row, TextHash};

/// What doveadm is asked of each mail; `text` may follow.
pub const FETCH_FIELDS: &str = "mailbox uid flags date.received.unixtime size.virtual";
/// How many values that is.
pub const FETCH_COLUMNS: usize = 5;

/// All but its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// UID.
    pub uid: u32,
    /// Flags and keywords, without `\Recent`, sorted, with a space between two.
    pub flags: String,
    /// INTERNALDATE, seconds since the epoch.
    pub received: i64,
    /// Bytes, with CRLF as line ends.
    pub size: u64,
    /// Of the text, where it was asked for.
    pub hash: Option<TextHash>,
}

impl Mail {
    /// The mail of a row, and the mailbox that it is in.
    ///
    /// # Errors
    ///
    /// The row is not one of [`FETCH_FIELDS`].
    pub fn of_row(row: Row) -> Result<(Vec<u8>, Self), InvalidAnswer> {
        let Ok([mailbox, uid, flags, received, size]) = <[Vec<u8>; 5]>::try_from(row.values) else {
            return Err(InvalidAnswer::Incomplete);
        };
        let uid = number(&uid).filter(|uid| *uid > 0);
        let mail = Self {
            uid: uid.ok_or(InvalidAnswer::Column("uid"))?,
            flags: sorted(&flags),
            received: number(&received).ok_or(InvalidAnswer::Column("date.received"))?,
            size: number(&size).ok_or(InvalidAnswer::Column("size.virtual"))?,
            hash: row.hash,
        };
        Ok((mailbox, mail))
    }

    /// Of all that is compared. Not of secrets: half of SHA-256 is enough.
    #[must_use]
    pub fn digest(&self) -> u128 {
        let mut line = String::new();
        // Keywords are the same in any case.
        for flag in self.flags.split(' ') {
            line.push_str(&flag.to_ascii_lowercase());
            line.push(' ');
        }
        let (uid, received, size) = (self.uid, self.received, self.size);
        // Writing to a String cannot fail.
        let _ = write!(line, "\n{uid} {received} {size}");
        let mut digest = Sha256::new();
        digest.update(line);
        if let Some(hash) = self.hash {
            digest.update(hash);
        }
        let digest = digest.finalize();
        digest
            .iter()
            .take(16)
            .fold(0, |sum, byte| sum << 8 | u128::from(*byte))
    }
}

fn number<T: std::str::FromStr>(value: &[u8]) -> Option<T> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn sorted(flags: &[u8]) -> String {
    let flags = String::from_utf8_lossy(flags);
    let mut flags: Vec<&str> = flags
        .split_ascii_whitespace()
        .filter(|flag| !flag.eq_ignore_ascii_case("\\Recent"))
        .collect();
    flags.sort_unstable_by_key(|flag| flag.to_ascii_lowercase());
    flags.join(" ")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn mail(uid: u32, flags: &str) -> Mail {
        Mail {
            uid,
            flags: sorted(flags.as_bytes()),
            received: 1_000_000,
            size: 100,
            hash: None,
        }
    }

    fn of(values: [&str; 5]) -> Result<(Vec<u8>, Mail), InvalidAnswer> {
        Mail::of_row(Row {
            values: values.map(|value| value.as_bytes().to_vec()).to_vec(),
            hash: None,
        })
    }

    #[test]
    fn a_row_is_read_and_what_is_none_is_named() {
        let (mailbox, read) =
            of(["INBOX", "7", "\\Seen work \\Recent \\Answered", "-5", "100"]).unwrap();
        assert_eq!(mailbox, b"INBOX");
        assert_eq!(read.flags, "\\Answered \\Seen work");
        assert_eq!((read.uid, read.received, read.size), (7, -5, 100));
        for (values, column) in [
            (["INBOX", "0", "", "5", "100"], "uid"),
            (["INBOX", "4294967296", "", "5", "100"], "uid"),
            (["INBOX", "7", "", "", "100"], "date.received"),
            (["INBOX", "7", "", "5", "-1"], "size.virtual"),
        ] {
            assert_eq!(of(values), Err(InvalidAnswer::Column(column)));
        }
        let short = Row {
            values: vec![vec![]; 4],
            hash: None,
        };
        assert_eq!(Mail::of_row(short), Err(InvalidAnswer::Incomplete));
    }

    #[test]
    fn a_digest_sees_each_part_and_neither_order_nor_case_of_flags() {
        let base = mail(7, "\\Seen Work");
        assert_eq!(base.digest(), mail(7, "work \\Recent \\Seen").digest());
        let others = [
            mail(8, "\\Seen Work"),
            mail(7, "\\Seen"),
            mail(7, "\\Seen Work more"),
            Mail {
                received: 1,
                ..base.clone()
            },
            Mail {
                size: 1,
                ..base.clone()
            },
            Mail {
                hash: Some([0; 32]),
                ..base.clone()
            },
            Mail {
                hash: Some([1; 32]),
                ..base.clone()
            },
        ];
        let digests: std::collections::BTreeSet<_> =
            others.iter().chain([&base]).map(Mail::digest).collect();
        assert_eq!(digests.len(), others.len() + 1);
    }
}
