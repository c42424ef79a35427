//! What each fuzz target checks, for cargo-fuzz (`make fuzz`) and for tests/parsers.rs.
//!
//! A body takes any bytes and panics where a parser breaks its promise.

use dovecot_replication::cli::client::{LINE_BYTES_MAX, ask, request};
use dovecot_replication::cli::{Kind, row, show};
use dovecot_replication::engine::strescape::{append_tabescaped, split_tabescaped, tabunescape};
use dovecot_replication::engine::{
    LINE_MAX_BYTES, Priority, REPLY_MAX_BYTES, SYNC_TIMEOUT_MAX, SyncReplyReader,
    notification_line, parse_sync_timeout,
};

/// A target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 5] = [
    ("strescape", strescape),
    ("notification_line", notification),
    ("sync_timeout", sync_timeout),
    ("sync_reply", sync_reply),
    ("replicator_answer", replicator_answer),
];

/// Escaping is undone by unescaping, whatever the bytes, and leaves nothing that ends a field.
pub fn strescape(data: &[u8]) {
    let mut line = Vec::new();
    append_tabescaped(&mut line, data);
    assert!(
        !line
            .iter()
            .any(|byte| matches!(byte, 0 | b'\t' | b'\r' | b'\n'))
    );
    assert_eq!(tabunescape(&line), data);
    assert!(tabunescape(data).len() <= data.len());
    assert_eq!(
        split_tabescaped(data).count(),
        data.iter().filter(|b| **b == b'\t').count() + 1
    );
}

/// A line has two fields, one LF, and fits into one atomic write.
pub fn notification(data: &[u8]) {
    if let Some(line) = notification_line(data, Priority::High) {
        assert!(line.len() <= LINE_MAX_BYTES);
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let fields: Vec<_> = split_tabescaped(line.strip_suffix(b"\n").unwrap()).collect();
        assert_eq!(fields, [data.to_vec(), b"high".to_vec()]);
    }
}

/// Any value is a bounded timeout or an error that names the value.
pub fn sync_timeout(data: &[u8]) {
    match parse_sync_timeout(data) {
        Ok(timeout) => assert!(timeout.is_none_or(|t| !t.is_zero() && t <= SYNC_TIMEOUT_MAX)),
        Err(error) => assert!(error.to_string().contains(&*String::from_utf8_lossy(data))),
    }
}

/// However an answer is cut, the result is the same.
pub fn sync_reply(data: &[u8]) {
    let whole = SyncReplyReader::default().handle_bytes(data);
    let mut reader = SyncReplyReader::default();
    let mut bytewise = Ok(None);
    for byte in data {
        bytewise = reader.handle_bytes(std::slice::from_ref(byte));
        if bytewise != Ok(None) {
            break;
        }
    }
    if data.len() < REPLY_MAX_BYTES {
        assert_eq!(whole, bytewise);
    }
}

/// An answer of any bytes ends in rows of the right width or in an error that has an exit code.
pub fn replicator_answer(data: &[u8]) {
    let answer = [b"VERSION\treplicator-doveadm-server\t1\t0\n", data].concat();
    let mut sent = Vec::new();
    let result = ask(
        answer.as_slice(),
        &mut sent,
        &request(&[b"SHOW", data]),
        |fields| {
            assert!(fields.iter().map(Vec::len).sum::<usize>() <= LINE_BYTES_MAX);
            for (column, value) in show::COLUMNS.iter().zip(row(show::COLUMNS, fields)) {
                let text = column.kind.for_people(&value, 1_700_000_000);
                assert!(!text.is_empty());
                assert!(column.kind != Kind::Flag || text.len() == 1);
            }
        },
    );
    assert_eq!(sent.iter().filter(|byte| **byte == b'\n').count(), 2);
    if let Err(error) = result {
        assert!((64..=78).contains(&error.exit_code()));
        assert!(!error.to_string().is_empty());
    }
}
