//! Mail users, namespaces, mailboxes and transactions, as a hook sees them.
//!
//! Every wrapper borrows what Dovecot handed to the running hook and lives no longer than it.

use std::ffi::{CStr, OsStr, c_char, c_void};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use super::bindings as ffi;
use super::log::c_text;

/// A `struct mail_user`.
#[derive(Clone, Copy)]
pub struct MailUser<'a>(NonNull<ffi::mail_user>, PhantomData<&'a ffi::mail_user>);

/// A user's settings.
#[derive(Clone, Copy, Debug)]
pub struct UserSettings<'a> {
    /// A `mail_replica`, `mail_replica2`, ... has a value.
    pub has_replica: bool,
    /// `replication_sync_timeout` as set; `None` if it is not.
    pub sync_timeout: Option<&'a [u8]>,
    /// Why the settings cannot be read, and then the others say nothing.
    pub error: Option<&'a [u8]>,
}

/// A `struct mail_namespace`.
#[derive(Clone, Copy)]
pub struct Namespace<'a>(
    NonNull<ffi::mail_namespace>,
    PhantomData<&'a ffi::mail_namespace>,
);

/// A `struct mailbox`.
#[derive(Clone, Copy)]
pub struct Mailbox<'a>(NonNull<ffi::mailbox>, PhantomData<&'a ffi::mailbox>);

/// A `struct mailbox_transaction_context`.
#[derive(Clone, Copy)]
pub struct Transaction<'a>(
    NonNull<ffi::mailbox_transaction_context>,
    PhantomData<&'a ffi::mailbox_transaction_context>,
);

/// # Safety
/// `text` is NULL or a C string that lives for `'a`.
unsafe fn bytes<'a>(text: *const c_char) -> Option<&'a [u8]> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller says so.
    Some(unsafe { CStr::from_ptr(text) }.to_bytes())
}

impl<'a> MailUser<'a> {
    /// # Safety
    /// `user` is NULL or a user that lives for `'a`.
    #[must_use]
    pub unsafe fn from_raw(user: *mut ffi::mail_user) -> Option<Self> {
        NonNull::new(user).map(|user| Self(user, PhantomData))
    }

    /// The name, any bytes.
    #[must_use]
    pub fn username(self) -> &'a [u8] {
        // SAFETY: the user lives for 'a.
        let name = unsafe { (*self.0.as_ptr()).username };
        // SAFETY: the name is a C string in the user's pool.
        unsafe { bytes(name) }.unwrap_or_default()
    }

    /// Dovecot made it by itself: the raw storage of a delivery, the owner of a shared namespace.
    #[must_use]
    pub fn is_autocreated(self) -> bool {
        // SAFETY: the user lives for 'a.
        unsafe { ffi::mail_user::autocreated_raw(self.0.as_ptr()) }
    }

    /// This process runs dsync for the user. Set after the user was created: ask in each hook.
    #[must_use]
    pub fn is_dsyncing(self) -> bool {
        // SAFETY: the user lives for 'a.
        unsafe { ffi::mail_user::dsyncing_raw(self.0.as_ptr()) }
    }

    /// What the user's settings say, userdb fields included.
    #[must_use]
    pub fn settings(self) -> UserSettings<'a> {
        let mut raw = MaybeUninit::<ffi::replication_shim_user_settings>::zeroed();
        // SAFETY: the user lives for 'a; `raw` has room for what is written.
        unsafe { ffi::replication_shim_user_settings(self.0.as_ptr(), raw.as_mut_ptr()) };
        // SAFETY: the call has filled it.
        let raw = unsafe { raw.assume_init() };
        UserSettings {
            has_replica: raw.has_replica,
            // SAFETY: NULL or a C string that lives as long as the user.
            sync_timeout: unsafe { bytes(raw.sync_timeout) },
            // SAFETY: as above.
            error: unsafe { bytes(raw.error) },
        }
    }

    /// `base_dir`.
    #[must_use]
    pub fn base_dir(self) -> &'a Path {
        // SAFETY: the user lives for 'a.
        let dir = unsafe { ffi::replication_shim_user_base_dir(self.0.as_ptr()) };
        // SAFETY: the value is in the user's settings pool.
        Path::new(OsStr::from_bytes(unsafe { bytes(dir) }.unwrap_or_default()))
    }

    /// Logs at debug level with the user's prefix; `text` is made only if somebody reads it.
    pub fn debug(self, text: impl FnOnce() -> String) {
        // SAFETY: the user lives for 'a.
        if unsafe { ffi::replication_shim_user_wants_debug(self.0.as_ptr()) } {
            let text = c_text(&text());
            // SAFETY: both pointers live through the call.
            unsafe { ffi::replication_shim_user_debug(self.0.as_ptr(), text.as_ptr()) };
        }
    }

    /// Ties `context` to the user. [`user_context_from_raw`] gets it back in the user's deinit callback.
    pub fn attach<T>(self, context: Box<T>) {
        let context = Box::into_raw(context).cast::<c_void>();
        // SAFETY: the user lives; the shim hands the context back exactly once, at deinit.
        unsafe { ffi::replication_shim_user_attach(self.0.as_ptr(), context) };
    }

    /// The context of [`MailUser::attach`].
    ///
    /// # Safety
    /// `T` is the type that was attached.
    #[must_use]
    pub unsafe fn context<T>(self) -> Option<&'a T> {
        // SAFETY: the user lives for 'a.
        let context = unsafe { ffi::replication_shim_user_context(self.0.as_ptr()) };
        // SAFETY: the context was attached as a T and lives at least as long as the user.
        unsafe { context.cast::<T>().as_ref() }
    }
}

