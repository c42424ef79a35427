//! An independent comparer: it speaks IMAP to both nodes and knows nothing of replication.
//!
//! Compared are the list of mailboxes, subscriptions, and in each mailbox UIDVALIDITY, UIDs, flags and
//! keywords, INTERNALDATE and the whole of each message.

use super::{Node, Outcome};
use std::collections::BTreeMap;

/// Everything of a user that a client can see: a key that says what, and its value.
pub type Picture = BTreeMap<String, String>;

/// What differs between the two nodes for `user`, a line each; empty if all is equal.
///
/// # Errors
/// When a node does not answer.
pub fn differences(a: &Node, b: &Node, user: &str) -> Outcome<Vec<String>> {
    let (a, b) = (picture(a, user)?, picture(b, user)?);
    let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let different = keys.into_iter().filter(|key| a.get(*key) != b.get(*key));
    let show = |value: Option<&String>| value.map_or("-".to_owned(), |value| short(value));
    Ok(different
        .map(|key| format!("{user}: {key}: {} / {}", show(a.get(key)), show(b.get(key))))
        .collect())
}

fn short(value: &str) -> String {
    value.chars().take(60).collect()
}

/// What `user` sees on `node`.
///
/// # Errors
/// When the node does not answer.
pub fn picture(node: &Node, user: &str) -> Outcome<Picture> {
    let mut imap = node.imap(user)?;
    let mut seen = Picture::new();
    let (mut mailboxes, mut parents) = (Vec::new(), Vec::new());
    for line in imap.ok("LIST \"\" *")? {
        let Some((flags, name)) = list_line(&line, "* LIST ") else {
            continue;
        };
        seen.insert(format!("mailbox {name}"), "exists".to_owned());
        if !flags.contains("\\Noselect") && !flags.contains("\\NonExistent") {
            mailboxes.push((name.to_owned(), flags.contains("\\HasChildren")));
        } else {
            parents.push(name.to_owned());
        }
    }
    for line in imap.ok("LSUB \"\" *")? {
        if let Some((_, name)) = list_line(&line, "* LSUB ") {
            seen.insert(format!("subscription {name}"), "subscribed".to_owned());
        }
    }
    for (name, has_children) in mailboxes {
        let (lines, tagged) = imap.command(&format!("EXAMINE {name}"))?;
        if is_nonexistent(&tagged) {
            // Dovecot's list names what is not there (docs/limits.md): a deleted one with children, under faults others.
            if !has_children {
                seen.remove(&format!("mailbox {name}"));
                forget_parents(&mut seen, &name, &parents);
            }
            continue;
        }
        if !tagged.starts_with("OK") {
            seen.insert(format!("{name} EXAMINE"), "refused".to_owned());
            continue;
        }
        for line in lines {
            if let Some((_, rest)) = line.split_once("[UIDVALIDITY ") {
                let value = rest.split(']').next().unwrap_or_default();
                seen.insert(format!("{name} UIDVALIDITY"), value.to_owned());
            }
        }
        messages(
            &name,
            &imap.ok("UID FETCH 1:* (FLAGS INTERNALDATE BODY.PEEK[])")?,
            &mut seen,
        );
    }
    imap.logout()?;
    Ok(seen)
}

/// Whether this is the answer to an EXAMINE of a mailbox that does not exist, or that a full disk kept from being deleted altogether; 2.3
/// gives no code.
pub fn is_nonexistent(tagged: &str) -> bool {
    let answers = ["Mailbox doesn't exist", "Mailbox was deleted under us"];
    tagged.starts_with("NO ") && answers.iter().any(|answer| tagged.contains(answer))
}

/// Those that were listed for the sake of this mailbox alone are not there either.
fn forget_parents(seen: &mut Picture, mailbox: &str, parents: &[String]) {
    let plain = |name: &str| name.trim_matches('"').to_owned();
    // As often as there may be one over the other.
    for _ in parents {
        for parent in parents {
            let prefix = format!("{}/", plain(parent));
            let is_under = |key: &String| {
                let name = key.strip_prefix("mailbox ");
                name.is_some_and(|name| plain(name).starts_with(&prefix))
            };
            if plain(mailbox).starts_with(&prefix) && !seen.keys().any(is_under) {
                seen.remove(&format!("mailbox {parent}"));
            }
        }
    }
}

fn list_line<'a>(line: &'a str, prefix: &str) -> Option<(&'a str, &'a str)> {
    let (flags, rest) = line
        .strip_prefix(prefix)?
        .strip_prefix('(')?
        .split_once(')')?;
    Some((flags, rest.trim_start().split_once(' ')?.1))
}

/// The answers of one FETCH: an attribute line, then the lines of the literal, then `)`.
fn messages(mailbox: &str, lines: &[String], seen: &mut Picture) {
    let mut current = String::new();
    for line in lines {
        if let Some((_, attributes)) = line.split_once(" FETCH (UID ") {
            let (uid, rest) = attributes.split_once(' ').unwrap_or((attributes, ""));
            current = format!("{mailbox} UID {uid}");
            let flags = between(rest, "FLAGS (", ")");
            let mut flags: Vec<_> = flags
                .split_whitespace()
                .filter(|flag| *flag != "\\Recent")
                .collect();
            flags.sort_unstable();
            seen.insert(format!("{current} FLAGS"), flags.join(" "));
            seen.insert(
                format!("{current} INTERNALDATE"),
                between(rest, "INTERNALDATE \"", "\"").to_owned(),
            );
            seen.insert(format!("{current} BODY"), String::new());
        } else if let Some(body) = seen.get_mut(&format!("{current} BODY")) {
            body.push_str(line);
            body.push('\n');
        }
    }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let rest = text.split_once(start).map_or("", |(_, rest)| rest);
    rest.split_once(end).map_or("", |(inner, _)| inner)
}
