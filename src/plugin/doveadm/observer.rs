//! What a dsync process sees and the replicator cannot: mailboxes that it brought together, renamed or undeleted, and the peer's
//! host name, which is in the handshake of dsync's stream.
//!
//! Each node's dsyncs keep each other out by a lock on the node whose host name is the lower one. With one name on both, each
//! locks at home only: then both hold what the other waits for.
//!
//! The stream of a dsync-server that serves a `tcp:` peer is the client's. Any other is made in dsync's own code, which keeps it to
//! itself; but it asks the ioloop to read it, for the user's context, which calls those who are interested before it lets anybody read. So
//! it is seen in time, whatever the way to the peer is. The bytes are looked at where dsync has them buffered, none is taken.

use std::cmp::Ordering;
use std::ffi::CStr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::healing::{
    HANDSHAKE_BYTES_MAX, HOSTNAME_BYTES_MAX, Hostnames, Observed, Side, hostname_in_handshake,
    is_ended_after_handshake, locked_at_peer,
};
use crate::host::bindings as ffi;
use crate::host::guard::guard;

/// dsync waits for a lock for whole seconds; what fails before has another reason.
const LOCK_WAIT_MIN: Duration = Duration::from_millis(900);

type Read = unsafe extern "C" fn(*mut ffi::istream_private) -> isize;

/// The stream that is watched, of which a reference is held, its own function, and what reads it.
struct Watched {
    input: usize,
    stock: Read,
    side: Side,
}

/// The peer keeps the lock, and has said nothing since its handshake.
struct Locking {
    since: Instant,
    peer: String,
    /// It ended after so long.
    ended: Option<Duration>,
}

/// A stream that is yet to come: not the client's.
struct Awaited {
    context: usize,
    client: usize,
    side: Side,
}

static OBSERVED: Mutex<Observed> = Mutex::new(Observed {
    guids_healed: 0,
    renames: 0,
    undeleted: 0,
    hostnames: None,
});
static WATCHED: Mutex<Option<Watched>> = Mutex::new(None);
static LOCKING: Mutex<Option<Locking>> = Mutex::new(None);
static AWAITED: Mutex<Option<Awaited>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mailbox with two GUIDs has the peer's now.
pub fn guid_healed() {
    let mut observed = lock(&OBSERVED);
    observed.guids_healed = observed.guids_healed.saturating_add(1);
}

/// dsync has given a mailbox another name.
pub fn renamed() {
    let mut observed = lock(&OBSERVED);
    observed.renames = observed.renames.saturating_add(1);
}

/// A mailbox that was deleted half-way is one again.
pub fn undeleted() {
    let mut observed = lock(&OBSERVED);
    observed.undeleted = observed.undeleted.saturating_add(1);
}

/// What was seen since the last time.
pub fn take() -> Observed {
    std::mem::take(&mut *lock(&OBSERVED))
}

/// Looks for the peer's handshake in what is read from the stream, until `unwatch`.
///
/// # Safety
/// The stream lives, and this is the thread that uses it.
pub unsafe fn watch(input: *mut ffi::istream, side: Side) {
    if input.is_null() || lock(&WATCHED).is_some() {
        return;
    }
    // SAFETY: the caller gives a stream that lives.
    let stream = unsafe { ffi::replication_doveadm_private(input) };
    // SAFETY: as above. Some of it may be there already.
    if unsafe { has_seen_enough(stream, side) } {
        return;
    }
    // SAFETY: as above; `unwatch` gives the reference back.
    unsafe { ffi::i_stream_ref(input) };
    // SAFETY: as above.
    let stock = unsafe { ffi::replication_doveadm_replace_read(stream, Some(read)) };
    *lock(&WATCHED) = stock.map(|stock| Watched {
        input: input as usize,
        stock,
        side,
    });
}

/// Does so with the stream that dsync is about to read, which is not the client's.
pub fn watch_next(client: *mut ffi::istream, side: Side) {
    // SAFETY: runs on the process's only thread, in its ioloop.
    let context = unsafe { ffi::replication_doveadm_on_activate(Some(on_activate)) };
    if !context.is_null() {
        *lock(&AWAITED) = Some(Awaited {
            context: context as usize,
            client: client as usize,
            side,
        });
    }
}

