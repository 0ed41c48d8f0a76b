//! The shell in the hands of whoever sits at the local terminal.

use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{getpid, kill_process, Signal};
use rustix::termios::{isatty, tcgetattr, tcgetwinsize, tcsetattr, OptionalActions, Termios};

use super::escape::{Escapes, Typed};
use super::expect::Deadline;
use super::Shell;
use crate::channel::StreamReader;
use crate::error::{Error, Result};
use crate::exit_status::ExitStatus;
use crate::transport::message::PtySize;

/// How often the terminal's size is looked at, and whether the other side of the work has ended. A library must not
/// take SIGWINCH from the program that it is part of.
const GLANCE: Duration = Duration::from_millis(200);

/// Settings of [`Shell::interact_with`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Interaction {
    escape: Option<u8>,
}

impl Interaction {
    /// With the escape character `~`.
    pub fn new() -> Interaction {
        Interaction { escape: Some(b'~') }
    }

    /// The escape character; `None`: everything that is typed goes to the shell.
    pub fn escape(mut self, character: Option<u8>) -> Interaction {
        self.escape = character;
        self
    }
}

impl Default for Interaction {
    fn default() -> Interaction {
        Interaction::new()
    }
}

/// Why [`Shell::interact`] returned.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Interacted {
    /// The shell has ended like this.
    Ended(ExitStatus),
    /// `~.` was typed: the shell lives on, and the program may go on with it.
    Escaped,
}

/// A terminal in raw mode, which gets its old mode back.
struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    fn enter() -> io::Result<Raw> {
        let terminal = rustix::io::dup(rustix::stdio::stdin())?;
        let before = tcgetattr(&terminal)?;
        let raw = Raw { terminal, before };
        raw.set()?;
        Ok(raw)
    }

    fn set(&self) -> io::Result<()> {
        let mut mode = self.before.clone();
        mode.make_raw();
        Ok(tcsetattr(&self.terminal, OptionalActions::Drain, &mode)?)
    }

    fn restore(&self) {
        // If the terminal has gone there is nothing to put right.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }

    /// Stops this process as its terminal's Ctrl-Z would, and goes on raw when it is continued.
    fn suspend(&self) -> io::Result<()> {
        self.restore();
        kill_process(getpid(), Signal::TSTP)?;
        self.set()
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.restore();
    }
}

impl Shell {
    /// Hands the shell to whoever sits at this process's terminal: raw mode, keys to the shell, its output to stdout,
    /// changes of size followed. Returns when the shell ends, or when `~.` is typed at the start of a line; the terminal
    /// is then as it was. `~?` lists the other escape sequences.
    ///
    /// Blocks until then; a second thread copies the output. What [`expect`](Shell::expect) has taken in and not handed
    /// out is shown first. A signal that ends the process leaves the terminal raw, unless a handler of the program's
    /// puts it right.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] when stdin is no terminal, [`Error::Io`] when the terminal fails, or why the connection
    /// was lost.
    pub fn interact(&mut self) -> Result<Interacted> {
        self.interact_with(&Interaction::new())
    }

    /// As [`interact`](Shell::interact), with settings.
    ///
    /// # Errors
    ///
    /// As [`interact`](Shell::interact).
    pub fn interact_with(&mut self, settings: &Interaction) -> Result<Interacted> {
        if !isatty(rustix::stdio::stdin()) {
            return Err(Error::invalid("stdin is no terminal, so nobody can type there; use Read and Write instead"));
        }
        self.leave(&Deadline::after(Some(GLANCE)))?;
        let raw = Raw::enter().map_err(terminal_failed)?;
        self.put_back();
        let outcome = self.pass_through(settings, &raw);
        drop(raw);
        outcome
    }

    fn pass_through(&mut self, settings: &Interaction, raw: &Raw) -> Result<Interacted> {
        let (over, ends) = rustix::pipe::pipe().map_err(|e| terminal_failed(e.into()))?;
        let stop = AtomicBool::new(false);
        let received = AtomicU64::new(0);
        let reader = &mut self.reader;
        let mut keys = Keys {
            writer: &mut self.writer,
            channel: &self.channel,
            raw,
            escapes: Escapes::new(settings.escape),
            escape: settings.escape.unwrap_or(b'~'),
            sent: 0,
            received: &received,
            since: Instant::now(),
            size: None,
        };
        let (escaped, copied) = thread::scope(|scope| {
            let copier = thread::Builder::new().name("tl:screen".into()).spawn_scoped(scope, || {
                let copied = copy(reader, &stop, &received);
                // Wakes whoever waits for a key.
                drop(ends);
                copied
            });
            let copier = copier.map_err(terminal_failed)?;
            let typed = keys.pass_on(&over);
            if !matches!(typed, Ok(KeysEnd::OutputEnded)) {
                stop.store(true, Ordering::Relaxed);
            }
            let copied = copier.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, Error>((typed, copied))
        })?;
        self.reader.set_timeout(self.read_timeout);
        match (escaped?, copied) {
            (KeysEnd::Escaped, Ok(_)) => Ok(Interacted::Escaped),
            (_, Err(error)) => Err(error),
            (KeysEnd::OutputEnded, Ok(_)) => self.wait().map(Interacted::Ended),
        }
    }
}

