//! A running remote command: `std::process::Child`'s shape.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::channel::{
    earlier, with_received, Channel, ChildStderr, ChildStdin, ChildStdout, Control, MergedReader, StreamReader,
};
use crate::command::{ExitPolicy, Kind};
use crate::error::{Error, Received, Result, Stream};
use crate::exit_status::ExitStatus;
use crate::kill::{self, KillOutcome};
use crate::lines::{LineBuffer, LineEnd, Lines};
use crate::printer::{ChunkSource, Ending, Stopper};
use crate::transport::pipe::Limit;

/// The time between TERM and KILL of [`Child::kill`].
const KILL_GRACE: Duration = Duration::from_secs(5);

/// A remote command that was started.
///
/// Its streams are `Send` and may be moved to threads of their own; each is held up only by its own reader or writer.
/// Dropping the child and all its streams never blocks; [`OnDrop`](crate::OnDrop) says what becomes of the command.
///
/// A child whose output nobody reads is held back by the server after 2 MiB (the receive window), as a local one is by
/// a full pipe.
///
/// The streams live on their own: with `client.exec_command("…")?.stdout`, which drops the rest of the child, the
/// command's input is at its end and its errors are thrown away, and it goes on until that stream is dropped, too.
#[derive(Debug)]
pub struct Child {
    /// The command's input, if it is piped. Dropping it ends the input.
    pub stdin: Option<ChildStdin>,
    /// The command's output, if it is piped.
    pub stdout: Option<ChildStdout>,
    /// The command's errors, if they are piped.
    pub stderr: Option<ChildStderr>,
    channel: Arc<Channel>,
    exit_policy: ExitPolicy,
    pumps: Vec<JoinHandle<()>>,
    /// Once somebody reads the streams as one.
    joined: Option<Joined>,
}

/// What a command printed, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Output {
    /// How the command ended.
    pub status: ExitStatus,
    /// All of its stdout.
    pub stdout: Vec<u8>,
    /// All of its stderr.
    pub stderr: Vec<u8>,
}

impl Child {
    pub(crate) fn new(channel: Arc<Channel>, stdio: [Kind; 3], exit_policy: ExitPolicy) -> Result<Child> {
        let mut child =
            Child { stdin: None, stdout: None, stderr: None, channel, exit_policy, pumps: Vec::new(), joined: None };
        child.connect_stdin(stdio[0])?;
        child.connect_stdout(stdio[1])?;
        child.connect_stderr(stdio[2])?;
        Ok(child)
    }

    fn connect_stdin(&mut self, kind: Kind) -> Result<()> {
        let stdin = ChildStdin::new(Arc::clone(&self.channel));
        match kind {
            Kind::Piped => self.stdin = Some(stdin),
            Kind::Null => drop(stdin),
            // Not joined: a read of our stdin cannot be interrupted.
            Kind::Inherit => drop(pump("stdin", io::stdin(), stdin)?),
        }
        Ok(())
    }

    fn connect_stdout(&mut self, kind: Kind) -> Result<()> {
        match kind {
            Kind::Piped => self.stdout = Some(ChildStdout::new(Arc::clone(&self.channel), Stream::Stdout)),
            Kind::Null => self.channel.drop_stream(Stream::Stdout),
            Kind::Inherit => {
                let from = ChildStdout::new(Arc::clone(&self.channel), Stream::Stdout);
                self.pumps.push(pump("stdout", from, io::stdout())?);
            }
        }
        Ok(())
    }

    fn connect_stderr(&mut self, kind: Kind) -> Result<()> {
        match kind {
            Kind::Piped => self.stderr = Some(ChildStderr::new(Arc::clone(&self.channel), Stream::Stderr)),
            Kind::Null => self.channel.drop_stream(Stream::Stderr),
            Kind::Inherit => {
                let from = ChildStderr::new(Arc::clone(&self.channel), Stream::Stderr);
                self.pumps.push(pump("stderr", from, io::stderr())?);
            }
        }
        Ok(())
    }

