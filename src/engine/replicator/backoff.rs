//! Growing pauses with jitter.

use std::time::Duration;

/// Repeatable randomness for jitter (splitmix64).
#[derive(Debug)]
pub(super) struct Jitter(u64);

impl Jitter {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any part of `whole`, to the millisecond.
    pub(super) fn part_of(&mut self, whole: Duration) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let millis = u64::try_from(whole.as_millis()).unwrap_or(u64::MAX - 1);
        Duration::from_millis((mixed ^ (mixed >> 31)) % (millis + 1))
    }

    /// `pause` with up to a quarter taken off, so that those who failed together do not try together.
    pub(super) fn shorten(&mut self, pause: Duration) -> Duration {
        pause - self.part_of(pause / 4)
    }
}

/// The pause before try `tries` + 1: `min`, doubled with each try after the first, `max` at most.
pub(super) fn doubled(min: Duration, max: Duration, tries: u32) -> Duration {
    let factor = 1_u32
        .checked_shl(tries.saturating_sub(1))
        .unwrap_or(u32::MAX);
    min.saturating_mul(factor).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_doubles_from_the_shortest_to_the_longest() {
        let (min, max) = (Duration::from_millis(500), Duration::from_secs(300));
        let pauses: Vec<u128> = [0, 1, 2, 3, 10, 11, 33, u32::MAX]
            .map(|tries| doubled(min, max, tries).as_millis())
            .to_vec();
        assert_eq!(
            pauses,
            [500, 500, 1000, 2000, 256_000, 300_000, 300_000, 300_000]
        );
    }

    #[test]
    fn jitter_takes_a_quarter_at_most() {
        let mut jitter = Jitter::new(7);
        let pause = Duration::from_millis(1000);
        let shortened: Vec<_> = (0..1000).map(|_| jitter.shorten(pause)).collect();
        assert!(
            shortened
                .iter()
                .all(|p| (750..=1000).contains(&p.as_millis()))
        );
        assert!(shortened.iter().any(|p| p.as_millis() < 800));
        assert!(shortened.iter().any(|p| p.as_millis() > 950));
        assert_eq!(jitter.part_of(Duration::ZERO), Duration::ZERO);
    }
}
