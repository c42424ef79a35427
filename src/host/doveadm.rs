//! doveadm as a host: parameters of a command, its output, its exit code.
//!
//! Only for the doveadm module. What is called here runs on doveadm's one thread, inside a command.

use std::ffi::{CStr, CString};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::ptr;
use std::time::Duration;

use super::bindings as ffi;
use crate::cli::Layout;

/// A text for C: what follows a NUL is lost, as it would be in C.
fn c_text(text: &[u8]) -> CString {
    let text = text.split(|&b| b == 0).next().unwrap_or_default();
    CString::new(text).unwrap_or_default()
}

/// A command that doveadm runs now.
#[derive(Clone, Copy)]
pub struct Command {
    cctx: *mut ffi::doveadm_cmd_context,
}

impl Command {
    /// The command of this context.
    ///
    /// # Safety
    /// `cctx` is what doveadm gave to the command's function, which has not returned yet.
    #[must_use]
    pub const unsafe fn new(cctx: *mut ffi::doveadm_cmd_context) -> Self {
        Self { cctx }
    }

    /// The parameter of this name, where it was given.
    #[must_use]
    pub fn param_str(self, name: &CStr) -> Option<Vec<u8>> {
        let mut value = ptr::null();
        // SAFETY: `cctx` is valid by the contract of `new`.
        let given = unsafe { ffi::doveadm_cmd_param_str(self.cctx, name.as_ptr(), &raw mut value) };
        if !given || value.is_null() {
            return None;
        }
        // SAFETY: Dovecot gave a NUL-terminated string that lives as long as the command.
        Some(unsafe { CStr::from_ptr(value) }.to_bytes().to_vec())
    }

    /// Whether the flag of this name was given.
    #[must_use]
    pub fn param_bool(self, name: &CStr) -> bool {
        let mut value = false;
        // SAFETY: `cctx` is valid by the contract of `new`.
        let given =
            unsafe { ffi::doveadm_cmd_param_bool(self.cctx, name.as_ptr(), &raw mut value) };
        given && value
    }

    /// All values of the parameter of this name.
    #[must_use]
    pub fn param_array(self, name: &CStr) -> Vec<Vec<u8>> {
        let mut values = ptr::null();
        // SAFETY: `cctx` is valid by the contract of `new`.
        let given =
            unsafe { ffi::doveadm_cmd_param_array(self.cctx, name.as_ptr(), &raw mut values) };
        let mut all = Vec::new();
        if !given || values.is_null() {
            return all;
        }
        loop {
            // SAFETY: Dovecot ends the array with a NULL, up to which this goes.
            let value = unsafe { *values };
            if value.is_null() {
                return all;
            }
            // SAFETY: Dovecot gave a NUL-terminated string that lives as long as the command.
            all.push(unsafe { CStr::from_ptr(value) }.to_bytes().to_vec());
            // SAFETY: not at the end yet.
            values = unsafe { values.add(1) };
        }
    }

    /// Whether it was given on a command line, and not to doveadm-server.
    #[must_use]
    pub fn is_from_command_line(self) -> bool {
        // SAFETY: `cctx` is valid by the contract of `new`.
        let from = unsafe { (*self.cctx).conn_type };
        from == ffi::doveadm_client_type_DOVEADM_CONNECTION_TYPE_CLI
    }

    /// How it is called.
    #[must_use]
    pub fn usage(self) -> String {
        // SAFETY: `cctx` is valid by the contract of `new`.
        let cmd = unsafe { (*self.cctx).cmd };
        // SAFETY: doveadm sets the command before it runs it.
        let cmd = unsafe { &*cmd };
        // SAFETY: a registered command has a name, NUL-terminated, for good.
        let name = unsafe { CStr::from_ptr(cmd.name) };
        // SAFETY: as above, a usage.
        let usage = unsafe { CStr::from_ptr(cmd.usage) };
        format!(
            "doveadm {} {}",
            name.to_string_lossy(),
            usage.to_string_lossy()
        )
    }
}

/// doveadm's settings; `None` before doveadm has read them.
fn settings() -> Option<&'static ffi::doveadm_settings> {
    // SAFETY: doveadm sets the pointer before it runs any command.
    let settings = unsafe { ffi::doveadm_settings };
    // SAFETY: NULL or settings that live as long as the process.
    unsafe { settings.as_ref() }
}

fn text_setting(choose: impl Fn(&ffi::doveadm_settings) -> *const std::ffi::c_char) -> Vec<u8> {
    let value = settings().map_or(ptr::null(), choose);
    if value.is_null() {
        return Vec::new();
    }
    // SAFETY: a string setting is NUL-terminated and lives as long as the process.
    unsafe { CStr::from_ptr(value) }.to_bytes().to_vec()
}

/// The setting `base_dir`; empty before doveadm has read its settings.
#[must_use]
pub fn base_dir() -> Vec<u8> {
    text_setting(|settings| settings.base_dir)
}

/// The setting `doveadm_socket_path`.
#[must_use]
pub fn socket_path() -> Vec<u8> {
    text_setting(|settings| settings.doveadm_socket_path)
}

/// The setting `doveadm_password`.
#[must_use]
pub fn password() -> Vec<u8> {
    text_setting(|settings| settings.doveadm_password)
}

