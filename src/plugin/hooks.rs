//! The hooks: which change is whose, and how urgent.
//!
//! A hook finds out whom a change concerns, pushes a notification into the channel and lets the writer
//! empty it. Changes that dsync makes are never notified back: its transactions carry a flag, and for
//! the rest the user's `dsyncing` is asked in each hook, since it is set after the user was created.

use std::cell::Cell;
use std::ffi::{CStr, c_void};
use std::os::raw::c_char;
use std::time::Duration;

use crossbeam_channel::Sender;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::callbacks::ReplicationCallbacks;
use super::main_thread::MainThread;
use super::notifier::{self, Notifier};
use crate::engine::{Notification, Priority, is_same_abi, parse_sync_timeout};
use crate::host::abi;
use crate::host::bindings as ffi;
use crate::host::guard::{self, guard};
use crate::host::mail::{
    MailUser, Mailbox, Namespace, Transaction, changes_are_visible, mail_mailbox,
    user_context_from_raw,
};

static NOTIFIER: MainThread<Notifier> = MainThread::new();
static SENDER: MainThread<Sender<Notification>> = MainThread::new();
static REGISTERED: MainThread<Registered> = MainThread::new();
/// Why settings could not be read last; where it is one reason for all users it is told once.
static SETTINGS_ERROR: MainThread<Box<[u8]>> = MainThread::new();

/// What is taken back at deinit.
struct Registered {
    notify: *mut ffi::notify_context,
}

/// What the plugin knows of a user.
struct UserContext {
    is_replicated: bool,
    sync_timeout: Option<Duration>,
    /// That INBOX is there was notified.
    inbox_is_told: Cell<bool>,
}

/// A transaction in which something of a replicated user may change.
struct Change {
    username: Box<[u8]>,
    sync_timeout: Option<Duration>,
    new_mail: bool,
    changed: bool,
}

/// Whom a change concerns.
struct Concerned<'a> {
    actor: MailUser<'a>,
    username: &'a [u8],
    sync_timeout: Option<Duration>,
}

static CALLBACKS: ReplicationCallbacks = ReplicationCallbacks {
    user_deinit: user_deinit_hook,
    retry: retry_hook,
    sync_failed: sync_failed_hook,
};

static NOTIFY_HOOKS: ffi::notify_vfuncs = ffi::notify_vfuncs {
    mail_transaction_begin: Some(transaction_begin_hook),
    mail_save: Some(mail_save_hook),
    mail_copy: Some(mail_copy_hook),
    mail_expunge: Some(mail_expunge_hook),
    mail_update_flags: Some(mail_update_flags_hook),
    mail_update_keywords: Some(mail_update_keywords_hook),
    mail_transaction_commit: Some(transaction_commit_hook),
    mail_transaction_rollback: Some(transaction_rollback_hook),
    mailbox_create: Some(mailbox_create_hook),
    mailbox_update: Some(mailbox_update_hook),
    mailbox_delete_begin: None,
    mailbox_delete_commit: Some(mailbox_delete_hook),
    mailbox_delete_rollback: None,
    mailbox_rename: Some(mailbox_rename_hook),
    mailbox_set_subscribed: Some(mailbox_set_subscribed_hook),
};

/// Dovecot keeps the pointer until `mail_storage_hooks_remove`.
static STORAGE_HOOKS: ffi::mail_storage_hooks = ffi::mail_storage_hooks {
    mail_user_created: Some(user_created_hook),
    mail_namespace_storage_added: None,
    mail_namespaces_created: None,
    mail_namespaces_added: None,
    mail_storage_created: None,
    mailbox_list_created: None,
    mailbox_allocated: Some(mailbox_allocated_hook),
    mailbox_opened: Some(mailbox_opened_hook),
    mail_allocated: None,
};

/// Sends what is logged, and what a panic says, to Dovecot's log.
pub fn init_log() {
    if abi::can_log() {
        crate::host::log::init(log::LevelFilter::Info);
    }
    guard::silence_panic_hook();
}

