//! A replica's location: `tcp:host[:port]`, `tcps:...`, or a command.

/// Host and port of a `tcp:` or `tcps:` target, and whether TLS is spoken.
///
/// # Errors
///
/// The target is none of these, or has no port.
pub fn parse_target(target: &[u8], default_port: u16) -> Result<(String, u16, bool), String> {
    let text = std::str::from_utf8(target).map_err(|_| "not UTF-8".to_owned())?;
    let (rest, tls) = match (text.strip_prefix("tcps:"), text.strip_prefix("tcp:")) {
        (Some(rest), _) => (rest, true),
        (_, Some(rest)) => (rest, false),
        _ => return Err(format!("{text} is not a tcp: or tcps: target")),
    };
    let (host, port) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) = bracketed
                .split_once(']')
                .ok_or_else(|| format!("{rest}: missing ]"))?;
            (host, after.strip_prefix(':'))
        }
        None => match rest.rsplit_once(':') {
            // An address of IPv6 without brackets.
            Some((host, _)) if host.contains(':') => (rest, None),
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().map_err(|_| format!("{rest}: invalid port"))?,
        None => default_port,
    };
    if host.is_empty() || port == 0 {
        return Err(format!(
            "{rest}: no port is given and doveadm_port is not set"
        ));
    }
    Ok((host.to_owned(), port, tls))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_in_all_their_forms() {
        for (target, expected) in [
            ("tcp:a:12", Some(("a", 12, false))),
            ("tcps:a", Some(("a", 99, true))),
            ("tcp:[::1]:12", Some(("::1", 12, false))),
            ("tcp:[::1]", Some(("::1", 99, false))),
            ("tcp:::1", Some(("::1", 99, false))),
            ("tcp:a:x", None),
            ("tcp::12", None),
            ("remote:a", None),
        ] {
            let parsed = parse_target(target.as_bytes(), 99).ok();
            let expected = expected.map(|(host, port, tls)| (host.to_owned(), port, tls));
            assert_eq!(parsed, expected, "{target}");
        }
        assert!(parse_target(b"tcp:a", 0).is_err());
    }
}
