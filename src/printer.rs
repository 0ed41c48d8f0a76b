//! Many sources, one output: a reader thread for each source, one printer thread, one bounded queue between them.
//!
//! ```text
//! [tl:web1]     next_chunk -> LineBuffer -> Batch ─┐
//! [tl:web2]     next_chunk -> LineBuffer -> Batch ─┼─ bounded queue ─> [tl:printer] Sink -> write, flush when idle
//! [tl:web3]     next_chunk -> LineBuffer -> Batch ─┘
//! ```
//!
//! Lines never mix, because only the printer thread writes. Waiting is acyclic, reader → printer → output: a slow
//! output fills the queue, then the readers wait, then the sources hold their remote sides back.
//!
//! Every ending is a dropped sender. A source that ends drops its reader's sender; when the last one is gone the
//! printer writes what is left and returns. An output that ends (`| head`) drops the printer's ends of the queues: each
//! reader finds that nobody listens, and sources that wait for bytes are told to stop ([`ChunkSource::stopper`]).

mod reader;
mod text;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded, Receiver, RecvTimeoutError, Sender, TryRecvError};
use log::{debug, warn};

use crate::{Error, Lines, Pieces, Result, Stream};
use reader::{Reader, StopOnDrop};
use text::{Output, TextSink};

pub use reader::{ChunkSource, FromReader, Stopper};

/// Batches that all readers together may be ahead of the printer, unless set otherwise.
///
/// With a batch's size (32 KiB, rarely up to 96) this bounds the bytes too: 32 MiB when a thousand sources flood a
/// stopped output. A single source never gets that far, see [`BATCHES_PER_SOURCE`].
pub const DEFAULT_QUEUE: usize = 1024;

/// Batches that one source may be ahead of the printer.
///
/// It is why memory stays bounded while batches are set aside, and why a neighbour's line waits behind at most 128 KiB
/// of a flooding source and not behind a whole queue of it. Four keep reader and printer busy at the same time.
pub const BATCHES_PER_SOURCE: usize = 4;

/// How long an unfinished long line may keep others waiting between two of its pieces, unless set otherwise.
pub const DEFAULT_PATIENCE: Duration = Duration::from_secs(2);

/// Prints the lines of many sources, whole and in the order they arrive.
///
/// Each source that is [followed](Printer::follow) gets a reader thread `tl:LABEL`; one thread, `tl:printer`, writes.
/// The form is `web1: text` for stdout and `web1! text` for stderr; [`PrinterBuilder`] changes it, and a [`Sink`]
/// replaces it. A last line without newline is printed with one. What is printed is flushed whenever nothing waits to
/// be printed.
///
/// Half a line stays with its reader until the rest arrives, so a prompt without newline holds up nobody. Only a line
/// longer than [`DEFAULT_LINE_LIMIT`](crate::DEFAULT_LINE_LIMIT) is printed in pieces as it comes. Until it ends the
/// output belongs to it, and what others send is set aside, in bounded memory ([`BATCHES_PER_SOURCE`]). If its next
/// piece lets others wait longer than the [patience](PrinterBuilder::patience), it is interrupted: its row is ended,
/// the others are printed, and its rest follows on a row of its own, marked `web1:~ rest`. That happens to a line that
/// does not go on, and to one whose source says much (100 KiB) on its other stream meanwhile, which no bounded memory
/// could hold.
///
/// Dropping the printer does not block and ends nothing: what is followed is printed to its end in the background.
/// Use [`join`](Printer::join) to wait for that.
///
/// # Examples
///
/// ```
/// use threadline::{FromReader, Printer, Stream};
///
/// let printer = Printer::stdout();
/// printer.follow("web1", FromReader::new(Stream::Stdout, &b"one\ntwo\n"[..]))?;
/// printer.follow("web2", FromReader::new(Stream::Stdout, &b"three\n"[..]))?;
/// let printed = printer.join()?;
/// assert_eq!(printed.sources.len(), 2);
/// # Ok::<(), threadline::Error>(())
/// ```
pub struct Printer {
    queue: Sender<Message>,
    /// Unbounded, because `follow` must not block, and because only such a queue drops what is in it with its receiver
    /// (a bounded one keeps it until the last sender goes): that is what stops a source just followed.
    stoppers: Sender<(usize, StopOnDrop)>,
    /// Disconnects when the printer thread ends.
    printing: Receiver<Never>,
    /// The printer thread, or why it could not be started.
    thread: Result<JoinHandle<io::Result<OutputEnd>>>,
    /// A queue and not a `Vec`, so that `follow` can be called from several threads.
    followed: (Sender<Follower>, Receiver<Follower>),
    next_number: AtomicUsize,
}

