//! The mails of a mailbox added up in blocks of UIDs: of two mailboxes of any size only the blocks that differ are read again.

use std::collections::BTreeMap;

/// The most blocks of a mailbox. When there would be more, each block takes in its neighbour.
pub const BLOCKS_MAX: usize = 4096;

/// UIDs of a block before it takes in any other, as a power of two.
const SMALLEST_BLOCK_BITS: u32 = 10;

/// UIDs from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UidRange {
    /// The first, at least 1.
    pub first: u32,
    /// The last.
    pub last: u32,
}

impl UidRange {
    /// Every UID.
    pub const ALL: Self = Self {
        first: 1,
        last: u32::MAX,
    };

    /// As IMAP writes it.
    #[must_use]
    pub fn sequence_set(self) -> String {
        format!("{}:{}", self.first, self.last)
    }
}

/// What is in a block. A sum, so that blocks can be put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    digests: u128,
    mails: u64,
}

impl Sum {
    fn add(&mut self, other: Self) {
        self.digests = self.digests.wrapping_add(other.digests);
        self.mails += other.mails;
    }
}

/// The mails of a range of UIDs in at most [`BLOCKS_MAX`] blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    range: UidRange,
    bits: u32,
    sums: BTreeMap<u32, Sum>,
    last_uid: u32,
}

/// UIDs whose mails are not the same on both nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DifferingBlock {
    /// Where they are.
    pub range: UidRange,
    /// How many mails are there, on both nodes together.
    pub mails: u64,
}

impl Blocks {
    /// None yet, of this range.
    #[must_use]
    pub const fn new(range: UidRange) -> Self {
        Self {
            range,
            bits: 0,
            sums: BTreeMap::new(),
            last_uid: 0,
        }
        .with_bits()
    }

    const fn with_bits(mut self) -> Self {
        let uids = self.range.last - self.range.first;
        self.bits = SMALLEST_BLOCK_BITS;
        // A part of a block that is too big is cut finer.
        while self.bits > 0 && uids >> self.bits == 0 {
            self.bits -= 1;
        }
        self
    }

    /// Adds a mail; false if its UID does not ascend or is not of the range.
    #[must_use]
    pub fn add(&mut self, uid: u32, digest: u128) -> bool {
        if uid <= self.last_uid || uid < self.range.first || uid > self.range.last {
            return false;
        }
        self.last_uid = uid;
        let block = (uid - self.range.first) >> self.bits;
        let sum = Sum {
            digests: digest,
            mails: 1,
        };
        self.sums.entry(block).or_default().add(sum);
        while self.sums.len() > BLOCKS_MAX {
            self.coarsen(self.bits + 1);
        }
        true
    }

    /// How many mails there are.
    #[must_use]
    pub fn mails(&self) -> u64 {
        self.sums.values().map(|sum| sum.mails).sum()
    }

    fn coarsen(&mut self, bits: u32) {
        let by = bits - self.bits;
        let sums = std::mem::take(&mut self.sums);
        for (block, sum) in sums {
            self.sums.entry(block >> by).or_default().add(sum);
        }
        self.bits = bits;
    }

    /// The blocks that are not the same in both, which must be of the same range; in order.
    #[must_use]
    pub fn differing(&self, other: &Self) -> Vec<DifferingBlock> {
        let (mut one, mut other) = (self.clone(), other.clone());
        let bits = one.bits.max(other.bits);
        one.coarsen(bits);
        other.coarsen(bits);
        let mut found = Vec::new();
        let blocks: std::collections::BTreeSet<_> =
            one.sums.keys().chain(other.sums.keys()).collect();
        for block in blocks {
            let of = |sums: &BTreeMap<u32, Sum>| sums.get(block).copied().unwrap_or_default();
            let (here, there) = (of(&one.sums), of(&other.sums));
            if here != there {
                found.push(DifferingBlock {
                    range: one.range_of(*block),
                    mails: here.mails + there.mails,
                });
            }
        }
        found
    }

