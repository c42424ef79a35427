//! The decisions, pure: no clock, file, socket, thread, global, log, or iteration in hash order.
//!
//! Time and randomness are arguments. Inputs are methods `handle_*`, outputs are plain data taken
//! with `poll_*`. Everything here runs in a test without Dovecot.
#![forbid(unsafe_code)]

pub mod aggregator;
mod priority;
pub mod strescape;
pub mod time;

pub use priority::Priority;
