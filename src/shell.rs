//! An interactive shell on a pseudo-terminal.

use std::io::{self, BufRead, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use crate::channel::{Channel, ChildStdin, ChildStdout, Control, OnDrop};
use crate::client::Client;
use crate::error::{Error, Result, Stream};
use crate::exit_status::ExitStatus;
use crate::transport::message::{self, PtySize, Run, SessionPlan};
use crate::transport::pipe::Limit;

/// A pseudo-terminal to ask the server for (RFC 4254 §6.2): type, size and modes.
///
/// # Examples
///
/// ```
/// use threadline::{Pty, PtySize, TerminalMode};
///
/// let pty = Pty::new("xterm-256color").size(PtySize::new(120, 40)).mode(TerminalMode::ECHO, 0);
/// # let _ = pty;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Pty {
    term: String,
    size: PtySize,
    modes: Vec<(TerminalMode, u32)>,
}

/// The number of a terminal mode (RFC 4254 §8). The common ones are constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TerminalMode(pub u8);

impl TerminalMode {
    /// Interrupt character.
    pub const VINTR: TerminalMode = TerminalMode(1);
    /// Erase character.
    pub const VERASE: TerminalMode = TerminalMode(3);
    /// End-of-file character.
    pub const VEOF: TerminalMode = TerminalMode(5);
    /// Translate carriage return to newline on input.
    pub const ICRNL: TerminalMode = TerminalMode(36);
    /// Input is taken to be UTF-8.
    pub const IUTF8: TerminalMode = TerminalMode(42);
    /// Signals by INTR, QUIT and SUSP characters.
    pub const ISIG: TerminalMode = TerminalMode(50);
    /// Input by whole lines.
    pub const ICANON: TerminalMode = TerminalMode(51);
    /// What is typed is echoed.
    pub const ECHO: TerminalMode = TerminalMode(53);
    /// Output processing.
    pub const OPOST: TerminalMode = TerminalMode(70);
    /// Newline becomes carriage return and newline on output.
    pub const ONLCR: TerminalMode = TerminalMode(72);
    /// Input speed in bits a second.
    pub const ISPEED: TerminalMode = TerminalMode(128);
    /// Output speed in bits a second.
    pub const OSPEED: TerminalMode = TerminalMode(129);

    /// Ends the encoded list.
    const END: u8 = 0;
    /// Codes from here on have no argument and must not be sent (RFC 4254 §8).
    const UNDEFINED: u8 = 160;
}

/// The longest terminal type; the request must fit into one packet.
const LONGEST_TERM: usize = 1024;

impl Pty {
    /// A terminal of this type (the remote TERM), 80 columns and 24 rows, with the server's own modes.
    pub fn new(term: &str) -> Pty {
        Pty { term: term.to_owned(), size: PtySize::default(), modes: Vec::new() }
    }

    /// Sets the size.
    pub fn size(mut self, size: PtySize) -> Pty {
        self.size = size;
        self
    }

    /// Sets a mode: 1 or 0 for switches, else its value.
    pub fn mode(mut self, mode: TerminalMode, value: u32) -> Pty {
        self.modes.retain(|(m, _)| *m != mode);
        self.modes.push((mode, value));
        self
    }

    pub(crate) fn request(&self) -> Result<message::Pty> {
        if self.term.len() > LONGEST_TERM {
            let message = format!("a terminal type has at most {LONGEST_TERM} bytes, this one {}", self.term.len());
            return Err(Error::invalid(message));
        }
        let mut modes = Vec::with_capacity(self.modes.len() * 5 + 1);
        for (mode, value) in &self.modes {
            if mode.0 != TerminalMode::END && mode.0 < TerminalMode::UNDEFINED {
                modes.push(mode.0);
                modes.extend_from_slice(&value.to_be_bytes());
            }
        }
        modes.push(TerminalMode::END);
        Ok(message::Pty { term: self.term.clone(), size: self.size, modes })
    }
}

impl Default for Pty {
    /// Type `xterm`, 80 columns, 24 rows.
    fn default() -> Pty {
        Pty::new("xterm")
    }
}

/// A login shell on a pseudo-terminal: paramiko's `invoke_shell`.
///
/// What is typed is echoed, prompts are printed, and there is no telling one command's output from the next; for
/// commands take [`Client::exec_command`]. [`split`](Shell::split) gives two ends for two threads. Dropping it closes
/// the channel, and the server hangs the shell up: it and the program in its foreground get SIGHUP.
///
/// A line is sent with `\r`, as the Return key does, and comes back with `\r\n`. There is no end of input on a terminal:
/// `exit\r` or `\x04` (Ctrl-D) ends the shell, `\x03` (Ctrl-C) interrupts what it runs. Shells that edit lines (bash,
/// zsh, fish) echo what was typed ahead a second time, with escape sequences; [`TerminalMode::ECHO`] is not theirs.
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
    reader: ChildStdout,
    channel: Arc<Channel>,
}

impl Shell {
    /// Tells the remote side the terminal's new size (RFC 4254 §6.7). Does not wait.
    pub fn resize(&self, size: PtySize) {
        self.channel.resize(size);
    }

    /// The writing and the reading end, for two threads. Both must be dropped for the channel to close; a
    /// [`control`](Shell::control) taken before resizes the terminal and waits for the shell's end.
    #[must_use]
    pub fn split(self) -> (ChildStdin, ChildStdout) {
        (self.writer, self.reader)
    }

    /// A handle to act on the shell from another thread.
    #[must_use]
    pub fn control(&self) -> Control {
        Control::new(&self.channel)
    }

    /// Limits each read; `None` (the default) waits for ever.
    pub fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        self.reader.set_read_timeout(timeout);
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
        self.reader.read(buffer)
    }
}

impl BufRead for Shell {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.reader.fill_buf()
    }

    fn consume(&mut self, n: usize) {
        self.reader.consume(n);
    }
}

impl Write for Shell {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
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
        channel.drop_stream(Stream::Stderr);
        Ok(Shell {
            writer: ChildStdin::new(Arc::clone(&channel)),
            reader: ChildStdout::new(Arc::clone(&channel), Stream::Stdout),
            channel,
        })
    }
}
