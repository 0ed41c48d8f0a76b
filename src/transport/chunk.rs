//! Bytes on their way: pooled buffers, chunks, and queues of them. Pure.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Room for the largest payload that can arrive: 32 KiB of data and the message header before it.
const BUFFER: usize = 32 * 1024 + 64;
/// What one DATA message carries at most.
const PACKET: usize = 32 * 1024;
/// Buffers kept for reuse; at 32 KiB each this is what a busy connection holds beyond its queues.
const POOLED: usize = 128;

/// Buffers for payloads, shared by the transport thread and the readers and writers of its channels.
///
/// A mutex, because a queue would hand out the buffer that was given back longest ago: the last one is still in the
/// processor's cache. It is held for a push or a pop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool {
    buffers: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Pool {
    pub fn new() -> Pool {
        Pool::default()
    }

    /// An empty buffer with room for a payload.
    pub fn get(&self) -> Vec<u8> {
        let pooled = self.lock().pop();
        pooled.unwrap_or_else(|| Vec::with_capacity(BUFFER))
    }

    /// Gives a buffer back; a full pool frees it.
    pub fn put(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() != BUFFER {
            return;
        }
        buffer.clear();
        let mut buffers = self.lock();
        if buffers.len() < POOLED {
            buffers.push(buffer);
        }
    }

    /// Frees what is pooled: an idle connection should be small.
    pub fn trim(&self) {
        *self.lock() = Vec::new();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of one stream, as received or as written: the rest of a buffer from `start`.
#[derive(Debug)]
pub(crate) struct Chunk {
    buffer: Vec<u8>,
    start: usize,
}

impl Chunk {
    /// The bytes `start..end` of a buffer, without copying.
    pub fn new(mut buffer: Vec<u8>, range: std::ops::Range<usize>) -> Chunk {
        buffer.truncate(range.end);
        Chunk { buffer, start: range.start }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..]
    }

    pub fn len(&self) -> usize {
        self.buffer.len() - self.start
    }

    fn room(&self) -> usize {
        self.buffer.capacity() - self.buffer.len()
    }
}

/// A queue of bytes kept in chunks: whole buffers move, small pieces are copied together.
#[derive(Debug, Default)]
pub(crate) struct ByteQueue {
    chunks: VecDeque<Chunk>,
    len: usize,
}

impl ByteQueue {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a received buffer's range. What fits into the last chunk is copied there, and the buffer goes to the
    /// pool: many packets that are not full must not each hold 32 KiB. So two chunks hold more than one is worth.
    pub fn push(&mut self, buffer: Vec<u8>, range: std::ops::Range<usize>, pool: &Pool) {
        let len = range.len();
        if len == 0 {
            pool.put(buffer);
            return;
        }
        self.len += len;
        if let Some(last) = self.chunks.back_mut() {
            if last.room() >= len {
                last.buffer.extend_from_slice(&buffer[range]);
                pool.put(buffer);
                return;
            }
        }
        self.chunks.push_back(Chunk::new(buffer, range));
    }

    /// Appends a copy of `bytes`, in pooled buffers of one packet's worth each.
    pub fn extend(&mut self, mut bytes: &[u8], pool: &Pool) {
        self.len += bytes.len();
        while !bytes.is_empty() {
            let full = self.chunks.back().is_none_or(|last| last.buffer.len() >= PACKET);
            if full {
                self.chunks.push_back(Chunk { buffer: pool.get(), start: 0 });
            }
            let Some(last) = self.chunks.back_mut() else { return };
            let n = (PACKET - last.buffer.len()).min(bytes.len());
            last.buffer.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
        }
    }

    /// The bytes at the front that lie in one piece; empty only when the queue is.
    pub fn front(&self) -> &[u8] {
        self.chunks.front().map_or(&[], Chunk::bytes)
    }

    /// The first pieces, as many as there is room for; how many.
    pub fn pieces<'a>(&'a self, into: &mut [std::io::IoSlice<'a>]) -> usize {
        let count = into.len().min(self.chunks.len());
        for (slot, chunk) in into.iter_mut().zip(&self.chunks) {
            *slot = std::io::IoSlice::new(chunk.bytes());
        }
        count
    }

    /// Moves bytes from the front into `into`; how many.
    pub fn read(&mut self, into: &mut [u8], pool: &Pool) -> usize {
        let mut done = 0;
        while done < into.len() && !self.is_empty() {
            let front = self.front();
            let n = front.len().min(into.len() - done);
            into[done..done + n].copy_from_slice(&front[..n]);
            self.consume(n, pool);
            done += n;
        }
        done
    }

    /// A copy of at most `most` bytes from the front.
    pub fn copy_front(&self, most: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(most.min(self.len));
        for chunk in &self.chunks {
            let room = most - out.len();
            out.extend_from_slice(&chunk.bytes()[..room.min(chunk.len())]);
        }
        out
    }

    /// Drops `n` bytes from the front.
    pub fn consume(&mut self, mut n: usize, pool: &Pool) {
        debug_assert!(n <= self.len);
        self.len -= n.min(self.len);
        while n > 0 {
            let Some(first) = self.chunks.front_mut() else { return };
            if n < first.len() {
                first.start += n;
                return;
            }
            n -= first.len();
            if let Some(done) = self.chunks.pop_front() {
                pool.put(done.buffer);
            }
        }
    }

    /// Drops everything; returns how many bytes that were.
    pub fn clear(&mut self, pool: &Pool) -> usize {
        let len = self.len;
        self.consume(len, pool);
        len
    }

    /// Moves all of `other` behind what is here.
    pub fn append(&mut self, other: &mut ByteQueue) {
        self.len += std::mem::take(&mut other.len);
        self.chunks.append(&mut other.chunks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_mix_of_pushes_and_reads_keeps_every_byte_in_order(
            pieces in proptest::collection::vec((0usize..40_000, any::<bool>()), 1..40),
            reads in proptest::collection::vec(1usize..50_000, 1..200),
        ) {
            let pool = Pool::new();
            let mut queue = ByteQueue::default();
            let mut expected = Vec::new();
            let mut next = 0u8;
            for (len, whole) in pieces {
                let bytes: Vec<u8> = (0..len).map(|_| { next = next.wrapping_add(1); next }).collect();
                expected.extend_from_slice(&bytes);
                if whole && len <= 32 * 1024 {
                    let mut buffer = pool.get();
                    buffer.extend_from_slice(b"head");
                    buffer.extend_from_slice(&bytes);
                    let end = buffer.len();
                    buffer.extend_from_slice(b"tail");
                    queue.push(buffer, 4..end, &pool);
                } else {
                    queue.extend(&bytes, &pool);
                }
            }
            prop_assert_eq!(queue.len(), expected.len());
            let mut got = Vec::new();
            for want in reads.into_iter().cycle() {
                let front = queue.front();
                if front.is_empty() { break; }
                let n = front.len().min(want);
                got.extend_from_slice(&front[..n]);
                queue.consume(n, &pool);
            }
            prop_assert_eq!(got, expected);
            prop_assert!(queue.is_empty());
        }
    }

    #[test]
    fn packets_of_any_size_take_at_most_twice_their_bytes() {
        let pool = Pool::new();
        for sizes in [[8193, 8193], [1, 8193], [1, PACKET], [PACKET / 2, PACKET / 2 + 65]] {
            let mut queue = ByteQueue::default();
            for len in sizes.into_iter().cycle().take(1000) {
                let mut buffer = pool.get();
                buffer.resize(len, 0);
                queue.push(buffer, 0..len, &pool);
            }
            let held: usize = queue.chunks.iter().map(|c| c.buffer.capacity()).sum();
            assert!(held <= 2 * queue.len() + 2 * BUFFER, "{sizes:?}: {held} for {}", queue.len());
        }
    }

    #[test]
    fn a_million_single_bytes_take_a_megabyte_not_a_buffer_each() {
        let pool = Pool::new();
        let mut queue = ByteQueue::default();
        for _ in 0..1_000_000 {
            let mut buffer = pool.get();
            buffer.push(7);
            queue.push(buffer, 0..1, &pool);
        }
        assert_eq!(queue.len(), 1_000_000);
        assert!(queue.chunks.len() <= 1_000_000 / (32 * 1024) + 1, "{} chunks", queue.chunks.len());
    }
}
