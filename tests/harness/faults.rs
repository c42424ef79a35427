//! Faults that come and go while a pair is written on.

use super::proxy::Link;
use super::{Node, Outcome, Pair};
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Something that goes wrong for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// SIGKILL to the aggregator.
    KillAggregator,
    /// SIGKILL to the replicator.
    KillReplicator,
    /// SIGKILL to every dsync.
    KillDsync,
    /// SIGSTOP to the aggregator, for some seconds.
    StopAggregator,
    /// SIGSTOP to the replicator, for some seconds.
    StopReplicator,
    /// SIGSTOP to every dsync, for some seconds.
    StopDsync,
    /// The node is stopped and started again.
    NodeDown,
    /// The link to the node is cut.
    LinkCut,
    /// Connections to the node are cut in the middle.
    LinkCutInMail,
    /// The link to the node is slow.
    LinkSlow,
    /// Nothing comes through the link to the node.
    LinkStalled,
    /// The file systems of mail and of the queue are full.
    DiskFull,
}

/// All of them.
pub const ALL: [Fault; 12] = [
    Fault::KillAggregator,
    Fault::KillReplicator,
    Fault::KillDsync,
    Fault::StopAggregator,
    Fault::StopReplicator,
    Fault::StopDsync,
    Fault::NodeDown,
    Fault::LinkCut,
    Fault::LinkCutInMail,
    Fault::LinkSlow,
    Fault::LinkStalled,
    Fault::DiskFull,
];

/// How often each fault came; and to how many processes or nodes.
pub type Counts = BTreeMap<Fault, u64>;

impl Fault {
    /// As the table names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KillAggregator => "SIGKILL aggregator",
            Self::KillReplicator => "SIGKILL replicator",
            Self::KillDsync => "SIGKILL dsync",
            Self::StopAggregator => "SIGSTOP aggregator",
            Self::StopReplicator => "SIGSTOP replicator",
            Self::StopDsync => "SIGSTOP dsync",
            Self::NodeDown => "node down",
            Self::LinkCut => "link cut",
            Self::LinkCutInMail => "link cut in a mail",
            Self::LinkSlow => "link slow",
            Self::LinkStalled => "link stalled",
            Self::DiskFull => "disk full",
        }
    }

    /// Lets it happen to one node for `duration`, and ends it; how many it hit.
    fn happen(self, pair: &Pair, side: usize, duration: Duration) -> Outcome<u64> {
        let node = [&pair.a, &pair.b][side];
        let link = |link| {
            let Some(proxy) = pair.proxies.get(side) else {
                return 0;
            };
            proxy.set(link);
            std::thread::sleep(duration);
            proxy.set(Link::Up);
            1
        };
        Ok(match self {
            Self::KillAggregator => signal(node, "aggregator", Signal::KILL),
            Self::KillReplicator => signal(node, "replicator", Signal::KILL),
            Self::KillDsync => signal(node, "doveadm-server", Signal::KILL),
            Self::StopAggregator => pause(node, "aggregator", duration),
            Self::StopReplicator => pause(node, "replicator", duration),
            Self::StopDsync => pause(node, "doveadm-server", duration),
            Self::NodeDown => {
                node.stop()?;
                std::thread::sleep(duration);
                node.restart()?;
                1
            }
            Self::LinkCut => link(Link::Cut),
            Self::LinkCutInMail => link(Link::CutAfter(40_000)),
            Self::LinkSlow => link(Link::Slow(Duration::from_millis(100))),
            Self::LinkStalled => link(Link::Stalled),
            Self::DiskFull => {
                node.disks().iter().try_for_each(|disk| disk.fill())?;
                std::thread::sleep(duration);
                node.disks().iter().try_for_each(|disk| disk.free())?;
                u64::from(!node.disks().is_empty())
            }
        })
    }
}

/// A signal to each process of the name that is there; how many.
fn signal(node: &Node, name: &str, signal: Signal) -> u64 {
    let pids = node.processes(name).unwrap_or_default();
    // A dsync may end between the two.
    let sent = pids.iter().filter(|pid| node.signal(**pid, signal).is_ok());
    sent.count() as u64
}

fn pause(node: &Node, name: &str, duration: Duration) -> u64 {
    let pids = node.processes(name).unwrap_or_default();
    let stopped: Vec<i32> = pids
        .into_iter()
        .filter(|pid| node.signal(*pid, Signal::STOP).is_ok())
        .collect();
    std::thread::sleep(duration);
    for pid in &stopped {
        // It may have been killed, but not yet waited for.
        let _gone = node.signal(*pid, Signal::CONT);
    }
    stopped.len() as u64
}

/// Lets one of `faults` after the other happen, each on either node, until `end`. All are over when it returns.
///
/// # Errors
/// When a node does not come back.
pub fn rain(
    pair: &Pair,
    faults: &[Fault],
    random: &mut fastrand::Rng,
    end: Instant,
) -> Outcome<Counts> {
    const LONGEST: f64 = 2.5;
    let mut counts = Counts::new();
    let mut left: Vec<Fault> = Vec::new();
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(random.u64(200..1200)));
        if left.is_empty() {
            left = faults.to_vec();
            random.shuffle(&mut left);
        }
        let Some(fault) = left.pop() else { break };
        let duration = Duration::from_secs_f64(0.2 + random.f64() * LONGEST);
        let hit = fault.happen(pair, random.usize(..2), duration)?;
        *counts.entry(fault).or_default() += hit;
    }
    Ok(counts)
}
