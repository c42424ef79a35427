//! The service executable `aggregator`.

use std::process::ExitCode;

use dovecot_replication::host::daemon::{self, AGGREGATOR};
use dovecot_replication::services::aggregator::{Aggregator, Prepared};

fn main() -> ExitCode {
    daemon::run(
        &AGGREGATOR,
        |settings| Prepared::open(&settings.aggregator()).map_err(|e| e.to_string()),
        |prepared, now| Aggregator::start(prepared, now).map_err(|e| e.to_string()),
    )
}
