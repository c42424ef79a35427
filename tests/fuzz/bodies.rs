//! What each fuzz target checks, for cargo-fuzz (`make fuzz`) and for tests/parsers.rs.
//!
//! A body takes any bytes and panics where a parser breaks its promise.

use dovecot_replication::cli::client::{Client, LINE_BYTES_MAX, ROWS_MAX, request};
use dovecot_replication::cli::{Kind, row, show, status};
use dovecot_replication::engine::aggregator::line::{
    LineSplitter, MAX_USERNAME, Step, parse_notification,
};
use dovecot_replication::engine::aggregator::{journal, link::Link};
use dovecot_replication::engine::healing::{hostname_in_handshake, is_ended_after_handshake};
use dovecot_replication::engine::protocol::doveadm_command::{self, CommandReader};
use dovecot_replication::engine::protocol::doveadm_json::{InvalidJson, JsonReader};
use dovecot_replication::engine::protocol::doveadm_server::{
    DoveadmReader, Event, MAX_STATE_BYTES,
};
use dovecot_replication::engine::protocol::replicator_doveadm::RequestReader;
use dovecot_replication::engine::protocol::replicator_notify::NotifyReader;
use dovecot_replication::engine::protocol::userdb::UserdbReader;
use dovecot_replication::engine::replicator::wildcard_match;
use dovecot_replication::engine::strescape::{append_tabescaped, split_tabescaped, tabunescape};
use dovecot_replication::engine::verify::{FETCH_COLUMNS, Mail, RowReader, VALUE_BYTES_MAX};
use dovecot_replication::engine::{
    LINE_MAX_BYTES, Priority, REPLY_MAX_BYTES, SYNC_TIMEOUT_MAX, SyncReplyReader,
    notification_line, parse_sync_timeout, time::Mono,
};

/// A target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 17] = [
    ("strescape", strescape),
    ("notification_line", notification),
    ("sync_timeout", sync_timeout),
    ("sync_reply", sync_reply),
    ("replicator_answer", replicator_answer),
    ("aggregator_line", aggregator_line),
    ("aggregator_journal", aggregator_journal),
    ("aggregator_link", aggregator_link),
    ("replicator_notify", replicator_notify),
    ("replicator_doveadm", replicator_doveadm),
    ("userdb", userdb),
    ("doveadm_server", doveadm_server),
    ("doveadm_command", doveadm_command),
    ("doveadm_json", doveadm_json),
    ("dsync_handshake", dsync_handshake),
    ("verify_rows", verify_rows),
    ("mask", mask),
];

/// What a reader makes of a stream that comes in pieces of `size` bytes, up to its first error.
macro_rules! read_in_pieces {
    ($reader:ty, $next:ident, $stream:expr, $size:expr) => {{
        let mut reader = <$reader>::new();
        let mut seen = Vec::new();
        'stream: for piece in $stream.chunks($size) {
            reader.push(piece);
            loop {
                match reader.$next() {
                    Ok(None) => break,
                    Ok(Some(event)) => seen.push(Ok(event)),
                    Err(error) => {
                        seen.push(Err(error));
                        break 'stream;
                    }
                }
            }
        }
        seen
    }};
}

/// Short input comes byte by byte, long input in a bounded number of pieces: looking again and again at
/// a line that grows takes time.
fn piece(data: &[u8]) -> usize {
    1 + data.len() / 64
}

/// The bytes as they are, and behind a greeting, which chance does not find.
fn with_greeting(greeting: &[u8], data: &[u8]) -> [Vec<u8>; 2] {
    [data.to_vec(), [greeting, data].concat()]
}

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
    let result = Client::greet(answer.as_slice(), &mut sent).and_then(|client| {
        client.ask(&request(&[b"SHOW", data]), ROWS_MAX, |fields| {
            assert!(fields.iter().map(Vec::len).sum::<usize>() <= LINE_BYTES_MAX);
            if let Some(row) = status::user_row(&fields, 1_700_000_000) {
                assert_eq!(row.len(), status::COLUMNS.len());
            }
            for (column, value) in show::COLUMNS.iter().zip(row(show::COLUMNS, fields)) {
                let text = column.kind.for_people(&value, 1_700_000_000);
                assert!(!text.is_empty());
                assert!(column.kind != Kind::Flag || text.len() == 1);
            }
        })
    });
    let ordered = Client::greet(answer.as_slice(), std::io::sink())
        .and_then(|client| client.order(b"ADD\t*\n"));
    assert_eq!(
        ordered.is_ok(),
        data.starts_with(b"+") && data.contains(&b'\n')
    );
    assert_eq!(sent.iter().filter(|byte| **byte == b'\n').count(), 2);
    for error in [result.err(), ordered.err()].into_iter().flatten() {
        assert!((64..=78).contains(&error.exit_code()));
        assert!(!error.to_string().is_empty());
    }
}

