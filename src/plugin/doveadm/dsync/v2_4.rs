//! What is 2.4's own: options are parameters, those of 2.3 that replication needs are added by us, and so is the NOTIFY.

use std::ffi::{c_char, c_int};

use super::{Context, Kind, ffi, with};
use crate::host::doveadm::Command;

/// The replicator's own `sync` is without `-U`.
pub const WATCHES_EVERY_SYNC: bool = true;

/// 2.4 has no code of its own for it.
pub const REFUSED_SYNC: c_int = super::EX_NOUSER;

const EX_NOTFOUND: c_int = 68;

/// All that is taken over is the same in both versions.
pub const fn take_over(_: &mut ffi::doveadm_mail_cmd_vfuncs) {}

/// Reads those that stock does not know.
pub fn read_options(context: *mut Context) {
    // SAFETY: doveadm gave the context to `preinit`, which has not returned.
    let cctx = unsafe { (*context).cctx };
    // SAFETY: doveadm sets it before preinit, for the time of the command.
    let command = unsafe { Command::new(cctx) };
    let notify = command.param_bool(c"replicator-notify");
    let gets_state = command.param_str(c"state").is_some();
    let kind = with(context, |w| {
        w.notify = notify;
        w.gets_state = gets_state;
        w.kind
    });
    if kind != Some(Kind::Sync) || !command.param_bool(c"default-destination") {
        return;
    }
    // SAFETY: as above.
    if unsafe { ffi::replication_doveadm_leave_destination_open(cctx) } {
        with(context, |w| w.destination_is_open = true);
    } else {
        log::error!("Don't give mail location with -d parameter");
    }
}

/// Fills in the destination of `sync -d`; false: the user has none, or it cannot be read.
pub fn has_destination(
    context: *mut Context,
    user: *mut ffi::mail_storage_service_user,
    error_r: *mut *const c_char,
) -> bool {
    if with(context, |w| w.destination_is_open) != Some(true) {
        return true;
    }
    // SAFETY: doveadm gave the context to `prerun`, which has not returned.
    let cctx = unsafe { (*context).cctx };
    // SAFETY: `destination_is_open` says that the destination was left open; the rest is what doveadm gave to prerun.
    match unsafe { ffi::replication_doveadm_fill_destination(cctx, user, error_r) } {
        0 => {
            // SAFETY: doveadm gave a pointer to be written; the text lives for good.
            unsafe { *error_r = c"User has no mail_replica in userdb".as_ptr() };
            // SAFETY: doveadm gave the context to us, and nobody else uses it meanwhile.
            unsafe { (*context).exit_code = EX_NOTFOUND };
            false
        }
        filled => filled > 0,
    }
}

/// Nobody else does.
pub const fn notifies_for_command_line() -> bool {
    true
}

/// Stock takes any code that it does not know as a failure.
pub const fn is_refused_by_peer(_: c_int) -> bool {
    false
}

/// Nothing has to be done during the run.
pub const fn before_run(_: *mut Context) {}

/// As `before_run`.
pub const fn after_run(_: *mut Context) {}

/// 2.4's dsync-server sends no NOTIFY.
pub const fn stock_notifies(_: bool) -> bool {
    false
}
