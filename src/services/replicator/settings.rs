//! What the administrator sets, as plain data, and what it means for dsync and for a user's replicas.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::protocol::replicator_doveadm::StatusLayout;
use crate::engine::replicator::{Config, MAX_REPLICAS, MAX_TARGET_BYTES};

/// Whose dsync is driven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DsyncDialect {
    /// Dovecot 2.3: `-d` and `-U` are understood.
    #[default]
    V2_3,
    /// Dovecot 2.4: neither is, and the destination is named.
    V2_4,
}

/// Expands the variables in a global value for a username; `None` if it cannot be.
pub type Expand = fn(value: &str, username: &[u8]) -> Option<Vec<u8>>;

/// The settings of the service. Paths that do not begin with `/` are in `base_dir`, as everywhere in Dovecot.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `base_dir`
    pub base_dir: PathBuf,
    /// `state_dir`
    pub state_dir: PathBuf,
    /// `auth_socket_path`
    pub auth_socket_path: PathBuf,
    /// `doveadm_socket_path`
    pub doveadm_socket_path: PathBuf,
    /// `doveadm_password`, for a `doveadm-server` socket whose mode is not 0600.
    pub doveadm_password: String,
    /// `doveadm_port`: the port of a target that names none; 0: none.
    pub doveadm_port: u16,
    /// `replication_dsync_parameters`
    pub replication_dsync_parameters: String,
    /// `replication_full_sync_interval`; zero: no full syncs but asked for.
    pub replication_full_sync_interval: Duration,
    /// `replication_max_conns`
    pub replication_max_conns: u32,
    /// The global values of `mail_replica`, `mail_replica2`, ... in this order; empty where one is not set.
    pub mail_replica: Vec<String>,
    /// The global value of `noreplicate`; `None`: not set.
    pub noreplicate: Option<String>,
    /// `replication_sync_deadline`
    pub replication_sync_deadline: Duration,
    /// `replication_retry_min_interval`
    pub replication_retry_min_interval: Duration,
    /// `replication_retry_max_interval`
    pub replication_retry_max_interval: Duration,
    /// `replication_probe_timeout`
    pub replication_probe_timeout: Duration,
    /// What `doveadm replicator status <mask>` of the Dovecot at hand reads.
    pub status_layout: StatusLayout,
    /// How variables in `mail_replica` are expanded; `None`: as 2.3 does (`%u %n %d %%`).
    pub expand: Option<Expand>,
    /// What the dsync of the Dovecot at hand reads.
    pub dsync_dialect: DsyncDialect,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            base_dir: "/var/run/dovecot".into(),
            state_dir: "/var/lib/dovecot".into(),
            auth_socket_path: "auth-userdb".into(),
            doveadm_socket_path: "doveadm-server".into(),
            doveadm_password: String::new(),
            doveadm_port: 0,
            replication_dsync_parameters: "-d -N -l 30 -U".into(),
            replication_full_sync_interval: Duration::from_secs(24 * 60 * 60),
            replication_max_conns: 10,
            mail_replica: Vec::new(),
            noreplicate: None,
            replication_sync_deadline: Duration::from_secs(600),
            replication_retry_min_interval: Duration::from_millis(500),
            replication_retry_max_interval: Duration::from_secs(300),
            replication_probe_timeout: Duration::from_secs(5),
            status_layout: StatusLayout::Six,
            expand: None,
            dsync_dialect: DsyncDialect::V2_3,
        }
    }
}

/// A value that cannot be.
#[derive(Debug, PartialEq, Eq)]
pub struct SettingsError {
    /// The setting's name in dovecot.conf.
    pub name: String,
    /// Its value.
    pub value: String,
    /// What is expected.
    pub expected: String,
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            value,
            expected,
        } = self;
        write!(f, "Invalid {name} setting: {value}: expected {expected}")
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Most syncs at once.
pub const MAX_CONNS: u32 = 10_000;

