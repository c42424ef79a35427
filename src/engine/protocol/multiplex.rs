//! Dovecot's multiplexed streams, the reader's side: frames of several channels in one stream.
//!
//! A frame is a channel byte, a big-endian length of four bytes, and that many bytes. Source: Dovecot,
//! `src/lib/istream-multiplex.c` of 2.3.13, 2.3.19.1 and 2.4.1.

const HEADER_BYTES: usize = 5;

/// Takes the channels of one stream apart. Holds at most an unfinished header.
#[derive(Debug, Default)]
pub struct Frames {
    header: Vec<u8>,
    remaining: usize,
    channel: u8,
}

impl Frames {
    /// At the begin of a frame.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            header: Vec::new(),
            remaining: 0,
            channel: 0,
        }
    }

    /// Whether the last frame is whole, and no other has begun.
    #[must_use]
    pub fn is_between(&self) -> bool {
        self.remaining == 0 && self.header.is_empty()
    }

    /// Gives each part of these bytes with its channel.
    pub fn split(&mut self, mut bytes: &[u8], mut each: impl FnMut(u8, &[u8])) {
        while !bytes.is_empty() {
            if self.remaining == 0 {
                let missing = HEADER_BYTES - self.header.len();
                let (header, rest) = bytes.split_at(missing.min(bytes.len()));
                self.header.extend_from_slice(header);
                bytes = rest;
                if let [channel, a, b, c, d] = *self.header.as_slice() {
                    self.channel = channel;
                    self.remaining = u32::from_be_bytes([a, b, c, d]) as usize;
                    self.header.clear();
                }
                continue;
            }
            let (data, rest) = bytes.split_at(self.remaining.min(bytes.len()));
            self.remaining -= data.len();
            bytes = rest;
            each(self.channel, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_the_same_however_the_stream_is_cut() {
        let stream = b"\0\0\0\0\x03one\x07\0\0\0\x02xy\0\0\0\0\0\0\0\0\0\x03two";
        for size in 1..=stream.len() {
            let mut frames = Frames::new();
            let mut channels = [Vec::new(), Vec::new()];
            for piece in stream.chunks(size) {
                frames.split(piece, |channel, data| {
                    channels[usize::from(channel != 0)].extend_from_slice(data);
                });
            }
            assert_eq!(channels, [b"onetwo".to_vec(), b"xy".to_vec()]);
        }
    }
}
