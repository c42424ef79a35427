//! `sync` and `dsync-server` with `-U`, wrapped: what replication needs and stock Dovecot lacks. 2.4 knows no `-U`: a module
//! makes it an option of both commands, and all that 2.3 does with it is done here.
//!
//! - `dsync-server -U` tells the replicator of a sync that the peer ran (NOTIFY) after it has become the mail user, who
//!   may not open a `replicator-doveadm` of mode 0600. Stock code sends the NOTIFY right after it has closed the
//!   connection, and is root meanwhile: so flags and state stay stock's. 2.4 sends none, and no 2.3 does without `-U`, which
//!   a peer on 2.4 leaves out: here it is sent after the sync, with neither, as only dsync's own code knows them.
//! - `dsync-server -U` of a user marked `noreplicate` answers NOUSER: NOREPLICATE makes the peer's dsync panic.
//! - `sync -U` of such a user ends before it calls the peer, and survives a peer that answers NOREPLICATE.
//! - A doveadm-server process is root again after each, so that it can serve the next user. `sync -s` tells its client so: the
//!   replicator then gives the process its next one too, and spares both a new connection and a new process.
//! - `sync -U` ends when it stands still and its client is gone, and does not begin without one (see `watchdog`). On 2.4 any `sync` does, for the replicator
//!   does not give it a `-U` that a doveadm without this module would refuse.
//! - Names of mailboxes with a `%` are what they are. dsync escapes names by a `%`, and takes one that a name has for its own: 2.3.19 and 2.3.20 then
//!   rename such a mailbox to itself in each sync, which fails, and later ones take `a%20b` for `a b`. Here it escapes by a character that no name has.
//! - `sync -d` on 2.4 syncs with the user's `mail_replica`, as on 2.3.
//!
//! All else is stock's, untouched.

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::{mailboxes, observer, watchdog};
use crate::cli::client;
use crate::engine::healing::Side;
use crate::engine::protocol::doveadm_server;
use crate::host::bindings as ffi;
use crate::host::doveadm::base_dir;
use crate::host::guard::guard;

#[cfg(not(dovecot_2_4))]
#[path = "dsync/v2_3.rs"]
mod version;
#[cfg(dovecot_2_4)]
#[path = "dsync/v2_4.rs"]
mod version;

type Context = ffi::doveadm_mail_cmd_context;
type Alloc = unsafe extern "C" fn() -> *mut Context;

/// A control character: Dovecot lets no mailbox be created with one.
const NAME_ESCAPE: c_char = 0x01;
const EX_NOUSER: c_int = 67;
const EX_TEMPFAIL: c_int = 75;
/// Commands whose context was freed without a deinit would stay: the oldest goes beyond this many.
const WRAPPED_MAX: usize = 64;
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(1);
/// Of the replicator's greeting and its answer.
const ANSWER_BYTES_MAX: u64 = 4096;

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
    /// The destination is the user's `mail_replica`, to be filled in by us.
    #[cfg(dovecot_2_4)]
    destination_is_open: bool,
    /// `-s` was given.
    gets_state: bool,
    /// Nothing is to be done, and that is the exit code.
    refusal: Option<c_int>,
    /// Root when it began: then it is root again when it ends.
    began_as_root: bool,
    /// The group that it had then.
    began_with_gid: libc::gid_t,
    /// The replicator, for as long as a sync of the peer is served.
    replicator: Option<UnixStream>,
}

static STOCK_SYNC: OnceLock<Alloc> = OnceLock::new();
static STOCK_SERVER: OnceLock<Alloc> = OnceLock::new();
static WRAPPED: Mutex<Vec<Wrapped>> = Mutex::new(Vec::new());

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
        #[cfg(dovecot_2_4)]
        destination_is_open: false,
        gets_state: false,
        refusal: None,
        began_as_root: false,
        // SAFETY: no precondition.
        began_with_gid: unsafe { libc::getegid() },
        replicator: None,
    });
    version::take_over(v);
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

unsafe extern "C" fn preinit(context: *mut Context) {
    guard("preinit", (), || {
        version::read_options(context);
        keep_root_within_reach(context);
    });
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
        w.began_as_root = (w.notify || w.kind == Kind::Server) && is_root();
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
    if !guard("prerun", true, || {
        version::has_destination(context, user, error_r)
    }) {
        return -1;
    }
    // Before the user's mailboxes are set up.
    guard("prerun", (), mailboxes::wrap);
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
    let Some((kind, notify)) = with(context, |w| (w.kind, w.notify)) else {
        return false;
    };
    let served = is_served(context);
    let is_watched = kind == Kind::Sync && served && (notify || version::WATCHES_EVERY_SYNC);
    // SAFETY: doveadm gave us the user for the time of the call.
    let refusal = if notify && served && unsafe { ffi::replication_doveadm_noreplicate(user) } {
        Some(match kind {
            Kind::Sync => version::REFUSED_SYNC,
            Kind::Server => EX_NOUSER,
        })
    } else if is_watched && watchdog::has_hung_up(client_fd(context)) {
        // Nobody waits for it any more.
        Some(EX_TEMPFAIL)
    } else {
        None
    };
    with(context, |w| w.refusal = refusal);
    if refusal.is_some() {
        return true;
    }
    match (kind, served) {
        (Kind::Sync, true) if is_watched => watchdog::arm(client_fd(context)),
        (Kind::Server, false) if notify && version::notifies_for_command_line() => {
            let replicator = connect_to_replicator();
            with(context, |w| w.replicator = replicator);
        }
        _ => {}
    }
    false
}

