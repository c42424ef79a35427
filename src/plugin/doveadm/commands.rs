//! `doveadm replicator ...`: `show`, `peers` and `verify`, and on 2.4, which has none, those of 2.3.

use std::ffi::{CStr, OsStr};
use std::io::{self, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::verify;
use crate::cli::client::{AnswerError, Client, ROWS_MAX, USER_ROWS_MAX, errno_text};
use crate::cli::{Column, add, dsync_status, peers, remove, replicate, row, show, status};
use crate::host::bindings as ffi;
use crate::host::doveadm::{Command, Format, Print, base_dir, set_exit_code};
use crate::host::guard::guard;

/// How long the replicator may take to greet, and for each part of the answer of `show` and `peers`.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long it may take for each part of an answer for which it may have to go through all users.
const ALL_USERS_TIMEOUT: Duration = Duration::from_secs(600);

/// Whose conventions a command follows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    Ours,
    /// Those of 2.3's command of the same name.
    Stock,
}

const EX_USAGE: i32 = 64;
const EX_UNAVAILABLE: i32 = 69;
const EX_SOFTWARE: i32 = 70;
const EX_TEMPFAIL: i32 = 75;
const EX_NOPERM: i32 = 77;

type Run = unsafe extern "C" fn(*mut ffi::doveadm_cmd_context);

const COMMANDS: [(&CStr, Run); 8] = [
    (c"replicator status", cmd_status),
    (c"replicator dsync-status", cmd_dsync_status),
    (c"replicator replicate", cmd_replicate),
    (c"replicator add", cmd_add),
    (c"replicator remove", cmd_remove),
    (c"replicator show", cmd_show),
    (c"replicator peers", cmd_peers),
    (c"replicator verify", cmd_verify),
];

/// Registers those of the commands that doveadm has not by itself.
pub fn register() {
    for (name, run) in COMMANDS {
        // SAFETY: doveadm has set up its commands before it loads modules; the name is one that the shim knows.
        unsafe { ffi::replication_doveadm_register(name.as_ptr(), Some(run)) };
    }
}

unsafe extern "C" fn cmd_status(cctx: *mut ffi::doveadm_cmd_context) {
    // SAFETY: doveadm runs the command with this context.
    let command = unsafe { Command::new(cctx) };
    guarded("replicator status", || run_status(command));
}

unsafe extern "C" fn cmd_dsync_status(cctx: *mut ffi::doveadm_cmd_context) {
    // SAFETY: doveadm runs the command with this context.
    let command = unsafe { Command::new(cctx) };
    guarded("replicator dsync-status", || {
        list(
            command,
            dsync_status::COLUMNS,
            &dsync_status::dsync_status_request(),
            |fields| Some(row(dsync_status::COLUMNS, fields)),
        )
    });
}

unsafe extern "C" fn cmd_replicate(cctx: *mut ffi::doveadm_cmd_context) {
    // SAFETY: doveadm runs the command with this context.
    let command = unsafe { Command::new(cctx) };
    guarded("replicator replicate", || run_replicate(command));
}

unsafe extern "C" fn cmd_add(cctx: *mut ffi::doveadm_cmd_context) {
    // SAFETY: doveadm runs the command with this context.
    let command = unsafe { Command::new(cctx) };
    guarded("replicator add", || match command.param_str(c"user-mask") {
        Some(mask) => order(command, &add::add_request(&mask)),
        None => usage(command),
    });
}

unsafe extern "C" fn cmd_remove(cctx: *mut ffi::doveadm_cmd_context) {
    // SAFETY: doveadm runs the command with this context.
    let command = unsafe { Command::new(cctx) };
    guarded("replicator remove", || match command.param_str(c"user") {
        Some(username) => order(command, &remove::remove_request(&username)),
        None => usage(command),
    });
}

