//! The names of users, packed: no allocation and no pointer per name.
//!
//! A name is two bytes of length and its bytes, within one block. The place of a removed name is used again for one of the
//! same length.

use std::collections::BTreeMap;

const BLOCK_BYTES: usize = 1 << 16;
const MAX_BLOCKS: usize = 1 << 16;
const LENGTH_BYTES: usize = 2;

/// Where a name is: the block in the upper half, the offset in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NameRef(u32);

#[derive(Debug, Default)]
pub(super) struct Names {
    blocks: Vec<Box<[u8]>>,
    used_bytes: usize,
    free: BTreeMap<u16, Vec<NameRef>>,
}

impl Names {
    /// None: the name is longer than a length can say, or 4 GiB are full.
    pub(super) fn insert(&mut self, name: &[u8]) -> Option<NameRef> {
        let length = u16::try_from(name.len()).ok()?;
        let place = match self.free.get_mut(&length).and_then(Vec::pop) {
            Some(place) => place,
            None => self.allocate(LENGTH_BYTES + name.len())?,
        };
        let [low, high] = length.to_le_bytes();
        let bytes = [low, high].into_iter().chain(name.iter().copied());
        let room = self.blocks.get_mut(place.block())?;
        for (slot, byte) in room.iter_mut().skip(place.offset()).zip(bytes) {
            *slot = byte;
        }
        Some(place)
    }

    pub(super) fn get(&self, place: NameRef) -> &[u8] {
        self.stored(place).unwrap_or_default()
    }

    pub(super) fn remove(&mut self, place: NameRef) {
        if let Ok(length) = u16::try_from(self.get(place).len()) {
            self.free.entry(length).or_default().push(place);
        }
    }

    fn stored(&self, place: NameRef) -> Option<&[u8]> {
        let block = self.blocks.get(place.block())?.get(place.offset()..)?;
        let (length, rest) = block.split_first_chunk::<LENGTH_BYTES>()?;
        rest.get(..usize::from(u16::from_le_bytes(*length)))
    }

    fn allocate(&mut self, bytes: usize) -> Option<NameRef> {
        if bytes > BLOCK_BYTES {
            return None;
        }
        if self.blocks.is_empty() || self.used_bytes + bytes > BLOCK_BYTES {
            if self.blocks.len() == MAX_BLOCKS {
                return None;
            }
            self.blocks.push(vec![0; BLOCK_BYTES].into_boxed_slice());
            self.used_bytes = 0;
        }
        let block = u32::try_from(self.blocks.len() - 1).ok()?;
        let offset = u32::try_from(self.used_bytes).ok()?;
        self.used_bytes += bytes;
        Some(NameRef(block << 16 | offset))
    }
}

impl NameRef {
    fn block(self) -> usize {
        (self.0 >> 16) as usize
    }

    fn offset(self) -> usize {
        (self.0 & 0xffff) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_lengths_are_read_back() {
        let mut names = Names::default();
        let all: Vec<Vec<u8>> = (0..1024).map(|n| vec![(n % 251) as u8; n]).collect();
        let places: Vec<_> = all
            .iter()
            .map(|name| names.insert(name).expect("room"))
            .collect();
        for (place, name) in places.iter().zip(&all) {
            assert_eq!(names.get(*place), name);
        }
    }

    #[test]
    fn place_of_a_removed_name_is_used_again() {
        let mut names = Names::default();
        let first = names.insert(b"u1").expect("room");
        let second = names.insert(b"u2").expect("room");
        names.remove(first);
        assert_eq!(names.insert(b"u3"), Some(first));
        assert_eq!(names.get(first), b"u3");
        assert_eq!(names.get(second), b"u2");
    }

    #[test]
    fn longest_name_fits_and_a_longer_one_does_not() {
        let mut names = Names::default();
        let longest = vec![b'u'; BLOCK_BYTES - LENGTH_BYTES];
        let place = names.insert(&longest).expect("room");
        assert_eq!(names.get(place), longest);
        assert_eq!(names.insert(&vec![b'u'; BLOCK_BYTES - 1]), None);
    }
}
