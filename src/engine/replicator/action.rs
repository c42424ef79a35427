//! What the engine asks its driver to do, and what the driver tells back: plain data.

/// A connection of an aggregator, numbered by the driver; a number is not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// A command of an administrator, numbered by the driver; a number is not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// A sync that the engine started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SyncId(pub u64);

/// A userdb lookup that the engine asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LookupId(pub u64);

/// A user listing that the engine asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListingId(pub u64);

/// A probe of a peer that the engine asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeId(pub u64);

/// What the driver is to do. Take all of `poll_write` before each of these is carried out, so that a
/// sync reads the state that the sync before it left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// List the users; answer with `handle_listing_user` and one `handle_listing_finished`. One at a time.
    ListUsers {
        /// To be named in the answers.
        listing: ListingId,
        /// The mask of usernames (`*`: all).
        mask: Vec<u8>,
    },
    /// Ask userdb; answer with one `handle_user_looked_up`.
    LookupUser {
        /// To be named in the answer.
        lookup: LookupId,
        /// As it was notified.
        username: Vec<u8>,
    },
    /// Connect to the peer, exchange VERSION and greeting, close; answer with one `handle_probe_finished`.
    Probe {
        /// To be named in the answer.
        probe: ProbeId,
        /// `tcp:...` or `tcps:...`
        target: Vec<u8>,
    },
    /// Run dsync, with the state that the store has for (`username`, `target`); answer with one
    /// `handle_sync_finished`, and before it with `handle_sync_progress` as there is progress.
    StartSync {
        /// To be named in the answers.
        sync: SyncId,
        /// Whose mail.
        username: Vec<u8>,
        /// To where.
        target: Vec<u8>,
        /// It looks at all mails: with `-f`.
        full: bool,
        /// But not with `-f`: from the state, [without its modseqs](crate::engine::sync_state::without_modseqs), if that can be had.
        from_state: bool,
        /// Whether what mailboxes there are is to be known before it begins.
        mailboxes: Mailboxes,
        /// Whether the store has a state: else it need not be asked.
        has_state: bool,
    },
    /// End this sync, its processes too, then say `handle_sync_finished` (with `SyncOutcome::Timeout` unless it
    /// had just ended by itself).
    AbortSync {
        /// Which.
        sync: SyncId,
        /// Why, for the administrator.
        reason: String,
        /// Without the time to end by itself.
        at_once: bool,
    },
    /// Every line of this connection up to and including `line` is safe: send `A\t<line>`.
    Acknowledge {
        /// The aggregator.
        connection: ConnectionId,
        /// The id of its line.
        line: u64,
    },
    /// Answer a `sync` line: `+\t<request>`, or `-\t<request>\t<reason>`.
    AnswerWaiter {
        /// The aggregator.
        connection: ConnectionId,
        /// The id of its line.
        request: u64,
        /// `Err` has the reason.
        answer: Result<(), String>,
    },
    /// Answer a command.
    AnswerCommand {
        /// Which.
        command: CommandId,
        /// What comes after `+` or after `-`.
        answer: Result<CommandDone, String>,
    },
}

/// The mailboxes that are put into the state before a sync, as [without common mails](crate::engine::sync_state::with_mailboxes) unless they are in
/// it. A full sync that begins from them, and so without `-f`, is told by `handle_begun_from_mailboxes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mailboxes {
    /// None.
    AsTheyAre,
    /// All: a sync before it was cut off.
    WithFirstModseq,
    /// All with their last, for their first was refused.
    WithLastModseq,
    /// The same, and those that the state has [without modseqs](crate::engine::sync_state::without_modseqs): one of these may be what is refused.
    WithoutModseqs,
    /// All, those that the state has too, as ones of which [the first mail is common](crate::engine::sync_state::from_first_mails), for
    /// nothing else was left.
    WithFirstMail,
}

/// What a command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandDone {
    /// `+`
    Done,
    /// `+<number of users>`
    Users(u64),
}

/// What userdb says of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserLookup {
    /// The user exists.
    Found {
        /// The name that userdb calls the user by.
        username: Vec<u8>,
        /// `mail_replica`, `mail_replica2`, ... as they are in force for the user; empty if none is.
        targets: Vec<Vec<u8>>,
        /// userdb's `noreplicate`.
        noreplicate: bool,
    },
    /// There is no such user.
    NotFound,
    /// userdb could not tell, for this reason.
    TempFail(String),
}

/// How a sync ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyncOutcome {
    /// `+`
    Ok {
        /// For the next incremental sync; empty: none.
        state: Vec<u8>,
    },
    /// A change on one side during the sync, in any of its forms: again at once.
    Changed {
        /// To go on from; empty: not from any, the next sync is a full one.
        state: Vec<u8>,
    },
    /// `-NOUSER`: the user is unknown here or at the peer.
    NoUser,
    /// `-NOREPLICATE`: the user is not to be replicated, here or at the peer.
    NoReplicate,
    /// `-TEMPFAIL`
    TempFail,
    /// The doveadm-server closed the connection before its answer.
    Eof,
    /// It was ended at its deadline.
    Timeout,
    /// `-USAGE`: parameters that dsync, here or there, does not take.
    Usage,
    /// `-NOTFOUND`
    NotFound,
    /// `-NOPERM`
    NoPerm,
    /// The reason says that the state was refused: it is forgotten.
    StateRefused,
    /// Another dsync of the user holds a lock, here or at the peer, longer than was waited for.
    Locked,
    /// The reason says that the peer could not be connected to.
    PeerUnreachable,
    /// The local doveadm-server could not be connected to, or did not greet.
    NotStarted,
    /// Another code.
    Other(String),
}
