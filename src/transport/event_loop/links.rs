//! Links: channels whose far end is a socket of this machine's, in the transport's own poll set. Bytes go from the one
//! to the other on this thread, in pooled buffers.
//!
//! A socket is read only while its channel's window lets what is read be sent, and into the packet that carries it: a
//! link holds nothing in that direction. The other way it holds what the socket does not take, which is bounded by the
//! channel's window; that is granted anew as the socket takes it.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use super::super::chunk::ByteQueue;
use super::super::dial;
use super::super::flow::Flow;
use super::super::forward::{Counters, Shared};
use super::super::message::{Request, Token};
use super::super::packet::Sent;
use super::super::pipe::Credit;
use super::entry::Owner;
use super::{EventLoop, Held};
use crate::connection::{self, ChannelId, OpenFailure};
use crate::error::{escape, Error, Phase, Result};
use crate::forward::socks::{self, Handshake, Refusal, Step, Version};
use crate::forward::{Endpoint, ForwardEvent};

/// What a socket is written when so much is queued for it, else at the end of the turn: fewer calls for small packets.
const WRITE_BYTES: usize = 128 * 1024;
/// Pieces in one call to write.
const WRITE_PIECES: usize = 16;
/// What one read of a socket takes at most: what one packet carries.
const READ_BYTES: usize = 32 * 1024;
/// What is read of a SOCKS client at a time.
const SOCKS_BYTES: usize = 512;

/// One connection: a socket here, a channel there.
pub(super) struct Link {
    /// None: it leads to the agent.
    pub forward: Option<Token>,
    pub shared: Option<Arc<Shared>>,
    pub number: u64,
    pub peer: String,
    pub target: String,
    pub stage: LinkStage,
    /// The socket is the client's, not the target's.
    pub from_here: bool,
    pub socket: Option<OwnedFd>,
    /// None: not asked for yet, or closed by the peer.
    pub id: Option<ChannelId>,
    pub flow: Flow,
    asked: Instant,
    /// From the channel to the socket.
    inbound: ByteQueue,
    /// To the channel, before what the socket says.
    outbound: ByteQueue,
    /// In which protocol a client is told how its request went.
    socks: Option<Version>,
    /// The peer's open is answered, or it was we who opened.
    answered: bool,
    /// The socket has something to read.
    readable: bool,
    /// The socket takes no more until poll says so.
    blocked: bool,
    /// Poll reports a hang-up all the time; it counts when what was sent before it has been read.
    hung_up: bool,
    in_turn: bool,
    in_writing: bool,
    /// The socket has said all; the channel's EOF is sent.
    read_ended: bool,
    /// The channel has said all.
    eof_received: bool,
    /// The socket has been told so.
    write_ended: bool,
    /// It ends when what goes to the channel has gone.
    ends_when_sent: Option<Error>,
    deadline: Option<Instant>,
    /// How long that was when it was set.
    limit: Duration,
    sent: u64,
    received: u64,
}

/// How far a link has come.
pub(super) enum LinkStage {
    /// Nothing is known yet.
    New,
    /// The client says in SOCKS where it wants to go.
    Asking(Handshake),
    /// CHANNEL_OPEN is sent.
    Opening,
    /// The name of the target on this side is being looked up.
    Resolving,
    /// The target on this side is being connected to; these addresses are left.
    Connecting(Vec<SocketAddr>),
    /// From end to end.
    Through,
}

impl Link {
    pub fn new(forward: Option<Token>, number: u64, flow: Flow) -> Link {
        Link {
            forward,
            shared: None,
            number,
            peer: String::new(),
            target: String::new(),
            stage: LinkStage::New,
            from_here: false,
            socket: None,
            id: None,
            flow,
            asked: Instant::now(),
            inbound: ByteQueue::default(),
            outbound: ByteQueue::default(),
            socks: None,
            answered: false,
            readable: false,
            blocked: false,
            hung_up: false,
            in_turn: false,
            in_writing: false,
            read_ended: false,
            eof_received: false,
            write_ended: false,
            ends_when_sent: None,
            deadline: None,
            limit: Duration::ZERO,
            sent: 0,
            received: 0,
        }
    }

