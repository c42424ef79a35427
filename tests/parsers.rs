//! The fuzz targets' bodies on seeded random input, in every `make test`; `make fuzz` goes deeper.

// A test may fail by panicking.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "fuzz/bodies.rs"]
mod bodies;

/// Pieces that parsers look for, so that random input gets past their first look.
const WORDS: [&[u8]; 34] = [
    b"\t",
    b"\n",
    b"\x01",
    b"\x01t",
    b"\0",
    b"+",
    b"-",
    b"+\n",
    b"U\t",
    b"sync",
    b"low",
    b"high",
    b"VERSION\t",
    b"1\t0",
    b"2 secs",
    b"500ms",
    b"18446744073709551615",
    b"\xff\xfe",
    b"A\t",
    b"\t1\n",
    b"\thigh\t2\n",
    b"LIST\t1\t",
    b"USER\t1\t",
    b"DONE\t1\n",
    b"FAIL\t1\treason=",
    b"REPLICATE\t",
    b"NOTIFY\t",
    b"-CHANGED\n",
    b"\0\0\0\0\x02",
    b"L\0\0\0\x05\x04err\n",
    b"INBOX\t7\t\\Seen\t5\t9\t",
    b"\r\n",
    b"\"uid\":\"7\",",
    b"\\u00e4",
];

#[test]
fn parsers_keep_their_promises_on_random_input() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..20_000 {
        let input = random_input(&mut random);
        for (name, body) in bodies::TARGETS {
            let result = std::panic::catch_unwind(|| body(&input));
            assert!(
                result.is_ok(),
                "{name} with SEED={seed}: {}",
                input.escape_ascii()
            );
        }
    }
}

fn random_input(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut input = Vec::new();
    for _ in 0..random.usize(..12) {
        match random.u8(..4) {
            0 => input.push(random.u8(..)),
            1 => input.extend((0..random.usize(..2000)).map(|_| b'a')),
            _ => input.extend_from_slice(random.choice(WORDS).unwrap_or(b"")),
        }
    }
    input
}
