//! What a client of the load does, over IMAP, LMTP and doveadm.

use super::model::Done;
use super::names::{Group, group_of, quoted};
use super::writer::{End, Writer};
use crate::harness::Outcome;

type Step = fn(&mut Writer<'_>) -> Outcome<End>;

/// Each step, and how often it is taken.
const STEPS: [(&str, u32, Step); 18] = [
    ("append", 16, append),
    ("deliver", 12, deliver),
    ("flags", 16, flags),
    ("keywords", 8, keywords),
    ("move", 10, move_mail),
    ("copy", 6, copy),
    ("expunge", 9, expunge),
    ("create", 7, create),
    ("rename", 6, rename),
    ("delete", 4, delete),
    ("subscribe", 4, subscribe),
    ("unsubscribe", 3, unsubscribe),
    ("look", 4, look),
    ("doveadm save", 2, doveadm_save),
    ("doveadm flags", 1, doveadm_flags),
    ("doveadm expunge", 1, doveadm_expunge),
    ("doveadm mailbox", 2, doveadm_mailbox),
    ("logout", 1, logout),
];

const ALL: [Group; 5] = [
    Group::Kept,
    Group::Kept,
    Group::Kept,
    Group::Renamed,
    Group::Deleted,
];
const CHANGING: [Group; 2] = [Group::Renamed, Group::Deleted];

/// The steps that make, rename and delete mailboxes.
const OF_MAILBOXES: [&str; 4] = ["create", "rename", "delete", "doveadm mailbox"];

/// A step by chance.
pub fn choose(random: &mut fastrand::Rng, mailboxes: bool) -> (&'static str, Step) {
    let steps = STEPS
        .iter()
        .filter(|(name, _, _)| mailboxes || !OF_MAILBOXES.contains(name));
    let sum: u32 = steps.clone().map(|(_, weight, _)| weight).sum();
    let mut at = random.u32(..sum);
    for &(name, weight, step) in steps {
        if at < weight {
            return (name, step);
        }
        at -= weight;
    }
    ("look", look)
}

fn append(writer: &mut Writer<'_>) -> Outcome<End> {
    let mailbox = writer.name_of(&ALL);
    let (id, mail) = writer.new_mail();
    let answer = writer
        .imap()
        .and_then(|imap| imap.try_append(&quoted(&mailbox), &mail));
    match answer {
        Ok(tagged) if tagged.starts_with("OK") => {
            writer.made(&id, &mailbox, Done::Surely);
            Ok(End::Done)
        }
        Ok(_) => Ok(End::Refused),
        Err(_) => {
            writer.made(&id, &mailbox, Done::Perhaps);
            Ok(End::Unanswered)
        }
    }
}

fn deliver(writer: &mut Writer<'_>) -> Outcome<End> {
    let (id, mail) = writer.new_mail();
    let user = writer.user;
    match writer.lmtp()?.deliver(&[user], &mail) {
        Ok(()) => {
            writer.made(&id, "INBOX", Done::Surely);
            Ok(End::Done)
        }
        Err(_) => {
            writer.made(&id, "INBOX", Done::Perhaps);
            Ok(End::Unanswered)
        }
    }
}

fn store(writer: &mut Writer<'_>, flags: &[&str]) -> Outcome<End> {
    let Some((_, uid, _)) = writer.pick()? else {
        return Ok(End::Refused);
    };
    let flag = writer.random.choice(flags).ok_or("no flag")?;
    let sign = if writer.random.u32(..3) > 0 { '+' } else { '-' };
    writer.simple(&format!("UID STORE {uid} {sign}FLAGS ({flag})"))
}

fn flags(writer: &mut Writer<'_>) -> Outcome<End> {
    let flags = [
        "\\Seen",
        "\\Answered",
        "\\Flagged",
        "\\Draft",
        "\\Seen \\Flagged",
    ];
    store(writer, &flags)
}

fn keywords(writer: &mut Writer<'_>) -> Outcome<End> {
    store(
        writer,
        &["$Forwarded", "work", "Später", "$Junk", "one two three"],
    )
}

/// Where a mail goes: to another place, mostly one that it has not been in.
fn target(writer: &mut Writer<'_>, from: &str, id: &str) -> Option<String> {
    let mailbox = writer.name_of(&ALL);
    let is_same = mailbox == from
        || (group_of(from) == Some(Group::Renamed) && group_of(&mailbox) == group_of(from));
    let has_been = writer.knows(id, &mailbox) && writer.random.u32(..4) > 0;
    (!is_same && !has_been).then_some(mailbox)
}

fn copy(writer: &mut Writer<'_>) -> Outcome<End> {
    let Some((from, uid, id)) = writer.pick()? else {
        return Ok(End::Refused);
    };
    let Some(to) = target(writer, &from, &id) else {
        return Ok(End::Refused);
    };
    let Ok((_, lines)) = writer.command(&format!("UID COPY {uid} {}", quoted(&to))) else {
        writer.made(&id, &to, Done::Perhaps);
        return Ok(End::Unanswered);
    };
    if !lines.iter().any(|line| line.contains("[COPYUID ")) {
        return Ok(End::Refused);
    }
    writer.made(&id, &to, Done::Surely);
    Ok(End::Done)
}

fn move_mail(writer: &mut Writer<'_>) -> Outcome<End> {
    let Some((from, uid, id)) = writer.pick()? else {
        return Ok(End::Refused);
    };
    let Some(to) = target(writer, &from, &id) else {
        return Ok(End::Refused);
    };
    let answer = writer.command(&format!("UID MOVE {uid} {}", quoted(&to)));
    let Ok((ok, lines)) = answer else {
        writer.made(&id, &to, Done::Perhaps);
        writer.taken(&id, &from, Done::Perhaps);
        return Ok(End::Unanswered);
    };
    if !lines.iter().any(|line| line.contains("[COPYUID ")) {
        if !ok {
            writer.taken(&id, &from, Done::Perhaps);
            writer.made(&id, &to, Done::Perhaps);
        }
        return Ok(End::Refused);
    }
    writer.made(&id, &to, Done::Surely);
    let expunged = lines.iter().any(|line| line.ends_with(" EXPUNGE"));
    let done = if ok && expunged {
        Done::Surely
    } else {
        Done::Perhaps
    };
    writer.taken(&id, &from, done);
    Ok(End::Done)
}

fn expunge(writer: &mut Writer<'_>) -> Outcome<End> {
    let Some((from, uid, id)) = writer.pick()? else {
        return Ok(End::Refused);
    };
    let shown = format!("FETCH (UID {uid} FLAGS (");
    let (ok, lines) = writer.command(&format!("UID STORE {uid} +FLAGS (\\Deleted)"))?;
    let is_there = |line: &String| line.contains(&shown) && line.contains("\\Deleted");
    if !ok || !lines.iter().any(is_there) || lines.concat().contains("EXPUNGEISSUED") {
        // Somebody else may expunge what is marked.
        return Ok(End::Refused);
    }
    let answer = writer.command(&format!("UID EXPUNGE {uid}"));
    let Ok((ok, lines)) = answer else {
        writer.taken(&id, &from, Done::Perhaps);
        return Ok(End::Unanswered);
    };
    let expunged = ok && lines.iter().any(|line| line.ends_with(" EXPUNGE"));
    let done = if expunged {
        Done::Surely
    } else {
        Done::Perhaps
    };
    writer.taken(&id, &from, done);
    Ok(End::Done)
}

fn create(writer: &mut Writer<'_>) -> Outcome<End> {
    let name = writer.name_of(&CHANGING);
    writer.simple(&format!("CREATE {}", quoted(&name)))
}

fn rename(writer: &mut Writer<'_>) -> Outcome<End> {
    let Some((from, to)) = two_names(writer) else {
        return Ok(End::Refused);
    };
    writer.simple(&format!("RENAME {} {}", quoted(&from), quoted(&to)))
}

/// Two names of one group, of which neither is above the other.
fn two_names(writer: &mut Writer<'_>) -> Option<(String, String)> {
    let from = writer.name_of(&CHANGING);
    let to = writer.name_of(&[group_of(&from)?]);
    (!from.starts_with(&to) && !to.starts_with(&from)).then_some((from, to))
}

fn delete(writer: &mut Writer<'_>) -> Outcome<End> {
    let name = writer.name_of(&[Group::Deleted]);
    writer.simple(&format!("DELETE {}", quoted(&name)))
}

fn subscribable(writer: &mut Writer<'_>) -> String {
    writer.name_of(&[Group::Kept, Group::Renamed, Group::Deleted])
}

fn subscribe(writer: &mut Writer<'_>) -> Outcome<End> {
    let name = subscribable(writer);
    writer.simple(&format!("SUBSCRIBE {}", quoted(&name)))
}

fn unsubscribe(writer: &mut Writer<'_>) -> Outcome<End> {
    let name = subscribable(writer);
    writer.simple(&format!("UNSUBSCRIBE {}", quoted(&name)))
}

/// What other clients do all the time.
fn look(writer: &mut Writer<'_>) -> Outcome<End> {
    writer.simple("LIST \"\" *")?;
    let name = writer.name_of(&ALL);
    writer.simple(&format!(
        "STATUS {} (MESSAGES UIDNEXT HIGHESTMODSEQ)",
        quoted(&name)
    ))
}

fn logout(writer: &mut Writer<'_>) -> Outcome<End> {
    writer.begin_anew();
    Ok(End::Done)
}

/// Runs doveadm with the user after its first words; whether it said that it did it.
fn doveadm(writer: &Writer<'_>, words: &[&str], rest: &[&str], input: &str) -> Outcome<End> {
    let args: Vec<&str> = [words, &["-u", writer.user], rest].concat();
    let output = writer
        .node
        .run(writer.node.doveadm_command(&args), input.as_bytes())?;
    Ok(if output.status.success() {
        End::Done
    } else {
        End::Refused
    })
}

fn doveadm_save(writer: &mut Writer<'_>) -> Outcome<End> {
    let mailbox = writer.name_of(&[Group::Kept]);
    let (id, mail) = writer.new_mail();
    let end = doveadm(writer, &["save"], &["-m", &mailbox], &mail)?;
    let done = if end == End::Done {
        Done::Surely
    } else {
        Done::Perhaps
    };
    writer.made(&id, &mailbox, done);
    Ok(end)
}

fn doveadm_flags(writer: &mut Writer<'_>) -> Outcome<End> {
    let mailbox = writer.name_of(&[Group::Kept]);
    let verb = ["add", "remove"][writer.random.usize(..2)];
    doveadm(
        writer,
        &["flags", verb],
        &["\\Flagged", "mailbox", &mailbox, "1:3"],
        "",
    )
}

fn doveadm_expunge(writer: &mut Writer<'_>) -> Outcome<End> {
    let Some((mailbox, _, id)) = writer.pick()? else {
        return Ok(End::Refused);
    };
    // It ends well if there was nothing to expunge, too.
    writer.taken(&id, &mailbox, Done::Perhaps);
    let words = ["mailbox", &mailbox, "header", "subject", &id];
    doveadm(writer, &["expunge"], &words, "")
}

fn doveadm_mailbox(writer: &mut Writer<'_>) -> Outcome<End> {
    match writer.random.u32(..4) {
        0 => {
            let name = writer.name_of(&CHANGING);
            doveadm(writer, &["mailbox", "create"], &[&name], "")
        }
        1 => {
            let name = writer.name_of(&[Group::Deleted]);
            doveadm(writer, &["mailbox", "delete"], &[&name], "")
        }
        2 => {
            let Some((from, to)) = two_names(writer) else {
                return Ok(End::Refused);
            };
            doveadm(writer, &["mailbox", "rename"], &[&from, &to], "")
        }
        _ => {
            let name = subscribable(writer);
            doveadm(writer, &["mailbox", "subscribe"], &[&name], "")
        }
    }
}