    /// What poll is to look for; `None`: nothing, and not even a hang-up.
    fn interest(&self, window: usize) -> Option<PollFlags> {
        match self.stage {
            LinkStage::New | LinkStage::Resolving => None,
            // Through the channel, where it is remote: there is no socket then.
            LinkStage::Asking(_) => Some(PollFlags::IN),
            // An error, which is reported in any case.
            LinkStage::Opening => (!self.hung_up).then_some(PollFlags::empty()),
            LinkStage::Connecting(_) => Some(PollFlags::OUT),
            LinkStage::Through => {
                let reads = !self.readable && !self.read_ended && self.id.is_some() && window > 0;
                let mut flags = PollFlags::empty();
                flags.set(PollFlags::IN, reads && self.outbound.is_empty());
                flags.set(PollFlags::OUT, self.blocked);
                (!flags.is_empty()).then_some(flags)
            }
        }
    }

    fn is_through(&self) -> bool {
        matches!(self.stage, LinkStage::Through)
    }
}

/// How a link begins.
impl EventLoop {
    /// Asks the server to connect.
    pub(super) fn open_link(&mut self, token: Token, target: &Endpoint, origin: &str, port: u16) {
        let Some(link) = self.links.get_mut(&token) else { return };
        let (kind, data) = match target {
            Endpoint::Tcp { host, port: p } => ("direct-tcpip", connection::direct_tcpip(host, *p, origin, port)),
            Endpoint::Unix(path) => {
                use std::os::unix::ffi::OsStrExt;
                let path = path.as_os_str().as_bytes();
                ("direct-streamlocal@openssh.com", connection::direct_streamlocal(path))
            }
        };
        let window = u32::try_from(link.flow.window()).unwrap_or(u32::MAX);
        let id = self.connection.open(kind, &data, window);
        log::debug!("{id}: opening {kind} to {}", escape(&link.target));
        (link.id, link.stage, link.answered) = (Some(id), LinkStage::Opening, true);
        link.asked = Instant::now();
        self.owners.insert(id, Owner::Link(token));
        let timeout = link.forward.and_then(|f| self.forwards.get(&f)).map(|f| f.open_timeout);
        if let Some(timeout) = timeout {
            self.set_deadline(token, timeout);
        }
    }

    /// The server has connected.
    pub(super) fn link_opened(&mut self, token: Token) {
        let Some(link) = self.links.get_mut(&token) else { return };
        // The server has connected somewhere meanwhile; the shortest counts.
        let took = link.asked.elapsed();
        self.note_round_trip(took);
        self.link_through(token);
    }

    pub(super) fn link_refused(&mut self, token: Token, reason: u32, description: &[u8]) {
        let Some(link) = self.links.get_mut(&token) else { return };
        link.id = None;
        let kind = if link.target.contains('/') { "direct-streamlocal@openssh.com" } else { "direct-tcpip" };
        let description = String::from_utf8_lossy(description).into_owned();
        let error = Error::OpenRefused { kind: kind.into(), to: link.target.clone(), reason, description, limit: None };
        self.link_failed(token, error);
    }

    /// Connects to a target on this side.
    pub(super) fn connect_link(&mut self, token: Token, target: Endpoint) {
        let Some(link) = self.links.get_mut(&token) else { return };
        match target {
            Endpoint::Unix(path) => match dial::unix(&path) {
                Ok(socket) => {
                    link.socket = Some(socket);
                    self.link_connected(token);
                }
                Err(error) => {
                    self.link_failed(token, Error::io(format!("cannot connect to {}", path.display()), error))
                }
            },
            Endpoint::Tcp { host, port } => match addresses(&host, port) {
                Some(addresses) => self.connect_to(token, addresses, None),
                None => {
                    link.stage = LinkStage::Resolving;
                    self.resolve(token, host, port);
                }
            },
        }
    }

