//! Where a tunnel begins or ends: `host:port`, or a Unix socket. Pure.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};

/// One end of a tunnel: a TCP port of a host, or a Unix socket.
///
/// As text: `db:5432`, `[::1]:80`, `*:8080` (all addresses, to listen on), `:8080` or `8080` (this side's loopback, to
/// listen on), and whatever has a `/` in it, a path.
///
/// # Examples
///
/// ```
/// use threadline::Endpoint;
///
/// # fn main() -> threadline::Result<()> {
/// let endpoint: Endpoint = "[::1]:80".parse()?;
/// assert_eq!(endpoint, Endpoint::tcp("::1", 80));
/// assert_eq!("/run/db.sock".parse::<Endpoint>()?, Endpoint::unix("/run/db.sock"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Endpoint {
    /// A TCP port.
    Tcp {
        /// A name or an address; empty for the loopback of whoever listens, `*` for all its addresses.
        host: String,
        /// The port; 0, to listen on, for any that is free.
        port: u16,
    },
    /// The socket file's path.
    Unix(PathBuf),
}

/// The longest name that can be asked for; the request must fit into one packet.
const LONGEST_HOST: usize = 1024;
/// The longest path of a Unix socket that any system takes is about 100 bytes; a server judges for itself.
const LONGEST_PATH: usize = 1024;

impl Endpoint {
    /// A TCP port.
    pub fn tcp(host: impl Into<String>, port: u16) -> Endpoint {
        Endpoint::Tcp { host: host.into(), port }
    }

    /// A Unix socket.
    pub fn unix(path: impl Into<PathBuf>) -> Endpoint {
        Endpoint::Unix(path.into())
    }

    /// The port, if it has one.
    #[must_use]
    pub fn port(&self) -> Option<u16> {
        match self {
            Endpoint::Tcp { port, .. } => Some(*port),
            Endpoint::Unix(_) => None,
        }
    }

    /// The path, if it is a Unix socket.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Endpoint::Tcp { .. } => None,
            Endpoint::Unix(path) => Some(path),
        }
    }

    /// Checks what somebody is to connect to.
    pub(crate) fn into_target(self) -> Result<Endpoint> {
        match &self {
            Endpoint::Tcp { host, .. } if host.is_empty() || host == "*" => {
                Err(invalid(&self.to_string(), "a host to connect to is missing; write it as host:port"))
            }
            Endpoint::Tcp { port: 0, .. } => Err(invalid(&self.to_string(), "nobody listens on port 0")),
            _ => self.checked(),
        }
    }

    /// Checks what can be sent and what the system can take.
    pub(crate) fn checked(self) -> Result<Endpoint> {
        let (len, most, nul) = match &self {
            Endpoint::Tcp { host, .. } => (host.len(), LONGEST_HOST, host.contains('\0')),
            Endpoint::Unix(path) => {
                let bytes = path.as_os_str().as_bytes();
                (bytes.len(), LONGEST_PATH, bytes.contains(&0))
            }
        };
        if len > most {
            return Err(Error::invalid(format!(
                "a tunnel's end has a name of {len} bytes; at most {most} can be sent"
            )));
        }
        if nul {
            return Err(invalid(&self.to_string(), "it has a NUL byte"));
        }
        Ok(self)
    }
}

fn invalid(input: &str, reason: &str) -> Error {
    Error::InvalidTarget { input: input.to_owned(), reason: reason.to_owned() }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Endpoint> {
        if text.contains('/') {
            return Endpoint::unix(OsStr::from_bytes(text.as_bytes())).checked();
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => rest.split_once("]:").ok_or_else(|| invalid(text, "a port has to follow: [v6]:port"))?,
            None => text.rsplit_once(':').unwrap_or(("", text)),
        };
        if host.contains(':') && !text.starts_with('[') {
            return Err(invalid(text, "an IPv6 address is written in brackets: [v6]:port"));
        }
        let port =
            port.parse().map_err(|_| invalid(text, "the port is a number from 0 to 65535; write it as host:port"))?;
        Endpoint::tcp(host, port).checked()
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp { host, port } => write!(f, "{host}:{port}"),
            Endpoint::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_read_in_each_of_its_spellings_and_written_back() {
        for (text, host, port) in [
            ("db:5432", "db", 5432),
            ("[::1]:80", "::1", 80),
            ("*:8080", "*", 8080),
            (":8080", "", 8080),
            ("127.0.0.1:0", "127.0.0.1", 0),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint, Endpoint::tcp(host, port));
            assert_eq!(endpoint.to_string(), text);
        }
        assert_eq!("8080".parse::<Endpoint>().unwrap(), Endpoint::tcp("", 8080));
        assert_eq!("./s:1".parse::<Endpoint>().unwrap(), Endpoint::unix("./s:1"));
    }

    #[test]
    fn what_is_no_endpoint_is_said_so() {
        for text in ["", "db", "db:", "db:port", "db:65536", "::1:80", "[::1]", "[::1]80", "a\0b:1", "/a\0b"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text:?}");
        }
        for text in ["*:80", ":80", "db:0"] {
            assert!(text.parse::<Endpoint>().unwrap().into_target().is_err(), "{text:?}");
        }
        assert!(format!("/{}", "a".repeat(2000)).parse::<Endpoint>().is_err());
    }
}
