//! What a suite runs against: a Dovecot (this machine's, or one in a root) and a plugin (the
//! distribution's, or ours).
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `DOVECOT_ROOTS_DIR` | where the roots are | `.roots` |
//! | `DOVECOT_TEST_PLUGIN` | our plugin; `{version}` is the Dovecot's version | `build/{version}/lib20_replication_plugin.so` |
//!
//! A target whose Dovecot or plugin is not there stays in the list, with the reason: its trials are
//! skipped by name.

use super::configuration::Series;
use rustix::process::geteuid;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The file name of the mail plugin, ours and the distribution's.
pub const PLUGIN: &str = "lib20_replication_plugin.so";

/// The releases that are supported: version, and the root that has it.
const RELEASES: [(&str, &str); 4] = [
    ("2.3.19.1", "bookworm"),
    ("2.3.13", "bullseye"),
    ("2.4.1", "trixie"),
    ("2.4.5", "forky"),
];

/// Whose plugin is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Implementation {
    /// The distribution's.
    Stock,
    /// This project's.
    Ours,
}

impl Implementation {
    /// As it stands in the names of trials.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Ours => "ours",
        }
    }
}

/// A Dovecot with a plugin.
#[derive(Clone, Debug)]
pub struct Target {
    /// Dovecot's version, without its revision.
    pub version: String,
    /// The root to change into, if the Dovecot is not this machine's.
    pub root: Option<PathBuf>,
    /// Whose plugin.
    pub implementation: Implementation,
    /// Our plugin's file; `None` for stock's.
    pub plugin: Option<PathBuf>,
    /// Dovecot's library directory with all our files in it, for nodes that run our daemons.
    pub lib: Option<PathBuf>,
    /// Why the target cannot be run.
    pub missing: Option<String>,
}

impl Target {
    /// All targets, in the order of their names' trials.
    #[must_use]
    pub fn all() -> Vec<Target> {
        let machine = version(None);
        let mut targets = Vec::new();
        for (version_wanted, suite) in RELEASES {
            let root = roots().join(suite);
            let (root, missing) = if machine.as_deref() == Some(version_wanted) {
                (None, None)
            } else if version(Some(&root)).as_deref() == Some(version_wanted) {
                (Some(root), None)
            } else {
                let missing = format!("no Dovecot {version_wanted} in {}", root.display());
                (Some(root), Some(missing))
            };
            let missing = match geteuid().is_root() {
                true => missing,
                false => Some("Dovecot is started by root, roots are entered by root".to_owned()),
            };
            let series = series(version_wanted);
            for implementation in [Implementation::Stock, Implementation::Ours] {
                // Stock 2.4 has no replication.
                if (implementation, series) == (Implementation::Stock, Series::V2_4) {
                    continue;
                }
                let mut target = Target {
                    version: version_wanted.to_owned(),
                    root: root.clone(),
                    implementation,
                    plugin: None,
                    lib: None,
                    missing: missing.clone(),
                };
                if implementation == Implementation::Ours {
                    let plugin = our_plugin(version_wanted);
                    if !plugin.is_file() {
                        target
                            .missing
                            .get_or_insert(format!("no {}", plugin.display()));
                    }
                    target.plugin = Some(plugin);
                    // A process of 2.4 knows our settings by our module only.
                    if series == Series::V2_4 {
                        target.use_lib();
                    }
                }
                targets.push(target);
            }
        }
        targets
    }

    /// The targets whose daemons run too: ours as `make stage` laid it out, stock's as installed.
    #[must_use]
    pub fn all_staged() -> Vec<Target> {
        let mut targets = Self::all();
        for target in targets.iter_mut().filter(|target| target.is_ours()) {
            target.plugin = None;
            target.use_lib();
        }
        targets
    }

    fn use_lib(&mut self) {
        let lib = top().join("build").join(&self.version).join("lib");
        if !lib.is_dir() {
            self.missing.get_or_insert(format!("no {}", lib.display()));
        }
        self.lib = Some(lib);
    }

    /// Which syntax dovecot.conf has.
    #[must_use]
    pub fn series(&self) -> Series {
        series(&self.version)
    }

    /// Whether a node needs a module directory of its own, with another plugin than is installed or staged.
    #[must_use]
    pub fn has_own_modules(&self) -> bool {
        self.plugin.is_some() || self.lib.is_none()
    }

    /// `2.3.19.1/ours`, the beginning of its trials' names.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.version, self.implementation.as_str())
    }

    /// Whether it is our plugin.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.implementation == Implementation::Ours
    }

    /// A path inside the target as this machine sees it.
    #[must_use]
    pub fn outside(&self, inside: &Path) -> PathBuf {
        match &self.root {
            None => inside.to_owned(),
            Some(root) => root.join(inside.strip_prefix("/").unwrap_or(inside)),
        }
    }

    /// The command that runs `program` in the target, with an environment of nothing but a PATH.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = match (&self.root, &self.lib) {
            (None, None) => Command::new(program),
            (Some(root), None) => {
                // In a mount namespace of the command's own: valgrind reads /proc.
                let mut command = Command::new("unshare");
                let proc = root.join("proc");
                command.arg(format!("--mount-proc={}", proc.display()));
                command.arg("chroot").arg(root).arg(program);
                command
            }
            (root, Some(lib)) => {
                let mut command = Command::new(top().join("tests/roots/with-ours"));
                command.arg(lib).args(root).arg("--").arg(program);
                command
            }
        };
        command.env_clear().env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        command
    }
}

/// Where the package is.
#[must_use]
pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn roots() -> PathBuf {
    std::env::var_os("DOVECOT_ROOTS_DIR").map_or_else(|| top().join(".roots"), PathBuf::from)
}

fn our_plugin(version: &str) -> PathBuf {
    let pattern = std::env::var("DOVECOT_TEST_PLUGIN")
        .unwrap_or_else(|_| format!("build/{{version}}/{PLUGIN}"));
    top().join(pattern.replace("{version}", version))
}

fn version(root: Option<&Path>) -> Option<String> {
    let mut command = match root {
        None => Command::new("dovecot"),
        Some(root) => {
            if !root.join("usr/sbin/dovecot").exists() {
                return None;
            }
            let mut command = Command::new("chroot");
            command.arg(root).arg("dovecot");
            command
        }
    };
    let output = command.arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    // Debian's 2.4 says `2.4.1-4 (...)`.
    let version = text.split([' ', '-']).next()?;
    Some(version.trim().to_owned())
}

fn series(version: &str) -> Series {
    if version.starts_with("2.3.") {
        Series::V2_3
    } else {
        Series::V2_4
    }
}
