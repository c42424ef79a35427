//! What `doveadm replicator` says, without Dovecot: requests, answers, columns and their text.
//!
//! One file per subcommand. Of our own, `show` and `peers`, a value is made once for people (times as they passed, `-` for none)
//! and once for programs (as it came over the wire); who prints it chooses. Those that 2.3 has print what 2.3's print, whoever
//! reads it.

pub mod add;
pub mod client;
pub mod command;
pub mod dsync_status;
pub mod peers;
pub mod remote;
pub mod remove;
pub mod replicate;
pub mod show;
pub mod status;
pub mod verify;

use std::borrow::Cow;

/// A column of an output.
#[derive(Debug)]
pub struct Column {
    /// Title and key, the same in all formats.
    pub name: &'static std::ffi::CStr,
    /// How its values are read.
    pub kind: Kind,
    /// How a table shows it.
    pub layout: Layout,
}

impl Column {
    const fn of(name: &'static std::ffi::CStr, kind: Kind) -> Self {
        Self {
            name,
            kind,
            layout: Layout::Plain,
        }
    }

    const fn text(name: &'static std::ffi::CStr, layout: Layout) -> Self {
        Self {
            name,
            kind: Kind::Text,
            layout,
        }
    }
}

/// How a table shows a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As wide as its values.
    Plain,
    /// With what is left of the screen.
    Wide,
    /// Without its title.
    Untitled,
}

/// What the values of a column are on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text; empty is none.
    Text,
    /// A number.
    Number,
    /// Seconds since the epoch; 0 or empty is never.
    Time,
    /// Seconds from now; empty is none.
    Secs,
    /// 1 is yes, all else no.
    Flag,
}

impl Kind {
    /// The value as people read it, at this time (seconds since the epoch): what passed since a time and what is left
    /// until one as HH:MM:SS, none as `-`, as in stock's status.
    #[must_use]
    pub fn for_people<'a>(self, value: &'a [u8], now_secs: u64) -> Cow<'a, [u8]> {
        let number = parse_number(value);
        match (self, number) {
            (Self::Time, Some(0)) => Cow::Borrowed(b"-"),
            (Self::Time, Some(time)) => hours(now_secs.saturating_sub(time)),
            (Self::Secs, Some(secs)) => hours(secs),
            (Self::Flag, _) => Cow::Borrowed(if value == b"1" { b"y" } else { b"-" }),
            _ if value.is_empty() => Cow::Borrowed(b"-"),
            _ => Cow::Borrowed(value),
        }
    }
}

fn parse_number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn hours(secs: u64) -> Cow<'static, [u8]> {
    let text = format!("{:02}:{:02}:{:02}", secs / 3600, secs / 60 % 60, secs % 60);
    Cow::Owned(text.into_bytes())
}

/// The fields of an answer's line, one for each column: what is missing is empty, what is more is left out.
#[must_use]
pub fn row(columns: &[Column], mut fields: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    fields.resize(columns.len(), Vec::new());
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_what_passed_and_none_as_a_dash() {
        let now = 1_000_000;
        for (kind, value, text) in [
            (Kind::Time, "999999", "00:00:01"),
            (Kind::Time, "0", "-"),
            (Kind::Time, "", "-"),
            (Kind::Time, "1000005", "00:00:00"),
            (Kind::Time, "635999", "101:06:41"),
            (Kind::Time, "soon", "soon"),
            (Kind::Secs, "0", "00:00:00"),
            (Kind::Secs, "3725", "01:02:05"),
            (Kind::Secs, "", "-"),
            (Kind::Flag, "1", "y"),
            (Kind::Flag, "0", "-"),
            (Kind::Number, "0", "0"),
            (Kind::Text, "", "-"),
            (Kind::Text, "tcp:a", "tcp:a"),
        ] {
            assert_eq!(
                kind.for_people(value.as_bytes(), now),
                text.as_bytes(),
                "{kind:?} {value}"
            );
        }
    }

    #[test]
    fn a_row_has_a_value_for_each_column() {
        let columns = show::COLUMNS;
        assert_eq!(row(columns, vec![b"u".to_vec()]).len(), columns.len());
        assert_eq!(row(columns, vec![Vec::new(); 40]).len(), columns.len());
    }
}
