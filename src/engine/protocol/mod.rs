//! The line protocols between the services, as pure codecs: bytes in, plain data out.

pub mod doveadm_command;
pub mod doveadm_json;
pub mod doveadm_server;
pub mod line;
pub mod multiplex;
pub mod replicator_doveadm;
pub mod replicator_notify;
pub mod userdb;
