//! `doveadm replicator verify`: how it reaches the replicator, this node's doveadm-server and the peers'.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process;
use std::time::Duration;

use super::commands::{Manner, begin, converse};
use crate::cli::client::{AnswerError, ROWS_MAX, USER_ROWS_MAX, errno_text};
use crate::cli::command::{GREETING_TIMEOUT, Stream, converse as run_command};
use crate::cli::verify::{
    self as cli, COLUMNS, Command as NodeCommand, LINES, Node, Options, TakePart, TargetsError,
    Trouble, World,
};
use crate::cli::{add, remote, show, status};
use crate::engine::location::parse_target;
use crate::engine::protocol::doveadm_json::JsonReader;
use crate::engine::verify::{Difference, InvalidAnswer};
use crate::host::doveadm::{
    Command, Format, Print, Tls, base_dir, dsync_remote_cmd, password, port, socket_path,
};

/// How long the replicator may take to look up a user's replicas.
const LOOKUP_TRIES: u32 = 50;
const LOOKUP_PAUSE: Duration = Duration::from_millis(100);

/// Runs the command; gives what doveadm is to exit with.
pub(super) fn run(command: Command, mask: Vec<u8>) -> i32 {
    let options = Options {
        mask,
        with_text: command.param_bool(c"full"),
        excluded: command.param_array(c"exclude-mailbox"),
        target: command.param_str(c"peer"),
    };
    let mut nodes = Nodes {
        command,
        password: password(),
        print: Print::is_chosen().then(|| begin(Format::Table, COLUMNS)),
    };
    let summary = cli::verify(&mut nodes, &options);
    if nodes.is_for_people() && command.is_from_command_line() {
        // A closed stderr is no reason to panic.
        let _ = writeln!(io::stderr(), "{summary}");
    }
    summary.exit_code()
}

struct Nodes {
    command: Command,
    password: Vec<u8>,
    print: Option<Print>,
}

impl Nodes {
    fn is_for_people(&self) -> bool {
        self.print
            .as_ref()
            .is_none_or(|print| !print.is_for_machines())
    }

    fn show_targets(&self, username: &[u8]) -> Result<Vec<Vec<u8>>, TargetsError> {
        let mut rows = Vec::new();
        let mut is_unknown = false;
        let exit_code = converse(self.command, Manner::Ours, |client| {
            let request = show::show_request(username);
            match client.ask(&request, ROWS_MAX, |row| rows.push(row)) {
                Err(AnswerError::Refused(_)) => {
                    is_unknown = true;
                    Ok(())
                }
                asked => asked,
            }
        });
        match exit_code {
            0 if is_unknown => Err(TargetsError::NoUser),
            0 => Ok(cli::targets(rows)),
            exit_code => Err(TargetsError::Exit(exit_code)),
        }
    }

    fn connect(&self, node: Node<'_>) -> Result<Box<dyn Stream>, Trouble> {
        match node {
            Node::Here => connect_here(),
            Node::At(target) => self.connect_to(target),
        }
    }

    fn connect_to(&self, target: &[u8]) -> Result<Box<dyn Stream>, Trouble> {
        let (host, port, with_tls) = parse_target(target, port()).map_err(Trouble::Unsupported)?;
        let socket = connect_tcp(&host, port)?;
        if !with_tls {
            return Ok(Box::new(socket));
        }
        let tls = Tls::open(self.command, socket, &host, GREETING_TIMEOUT);
        Ok(Box::new(tls.map_err(Trouble::Unreachable)?))
    }
}

impl Stream for Tls {
    fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        Self::set_timeout(self, timeout);
        Ok(())
    }
}

fn connect_here() -> Result<Box<dyn Stream>, Trouble> {
    let mut path = socket_path();
    if !path.starts_with(b"/") {
        path = [base_dir(), path].join(&b'/');
    }
    match UnixStream::connect(Path::new(OsStr::from_bytes(&path))) {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(Trouble::Unreachable(format!(
            "connect({}) failed: {}",
            String::from_utf8_lossy(&path),
            errno_text(&error)
        ))),
    }
}

fn connect_tcp(host: &str, port: u16) -> Result<TcpStream, Trouble> {
    let unreachable = |what: &str, error: &io::Error| {
        Trouble::Unreachable(format!("{what}: {}", errno_text(error)))
    };
    let addresses = (host, port).to_socket_addrs();
    let addresses = addresses.map_err(|error| unreachable(host, &error))?;
    let mut last = Trouble::Unreachable(format!("{host} has no address"));
    for address in addresses {
        match TcpStream::connect_timeout(&address, GREETING_TIMEOUT) {
            Ok(socket) => {
                // Commands are short and wait for their answer.
                let _ = socket.set_nodelay(true);
                return Ok(socket);
            }
            Err(error) => last = unreachable(&format!("connect({address}) failed"), &error),
        }
    }
    Err(last)
}