    /// Looks a name up, on a thread of its own: the system's resolver cannot be interrupted.
    fn resolve(&mut self, token: Token, host: String, port: u16) {
        let (inbox, wake) = (self.inbox.clone(), Arc::clone(&self.wake));
        let lookup = move || {
            let found = (host.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>);
            let found = found.map_err(|e| Error::Resolve { host, source: Arc::new(e) });
            if inbox.send(Request::Resolved(token, found)).is_ok() {
                wake.wake();
            }
        };
        if let Err(error) = std::thread::Builder::new().name("tl:resolve".into()).spawn(lookup) {
            self.link_failed(token, Error::io("cannot start a thread for the resolver", error));
        }
    }

    pub(super) fn resolved(&mut self, token: Token, found: Result<Vec<SocketAddr>>) {
        // It may have been given up meanwhile.
        if !self.links.get(&token).is_some_and(|link| matches!(link.stage, LinkStage::Resolving)) {
            return;
        }
        match found {
            Ok(addresses) => self.connect_to(token, addresses, None),
            Err(error) => self.link_failed(token, error),
        }
    }

    /// Tries the first of the addresses that can be tried; `last` is why the one before failed.
    fn connect_to(&mut self, token: Token, mut addresses: Vec<SocketAddr>, mut last: Option<io::Error>) {
        let Some(link) = self.links.get_mut(&token) else { return };
        while !addresses.is_empty() {
            match dial::begin(&addresses.remove(0)) {
                Ok(socket) => {
                    (link.socket, link.stage) = (Some(socket), LinkStage::Connecting(addresses));
                    return;
                }
                Err(error) => last = Some(error),
            }
        }
        let error = last.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no addresses"));
        let error = Error::io(format!("cannot connect to {}", link.target), error);
        self.link_failed(token, error);
    }

    /// Something has become of the attempt to connect.
    fn connect_done(&mut self, token: Token) {
        let Some(link) = self.links.get_mut(&token) else { return };
        let LinkStage::Connecting(rest) = &mut link.stage else { return };
        let (rest, Some(socket)) = (std::mem::take(rest), link.socket.take()) else { return };
        match dial::finish(socket) {
            Ok(stream) => {
                link.socket = Some(stream.into());
                self.link_connected(token);
            }
            Err(error) => self.connect_to(token, rest, Some(error)),
        }
    }

    fn link_connected(&mut self, token: Token) {
        self.accept_channel(token);
        self.link_through(token);
    }

    /// Agrees to the channel that the peer asked for.
    pub(super) fn accept_channel(&mut self, token: Token) {
        let Some(link) = self.links.get_mut(&token) else { return };
        let Some(id) = link.id.filter(|_| !std::mem::replace(&mut link.answered, true)) else { return };
        self.connection.accept(id, u32::try_from(link.flow.window()).unwrap_or(u32::MAX));
    }

    /// Both ends are there.
    fn link_through(&mut self, token: Token) {
        self.clear_deadline(token);
        let Some(link) = self.links.get_mut(&token) else { return };
        link.stage = LinkStage::Through;
        // Most often it is: who connects has something to say.
        link.readable = true;
        if let Some(shared) = &link.shared {
            let (connection, peer, target) = (link.number, link.peer.clone(), link.target.clone());
            shared.event(ForwardEvent::Opened { connection, peer, target });
        }
        if let Some(version) = link.socks.take() {
            self.answer_client(token, socks::granted(version));
        }
        self.write_link(token);
        self.line_up_link(token);
    }

