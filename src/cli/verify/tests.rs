//! Nodes that hold what a test gives them, and answer as Dovecot's commands do.

use super::*;
use std::collections::BTreeMap;

/// Of a mailbox: GUID, UIDVALIDITY, and by UID flags and text.
#[derive(Clone, Default)]
struct Box {
    guid: &'static str,
    mails: BTreeMap<u32, (String, String)>,
}

type Boxes = BTreeMap<String, Box>;

#[derive(Default)]
struct Fake {
    users: Vec<&'static str>,
    here: Boxes,
    there: Boxes,
    troubles: BTreeMap<(String, String), Trouble>,
    /// Done in the next pause.
    on_pause: Vec<fn(&mut Fake)>,
    commands: Vec<String>,
    told: Vec<String>,
    complaints: Vec<String>,
    replicas: Vec<&'static str>,
    rows_of_one_fetch: usize,
}

impl Fake {
    fn of(boxes: Boxes) -> Self {
        Self {
            users: vec!["u1"],
            here: boxes.clone(),
            there: boxes,
            replicas: vec!["tcp:b"],
            ..Self::default()
        }
    }

    fn verify(&mut self, mask: &str) -> (i32, Vec<String>) {
        let options = Options {
            mask: mask.as_bytes().to_vec(),
            with_text: true,
            excluded: vec![b"virtual/*".to_vec()],
            target: None,
        };
        let summary = verify(self, &options);
        (summary.exit_code(), std::mem::take(&mut self.told))
    }
}

fn boxes(mails: u32) -> Boxes {
    let mail = |uid| (uid, ("\\Seen".to_owned(), format!("mail {uid}")));
    let mails: BTreeMap<_, _> = (1..=mails).map(mail).collect();
    let inbox = Box { guid: "aa", mails };
    let other = Box {
        guid: "bb",
        mails: [mail(1), mail(7)].into(),
    };
    [("INBOX".to_owned(), inbox), ("100%".to_owned(), other)].into()
}

impl World for Fake {
    fn run(
        &mut self,
        node: Node<'_>,
        command: Command<'_>,
        take: &mut TakePart<'_>,
    ) -> Result<(), Trouble> {
        let username = String::from_utf8_lossy(command.username).into_owned();
        let side = match node {
            Node::Here => "here",
            Node::At(_) => "there",
        };
        if let Some(trouble) = self.troubles.get(&(side.to_owned(), username)) {
            return Err(trouble.clone());
        }
        let arguments: Vec<_> = command
            .arguments
            .iter()
            .map(|a| String::from_utf8_lossy(a))
            .collect();
        let arguments: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
        self.commands
            .push(format!("{side} {} {}", command.name, arguments.join(" ")));
        let boxes = if node == Node::Here {
            &self.here
        } else {
            &self.there
        };
        let mut print =
            |value: &str| take(value.as_bytes(), true).map_err(|e| Trouble::Failed(e.to_string()));
        match (command.name, arguments.as_slice()) {
            ("mailbox list", ["-s"]) => print("INBOX"),
            ("mailbox status", ["--", "messages uidvalidity guid", "*", "*"]) => {
                boxes.iter().try_for_each(|(name, mailbox)| {
                    print(name)?;
                    print(&mailbox.mails.len().to_string())?;
                    print("1")?;
                    print(mailbox.guid)
                })
            }
            (
                "fetch",
                [
                    "--",
                    "mailbox uid flags date.received.unixtime size.virtual text",
                    query @ ..,
                ],
            ) => {
                let (wanted, range) = match query {
                    ["all"] => (None, UidRange::ALL),
                    ["mailbox", name] => (Some(*name), UidRange::ALL),
                    ["mailbox", name, "uid", set] => {
                        let (first, last) = set.split_once(':').unwrap();
                        let (first, last) = (first.parse().unwrap(), last.parse().unwrap());
                        (Some(*name), UidRange { first, last })
                    }
                    other => panic!("{other:?}"),
                };
                let mut rows = 0;
                for (name, mailbox) in boxes {
                    let is_wanted = wanted.is_none_or(|wanted| wanted == name);
                    for (uid, (flags, text)) in mailbox.mails.iter().filter(|_| is_wanted) {
                        if (range.first..=range.last).contains(uid) {
                            rows += 1;
                            for value in [name, &uid.to_string(), flags, "5", "9", text] {
                                print(value)?;
                            }
                        }
                    }
                }
                if range != UidRange::ALL {
                    self.rows_of_one_fetch = self.rows_of_one_fetch.max(rows);
                }
                Ok(())
            }
            other => panic!("{other:?}"),
        }
    }

