//! A misbehaving SSH server for the tests, encryption and all: it does what a script says, right or wrong.
//!
//! ```ignore
//! let server = Rogue::start(|conn| {
//!     conn.handshake(&Offer::default())?;
//!     conn.accept_any_auth()?;
//!     let (channel, _command) = conn.expect_exec()?;
//!     conn.data(channel, b"so far, so good\n")?;
//!     conn.send_with_bad_mac(&ignore(b""))?;
//!     assert!(conn.wait_for_end()?.contains("MAC"));
//!     Ok(())
//! });
//! // ... a client connects to 127.0.0.1, server.port(), where it finds server.known_hosts_line() ...
//! server.wait().unwrap();
//! ```
//!
//! One thread accepts, one more per connection runs the script. Dropping the server closes every socket and joins every
//! thread; it panics if a script panicked and nobody asked `wait` about it.
// To be removed once the tests of the client use all of it.
#![allow(dead_code)]

mod auth;
mod behaviour;
mod channel;
mod cipher;
mod conn;
mod faults;
mod kex;
mod plain;
mod wire;

use std::any::Any;
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

#[allow(unused_imports)] // with the line above
pub use self::{
    auth::Login,
    behaviour::{run, Answer, Behaviour, OpenAnswer},
    channel::{reason, Channel, Input, Open, Request},
    cipher::{Cipher, Mac, Part},
    conn::{is_gone, ServerConn, DEADLINE},
    faults::{RekeyFault, FORBIDDEN},
    kex::{Agreed, HostKey, Offer},
    wire::{base64, fields, ignore, message, msg, Reader, Writer},
};

/// How long `wait` gives a script to end.
const SCRIPT_DEADLINE: Duration = Duration::from_secs(60);

/// A server on a free port of 127.0.0.1.
#[derive(Debug)]
pub struct Rogue {
    port: u16,
    host_key: HostKey,
    stopping: Arc<AtomicBool>,
    /// Dropped to end all pauses of all scripts.
    stop: Option<Sender<()>>,
    acceptor: Option<JoinHandle<Vec<Connection>>>,
    outcomes: Receiver<Outcome>,
}

/// A connection as the acceptor keeps it: a handle to cut it by, and the thread of its script.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    script: JoinHandle<()>,
}

#[derive(Debug)]
enum Outcome {
    Returned(io::Result<()>),
    Panicked(String),
}

impl Rogue {
    /// Runs `script` on every connection, from the first byte on. The host key is new with every server.
    pub fn start(script: impl Fn(&mut ServerConn) -> io::Result<()> + Send + Sync + 'static) -> Rogue {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port on 127.0.0.1");
        let port = listener.local_addr().expect("the address of a listener").port();
        let host_key = HostKey::random();
        let stopping = Arc::new(AtomicBool::new(false));
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let (outcome, outcomes) = crossbeam_channel::unbounded();
        let host = Host { script: Arc::new(script), host_key: host_key.clone(), stopped, outcome };
        let acceptor = {
            let stopping = Arc::clone(&stopping);
            thread::Builder::new().name(format!("rogue:{port}")).spawn(move || host.accept(&listener, &stopping))
        };
        let acceptor = Some(acceptor.expect("a thread"));
        Rogue { port, host_key, stopping, stop: Some(stop), acceptor, outcomes }
    }

    /// Runs `script` on every connection once the client is logged in, with all that this server offers.
    pub fn logged_in(script: impl Fn(&mut ServerConn) -> io::Result<()> + Send + Sync + 'static) -> Rogue {
        Rogue::logged_in_with(Offer::default(), script)
    }

    /// `logged_in` with this offer.
    pub fn logged_in_with(
        offer: Offer,
        script: impl Fn(&mut ServerConn) -> io::Result<()> + Send + Sync + 'static,
    ) -> Rogue {
        Rogue::start(move |conn| {
            conn.handshake(&offer)?;
            conn.accept_any_auth()?;
            script(conn)
        })
    }

    /// Serves every client that logs in, by a behaviour of its own.
    pub fn serving(behaviour: impl Fn() -> Behaviour<'static> + Send + Sync + 'static) -> Rogue {
        Rogue::logged_in(move |conn| conn.serve(&mut behaviour()))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The host key as it is in a KEX_ECDH_REPLY.
    pub fn host_key_blob(&self) -> Vec<u8> {
        self.host_key.blob()
    }

    /// The line by which a strict client knows this server, its line ending included.
    pub fn known_hosts_line(&self) -> String {
        format!("[127.0.0.1]:{} ssh-ed25519 {}\n", self.port, base64(&self.host_key.blob()))
    }

    /// Waits until the script of one connection has ended, and what it returned: those of several connections come in
    /// the order in which they end. Panics if the script panicked. `TimedOut` after a minute.
    pub fn wait(&self) -> io::Result<()> {
        match self.outcomes.recv_timeout(SCRIPT_DEADLINE) {
            Ok(Outcome::Returned(outcome)) => outcome,
            Ok(Outcome::Panicked(text)) => panic!("the server's script panicked: {text}"),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the server's script does not end")),
        }
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        drop(self.stop.take());
        // One more connection, for the acceptor to wake up and see the flag. If it cannot be made the acceptor is gone.
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
        let connections = self.acceptor.take().and_then(|acceptor| acceptor.join().ok()).unwrap_or_default();
        for connection in &connections {
            // Fails where the client was faster.
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
        for connection in connections {
            let _ = connection.script.join();
        }
        if thread::panicking() {
            return;
        }
        for outcome in self.outcomes.try_iter() {
            if let Outcome::Panicked(text) = outcome {
                panic!("the server's script panicked: {text}");
            }
        }
    }
}

/// What the acceptor needs to serve a connection.
struct Host<S> {
    script: Arc<S>,
    host_key: HostKey,
    stopped: Receiver<()>,
    outcome: Sender<Outcome>,
}

impl<S: Fn(&mut ServerConn) -> io::Result<()> + Send + Sync + 'static> Host<S> {
    fn accept(&self, listener: &TcpListener, stopping: &AtomicBool) -> Vec<Connection> {
        let mut connections = Vec::new();
        for stream in listener.incoming() {
            if stopping.load(Ordering::SeqCst) {
                break;
            }
            match stream.and_then(|stream| self.begin(stream)) {
                Ok(connection) => connections.push(connection),
                Err(error) => {
                    // Out of file descriptors or threads: trying again would spin.
                    drop(self.outcome.send(Outcome::Returned(Err(error))));
                    break;
                }
            }
        }
        connections
    }

    fn begin(&self, stream: TcpStream) -> io::Result<Connection> {
        let handle = stream.try_clone()?;
        let mut conn = ServerConn::new(stream, self.stopped.clone(), self.host_key.clone())?;
        let (script, outcome, socket) = (Arc::clone(&self.script), self.outcome.clone(), handle.try_clone()?);
        let script = thread::Builder::new().name("rogue:script".to_owned()).spawn(move || {
            let ended = match catch_unwind(AssertUnwindSafe(|| script(&mut conn))) {
                Ok(outcome) => Outcome::Returned(outcome),
                Err(panic) => Outcome::Panicked(panic_text(panic.as_ref())),
            };
            // Fails where the client was faster.
            let _ = socket.shutdown(Shutdown::Both);
            // Nobody listens where the server is being dropped.
            let _ = outcome.send(ended);
        })?;
        Ok(Connection { stream: handle, script })
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "(no text)".to_owned())
}
