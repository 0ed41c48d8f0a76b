//! A TCP proxy on 127.0.0.1 that is a long link, a slow one, or a broken one, at the test's command.
//!
//! ```text
//! client → [reader] → queue, each chunk with the time it is due → [writer] → server        Direction::Up
//! client ← [writer] ← queue, each chunk with the time it is due ← [reader] ← server        Direction::Down
//! ```
//!
//! A delay is that of a long wire, not of a slow one: up to 256 MiB each way are under way at once, and what was read
//! together arrives together. Threads only; no file of the tests is used, so that the benches can include this one.
//!
//! Counters and positions count the bytes of one direction, of all connections together; most tests have one.
#![allow(dead_code, reason = "the tests and the benches each use a part")]

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{eventfd, poll, EventfdFlags, PollFd, PollFlags};
use rustix::net::sockopt;

/// Bytes read at once. Large, because a chunk costs a lock and perhaps a wake-up.
const CHUNK: usize = 256 * 1024;

/// Bytes under way in one direction of one connection; past that the sender is held back.
const IN_FLIGHT: usize = 256 * 1024 * 1024;

/// Empty chunks kept for reuse: fresh memory costs a page fault every 4 KiB, which is more than the copy.
const SPARE_CHUNKS: usize = 256;

/// How long the stream rests at a [`Control::split_after`], so that the receiver sees two pieces.
const SPLIT_PAUSE: Duration = Duration::from_millis(20);

/// One of the two ways through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// A proxy to be described further; made by [`Proxy::to`].
#[derive(Debug, Clone, Copy)]
pub struct Builder {
    server: SocketAddr,
    link: Link,
}

/// What the link is like from beginning to end.
#[derive(Debug, Clone, Copy)]
struct Link {
    delay: Duration,
    bytes_per_second: Option<u64>,
    byte_wise: bool,
}

impl Builder {
    /// Lets every byte travel for so long, each way: half the round trip.
    pub fn delay(mut self, one_way: Duration) -> Self {
        self.link.delay = one_way;
        self
    }

    /// Lets no more than so many bytes a second pass, each way.
    pub fn rate(mut self, bytes_per_second: u64) -> Self {
        self.link.bytes_per_second = Some(bytes_per_second.max(1));
        self
    }

    /// Writes every byte by itself. A receiver that is slower than the proxy still finds several at once.
    pub fn byte_wise(mut self) -> Self {
        self.link.byte_wise = true;
        self
    }

    /// Listens on a free port of 127.0.0.1 and serves connections until the proxy is dropped.
    ///
    /// # Errors
    /// When no port, thread or descriptor is to be had.
    pub fn start(self) -> io::Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            address: listener.local_addr()?,
            server: Mutex::new(self.server),
            delay_ns: AtomicU64::new(nanoseconds(self.link.delay)),
            link: self.link,
            up: Flow::default(),
            down: Flow::default(),
            accepted: AtomicU64::new(0),
            connections: Mutex::new(Vec::new()),
            gone: Condvar::new(),
            stop: Bell::new()?,
        });
        let control = Control { shared: Arc::clone(&shared) };
        let accepting = thread::Builder::new().name("proxy".into()).spawn(move || accept(&shared, &listener))?;
        Ok(Proxy { control, accepting: Some(accepting) })
    }
}

/// A running proxy. Dropping it refuses new connections, cuts those it has, and waits until its threads are gone.
#[derive(Debug)]
pub struct Proxy {
    control: Control,
    accepting: Option<JoinHandle<()>>,
}

impl Proxy {
    /// A proxy to a server; a plain one unless told otherwise.
    pub fn to(server: SocketAddr) -> Builder {
        Builder { server, link: Link { delay: Duration::ZERO, bytes_per_second: None, byte_wise: false } }
    }

    /// The controls, for another thread.
    pub fn control(&self) -> Control {
        self.control.clone()
    }
}

impl Deref for Proxy {
    type Target = Control;

    fn deref(&self) -> &Control {
        &self.control
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.control.shared.stop.ring();
        if let Some(thread) = self.accepting.take() {
            // It does not panic; if it did, the test has failed elsewhere.
            let _ = thread.join();
        }
        self.control.cut();
    }
}

/// The live controls of a proxy; every clone controls the same one.
#[derive(Debug, Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

