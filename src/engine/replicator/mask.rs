//! A mask of usernames, as Dovecot's `wildcard_match` takes it: `*` any bytes, `?` one byte, upper and lower case apart.

/// Whether the mask has a wildcard; one without names a single user.
#[must_use]
pub fn has_wildcard(mask: &[u8]) -> bool {
    mask.iter().any(|byte| matches!(byte, b'*' | b'?'))
}

/// Whether the whole of `text` matches `mask`. Takes time proportional to the product of the lengths at most.
#[must_use]
pub fn wildcard_match(text: &[u8], mask: &[u8]) -> bool {
    let (mut text_rest, mut mask_rest) = (text, mask);
    // After a `*`: the mask behind it, and the text where the next try begins.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        match (mask_rest.split_first(), text_rest.split_first()) {
            (Some((b'*', after)), _) => {
                mask_rest = after;
                retry = Some((after, text_rest));
                continue;
            }
            (Some((wanted, mask_after)), Some((byte, text_after)))
                if *wanted == b'?' || wanted == byte =>
            {
                mask_rest = mask_after;
                text_rest = text_after;
                continue;
            }
            (None, None) => return true,
            _ => {}
        }
        match retry {
            Some((after, [_, from @ ..])) => {
                mask_rest = after;
                text_rest = from;
                retry = Some((after, from));
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_match_as_dovecots_do() {
        for (text, mask, matches) in [
            ("", "", true),
            ("", "*", true),
            ("", "?", false),
            ("u1", "u1", true),
            ("u1", "U1", false),
            ("u1", "*", true),
            ("u1@example.com", "*@example.com", true),
            ("u1@example.org", "*@example.com", false),
            ("u10", "u?", false),
            ("u1", "u?", true),
            ("u", "u?", false),
            ("abcabd", "*ab?", true),
            ("abcabc", "*abd*", false),
            ("aaab", "a*b", true),
            ("ab", "a**b", true),
            ("a", "a*", true),
            ("a", "", false),
        ] {
            assert_eq!(
                wildcard_match(text.as_bytes(), mask.as_bytes()),
                matches,
                "{text} {mask}"
            );
        }
    }

    #[test]
    fn hostile_mask_ends_soon() {
        let text = [b'a'; 1024];
        let mask = b"*a".repeat(200);
        assert!(wildcard_match(&text, &mask));
        let mut mask = mask;
        mask.push(b'b');
        assert!(!wildcard_match(&text, &mask));
    }

    #[test]
    fn only_stars_and_question_marks_are_wildcards() {
        assert!(has_wildcard(b"u*") && has_wildcard(b"u?"));
        assert!(!has_wildcard(b"u[1]%"));
    }
}
