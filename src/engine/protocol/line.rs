//! Lines out of a byte stream, in bounded memory.
//!
//! Bytes go in as they arrive, lines come out without their LF (a CR before it stays, as in Dovecot's
//! line protocols). A line over the limit is never kept: its first bytes are reported once, the rest is
//! skipped up to its LF, and the lines after it are read as usual.

/// How much of an over-long line is kept to be shown in an error, in bytes.
pub const OVERLONG_EXCERPT_BYTES: usize = 64;

/// What [`LineReader::next_line`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// A whole line without its LF.
    Complete(&'a [u8]),
    /// A line longer than the limit began so; it is skipped.
    TooLong(&'a [u8]),
}

/// Cuts a byte stream into lines of at most `max_line_bytes`, the LF not counted.
#[derive(Debug)]
pub struct LineReader {
    buffer: Vec<u8>,
    /// Where the next line begins in `buffer`.
    start: usize,
    /// Up to where `buffer` holds no LF.
    scanned: usize,
    max_line_bytes: usize,
    skipping: bool,
}

impl LineReader {
    /// A reader for lines of at most this many bytes.
    #[must_use]
    pub const fn new(max_line_bytes: usize) -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            scanned: 0,
            max_line_bytes,
            skipping: false,
        }
    }

    /// Adds bytes that arrived. Take all lines out between two calls: what is buffered is then at most
    /// one unfinished line and the bytes given.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.scanned = self.scanned.saturating_sub(self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next line; `None` until more bytes arrive.
    pub fn next_line(&mut self) -> Option<Line<'_>> {
        loop {
            let unscanned = self.buffer.get(self.scanned..).unwrap_or_default();
            let Some(length) = unscanned.iter().position(|&byte| byte == b'\n') else {
                return self.unfinished();
            };
            let begin = self.start;
            let end = self.scanned + length;
            self.start = end + 1;
            self.scanned = self.start;
            if self.skipping {
                self.skipping = false;
                continue;
            }
            let line = self.buffer.get(begin..end).unwrap_or_default();
            return Some(self.checked(line));
        }
    }

    /// The whole lines that are held, however long, without taking them.
    pub fn waiting(&self) -> impl Iterator<Item = &[u8]> {
        let held = self.buffer.get(self.start..).unwrap_or_default();
        held.split_inclusive(|&byte| byte == b'\n')
            .filter_map(|line| line.strip_suffix(b"\n"))
    }

    /// Bytes held, for accounting.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// What came after the last line taken: the start of another protocol on the same stream.
    #[must_use]
    pub fn take_rest(&mut self) -> Vec<u8> {
        let rest = self.buffer.split_off(self.start);
        self.buffer = Vec::new();
        self.start = 0;
        self.scanned = 0;
        rest
    }

    fn checked<'a>(&self, line: &'a [u8]) -> Line<'a> {
        if line.len() > self.max_line_bytes {
            Line::TooLong(excerpt(line))
        } else {
            Line::Complete(line)
        }
    }

    fn unfinished(&mut self) -> Option<Line<'_>> {
        let length = self.buffer.len() - self.start;
        if self.skipping || length == 0 {
            self.forget();
            return None;
        }
        if length <= self.max_line_bytes {
            self.scanned = self.buffer.len();
            return None;
        }
        self.skipping = true;
        let begin = self.start;
        self.start = self.buffer.len();
        self.scanned = self.start;
        Some(Line::TooLong(excerpt(
            self.buffer.get(begin..).unwrap_or_default(),
        )))
    }

    fn forget(&mut self) {
        self.buffer.clear();
        self.start = 0;
        self.scanned = 0;
        // What one huge line made the buffer grow to is not kept for the life of the connection.
        if self.buffer.capacity() > 64 * 1024 {
            self.buffer = Vec::new();
        }
    }
}

fn excerpt(line: &[u8]) -> &[u8] {
    line.get(..OVERLONG_EXCERPT_BYTES).unwrap_or(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(reader: &mut LineReader) -> Vec<Result<Vec<u8>, Vec<u8>>> {
        let mut lines = Vec::new();
        while let Some(line) = reader.next_line() {
            lines.push(match line {
                Line::Complete(line) => Ok(line.to_vec()),
                Line::TooLong(line) => Err(line.to_vec()),
            });
        }
        lines
    }

    #[test]
    fn lines_are_the_same_however_the_stream_is_cut() {
        let stream = b"one\n\ntwo\r\n123456789\n12345678\nabc";
        let mut whole = LineReader::new(8);
        whole.push(stream);
        let expected = read_all(&mut whole);
        assert_eq!(
            expected,
            [
                Ok(b"one".to_vec()),
                Ok(vec![]),
                Ok(b"two\r".to_vec()),
                Err(b"123456789".to_vec()),
                Ok(b"12345678".to_vec())
            ]
        );
        for size in 1..stream.len() {
            let mut reader = LineReader::new(8);
            let mut lines = Vec::new();
            for chunk in stream.chunks(size) {
                reader.push(chunk);
                lines.extend(read_all(&mut reader));
            }
            let shape = |line: &Result<Vec<u8>, Vec<u8>>| line.clone().map_err(|_| ());
            assert_eq!(
                lines.iter().map(shape).collect::<Vec<_>>(),
                expected.iter().map(shape).collect::<Vec<_>>(),
                "chunks of {size}"
            );
        }
    }

    #[test]
    fn a_line_at_the_limit_passes_and_one_past_it_is_skipped_in_bounded_memory() {
        let mut reader = LineReader::new(10);
        reader.push(b"0123456789");
        assert_eq!(reader.next_line(), None);
        reader.push(b"\n");
        assert_eq!(reader.next_line(), Some(Line::Complete(b"0123456789")));
        reader.push(b"0123456789a");
        assert_eq!(reader.next_line(), Some(Line::TooLong(b"0123456789a")));
        for _ in 0..1000 {
            reader.push(&[b'x'; 100]);
            assert_eq!(reader.next_line(), None);
            assert_eq!(reader.buffered_bytes(), 0);
        }
        reader.push(b"\nok\nrest");
        assert_eq!(reader.next_line(), Some(Line::Complete(b"ok")));
        assert_eq!(reader.take_rest(), b"rest");
        assert_eq!(reader.next_line(), None);
    }
}
