//! What a sync begins from that follows one that was cut off.

use super::*;
use crate::engine::sync_state::{Mailbox, with_mailboxes};

const MAILBOXES: &[u8] = b"INBOX\t2\t7\t501\t2dfc463769de056b0d1f0000a2b40ce4\t\n+\n";

/// The first sync of a user, which is cut off, and the next one.
fn first_syncs(mailboxes: &'static [u8]) -> [String; 2] {
    let setup = Setup::with_peer(&["u1"]);
    *setup.neighbours.mailboxes.lock().unwrap() = mailboxes;
    let mut times = 0;
    setup.answer(move |_| {
        times += 1;
        match times {
            1 => Answer::Close,
            _ => Answer::Reply(b"NEW\t\n+\n"),
        }
    });
    let mut running = setup.start();
    let first = running.run_until("a sync", |_| setup.requests.try_recv().ok());
    let second = running.run_until("another", |_| setup.requests.try_recv().ok());
    running.wait_quiet(&setup, 0);
    [first, second]
}

#[test]
fn user_without_a_state_is_synced_from_its_mailboxes_after_a_cut() {
    let guid = 0x2dfc_4637_69de_056b_0d1f_0000_a2b4_0ce4_u128.to_be_bytes();
    let inbox = Mailbox {
        guid,
        uidvalidity: 7,
        had_mail: true,
        modseq: 1,
    };
    let state = with_mailboxes(b"", &[inbox]).unwrap();
    let state = String::from_utf8(state).unwrap();
    // Of another one there may be no answer.
    let some = b"INBOX\t2\t7\t1\t2dfc463769de056b0d1f0000a2b40ce4\t\n-TEMPFAIL\n";
    for mailboxes in [MAILBOXES, some] {
        let [first, second] = first_syncs(mailboxes);
        assert!(first.contains("\t-f\t"), "{first}");
        assert!(second.ends_with(&format!("\t-s\t{state}")), "{second}");
        assert!(!second.contains("\t-f\t"), "{second}");
    }
}

#[test]
fn mailboxes_that_cannot_be_listed_keep_no_sync_from_beginning() {
    for mailboxes in [&b"\n-TEMPFAIL\n"[..], b"INBOX\tx\tx\tx\tx\t\n+\n", b""] {
        for request in first_syncs(mailboxes) {
            assert!(request.contains("\t-f\t"), "{request}");
        }
    }
}