/// Of a context that is served.
fn client_input(context: *mut Context) -> *mut ffi::istream {
    // SAFETY: `is_served` has found the pointer set.
    let cctx = unsafe { (*context).cctx };
    // SAFETY: as above.
    unsafe { (*cctx).input }
}

/// As `client_input`.
fn client_output(context: *mut Context) -> *mut ffi::ostream {
    // SAFETY: `is_served` has found the pointer set.
    let cctx = unsafe { (*context).cctx };
    // SAFETY: as above.
    unsafe { (*cctx).output }
}

fn client_fd(context: *mut Context) -> c_int {
    let input = client_input(context);
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
    let address = SocketAddrUnix::new(OsStr::from_bytes(&path)).ok()?;
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
    // It is also how long a full listen queue is waited for.
    set_socket_timeout(&socket, Timeout::Send, Some(NOTIFY_TIMEOUT)).ok()?;
    set_socket_timeout(&socket, Timeout::Recv, Some(NOTIFY_TIMEOUT)).ok()?;
    connect(&socket, &address).ok()?;
    let mut stream = UnixStream::from(socket);
    stream.write_all(client::HELLO).ok()?;
    Some(stream)
}

unsafe extern "C" fn run(context: *mut Context, user: *mut ffi::mail_user) -> c_int {
    if let Some(code) = guard("run", None, || refusal(context)) {
        // SAFETY: doveadm gave the context to us, and nobody else uses it meanwhile.
        unsafe { (*context).exit_code = code };
        return -1;
    }
    guard("run", (), || {
        version::before_run(context);
        // SAFETY: the user lives until this function has returned, and dsync has not yet begun with it.
        unsafe { ffi::replication_doveadm_escape_names(user, NAME_ESCAPE) };
        watch_handshake(context);
        tell_begin(context, user);
    });
    let result = match stock_of(context).and_then(|stock| stock.run) {
        // SAFETY: stock's own function with what it was to be called with.
        Some(stock) => unsafe { stock(context, user) },
        None => {
            // SAFETY: as above.
            unsafe { (*context).exit_code = EX_TEMPFAIL };
            -1
        }
    };
    // Not guarded: it must be done after a panic too, and has none.
    version::after_run(context);
    observer::unwatch();
    watchdog::disarm();
    mailboxes::forget();
    guard("run", (), || tell_end(context, user, result < 0));
    guard("run", (), || say_lock_failure(result < 0));
    guard("run", (), || say_ready(context));
    result
}

/// A field of its own after the state, also where there is no state.
fn say_ready(context: *mut Context) {
    let wanted = with(context, |w| {
        let is_replicators = w.notify || version::WATCHES_EVERY_SYNC;
        w.kind == Kind::Sync && is_replicators && w.gets_state
    });
    if wanted != Some(true) || !is_served(context) {
        return;
    }
    let output = client_output(context);
    if output.is_null() {
        return;
    }
    let field = [b"\t", doveadm_server::READY, b"\t"].concat();
    // SAFETY: doveadm set up its output before it ran the command; the state may still wait there.
    unsafe { ffi::doveadm_print_flush() };
    // SAFETY: the client's stream lives as long as the command; the bytes are copied.
    unsafe { ffi::o_stream_nsend(output, field.as_ptr().cast(), field.len()) };
}

/// The exit code with which the command ends before it begins.
fn refusal(context: *mut Context) -> Option<c_int> {
    let (kind, refusal) = with(context, |w| (w.kind, w.refusal))?;
    if refusal.is_some() {
        return refusal;
    }
    // SAFETY: doveadm gave the context to us.
    let code = unsafe { (*context).exit_code };
    (kind == Kind::Sync && version::is_refused_by_peer(code)).then_some(code)
}

/// The replicator is to know that this process works on the user's mailboxes: should it be killed, only the end of this connection says
/// that a sync was cut off.
fn tell_begin(context: *mut Context, user: *mut ffi::mail_user) {
    if with(context, |w| w.kind) != Some(Kind::Server) {
        return;
    }
    let connected = with(context, |w| w.replicator.take()).flatten();
    let connected = match is_served(context) {
        true => connect_as_root(),
        false => connected,
    };
    if let Some(mut replicator) = connected {
        let request = client::serving_request(&username(user));
        if replicator.write_all(&request).is_ok() {
            with(context, |w| w.replicator = Some(replicator));
        }
    }
}

