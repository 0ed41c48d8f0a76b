//! A channel as its user-side handles share it, and the ends that read and write it.

use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, Phase, Result, Stream};
use crate::exit_status::ExitStatus;
use crate::kill::{self, KillOutcome};
use crate::transport::chunk::ByteQueue;
use crate::transport::message::{Notice, PtySize, SessionPlan, Token};
use crate::transport::pipe::{Limit, Merged, Pipe};
use crate::transport::{Handle, WeakHandle};

/// What happens to a running remote command when its [`Child`](crate::Child) and all streams of it are dropped.
///
/// Dropping never blocks, whichever is chosen; the work is done in the background.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnDrop {
    /// The channel is closed. What that does to the command is the server's choice: sshd closes its pipes (its next
    /// write fails with SIGPIPE, its input is at its end) and, with a terminal, sends SIGHUP; a command that neither
    /// writes nor reads goes on.
    #[default]
    HangUp,
    /// The command runs on to its end; its output is thrown away and its stdin is at end of file. That needs the
    /// connection: when the last [`Client`](crate::Client) goes too, it is as with `HangUp`.
    Leave,
    /// The command is ended: its process group if it was started with
    /// [`process_group`](crate::Command::process_group) (TERM, a grace of 5 s, KILL), else by the SSH signal KILL,
    /// which the server may ignore; then as `HangUp`.
    Kill,
}

/// The one thing behind all user-side handles of a channel; dropped with the last of them.
#[derive(Debug)]
pub(crate) struct Channel {
    pub handle: Handle,
    pub token: Token,
    pub pipe: Arc<Pipe>,
    pub limit: Limit,
    on_drop: OnDrop,
    /// The remote process group, once known.
    pub process_group: std::sync::OnceLock<kill::Group>,
}

impl Channel {
    /// Opens a channel and waits until what it is for has started.
    pub fn start(
        handle: &Handle,
        plan: SessionPlan,
        limit: Limit,
        start: &Limit,
        on_drop: OnDrop,
    ) -> Result<Arc<Channel>> {
        let (token, pipe) = handle.start(plan);
        let channel = Arc::new(Channel {
            handle: handle.clone(),
            token,
            pipe,
            limit,
            on_drop,
            process_group: std::sync::OnceLock::new(),
        });
        let limit = Limit { total: earlier(limit.total, start.total), idle: None };
        if let Err(error) = channel.pipe.wait_started(&limit) {
            // Whatever is to happen to a command that runs: nobody will know of this one.
            channel.close();
            return Err(error);
        }
        Ok(channel)
    }

    pub fn poke_wrote(&self) {
        self.handle.wrote(self.token);
    }

    pub fn poke_consumed(&self) {
        self.handle.consumed(self.token);
    }

    pub fn signal(&self, name: &str) {
        self.handle.tell(self.token, Notice::Signal(name.to_owned()));
    }

    pub fn resize(&self, size: PtySize) {
        self.handle.tell(self.token, Notice::Resize(size));
    }

    pub fn close(&self) {
        self.handle.close(self.token);
    }

    /// Throws away what is queued and what comes on this stream.
    pub fn drop_stream(&self, stream: Stream) {
        self.pipe.drop_stream(stream);
        self.poke_consumed();
    }

    /// EOF behind what was written.
    pub fn end_stdin(&self) {
        if self.pipe.want_eof() {
            self.poke_wrote();
        }
    }

    pub fn wait(&self, reads: [bool; 2], limit: &Limit) -> Result<ExitStatus> {
        self.pipe.wait_status(reads, limit, &|| self.poke_consumed())
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let over = self.pipe.said().is_some() || self.handle.lost().is_some();
        match self.on_drop {
            OnDrop::Leave => {}
            OnDrop::Kill if !over => {
                match self.process_group.get() {
                    Some(&group) => kill::in_background(&self.handle, group),
                    None => self.signal("KILL"),
                }
                self.close();
            }
            OnDrop::HangUp | OnDrop::Kill => self.close(),
        }
    }
}

/// The deadline that comes first.
pub(crate) fn earlier(a: Option<(Instant, Duration)>, b: Option<(Instant, Duration)>) -> Option<(Instant, Duration)> {
    match (a, b) {
        (Some(a), Some(b)) => Some(if a.0 <= b.0 { a } else { b }),
        (a, b) => a.or(b),
    }
}

