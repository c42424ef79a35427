//! User masks: `*` is any run of bytes, `?` any one byte, all else is itself, case matters.
//!
//! Matches what Dovecot's `wildcard_match()` matches, in linear space and without recursion.

/// Whether `mask` has a wildcard at all; without one it names one user.
#[must_use]
pub fn has_wildcards(mask: &[u8]) -> bool {
    mask.iter().any(|byte| matches!(byte, b'*' | b'?'))
}

/// Whether all of `name` matches `mask`.
#[must_use]
pub fn wildcard_match(name: &[u8], mask: &[u8]) -> bool {
    let (mut at, mut mask_at) = (0, 0);
    // Where to go on when the bytes after the last star do not fit.
    let mut retry: Option<(usize, usize)> = None;
    while let Some(&byte) = name.get(at) {
        match mask.get(mask_at) {
            Some(b'*') => {
                mask_at += 1;
                retry = Some((at, mask_at));
            }
            Some(&wanted) if wanted == b'?' || wanted == byte => {
                at += 1;
                mask_at += 1;
            }
            _ => {
                let Some((name_from, mask_from)) = retry else {
                    return false;
                };
                at = name_from + 1;
                mask_at = mask_from;
                retry = Some((at, mask_from));
            }
        }
    }
    mask.iter().skip(mask_at).all(|&byte| byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_match_as_in_dovecot() {
        for (name, mask, matches) in [
            ("", "", true),
            ("", "*", true),
            ("", "?", false),
            ("a", "", false),
            ("u1", "*", true),
            ("u1", "u?", true),
            ("u12", "u?", false),
            ("u12@x", "*@x", true),
            ("u12@x", "*@y", false),
            ("aXbXc", "a*X*c", true),
            ("aab", "*ab", true),
            ("abab", "*ab", true),
            ("ab", "**b**", true),
            ("U1", "u1", false),
            ("a*b", "a*b", true),
        ] {
            assert_eq!(
                wildcard_match(name.as_bytes(), mask.as_bytes()),
                matches,
                "{name} {mask}"
            );
        }
    }

    #[test]
    fn a_mask_of_many_stars_takes_no_exponential_time() {
        let name = vec![b'a'; 2000];
        let mut mask = b"*a".repeat(500);
        mask.push(b'b');
        assert!(!wildcard_match(&name, &mask));
    }
}
