//! What each operation of mail clients and tools makes the mail plugin say, stock's plugin and ours:
//! one table, run against every Dovecot at hand. Where ours differs on purpose the case says why.
//!
//! Stock's lines are counted when the session has ended: it waits 500 ms, then sends one line for
//! all. Ours are compared at the moment the operation is answered OK, and again at the end: each
//! commit has a line of its own by then, and none follows.

mod harness;

use dovecot_replication::engine::Priority;
use harness::client::message;
use harness::run::{Shared, main as run, trial};
use harness::{Line, Node, Outcome, Target, User, check, wait_for};
use std::cell::RefCell;
use std::process::ExitCode;

/// Who, how urgent, how many lines.
type Expected = (Who, Priority, usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// The user of the session.
    Actor,
    /// The owner of the mailbox, or the second recipient.
    Other,
}

use Priority::{High, Low};
use Who::{Actor, Other};

/// How the node of a case is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Shared,
    Hibernate,
    Pop3Without,
}

impl Kind {
    const ALL: [Kind; 4] = [
        Kind::Plain,
        Kind::Shared,
        Kind::Hibernate,
        Kind::Pop3Without,
    ];

    fn start(self, target: &Target) -> Outcome<Node> {
        let cases = CASES.iter().filter(|case| case.kind == self);
        let builder = Node::of(target).users(cases.flat_map(users));
        let series = target.series();
        match self {
            Kind::Plain => builder
                .config(
                    "namespace inbox {\n  mailbox Spam {\n    autoexpunge = 1d\n    \
                     autoexpunge_max_mails = 1\n  }\n}",
                )
                .start(),
            Kind::Shared => {
                let node = builder
                    .config(series.pick(SHARED_2_3, SHARED_2_4))
                    .start()?;
                let public = node.path("mail/public");
                std::fs::create_dir(&public)?;
                std::fs::write(public.join("dovecot-acl"), "authenticated lrwstipekxa\n")?;
                for path in [public.clone(), public.join("dovecot-acl")] {
                    let vmail = Some(harness::node::VMAIL);
                    std::os::unix::fs::chown(path, vmail, vmail)?;
                }
                Ok(node)
            }
            Kind::Hibernate => builder
                .config(
                    "imap_hibernate_timeout = 1s\n\
                     service imap {\n  unix_listener imap-master {\n    \
                     mode = 0666\n  }\n}\n\
                     service imap-hibernate {\n  unix_listener imap-hibernate {\n    \
                     mode = 0666\n  }\n}",
                )
                .start(),
            Kind::Pop3Without => builder
                .config(series.pick(
                    "protocol pop3 {\n  mail_plugins =\n}",
                    "protocol pop3 {\n  mail_plugins {\n    replication = no\n  }\n}",
                ))
                .start(),
        }
    }
}

/// A shared and a public namespace.
const SHARED_2_3: &str = "\
namespace shared {
  type = shared
  prefix = shared/%%u/
  separator = /
  location = maildir:%%h/Maildir:INDEXPVT=~/shared/%%u
  subscriptions = no
  list = children
}
namespace public {
  type = public
  prefix = Public/
  separator = /
  location = maildir:%h/../public
  subscriptions = no
}";

/// The same on 2.4.
const SHARED_2_4: &str = "\
namespace shared {
  type = shared
  prefix = shared/$user/
  separator = /
  mail_path = %{owner_home}/Maildir
  mail_index_private_path = ~/shared/%{owner_user}
  subscriptions = no
  list = children
}
namespace public {
  type = public
  prefix = Public/
  separator = /
  mail_path = %{home}/../public
  subscriptions = no
  acl authenticated {
    rights = lrwstipekxa
  }
}";

/// A case at work: its node and users of its own.
struct Cx<'a> {
    node: &'a Node,
    user: String,
    other: String,
    at_ok: RefCell<Option<Vec<Line>>>,
}

impl Cx<'_> {
    fn users(&self) -> [&str; 2] {
        [&self.user, &self.other]
    }

    /// The operation was answered OK: what came until now is ours' to have sent.
    fn answered(&self) {
        let lines = self.node.reader.lines_of(&self.users());
        *self.at_ok.borrow_mut() = Some(lines);
    }

    /// One IMAP session of the actor, looked at after its commands, ended well.
    fn imap(&self, commands: &[&str]) -> Outcome {
        let mut imap = self.node.imap(&self.user)?;
        for command in commands {
            imap.ok(command)?;
        }
        self.answered();
        imap.logout()?;
        self.node.wait_sessions_end(&self.user)
    }

    fn home(&self, user: &str) -> String {
        format!("{}/mail/{user}", self.node.inside().display())
    }

    fn doveadm(&self, args: &[&str]) -> Outcome {
        self.node.doveadm(args)?;
        self.answered();
        Ok(())
    }
}

