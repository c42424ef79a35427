//! One client of the load: a user's sessions on one node, its randomness, and what it has done.

use super::model::{Done, Model};
use super::names::{self, Group};
use super::{Load, Operations, lock, steps};
use crate::harness::{Imap, Lmtp, Node, Outcome};
use std::sync::Mutex;
use std::time::Duration;

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Answered OK.
    Done,
    /// Answered NO, or there was nothing to do it to.
    Refused,
    /// The connection ended.
    Unanswered,
}

/// The longest pause between two steps: dsync is to find time between them, and to meet them.
const PAUSE_MAX: Duration = Duration::from_millis(60);
/// So many steps out of a thousand are followed by a pause in which everything may become quiet.
const REST_PERMILLE: u32 = 10;
const REST: Duration = Duration::from_millis(600);

/// A client.
pub struct Writer<'a> {
    /// The node that it writes on.
    pub node: &'a Node,
    /// The user whose mailboxes it changes.
    pub user: &'a str,
    /// Its choices.
    pub random: fastrand::Rng,
    load: &'a Load,
    model: &'a Mutex<Model>,
    name: String,
    mails: u32,
    imap: Option<Imap>,
    lmtp: Option<Lmtp>,
    selected: Option<String>,
    operations: Operations,
}

impl<'a> Writer<'a> {
    pub fn new(
        load: &'a Load,
        node: &'a Node,
        user: &'a str,
        model: &'a Mutex<Model>,
        random: fastrand::Rng,
        name: String,
    ) -> Writer<'a> {
        Writer {
            node,
            user,
            random,
            load,
            model,
            name,
            mails: 0,
            imap: None,
            lmtp: None,
            selected: None,
            operations: Operations::new(),
        }
    }

    /// Does one thing, and pauses.
    pub fn step(&mut self) {
        let (name, run) = steps::choose(&mut self.random, self.load.mailboxes);
        let end = run(self).unwrap_or(End::Unanswered);
        if end == End::Unanswered {
            (self.imap, self.lmtp, self.selected) = (None, None, None);
        }
        let counts = self.operations.entry(name).or_default();
        counts[end as usize] += 1;
        let pause = if self.random.u32(..1000) < REST_PERMILLE {
            REST
        } else {
            PAUSE_MAX.mul_f64(self.random.f64())
        };
        std::thread::sleep(pause);
    }

    /// Ends its sessions; what it has done.
    pub fn finish(self) -> Operations {
        // A session that a fault has ended is not told goodbye.
        let _ended = (self.imap.map(Imap::logout), self.lmtp.map(Lmtp::quit));
        self.operations
    }

    /// The IMAP session, begun now if there is none.
    pub fn imap(&mut self) -> Outcome<&mut Imap> {
        if self.imap.is_none() {
            self.imap = Some(self.node.imap(self.user)?);
        }
        self.imap.as_mut().ok_or("no session".into())
    }

    /// The LMTP session, begun now if there is none.
    pub fn lmtp(&mut self) -> Outcome<&mut Lmtp> {
        if self.lmtp.is_none() {
            self.lmtp = Some(self.node.lmtp()?);
        }
        self.lmtp.as_mut().ok_or("no session".into())
    }

    /// The next step logs in again.
    pub fn begin_anew(&mut self) {
        // As above.
        let _ended = self.imap.take().map(Imap::logout);
        self.selected = None;
    }

    /// An IMAP command, and whether it was answered OK; the lines with its answer.
    pub fn command(&mut self, command: &str) -> Outcome<(bool, Vec<String>)> {
        let (mut lines, tagged) = self.imap()?.command(command)?;
        let ok = tagged.starts_with("OK");
        lines.push(tagged);
        Ok((ok, lines))
    }

    /// An IMAP command that only has an end.
    pub fn simple(&mut self, command: &str) -> Outcome<End> {
        let (ok, _) = self.command(command)?;
        Ok(if ok { End::Done } else { End::Refused })
    }

    /// A mail that nobody else has, and its id.
    pub fn new_mail(&mut self) -> (String, String) {
        self.mails += 1;
        // The end is marked: a search for one must not find another.
        let id = format!("load-{}-{}.", self.name, self.mails);
        // Most mail is small; some takes a while on the wire.
        let lines = match self.random.u32(..20) {
            0 => 2_000,
            1..4 => 100,
            _ => 1,
        };
        let body = "0123456789 the load's mail, to be cut off in its middle\r\n".repeat(lines);
        let mail = format!(
            "From: a@example.org\r\nTo: {}@example.org\r\nSubject: {id}\r\nMessage-ID: <{id}@example.org>\r\n\r\n{body}",
            self.user
        );
        (id, mail)
    }

    /// A name out of these groups.
    pub fn name_of(&mut self, groups: &[Group]) -> String {
        let group = self.random.choice(groups).copied();
        let names = self.load.names(group.unwrap_or(Group::Kept));
        self.random.choice(names).unwrap_or_default()
    }

    /// The selected mailbox and how many mails it has; now and then, or if none is selected, another one.
    pub fn selected(&mut self) -> Outcome<Option<(String, u32)>> {
        if self.selected.is_none() || self.random.u32(..4) == 0 {
            let groups = [
                Group::Kept,
                Group::Kept,
                Group::Kept,
                Group::Renamed,
                Group::Deleted,
            ];
            let name = self.name_of(&groups);
            let (ok, _) = self.command(&format!("SELECT {}", names::quoted(&name)))?;
            self.selected = ok.then_some(name);
        }
        let Some(name) = self.selected.clone() else {
            return Ok(None);
        };
        let (ok, lines) = self.command("SEARCH ALL")?;
        let found = lines.iter().find_map(|line| line.strip_prefix("* SEARCH"));
        let count = found.map_or(0, |numbers| numbers.split_whitespace().count());
        if !ok {
            self.selected = None;
        }
        Ok(ok.then_some((name, u32::try_from(count)?)))
    }

    /// A mail of the selected mailbox: the mailbox, the UID, the id.
    pub fn pick(&mut self) -> Outcome<Option<(String, u32, String)>> {
        let Some((mailbox, count @ 1..)) = self.selected()? else {
            return Ok(None);
        };
        let number = self.random.u32(1..=count);
        let fetch = format!("FETCH {number} (UID BODY.PEEK[HEADER.FIELDS (SUBJECT)])");
        let (_, lines) = self.command(&fetch)?;
        let uid = lines.iter().find_map(|line| {
            let (_, rest) = line.split_once("FETCH (UID ")?;
            rest.split(' ').next()?.parse().ok()
        });
        let id = super::census::id_of(&lines.join("\n")).map(str::to_owned);
        Ok(uid.zip(id).map(|(uid, id)| (mailbox, uid, id)))
    }

    pub fn made(&self, id: &str, mailbox: &str, done: Done) {
        lock(self.model).made(id, mailbox, done);
    }

    pub fn taken(&self, id: &str, mailbox: &str, done: Done) {
        lock(self.model).taken(id, mailbox, done);
    }

    pub fn knows(&self, id: &str, mailbox: &str) -> bool {
        lock(self.model).knows(id, mailbox)
    }
}