impl Printer {
    /// Prints remote stdout to this process's stdout and remote stderr to its stderr.
    ///
    /// Where the output is a terminal, control characters are escaped and stderr lines are coloured.
    #[must_use]
    pub fn stdout() -> Printer {
        Printer::builder().print_to_stdout()
    }

    /// Prints both streams to `writer`, byte for byte.
    ///
    /// The writer gets large blocks: it needs no buffer of its own. It is written to and dropped on the printer thread.
    pub fn new(writer: impl Write + Send + 'static) -> Printer {
        Printer::builder().print_to(writer)
    }

    /// Settings first.
    pub fn builder() -> PrinterBuilder {
        PrinterBuilder::default()
    }

    /// Starts a thread that reads `source` to its end, and prints its lines under `label`.
    ///
    /// Does not block. Any number of sources may be added at any time and from any thread.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the system has no more threads; the source is dropped then.
    pub fn follow(&self, label: impl Into<String>, source: impl ChunkSource) -> Result<()> {
        self.thread.as_ref().map_err(Clone::clone)?;
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let described = Arc::new(Source { number, label: label.into() });
        let stopper = source.stopper();
        let can_be_stopped = stopper.is_some();
        // if the printer has gone the source is stopped here, and its reader will find out
        let _ = self.stoppers.send((number, StopOnDrop::new(stopper)));
        let reader = Reader::new(Arc::clone(&described), self.queue.clone(), self.printing.clone());
        let thread = thread::Builder::new()
            .name(thread_name(&described.label))
            .spawn(move || reader.run(source))
            .map_err(|e| Error::io(format!("starting a thread for '{}'", described.label.escape_debug()), e))?;
        // cannot fail: the receiver is ours
        let _ = self.followed.0.send(Follower { source: described, thread, can_be_stopped });
        Ok(())
    }

    /// Waits until every source has ended and all is printed, and returns how each source ended.
    ///
    /// If the output was closed by whoever read it (`| head`), that is no error: the sources are stopped and
    /// [`Printed::output`] says so. A source that has no [stopper](ChunkSource::stopper) and waits for bytes is not
    /// waited for then; it ends with [`Ending::OutputClosed`] as soon as its read returns.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if writing failed for another reason, or if the printer thread could not be started;
    /// [`Error::Internal`] if the sink panicked.
    pub fn join(self) -> Result<Printed> {
        let Printer { queue, thread, followed, .. } = self;
        drop(queue);
        let output = match thread?.join() {
            Ok(written) => written.map_err(|e| Error::io("printing", e)),
            Err(panic) => Err(Error::Internal(format!("the printer thread panicked: {}", reader::panic_text(&*panic)))),
        };
        let complete = matches!(output, Ok(OutputEnd::Complete));
        let mut sources: Vec<_> = followed.1.try_iter().map(|follower| follower.join(complete)).collect();
        sources.sort_by_key(|ended| ended.number);
        Ok(Printed { sources, output: output? })
    }
}

impl fmt::Debug for Printer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Printer").field("queued", &self.queue.len()).finish_non_exhaustive()
    }
}

