//! `doveadm replicator show` and `doveadm replicator peers`.

use std::ffi::OsStr;
use std::io::{self, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cli::{Column, client, peers, row, show};
use crate::host::bindings as ffi;
use crate::host::doveadm::{Command, Print, base_dir, set_exit_code};
use crate::host::guard::guard;

/// How long the replicator may take for each part of its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

const EX_USAGE: i32 = 64;
const EX_UNAVAILABLE: i32 = 69;
const EX_SOFTWARE: i32 = 70;
const EX_TEMPFAIL: i32 = 75;
const EX_NOPERM: i32 = 77;

/// Puts the subcommands next to stock's `replicator status` and the others.
pub fn register() {
    // SAFETY: doveadm has set up its commands before it loads modules.
    unsafe { ffi::replication_doveadm_register(Some(cmd_show), Some(cmd_peers)) }
}

unsafe extern "C" fn cmd_show(cctx: *mut ffi::doveadm_cmd_context) {
    // SAFETY: doveadm runs the command with this context.
    let command = unsafe { Command::new(cctx) };
    guarded("replicator show", || run_show(command));
}

unsafe extern "C" fn cmd_peers(cctx: *mut ffi::doveadm_cmd_context) {
    // SAFETY: doveadm runs the command with this context.
    let command = unsafe { Command::new(cctx) };
    guarded("replicator peers", || {
        run(command, peers::COLUMNS, &peers::peers_request())
    });
}

fn guarded(name: &str, run: impl FnOnce() -> i32) {
    let exit_code = guard(name, EX_SOFTWARE, run);
    if exit_code != 0 {
        set_exit_code(exit_code);
    }
}

fn run_show(command: Command) -> i32 {
    match command.param_str(c"user") {
        Some(username) if !username.is_empty() => {
            run(command, show::COLUMNS, &show::show_request(&username))
        }
        _ => {
            log::error!("Usage: doveadm replicator show {}", show::USAGE);
            EX_USAGE
        }
    }
}

/// Prints the answer; gives what doveadm is to exit with.
fn run(command: Command, columns: &[Column], request: &[u8]) -> i32 {
    let path = command.param_str(c"socket-path").unwrap_or_else(|| {
        let mut path = base_dir();
        path.extend_from_slice(b"/replicator-doveadm");
        path
    });
    let shown_path = String::from_utf8_lossy(&path).into_owned();
    let stream = match connect(&path) {
        Ok(stream) => stream,
        Err(e) => {
            log::error!("connect({shown_path}) failed: {}", client::errno_text(&e));
            return connect_exit_code(&e);
        }
    };
    let mut print = None;
    let result = client::ask(BufReader::new(&stream), &stream, request, |fields| {
        let print = print.get_or_insert_with(|| begin(columns));
        print_row(print, columns, fields);
    });
    match result {
        Ok(()) => {
            // Columns without a row, but nothing before an error.
            print.get_or_insert_with(|| begin(columns));
            0
        }
        Err(e) => {
            log::error!("{shown_path}: {e}");
            e.exit_code()
        }
    }
}

fn begin(columns: &[Column]) -> Print {
    let print = Print::begin();
    for column in columns {
        print.header(column.name);
    }
    print
}

fn connect(path: &[u8]) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(Path::new(OsStr::from_bytes(path)))?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

fn connect_exit_code(error: &io::Error) -> i32 {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => EX_UNAVAILABLE,
        io::ErrorKind::PermissionDenied => EX_NOPERM,
        _ => EX_TEMPFAIL,
    }
}

fn print_row(print: &Print, columns: &[Column], fields: Vec<Vec<u8>>) {
    let now_secs = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    for (column, value) in columns.iter().zip(row(columns, fields)) {
        if print.is_for_machines() {
            print.value(&value);
        } else {
            print.value(&column.kind.for_people(&value, now_secs));
        }
    }
}
