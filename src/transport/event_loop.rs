//! The transport thread's loop: take requests, receive packets, send packets, wait.
//!
//! The loop and its state are here; what it does in each step is in the rooms below.

mod ending;
mod entry;
mod incoming;
mod outgoing;
mod requests;
mod time;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::fault::{self, Fault};
use super::message::{Request, Token};
use super::packet::Packets;
use super::pipe::{Pipe, Shared};
use super::sessions::Sessions;
use super::wake::{self, Ready, Wake};
use super::Config;
use crate::connection::{ChannelId, Connection, DataHeader};
use crate::error::{Error, Result};
use entry::{Entry, Owner};

/// Bytes taken in before the other side of the loop gets its turn: a flooding server starves nobody.
const TURN_BYTES: usize = 512 * 1024;
/// Payloads handled in one turn, for floods of tiny ones.
const TURN_PACKETS: usize = 1024;
/// A reader that waits is woken when this much is queued for it, else at the end of the turn: waking it for every
/// packet costs more system calls than receiving the packet.
const WAKE_BYTES: u64 = 128 * 1024;
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
/// The smallest receive window, for when the memory limit is near.
const MIN_WINDOW: u32 = 64 * 1024;

pub(crate) struct EventLoop {
    packets: Packets,
    connection: Connection,
    requests: Receiver<Request>,
    wake: Arc<Wake>,
    shared: Shared,
    config: Config,
    ready: Ready,
    entries: HashMap<Token, Entry>,
    owners: HashMap<ChannelId, Owner>,
    /// Session channels, opening, open or closing: what counts against the server's limit.
    session_channels: HashSet<ChannelId>,
    sessions: Sessions,
    /// Channels that have bytes to send and may have window, in turn.
    sendable: VecDeque<Token>,
    /// Pipes whose readers are to be woken.
    waking: Vec<Arc<Pipe>>,
    /// Channels whose writer waits for the flush; where the EOF ends in what goes out, once it is there.
    flushing: Vec<(Token, Option<u64>)>,
    /// Channels that want credit which the memory limit withholds.
    withheld: Vec<Token>,
    graces: BTreeSet<(Instant, Token)>,
    globals: VecDeque<GlobalWaiter>,
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
        requests: Receiver<Request>,
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
            ready: Ready::default(),
            entries: HashMap::new(),
            owners: HashMap::new(),
            session_channels: HashSet::new(),
            sessions: Sessions::new(config.spare_channel),
            sendable: VecDeque::new(),
            waking: Vec::new(),
            flushing: Vec::new(),
            withheld: Vec::new(),
            graces: BTreeSet::new(),
            globals: VecDeque::new(),
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
        self.wake.clear(self.ready.woken);
        while let Ok(request) = self.requests.try_recv() {
            self.request(request);
        }
        fault::strike(&mut self.fault, Fault::Loop);
        self.receive()?;
        self.send()?;
        let flushed = self.flush()?;
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
        if self.packets.must_read() || can_send {
            self.ready = Ready::default();
            return Ok(());
        }
        let deadline = self.next_deadline();
        let wake = Arc::clone(&self.wake);
        let ready = self.packets.socket(|s| wake::wait(s, !flushed, Some(&wake), deadline));
        self.ready = ready.map_err(|e| Error::io("cannot wait for the socket", e))?;
        if self.ready.readable {
            self.packets.readable();
        }
        Ok(())
    }
}
