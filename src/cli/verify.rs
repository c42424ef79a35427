//! `doveadm replicator verify [-f] <user mask>`: whether this node and the peers hold the same.
//!
//! Both are asked with Dovecot's own commands: `mailbox list -s`, `mailbox status` and `fetch`, none of which marks a mail
//! or makes a mailbox. Decides what is asked and what comes of it; how a node is reached is [`World`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::{Column, Kind, Layout};
use crate::engine::replicator::{has_wildcard, wildcard_match};
use crate::engine::verify::{
    Blocks, Difference, FETCH_COLUMNS, FETCH_FIELDS, Found, InvalidAnswer, Looks, Mail, Next,
    Picture, Row, RowReader, STATUS_COLUMNS, STATUS_FIELDS, Suspect, UidRange, Usernames, compare,
    compare_mails,
};

/// The columns for programs.
pub const COLUMNS: &[Column] = &[
    Column::of(c"username", Kind::Text),
    Column::of(c"peer", Kind::Text),
    Column::of(c"mailbox", Kind::Text),
    Column::of(c"uid", Kind::Number),
    Column::of(c"what", Kind::Text),
    Column::of(c"here", Kind::Text),
    Column::of(c"there", Kind::Text),
];

/// The only column for people: a line.
pub const LINES: &[Column] = &[Column::text(c"difference", Layout::Untitled)];

/// The most mails of both nodes that are held to be compared one by one.
pub const MAILS_MAX: u64 = 20_000;
/// Of so many mailboxes that are looked at again, each is asked for by its name; of more, all are.
const NAMED_MAILBOXES_MAX: usize = 16;
/// How often a look is tried whose commands fail: a mail that goes meanwhile makes one fail.
const TRIES_MAX: u32 = 3;

/// Not all is equal.
pub const EX_DIFFERENT: i32 = 1;
const EX_NOUSER: i32 = 67;
const EX_UNAVAILABLE: i32 = 69;
const EX_TEMPFAIL: i32 = 75;
const EX_NOPERM: i32 = 77;
const EX_CONFIG: i32 = 78;

/// One of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node<'a> {
    /// The one that this runs on.
    Here,
    /// The one at this location.
    At(&'a [u8]),
}

impl fmt::Display for Node<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => f.write_str("here"),
            Self::At(target) => write!(f, "at {}", String::from_utf8_lossy(target)),
        }
    }
}

/// Why a node does not say what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It does not know the user.
    NoUser,
    /// It cannot be reached.
    Unreachable(String),
    /// It does not let us in.
    Refused(String),
    /// Its location allows no other command than dsync.
    Unsupported(String),
    /// A command failed, or its answer is none.
    Failed(String),
}

impl Trouble {
    const fn exit_code(&self) -> i32 {
        match self {
            Self::NoUser => EX_NOUSER,
            Self::Unreachable(_) => EX_UNAVAILABLE,
            Self::Refused(_) => EX_NOPERM,
            Self::Unsupported(_) => EX_CONFIG,
            Self::Failed(_) => EX_TEMPFAIL,
        }
    }

    /// Whether it is so for all users.
    const fn is_of_node(&self) -> bool {
        matches!(
            self,
            Self::Unreachable(_) | Self::Refused(_) | Self::Unsupported(_)
        )
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUser => f.write_str("no such user"),
            Self::Unreachable(text)
            | Self::Refused(text)
            | Self::Unsupported(text)
            | Self::Failed(text) => f.write_str(text),
        }
    }
}

/// A command for a node.
#[derive(Clone, Copy, Debug)]
pub struct Command<'a> {
    /// For whom.
    pub username: &'a [u8],
    /// Its name.
    pub name: &'a str,
    /// Options and parameters.
    pub arguments: &'a [&'a [u8]],
}

/// Takes a part of a value and whether the value ends with it. An error ends the command.
pub type TakePart<'a> = dyn FnMut(&[u8], bool) -> Result<(), InvalidAnswer> + 'a;

