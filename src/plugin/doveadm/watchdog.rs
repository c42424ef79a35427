//! Ends a sync that stands still after the replicator has hung up.
//!
//! Closing the connection to doveadm-server ends nothing in stock Dovecot: a worker that waits for a silent peer waits
//! on. Here the kernel sends the worker a signal when its client hangs up. A sync that still moves may finish; one whose
//! process neither reads nor writes a byte is ended, with exit code 0:
//!
//! - after [`ORDERED_STILL_TICKS_MAX`] seconds of that if the client has shut down its writing side only and waits for
//!   the end: the replicator's order to end it;
//! - after [`ORPHANED_STILL_TICKS_MAX`] seconds if the client is gone: the replicator was killed or restarted, and the
//!   peer may only be slow in saving what it got.
//!
//! `SIGUSR2` ends it at once, and one whose client has hung up before it began does not begin.
//!
//! None of this comes between two writes that belong together ([`hold`]). Everything else that dsync wrote is safe against it,
//! as against SIGKILL, and the connection to the peer closes.
//!
//! No thread, and no work while the client is there. The handler only makes async-signal-safe calls. The signal restarts
//! system calls (SA_RESTART), lock waits among them.

use std::fs::File;
use std::mem::{MaybeUninit, zeroed};
use std::os::fd::{IntoRawFd, RawFd};
use std::ptr;
use std::sync::atomic::{
    AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

/// How many seconds in a row without a byte end a sync that the client wants ended.
const ORDERED_STILL_TICKS_MAX: u32 = 3;

/// How many seconds in a row without a byte end a sync that nobody waits for.
const ORPHANED_STILL_TICKS_MAX: u32 = 60;

const TICK_SECS: libc::time_t = 1;

/// The replicator's order to end in the midst of the sync. Dovecot's doveadm has no use for it.
const END_AT_ONCE: libc::c_int = libc::SIGUSR2;

/// The kernel's command for the signal of O_ASYNC; libc has no name for it on every target.
const F_SETSIG: libc::c_int = 10;

/// The client's connection; -1 while no sync is watched.
static CLIENT_FD: AtomicI32 = AtomicI32::new(-1);
/// `/proc/self/io`, opened before privileges were dropped.
static IO_FD: AtomicI32 = AtomicI32::new(-1);
/// A timer's id may be null, so whether there is one is kept apart.
static TIMER: AtomicPtr<libc::c_void> = AtomicPtr::new(ptr::null_mut());
static TIMER_EXISTS: AtomicBool = AtomicBool::new(false);
static STILL_TICKS: AtomicU32 = AtomicU32::new(0);
static CLIENT_HUNG_UP: AtomicBool = AtomicBool::new(false);
/// Whether the end is to wait.
static HELD: AtomicBool = AtomicBool::new(false);
/// It was due meanwhile.
static END_WAITS: AtomicBool = AtomicBool::new(false);
static LAST_BYTES: AtomicU64 = AtomicU64::new(0);
/// What reading `/proc/self/io` itself added to the counter.
static OWN_BYTES: AtomicU64 = AtomicU64::new(0);

fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 5
}

/// The order to end may come before a sync is watched: then there is nothing to end.
pub fn init() {
    install_handler(END_AT_ONCE);
}

/// Whether the client hung up before the sync began.
pub fn has_hung_up(fd: RawFd) -> bool {
    fd >= 0 && hang_up_events(fd) != 0
}

/// Watches the client on `fd` until [`disarm`]. Without effect where the kernel refuses.
pub fn arm(fd: RawFd) {
    if fd < 0 || CLIENT_FD.load(Relaxed) >= 0 || !install_handler(signal()) || !create_timer() {
        return;
    }
    let Ok(io) = File::open("/proc/self/io") else {
        return;
    };
    close_io(io.into_raw_fd());
    CLIENT_HUNG_UP.store(false, Relaxed);
    STILL_TICKS.store(0, Relaxed);
    CLIENT_FD.store(fd, Relaxed);
    if !send_signals(fd, true) {
        disarm();
        return;
    }
    // A client that hung up before the line above sends no signal any more.
    on_signal(false);
}

