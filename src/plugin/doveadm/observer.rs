//! What a dsync process sees and the replicator cannot: mailboxes that it brought together, and whether the peer has this
//! node's own host name, which is in the handshake of dsync's stream.
//!
//! Each node's dsyncs keep each other out by a lock on the node whose host name is the lower one. With one name on both, each
//! locks at home only: then both hold what the other waits for. Only dsync-server of a `tcp:` peer is watched: it is there that the
//! stream is known before dsync reads it. The bytes are looked at where dsync has them buffered, none is taken.

use std::ffi::CStr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::engine::healing::{HANDSHAKE_BYTES_MAX, Observed, hostname_in_handshake};
use crate::host::bindings as ffi;
use crate::host::guard::guard;

type Read = unsafe extern "C" fn(*mut ffi::istream_private) -> isize;

/// The stream that is watched, and its own function.
struct Watched {
    stream: usize,
    stock: Read,
}

static OBSERVED: Mutex<Observed> = Mutex::new(Observed {
    guids_healed: 0,
    same_hostname: Vec::new(),
});
static WATCHED: Mutex<Option<Watched>> = Mutex::new(None);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mailbox with two GUIDs has the peer's now.
pub fn guid_healed() {
    let mut observed = lock(&OBSERVED);
    observed.guids_healed = observed.guids_healed.saturating_add(1);
}

/// What was seen since the last time.
pub fn take() -> Observed {
    std::mem::take(&mut *lock(&OBSERVED))
}

/// Looks for the peer's handshake in what is read from the stream, until `unwatch`.
///
/// # Safety
/// The stream lives until `unwatch`.
pub unsafe fn watch(input: *mut ffi::istream) {
    if input.is_null() {
        return;
    }
    // SAFETY: the caller gives a stream that lives.
    let stream = unsafe { ffi::replication_doveadm_private(input) };
    // SAFETY: as above.
    let stock = unsafe { ffi::replication_doveadm_replace_read(stream, Some(read)) };
    *lock(&WATCHED) = stock.map(|stock| Watched {
        stream: stream as usize,
        stock,
    });
}

/// Gives the stream its own function back. Never panics.
pub fn unwatch() {
    if let Some(watched) = lock(&WATCHED).take() {
        let stream = watched.stream as *mut ffi::istream_private;
        // SAFETY: by the contract of `watch` the stream still lives.
        unsafe { ffi::replication_doveadm_replace_read(stream, Some(watched.stock)) };
    }
}

unsafe extern "C" fn read(stream: *mut ffi::istream_private) -> isize {
    let stock = lock(&WATCHED).as_ref().map(|watched| watched.stock);
    let Some(stock) = stock else {
        // `unwatch` took this function out before it forgot the stream's own; C has no way to go on without it.
        std::process::abort();
    };
    // SAFETY: the stream's own function with what it was to be called with.
    let result = unsafe { stock(stream) };
    if result > 0 && guard("read", true, || has_seen_enough(stream)) {
        unwatch();
    }
    result
}

/// Whether the handshake was there, or will not come.
fn has_seen_enough(stream: *mut ffi::istream_private) -> bool {
    let mut size = 0;
    // SAFETY: Dovecot reads this stream now.
    let data = unsafe { ffi::replication_doveadm_buffered(stream, &raw mut size) };
    if data.is_null() {
        return false;
    }
    // SAFETY: Dovecot has so many bytes there until the next read.
    let data = unsafe { std::slice::from_raw_parts(data, size) };
    let Some(hostname) = hostname_in_handshake(data) else {
        return size > HANDSHAKE_BYTES_MAX;
    };
    // SAFETY: no precondition.
    let own = unsafe { ffi::my_hostdomain() };
    // SAFETY: a NUL-terminated string that Dovecot keeps.
    let own = unsafe { CStr::from_ptr(own) };
    if own.to_bytes() == hostname {
        lock(&OBSERVED).same_hostname = hostname;
    }
    true
}
