//! Tunnels: streams through the server, forwards both ways, and what goes wrong at their far ends.

/// Accepting here what connects at the server; and the agent.
mod accepting;
/// What every kind of forward carries, and how its ends end.
mod carrying;
/// What is left of a forward: nothing.
mod ending;
/// Targets that cannot be reached, servers that do not allow it, and limits.
mod failing;
/// Streams: `tcp_connect`, `unix_connect`, any channel, any request.
mod streams;
/// A forward of each kind.
mod tunnel;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{mpsc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType};
use threadline::ChannelStream;

use crate::connect::PATIENCE;
use crate::util::{noise, sha256, within};

/// Nobody's limit: a wait that should not be there fails the test by the test's own deadline.
const NEVER: Duration = Duration::from_secs(600);

/// One end of a connection, of whatever kind.
struct End {
    reader: Box<dyn Read + Send>,
    writer: Box<dyn Write + Send>,
    finish: Box<dyn FnOnce() + Send>,
}

macro_rules! end {
    ($kind:ty) => {
        impl From<$kind> for End {
            fn from(stream: $kind) -> End {
                let (writer, third) = (stream.try_clone().unwrap(), stream.try_clone().unwrap());
                let finish = Box::new(move || third.shutdown(Shutdown::Write).unwrap());
                End { reader: Box::new(stream), writer: Box::new(writer), finish }
            }
        }
    };
}

end!(TcpStream);
end!(UnixStream);
end!(ChannelStream);

/// Sends so much from each end to the other at the same time, ends both directions, and compares what arrived.
#[track_caller]
fn exchange(one: impl Into<End>, other: impl Into<End>, bytes: u64) {
    let (one, other) = (one.into(), other.into());
    let feed = |seed: u64, mut writer: Box<dyn Write + Send>, finish: Box<dyn FnOnce() + Send>| {
        thread::spawn(move || {
            let (mut noise, mut buffer) = (noise(seed, bytes), vec![0; 64 * 1024]);
            while let Ok(n @ 1..) = noise.read(&mut buffer) {
                writer.write_all(&buffer[..n]).unwrap();
            }
            finish();
        })
    };
    let hash = |reader: Box<dyn Read + Send>| thread::spawn(move || sha256(reader).unwrap());
    let feeders = [feed(1, one.writer, one.finish), feed(2, other.writer, other.finish)];
    let (at_one, at_other) = (hash(one.reader), hash(other.reader));
    within(PATIENCE * 2, move || {
        assert_eq!(at_other.join().unwrap(), noise_hash(1, bytes));
        assert_eq!(at_one.join().unwrap(), noise_hash(2, bytes));
        feeders.into_iter().for_each(|feeder| feeder.join().unwrap());
    });
}

/// The hash and the length of a noise; made once for all tests.
fn noise_hash(seed: u64, bytes: u64) -> (String, u64) {
    static KNOWN: Mutex<BTreeMap<(u64, u64), (String, u64)>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap();
    known.entry((seed, bytes)).or_insert_with(|| sha256(noise(seed, bytes)).unwrap()).clone()
}

/// A listener of this machine's and its address.
fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Accepts one connection, in time.
#[track_caller]
fn accept(listener: &TcpListener) -> TcpStream {
    let listener = listener.try_clone().unwrap();
    within(PATIENCE, move || listener.accept().unwrap().0)
}

/// A target that sends back what it gets, on any number of connections, until it is dropped.
pub(crate) struct EchoServer {
    address: SocketAddr,
    path: Option<std::path::PathBuf>,
    stop: mpsc::Sender<()>,
}

impl EchoServer {
    pub fn start() -> EchoServer {
        let (listener, address) = listener();
        EchoServer::serve(address, None, move || Ok(End::from(listener.accept()?.0)))
    }

    pub fn start_unix(path: &Path) -> EchoServer {
        let listener = UnixListener::bind(path).unwrap();
        let nowhere = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0));
        EchoServer::serve(nowhere, Some(path.to_owned()), move || Ok(End::from(listener.accept()?.0)))
    }

    fn serve(
        address: SocketAddr,
        path: Option<std::path::PathBuf>,
        accept: impl Fn() -> std::io::Result<End> + Send + 'static,
    ) -> EchoServer {
        let (stop, stopped) = mpsc::channel::<()>();
        thread::spawn(move || {
            while let Ok(mut end) = accept() {
                if stopped.try_recv() != Err(mpsc::TryRecvError::Empty) {
                    return;
                }
                thread::spawn(move || {
                    if std::io::copy(&mut end.reader, &mut end.writer).is_ok() {
                        // The other side may have gone meanwhile.
                        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(end.finish));
                    }
                });
            }
        });
        EchoServer { address, path, stop }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    fn target(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        // So that it comes out of its accept and looks.
        let _ = self.stop.send(());
        let _ = match &self.path {
            Some(path) => UnixStream::connect(path).map(drop),
            None => TcpStream::connect(self.address).map(drop),
        };
    }
}

/// An address at which nobody ever answers: a listener whose backlog is full.
struct BlackHole {
    address: SocketAddr,
    _held: (std::os::fd::OwnedFd, Vec<TcpStream>),
}

impl BlackHole {
    fn dig() -> BlackHole {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let address: SocketAddr = rustix::net::getsockname(&socket).unwrap().try_into().unwrap();
        let mut fillers = Vec::new();
        while let Ok(filler) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            fillers.push(filler);
        }
        BlackHole { address, _held: (socket, fillers) }
    }
}

/// Sends a line and waits for it to come back.
#[track_caller]
pub(crate) fn echoes(mut stream: impl Read + Write, text: &[u8]) {
    stream.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, text);
}
