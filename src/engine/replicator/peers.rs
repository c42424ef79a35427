//! The peers, and whether they can be reached.
//!
//! A `tcp:` or `tcps:` peer is probed before its first sync, and again before the next one after a sync failed in a way that may be
//! the peer's fault. While the probe fails its users wait; one probe at a time goes on, at first every second and
//! a half at most. Other targets cannot be probed and always count as reachable.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;
use std::time::Duration;

use super::action::ProbeId;
use super::backoff::{Jitter, doubled};
use super::config::{MAX_PEERS, MAX_TARGET_BYTES};
use crate::engine::healing::Hostnames;
use crate::engine::time::{Mono, Now, UnixSecs};

/// The first probes of a peer that is away are at most this far apart, begin to begin.
const PROBE_PAUSE_AT_FIRST: Duration = Duration::from_millis(1500);
/// For how long they are.
const AT_FIRST: Duration = Duration::from_secs(5 * 60);
/// Later they are at most this far apart.
const PROBE_PAUSE_LATER: Duration = Duration::from_secs(30);
/// It may have been given another one since: each of its dsyncs shows it.
const HOSTNAMES_BELIEVED: Duration = Duration::from_secs(60 * 60);
const SHORTEST_PROBE_PAUSE: Duration = Duration::from_millis(250);

/// A slot of the table of peers; used again when no user has the peer any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PeerId(NonZeroU16);

impl PeerId {
    fn from_slot(slot: usize) -> Option<Self> {
        NonZeroU16::new(u16::try_from(slot + 1).ok()?).map(Self)
    }

    fn slot(self) -> usize {
        usize::from(self.0.get()) - 1
    }

    #[cfg(test)]
    pub(super) fn first() -> Self {
        Self(NonZeroU16::MIN)
    }
}

/// Whether a sync to the peer may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    /// Not before the probe that is under way, or the next one, has succeeded.
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    /// To be probed before the next sync.
    Unproven,
    Up,
    Down {
        since: Mono,
        probes: u32,
        next_probe: Mono,
    },
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) target: Box<[u8]>,
    pub(super) users: u32,
    health: Health,
    /// What was last proven, and since when; for people.
    pub(super) reachable: Option<bool>,
    pub(super) since: UnixSecs,
    pub(super) reason: String,
    /// Its host name and this node's, as were last seen then.
    hostnames: Option<(Hostnames, Mono)>,
    probing: Option<(ProbeId, Mono)>,
}

/// What a probe, or a sync, has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// It is away, and was not known to be.
    Gone,
    StillAway,
    /// It is there, and was known to be away.
    Back,
    /// It is there, as far as was known.
    There,
}

#[derive(Debug, Default)]
pub(super) struct Peers {
    slots: Vec<Option<Peer>>,
    by_target: BTreeMap<Box<[u8]>, PeerId>,
    free: BTreeSet<PeerId>,
    /// Those that are down.
    away: BTreeSet<PeerId>,
    probes: BTreeMap<ProbeId, PeerId>,
    last_probe: u64,
}

impl Peers {
    /// The peer of the target, with one user more. None: the target is empty or too long, or the table full.
    pub(super) fn add_user(&mut self, target: &[u8]) -> Option<PeerId> {
        if let Some(id) = self.find(target) {
            self.get_mut(id)?.users += 1;
            return Some(id);
        }
        if target.is_empty() || target.len() > MAX_TARGET_BYTES {
            return None;
        }
        let id = match self.free.pop_first() {
            Some(id) => id,
            None if self.slots.len() < MAX_PEERS => {
                self.slots.push(None);
                PeerId::from_slot(self.slots.len() - 1)?
            }
            None => return None,
        };
        let health = match can_be_probed(target) {
            true => Health::Unproven,
            false => Health::Up,
        };
        *self.slots.get_mut(id.slot())? = Some(Peer {
            target: target.into(),
            users: 1,
            health,
            reachable: None,
            since: UnixSecs::default(),
            reason: String::new(),
            hostnames: None,
            probing: None,
        });
        self.by_target.insert(target.into(), id);
        Some(id)
    }

    pub(super) fn remove_user(&mut self, id: PeerId) {
        let Some(peer) = self.get_mut(id) else { return };
        peer.users = peer.users.saturating_sub(1);
        self.free_if_unused(id);
    }

    /// A peer that is being probed stays until the answer is there: one probe at a time, also if it has users again.
    fn free_if_unused(&mut self, id: PeerId) {
        let is_used = |peer: &Peer| peer.users > 0 || peer.probing.is_some();
        if self.get(id).is_some_and(is_used) {
            return;
        }
        if let Some(peer) = self.slots.get_mut(id.slot()).and_then(Option::take) {
            self.by_target.remove(&peer.target);
            self.free.insert(id);
            self.away.remove(&id);
        }
    }

    pub(super) fn find(&self, target: &[u8]) -> Option<PeerId> {
        self.by_target.get(target).copied()
    }

    pub(super) fn get(&self, id: PeerId) -> Option<&Peer> {
        self.slots.get(id.slot())?.as_ref()
    }