/// Why no more keys are passed on.
enum KeysEnd {
    OutputEnded,
    Escaped,
}

struct Keys<'a> {
    writer: &'a mut crate::channel::ChildStdin,
    channel: &'a crate::channel::Channel,
    raw: &'a Raw,
    escapes: Escapes,
    escape: u8,
    sent: u64,
    received: &'a AtomicU64,
    since: Instant,
    size: Option<PtySize>,
}

impl Keys<'_> {
    fn pass_on(&mut self, over: &OwnedFd) -> Result<KeysEnd> {
        let mut buffer = [0; 4096];
        loop {
            self.follow_size();
            let (typed, ended) = wait_for_key(over).map_err(terminal_failed)?;
            if ended {
                return Ok(KeysEnd::OutputEnded);
            }
            if !typed {
                continue;
            }
            let count = match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
                Ok(0) => return Err(terminal_failed(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => count,
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(e) => return Err(terminal_failed(e.into())),
            };
            for typed in self.escapes.typed(&buffer[..count]) {
                if let Some(end) = self.act(typed)? {
                    return Ok(end);
                }
            }
        }
    }

    fn act(&mut self, typed: Typed) -> Result<Option<KeysEnd>> {
        match typed {
            Typed::Bytes(bytes) => {
                self.sent += bytes.len() as u64;
                match self.writer.write_all(&bytes).map_err(super::our_error) {
                    // It has just ended, which the other side of the work tells.
                    Ok(()) | Err(Error::BrokenPipe) => {}
                    Err(error) => return Err(error),
                }
            }
            Typed::End => return Ok(Some(KeysEnd::Escaped)),
            Typed::Suspend => self.raw.suspend().map_err(terminal_failed)?,
            Typed::Status => self.say(&self.status())?,
            Typed::Help => self.say(&self.help())?,
        }
        Ok(None)
    }

    fn follow_size(&mut self) {
        let Ok(found) = tcgetwinsize(rustix::stdio::stdin()) else { return };
        let mut size = PtySize::new(found.ws_col.into(), found.ws_row.into());
        size.width = found.ws_xpixel.into();
        size.height = found.ws_ypixel.into();
        // What a terminal does not know it gives as 0.
        if self.size != Some(size) && found.ws_col > 0 && found.ws_row > 0 {
            self.size = Some(size);
            self.channel.resize(size);
        }
    }

    /// Says something of ours on the raw terminal.
    fn say(&self, text: &str) -> Result<()> {
        write_all(rustix::stdio::stdout(), text.replace('\n', "\r\n").as_bytes()).map_err(terminal_failed)
    }

    fn help(&self) -> String {
        let c = char::from(self.escape).escape_default();
        format!(
            "\nEscape sequences, at the start of a line:\n  {c}.   end\n  {c}^Z  suspend\n  {c}#   what is open, and how much went over \
             it\n  {c}?   this list\n  {c}{c}   the character itself\n"
        )
    }

    fn status(&self) -> String {
        format!(
            "\n1 shell open for {} s: {} bytes sent, {} received\n",
            self.since.elapsed().as_secs(),
            self.sent,
            self.received.load(Ordering::Relaxed)
        )
    }
}

/// Waits for a key and for the end of the output, for a glance; which of them came.
fn wait_for_key(over: &OwnedFd) -> io::Result<(bool, bool)> {
    let stdin = rustix::stdio::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(over, PollFlags::IN)];
    let glance = Timespec::try_from(GLANCE).map_err(|_| io::ErrorKind::InvalidInput)?;
    match poll(&mut fds, Some(&glance)) {
        Ok(_) | Err(Errno::INTR) => Ok((!fds[0].revents().is_empty(), !fds[1].revents().is_empty())),
        Err(e) => Err(e.into()),
    }
}

/// Copies the output until it ends (true) or is no longer wanted (false).
fn copy(from: &mut StreamReader, stop: &AtomicBool, received: &AtomicU64) -> Result<bool> {
    from.set_timeout(Some(GLANCE));
    loop {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let count = match from.fill() {
            Ok([]) => return Ok(true),
            Ok(bytes) => {
                write_all(rustix::stdio::stdout(), bytes).map_err(terminal_failed)?;
                bytes.len()
            }
            Err(Error::Timeout { after, .. }) if after == GLANCE => continue,
            Err(error) => return Err(error),
        };
        received.fetch_add(count as u64, Ordering::Relaxed);
        from.consume(count);
    }
}

/// Writes all of it. A descriptor that another process made non-blocking is waited for.
fn write_all(to: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&to, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut fds = [PollFd::new(&to, PollFlags::OUT)];
                match poll(&mut fds, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn terminal_failed(e: io::Error) -> Error {
    Error::io("the local terminal", e)
}
