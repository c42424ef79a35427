//! The daemons around the engine: sockets, store, settings and processes, in safe Rust and without a
//! Dovecot name, so that they run in a test as under Dovecot's master.
#![forbid(unsafe_code)]

pub mod aggregator;
pub mod daemon;

pub mod replicator;
pub mod thread;
