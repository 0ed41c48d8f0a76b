//! The transport thread's loop: take requests, receive packets, send packets, wait.
//!
//! The loop and its state are here; what it does in each step is in the rooms below.

mod ending;
mod entry;
mod forwards;
mod incoming;
mod links;
mod outgoing;
mod requests;
mod time;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use rustix::event::PollFlags;

use super::fault::{self, Fault};
use super::message::{Request, Token};
use super::packet::Packets;
use super::pipe::{Pipe, Shared};
use super::sessions::Sessions;
use super::sys::poll::PollSet;
use super::wake::{self, Wake};
use super::Config;
use crate::connection::{ChannelId, Connection, DataHeader};
use crate::error::{Error, Result};
use crate::forward::Endpoint;
use entry::{Entry, Owner};
use forwards::Forward;
use links::Link;

/// Bytes taken in before the other side of the loop gets its turn: a flooding server starves nobody.
const TURN_BYTES: usize = 512 * 1024;
/// Payloads handled in one turn, for floods of tiny ones.
const TURN_PACKETS: usize = 1024;
/// A reader that waits is woken when this much is queued for it, else at the end of the turn: waking it for every
/// packet costs more system calls than receiving the packet.
const WAKE_BYTES: u64 = 256 * 1024;
/// Packets with at least this much data are a part of something long.
const BULK_PACKET: usize = 16 * 1024;
/// How long a reader of such a thing, and this thread, may wait for more than one of them: being woken costs as much as
/// decrypting a packet, and the sender pays for it, too.
const WAKE_DELAY: Duration = Duration::from_micros(100);
/// Data is given to libssh2 while less than this is unsent; more would only wait in our buffer.
const UNSENT_HIGH: usize = 512 * 1024;
/// Data given to libssh2 in one turn.
const TURN_SENT: usize = 2 * 1024 * 1024;
/// The goodbye of a dropped client is given this long to leave.
const GOODBYE: Duration = Duration::from_secs(2);
/// What was written to a channel that nobody holds any more is given this long to leave.
const LINGER: Duration = Duration::from_secs(60);
/// After this long without traffic, buffers kept for reuse are freed.
const TRIM_AFTER: Duration = Duration::from_millis(500);
/// The receive window that a connection of a forward begins with: there may be hundreds.
const FORWARD_WINDOW: u32 = 256 * 1024;
/// Turns without a look at the forwards' sockets while there is other work.
const UNSEEN_TURNS: u32 = 4;
/// The smallest receive window, for when the memory limit is near.
const MIN_WINDOW: u32 = 64 * 1024;

pub(crate) struct EventLoop {
    packets: Packets,
    connection: Connection,
    requests: Receiver<Request>,
    wake: Arc<Wake>,
    shared: Shared,
    config: Config,
    /// The wake descriptor was found readable.
    woken: bool,
    entries: HashMap<Token, Entry>,
    owners: HashMap<ChannelId, Owner>,
    /// Session channels, opening, open or closing: what counts against the server's limit.
    session_channels: HashSet<ChannelId>,
    sessions: Sessions,
    /// Channels that have bytes to send and may have window, in turn.
    sendable: VecDeque<Token>,
    /// Pipes whose readers are to be woken.
    waking: Vec<Arc<Pipe>>,
    /// By when those have to be woken, if all of them read something long.
    wake_at: Option<Instant>,
    /// One of them must not wait for more.
    wake_now: bool,
    /// Channels whose writer waits for the flush; where the EOF ends in what goes out, once it is there.
    flushing: Vec<(Token, Option<u64>)>,
    /// Channels that want credit which the memory limit withholds.
    withheld: Vec<Token>,
    graces: BTreeSet<(Instant, Token)>,
    globals: VecDeque<GlobalWaiter>,
    forwards: HashMap<Token, Forward>,
    links: HashMap<Token, Link>,
    link_deadlines: BTreeSet<(Instant, Token)>,
    /// Links whose sockets are to be given what has come for them.
    writing: Vec<Token>,
    /// What is read of a link's socket, on its way into a packet.
    scratch: Vec<u8>,
    poll: PollSet,
    /// Whose sockets follow the connection's and the wake descriptor in the set.
    polled: Vec<Polled>,
    unseen_turns: u32,
    /// Tokens given by the transport itself.
    own_tokens: Token,
    /// Connections of forwards so far.
    connections: u64,
    inbox: Sender<Request>,
    held: Option<Held>,
    round_trip: Option<Duration>,
    probes: Probes,
    trimmed: bool,
    ending: Ending,
    /// Others who asked for the end after the first.
    closers: Vec<Sender<Result<(), Error>>>,
    fault: Option<Fault>,
}

enum GlobalWaiter {
    Probe,
    User { name: String, reply: Sender<Result<Vec<u8>, Error>> },
    Listen { token: Token, name: Endpoint, asked: Instant },
}

/// Whose socket was waited for.
#[derive(Clone, Copy)]
enum Polled {
    /// A forward's listener, by its place.
    Listener(Token, usize),
    Link(Token),
}

