//! Two mailboxes of one name, as dsync meets them: what it does to the mailboxes here.
//!
//! Both nodes make a mailbox of one name (the user's first login on each makes INBOX): then dsync tries to create the
//! peer's mailbox here, finds that there is one, and the higher of the two GUIDs is taken by the side that has the lower.
//! Maildir of 2.3 gives the mailbox the peer's GUID and UIDVALIDITY although it was there before: both sides do, so each
//! dsync swaps them and ends with a change on the other side, for ever. Here a mailbox gets them only if it was created,
//! as on 2.4, and what dsync means to do then is done. One side that does so is enough: the other may be stock's.
//!
//! A mailbox that takes the peer's GUID is said in one line, which the replicator counts.
//!
//! Where both nodes gave one name to two mailboxes dsync renames one of them, on each side by itself, and to a name that may not be the
//! other's; a name of its own (`NAME-temp-1`, then `NAME-temp-GUID`, in `dsync-mailbox-tree-sync.c`) is said. The replicator is told of
//! every rename: the next sync makes the names one.
//!
//! A mailbox whose DELETE was ended half-way (SIGKILL, a full disk) is marked deleted in its index: dsync does not see it, comes to create the
//! peer's, and fails, and so does each sync of the user until Dovecot takes the mark off, five minutes later. Here it is taken off at once:
//! whoever deletes keeps the mailbox list locked meanwhile, and here dsync has locked it.
//!
//! A mail that came while dsync was at work, under a UID that dsync wants to give, is copied to a new UID and expunged
//! (`reassign_uids_in_seq_range` in `dsync-mailbox-import.c`), both in an external transaction. Such a one tells what has already happened,
//! and an index that reads of an expunge there drops the mail and leaves its file where it is: on Maildir the file is found again and is a mail
//! once more, which is there twice then, and sdbox and mdbox keep what nobody can see until an index is rebuilt. Here the expunges of an
//! external transaction are asked for in one of their own.
//!
//! A mail that dsync is about to save may be gone by then: a client has expunged it on this node, or on the peer. dsync gives it up, and commits what
//! it has saved before it. Where none is saved after it, sdbox deletes the files of all of them (`sdbox_transaction_save_commit_post`
//! looks at how the last one ended), and has them in its index: they are lost, on both nodes when the index is rebuilt. Here they stay.
//!
//! Between the copies and the expunges of what was copied the watchdog does not end dsync: each mail would be there twice.
//!
//! Nothing is said or changed but for dsync, and no mailbox or mail is removed.

use std::ffi::{CStr, c_char, c_int};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use super::{observer, watchdog};
use crate::engine::healing;
use crate::host::bindings as ffi;
use crate::host::guard::guard;

type Alloc = unsafe extern "C" fn(
    *mut ffi::mail_storage,
    *mut ffi::mailbox_list,
    *const c_char,
    ffi::mailbox_flags,
) -> *mut ffi::mailbox;
type Create = unsafe extern "C" fn(*mut ffi::mailbox, *const ffi::mailbox_update, bool) -> c_int;
type Update = unsafe extern "C" fn(*mut ffi::mailbox, *const ffi::mailbox_update) -> c_int;
type Commit = unsafe extern "C" fn(
    *mut ffi::mailbox_transaction_context,
    *mut ffi::mail_transaction_commit_changes,
) -> c_int;
type Rename = unsafe extern "C" fn(*mut ffi::mailbox, *mut ffi::mailbox) -> c_int;

/// The formats that keep a GUID with the mailbox, where replication works.
const FORMATS: [&CStr; 3] = [c"maildir", SDBOX, c"mdbox"];
const SDBOX: &CStr = c"sdbox";

/// Its `create` changes a mailbox that was there before.
#[cfg(not(dovecot_2_4))]
const CHANGES_EXISTING: Option<&CStr> = Some(c"maildir");
#[cfg(dovecot_2_4)]
const CHANGES_EXISTING: Option<&CStr> = None;

/// A mailbox format, and its own functions.
struct Stock {
    format: &'static CStr,
    storage: usize,
    alloc: Alloc,
    create: Option<Create>,
    update: Option<Update>,
    rename: Option<Rename>,
    commit: Option<Commit>,
}

static WRAPPED: Mutex<Vec<Stock>> = Mutex::new(Vec::new());
/// The mailbox that dsync tried to create last and that was there: what it changes in it then is to be said.
static NOT_CREATED: AtomicUsize = AtomicUsize::new(0);

