//! One channel as its users see it: bytes both ways, its start and its end.
//!
//! A mutex and condition variables, not crossbeam queues, because several waits must see one state: a reader of one
//! stream has to know how much of the other is unread, `wait` counts as a reader of streams nobody has taken, output
//! of both streams is also read merged in arrival order, and every wait ends by data, end, deadline or cancel. The
//! lock is held for moving buffers only, never across a wait or a system call.
//!
//! Credits: what arrived and was not consumed is counted here; the transport grants the peer what
//! [`Credit`] says. So a reader that stops holds back its own channel and nobody else's.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::chunk::{ByteQueue, Pool};
use super::flow::STEPS;
use crate::error::{Error, Phase, Result, Stream};
use crate::exit_status::ExitStatus;

/// Bytes a writer may be ahead of the network on one channel before `write` waits.
const OUTBOUND_LIMIT: usize = 512 * 1024;

/// What all pipes of one connection share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub pool: Pool,
    /// Received and not yet consumed bytes of all channels.
    pub unread: Arc<AtomicU64>,
    /// Why the transport ended, once it has.
    pub ended: Arc<OnceLock<Error>>,
    /// Unread bytes one channel may hold while somebody waits for its other stream.
    pub unread_limit: u64,
    /// Something was not granted because of the memory limit: every read is to be reported.
    pub withheld: Arc<AtomicBool>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Pipe {
    state: Mutex<State>,
    /// The start, bytes to read, or the end.
    news: Condvar,
    /// Room to write, the flush, or the end.
    room: Condvar,
    shared: Shared,
    created: Instant,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    /// While it starts: the channel is open.
    opened: bool,
    streams: [Inbound; 2],
    /// In which order the streams' bytes arrived; kept until a stream is read on its own.
    order: Option<VecDeque<Piece>>,
    eof: bool,
    /// Read since the transport last heard of it.
    unreported: u64,
    /// Bytes read between two reports to the transport: an eighth of this channel's window, however small that is. A
    /// reader that has read the whole window must not keep it to itself.
    report_step: u64,
    outbound: Outbound,
    /// Whoever waits for output has been told to look (or is about to be) and has not yet done so.
    woken: bool,
    /// `wait` waits, and counts as a reader of these streams.
    wait_reads: [bool; 2],
    /// What the server said about the command's end so far.
    said: Option<ExitStatus>,
    /// Final.
    status: Option<ExitStatus>,
    lost: Option<Error>,
    cancelled: bool,
    /// When output last came, or, if that was later, was last read: who waits for us is not silent.
    last_output: Instant,
}

#[derive(Debug)]
enum Stage {
    Starting,
    Running,
    Failed(Error),
}

/// Who reads a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Nobody,
    Somebody,
    Gone,
}

#[derive(Debug)]
struct Inbound {
    queue: ByteQueue,
    received: u64,
    consumed: u64,
    reader: Reader,
    /// A reader waits for this stream, or for either if merged.
    waiting: bool,
    /// The limit was reached while `wait` waited: what comes is thrown away.
    discarding: bool,
    /// How much that was.
    discarded: u64,
    /// The other stream is full of unread bytes: the waiting reader gets an error.
    blocked_by_other: bool,
    /// The deadline that has passed, once what had come by then has been taken.
    out_of_time: Option<Instant>,
}

#[derive(Debug)]
struct Outbound {
    queue: ByteQueue,
    /// Accepted from the writer in all.
    written: u64,
    /// Given to libssh2 in all.
    sent: u64,
    /// Taken by the kernel in all, as far as the transport has looked.
    flushed: u64,
    /// Somebody waits for room.
    room_wanted: bool,
    /// Somebody waits for `flushed`.
    flush_wanted: bool,
    eof_wanted: bool,
    eof_flushed: bool,
    /// The remote side reads no more.
    broken: bool,
}

/// Bytes of one stream that arrived within one millisecond: length and stream in one word, time since the pipe began.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// The highest bit is the stream. Eight bytes in all, as a peer can make one of every byte.
    len_and_stream: u32,
    millis: u32,
}

const STDERR_BIT: u32 = 1 << 31;

impl Piece {
    fn new(stream: Stream, len: usize, millis: u32) -> Piece {
        let bit = if stream == Stream::Stderr { STDERR_BIT } else { 0 };
        Piece { len_and_stream: len as u32 | bit, millis }
    }