impl Settings {
    /// Whether all values can be.
    ///
    /// # Errors
    ///
    /// The first one that cannot.
    pub fn check(&self) -> Result<(), SettingsError> {
        let error = |name: &str, value: String, expected: String| SettingsError {
            name: name.into(),
            value,
            expected,
        };
        if !(1..=MAX_CONNS).contains(&self.replication_max_conns) {
            return Err(error(
                "replication_max_conns",
                self.replication_max_conns.to_string(),
                format!("a number from 1 to {MAX_CONNS}"),
            ));
        }
        let range = |name: &str, value: Duration, min: Duration, max: Duration| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            let expected = format!("a time from {min:?} to {max:?}");
            Err(error(name, format!("{value:?}"), expected))
        };
        let hundredth = Duration::from_millis(100);
        range(
            "replication_sync_deadline",
            self.replication_sync_deadline,
            10 * SECOND,
            DAY,
        )?;
        range(
            "replication_retry_min_interval",
            self.replication_retry_min_interval,
            hundredth,
            MINUTE,
        )?;
        range(
            "replication_retry_max_interval",
            self.replication_retry_max_interval,
            SECOND.max(self.replication_retry_min_interval),
            DAY,
        )?;
        range(
            "replication_probe_timeout",
            self.replication_probe_timeout,
            hundredth,
            MINUTE,
        )?;
        if self.mail_replica.len() > MAX_REPLICAS {
            return Err(error(
                &format!("mail_replica{}", self.mail_replica.len()),
                self.mail_replica.last().cloned().unwrap_or_default(),
                format!("at most {MAX_REPLICAS} replicas"),
            ));
        }
        for (at, target) in self.mail_replica.iter().enumerate() {
            if target.len() > MAX_TARGET_BYTES {
                return Err(error(
                    &replica_key(at),
                    target.chars().take(40).collect(),
                    format!("at most {MAX_TARGET_BYTES} bytes"),
                ));
            }
        }
        Ok(())
    }

    /// What the engine decides by.
    #[must_use]
    pub fn engine_config(&self) -> Config {
        Config {
            max_conns: self.replication_max_conns as usize,
            full_sync_interval: self.replication_full_sync_interval,
            sync_deadline: self.replication_sync_deadline,
            retry_min_interval: self.replication_retry_min_interval,
            retry_max_interval: self.replication_retry_max_interval,
            lock_timeout: self.lock_timeout(),
            ..Config::default()
        }
    }

    /// dsync's own `-l`, which both nodes are taken to have alike; without it, or with a value that dsync will refuse, none.
    fn lock_timeout(&self) -> Duration {
        let parameters = self.replication_dsync_parameters.split_ascii_whitespace();
        let (options, _) = without_options(parameters, OPTIONS_WITHOUT_ARGUMENT);
        let mut options = options.iter().map(Vec::as_slice);
        let attached = options.find_map(|option| option.strip_prefix(b"-l"));
        let value = match attached {
            Some(b"") => options.next(),
            attached => attached,
        };
        let secs = value.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        Duration::from_secs(u64::from(secs.unwrap_or(0_u32)))
    }

    /// The absolute path of a socket.
    #[must_use]
    pub fn socket_path(&self, path: &Path) -> PathBuf {
        self.base_dir.join(path)
    }

    /// To whom a user is replicated who has no setting of its own: the first `mail_replica`, if it is the same for all.
    #[must_use]
    pub fn default_target(&self) -> Vec<u8> {
        self.mail_replica
            .first()
            .filter(|target| !target.contains('%'))
            .map(|target| target.clone().into_bytes())
            .unwrap_or_default()
    }

    /// A user's replicas and `noreplicate`, from the userdb fields and the global values. Variables in the
    /// global values are expanded; a value whose variables cannot be is none.
    #[must_use]
    pub fn replicas_of(
        &self,
        username: &[u8],
        fields: &[(Vec<u8>, Vec<u8>)],
    ) -> (Vec<Vec<u8>>, bool) {
        let field = |key: &str| {
            fields
                .iter()
                .rev()
                .find(|(name, _)| name == key.as_bytes())
                .map(|(_, value)| value.clone())
        };
        let mut targets = Vec::new();
        for at in 0..MAX_REPLICAS {
            // auth passes on a field without a value as a bare key, which libdovecot reads as "yes".
            let own = field(&replica_key(at)).map(|own| match own.as_slice() {
                b"yes" => Vec::new(),
                _ => own,
            });
            let target = own.unwrap_or_else(|| {
                let global = self.mail_replica.get(at).map_or("", String::as_str);
                match self.expand {
                    Some(expand) => expand(global, username).unwrap_or_default(),
                    None => expand_of_2_3(global.as_bytes(), username),
                }
            });
            if !target.is_empty() && target.len() <= MAX_TARGET_BYTES && !targets.contains(&target)
            {
                targets.push(target);
            }
        }
        let global = self.noreplicate.clone().map(String::into_bytes);
        let noreplicate = field("noreplicate").or(global);
        let noreplicate = noreplicate.is_some_and(|value| is_yes(&value));
        (targets, noreplicate)
    }

    /// What `sync` gets. On 2.3 the user's only replica is left to `-d`, as stock does; else the
    /// destination is named.
    #[must_use]
    pub fn dsync_parameters(&self, is_only_replica: bool) -> DsyncParameters {
        let parameters = self.replication_dsync_parameters.split_ascii_whitespace();
        let is_2_4 = self.dsync_dialect == DsyncDialect::V2_4;
        let dropped: &[u8] = match (is_2_4, is_only_replica) {
            (true, _) => b"dU",
            (false, false) => b"d",
            (false, true) => b"",
        };
        let (kept, has_default) = without_options(parameters, dropped);
        DsyncParameters {
            kept,
            // An administrator who took `-d` out on 2.3 has named a destination.
            names_target: !dropped.is_empty() && (has_default || is_2_4),
        }
    }
}

