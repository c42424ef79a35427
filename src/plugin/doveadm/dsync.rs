//! `sync` and `dsync-server` with `-U`, wrapped: what replication needs and stock Dovecot 2.3 lacks.
//!
//! - `dsync-server -U` tells the replicator of a sync that the peer ran (NOTIFY) after it has become the mail user, who
//!   may not open a `replicator-doveadm` of mode 0600. Stock code sends the NOTIFY right after it has closed the
//!   connection, and is root meanwhile: so flags and state stay stock's.
//! - `dsync-server -U` of a user marked `noreplicate` answers NOUSER: NOREPLICATE makes the peer's dsync panic.
//! - `sync -U` of such a user ends before it calls the peer, and survives a peer that answers NOREPLICATE.
//! - A doveadm-server process is root again after each, so that it can serve the next user (`service_count = 0`).
//! - `sync -U` ends when it stands still and its client is gone (see `watchdog`).
//!
//! Without `-U` the commands are stock's, untouched.

use std::ffi::{CStr, OsStr, c_int};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::watchdog;
use crate::cli::client;
use crate::host::bindings as ffi;
use crate::host::doveadm::base_dir;
use crate::host::guard::guard;

type Context = ffi::doveadm_mail_cmd_context;
type Alloc = unsafe extern "C" fn() -> *mut Context;
type Close = unsafe extern "C" fn(*mut ffi::iostream_private, bool);

const EX_NOUSER: c_int = 67;
const EX_TEMPFAIL: c_int = 75;
/// Commands whose context was freed without a deinit would stay: the oldest goes beyond this many.
const WRAPPED_MAX: usize = 64;
const NOTIFY_WRITE_TIMEOUT: Duration = Duration::from_secs(1);
/// No effective user to go back to.
const NOBODY: u32 = u32::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Sync,
    Server,
}

/// A command that is wrapped, from its allocation to its deinit.
struct Wrapped {
    context: usize,
    kind: Kind,
    stock: ffi::doveadm_mail_cmd_vfuncs,
    /// `-U` was given.
    notify: bool,
    /// The user is marked noreplicate: nothing is to be done.
    refused: bool,
    /// Root when it began: then it is root again when it ends.
    began_as_root: bool,
    /// The replicator's socket, where the command is not run by doveadm-server and so has no stream whose end is seen.
    replicator: Option<UnixStream>,
}

static STOCK_SYNC: OnceLock<Alloc> = OnceLock::new();
static STOCK_SERVER: OnceLock<Alloc> = OnceLock::new();
static WRAPPED: Mutex<Vec<Wrapped>> = Mutex::new(Vec::new());
static STOCK_CLOSE: Mutex<Option<Close>> = Mutex::new(None);
/// The mail user's uid while the close of the connection has made the process root.
static LOWER_TO: AtomicU32 = AtomicU32::new(NOBODY);

/// Makes `sync` and `dsync-server` allocate their contexts here.
pub fn wrap_commands() {
    wrap_command(c"sync", sync_alloc, &STOCK_SYNC);
    wrap_command(c"dsync-server", server_alloc, &STOCK_SERVER);
}

fn wrap_command(name: &CStr, alloc: Alloc, stock: &OnceLock<Alloc>) {
    // SAFETY: doveadm has set up its commands before it loads modules; the name is NUL-terminated.
    let found = unsafe { ffi::replication_doveadm_replace_alloc(name.as_ptr(), Some(alloc)) };
    if let Some(found) = found {
        // A second init (the module was loaded twice) must not take our own function for stock's.
        if !std::ptr::fn_addr_eq(found, alloc) {
            let _ = stock.set(found);
        }
    }
}

unsafe extern "C" fn sync_alloc() -> *mut Context {
    wrapped_alloc(Kind::Sync, &STOCK_SYNC)
}

unsafe extern "C" fn server_alloc() -> *mut Context {
    wrapped_alloc(Kind::Server, &STOCK_SERVER)
}

fn wrapped_alloc(kind: Kind, stock: &OnceLock<Alloc>) -> *mut Context {
    let Some(alloc) = stock.get() else {
        // Set before doveadm can run a command; C has no way to go on without a context.
        std::process::abort();
    };
    // SAFETY: what doveadm itself would have called.
    let context = unsafe { alloc() };
    guard("alloc", (), || adopt(context, kind));
    context
}

fn table<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn adopt(context: *mut Context, kind: Kind) {
    // SAFETY: the context was allocated just now and is only known here.
    let v = unsafe { &mut (*context).v };
    let mut wrapped = table(&WRAPPED);
    wrapped.retain(|w| w.context != context as usize);
    if wrapped.len() >= WRAPPED_MAX {
        wrapped.remove(0);
    }
    wrapped.push(Wrapped {
        context: context as usize,
        kind,
        stock: *v,
        notify: false,
        refused: false,
        began_as_root: false,
        replicator: None,
    });
    v.parse_arg = Some(parse_arg);
    v.preinit = Some(preinit);
    v.prerun = Some(prerun);
    v.run = Some(run);
    v.deinit = Some(deinit);
}