    fn stream(self) -> Stream {
        if self.len_and_stream & STDERR_BIT == 0 {
            Stream::Stdout
        } else {
            Stream::Stderr
        }
    }

    fn len(self) -> usize {
        (self.len_and_stream & !STDERR_BIT) as usize
    }
}

/// What the transport may do after bytes arrived or were consumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Credit {
    /// The peer may have this much outstanding, what was granted and not yet used included.
    pub allowed: u64,
    /// Received and not consumed.
    pub unread: u64,
    /// Somebody waits for what was queued: [`Pipe::wake_readers`] is due.
    pub wake: bool,
}

impl Pipe {
    pub fn new(shared: Shared) -> Pipe {
        let inbound = || Inbound {
            queue: ByteQueue::default(),
            received: 0,
            consumed: 0,
            reader: Reader::Nobody,
            waiting: false,
            discarding: false,
            discarded: 0,
            blocked_by_other: false,
            out_of_time: None,
        };
        let state = State {
            stage: Stage::Starting,
            opened: false,
            streams: [inbound(), inbound()],
            order: Some(VecDeque::new()),
            eof: false,
            unreported: 0,
            report_step: 1,
            outbound: Outbound {
                queue: ByteQueue::default(),
                written: 0,
                sent: 0,
                flushed: 0,
                room_wanted: false,
                flush_wanted: false,
                eof_wanted: false,
                eof_flushed: false,
                broken: false,
            },
            woken: false,
            wait_reads: [false; 2],
            said: None,
            status: None,
            lost: None,
            cancelled: false,
            last_output: Instant::now(),
        };
        Pipe { state: Mutex::new(state), news: Condvar::new(), room: Condvar::new(), shared, created: Instant::now() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves plain counters and queues behind: still usable for telling the end.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits on `condition` until notified or until `deadline`; false when the deadline has passed.
    fn wait<'a>(
        condition: &Condvar,
        guard: MutexGuard<'a, State>,
        deadline: Option<Instant>,
    ) -> (MutexGuard<'a, State>, bool) {
        let Some(deadline) = deadline else {
            return (condition.wait(guard).unwrap_or_else(PoisonError::into_inner), true);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return (guard, false);
        }
        let (guard, _) = condition.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner);
        (guard, true)
    }

    fn notify_all(&self) {
        self.news.notify_all();
        self.room.notify_all();
    }
}

/// The transport's side.
impl Pipe {
    /// The channel is open; what it is for is being asked for.
    pub fn opened(&self) {
        self.lock().opened = true;
    }

    /// The window that the peer is granted at first.
    pub fn set_window(&self, window: u32) {
        self.lock().report_step = u64::from(window / STEPS).max(1);
    }

    /// The channel is open and what it is for has started.
    pub fn started(&self) {
        let mut state = self.lock();
        state.stage = Stage::Running;
        // It could not say anything before.
        state.last_output = Instant::now();
        drop(state);
        self.news.notify_all();
    }

    /// The channel could not be opened or started.
    pub fn failed(&self, error: Error) {
        let mut state = self.lock();
        if matches!(state.stage, Stage::Starting) {
            state.stage = Stage::Failed(error);
        }
        drop(state);
        self.notify_all();
    }

    /// The request to start was dropped unanswered: the transport has ended.
    pub fn abandoned_by_transport(&self) {
        // Without a reason: this is a fork of the process that has the connection, and there is no thread here.
        let error = self.shared.ended.get().cloned().unwrap_or(Error::Closed);
        self.failed(error);
    }

    /// Queues received bytes; the answer says what may be granted now, and whether readers are to be woken. They are
    /// not woken here: a wake-up for every packet would cost more than the packet.
    pub fn push(&self, stream: Stream, buffer: Vec<u8>, range: std::ops::Range<usize>, window: u64) -> Credit {
        let len = range.len();
        let mut wake = false;
        let mut state = self.lock();
        state.last_output = Instant::now();
        let inbound = &mut state.streams[stream.index()];
        inbound.received += len as u64;
        if inbound.reader == Reader::Gone || inbound.discarding {
            inbound.consumed += len as u64;
            if inbound.discarding {
                inbound.discarded += len as u64;
            }
            self.shared.pool.put(buffer);
        } else {
            inbound.queue.push(buffer, range, &self.shared.pool);
            self.shared.unread.fetch_add(len as u64, Ordering::Relaxed);
            self.note_order(&mut state, stream, len);
            wake = state.streams[stream.index()].waiting && !std::mem::replace(&mut state.woken, true);
        }
        Credit { wake, ..self.credit(&mut state, window) }
    }