/// When something is done that suits a terminal only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum When {
    /// If the output is a terminal. A writer of your own is taken for none.
    #[default]
    Auto,
    /// Wherever the output goes.
    Always,
    /// Never.
    Never,
}

impl When {
    fn applies(self, auto: bool) -> bool {
        match self {
            When::Auto => auto,
            When::Always => true,
            When::Never => false,
        }
    }
}

/// Settings of a [`Printer`]; the `print_to` methods start it.
#[must_use]
pub struct PrinterBuilder {
    labels: bool,
    since: Option<Instant>,
    escape: When,
    colour: When,
    stderr: Option<Box<dyn Write + Send>>,
    queue: usize,
    patience: Duration,
}

impl Default for PrinterBuilder {
    fn default() -> Self {
        PrinterBuilder {
            labels: true,
            since: None,
            escape: When::Auto,
            colour: When::Auto,
            stderr: None,
            queue: DEFAULT_QUEUE,
            patience: DEFAULT_PATIENCE,
        }
    }
}

impl PrinterBuilder {
    /// Prints the lines alone, without `label: ` in front. The rest of an interrupted line has no mark then.
    pub fn without_labels(mut self) -> Self {
        self.labels = false;
        self
    }

    /// Puts the seconds from `start` to the arrival of a line in front of it: `1.204 web1: text`.
    ///
    /// Lines that arrived in one chunk have one time.
    pub fn timestamps_since(mut self, start: Instant) -> Self {
        self.since = Some(start);
        self
    }

    /// Shows control characters and bytes that are not UTF-8 as escapes (`\x1b`, `\u{9b}`, `\xff`), so that remote
    /// text cannot command the terminal. Tabs stay, and so does a carriage return right before a newline.
    pub fn escape(mut self, when: When) -> Self {
        self.escape = when;
        self
    }

    /// Shows stderr lines in red. `Auto` also heeds `NO_COLOR` and `TERM=dumb`.
    pub fn colour(mut self, when: When) -> Self {
        self.colour = when;
        self
    }

    /// Prints stderr lines to `writer`, on the same thread; each of the two outputs is flushed before the other is
    /// written to, so that on a shared terminal the order stays.
    pub fn stderr_to(mut self, writer: impl Write + Send + 'static) -> Self {
        self.stderr = Some(Box::new(writer));
        self
    }

    /// How many batches the readers may be ahead of the printer, all together (at least 1, at first
    /// [`DEFAULT_QUEUE`]).
    pub fn queue(mut self, batches: usize) -> Self {
        self.queue = batches.max(1);
        self
    }

    /// How long a line that comes in pieces may keep others waiting between two pieces before it is interrupted (at
    /// first [`DEFAULT_PATIENCE`]).
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Prints remote stdout to this process's stdout, and remote stderr to its stderr unless
    /// [`stderr_to`](Self::stderr_to) says otherwise.
    #[must_use]
    pub fn print_to_stdout(mut self) -> Printer {
        let stderr = match self.stderr.take() {
            Some(writer) => self.output(writer, false),
            None => self.output(Box::new(io::stderr()), io::stderr().is_terminal()),
        };
        let stdout = self.output(Box::new(io::stdout()), io::stdout().is_terminal());
        self.print_text(stdout, Some(stderr))
    }

    /// Prints to `writer`: both streams, unless [`stderr_to`](Self::stderr_to) was called.
    pub fn print_to(mut self, writer: impl Write + Send + 'static) -> Printer {
        let stderr = self.stderr.take().map(|writer| self.output(writer, false));
        let stdout = self.output(Box::new(writer), false);
        self.print_text(stdout, stderr)
    }