unsafe extern "C" fn cmd_show(cctx: *mut ffi::doveadm_cmd_context) {
    // SAFETY: doveadm runs the command with this context.
    let command = unsafe { Command::new(cctx) };
    guarded("replicator show", || match command.param_str(c"user") {
        Some(username) if !username.is_empty() => {
            describe(command, show::COLUMNS, &show::show_request(&username))
        }
        _ => usage(command),
    });
}

unsafe extern "C" fn cmd_peers(cctx: *mut ffi::doveadm_cmd_context) {
    // SAFETY: doveadm runs the command with this context.
    let command = unsafe { Command::new(cctx) };
    guarded("replicator peers", || {
        describe(command, peers::COLUMNS, &peers::peers_request())
    });
}

unsafe extern "C" fn cmd_verify(cctx: *mut ffi::doveadm_cmd_context) {
    // SAFETY: doveadm runs the command with this context.
    let command = unsafe { Command::new(cctx) };
    guarded("replicator verify", || {
        match command.param_str(c"user-mask") {
            Some(mask) if !mask.is_empty() => verify::run(command, mask),
            _ => usage(command),
        }
    });
}

fn guarded(name: &str, run: impl FnOnce() -> i32) {
    let exit_code = guard(name, EX_SOFTWARE, run);
    if exit_code != 0 {
        set_exit_code(exit_code);
    }
}

/// As doveadm shows it on a command line; in doveadm-server nobody reads that.
fn usage(command: Command) -> i32 {
    let usage = command.usage();
    if command.is_from_command_line() {
        // A closed stderr is no reason to panic.
        let _ = writeln!(io::stderr(), "{usage}");
    } else {
        log::error!("Usage: {usage}");
    }
    EX_USAGE
}

fn run_status(command: Command) -> i32 {
    let mask = command.param_str(c"user-mask");
    let request = status::status_request(mask.as_deref());
    if mask.is_none() {
        return list(command, status::OVERVIEW_COLUMNS, &request, |fields| {
            Some(status::overview_row(fields))
        });
    }
    list(command, status::COLUMNS, &request, |fields| {
        status::user_row(&fields, now_secs())
    })
}

fn run_replicate(command: Command) -> i32 {
    let Some(mask) = command.param_str(c"user-mask") else {
        return usage(command);
    };
    let priority = command.param_str(c"priority");
    let full = command.param_bool(c"full-sync");
    let request = replicate::replicate_request(&mask, priority.as_deref(), full);
    converse(command, Manner::Stock, |client| {
        let print = begin(Format::Flow, replicate::COLUMNS);
        client
            .order(&request)
            .map(|users| print.value(&replicate::result(&users)))
    })
}

/// Prints the answer of `show` or `peers`.
fn describe(command: Command, columns: &'static [Column], request: &[u8]) -> i32 {
    converse(command, Manner::Ours, |client| {
        let mut print = None;
        client.ask(request, ROWS_MAX, |fields| {
            let print = print.get_or_insert_with(|| begin(Format::Table, columns));
            print_row(print, columns, fields);
        })?;
        // Columns without a row, but nothing before an error.
        print.get_or_insert_with(|| begin(Format::Table, columns));
        Ok(())
    })
}

/// Prints what `values` makes of each row of the answer.
fn list(
    command: Command,
    columns: &'static [Column],
    request: &[u8],
    values: impl Fn(Vec<Vec<u8>>) -> Option<Vec<Vec<u8>>>,
) -> i32 {
    converse(command, Manner::Stock, |client| {
        let print = begin(Format::Table, columns);
        let result = client.ask(request, USER_ROWS_MAX, |fields| {
            for value in values(fields).unwrap_or_default() {
                print.value(&value);
            }
        });
        match result {
            // Every replicator knows these commands.
            Err(AnswerError::Unsupported) => Err(AnswerError::Disconnected),
            result => result,
        }
    })
}

fn order(command: Command, request: &[u8]) -> i32 {
    converse(command, Manner::Stock, |client| {
        client.order(request).map(|_| ())
    })
}