impl Control {
    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// The port of [`address`](Self::address).
    pub fn port(&self) -> u16 {
        self.shared.address.port()
    }

    /// Resets every connection, both sides (RST), without a FIN before; what was under way is lost. Returns when it is
    /// done. New connections are served as before.
    pub fn cut(&self) {
        for connection in self.shared.living() {
            connection.reset();
        }
        self.wait_until_idle();
    }

    /// Ends every connection, both sides (FIN), after what is under way has arrived; what is sent later is thrown away.
    pub fn close_nicely(&self) {
        for connection in self.shared.living() {
            connection.closing.ring();
        }
    }

    /// Lets nothing pass in this direction and reads nothing more: the sender's TCP fills up and holds it back.
    pub fn stall(&self, direction: Direction) {
        self.shared.flow(direction).set(Mode::Stalled);
    }

    /// As [`stall`](Self::stall), once exactly so many bytes have passed.
    pub fn stall_after(&self, direction: Direction, position: u64) {
        self.shared.flow(direction).change(|state| state.stall_at = Some(position));
    }

    /// Takes everything and lets nothing pass, no FIN either: the sender believes that all is well.
    pub fn swallow(&self, direction: Direction) {
        self.shared.flow(direction).set(Mode::Swallowing);
    }

    /// [`swallow`](Self::swallow) both ways: the far end is gone without a word.
    pub fn black_hole(&self) {
        self.swallow(Direction::Up);
        self.swallow(Direction::Down);
    }

    /// Ends [`stall`](Self::stall) or [`swallow`](Self::swallow). What was stalled arrives, what was swallowed is lost.
    pub fn resume(&self, direction: Direction) {
        self.shared.flow(direction).set(Mode::Flowing);
    }

    /// Inverts the lowest bit of the byte at this position, counted from 0.
    pub fn flip_bit(&self, direction: Direction, position: u64) {
        self.shared.flow(direction).change(|state| state.flips.extend([position]));
    }

    /// Inverts the lowest bit of a byte still to pass: 0 is the next one, that is, of the next packet where the line is
    /// quiet.
    pub fn flip_bit_ahead(&self, direction: Direction, ahead: u64) {
        self.shared.flow(direction).change(|state| state.flips.extend([state.position + ahead]));
    }

    /// Rests for 20 ms after the byte before this position, so that it arrives apart from what follows.
    pub fn split_after(&self, direction: Direction, position: u64) {
        self.shared.flow(direction).change(|state| state.splits.extend([position]));
    }

    /// Changes the delay for what is read from now on. What is under way still arrives first.
    pub fn set_delay(&self, one_way: Duration) {
        self.shared.delay_ns.store(nanoseconds(one_way), Ordering::Relaxed);
    }

    /// Leads new connections to another server.
    pub fn redirect(&self, server: SocketAddr) {
        *lock(&self.shared.server) = server;
    }

    /// Bytes that have been passed on to the receiver's TCP.
    pub fn delivered(&self, direction: Direction) -> u64 {
        lock(&self.shared.flow(direction).state).delivered
    }

    /// Where the next byte to be passed on stands. Unlike [`delivered`](Self::delivered) it is counted before the bytes
    /// are written, so it is not behind what the receiver has got.
    pub fn position(&self, direction: Direction) -> u64 {
        lock(&self.shared.flow(direction).state).position
    }

    /// Bytes that have been thrown away.
    pub fn swallowed(&self, direction: Direction) -> u64 {
        lock(&self.shared.flow(direction).state).swallowed
    }

    /// Waits until so many bytes have been passed on; false when they were not in time.
    #[must_use]
    pub fn wait_until_delivered(&self, direction: Direction, bytes: u64, patience: Duration) -> bool {
        let flow = self.shared.flow(direction);
        let unfinished = |state: &mut FlowState| state.delivered < bytes;
        let waited = flow.changed.wait_timeout_while(lock(&flow.state), patience, unfinished);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Connections alive.
    pub fn connections(&self) -> usize {
        self.shared.living().len()
    }

    fn wait_until_idle(&self) {
        let busy = |connections: &mut Vec<Arc<Connection>>| !connections.is_empty();
        drop(self.shared.gone.wait_while(lock(&self.shared.connections), busy));
    }
}

/// What all threads of a proxy share. Mutexes and not queues, because a control changes a thing that threads are in the
/// middle of; none is held while anything waits for the network.
#[derive(Debug)]
struct Shared {
    address: SocketAddr,
    server: Mutex<SocketAddr>,
    delay_ns: AtomicU64,
    link: Link,
    up: Flow,
    down: Flow,
    accepted: AtomicU64,
    connections: Mutex<Vec<Arc<Connection>>>,
    /// Told when a connection has ended, its sockets are closed, and it is off the list.
    gone: Condvar,
    stop: Bell,
}

impl Shared {
    fn flow(&self, direction: Direction) -> &Flow {
        match direction {
            Direction::Up => &self.up,
            Direction::Down => &self.down,
        }
    }