/// The replicator may be gone by now: then it knows nothing of any sync, and nothing is lost.
fn tell_end(context: *mut Context, user: *mut ffi::mail_user, failed: bool) {
    let mut replicator = with(context, |w| w.replicator.take()).flatten();
    let notifies = match is_served(context) {
        // Also where the sync has no `-U`, which a replicator on 2.4 leaves out.
        true => {
            with(context, |w| {
                w.kind == Kind::Server && !version::stock_notifies(w.notify)
            }) == Some(true)
        }
        // There is a connection only where it is for us to notify.
        false => replicator.is_some(),
    };
    tell_observed(&mut replicator, user, failed);
    if notifies && !failed {
        // Neither flag nor state: only stock's code knows them.
        tell(&mut replicator, &client::notify_request(&username(user)));
    }
    if let Some(replicator) = &mut replicator {
        let _ = replicator.write_all(client::SERVED);
    }
}

/// Over a connection that is there, or a new one.
fn tell(replicator: &mut Option<UnixStream>, request: &[u8]) {
    if replicator.is_none() {
        *replicator = connect_as_root();
    }
    if let Some(replicator) = replicator {
        let _ = replicator.write_all(request);
    }
}

fn username(user: *mut ffi::mail_user) -> Vec<u8> {
    // SAFETY: the user lives until the command's run has returned to doveadm.
    let username = unsafe { ffi::replication_doveadm_username(user) };
    // SAFETY: a mail user's name is a NUL-terminated string.
    unsafe { CStr::from_ptr(username) }.to_bytes().to_vec()
}

/// Where the peer's handshake comes.
fn watch_handshake(context: *mut Context) {
    let Some((kind, notify)) = with(context, |w| (w.kind, w.notify)) else {
        return;
    };
    let is_replicators = notify || version::WATCHES_EVERY_SYNC;
    let served = is_served(context);
    match kind {
        // SAFETY: the client's stream lives as long as the command.
        Kind::Server if served => unsafe { observer::watch(client_input(context), Side::Peers) },
        Kind::Server if is_replicators => observer::watch_next(ptr::null_mut(), Side::Peers),
        Kind::Sync if is_replicators && served => {
            observer::watch_next(client_input(context), Side::Ours);
        }
        _ => {}
    }
}

/// The replicator reads it as the reason.
fn say_lock_failure(failed: bool) {
    let failure = observer::take_lock_failure();
    if let Some(line) = failure.filter(|_| failed) {
        log::error!("{line}");
    }
}

/// Tells the replicator what this process saw, if it saw anything.
fn tell_observed(replicator: &mut Option<UnixStream>, user: *mut ffi::mail_user, failed: bool) {
    let mut observed = observer::take();
    observed.keep_hostnames_that_matter(failed);
    if observed.is_empty() {
        return;
    }
    let request = client::observed_request(&username(user), &observed);
    tell(replicator, &request);
    if let Some(replicator) = replicator {
        await_answer(replicator);
    }
}

/// The replicator is to know it before it hears, on another connection, how the sync ended: then it knows of which peer it is, and what a
/// lock is to mean. It is rare that anything is told, and the wait is short.
fn await_answer(replicator: &UnixStream) {
    let greeting_and_answer = BufReader::new(replicator.take(ANSWER_BYTES_MAX))
        .lines()
        .take(2);
    let _ = greeting_and_answer.take_while(Result::is_ok).count();
}

/// The mail user may not open the replicator's socket where only root may, so the process is root for the time of the connect, if it
/// was when it began.
fn connect_as_root() -> Option<UnixStream> {
    let _root = Root::for_a_moment();
    connect_to_replicator()
}

/// The process is root until this is dropped.
struct Root {
    lower_to: Option<u32>,
}

impl Root {
    fn for_a_moment() -> Self {
        // SAFETY: no precondition.
        let uid = unsafe { libc::geteuid() };
        // SAFETY: fails where the process may not; then the socket is tried as the mail user.
        let raised = !is_root() && unsafe { libc::seteuid(0) } == 0;
        Self {
            lower_to: raised.then_some(uid),
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Some(uid) = self.lower_to {
            // SAFETY: a process that is root may become any user; to go on as root would be worse than to die.
            if unsafe { libc::seteuid(uid) } != 0 {
                std::process::abort();
            }
        }
    }
}

unsafe extern "C" fn deinit(context: *mut Context) {
    let stock = forget(context).and_then(|wrapped| wrapped.stock.deinit);
    if let Some(stock) = stock {
        // SAFETY: stock's own function with what it was to be called with.
        unsafe { stock(context) };
    }
}

/// Not guarded, as `version::after_run`.
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
        // A user without a group is refused by what Dovecot finds here, and does not get the last user's.
        // SAFETY: as above.
        unsafe { libc::setegid(wrapped.began_with_gid) };
    }
    Some(wrapped)
}