/// Reads or changes what is known of the command.
fn with<T>(context: *mut Context, read: impl FnOnce(&mut Wrapped) -> T) -> Option<T> {
    table(&WRAPPED)
        .iter_mut()
        .find(|w| w.context == context as usize)
        .map(read)
}

fn stock_of(context: *mut Context) -> Option<ffi::doveadm_mail_cmd_vfuncs> {
    with(context, |w| w.stock)
}

/// Run for a client of doveadm-server, and not from a command line.
fn is_served(context: *mut Context) -> bool {
    // SAFETY: doveadm gave the context to one of our functions, which has not returned.
    let cctx = unsafe { (*context).cctx };
    if cctx.is_null() {
        return false;
    }
    // SAFETY: checked above; doveadm keeps it for the time of the command.
    unsafe { (*cctx).conn_type == ffi::doveadm_client_type_DOVEADM_CONNECTION_TYPE_TCP }
}

fn is_root() -> bool {
    // SAFETY: no precondition.
    unsafe { libc::geteuid() == 0 }
}

unsafe extern "C" fn parse_arg(context: *mut Context, option: c_int) -> bool {
    let taken = option == c_int::from(b'U') && guard("parse_arg", false, || note_notify(context));
    if taken {
        return true;
    }
    match stock_of(context).and_then(|stock| stock.parse_arg) {
        // SAFETY: stock's own function with what it was to be called with.
        Some(stock) => unsafe { stock(context, option) },
        None => false,
    }
}

/// Whether the option is ours alone: a root's command line whose stock NOTIFY would come after it is root no more.
fn note_notify(context: *mut Context) -> bool {
    let ours_alone = !is_served(context) && is_root();
    with(context, |w| {
        w.notify = true;
        w.kind == Kind::Server && ours_alone
    })
    .unwrap_or(false)
}

unsafe extern "C" fn preinit(context: *mut Context) {
    guard("preinit", (), || keep_root_within_reach(context));
    if let Some(stock) = stock_of(context).and_then(|stock| stock.preinit) {
        // SAFETY: stock's own function with what it was to be called with.
        unsafe { stock(context) };
    }
}

/// 2.3.13's doveadm-server gives root up for good where later ones do it for a time.
fn keep_root_within_reach(context: *mut Context) {
    if !is_served(context) {
        return;
    }
    let wanted = with(context, |w| {
        w.began_as_root = w.notify && is_root();
        w.began_as_root
    });
    if wanted == Some(true) {
        // SAFETY: doveadm gave the context to us, and nobody else uses it meanwhile.
        let flags = unsafe { &mut (*context).service_flags };
        *flags |= ffi::mail_storage_service_flags_MAIL_STORAGE_SERVICE_FLAG_TEMP_PRIV_DROP;
    }
}

unsafe extern "C" fn prerun(
    context: *mut Context,
    user: *mut ffi::mail_storage_service_user,
    error_r: *mut *const std::ffi::c_char,
) -> c_int {
    if guard("prerun", false, || {
        before_privileges_are_dropped(context, user)
    }) {
        return 0;
    }
    match stock_of(context).and_then(|stock| stock.prerun) {
        // SAFETY: stock's own function with what it was to be called with.
        Some(stock) => unsafe { stock(context, user, error_r) },
        None => 0,
    }
}

/// Whether the command ends here, with the exit code that `run` will set.
fn before_privileges_are_dropped(
    context: *mut Context,
    user: *mut ffi::mail_storage_service_user,
) -> bool {
    let Some((kind, true)) = with(context, |w| (w.kind, w.notify)) else {
        return false;
    };
    let served = is_served(context);
    // SAFETY: doveadm gave us the user for the time of the call.
    if served && unsafe { ffi::replication_doveadm_noreplicate(user) } {
        with(context, |w| w.refused = true);
        return true;
    }
    match (kind, served) {
        (Kind::Sync, true) => watchdog::arm(client_fd(context)),
        (Kind::Server, false) if is_root() => {
            let replicator = connect_to_replicator();
            with(context, |w| w.replicator = replicator);
        }
        _ => {}
    }
    false
}

fn client_fd(context: *mut Context) -> c_int {
    // SAFETY: `is_served` has found the pointer set.
    let cctx = unsafe { (*context).cctx };
    // SAFETY: as above.
    let input = unsafe { (*cctx).input };
    if input.is_null() {
        return -1;
    }
    // SAFETY: the client's stream lives as long as the command.
    unsafe { ffi::i_stream_get_fd(input) }
}

