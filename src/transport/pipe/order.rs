//! The order in which two streams' bytes arrived.

use std::collections::VecDeque;

use super::super::chunk::{ByteQueue, Pool};
use super::State;
use crate::error::Stream;

/// Bytes of one stream that arrived within one millisecond: length and stream in one word, time since the pipe began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// The highest bit is the stream. Eight bytes in all, as a peer can make one of every byte.
    len_and_stream: u32,
    pub(super) millis: u32,
}

pub(super) const STDERR_BIT: u32 = 1 << 31;

impl Piece {
    pub(super) fn new(stream: Stream, len: usize, millis: u32) -> Piece {
        let bit = if stream == Stream::Stderr { STDERR_BIT } else { 0 };
        Piece { len_and_stream: len as u32 | bit, millis }
    }

    pub(super) fn stream(self) -> Stream {
        if self.len_and_stream & STDERR_BIT == 0 {
            Stream::Stdout
        } else {
            Stream::Stderr
        }
    }

    pub(super) fn len(self) -> usize {
        (self.len_and_stream & !STDERR_BIT) as usize
    }
}

/// Both streams' bytes, taken from a pipe with their order.
#[derive(Debug, Default)]
pub(crate) struct Merged {
    queues: [ByteQueue; 2],
    order: VecDeque<Piece>,
}

impl Merged {
    pub(super) fn take_from(&mut self, state: &mut State) {
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