/// Takes a mail and the mailbox that it is in.
type TakeMail<'a> = dyn FnMut(&[u8], Mail) -> Result<(), InvalidAnswer> + 'a;

/// What verify needs of everything around it.
pub trait World {
    /// Has a node run a command, and gives what it prints.
    ///
    /// # Errors
    ///
    /// It did not, or not wholly.
    fn run(
        &mut self,
        node: Node<'_>,
        command: Command<'_>,
        take: &mut TakePart<'_>,
    ) -> Result<(), Trouble>;

    /// Gives the users that the replicator knows by this mask.
    ///
    /// # Errors
    ///
    /// What doveadm is to exit with; it was said.
    fn usernames(&mut self, mask: &[u8], each: &mut dyn FnMut(Vec<u8>)) -> Result<(), i32>;

    /// The locations of a user's replicas, as the replicator knows them.
    ///
    /// # Errors
    ///
    /// See [`TargetsError`].
    fn targets(&mut self, username: &[u8]) -> Result<Vec<Vec<u8>>, TargetsError>;

    /// Waits.
    fn pause(&mut self, pause: Duration);

    /// Shows a difference.
    fn tell(&mut self, username: &[u8], peer: &[u8], difference: &Difference);

    /// Logs an error.
    fn complain(&mut self, text: &str);
}

/// Why there are no targets.
#[derive(Debug, PartialEq, Eq)]
pub enum TargetsError {
    /// The replicator does not know the user.
    NoUser,
    /// The replicator is of no use. It was said.
    Exit(i32),
}

/// What is wanted.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// A name, or a mask.
    pub mask: Vec<u8>,
    /// Compare each message's hash.
    pub with_text: bool,
    /// Masks of mailboxes that are left out.
    pub excluded: Vec<Vec<u8>>,
    /// Instead of the replicas that the replicator knows.
    pub target: Option<Vec<u8>>,
}

/// What came of it. A user with two replicas counts twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Equal users.
    pub equal: u64,
    /// Those that differ.
    pub different: u64,
    /// Those that could not be compared.
    pub failed: u64,
    exit_code: i32,
}

impl Summary {
    /// What doveadm is to exit with.
    #[must_use]
    pub const fn exit_code(&self) -> i32 {
        match self.different {
            0 => self.exit_code,
            _ => EX_DIFFERENT,
        }
    }

    fn fail(&mut self, exit_code: i32) {
        self.failed += 1;
        if self.exit_code == 0 {
            self.exit_code = exit_code;
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (equal, different, failed) = (self.equal, self.different, self.failed);
        write!(
            f,
            "{equal} equal, {different} different, {failed} not compared"
        )
    }
}

/// Compares all users that are meant.
pub fn verify(world: &mut impl World, options: &Options) -> Summary {
    let mut run = Run {
        world,
        options,
        summary: Summary::default(),
        away: BTreeMap::new(),
    };
    if let Err(exit_code) = run.users() {
        run.summary.exit_code = exit_code;
    }
    for (target, users) in std::mem::take(&mut run.away) {
        if users > 1 {
            let target = String::from_utf8_lossy(&target).into_owned();
            let text = format!("{target}: {users} users were not compared");
            run.world.complain(&text);
        }
    }
    run.summary
}

struct Run<'a, W> {
    world: &'a mut W,
    options: &'a Options,
    summary: Summary,
    /// Peers that are of no use, and how many users they have.
    away: BTreeMap<Vec<u8>, u64>,
}