    /// Ends the command's input, if it is still here, and waits for the command's end. May be called again; the answer
    /// stays the same.
    ///
    /// Output that nobody has taken is read meanwhile: up to the client's unread limit (64 MiB) is kept and can be
    /// read afterwards, the rest is thrown away, which reading then reports as [`Error::Discarded`].
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] if the command's timeout passes, or why the connection was lost before the end was known.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let limit = self.channel.limit;
        self.wait_within(&limit)
    }

    /// As [`wait`](Child::wait), for at most this long.
    ///
    /// # Errors
    ///
    /// As [`wait`](Child::wait); after [`Error::Timeout`] the command still runs and may be waited for again.
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let mut limit = Limit::after(Some(timeout));
        limit.idle = self.channel.limit.idle;
        limit.total = earlier(limit.total, self.channel.limit.total);
        self.wait_within(&limit)
    }

    fn wait_within(&mut self, limit: &Limit) -> Result<ExitStatus> {
        drop(self.stdin.take());
        let joined = self.joined.as_ref().map_or([false; 2], Joined::streams);
        let reads = [self.stdout.is_some() || joined[0], self.stderr.is_some() || joined[1]];
        let status = self.channel.wait(reads, limit)?;
        for pump in self.pumps.drain(..) {
            let _ = pump.join();
        }
        Ok(status)
    }

    /// How the command ended, if it has; without waiting. It leaves the input open and reads nothing: a command that
    /// prints more than the receive window never ends unless somebody reads.
    ///
    /// # Errors
    ///
    /// Why the connection was lost before the end was known.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        self.channel.pipe.try_status()
    }

    /// Ends the command's input, collects all output and waits for the end. Streams that were taken out are not
    /// collected.
    ///
    /// # Errors
    ///
    /// As [`wait`](Child::wait). A timeout carries what had been received.
    pub fn output(mut self) -> Result<Output> {
        drop(self.stdin.take());
        let mut received = Received::default();
        let collected = self.collect(&mut received).and_then(|()| self.wait());
        match collected {
            Ok(status) => Ok(Output { status, stdout: received.stdout, stderr: received.stderr }),
            Err(error) => Err(with_received(error, received)),
        }
    }

    fn collect(&mut self, received: &mut Received) -> Result<()> {
        let joined = self.join();
        while let Some((stream, _, bytes)) = joined.next()? {
            match stream {
                Stream::Stdout => received.stdout.extend_from_slice(bytes),
                Stream::Stderr => received.stderr.extend_from_slice(bytes),
            }
        }
        Ok(())
    }

    /// Makes one of the streams that are still here, touched or not.
    fn join(&mut self) -> &mut Joined {
        let Child { stdout, stderr, joined, .. } = self;
        joined.get_or_insert_with(|| Joined::new(stdout.take(), stderr.take()))
    }

    /// Both streams, line by line in order of arrival, each line with its stream and the time it arrived.
    ///
    /// Ends the command's input. A stream that was taken out before, or is not piped, is left out. The child comes
    /// back from [`OutputLines::into_child`] for its status.
    #[must_use]
    pub fn lines(mut self) -> OutputLines {
        drop(self.stdin.take());
        self.join();
        OutputLines::new(self)
    }

    /// Sends a signal by name without "SIG", such as `TERM` or `INT` (RFC 4254 §6.9). Does not wait; the server may
    /// ignore it and does not say. sshd knows HUP, INT, KILL, QUIT, TERM, USR1 and USR2 and delivers them to the
    /// command's process group; not to root's commands (some versions), not to forced ones, and not in the first
    /// moment, before the command has a group.
    pub fn signal(&self, name: &str) {
        self.channel.signal(name);
    }

    /// Ends the command and its children: TERM, five seconds, KILL, to the remote process group, from a second channel
    /// of this connection; then looks whether anything is left. The child stays as it is: [`wait`](Child::wait) tells
    /// how the command took it.
    ///
    /// Unlike with std it is not too late when the command itself has ended: what it left behind in its group is ended.
    /// A number that has been given to another process group since is not touched.
    ///
    /// Without [`process_group`](crate::Command::process_group) the group is not known: the SSH signal KILL is sent,
    /// and the outcome is [`KillOutcome::Unknown`].
    ///
    /// # Errors
    ///
    /// When the second channel could not be opened or the connection was lost. Where the server allows no more sessions
    /// (sshd's MaxSessions) it waits for one to end, as long as twice the grace and ten seconds; then it is
    /// [`Error::Timeout`], and [`signal`](Child::signal) is what is left.
    pub fn kill(&mut self) -> Result<KillOutcome> {
        self.kill_after(KILL_GRACE)
    }

    /// As [`kill`](Child::kill), with another time between TERM and KILL.
    ///
    /// # Errors
    ///
    /// As [`kill`](Child::kill).
    pub fn kill_after(&mut self, grace: Duration) -> Result<KillOutcome> {
        match self.channel.process_group.get() {
            Some(&group) => kill::group(&self.channel.handle, group, grace),
            None => {
                self.channel.signal("KILL");
                Ok(KillOutcome::Unknown)
            }
        }
    }

    /// The id of the remote process group, if the command was started with
    /// [`process_group`](crate::Command::process_group) and told it.
    #[must_use]
    pub fn process_group_id(&self) -> Option<u32> {
        self.channel.process_group.get().map(|group| group.id)
    }

    /// Closes the channel without waiting. What that does to the command is the server's choice.
    pub fn close(&mut self) {
        self.channel.close();
    }

    /// A handle to act on the command from another thread while this one waits.
    #[must_use]
    pub fn control(&self) -> Control {
        Control::new(&self.channel)
    }

    /// When the command counts as ended, as it was started.
    #[must_use]
    pub fn exit_policy(&self) -> ExitPolicy {
        self.exit_policy
    }
}

