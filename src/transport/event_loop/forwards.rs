//! Forwards: where connections come in, on this side and on the server's, and what becomes of them when one ends.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::io::Errno;

use super::super::flow::Flow;
use super::super::forward::{Arrival, Begin, Counters, Destination, Shared, Source};
use super::super::listener::Listener;
use super::super::message::{OpenPlan, Plan, Token};
use super::super::pipe::Pipe;
use super::entry::{Entry, Owner, Stage};
use super::links::{reset, Link, LinkStage};
use super::{EventLoop, GlobalWaiter, Polled, FORWARD_WINDOW};
use crate::connection::{self, ChannelId, OpenFailure};
use crate::error::{escape, Error};
use crate::forward::socks::Handshake;
use crate::forward::{Endpoint, ForwardEvent};

/// Connections taken from one listener in one turn.
const TURN_ACCEPTS: usize = 64;
/// A listener that finds no descriptor left rests for so long.
const REST: Duration = Duration::from_millis(200);
/// A SOCKS client must have said where it wants to go within this time.
const SOCKS_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections to the agent at once.
const MOST_AGENTS: usize = 64;

/// One forward.
pub(super) struct Forward {
    pub shared: Arc<Shared>,
    pub destination: Destination,
    pub most: usize,
    pub open_timeout: Duration,
    pub origin: Origin,
    /// No descriptor was left: nothing is accepted before this.
    pub rests: Option<Instant>,
    /// Connections that have not ended.
    pub open: usize,
}

/// Where its connections come from.
pub(super) enum Origin {
    Here(Vec<Listener>),
    /// The server is asked to listen, and has not answered.
    Asked,
    /// The server listens.
    There(Endpoint),
    /// It takes no new connections.
    Stopped,
}

impl EventLoop {
    pub(super) fn begin_forward(&mut self, mut begin: Begin) {
        let Some(listen) = begin.listen.take() else { return };
        let (token, shared) = (begin.token, Arc::clone(&begin.shared));
        let origin = match listen.source {
            Source::Here(listeners) => {
                shared.begun(Ok(None));
                Origin::Here(listeners)
            }
            Source::There(name) => {
                let (request, data) = request_of(&name, "");
                self.connection.global_request(&request, &data, true);
                self.globals.push_back(GlobalWaiter::Listen { token, name, asked: Instant::now() });
                Origin::Asked
            }
        };
        let (destination, most, open_timeout) = (listen.destination, listen.most, listen.open_timeout);
        let forward = Forward { shared, destination, most, open_timeout, origin, rests: None, open: 0 };
        self.forwards.insert(token, forward);
    }

    /// The server's answer to the request to listen.
    pub(super) fn listening(&mut self, token: Token, mut name: Endpoint, answer: Option<&[u8]>, asked: Instant) {
        self.note_round_trip(asked.elapsed());
        let mut failure = None;
        match (answer, &mut name) {
            (None, _) => {
                let (request, detail) = (request_of(&name, "").0, Some(name.to_string()));
                failure = Some(Error::RequestRefused { request, detail });
            }
            // Which port it chose.
            (Some(data), Endpoint::Tcp { port: port @ 0, .. }) => {
                match connection::allocated_port(data).ok().and_then(|port| u16::try_from(port).ok()) {
                    Some(chosen @ 1..) => *port = chosen,
                    _ => failure = Some(Error::Protocol("it listens, and does not say on which port".into())),
                }
            }
            _ => {}
        }
        if let Some(error) = failure {
            self.end_forward(token, error);
            return;
        }
        match self.forwards.get_mut(&token) {
            Some(forward) if matches!(forward.origin, Origin::Asked) => {
                log::debug!("the server listens on {name}");
                forward.shared.begun(Ok(name.port()));
                forward.origin = Origin::There(name);
            }
            // It was given up meanwhile.
            _ => self.cancel_listening(&name),
        }
    }

    fn cancel_listening(&mut self, name: &Endpoint) {
        let (request, data) = request_of(name, "cancel-");
        self.connection.global_request(&request, &data, false);
    }

    /// No new connections; those that are there go on. The forward has ended when the last of them has.
    pub(super) fn stop_forward(&mut self, token: Token) {
        self.stop_listening(token);
        self.end_if_unused(token);
    }