/// What is in the fifo is the same notifications however it is cut, and each is fit to be kept.
pub fn aggregator_line(data: &[u8]) {
    let whole = fifo_lines(data, data.len().max(1));
    assert_eq!(whole, fifo_lines(data, piece(data)));
    for line in whole.iter().flatten() {
        if let Ok(Some(notification)) = parse_notification(line) {
            let name = notification.username;
            assert!(!name.is_empty() && name.len() <= MAX_USERNAME && !name.contains(&0));
            assert!(std::str::from_utf8(&name).is_ok());
            assert!(notification.priority > Priority::None);
        }
    }
}

/// The lines, `None` for each that is too long.
fn fifo_lines(data: &[u8], size: usize) -> Vec<Option<Vec<u8>>> {
    let mut splitter = LineSplitter::default();
    let mut lines = Vec::new();
    let mut stream: Vec<u8> = Vec::new();
    for piece in data.chunks(size) {
        stream.extend_from_slice(piece);
        loop {
            let taken = match splitter.step(&stream) {
                Step::Incomplete => break,
                Step::Line(line) => {
                    lines.push(Some(line.to_vec()));
                    line.len() + 1
                }
                Step::TooLong(bytes) => {
                    lines.push(None);
                    bytes
                }
                Step::Skip(bytes) => bytes,
            };
            assert!(taken > 0 && taken <= stream.len());
            stream.drain(..taken);
        }
    }
    lines
}

/// Damage is found, and what was written comes back whatever stands before it.
pub fn aggregator_journal(data: &[u8]) {
    let mut journal = [data, b"\n"].concat();
    let before = journal::records(&journal).count();
    journal::append_put(&mut journal, data, Priority::Sync);
    journal::append_done(&mut journal, data);
    let added: Vec<_> = journal::records(&journal).skip(before).collect();
    let expected = [
        Some(journal::Record::Put(data.to_vec(), Priority::High)),
        Some(journal::Record::Done(data.to_vec())),
    ];
    assert_eq!(added, expected);
}

/// However the replicator's answers are cut, they say the same.
pub fn aggregator_link(data: &[u8]) {
    let read = |size: usize| {
        let mut link = Link::new(Mono(0));
        let mut replies = Vec::new();
        let mut pieces = data.chunks(size);
        let error = pieces.find_map(|piece| link.handle_input(piece, &mut replies).err());
        (replies, error)
    };
    assert_eq!(read(data.len().max(1)), read(piece(data)));
}

/// However an aggregator's lines are cut, they say the same.
pub fn replicator_notify(data: &[u8]) {
    for stream in with_greeting(b"VERSION\treplicator-notify\t1\t1\n", data) {
        let whole = read_in_pieces!(NotifyReader, next_request, stream, stream.len().max(1));
        assert_eq!(
            whole,
            read_in_pieces!(NotifyReader, next_request, stream, piece(data))
        );
    }
}

/// However a client's requests are cut, they say the same.
pub fn replicator_doveadm(data: &[u8]) {
    for stream in with_greeting(b"VERSION\treplicator-doveadm-client\t1\t0\n", data) {
        let whole = read_in_pieces!(RequestReader, next_request, stream, stream.len().max(1));
        assert_eq!(
            whole,
            read_in_pieces!(RequestReader, next_request, stream, piece(data))
        );
    }
}

/// However the auth server's answers are cut, they say the same.
pub fn userdb(data: &[u8]) {
    for stream in with_greeting(b"VERSION\t1\t2\n", data) {
        let whole = read_in_pieces!(UserdbReader, next_event, stream, stream.len().max(1));
        assert_eq!(
            whole,
            read_in_pieces!(UserdbReader, next_event, stream, piece(data))
        );
    }
}