    fn living(&self) -> Vec<Arc<Connection>> {
        lock(&self.connections).clone()
    }

    fn forget(&self, connection: &Arc<Connection>) {
        lock(&self.connections).retain(|other| !Arc::ptr_eq(other, connection));
        self.gone.notify_all();
    }
}

/// What becomes of the bytes of one direction.
#[derive(Debug, Default)]
struct Flow {
    state: Mutex<FlowState>,
    /// Told at every change of the state, and when a connection dies.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct FlowState {
    mode: Mode,
    /// Where the next byte to be passed on stands.
    position: u64,
    delivered: u64,
    swallowed: u64,
    flips: BTreeSet<u64>,
    splits: BTreeSet<u64>,
    stall_at: Option<u64>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Mode {
    #[default]
    Flowing,
    Stalled,
    Swallowing,
}

/// What a writer does next with the bytes at hand.
enum Step {
    /// Write so many, rest for so long.
    Write(usize, Duration),
    /// Throw all away.
    Swallow,
    /// The connection is dead.
    Stop,
}

impl Flow {
    fn change(&self, change: impl FnOnce(&mut FlowState)) {
        change(&mut lock(&self.state));
        self.changed.notify_all();
    }

    fn set(&self, mode: Mode) {
        self.change(|state| state.mode = mode);
    }

    /// The mode, once it is not `Stalled`; none when the connection has died.
    fn wait_while_stalled(&self, connection: &Connection) -> Option<MutexGuard<'_, FlowState>> {
        let stalled = |state: &mut FlowState| state.mode == Mode::Stalled && !connection.is_dead();
        let state = self.changed.wait_while(lock(&self.state), stalled).unwrap_or_else(PoisonError::into_inner);
        (!connection.is_dead()).then_some(state)
    }

    /// Decides about the next bytes, and flips what is to be flipped in them.
    fn step(&self, bytes: &mut [u8], byte_wise: bool, connection: &Connection) -> Step {
        loop {
            let Some(mut state) = self.wait_while_stalled(connection) else { return Step::Stop };
            if state.stall_at.is_some_and(|position| position <= state.position) {
                state.stall_at = None;
                state.mode = Mode::Stalled;
                continue;
            }
            if state.mode == Mode::Swallowing {
                state.swallowed += bytes.len() as u64;
                return Step::Swallow;
            }
            return state.take(bytes, byte_wise);
        }
    }

