//! The service executable `replicator`.

use std::process::ExitCode;

use dovecot_replication::host::daemon::{self, REPLICATOR};
use dovecot_replication::services::replicator::Replicator;

fn main() -> ExitCode {
    daemon::run(
        &REPLICATOR,
        |settings| Ok(settings.replicator()),
        |settings, now| Replicator::new(settings, now).map_err(|e| e.to_string()),
    )
}