/// The box that was attached to a user, in the user's deinit callback.
///
/// # Safety
/// `context` is what the callback got, `T` what was attached; called once for each.
#[must_use]
pub unsafe fn user_context_from_raw<T>(context: *mut c_void) -> Box<T> {
    // SAFETY: the pointer came from Box::into_raw in attach.
    unsafe { Box::from_raw(context.cast()) }
}

impl<'a> Namespace<'a> {
    /// Who uses the namespace.
    #[must_use]
    pub fn user(self) -> Option<MailUser<'a>> {
        // SAFETY: the namespace lives for 'a.
        let user = unsafe { (*self.0.as_ptr()).user };
        // SAFETY: its user lives as long.
        unsafe { MailUser::from_raw(user) }
    }

    /// Whose mail it holds; `None` for a shared prefix without a user in it and for public mail.
    #[must_use]
    pub fn owner(self) -> Option<MailUser<'a>> {
        // SAFETY: the namespace lives for 'a.
        let owner = unsafe { (*self.0.as_ptr()).owner };
        // SAFETY: its owner lives as long.
        unsafe { MailUser::from_raw(owner) }
    }
}

impl<'a> Mailbox<'a> {
    /// # Safety
    /// `mailbox` is NULL or a mailbox that lives for `'a`.
    #[must_use]
    pub unsafe fn from_raw(mailbox: *mut ffi::mailbox) -> Option<Self> {
        NonNull::new(mailbox).map(|mailbox| Self(mailbox, PhantomData))
    }

