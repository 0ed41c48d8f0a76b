//! One channel as its users see it: bytes both ways, its start and its end.
//!
//! A mutex and condition variables, not crossbeam queues, because several waits must see one state: a reader of one
//! stream has to know how much of the other is unread, `wait` counts as a reader of streams nobody has taken, output
//! of both streams is also read merged in arrival order, and every wait ends by data, end, deadline or cancel. The
//! lock is held for moving buffers only, never across a wait or a system call.
//!
//! Credits: what arrived and was not consumed is counted here; the transport grants the peer what
//! [`Credit`] says. So a reader that stops holds back its own channel and nobody else's.

mod feed;
mod limit;
mod order;
mod user;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::chunk::{ByteQueue, Pool};
use crate::error::{Error, Phase, Stream};
use crate::exit_status::ExitStatus;
pub(crate) use limit::Limit;
pub(crate) use order::Merged;
use order::Piece;

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

impl Drop for Pipe {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let unread: u64 = state.streams.iter().map(Inbound::unread).sum();
        self.shared.unread.fetch_sub(unread, Ordering::Relaxed);
    }
}