    /// It does not come about; the client is told, as far as there is a way.
    fn link_failed(&mut self, token: Token, error: Error) {
        let Some(link) = self.links.get_mut(&token) else { return };
        if let Some(version) = link.socks.take() {
            let refusal = match &error {
                Error::OpenRefused { reason: 1, .. } => Refusal::NotAllowed,
                Error::OpenRefused { reason: 2, .. } | Error::Io { .. } => Refusal::ConnectionRefused,
                Error::Timeout { .. } | Error::Resolve { .. } => Refusal::HostUnreachable,
                _ => Refusal::General,
            };
            self.answer_client(token, socks::refused(version, refusal));
            self.end_when_answered(token, error);
            return;
        }
        self.end_link(token, Some(error));
    }
}

/// SOCKS.
impl EventLoop {
    /// A client on this side has said something.
    pub(super) fn hear_client(&mut self, token: Token) {
        let mut buffer = [0; SOCKS_BYTES];
        let Some(link) = self.links.get_mut(&token) else { return };
        let (LinkStage::Asking(handshake), Some(socket)) = (&mut link.stage, &link.socket) else { return };
        match receive(socket, &mut buffer) {
            Ok(0) => self.end_link(token, Some(Error::invalid("the client left before it said where to"))),
            Ok(n) => {
                handshake.push(&buffer[..n]);
                self.answer_request(token);
            }
            Err(Errno::AGAIN) => {}
            Err(errno) => self.end_link(token, Some(Error::io("a forward's client", errno.into()))),
        }
    }

    /// Does what the client's request, as far as it has come, asks for.
    fn answer_request(&mut self, token: Token) {
        loop {
            let Some(link) = self.links.get_mut(&token) else { return };
            let LinkStage::Asking(handshake) = &mut link.stage else { return };
            match handshake.step() {
                Step::More => return,
                Step::Say(bytes) => self.answer_client(token, bytes),
                Step::Fail { reply, why } => {
                    self.answer_client(token, reply);
                    self.end_when_answered(token, Error::invalid(format!("the client cannot be served: {why}")));
                    return;
                }
                Step::Connect { host, port, version } => {
                    let rest = std::mem::take(handshake).into_rest();
                    link.socks = Some(version);
                    let target = Endpoint::tcp(host, port);
                    link.target = target.to_string();
                    self.go_where_it_wants(token, target, &rest);
                    return;
                }
            }
        }
    }

    fn go_where_it_wants(&mut self, token: Token, target: Endpoint, rest: &[u8]) {
        let Some(link) = self.links.get_mut(&token) else { return };
        link.stage = LinkStage::New;
        if link.from_here {
            link.outbound.extend(rest, &self.shared.pool);
            self.open_link(token, &target, "127.0.0.1", 0);
            return;
        }
        // From the other side: what came behind the request is for the target.
        link.inbound.extend(rest, &self.shared.pool);
        self.shared.unread.fetch_add(rest.len() as u64, Ordering::Relaxed);
        let timeout = link.forward.and_then(|f| self.forwards.get(&f)).map(|f| f.open_timeout);
        if let Some(timeout) = timeout {
            self.set_deadline(token, timeout);
        }
        self.connect_link(token, target);
    }

    /// Says something to the SOCKS client, which is on this side, or behind the channel.
    fn answer_client(&mut self, token: Token, bytes: &[u8]) {
        let Some(link) = self.links.get_mut(&token) else { return };
        if link.from_here {
            // The socket has taken nothing yet: it takes these few bytes.
            if let Some(socket) = &link.socket {
                let _ = rustix::net::send(socket, bytes, SendFlags::NOSIGNAL);
            }
        } else {
            link.outbound.extend(bytes, &self.shared.pool);
            self.line_up_link(token);
        }
    }

    /// Ends a link whose client has been told why.
    fn end_when_answered(&mut self, token: Token, error: Error) {
        let Some(link) = self.links.get_mut(&token) else { return };
        if link.from_here || link.outbound.is_empty() || link.id.is_none() {
            // Without a reset, which would overtake the answer.
            self.end_link_as(token, Some(error), Gone::Quietly);
            return;
        }
        link.stage = LinkStage::New;
        link.ends_when_sent = Some(error);
        self.line_up_link(token);
    }
}