    fn stop_listening(&mut self, token: Token) {
        let Some(forward) = self.forwards.get_mut(&token) else { return };
        // One that the server has not answered is cancelled when it does.
        if let Origin::There(name) = std::mem::replace(&mut forward.origin, Origin::Stopped) {
            self.cancel_listening(&name);
        }
    }

    /// Ends a forward that takes no connections and has none.
    pub(super) fn end_if_unused(&mut self, token: Token) {
        let Some(forward) = self.forwards.get(&token) else { return };
        if forward.open == 0 && matches!(forward.origin, Origin::Stopped) {
            self.end_forward(token, Error::Closed);
        }
    }

    /// Ends a forward with all its connections.
    pub(super) fn end_forward(&mut self, token: Token, reason: Error) {
        self.stop_listening(token);
        let Some(forward) = self.forwards.remove(&token) else { return };
        for arrival in forward.shared.take_arrivals() {
            self.close(arrival.token);
        }
        let links: Vec<Token> = self.links.iter().filter(|(_, l)| l.forward == Some(token)).map(|(&t, _)| t).collect();
        for link in links {
            self.end_link(link, Some(reason.clone()));
        }
        let shared = Arc::clone(&forward.shared);
        drop(forward);
        // Last: who has waited for this finds that nobody listens any more, and what became of each connection.
        shared.ended(reason);
    }

    /// The connection ends, or is about to.
    pub(super) fn end_forwards(&mut self, reason: &Error) {
        let tokens: Vec<Token> = self.forwards.keys().copied().collect();
        for token in tokens {
            self.end_forward(token, reason.clone());
        }
        let rest: Vec<Token> = self.links.keys().copied().collect();
        for link in rest {
            self.end_link(link, Some(reason.clone()));
        }
    }