    fn wrote(&self, count: usize) {
        self.change(|state| state.delivered += count as u64);
    }
}

impl FlowState {
    fn take(&mut self, bytes: &mut [u8], byte_wise: bool) -> Step {
        let start = self.position;
        let mut end = start + if byte_wise { 1 } else { bytes.len() as u64 };
        // Positions that were passed before they were asked for never come again.
        self.splits = self.splits.split_off(&(start + 1));
        if let Some(&split) = self.splits.first() {
            end = end.min(split);
        }
        if let Some(stall) = self.stall_at {
            end = end.min(stall);
        }
        self.flips = self.flips.split_off(&start);
        for flip in self.flips.range(start..end) {
            bytes[(flip - start) as usize] ^= 1;
        }
        self.position = end;
        if self.stall_at == Some(end) {
            self.stall_at = None;
            self.mode = Mode::Stalled;
        }
        let pause = if self.splits.first() == Some(&end) { SPLIT_PAUSE } else { Duration::ZERO };
        Step::Write((end - start) as usize, pause)
    }
}

/// One client's connection, but for its two sockets: those belong to [`serve`].
#[derive(Debug)]
struct Connection {
    up: Queue,
    down: Queue,
    /// Set before `died` rings: cheaper to ask.
    dead: AtomicBool,
    /// Rung when the connection is to be reset.
    died: Bell,
    /// Rung when the connection is to end.
    closing: Bell,
    shared: Arc<Shared>,
}

impl Connection {
    fn new(shared: &Arc<Shared>) -> io::Result<Connection> {
        Ok(Connection {
            up: Queue::default(),
            down: Queue::default(),
            dead: AtomicBool::new(false),
            died: Bell::new()?,
            closing: Bell::new()?,
            shared: Arc::clone(shared),
        })
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    /// Makes the threads let go of both sockets, which [`serve`] then resets.
    fn reset(&self) {
        self.dead.store(true, Ordering::SeqCst);
        self.died.ring();
        for queue in [&self.up, &self.down] {
            // Through the lock: a thread between its check and its wait must not miss this.
            drop(lock(&queue.state));
            queue.arrived.notify_all();
            queue.room.notify_all();
        }
        for flow in [&self.shared.up, &self.shared.down] {
            flow.change(|_| ());
        }
    }

    /// Rests, unless the connection dies.
    fn rest(&self, duration: Duration) {
        if !duration.is_zero() {
            wait_for(None, &[&self.died], Some(duration));
        }
    }

    /// Holds the connection open for a black hole, whose other end must not see it end.
    fn wait_until_dead(&self) {
        wait_for(None, &[&self.died], None);
    }
}

/// Moves bytes both ways until both sides have ended, or one was reset; then closes both.
fn serve(connection: &Connection, client: TcpStream, server: TcpStream) {
    let half = |direction| match direction {
        Direction::Up => Half::new(direction, connection, &client, &server),
        Direction::Down => Half::new(direction, connection, &server, &client),
    };
    thread::scope(|scope| {
        let run = |name: &str, role: fn(&Half), direction| {
            let half = half(direction);
            let thread = thread::Builder::new().name(format!("proxy-{name}"));
            if thread.spawn_scoped(scope, move || role(&half)).is_err() {
                connection.reset();
            }
        };
        run("up-read", |half| half.read_all(), Direction::Up);
        run("up-write", |half| half.write_all(), Direction::Up);
        run("down-read", |half| half.read_all(), Direction::Down);
        run("down-write", |half| half.write_all(), Direction::Down);
    });
    if connection.is_dead() {
        reset_at_close(&client);
        reset_at_close(&server);
    }
}

/// The close of such a socket is a reset. A `shutdown` before it would send a FIN, which is something else.
fn reset_at_close(socket: &TcpStream) {
    // Fails on a socket that is dead already.
    let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
}

/// One direction of one connection.
struct Half<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    queue: &'a Queue,
    flow: &'a Flow,
    connection: &'a Connection,
}

impl<'a> Half<'a> {
    fn new(direction: Direction, connection: &'a Connection, from: &'a TcpStream, to: &'a TcpStream) -> Self {
        let queue = match direction {
            Direction::Up => &connection.up,
            Direction::Down => &connection.down,
        };
        Half { from, to, queue, flow: connection.shared.flow(direction), connection }
    }

    /// The reader thread: the socket to the queue.
    fn read_all(&self) {
        let link = self.connection.shared.link;
        // At a low rate small bites, so that the rate holds over short times too.
        let bite = link.bytes_per_second.map_or(CHUNK, |rate| ((rate / 200) as usize).clamp(1, CHUNK));
        let mut buffer = vec![0; CHUNK];
        let mut free_at = Instant::now();
        loop {
            let Some(count) = self.read(&mut buffer[..bite]) else { return };
            if count == 0 {
                return self.queue.end();
            }
            if self.swallows(count) {
                continue;
            }
            if let Some(rate) = link.bytes_per_second {
                // The link is busy with these bytes for so long, and takes no others meanwhile.
                free_at = free_at.max(Instant::now()) + Duration::from_secs_f64(count as f64 / rate as f64);
                self.connection.rest(free_at.saturating_duration_since(Instant::now()));
            }
            let delay = Duration::from_nanos(self.connection.shared.delay_ns.load(Ordering::Relaxed));
            self.queue.push(&mut buffer, count, Instant::now() + delay, self.connection);
        }
    }

