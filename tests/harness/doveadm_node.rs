//! A Dovecot of which only doveadm matters: no mail protocol, a fake replicator, and `service doveadm` on a unix socket,
//! a port and, on 2.4, HTTP.

use super::node::{MAIL_USER, child_processes};
use super::ports::Port;
use super::{FakeReplicator, Outcome, PATIENCE, Series, Target, check, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};

/// The key of the HTTP API, in base64 as a client sends it.
const API_KEY_BASE64: &str = "a2V5";

/// It runs until it is finished or dropped.
#[derive(Debug)]
pub struct DoveadmNode {
    /// What stands in the replicator's place; the mail user may not open its socket.
    pub replicator: FakeReplicator,
    target: Target,
    hostname: &'static str,
    dir: tempfile::TempDir,
    inside: PathBuf,
    port: Port,
    http: Port,
    master: Option<Child>,
}

/// What a client says first.
fn sync_request(user: &str, arguments: &[&str]) -> String {
    let fields = [&["", user, "sync"], arguments].concat().join("\t");
    format!("VERSION\tdoveadm-server\t1\t0\n{fields}\n")
}

impl DoveadmNode {
    /// A node that is still to be started: where it listens is known.
    ///
    /// # Errors
    /// When its directory cannot be made.
    pub fn prepare(target: &Target, hostname: &'static str) -> Outcome<DoveadmNode> {
        if let Some(missing) = &target.missing {
            return Err(missing.into());
        }
        let dir = tempfile::Builder::new()
            .prefix("dr-doveadm-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(target.outside(Path::new("/tmp")))?;
        let inside = Path::new("/tmp").join(dir.path().file_name().ok_or("no name")?);
        for sub in ["run", "state", "mail"] {
            fs::create_dir(dir.path().join(sub))?;
            fs::set_permissions(dir.path().join(sub), fs::Permissions::from_mode(0o755))?;
        }
        let (_, uid) = MAIL_USER;
        chown(dir.path().join("mail"), Some(uid), Some(uid))?;
        let replicator = FakeReplicator::listen(&dir.path().join("run/replicator-doveadm"))?;
        let node = DoveadmNode {
            replicator,
            target: target.clone(),
            hostname,
            dir,
            inside,
            port: Port::take()?,
            http: Port::take()?,
            master: None,
        };
        node.configure(&[], "")?;
        Ok(node)
    }

    /// Writes dovecot.conf and the users: a name and the fields of its userdb.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn configure(&self, users: &[(&str, &str)], extra: &str) -> Outcome {
        let dir = self.inside.display();
        let (_, uid) = MAIL_USER;
        let lines: String = users
            .iter()
            .map(|(name, fields)| {
                format!("{name}:{{PLAIN}}secret:{uid}:{uid}::{dir}/mail/{name}::{fields}\n")
            })
            .collect();
        fs::write(self.path("users"), lines)?;
        let (port, http) = (self.port.number(), self.http.number());
        let conf = if self.is_2_4() {
            let version = &self.target.version;
            format!(
                "\
dovecot_config_version = {version}
dovecot_storage_version = {version}
mail_driver = maildir
mail_path = ~/Maildir
auth_username_format = %{{user}}
passdb passwd-file {{
  passwd_file_path = {dir}/users
}}
userdb passwd-file {{
  passwd_file_path = {dir}/users
}}
doveadm_api_key = key
service doveadm {{
  inet_listener tcp {{
    port = {port}
  }}
  inet_listener http {{
    port = {http}
  }}
}}
"
            )
        } else {
            format!(
                "\
instance_name = {name}
import_environment = $import_environment DOVECOT_HOSTNAME
mail_location = maildir:~/Maildir
passdb {{
  driver = passwd-file
  args = {dir}/users
}}
userdb {{
  driver = passwd-file
  args = {dir}/users
}}
service doveadm {{
  inet_listener {{
    port = {port}
  }}
}}
",
                name = dir.to_string().replace('/', ""),
            )
        };
        let common = format!(
            "\
base_dir = {dir}/run
state_dir = {dir}/state
log_path = {dir}/log
protocols =
listen = 127.0.0.1
ssl = no
first_valid_uid = {uid}
mail_fsync = never
doveadm_password = secret
doveadm_port = {port}
namespace inbox {{
  inbox = yes
}}
"
        );
        // The versions of 2.4 stand first.
        Ok(fs::write(
            self.path("dovecot.conf"),
            format!("{conf}{common}{extra}\n"),
        )?)
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it does not start; the log is in the message.
    pub fn start(&mut self) -> Outcome {
        let stderr = fs::File::create(self.path("stderr"))?;
        let master = self
            .target
            .command("dovecot")
            .env("DOVECOT_HOSTNAME", self.hostname)
            .args(["-F", "-c"])
            .arg(self.inside.join("dovecot.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()?;
        let master = self.master.insert(master);
        let pid = self.dir.path().join("run/master.pid");
        let started = wait_for("the master", PATIENCE, || {
            if let Some(status) = master.try_wait()? {
                return Err(format!("dovecot ended: {status}").into());
            }
            Ok(pid.exists().then_some(()))
        });
        started.map_err(|error| {
            let stderr = fs::read_to_string(self.path("stderr")).unwrap_or_default();
            let what = error.message().unwrap_or("?");
            format!("{what}\n{stderr}\n{}", self.log()).into()
        })
    }

    fn is_2_4(&self) -> bool {
        self.target.series() == Series::V2_4
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where a peer's dsync finds it.
    #[must_use]
    pub fn location(&self) -> String {
        format!("tcp:127.0.0.1:{}", self.port.number())
    }

    /// dovecot.conf as the node itself sees it.
    #[must_use]
    pub fn dovecot_conf(&self) -> String {
        self.inside.join("dovecot.conf").display().to_string()
    }

    /// Runs `doveadm` with this input.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn doveadm(&self, arguments: &[&str], input: &str) -> Outcome<Output> {
        let mut child = self
            .target
            .command("doveadm")
            .env("DOVECOT_HOSTNAME", self.hostname)
            .args(["-c", &self.dovecot_conf()])
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        // A command that does not read its input has closed it.
        let _written = child
            .stdin
            .take()
            .map(|mut stdin| stdin.write_all(input.as_bytes()));
        Ok(child.wait_with_output()?)
    }

    /// Runs `doveadm`, which must end with 0; gives what it prints.
    ///
    /// # Errors
    /// When it does not.
    pub fn ok(&self, arguments: &[&str], input: &str) -> Outcome<String> {
        let output = self.doveadm(arguments, input)?;
        check(output.status.success(), || {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let log = self.log();
            format!("doveadm {arguments:?}: {}: {stderr}\n{log}", output.status)
        })?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Saves a mail with this subject.
    ///
    /// # Errors
    /// When doveadm fails.
    pub fn save(&self, user: &str, subject: &str) -> Outcome {
        self.ok(
            &["save", "-u", user],
            &format!("From: a@example.org\nSubject: {subject}\n\nbody\n"),
        )
        .map(drop)
    }

    /// The subjects of a user's mails, sorted.
    ///
    /// # Errors
    /// When doveadm fails.
    pub fn subjects(&self, user: &str) -> Outcome<Vec<String>> {
        let printed = self.ok(
            &["-f", "tab", "fetch", "-u", user, "hdr.subject", "all"],
            "",
        )?;
        let mut subjects: Vec<_> = printed.lines().skip(1).map(str::to_owned).collect();
        subjects.sort();
        Ok(subjects)
    }

    /// Begins a `sync` of the user through doveadm-server, as the replicator does.
    ///
    /// # Errors
    /// When the server does not greet.
    pub fn begin_sync(&self, user: &str, arguments: &[&str]) -> Outcome<BufReader<UnixStream>> {
        let stream = UnixStream::connect(self.path("run/doveadm-server"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut reader = BufReader::new(stream);
        let request = sync_request(user, arguments);
        reader.get_mut().write_all(request.as_bytes())?;
        let mut greeting = String::new();
        reader.read_line(&mut greeting)?;
        check(greeting == "+\n", || {
            format!("doveadm-server: {greeting:?}")
        })?;
        Ok(reader)
    }

    /// A whole `sync` through doveadm-server; gives its result, `+` or `-` and a code.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn sync(&self, user: &str, arguments: &[&str]) -> Outcome<String> {
        let mut reader = self.begin_sync(user, arguments)?;
        let (mut state, mut result) = (String::new(), String::new());
        reader.read_line(&mut state)?;
        reader.read_line(&mut result)?;
        Ok(result.trim_end().to_owned())
    }

    /// Has a client ask for a `sync` and say no more before it is served; gives all that is answered.
    ///
    /// # Errors
    /// When the server is not there.
    pub fn abandoned_sync(&self, user: &str, arguments: &[&str]) -> Outcome<String> {
        let mut stream = UnixStream::connect(self.path("run/doveadm-server"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(sync_request(user, arguments).as_bytes())?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// The pids of its doveadm-server's workers.
    ///
    /// # Errors
    /// When it does not run.
    pub fn workers(&self) -> Outcome<Vec<i32>> {
        let master = self.master.as_ref().ok_or("not started")?.id();
        child_processes(master, "doveadm-server")
    }

    /// Has the sync's client say no more; it still reads.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn give_up(sync: &BufReader<UnixStream>) -> Outcome {
        Ok(sync.get_ref().shutdown(Shutdown::Write)?)
    }

    /// A call of the HTTP API; gives the body of the answer.
    ///
    /// # Errors
    /// When it is not answered with 200.
    pub fn http(&self, calls: &str) -> Outcome<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.http.number()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = calls.len();
        let request = format!(
            "POST /doveadm/v1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Authorization: X-Dovecot-API {API_KEY_BASE64}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{calls}"
        );
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        check(answer.starts_with("HTTP/1.1 200 "), || answer.clone())?;
        let (_, body) = answer.split_once("\r\n\r\n").ok_or("no body")?;
        Ok(body.to_owned())
    }

    /// Everything logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        let log = fs::read(self.path("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Stops it and says what was wrong: errors and warnings without any of these texts, and what the fake replicator did not
    /// understand.
    ///
    /// # Errors
    /// What was wrong.
    pub fn finish(mut self, expected: &[&str]) -> Outcome {
        self.stop()?;
        let is_wrong = |line: &&str| {
            ["Warning:", "Error:", "Fatal:", "Panic:"]
                .iter()
                .any(|level| line.contains(level))
                && !line.contains("Killed with signal 15")
                && !expected.iter().any(|text| line.contains(text))
        };
        let log = self.log();
        let mut wrong: Vec<_> = log.lines().filter(is_wrong).map(str::to_owned).collect();
        wrong.extend(self.replicator.malformed());
        check(wrong.is_empty(), || {
            format!("{}: {}", self.hostname, wrong.join("\n"))
        })
    }

    fn stop(&mut self) -> Outcome {
        let Some(mut master) = self.master.take() else {
            return Ok(());
        };
        if let Some(pid) = i32::try_from(master.id()).ok().and_then(Pid::from_raw) {
            // It may have ended by itself; its log says why.
            let _gone = kill_process(pid, Signal::TERM);
        }
        let ended = wait_for("the master's end", PATIENCE, || Ok(master.try_wait()?));
        if ended.is_err() {
            master.kill()?;
            master.wait()?;
        }
        ended.map(drop)
    }
}

impl Drop for DoveadmNode {
    fn drop(&mut self) {
        let _stopped = self.stop();
    }
}