extern "C" fn on_activate() {
    guard("on_activate", (), || {
        // SAFETY: Dovecot calls this within its ioloop.
        let stream = unsafe { ffi::replication_doveadm_newest_stream() };
        let side = lock(&AWAITED)
            .as_ref()
            .filter(|awaited| !stream.is_null() && awaited.client != stream as usize)
            .map(|awaited| awaited.side);
        if let Some(side) = side {
            await_no_more();
            // SAFETY: the ioloop holds it now.
            unsafe { watch(stream, side) };
        }
    });
}

/// Never panics.
fn await_no_more() {
    if let Some(awaited) = lock(&AWAITED).take() {
        let context = awaited.context as *mut ffi::ioloop_context;
        // SAFETY: the context of a user whose command still runs; what was added is removed once.
        unsafe { ffi::replication_doveadm_inactive(context) };
    }
}

/// The line for the log if the sync, which failed, did so because the peer could not have the lock. dsync itself says nothing here: the
/// peer's says it there.
pub fn take_lock_failure() -> Option<String> {
    let locking = lock(&LOCKING).take()?;
    let waited = locking.ended.filter(|waited| *waited >= LOCK_WAIT_MIN)?;
    Some(locked_at_peer(
        &locking.peer,
        waited.as_secs_f64().round() as u64,
    ))
}

/// Gives the stream its own function back. Never panics.
pub fn unwatch() {
    await_no_more();
    if let Some(watched) = lock(&WATCHED).take() {
        let mut input = watched.input as *mut ffi::istream;
        // SAFETY: `watch` holds a reference.
        let stream = unsafe { ffi::replication_doveadm_private(input) };
        // SAFETY: as above.
        unsafe { ffi::replication_doveadm_replace_read(stream, Some(watched.stock)) };
        // SAFETY: as above, and it is given back once.
        unsafe { ffi::i_stream_unref(&raw mut input) };
    }
}

unsafe extern "C" fn read(stream: *mut ffi::istream_private) -> isize {
    let watched = lock(&WATCHED).as_ref().map(|w| (w.stock, w.side));
    let Some((stock, side)) = watched else {
        // `unwatch` took this function out before it forgot the stream's own; C has no way to go on without it.
        std::process::abort();
    };
    // SAFETY: the stream's own function with what it was to be called with.
    let result = unsafe { stock(stream) };
    let seen = || {
        // SAFETY: Dovecot reads this stream now.
        unsafe { has_seen_enough(stream, side) }
    };
    if result > 0 && guard("read", true, seen) {
        unwatch();
    }
    result
}

/// Whether the handshake was there, or will not come.
///
/// # Safety
/// The stream lives.
unsafe fn has_seen_enough(stream: *mut ffi::istream_private, side: Side) -> bool {
    let mut size = 0;
    // SAFETY: the caller says so.
    let data = unsafe { ffi::replication_doveadm_buffered(stream, &raw mut size) };
    if data.is_null() {
        return false;
    }
    // SAFETY: Dovecot has so many bytes there until the next read.
    let data = unsafe { std::slice::from_raw_parts(data, size) };
    if let Some(locking) = lock(&LOCKING).as_mut() {
        return has_ended(locking, data);
    }
    let Some(hostname) = hostname_in_handshake(data) else {
        return size > HANDSHAKE_BYTES_MAX;
    };
    // SAFETY: no precondition.
    let own = unsafe { ffi::my_hostdomain() };
    // SAFETY: a NUL-terminated string that Dovecot keeps.
    let own = unsafe { CStr::from_ptr(own) };
    let is_name = |name: &[u8]| !name.is_empty() && name.len() <= HOSTNAME_BYTES_MAX;
    if !is_name(&hostname) || !is_name(own.to_bytes()) {
        return true;
    }
    let hostnames = Hostnames {
        peer: hostname,
        own: own.to_bytes().to_vec(),
        side,
    };
    // The peer waits for the lock now, if it is to be had there.
    let locking = (side == Side::Ours && hostnames.order() == Ordering::Greater).then(|| Locking {
        since: Instant::now(),
        peer: hostnames.peer.escape_ascii().to_string(),
        ended: None,
    });
    lock(&OBSERVED).hostnames = Some(hostnames);
    let mut kept = lock(&LOCKING);
    *kept = locking;
    kept.as_mut().is_none_or(|locking| has_ended(locking, data))
}

/// Whether the peer has said what is to be seen.
fn has_ended(locking: &mut Locking, data: &[u8]) -> bool {
    let ended = is_ended_after_handshake(data);
    if ended == Some(true) {
        locking.ended = Some(locking.since.elapsed());
    }
    ended.is_some()
}
