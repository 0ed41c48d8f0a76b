//! An interactive shell on a pseudo-terminal: its two ends, and what a program does with it.

mod dialect;
mod escape;
mod expect;
mod interact;
mod pattern;
mod profile;
mod pty;
mod respond;
mod run;

use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use expect::{Deadline, Inbox};
use run::Driving;

pub use expect::Match;
pub use interact::{Interacted, Interaction};
pub use pattern::{Pattern, Patterns};
pub use profile::Profile;
pub use pty::{Pty, TerminalMode};
pub use respond::Responder;

use crate::channel::{Channel, ChildStdin, ChildStdout, Control, OnDrop, StreamReader};
use crate::client::Client;
use crate::error::{Error, Result, Stream};
use crate::exit_status::ExitStatus;
use crate::transport::message::{PtySize, Run, SessionPlan};
use crate::transport::pipe::Limit;

/// A login shell on a pseudo-terminal: paramiko's `invoke_shell`.
///
/// For a command that needs nothing of the one before take [`Client::exec_command`]. What a shell is for:
///
/// * [`run`](Shell::run): commands one after the other in one living shell, each with its output and its status.
/// * [`expect`](Shell::expect), [`send_line`](Shell::send_line), [`send_control`](Shell::send_control): a dialogue with
///   a program. [`Command::spawn_shell`](crate::Command::spawn_shell) starts one without a shell around it.
/// * [`respond`](Shell::respond): prompts that are answered whenever they come, such as sudo's.
/// * [`interact`](Shell::interact): the shell in the hands of whoever sits at the local terminal.
/// * [`Read`], [`Write`] and [`split`](Shell::split): the bytes, for two threads.
///
/// Dropping it closes the channel, and the server hangs the shell up: it and the program in its foreground get SIGHUP.
///
/// A line is sent with `\r`, as the Return key does, and comes back with `\r\n`. There is no end of input on a terminal:
/// `exit\r` or `\x04` (Ctrl-D) ends the shell, `\x03` (Ctrl-C) interrupts what it runs. Shells that edit lines (bash,
/// zsh, fish) echo what was typed ahead a second time, with escape sequences; [`TerminalMode::ECHO`] is not theirs.
///
/// Do not type more than 32 KiB ahead of a program that reads with the echo off: sshd answers what it writes to such a
/// terminal with an `SSH_MSG_IGNORE` of the same length, in one packet that is longer than SSH allows, and that ends the
/// connection. [`run`](Shell::run) types long commands in parts.
///
/// # Examples
///
/// ```no_run
/// # use std::io::{Read, Write};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = threadline::Client::connect("alice@web1")?;
/// let mut shell = client.invoke_shell()?;
/// shell.write_all(b"echo Hello, world\rexit\r")?;
/// let mut said = Vec::new();
/// shell.read_to_end(&mut said)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Shell {
    writer: ChildStdin,
    write_timeout: Option<Duration>,
    reader: StreamReader,
    read_timeout: Option<Duration>,
    channel: Arc<Channel>,
    inbox: Inbox,
    responders: Vec<Responder>,
    driving: Driving,
    profile: Option<Profile>,
}

/// How long it may take to give the shell back to whoever types: one short line to be queued.
const HANDING_BACK: Duration = Duration::from_secs(10);

impl Shell {
    pub(crate) fn new(channel: Arc<Channel>) -> Shell {
        channel.drop_stream(Stream::Stderr);
        Shell {
            writer: ChildStdin::new(Arc::clone(&channel)),
            write_timeout: None,
            reader: StreamReader::new(Arc::clone(&channel), Stream::Stdout),
            read_timeout: None,
            channel,
            inbox: Inbox::default(),
            responders: Vec::new(),
            driving: Driving::default(),
            profile: None,
        }
    }

    /// Types a line: the text and the Return key.
    ///
    /// # Errors
    ///
    /// [`Error::BrokenPipe`] when the shell has ended, [`Error::ConnectionLost`].
    pub fn send_line(&mut self, line: impl AsRef<[u8]>) -> Result<()> {
        self.write_all(&[line.as_ref(), b"\r"].concat()).map_err(our_error)
    }