/// `replication_dsync_parameters`, as they are passed on.
#[derive(Clone, Debug)]
pub struct DsyncParameters {
    kept: Vec<Vec<u8>>,
    names_target: bool,
}

impl DsyncParameters {
    /// The arguments of one `sync`.
    pub fn arguments<'a>(
        &'a self,
        target: &'a [u8],
        full: bool,
        state: &'a [u8],
    ) -> impl Iterator<Item = &'a [u8]> {
        let kept = self.kept.iter().map(Vec::as_slice);
        let full = full.then_some(&b"-f"[..]);
        let target = self.names_target.then_some(target);
        kept.chain(full).chain([&b"-s"[..], state]).chain(target)
    }
}

fn replica_key(at: usize) -> String {
    if at == 0 {
        "mail_replica".into()
    } else {
        format!("mail_replica{}", at + 1)
    }
}

/// A boolean by the rules of 2.3's `mail_user_plugin_getenv_bool()`: what does not begin as "no", "0" or "false" is yes.
fn is_yes(value: &[u8]) -> bool {
    !matches!(value.first(), Some(b'n' | b'N' | b'0' | b'f' | b'F'))
}

fn expand_of_2_3(value: &[u8], username: &[u8]) -> Vec<u8> {
    let at = username.iter().position(|&byte| byte == b'@');
    let (name, domain) = match at {
        Some(at) => (
            username.get(..at).unwrap_or_default(),
            username.get(at + 1..).unwrap_or_default(),
        ),
        None => (username, &b""[..]),
    };
    let mut expanded = Vec::with_capacity(value.len());
    let mut bytes = value.iter();
    while let Some(&byte) = bytes.next() {
        if byte != b'%' {
            expanded.push(byte);
            continue;
        }
        match bytes.next() {
            Some(b'u') => expanded.extend_from_slice(username),
            Some(b'n') => expanded.extend_from_slice(name),
            Some(b'd') => expanded.extend_from_slice(domain),
            Some(b'%') => expanded.push(b'%'),
            Some(&other) => expanded.extend_from_slice(&[b'%', other]),
            None => expanded.push(b'%'),
        }
    }
    expanded
}

/// dsync's options that have an argument.
const OPTIONS_WITH_ARGUMENT: &[u8] = b"agIlmnOrsteTx";

/// Its other options.
const OPTIONS_WITHOUT_ARGUMENT: &[u8] = b"1dDEfNPRU";

