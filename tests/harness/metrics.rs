//! What a node's replicator counts.

use super::node::Node;
use super::{Outcome, PATIENCE};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

/// What the replicator has done since its start, and what there is now: its `METRICS`.
///
/// # Errors
/// When the replicator does not answer.
pub fn metrics(node: &Node) -> Outcome<BTreeMap<String, u64>> {
    let stream = UnixStream::connect(node.path("run/replicator-doveadm"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    (&stream).write_all(b"VERSION\treplicator-doveadm-client\t1\t0\nMETRICS\n")?;
    let mut counters = BTreeMap::new();
    for line in BufReader::new(stream).lines() {
        let line = line?;
        match line.split_once('\t') {
            Some((name, number)) => {
                if let Ok(number) = number.parse() {
                    counters.insert(name.to_owned(), number);
                }
            }
            None => return Ok(counters),
        }
    }
    Err("METRICS broke off".into())
}

/// One of them.
///
/// # Errors
/// When there is none of that name.
pub fn metric(node: &Node, name: &str) -> Outcome<u64> {
    let counters = metrics(node)?;
    let value = counters.get(name).copied();
    value.ok_or_else(|| format!("no metric {name}").into())
}
