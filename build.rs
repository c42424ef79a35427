//! Finds Dovecot and builds, for the module or daemons that the features ask for, the C shim and the
//! bindings to the installed headers.
//!
//! Dovecot is found by `dovecot-config`, named by the environment variable `DOVECOT_CONFIG` or looked
//! for where distributions put it. Its `config.h` gives the version; nothing is guessed.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::exit;

/// Where distributions and a plain `make install` of Dovecot put `dovecot-config`.
const DOVECOT_CONFIG_PATHS: [&str; 4] = [
    "/usr/lib/dovecot/dovecot-config",
    "/usr/lib64/dovecot/dovecot-config",
    "/usr/local/lib/dovecot/dovecot-config",
    "/usr/lib/x86_64-linux-gnu/dovecot/dovecot-config",
];

const INSTALL_HINT: &str = "install Dovecot's headers (Debian: apt install dovecot-dev; \
     elsewhere: dovecot-devel), or name the file in DOVECOT_CONFIG";

/// The oldest Dovecot whose structures the plugin is written for.
const MINIMUM_VERSION: (u32, u32) = (2, 3);

fn main() {
    println!("cargo::rustc-check-cfg=cfg(dovecot_2_4)");
    println!("cargo::rerun-if-env-changed=DOVECOT_CONFIG");
    println!("cargo::rerun-if-changed=build.rs");
    let hosts: Vec<&str> = ["plugin", "daemon", "doveadm"]
        .into_iter()
        .filter(|name| env::var_os(format!("CARGO_FEATURE_{}", name.to_uppercase())).is_some())
        .collect();
    match hosts.as_slice() {
        [] => {}
        [host] => build_for(host, &Dovecot::find()),
        several => fail(&format!(
            "features {} together: each is linked to another host process, choose one (see Makefile)",
            several.join(", ")
        )),
    }
}

fn build_for(host: &str, dovecot: &Dovecot) {
    let shim = PathBuf::from("c-shim").join(format!("{host}.c"));
    let header = shim.with_extension("h");
    for input in ["c-shim", "include"] {
        println!("cargo::rerun-if-changed={input}");
    }
    println!("cargo::rerun-if-changed={}", dovecot.config_path.display());
    println!("cargo::rustc-env=DOVECOT_VERSION={}", dovecot.version);
    if dovecot.is_2_4 {
        println!("cargo::rustc-cfg=dovecot_2_4");
    }
    let mut cc = cc::Build::new();
    cc.file(&shim)
        .file("c-shim/log.c")
        .includes(dovecot.include_dirs())
        .include("include")
        .define("HAVE_CONFIG_H", None)
        .std("gnu11")
        .flag_if_supported("-fvisibility=hidden")
        .warnings(true)
        .extra_warnings(true)
        .flag_if_supported("-Wno-unused-parameter");
    if host == "plugin" {
        cc.flag("-include").flag("c-shim/weak.h");
    }
    for part in dovecot.shim_parts(host) {
        cc.file(PathBuf::from("c-shim").join(part));
    }
    cc.try_compile(&format!("replication_{host}_shim"))
        .unwrap_or_else(|e| {
            fail(&format!(
                "the C shim does not compile with Dovecot's headers in {}: {e}; {INSTALL_HINT}",
                dovecot.include_dir.display()
            ))
        });
    bind(&header, host, dovecot);
    if host == "daemon" {
        println!(
            "cargo::rustc-link-search=native={}",
            dovecot.library_dir.display()
        );
        println!("cargo::rustc-link-lib=dylib=dovecot");
        println!(
            "cargo::rustc-link-arg-bins=-Wl,-rpath,{}",
            dovecot.library_dir.display()
        );
    }
}

/// Without -DHAVE_CONFIG_H the layouts would silently be wrong.
fn bind(header: &Path, host: &str, dovecot: &Dovecot) {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let include_args = dovecot
        .include_dirs()
        .into_iter()
        .chain([PathBuf::from("include")])
        .map(|dir| format!("-I{}", dir.display()));
    let bindings = bindgen::Builder::default()
        .header(header.display().to_string())
        .clang_arg("-DHAVE_CONFIG_H")
        .clang_arg("-std=gnu11")
        .clang_args(include_args)
        .allowlist_file(format!(".*c-shim/({host}|log)\\.h"))
        .default_enum_style(bindgen::EnumVariation::Consts)
        .derive_debug(false)
        .layout_tests(true)
        .generate_comments(false)
        .wrap_unsafe_ops(true)
        .rust_target(bindgen::RustTarget::stable(85, 0).unwrap_or_else(|_| fail("no Rust 1.85")))
        .rust_edition(bindgen::RustEdition::Edition2024);
    let bindings = ALLOWED
        .iter()
        .filter(|(feature, _)| *feature == host)
        .fold(bindings, |builder, (_, item)| builder.allowlist_item(item));
    match bindings.generate() {
        Ok(bindings) => bindings
            .write_to_file(out.join("dovecot.rs"))
            .unwrap_or_else(|e| fail(&format!("write({}/dovecot.rs) failed: {e}", out.display()))),
        Err(e) => fail(&format!(
            "Dovecot's headers in {} cannot be read: {e}; {INSTALL_HINT}",
            dovecot.include_dir.display()
        )),
    }
}