    /// Wakes whoever waits for output.
    pub fn wake_readers(&self) {
        self.news.notify_all();
    }

    fn note_order(&self, state: &mut State, stream: Stream, len: usize) {
        let Some(order) = &mut state.order else { return };
        let millis = u32::try_from(state.last_output.duration_since(self.created).as_millis()).unwrap_or(u32::MAX);
        if let Some(last) = order.back_mut() {
            let together = last.len() + len;
            if last.stream() == stream && last.millis == millis && together < STDERR_BIT as usize {
                *last = Piece::new(stream, together, millis);
                return;
            }
        }
        order.push_back(Piece::new(stream, len, millis));
    }

    /// What may be granted, after something changed on the user's side.
    pub fn review(&self, window: u64) -> Credit {
        let mut state = self.lock();
        self.credit(&mut state, window)
    }

    /// Applies the rules for a reader that waits for one stream while the other is unread (HOUSE: both streams are
    /// taken in), and says what the peer may have outstanding.
    fn credit(&self, state: &mut State, window: u64) -> Credit {
        let limit = self.shared.unread_limit;
        let unread = [state.streams[0].unread(), state.streams[1].unread()];
        let total = unread[0] + unread[1];
        let mut allowed = window.saturating_sub(total);
        for stream in [Stream::Stdout, Stream::Stderr] {
            let (own, other) = (stream.index(), stream.other().index());
            if !state.streams[own].waiting || unread[own] > 0 || unread[other] == 0 {
                continue;
            }
            if unread[other] >= limit {
                state.streams[own].blocked_by_other = true;
                self.news.notify_all();
            } else {
                allowed = allowed.max(window.min(limit - unread[other]));
            }
        }
        if state.wait_reads != [false; 2] {
            allowed = allowed.max(self.credit_for_wait(state, window, total));
        }
        Credit { allowed, unread: total, wake: false }
    }

    /// `wait` reads what nobody has taken: it is kept up to the limit, and thrown away, counted, beyond.
    fn credit_for_wait(&self, state: &mut State, window: u64, total: u64) -> u64 {
        if total < self.shared.unread_limit {
            return window.min(self.shared.unread_limit - total);
        }
        let mut free = false;
        for (inbound, wait_reads) in state.streams.iter_mut().zip(state.wait_reads) {
            if wait_reads && inbound.unread() > 0 && !inbound.discarding {
                log::warn!("output that nobody reads is thrown away while a command is waited for");
                inbound.discarding = true;
            }
            free |= inbound.discarding;
        }
        if free {
            window
        } else {
            0
        }
    }

    /// The peer sends no more data. [`wake_readers`](Pipe::wake_readers) is due: not here, because the command's end
    /// mostly comes in the same packet of the network, and then one wake-up tells all.
    pub fn eof(&self) {
        let mut state = self.lock();
        // Behind our own CLOSE data is dropped: then this is not where the output ended.
        state.eof |= state.lost.is_none();
    }

    /// What the server said about the command's end; final only when the channel closes.
    pub fn exit_said(&self, status: ExitStatus) {
        self.lock().said = Some(status);
    }

    /// The remote side reads no more.
    pub fn broken(&self) {
        let mut state = self.lock();
        state.outbound.broken = true;
        let dropped = state.outbound.queue.clear(&self.shared.pool);
        drop(state);
        if dropped > 0 {
            log::debug!("{dropped} bytes for a command that reads no more were dropped");
        }
        self.room.notify_all();
    }

    /// The channel is closed: both streams have ended and the status is final. If we closed it first that is not the
    /// command's end: a reader that lags must not take it for one.
    pub fn closed(&self) {
        let mut state = self.lock();
        let ended = state.lost.is_none();
        state.eof |= ended;
        state.outbound.broken = true;
        state.outbound.queue.clear(&self.shared.pool);
        if state.status.is_none() {
            state.status = state.said.take().or(ended.then_some(ExitStatus::Unknown));
        }
        if matches!(state.stage, Stage::Starting) {
            state.stage = Stage::Failed(Error::ConnectionLost {
                reason: "the server closed the channel before the command started".into(),
                silent: None,
            });
        }
        drop(state);
        self.notify_all();
    }