/// The end waits until [`release`]: what is written now belongs together, such as a mail's copy and the expunge of the mail. Nothing in
/// between may wait for the peer.
pub fn hold() {
    HELD.store(true, SeqCst);
}

/// The end waits no longer, and is here if it was due. Also without [`hold`].
pub fn release() {
    HELD.store(false, SeqCst);
    if END_WAITS.load(SeqCst) {
        // SAFETY: no precondition; does not return.
        unsafe { libc::_exit(0) };
    }
}

/// Stops watching; the connection is as it was.
pub fn disarm() {
    let fd = CLIENT_FD.swap(-1, Relaxed);
    if fd >= 0 {
        send_signals(fd, false);
    }
    HELD.store(false, SeqCst);
    END_WAITS.store(false, SeqCst);
    set_timer(0);
    close_io(-1);
}

/// Makes a late signal harmless: the handler is about to be unmapped.
pub fn deinit() {
    disarm();
    // SAFETY: SIG_IGN is always a valid disposition.
    unsafe { libc::signal(END_AT_ONCE, libc::SIG_IGN) };
    if TIMER_EXISTS.swap(false, Relaxed) {
        let timer = TIMER.load(Relaxed);
        // SAFETY: the timer was created by `create_timer` and is deleted once.
        unsafe { libc::timer_delete(timer.cast()) };
        // SAFETY: SIG_IGN is always a valid disposition.
        unsafe { libc::signal(signal(), libc::SIG_IGN) };
    }
}

fn close_io(new: RawFd) {
    let old = IO_FD.swap(new, Relaxed);
    if old >= 0 {
        // SAFETY: the descriptor is ours and was taken out of the only place that knew it.
        unsafe { libc::close(old) };
    }
}

fn install_handler(signo: libc::c_int) -> bool {
    // SAFETY: all zero is a valid sigaction: no flags, empty mask.
    let mut action: libc::sigaction = unsafe { zeroed() };
    action.sa_sigaction = handle_signal as extern "C" fn(libc::c_int) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: both pointers are valid or null, the handler lives until `deinit` has replaced it.
    unsafe { libc::sigaction(signo, &raw const action, ptr::null_mut()) == 0 }
}

fn create_timer() -> bool {
    if TIMER_EXISTS.load(Relaxed) {
        return true;
    }
    // SAFETY: all zero is a valid sigevent.
    let mut event: libc::sigevent = unsafe { zeroed() };
    event.sigev_notify = libc::SIGEV_SIGNAL;
    event.sigev_signo = signal();
    let mut timer = MaybeUninit::<libc::timer_t>::uninit();
    // SAFETY: both pointers are valid for the call.
    let created = unsafe {
        libc::timer_create(
            libc::CLOCK_MONOTONIC,
            &raw mut event,
            timer.as_mut_ptr().cast(),
        )
    } == 0;
    if created {
        // SAFETY: timer_create succeeded and has set it.
        TIMER.store(unsafe { timer.assume_init() }.cast(), Relaxed);
        TIMER_EXISTS.store(true, Relaxed);
    }
    created
}

fn set_timer(secs: libc::time_t) {
    let every = libc::timespec {
        tv_sec: secs,
        tv_nsec: 0,
    };
    let value = libc::itimerspec {
        it_interval: every,
        it_value: every,
    };
    if !TIMER_EXISTS.load(Relaxed) {
        return;
    }
    let timer = TIMER.load(Relaxed);
    // SAFETY: the timer exists; timer_settime is async-signal-safe.
    unsafe { libc::timer_settime(timer.cast(), 0, &raw const value, ptr::null_mut()) };
}

