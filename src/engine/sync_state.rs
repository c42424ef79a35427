//! dsync's incremental state, as far as we must know it: which mails of each mailbox both nodes had in common, and up to which change.
//!
//! Format of 2.3 and 2.4 (`dsync-mailbox-state.c`): base64 of a header (major version 1, three more bytes), a record for each mailbox
//! and the CRC-32 of all before it. A record has GUID, UIDVALIDITY, last common UID, last common modseq, the same of
//! private flags, and how many mails there were; numbers are little-endian.

use std::collections::HashSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const HEADER: usize = 4;
const RECORD: usize = 44;
const CRC: usize = 4;
const MAJOR_VERSION: u8 = 1;
const GUID: std::ops::Range<usize> = 0..16;
const LAST_COMMON_UID: std::ops::Range<usize> = 20..24;
const MODSEQS: std::ops::Range<usize> = 24..40;

/// A mailbox's.
pub type Guid = [u8; 16];

/// A mailbox that is put into a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// Its GUID.
    pub guid: Guid,
    /// Its UIDVALIDITY.
    pub uidvalidity: u32,
    /// Whether there ever was a mail in it. One without has none to lose, and dsync is to align its UIDVALIDITY.
    pub had_mail: bool,
    /// One that both nodes' transaction logs of it reach back to, and that both have had.
    pub modseq: u64,
}

impl Mailbox {
    /// With the modseq that every mailbox has had.
    pub const fn begin_with_first(&mut self) {
        self.modseq = 1;
    }

    /// In which all mails up to `uid`, which may be none, are common.
    fn append_to(&self, body: &mut Vec<u8>, uid: u32, modseq: u64) {
        body.extend(self.guid);
        body.extend(self.uidvalidity.to_le_bytes());
        body.extend(uid.to_le_bytes());
        body.extend(modseq.to_le_bytes());
        // Of private flags, and how many mails there were.
        body.extend(0_u64.to_le_bytes());
        body.extend(0_u32.to_le_bytes());
    }
}

/// The longest state that this makes, in bytes.
pub const MAX_BYTES: usize = crate::engine::protocol::doveadm_server::MAX_STATE_BYTES;

/// What is in a state, without its checksum.
fn body_of(state: &[u8]) -> Option<Vec<u8>> {
    let mut data = STANDARD.decode(state).ok()?;
    let sum = data.split_off(data.len().checked_sub(CRC)?);
    let is_whole = sum == crc32fast::hash(&data).to_le_bytes();
    let records = data.len().checked_sub(HEADER)?;
    let is_known = data.first() == Some(&MAJOR_VERSION) && records % RECORD == 0;
    (is_whole && is_known).then_some(data)
}

/// The same, where an empty state is one of no mailbox.
fn body_or_empty(state: &[u8]) -> Option<Vec<u8>> {
    match state {
        [] => Some(vec![MAJOR_VERSION, 0, 0, 0]),
        state => body_of(state),
    }
}

fn encoded(mut body: Vec<u8>) -> Vec<u8> {
    let sum = crc32fast::hash(&body);
    body.extend(sum.to_le_bytes());
    STANDARD.encode(&body).into_bytes()
}

/// Whether the state is one of a user without mailboxes.
#[must_use]
pub fn has_no_mailbox(state: &[u8]) -> bool {
    body_of(state).is_some_and(|body| body.len() == HEADER)
}

/// The state with these mailboxes added that it does not have, if there was mail in them, as ones without a common mail: all that one side does
/// not have is new. Of a mailbox that is not in the state dsync looks for common mails by itself, and may take a mail for expunged.
/// `state` may be empty. None: this is no state that we know, or it would be too long.
///
/// dsync takes a mailbox for one that is in the state by a last common UID or modseq other than 0. All changes since the modseq
/// are to be in the mailbox's transaction log, else dsync says so (`Modseq 1 no longer in transaction log`), and wants to be run without the state; as it does with
/// one that a node has not come to. The log begins anew where Maildir changes the UIDVALIDITY.
#[must_use]
pub fn with_mailboxes(state: &[u8], mailboxes: &[Mailbox]) -> Option<Vec<u8>> {
    let mut body = body_or_empty(state)?;
    let records = body.get(HEADER..)?.chunks_exact(RECORD);
    let mut known: HashSet<Guid> = records
        .filter_map(|record| record.get(GUID)?.try_into().ok())
        .collect();
    for mailbox in mailboxes.iter().filter(|mailbox| mailbox.had_mail) {
        if known.insert(mailbox.guid) {
            // 0 would be none.
            mailbox.append_to(&mut body, 0, mailbox.modseq.max(1));
        }
    }
    short_enough(encoded(body))
}