/// Registers with Dovecot and its notify plugin; in another Dovecot than it is built for it only says so.
pub fn init(module: *mut ffi::module) {
    let (built_for, running) = (abi::built_for(), abi::running());
    if running.is_none_or(|running| !is_same_abi(built_for.to_bytes(), running.to_bytes())) {
        let running = running.map_or("of an unknown release".into(), CStr::to_string_lossy);
        log::warn!(
            "replication: this plugin is built for Dovecot {}, this Dovecot is {running}: mail goes on, but what \
             changes here is not replicated until the plugin that is built for this Dovecot is installed \
             and Dovecot restarted",
            built_for.to_string_lossy()
        );
        return;
    }
    let (sender, receiver) = notifier::channel();
    SENDER.set(sender);
    NOTIFIER.set(Notifier::new(receiver));
    // SAFETY: CALLBACKS lives as long as the plugin is loaded.
    unsafe { ffi::replication_shim_set_callbacks((&raw const CALLBACKS).cast()) };
    // SAFETY: the notify plugin copies the table.
    let notify = unsafe { ffi::replication_shim_notify_register(&raw const NOTIFY_HOOKS) };
    REGISTERED.set(Registered { notify });
    // SAFETY: the hooks live as long as the plugin is loaded; module is Dovecot's.
    unsafe { ffi::replication_shim_storage_hooks_add(module, &raw const STORAGE_HOOKS) };
}

/// A last try for what waits.
pub fn deinit() {
    if let Some(notifier) = NOTIFIER.take() {
        notifier.finish();
    }
}

/// Takes back what [`init`] registered, also after a panic.
pub fn unhook() {
    if let Some(registered) = REGISTERED.take() {
        // SAFETY: the hooks were added by init.
        unsafe { ffi::replication_shim_storage_hooks_remove(&raw const STORAGE_HOOKS) };
        // SAFETY: the context came from notify_register and is given back once.
        unsafe { ffi::replication_shim_notify_unregister(registered.notify) };
    }
    guard::restore_panic_hook();
    drop(SETTINGS_ERROR.take());
    drop(SENDER.take());
    drop(NOTIFIER.take());
}

fn user_created(user: MailUser<'_>) {
    if user.is_autocreated() {
        return;
    }
    NOTIFIER.with(|notifier| notifier.set_base_dir(user.base_dir()));
    let settings = user.settings();
    let username = || String::from_utf8_lossy(user.username());
    if let Some(error) = settings.error {
        log_settings_error(user.username(), error);
    }
    let is_replicated = settings.has_replica || settings.error.is_some();
    if !is_replicated {
        user.debug(|| "replication: No mail_replica setting - replication disabled".to_owned());
    }
    let sync_timeout = match settings.sync_timeout.map(parse_sync_timeout) {
        None => None,
        Some(Ok(timeout)) => timeout,
        Some(Err(invalid)) => {
            log::error!(
                "replication({}): {invalid}; new mail does not wait",
                username()
            );
            None
        }
    };
    user.attach(Box::new(UserContext {
        is_replicated,
        sync_timeout,
        inbox_is_told: Cell::new(false),
    }));
}

/// Once, where it is the same for all users.
fn log_settings_error(username: &[u8], error: &[u8]) {
    if SETTINGS_ERROR.with(|last| **last == *error) == Some(true) {
        return;
    }
    SETTINGS_ERROR.set(error.into());
    let error = String::from_utf8_lossy(error);
    let hint = if error.contains("no settings struct named") {
        " (settings/lib10_replication_settings.so is missing, or of another release than this Dovecot)"
    } else {
        ""
    };
    // The replicator asks userdb itself: a notification too many does no harm.
    log::error!(
        "replication({}): {error}{hint}; changes are replicated if the replicator knows how, new mail does not wait",
        String::from_utf8_lossy(username)
    );
}

fn concerned(namespace: Namespace<'_>) -> Option<Concerned<'_>> {
    let actor = namespace.user()?;
    if actor.is_autocreated() || actor.is_dsyncing() {
        return None;
    }
    // SAFETY: user_created attaches UserContext and nothing else.
    let context = unsafe { actor.context::<UserContext>() };
    let sync_timeout = context.and_then(|context| context.sync_timeout);
    let owner = namespace.owner().map(MailUser::username);
    match owner.filter(|owner| *owner != actor.username()) {
        // Whether the owner is replicated only his own userdb entry tells; the replicator looks it up.
        Some(owner) => Some(Concerned {
            actor,
            username: owner,
            sync_timeout,
        }),
        None => context
            .filter(|context| context.is_replicated)
            .map(|_| Concerned {
                actor,
                username: actor.username(),
                sync_timeout,
            }),
    }
}

impl Concerned<'_> {
    fn notify(&self, priority: Priority, event: &str) {
        self.actor.debug(|| {
            format!(
                "replication: Replication of {} requested by '{event}', priority={priority}",
                String::from_utf8_lossy(self.username)
            )
        });
        notify(self.username.into(), priority);
    }
}