    /// Reads once; 0 at the end of the stream, none when the connection is dead.
    fn read(&self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            drop(self.flow.wait_while_stalled(self.connection)?);
            match (&mut &*self.from).read(buffer) {
                Ok(0) => return Some(0),
                Ok(count) if !self.connection.closing.has_rung() => return Some(count),
                // Closing: the sender is heard to its end and not believed, or its close would become a reset.
                Ok(_) => self.queue.end(),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait_for_input()?,
                Err(_) => {
                    self.connection.reset();
                    return None;
                }
            }
        }
    }

    /// Waits until there is something to read, or the connection is closing or dead.
    fn wait_for_input(&self) -> Option<()> {
        let Connection { died, closing, .. } = self.connection;
        if closing.has_rung() {
            self.queue.end();
            wait_for(Some((self.from, PollFlags::IN)), &[died], None);
        } else {
            wait_for(Some((self.from, PollFlags::IN)), &[died, closing], None);
        }
        (!self.connection.is_dead()).then_some(())
    }

    /// Whether the far end is gone, so that what was read goes nowhere.
    fn swallows(&self, count: usize) -> bool {
        let mut state = lock(&self.flow.state);
        let swallows = state.mode == Mode::Swallowing;
        if swallows {
            state.swallowed += count as u64;
        }
        swallows
    }

    /// The writer thread: the queue to the socket.
    fn write_all(&self) {
        loop {
            match self.queue.pop(self.connection) {
                Popped::Chunk(mut chunk) => {
                    let count = chunk.count;
                    if self.deliver(&mut chunk.buffer[..count]).is_none() {
                        return;
                    }
                    self.queue.recycle(chunk);
                }
                Popped::End => return self.pass_the_end_on(),
                Popped::Dead => return,
            }
        }
    }

    fn deliver(&self, mut bytes: &mut [u8]) -> Option<()> {
        while !bytes.is_empty() {
            match self.flow.step(bytes, self.connection.shared.link.byte_wise, self.connection) {
                Step::Write(count, pause) => {
                    let (now, later) = bytes.split_at_mut(count);
                    self.write(now)?;
                    self.flow.wrote(count);
                    self.connection.rest(pause);
                    bytes = later;
                }
                Step::Swallow => return Some(()),
                Step::Stop => return None,
            }
        }
        Some(())
    }

    fn write(&self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            match (&mut &*self.to).write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.wait_for_room(),
                Err(_) => self.connection.reset(),
            }
            if self.connection.is_dead() {
                return None;
            }
        }
        Some(())
    }

    fn wait_for_room(&self) {
        wait_for(Some((self.to, PollFlags::OUT)), &[&self.connection.died], None);
    }

    /// A FIN for a FIN, in its turn; a black hole gives none.
    fn pass_the_end_on(&self) {
        let Some(state) = self.flow.wait_while_stalled(self.connection) else { return };
        if state.mode == Mode::Swallowing {
            drop(state);
            return self.connection.wait_until_dead();
        }
        drop(state);
        // Fails when the other side is gone, which its reader finds out.
        let _ = self.to.shutdown(Shutdown::Write);
    }
}

/// Bytes under way.
#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    /// Told when an empty queue is no longer empty, or ends.
    arrived: Condvar,
    /// Told when a full queue is no longer full.
    room: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    ended: bool,
    spare: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Chunk {
    buffer: Vec<u8>,
    /// How much of the buffer is data.
    count: usize,
    due: Instant,
}

enum Popped {
    Chunk(Chunk),
    End,
    Dead,
}

impl Queue {
    /// Takes `count` bytes of the buffer, and leaves a buffer as large in its place. Waits while the queue is full.
    fn push(&self, buffer: &mut Vec<u8>, count: usize, due: Instant, connection: &Connection) {
        let full = |state: &mut QueueState| state.bytes >= IN_FLIGHT && !connection.is_dead();
        let mut state = self.room.wait_while(lock(&self.state), full).unwrap_or_else(PoisonError::into_inner);
        // Little data is copied: a long queue of small pieces must not hold a large buffer for each.
        let buffer = if count < CHUNK / 4 {
            buffer[..count].to_vec()
        } else {
            let fresh = state.spare.pop().unwrap_or_else(|| vec![0; CHUNK]);
            std::mem::replace(buffer, fresh)
        };
        state.bytes += buffer.capacity();
        state.chunks.push_back(Chunk { buffer, count, due });
        drop(state);
        self.arrived.notify_one();
    }

