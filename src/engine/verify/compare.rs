//! Two pictures side by side.

use std::cmp::Ordering;

use super::blocks::UidRange;
use super::difference::{Difference, Value, What};
use super::mail::Mail;
use super::picture::{Mailbox, Picture};

/// Mails that are not the same on both nodes, to be looked at one by one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Where.
    pub mailbox: Vec<u8>,
    /// Which.
    pub range: UidRange,
    /// How many there are, on both nodes together.
    pub mails: u64,
}

/// Gives what differs between two pictures, mails apart, to `tell`, and returns which mails do.
pub fn compare(here: &Picture, there: &Picture, tell: &mut dyn FnMut(Difference)) -> Vec<Suspect> {
    let mut suspects = Vec::new();
    let names = here.mailboxes.keys().chain(there.mailboxes.keys());
    for name in names.collect::<std::collections::BTreeSet<_>>() {
        match (here.mailboxes.get(name), there.mailboxes.get(name)) {
            (Some(one), Some(other)) => compare_mailbox(name, one, other, tell, &mut suspects),
            (one, other) => {
                let mails = |mailbox: Option<&Mailbox>| match mailbox {
                    Some(mailbox) => Value::Mails(mailbox.mails),
                    None => Value::None,
                };
                tell(Difference::of_mailbox(
                    name,
                    What::Mailbox,
                    mails(one),
                    mails(other),
                ));
            }
        }
    }
    for name in here
        .subscriptions
        .symmetric_difference(&there.subscriptions)
    {
        let is = |picture: &Picture| match picture.subscriptions.contains(name) {
            true => Value::Yes,
            false => Value::None,
        };
        tell(Difference::of_mailbox(
            name,
            What::Subscription,
            is(here),
            is(there),
        ));
    }
    suspects
}

fn compare_mailbox(
    name: &[u8],
    here: &Mailbox,
    there: &Mailbox,
    tell: &mut dyn FnMut(Difference),
    suspects: &mut Vec<Suspect>,
) {
    if !here.guid.eq_ignore_ascii_case(&there.guid) {
        let text = |mailbox: &Mailbox| Value::Text(mailbox.guid.clone());
        tell(Difference::of_mailbox(
            name,
            What::Guid,
            text(here),
            text(there),
        ));
    }
    if here.uidvalidity != there.uidvalidity {
        let number = |mailbox: &Mailbox| Value::Number(mailbox.uidvalidity.into());
        tell(Difference::of_mailbox(
            name,
            What::UidValidity,
            number(here),
            number(there),
        ));
    }
    suspects.extend(
        here.blocks
            .differing(&there.blocks)
            .into_iter()
            .map(|block| Suspect {
                mailbox: name.to_vec(),
                range: block.range,
                mails: block.mails,
            }),
    );
}

/// Gives what differs between mails of one mailbox, each side by ascending UID, to `tell`.
pub fn compare_mails(
    mailbox: &[u8],
    here: &[Mail],
    there: &[Mail],
    tell: &mut dyn FnMut(Difference),
) {
    let (mut here, mut there) = (here.iter().peekable(), there.iter().peekable());
    loop {
        let order = match (here.peek(), there.peek()) {
            (None, None) => return,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => one.uid.cmp(&other.uid),
        };
        let one = if order.is_le() { here.next() } else { None };
        let other = if order.is_ge() { there.next() } else { None };
        match (one, other) {
            (Some(one), Some(other)) => compare_mail(mailbox, one, other, tell),
            (Some(one), None) => {
                tell(Difference::of_mail(
                    mailbox,
                    one.uid,
                    What::Mail,
                    Value::of_mail(one),
                    Value::None,
                ));
            }
            (None, Some(other)) => {
                tell(Difference::of_mail(
                    mailbox,
                    other.uid,
                    What::Mail,
                    Value::None,
                    Value::of_mail(other),
                ));
            }
            (None, None) => return,
        }
    }
}

