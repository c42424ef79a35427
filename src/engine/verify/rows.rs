//! Rows out of the values that doveadm prints, and the hash of a message's text.

use sha2::{Digest, Sha256};

use crate::engine::protocol::doveadm_json::InvalidJson;

/// The longest value that is kept, in bytes. Texts are hashed as they come and have no limit.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;

/// SHA-256 of a message with LF as its line ends: how a mail format ends lines is no difference.
pub type TextHash = [u8; 32];

/// The answer is not what was asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum InvalidAnswer {
    /// A value over [`VALUE_BYTES_MAX`].
    TooLong,
    /// The answer ended within a row.
    Incomplete,
    /// Not what this column has.
    Column(&'static str),
    /// UIDs that do not ascend.
    Order,
    /// Not the JSON that doveadm writes.
    Json,
    /// There are many more mails than a moment ago.
    Grown,
    /// More mailboxes than [`super::MAILBOXES_MAX`].
    TooMany,
}

impl From<InvalidJson> for InvalidAnswer {
    fn from(_: InvalidJson) -> Self {
        Self::Json
    }
}

impl std::fmt::Display for InvalidAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong => write!(f, "A value is longer than {VALUE_BYTES_MAX} bytes"),
            Self::Incomplete => f.write_str("The answer ends too early"),
            Self::Column(column) => write!(f, "Invalid {column} in the answer"),
            Self::Order => f.write_str("UIDs do not ascend"),
            Self::Json => f.write_str("Invalid JSON in the answer"),
            Self::Grown => f.write_str("The mailbox grows while it is looked at"),
            Self::TooMany => write!(f, "More than {} mailboxes", super::MAILBOXES_MAX),
        }
    }
}

/// A row's values.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// All but the text.
    pub values: Vec<Vec<u8>>,
    /// The hash of the text, where one was asked for.
    pub hash: Option<TextHash>,
}

/// Makes rows of parts of values.
#[derive(Debug)]
pub struct RowReader {
    columns: usize,
    /// The last column is a text.
    has_text: bool,
    row: Row,
    value: Vec<u8>,
    text: Text,
}

impl RowReader {
    /// For rows of so many values and, after them, a text.
    #[must_use]
    pub fn new(columns: usize, has_text: bool) -> Self {
        Self {
            columns,
            has_text,
            row: Row::default(),
            value: Vec::new(),
            text: Text::default(),
        }
    }

    /// Adds a part of a value; gives the row that ends with it.
    ///
    /// # Errors
    ///
    /// [`InvalidAnswer::TooLong`].
    pub fn push(&mut self, bytes: &[u8], ends: bool) -> Result<Option<Row>, InvalidAnswer> {
        if self.row.values.len() == self.columns {
            self.text.push(bytes);
            if !ends {
                return Ok(None);
            }
            self.row.hash = Some(std::mem::take(&mut self.text).finish());
            return Ok(Some(std::mem::take(&mut self.row)));
        }
        if self.value.len() + bytes.len() > VALUE_BYTES_MAX {
            return Err(InvalidAnswer::TooLong);
        }
        self.value.extend_from_slice(bytes);
        if ends {
            self.row.values.push(std::mem::take(&mut self.value));
        }
        let is_whole = ends && !self.has_text && self.row.values.len() == self.columns;
        Ok(is_whole.then(|| std::mem::take(&mut self.row)))
    }

    /// The answer is over.
    ///
    /// # Errors
    ///
    /// [`InvalidAnswer::Incomplete`].
    pub fn finish(self) -> Result<(), InvalidAnswer> {
        match self.row.values.is_empty() && self.value.is_empty() {
            true => Ok(()),
            false => Err(InvalidAnswer::Incomplete),
        }
    }
}

#[derive(Debug, Default)]
struct Text {
    hash: Sha256,
    /// A CR was read that may belong to a CRLF.
    cr: bool,
}

impl Text {
    fn push(&mut self, bytes: &[u8]) {
        let Some(&last) = bytes.last() else { return };
        if self.cr && bytes.first() != Some(&b'\n') {
            self.hash.update(b"\r");
        }
        self.cr = last == b'\r';
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        let mut rest = bytes;
        while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
            let (line, after) = rest.split_at(at);
            self.hash.update(line);
            rest = after.strip_prefix(b"\r").unwrap_or(after);
        }
        self.hash.update(rest);
    }

    fn finish(mut self) -> TextHash {
        if self.cr {
            self.hash.update(b"\r");
        }
        self.hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(parts: &[&[u8]]) -> TextHash {
        let mut text = Text::default();
        for part in parts {
            text.push(part);
        }
        text.finish()
    }

    #[test]
    fn line_ends_make_no_difference_to_a_hash_and_all_else_does() {
        let plain = hash(&[b"From: a\n\nbody\n"]);
        assert_eq!(
            plain,
            <[u8; 32]>::from(Sha256::digest(b"From: a\n\nbody\n"))
        );
        let crlf = b"From: a\r\n\r\nbody\r\n";
        for cut in 0..=crlf.len() {
            let (start, end) = crlf.split_at(cut);
            assert_eq!(hash(&[start, b"", end]), plain, "{cut}");
        }
        for other in [
            &b"From: a\n\nbody"[..],
            b"From: a\n\nbody\n\r",
            b"From: a\n\rbody\n",
            b"\r\r\n",
        ] {
            for cut in 0..=other.len() {
                let (start, end) = other.split_at(cut);
                assert_eq!(hash(&[start, end]), hash(&[other]), "{cut}");
                assert_ne!(hash(&[start, end]), plain);
            }
        }
    }

    #[test]
    fn a_row_ends_with_its_last_value() {
        let mut rows = RowReader::new(2, false);
        assert_eq!(rows.push(b"IN", false), Ok(None));
        assert_eq!(rows.push(b"BOX", true), Ok(None));
        let row = rows.push(b"", true).unwrap().unwrap();
        assert_eq!(row.values, [b"INBOX".to_vec(), vec![]]);
        assert_eq!(row.hash, None);
        assert_eq!(rows.push(b"x", true), Ok(None));
        assert_eq!(rows.finish(), Err(InvalidAnswer::Incomplete));
        let mut rows = RowReader::new(1, true);
        assert_eq!(rows.push(b"7", true), Ok(None));
        assert_eq!(rows.push(b"te", false), Ok(None));
        let row = rows.push(b"xt", true).unwrap().unwrap();
        assert_eq!(row.hash, Some(hash(&[b"text"])));
        assert_eq!(rows.finish(), Ok(()));
    }

    #[test]
    fn a_value_is_taken_at_the_limit_and_not_past_it_and_a_text_always() {
        let long = vec![b'x'; VALUE_BYTES_MAX];
        let mut rows = RowReader::new(1, false);
        assert!(rows.push(&long, true).unwrap().is_some());
        assert_eq!(rows.push(&long, false), Ok(None));
        assert_eq!(rows.push(b"x", true), Err(InvalidAnswer::TooLong));
        let mut rows = RowReader::new(0, true);
        for _ in 0..10 {
            assert_eq!(rows.push(&long, false), Ok(None));
        }
    }
}
