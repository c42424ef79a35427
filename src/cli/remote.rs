//! A doveadm command by the way that dsync takes to a `remote:` replica.
//!
//! `dsync_remote_cmd` ends in `doveadm dsync-server -u%u ...`: another command takes the place of `dsync-server` and what
//! follows it. That cannot be where the far side allows nothing else (a forced command of ssh), nor with `remoteprefix:`.

use super::verify::{Command, Trouble};

const EX_NOUSER: i32 = 67;
/// ssh could not connect; a shell found no such command or may not run it.
const NOT_RUN: [i32; 3] = [255, 127, 126];

/// The words of the command line, by `dsync_remote_cmd`, for a `remote:` location.
///
/// # Errors
///
/// [`Trouble::Unsupported`]: the location or the setting leaves no way.
pub fn command_line(
    target: &[u8],
    dsync_remote_cmd: &[u8],
    command: Command<'_>,
) -> Result<Vec<Vec<u8>>, Trouble> {
    let unsupported = |text: String| Trouble::Unsupported(text);
    let target = String::from_utf8_lossy(target).into_owned();
    let setting = String::from_utf8_lossy(dsync_remote_cmd).into_owned();
    let Some(location) = target.strip_prefix("remote:") else {
        return Err(unsupported(format!(
            "{target} leaves no way for other commands than dsync's"
        )));
    };
    let (login, host) = location.rsplit_once('@').unwrap_or(("", location));
    let username = String::from_utf8_lossy(command.username);
    let mut words: Vec<Vec<u8>> = Vec::new();
    let mut ends_in_dsync = false;
    for word in setting.split(' ').filter(|word| !word.is_empty()) {
        if word == "dsync-server" {
            ends_in_dsync = true;
            break;
        }
        let values = [("user", &*username), ("login", login), ("host", host)];
        let full = expand(word, &values);
        let empty = expand(word, &values.map(|(name, _)| (name, "")));
        let (Some(full), Some(empty)) = (full, empty) else {
            return Err(unsupported(format!(
                "dsync_remote_cmd: {word} is not understood"
            )));
        };
        // An option whose value is empty is left out, as dsync does.
        if word.contains('%') && full == empty && !full.is_empty() {
            continue;
        }
        words.push(full.into_bytes());
    }
    let is_program =
        |word: &[u8], name: &[u8]| word.rsplit(|&byte| byte == b'/').next() == Some(name);
    if !ends_in_dsync || !words.iter().any(|word| is_program(word, b"doveadm")) {
        return Err(unsupported(format!(
            "dsync_remote_cmd does not end in doveadm dsync-server, no other command can take its place: {setting}"
        )));
    }
    // What ssh is given the far side's shell reads once more.
    let by_shell = words
        .first()
        .is_some_and(|word| is_program(word, b"ssh") || is_program(word, b"rsh"));
    let mut add = |word: &[u8]| {
        words.push(match by_shell {
            true => quoted(word),
            false => word.to_vec(),
        });
    };
    add(b"-f");
    add(b"json");
    command
        .name
        .split(' ')
        .for_each(|word| add(word.as_bytes()));
    add(b"-u");
    add(command.username);
    command.arguments.iter().for_each(|argument| add(argument));
    Ok(words)
}

/// Variables in both forms; `None`: others, or a lone `%`.
fn expand(word: &str, values: &[(&str, &str)]) -> Option<String> {
    let value = |name: &str| {
        values
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| *value)
    };
    let mut out = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        if let Some(braced) = after.strip_prefix('{') {
            let (name, after) = braced.split_once('}')?;
            out.push_str(value(name)?);
            rest = after;
        } else {
            out.push_str(value("user")?);
            rest = after.strip_prefix('u')?;
        }
    }
    out.push_str(rest);
    Some(out)
}

fn quoted(word: &[u8]) -> Vec<u8> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"@_+=:,./-".contains(byte);
    if !word.is_empty() && word.iter().all(is_plain) {
        return word.to_vec();
    }
    let mut out = vec![b'\''];
    for &byte in word {
        match byte {
            b'\'' => out.extend_from_slice(b"'\\''"),
            byte => out.push(byte),
        }
    }
    out.push(b'\'');
    out
}

/// What the end of the command means; `None` for the code: a signal.
///
/// # Errors
///
/// Anything but success.
pub fn ended(exit_code: Option<i32>, command: Command<'_>) -> Result<(), Trouble> {
    let name = command.name;
    match exit_code {
        Some(0) => Ok(()),
        Some(EX_NOUSER) => Err(Trouble::NoUser),
        Some(code) if NOT_RUN.contains(&code) => Err(Trouble::Unreachable(format!(
            "the command of dsync_remote_cmd exited with {code}"
        ))),
        Some(code) => Err(Trouble::Failed(format!("{name}: exited with {code}"))),
        None => Err(Trouble::Failed(format!("{name}: ended by a signal"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(target: &str, setting: &str) -> Result<String, Trouble> {
        let command = Command {
            username: b"u'1",
            name: "mailbox status",
            arguments: &[b"--", b"guid uidvalidity", b"*"],
        };
        let words = command_line(target.as_bytes(), setting.as_bytes(), command)?;
        Ok(String::from_utf8(words.join(&b'|')).unwrap())
    }

    #[test]
    fn another_command_takes_the_place_of_dsync_server() {
        assert_eq!(
            line(
                "remote:admin@b",
                "ssh -l%{login} %{host} doveadm dsync-server -u%u -U"
            )
            .unwrap(),
            "ssh|-ladmin|b|doveadm|-f|json|mailbox|status|-u|'u'\\''1'|--|'guid uidvalidity'|'*'"
        );
        assert_eq!(
            line(
                "remote:b",
                "ssh -l%{login} %{host} doveadm dsync-server -u%{user}"
            )
            .unwrap(),
            "ssh|b|doveadm|-f|json|mailbox|status|-u|'u'\\''1'|--|'guid uidvalidity'|'*'"
        );
        assert_eq!(
            line(
                "remote:b",
                "/usr/bin/env -i  /usr/bin/doveadm -c /%{host}/%u dsync-server"
            )
            .unwrap(),
            "/usr/bin/env|-i|/usr/bin/doveadm|-c|/b/u'1|-f|json|mailbox|status|-u|u'1|--|guid uidvalidity|*"
        );
    }

    #[test]
    fn where_there_is_no_way_it_is_said() {
        for (target, setting) in [
            ("remoteprefix:b", "ssh %{host} doveadm dsync-server -u%u"),
            ("/var/mail", "ssh %{host} doveadm dsync-server -u%u"),
            ("remote:b", "ssh %{host} sync.sh %u"),
            ("remote:b", "ssh %{host} dsync-server -u%u"),
            ("remote:b", "ssh %{host} doveadm -o x=%d dsync-server -u%u"),
        ] {
            assert!(
                matches!(line(target, setting), Err(Trouble::Unsupported(_))),
                "{setting}"
            );
        }
    }

    #[test]
    fn each_end_has_its_meaning() {
        let command = Command {
            username: b"u",
            name: "fetch",
            arguments: &[],
        };
        assert_eq!(ended(Some(0), command), Ok(()));
        assert_eq!(ended(Some(67), command), Err(Trouble::NoUser));
        assert!(matches!(
            ended(Some(255), command),
            Err(Trouble::Unreachable(_))
        ));
        assert!(matches!(ended(Some(75), command), Err(Trouble::Failed(_))));
        assert!(matches!(ended(None, command), Err(Trouble::Failed(_))));
    }
}
