//! The `log` crate's macros, written to Dovecot's log.
//!
//! Debug is left to the callers that know a user's event: a process's debug messages cannot be
//! filtered here.

use std::ffi::CString;
use std::sync::OnceLock;

use libc::pthread_t;
use log::{LevelFilter, Log, Metadata, Record};

use super::{bindings as ffi, thread};

/// The thread that Dovecot's functions may be called on.
static MAIN_THREAD: OnceLock<pthread_t> = OnceLock::new();

struct DovecotLog;

impl Log for DovecotLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        use log::Level;
        if MAIN_THREAD.get() != Some(&thread::current()) {
            // A service's stderr is read by Dovecot's log process, as errors.
            eprintln!("{}: {}", record.level(), record.args());
            return;
        }
        let level = match record.level() {
            Level::Error => ffi::replication_shim_level_REPLICATION_SHIM_ERROR,
            Level::Warn => ffi::replication_shim_level_REPLICATION_SHIM_WARNING,
            Level::Info => ffi::replication_shim_level_REPLICATION_SHIM_INFO,
            Level::Debug | Level::Trace => ffi::replication_shim_level_REPLICATION_SHIM_DEBUG,
        };
        let text = c_text(&record.args().to_string());
        // SAFETY: the level is one of the enum's, the text a C string that lives through the call.
        unsafe { ffi::replication_shim_log(level, text.as_ptr()) };
    }

    fn flush(&self) {}
}

/// The text as C has it; a NUL in it becomes `?`.
#[must_use]
pub fn c_text(text: &str) -> CString {
    CString::new(text.replace('\0', "?")).unwrap_or_default()
}

/// Sends what is logged up to `max` to Dovecot's log from now on. Can be called again. What other
/// threads than the first caller's log goes to stderr.
pub fn init(max: LevelFilter) {
    static LOG: DovecotLog = DovecotLog;
    MAIN_THREAD.get_or_init(thread::current);
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(max);
    }
}