/// From the channel to the socket.
impl EventLoop {
    pub(super) fn link_data(&mut self, token: Token, payload: Vec<u8>, range: std::ops::Range<usize>) {
        let Some(link) = self.links.get_mut(&token) else { return };
        let len = range.len();
        if let LinkStage::Asking(handshake) = &mut link.stage {
            handshake.push(&payload[range]);
            self.shared.pool.put(payload);
            self.answer_request(token);
            self.credit_link(token);
            return;
        }
        if link.write_ended || link.ends_when_sent.is_some() {
            // Nobody takes it.
            self.shared.pool.put(payload);
            self.credit_link(token);
            return;
        }
        link.received += len as u64;
        if let Some(shared) = &link.shared {
            Counters::add(&shared.counters.received, len as u64);
        }
        link.inbound.push(payload, range, &self.shared.pool);
        self.shared.unread.fetch_add(len as u64, Ordering::Relaxed);
        if link.inbound.len() >= WRITE_BYTES {
            self.write_link(token);
        } else if !std::mem::replace(&mut link.in_writing, true) {
            self.writing.push(token);
        }
    }

    /// Writes what has come in this turn.
    pub(super) fn write_links(&mut self) {
        while let Some(token) = self.writing.pop() {
            self.write_link(token);
        }
    }

    /// Gives the socket what it takes, and the peer as much credit.
    fn write_link(&mut self, token: Token) {
        let Some(link) = self.links.get_mut(&token) else { return };
        link.in_writing = false;
        let Some(socket) = link.socket.as_ref().filter(|_| link.is_through()) else { return };
        let mut taken = 0;
        let mut failure = None;
        while !link.blocked && !link.inbound.is_empty() {
            match send_pieces(socket, &link.inbound) {
                Ok(n) => {
                    link.inbound.consume(n, &self.shared.pool);
                    taken += n;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => link.blocked = true,
                Err(errno) => {
                    failure = Some(errno);
                    break;
                }
            }
        }
        self.shared.unread.fetch_sub(taken as u64, Ordering::SeqCst);
        if let Some(errno) = failure {
            self.end_link(token, Some(Error::io("a tunnel's end on this side has gone", errno.into())));
            return;
        }
        if taken > 0 {
            let (left, round_trip) = (link.inbound.len() as u64, self.round_trip.unwrap_or_default());
            let ought_to_grow = link.flow.received(taken, left, round_trip, Instant::now());
            let more = link.flow.window();
            if ought_to_grow && self.spoken_for() + more <= self.config.memory_limit {
                if let Some(link) = self.links.get_mut(&token) {
                    link.flow.grow();
                }
            }
            self.credit_link(token);
            self.credit_withheld();
        }
        self.end_if_done(token);
    }

    /// Grants the peer what the socket has made room for.
    pub(super) fn credit_link(&mut self, token: Token) {
        let Some(link) = self.links.get(&token) else { return };
        let Some(id) = link.id.filter(|_| !link.eof_received && link.answered) else { return };
        let unread = link.inbound.len() as u64;
        let allowed = link.flow.window().saturating_sub(unread);
        let outstanding = u64::from(self.connection.granted(id));
        let Some(bytes) = link.flow.grant(allowed, outstanding) else { return };
        self.grant_or_withhold(token, id, bytes, outstanding, &Credit { allowed, unread, wake: false });
    }

    /// The peer sends no more: the socket is told when it has been given the rest.
    pub(super) fn link_eof(&mut self, token: Token) {
        let Some(link) = self.links.get_mut(&token) else { return };
        link.eof_received = true;
        if matches!(link.stage, LinkStage::Asking(_)) {
            self.end_link(token, Some(Error::invalid("the client left before it said where to")));
            return;
        }
        self.write_link(token);
    }

    /// The peer's CLOSE. What it had sent is still given to the socket.
    pub(super) fn link_closed(&mut self, token: Token) {
        let Some(link) = self.links.get_mut(&token) else { return };
        (link.id, link.eof_received) = (None, true);
        if !link.is_through() {
            let closed = || Error::ConnectionLost { reason: "the server closed the channel".into(), silent: None };
            let error = link.ends_when_sent.take().unwrap_or_else(closed);
            self.end_link(token, Some(error));
            return;
        }
        self.write_link(token);
    }

    /// Passes an end on, and ends a link that has seen both.
    fn end_if_done(&mut self, token: Token) {
        let Some(link) = self.links.get_mut(&token) else { return };
        if !link.is_through() || !link.inbound.is_empty() {
            return;
        }
        if link.eof_received && !std::mem::replace(&mut link.write_ended, true) {
            // Where both ends have said all, closing it says so too.
            if let Some(socket) = link.socket.as_ref().filter(|_| !link.read_ended) {
                let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Write);
            }
        }
        if link.write_ended && (link.read_ended || link.id.is_none()) {
            self.end_link_as(token, None, Gone::Quietly);
        }
    }
}