    /// We closed the channel: waiters learn that; what was received and not read stays readable.
    pub fn closed_by_us(&self) {
        self.lost(Error::Closed);
    }

    /// The connection is over.
    pub fn lost(&self, error: Error) {
        let mut state = self.lock();
        if matches!(state.stage, Stage::Starting) {
            state.stage = Stage::Failed(error.clone());
        }
        if state.status.is_none() {
            state.status = state.said.take();
        }
        if state.lost.is_none() {
            state.lost = Some(error);
        }
        state.outbound.queue.clear(&self.shared.pool);
        drop(state);
        self.notify_all();
    }

    /// Moves what was written into `into`; says whether an EOF is wanted behind it.
    pub fn take_outbound(&self, into: &mut ByteQueue) -> bool {
        let mut state = self.lock();
        into.append(&mut state.outbound.queue);
        state.outbound.eof_wanted
    }

    /// `n` more bytes went to libssh2.
    pub fn sent(&self, n: usize) {
        let mut state = self.lock();
        state.outbound.sent += n as u64;
        // A writer that waits is woken when a good piece of room is there, not for every packet.
        let outbound = &mut state.outbound;
        if outbound.ahead() <= OUTBOUND_LIMIT as u64 / 2 && std::mem::take(&mut outbound.room_wanted) {
            drop(state);
            self.room.notify_all();
        }
    }

    /// Everything sent so far has been taken by the kernel; `eof`: the EOF too.
    pub fn flushed(&self, eof: bool) {
        let mut state = self.lock();
        state.outbound.flushed = state.outbound.sent;
        state.outbound.eof_flushed |= eof;
        state.outbound.flush_wanted = false;
        self.room.notify_all();
    }

    /// Whether somebody waits for [`flushed`](Pipe::flushed).
    pub fn flush_wanted(&self) -> bool {
        self.lock().outbound.flush_wanted
    }

    /// Whether bytes or an EOF wait to be taken.
    pub fn has_outbound(&self) -> bool {
        let state = self.lock();
        !state.outbound.queue.is_empty()
    }
}

impl Inbound {
    fn unread(&self) -> u64 {
        self.received - self.consumed
    }
}

impl Outbound {
    fn ahead(&self) -> u64 {
        self.written - self.sent
    }
}

impl State {
    /// The error for output that had not ended when the time was up. What had come by then is taken first, once: a
    /// command that never pauses would otherwise be read for ever.
    fn out_of_time(&mut self, streams: &[Stream], limit: &Limit) -> Option<Error> {
        let passed = limit.total.map(|(at, _)| at).filter(|at| *at <= Instant::now());
        if passed.is_none() || self.eof || self.lost.is_some() {
            return None;
        }
        let had_the_rest =
            streams.iter().all(|s| std::mem::replace(&mut self.streams[s.index()].out_of_time, passed) == passed);
        had_the_rest.then(|| limit.error(Phase::Read, self.last_output))
    }

    /// The error that ends every wait, if there is one.
    fn interruption(&self) -> Option<Error> {
        if self.cancelled {
            Some(Error::Cancelled)
        } else {
            None
        }
    }
}

/// Where in the bytes something stands, and what it means.
pub(crate) type Found<T> = Option<(std::ops::Range<usize>, T)>;

/// How long a user's call may wait.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limit {
    /// When, and how long that was when it was set (for the error).
    pub total: Option<(Instant, Duration)>,
    /// No output for this long.
    pub idle: Option<Duration>,
}

impl Limit {
    pub fn none() -> Limit {
        Limit::default()
    }

    pub fn after(timeout: Option<Duration>) -> Limit {
        // A time that no clock can tell is no limit.
        Limit { total: timeout.and_then(|t| Some((Instant::now().checked_add(t)?, t))), idle: None }
    }