/// Whether the kernel tells this process by signal that something happens on `fd`.
fn send_signals(fd: RawFd, on: bool) -> bool {
    let (signo, owner) = if on {
        // SAFETY: no precondition.
        (signal(), unsafe { libc::getpid() })
    } else {
        (0, 0)
    };
    // SAFETY: F_SETSIG takes an int and touches no memory.
    let signal_set = unsafe { libc::fcntl(fd, F_SETSIG, signo) } == 0;
    // SAFETY: F_SETOWN takes an int and touches no memory.
    let owner_set = unsafe { libc::fcntl(fd, libc::F_SETOWN, owner) } == 0;
    // SAFETY: F_GETFL touches no memory.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    if flags < 0 {
        return false;
    }
    let flags = if on {
        flags | libc::O_ASYNC
    } else {
        flags & !libc::O_ASYNC
    };
    // SAFETY: F_SETFL takes an int and touches no memory.
    let flags_set = unsafe { libc::fcntl(fd, libc::F_SETFL, flags) } == 0;
    signal_set && owner_set && flags_set
}

extern "C" fn handle_signal(signo: libc::c_int) {
    // SAFETY: errno of this thread; the interrupted code must find it as it was.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: the location is valid as long as the thread.
    let saved = unsafe { *errno };
    on_signal(signo == END_AT_ONCE);
    // SAFETY: as above.
    unsafe { *errno = saved };
}

/// Async-signal-safe: atomics, poll, pread, timer_settime and _exit, nothing else.
fn on_signal(end_at_once: bool) {
    let fd = CLIENT_FD.load(Relaxed);
    if fd < 0 {
        return;
    }
    if end_at_once {
        return end();
    }
    let events = hang_up_events(fd);
    if !CLIENT_HUNG_UP.load(Relaxed) {
        if events != 0 {
            CLIENT_HUNG_UP.store(true, Relaxed);
            LAST_BYTES.store(bytes_moved(), Relaxed);
            set_timer(TICK_SECS);
        }
        return;
    }
    let bytes = bytes_moved();
    if bytes != LAST_BYTES.swap(bytes, Relaxed) {
        STILL_TICKS.store(0, Relaxed);
    } else if STILL_TICKS.fetch_add(1, Relaxed) + 1 >= still_ticks_max(events) {
        end();
    }
}

/// Ends the process, now or in [`release`].
fn end() {
    if HELD.load(SeqCst) {
        return END_WAITS.store(true, SeqCst);
    }
    // SAFETY: async-signal-safe, does not return.
    unsafe { libc::_exit(0) };
}

/// POLLRDHUP: the client writes no more. With POLLHUP: it is gone.
const fn still_ticks_max(events: libc::c_short) -> u32 {
    if events & (libc::POLLHUP | libc::POLLERR) == 0 {
        ORDERED_STILL_TICKS_MAX
    } else {
        ORPHANED_STILL_TICKS_MAX
    }
}

fn hang_up_events(fd: RawFd) -> libc::c_short {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one valid pollfd.
    if unsafe { libc::poll(&raw mut poll, 1, 0) } > 0 {
        poll.revents
    } else {
        0
    }
}

/// Bytes that the process has read and written so far, those of this function apart.
fn bytes_moved() -> u64 {
    let mut text = [0u8; 256];
    // SAFETY: the buffer is valid for its length.
    let length =
        unsafe { libc::pread(IO_FD.load(Relaxed), text.as_mut_ptr().cast(), text.len(), 0) };
    let Ok(length) = usize::try_from(length) else {
        return 0;
    };
    let moved = sum_of_bytes(text.get(..length).unwrap_or_default());
    // The kernel adds the bytes of a read to the counter after it has printed it.
    let own = OWN_BYTES.fetch_add(length as u64, Relaxed);
    moved.wrapping_sub(own)
}

/// rchar + wchar of `/proc/PID/io` (its first and second line). No allocation, no panic.
fn sum_of_bytes(text: &[u8]) -> u64 {
    text.split(|&b| b == b'\n')
        .take(2)
        .map(|line| {
            line.iter()
                .filter(|b| b.is_ascii_digit())
                .fold(0u64, |n, &b| {
                    n.wrapping_mul(10).wrapping_add(u64::from(b - b'0'))
                })
        })
        .fold(0, u64::wrapping_add)
}
