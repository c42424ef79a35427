//! Mailbox names that are hard on a replication, in three groups by what the load does to them.

use std::fmt::Write as _;

/// What happens to mailboxes of a name, and so what must be true of mail in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Made once, never renamed or deleted.
    Kept,
    /// Made and renamed, on both nodes, never deleted.
    Renamed,
    /// Made, renamed and deleted.
    Deleted,
}

const KEPT: [&str; 5] = ["INBOX", "Keep", "Keep/100 %", "Keep/R&D", "Keep/Äpfel Ж"];
const ENDS: [&str; 8] = ["a b", "50%", "a%20b", "&co", "öl", "x", "x/y", "日本/&-"];

/// All names of a group, as people write them. `percent`: also such with a `%`.
#[must_use]
pub fn all(group: Group, percent: bool) -> Vec<String> {
    let below = |top: &str| ENDS.iter().map(|end| format!("{top}/{end}")).collect();
    let mut names = match group {
        Group::Kept => KEPT.map(str::to_owned).to_vec(),
        Group::Renamed => below("Ren"),
        Group::Deleted => below("Del"),
    };
    names.retain(|name| percent || !name.contains('%'));
    names
}

/// Which group a name belongs to; none if dsync made it up, where two mailboxes wanted one name.
#[must_use]
pub fn group_of(name: &str) -> Option<Group> {
    if KEPT.contains(&name) {
        Some(Group::Kept)
    } else if name.starts_with("Ren") {
        Some(Group::Renamed)
    } else if name.starts_with("Del") {
        Some(Group::Deleted)
    } else {
        None
    }
}

/// The name as an IMAP quoted string, in modified UTF-7 (RFC 3501, 5.1.3).
#[must_use]
pub fn quoted(name: &str) -> String {
    let mut text = String::from("\"");
    let mut wide: Vec<u16> = Vec::new();
    for letter in name.chars() {
        if !matches!(letter, ' '..='~') {
            wide.extend_from_slice(letter.encode_utf16(&mut [0; 2]));
            continue;
        }
        shift(&mut text, &mut wide);
        match letter {
            '&' => text.push_str("&-"),
            '"' | '\\' => {
                let _ = write!(text, "\\{letter}");
            }
            _ => text.push(letter),
        }
    }
    shift(&mut text, &mut wide);
    text.push('"');
    text
}

fn shift(text: &mut String, wide: &mut Vec<u16>) {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+,";
    if wide.is_empty() {
        return;
    }
    text.push('&');
    let bits: Vec<bool> = wide
        .drain(..)
        .flat_map(|unit| (0..16).rev().map(move |bit| unit >> bit & 1 == 1))
        .collect();
    for six in bits.chunks(6) {
        let value = (0..6).fold(0, |value, at| {
            value << 1 | usize::from(six.get(at) == Some(&true))
        });
        text.push(char::from(LETTERS[value]));
    }
    text.push('-');
}
