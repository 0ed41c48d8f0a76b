//! One forward of each kind, and how to get into it. The server is this machine, so both ends are at hand.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use threadline::{Client, Endpoint, Forward, ForwardBuilder};

use super::End;
use crate::connect::PATIENCE;
use crate::sshd::Sshd;
use crate::util::within;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Local,
    LocalUnix,
    Remote,
    RemoteUnix,
    Dynamic,
    RemoteDynamic,
}

use Kind::{Dynamic, Local, LocalUnix, Remote, RemoteDynamic, RemoteUnix};

pub const ALL: [Kind; 6] = [Local, LocalUnix, Remote, RemoteUnix, Dynamic, RemoteDynamic];

/// A socket of either sort.
pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl From<Socket> for End {
    fn from(socket: Socket) -> End {
        match socket {
            Socket::Tcp(stream) => stream.into(),
            Socket::Unix(stream) => stream.into(),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.read(buffer),
            Socket::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self {
            Socket::Tcp(stream) => stream.write(bytes),
            Socket::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Socket {
    pub fn end_writing(&self) {
        let write = std::net::Shutdown::Write;
        match self {
            Socket::Tcp(stream) => stream.shutdown(write).unwrap(),
            Socket::Unix(stream) => stream.shutdown(write).unwrap(),
        }
    }
}

/// Where a tunnel leads: a listener of this test's.
pub enum Target {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Target {
    #[track_caller]
    pub fn accept(&self) -> Socket {
        match self {
            Target::Tcp(listener) => Socket::Tcp(super::accept(listener)),
            Target::Unix(listener) => {
                let listener = listener.try_clone().unwrap();
                Socket::Unix(within(PATIENCE, move || listener.accept().unwrap().0))
            }
        }
    }
}

/// How to get into a forward.
#[derive(Debug, Clone)]
pub struct Entrance {
    kind: Kind,
    at: Endpoint,
    target: SocketAddr,
}

impl Entrance {
    pub fn to(kind: Kind, forward: &Forward, target: SocketAddr) -> Entrance {
        Entrance { kind, at: forward.endpoint().clone(), target }
    }

    /// A connection into the forward, as a program makes it.
    pub fn connect(&self) -> std::io::Result<Socket> {
        match self.kind {
            LocalUnix | RemoteUnix => Ok(Socket::Unix(UnixStream::connect(self.at.path().unwrap())?)),
            Local | Remote => Ok(Socket::Tcp(self.tcp()?)),
            Dynamic | RemoteDynamic => {
                let mut stream = self.tcp()?;
                match socks5(&mut stream, self.target)? {
                    0 => Ok(Socket::Tcp(stream)),
                    code => Err(std::io::Error::other(format!("SOCKS code {code}"))),
                }
            }
        }
    }

    pub fn tcp(&self) -> std::io::Result<TcpStream> {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.at.port().unwrap()))
    }
}

/// Asks a SOCKS5 proxy for an IPv4 address; the reply's code.
pub fn socks5(stream: &mut TcpStream, target: SocketAddr) -> std::io::Result<u8> {
    let SocketAddr::V4(target) = target else { unreachable!("the tests' targets are of IPv4") };
    stream.write_all(&[5, 1, 0])?;
    stream.write_all(&[&[5, 1, 0, 1], &target.ip().octets()[..], &target.port().to_be_bytes()].concat())?;
    let mut reply = [0; 12];
    stream.read_exact(&mut reply)?;
    assert_eq!(reply[..3], [5, 0, 5]);
    Ok(reply[3])
}

/// A forward of this kind to this target, still to be started.
pub fn plan(kind: Kind, server: &Sshd, target: SocketAddr) -> ForwardBuilder {
    let [here, there] = paths(server);
    match kind {
        Local => Forward::local("127.0.0.1:0", target.to_string()),
        Remote => Forward::remote("127.0.0.1:0", target.to_string()),
        LocalUnix => Forward::local(Endpoint::unix(here), Endpoint::unix(there)),
        RemoteUnix => Forward::remote(Endpoint::unix(here), Endpoint::unix(there)),
        Dynamic => Forward::dynamic("127.0.0.1:0"),
        RemoteDynamic => Forward::remote_dynamic("127.0.0.1:0"),
    }
}

/// Where a tunnel of Unix sockets begins, and where it leads.
pub fn paths(server: &Sshd) -> [PathBuf; 2] {
    [server.dir().join("entrance.sock"), server.dir().join("target.sock")]
}

/// A forward of this kind, how to get into it, and the listener that it leads to.
#[track_caller]
pub fn tunnel(kind: Kind, server: &Sshd, client: &Client) -> (Forward, Entrance, Target) {
    let (target, address) = match kind {
        LocalUnix | RemoteUnix => (Target::Unix(UnixListener::bind(&paths(server)[1]).unwrap()), ([0; 4], 0).into()),
        _ => {
            let (listener, address) = super::listener();
            (Target::Tcp(listener), address)
        }
    };
    let forward = plan(kind, server, address).start(client).unwrap();
    let entrance = Entrance::to(kind, &forward, address);
    (forward, entrance, target)
}