/// From the socket to the channel.
impl EventLoop {
    /// The peer reads no more (`eow@openssh.com`), or takes nothing.
    pub(super) fn link_unheard(&mut self, token: Token) {
        let Some(link) = self.links.get_mut(&token) else { return };
        link.outbound.clear(&self.shared.pool);
        if let Some(id) = link.id.filter(|_| !std::mem::replace(&mut link.read_ended, true)) {
            self.connection.eof(id);
        }
        self.end_if_done(token);
    }

    /// Puts a link into the round of those that have something to send.
    pub(super) fn line_up_link(&mut self, token: Token) {
        let Some(link) = self.links.get_mut(&token) else { return };
        let says = link.is_through() && link.readable && !link.read_ended;
        let due = says || !link.outbound.is_empty() || link.ends_when_sent.is_some();
        if due && link.id.is_some() && link.answered && !link.in_turn {
            link.in_turn = true;
            self.sendable.push_back(token);
        }
    }

    /// Reads a packet's worth from the socket, and sends it; `None`: a key exchange runs.
    pub(super) fn send_link(&mut self, token: Token) -> Result<Option<usize>> {
        let Some(link) = self.links.get_mut(&token) else { return Ok(Some(0)) };
        link.in_turn = false;
        let Some(id) = link.id else { return Ok(Some(0)) };
        let room = self.connection.sendable(id).min(READ_BYTES);
        if !link.outbound.is_empty() {
            return self.send_outbound(token, id, room);
        }
        if let Some(error) = link.ends_when_sent.take() {
            self.end_link_as(token, Some(error), Gone::Quietly);
            return Ok(Some(0));
        }
        // Without window its next WINDOW_ADJUST lines it up again.
        let Some(socket) = link.socket.as_ref().filter(|_| link.is_through() && link.readable && room > 0) else {
            return Ok(Some(0));
        };
        self.scratch.resize(READ_BYTES, 0);
        let n = match receive(socket, &mut self.scratch[..room]) {
            Ok(n) => n,
            Err(Errno::AGAIN) => {
                link.readable = false;
                return Ok(Some(0));
            }
            Err(errno) => {
                self.end_link(token, Some(Error::io("a tunnel's end on this side has gone", errno.into())));
                return Ok(Some(0));
            }
        };
        if n == 0 {
            log::debug!("{id}: its end on this side has said all");
            link.read_ended = true;
            self.connection.eof(id);
            self.end_if_done(token);
            return Ok(Some(0));
        }
        // A short read has emptied the socket.
        link.readable = n == room;
        let header = self.connection.data_header(id, n);
        let sent = self.packets.send(header.as_ref(), &self.scratch[..n])?;
        if sent == Sent::NotNow {
            self.held = Some(Held::Data { token, header, body: self.scratch[..n].to_vec() });
        }
        self.link_sent(token, n);
        Ok((sent == Sent::Taken).then_some(n))
    }

