//! Dovecot's tab-escaping, with which fields are put on a line.
//!
//! NUL, \001, tab, CR and LF become \001 followed by `0`, `1`, `t`, `r` and `n`.
//! Source: Dovecot, `src/lib/strescape.c`. An unknown escape yields the byte after \001, a \001 at
//! the end of a field yields nothing, both as Dovecot does.

const ESCAPE: u8 = 0x01;

const fn escape_of(byte: u8) -> Option<u8> {
    match byte {
        0 => Some(b'0'),
        ESCAPE => Some(b'1'),
        b'\t' => Some(b't'),
        b'\r' => Some(b'r'),
        b'\n' => Some(b'n'),
        _ => None,
    }
}

const fn unescape(byte: u8) -> u8 {
    match byte {
        b'0' => 0,
        b'1' => ESCAPE,
        b't' => b'\t',
        b'r' => b'\r',
        b'n' => b'\n',
        other => other,
    }
}

/// Appends `field` to `line`, escaped.
pub fn append_tabescaped(line: &mut Vec<u8>, field: &[u8]) {
    let mut rest = field;
    while let Some(at) = rest.iter().position(|&byte| escape_of(byte).is_some()) {
        let (plain, escaped) = rest.split_at(at);
        line.extend_from_slice(plain);
        let letter = escaped.first().and_then(|&byte| escape_of(byte));
        line.extend(letter.into_iter().flat_map(|letter| [ESCAPE, letter]));
        rest = escaped.get(1..).unwrap_or_default();
    }
    line.extend_from_slice(rest);
}

/// The field that was escaped to `field`.
#[must_use]
pub fn tabunescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some(at) = rest.iter().position(|&byte| byte == ESCAPE) {
        let (unescaped, escape) = rest.split_at(at);
        plain.extend_from_slice(unescaped);
        plain.extend(escape.get(1).map(|&letter| unescape(letter)));
        rest = escape.get(2..).unwrap_or_default();
    }
    plain.extend_from_slice(rest);
    plain
}

/// The longest begin of `part` that can be unescaped by itself: without a \\001 at its end whose second byte is
/// yet to come.
#[must_use]
pub fn without_half_escape(part: &[u8]) -> &[u8] {
    let run = part
        .iter()
        .rev()
        .take_while(|&&byte| byte == ESCAPE)
        .count();
    // \001\001 is an escape by itself, though an odd one.
    part.get(..part.len() - run % 2).unwrap_or_default()
}

/// The unescaped fields of a line (without its LF). An empty line has one empty field.
pub fn split_tabescaped(line: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    line.split(|&byte| byte == b'\t').map(tabunescape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_survives_escape_and_split() {
        let all: Vec<u8> = (0..=255).collect();
        let mut line = Vec::new();
        append_tabescaped(&mut line, &all);
        assert!(!line.iter().any(|b| matches!(b, 0 | b'\t' | b'\r' | b'\n')));
        line.push(b'\t');
        append_tabescaped(&mut line, b"low");
        let fields: Vec<_> = split_tabescaped(&line).collect();
        assert_eq!(fields, [all, b"low".to_vec()]);
    }

    #[test]
    fn odd_escapes_are_read_as_dovecot_reads_them() {
        assert_eq!(tabunescape(b"a\x01x\x01"), b"ax");
        assert_eq!(split_tabescaped(b"").collect::<Vec<_>>(), [b"".to_vec()]);
        assert_eq!(split_tabescaped(b"\t").count(), 2);
    }
}