/// The parameters without some options, and whether `-d` was among them.
fn without_options<'a>(
    parameters: impl Iterator<Item = &'a str>,
    dropped: &[u8],
) -> (Vec<Vec<u8>>, bool) {
    let mut kept = Vec::new();
    let mut has_default = false;
    let mut is_argument = false;
    for parameter in parameters {
        let letters = parameter
            .strip_prefix('-')
            .filter(|letters| !letters.starts_with('-') && !letters.is_empty());
        let Some(letters) = letters.filter(|_| !is_argument) else {
            is_argument = false;
            kept.push(parameter.as_bytes().to_vec());
            continue;
        };
        let mut option = vec![b'-'];
        for (at, &letter) in letters.as_bytes().iter().enumerate() {
            if OPTIONS_WITH_ARGUMENT.contains(&letter) {
                is_argument = at + 1 == letters.len();
                option.extend_from_slice(letters.as_bytes().get(at..).unwrap_or_default());
                break;
            }
            has_default |= letter == b'd';
            if !dropped.contains(&letter) {
                option.push(letter);
            }
        }
        if option.len() > 1 {
            kept.push(option);
        }
    }
    (kept, has_default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_at_the_limits_are_taken_and_past_them_named() {
        type Set = fn(&mut Settings, Duration);
        let cases: [(&str, Set, Duration, Duration); 4] = [
            (
                "replication_sync_deadline",
                |s, v| s.replication_sync_deadline = v,
                10 * SECOND,
                DAY,
            ),
            (
                "replication_retry_min_interval",
                |s, v| s.replication_retry_min_interval = v,
                SECOND / 10,
                MINUTE,
            ),
            (
                "replication_retry_max_interval",
                |s, v| s.replication_retry_max_interval = v,
                SECOND,
                DAY,
            ),
            (
                "replication_probe_timeout",
                |s, v| s.replication_probe_timeout = v,
                SECOND / 10,
                MINUTE,
            ),
        ];
        let tick = Duration::from_millis(1);
        for (name, set, min, max) in cases {
            for (value, ok) in [
                (min, true),
                (max, true),
                (min - tick, false),
                (max + tick, false),
            ] {
                let mut settings = Settings::default();
                set(&mut settings, value);
                let checked = settings.check();
                assert_eq!(checked.is_ok(), ok, "{name} {value:?}");
                if let Err(error) = checked {
                    assert_eq!(error.name, name);
                }
            }
        }
        for (value, ok) in [
            (0, false),
            (1, true),
            (MAX_CONNS, true),
            (MAX_CONNS + 1, false),
        ] {
            let settings = Settings {
                replication_max_conns: value,
                ..Settings::default()
            };
            assert_eq!(settings.check().is_ok(), ok);
        }
        let crossed = Settings {
            replication_retry_min_interval: MINUTE,
            replication_retry_max_interval: SECOND,
            ..Settings::default()
        };
        assert_eq!(
            crossed.check().unwrap_err().to_string(),
            "Invalid replication_retry_max_interval setting: 1s: expected a time from 60s to 86400s"
        );
        for (count, ok) in [(MAX_REPLICAS, true), (MAX_REPLICAS + 1, false)] {
            let settings = Settings {
                mail_replica: vec!["tcp:a".into(); count],
                ..Settings::default()
            };
            assert_eq!(settings.check().is_ok(), ok);
        }
        for (length, ok) in [(MAX_TARGET_BYTES, true), (MAX_TARGET_BYTES + 1, false)] {
            let settings = Settings {
                mail_replica: vec!["t".repeat(length)],
                ..Settings::default()
            };
            assert_eq!(settings.check().is_ok(), ok);
        }
    }

    fn joined(arguments: &[impl AsRef<[u8]>]) -> String {
        let arguments: Vec<&[u8]> = arguments.iter().map(AsRef::as_ref).collect();
        String::from_utf8(arguments.join(&b' ')).unwrap()
    }

    #[test]
    fn dsync_gets_the_arguments_of_its_version() {
        let mut settings = Settings::default();
        let target = b"tcp:b:1";
        let arguments = |settings: &Settings, only, full| {
            let parameters = settings.dsync_parameters(only);
            joined(
                &parameters
                    .arguments(target, full, b"ST")
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(arguments(&settings, true, false), "-d -N -l 30 -U -s ST");
        assert_eq!(arguments(&settings, true, true), "-d -N -l 30 -U -f -s ST");
        assert_eq!(
            arguments(&settings, false, false),
            "-N -l 30 -U -s ST tcp:b:1"
        );
        settings.replication_dsync_parameters = "-dNUl 30 -x d".into();
        assert_eq!(
            arguments(&settings, false, false),
            "-NUl 30 -x d -s ST tcp:b:1"
        );
        settings.dsync_dialect = DsyncDialect::V2_4;
        assert_eq!(
            arguments(&settings, true, true),
            "-Nl 30 -x d -f -s ST tcp:b:1"
        );
        let parameters = settings.dsync_parameters(true);
        let empty: Vec<_> = parameters.arguments(target, false, b"").collect();
        assert_eq!(empty.get(empty.len() - 2), Some(&&b""[..]));
    }

    #[test]
    fn lock_timeout_is_dsyncs_own() {
        for (parameters, secs) in [
            ("-d -N -l 30 -U", 30),
            ("-dNUl 7", 7),
            ("-d -l120 -N", 120),
            ("-d -x l -N", 0),
            ("-d -N -l", 0),
            ("-d -N -l soon", 0),
        ] {
            let settings = Settings {
                replication_dsync_parameters: parameters.into(),
                ..Settings::default()
            };
            let timeout = settings.engine_config().lock_timeout;
            assert_eq!(timeout, Duration::from_secs(secs), "{parameters}");
        }
    }

    #[test]
    fn userdb_overrides_the_global_replicas_one_by_one() {
        let settings = Settings {
            mail_replica: vec!["tcp:%d:1".into(), "tcp:two:1".into()],
            ..Settings::default()
        };
        let field = |key: &str, value: &str| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
        let of = |fields: &[(Vec<u8>, Vec<u8>)]| {
            let (targets, noreplicate) = settings.replicas_of(b"u@ex", fields);
            (joined(&targets), noreplicate)
        };
        assert_eq!(of(&[]), ("tcp:ex:1 tcp:two:1".into(), false));
        assert_eq!(
            of(&[field("mail_replica2", ""), field("mail_replica3", "tcps:c")]),
            ("tcp:ex:1 tcps:c".into(), false)
        );
        assert_eq!(
            of(&[field("mail_replica", "yes")]),
            ("tcp:two:1".into(), false)
        );
        for (value, left_out) in [("", true), ("y", true), ("no", false), ("0", false)] {
            assert_eq!(of(&[field("noreplicate", value)]).1, left_out);
        }
    }
}
