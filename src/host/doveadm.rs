//! doveadm as a host: parameters of a command, its output, its exit code.
//!
//! Only for the doveadm module. What is called here runs on doveadm's one thread, inside a command.

use std::ffi::{CStr, CString};
use std::ptr;

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

/// The setting `base_dir`; empty before doveadm has read its settings.
#[must_use]
pub fn base_dir() -> Vec<u8> {
    // SAFETY: doveadm sets the pointer before it runs any command.
    let settings = unsafe { ffi::doveadm_settings };
    if settings.is_null() {
        return Vec::new();
    }
    // SAFETY: checked above; the settings live as long as the process.
    let dir = unsafe { (*settings).base_dir };
    if dir.is_null() {
        return Vec::new();
    }
    // SAFETY: a string setting is NUL-terminated.
    unsafe { CStr::from_ptr(dir) }.to_bytes().to_vec()
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