/// Reads one stream of a channel: whole queues are taken at once, and reported as read in steps.
#[derive(Debug)]
pub(crate) struct StreamReader {
    channel: Arc<Channel>,
    stream: Stream,
    /// Put back by who had read too much, and how much of that has been read again. It was reported the first time.
    put_back: (Vec<u8>, usize),
    taken: ByteQueue,
    /// Read from `taken`, not yet reported.
    unreported: u64,
    /// When that is reported, at the latest.
    step: u64,
    ended: bool,
    timeout: Option<Duration>,
}

/// Bytes read from a taken queue before the transport is told, so that its grants stay smooth; of a small window less,
/// because a reader that has read all of it may have something else to do before it comes for more.
const REPORT: u64 = 128 * 1024;

impl StreamReader {
    pub fn new(channel: Arc<Channel>, stream: Stream) -> StreamReader {
        channel.pipe.take_stream(stream);
        let step = channel.pipe.report_step().min(REPORT);
        StreamReader {
            channel,
            stream,
            put_back: (Vec::new(), 0),
            taken: ByteQueue::default(),
            unreported: 0,
            step,
            ended: false,
            timeout: None,
        }
    }

    /// Gives back what was read: it is read again before everything else.
    pub fn put_back(&mut self, bytes: Vec<u8>) {
        let mut all = bytes;
        all.extend_from_slice(&self.put_back.0[self.put_back.1..]);
        self.put_back = (all, 0);
    }

    pub fn channel(&self) -> &Arc<Channel> {
        &self.channel
    }

    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// The next bytes, waiting for them; empty at the end.
    pub fn fill(&mut self) -> Result<&[u8]> {
        if self.put_back.1 < self.put_back.0.len() {
            return Ok(&self.put_back.0[self.put_back.1..]);
        }
        if self.taken.is_empty() && !self.ended {
            let limit = self.limit();
            let channel = &self.channel;
            let consumed = std::mem::take(&mut self.unreported);
            self.ended = !channel.pipe.take(self.stream, &mut self.taken, consumed, &limit, &|| {
                channel.poke_consumed();
            })?;
        }
        Ok(self.taken.front())
    }

    fn limit(&self) -> Limit {
        let own = Limit::after(self.timeout);
        Limit { total: earlier(own.total, self.channel.limit.total), idle: self.channel.limit.idle }
    }

    pub fn consume(&mut self, n: usize) {
        if !self.put_back.0.is_empty() {
            self.put_back.1 += n;
            if self.put_back.1 >= self.put_back.0.len() {
                self.put_back = (Vec::new(), 0);
            }
            return;
        }
        self.taken.consume(n, self.channel.pipe.pool());
        self.unreported += n as u64;
        if self.unreported >= self.step {
            let n = std::mem::take(&mut self.unreported);
            if self.channel.pipe.consumed(self.stream, n) {
                self.channel.poke_consumed();
            }
        }
    }

    /// Puts back what was taken and not read; somebody else reads the stream from here on.
    pub fn hand_over(mut self) {
        let consumed = std::mem::take(&mut self.unreported);
        if self.channel.pipe.put_back(self.stream, &mut self.taken, consumed) {
            self.channel.poke_consumed();
        }
        self.ended = true;
    }

    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            // The first bytes may be waited for; after that only what is there is taken.
            if done > 0 && self.taken.is_empty() {
                break;
            }
            let front = self.fill()?;
            let n = front.len().min(buffer.len() - done);
            if n == 0 {
                break;
            }
            buffer[done..done + n].copy_from_slice(&front[..n]);
            self.consume(n);
            done += n;
        }
        Ok(done)
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        if !self.ended {
            self.channel.drop_stream(self.stream);
        }
    }
}

/// Reads both streams of a channel in order of arrival.
#[derive(Debug)]
pub(crate) struct MergedReader {
    channel: Arc<Channel>,
    taken: Merged,
    unreported: [u64; 2],
    /// When that is reported, at the latest.
    step: u64,
    /// What the last call showed, to be consumed by the next.
    shown: Option<(Stream, usize)>,
}