fn short_enough(state: Vec<u8>) -> Option<Vec<u8>> {
    (state.len() <= MAX_BYTES).then_some(state)
}

/// The state in which these mailboxes, if there was mail in them, are ones whose first mail is the only common one, with a modseq of 0, and are not if there
/// was none. The rest of `state`, which may be empty, stays. None: this is no state that we know, or it would be too long.
///
/// dsync goes on from that whatever is left of transaction logs, and however far back a node is, as long as both have had a mail of that UID, and the
/// same: that it compares.
#[must_use]
pub fn from_first_mails(state: &[u8], mailboxes: &[Mailbox]) -> Option<Vec<u8>> {
    const FIRST: u32 = 1;
    let old = body_or_empty(state)?;
    let (header, records) = old.split_at_checked(HEADER)?;
    let listed: HashSet<Guid> = mailboxes.iter().map(|mailbox| mailbox.guid).collect();
    let mut body = header.to_vec();
    for record in records.chunks_exact(RECORD) {
        let guid: Guid = record.get(GUID)?.try_into().ok()?;
        if !listed.contains(&guid) {
            body.extend(record);
        }
    }
    let mut added = HashSet::new();
    for mailbox in mailboxes.iter().filter(|mailbox| mailbox.had_mail) {
        if added.insert(mailbox.guid) {
            mailbox.append_to(&mut body, FIRST, 0);
        }
    }
    short_enough(encoded(body))
}