    /// Hands the lines to `sink` instead of printing them as text; of the settings only the queue and the patience
    /// apply.
    pub fn print_to_sink(self, sink: impl Sink) -> Printer {
        let (queue, messages) = bounded(self.queue);
        let (stoppers, new_stoppers) = unbounded();
        let (alive, printing) = bounded(0);
        let press = Press::new(sink, self.patience, new_stoppers, alive);
        let thread = thread::Builder::new()
            .name("tl:printer".into())
            .spawn(move || press.run(messages))
            .map_err(|e| Error::io("starting the printer thread", e));
        Printer { queue, stoppers, printing, thread, followed: unbounded(), next_number: AtomicUsize::new(0) }
    }

    fn print_text(self, stdout: Output, stderr: Option<Output>) -> Printer {
        let sink = TextSink::new(stdout, stderr, self.labels, self.since);
        self.print_to_sink(sink)
    }

    fn output(&self, writer: Box<dyn Write + Send>, terminal: bool) -> Output {
        let escape = self.escape.applies(terminal);
        let colour = self.colour.applies(terminal && colour_is_welcome());
        Output::new(writer, escape, colour)
    }
}

impl fmt::Debug for PrinterBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrinterBuilder")
            .field("labels", &self.labels)
            .field("escape", &self.escape)
            .field("colour", &self.colour)
            .field("queue", &self.queue)
            .field("patience", &self.patience)
            .finish_non_exhaustive()
    }
}

/// Where lines go. All calls are made on the printer thread.
///
/// Lines of one source's stream come in order, and between the pieces of a long line comes nothing else, except after
/// an interruption ([`Printer`] says when). A sink that fails ends the printing: with
/// [`io::ErrorKind::BrokenPipe`] quietly, with any other error as the error of [`Printer::join`].
pub trait Sink: Send + 'static {
    /// Takes the lines of one batch.
    ///
    /// # Errors
    ///
    /// Whatever keeps the lines from being written.
    fn lines(&mut self, batch: &Batch) -> io::Result<()>;

    /// A source has ended; all its lines were handed over before.
    ///
    /// # Errors
    ///
    /// Whatever keeps this from being written.
    fn ended(&mut self, ended: &Ended) -> io::Result<()> {
        let _ = ended;
        Ok(())
    }

    /// Nothing waits to be printed: brings what is buffered to its reader.
    ///
    /// # Errors
    ///
    /// Whatever keeps the lines from being written.
    fn flush(&mut self) -> io::Result<()>;
}

/// The lines of one chunk of one source.
#[derive(Debug)]
pub struct Batch {
    source: Arc<Source>,
    stream: Stream,
    lines: Lines,
    arrived: Instant,
    /// Where the memory goes for the next batch. That a reader has only so many is what holds it back.
    home: Sender<Lines>,
}

impl Batch {
    /// The label that the source is followed under.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.source.label
    }

    /// Which source: 0 for the first that was followed, 1 for the next. Labels may repeat, numbers do not.
    #[must_use]
    pub fn number(&self) -> usize {
        self.source.number
    }

    /// Which of the source's streams.
    #[must_use]
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// The lines, or pieces of a long one.
    #[must_use]
    pub fn lines(&self) -> Pieces<'_> {
        self.lines.iter()
    }

    /// The lines as they came, newlines included.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.lines.as_bytes()
    }

    /// When the last bytes of the batch came from the source.
    #[must_use]
    pub fn arrived(&self) -> Instant {
        self.arrived
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let mut lines = std::mem::take(&mut self.lines);
        lines.clear();
        // fails only if the reader has gone, who then needs it no more
        let _ = self.home.try_send(lines);
    }
}

/// How the printing went.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Printed {
    /// How each source ended, in the order they were followed.
    pub sources: Vec<Ended>,
    /// Whether all of it reached the output.
    pub output: OutputEnd,
}

/// How the output ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputEnd {
    /// Everything was written and flushed.
    Complete,
    /// Whoever read the output has closed it: a broken pipe.
    Closed,
}

/// A source that has ended, and how.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Ended {
    /// Which source: 0 for the first that was followed, 1 for the next.
    pub number: usize,
    /// The label it was followed under.
    pub label: String,
    /// How it ended.
    pub ending: Ending,
}