struct Case {
    name: &'static str,
    kind: Kind,
    /// What must be there first; its lines do not count.
    prepare: fn(&Cx<'_>) -> Outcome,
    /// The operation, to the end of its session.
    operate: fn(&Cx<'_>) -> Outcome,
    stock: &'static [Expected],
    ours: &'static [Expected],
    /// Why ours differs from stock once the aggregator has merged the lines.
    why: &'static str,
}

fn nothing(_: &Cx<'_>) -> Outcome {
    Ok(())
}

/// INBOX with two mails, and the mailbox `Box`.
fn mails(cx: &Cx<'_>) -> Outcome {
    let mut imap = cx.node.imap(&cx.user)?;
    imap.append("INBOX", &message("one"))?;
    imap.append("INBOX", &message("two"))?;
    imap.ok("CREATE Box")?;
    imap.logout()?;
    cx.node.wait_sessions_end(&cx.user)
}

/// The other user's INBOX with a mail, and all rights for the actor.
fn shared(cx: &Cx<'_>) -> Outcome {
    let mut imap = cx.node.imap(&cx.other)?;
    imap.append("INBOX", &message("shared"))?;
    imap.ok(&format!("SETACL INBOX {} lrwstipekxa", cx.user))?;
    imap.logout()?;
    cx.node.wait_sessions_end(&cx.other)
}

/// A Maildir outside of Dovecot's users, with a mail in INBOX and in another mailbox.
fn elsewhere(cx: &Cx<'_>) -> Outcome {
    let source = format!("{}-source", cx.user);
    let mut imap = cx.node.imap(&source)?;
    imap.ok("CREATE New")?;
    imap.append("New", &message("new"))?;
    imap.append("INBOX", &message("one"))?;
    imap.logout()?;
    cx.node.wait_sessions_end(&source)
}

/// A case with the same expectation for both.
const fn same(
    name: &'static str,
    prepare: fn(&Cx<'_>) -> Outcome,
    operate: fn(&Cx<'_>) -> Outcome,
    lines: &'static [Expected],
) -> Case {
    Case {
        name,
        kind: Kind::Plain,
        prepare,
        operate,
        stock: lines,
        ours: lines,
        why: "",
    }
}

/// Why ours says more where mail goes without a flag being set first.
const SILENT_EXPUNGE: &str = "stock has no hook for expunges and does not see them in the commit: \
                              Maildir's are requests, not changes";

/// Why ours says that a mailbox is there which Dovecot makes without a word to plugins.
const FIRST_LOGIN: &str = "both nodes may make an INBOX, each with a UIDVALIDITY of its own, and no mail may come for long";

const ONE_LOW: &[Expected] = &[(Actor, Low, 1)];
const ONE_HIGH: &[Expected] = &[(Actor, High, 1)];
const NONE: &[Expected] = &[];

const SCRIPT: &str = "keep;\r\n";

const CASES: &[Case] = &[
    // IMAP
    same("append", mails, append, ONE_HIGH),
    Case {
        ours: &[(Actor, High, 3)],
        ..same("append_thrice", mails, append_thrice, ONE_HIGH)
    },
    same(
        "copy",
        mails,
        |cx| cx.imap(&["SELECT INBOX", "COPY 1 Box"]),
        ONE_LOW,
    ),
    Case {
        // The copy and the expunge.
        ours: &[(Actor, Low, 2)],
        ..same(
            "move",
            mails,
            |cx| cx.imap(&["SELECT INBOX", "MOVE 1 Box"]),
            ONE_LOW,
        )
    },
    same(
        "store_flag",
        mails,
        |cx| cx.imap(&["SELECT INBOX", "STORE 1 +FLAGS (\\Flagged)"]),
        ONE_LOW,
    ),
    same(
        "store_keyword",
        mails,
        |cx| cx.imap(&["SELECT INBOX", "STORE 1 +FLAGS (work)"]),
        ONE_LOW,
    ),
    same(
        "store_without_change",
        mails,
        |cx| cx.imap(&["SELECT INBOX", "STORE 1 -FLAGS (\\Flagged)"]),
        NONE,
    ),
    same(
        "fetch_sets_seen",
        mails,
        |cx| cx.imap(&["SELECT INBOX", "FETCH 1 BODY[]"]),
        ONE_LOW,
    ),
    same(
        "reading_says_nothing",
        mails,
        |cx| {
            cx.imap(&[
                "LIST \"\" *",
                "STATUS Box (MESSAGES)",
                "SELECT INBOX",
                "FETCH 1:* (FLAGS ENVELOPE BODY.PEEK[])",
                "SEARCH BODY one",
                "CLOSE",
            ])
        },
        NONE,
    ),
    Case {
        ours: &[(Actor, Low, 2)],
        ..same(
            "store_deleted_and_expunge",
            mails,
            |cx| {
                cx.imap(&[
                    "SELECT INBOX",
                    "STORE 1 +FLAGS.SILENT (\\Deleted)",
                    "EXPUNGE",
                ])
            },
            ONE_LOW,
        )
    },
    Case {
        why: SILENT_EXPUNGE,
        ours: ONE_LOW,
        ..same(
            "expunge_of_an_earlier_session",
            |cx| {
                mails(cx)?;
                cx.imap(&["SELECT INBOX", "STORE 1 +FLAGS.SILENT (\\Deleted)"])
            },
            |cx| cx.imap(&["SELECT INBOX", "EXPUNGE"]),
            NONE,
        )
    },
    same("create", mails, |cx| cx.imap(&["CREATE Sub/Box"]), ONE_LOW),
    same(
        "rename",
        mails,
        |cx| cx.imap(&["RENAME Box Other"]),
        ONE_LOW,
    ),
    Case {
        // The index is marked as deleted, then the mailbox is deleted.
        ours: &[(Actor, Low, 2)],
        ..same("delete", mails, |cx| cx.imap(&["DELETE Box"]), ONE_LOW)
    },
    same(
        "subscribe",
        mails,
        |cx| cx.imap(&["SUBSCRIBE Box"]),
        ONE_LOW,
    ),
    same(
        "unsubscribe",
        |cx| {
            mails(cx)?;
            cx.imap(&["SUBSCRIBE Box"])
        },
        |cx| cx.imap(&["UNSUBSCRIBE Box"]),
        ONE_LOW,
    ),
    same(
        "setacl",
        mails,
        |cx| cx.imap(&[&format!("SETACL Box {} lr", cx.other)]),
        ONE_LOW,
    ),
    same(
        "deleteacl",
        |cx| {
            mails(cx)?;
            cx.imap(&[&format!("SETACL Box {} lr", cx.other)])
        },
        |cx| cx.imap(&[&format!("DELETEACL Box {}", cx.other)]),
        ONE_LOW,
    ),
    same(
        "setmetadata",
        mails,
        |cx| cx.imap(&["SETMETADATA Box (/private/comment \"text\")"]),
        ONE_LOW,
    ),
    same(
        "setmetadata_of_the_server",
        mails,
        |cx| cx.imap(&["SETMETADATA \"\" (/private/vendor/x \"text\")"]),
        ONE_LOW,
    ),
    Case {
        why: FIRST_LOGIN,
        ours: ONE_LOW,
        ..same(
            "first_login",
            nothing,
            |cx| cx.imap(&["SELECT INBOX"]),
            NONE,
        )
    },
    same(
        "login_alone_says_nothing",
        nothing,
        |cx| cx.imap(&["LIST \"\" *"]),
        NONE,
    ),
    same("idle_session", mails, idle_session, ONE_LOW),
    Case {
        kind: Kind::Hibernate,
        ..same("hibernated_session", mails, hibernated_session, ONE_LOW)
    },
    // Deliveries
    // The first delivery makes INBOX, too.
    Case {
        ours: &[(Actor, Low, 1), (Actor, High, 1)],
        ..same("lmtp", nothing, |cx| lmtp(cx, &[&cx.user]), ONE_HIGH)
    },
    Case {
        ours: &[
            (Actor, Low, 1),
            (Actor, High, 1),
            (Other, Low, 1),
            (Other, High, 1),
        ],
        ..same(
            "lmtp_several_users",
            nothing,
            |cx| lmtp(cx, &cx.users()),
            &[(Actor, High, 1), (Other, High, 1)],
        )
    },
    Case {
        ours: &[(Actor, Low, 1), (Actor, High, 1)],
        ..same("lda", nothing, lda, ONE_HIGH)
    },
    Case {
        ours: &[(Actor, Low, 1), (Actor, High, 1)],
        ..same(
            "lda_into_a_mailbox_of_sieve",
            |cx| {
                let script = "require [\"fileinto\",\"mailbox\"];\r\nfileinto :create \"New\";\r\n";
                sieve_active(cx, script)
            },
            lda,
            ONE_HIGH,
        )
    },
    same(
        "lda_discarded_by_sieve",
        |cx| sieve_active(cx, "discard;\r\n"),
        lda,
        NONE,
    ),
    // POP3
    Case {
        why: SILENT_EXPUNGE,
        ours: ONE_LOW,
        ..same("pop3_dele", mails, pop3_dele, NONE)
    },
    same("pop3_reading_says_nothing", mails, pop3_list, NONE),
    Case {
        kind: Kind::Pop3Without,
        ..same("pop3_without_the_plugin", mails, pop3_dele, NONE)
    },
    Case {
        why: SILENT_EXPUNGE,
        ours: ONE_LOW,
        ..same("autoexpunge", spam, autoexpunge, NONE)
    },
    // doveadm
    Case {
        // INBOX is made.
        ours: &[(Actor, Low, 1), (Actor, High, 1)],
        ..same("doveadm_save", nothing, doveadm_save, ONE_HIGH)
    },
    Case {
        // A mail each into two new mailboxes, one of them INBOX.
        ours: &[(Actor, Low, 2), (Actor, High, 2)],
        ..same("doveadm_import", elsewhere, doveadm_import, ONE_HIGH)
    },
    Case {
        why: SILENT_EXPUNGE,
        ours: ONE_LOW,
        ..same(
            "doveadm_expunge",
            mails,
            |cx| cx.doveadm(&["expunge", "-u", &cx.user, "mailbox", "INBOX", "1"]),
            NONE,
        )
    },
    same(
        "doveadm_flags",
        mails,
        |cx| {
            cx.doveadm(&[
                "flags", "add", "-u", &cx.user, "\\Seen", "mailbox", "INBOX", "1",
            ])
        },
        ONE_LOW,
    ),
    same(
        "doveadm_mailbox_create",
        mails,
        |cx| cx.doveadm(&["mailbox", "create", "-u", &cx.user, "New"]),
        ONE_LOW,
    ),
    Case {
        ours: &[(Actor, Low, 2)],
        ..same(
            "doveadm_mailbox_delete",
            mails,
            |cx| cx.doveadm(&["mailbox", "delete", "-u", &cx.user, "Box"]),
            ONE_LOW,
        )
    },
    same(
        "doveadm_mailbox_rename",
        mails,
        |cx| cx.doveadm(&["mailbox", "rename", "-u", &cx.user, "Box", "Other"]),
        ONE_LOW,
    ),
    Case {
        why: "a new UIDVALIDITY is a change; stock has no hook for it",
        ours: ONE_LOW,
        ..same("doveadm_mailbox_update", mails, mailbox_update, NONE)
    },
    same(
        "doveadm_copy",
        mails,
        |cx| cx.doveadm(&["copy", "-u", &cx.user, "Box", "mailbox", "INBOX", "1"]),
        ONE_LOW,
    ),
    Case {
        // The copy and the expunge.
        ours: &[(Actor, Low, 2)],
        ..same(
            "doveadm_move",
            mails,
            |cx| cx.doveadm(&["move", "-u", &cx.user, "Box", "mailbox", "INBOX", "1"]),
            ONE_LOW,
        )
    },
    same(
        "doveadm_mailbox_unsubscribe",
        |cx| {
            mails(cx)?;
            cx.imap(&["SUBSCRIBE Box"])
        },
        |cx| cx.doveadm(&["mailbox", "unsubscribe", "-u", &cx.user, "Box"]),
        ONE_LOW,
    ),
    same(
        "doveadm_mailbox_subscribe",
        mails,
        |cx| cx.doveadm(&["mailbox", "subscribe", "-u", &cx.user, "Box"]),
        ONE_LOW,
    ),
    // Sieve
    same("managesieve_put", mails, |cx| sieve_put(cx, false), ONE_LOW),
    Case {
        // The script and its activation.
        ours: &[(Actor, Low, 2)],
        ..same(
            "managesieve_activate",
            mails,
            |cx| sieve_put(cx, true),
            ONE_LOW,
        )
    },
    same("doveadm_sieve_put", mails, doveadm_sieve_put, ONE_LOW),
    // Whose change it is
    Case {
        kind: Kind::Shared,
        why: "the owner's mail changed, and the owner's dsync brings it over (STOCK.md 13)",
        ours: &[(Other, Low, 1)],
        ..same("shared_store", shared, shared_store, ONE_LOW)
    },
    Case {
        kind: Kind::Shared,
        why: "the owner's mail changed, and the owner's dsync brings it over (STOCK.md 13)",
        ours: &[(Other, High, 1)],
        ..same("shared_append", shared, shared_append, ONE_HIGH)
    },
    Case {
        kind: Kind::Shared,
        why: "the owner is replicated, whoever makes the change",
        ours: &[(Other, Low, 1)],
        ..same(LOCAL_ACTOR, shared, shared_store, NONE)
    },
    Case {
        kind: Kind::Shared,
        // The mailbox and its mail.
        ours: &[(Actor, Low, 1), (Actor, High, 1)],
        ..same("public_append", mails, public_append, ONE_HIGH)
    },
    same(LOCAL_USER, mails, append, NONE),
    same("dsync_of_mails_is_not_echoed", in_step, dsync_mails, NONE),
    Case {
        why: "stock looks for dsync before it is set and so echoes dsync's mailboxes (DOVECOT.md)",
        ours: NONE,
        ..same(
            "dsync_of_mailboxes_is_not_echoed",
            elsewhere,
            dsync,
            ONE_LOW,
        )
    },
];

/// Cases whose actor has no `mail_replica`.
const LOCAL_ACTOR: &str = "shared_store_by_a_user_without_replica";
const LOCAL_USER: &str = "user_without_replica";

fn append(cx: &Cx<'_>) -> Outcome {
    let mut imap = cx.node.imap(&cx.user)?;
    imap.append("INBOX", &message("appended"))?;
    cx.answered();
    imap.logout()?;
    cx.node.wait_sessions_end(&cx.user)
}

fn append_thrice(cx: &Cx<'_>) -> Outcome {
    let mut imap = cx.node.imap(&cx.user)?;
    for subject in ["first", "second", "third"] {
        imap.append("INBOX", &message(subject))?;
    }
    cx.answered();
    imap.logout()?;
    cx.node.wait_sessions_end(&cx.user)
}

fn idle_session(cx: &Cx<'_>) -> Outcome {
    let mut imap = cx.node.imap(&cx.user)?;
    imap.ok("SELECT INBOX")?;
    let tag = imap.idle()?;
    // The session gets into its idle loop before it is used again.
    imap.done(&tag)?;
    imap.ok("STORE 1 +FLAGS (\\Answered)")?;
    cx.answered();
    imap.logout()?;
    cx.node.wait_sessions_end(&cx.user)
}

fn hibernated_session(cx: &Cx<'_>) -> Outcome {
    let mut imap = cx.node.imap(&cx.user)?;
    imap.ok("SELECT INBOX")?;
    let tag = imap.idle()?;
    // Its process has handed the connection over to imap-hibernate and is gone.
    cx.node.wait_sessions_end(&cx.user)?;
    imap.done(&tag)?;
    imap.ok("STORE 1 +FLAGS (\\Answered)")?;
    cx.answered();
    imap.logout()?;
    cx.node.wait_no_process("imap")
}

fn lmtp(cx: &Cx<'_>, users: &[&str]) -> Outcome {
    let mut lmtp = cx.node.lmtp()?;
    lmtp.deliver(users, &message("delivered"))?;
    cx.answered();
    lmtp.quit()
}

fn lda(cx: &Cx<'_>) -> Outcome {
    cx.node.lda(&cx.user, &message("delivered"))?;
    cx.answered();
    Ok(())
}

fn sieve_active(cx: &Cx<'_>, script: &str) -> Outcome {
    let mut sieve = cx.node.sieve(&cx.user)?;
    sieve.put("script", script)?;
    sieve.ok("SETACTIVE \"script\"")?;
    sieve.logout()?;
    cx.node.wait_sessions_end(&cx.user)
}

fn sieve_put(cx: &Cx<'_>, activate: bool) -> Outcome {
    let mut sieve = cx.node.sieve(&cx.user)?;
    sieve.put("script", SCRIPT)?;
    if activate {
        sieve.ok("SETACTIVE \"script\"")?;
    }
    cx.answered();
    sieve.logout()?;
    cx.node.wait_sessions_end(&cx.user)
}

fn doveadm_sieve_put(cx: &Cx<'_>) -> Outcome {
    let command = cx
        .node
        .doveadm_command(&["sieve", "put", "-u", &cx.user, "script"]);
    let output = cx.node.run(command, SCRIPT.as_bytes())?;
    cx.answered();
    check(output.status.success(), || format!("{output:?}"))
}

fn pop3_dele(cx: &Cx<'_>) -> Outcome {
    let mut pop3 = cx.node.pop3(&cx.user)?;
    pop3.ok("DELE 1")?;
    pop3.quit()?;
    cx.node.wait_sessions_end(&cx.user)?;
    cx.answered();
    Ok(())
}

fn pop3_list(cx: &Cx<'_>) -> Outcome {
    let mut pop3 = cx.node.pop3(&cx.user)?;
    pop3.ok("STAT")?;
    pop3.quit()?;
    cx.node.wait_sessions_end(&cx.user)
}

/// Two mails where one is kept. doveadm, which puts them there, does not expunge by itself.
fn spam(cx: &Cx<'_>) -> Outcome {
    cx.node
        .doveadm(&["mailbox", "create", "-u", &cx.user, "Spam"])?;
    for subject in ["one", "two"] {
        let save = ["save", "-u", &cx.user, "-m", "Spam"];
        let output = cx
            .node
            .run(cx.node.doveadm_command(&save), message(subject).as_bytes())?;
        check(output.status.success(), || format!("{output:?}"))?;
    }
    Ok(())
}

fn autoexpunge(cx: &Cx<'_>) -> Outcome {
    cx.node.imap(&cx.user)?.logout()?;
    cx.node.wait_sessions_end(&cx.user)?;
    cx.answered();
    let status = cx
        .node
        .doveadm(&["mailbox", "status", "-u", &cx.user, "messages", "Spam"])?;
    check(status.contains("messages=1"), || {
        format!("nothing was expunged: {status}")
    })
}

fn mailbox_update(cx: &Cx<'_>) -> Outcome {
    let update = ["mailbox", "update", "-u", &cx.user];
    let to = ["--uid-validity", "12345", "Box"];
    cx.doveadm(&[update.as_slice(), to.as_slice()].concat())
}

fn doveadm_save(cx: &Cx<'_>) -> Outcome {
    let command = cx.node.doveadm_command(&["save", "-u", &cx.user]);
    let output = cx.node.run(command, message("saved").as_bytes())?;
    cx.answered();
    check(output.status.success(), || format!("{output:?}"))
}

fn doveadm_import(cx: &Cx<'_>) -> Outcome {
    let source = cx.home(&format!("{}-source", cx.user));
    let location = format!("maildir:{source}/Maildir");
    cx.doveadm(&["import", "-u", &cx.user, &location, "", "all"])
}

fn shared_store(cx: &Cx<'_>) -> Outcome {
    let select = format!("SELECT shared/{}", cx.other);
    cx.imap(&[&select, "STORE 1 +FLAGS (\\Flagged)"])
}

fn shared_append(cx: &Cx<'_>) -> Outcome {
    let mut imap = cx.node.imap(&cx.user)?;
    imap.append(&format!("shared/{}", cx.other), &message("appended"))?;
    cx.answered();
    imap.logout()?;
    cx.node.wait_sessions_end(&cx.user)
}

fn public_append(cx: &Cx<'_>) -> Outcome {
    let mut imap = cx.node.imap(&cx.user)?;
    imap.ok("CREATE Public/Board")?;
    imap.append("Public/Board", &message("appended"))?;
    cx.answered();
    imap.logout()?;
    cx.node.wait_sessions_end(&cx.user)
}

fn dsync(cx: &Cx<'_>) -> Outcome {
    let source = cx.home(&format!("{}-source", cx.user));
    let location = format!("maildir:{source}/Maildir");
    cx.doveadm(&["backup", "-R", "-u", &cx.user, &location])
}

/// Both sides in step, then a mail more on the source.
fn in_step(cx: &Cx<'_>) -> Outcome {
    elsewhere(cx)?;
    dsync(cx)?;
    let source = format!("{}-source", cx.user);
    let mut imap = cx.node.imap(&source)?;
    imap.append("New", &message("more"))?;
    imap.logout()?;
    cx.node.wait_sessions_end(&source)
}

fn dsync_mails(cx: &Cx<'_>) -> Outcome {
    dsync(cx)?;
    let mut imap = cx.node.imap(&cx.user)?;
    let status = imap.ok("STATUS New (MESSAGES)")?;
    imap.logout()?;
    cx.node.wait_sessions_end(&cx.user)?;
    check(
        status.iter().any(|line| line.contains("MESSAGES 2")),
        || format!("dsync brought no mail: {status:?}"),
    )
}

/// The actor, the other, and the one whose Maildir is a source.
fn users(case: &Case) -> [User; 3] {
    let actor = if [LOCAL_ACTOR, LOCAL_USER].contains(&case.name) {
        User::local(case.name)
    } else {
        User::replicated(case.name)
    };
    [
        actor,
        User::replicated(&format!("{}-other", case.name)),
        User::local(&format!("{}-source", case.name)),
    ]
}

fn perform(case: &Case, target: &Target, node: &Node) -> Outcome {
    let user = case.name.to_owned();
    let cx = Cx {
        node,
        other: format!("{user}-other"),
        user,
        at_ok: RefCell::default(),
    };
    (case.prepare)(&cx)?;
    node.reader.forget(&cx.users());
    *cx.at_ok.borrow_mut() = None;

    (case.operate)(&cx)?;
    let expected = if target.is_ours() {
        case.ours
    } else {
        case.stock
    };
    if target.is_ours() {
        let at_ok = cx.at_ok.borrow().clone();
        if let Some(lines) = at_ok {
            compare("at its OK", &lines, &cx, expected)?;
        }
    } else {
        // A process that goes on after the operation still holds the line back.
        let count: usize = expected.iter().map(|(_, _, count)| count).sum();
        let patience = harness::node::STOCK_DELAY * 4;
        let _late = wait_for("stock's lines", patience, || {
            Ok((node.reader.lines_of(&cx.users()).len() >= count).then_some(()))
        });
    }
    compare(
        "at the end",
        &node.reader.lines_of(&cx.users()),
        &cx,
        expected,
    )?;
    let named = |line: &&String| line.contains(&format!("({})", cx.user));
    let wrong = node.wrong_lines();
    let wrong: Vec<_> = wrong.iter().filter(named).collect();
    check(wrong.is_empty(), || format!("{wrong:?}"))
}

/// What the aggregator makes of the lines: the highest priority of each.
fn merged(lines: &[Expected]) -> Vec<(Who, Priority)> {
    [Actor, Other]
        .into_iter()
        .filter_map(|who| {
            let its = lines.iter().filter(|line| line.0 == who);
            its.map(|line| line.1).max().map(|highest| (who, highest))
        })
        .collect()
}

fn compare(when: &str, lines: &[Line], cx: &Cx<'_>, expected: &[Expected]) -> Outcome {
    let mut seen: Vec<Expected> = Vec::new();
    for line in lines {
        let who = if line.user == cx.user { Actor } else { Other };
        match seen
            .iter_mut()
            .find(|(other, priority, _)| *other == who && *priority == line.priority)
        {
            Some((_, _, count)) => *count += 1,
            None => seen.push((who, line.priority, 1)),
        }
    }
    seen.sort_by_key(|(who, priority, _)| (*who as u8, *priority));
    let mut wanted = expected.to_vec();
    wanted.sort_by_key(|(who, priority, _)| (*who as u8, *priority));
    check(seen == wanted, || {
        format!("{when}: expected {wanted:?}, came {seen:?}")
    })
}

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for target in Target::all() {
        for kind in Kind::ALL {
            let name = format!("{}/node_of_{kind:?}", target.name()).to_lowercase();
            let its = target.clone();
            let shared = Shared::new(name, move || kind.start(&its));
            for case in CASES.iter().filter(|case| case.kind == kind) {
                let shared = shared.clone();
                let its = target.clone();
                trials.push(trial(&target, case.name, move || {
                    perform(case, &its, shared.node()?)
                }));
            }
        }
        trials.push(trial(&target, "differences_have_a_reason", || {
            let silent =
                |case: &&Case| merged(case.stock) != merged(case.ours) && case.why.is_empty();
            let names: Vec<_> = CASES.iter().filter(silent).map(|case| case.name).collect();
            check(names.is_empty(), || format!("no reason given: {names:?}"))
        }));
    }
    run(trials)
}