fn notify(username: Box<[u8]>, priority: Priority) {
    let drain = || {
        NOTIFIER.with(Notifier::drain);
    };
    SENDER.with(|sender| notifier::push(sender, Notification { username, priority }, drain));
    drain();
}

fn mailbox_changed(mailbox: Option<Mailbox<'_>>, event: &str) {
    if let Some(concerned) = mailbox.and_then(Mailbox::namespace).and_then(concerned) {
        concerned.notify(Priority::Low, event);
    }
}

fn mailbox_created(mailbox: Option<Mailbox<'_>>) {
    if mailbox.is_some_and(Mailbox::is_inbox) {
        tell_inbox(mailbox);
    }
    mailbox_changed(mailbox, "mailbox create");
}

/// Maildir of 2.3 makes the INBOX of a user's first login as it opens it, and calls no other hook. Where both nodes do so, each has
/// a UIDVALIDITY of its own.
fn inbox_opened(mailbox: Mailbox<'_>) {
    if !tell_inbox(Some(mailbox)) {
        mailbox_changed(Some(mailbox), "INBOX of the first login");
    }
}

/// Also where dsync works on it.
fn is_replicated_maildir(mailbox: Mailbox<'_>) -> bool {
    let Some(namespace) = mailbox.namespace() else {
        return false;
    };
    let Some(user) = namespace.user() else {
        return false;
    };
    // SAFETY: user_created attaches UserContext and nothing else.
    let Some(context) = (unsafe { user.context::<UserContext>() }) else {
        return false;
    };
    let is_anothers = || {
        let owner = namespace.owner().map(MailUser::username);
        owner.is_some_and(|owner| owner != user.username())
    };
    (context.is_replicated || is_anothers()) && mailbox.is_maildir()
}

/// Where `dovecot-uidlist` cannot be written, as on a full disk, Maildir forgets what is in it, and expunges all mails from the index
/// (`maildir_uidlist_sync_finish`, then `maildir_sync_index`). Their files are there, and are looked for when the directory has
/// changed, which may be never; until then each sync would have the other node expunge them. So it has changed. That takes
/// no space.
fn maildir_sync_failed(mailbox: Mailbox<'_>) {
    let Some(cur) = mailbox.path().map(|path| path.join("cur")) else {
        return;
    };
    // To the nanosecond: the kernel's own may still be that of the last change.
    let times = both(clock_gettime(ClockId::Realtime));
    // Who may write there and does not own it may set the kernel's own time and no other.
    let set = utimensat(CWD, &cur, &times, AtFlags::empty())
        .or_else(|_| utimensat(CWD, &cur, &kernels_now(), AtFlags::empty()));
    match set {
        // A mailbox that is gone.
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => log::error!("replication: utimensat({}) failed: {error}", cur.display()),
    }
}

fn kernels_now() -> Timestamps {
    both(Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    })
}