    /// Takes what waits at a listener.
    pub(super) fn accept_from(&mut self, token: Token, index: usize) {
        for _ in 0..TURN_ACCEPTS {
            let Some(forward) = self.forwards.get_mut(&token) else { return };
            let Origin::Here(listeners) = &forward.origin else { return };
            let Some(listener) = listeners.get(index) else { return };
            match listener.accept() {
                Ok((socket, from)) => {
                    let (host, port) = from.map_or_else(Default::default, |a| (a.ip().to_string(), a.port()));
                    self.came_in_here(token, socket, host, port);
                }
                Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                    Some(Errno::AGAIN) => return,
                    // It was gone before it was accepted.
                    Some(Errno::CONNABORTED | Errno::INTR | Errno::PROTO) => {}
                    Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                        log::warn!("a forward cannot accept connections for now: {error}");
                        forward.rests = Some(Instant::now() + REST);
                        return;
                    }
                    _ => {
                        self.end_forward(token, Error::io("a forward cannot accept connections any more", error));
                        return;
                    }
                },
            }
        }
    }

    /// A program of this machine has connected.
    fn came_in_here(&mut self, token: Token, socket: OwnedFd, host: String, port: u16) {
        let (peer, number) = (peer_text(&host, port), self.next_number());
        let Some(forward) = self.forwards.get_mut(&token) else { return };
        if forward.open >= forward.most {
            let error = too_many(forward.most);
            refused(&forward.shared, number, peer, target_text(&forward.destination), error);
            reset(socket);
            return;
        }
        let link_token = self.new_token();
        let mut link = Link::new(Some(token), number, Flow::growing(0, 0, Instant::now()));
        (link.peer, link.socket, link.from_here) = (peer, Some(socket), true);
        self.enlist(link_token, link, token);
        let Some(forward) = self.forwards.get(&token) else { return };
        match forward.destination.clone() {
            Destination::There(target) => self.open_link(link_token, &target, &host, port),
            Destination::Anywhere => {
                self.set_deadline(link_token, SOCKS_TIMEOUT);
                if let Some(link) = self.links.get_mut(&link_token) {
                    link.stage = LinkStage::Asking(Handshake::default());
                }
                self.hear_client(link_token);
            }
            // Forwards that come from here lead there.
            Destination::Here(_) | Destination::Queue => self.end_link(link_token, None),
        }
    }

    /// Puts a link among the others, and counts it.
    fn enlist(&mut self, token: Token, mut link: Link, of: Token) {
        let window = self.initial_window().min(FORWARD_WINDOW);
        link.flow = Flow::growing(window, self.config.max_window, Instant::now());
        if let Some(forward) = self.forwards.get_mut(&of) {
            forward.open += 1;
            Counters::add(&forward.shared.counters.accepted, 1);
            Counters::add(&forward.shared.counters.open, 1);
            link.shared = Some(Arc::clone(&forward.shared));
            link.target = target_text(&forward.destination);
        }
        self.links.insert(token, link);
    }

    /// The server opens a channel.
    pub(super) fn peer_opens(&mut self, id: ChannelId, kind: &[u8], data: &[u8]) {
        let found = match kind {
            b"forwarded-tcpip" => connection::forwarded_tcpip(data).ok().and_then(|f| {
                let origin = peer_text(&String::from_utf8_lossy(f.origin_address), f.origin_port as u16);
                Some((self.listener_on(f.address, f.port)?, origin))
            }),
            b"forwarded-streamlocal@openssh.com" => connection::forwarded_streamlocal(data)
                .ok()
                .and_then(|path| Some((self.listener_at(path)?, String::new()))),
            b"auth-agent@openssh.com" => {
                self.agent_wanted(id);
                return;
            }
            // RFC 4254 §6.1: a client takes no sessions. Nor is X11 forwarded.
            b"session" | b"x11" => None,
            other => {
                let kind = escape(&String::from_utf8_lossy(other));
                log::debug!("the server wants to open '{kind}', which is of no known type");
                self.connection.refuse(id, OpenFailure::UnknownChannelType, "unknown channel type");
                return;
            }
        };
        match found {
            Some((token, origin)) => self.came_in_there(token, id, origin),
            None => {
                let kind = escape(&String::from_utf8_lossy(kind));
                log::debug!("the server wants to open '{kind}', which nobody expects");
                self.connection.refuse(id, OpenFailure::AdministrativelyProhibited, "not expected");
            }
        }
    }

    /// The forward that the server listens for on this port: of those that share it, the one with this address.
    fn listener_on(&self, address: &[u8], port: u32) -> Option<Token> {
        let on_port = self.forwards.iter().filter_map(|(&token, forward)| match &forward.origin {
            Origin::There(Endpoint::Tcp { host, port: p }) if u32::from(*p) == port => Some((token, host)),
            _ => None,
        });
        let on_port: Vec<_> = on_port.collect();
        let exact = on_port.iter().find(|(_, a)| a.as_bytes() == address);
        // A server may say what it made of the address.
        exact.or(if on_port.len() == 1 { on_port.first() } else { None }).map(|&(token, _)| token)
    }

    fn listener_at(&self, path: &[u8]) -> Option<Token> {
        let at =
            |f: &Forward| matches!(&f.origin, Origin::There(Endpoint::Unix(p)) if p.as_os_str().as_bytes() == path);
        self.forwards.iter().find(|(_, forward)| at(forward)).map(|(&token, _)| token)
    }

    /// A connection that came in at the server.
    fn came_in_there(&mut self, token: Token, id: ChannelId, peer: String) {
        let number = self.next_number();
        let Some(forward) = self.forwards.get(&token) else { return };
        let waiting =
            if matches!(forward.destination, Destination::Queue) { forward.shared.waiting() } else { forward.open };
        if waiting >= forward.most {
            let error = too_many(forward.most);
            self.connection.refuse(id, OpenFailure::ResourceShortage, "too many connections");
            refused(&forward.shared, number, peer, target_text(&forward.destination), error);
            return;
        }
        if matches!(forward.destination, Destination::Queue) {
            self.queue_arrival(token, id, peer);
            return;
        }
        let (destination, timeout) = (forward.destination.clone(), forward.open_timeout);
        let link_token = self.new_token();
        let mut link = Link::new(Some(token), number, Flow::growing(0, 0, Instant::now()));
        (link.peer, link.id) = (peer, Some(id));
        self.owners.insert(id, Owner::Link(link_token));
        self.enlist(link_token, link, token);
        match destination {
            Destination::Here(target) => {
                self.set_deadline(link_token, timeout);
                self.connect_link(link_token, target);
            }
            // It speaks SOCKS through the channel.
            _ => {
                self.set_deadline(link_token, SOCKS_TIMEOUT);
                self.accept_channel(link_token);
                if let Some(link) = self.links.get_mut(&link_token) {
                    link.stage = LinkStage::Asking(Handshake::default());
                }
            }
        }
    }

    /// Agrees to a channel, and leaves it to who accepts connections.
    fn queue_arrival(&mut self, token: Token, id: ChannelId, origin: String) {
        let (window, now) = (self.initial_window().min(FORWARD_WINDOW), Instant::now());
        let arrival = self.new_token();
        let Some(forward) = self.forwards.get(&token) else { return };
        let pipe = Arc::new(Pipe::new(self.shared.clone()));
        pipe.set_window(window);
        pipe.opened();
        pipe.started();
        let plan = OpenPlan { kind: "forwarded-tcpip".into(), data: Vec::new(), to: String::new() };
        let flow = Flow::growing(window, self.config.max_window, now);
        let mut entry = Entry::new(Arc::clone(&pipe), Plan::Other(plan), flow, now);
        (entry.id, entry.stage) = (Some(id), Stage::Running);
        Counters::add(&forward.shared.counters.accepted, 1);
        forward.shared.arrived(Arrival { token: arrival, pipe, origin });
        self.owners.insert(id, Owner::User(arrival));
        self.entries.insert(arrival, entry);
        self.connection.accept(id, window);
    }

    /// The server asks for the agent: only if a running session was given it.
    fn agent_wanted(&mut self, id: ChannelId) {
        let given = self.entries.values().any(|e| e.plan.session().is_some_and(|plan| plan.agent));
        let at_once = self.links.values().filter(|l| l.forward.is_none()).count();
        let target = self.config.agent.clone().filter(|_| given && at_once < MOST_AGENTS);
        let Some(path) = target else {
            log::warn!("the server asks for the agent, which no running command was given");
            self.connection.refuse(id, OpenFailure::AdministrativelyProhibited, "no agent is forwarded");
            return;
        };
        log::info!("the server asks the agent");
        let (token, number) = (self.new_token(), self.next_number());
        let window = self.initial_window().min(FORWARD_WINDOW);
        let mut link = Link::new(None, number, Flow::growing(window, self.config.max_window, Instant::now()));
        (link.id, link.target) = (Some(id), path.display().to_string());
        self.owners.insert(id, Owner::Link(token));
        self.links.insert(token, link);
        self.connect_link(token, Endpoint::Unix(path));
    }

    /// Adds the listeners to what poll is to look for.
    pub(super) fn add_listeners_to_poll(&mut self) {
        for (&token, forward) in &mut self.forwards {
            let Origin::Here(listeners) = &forward.origin else { continue };
            if forward.rests.is_some_and(|until| Instant::now() < until) {
                continue;
            }
            forward.rests = None;
            for (index, listener) in listeners.iter().enumerate() {
                self.poll.add(listener, PollFlags::IN);
                self.polled.push(Polled::Listener(token, index));
            }
        }
    }

    /// A token that no user's handle has.
    pub(super) fn new_token(&mut self) -> Token {
        self.own_tokens += 1;
        OWN_TOKENS + self.own_tokens
    }

    fn next_number(&mut self) -> u64 {
        self.connections += 1;
        self.connections
    }
}

