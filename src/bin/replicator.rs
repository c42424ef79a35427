//! The service executable `replicator`.

fn main() {}
