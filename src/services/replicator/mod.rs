//! The service `replicator`.
pub mod store;
