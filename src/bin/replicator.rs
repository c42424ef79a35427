//! The service executable `replicator`.

use std::process::ExitCode;

use dovecot_replication::engine::protocol::replicator_doveadm::StatusLayout;
use dovecot_replication::engine::replicator::MAX_REPLICAS;
use dovecot_replication::host::daemon::{self, REPLICATOR};
use dovecot_replication::host::settings::Settings as HostSettings;
use dovecot_replication::services::replicator::{DsyncDialect, Replicator, Settings};

fn main() -> ExitCode {
    daemon::run(
        &REPLICATOR,
        |host| Ok(settings(host)),
        |settings, now| Replicator::new(settings, now).map_err(|e| e.to_string()),
    )
}

/// The name of a user's nth replica in `plugin { }` and in userdb.
fn replica_name(number: usize) -> String {
    match number {
        1 => "mail_replica".to_owned(),
        _ => format!("mail_replica{number}"),
    }
}

fn settings(host: &HostSettings) -> Settings {
    let is_2_4 = daemon::dovecot_version() >= (2, 4, 0);
    Settings {
        base_dir: host.base_dir.clone(),
        state_dir: host.state_dir.clone(),
        auth_socket_path: host.auth_socket_path.clone(),
        doveadm_socket_path: host.doveadm_socket_path.clone(),
        doveadm_password: host.doveadm_password.clone(),
        doveadm_port: host.doveadm_port,
        replication_dsync_parameters: host.replication_dsync_parameters.clone(),
        replication_full_sync_interval: host.replication_full_sync_interval,
        replication_max_conns: host.replication_max_conns,
        mail_replica: (1..=MAX_REPLICAS)
            .map(|number| host.plugin(&replica_name(number)).unwrap_or_default())
            .collect(),
        noreplicate: host.plugin("noreplicate"),
        replication_sync_deadline: host.replication_sync_deadline,
        replication_retry_min_interval: host.replication_retry_min_interval,
        replication_retry_max_interval: host.replication_retry_max_interval,
        replication_probe_timeout: host.replication_probe_timeout,
        status_layout: if daemon::dovecot_version() >= (2, 3, 20) {
            StatusLayout::Seven
        } else {
            StatusLayout::Six
        },
        dsync_dialect: if is_2_4 {
            DsyncDialect::V2_4
        } else {
            DsyncDialect::V2_3
        },
    }
}