    fn usernames(&mut self, mask: &[u8], each: &mut dyn FnMut(Vec<u8>)) -> Result<(), i32> {
        let users = self.users.iter().map(|user| user.as_bytes().to_vec());
        users
            .filter(|user| wildcard_match(user, mask))
            .for_each(each);
        Ok(())
    }

    fn targets(&mut self, username: &[u8]) -> Result<Vec<Vec<u8>>, TargetsError> {
        match self.users.iter().any(|user| user.as_bytes() == username) {
            true => Ok(self
                .replicas
                .iter()
                .map(|r| r.as_bytes().to_vec())
                .collect()),
            false => Err(TargetsError::NoUser),
        }
    }

    fn pause(&mut self, _: Duration) {
        if let Some(change) = self.on_pause.pop() {
            change(self);
        }
    }

    fn tell(&mut self, username: &[u8], peer: &[u8], difference: &Difference) {
        self.told.push(difference.for_people(username, peer));
    }

    fn complain(&mut self, text: &str) {
        self.complaints.push(text.to_owned());
    }
}

#[test]
fn equal_nodes_are_looked_at_once() {
    let mut fake = Fake::of(boxes(10));
    assert_eq!(fake.verify("u1"), (0, vec![]));
    assert_eq!(fake.commands.len(), 6);
    assert!(fake.complaints.is_empty());
}

#[test]
fn each_mail_that_differs_is_told_and_few_are_read_again() {
    let mut fake = Fake::of(boxes(100_000));
    fake.there.get_mut("INBOX").unwrap().mails.remove(&77_777);
    fake.there
        .get_mut("100%")
        .unwrap()
        .mails
        .get_mut(&7)
        .unwrap()
        .0 = String::new();
    let (exit_code, told) = fake.verify("u*");
    assert_eq!(exit_code, 1);
    assert_eq!(
        told,
        [
            "u1: 100% uid 7: flags here \\Seen, at tcp:b none",
            "u1: INBOX uid 77777: mail only here, 9 bytes received 1970-01-01 00:00:05 UTC",
        ]
    );
    assert!(fake.rows_of_one_fetch <= 1024, "{}", fake.rows_of_one_fetch);
}

#[test]
fn mails_that_are_many_in_a_block_are_read_in_parts() {
    // UIDs so far apart that blocks are big, and then many close together.
    let mut boxes = boxes(0);
    let inbox = boxes.get_mut("INBOX").unwrap();
    for n in 0..5000_u32 {
        inbox
            .mails
            .insert(100_000 + n * 800_000, (String::new(), String::new()));
    }
    for uid in 1..60_000 {
        inbox.mails.insert(uid, (String::new(), String::new()));
    }
    let mut fake = Fake::of(boxes);
    fake.there.get_mut("INBOX").unwrap().mails.remove(&40_000);
    let (exit_code, told) = fake.verify("u1");
    assert_eq!((exit_code, told.len()), (1, 1));
    assert!(
        told[0].starts_with("u1: INBOX uid 40000: mail only here"),
        "{told:?}"
    );
}

#[test]
fn more_differences_than_are_kept_are_all_told() {
    let mut fake = Fake::of(boxes(30_000));
    for mail in fake.there.get_mut("INBOX").unwrap().mails.values_mut() {
        mail.1.push('x');
    }
    let (exit_code, told) = fake.verify("u1");
    assert_eq!((exit_code, told.len()), (1, 30_000));
    let different: BTreeSet<_> = told.iter().collect();
    assert_eq!(different.len(), 30_000);
}

#[test]
fn what_becomes_equal_meanwhile_is_not_told() {
    let mut fake = Fake::of(boxes(10));
    fake.there.get_mut("INBOX").unwrap().mails.remove(&5);
    fake.on_pause = vec![|fake| fake.there = fake.here.clone()];
    assert_eq!(fake.verify("u1"), (0, vec![]));
    assert!(
        fake.commands.iter().any(|c| c.ends_with("mailbox INBOX")),
        "{:?}",
        fake.commands
    );
    assert!(!fake.commands.iter().any(|c| c.ends_with("mailbox 100%")));
}