/// How a source ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Ending {
    /// Both streams were read to their end.
    EndOfStream,
    /// Both streams were read to their end, and the command ended like this.
    Exited(crate::ExitStatus),
    /// Reading failed; the lines until then were printed.
    Failed(Error),
    /// The source panicked, saying this; the lines until then were printed.
    Panicked(String),
    /// It was stopped because the output had closed.
    OutputClosed,
}

/// Who speaks.
#[derive(Debug)]
struct Source {
    number: usize,
    label: String,
}

impl Source {
    fn ended(&self, ending: Ending) -> Ended {
        Ended { number: self.number, label: self.label.clone(), ending }
    }
}

/// What readers tell the printer.
enum Message {
    Lines(Batch),
    Ended(Ended),
}

impl Message {
    /// Of which source it speaks.
    fn number(&self) -> usize {
        match self {
            Message::Lines(batch) => batch.number(),
            Message::Ended(ended) => ended.number,
        }
    }
}

/// Nothing is ever sent; that the sender is dropped is the message.
enum Never {}

/// A reader thread as `join` sees it.
struct Follower {
    source: Arc<Source>,
    thread: JoinHandle<Ended>,
    can_be_stopped: bool,
}

impl Follower {
    fn join(self, output_is_complete: bool) -> Ended {
        // Nothing can wake such a source. Waiting would keep a tool alive that should have ended with its output.
        let left_behind = !output_is_complete && !self.can_be_stopped && !self.thread.is_finished();
        if left_behind {
            return self.source.ended(Ending::OutputClosed);
        }
        let Follower { source, thread, .. } = self;
        thread.join().unwrap_or_else(|panic| source.ended(Ending::Panicked(reader::panic_text(&*panic))))
    }
}

/// The printer thread: decides whose turn it is and lets the sink write.
struct Press<S> {
    sink: S,
    patience: Duration,
    /// The unfinished long line that the output belongs to.
    open_line: Option<OpenLine>,
    /// What waits for that line to end, in order of arrival.
    aside: VecDeque<Message>,
    /// Tells readers that wait for memory, when it is dropped, that none will come.
    _alive: Sender<Never>,
    /// How to stop those who were followed lately. Dropping it stops them.
    new_stoppers: Receiver<(usize, StopOnDrop)>,
    /// How to stop those who still run. Dropping it stops them.
    running: HashMap<usize, StopOnDrop>,
}

struct OpenLine {
    source: Arc<Source>,
    stream: Stream,
    last_piece: Instant,
}

impl<S: Sink> Press<S> {
    fn new(sink: S, patience: Duration, new_stoppers: Receiver<(usize, StopOnDrop)>, alive: Sender<Never>) -> Self {
        Press {
            sink,
            patience,
            open_line: None,
            aside: VecDeque::new(),
            _alive: alive,
            new_stoppers,
            running: HashMap::new(),
        }
    }

