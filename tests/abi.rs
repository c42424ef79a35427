//! The mail plugin in a C host of a few lines, which stands for Dovecot's module loader: what it exports,
//! that it loads, starts, ends and is unloaded; once under AddressSanitizer. Stock's plugin goes through
//! the same host, so that the host is known to be right.

mod harness;

use harness::run::{main as run, trial};
use harness::target::{PLUGIN, top};
use harness::{Outcome, Target, check};
use std::fs;
use std::path::Path;
use std::process::{ExitCode, Output};

const MODULES: &str = "/usr/lib/dovecot/modules";

fn exports(target: &Target) -> Outcome {
    let plugin = target.plugin.as_ref().ok_or("no plugin of ours")?;
    let output = std::process::Command::new("nm")
        .args(["-D", "--defined-only", "--format=posix"])
        .arg(plugin)
        .output()?;
    check(output.status.success(), || format!("nm: {output:?}"))?;
    let text = String::from_utf8(output.stdout)?;
    let mut exported: Vec<_> = text
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    exported.sort_unstable();
    let list = fs::read_to_string(top().join("tests/abi/exported"))?;
    let wanted: Vec<_> = list.lines().collect();
    check(exported == wanted, || {
        format!("exported: {exported:?}, the list: {wanted:?}")
    })
}

/// Another release of Dovecot may lack what is named: it is named weakly, and the plugin loads all the same.
fn needs_nothing_of_dovecot(target: &Target) -> Outcome {
    let plugin = target.plugin.as_ref().ok_or("no plugin of ours")?;
    let output = std::process::Command::new("nm")
        .args(["-D", "--undefined-only", "--format=posix"])
        .arg(plugin)
        .output()?;
    check(output.status.success(), || format!("nm: {output:?}"))?;
    let text = String::from_utf8(output.stdout)?;
    let needed = |line: &&str| {
        let mut words = line.split_whitespace();
        // What a C library has bears a version.
        let of_system = words.next().is_some_and(|name| name.contains('@'));
        !of_system && words.next() == Some("U")
    };
    let needed: Vec<_> = text.lines().filter(needed).collect();
    check(needed.is_empty(), || {
        format!("not in c-shim/weak.h, or named in Rust: {needed:?}")
    })?;
    check(text.contains("notify_register w"), || text.clone())
}

/// Builds the host in the target and runs it; `flags` are the compiler's.
fn host(target: &Target, flags: &[&str]) -> Outcome {
    let dir = tempfile::tempdir_in(target.outside(Path::new("/tmp")))?;
    let inside = Path::new("/tmp").join(dir.path().file_name().ok_or("no name")?);
    fs::copy(top().join("tests/abi/host.c"), dir.path().join("host.c"))?;
    let plugin = match &target.plugin {
        None => harness::node::stock_plugin(target)?.into(),
        Some(plugin) => {
            fs::copy(plugin, dir.path().join(PLUGIN))?;
            inside.join(PLUGIN)
        }
    };
    let compiled = target
        .command("gcc")
        .args([
            "-g",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-DHAVE_CONFIG_H",
        ])
        .arg("-I/usr/include/dovecot")
        .args(flags)
        // LeakSanitizer needs /proc, which a root has not.
        .arg(format!(
            "-DASAN_DEFAULTS=\"detect_leaks={}\"",
            u8::from(target.root.is_none())
        ))
        .args(["-o".as_ref(), inside.join("host").as_os_str()])
        .arg(inside.join("host.c"))
        .arg("-ldl")
        .output()?;
    said(&compiled, "gcc")?;
    let ran = target
        .command(&inside.join("host").display().to_string())
        .arg(MODULES)
        .arg(plugin)
        .output()?;
    said(&ran, "the host")?;
    check(ran.stdout == b"abi: ok\n", || format!("{ran:?}"))
}

fn said(output: &Output, what: &str) -> Outcome {
    check(output.status.success(), || {
        let stderr = String::from_utf8_lossy(&output.stderr);
        format!("{what}: {}: {stderr}", output.status)
    })
}

fn main() -> ExitCode {
    let mut trials = Vec::new();
    for target in Target::all() {
        let compiler = target.outside(Path::new("/usr/bin/gcc")).exists();
        for (name, flags) in [
            ("host_loads_and_unloads_it_twice", &[][..]),
            (
                "the_same_under_address_sanitizer",
                &["-fsanitize=address", "-fno-omit-frame-pointer"],
            ),
        ] {
            let its = target.clone();
            let trial = trial(&target, name, move || host(&its, flags));
            trials.push(if compiler {
                trial
            } else {
                trial.with_kind("no gcc").with_ignored_flag(true)
            });
        }
        if target.is_ours() {
            let its = target.clone();
            trials.push(trial(
                &target,
                "needs_no_symbol_of_dovecot_to_be_loaded",
                move || needs_nothing_of_dovecot(&its),
            ));
            let its = target.clone();
            trials.push(trial(
                &target,
                "exports_what_is_listed_and_no_more",
                move || exports(&its),
            ));
        }
    }
    run(trials)
}