    /// The earlier of the two deadlines, given when output last came.
    fn deadline(&self, last_output: Instant) -> Option<Instant> {
        let idle = self.idle.and_then(|t| last_output.checked_add(t));
        match (self.total.map(|(at, _)| at), idle) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The error for a deadline that has passed.
    fn error(&self, phase: Phase, last_output: Instant) -> Error {
        match (self.total, self.idle) {
            (Some((at, limit)), _) if at <= Instant::now() => Error::timeout(phase, limit),
            (_, Some(idle)) if last_output.elapsed() >= idle => Error::timeout(Phase::Idle, idle),
            (Some((_, limit)), _) => Error::timeout(phase, limit),
            (None, idle) => Error::timeout(Phase::Idle, idle.unwrap_or_default()),
        }
    }
}

/// The user's side. `poke` posts a [`Request`](super::message::Request) to the transport: `Consumed` or `Wrote`.
impl Pipe {
    /// Waits until the channel runs or failed.
    pub fn wait_started(&self, limit: &Limit) -> Result<()> {
        let mut state = self.lock();
        loop {
            match &state.stage {
                Stage::Running => return Ok(()),
                Stage::Failed(error) => return Err(error.clone()),
                Stage::Starting => {}
            }
            if let Some(error) = state.interruption() {
                return Err(error);
            }
            let (guard, in_time) = Pipe::wait(&self.news, state, limit.total.map(|(at, _)| at));
            state = guard;
            if !in_time {
                let phase = if state.opened { Phase::Exec } else { Phase::Open };
                return Err(limit.error(phase, state.last_output));
            }
        }
    }

    /// From now on somebody reads this stream.
    pub fn take_stream(&self, stream: Stream) {
        self.lock().streams[stream.index()].reader = Reader::Somebody;
    }

    /// Nobody will read this stream any more: what is queued and what comes is dropped. True if the other's reader is
    /// gone as well.
    pub fn drop_stream(&self, stream: Stream) -> bool {
        let mut state = self.lock();
        state.order = None;
        let inbound = &mut state.streams[stream.index()];
        inbound.reader = Reader::Gone;
        let queued = inbound.queue.clear(&self.shared.pool) as u64;
        // What the reader had taken and not consumed goes with it.
        let rest = inbound.unread();
        inbound.consumed = inbound.received;
        debug_assert!(rest >= queued);
        self.shared.unread.fetch_sub(rest, Ordering::Relaxed);
        state.streams.iter().all(|s| s.reader == Reader::Gone)
    }

    /// Moves all queued bytes of one stream into `into`, waiting for the first. `false`: the stream has ended.
    /// `consumed` bytes taken before are reported as read.
    pub fn take(
        &self,
        stream: Stream,
        into: &mut ByteQueue,
        consumed: u64,
        limit: &Limit,
        poke: &dyn Fn(),
    ) -> Result<bool> {
        let mut state = self.lock();
        state.order = None;
        let mut poke_due = self.report(&mut state, stream, consumed);
        let own = stream.index();
        let outcome = loop {
            if let Some(error) = state.out_of_time(&[stream], limit) {
                break Err(error);
            }
            if !state.streams[own].queue.is_empty() {
                // Something came after all: a wait that is to come is another one.
                state.streams[own].blocked_by_other = false;
                into.append(&mut state.streams[own].queue);
                break Ok(true);
            }
            if let Some(end) = self.end_of(&mut state, &[stream]) {
                break end.map(|()| false);
            }
            let begins_to_wait = !std::mem::replace(&mut state.streams[own].waiting, true);
            // The transport must know: the other stream's unread bytes may have used up the window.
            poke_due |= begins_to_wait && state.streams[stream.other().index()].unread() > 0;
            if std::mem::take(&mut poke_due) {
                drop(state);
                poke();
                state = self.lock();
                continue;
            }
            match self.wait_for_output(state, limit) {
                (guard, Ok(())) => state = guard,
                (guard, Err(error)) => {
                    state = guard;
                    break Err(error);
                }
            }
        };
        state.streams[own].waiting = false;
        drop(state);
        if poke_due {
            poke();
        }
        outcome
    }