    /// Prints until all readers have gone or the output has.
    fn run(mut self, queue: Receiver<Message>) -> io::Result<OutputEnd> {
        let outcome = self.print_all(&queue);
        // The receiver before the stoppers in `self`: a reader whose source was stopped must find nobody listening.
        drop(queue);
        match outcome {
            Ok(()) => Ok(OutputEnd::Complete),
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                debug!("the output was closed; the sources are told to stop");
                Ok(OutputEnd::Closed)
            }
            Err(e) => Err(e),
        }
    }

    fn print_all(&mut self, queue: &Receiver<Message>) -> io::Result<()> {
        while let Some(message) = self.next(queue)? {
            self.take(message)?;
        }
        self.interrupt_open_line()?;
        self.sink.flush()
    }

    /// The next message, flushing before it waits for one. `None` when all readers have gone.
    fn next(&mut self, queue: &Receiver<Message>) -> io::Result<Option<Message>> {
        loop {
            match queue.try_recv() {
                Ok(message) => return Ok(Some(message)),
                Err(TryRecvError::Disconnected) => return Ok(None),
                Err(TryRecvError::Empty) => self.sink.flush()?,
            }
            let Some(deadline) = self.deadline() else {
                return Ok(queue.recv().ok());
            };
            match queue.recv_deadline(deadline) {
                Ok(message) => return Ok(Some(message)),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) => self.interrupt_open_line()?,
            }
        }
    }

    /// When the others have waited long enough for the long line's next piece.
    fn deadline(&self) -> Option<Instant> {
        let open = self.open_line.as_ref().filter(|_| !self.aside.is_empty())?;
        open.last_piece.checked_add(self.patience)
    }

    fn take(&mut self, message: Message) -> io::Result<()> {
        if self.has_to_wait(&message) {
            self.set_aside(message);
        } else {
            self.print(message)?;
            self.deliver()?;
        }
        // needed beside the wait in `next`: the queue may never be empty
        if self.deadline().is_some_and(|deadline| deadline <= Instant::now()) {
            self.interrupt_open_line()?;
        }
        Ok(())
    }

    /// Few lines join what the source has waiting already. Each as a batch of its own would soon have all of a source's
    /// batches set aside, and, if the long line is on its other stream, none left for that to go on with.
    fn set_aside(&mut self, message: Message) {
        if let Message::Lines(batch) = &message {
            let of_the_source = |waiting: &&mut Message| waiting.number() == batch.number();
            if let Some(Message::Lines(last)) = self.aside.iter_mut().rev().find(of_the_source) {
                if last.stream == batch.stream && last.lines.len() + batch.lines.len() <= reader::BATCH {
                    last.lines.append(&batch.lines);
                    last.arrived = batch.arrived;
                    return;
                }
            }
        }
        self.aside.push_back(message);
    }

    /// Delivers, in order of arrival, what was set aside and need not wait any more.
    fn deliver(&mut self) -> io::Result<()> {
        let mut at = 0;
        while at < self.aside.len() {
            if self.has_to_wait(&self.aside[at]) {
                at += 1;
                continue;
            }
            if let Some(message) = self.aside.remove(at) {
                self.print(message)?;
            }
            if self.open_line.is_none() {
                at = 0; // the long line has ended: those who waited come first
            }
        }
        Ok(())
    }

    fn has_to_wait(&self, message: &Message) -> bool {
        self.open_line.as_ref().is_some_and(|open| match message {
            Message::Lines(batch) => batch.number() != open.source.number || batch.stream != open.stream,
            Message::Ended(_) => true,
        })
    }

    fn print(&mut self, message: Message) -> io::Result<()> {
        match message {
            Message::Lines(batch) => {
                self.sink.lines(&batch)?;
                self.open_line = batch.lines.more_follows().then(|| OpenLine {
                    source: Arc::clone(&batch.source),
                    stream: batch.stream,
                    last_piece: Instant::now(),
                });
                Ok(())
            }
            Message::Ended(ended) => {
                debug!("{}: ended: {:?}", ended.label.escape_debug(), ended.ending);
                self.running.extend(self.new_stoppers.try_iter());
                if let Some(stopper) = self.running.remove(&ended.number) {
                    stopper.disarm();
                }
                self.sink.ended(&ended)
            }
        }
    }

    /// Takes the output from a long line that does not go on, and lets the others print.
    fn interrupt_open_line(&mut self) -> io::Result<()> {
        if let Some(open) = self.open_line.take() {
            let label = open.source.label.escape_debug();
            warn!("{label}: a long line of {} does not go on; others are printed before its rest", open.stream);
        }
        self.deliver()
    }
}

/// The system keeps 15 bytes of it, and a name must not contain NUL.
fn thread_name(label: &str) -> String {
    format!("tl:{}", label.replace('\0', "?"))
}

/// <https://no-color.org>, and terminals that cannot.
fn colour_is_welcome() -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|value| value == "dumb");
    !no_color && !dumb
}
