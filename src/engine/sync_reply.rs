//! The aggregator's answer to `<username>\tsync\n`: `+\n`, or `-` with an optional reason and LF.
//!
//! Source: Dovecot 2.3, `aggregator/notify-connection.c`; the reason is ours.

/// The longest answer, LF included.
pub const REPLY_MAX_BYTES: usize = 1024;

/// What the aggregator answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncReply {
    /// The mail is on all replicas.
    Synced,
    /// It is not (yet); the reason may be empty.
    Failed(String),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidReply {
    /// The line begins with neither `+` nor `-`; its printable beginning.
    Unknown(String),
    /// More than [`REPLY_MAX_BYTES`] without an LF.
    TooLong,
    /// The connection ended before the LF, after this many bytes.
    Eof(usize),
}

/// Collects the bytes of one answer, however they are cut.
#[derive(Debug, Default)]
pub struct SyncReplyReader {
    line: Vec<u8>,
}

impl SyncReplyReader {
    /// Takes what was read; the answer once its LF has come. Bytes after the LF are ignored.
    ///
    /// # Errors
    /// See [`InvalidReply`].
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<Option<SyncReply>, InvalidReply> {
        let end = bytes.iter().position(|&byte| byte == b'\n');
        let piece = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
        if self.line.len() + piece.len() >= REPLY_MAX_BYTES {
            return Err(InvalidReply::TooLong);
        }
        self.line.extend_from_slice(piece);
        match end {
            None => Ok(None),
            Some(_) => parse(&self.line).map(Some),
        }
    }

    /// The connection ended.
    #[must_use]
    pub fn handle_eof(&self) -> InvalidReply {
        InvalidReply::Eof(self.line.len())
    }
}

fn parse(line: &[u8]) -> Result<SyncReply, InvalidReply> {
    match line.split_first() {
        Some((b'+', _)) => Ok(SyncReply::Synced),
        Some((b'-', reason)) => Ok(SyncReply::Failed(printable(reason))),
        _ => Err(InvalidReply::Unknown(printable(line))),
    }
}

/// What of a peer's bytes may go into a log line: at most 128 characters, no control characters.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim()
        .chars()
        .take(128)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> Result<Option<SyncReply>, InvalidReply> {
        let mut reader = SyncReplyReader::default();
        let mut last = Ok(None);
        for piece in pieces {
            last = reader.handle_bytes(piece);
        }
        last
    }

    #[test]
    fn answers_are_read_however_they_are_cut() {
        assert_eq!(read(&[b"+\n"]), Ok(Some(SyncReply::Synced)));
        assert_eq!(read(&[b"+", b"\n"]), Ok(Some(SyncReply::Synced)));
        assert_eq!(read(&[b"+"]), Ok(None));
        assert_eq!(
            read(&[b"-", b"no peer", b"\n"]),
            Ok(Some(SyncReply::Failed("no peer".into())))
        );
        assert_eq!(
            read(&[b"-\nrest"]),
            Ok(Some(SyncReply::Failed(String::new())))
        );
    }

    #[test]
    fn a_plus_without_its_lf_is_not_an_answer() {
        let mut reader = SyncReplyReader::default();
        assert_eq!(reader.handle_bytes(b"+"), Ok(None));
        assert_eq!(reader.handle_eof(), InvalidReply::Eof(1));
    }

    #[test]
    fn garbage_is_shown_without_control_characters() {
        assert_eq!(
            read(&[b"HTTP\x07/1\n"]),
            Err(InvalidReply::Unknown("HTTP?/1".into()))
        );
        assert_eq!(read(&[b"\n"]), Err(InvalidReply::Unknown(String::new())));
    }

    #[test]
    fn the_longest_answer_is_read_and_one_byte_more_is_not() {
        let mut line = vec![b'x'; REPLY_MAX_BYTES];
        line[0] = b'-';
        let longest = &line[..REPLY_MAX_BYTES - 1];
        assert!(matches!(
            read(&[longest, b"\n"]),
            Ok(Some(SyncReply::Failed(_)))
        ));
        assert_eq!(read(&[longest, b"x"]), Err(InvalidReply::TooLong));
        assert_eq!(read(&[&line]), Err(InvalidReply::TooLong));
    }
}