    fn end(&self) {
        lock(&self.state).ended = true;
        self.arrived.notify_one();
    }

    /// The next chunk, when it is due.
    fn pop(&self, connection: &Connection) -> Popped {
        let mut state = lock(&self.state);
        loop {
            if connection.is_dead() {
                return Popped::Dead;
            }
            let now = Instant::now();
            match state.chunks.front().map(|chunk| chunk.due) {
                Some(due) if due <= now => break,
                // Nothing that arrives meanwhile is due earlier, but a reset wakes this too.
                Some(due) => {
                    let waited = self.arrived.wait_timeout(state, due - now);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                None if state.ended => return Popped::End,
                None => state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
        let Some(chunk) = state.chunks.pop_front() else { return Popped::End };
        state.bytes -= chunk.buffer.capacity();
        drop(state);
        self.room.notify_one();
        Popped::Chunk(chunk)
    }

    fn recycle(&self, chunk: Chunk) {
        let mut state = lock(&self.state);
        if chunk.buffer.len() == CHUNK && state.spare.len() < SPARE_CHUNKS {
            state.spare.push(chunk.buffer);
        }
    }
}

/// An event that stays: once rung, whoever waits for it or will wait is woken.
#[derive(Debug)]
struct Bell(OwnedFd);

impl Bell {
    fn new() -> io::Result<Bell> {
        Ok(Bell(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    fn ring(&self) {
        // Fails only when it has been rung 2^64 times.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    fn has_rung(&self) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&rustix::event::Timespec::default())), Ok(1..))
    }
}

/// Waits for a socket, a bell, or a time. Errors of poll itself show at the next read or write.
fn wait_for(socket: Option<(&dyn AsFd, PollFlags)>, bells: &[&Bell], patience: Option<Duration>) {
    let mut fds = Vec::with_capacity(3);
    fds.extend(socket.map(|(socket, events)| PollFd::from_borrowed_fd(socket.as_fd(), events)));
    fds.extend(bells.iter().map(|bell| PollFd::new(&bell.0, PollFlags::IN)));
    let timeout = patience.and_then(|patience| patience.try_into().ok());
    let _ = poll(&mut fds, timeout.as_ref());
}

/// The accepting thread: a thread for each connection, all joined at the end.
fn accept(shared: &Arc<Shared>, listener: &TcpListener) {
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    while !shared.stop.has_rung() {
        match listener.accept() {
            Ok((client, _)) => {
                shared.accepted.fetch_add(1, Ordering::SeqCst);
                threads.retain(|thread| !thread.is_finished());
                let shared = Arc::clone(shared);
                threads.extend(thread::Builder::new().name("proxy-link".into()).spawn(move || open(&shared, client)));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                wait_for(Some((listener, PollFlags::IN)), &[&shared.stop], None);
            }
            // Out of descriptors, or the client is gone again.
            Err(_) => wait_for(None, &[&shared.stop], Some(Duration::from_millis(1))),
        }
    }
    for connection in shared.living() {
        connection.reset();
    }
    for thread in threads {
        let _ = thread.join();
    }
}

/// Connects to the server and serves; a client whose server does not answer is reset.
fn open(shared: &Arc<Shared>, client: TcpStream) {
    let server = *lock(&shared.server);
    let Ok((server, connection)) = connect(server).and_then(|server| Ok((server, Connection::new(shared)?))) else {
        return reset_at_close(&client);
    };
    let connection = Arc::new(connection);
    lock(&shared.connections).push(Arc::clone(&connection));
    // The end of the proxy comes either before this, or after the connection is on its list.
    if shared.stop.has_rung() || [&client, &server].into_iter().any(|socket| prepare(socket).is_err()) {
        connection.reset();
    }
    serve(&connection, client, server);
    shared.forget(&connection);
}

fn connect(server: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&server, Duration::from_secs(10))
}

/// Threads wait in poll only, so that a reset reaches them; what is written leaves at once.
fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    socket.set_nodelay(true)
}

/// A poisoned lock means that a thread of ours panicked; the test fails for that, not for this.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
