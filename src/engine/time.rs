//! Time as the engine is told it: a monotonic clock for delays, wall-clock seconds for what is shown and stored.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A reading of a monotonic clock, in milliseconds from any origin. Arithmetic saturates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub u64);

impl Mono {
    /// The time from `earlier` to `self`; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Add<Duration> for Mono {
    type Output = Self;
    fn add(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(millis(delay)))
    }
}

impl Sub<Duration> for Mono {
    type Output = Self;
    fn sub(self, delay: Duration) -> Self {
        Self(self.0.saturating_sub(millis(delay)))
    }
}

/// Seconds since the epoch by the wall clock, which may jump in both directions. 0 means never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixSecs(pub u32);

/// One reading of both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For delays and deadlines.
    pub mono: Mono,
    /// For what an admin reads and what the store keeps.
    pub wall: UnixSecs,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_at_both_ends() {
        assert_eq!(Mono(5) - Duration::from_secs(1), Mono(0));
        assert_eq!(Mono(u64::MAX) + Duration::MAX, Mono(u64::MAX));
        assert_eq!(Mono(1).since(Mono(9)), Duration::ZERO);
        assert_eq!(Mono(0) + Duration::from_millis(1500), Mono(1500));
    }
}
