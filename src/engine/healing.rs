//! What is said when something was healed in the middle of a dsync, by the process that did it.
//!
//! The replicator reads what its dsyncs log, and counts by these words.

const GUID_TAKEN: &str = "was made on both nodes, with two GUIDs: ";

/// The mailbox was there before dsync came to create the peer's, and has taken the peer's GUID.
#[must_use]
pub fn guid_taken(mailbox: &str, guid: [u8; 16]) -> String {
    let guid: String = guid.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("Mailbox {mailbox} {GUID_TAKEN}{guid}, the higher one, is taken from the other node")
}

/// Whether a line that dsync logged says so.
#[must_use]
pub fn says_guid_taken(line: &str) -> bool {
    line.contains(GUID_TAKEN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_guid_is_known_by_its_line() {
        let line = guid_taken("a b", [0xab; 16]);
        assert!(line.starts_with("Mailbox a b was made on both nodes"));
        assert!(line.contains(&"ab".repeat(16)));
        assert!(says_guid_taken(&line));
        assert!(!says_guid_taken("Mailbox a b: Mailbox opened"));
    }
}