pub(super) type Greeted<'a> = Client<BufReader<&'a dyn Stream>, &'a dyn Stream>;

/// Connects, and gives what doveadm is to exit with.
pub(super) fn converse(
    command: Command,
    manner: Manner,
    converse: impl FnOnce(Greeted<'_>) -> Result<(), AnswerError>,
) -> i32 {
    let path = command.param_str(c"socket-path").unwrap_or_else(|| {
        let mut path = base_dir();
        path.extend_from_slice(b"/replicator-doveadm");
        path
    });
    let shown_path = String::from_utf8_lossy(&path).into_owned();
    let stream = match connect(&path) {
        Ok(stream) => stream,
        Err(e) => {
            return manner.connect_failed(&shown_path, &e);
        }
    };
    let stream = stream.as_ref();
    let timeout = match manner {
        Manner::Ours => ANSWER_TIMEOUT,
        Manner::Stock => ALL_USERS_TIMEOUT,
    };
    let result = Client::greet(BufReader::new(stream), stream).and_then(|client| {
        stream.set_timeout(timeout).map_err(AnswerError::Io)?;
        converse(client)
    });
    match result {
        Ok(()) => 0,
        Err(e) => {
            match (&e, manner) {
                (AnswerError::Rejected(_) | AnswerError::Disconnected, Manner::Stock) => {
                    log::error!("{e}");
                }
                _ => log::error!("{shown_path}: {e}"),
            }
            e.exit_code()
        }
    }
}

/// A connection to a replicator.
pub(super) trait Stream {
    fn set_timeout(&self, timeout: Duration) -> io::Result<()>;
    fn read_some(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn write_some(&self, bytes: &[u8]) -> io::Result<usize>;
}

macro_rules! impl_stream {
    ($($stream:ty),*) => {$(
        impl Stream for $stream {
            fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
                self.set_read_timeout(Some(timeout))?;
                self.set_write_timeout(Some(timeout))
            }
            fn read_some(&self, buffer: &mut [u8]) -> io::Result<usize> {
                let mut stream = self;
                stream.read(buffer)
            }
            fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
                let mut stream = self;
                stream.write(bytes)
            }
        }
    )*};
}

impl_stream!(UnixStream, TcpStream);

impl Read for &dyn Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_some(buffer)
    }
}

impl Write for &dyn Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_some(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What has no `/` is a host and a port, as in all of doveadm's socket paths.
fn connect(path: &[u8]) -> io::Result<Box<dyn Stream>> {
    let stream: Box<dyn Stream> = if path.contains(&b'/') {
        Box::new(UnixStream::connect(Path::new(OsStr::from_bytes(path)))?)
    } else {
        Box::new(TcpStream::connect(&*String::from_utf8_lossy(path))?)
    };
    stream.set_timeout(ANSWER_TIMEOUT)?;
    Ok(stream)
}

impl Manner {
    /// Logs it, and gives what doveadm is to exit with.
    fn connect_failed(self, path: &str, error: &io::Error) -> i32 {
        if self == Self::Stock {
            log::error!("net_connect_unix({path}) failed: {}", errno_text(error));
            return EX_TEMPFAIL;
        }
        log::error!("connect({path}) failed: {}", errno_text(error));
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => EX_UNAVAILABLE,
            io::ErrorKind::PermissionDenied => EX_NOPERM,
            _ => EX_TEMPFAIL,
        }
    }
}

pub(super) fn begin(format: Format, columns: &[Column]) -> Print {
    let print = Print::begin(format);
    for column in columns {
        print.header(column.name, column.layout);
    }
    print
}

fn now_secs() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn print_row(print: &Print, columns: &[Column], fields: Vec<Vec<u8>>) {
    let now_secs = now_secs();
    for (column, value) in columns.iter().zip(row(columns, fields)) {
        if print.is_for_machines() {
            print.value(&value);
        } else {
            print.value(&column.kind.for_people(&value, now_secs));
        }
    }
}
