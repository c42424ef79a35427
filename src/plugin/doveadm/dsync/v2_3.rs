//! What is 2.3's own: options come one by one, `-U` is stock's, and stock sends the NOTIFY.

use std::ffi::c_int;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::{Context, Kind, client_output, ffi, guard, is_root, is_served, stock_of, table, with};

type Close = unsafe extern "C" fn(*mut ffi::iostream_private, bool);

/// A `sync` without `-U` is not the replicator's.
pub const WATCHES_EVERY_SYNC: bool = false;

/// What `sync -U` of a user ends with who is marked noreplicate.
pub const REFUSED_SYNC: c_int = ffi::DOVEADM_EX_NOREPLICATE as c_int;

/// No effective user to go back to.
const NOBODY: u32 = u32::MAX;

static STOCK_CLOSE: Mutex<Option<Close>> = Mutex::new(None);
/// The mail user's uid while the close of the connection has made the process root.
static LOWER_TO: AtomicU32 = AtomicU32::new(NOBODY);

/// Takes over what only this version has.
pub fn take_over(v: &mut ffi::doveadm_mail_cmd_vfuncs) {
    v.parse_arg = Some(parse_arg);
}

/// They have come to `parse_arg`.
pub const fn read_options(_: *mut Context) {}

/// `-d` is stock's.
pub const fn has_destination(
    _: *mut Context,
    _: *mut ffi::mail_storage_service_user,
    _: *mut *const std::ffi::c_char,
) -> bool {
    true
}

/// Stock sends the NOTIFY of a command line that is not root's.
pub fn notifies_for_command_line() -> bool {
    is_root()
}

/// Whether the peer has answered so in prerun; stock goes on without a connection and panics.
pub const fn is_refused_by_peer(exit_code: c_int) -> bool {
    exit_code == REFUSED_SYNC
}

/// Stock tells the replicator where `-U` was given.
pub const fn stock_notifies(notify: bool) -> bool {
    notify
}

unsafe extern "C" fn parse_arg(context: *mut Context, option: c_int) -> bool {
    let taken = guard("parse_arg", false, || note(context, option));
    if taken {
        return true;
    }
    match stock_of(context).and_then(|stock| stock.parse_arg) {
        // SAFETY: stock's own function with what it was to be called with.
        Some(stock) => unsafe { stock(context, option) },
        None => false,
    }
}

/// Whether the option is ours alone.
fn note(context: *mut Context, option: c_int) -> bool {
    if option == c_int::from(b's') {
        with(context, |w| w.gets_state = true);
    }
    option == c_int::from(b'U') && note_notify(context)
}

/// A root's command line whose stock NOTIFY would come after it is root no more.
fn note_notify(context: *mut Context) -> bool {
    let ours_alone = !is_served(context) && is_root();
    with(context, |w| {
        w.notify = true;
        w.kind == Kind::Server && ours_alone
    })
    .unwrap_or(false)
}

/// Has the close of the client's connection seen, after which stock sends its NOTIFY.
pub fn before_run(context: *mut Context) {
    let wanted = with(context, |w| {
        w.kind == Kind::Server && w.began_as_root && !is_root()
    });
    if wanted != Some(true) {
        return;
    }
    let output = client_output(context);
    if !output.is_null() {
        // SAFETY: the client's stream lives as long as the command; `after_run` takes the function out again.
        let stock = unsafe { ffi::replication_doveadm_replace_close(output, Some(close)) };
        *table(&STOCK_CLOSE) = stock;
    }
}

unsafe extern "C" fn close(stream: *mut ffi::iostream_private, close_parent: bool) {
    let stock = table(&STOCK_CLOSE).take();
    if let Some(stock) = stock {
        // SAFETY: puts back what was there.
        unsafe { ffi::replication_doveadm_restore_close(stream, Some(stock)) };
        // SAFETY: stock's own function with what it was to be called with.
        unsafe { stock(stream, close_parent) };
        guard("close", (), become_root_for_notify);
    }
}

/// Only if nothing but the NOTIFY is still to come: a connection that is lost is closed at once, within the ioloop, and what dsync has got so
/// far is saved after that, with the mail user's rights. Stock's NOTIFY of such a sync does not reach a socket that is root's.
fn become_root_for_notify() {
    // SAFETY: no precondition.
    if unsafe { ffi::replication_doveadm_is_in_ioloop() } {
        return;
    }
    // SAFETY: no precondition.
    let uid = unsafe { libc::geteuid() };
    // Known before it is needed: nothing may keep `after_run` from lowering it again.
    LOWER_TO.store(uid, Relaxed);
    // SAFETY: fails where the process may not; then all is as stock has it.
    unsafe { libc::seteuid(0) };
}

/// Gives back what was taken for the run. Never panics.
pub fn after_run(context: *mut Context) {
    let uid = LOWER_TO.swap(NOBODY, Relaxed);
    if uid != NOBODY {
        // SAFETY: a process that was root may become any user; to go on as root would be worse than to die.
        if unsafe { libc::seteuid(uid) } != 0 {
            std::process::abort();
        }
    }
    if let Some(stock) = table(&STOCK_CLOSE).take() {
        // SAFETY: the stream was never closed, so it is still there; puts back what was there.
        unsafe { ffi::replication_doveadm_replace_close(client_output(context), Some(stock)) };
    }
}
