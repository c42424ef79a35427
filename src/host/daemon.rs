//! A Dovecot service process around a [`Daemon`].
//!
//! The master starts it, hands it listeners, and stops it; libdovecot's ioloop watches one
//! descriptor and one timeout of the daemon. The process opens what needs root first, then drops
//! privileges and tells the master that it is there, and only then begins its work, for a
//! process that says nothing for 30 s is killed. A panic is logged and ends the process: the master
//! starts another.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int};
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use log::LevelFilter;

use super::bindings as ffi;
use super::settings::{self, Settings};
use crate::engine::time::{Mono, Now, UnixSecs};
use crate::services::daemon::Daemon;
use crate::services::thread::prepare_threads;

/// Dovecot's exit status for a service that cannot go on.
const FATAL_DEFAULT: u8 = 89;
/// The longest timeout that is asked of the ioloop at once.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// What Dovecot knows the service by.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// The name of the service in Dovecot's configuration.
    pub name: &'static CStr,
    /// Whose settings it reads; `None`: all. A process that drops privileges reads no secrets.
    pub module: Option<&'static CStr>,
}

/// The service `aggregator`.
pub const AGGREGATOR: Service = Service {
    name: c"aggregator",
    module: Some(c"aggregator"),
};

/// The service `replicator`.
pub const REPLICATOR: Service = Service {
    name: c"replicator",
    module: None,
};

struct Running {
    daemon: Box<dyn Daemon>,
    scheduled: Option<Mono>,
}

thread_local! {
    static RUNNING: RefCell<Option<Running>> = const { RefCell::new(None) };
}

/// Both clocks. The monotonic one counts from the first call.
#[must_use]
pub fn now() -> Now {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let elapsed = ORIGIN.get_or_init(Instant::now).elapsed();
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    Now {
        mono: Mono(0) + elapsed,
        wall: UnixSecs(u32::try_from(wall).unwrap_or(u32::MAX)),
    }
}

/// The version of Dovecot that this was built for.
#[must_use]
pub fn dovecot_version() -> (u32, u32, u32) {
    let (major, minor, patch, _) = numbers(env!("DOVECOT_VERSION"));
    (major, minor, patch)
}

/// A release of Dovecot; what distributions add after `-` is none.
fn numbers(version: &str) -> (u32, u32, u32, u32) {
    let release = version.split(['-', ' ', '(']).next().unwrap_or_default();
    let mut numbers = release
        .split('.')
        .map(|number| number.parse().unwrap_or_default());
    let mut next = || numbers.next().unwrap_or_default();
    (next(), next(), next(), next())
}

/// The master's version where it is another release than this was built for. The master gives it to its
/// services in the environment; libdovecot compares it with its own, which may be the new one already.
fn other_release() -> Option<String> {
    let running = std::env::var("DOVECOT_VERSION").ok()?;
    (numbers(&running) != numbers(env!("DOVECOT_VERSION"))).then_some(running)
}

/// Runs a service until the master stops it. `prepare` opens what needs root; `start` makes the
/// daemon, after privileges were dropped and the master was told.
pub fn run<P, D: Daemon + 'static>(
    service: &Service,
    prepare: impl FnOnce(&Settings) -> Result<P, String>,
    start: impl FnOnce(P, Now) -> Result<D, String>,
) -> ExitCode {
    crate::mark();
    abort_on_panic();
    if let Some(running) = other_release() {
        // Nothing of libdovecot may be called; the master logs what a service writes here.
        eprintln!(
            "{} is built for Dovecot {}, this Dovecot is {running}: \
             install the build for this Dovecot and restart it",
            service.name.to_string_lossy(),
            env!("DOVECOT_VERSION")
        );
        return ExitCode::from(FATAL_DEFAULT);
    }
    prepare_threads(block_signals);
    let mut args = args();
    let count = c_int::try_from(args.len()).unwrap_or_default();
    let pointers = args.iter_mut().map(|arg| arg.as_mut_ptr().cast());
    let mut argv: Vec<*mut c_char> = pointers.chain([std::ptr::null_mut()]).collect();
    // SAFETY: name and arguments are C strings, the arguments NULL-ended and kept until after deinit.
    let status = unsafe {
        ffi::replication_shim_service_init(service.name.as_ptr(), count, argv.as_mut_ptr())
    };
    if status != 0 {
        return ExitCode::from(FATAL_DEFAULT);
    }
    super::log::init(LevelFilter::Info);
    let settings = settings::read(service.module);
    let result = prepare(&settings).and_then(|prepared| {
        // SAFETY: the service was begun and is started once.
        unsafe { ffi::replication_shim_service_start() };
        start(prepared, now())
    });
    let code = match result {
        Ok(daemon) => {
            serve(Box::new(daemon));
            ExitCode::SUCCESS
        }
        Err(e) => {
            log::error!("{e}");
            ExitCode::from(FATAL_DEFAULT)
        }
    };
    // SAFETY: the service was begun, its io and timeout are gone, and it is ended once.
    unsafe { ffi::replication_shim_service_deinit() };
    code
}