const fn both(time: Timespec) -> Timestamps {
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Whether that INBOX is there was notified before; from now on it was.
fn tell_inbox(mailbox: Option<Mailbox<'_>>) -> bool {
    let user = mailbox
        .and_then(Mailbox::namespace)
        .and_then(Namespace::user);
    // SAFETY: user_created attaches UserContext and nothing else.
    let context = user.and_then(|user| unsafe { user.context::<UserContext>() });
    context.is_some_and(|context| context.inbox_is_told.replace(true))
}

fn transaction_begin(transaction: Transaction<'_>) -> Option<Box<Change>> {
    if transaction.is_from_dsync() {
        return None;
    }
    let concerned = concerned(transaction.mailbox()?.namespace()?)?;
    Some(Box::new(Change {
        username: concerned.username.into(),
        sync_timeout: concerned.sync_timeout,
        new_mail: false,
        changed: false,
    }))
}

/// The transaction is freed when this is called: only `change` is left of it.
fn transaction_commit(change: Change, visible: bool) {
    match (change.new_mail, change.sync_timeout) {
        (true, Some(timeout)) => {
            NOTIFIER.with(|notifier| notifier.sync(&change.username, timeout));
        }
        (true, None) => notify(change.username, Priority::High),
        (false, _) if visible || change.changed => notify(change.username, Priority::Low),
        (false, _) => {}
    }
}

/// # Safety
/// `txn` is NULL or what [`transaction_begin_hook`] returned for a transaction that still goes on.
unsafe fn with_change(hook: &str, txn: *mut c_void, body: impl FnOnce(&mut Change)) {
    // SAFETY: the caller says so; Dovecot runs one hook at a time.
    if let Some(change) = unsafe { txn.cast::<Change>().as_mut() } {
        guard(hook, (), || body(change));
    }
}

/// # Safety
/// As [`with_change`], and the transaction ends.
unsafe fn take_change(txn: *mut c_void) -> Option<Box<Change>> {
    // SAFETY: the pointer came from Box::into_raw in transaction_begin_hook.
    (!txn.is_null()).then(|| unsafe { Box::from_raw(txn.cast()) })
}

unsafe extern "C" fn user_created_hook(user: *mut ffi::mail_user) {
    // SAFETY: Dovecot's user lives through the hook.
    let user = unsafe { MailUser::from_raw(user) };
    guard("mail_user_created", (), || {
        user.into_iter().for_each(user_created)
    });
}

unsafe extern "C" fn user_deinit_hook(context: *mut c_void) {
    // SAFETY: the shim hands back what user_created attached, once.
    drop(unsafe { user_context_from_raw::<UserContext>(context) });
    guard("user deinit", (), || {
        NOTIFIER.with(Notifier::flush);
    });
}

extern "C" fn retry_hook() {
    guard("retry", (), || {
        NOTIFIER.with(Notifier::handle_retry);
    });
    if guard::stepped_aside() {
        NOTIFIER.with(Notifier::disarm);
    }
}

unsafe extern "C" fn transaction_begin_hook(
    transaction: *mut ffi::mailbox_transaction_context,
) -> *mut c_void {
    // SAFETY: Dovecot's transaction lives through the hook.
    let transaction = unsafe { Transaction::from_raw(transaction) };
    guard("mail_transaction_begin", None, || {
        transaction.and_then(transaction_begin)
    })
    .map_or(std::ptr::null_mut(), |change| Box::into_raw(change).cast())
}

unsafe extern "C" fn mail_save_hook(txn: *mut c_void, _mail: *mut ffi::mail) {
    // SAFETY: txn is transaction_begin_hook's.
    unsafe { with_change("mail_save", txn, |change| change.new_mail = true) };
}

unsafe extern "C" fn mail_copy_hook(
    txn: *mut c_void,
    source: *mut ffi::mail,
    destination: *mut ffi::mail,
) {
    // SAFETY: both mails live through the hook.
    let source = unsafe { mail_mailbox(source) };
    // SAFETY: as above.
    let destination = unsafe { mail_mailbox(destination) };
    let body = |change: &mut Change| {
        // Between storages it is new mail, such as a delivery; within one the mail exists already.
        let within = source
            .zip(destination)
            .is_some_and(|(from, to)| from.same_storage(to));
        change.new_mail |= !within;
        change.changed = true;
    };
    // SAFETY: txn is transaction_begin_hook's.
    unsafe { with_change("mail_copy", txn, body) };
}

unsafe extern "C" fn mail_expunge_hook(txn: *mut c_void, _mail: *mut ffi::mail) {
    // SAFETY: txn is transaction_begin_hook's.
    unsafe { with_change("mail_expunge", txn, |change| change.changed = true) };
}

unsafe extern "C" fn mail_update_flags_hook(
    txn: *mut c_void,
    _mail: *mut ffi::mail,
    _old_flags: ffi::mail_flags,
) {
    // SAFETY: txn is transaction_begin_hook's.
    unsafe { with_change("mail_update_flags", txn, |change| change.changed = true) };
}

unsafe extern "C" fn mail_update_keywords_hook(
    txn: *mut c_void,
    _mail: *mut ffi::mail,
    _old_keywords: *const *const c_char,
) {
    // SAFETY: txn is transaction_begin_hook's.
    unsafe { with_change("mail_update_keywords", txn, |change| change.changed = true) };
}

unsafe extern "C" fn transaction_commit_hook(
    txn: *mut c_void,
    changes: *mut ffi::mail_transaction_commit_changes,
) {
    // SAFETY: txn is transaction_begin_hook's, and this is its end.
    let change = unsafe { take_change(txn) };
    // SAFETY: Dovecot's changes live through the hook.
    let visible = unsafe { changes_are_visible(changes) };
    guard("mail_transaction_commit", (), || {
        change
            .into_iter()
            .for_each(|change| transaction_commit(*change, visible));
    });
}

unsafe extern "C" fn transaction_rollback_hook(txn: *mut c_void) {
    // SAFETY: txn is transaction_begin_hook's, and this is its end.
    drop(unsafe { take_change(txn) });
}

unsafe extern "C" fn mailbox_create_hook(mailbox: *mut ffi::mailbox) {
    // SAFETY: Dovecot's mailbox lives through the hook.
    let mailbox = unsafe { Mailbox::from_raw(mailbox) };
    guard("mailbox_create", (), || mailbox_created(mailbox));
}

unsafe extern "C" fn mailbox_opened_hook(mailbox: *mut ffi::mailbox) {
    // SAFETY: Dovecot's mailbox lives through the hook.
    let mailbox = unsafe { Mailbox::from_raw(mailbox) };
    // SAFETY: the hook is called when the mailbox has just been opened.
    let new = mailbox.filter(|mailbox| unsafe { mailbox.is_new_inbox() });
    // Nothing of ours in the way of a mailbox that is not new.
    if let Some(inbox) = new {
        guard("mailbox_opened", (), || inbox_opened(inbox));
    }
}

unsafe extern "C" fn mailbox_allocated_hook(mailbox: *mut ffi::mailbox) {
    // SAFETY: Dovecot's mailbox lives through the hook.
    let mailbox = unsafe { Mailbox::from_raw(mailbox) };
    guard("mailbox_allocated", (), || {
        if let Some(mailbox) = mailbox.filter(|mailbox| is_replicated_maildir(*mailbox)) {
            mailbox.watch_syncs();
        }
    });
}

unsafe extern "C" fn sync_failed_hook(mailbox: *mut c_void) {
    // SAFETY: the shim gives a mailbox that lives through the call.
    let mailbox = unsafe { Mailbox::from_raw(mailbox.cast()) };
    guard("mailbox sync", (), || {
        mailbox.into_iter().for_each(maildir_sync_failed);
    });
}

unsafe extern "C" fn mailbox_update_hook(mailbox: *mut ffi::mailbox) {
    // SAFETY: Dovecot's mailbox lives through the hook.
    let mailbox = unsafe { Mailbox::from_raw(mailbox) };
    guard("mailbox_update", (), || {
        mailbox_changed(mailbox, "mailbox update")
    });
}

unsafe extern "C" fn mailbox_delete_hook(_txn: *mut c_void, mailbox: *mut ffi::mailbox) {
    // SAFETY: Dovecot's mailbox lives through the hook.
    let mailbox = unsafe { Mailbox::from_raw(mailbox) };
    guard("mailbox_delete", (), || {
        mailbox_changed(mailbox, "mailbox delete")
    });
}

unsafe extern "C" fn mailbox_rename_hook(
    source: *mut ffi::mailbox,
    destination: *mut ffi::mailbox,
) {
    // SAFETY: Dovecot's mailboxes live through the hook.
    let source = unsafe { Mailbox::from_raw(source) };
    // SAFETY: as above.
    let destination = unsafe { Mailbox::from_raw(destination) };
    guard("mailbox_rename", (), || {
        mailbox_changed(destination, "mailbox rename");
        if owner_of(source) != owner_of(destination) {
            mailbox_changed(source, "mailbox rename");
        }
    });
}

fn owner_of(mailbox: Option<Mailbox<'_>>) -> Option<&[u8]> {
    let namespace = mailbox?.namespace()?;
    namespace
        .owner()
        .or(namespace.user())
        .map(MailUser::username)
}

unsafe extern "C" fn mailbox_set_subscribed_hook(mailbox: *mut ffi::mailbox, _subscribed: bool) {
    // SAFETY: Dovecot's mailbox lives through the hook.
    let mailbox = unsafe { Mailbox::from_raw(mailbox) };
    guard("mailbox_set_subscribed", (), || {
        mailbox_changed(mailbox, "mailbox subscribe")
    });
}
