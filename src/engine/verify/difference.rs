//! A difference, in words and for programs.

use std::fmt::Write as _;

use super::mail::Mail;
use super::rows::TextHash;

/// What differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// A mailbox is on one node only.
    Mailbox,
    /// The mailbox's GUID.
    Guid,
    /// The mailbox's UIDVALIDITY.
    UidValidity,
    /// A name is subscribed on one node only.
    Subscription,
    /// A mail is on one node only.
    Mail,
    /// Flags and keywords.
    Flags,
    /// INTERNALDATE.
    Received,
    /// The size with CRLF as line ends.
    Size,
    /// The hash of the message.
    Text,
}

impl What {
    /// As programs read it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mailbox => "mailbox",
            Self::Guid => "guid",
            Self::UidValidity => "uidvalidity",
            Self::Subscription => "subscription",
            Self::Mail => "mail",
            Self::Flags => "flags",
            Self::Received => "received",
            Self::Size => "size",
            Self::Text => "text",
        }
    }

    const fn for_people(self) -> &'static str {
        match self {
            Self::Guid => "GUID",
            Self::UidValidity => "UIDVALIDITY",
            other => other.as_str(),
        }
    }
}

/// One node's side of a difference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Value {
    /// It is not there.
    None,
    /// It is there, and there is no more to say.
    Yes,
    /// A mailbox with so many mails.
    Mails(u64),
    /// A number.
    Number(u64),
    /// Seconds since the epoch.
    Time(i64),
    /// A mail.
    Mail {
        /// Bytes.
        size: u64,
        /// Seconds since the epoch.
        received: i64,
    },
    /// Text.
    Text(String),
}

impl Value {
    /// This text; an empty one is none.
    #[must_use]
    pub fn text(text: &str) -> Self {
        match text.is_empty() {
            true => Self::None,
            false => Self::Text(text.to_owned()),
        }
    }

    /// A mail that only one node has.
    #[must_use]
    pub const fn of_mail(mail: &Mail) -> Self {
        Self::Mail {
            size: mail.size,
            received: mail.received,
        }
    }

    /// A hash, in hexadecimal digits.
    #[must_use]
    pub fn of_hash(hash: Option<TextHash>) -> Self {
        let Some(hash) = hash else { return Self::None };
        let mut digits = String::new();
        for byte in hash {
            // Writing to a String cannot fail.
            let _ = write!(digits, "{byte:02x}");
        }
        Self::Text(digits)
    }

    /// As programs read it: none is empty, a time is in seconds since the epoch.
    #[must_use]
    pub fn for_machines(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Yes => "1".to_owned(),
            Self::Mails(number) | Self::Number(number) => number.to_string(),
            Self::Time(time) => time.to_string(),
            Self::Mail { size, received } => format!("size={size} received={received}"),
            Self::Text(text) => text.clone(),
        }
    }

    fn for_people(&self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Mails(1) => "1 mail".to_owned(),
            Self::Mails(number) => format!("{number} mails"),
            Self::Time(time) => date(*time),
            Self::Mail { size, received } => format!("{size} bytes received {}", date(*received)),
            other => printable(other.for_machines().as_bytes()),
        }
    }
}

/// A difference between what a user has here and there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// The name of the mailbox.
    pub mailbox: Vec<u8>,
    /// The mail's UID, if it is about one.
    pub uid: Option<u32>,
    /// What differs.
    pub what: What,
    /// On this node.
    pub here: Value,
    /// On the peer.
    pub there: Value,
}

impl Difference {
    /// One of a mailbox.
    #[must_use]
    pub fn of_mailbox(mailbox: &[u8], what: What, here: Value, there: Value) -> Self {
        Self {
            mailbox: mailbox.to_vec(),
            uid: None,
            what,
            here,
            there,
        }
    }

    /// One of a mail.
    #[must_use]
    pub fn of_mail(mailbox: &[u8], uid: u32, what: What, here: Value, there: Value) -> Self {
        Self {
            uid: Some(uid),
            ..Self::of_mailbox(mailbox, what, here, there)
        }
    }

    /// A line that an administrator understands.
    #[must_use]
    pub fn for_people(&self, username: &[u8], peer: &[u8]) -> String {
        let mut line = format!("{}: {}", printable(username), printable(&self.mailbox));
        if let Some(uid) = self.uid {
            let _ = write!(line, " uid {uid}");
        }
        let peer = printable(peer);
        let what = match self.what {
            What::Subscription => "subscribed",
            what => what.for_people(),
        };
        let only = matches!(self.what, What::Mailbox | What::Mail | What::Subscription);
        let (node, value) = match (&self.here, &self.there) {
            (value, Value::None) if only => ("here".to_owned(), value),
            (Value::None, value) if only => (format!("at {peer}"), value),
            (here, there) => {
                let (here, there) = (here.for_people(), there.for_people());
                let _ = write!(line, ": {what} here {here}, at {peer} {there}");
                return line;
            }
        };
        let _ = write!(line, ": {what} only {node}");
        if *value != Value::Yes {
            let _ = write!(line, ", {}", value.for_people());
        }
        line
    }

    /// The values of a row for programs, without username and peer.
    #[must_use]
    pub fn for_machines(&self) -> [Vec<u8>; 5] {
        let uid = self.uid.map_or(String::new(), |uid| uid.to_string());
        [
            self.mailbox.clone(),
            uid.into_bytes(),
            self.what.as_str().as_bytes().to_vec(),
            self.here.for_machines().into_bytes(),
            self.there.for_machines().into_bytes(),
        ]
    }
}

fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// Proleptic Gregorian, as of Howard Hinnant's days-from-civil turned round.
fn date(time: i64) -> String {
    let (days, secs) = (time.div_euclid(86_400), time.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (secs / 3600, secs / 60 % 60, secs % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (time, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (-1, "1969-12-31 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_795_546_729, "2026-11-24 18:58:49 UTC"),
            (4_102_444_799, "2099-12-31 23:59:59 UTC"),
            (i64::from(i32::MIN), "1901-12-13 20:45:52 UTC"),
        ] {
            assert_eq!(date(time), text);
        }
    }

    #[test]
    fn a_difference_is_a_line_for_people_and_values_for_programs() {
        let flags = Difference::of_mail(
            b"INBOX",
            12,
            What::Flags,
            Value::text("\\Seen"),
            Value::text(""),
        );
        assert_eq!(
            flags.for_people(b"u1", b"tcp:b:1234"),
            "u1: INBOX uid 12: flags here \\Seen, at tcp:b:1234 none"
        );
        let values = flags
            .for_machines()
            .map(|value| String::from_utf8(value).unwrap());
        assert_eq!(values, ["INBOX", "12", "flags", "\\Seen", ""]);
        let odd = Difference::of_mailbox(b"a\nb", What::Mailbox, Value::None, Value::Mails(1));
        assert_eq!(
            odd.for_people(b"u\x1b", b"tcp:b"),
            "u?: a?b: mailbox only at tcp:b, 1 mail"
        );
        let mail = Value::Mail {
            size: 33,
            received: 5,
        };
        assert_eq!(mail.for_machines(), "size=33 received=5");
    }
}
