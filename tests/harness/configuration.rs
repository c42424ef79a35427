//! dovecot.conf in the syntax of each series of Dovecot.
//!
//! What a test needs is said once, as data; which words say it on 2.3 and on 2.4 is known here only.

use super::node::MAIL_USER;
use std::fmt::Write as _;

/// A series of Dovecot releases that share dovecot.conf's syntax.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Series {
    /// 2.3
    V2_3,
    /// 2.4
    V2_4,
}

impl Series {
    /// Either text.
    #[must_use]
    pub fn pick<T>(self, on_2_3: T, on_2_4: T) -> T {
        match self {
            Self::V2_3 => on_2_3,
            Self::V2_4 => on_2_4,
        }
    }

    /// `mail_plugins` with these words, which are added to what is loaded already.
    #[must_use]
    pub fn mail_plugins(self, words: &str) -> String {
        match self {
            Self::V2_3 => format!("mail_plugins = $mail_plugins {words}\n"),
            Self::V2_4 => words
                .split_whitespace()
                .fold(String::new(), |mut lines, word| {
                    let _ = writeln!(lines, "mail_plugins {{\n  {word} = yes\n}}");
                    lines
                }),
        }
    }

    /// Settings that stand in `plugin {}` on 2.3 and at the top level on 2.4.
    #[must_use]
    pub fn plugin_settings(self, lines: &str) -> String {
        match self {
            Self::V2_3 => format!("plugin {{\n{lines}}}\n"),
            Self::V2_4 => lines.to_owned(),
        }
    }

    /// A variable of the environment with its value, for all processes.
    #[must_use]
    pub fn environment(self, variable: &str, value: &str) -> String {
        match self {
            Self::V2_3 => format!("import_environment = $import_environment {variable}={value}\n"),
            Self::V2_4 => format!("import_environment {{\n  {variable} = {value}\n}}\n"),
        }
    }
}

/// DESIGN.md's configuration, but for addresses, ports and the name of the mail user.
#[derive(Clone, Debug, Default)]
pub struct Replication {
    /// `service doveadm`'s port, if it has one.
    pub port: Option<u16>,
    /// `mail_replica`, `mail_replica2`, ...
    pub replicas: Vec<String>,
    /// `dsync_remote_cmd`, if another than DESIGN.md's.
    pub command: Option<String>,
    /// `replication_sync_timeout`.
    pub sync_timeout: Option<String>,
    /// TLS on the port, with the `certificate.pem` and `key.pem` of this directory, and the first as the CA of peers.
    pub tls: Option<String>,
}

impl Replication {
    /// Its lines of dovecot.conf.
    #[must_use]
    pub fn render(&self, series: Series) -> String {
        let (user, _) = MAIL_USER;
        let mut lines = format!(
            "\
service replicator {{
  process_min_avail = 1
  unix_listener replicator-doveadm {{
    mode = 0600
  }}
}}
service aggregator {{
  fifo_listener replication-notify-fifo {{
    user = {user}
  }}
  unix_listener replication-notify {{
    user = {user}
  }}
}}
dsync_remote_cmd = {command}
replication_max_conns = 10
doveadm_password = Pa$$word
",
            command = self.command.as_deref().unwrap_or(series.pick(
                "doveadm dsync-server -u%u",
                "doveadm dsync-server -u%{user}"
            )),
        );
        if let Some(port) = self.port {
            let name = series.pick("", "doveadm ");
            let tls = self.tls.as_ref().map_or("", |_| "    ssl = yes\n");
            let _ = write!(
                lines,
                "doveadm_port = {port}\nservice doveadm {{\n  inet_listener {name}{{\n    port = {port}\n{tls}  }}\n}}\n"
            );
        }
        if let Some(dir) = &self.tls {
            lines += &tls_settings(dir, series);
        }
        let mut settings = String::new();
        for (index, replica) in self.replicas.iter().enumerate() {
            let number = (index > 0).then(|| (index + 1).to_string());
            let _ = writeln!(
                settings,
                "  mail_replica{} = {replica}",
                number.unwrap_or_default()
            );
        }
        if let Some(timeout) = &self.sync_timeout {
            let _ = writeln!(settings, "  replication_sync_timeout = {timeout}");
        }
        lines + &series.plugin_settings(&settings)
    }
}

fn tls_settings(dir: &str, series: Series) -> String {
    let (certificate, key) = series.pick(
        ("ssl_cert = <", "ssl_key = <"),
        ("ssl_server_cert_file = ", "ssl_server_key_file = "),
    );
    format!(
        "ssl = yes\n{certificate}{dir}/certificate.pem\n{key}{dir}/key.pem\n\
         ssl_client_ca_file = {dir}/certificate.pem\n"
    )
}

/// What every node of the harness has: mail protocols, users, ACLs, Sieve.
#[derive(Clone, Debug)]
pub struct Mail<'a> {
    /// Dovecot's version.
    pub version: &'a str,
    /// The node's directory as Dovecot sees it.
    pub dir: &'a str,
    /// The global `mail_plugins`.
    pub plugins: &'a str,
    /// How mail is stored.
    pub format: Format,
    /// Instead of the installed modules.
    pub plugin_dir: Option<String>,
    /// Ports of IMAP, LMTP, POP3 and ManageSieve.
    pub ports: [u16; 4],
    /// The executable of `service imap`, if another.
    pub imap: Option<String>,
}