    /// Types a control character: `'c'` interrupts what runs, `'d'` ends its input, `'z'` suspends it, `'['` is Escape.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] for a character that has no control form; as [`send_line`](Shell::send_line).
    pub fn send_control(&mut self, character: char) -> Result<()> {
        let byte = match character.to_ascii_uppercase() {
            '?' => 0x7f,
            found @ '@'..='_' => found as u8 & 0x1f,
            other => {
                let shown = other.escape_default();
                return Err(Error::invalid(format!(
                    "there is no Ctrl-{shown}; take a letter, or one of @ [ \\ ] ^ _ ?"
                )));
            }
        };
        self.write_all(&[byte]).map_err(our_error)
    }

    /// Tells the remote side the terminal's new size (RFC 4254 §6.7). Does not wait.
    pub fn resize(&self, size: PtySize) {
        self.channel.resize(size);
    }

    /// The writing and the reading end, for two threads. Both must be dropped for the channel to close; a
    /// [`control`](Shell::control) taken before resizes the terminal and waits for the shell's end.
    #[must_use]
    pub fn split(mut self) -> (ChildStdin, ChildStdout) {
        if let Err(error) = self.leave(&Deadline::after(Some(HANDING_BACK))) {
            log::debug!("the shell cannot be given back: {error}");
        }
        self.put_back();
        (self.writer, ChildStdout::from_reader(self.reader))
    }

    /// What was taken in and not handed out is read again first.
    fn put_back(&mut self) {
        if !self.inbox.bytes.is_empty() {
            self.reader.put_back(std::mem::take(&mut self.inbox.bytes));
        }
        self.inbox.skipped = 0;
    }

    /// A handle to act on the shell from another thread.
    #[must_use]
    pub fn control(&self) -> Control {
        Control::new(&self.channel)
    }

    /// Limits each read through [`Read`]; `None` (the default) waits for ever. Other waits have deadlines of their own.
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.read_timeout = timeout;
        self.reader.set_timeout(timeout);
    }

    /// Limits each write; `None` (the default) waits for ever.
    pub fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        self.write_timeout = timeout;
        self.writer.set_write_timeout(timeout);
    }

    /// Waits for the shell's end. Its input stays open: send `exit`, or drop the shell instead. What it prints meanwhile
    /// is kept and thrown away as by [`Child::wait`](crate::Child::wait).
    ///
    /// # Errors
    ///
    /// Why the connection was lost before the end was known.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        // Nobody else can read it now. It has no stderr.
        self.channel.wait([true, false], &Limit::none())
    }
}

impl Read for Shell {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.put_back();
        Ok(self.reader.read(buffer)?)
    }
}

impl BufRead for Shell {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.put_back();
        Ok(self.reader.fill()?)
    }

    fn consume(&mut self, n: usize) {
        self.reader.consume(n);
    }
}

impl Write for Shell {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.leave(&Deadline::after(Some(HANDING_BACK)))?;
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl Client {
    /// Starts the user's login shell on a terminal of the default type and size.
    ///
    /// # Errors
    ///
    /// As [`Command::spawn`](crate::Command::spawn).
    pub fn invoke_shell(&self) -> Result<Shell> {
        self.invoke_shell_on(&Pty::default())
    }

    /// Starts the user's login shell on the terminal described.
    ///
    /// # Errors
    ///
    /// As [`Command::spawn`](crate::Command::spawn).
    pub fn invoke_shell_on(&self, pty: &Pty) -> Result<Shell> {
        let plan = SessionPlan {
            env: Vec::new(),
            pty: Some(pty.request()?),
            run: Run::Shell,
            grace: None,
            at_limit: self.at_limit(),
            urgent: false,
            agent: false,
        };
        let channel = Channel::start(self.handle(), plan, Limit::none(), &Limit::none(), OnDrop::HangUp)?;
        Ok(Shell::new(channel))
    }
}

/// The library's error inside the one that `Read` and `Write` need.
fn our_error(e: io::Error) -> Error {
    e.downcast::<Error>().unwrap_or_else(|e| Error::Internal(format!("a stream gave a foreign error: {e}")))
}
