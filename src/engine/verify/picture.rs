//! What a node holds of a user, without its mails.

use std::collections::{BTreeMap, BTreeSet};

use super::blocks::{Blocks, UidRange};
use super::mail::Mail;
use super::rows::{InvalidAnswer, Row};

/// What doveadm is asked of each mailbox.
pub const STATUS_FIELDS: &str = "messages uidvalidity guid";
/// How many values that is, with the mailbox's name.
pub const STATUS_COLUMNS: usize = 4;
/// The most mailboxes, and the most subscriptions, of a user.
pub const MAILBOXES_MAX: usize = 1_000_000;

/// A mailbox that can be selected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// GUID, in hexadecimal digits.
    pub guid: String,
    /// UIDVALIDITY.
    pub uidvalidity: u32,
    /// How many mails there are.
    pub mails: u64,
    /// The mails, added up.
    pub blocks: Blocks,
}

/// What a node holds of a user.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    /// By name.
    pub mailboxes: BTreeMap<Vec<u8>, Mailbox>,
    /// By name.
    pub subscriptions: BTreeSet<Vec<u8>>,
}

impl Picture {
    /// Adds a row of `mailbox list -s`.
    ///
    /// # Errors
    ///
    /// [`InvalidAnswer::TooMany`].
    pub fn add_subscription(&mut self, row: Row) -> Result<(), InvalidAnswer> {
        self.subscriptions.extend(row.values);
        match self.subscriptions.len() > MAILBOXES_MAX {
            true => Err(InvalidAnswer::TooMany),
            false => Ok(()),
        }
    }

    /// Adds a row of `mailbox status` with [`STATUS_FIELDS`]. All are there before the first mail.
    ///
    /// # Errors
    ///
    /// The row is none.
    pub fn add_mailbox(&mut self, row: Row) -> Result<(), InvalidAnswer> {
        let Ok([name, mails, uidvalidity, guid]) = <[Vec<u8>; 4]>::try_from(row.values) else {
            return Err(InvalidAnswer::Incomplete);
        };
        let text = |value: Vec<u8>| String::from_utf8(value).ok();
        let uidvalidity = text(uidvalidity).and_then(|value| value.parse().ok());
        let guid = text(guid).filter(|guid| guid.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let mailbox = Mailbox {
            guid: guid.ok_or(InvalidAnswer::Column("guid"))?,
            uidvalidity: uidvalidity.ok_or(InvalidAnswer::Column("uidvalidity"))?,
            mails: text(mails)
                .and_then(|value| value.parse().ok())
                .ok_or(InvalidAnswer::Column("messages"))?,
            blocks: Blocks::new(UidRange::ALL),
        };
        self.mailboxes.insert(name, mailbox);
        match self.mailboxes.len() > MAILBOXES_MAX {
            true => Err(InvalidAnswer::TooMany),
            false => Ok(()),
        }
    }

    /// Adds a mail. One of a mailbox that was not listed, as it was made since, is left out.
    ///
    /// # Errors
    ///
    /// [`InvalidAnswer::Order`].
    pub fn add_mail(&mut self, mailbox: &[u8], mail: &Mail) -> Result<(), InvalidAnswer> {
        let Some(mailbox) = self.mailboxes.get_mut(mailbox) else {
            return Ok(());
        };
        match mailbox.blocks.add(mail.uid, mail.digest()) {
            true => Ok(()),
            false => Err(InvalidAnswer::Order),
        }
    }

    /// Leaves only mailboxes and subscriptions of such names.
    pub fn retain(&mut self, keep: impl Fn(&[u8]) -> bool) {
        self.mailboxes.retain(|name, _| keep(name));
        self.subscriptions.retain(|name| keep(name));
    }
}

#[cfg(test)]
mod tests {
    use super::super::mail::tests::mail;
    use super::*;

    fn row(values: &[&str]) -> Row {
        Row {
            values: values
                .iter()
                .map(|value| value.as_bytes().to_vec())
                .collect(),
            hash: None,
        }
    }

    #[test]
    fn rows_make_a_picture_and_what_is_none_is_named() {
        let mut picture = Picture::default();
        picture
            .add_mailbox(row(&["INBOX", "2", "1795546729", "2dfc463769de056b"]))
            .unwrap();
        picture.add_mail(b"INBOX", &mail(3, "")).unwrap();
        picture.add_mail(b"New", &mail(3, "")).unwrap();
        assert_eq!(
            picture.add_mail(b"INBOX", &mail(3, "")),
            Err(InvalidAnswer::Order)
        );
        picture.add_subscription(row(&["Gone"])).unwrap();
        let inbox = &picture.mailboxes[&b"INBOX"[..]];
        assert_eq!((inbox.mails, inbox.uidvalidity), (2, 1_795_546_729));
        assert_eq!(inbox.blocks.mails(), 1);
        for (values, column) in [
            (["a", "x", "1", "00"], "messages"),
            (["a", "1", "", "00"], "uidvalidity"),
            (["a", "1", "1", "0g"], "guid"),
        ] {
            assert_eq!(
                picture.add_mailbox(row(&values)),
                Err(InvalidAnswer::Column(column))
            );
        }
        assert_eq!(
            picture.add_mailbox(row(&["a"])),
            Err(InvalidAnswer::Incomplete)
        );
        picture.retain(|name| name != b"Gone");
        assert!(picture.subscriptions.is_empty() && picture.mailboxes.len() == 1);
    }
}