    fn send_outbound(&mut self, token: Token, id: ChannelId, room: usize) -> Result<Option<usize>> {
        let Some(link) = self.links.get_mut(&token) else { return Ok(Some(0)) };
        let n = room.min(link.outbound.front().len());
        if n == 0 {
            return Ok(Some(0));
        }
        let header = self.connection.data_header(id, n);
        let sent = self.packets.send(header.as_ref(), &link.outbound.front()[..n])?;
        if sent == Sent::NotNow {
            let body = link.outbound.front()[..n].to_vec();
            self.held = Some(Held::Data { token, header, body });
        }
        link.outbound.consume(n, &self.shared.pool);
        self.link_sent(token, n);
        Ok((sent == Sent::Taken).then_some(n))
    }

    fn link_sent(&mut self, token: Token, n: usize) {
        self.trimmed = false;
        if let Some(link) = self.links.get_mut(&token) {
            link.sent += n as u64;
            if let Some(shared) = &link.shared {
                Counters::add(&shared.counters.sent, n as u64);
            }
        }
        self.line_up_link(token);
    }
}

/// What a socket sees of the end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// The end of the stream.
    Quietly,
    /// A reset: what it got is not all there was.
    Reset,
}

/// Endings and time.
impl EventLoop {
    /// Ends a link before its time. Its socket sees a reset: the end of the stream would look as if that was all.
    pub(super) fn end_link(&mut self, token: Token, error: Option<Error>) {
        self.end_link_as(token, error, Gone::Reset);
    }

    fn end_link_as(&mut self, token: Token, error: Option<Error>, how: Gone) {
        self.clear_deadline(token);
        let Some(mut link) = self.links.remove(&token) else { return };
        self.end_channel_of(&link, error.as_ref());
        let unread = link.inbound.clear(&self.shared.pool);
        self.shared.unread.fetch_sub(unread as u64, Ordering::Relaxed);
        link.outbound.clear(&self.shared.pool);
        match (link.socket.take(), how) {
            (Some(socket), Gone::Reset) => reset(socket),
            (socket, _) => drop(socket),
        }
        self.tell_end(link, error);
    }

    /// Closes or refuses its channel.
    fn end_channel_of(&mut self, link: &Link, error: Option<&Error>) {
        let Some(id) = link.id else { return };
        if link.answered {
            self.owners.insert(id, Owner::Nobody);
            self.connection.close(id);
            return;
        }
        self.owners.remove(&id);
        let why = match error {
            Some(Error::Io { source, .. }) => source.to_string(),
            Some(Error::Timeout { .. }) => "timed out".to_owned(),
            Some(Error::Resolve { .. }) => "unknown host".to_owned(),
            _ => "given up".to_owned(),
        };
        self.connection.refuse(id, OpenFailure::ConnectFailed, &why);
    }

    /// Counts the end, and says it to who listens.
    fn tell_end(&mut self, link: Link, error: Option<Error>) {
        let through = link.is_through();
        let Link { shared, number: connection, peer, target, sent, received, forward, .. } = link;
        if let Some(error) = &error {
            log::debug!("forward: '{}' to '{}': {error}", escape(&peer), escape(&target));
        }
        let Some(shared) = shared else { return };
        shared.counters.open.fetch_sub(1, Ordering::Relaxed);
        match error {
            Some(error) if !through => {
                Counters::add(&shared.counters.failed, 1);
                shared.event(ForwardEvent::Refused { connection, peer, target, error });
            }
            error => shared.event(ForwardEvent::Closed { connection, peer, target, sent, received, error }),
        }
        let Some(token) = forward else { return };
        if let Some(forward) = self.forwards.get_mut(&token) {
            forward.open -= 1;
        }
        self.end_if_unused(token);
    }