fn with<T>(use_table: impl FnOnce(&mut Vec<Stock>) -> T) -> T {
    use_table(&mut WRAPPED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Has the mailboxes of these formats use the functions below. Called when the storages are registered, again and again.
pub fn wrap() {
    for format in FORMATS {
        if with(|all| all.iter().any(|stock| stock.format == format)) {
            continue;
        }
        // SAFETY: a NUL-terminated name; Dovecot has registered its formats before a command runs.
        let storage = unsafe { ffi::mail_storage_find_class(format.as_ptr()) };
        if storage.is_null() {
            continue;
        }
        // SAFETY: a format of Dovecot's own, which lives as long as the process; no other thread uses it.
        let v = unsafe { &mut (*storage).v };
        let Some(alloc) = v.mailbox_alloc.replace(alloc_box) else {
            v.mailbox_alloc = None;
            continue;
        };
        with(|all| {
            all.push(Stock {
                format,
                storage: storage as usize,
                alloc,
                create: None,
                update: None,
                rename: None,
                commit: None,
            });
        });
    }
}

/// The command is over: another mailbox may come to be where this one was.
pub fn forget() {
    NOT_CREATED.store(0, Relaxed);
}

/// Gives the formats their own function back. Not guarded: it must be done, and has no panic.
pub fn unwrap() {
    for stock in with(std::mem::take) {
        let storage = stock.storage as *mut ffi::mail_storage;
        // SAFETY: the format that `wrap` found; it lives as long as the process.
        unsafe { (*storage).v.mailbox_alloc = Some(stock.alloc) };
    }
}

/// The table's entry of the mailbox's format.
fn stock_of<T>(format: &CStr, read: impl FnOnce(&mut Stock) -> T) -> Option<T> {
    with(|all| {
        all.iter_mut()
            .find(|stock| stock.format == format)
            .map(read)
    })
}

unsafe extern "C" fn alloc_box(
    storage: *mut ffi::mail_storage,
    list: *mut ffi::mailbox_list,
    vname: *const c_char,
    flags: ffi::mailbox_flags,
) -> *mut ffi::mailbox {
    // SAFETY: Dovecot gave the storage of a user.
    let name = unsafe { (*storage).name };
    // SAFETY: a NUL-terminated constant.
    let format = unsafe { CStr::from_ptr(name) };
    let Some(alloc) = stock_of(format, |stock| stock.alloc) else {
        // `wrap` put it there before this function could be called; C has no way to go on without a mailbox.
        std::process::abort();
    };
    // SAFETY: the format's own function with what it was to be called with.
    let mailbox = unsafe { alloc(storage, list, vname, flags) };
    guard("mailbox_alloc", (), || adopt(format, mailbox));
    mailbox
}

/// Its functions are the format's own now: plugins come after us.
fn adopt(format: &CStr, mailbox: *mut ffi::mailbox) {
    // SAFETY: allocated just now, and only known here.
    let v = unsafe { &mut (*mailbox).v };
    stock_of(format, |stock| {
        stock.create = v.create_box;
        stock.update = v.update_box;
        stock.rename = v.rename_box;
        stock.commit = v.transaction_commit;
    });
    if v.create_box.is_some() && v.update_box.is_some() {
        v.create_box = Some(create_box);
        v.update_box = Some(update_box);
    }
    if v.rename_box.is_some() {
        v.rename_box = Some(rename_box);
    }
    if v.transaction_commit.is_some() {
        v.transaction_commit = Some(transaction_commit);
    }
}

fn format_of<'a>(mailbox: *mut ffi::mailbox) -> &'a CStr {
    // SAFETY: Dovecot gave the mailbox for the time of the call.
    let storage = unsafe { (*mailbox).storage };
    // SAFETY: a mailbox has a storage.
    let name = unsafe { (*storage).name };
    // SAFETY: a NUL-terminated constant.
    unsafe { CStr::from_ptr(name) }
}

fn name_of(mailbox: *mut ffi::mailbox) -> String {
    // SAFETY: Dovecot gave the mailbox for the time of the call.
    let name = unsafe { (*mailbox).vname };
    // SAFETY: a mailbox has a name, a NUL-terminated string.
    let name = unsafe { CStr::from_ptr(name) };
    String::from_utf8_lossy(name.to_bytes()).into_owned()
}

/// The format's own functions, and whether `create` is to be kept from changing what was there.
fn functions_of(mailbox: *mut ffi::mailbox) -> (Create, Update, bool) {
    let format = format_of(mailbox);
    match stock_of(format, |stock| (stock.create, stock.update)) {
        Some((Some(create), Some(update))) => (create, update, CHANGES_EXISTING == Some(format)),
        // `adopt` has stored them, or our functions would not be in the mailbox.
        _ => std::process::abort(),
    }
}

unsafe extern "C" fn create_box(
    mailbox: *mut ffi::mailbox,
    update: *const ffi::mailbox_update,
    directory: bool,
) -> c_int {
    let (create, change, changes_existing) = functions_of(mailbox);
    // SAFETY: Dovecot gave the mailbox for the time of the call.
    if update.is_null() || !unsafe { ffi::replication_doveadm_is_dsync(mailbox) } {
        // SAFETY: the format's own function with what it was to be called with.
        return unsafe { create(mailbox, update, directory) };
    }
    let create_with = if changes_existing {
        ptr::null()
    } else {
        update
    };
    // SAFETY: as above; Dovecot's callers may leave `update` out.
    let mut created = unsafe { create(mailbox, create_with, directory) };
    // SAFETY: as above. Dovecot's `mailbox_create` has locked the list.
    if created < 0 && !directory && unsafe { ffi::replication_doveadm_undelete(mailbox) } {
        guard("create_box", (), || {
            log::info!("{}", healing::undeleted(&name_of(mailbox)));
            observer::undeleted();
        });
        // SAFETY: as above. It is there now, and says so.
        created = unsafe { create(mailbox, create_with, directory) };
    }
    if created < 0 {
        NOT_CREATED.store(mailbox as usize, Relaxed);
        return created;
    }
    guard("create_box", (), || note_created(mailbox));
    if !changes_existing {
        return created;
    }
    // SAFETY: what `create` does with `update` when it has created the mailbox.
    unsafe { change(mailbox, update) }
}

/// The peer, which has the mailbox under its old name, is about to rename it, or has done so under another name.
fn note_created(mailbox: *mut ffi::mailbox) {
    let name = name_of(mailbox);
    if healing::is_dsyncs_own_name(&name) {
        observer::renamed();
        log::info!("{}", healing::created_under_own_name(&name));
    }
}

unsafe extern "C" fn rename_box(
    source: *mut ffi::mailbox,
    destination: *mut ffi::mailbox,
) -> c_int {
    let Some(rename) = stock_of(format_of(source), |stock| stock.rename).flatten() else {
        // `adopt` has stored it, or our function would not be in the mailbox.
        std::process::abort();
    };
    // SAFETY: the format's own function with what it was to be called with.
    let result = unsafe { rename(source, destination) };
    // SAFETY: Dovecot gave the mailbox for the time of the call.
    if result >= 0 && unsafe { ffi::replication_doveadm_is_dsync(source) } {
        guard("rename_box", (), || note_renamed(source, destination));
    }
    result
}

fn note_renamed(source: *mut ffi::mailbox, destination: *mut ffi::mailbox) {
    observer::renamed();
    let name = name_of(destination);
    if healing::is_dsyncs_own_name(&name) {
        log::info!("{}", healing::renamed_to_own_name(&name_of(source), &name));
    }
}

unsafe extern "C" fn transaction_commit(
    transaction: *mut ffi::mailbox_transaction_context,
    changes: *mut ffi::mail_transaction_commit_changes,
) -> c_int {
    // SAFETY: Dovecot gave the transaction for the time of the call.
    let mailbox = unsafe { (*transaction).box_ };
    let format = format_of(mailbox);
    let Some(commit) = stock_of(format, |stock| stock.commit).flatten() else {
        // `adopt` has stored it, or our function would not be in the mailbox.
        std::process::abort();
    };
    // SAFETY: as above; a transaction has a mailbox.
    let is_dsync = unsafe { ffi::replication_doveadm_is_dsync(mailbox) };
    // SAFETY: as above.
    let copies = is_dsync && unsafe { ffi::replication_doveadm_saves_externally(transaction) };
    if copies {
        watchdog::hold();
    }
    if is_dsync && format == SDBOX {
        // SAFETY: as above; it is of an sdbox, and has not been committed.
        unsafe { ffi::replication_doveadm_keep_saved(transaction) };
    }
    let expunges = if is_dsync {
        // SAFETY: as above; it has not been committed.
        unsafe { ffi::replication_doveadm_take_expunges(transaction) }
    } else {
        ptr::null_mut()
    };
    // SAFETY: the format's own function with what it was to be called with. The transaction is freed then.
    let mut result = unsafe { commit(transaction, changes) };
    let has_expunged = !expunges.is_null();
    if has_expunged {
        // SAFETY: from just above, of this mailbox, which outlives its transactions.
        let asked = unsafe { ffi::replication_doveadm_expunge(mailbox, expunges, result >= 0) };
        result = result.min(asked);
    }
    // What was copied without an expunge is expunged by the transaction that dsync commits next (`dsync_mailbox_import_commit`), if this one was.
    if !copies || has_expunged || result < 0 {
        watchdog::release();
    }
    result
}

unsafe extern "C" fn update_box(
    mailbox: *mut ffi::mailbox,
    update: *const ffi::mailbox_update,
) -> c_int {
    let (_, stock, _) = functions_of(mailbox);
    // SAFETY: the format's own function with what it was to be called with.
    let result = unsafe { stock(mailbox, update) };
    if result >= 0 && NOT_CREATED.load(Relaxed) == mailbox as usize {
        guard("update_box", (), || say(mailbox, update));
    }
    result
}

/// dsync has found the mailbox there, and gives it the peer's GUID.
fn say(mailbox: *mut ffi::mailbox, update: *const ffi::mailbox_update) {
    // SAFETY: Dovecot gave both to `update_box`, which has not returned.
    let guid = unsafe { (*update).mailbox_guid };
    // SAFETY: as above.
    if guid == [0; 16] || !unsafe { ffi::replication_doveadm_is_dsync(mailbox) } {
        return;
    }
    log::info!("{}", healing::guid_taken(&name_of(mailbox), guid));
    observer::guid_healed();
}
