//! A connection to the replicator, over a unix socket or TCP.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};

/// Where the replicator is, as `replicator_host` and `replicator_port` say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The path of a socket, from the directory in which the service runs.
    Unix(PathBuf),
    /// The addresses of a host, tried in turn.
    Tcp(Vec<SocketAddr>),
}

impl Target {
    /// Resolves the name, which is no longer possible after chroot. Port 0 means a unix socket.
    ///
    /// # Errors
    /// The name has no address.
    pub fn resolve(host: &str, port: u16) -> io::Result<Self> {
        if port == 0 {
            return Ok(Self::Unix(host.into()));
        }
        let failed = |reason: String| {
            io::Error::other(format!(
                "replicator_host: gethostbyname({host}) failed: {reason}"
            ))
        };
        let addresses: Vec<_> = (host, port)
            .to_socket_addrs()
            .map_err(|e| failed(e.to_string()))?
            .collect();
        if addresses.is_empty() {
            return Err(failed("no address".to_owned()));
        }
        Ok(Self::Tcp(addresses))
    }

    /// The target of an attempt, for a log.
    #[must_use]
    pub fn name(&self, attempt: usize) -> String {
        match self {
            Self::Unix(path) => path.display().to_string(),
            Self::Tcp(addresses) => {
                let at = attempt.checked_rem(addresses.len()).unwrap_or_default();
                addresses
                    .get(at)
                    .map(ToString::to_string)
                    .unwrap_or_default()
            }
        }
    }

    /// Begins to connect; whether the connection is there already.
    ///
    /// # Errors
    /// As connect(2).
    pub fn connect(&self, attempt: usize) -> io::Result<(Stream, bool)> {
        match self {
            Self::Unix(path) => Ok((Stream::Unix(UnixStream::connect(path)?), true)),
            Self::Tcp(addresses) => {
                let at = attempt.checked_rem(addresses.len()).unwrap_or_default();
                let address = addresses
                    .get(at)
                    .ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
                Ok((Stream::Tcp(TcpStream::connect(*address)?), false))
            }
        }
    }
}

/// The connection.
#[derive(Debug)]
pub enum Stream {
    /// On this machine.
    Unix(UnixStream),
    /// On another.
    Tcp(TcpStream),
}

impl Stream {
    /// Watches it.
    ///
    /// # Errors
    /// As epoll_ctl(2).
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        let interests = Interest::READABLE | Interest::WRITABLE;
        match self {
            Self::Unix(stream) => registry.register(stream, token, interests),
            Self::Tcp(stream) => registry.register(stream, token, interests),
        }
    }

    /// Whether a connect that was begun is done.
    ///
    /// # Errors
    /// It failed.
    pub fn poll_connected(&self) -> io::Result<bool> {
        let Self::Tcp(stream) = self else {
            return Ok(true);
        };
        if let Some(e) = stream.take_error()? {
            return Err(e);
        }
        match stream.peer_addr() {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotConnected => Ok(false),
            Err(e) => Err(e),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.read(buffer),
            Self::Tcp(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unix(stream) => stream.write(bytes),
            Self::Tcp(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_0_is_a_unix_socket_and_any_other_a_host() {
        assert_eq!(
            Target::resolve("replicator", 0).unwrap(),
            Target::Unix("replicator".into())
        );
        let tcp = Target::resolve("127.0.0.1", 2001).unwrap();
        assert_eq!(tcp.name(7), "127.0.0.1:2001");
        let error = Target::resolve("", 1).unwrap_err().to_string();
        assert!(
            error.starts_with("replicator_host: gethostbyname() failed:"),
            "{error}"
        );
    }
}
