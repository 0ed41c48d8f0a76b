//! What is at the far ends of forwarded connections: zeros for everybody who asks, takers, echoes, and nobody.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::mpsc::{channel, Receiver};
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};

use crate::Outcome;

/// Bytes of one read or write.
const BUFFER: usize = 256 * 1024;

/// So long a listener on this machine does not answer only if its backlog is full.
const NO_ANSWER: Duration = Duration::from_millis(200);

/// A listener on a free port of 127.0.0.1; it is there until the program ends.
#[derive(Debug)]
pub struct Source {
    pub port: u16,
    accepted: Receiver<()>,
}

impl Source {
    /// It sends so many bytes over each connection, after one byte has come.
    pub fn start(bytes: u64) -> Outcome<Source> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let (accept, accepted) = channel();
        thread::spawn(move || {
            let zeros = vec![0; BUFFER];
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                // Nobody waits for it where the clock is the client's own.
                let _ = accept.send(());
                let mut left = if stream.read_exact(&mut [0]).is_ok() { bytes as usize } else { 0 };
                while left > 0 {
                    let Ok(n) = stream.write(&zeros[..left.min(zeros.len())]) else { break };
                    left -= n;
                }
            }
        });
        Ok(Source { port, accepted })
    }

    /// Forgets who has been accepted.
    pub fn forget(&self) {
        while self.accepted.try_recv().is_ok() {}
    }

    /// Waits until somebody is accepted.
    pub fn wait(&self) -> Outcome<()> {
        Ok(self.accepted.recv_timeout(crate::openssh::PATIENCE)?)
    }
}

/// Takes all that comes over a connection, and then says how many bytes that were, in eight bytes. The port; it is
/// served until the program ends.
pub fn sink() -> Outcome<u16> {
    serve(|mut stream| {
        let (mut buffer, mut got) = (vec![0; BUFFER], 0u64);
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            got += n as u64;
        }
        // Who went away does not want to know.
        let _ = stream.write_all(&got.to_be_bytes());
    })
}

/// Sends back what comes. The port; it is served until the program ends.
pub fn echo() -> Outcome<u16> {
    serve(|mut stream| {
        let mut buffer = [0; 1024];
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..n]).is_err() {
                return;
            }
        }
    })
}

/// A thread for each connection.
fn serve(one: fn(TcpStream)) -> Outcome<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            if stream.set_nodelay(true).is_ok() {
                thread::spawn(move || one(stream));
            }
        }
    });
    Ok(port)
}

/// A port at which nobody ever answers: its listener's backlog is full.
#[derive(Debug)]
pub struct BlackHole {
    pub port: u16,
    _held: (OwnedFd, Vec<TcpStream>),
}

impl BlackHole {
    pub fn dig() -> Outcome<BlackHole> {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
        rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
        rustix::net::listen(&socket, 0)?;
        let address: SocketAddr = rustix::net::getsockname(&socket)?.try_into()?;
        let mut fillers = Vec::new();
        while let Ok(filler) = TcpStream::connect_timeout(&address, NO_ANSWER) {
            fillers.push(filler);
        }
        Ok(BlackHole { port: address.port(), _held: (socket, fillers) })
    }
}
