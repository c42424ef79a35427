//! Real Dovecots for tests: targets, nodes, clients, and a reader in the aggregator's place.
//!
//! Promises: a node touches nothing outside its own directory, is ended by its pid, and fails its
//! test on a core file, a panic or an error line that the test did not name. Needs root, as Dovecot
//! does. Left out on purpose: anything that knows how the plugin is written; only its file is known.

// Each test binary uses another part of the harness.
#![allow(dead_code, unused_imports, clippy::indexing_slicing)]

pub mod client;
pub mod compare;
pub mod configuration;
pub mod convergence;
pub mod disk;
pub mod doveadm_node;
pub mod fake_doveadm;
pub mod fake_replicator;
pub mod faults;
pub mod load;
pub mod metrics;
pub mod node;
pub mod pair;
pub mod ports;
pub mod proxy;
pub mod reader;
pub mod run;
pub mod target;

use std::time::{Duration, Instant};

pub use client::{Imap, Lmtp, Pop3, Sieve};
pub use configuration::{Format, Replication, Series};
pub use doveadm_node::DoveadmNode;
pub use fake_doveadm::FakeDoveadm;
pub use fake_replicator::FakeReplicator;
pub use libtest_mimic::Failed;
pub use metrics::{metric, metrics};
pub use node::{Node, User};
pub use pair::Pair;
pub use reader::{Line, Reader, Reply, Via};
pub use target::{Implementation, Target};

/// What a trial or a step of it ends in.
pub type Outcome<T = ()> = Result<T, Failed>;

/// The longest wait for an event that is certain to come on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Calls `look` until it sees the event, at most `patience` long; `what` names the event.
///
/// # Errors
/// When the event did not come.
pub fn wait_for<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Outcome<Option<T>>,
) -> Outcome<T> {
    let start = Instant::now();
    loop {
        if let Some(seen) = look()? {
            return Ok(seen);
        }
        if start.elapsed() > patience {
            return Err(format!("{what}: not within {patience:?}").into());
        }
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// Fails with `message` unless `condition` holds.
///
/// # Errors
/// When it does not.
pub fn check(condition: bool, message: impl FnOnce() -> String) -> Outcome {
    if condition {
        Ok(())
    } else {
        Err(message().into())
    }
}
