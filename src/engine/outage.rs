//! Something that is out of order for a while: when to try it again and what to tell the admin.
//!
//! Told once when it begins, once when its kind changes, once when it ends; tried with growing delays.

use std::time::Duration;

use super::time::Mono;

/// The delay before the first new try.
pub const RETRY_FIRST: Duration = Duration::from_millis(50);
/// The longest delay between two tries.
pub const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// The state of one thing that can be out of order in ways of kind `K`.
#[derive(Debug)]
pub struct Outage<K> {
    current: Option<Current<K>>,
}

#[derive(Debug)]
struct Current<K> {
    kind: K,
    since: Mono,
    next_try: Mono,
    delay: Duration,
    told: bool,
}

impl<K> Default for Outage<K> {
    fn default() -> Self {
        Self { current: None }
    }
}

impl<K: PartialEq> Outage<K> {
    /// A try failed. True if the admin is to be told: the first time that this kind has lasted for
    /// `quiet`.
    pub fn handle_failure(&mut self, now: Mono, kind: K, quiet: Duration) -> bool {
        let (since, delay, told) = match &self.current {
            Some(c) if c.kind == kind => (c.since, (c.delay * 2).min(RETRY_LONGEST), c.told),
            Some(c) => (now, (c.delay * 2).min(RETRY_LONGEST), false),
            None => (now, RETRY_FIRST, false),
        };
        let tell = !told && now.since(since) >= quiet;
        let told = told || tell;
        self.current = Some(Current {
            kind,
            since,
            next_try: now + delay,
            delay,
            told,
        });
        tell
    }

    /// A try succeeded. The kind that ended, if the admin had been told of it.
    pub fn handle_success(&mut self) -> Option<K> {
        self.current.take().filter(|c| c.told).map(|c| c.kind)
    }

    /// Whether a try is due.
    #[must_use]
    pub fn may_try(&self, now: Mono) -> bool {
        self.current.as_ref().is_none_or(|c| c.next_try <= now)
    }

    /// How long until the next try; `None` while all is in order.
    #[must_use]
    pub fn next_try_in(&self, now: Mono) -> Option<Duration> {
        self.current.as_ref().map(|c| c.next_try.since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_when_it_begins_when_its_kind_changes_and_when_it_ends() {
        let mut outage = Outage::default();
        assert!(outage.handle_failure(Mono(0), "absent", Duration::ZERO));
        assert!(!outage.handle_failure(Mono(100), "absent", Duration::ZERO));
        assert!(outage.handle_failure(Mono(200), "denied", Duration::ZERO));
        assert_eq!(outage.handle_success(), Some("denied"));
        assert_eq!(outage.handle_success(), None);
        assert!(outage.handle_failure(Mono(300), "denied", Duration::ZERO));
    }

    #[test]
    fn a_short_one_of_a_quiet_kind_is_not_told() {
        let quiet = Duration::from_secs(5);
        let mut outage = Outage::default();
        assert!(!outage.handle_failure(Mono(0), "full", quiet));
        assert!(!outage.handle_failure(Mono(4_999), "full", quiet));
        assert_eq!(outage.handle_success(), None);
        assert!(!outage.handle_failure(Mono(6_000), "full", quiet));
        assert!(outage.handle_failure(Mono(11_000), "full", quiet));
        assert!(!outage.handle_failure(Mono(20_000), "full", quiet));
    }

    #[test]
    fn it_is_tried_with_growing_delays_for_ever() {
        let mut outage = Outage::default();
        let mut now = Mono(0);
        let mut delays = Vec::new();
        for _ in 0..10 {
            assert!(outage.may_try(now));
            outage.handle_failure(now, (), Duration::ZERO);
            let delay = outage.next_try_in(now).unwrap();
            assert!(!outage.may_try(now + delay - Duration::from_millis(1)));
            delays.push(delay);
            now = now + delay;
        }
        assert_eq!(delays[0], RETRY_FIRST);
        assert!(delays.is_sorted());
        assert_eq!(delays[9], RETRY_LONGEST);
    }
}