impl<W: World> Run<'_, W> {
    fn users(&mut self) -> Result<(), i32> {
        let mask = &self.options.mask;
        if !has_wildcard(mask) {
            return self.user(mask);
        }
        let mut usernames = Usernames::default();
        while usernames.wants_listing() {
            usernames.begin();
            self.world
                .usernames(mask, &mut |name| usernames.add(name))?;
            while let Some(username) = usernames.next_name() {
                self.user(&username)?;
            }
        }
        let Summary {
            equal,
            different,
            failed,
            ..
        } = self.summary;
        if equal + different + failed == 0 {
            let mask = String::from_utf8_lossy(mask);
            self.world
                .complain(&format!("{mask}: the replicator knows no such user"));
            return Err(EX_NOUSER);
        }
        Ok(())
    }

    fn user(&mut self, username: &[u8]) -> Result<(), i32> {
        let targets = match &self.options.target {
            Some(target) => Ok(vec![target.clone()]),
            None => self.world.targets(username),
        };
        let shown = String::from_utf8_lossy(username);
        let (text, exit_code) = match targets {
            Err(TargetsError::Exit(exit_code)) => return Err(exit_code),
            Err(TargetsError::NoUser) => (
                "the replicator does not know the user".to_owned(),
                EX_NOUSER,
            ),
            Ok(targets) if targets.is_empty() => ("not replicated".to_owned(), EX_NOUSER),
            Ok(targets) if targets.iter().any(Vec::is_empty) => (
                "the replicator has not looked up the replicas yet".to_owned(),
                EX_TEMPFAIL,
            ),
            Ok(targets) => {
                for target in targets {
                    self.replica(username, &target)?;
                }
                return Ok(());
            }
        };
        self.world.complain(&format!("{shown}: {text}"));
        self.summary.fail(exit_code);
        Ok(())
    }

    fn replica(&mut self, username: &[u8], target: &[u8]) -> Result<(), i32> {
        if let Some(users) = self.away.get_mut(target) {
            *users += 1;
            self.summary.failed += 1;
            return Ok(());
        }
        let is_tcp = target.starts_with(b"tcp:") || target.starts_with(b"tcps:");
        let mut user = User {
            world: &mut *self.world,
            options: self.options,
            username,
            target,
            told: 0,
        };
        let compared = match self.options.with_text && !is_tcp {
            true => Err(Failure::There(Trouble::Unsupported(
                "messages cannot be compared over a command, only without -f".to_owned(),
            ))),
            false => user.compare(),
        };
        match compared {
            Ok(()) if user.told == 0 => self.summary.equal += 1,
            Ok(()) => self.summary.different += 1,
            Err(failure) => {
                let (node, trouble) = match failure {
                    Failure::Here(trouble) => (Node::Here, trouble),
                    Failure::There(trouble) => (Node::At(target), trouble),
                };
                let shown = String::from_utf8_lossy(username);
                self.world.complain(&format!("{shown}: {node}: {trouble}"));
                self.summary.fail(trouble.exit_code());
                match (node, trouble.is_of_node()) {
                    (Node::Here, true) => return Err(trouble.exit_code()),
                    (Node::At(_), true) => {
                        self.away.insert(target.to_vec(), 1);
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

#[derive(Debug)]
enum Failure {
    Here(Trouble),
    There(Trouble),
}

impl Failure {
    const fn may_pass(&self) -> bool {
        let (Self::Here(trouble) | Self::There(trouble)) = self;
        matches!(trouble, Trouble::Failed(_))
    }
}

/// A user and one of its replicas.
struct User<'a, W> {
    world: &'a mut W,
    options: &'a Options,
    username: &'a [u8],
    target: &'a [u8],
    told: u64,
}

type Names = BTreeSet<Vec<u8>>;

impl<W: World> User<'_, W> {
    fn compare(&mut self) -> Result<(), Failure> {
        let mut looks = Looks::new();
        let mut only: Option<Names> = None;
        let mut tries = 1;
        loop {
            let mut found = Found::default();
            let tells_at_once = looks.tells_at_once();
            let looked = self.look(only.as_ref(), &mut |user, difference| {
                if tells_at_once {
                    user.tell(&difference);
                }
                found.add(difference);
            });
            match looked {
                Err(failure) if failure.may_pass() && tries < TRIES_MAX && !tells_at_once => {
                    self.world.pause(Duration::from_secs(1 << tries));
                    tries += 1;
                    continue;
                }
                looked => looked?,
            }
            match looks.handle_look(found) {
                Next::Equal | Next::Told => return Ok(()),
                Next::Tell(differences) => {
                    for difference in &differences {
                        self.tell(difference);
                    }
                    return Ok(());
                }
                Next::Again { pause, mailboxes } => {
                    self.world.pause(pause);
                    only = Some(mailboxes);
                }
            }
        }
    }

    fn tell(&mut self, difference: &Difference) {
        self.told += 1;
        self.world.tell(self.username, self.target, difference);
    }

    /// Looks at these mailboxes, or all, on both nodes.
    fn look(
        &mut self,
        only: Option<&Names>,
        tell: &mut dyn FnMut(&mut Self, Difference),
    ) -> Result<(), Failure> {
        let here = self.picture(Node::Here, only).map_err(Failure::Here)?;
        let there = self.picture(Node::At(self.target), only);
        let there = there.map_err(Failure::There)?;
        let mut suspects = compare(&here, &there, &mut |difference| tell(self, difference));
        drop((here, there));
        suspects.reverse();
        while let Some(suspect) = suspects.pop() {
            if suspect.mails > MAILS_MAX {
                let finer = self.blocks(&suspect)?;
                suspects.extend(finer.into_iter().rev());
            } else {
                self.mails(&suspect, tell)?;
            }
        }
        Ok(())
    }

    fn picture(&mut self, node: Node<'_>, only: Option<&Names>) -> Result<Picture, Trouble> {
        let mut picture = Picture::default();
        self.rows(node, "mailbox list", &[b"-s"], (1, false), &mut |row| {
            picture.add_subscription(row)
        })?;
        // With two masks Dovecot lists all private namespaces, with one only those without a prefix.
        let arguments: [&[u8]; 4] = [b"--", STATUS_FIELDS.as_bytes(), b"*", b"*"];
        let columns = (STATUS_COLUMNS, false);
        self.rows(node, "mailbox status", &arguments, columns, &mut |row| {
            picture.add_mailbox(row)
        })?;
        let excluded = &self.options.excluded;
        picture.retain(|name| {
            only.is_none_or(|only| only.contains(name))
                && !excluded.iter().any(|mask| wildcard_match(name, mask))
        });
        let named: Vec<Vec<u8>> = match only {
            Some(_) if picture.mailboxes.len() <= NAMED_MAILBOXES_MAX => {
                picture.mailboxes.keys().cloned().collect()
            }
            _ => {
                self.fetch(node, &[b"all"], &mut |mailbox, mail| {
                    picture.add_mail(mailbox, &mail)
                })?;
                return Ok(picture);
            }
        };
        for name in named {
            self.fetch(node, &[b"mailbox", &name], &mut |mailbox, mail| {
                // Letters in a name may be wildcards.
                match *mailbox == *name {
                    true => picture.add_mail(mailbox, &mail),
                    false => Ok(()),
                }
            })?;
        }
        Ok(picture)
    }

    /// Adds up a suspect's mails in finer blocks.
    fn blocks(&mut self, suspect: &Suspect) -> Result<Vec<Suspect>, Failure> {
        let target = self.target;
        let mut of = |node: Node<'_>| {
            let mut blocks = Blocks::new(suspect.range);
            self.of_suspect(
                node,
                suspect,
                &mut |mail| match blocks.add(mail.uid, mail.digest()) {
                    true => Ok(()),
                    false => Err(InvalidAnswer::Order),
                },
            )?;
            Ok(blocks)
        };
        let here = of(Node::Here).map_err(Failure::Here)?;
        let there = of(Node::At(target)).map_err(Failure::There)?;
        let finer = here.differing(&there).into_iter().map(|block| Suspect {
            mailbox: suspect.mailbox.clone(),
            range: block.range,
            mails: block.mails,
        });
        Ok(finer.collect())
    }

    /// Compares a suspect's mails one by one.
    fn mails(
        &mut self,
        suspect: &Suspect,
        tell: &mut dyn FnMut(&mut Self, Difference),
    ) -> Result<(), Failure> {
        let target = self.target;
        let mut of = |node: Node<'_>| {
            let mut mails: Vec<Mail> = Vec::new();
            self.of_suspect(node, suspect, &mut |mail| {
                // More than at the first look, and the rest may be as many: the next look counts anew.
                if mails.len() as u64 >= 2 * MAILS_MAX {
                    return Err(InvalidAnswer::Grown);
                }
                if mails.last().is_some_and(|last| last.uid >= mail.uid) {
                    return Err(InvalidAnswer::Order);
                }
                mails.push(mail);
                Ok(())
            })?;
            Ok(mails)
        };
        let here = of(Node::Here).map_err(Failure::Here)?;
        let there = of(Node::At(target)).map_err(Failure::There)?;
        compare_mails(&suspect.mailbox, &here, &there, &mut |difference| {
            tell(self, difference);
        });
        Ok(())
    }

    fn of_suspect(
        &mut self,
        node: Node<'_>,
        suspect: &Suspect,
        each: &mut dyn FnMut(Mail) -> Result<(), InvalidAnswer>,
    ) -> Result<(), Trouble> {
        let set = suspect.range.sequence_set();
        let query: [&[u8]; 4] = [b"mailbox", &suspect.mailbox, b"uid", set.as_bytes()];
        let UidRange { first, last } = suspect.range;
        self.fetch(node, &query, &mut |mailbox, mail| {
            // `5:10` is the last mail too where that has a smaller UID.
            match *mailbox == *suspect.mailbox && (first..=last).contains(&mail.uid) {
                true => each(mail),
                false => Ok(()),
            }
        })
    }

    fn fetch(
        &mut self,
        node: Node<'_>,
        query: &[&[u8]],
        each: &mut TakeMail<'_>,
    ) -> Result<(), Trouble> {
        let with_text = self.options.with_text;
        let fields = match with_text {
            true => format!("{FETCH_FIELDS} text"),
            false => FETCH_FIELDS.to_owned(),
        };
        let mut arguments: Vec<&[u8]> = vec![b"--", fields.as_bytes()];
        arguments.extend(query);
        let columns = (FETCH_COLUMNS, with_text);
        self.rows(node, "fetch", &arguments, columns, &mut |row| {
            let (mailbox, mail) = Mail::of_row(row)?;
            each(&mailbox, mail)
        })
    }

    fn rows(
        &mut self,
        node: Node<'_>,
        name: &str,
        arguments: &[&[u8]],
        (columns, has_text): (usize, bool),
        each: &mut dyn FnMut(Row) -> Result<(), InvalidAnswer>,
    ) -> Result<(), Trouble> {
        let mut rows = RowReader::new(columns, has_text);
        let command = Command {
            username: self.username,
            name,
            arguments,
        };
        self.world.run(
            node,
            command,
            &mut |bytes, ends| match rows.push(bytes, ends)? {
                Some(row) => each(row),
                None => Ok(()),
            },
        )?;
        let invalid = |invalid: InvalidAnswer| Trouble::Failed(format!("{name}: {invalid}"));
        rows.finish().map_err(invalid)
    }
}

/// The targets in the rows of `show`; none for a user who is not replicated.
#[must_use]
pub fn targets(rows: Vec<Vec<Vec<u8>>>) -> Vec<Vec<u8>> {
    const TARGET: usize = 2;
    const ACTIVITY: usize = 12;
    let is_left_out = |row: &Vec<Vec<u8>>| {
        row.get(ACTIVITY)
            .is_some_and(|text| text == b"not replicated")
    };
    let rows = rows.into_iter().filter(|row| !is_left_out(row));
    rows.filter_map(|row| row.into_iter().nth(TARGET)).collect()
}

#[cfg(test)]
mod tests;