/// However doveadm-server's answer is cut, it says the same; only log lines may come sooner.
pub fn doveadm_server(data: &[u8]) {
    let plain = with_greeting(b"+\n", data);
    let multiplexed = [b"VERSION\tdoveadm-client\t1\t1\n+\n", data].concat();
    for stream in plain.into_iter().chain([multiplexed]) {
        let read = |size: usize| {
            let mut seen = read_in_pieces!(DoveadmReader, next_event, stream, size);
            seen.retain(|event| !matches!(event, Ok(Event::Error(_))));
            seen
        };
        let whole = read(stream.len().max(1));
        for event in &whole {
            if let Ok(Event::Finished(reply)) = event {
                assert!(reply.state.len() <= MAX_STATE_BYTES);
            }
        }
        assert_eq!(whole, read(piece(data)));
    }
}

/// However a command's answer is cut, its values and its result are the same.
pub fn doveadm_command(data: &[u8]) {
    use doveadm_command::Event::{Error, Part};
    let plain = with_greeting(b"+\n", data);
    let multiplexed = [b"VERSION\tdoveadm-client\t1\t1\n+\n", data].concat();
    for stream in plain.into_iter().chain([multiplexed]) {
        let read = |size: usize| {
            let (mut values, mut others) = (Vec::new(), Vec::new());
            for event in read_in_pieces!(CommandReader, next_event, stream, size) {
                match event {
                    Ok(Part { bytes, ends }) => {
                        values.extend_from_slice(&bytes);
                        if ends {
                            values.push(b'\n');
                        }
                    }
                    Ok(Error(_)) => {}
                    other => others.push(other),
                }
            }
            (values, others)
        };
        assert_eq!(read(stream.len().max(1)), read(piece(data)));
    }
}

/// However JSON is cut, its values are the same.
pub fn doveadm_json(data: &[u8]) {
    for output in with_greeting(b"[{\"mailbox\":\"", data) {
        let read = |size: usize| {
            let (mut reader, mut values) = (JsonReader::new(), Vec::new());
            let result = output.chunks(size).try_for_each(|piece| {
                reader.push(piece, |value| {
                    values.push(value.to_vec());
                    Ok::<_, InvalidJson>(())
                })
            });
            (values, result.map(|()| reader.is_whole()))
        };
        assert_eq!(read(output.len().max(1)), read(piece(data)));
    }
}

/// However values are cut, the rows and the mails in them are the same.
pub fn verify_rows(data: &[u8]) {
    for has_text in [false, true] {
        let read = |size: usize| {
            let mut reader = RowReader::new(FETCH_COLUMNS, has_text);
            let mut mails = Vec::new();
            for value in data.split(|&byte| byte == b'\t') {
                let mut pieces = value.chunks(size).peekable();
                while let Some(part) = pieces.next() {
                    match reader.push(part, pieces.peek().is_none()) {
                        Ok(None) => {}
                        Ok(Some(row)) => {
                            assert!(
                                row.values
                                    .iter()
                                    .all(|value| value.len() <= VALUE_BYTES_MAX)
                            );
                            mails.push(
                                Mail::of_row(row)
                                    .map(|(mailbox, mail)| (mailbox, mail.digest(), mail)),
                            );
                        }
                        Err(error) => return (mails, Err(error)),
                    }
                }
            }
            (mails, Ok(()))
        };
        assert_eq!(read(data.len().max(1)), read(piece(data)));
    }
}

/// What is found once stays found, however much more has come, and a handshake is found behind any beginning.
pub fn dsync_handshake(data: &[u8]) {
    let found = hostname_in_handshake(data);
    let ended = is_ended_after_handshake(data);
    let more = [data, b"\nHnode\t\nX\n"].concat();
    let later = hostname_in_handshake(&more);
    assert!(later.is_some() && (found.is_none() || found == later));
    assert!(ended.is_none() || is_ended_after_handshake(&more).is_some());
}

/// A mask of `*` is for everybody, and a name without wildcards for itself.
pub fn mask(data: &[u8]) {
    let (text, mask) = data.split_at(data.len() / 2);
    let _any = wildcard_match(text, mask);
    assert!(wildcard_match(text, b"*"));
    if !text.iter().any(|byte| matches!(byte, b'*' | b'?')) {
        assert!(wildcard_match(text, text));
    }
}
