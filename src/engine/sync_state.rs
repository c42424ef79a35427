//! dsync's incremental state, as far as we must know it: which mails of each mailbox both nodes had in common, and up to which change.
//!
//! Format of 2.3 and 2.4 (`dsync-mailbox-state.c`): base64 of a header (major version 1, three more bytes), a record for each mailbox
//! and the CRC-32 of all before it. A record has GUID, UIDVALIDITY, last common UID, last common modseq, the same of
//! private flags, and how many mails there were; numbers are little-endian.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

const HEADER: usize = 4;
const RECORD: usize = 44;
const CRC: usize = 4;
const MAJOR_VERSION: u8 = 1;
const LAST_COMMON_UID: std::ops::Range<usize> = 20..24;
const MODSEQS: std::ops::Range<usize> = 24..40;

/// The state with which dsync looks at the flags of all mails, as a full sync does, but goes on from the mails that are known to be common: what one
/// side does not have above them is new, and never taken for expunged. None: this is no state that we know.
///
/// A modseq of 0 makes dsync send all mails. Where there is no common mail it stays: dsync, too, would look for them from the beginning.
#[must_use]
pub fn without_modseqs(state: &[u8]) -> Option<Vec<u8>> {
    let mut data = STANDARD.decode(state).ok()?;
    let end = data.len().checked_sub(CRC)?;
    let (body, sum) = data.split_at_mut_checked(end)?;
    if *sum != crc32fast::hash(body).to_le_bytes() || *body.first()? != MAJOR_VERSION {
        return None;
    }
    let records = body.get_mut(HEADER..)?;
    if records.len() % RECORD != 0 {
        return None;
    }
    for record in records.chunks_exact_mut(RECORD) {
        if record.get(LAST_COMMON_UID)? != [0; 4] {
            record.get_mut(MODSEQS)?.fill(0);
        }
    }
    sum.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
    Some(STANDARD.encode(&data).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(body: &[u8]) -> Vec<u8> {
        let mut data = body.to_vec();
        data.extend(crc32fast::hash(body).to_le_bytes());
        STANDARD.encode(&data).into_bytes()
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
