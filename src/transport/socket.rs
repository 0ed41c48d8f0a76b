//! The socket under libssh2: RECV within a budget, SEND into a buffer of ours, and the clock of the last byte.
//!
//! RECV never reports the end of the stream while something received is still to be handed on: it says "try again"
//! and remembers the end, so that what came before a FIN is delivered.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// A peer that floods us before its handshake is over gets no further than this.
const MAX_BEFORE_AUTH: u64 = 4 * 1024 * 1024;
/// What the peer said first is kept, for the error that says that it is no SSH server, or that it shares no algorithm
/// with us: banner and KEXINIT take one or two thousand bytes.
const HEAD: usize = 16 * 1024;

/// How the incoming side ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// The peer closed its side.
    Fin,
    /// The system reported an error.
    Error(Errno),
    /// A packet larger than the protocol allows.
    TooLarge,
    /// Too much data before authentication.
    Flood,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::Fin => f.write_str("the server closed the connection"),
            End::Error(errno) => write!(f, "{}", io::Error::from(*errno)),
            End::TooLarge => f.write_str("the server sent a packet larger than the protocol allows"),
            End::Flood => f.write_str("the server sent megabytes of data where a short handshake was expected"),
        }
    }
}

/// The connection's socket, non-blocking.
#[derive(Debug)]
pub(crate) struct Socket {
    stream: TcpStream,
    out: OutBuffer,
    /// Bytes RECV may still take in before it says "try again".
    budget: usize,
    /// False after a short read until poll reports more: saves the read that would only say EAGAIN.
    readable: bool,
    /// The last RECV said "try again" because of the budget.
    throttled: bool,
    end: Option<End>,
    /// The end may be reported now.
    end_is_due: bool,
    last_received: Instant,
    received: u64,
    /// What was received last has not been acknowledged by us.
    unacknowledged: bool,
    before_auth: bool,
    head: Vec<u8>,
}

impl Socket {
    pub fn new(stream: TcpStream) -> io::Result<Socket> {
        stream.set_nonblocking(true)?;
        Ok(Socket {
            stream,
            out: OutBuffer::default(),
            budget: 0,
            readable: true,
            throttled: false,
            end: None,
            end_is_due: false,
            last_received: Instant::now(),
            received: 0,
            unacknowledged: false,
            before_auth: true,
            head: Vec::new(),
        })
    }

    /// RECV: what is there, within the budget. The error is an errno.
    pub fn receive(&mut self, room: &mut [u8]) -> Result<usize, i32> {
        if room.is_empty() {
            // libssh2 has a packet that does not fit its buffer; answering 0 would look like the peer's FIN.
            self.end.get_or_insert(End::TooLarge);
            return Err(libc::EMSGSIZE);
        }
        if self.end.is_some() {
            return Err(if self.end_is_due { libc::ECONNRESET } else { libc::EAGAIN });
        }
        if !self.readable {
            return Err(libc::EAGAIN);
        }
        if self.budget == 0 {
            self.throttled = true;
            return Err(libc::EAGAIN);
        }
        let asked = room.len();
        match self.read(room) {
            Ok(0) => self.ended(End::Fin),
            Ok(n) => {
                self.account(&room[..n], asked);
                Ok(n)
            }
            Err(Errno::AGAIN) => {
                self.readable = false;
                Err(libc::EAGAIN)
            }
            Err(errno) => self.ended(End::Error(errno)),
        }
    }

    fn read(&self, room: &mut [u8]) -> Result<usize, Errno> {
        loop {
            match rustix::net::recv(&self.stream, &mut *room, RecvFlags::empty()) {
                Err(Errno::INTR) => {}
                other => return other.map(|(n, _)| n),
            }
        }
    }

    fn account(&mut self, bytes: &[u8], asked: usize) {
        self.budget = self.budget.saturating_sub(bytes.len());
        self.last_received = Instant::now();
        self.received += bytes.len() as u64;
        if bytes.len() < asked {
            self.readable = false;
            self.unacknowledged = true;
        }
        if self.before_auth {
            // The handshake's reads have no flush behind them.
            self.acknowledge();
            let room = HEAD.saturating_sub(self.head.len());
            self.head.extend_from_slice(&bytes[..bytes.len().min(room)]);
            if self.received > MAX_BEFORE_AUTH {
                self.end = Some(End::Flood);
            }
        }
    }

    /// sshd answers in two segments, and its Nagle holds the second back until the first is acknowledged: without this
    /// every login and many a command wait 40 ms for our delayed acknowledgement. The kernel forgets the flag, so it
    /// is set after every receive that emptied the socket, unless an answer goes out at once: that acknowledges too.
    fn acknowledge(&mut self) {
        if std::mem::take(&mut self.unacknowledged) {
            #[cfg(target_os = "linux")]
            let _ = rustix::net::sockopt::set_tcp_quickack(&self.stream, true);
        }
    }

