//! Counts the load's mails in what the comparer saw.

use super::model::{Census, Place};
use crate::harness::compare::Picture;

/// The header that carries a mail's id.
pub const SUBJECT: &str = "Subject: load-";

/// How often each id is in each place of the picture.
#[must_use]
pub fn census(picture: &Picture) -> Census {
    let mut census = Census::new();
    for (key, body) in picture {
        let Some((mailbox, _)) = key
            .strip_suffix(" BODY")
            .and_then(|key| key.rsplit_once(" UID "))
        else {
            continue;
        };
        if let Some(id) = id_of(body) {
            let key = (id.to_owned(), Place::of(&unquoted(mailbox)));
            *census.entry(key).or_default() += 1;
        }
    }
    census
}

/// The id in a mail, or in its header.
#[must_use]
pub fn id_of(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with(SUBJECT))?;
    line.strip_prefix("Subject: ").map(str::trim_end)
}

/// The name as people write it, of one in an IMAP answer: quoted or not, modified UTF-7.
fn unquoted(name: &str) -> String {
    let name = name
        .strip_prefix('"')
        .and_then(|name| name.strip_suffix('"'))
        .unwrap_or(name);
    super::names::all(super::names::Group::Kept, true)
        .into_iter()
        .find(|kept| super::names::quoted(kept).trim_matches('"') == name)
        .unwrap_or_else(|| name.to_owned())
}