    /// Moves all queued bytes of both streams into `into`, with the order in which they arrived.
    /// `false`: both have ended.
    pub fn take_merged(&self, into: &mut Merged, consumed: [u64; 2], limit: &Limit, poke: &dyn Fn()) -> Result<bool> {
        let mut state = self.lock();
        let mut poke_due = self.report(&mut state, Stream::Stdout, consumed[0]);
        poke_due |= self.report(&mut state, Stream::Stderr, consumed[1]);
        let outcome = loop {
            if let Some(error) = state.out_of_time(&[Stream::Stdout, Stream::Stderr], limit) {
                break Err(error);
            }
            if state.streams.iter().any(|s| !s.queue.is_empty()) {
                into.take_from(&mut state);
                break Ok(true);
            }
            if let Some(end) = self.end_of(&mut state, &[Stream::Stdout, Stream::Stderr]) {
                break end.map(|()| false);
            }
            if std::mem::take(&mut poke_due) {
                drop(state);
                poke();
                state = self.lock();
                continue;
            }
            for inbound in &mut state.streams {
                inbound.waiting = true;
            }
            match self.wait_for_output(state, limit) {
                (guard, Ok(())) => state = guard,
                (guard, Err(error)) => {
                    state = guard;
                    break Err(error);
                }
            }
        };
        for inbound in &mut state.streams {
            inbound.waiting = false;
        }
        drop(state);
        if poke_due {
            poke();
        }
        outcome
    }

    /// One wait for news; an error when a deadline has passed, counted anew if output came meanwhile.
    fn wait_for_output<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        limit: &Limit,
    ) -> (MutexGuard<'a, State>, Result<()>) {
        state.woken = false;
        let deadline = limit.deadline(state.last_output);
        let (state, in_time) = Pipe::wait(&self.news, state, deadline);
        let passed = limit.deadline(state.last_output).is_some_and(|d| d <= Instant::now());
        if in_time || !passed {
            return (state, Ok(()));
        }
        let error = limit.error(Phase::Read, state.last_output);
        (state, Err(error))
    }

    /// Counts bytes as read. True if the transport should hear of it.
    #[must_use]
    pub fn consumed(&self, stream: Stream, n: u64) -> bool {
        let mut state = self.lock();
        self.report(&mut state, stream, n)
    }

    /// True when enough has been read since the transport last heard of it.
    fn report(&self, state: &mut State, stream: Stream, n: u64) -> bool {
        let inbound = &mut state.streams[stream.index()];
        let n = n.min(inbound.unread());
        inbound.consumed += n;
        if n > 0 {
            state.last_output = Instant::now();
        }
        // In one order with the transport's look at both: either it sees what was read, or we see that it waits.
        self.shared.unread.fetch_sub(n, Ordering::SeqCst);
        state.unreported += n;
        let step = if self.shared.withheld.load(Ordering::SeqCst) { 1 } else { state.report_step };
        if state.unreported < step {
            return false;
        }
        state.unreported = 0;
        true
    }

    /// Puts taken bytes back to the front of the queue; `consumed` of those taken before were read. True if the
    /// transport should hear of that.
    #[must_use]
    pub fn put_back(&self, stream: Stream, taken: &mut ByteQueue, consumed: u64) -> bool {
        let mut state = self.lock();
        let poke_due = self.report(&mut state, stream, consumed);
        let queue = &mut state.streams[stream.index()].queue;
        taken.append(queue);
        std::mem::swap(taken, queue);
        poke_due
    }

    /// Bytes read that are worth a report.
    pub fn report_step(&self) -> u64 {
        self.lock().report_step
    }

    /// Waits until `find` sees what it looks for within the first `within` bytes of a stream, and cuts it out: it says
    /// where that lies and what it means. `None`: the stream ended, or grew past `within`, without it.
    pub fn cut<T>(
        &self,
        stream: Stream,
        within: usize,
        limit: &Limit,
        find: &dyn Fn(&[u8]) -> Found<T>,
    ) -> Result<Option<T>> {
        let mut state = self.lock();
        let own = stream.index();
        let outcome = loop {
            let head = state.streams[own].queue.copy_front(within);
            if let Some((range, found)) = find(&head) {
                self.remove(&mut state, stream, &head, range);
                break Ok(Some(found));
            }
            if head.len() >= within || state.eof {
                break Ok(None);
            }
            if let Some(error) = state.interruption().or_else(|| state.lost.clone()) {
                break Err(error);
            }
            state.streams[own].waiting = true;
            match self.wait_for_output(state, limit) {
                (guard, Ok(())) => state = guard,
                (guard, Err(error)) => {
                    state = guard;
                    break Err(error);
                }
            }
        };
        state.streams[own].waiting = false;
        outcome
    }