    pub(super) fn set_deadline(&mut self, token: Token, after: Duration) {
        self.clear_deadline(token);
        let Some(link) = self.links.get_mut(&token) else { return };
        link.deadline = Instant::now().checked_add(after);
        link.limit = after;
        if let Some(at) = link.deadline {
            self.link_deadlines.insert((at, token));
        }
    }

    fn clear_deadline(&mut self, token: Token) {
        if let Some(at) = self.links.get_mut(&token).and_then(|link| link.deadline.take()) {
            self.link_deadlines.remove(&(at, token));
        }
    }

    /// Gives up links that have not come through in time.
    pub(super) fn end_late_links(&mut self, now: Instant) {
        while let Some(&(_, token)) = self.link_deadlines.first().filter(|(at, _)| *at <= now) {
            let limit = self.links.get(&token).map_or(Duration::ZERO, |link| link.limit);
            self.clear_deadline(token);
            self.link_failed(token, Error::timeout(Phase::Open, limit));
        }
    }

    /// Adds what poll is to look for.
    pub(super) fn add_links_to_poll(&mut self) {
        let (connection, poll) = (&self.connection, &mut self.poll);
        for (&token, link) in &self.links {
            let window = link.id.map_or(0, |id| connection.sendable(id));
            if let (Some(socket), Some(interest)) = (&link.socket, link.interest(window)) {
                poll.add(socket, interest);
                self.polled.push(super::Polled::Link(token));
            }
        }
    }

    /// What poll found of a link's socket.
    pub(super) fn link_ready(&mut self, token: Token, found: PollFlags) {
        let Some(link) = self.links.get_mut(&token) else { return };
        match link.stage {
            LinkStage::Asking(_) => self.hear_client(token),
            LinkStage::Connecting(_) => self.connect_done(token),
            LinkStage::Opening if found.contains(PollFlags::ERR) => {
                self.end_link(token, Some(Error::io("the client left", Errno::CONNRESET.into())));
            }
            LinkStage::Opening => link.hung_up = true,
            LinkStage::Through => {
                if found.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                    link.readable = true;
                    self.line_up_link(token);
                }
                self.unblock_link(token, found);
            }
            LinkStage::New | LinkStage::Resolving => {}
        }
    }

    fn unblock_link(&mut self, token: Token, found: PollFlags) {
        let Some(link) = self.links.get_mut(&token) else { return };
        if link.blocked && found.intersects(PollFlags::OUT | PollFlags::HUP | PollFlags::ERR) {
            link.blocked = false;
            self.write_link(token);
        }
    }
}

/// Closes a socket so that its peer sees a reset, where there is such a thing.
pub(super) fn reset(socket: OwnedFd) {
    let _ = rustix::net::sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
    drop(socket);
}

fn receive(socket: &OwnedFd, into: &mut [u8]) -> std::result::Result<usize, Errno> {
    loop {
        match rustix::net::recv(socket, &mut *into, RecvFlags::empty()) {
            Err(Errno::INTR) => {}
            other => return other.map(|(n, _)| n),
        }
    }
}

/// One call, many pieces.
fn send_pieces(socket: &OwnedFd, queue: &ByteQueue) -> std::result::Result<usize, Errno> {
    let mut pieces = [io::IoSlice::new(&[]); WRITE_PIECES];
    let count = queue.pieces(&mut pieces);
    rustix::net::sendmsg(socket, &pieces[..count], &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL)
}

/// The addresses of what needs no looking up. Both loopbacks for localhost: a service may listen on one of them only.
fn addresses(host: &str, port: u16) -> Option<Vec<SocketAddr>> {
    if let Ok(address) = host.parse() {
        return Some(vec![SocketAddr::new(address, port)]);
    }
    let loopbacks = || vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()];
    host.eq_ignore_ascii_case("localhost").then(loopbacks)
}