#[test]
fn mailboxes_that_are_left_out_do_not_differ() {
    let mut fake = Fake::of(boxes(1));
    fake.here.insert(
        "virtual/All".to_owned(),
        Box {
            guid: "cc",
            ..Box::default()
        },
    );
    assert_eq!(fake.verify("u1"), (0, vec![]));
    fake.here.insert(
        "Virtual".to_owned(),
        Box {
            guid: "cc",
            ..Box::default()
        },
    );
    assert_eq!(
        fake.verify("u1"),
        (
            1,
            vec!["u1: Virtual: mailbox only here, 0 mails".to_owned()]
        )
    );
}

#[test]
fn each_trouble_has_its_exit_code_and_the_other_users_are_compared() {
    for (side, trouble, exit_code) in [
        ("here", Trouble::NoUser, 67),
        ("there", Trouble::NoUser, 67),
        ("here", Trouble::Failed("x".into()), 75),
        ("there", Trouble::Failed("x".into()), 75),
    ] {
        let mut fake = Fake::of(boxes(1));
        fake.users = vec!["u1", "u2"];
        fake.troubles
            .insert((side.into(), "u1".into()), trouble.clone());
        assert_eq!(fake.verify("*"), (exit_code, vec![]), "{side} {trouble:?}");
        assert!(fake.commands.len() >= 6);
        assert_eq!(fake.complaints.len(), 1, "{:?}", fake.complaints);
        // A difference counts more.
        fake.there.remove("INBOX");
        assert_eq!(fake.verify("*").0, 1);
    }
}

#[test]
fn a_node_that_is_of_no_use_is_asked_once() {
    for (side, users, complaints) in [("here", 0, 1), ("there", 2, 2)] {
        for (trouble, exit_code) in [
            (Trouble::Unreachable("x".into()), 69),
            (Trouble::Refused("x".into()), 77),
            (Trouble::Unsupported("x".into()), 78),
        ] {
            let mut fake = Fake::of(boxes(1));
            fake.users = vec!["u1", "u2"];
            for user in &fake.users {
                let of = (side.to_owned(), (*user).to_owned());
                fake.troubles.insert(of, trouble.clone());
            }
            assert_eq!(fake.verify("*"), (exit_code, vec![]));
            assert_eq!(fake.complaints.len(), complaints, "{:?}", fake.complaints);
            assert_eq!(
                fake.complaints.last().unwrap().contains("2 users"),
                users == 2
            );
        }
    }
}

#[test]
fn users_without_a_replica_are_an_error() {
    let mut fake = Fake::of(boxes(1));
    for (mask, replicas, exit_code, text) in [
        (
            "nobody",
            vec!["tcp:b"],
            67,
            "nobody: the replicator does not know the user",
        ),
        (
            "x*",
            vec!["tcp:b"],
            67,
            "x*: the replicator knows no such user",
        ),
        ("u1", vec![], 67, "u1: not replicated"),
        (
            "u1",
            vec![""],
            75,
            "u1: the replicator has not looked up the replicas yet",
        ),
    ] {
        fake.replicas = replicas;
        assert_eq!(fake.verify(mask), (exit_code, vec![]));
        assert_eq!(fake.complaints.pop().as_deref(), Some(text));
    }
    fake.replicas = vec!["tcp:b", "tcp:c"];
    fake.there.remove("INBOX");
    assert_eq!(
        fake.verify("u1").1,
        ["u1: INBOX: mailbox only here, 1 mail"; 2]
    );
}

#[test]
fn targets_are_those_of_show() {
    let row = |target: &str, activity: &str| {
        let mut row = vec![Vec::new(); 14];
        row[2] = target.as_bytes().to_vec();
        row[12] = activity.as_bytes().to_vec();
        row
    };
    let rows = vec![row("tcp:a", "idle"), row("tcp:b", "syncing")];
    assert_eq!(targets(rows), [b"tcp:a", b"tcp:b"]);
    assert!(targets(vec![row("tcp:a", "not replicated")]).is_empty());
}