    /// Removes `range` of the bytes at the front of a stream, of which `head` is a copy.
    fn remove(&self, state: &mut State, stream: Stream, head: &[u8], range: std::ops::Range<usize>) {
        let inbound = &mut state.streams[stream.index()];
        let mut rest = ByteQueue::default();
        rest.extend(&head[..range.start], &self.shared.pool);
        inbound.queue.consume(range.end, &self.shared.pool);
        rest.append(&mut inbound.queue);
        inbound.queue = rest;
        self.report(state, stream, range.len() as u64);
        // The order of the rest is that of its arrival still; only this stream's first pieces get shorter.
        let mut excess = range.len();
        for piece in state.order.iter_mut().flatten().filter(|p| p.stream() == stream) {
            let less = excess.min(piece.len());
            *piece = Piece::new(stream, piece.len() - less, piece.millis);
            excess -= less;
        }
        if let Some(order) = &mut state.order {
            order.retain(|piece| piece.len() > 0);
        }
    }

    /// How the stream (or both) ended, if it has: queued bytes come first, which the caller has checked.
    fn end_of(&self, state: &mut State, streams: &[Stream]) -> Option<Result<()>> {
        if let Some(error) = state.interruption() {
            return Some(Err(error));
        }
        for &stream in streams {
            let inbound = &mut state.streams[stream.index()];
            // A reader is here and has read what came before the gap: what comes from now on is kept again.
            inbound.discarding = false;
            if inbound.discarded > 0 {
                let bytes = std::mem::take(&mut inbound.discarded);
                return Some(Err(Error::Discarded { stream, bytes }));
            }
            if std::mem::take(&mut inbound.blocked_by_other) {
                inbound.waiting = false;
                let limit = self.shared.unread_limit;
                return Some(Err(Error::UnreadStream { waiting: stream, unread: stream.other(), limit }));
            }
        }
        if state.eof {
            return Some(Ok(()));
        }
        state.lost.clone().map(Err)
    }