impl MergedReader {
    pub fn new(channel: Arc<Channel>) -> MergedReader {
        channel.pipe.take_stream(Stream::Stdout);
        channel.pipe.take_stream(Stream::Stderr);
        let step = channel.pipe.report_step().min(REPORT);
        MergedReader { channel, taken: Merged::default(), unreported: [0; 2], step, shown: None }
    }

    /// The next bytes in order of arrival, and when they arrived; `None` when both streams have ended.
    pub fn next(&mut self) -> Result<Option<(Stream, Instant, &[u8])>> {
        let limit = self.channel.limit;
        self.consume_shown();
        if self.taken.front().is_none() {
            let channel = &self.channel;
            let consumed = std::mem::take(&mut self.unreported);
            if !channel.pipe.take_merged(&mut self.taken, consumed, &limit, &|| channel.poke_consumed())? {
                return Ok(None);
            }
        }
        let created = self.channel.pipe.created();
        let Some((stream, millis, bytes)) = self.taken.front() else { return Ok(None) };
        self.shown = Some((stream, bytes.len()));
        Ok(Some((stream, created + Duration::from_millis(millis), bytes)))
    }

    fn consume_shown(&mut self) {
        let Some((stream, n)) = self.shown.take() else { return };
        self.taken.consume(n, self.channel.pipe.pool());
        let unreported = &mut self.unreported[stream.index()];
        *unreported += n as u64;
        if *unreported >= self.step && self.channel.pipe.consumed(stream, std::mem::take(unreported)) {
            self.channel.poke_consumed();
        }
    }
}

impl Drop for MergedReader {
    fn drop(&mut self) {
        self.channel.drop_stream(Stream::Stdout);
        self.channel.drop_stream(Stream::Stderr);
    }
}

macro_rules! output_stream {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// It implements [`Read`] and [`BufRead`]; a read blocks until bytes are there, the stream ends or the
        /// command's timeout passes. Errors of reads carry a [`crate::Error`]. Dropping it lets what is queued and
        /// what comes be thrown away: the command is not held up.
        #[derive(Debug)]
        pub struct $name {
            reader: StreamReader,
        }

        impl $name {
            pub(crate) fn new(channel: Arc<Channel>, stream: Stream) -> Self {
                $name { reader: StreamReader::new(channel, stream) }
            }

            /// Gives the stream to a merged reader: what was taken and not read goes back.
            pub(crate) fn hand_over(self) {
                self.reader.hand_over();
            }

            pub(crate) fn into_reader(self) -> StreamReader {
                self.reader
            }

            /// Limits each read; `None` (the default) waits as long as the command may run.
            pub fn set_read_timeout(&mut self, timeout: Option<Duration>) {
                self.reader.set_timeout(timeout);
            }
        }

        impl Read for $name {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                Ok(self.reader.read(buffer)?)
            }
        }

        impl BufRead for $name {
            fn fill_buf(&mut self) -> io::Result<&[u8]> {
                Ok(self.reader.fill()?)
            }

            fn consume(&mut self, n: usize) {
                self.reader.consume(n);
            }
        }
    };
}

output_stream! {
    /// The standard output of a remote command.
    ChildStdout
}

output_stream! {
    /// The standard error of a remote command.
    ChildStderr
}

impl ChildStdout {
    pub(crate) fn from_reader(reader: StreamReader) -> ChildStdout {
        ChildStdout { reader }
    }

    pub(crate) fn channel(&self) -> &Arc<Channel> {
        self.reader.channel()
    }
}

/// The standard input of a remote command.
///
/// `write` queues up to 512 KiB ahead of the network and blocks while that is full: a command that stops reading
/// holds up only its writer. Writing to a command that has ended or closed its stdin gives
/// [`BrokenPipe`](io::ErrorKind::BrokenPipe). Dropping it ends the command's input, behind what was written.
#[derive(Debug)]
pub struct ChildStdin {
    channel: Arc<Channel>,
    timeout: Option<Duration>,
    finished: bool,
}

impl ChildStdin {
    pub(crate) fn new(channel: Arc<Channel>) -> ChildStdin {
        ChildStdin { channel, timeout: None, finished: false }
    }