/// The state with which dsync looks at the flags of all mails, as a full sync does, but goes on from the mails that are known to be common: what one
/// side does not have above them is new, and never taken for expunged. None: this is no state that we know.
///
/// A modseq of 0 makes dsync send all mails. Where there is no common mail it stays: dsync, too, would look for them from the beginning.
#[must_use]
pub fn without_modseqs(state: &[u8]) -> Option<Vec<u8>> {
    let mut body = body_of(state)?;
    for record in body.get_mut(HEADER..)?.chunks_exact_mut(RECORD) {
        if record.get(LAST_COMMON_UID)? != [0; 4] {
            record.get_mut(MODSEQS)?.fill(0);
        }
    }
    Some(encoded(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(body: &[u8]) -> Vec<u8> {
        super::encoded(body.to_vec())
    }

    fn body(uids: &[u32], modseq: u64) -> Vec<u8> {
        let mut body = vec![MAJOR_VERSION, 0, 0, 0];
        for uid in uids {
            body.extend([7; 16]);
            body.extend(1_000_u32.to_le_bytes());
            body.extend(uid.to_le_bytes());
            body.extend(modseq.to_le_bytes());
            body.extend(modseq.to_le_bytes());
            body.extend(5_u32.to_le_bytes());
        }
        body
    }

    #[test]
    fn modseqs_become_0_where_mails_are_common_and_all_else_stays() {
        let mut wanted = body(&[3], 0);
        wanted.extend_from_slice(&body(&[0], 9)[HEADER..]);
        wanted.extend_from_slice(&body(&[u32::MAX], 0)[HEADER..]);
        let state = encoded(&body(&[3, 0, u32::MAX], 9));
        assert_eq!(without_modseqs(&state), Some(encoded(&wanted)));
        let empty = encoded(&body(&[], 0));
        assert_eq!(without_modseqs(&empty), Some(empty));
    }

    #[test]
    fn mailboxes_that_are_not_in_the_state_are_added_once() {
        let record = |guid: u8, uidvalidity: u32, modseq: u8| {
            let mut record = vec![guid; 16];
            record.extend(uidvalidity.to_le_bytes());
            record.extend([0; 4]);
            record.extend([modseq, 0, 0, 0, 0, 0, 0, 0]);
            record.extend([0; 12]);
            record
        };
        let mailbox = |guid, uidvalidity, modseq| Mailbox {
            guid,
            uidvalidity,
            had_mail: true,
            modseq,
        };
        let mailboxes = [
            mailbox([7; 16], 1, 0),
            mailbox([8; 16], 2, 12),
            mailbox([8; 16], 2, 12),
            Mailbox {
                had_mail: false,
                ..mailbox([9; 16], 3, 1)
            },
        ];
        let wanted = [body(&[3], 9), record(8, 2, 12)].concat();
        let state = encoded(&body(&[3], 9));
        assert_eq!(with_mailboxes(&state, &mailboxes), Some(encoded(&wanted)));
        let wanted = [body(&[], 0), record(7, 1, 1), record(8, 2, 12)].concat();
        assert_eq!(with_mailboxes(b"", &mailboxes), Some(encoded(&wanted)));
        assert_eq!(with_mailboxes(b"AAAAAA==", &mailboxes), None);
        assert!(has_no_mailbox(&encoded(&body(&[], 0))));
        assert!(!has_no_mailbox(&state) && !has_no_mailbox(b""));
        let guid = |number: u32| u128::from(number).to_be_bytes();
        let many: Vec<Mailbox> = (0..100_000)
            .map(|number| mailbox(guid(number), 1, 1))
            .collect();
        assert_eq!(with_mailboxes(b"", &many), None);
    }

    #[test]
    fn first_mail_is_the_common_one_of_each_mailbox_that_had_any() {
        let mailbox = |guid: u8, had_mail| Mailbox {
            guid: [guid; 16],
            uidvalidity: 1_000,
            had_mail,
            modseq: 9,
        };
        let record = |guid: u8, uid: u32, modseq: u64| {
            let mut record = vec![guid; 16];
            record.extend(1_000_u32.to_le_bytes());
            record.extend(uid.to_le_bytes());
            record.extend(modseq.to_le_bytes());
            record.extend([0; 12]);
            record
        };
        let header = body(&[], 0);
        // Mails are in the state that the mailbox has no more, or never had; one is not this node's.
        let state = [
            header.clone(),
            record(7, 5, 20),
            record(8, 3, 20),
            record(9, 3, 20),
        ];
        let listed = [
            mailbox(7, true),
            mailbox(8, false),
            mailbox(10, true),
            mailbox(10, true),
        ];
        let wanted = [
            header.clone(),
            record(9, 3, 20),
            record(7, 1, 0),
            record(10, 1, 0),
        ];
        let made = from_first_mails(&encoded(&state.concat()), &listed);
        assert_eq!(made, Some(encoded(&wanted.concat())));
        let wanted = [header.clone(), record(7, 1, 0), record(10, 1, 0)];
        assert_eq!(
            from_first_mails(b"", &listed),
            Some(encoded(&wanted.concat()))
        );
        assert_eq!(from_first_mails(b"AAAAAA==", &listed), None);
    }

    #[test]
    fn what_is_no_state_is_none() {
        let state = encoded(&body(&[3], 9));
        for end in 0..state.len() {
            assert_eq!(without_modseqs(&state[..end]), None, "{end}");
        }
        let mut other_version = body(&[3], 9);
        other_version[0] = 2;
        assert_eq!(without_modseqs(&encoded(&other_version)), None);
        assert_eq!(without_modseqs(&encoded(&body(&[3], 9)[..40])), None);
        let mut wrong_sum = state.clone();
        wrong_sum[9] ^= 1;
        assert_eq!(without_modseqs(&wrong_sum), None);
        // The state of no mailbox that a version before 1 made.
        assert_eq!(without_modseqs(b"AAAAAA=="), None);
        assert_eq!(without_modseqs(b"\xff\xff\xff\xff"), None);
    }
}