    fn range_of(&self, block: u32) -> UidRange {
        let first = self.range.first + (block << self.bits);
        let last = first.saturating_add((1 << self.bits) - 1);
        UidRange {
            first,
            last: last.min(self.range.last),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(range: UidRange, uids: impl IntoIterator<Item = u32>) -> Blocks {
        let mut blocks = Blocks::new(range);
        for uid in uids {
            assert!(blocks.add(
                uid,
                u128::from(uid).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)
            ));
        }
        blocks
    }

    #[test]
    fn a_mail_that_differs_is_in_a_small_block() {
        let one = blocks(UidRange::ALL, 1..=1_000_000);
        let mut other = blocks(UidRange::ALL, (1..=1_000_000).filter(|uid| *uid != 500_000));
        assert_eq!(other.mails(), 999_999);
        let found = one.differing(&other);
        assert_eq!(found.len(), 1);
        assert!(found[0].range.first <= 500_000 && found[0].range.last >= 500_000);
        assert_eq!(found[0].mails, 2 * 1024 - 1);
        assert!(other.add(1_000_001, 1));
        assert_eq!(one.differing(&other).len(), 2);
        assert!(one.differing(&one.clone()).is_empty());
    }

    #[test]
    fn memory_is_bounded_however_sparse_the_uids_are() {
        let sparse = blocks(UidRange::ALL, (0..20_000).map(|n| 1 + n * 200_000));
        assert!(sparse.sums.len() <= BLOCKS_MAX);
        assert_eq!(sparse.mails(), 20_000);
        // Of another size of blocks, and still compared.
        let dense = blocks(UidRange::ALL, 1..=10);
        let found = sparse.differing(&dense);
        assert_eq!(found.iter().map(|block| block.mails).sum::<u64>(), 20_010);
        assert_eq!(
            found
                .last()
                .map(|block| block.range.last > 19_999 * 200_000),
            Some(true)
        );
    }

    #[test]
    fn blocks_at_the_limit_stay_and_one_past_it_takes_in_its_neighbour() {
        let step = 1 << SMALLEST_BLOCK_BITS;
        let count = u32::try_from(BLOCKS_MAX).unwrap();
        for (more, bits) in [(0, SMALLEST_BLOCK_BITS), (1, SMALLEST_BLOCK_BITS + 1)] {
            let full = blocks(UidRange::ALL, (0..count + more).map(|n| 1 + n * step));
            assert_eq!(full.bits, bits);
        }
    }

    #[test]
    fn a_block_is_cut_finer_when_it_is_looked_at_by_itself() {
        let mut range = UidRange {
            first: 1_000_001,
            last: 1_000_000 + (1 << 20),
        };
        let mut rounds = 0;
        while range.last > range.first {
            let uids = range.first..=range.last;
            let one = blocks(range, uids.clone());
            let other = blocks(range, uids.filter(|uid| *uid != 1_234_567));
            let found = one.differing(&other);
            assert_eq!(found.len(), 1);
            assert!(found[0].mails < one.mails() + other.mails());
            range = found[0].range;
            rounds += 1;
        }
        assert_eq!(
            range,
            UidRange {
                first: 1_234_567,
                last: 1_234_567
            }
        );
        assert!(rounds < 30, "{rounds}");
    }

    #[test]
    fn the_last_uid_of_all_is_in_a_block() {
        let one = blocks(UidRange::ALL, [u32::MAX]);
        let found = one.differing(&Blocks::new(UidRange::ALL));
        assert_eq!(found[0].range.last, u32::MAX);
        assert_eq!(found[0].range.sequence_set(), "4294966273:4294967295");
    }

    #[test]
    fn uids_must_ascend_within_the_range() {
        let mut blocks = Blocks::new(UidRange {
            first: 10,
            last: 20,
        });
        assert!(!blocks.add(9, 0) && !blocks.add(21, 0));
        assert!(blocks.add(10, 0) && blocks.add(12, 0));
        assert!(!blocks.add(12, 0) && !blocks.add(11, 0));
        assert_eq!(blocks.mails(), 2);
    }
}