/// The arguments, each with its NUL.
fn args() -> Vec<Vec<u8>> {
    std::env::args_os()
        .map(|arg| [arg.into_vec(), vec![0]].concat())
        .collect()
}

fn serve(daemon: Box<dyn Daemon>) {
    let poll_fd = daemon.poll_fd();
    let running = Running {
        daemon,
        scheduled: None,
    };
    RUNNING.with_borrow_mut(|slot| *slot = Some(running));
    with_running(|_, _| {});
    let callbacks = ffi::replication_shim_callbacks {
        connected: Some(connected),
        ready: Some(ready),
        timeout: Some(timed_out),
    };
    // SAFETY: the callbacks live through the call; the descriptor is the daemon's, which is dropped below.
    unsafe { ffi::replication_shim_service_run(&raw const callbacks, poll_fd) };
    if let Some(mut running) = RUNNING.take() {
        running.daemon.handle_shutdown(now());
    }
}

/// Lets the daemon do something, then counts its closed connections and sets its timeout.
fn with_running(act: impl FnOnce(&mut dyn Daemon, Now)) {
    RUNNING.with_borrow_mut(|slot| {
        let Some(running) = slot else {
            return;
        };
        act(running.daemon.as_mut(), now());
        for _ in 0..running.daemon.take_closed_connections() {
            // SAFETY: the service is there, and each accepted connection is counted out once.
            unsafe { ffi::replication_shim_service_client_gone() };
        }
        running.schedule();
    });
}

impl Running {
    fn schedule(&mut self) {
        let next = self.daemon.next_timeout();
        if next == self.scheduled {
            return;
        }
        self.scheduled = next;
        let Some(at) = next else {
            // SAFETY: the service is there.
            unsafe { ffi::replication_shim_service_clear_timeout() };
            return;
        };
        let wait = at.since(now().mono).min(MAX_TIMEOUT).as_millis();
        let wait = u32::try_from(wait).unwrap_or(u32::MAX);
        // SAFETY: the service is there.
        unsafe { ffi::replication_shim_service_set_timeout(wait) };
    }
}

extern "C" fn connected(listener: *const c_char, fd: c_int, fifo: bool) {
    // SAFETY: Dovecot passes the listener's name, a C string, and keeps it through the call.
    let listener = unsafe { CStr::from_ptr(listener) };
    // SAFETY: the accepted descriptor is ours from here on, and nobody else closes it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let listener = listener.to_string_lossy();
    with_running(|daemon, now| daemon.handle_connection(now, &listener, fd, fifo));
}

extern "C" fn ready() {
    with_running(|daemon, now| daemon.handle_ready(now));
}

extern "C" fn timed_out() {
    RUNNING.with_borrow_mut(|slot| {
        if let Some(running) = slot {
            running.scheduled = None;
        }
    });
    with_running(|daemon, now| {
        if daemon.next_timeout().is_some_and(|at| at <= now.mono) {
            daemon.handle_timeout(now);
        }
    });
}

/// libdovecot's signal handlers belong to the thread of its ioloop.
fn block_signals() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is ours and is filled here.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the set was filled, and no former mask is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut()) };
}

fn abort_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        log::error!("Panic: {panic}");
        std::process::abort();
    }));
}
