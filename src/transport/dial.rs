//! Connecting without waiting: begun here, and looked at again when poll says that something has become of it.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{sockopt, AddressFamily, SocketAddrUnix, SocketType};

/// Begins to connect to a TCP port. [`finish`] tells how it went, once poll finds the socket writable.
pub(crate) fn begin(address: &SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = nonblocking_socket(family)?;
    match rustix::net::connect(&socket, address) {
        // interrupted: the attempt goes on in the background all the same (POSIX connect)
        Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(socket),
        Err(e) => Err(e.into()),
    }
}

/// Connects to a Unix socket: at once, or not at all (it says "try again" while the listener's backlog is full).
pub(crate) fn unix(path: &Path) -> io::Result<OwnedFd> {
    let socket = nonblocking_socket(AddressFamily::UNIX)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// A stream socket for which nobody waits.
#[cfg(target_os = "linux")]
pub(crate) fn nonblocking_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    use rustix::net::{socket_with, SocketFlags};
    Ok(socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?)
}

/// A stream socket for which nobody waits. In steps, where `socket` takes no flags: a program started in between inherits the socket.
#[cfg(not(target_os = "linux"))]
pub(crate) fn nonblocking_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket(family, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// The connection, if that is what the attempt has become.
pub(crate) fn finish(socket: OwnedFd) -> io::Result<TcpStream> {
    sockopt::socket_error(&socket)??;
    let stream = TcpStream::from(socket);
    // TCP connects a socket to itself when the port it tries on this machine happens to be the one that it was given
    // for its own end: nobody listens there
    if stream.local_addr()? == stream.peer_addr()? {
        return Err(Errno::CONNREFUSED.into());
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}
