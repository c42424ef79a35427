//! Dovecot's ABI version: whether a build for one release may run in another.

/// Whether both are one ABI. Source: Dovecot, `src/lib/module-dir.c`; what stands in parentheses is a comment.
#[must_use]
pub fn is_same_abi(one: &[u8], other: &[u8]) -> bool {
    fn number(version: &[u8]) -> Option<&[u8]> {
        version.split(|&byte| byte == b'(').next()
    }
    number(one) == number(other)
}

#[cfg(test)]
mod tests {
    use super::is_same_abi;

    #[test]
    fn what_stands_in_parentheses_is_not_compared() {
        assert!(is_same_abi(b"2.3.ABIv19(2.3.19.1)", b"2.3.ABIv19(2.3.19)"));
        assert!(is_same_abi(b"2.4.ABIv1", b"2.4.ABIv1(2.4.1)"));
        assert!(!is_same_abi(b"2.4.ABIv1", b"2.4.ABIv10"));
        assert!(!is_same_abi(b"2.3.ABIv13(2.3)", b"2.3.ABIv19(2.3)"));
        assert!(!is_same_abi(b"", b"2.4.ABIv1"));
    }
}