    /// Limits each write and flush; `None` (the default) waits as long as the command may run.
    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    /// Ends the input and waits until everything written, and the end, has been handed to the network.
    ///
    /// The server may hold some of it when this returns, and sshd throws that away when the connection ends: before
    /// this process does, [`wait`](crate::Child::wait) for the command or [`close`](crate::Client::close) the client.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when `deadline` passes first (what is queued still goes out in the background),
    /// [`Error::BrokenPipe`] when the command ended before it was sent all, or why the connection was lost.
    pub fn finish(mut self, deadline: Duration) -> Result<()> {
        self.finished = true;
        self.channel.pipe.want_eof();
        self.flush_within(&Limit::after(Some(deadline)))
    }

    fn limit(&self) -> Limit {
        Limit { total: earlier(Limit::after(self.timeout).total, self.channel.limit.total), idle: None }
    }

    fn flush_within(&self, limit: &Limit) -> Result<()> {
        self.channel.pipe.flush(limit, &|| self.channel.poke_wrote())
    }
}

impl Write for ChildStdin {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let channel = &self.channel;
        Ok(channel.pipe.write(bytes, &self.limit(), &|| channel.poke_wrote())?)
    }

    /// Waits until everything written has been handed to the network.
    fn flush(&mut self) -> io::Result<()> {
        Ok(self.flush_within(&self.limit())?)
    }
}

impl Drop for ChildStdin {
    fn drop(&mut self) {
        if self.finished {
            self.channel.poke_wrote();
        } else {
            self.channel.end_stdin();
        }
    }
}

/// Acts on a running channel from any thread, while others wait on it. Cheap to clone; it keeps neither the channel nor
/// the connection open.
#[derive(Debug, Clone)]
pub struct Control {
    handle: WeakHandle,
    token: Token,
    pipe: Arc<Pipe>,
    process_group: Option<kill::Group>,
}

impl Control {
    pub(crate) fn new(channel: &Channel) -> Control {
        Control {
            handle: channel.handle.downgrade(),
            token: channel.token,
            pipe: Arc::clone(&channel.pipe),
            process_group: channel.process_group.get().copied(),
        }
    }

    /// Ends every wait on this channel, now and later, with [`Error::Cancelled`], and closes the channel.
    pub fn cancel(&self) {
        self.pipe.cancel();
        self.handle.close(self.token);
    }

    /// Closes the channel: readers get what has arrived, then [`Error::Closed`].
    pub fn close(&self) {
        self.handle.close(self.token);
    }

    /// Sends a signal by name without "SIG", e.g. `TERM` (RFC 4254 §6.9). The server may ignore it, and does not say.
    pub fn signal(&self, name: &str) {
        self.handle.tell(self.token, Notice::Signal(name.to_owned()));
    }

    /// Tells the remote side the terminal's new size (RFC 4254 §6.7). Does not wait.
    pub fn resize(&self, size: PtySize) {
        self.handle.tell(self.token, Notice::Resize(size));
    }

    /// As [`Child::kill_after`](crate::Child::kill_after), while others read what the command still prints and wait for
    /// its end. Blocks for at most `grace` and a few seconds.
    ///
    /// # Errors
    ///
    /// As [`Child::kill`](crate::Child::kill).
    pub fn kill_after(&self, grace: Duration) -> Result<KillOutcome> {
        match self.process_group {
            Some(group) => kill::group(&self.handle.upgrade().ok_or(Error::Closed)?, group, grace),
            None => {
                self.signal("KILL");
                Ok(KillOutcome::Unknown)
            }
        }
    }

    /// Waits for the command's end, without ending its input and without reading its output: somebody else does that.
    ///
    /// # Errors
    ///
    /// Why the end will not be known: the channel was closed or cancelled on our side, or the connection was lost.
    pub fn wait(&self) -> Result<ExitStatus> {
        self.pipe.wait_status([false; 2], &Limit::none(), &|| ())
    }

    /// How the command ended, once the server has said so; without waiting.
    #[must_use]
    pub fn status(&self) -> Option<ExitStatus> {
        self.pipe.try_status().ok().flatten()
    }
}

/// An error for a limit that a caller gave, phrased for the total.
pub(crate) fn with_received(error: Error, received: crate::Received) -> Error {
    match error {
        Error::Timeout { phase, after, .. } => {
            let phase = if phase == Phase::Read { Phase::Total } else { phase };
            Error::Timeout { phase, after, received: Some(Arc::new(received)) }
        }
        other => other,
    }
}