/// Tokens from here on are given by the transport itself.
const OWN_TOKENS: Token = 1 << 63;

/// The global request that begins a listening, or, with the prefix `cancel-`, ends it.
fn request_of(name: &Endpoint, prefix: &str) -> (String, Vec<u8>) {
    match name {
        Endpoint::Tcp { host, port } => (format!("{prefix}tcpip-forward"), connection::tcpip_forward(host, *port)),
        Endpoint::Unix(path) => {
            let data = connection::streamlocal_forward(path.as_os_str().as_bytes());
            (format!("{prefix}streamlocal-forward@openssh.com"), data)
        }
    }
}

pub(super) fn refused(shared: &Shared, connection: u64, peer: String, target: String, error: Error) {
    log::debug!("forward: a connection from '{}' was refused: {error}", escape(&peer));
    shared.counters.refused.fetch_add(1, Ordering::Relaxed);
    shared.event(ForwardEvent::Refused { connection, peer, target, error });
}

fn too_many(most: usize) -> Error {
    let error = io::Error::other(format!("{most} connections are open, which is the most that were allowed"));
    Error::io("a connection was refused", error)
}

/// An address and a port as text; a Unix socket has neither.
fn peer_text(host: &str, port: u16) -> String {
    match host {
        "" => String::new(),
        host => Endpoint::tcp(host, port).to_string(),
    }
}

fn target_text(destination: &Destination) -> String {
    match destination {
        Destination::There(target) | Destination::Here(target) => target.to_string(),
        Destination::Anywhere | Destination::Queue => String::new(),
    }
}