/// None where no replicator runs here: then there is nobody to tell.
fn connect_to_replicator() -> Option<UnixStream> {
    let mut path = base_dir();
    path.extend_from_slice(b"/replicator-doveadm");
    let stream = UnixStream::connect(Path::new(OsStr::from_bytes(&path))).ok()?;
    stream.set_write_timeout(Some(NOTIFY_WRITE_TIMEOUT)).ok()?;
    Some(stream)
}

unsafe extern "C" fn run(context: *mut Context, user: *mut ffi::mail_user) -> c_int {
    if let Some(code) = guard("run", None, || refusal(context)) {
        // SAFETY: doveadm gave the context to us, and nobody else uses it meanwhile.
        unsafe { (*context).exit_code = code };
        return -1;
    }
    guard("run", (), || watch_close(context));
    let result = match stock_of(context).and_then(|stock| stock.run) {
        // SAFETY: stock's own function with what it was to be called with.
        Some(stock) => unsafe { stock(context, user) },
        None => {
            // SAFETY: as above.
            unsafe { (*context).exit_code = EX_TEMPFAIL };
            -1
        }
    };
    after_run(context);
    if result >= 0 {
        guard("run", (), || notify_ourselves(context, user));
    }
    result
}

/// The exit code with which the command ends before it begins.
fn refusal(context: *mut Context) -> Option<c_int> {
    let noreplicate = c_int::try_from(ffi::DOVEADM_EX_NOREPLICATE).ok()?;
    let (kind, refused) = with(context, |w| (w.kind, w.refused))?;
    if refused {
        return Some(match kind {
            Kind::Sync => noreplicate,
            Kind::Server => EX_NOUSER,
        });
    }
    // The peer has answered in prerun; stock goes on without a connection and panics.
    // SAFETY: doveadm gave the context to us.
    let code = unsafe { (*context).exit_code };
    (kind == Kind::Sync && code == noreplicate).then_some(code)
}

/// Has the close of the client's connection seen, after which stock sends its NOTIFY.
fn watch_close(context: *mut Context) {
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

fn client_output(context: *mut Context) -> *mut ffi::ostream {
    // SAFETY: `began_as_root` is only set where `is_served` has found the pointer set.
    let cctx = unsafe { (*context).cctx };
    // SAFETY: as above.
    unsafe { (*cctx).output }
}

unsafe extern "C" fn close(stream: *mut ffi::iostream_private, close_parent: bool) {
    let stock = table(&STOCK_CLOSE).take();
    if let Some(stock) = stock {
        // SAFETY: puts back what was there.
        unsafe { ffi::replication_doveadm_restore_close(stream, Some(stock)) };
        // SAFETY: stock's own function with what it was to be called with.
        unsafe { stock(stream, close_parent) };
        guard("close", (), become_root);
    }
}

fn become_root() {
    // SAFETY: no precondition.
    let uid = unsafe { libc::geteuid() };
    // Known before it is needed: nothing may keep `after_run` from lowering it again.
    LOWER_TO.store(uid, Relaxed);
    // SAFETY: fails where the process may not; then all is as stock has it.
    unsafe { libc::seteuid(0) };
}

/// Gives back what was taken for the run. Not guarded: it must be done after a panic too, and has none.
fn after_run(context: *mut Context) {
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
    watchdog::disarm();
}

/// Neither flag nor state: only stock's code knows them.
fn notify_ourselves(context: *mut Context, user: *mut ffi::mail_user) {
    let Some(mut replicator) = with(context, |w| w.replicator.take()).flatten() else {
        return;
    };
    // SAFETY: the user lives until the command's run has returned to doveadm.
    let username = unsafe { ffi::replication_doveadm_username(user) };
    // SAFETY: a mail user's name is a NUL-terminated string.
    let username = unsafe { CStr::from_ptr(username) };
    // The replicator may be gone by now: then it knows nothing of any sync, and nothing is lost.
    let _ = replicator.write_all(&client::notify_request(username.to_bytes()));
}

unsafe extern "C" fn deinit(context: *mut Context) {
    let stock = forget(context).and_then(|wrapped| wrapped.stock.deinit);
    if let Some(stock) = stock {
        // SAFETY: stock's own function with what it was to be called with.
        unsafe { stock(context) };
    }
}

/// Not guarded, as `after_run`.
fn forget(context: *mut Context) -> Option<Wrapped> {
    watchdog::disarm();
    let wrapped = {
        let mut all = table(&WRAPPED);
        let at = all.iter().position(|w| w.context == context as usize)?;
        all.remove(at)
    };
    // With `doveadm_port` set the next command of this process begins with a passdb lookup, which auth refuses to a
    // mail user: stock's process is of no more use after its first user.
    if wrapped.began_as_root && !is_root() {
        // SAFETY: fails where the process may not; then the next command finds it as stock would leave it.
        unsafe { libc::seteuid(0) };
    }
    Some(wrapped)
}
