//! The service `replicator`.
mod probe;
mod process;
mod settings;
mod socket;
pub mod store;
mod tls;
pub use settings::*;
