//! The tree's own rules: which room may hold what, and that generated files are current.

// A test may fail by panicking.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `dir`, with its path from the root, sorted.
fn rust_files(dir: &str) -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    walk(&root().join(dir), &mut paths);
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root()).unwrap().display().to_string();
            let text = fs::read_to_string(&path).unwrap();
            (name, text)
        })
        .collect()
}

/// The code lines (comments and unit tests left out) of files chosen by `applies` in which a `forbidden` word stands.
fn offences(applies: impl Fn(&str) -> bool, forbidden: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in rust_files("src") {
        if !applies(&name) {
            continue;
        }
        let is_tests = |line: &&str| line.starts_with("mod tests {");
        let code_lines = text.lines().take_while(|line| !is_tests(line));
        for (number, line) in code_lines.enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for word in forbidden {
                if contains_word(code, word) {
                    found.push(format!("{name}:{}: {word}", number + 1));
                }
            }
        }
    }
    found
}

fn contains_word(code: &str, word: &str) -> bool {
    let is_part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word).any(|(at, _)| {
        let starts = word.starts_with(|c: char| c.is_alphanumeric());
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        let ends = word.ends_with(|c: char| c.is_alphanumeric());
        !(starts && is_part(before) || ends && is_part(after))
    })
}

fn in_room(name: &str, rooms: &[&str]) -> bool {
    rooms
        .iter()
        .any(|room| name.starts_with(&format!("src/{room}/")))
}

#[test]
fn unsafe_stays_in_host_and_plugin() {
    let found = offences(|name| !in_room(name, &["host", "plugin"]), &["unsafe"]);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn symbols_are_exported_by_one_file() {
    let found = offences(
        |name| name != "src/plugin/exports.rs",
        &["no_mangle", "export_name"],
    );
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn engine_has_no_clock_no_io_no_thread_and_no_log() {
    let forbidden = [
        "Instant",
        "SystemTime",
        "std::fs",
        "std::net",
        "std::io",
        "std::os",
        "std::thread",
        "std::env",
        "std::process",
        "log::error!",
        "log::warn!",
        "log::info!",
        "log::debug!",
        "log::trace!",
        "println!",
        "eprintln!",
        "static mut",
        "thread_local!",
        "rand",
        "fastrand",
        "libc",
        "rustix",
        "mio",
        "rusqlite",
    ];
    let is_engine = |name: &str| in_room(name, &["engine"]) && !is_test_file(name);
    let found = offences(is_engine, &forbidden);
    assert!(found.is_empty(), "{found:#?}");
}

/// Tests and the simulation print seeds and count time: they are not the engine.
fn is_test_file(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or_default();
    ["simulation.rs", "sim.rs", "world.rs", "tests.rs"].contains(&file) || name.contains("/tests/")
}

#[test]
fn arrows_between_rooms_are_kept() {
    let arrows: [(&[&str], &[&str]); 4] = [
        (
            &["engine"],
            &[
                "crate::host",
                "crate::plugin",
                "crate::services",
                "crate::cli",
            ],
        ),
        (
            &["services"],
            &["crate::plugin", "crate::cli", "crate::host::bindings"],
        ),
        (&["host"], &["crate::plugin"]),
        (&["plugin"], &["crate::services"]),
    ];
    for (rooms, forbidden) in arrows {
        let found = offences(|name| in_room(name, rooms), forbidden);
        assert!(found.is_empty(), "{found:#?}");
    }
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<_> = ["src", "tests"]
        .into_iter()
        .flat_map(rust_files)
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(name, _)| name)
        .collect();
    assert!(silent.is_empty(), "no //! at the top of {silent:#?}");
}

#[test]
fn binaries_are_a_few_lines() {
    for (name, text) in rust_files("src/bin") {
        assert!(
            text.lines().count() <= 20,
            "{name} is longer than a few lines"
        );
    }
}

#[test]
fn no_file_has_grown_past_reading() {
    const LINES_MAX: usize = 1000;
    let long: Vec<_> = ["src", "tests"]
        .into_iter()
        .flat_map(rust_files)
        .filter(|(_, text)| text.lines().count() > LINES_MAX)
        .map(|(name, _)| name)
        .collect();
    assert!(long.is_empty(), "more than {LINES_MAX} lines: {long:#?}");
}

#[test]
fn nothing_is_left_open_in_the_code() {
    let found = offences(|_| true, &["todo!", "unimplemented!", "dbg!"]);
    assert!(found.is_empty(), "{found:#?}");
}

/// The number that `text` gives to `name`, with or without `=`, `_` and a type.
fn number_of(text: &str, name: &str) -> u64 {
    let (_, rest) = text.split_once(name).unwrap();
    let line = rest.lines().next().unwrap();
    let value = line.rsplit(['=', ' ']).next().unwrap();
    let digits = value.trim_end_matches(';').replace('_', "");
    digits.parse().unwrap_or_else(|_| panic!("{name}{line}"))
}

#[test]
fn limits_in_c_are_those_of_rust() {
    use dovecot_replication::engine::SYNC_TIMEOUT_MAX;
    use dovecot_replication::engine::replicator::{MAX_REPLICAS, MAX_TARGET_BYTES};
    let text = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let header = text("c-shim/replication-settings.h");
    let settings = text("c-shim/settings-2.4.c");
    let daemon = text("src/services/replicator/settings.rs");
    let as_u64 = |value: usize| u64::try_from(value).unwrap();
    assert_eq!(
        number_of(&header, "#define REPLICATION_MAX_REPLICAS"),
        as_u64(MAX_REPLICAS)
    );
    assert_eq!(
        number_of(&settings, "#define MAX_TARGET_BYTES"),
        as_u64(MAX_TARGET_BYTES)
    );
    assert_eq!(
        number_of(&settings, "#define SYNC_TIMEOUT_MAX_SECS"),
        SYNC_TIMEOUT_MAX.as_secs()
    );
    assert_eq!(
        number_of(&settings, "#define MAX_CONNS"),
        number_of(&daemon, "pub const MAX_CONNS: u32")
    );
}

#[test]
fn header_for_c_is_current() {
    let source = root().join("src/plugin/callbacks.rs");
    let header = root().join("include/replication-callbacks.h");
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(source)
        .generate()
        .unwrap();
    let mut wanted = Vec::new();
    bindings.write(&mut wanted);
    let wanted = String::from_utf8(wanted).unwrap();
    if std::env::var_os("UPDATE_HEADER").is_some() {
        fs::write(&header, &wanted).unwrap();
    }
    assert_eq!(
        fs::read_to_string(&header).unwrap(),
        wanted,
        "run `make header`"
    );
}