    /// Queues bytes for the remote side, waiting for room for at least one. `poke` is called when the queue was empty.
    pub fn write(&self, bytes: &[u8], limit: &Limit, poke: &dyn Fn()) -> Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        let mut state = self.lock();
        loop {
            if let Some(error) = self.write_error(&state) {
                return Err(error);
            }
            let room = (OUTBOUND_LIMIT as u64).saturating_sub(state.outbound.ahead()) as usize;
            if room > 0 {
                let n = room.min(bytes.len());
                let was_empty = state.outbound.queue.is_empty();
                state.outbound.queue.extend(&bytes[..n], &self.shared.pool);
                state.outbound.written += n as u64;
                drop(state);
                if was_empty {
                    poke();
                }
                return Ok(n);
            }
            state.outbound.room_wanted = true;
            let (guard, in_time) = Pipe::wait(&self.room, state, limit.total.map(|(at, _)| at));
            state = guard;
            if !in_time {
                return Err(limit.error(Phase::Write, state.last_output));
            }
        }
    }

    fn write_error(&self, state: &State) -> Option<Error> {
        if let Some(error) = state.interruption() {
            return Some(error);
        }
        if let Some(error) = &state.lost {
            return Some(error.clone());
        }
        (state.outbound.broken || state.outbound.eof_wanted).then_some(Error::BrokenPipe)
    }

    /// An EOF behind what was written. False if there was one already.
    pub fn want_eof(&self) -> bool {
        let mut state = self.lock();
        !std::mem::replace(&mut state.outbound.eof_wanted, true)
    }

    /// Waits until everything written (and the EOF, if one is wanted) has been taken by the kernel.
    pub fn flush(&self, limit: &Limit, poke: &dyn Fn()) -> Result<()> {
        let mut state = self.lock();
        let target = state.outbound.written;
        loop {
            let eof_due = state.outbound.eof_wanted && !state.outbound.eof_flushed;
            if state.outbound.flushed >= target && !eof_due {
                return Ok(());
            }
            if let Some(error) = state.interruption() {
                return Err(error);
            }
            if let Some(error) = &state.lost {
                return Err(error.clone());
            }
            if state.outbound.broken {
                // An EOF to somebody who reads no more is no loss; bytes are.
                return if state.outbound.flushed >= target { Ok(()) } else { Err(Error::BrokenPipe) };
            }
            // Also when an earlier flush has cleared it meanwhile: the transport looks only once each time.
            if !std::mem::replace(&mut state.outbound.flush_wanted, true) {
                drop(state);
                poke();
                state = self.lock();
                continue;
            }
            let (guard, in_time) = Pipe::wait(&self.room, state, limit.total.map(|(at, _)| at));
            state = guard;
            if !in_time {
                return Err(limit.error(Phase::Write, state.last_output));
            }
        }
    }

    /// Waits for the final status. `reads`: the streams that nobody has taken and that the wait stands in for.
    pub fn wait_status(&self, reads: [bool; 2], limit: &Limit, poke: &dyn Fn()) -> Result<ExitStatus> {
        let mut state = self.lock();
        let counts = reads != [false; 2];
        if counts {
            state.wait_reads = reads;
        }
        if counts && state.status.is_none() {
            drop(state);
            poke();
            state = self.lock();
        }
        let outcome = loop {
            // First: a cancelled command's end, which the server may still report, is not waited for.
            if let Some(error) = state.interruption() {
                break Err(error);
            }
            if let Some(status) = &state.status {
                break Ok(status.clone());
            }
            if let Some(error) = &state.lost {
                break Err(error.clone());
            }
            let deadline = limit.deadline(state.last_output);
            let (guard, in_time) = Pipe::wait(&self.news, state, deadline);
            state = guard;
            if !in_time && limit.deadline(state.last_output).is_none_or(|d| d <= Instant::now()) {
                break Err(limit.error(Phase::Total, state.last_output));
            }
        };
        if counts {
            state.wait_reads = [false; 2];
        }
        outcome
    }

    /// The final status, if it is there.
    pub fn try_status(&self) -> Result<Option<ExitStatus>> {
        let state = self.lock();
        match (&state.status, &state.lost) {
            (Some(status), _) => Ok(Some(status.clone())),
            (None, Some(error)) => Err(error.clone()),
            (None, None) => Ok(None),
        }
    }

    /// What the server has said about the command's end, even if its channel is not closed yet.
    pub fn said(&self) -> Option<ExitStatus> {
        let state = self.lock();
        state.status.clone().or_else(|| state.said.clone())
    }

    /// Ends every wait on this channel with [`Error::Cancelled`].
    pub fn cancel(&self) {
        self.lock().cancelled = true;
        self.notify_all();
    }

    pub fn pool(&self) -> &Pool {
        &self.shared.pool
    }

    /// When the pipe began; arrival times are counted from here.
    pub fn created(&self) -> Instant {
        self.created
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let unread: u64 = state.streams.iter().map(Inbound::unread).sum();
        self.shared.unread.fetch_sub(unread, Ordering::Relaxed);
    }
}

/// Both streams' bytes, taken from a pipe with their order.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    queues: [ByteQueue; 2],
    order: VecDeque<Piece>,
}

impl Merged {
    fn take_from(&mut self, state: &mut State) {
        let order = state.order.get_or_insert_with(VecDeque::new);
        let mut listed = [0usize; 2];
        for piece in order.iter() {
            listed[piece.stream().index()] += piece.len();
        }
        // What arrived before the order was kept (a stream had been read on its own) comes first.
        for stream in [Stream::Stdout, Stream::Stderr] {
            let missing = state.streams[stream.index()].queue.len().saturating_sub(listed[stream.index()]);
            if missing > 0 {
                self.order.push_back(Piece::new(stream, missing, 0));
            }
        }
        self.order.append(order);
        for (own, inbound) in self.queues.iter_mut().zip(&mut state.streams) {
            own.append(&mut inbound.queue);
        }
    }

    /// The next bytes in order of arrival: stream, milliseconds since the pipe began, bytes.
    pub fn front(&self) -> Option<(Stream, u64, &[u8])> {
        let piece = *self.order.front()?;
        let bytes = self.queues[piece.stream().index()].front();
        let n = bytes.len().min(piece.len());
        Some((piece.stream(), u64::from(piece.millis), &bytes[..n]))
    }

    /// Drops `n` bytes, at most what [`front`](Merged::front) showed.
    pub fn consume(&mut self, n: usize, pool: &Pool) {
        let Some(first) = self.order.front_mut() else { return };
        let (stream, left) = (first.stream(), first.len() - n);
        if left == 0 {
            self.order.pop_front();
        } else {
            *first = Piece::new(stream, left, first.millis);
        }
        self.queues[stream.index()].consume(n, pool);
    }
}