/// A message that libssh2 could not take because a key exchange ran. It goes before everything else.
enum Held {
    Control(Vec<u8>),
    Data { token: Token, header: DataHeader, body: Vec<u8> },
}

/// Liveness: probes sent since the last byte came.
#[derive(Default)]
struct Probes {
    unanswered: u32,
    last: Option<Instant>,
}

enum Ending {
    No,
    Finish {
        deadline: Instant,
        limit: Duration,
        done: Sender<Result<(), Error>>,
        /// All that was queued is with the kernel, and the channels are being closed.
        sent: bool,
    },
    /// Say goodbye now.
    Now,
}

impl EventLoop {
    pub fn new(
        packets: Packets,
        (inbox, requests): (Sender<Request>, Receiver<Request>),
        wake: Arc<Wake>,
        shared: Shared,
        config: Config,
    ) -> EventLoop {
        EventLoop {
            packets,
            connection: Connection::new(),
            requests,
            wake,
            shared,
            woken: false,
            entries: HashMap::new(),
            owners: HashMap::new(),
            session_channels: HashSet::new(),
            sessions: Sessions::new(config.spare_channel),
            sendable: VecDeque::new(),
            waking: Vec::new(),
            wake_at: None,
            wake_now: false,
            flushing: Vec::new(),
            withheld: Vec::new(),
            graces: BTreeSet::new(),
            globals: VecDeque::new(),
            forwards: HashMap::new(),
            links: HashMap::new(),
            link_deadlines: BTreeSet::new(),
            writing: Vec::new(),
            scratch: Vec::new(),
            poll: PollSet::default(),
            polled: Vec::new(),
            unseen_turns: 0,
            own_tokens: 0,
            connections: 0,
            inbox,
            held: None,
            round_trip: None,
            probes: Probes::default(),
            trimmed: true,
            ending: Ending::No,
            closers: Vec::new(),
            fault: None,
            config,
        }
    }

    /// Runs until the connection ends, however it does; then tells everybody.
    pub fn run(mut self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.turns()));
        let error = match outcome {
            Ok(error) => error,
            Err(panic) => Error::Internal(fault::panic_text(&*panic)),
        };
        self.end(error);
    }

    fn turns(&mut self) -> Error {
        loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => return self.goodbye(),
                Err(error) => return error,
            }
        }
    }

    /// One turn; false when it is time to say goodbye.
    fn turn(&mut self) -> Result<bool> {
        self.wake.clear(self.woken);
        while let Ok(request) = self.requests.try_recv() {
            self.request(request);
        }
        fault::strike(&mut self.fault, Fault::Loop);
        self.serve_polled();
        self.receive()?;
        self.write_links();
        self.send()?;
        let flushed = self.flush()?;
        self.write_links();
        self.tell_flushed();
        self.keep_spares();
        self.keep_time()?;
        if self.is_over(flushed) {
            return Ok(false);
        }
        self.wait(flushed)?;
        Ok(true)
    }

    fn wait(&mut self, flushed: bool) -> Result<()> {
        let can_send = flushed && !self.exchanging() && (self.connection.has_messages() || !self.sendable.is_empty());
        let busy = self.packets.must_read() || can_send;
        if busy && !self.sockets_are_due() {
            self.woken = false;
            return Ok(());
        }
        self.unseen_turns = 0;
        // A reader of something long waits for more: so does this thread, and is not woken for each piece of it.
        let resting = !busy && self.wake_at.is_some();
        let deadline = if busy { Some(Instant::now()) } else { self.next_deadline() };
        self.fill_poll(!resting, !flushed);
        self.poll.wait(deadline).map_err(|e| Error::io("cannot wait for the socket", e))?;
        self.woken = !self.poll.found(1).is_empty();
        if resting || wake::is_readable(self.poll.found(0)) {
            self.packets.readable();
        }
        Ok(())
    }

    /// Whether the sockets of forwards are to be looked at although there is other work: a flood on one channel must
    /// not keep others from being heard.
    fn sockets_are_due(&mut self) -> bool {
        if self.links.is_empty() && self.forwards.is_empty() {
            return false;
        }
        self.unseen_turns += 1;
        self.unseen_turns >= UNSEEN_TURNS
    }

    /// The connection's socket, the wake descriptor, and then those of forwards.
    fn fill_poll(&mut self, want_read: bool, want_write: bool) {
        let poll = &mut self.poll;
        poll.clear();
        self.packets.socket(|s| poll.add(s, wake::interest(want_read, want_write)));
        poll.add(&*self.wake, PollFlags::IN);
        self.polled.clear();
        self.add_listeners_to_poll();
        self.add_links_to_poll();
    }

    /// Looks at the sockets that poll found ready.
    fn serve_polled(&mut self) {
        let mut polled = std::mem::take(&mut self.polled);
        for (index, whose) in polled.drain(..).enumerate() {
            let found = self.poll.found(index + 2);
            if found.is_empty() {
                continue;
            }
            match whose {
                Polled::Listener(token, at) => self.accept_from(token, at),
                Polled::Link(token) => self.link_ready(token, found),
            }
        }
        self.polled = polled;
    }
}