    /// Empty if there is no such peer.
    pub(super) fn target(&self, id: PeerId) -> &[u8] {
        self.get(id).map_or(&[], |peer| &peer.target)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (PeerId, &Peer)> {
        let slots = self.slots.iter().enumerate();
        slots.filter_map(|(slot, peer)| Some((PeerId::from_slot(slot)?, peer.as_ref()?)))
    }

    /// The peer that all users have, if there is no other.
    pub(super) fn only(&self) -> Option<PeerId> {
        let mut peers = self.iter().filter(|(_, peer)| peer.users > 0);
        let (only, _) = peers.next()?;
        peers.next().is_none().then_some(only)
    }

    pub(super) fn is_down(&self, id: PeerId) -> bool {
        self.get(id)
            .is_some_and(|peer| matches!(peer.health, Health::Down { .. }))
    }

    pub(super) fn gate(&self, id: PeerId) -> Gate {
        match self.get(id) {
            Some(peer) if peer.health == Health::Up => Gate::Open,
            _ => Gate::Closed,
        }
    }

    /// A sync failed in a way that may be the peer's fault, or does not get on. True: a probe will tell.
    pub(super) fn suspect(&mut self, id: PeerId) -> bool {
        let Some(peer) = self.get_mut(id) else {
            return false;
        };
        if !can_be_probed(&peer.target) {
            return false;
        }
        if peer.health == Health::Up {
            peer.health = Health::Unproven;
        }
        true
    }

    /// Begins the probe of a peer that needs one now.
    pub(super) fn begin_probe(&mut self, id: PeerId, now: Mono) -> Option<ProbeId> {
        let probe = ProbeId(self.last_probe + 1);
        let peer = self.get_mut(id)?;
        let wanted = match peer.health {
            Health::Up => false,
            Health::Unproven => true,
            Health::Down { next_probe, .. } => next_probe <= now,
        };
        if !wanted || peer.probing.is_some() {
            return None;
        }
        peer.probing = Some((probe, now));
        self.last_probe = probe.0;
        self.probes.insert(probe, id);
        Some(probe)
    }

    /// None: no such probe is under way.
    pub(super) fn end_probe(
        &mut self,
        probe: ProbeId,
        result: Result<(), String>,
        now: Now,
        jitter: &mut Jitter,
    ) -> Option<(PeerId, Proof)> {
        let id = self.probes.remove(&probe)?;
        let peer = self.get_mut(id)?;
        let (_, begun) = peer.probing.take()?;
        if peer.users == 0 {
            self.free_if_unused(id);
            return None;
        }
        let Err(reason) = result else {
            return Some((id, self.succeeded(id, now.wall)));
        };
        peer.reason = reason;
        let (since, probes, proof) = match peer.health {
            Health::Down { since, probes, .. } => (since, probes + 1, Proof::StillAway),
            Health::Unproven | Health::Up => (now.mono, 1, Proof::Gone),
        };
        let longest = match now.mono.since(since) < AT_FIRST {
            true => PROBE_PAUSE_AT_FIRST,
            false => PROBE_PAUSE_LATER,
        };
        let pause = jitter.shorten(doubled(SHORTEST_PROBE_PAUSE, longest, probes));
        peer.health = Health::Down {
            since,
            probes,
            next_probe: begun + pause,
        };
        if proof == Proof::Gone {
            peer.reachable = Some(false);
            peer.since = now.wall;
            self.away.insert(id);
        }
        Some((id, proof))
    }

    /// A probe or a sync reached the peer.
    pub(super) fn succeeded(&mut self, id: PeerId, wall: UnixSecs) -> Proof {
        let Some(peer) = self.get_mut(id) else {
            return Proof::There;
        };
        let proof = match peer.health {
            Health::Down { .. } => Proof::Back,
            Health::Unproven | Health::Up => Proof::There,
        };
        if peer.reachable != Some(true) {
            peer.since = wall;
        }
        peer.health = Health::Up;
        peer.reachable = Some(true);
        peer.reason.clear();
        self.away.remove(&id);
        proof
    }

    /// A dsync process has seen how it and this node are called. True: in the same way, and that was not known.
    pub(super) fn is_called(&mut self, id: PeerId, hostnames: &Hostnames, now: Mono) -> bool {
        let Some(peer) = self.get_mut(id) else {
            return false;
        };
        let is_known = peer.same_hostname(now) == Some(&*hostnames.own);
        peer.hostnames = Some((hostnames.clone(), now));
        hostnames.are_the_same() && !is_known
    }

    /// When the next probe of a peer that is away is to begin.
    pub(super) fn next_probe(&self) -> Option<Mono> {
        self.next_probes().map(|(_, at)| at).min()
    }

    pub(super) fn due_probe(&self, now: Mono) -> Option<PeerId> {
        let mut probes = self.next_probes();
        probes.find(|(_, at)| *at <= now).map(|(id, _)| id)
    }

    fn next_probes(&self) -> impl Iterator<Item = (PeerId, Mono)> {
        let away = self.away.iter();
        away.filter_map(|id| Some((*id, self.get(*id)?.next_probe()?)))
    }

    fn get_mut(&mut self, id: PeerId) -> Option<&mut Peer> {
        self.slots.get_mut(id.slot())?.as_mut()
    }
}

impl Peer {
    /// The host name that it shares with this node.
    pub(super) fn same_hostname(&self, now: Mono) -> Option<&[u8]> {
        let hostnames = self.hostnames(now)?;
        hostnames.are_the_same().then_some(&hostnames.own)
    }

