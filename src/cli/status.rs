//! `doveadm replicator status [<mask>]`: the counters, or a line per user, as 2.3.20 and later print them.

use super::client::request;
use super::{Column, Layout, hours};

/// The columns of the counters.
pub const OVERVIEW_COLUMNS: &[Column] = &[
    Column::text(c"field", Layout::Untitled),
    Column::text(c"value", Layout::Untitled),
];

/// The columns of the users.
pub const COLUMNS: &[Column] = &[
    Column::text(c"username", Layout::Wide),
    Column::text(c"priority", Layout::Plain),
    Column::text(c"fast sync", Layout::Plain),
    Column::text(c"full sync", Layout::Plain),
    Column::text(c"success sync", Layout::Plain),
    Column::text(c"failed", Layout::Plain),
    Column::text(c"next sync secs", Layout::Plain),
];

/// The line that asks for the counters, or for the users that the mask names.
#[must_use]
pub fn status_request(mask: Option<&[u8]>) -> Vec<u8> {
    match mask {
        None => request(&[b"STATUS"]),
        Some(mask) => request(&[b"STATUS", mask]),
    }
}

/// A line of the counters.
#[must_use]
pub fn overview_row(mut fields: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    fields.resize(2, Vec::new());
    fields
}

/// A user's line at this time (seconds since the epoch); `None`: not a user's, it is left out. A replicator of before 2.3.20
/// says nothing of the next sync.
#[must_use]
pub fn user_row(fields: &[Vec<u8>], now_secs: u64) -> Option<Vec<Vec<u8>>> {
    let [username, priority, fast, full, failed, success, rest @ ..] = fields else {
        return None;
    };
    let next = match rest.first() {
        Some(secs) => hours(parse(secs)?).into_owned(),
        None => b"-".to_vec(),
    };
    Some(vec![
        username.clone(),
        priority.clone(),
        time_ago(fast, now_secs)?,
        time_ago(full, now_secs)?,
        time_ago(success, now_secs)?,
        if failed.first() == Some(&b'0') {
            b"-".to_vec()
        } else {
            b"y".to_vec()
        },
        next,
    ])
}

fn parse(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

fn time_ago(value: &[u8], now_secs: u64) -> Option<Vec<u8>> {
    Some(match parse(value)? {
        0 => b"-".to_vec(),
        time => hours(now_secs.saturating_sub(time)).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row_of(line: &str) -> Option<String> {
        let fields: Vec<_> = line.split('\t').map(|f| f.as_bytes().to_vec()).collect();
        user_row(&fields, 1_000_000).map(|row| String::from_utf8(row.join(&b'|')).unwrap())
    }

    #[test]
    fn a_user_is_shown_as_2_3_20_shows_it() {
        for (line, shown) in [
            (
                "u\thigh\t999999\t636000\t0\t0\t61",
                "u|high|00:00:01|101:06:40|-|-|00:01:01",
            ),
            (
                "u\tnone\t0\t0\t1\t1000001\t0\tmore",
                "u|none|-|-|00:00:00|y|00:00:00",
            ),
            ("u\tnone\t0\t0\t\t5\t0", "u|none|-|-|277:46:35|y|00:00:00"),
            ("u\tlow\t0\t0\t0\t0", "u|low|-|-|-|-|-"),
        ] {
            assert_eq!(row_of(line).as_deref(), Some(shown), "{line}");
        }
    }

    #[test]
    fn a_line_that_is_no_users_is_left_out() {
        for line in [
            "",
            "u\tnone\t0\t0\t0",
            "u\tnone\tx\t0\t0\t0\t0",
            "u\tnone\t0\t-1\t0\t0\t0",
            "u\tnone\t0\t0\t0\t\t0",
            "u\tnone\t0\t0\t0\t0\tsoon",
        ] {
            assert_eq!(row_of(line), None, "{line}");
        }
    }

    #[test]
    fn a_counter_has_a_value() {
        assert_eq!(overview_row(vec![b"a".to_vec()]), [b"a".to_vec(), vec![]]);
        assert_eq!(overview_row(vec![b"a".to_vec(); 3]).len(), 2);
        assert_eq!(status_request(None), b"STATUS\n");
        assert_eq!(status_request(Some(b"a\t*")), b"STATUS\ta\x01t*\n");
    }
}
