//! The user's side of a pipe. `poke` posts a [`Request`](super::super::message::Request) to the transport: `Consumed` or
//! `Wrote`.

use std::sync::atomic::Ordering;
use std::sync::MutexGuard;
use std::time::Instant;

use super::super::chunk::{ByteQueue, Pool};
use super::order::Piece;
use super::{Limit, Merged, Pipe, Reader, Stage, State, OUTBOUND_LIMIT};
use crate::error::{Error, Phase, Result, Stream};
use crate::exit_status::ExitStatus;

/// Where in the bytes something stands, and what it means.
pub(crate) type Found<T> = Option<(std::ops::Range<usize>, T)>;

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
        // Whoever reads it on another thread is done.
        self.news.notify_all();
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
            let (guard, waited) = self.wait_for_output(state, limit);
            state = guard;
            if let Err(error) = waited {
                break Err(error);
            }
        };
        state.streams[own].waiting = false;
        drop(state);
        if poke_due {
            poke();
        }
        outcome
    }

    /// Copies bytes of one stream into `buffer`, waiting for the first; 0: the stream has ended, or was given up. For
    /// ends that several threads share: what is read is in the pipe until then, not in one reader's hands.
    pub fn read(&self, stream: Stream, buffer: &mut [u8], limit: &Limit, poke: &dyn Fn()) -> Result<usize> {
        let own = stream.index();
        let mut state = self.lock();
        state.order = None;
        loop {
            let inbound = &mut state.streams[own];
            let n = inbound.queue.read(buffer, &self.shared.pool);
            if n > 0 || buffer.is_empty() {
                let poke_due = self.report(&mut state, stream, n as u64);
                drop(state);
                if poke_due {
                    poke();
                }
                return Ok(n);
            }
            if inbound.reader == Reader::Gone {
                return Ok(0);
            }
            if let Some(end) = self.end_of(&mut state, &[stream]) {
                return end.map(|()| 0);
            }
            // Left set on the way out: another thread may wait as well, and one wake-up too many is harmless.
            state.streams[own].waiting = true;
            let (guard, waited) = self.wait_for_output(state, limit);
            state = guard;
            waited?;
        }
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
            let (guard, waited) = self.wait_for_output(state, limit);
            state = guard;
            if let Err(error) = waited {
                break Err(error);
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
    pub(super) fn wait_for_output<'a>(
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
    pub(super) fn report(&self, state: &mut State, stream: Stream, n: u64) -> bool {
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
            let (guard, waited) = self.wait_for_output(state, limit);
            state = guard;
            if let Err(error) = waited {
                break Err(error);
            }
        };
        state.streams[own].waiting = false;
        outcome
    }

    /// Removes `range` of the bytes at the front of a stream, of which `head` is a copy.
    pub(super) fn remove(&self, state: &mut State, stream: Stream, head: &[u8], range: std::ops::Range<usize>) {
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
    pub(super) fn end_of(&self, state: &mut State, streams: &[Stream]) -> Option<Result<()>> {
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

    pub(super) fn write_error(&self, state: &State) -> Option<Error> {
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
