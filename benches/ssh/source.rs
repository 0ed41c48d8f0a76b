//! What is at the far end of a forwarded connection: so many zeros for everybody who asks.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::mpsc::{channel, Receiver};
use std::thread;

use crate::Outcome;

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
            let zeros = vec![0; 256 * 1024];
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