fn compare_mail(mailbox: &[u8], here: &Mail, there: &Mail, tell: &mut dyn FnMut(Difference)) {
    let mut say = |what, one, other| tell(Difference::of_mail(mailbox, here.uid, what, one, other));
    if !here.flags.eq_ignore_ascii_case(&there.flags) {
        let value = |mail: &Mail| Value::text(&mail.flags);
        say(What::Flags, value(here), value(there));
    }
    if here.received != there.received {
        say(
            What::Received,
            Value::Time(here.received),
            Value::Time(there.received),
        );
    }
    if here.size != there.size {
        say(
            What::Size,
            Value::Number(here.size),
            Value::Number(there.size),
        );
    }
    if here.hash != there.hash {
        say(
            What::Text,
            Value::of_hash(here.hash),
            Value::of_hash(there.hash),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::mail::tests::mail;
    use super::super::{Blocks, Row};
    use super::*;

    fn picture(mailboxes: &[(&str, &str, &str, &[Mail])], subscriptions: &[&str]) -> Picture {
        let mut picture = Picture::default();
        for (name, uidvalidity, guid, mails) in mailboxes {
            let count = mails.len().to_string();
            let values = [*name, &count, uidvalidity, guid];
            let values = values
                .iter()
                .map(|value| value.as_bytes().to_vec())
                .collect();
            picture.add_mailbox(Row { values, hash: None }).unwrap();
            for mail in *mails {
                picture.add_mail(name.as_bytes(), mail).unwrap();
            }
        }
        picture.subscriptions = subscriptions
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        picture
    }

    fn told(here: &Picture, there: &Picture) -> (Vec<String>, Vec<Suspect>) {
        let mut lines = Vec::new();
        let suspects = compare(here, there, &mut |difference| {
            lines.push(difference.for_people(b"u", b"tcp:b"));
        });
        (lines, suspects)
    }

    #[test]
    fn equal_pictures_have_no_difference() {
        let one = picture(&[("INBOX", "1", "aa", &[mail(1, "\\Seen")])], &["INBOX"]);
        let other = picture(&[("INBOX", "1", "AA", &[mail(1, "\\seen")])], &["INBOX"]);
        assert_eq!(told(&one, &other), (vec![], vec![]));
    }

    #[test]
    fn each_difference_of_mailboxes_is_told_and_mails_are_suspects() {
        let one = picture(
            &[
                ("A", "1", "aa", &[mail(1, "")]),
                ("B", "1", "bb", &[]),
                ("C", "1", "cc", &[]),
            ],
            &["A", "Old"],
        );
        let other = picture(
            &[
                ("A", "1", "aa", &[mail(1, ""), mail(2, "")]),
                ("B", "2", "bc", &[]),
                ("D", "1", "dd", &[]),
            ],
            &["A"],
        );
        let (lines, suspects) = told(&one, &other);
        assert_eq!(
            lines,
            [
                "u: B: GUID here bb, at tcp:b bc",
                "u: B: UIDVALIDITY here 1, at tcp:b 2",
                "u: C: mailbox only here, 0 mails",
                "u: D: mailbox only at tcp:b, 0 mails",
                "u: Old: subscribed only here",
            ]
        );
        let [suspect] = suspects.as_slice() else {
            panic!("{suspects:?}")
        };
        assert_eq!((suspect.mailbox.as_slice(), suspect.mails), (&b"A"[..], 3));
    }

    #[test]
    fn each_difference_of_mails_is_told() {
        let here = [mail(1, "\\Seen"), mail(2, ""), mail(4, ""), mail(6, "a")];
        let mut there = [mail(2, "work"), mail(3, ""), mail(4, ""), mail(6, "A")];
        there[2].received += 1;
        there[2].size = 7;
        there[2].hash = Some([0xab; 32]);
        let mut lines = Vec::new();
        compare_mails(b"INBOX", &here, &there, &mut |difference| {
            lines.push(difference.for_people(b"u", b"tcp:b"));
        });
        let hash = "ab".repeat(32);
        assert_eq!(
            lines,
            [
                "u: INBOX uid 1: mail only here, 100 bytes received 1970-01-12 13:46:40 UTC".to_owned(),
                "u: INBOX uid 2: flags here none, at tcp:b work".to_owned(),
                "u: INBOX uid 3: mail only at tcp:b, 100 bytes received 1970-01-12 13:46:40 UTC".to_owned(),
                "u: INBOX uid 4: received here 1970-01-12 13:46:40 UTC, at tcp:b 1970-01-12 13:46:41 UTC".to_owned(),
                "u: INBOX uid 4: size here 100, at tcp:b 7".to_owned(),
                format!("u: INBOX uid 4: text here none, at tcp:b {hash}"),
            ]
        );
    }

    #[test]
    fn mails_of_any_pictures_that_are_the_same_are_no_suspects() {
        let mails: Vec<_> = (1..5000).map(|uid| mail(uid * 3, "")).collect();
        let one = picture(&[("A", "1", "aa", &mails)], &[]);
        assert_eq!(told(&one, &one.clone()).1, []);
        assert_ne!(one.mailboxes[&b"A"[..]].blocks, Blocks::new(UidRange::ALL));
    }
}