/// What each host's Rust names beyond its shim's own header.
const ALLOWED: [(&str, &str); 38] = [
    ("plugin", "notify_vfuncs"),
    ("plugin", "mail_storage_hooks"),
    ("plugin", "mail_user"),
    ("plugin", "mail_namespace"),
    ("plugin", "mailbox_transaction_context"),
    (
        "plugin",
        "mailbox_transaction_flags_MAILBOX_TRANSACTION_FLAG_SYNC",
    ),
    ("plugin", "mail_index_transaction_change_.*"),
    ("doveadm", "DOVECOT_ABI_VERSION"),
    ("doveadm", "DOVEADM_EX_NOREPLICATE"),
    ("doveadm", "module"),
    ("doveadm", "doveadm_cmd_context"),
    ("doveadm", "doveadm_mail_cmd_context"),
    ("doveadm", "doveadm_cmd_param_str"),
    ("doveadm", "doveadm_cmd_param_bool"),
    ("doveadm", "doveadm_cmd_param_array"),
    ("doveadm", "doveadm_cmd_ver2"),
    ("doveadm", "doveadm_settings"),
    ("doveadm", "doveadm_exit_code"),
    ("doveadm", "doveadm_print"),
    ("doveadm", "doveadm_print_flush"),
    ("doveadm", "doveadm_print_init"),
    ("doveadm", "doveadm_print_is_initialized"),
    ("doveadm", "doveadm_print_header"),
    ("doveadm", "doveadm_print_header_flags_.*"),
    ("doveadm", "doveadm_client_type_.*"),
    ("doveadm", "mail_storage_service_flags_.*"),
    ("doveadm", "i_stream_get_fd"),
    ("doveadm", "i_stream_ref"),
    ("doveadm", "i_stream_unref"),
    ("doveadm", "o_stream_nsend"),
    ("doveadm", "mail_storage_find_class"),
    ("doveadm", "mail_storage"),
    ("doveadm", "mailbox"),
    ("doveadm", "istream_private"),
    ("doveadm", "my_hostdomain"),
    ("plugin", "mail_transaction_commit_changes"),
    ("plugin", "DOVECOT_ABI_VERSION"),
    ("plugin", "mail"),
];

/// An installed Dovecot, as its `dovecot-config` and `config.h` tell.
struct Dovecot {
    config_path: PathBuf,
    include_dir: PathBuf,
    library_dir: PathBuf,
    version: String,
    is_2_4: bool,
}

impl Dovecot {
    fn find() -> Self {
        let config_path = match env::var_os("DOVECOT_CONFIG") {
            Some(path) => PathBuf::from(path),
            None => DOVECOT_CONFIG_PATHS
                .iter()
                .map(PathBuf::from)
                .find(|p| p.exists())
                .unwrap_or_else(|| {
                    fail(&format!(
                        "dovecot-config is in none of {DOVECOT_CONFIG_PATHS:?}; {INSTALL_HINT}"
                    ))
                }),
        };
        let text = fs::read_to_string(&config_path).unwrap_or_else(|e| {
            fail(&format!(
                "open({}) failed: {e}; {INSTALL_HINT}",
                config_path.display()
            ))
        });
        let values = shell_assignments(&text);
        let value = |name: &str| {
            values.get(name).map(PathBuf::from).unwrap_or_else(|| {
                fail(&format!(
                    "{}: no {name}; {INSTALL_HINT}",
                    config_path.display()
                ))
            })
        };
        let include_dir = value("dovecot_pkgincludedir");
        let library_dir = value("dovecot_pkglibdir");
        let config_h = include_dir.join("config.h");
        let header = fs::read_to_string(&config_h).unwrap_or_else(|e| {
            fail(&format!(
                "open({}) failed: {e}; {INSTALL_HINT}",
                config_h.display()
            ))
        });
        let version = package_version(&header).unwrap_or_else(|| {
            fail(&format!(
                "{}: no PACKAGE_VERSION; {INSTALL_HINT}",
                config_h.display()
            ))
        });
        let mut numbers = version
            .split(['.', '-', ' '])
            .map_while(|n| n.parse::<u32>().ok());
        let major_minor = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if major_minor < MINIMUM_VERSION {
            fail(&format!(
                "{}: Dovecot {version} is older than {}.{}",
                config_h.display(),
                MINIMUM_VERSION.0,
                MINIMUM_VERSION.1
            ));
        }
        Self {
            config_path,
            include_dir,
            library_dir,
            version,
            is_2_4: major_minor >= (2, 4),
        }
    }

    /// What is written for 2.3 and 2.4 apart.
    fn shim_parts(&self, host: &str) -> &'static [&'static str] {
        match (host, self.is_2_4) {
            ("daemon", false) => &["daemon-2.3.c", "settings.c", "settings-2.3.c"],
            ("daemon", true) => &["daemon-2.4.c", "settings.c", "settings-2.4.c"],
            ("plugin", false) => &["plugin-2.3.c"],
            ("plugin", true) => &["plugin-2.4.c", "settings.c", "settings-2.4.c"],
            ("doveadm", false) => &["doveadm-2.3.c"],
            ("doveadm", true) => &["doveadm-2.4.c", "settings.c", "settings-2.4.c"],
            _ => &[],
        }
    }

    fn include_dirs(&self) -> Vec<PathBuf> {
        vec![self.include_dir.clone()]
    }
}

fn shell_assignments(text: &str) -> HashMap<&str, &str> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.trim(), value.trim().trim_matches(['"', '\''])))
        .collect()
}

fn package_version(config_h: &str) -> Option<String> {
    config_h
        .lines()
        .find_map(|line| line.strip_prefix("#define PACKAGE_VERSION "))
        .map(|value| value.trim().trim_matches('"').to_owned())
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1);
}
