//! The setting `replication_sync_timeout`: how long new mail waits for the other side.

use std::fmt;
use std::time::Duration;

/// The longest wait that is accepted.
pub const SYNC_TIMEOUT_MAX: Duration = Duration::from_secs(60 * 60);

/// Why a value is not a timeout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidSyncTimeout {
    value: String,
}

impl fmt::Display for InvalidSyncTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Invalid replication_sync_timeout value: {} (expected a number of seconds or a number with \
             msecs, secs, mins or hours, at most 1 hour: 2, 2s, 2 secs, 500ms, 1m; 0 is off)",
            self.value
        )
    }
}

/// The timeout that `value` gives; `None` is off.
///
/// A bare number is seconds. The units are Dovecot's and, as there, may be shortened (`s`, `sec`, `secs`);
/// `m` is minutes, `ms` milliseconds.
///
/// # Errors
/// Anything else, and more than [`SYNC_TIMEOUT_MAX`].
pub fn parse_sync_timeout(value: &[u8]) -> Result<Option<Duration>, InvalidSyncTimeout> {
    parse(value)
        .map(|timeout| (!timeout.is_zero()).then_some(timeout))
        .ok_or_else(|| InvalidSyncTimeout {
            value: String::from_utf8_lossy(value).into_owned(),
        })
}

fn parse(value: &[u8]) -> Option<Duration> {
    let value = std::str::from_utf8(value).ok()?.trim_ascii();
    let digits = value
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(value.len());
    let (number, unit) = value.split_at_checked(digits)?;
    let number: u64 = number.parse().ok()?;
    let millis = number.checked_mul(unit_millis(&unit.trim_ascii().to_ascii_lowercase())?)?;
    let timeout = Duration::from_millis(millis);
    (timeout <= SYNC_TIMEOUT_MAX).then_some(timeout)
}

fn unit_millis(unit: &str) -> Option<u64> {
    const UNITS: [(&str, u64); 8] = [
        ("seconds", 1000),
        ("secs", 1000),
        ("minutes", 60_000),
        ("mins", 60_000),
        ("hours", 3_600_000),
        ("milliseconds", 1),
        ("msecs", 1),
        ("ms", 1),
    ];
    if unit.is_empty() {
        return Some(1000);
    }
    UNITS
        .iter()
        .find(|(name, _)| name.starts_with(unit))
        .map(|(_, millis)| *millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_documented_forms_are_accepted() {
        for (value, millis) in [
            ("2", 2000),
            ("2s", 2000),
            ("2 secs", 2000),
            (" 2 sec ", 2000),
            ("2 seconds", 2000),
            ("500ms", 500),
            ("500 msecs", 500),
            ("1m", 60_000),
            ("1 min", 60_000),
            ("3 MINS", 180_000),
            ("1h", 3_600_000),
            ("3600", 3_600_000),
        ] {
            let expected = Some(Duration::from_millis(millis));
            assert_eq!(
                parse_sync_timeout(value.as_bytes()),
                Ok(expected),
                "{value}"
            );
        }
        for off in ["0", "0s", "0 ms"] {
            assert_eq!(parse_sync_timeout(off.as_bytes()), Ok(None), "{off}");
        }
    }

    #[test]
    fn everything_else_is_an_error_that_names_value_and_forms() {
        let bad: [&[u8]; 12] = [
            b"",
            b"s",
            b"-1",
            b"2x",
            b"2s2",
            b"1.5s",
            b"3601",
            b"2h",
            b"18446744073709551615h",
            b"\xff",
            b"2 s s",
            b"yes",
        ];
        for value in bad {
            let error = parse_sync_timeout(value).expect_err("refused").to_string();
            assert!(error.contains(&*String::from_utf8_lossy(value)), "{error}");
            assert!(error.contains("500ms"), "{error}");
        }
    }
}