    fn ended(&mut self, end: End) -> Result<usize, i32> {
        self.end = Some(end);
        Err(if self.end_is_due { libc::ECONNRESET } else { libc::EAGAIN })
    }

    /// SEND: takes the whole packet. The error is an errno.
    pub fn take(&mut self, packet: &[u8]) -> Result<(), i32> {
        if self.end_is_due {
            return Err(libc::EPIPE);
        }
        self.out.push(packet);
        Ok(())
    }

    /// Writes what is buffered until the kernel takes no more; true when nothing is left. What was received is
    /// acknowledged then, in one packet with what is written, if there is anything.
    pub fn flush(&mut self) -> io::Result<bool> {
        let flushed = self.write();
        self.acknowledge();
        flushed
    }

    fn write(&mut self) -> io::Result<bool> {
        while !self.out.is_empty() {
            match rustix::net::send(&self.stream, self.out.bytes(), SendFlags::NOSIGNAL) {
                Ok(n) => {
                    self.out.consume(n);
                    self.unacknowledged = false;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(true)
    }

    /// Lets RECV take in `bytes` more.
    pub fn allow(&mut self, bytes: usize) {
        self.budget = bytes;
        self.throttled = false;
    }

    /// poll reported data (or an end) to read.
    pub fn set_readable(&mut self) {
        self.readable = true;
    }

    /// RECV held something back since [`allow`](Socket::allow), or may have more: reading again makes sense.
    pub fn may_have_more(&self) -> bool {
        self.throttled || (self.readable && self.end.is_none())
    }

    /// Reading again at once makes sense, within the budget.
    pub fn may_read_on(&self) -> bool {
        self.readable && self.end.is_none() && self.budget > 0
    }

    pub fn end(&self) -> Option<&End> {
        self.end.as_ref()
    }

    /// From now on RECV and SEND fail: everything received has been handed on, or the connection is given up.
    pub fn finish(&mut self) {
        self.end_is_due = true;
    }

    /// The handshake's limits no longer apply.
    pub fn authenticated(&mut self) {
        self.before_auth = false;
        self.head = Vec::new();
    }

    /// What the peer sent first, for an error message.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    pub fn last_received(&self) -> Instant {
        self.last_received
    }

    /// Bytes waiting to be sent.
    pub fn unsent(&self) -> usize {
        self.out.len()
    }

    /// Bytes ever given to SEND; compare with [`flushed`](Socket::flushed) to know when a packet has gone out.
    pub fn taken(&self) -> u64 {
        self.out.taken
    }

    /// Bytes that the kernel has taken.
    pub fn flushed(&self) -> u64 {
        self.out.taken - self.out.len() as u64
    }

    /// Frees the out-buffer's room if it is empty.
    pub fn trim(&mut self) {
        self.out.trim();
    }

    /// Ends both directions; the peer sees a FIN.
    pub fn shut(&self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}

/// Packets that the kernel has not taken yet.
#[derive(Debug, Default)]
struct OutBuffer {
    buffer: Vec<u8>,
    start: usize,
    taken: u64,
}

impl OutBuffer {
    fn push(&mut self, packet: &[u8]) {
        if self.start > 0 && self.start >= self.buffer.len() / 2 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(packet);
        self.taken += packet.len() as u64;
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    fn len(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn consume(&mut self, n: usize) {
        self.start += n;
        if self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        }
    }

    fn trim(&mut self) {
        if self.is_empty() {
            self.buffer = Vec::new();
            self.start = 0;
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};

    use rustix::net::sockopt;

    use super::*;

    /// A socket that has received a byte, and whose kernel has since been told to wait with acknowledgements.
    fn with_a_byte_received() -> (Socket, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(b"x").unwrap();
        stream.peek(&mut [0]).unwrap();
        let mut socket = Socket::new(stream).unwrap();
        socket.authenticated();
        socket.allow(100);
        sockopt::set_tcp_quickack(&socket, false).unwrap();
        assert_eq!(socket.receive(&mut [0; 10]), Ok(1));
        (socket, peer)
    }

    #[test]
    fn what_is_not_answered_is_acknowledged_and_an_answer_acknowledges_by_itself() {
        let (mut socket, _peer) = with_a_byte_received();
        assert!(!sockopt::tcp_quickack(&socket).unwrap());
        assert!(socket.flush().unwrap());
        assert!(sockopt::tcp_quickack(&socket).unwrap());

        let (mut socket, _peer) = with_a_byte_received();
        socket.take(b"answer").unwrap();
        assert!(socket.flush().unwrap());
        assert!(!sockopt::tcp_quickack(&socket).unwrap());
    }
}
