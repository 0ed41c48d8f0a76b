//! The transport's side of a pipe: what arrived goes in, what was written comes out, and what may be granted.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::super::chunk::ByteQueue;
use super::super::flow::STEPS;
use super::order::{Piece, STDERR_BIT};
use super::{Credit, Pipe, Reader, Stage, State, OUTBOUND_LIMIT};
use crate::error::{Error, Stream};
use crate::exit_status::ExitStatus;

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

    pub(super) fn note_order(&self, state: &mut State, stream: Stream, len: usize) {
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
    pub(super) fn credit(&self, state: &mut State, window: u64) -> Credit {
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
    pub(super) fn credit_for_wait(&self, state: &mut State, window: u64, total: u64) -> u64 {
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
        // Behind our own CLOSE too: whoever waits must not get now this answer and now that one.
        if state.status.is_none() && ended {
            state.status = Some(state.said.take().unwrap_or(ExitStatus::Unknown));
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