/// A mail format of Dovecot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// maildir
    #[default]
    Maildir,
    /// sdbox
    Sdbox,
    /// mdbox
    Mdbox,
}

impl Format {
    /// As Dovecot names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Maildir => "maildir",
            Self::Sdbox => "sdbox",
            Self::Mdbox => "mdbox",
        }
    }

    /// Where a user's mail is, below the home.
    #[must_use]
    pub fn directory(self) -> &'static str {
        match self {
            Self::Maildir => "Maildir",
            Self::Sdbox => "sdbox",
            Self::Mdbox => "mdbox",
        }
    }
}

impl Mail<'_> {
    /// The whole of dovecot.conf but for what a test adds.
    #[must_use]
    pub fn render(&self, series: Series) -> String {
        let head = series.pick(String::new(), self.versions());
        let own = match series {
            Series::V2_3 => self.only_2_3(),
            Series::V2_4 => self.only_2_4(),
        };
        head + &self.common(series) + &own
    }

    fn versions(&self) -> String {
        let version = self.version;
        format!("dovecot_config_version = {version}\ndovecot_storage_version = {version}\n")
    }

    fn common(&self, series: Series) -> String {
        let dir = self.dir;
        let instance = dir.replace('/', "");
        let [imap, lmtp, pop3, sieve] = self.ports;
        let plugin_dir = self
            .plugin_dir
            .as_ref()
            .map_or(String::new(), |dir| format!("mail_plugin_dir = {dir}\n"));
        let executable = self
            .imap
            .as_ref()
            .map_or(String::new(), |command| format!("executable = {command}"));
        let plugins = series.mail_plugins(self.plugins);
        let imap_plugins = indented(&series.mail_plugins("imap_acl"));
        let sieve_plugins = indented(&series.mail_plugins("sieve"));
        format!(
            "\
base_dir = {dir}/run
state_dir = {dir}/state
instance_name = {instance}
log_path = {dir}/log
{plugin_dir}\
protocols = imap lmtp pop3 sieve
listen = 127.0.0.1
ssl = no
default_process_limit = 40
default_client_limit = 250
mail_fsync = never
first_valid_uid = 8
{plugins}\
imap_metadata = yes
namespace inbox {{
  inbox = yes
  separator = /
}}
service imap {{
  {executable}
}}
service imap-login {{
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
service lmtp {{
  inet_listener lmtp {{
    port = {lmtp}
  }}
  unix_listener lmtp {{
    mode = 0
  }}
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
service managesieve-login {{
  inet_listener sieve {{
    port = {sieve}
  }}
}}
protocol imap {{
{imap_plugins}\
  mail_max_userip_connections = 1000
}}
protocol lmtp {{
{sieve_plugins}\
  postmaster_address = postmaster@example.org
}}
protocol lda {{
{sieve_plugins}\
  postmaster_address = postmaster@example.org
}}
"
        )
    }

    fn only_2_3(&self) -> String {
        let (dir, format) = (self.dir, self.format.name());
        let directory = self.format.directory();
        format!(
            "\
import_environment = $import_environment DOVECOT_HOSTNAME
disable_plaintext_auth = no
default_vsz_limit = 0
auth_worker_max_count = 1
mail_location = {format}:~/{directory}
mail_attribute_dict = file:%h/dovecot-attributes
passdb {{
  driver = passwd-file
  args = scheme=PLAIN username_format=%u {dir}/users
}}
userdb {{
  driver = passwd-file
  args = username_format=%u {dir}/users
}}
plugin {{
  acl = vfile
  acl_shared_dict = file:{dir}/shared/dict
  sieve = file:~/sieve;active=~/.dovecot.sieve
}}
"
        )
    }

    fn only_2_4(&self) -> String {
        let (dir, format) = (self.dir, self.format.name());
        let directory = self.format.directory();
        format!(
            "\
import_environment {{
  DOVECOT_HOSTNAME = %{{env:DOVECOT_HOSTNAME}}
}}
auth_allow_cleartext = yes
auth_username_format = %{{user}}
default_vsz_limit = unlimited
mail_driver = {format}
mail_path = ~/{directory}
mail_attribute {{
  dict file {{
    path = %{{home}}/dovecot-attributes
  }}
}}
passdb passwd-file {{
  passwd_file_path = {dir}/users
}}
userdb passwd-file {{
  passwd_file_path = {dir}/users
}}
acl_driver = vfile
acl_sharing_map {{
  dict file {{
    path = {dir}/shared/dict
  }}
}}
sieve_script personal {{
  driver = file
  path = ~/sieve
  active_path = ~/.dovecot.sieve
}}
"
        )
    }
}

fn indented(lines: &str) -> String {
    lines.lines().fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "  {line}");
        all
    })
}
