//! What the engine promises, by name. Numbers in brackets are the stock replicator's defects (STOCK.md of the design).

use std::collections::BTreeSet;
use std::time::Duration;

use super::world::{World, state_of};
use super::*;
use crate::engine::Priority;

mod commands;
mod durability;
mod failures;
mod healing;
mod locks;
mod peers;
mod peers_syncs;
mod renames;
mod schedule;
mod settle;
mod users;
mod waiting;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

fn world(users: usize) -> World {
    World::with_users(Config::default(), users)
}

fn small(max_conns: usize, users: usize) -> World {
    let config = Config {
        max_conns,
        ..Config::default()
    };
    World::with_users(config, users)
}

fn changed() -> SyncOutcome {
    let state = state_of(0);
    SyncOutcome::Changed { state }
}

fn replica(world: &World, username: &str) -> ReplicaDetails {
    let details = world.engine.show(world.now, username.as_bytes());
    details.expect("known").replicas.swap_remove(0)
}

fn errors(world: &World, text: &str) -> usize {
    let log = world.log.iter();
    log.filter(|event| event.text.contains(text)).count()
}

/// The time until the engine starts the next sync, everything but dsync being answered at once.
fn time_to_next_sync(world: &mut World) -> Duration {
    let begin = world.now.mono;
    let started = world.started.len();
    while world.started.len() == started {
        world.settle_but_syncs();
        if world.started.len() == started {
            world.step_time(HOUR);
        }
        assert!(world.now.mono.since(begin) <= 3 * HOUR, "never");
    }
    world.now.mono.since(begin)
}