    /// How this node's host name compares with its; None where it is not known.
    pub(super) fn order(&self, now: Mono) -> Option<Ordering> {
        self.hostnames(now).map(Hostnames::order)
    }

    fn hostnames(&self, now: Mono) -> Option<&Hostnames> {
        let (hostnames, seen) = self.hostnames.as_ref()?;
        (now.since(*seen) < HOSTNAMES_BELIEVED).then_some(hostnames)
    }

    pub(super) fn next_probe(&self) -> Option<Mono> {
        match self.health {
            Health::Down { next_probe, .. } if self.probing.is_none() => Some(next_probe),
            _ => None,
        }
    }
}

fn can_be_probed(target: &[u8]) -> bool {
    target.starts_with(b"tcp:") || target.starts_with(b"tcps:")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Now {
        Now {
            mono: Mono(millis),
            wall: UnixSecs(u32::try_from(millis / 1000).expect("small")),
        }
    }

    fn fail(peers: &mut Peers, id: PeerId, now: u64, jitter: &mut Jitter) -> Option<Proof> {
        let probe = peers.begin_probe(id, Mono(now))?;
        let proof = peers.end_probe(probe, Err("refused".into()), at(now), jitter);
        proof.map(|(_, proof)| proof)
    }

    #[test]
    fn probes_of_a_peer_that_is_away_are_close_at_first_and_rarer_later() {
        let mut jitter = Jitter::new(1);
        let mut peers = Peers::default();
        let id = peers.add_user(b"tcp:peer").expect("room");
        assert_eq!(peers.gate(id), Gate::Closed);
        let mut now = 0;
        assert_eq!(fail(&mut peers, id, now, &mut jitter), Some(Proof::Gone));
        let mut pauses = Vec::new();
        while now < 3_600_000 {
            assert_eq!(peers.begin_probe(id, Mono(now)), None);
            let next = peers.next_probe().expect("down").0;
            pauses.push((now, next - now));
            now = next;
            assert_eq!(
                fail(&mut peers, id, now, &mut jitter),
                Some(Proof::StillAway)
            );
        }
        let close = pauses.iter().filter(|(at, _)| *at < 300_000);
        assert!(close.clone().all(|(_, pause)| *pause <= 1500));
        assert!(close.count() > 200);
        assert!(pauses.iter().all(|(_, pause)| *pause <= 30_000));
        assert!(pauses.iter().any(|(_, pause)| *pause > 20_000));
    }

    #[test]
    fn peer_that_answers_again_is_back_once() {
        let mut jitter = Jitter::new(1);
        let mut peers = Peers::default();
        let id = peers.add_user(b"tcps:peer:1").expect("room");
        assert_eq!(fail(&mut peers, id, 0, &mut jitter), Some(Proof::Gone));
        let probe = peers.begin_probe(id, Mono(2000)).expect("due");
        let proof = peers.end_probe(probe, Ok(()), at(2100), &mut jitter);
        assert_eq!(proof, Some((id, Proof::Back)));
        assert_eq!(peers.gate(id), Gate::Open);
        assert_eq!(peers.succeeded(id, UnixSecs(3)), Proof::There);
        assert_eq!(peers.get(id).expect("there").since, UnixSecs(2));
        assert_eq!(peers.end_probe(probe, Ok(()), at(2200), &mut jitter), None);
    }

    #[test]
    fn targets_without_a_port_to_probe_are_always_open() {
        let mut peers = Peers::default();
        let id = peers.add_user(b"remote:vmail@host").expect("room");
        assert_eq!(peers.gate(id), Gate::Open);
        assert!(!peers.suspect(id));
        assert_eq!(peers.gate(id), Gate::Open);
    }

    #[test]
    fn table_takes_its_maximum_and_a_slot_without_users_is_used_again() {
        let mut peers = Peers::default();
        let all: Vec<_> = (0..MAX_PEERS)
            .map(|n| peers.add_user(format!("tcp:h{n}").as_bytes()))
            .collect();
        assert!(all.iter().all(Option::is_some));
        assert_eq!(peers.add_user(b"tcp:more"), None);
        peers.remove_user(all[5].expect("room"));
        assert_eq!(peers.add_user(b"tcp:more"), all[5]);
        assert_eq!(peers.find(b"tcp:h5"), None);
        assert_eq!(peers.add_user(b""), None);
        assert_eq!(peers.add_user(&[b't'; MAX_TARGET_BYTES + 1]), None);
    }
}
