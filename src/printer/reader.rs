//! The reader's side of the printer: one thread that turns a source's chunks into batches of lines.

use std::any::Any;
use std::fmt;
use std::io::{self, Read};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{bounded, select, Receiver, Sender};

use super::{Batch, Ended, Ending, Message, Never, Source, BATCHES_PER_SOURCE};
use crate::{Error, LineBuffer, Lines, Result, Stream};

/// The most of a chunk that goes into one batch, in bytes: as much as an SSH packet carries.
///
/// A source may hand out larger chunks; the memory bound of the queue must not depend on that.
pub(super) const BATCH: usize = 32 * 1024;

/// Makes a source's blocked [`next_chunk`](ChunkSource::next_chunk) or [`ending`](ChunkSource::ending) return soon.
/// Called at most once, from any thread, and possibly after the source has ended.
pub type Stopper = Box<dyn FnOnce() + Send>;

/// Where a [`Printer`](super::Printer)'s reader thread gets its bytes from.
pub trait ChunkSource: Send + 'static {
    /// Blocks until bytes of either stream arrive; returns which stream, and the bytes, valid until the next call.
    /// `None` when both streams have ended.
    ///
    /// # Errors
    ///
    /// Why there is no more to read. It is not called again then.
    fn next_chunk(&mut self) -> Result<Option<(Stream, &[u8])>>;

    /// How the source ended; called once, after `next_chunk` returned `None`. May block until that is known.
    ///
    /// # Errors
    ///
    /// Why it cannot be known: the source counts as [failed](Ending::Failed).
    fn ending(&mut self) -> Result<Ending> {
        Ok(Ending::EndOfStream)
    }

    /// A way to stop waiting for bytes when nobody wants them any more; asked for once, by
    /// [`follow`](super::Printer::follow). Without one, a source that is silent is left alone until it speaks.
    fn stopper(&self) -> Option<Stopper> {
        None
    }
}

/// Any [`Read`] as a source of one stream.
pub struct FromReader<R> {
    stream: Stream,
    reader: R,
    buffer: Box<[u8]>,
}

impl<R: Read + Send + 'static> FromReader<R> {
    /// What `reader` yields counts as bytes of `stream`.
    pub fn new(stream: Stream, reader: R) -> Self {
        FromReader { stream, reader, buffer: vec![0; BATCH].into_boxed_slice() }
    }
}

impl<R: Read + Send + 'static> ChunkSource for FromReader<R> {
    fn next_chunk(&mut self) -> Result<Option<(Stream, &[u8])>> {
        let length = loop {
            match self.reader.read(&mut self.buffer) {
                Ok(length) => break length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(own_error(e)),
            }
        };
        Ok((length > 0).then(|| (self.stream, &self.buffer[..length])))
    }
}

impl<R> fmt::Debug for FromReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromReader").field("stream", &self.stream).finish_non_exhaustive()
    }
}

/// Readers of ours wrap our error for `Read`; what comes out again is what went in.
fn own_error(e: io::Error) -> Error {
    e.downcast::<Error>().unwrap_or_else(|e| Error::io("reading", e))
}

/// Nobody takes our lines any more.
struct OutputClosed;

/// One source's reader: owns its unfinished lines and the memory of its batches.
pub(super) struct Reader {
    source: Arc<Source>,
    queue: Sender<Message>,
    /// Disconnects when the printer thread ends.
    printing: Receiver<Never>,
    unfinished: [LineBuffer; 2],
    /// The batch that is being filled.
    block: Option<Lines>,
    /// Blocks that are not under way. Waiting for one is what holds a fast source back.
    free: Receiver<Lines>,
    home: Sender<Lines>,
}

impl Reader {
    pub(super) fn new(source: Arc<Source>, queue: Sender<Message>, printing: Receiver<Never>) -> Self {
        let (home, free) = bounded(BATCHES_PER_SOURCE);
        for _ in 0..BATCHES_PER_SOURCE {
            // fits: that is its size; the memory comes with the first lines
            let _ = home.try_send(Lines::new());
        }
        Reader { source, queue, printing, unfinished: Default::default(), block: None, free, home }
    }

    /// The thread: reads to the end, whichever kind of end that is, and tells the printer.
    pub(super) fn run(mut self, chunks: impl ChunkSource) -> Ended {
        // The source is dropped inside too: whatever it does, the printer hears of the end.
        let read = catch_unwind(AssertUnwindSafe(|| self.read_all(chunks)));
        let ending = match read {
            Ok(Ok(ending)) => ending,
            Ok(Err(error)) => Ending::Failed(error),
            Err(panic) => Ending::Panicked(panic_text(&*panic)),
        };
        self.tell_end(ending)
    }

    fn read_all(&mut self, mut chunks: impl ChunkSource) -> Result<Ending> {
        while let Some((stream, chunk)) = chunks.next_chunk()? {
            let arrived = Instant::now();
            for part in chunk.chunks(BATCH) {
                if self.push(stream, part, arrived).is_err() {
                    return Ok(Ending::OutputClosed);
                }
            }
        }
        // before asking how it ended, which may block
        match self.finish() {
            Ok(()) => chunks.ending(),
            Err(OutputClosed) => Ok(Ending::OutputClosed),
        }
    }

    fn tell_end(mut self, ending: Ending) -> Ended {
        let ended = self.source.ended(ending);
        let told = self.finish().is_ok() && self.queue.send(Message::Ended(ended.clone())).is_ok();
        match ended.ending {
            // it failed because it was stopped
            Ending::Failed(_) if !told => self.source.ended(Ending::OutputClosed),
            _ => ended,
        }
    }

    fn push(&mut self, stream: Stream, part: &[u8], arrived: Instant) -> Result<(), OutputClosed> {
        let mut lines = self.block()?;
        self.unfinished[stream.index()].push(part, &mut lines);
        self.send(stream, lines, arrived)
    }

    /// Sends what is left of both streams.
    fn finish(&mut self) -> Result<(), OutputClosed> {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut lines = self.block()?;
            self.unfinished[stream.index()].finish(&mut lines);
            self.send(stream, lines, Instant::now())?;
        }
        Ok(())
    }

    fn block(&mut self) -> Result<Lines, OutputClosed> {
        match self.block.take() {
            Some(block) => Ok(block),
            // What is in the queue when the printer ends stays there while we hold its sender: without `printing`
            // a reader whose blocks are all under way would wait for ever.
            None => select! {
                recv(self.free) -> block => block.map_err(|_| OutputClosed),
                recv(self.printing) -> _ => Err(OutputClosed),
            },
        }
    }

    fn send(&mut self, stream: Stream, lines: Lines, arrived: Instant) -> Result<(), OutputClosed> {
        if lines.is_empty() {
            self.block = Some(lines);
            return Ok(());
        }
        let batch = Batch { source: Arc::clone(&self.source), stream, lines, arrived, home: self.home.clone() };
        self.queue.send(Message::Lines(batch)).map_err(|_| OutputClosed)
    }
}

/// Stops a source when the printer goes, in whatever way it goes, even if it never got to see this.
pub(super) struct StopOnDrop(Option<Stopper>);

impl StopOnDrop {
    pub(super) fn new(stopper: Option<Stopper>) -> Self {
        StopOnDrop(stopper)
    }

    /// The source has ended by itself.
    pub(super) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Some(stop) = self.0.take() {
            // A stopper that panics while the printer unwinds would abort the process; its source is not ours to judge.
            let _ = catch_unwind(AssertUnwindSafe(stop));
        }
    }
}

/// What a panic said.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("(no text)").to_owned()
}
