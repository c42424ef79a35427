//! The service executable `aggregator`.

use std::process::ExitCode;

use dovecot_replication::host::daemon::{self, AGGREGATOR};
use dovecot_replication::services::aggregator::{Aggregator, Config, Prepared};

fn main() -> ExitCode {
    daemon::run(
        &AGGREGATOR,
        |settings| {
            let config = Config {
                state_dir: settings.state_dir.clone(),
                replicator_host: settings.replicator_host.clone(),
                replicator_port: settings.replicator_port,
                owner: settings.owner,
            };
            Prepared::open(&config).map_err(|e| e.to_string())
        },
        |prepared, now| Aggregator::start(prepared, now).map_err(|e| e.to_string()),
    )
}
