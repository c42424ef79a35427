//! The service executable `aggregator`.

fn main() {}