/// A child's streams, read as one by one reader.
#[derive(Debug)]
enum Joined {
    Both(MergedReader),
    /// The other stream is read elsewhere or not piped. The number is what the last call showed.
    One(Stream, StreamReader, usize),
    Neither,
}

impl Joined {
    fn new(stdout: Option<ChildStdout>, stderr: Option<ChildStderr>) -> Joined {
        match (stdout, stderr) {
            (Some(stdout), Some(stderr)) => {
                let reader = MergedReader::new(Arc::clone(stdout.channel()));
                stdout.hand_over();
                stderr.hand_over();
                Joined::Both(reader)
            }
            (Some(stdout), None) => Joined::One(Stream::Stdout, stdout.into_reader(), 0),
            (None, Some(stderr)) => Joined::One(Stream::Stderr, stderr.into_reader(), 0),
            (None, None) => Joined::Neither,
        }
    }

    /// Which streams it reads.
    fn streams(&self) -> [bool; 2] {
        match self {
            Joined::Both(_) => [true; 2],
            Joined::One(stream, ..) => [*stream == Stream::Stdout, *stream == Stream::Stderr],
            Joined::Neither => [false; 2],
        }
    }

    /// The next bytes and when they arrived (of one stream alone: when they were read); `None` at the end.
    fn next(&mut self) -> Result<Option<(Stream, Instant, &[u8])>> {
        match self {
            Joined::Both(reader) => reader.next(),
            Joined::One(stream, reader, shown) => {
                reader.consume(std::mem::take(shown));
                let bytes = reader.fill()?;
                *shown = bytes.len();
                Ok((!bytes.is_empty()).then(|| (*stream, Instant::now(), bytes)))
            }
            Joined::Neither => Ok(None),
        }
    }
}