    /// The mailbox's namespace.
    #[must_use]
    pub fn namespace(self) -> Option<Namespace<'a>> {
        // SAFETY: the mailbox lives for 'a; the function only reads.
        let namespace = unsafe { ffi::replication_shim_mailbox_namespace(self.0.as_ptr()) };
        NonNull::new(namespace).map(|namespace| Namespace(namespace, PhantomData))
    }

    /// Whether it is the user's own INBOX.
    #[must_use]
    pub fn is_inbox(self) -> bool {
        // SAFETY: the mailbox lives for 'a; the function only reads.
        unsafe { ffi::replication_shim_mailbox_is_inbox(self.0.as_ptr()) }
    }

    /// Whether it is a Maildir.
    #[must_use]
    pub fn is_maildir(self) -> bool {
        // SAFETY: the mailbox lives for 'a; the function only reads.
        unsafe { ffi::replication_shim_mailbox_is_maildir(self.0.as_ptr()) }
    }

    /// Where it is.
    #[must_use]
    pub fn path(self) -> Option<PathBuf> {
        // SAFETY: the mailbox lives for 'a.
        let path = unsafe { ffi::replication_shim_mailbox_path(self.0.as_ptr()) };
        // SAFETY: NULL or a C string that lives until the next call.
        let path = unsafe { bytes(path) }?;
        Some(PathBuf::from(OsStr::from_bytes(path)))
    }

    /// From now on the callback is told of each sync that failed. Only as the mailbox is allocated.
    pub fn watch_syncs(self) {
        // SAFETY: the mailbox lives for 'a.
        unsafe { ffi::replication_shim_mailbox_watch_syncs(self.0.as_ptr()) };
    }

    /// Whether it is the user's own INBOX in Maildir, without a UIDVALIDITY as yet.
    ///
    /// # Safety
    /// Dovecot has just opened it.
    #[must_use]
    pub unsafe fn is_new_inbox(self) -> bool {
        // SAFETY: the mailbox lives for 'a, and the caller says that its index is open.
        unsafe { ffi::replication_shim_mailbox_is_new_inbox(self.0.as_ptr()) }
    }

    /// Whether both mailboxes are in one storage.
    #[must_use]
    pub fn same_storage(self, other: Mailbox<'_>) -> bool {
        // SAFETY: the mailbox lives for 'a.
        let own = unsafe { (*self.0.as_ptr()).storage };
        // SAFETY: the other one lives through the call.
        let others = unsafe { (*other.0.as_ptr()).storage };
        own == others
    }
}

impl<'a> Transaction<'a> {
    /// # Safety
    /// `transaction` is NULL or a transaction that lives for `'a`.
    #[must_use]
    pub unsafe fn from_raw(transaction: *mut ffi::mailbox_transaction_context) -> Option<Self> {
        NonNull::new(transaction).map(|transaction| Self(transaction, PhantomData))
    }

    /// The mailbox that is changed.
    #[must_use]
    pub fn mailbox(self) -> Option<Mailbox<'a>> {
        // SAFETY: the transaction lives for 'a.
        let mailbox = unsafe { (*self.0.as_ptr()).box_ };
        // SAFETY: its mailbox lives as long.
        unsafe { Mailbox::from_raw(mailbox) }
    }

    /// Its changes come from dsync.
    #[must_use]
    pub fn is_from_dsync(self) -> bool {
        // SAFETY: the transaction lives for 'a.
        let flags = unsafe { (*self.0.as_ptr()).flags };
        flags & ffi::mailbox_transaction_flags_MAILBOX_TRANSACTION_FLAG_SYNC != 0
    }
}

/// The mailbox of a mail that a hook got.
///
/// # Safety
/// `mail` is NULL or a mail that lives for `'a`.
#[must_use]
pub unsafe fn mail_mailbox<'a>(mail: *mut ffi::mail) -> Option<Mailbox<'a>> {
    let mail = NonNull::new(mail)?;
    // SAFETY: the mail lives for 'a.
    let mailbox = unsafe { (*mail.as_ptr()).box_ };
    // SAFETY: its mailbox lives as long.
    unsafe { Mailbox::from_raw(mailbox) }
}

/// Whether a commit changed something that a user sees, not only a cache.
///
/// # Safety
/// `changes` is NULL or the changes that the commit hook got.
#[must_use]
pub unsafe fn changes_are_visible(changes: *const ffi::mail_transaction_commit_changes) -> bool {
    let Some(changes) = NonNull::new(changes.cast_mut()) else {
        return false;
    };
    // SAFETY: the caller says so.
    let mask = unsafe { (*changes.as_ptr()).changes_mask };
    mask & !ffi::mail_index_transaction_change_MAIL_INDEX_TRANSACTION_CHANGE_OTHERS != 0
}