/// The setting `dsync_remote_cmd`.
#[must_use]
pub fn dsync_remote_cmd() -> Vec<u8> {
    text_setting(|settings| settings.dsync_remote_cmd)
}

/// The setting `doveadm_port`; 0: none.
#[must_use]
pub fn port() -> u16 {
    settings().map_or(0, |settings| settings.doveadm_port)
}

/// A TLS client with Dovecot's own settings and certificate checks, as dsync's of a `tcps:` peer.
pub struct Tls {
    tls: *mut ffi::replication_tls,
    /// Closed after the streams on it.
    _socket: TcpStream,
    timeout: Duration,
}

impl Tls {
    /// Shakes hands on a connection to this host.
    ///
    /// # Errors
    ///
    /// Dovecot's: the certificate is not valid, or not for this host.
    pub fn open(
        command: Command,
        socket: TcpStream,
        host: &str,
        timeout: Duration,
    ) -> Result<Self, String> {
        let host = c_text(host.as_bytes());
        let mut error = ptr::null();
        // SAFETY: the context is valid by the contract of `Command::new`, the socket is open as long as the streams on it, and
        // `error` is written to only during the call.
        let tls = unsafe {
            ffi::replication_doveadm_tls_open(
                command.cctx,
                socket.as_raw_fd(),
                host.as_ptr(),
                msecs(timeout),
                &raw mut error,
            )
        };
        if tls.is_null() {
            // SAFETY: set where NULL is given, NUL-terminated, alive until the next call.
            let error = unsafe { CStr::from_ptr(error) };
            return Err(error.to_string_lossy().into_owned());
        }
        Ok(Self {
            tls,
            _socket: socket,
            timeout,
        })
    }

    /// How long the peer may be silent from now on.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }
}

fn msecs(time: Duration) -> u32 {
    i32::try_from(time.as_millis())
        .unwrap_or(i32::MAX)
        .unsigned_abs()
}

impl Read for Tls {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: `tls` was opened and is not closed yet; `buffer` has room for its length.
        let length = unsafe {
            ffi::replication_doveadm_tls_read(
                self.tls,
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                msecs(self.timeout),
            )
        };
        usize::try_from(length).map_err(|_| io::Error::last_os_error())
    }
}

impl Write for Tls {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // SAFETY: `tls` was opened and is not closed yet; `bytes` are as many as is said.
        let result = unsafe {
            ffi::replication_doveadm_tls_write(
                self.tls,
                bytes.as_ptr().cast(),
                bytes.len(),
                msecs(self.timeout),
            )
        };
        match result {
            0 => Ok(bytes.len()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        // SAFETY: opened, closed once, and the socket is still open.
        unsafe { ffi::replication_doveadm_tls_close(self.tls) }
    }
}

/// Sets what doveadm exits with (sysexits.h).
pub fn set_exit_code(code: i32) {
    // SAFETY: a plain int that only this thread touches.
    unsafe { ffi::doveadm_exit_code = code }
}

/// The format of an output that the caller of doveadm did not choose.
#[derive(Clone, Copy, Debug)]
pub enum Format {
    /// Columns.
    Table,
    /// `key=value ...`
    Flow,
}

/// The output of a command, in the format that the caller of doveadm chose.
pub struct Print {
    for_machines: bool,
}

impl Print {
    /// Begins the output, in this format where none was chosen.
    #[must_use]
    pub fn begin(format: Format) -> Self {
        // SAFETY: no precondition.
        let for_machines = unsafe { ffi::doveadm_print_is_initialized() };
        if !for_machines {
            let name = match format {
                Format::Table => c"table",
                Format::Flow => c"flow",
            };
            // SAFETY: not yet initialized, and doveadm knows this format.
            unsafe { ffi::doveadm_print_init(name.as_ptr()) };
        }
        Self { for_machines }
    }

    /// Whether a format was chosen before the output was begun.
    #[must_use]
    pub fn is_chosen() -> bool {
        // SAFETY: no precondition.
        unsafe { ffi::doveadm_print_is_initialized() }
    }

    /// Whether a format was chosen (`-f`, HTTP): then a program may read it.
    #[must_use]
    pub const fn is_for_machines(&self) -> bool {
        self.for_machines
    }

    /// Adds a column; all columns come before the first value.
    pub fn header(&self, name: &CStr, layout: Layout) {
        let flags = match layout {
            Layout::Plain => 0,
            Layout::Wide => ffi::doveadm_print_header_flags_DOVEADM_PRINT_HEADER_FLAG_EXPAND,
            Layout::Untitled => {
                ffi::doveadm_print_header_flags_DOVEADM_PRINT_HEADER_FLAG_HIDE_TITLE
            }
        };
        // SAFETY: the output was begun; Dovecot copies the name.
        unsafe { ffi::doveadm_print_header(name.as_ptr(), name.as_ptr(), flags) }
    }

    /// Adds the value of the next column.
    pub fn value(&self, value: &[u8]) {
        let value = c_text(value);
        // SAFETY: the output was begun; Dovecot copies the value.
        unsafe { ffi::doveadm_print(value.as_ptr()) }
    }
}