/// Copies one stream to another on a thread of its own.
fn pump(name: &str, from: impl Read + Send + 'static, to: impl Write + Send + 'static) -> Result<JoinHandle<()>> {
    let (mut from, mut to) = (from, to);
    std::thread::Builder::new()
        .name(format!("tl:{name}"))
        .spawn(move || {
            let mut buffer = vec![0; 32 * 1024];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                if to.write_all(&buffer[..n]).and_then(|()| to.flush()).is_err() {
                    return;
                }
            }
        })
        .map_err(|e| Error::io(format!("cannot start the thread for {name}"), e))
}

/// A line of a command's output.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Line {
    /// The stream it came on.
    pub stream: Stream,
    /// When its last bytes arrived, to the millisecond; if only one of the streams is read, when they were read.
    pub arrived: Instant,
    /// The bytes, without the newline.
    pub bytes: Vec<u8>,
    /// What came behind them: a newline, the stream's end, or, for a line longer than 64 KiB, more of it.
    pub end: LineEnd,
}

impl Line {
    /// The bytes as text; invalid UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.bytes)
    }
}

/// Iterator over the lines of both streams; made by [`Child::lines`]. `next` blocks until a line is whole.
#[derive(Debug)]
pub struct OutputLines {
    child: Child,
    buffers: [LineBuffer; 2],
    lines: Lines,
    ready: VecDeque<Line>,
    last_arrival: Instant,
    ended: bool,
    /// Told after the last line.
    error: Option<Error>,
}

impl OutputLines {
    fn new(child: Child) -> OutputLines {
        OutputLines {
            child,
            buffers: [LineBuffer::new(), LineBuffer::new()],
            lines: Lines::new(),
            ready: VecDeque::new(),
            last_arrival: Instant::now(),
            ended: false,
            error: None,
        }
    }

    /// The child, to wait for its status. Lines not read yet are thrown away.
    #[must_use]
    pub fn into_child(mut self) -> Child {
        self.child.joined = Some(Joined::Neither);
        self.child
    }

    /// The child, to act on it between two lines.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    fn read_more(&mut self) -> Result<()> {
        match self.child.join().next()? {
            Some((stream, arrived, bytes)) => {
                self.last_arrival = arrived;
                self.buffers[stream.index()].push(bytes, &mut self.lines);
                self.queue(stream);
            }
            None => self.finish(),
        }
        Ok(())
    }

    /// No more bytes: what is held back of unfinished lines is all there will be.
    fn finish(&mut self) {
        self.ended = true;
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.buffers[stream.index()].finish(&mut self.lines);
            self.queue(stream);
        }
    }

    fn queue(&mut self, stream: Stream) {
        for piece in &self.lines {
            self.ready.push_back(Line {
                stream,
                arrived: self.last_arrival,
                bytes: piece.bytes.to_vec(),
                end: piece.end,
            });
        }
        self.lines.clear();
    }
}

impl Iterator for OutputLines {
    type Item = Result<Line>;

    fn next(&mut self) -> Option<Result<Line>> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(Ok(line));
            }
            if self.ended {
                return self.error.take().map(Err);
            }
            if let Err(error) = self.read_more() {
                // Unfinished lines that were held back come before the error.
                self.error = Some(error);
                self.finish();
            }
        }
    }
}

/// A child is a source for a [`Printer`](crate::Printer): both streams in order of arrival, then the exit status.
/// Its input is ended when it is followed.
///
/// A stream that was taken out before, or is not piped, is left out.
impl ChunkSource for Child {
    fn next_chunk(&mut self) -> Result<Option<(Stream, &[u8])>> {
        drop(self.stdin.take());
        Ok(self.join().next()?.map(|(stream, _, bytes)| (stream, bytes)))
    }

    fn ending(&mut self) -> Result<Ending> {
        Ok(Ending::Exited(self.wait()?))
    }

    fn stopper(&self) -> Option<Stopper> {
        let control = self.control();
        Some(Box::new(move || control.cancel()))
    }
}
