//! Listening on this machine: addresses of a name, and Unix sockets that are their user's alone.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use super::Endpoint;
use crate::error::{Error, Result};
use crate::transport::listener::{Listener, SocketFile};

/// Connections that may wait to be accepted; the system may allow fewer.
const BACKLOG: i32 = 128;
/// Free ports tried until one is free for all addresses of a name.
const PORT_ATTEMPTS: usize = 20;

/// Listens, and says where: with the port that was chosen, if any would do.
pub(super) fn listen(endpoint: &Endpoint) -> Result<(Vec<Listener>, Endpoint, Option<SocketAddr>)> {
    let failed = |e: io::Error| Error::io(format!("cannot listen on {endpoint}"), e);
    match endpoint {
        Endpoint::Tcp { host, port } => {
            let listeners = listen_tcp(&addresses(host)?, *port).map_err(failed)?;
            let address = listeners[0].local_addr().map_err(failed)?;
            for listener in &listeners {
                listener.set_nonblocking(true).map_err(failed)?;
            }
            let listeners = listeners.into_iter().map(Listener::Tcp).collect();
            Ok((listeners, Endpoint::tcp(host.clone(), address.port()), Some(address)))
        }
        Endpoint::Unix(path) => {
            let listener = listen_unix(path).map_err(failed)?;
            let _file = SocketFile::new(path);
            Ok((vec![Listener::Unix { listener, _file }], endpoint.clone(), None))
        }
    }
}

/// The loopbacks where no host is named.
fn addresses(host: &str) -> Result<Vec<IpAddr>> {
    Ok(match host {
        "" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        // The first takes IPv4 as well, where the system is set so.
        "*" => vec![Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()],
        host => {
            let found = (host, 0).to_socket_addrs();
            let found = found.map_err(|e| Error::Resolve { host: host.to_owned(), source: Arc::new(e) })?;
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in found.map(|a| a.ip()) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            addresses
        }
    })
}

/// Listens on one port of all addresses that this machine has.
fn listen_tcp(addresses: &[IpAddr], port: u16) -> io::Result<Vec<TcpListener>> {
    let mut outcome = listen_on_each(addresses, port);
    for _ in 1..PORT_ATTEMPTS {
        // The port that was free at one address is taken at another.
        match &outcome {
            Err(error) if port == 0 && error.kind() == ErrorKind::AddrInUse => {}
            _ => break,
        }
        outcome = listen_on_each(addresses, port);
    }
    outcome
}

fn listen_on_each(addresses: &[IpAddr], mut port: u16) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    let mut failure = io::Error::new(ErrorKind::NotFound, "the name has no addresses");
    for &address in addresses {
        match TcpListener::bind(SocketAddr::new(address, port)) {
            Ok(listener) => {
                port = listener.local_addr()?.port();
                listeners.push(listener);
            }
            // The first took all addresses.
            Err(_) if address == Ipv4Addr::UNSPECIFIED && !listeners.is_empty() => {}
            // Somebody else would answer at some of the name's addresses.
            Err(error) if error.kind() == ErrorKind::AddrInUse => return Err(error),
            // A machine without IPv6.
            Err(error) => failure = error,
        }
    }
    if listeners.is_empty() {
        return Err(failure);
    }
    Ok(listeners)
}

/// Listens on a Unix socket that only its user can reach. A socket file at which nobody listens any more is replaced.
fn listen_unix(path: &Path) -> io::Result<UnixListener> {
    match bind_unix(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_stale(path) => {
            std::fs::remove_file(path)?;
            bind_unix(path)
        }
        outcome => outcome,
    }
}

fn is_stale(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused)
}

fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let socket: OwnedFd = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    let mine = Mode::RUSR | Mode::WUSR;
    // On Linux the file gets the socket's mode: there is no moment at which others could connect.
    #[cfg(target_os = "linux")]
    rustix::fs::fchmod(&socket, mine)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    #[cfg(not(target_os = "linux"))]
    rustix::fs::chmod(path, mine)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn port_of(endpoint: &Endpoint) -> u16 {
        endpoint.port().unwrap()
    }

    #[test]
    fn a_name_is_listened_on_at_all_its_addresses_with_one_port() {
        let (listeners, endpoint, address) = listen(&Endpoint::tcp("", 0)).unwrap();
        assert!(!listeners.is_empty() && port_of(&endpoint) != 0);
        assert_eq!(address.unwrap().port(), port_of(&endpoint));
        // The port is taken now, at each of them.
        let error = listen(&endpoint).unwrap_err();
        assert_eq!(io::Error::from(error.clone()).kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().starts_with(&format!("cannot listen on {endpoint}: ")), "{error}");
    }

    #[test]
    fn all_addresses_means_all() {
        let (_listeners, endpoint, _) = listen(&Endpoint::tcp("*", 0)).unwrap();
        std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port_of(&endpoint))).unwrap();
    }

    #[test]
    fn a_unix_socket_is_its_users_alone_and_goes_with_its_listener() {
        let directory = tempfile::tempdir().unwrap();
        let endpoint = Endpoint::unix(directory.path().join("s"));
        let path = endpoint.path().unwrap().to_owned();
        let first = listen(&endpoint).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(listen(&endpoint).is_err(), "somebody listens there");
        drop(first);
        assert!(!path.exists());
        // Left behind by a process that was killed.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = listen(&endpoint).unwrap();
        // Taken over by somebody else: not ours to remove.
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(second);
        assert!(path.exists());
        // A file that is no socket is nobody's to remove either.
        let file = Endpoint::unix(directory.path().join("file"));
        std::fs::write(file.path().unwrap(), "kept").unwrap();
        assert!(listen(&file).is_err());
        assert_eq!(std::fs::read(file.path().unwrap()).unwrap(), b"kept");
    }
}