/// A command over `remote:`. What it says on stderr goes where doveadm's goes.
fn run_remote(
    target: &[u8],
    command: NodeCommand<'_>,
    take: &mut TakePart<'_>,
) -> Result<(), Trouble> {
    let words = remote::command_line(target, &dsync_remote_cmd(), command)?;
    let mut words = words.iter().map(|word| OsStr::from_bytes(word));
    let program = words.next().unwrap_or_default();
    let unreachable = |error: io::Error| {
        let program = program.to_string_lossy();
        Trouble::Unreachable(format!("{program}: {}", errno_text(&error)))
    };
    let spawned = process::Command::new(program)
        .args(words)
        .stdin(process::Stdio::null())
        .stdout(process::Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(unreachable)?;
    let read = child
        .stdout
        .take()
        .map_or(Ok(()), |stdout| read_json(stdout, take));
    if read.is_err() {
        // It may have ended by itself.
        let _ = child.kill();
    }
    let status = child.wait().map_err(unreachable)?;
    let failed = |invalid: InvalidAnswer| Trouble::Failed(format!("{}: {invalid}", command.name));
    match remote::ended(status.code(), command) {
        // Killed because of what it printed.
        Err(_) if status.code().is_none() => read.map_err(failed),
        Err(trouble) => Err(trouble),
        Ok(()) => read.map_err(failed),
    }
}

fn read_json(mut output: impl Read, take: &mut TakePart<'_>) -> Result<(), InvalidAnswer> {
    let mut json = JsonReader::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match output.read(&mut buffer) {
            Ok(0) if json.is_whole() => return Ok(()),
            Ok(0) => return Err(InvalidAnswer::Incomplete),
            Ok(length) => {
                let bytes = buffer.get(..length).unwrap_or_default();
                json.push(bytes, |value| take(value, true))?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(InvalidAnswer::Incomplete),
        }
    }
}

impl World for Nodes {
    fn run(
        &mut self,
        node: Node<'_>,
        command: NodeCommand<'_>,
        take: &mut TakePart<'_>,
    ) -> Result<(), Trouble> {
        if let Node::At(target) = node {
            if !target.starts_with(b"tcp:") && !target.starts_with(b"tcps:") {
                return run_remote(target, command, take);
            }
        }
        let mut stream = self.connect(node)?;
        run_command(stream.as_mut(), &self.password, command, take)
    }

    fn usernames(&mut self, mask: &[u8], each: &mut dyn FnMut(Vec<u8>)) -> Result<(), i32> {
        let request = status::status_request(Some(mask));
        let exit_code = converse(self.command, Manner::Ours, |client| {
            client.ask(&request, USER_ROWS_MAX, |fields| {
                if let Some(username) = fields.into_iter().next() {
                    each(username);
                }
            })
        });
        match exit_code {
            0 => Ok(()),
            exit_code => Err(exit_code),
        }
    }

    fn targets(&mut self, username: &[u8]) -> Result<Vec<Vec<u8>>, TargetsError> {
        let known = self.show_targets(username);
        let is_looked_up = |known: &Result<Vec<Vec<u8>>, TargetsError>| match known {
            Ok(targets) => targets.iter().all(|target| !target.is_empty()),
            Err(error) => *error != TargetsError::NoUser,
        };
        if is_looked_up(&known) {
            return known;
        }
        // One who was never due.
        let request = add::add_request(username);
        converse(self.command, Manner::Ours, |client| {
            match client.order(&request) {
                // That it is unknown is said below.
                Ok(_) | Err(AnswerError::Rejected(_)) => Ok(()),
                Err(error) => Err(error),
            }
        });
        let mut known = self.show_targets(username);
        for _ in 0..LOOKUP_TRIES {
            if is_looked_up(&known) || known == Err(TargetsError::NoUser) {
                break;
            }
            std::thread::sleep(LOOKUP_PAUSE);
            known = self.show_targets(username);
        }
        known
    }

    fn pause(&mut self, pause: Duration) {
        std::thread::sleep(pause);
    }

    fn tell(&mut self, username: &[u8], peer: &[u8], difference: &Difference) {
        if self.is_for_people() {
            let print = self.print.get_or_insert_with(|| begin(Format::Flow, LINES));
            print.value(difference.for_people(username, peer).as_bytes());
        } else if let Some(print) = &self.print {
            for value in [username, peer] {
                print.value(value);
            }
            for value in difference.for_machines() {
                print.value(&value);
            }
        }
    }

    fn complain(&mut self, text: &str) {
        log::error!("{text}");
    }
}
