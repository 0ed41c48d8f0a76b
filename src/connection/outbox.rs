//! Messages that wait to be sent, in order.

use std::collections::VecDeque;

use super::channel::ChannelId;
use super::violation::Violation;

/// Answers that a peer can make us queue before it must have read some. An honest peer has a few on their way.
const MAX_REPLIES: usize = 4096;

/// The same in bytes: one PING may be 32 KiB long, and so is its PONG.
const MAX_REPLY_BYTES: usize = 1 << 20;

/// Buffers kept for the next messages, and the capacity above which one is not worth keeping: in steady state only
/// WINDOW_ADJUSTs are queued, one per channel that is read.
const SPARE_BUFFERS: usize = 64;
const SPARE_CAPACITY: usize = 256;

/// What stands in the queue.
#[derive(Debug)]
pub(super) enum Outgoing {
    /// A message of ours.
    Message(Vec<u8>),
    /// An answer to something the peer sent.
    Reply(Vec<u8>),
    /// A WINDOW_ADJUST: written when it leaves, so that a channel has at most one, however slowly the peer reads.
    Adjust(ChannelId),
}

/// The queue and the buffers to be used again.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: VecDeque<Outgoing>,
    replies: usize,
    reply_bytes: usize,
    spare: Vec<Vec<u8>>,
}

impl Outbox {
    /// An empty buffer for a message.
    pub(super) fn buffer(&mut self) -> Vec<u8> {
        self.spare.pop().unwrap_or_default()
    }

    /// Takes a buffer back.
    pub(super) fn recycle(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < SPARE_BUFFERS && buffer.capacity() <= SPARE_CAPACITY {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    pub(super) fn push(&mut self, outgoing: Outgoing) {
        if let Outgoing::Reply(bytes) = &outgoing {
            self.replies += 1;
            self.reply_bytes += bytes.len();
        }
        self.queue.push_back(outgoing);
    }

    pub(super) fn pop(&mut self) -> Option<Outgoing> {
        let outgoing = self.queue.pop_front()?;
        if let Outgoing::Reply(bytes) = &outgoing {
            self.replies -= 1;
            self.reply_bytes -= bytes.len();
        }
        Some(outgoing)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// A violation once the peer has made us queue more answers than it may.
    pub(super) fn check_replies(&self) -> Result<(), Violation> {
        let (replies, bytes) = (self.replies, self.reply_bytes);
        if replies > MAX_REPLIES || bytes > MAX_REPLY_BYTES {
            return Err(Violation::ReplyFlood { replies, bytes });
        }
        Ok(())
    }
}
