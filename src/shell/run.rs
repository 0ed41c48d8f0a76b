//! Commands in one living shell, each with its output and its status.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use memchr::memmem;

use super::dialect::{self, Dialect, Mark, Script};
use super::expect::Deadline;
use super::respond::Answering;
use super::Shell;
use crate::child::Output;
use crate::error::{Error, Result};
use crate::exit_status::ExitStatus;

/// How long a shell may take to answer its first line: startup files run before.
const START: Duration = Duration::from_secs(60);

const SENDING: &str = "sending the command";

/// How a shell stands to [`Shell::run`].
#[derive(Debug, Default)]
pub(super) enum Driving {
    /// It shows its own prompt, as far as we know.
    #[default]
    No,
    /// It waits at our prompt.
    AtRest(Script, String),
    /// It runs a command, which has begun or not.
    Busy(Script, String, Begun),
}

/// Whether a command's first mark has been seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    No,
    Yes,
}

impl Shell {
    /// Runs a command in this shell and waits for its end; gives back its output and its status. What it changes in the
    /// shell (directory, variables, functions) is there for the next.
    ///
    /// It does not depend on prompt, echo or line editor: the shell is asked what it is, its line editor and prompt are
    /// set aside, and marks of random digits tell where output begins and ends. That works with sh, dash, bash, zsh, ksh,
    /// fish, csh and tcsh, each in its own language. The first call takes a few round trips, a further one takes one.
    /// Whoever types again ([`Write`](std::io::Write), [`send_line`](Shell::send_line), [`interact`](Shell::interact))
    /// finds the shell at its own prompt. For devices without such a shell set a [`Profile`](crate::Profile).
    ///
    /// The command may have many lines and any length. It runs on the terminal: stdout and stderr are one, and come as
    /// [`Output::stdout`], with the carriage returns taken out that the terminal puts before newlines. What it reads is
    /// what is typed: a [`Responder`](crate::Responder) does that while it runs. A command that waits for input nobody
    /// gives waits until the deadline of [`run_within`](Shell::run_within). All output is kept in memory.
    /// With csh and tcsh the command goes through a temporary file that only its user can read.
    ///
    /// The status is what the shell says (`$?`): 128 + n for a command that signal n ended (256 + n in ksh). A command that the shell
    /// could not make sense of has the shell's status for that.
    ///
    /// # Errors
    ///
    /// [`Error::Shell`] when the command ends the shell (`exit`, `exec`) or the connection is lost; it carries the output
    /// until then. [`Error::InvalidInput`] for a NUL byte, which no shell takes.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn main() -> threadline::Result<()> {
    /// # let client = threadline::Client::connect("alice@web1")?;
    /// let mut shell = client.invoke_shell()?;
    /// shell.run("cd /srv/app && export STAGE=test")?;
    /// let built = shell.run("make")?;
    /// if built.status.success() {
    ///     print!("{}", String::from_utf8_lossy(&shell.run("pwd")?.stdout));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn run(&mut self, command: impl AsRef<[u8]>) -> Result<Output> {
        self.run_until(command.as_ref(), Deadline::after(None))
    }

    /// As [`run`](Shell::run), for at most this long.
    ///
    /// When the deadline passes the command still runs: type what it waits for, interrupt it with
    /// [`send_control`](Shell::send_control)`('c')`, or drop the shell. The next `run` first waits for its end and throws
    /// away what it still says.
    ///
    /// # Errors
    ///
    /// As [`run`](Shell::run), and [`Error::Shell`] when the deadline passes.
    pub fn run_within(&mut self, command: impl AsRef<[u8]>, deadline: Duration) -> Result<Output> {
        self.run_until(command.as_ref(), Deadline::after(Some(deadline)))
    }

    fn run_until(&mut self, command: &[u8], deadline: Deadline) -> Result<Output> {
        if command.contains(&0) {
            return Err(Error::invalid("a command cannot contain a NUL byte"));
        }
        if self.profile.is_some() {
            return self.run_at_prompt(command, &deadline);
        }
        let (script, token) = self.ready(&deadline)?;
        // Until its last line is typed, nothing of it has been done.
        self.driving = Driving::AtRest(script.clone(), token.clone());
        let lines = script.run(command);
        let mut parts = lines.chunks(dialect::AHEAD).peekable();
        while let Some(part) = parts.next() {
            let mut typed = part.concat_lines();
            if parts.peek().is_none() {
                self.driving = Driving::Busy(script.clone(), token.clone(), Begun::No);
                self.type_raw(&typed, &deadline, SENDING)?;
                break;
            }
            typed.extend([script.here()].concat_lines());
            self.type_raw(&typed, &deadline, SENDING)?;
            self.wait_for_mark(&token, &deadline, SENDING, &|mark| *mark == Mark::Here)?;
        }
        let (mark, output) = self.finish(&script, &token, Begun::No, &deadline, "running the command")?;
        let status = match mark {
            Mark::End(status) => status,
            // The shell gave the line up: a syntax error in dash, an interrupt in bash.
            _ => self.status_of_what_was_given_up(&script, &token, &deadline)?,
        };
        self.driving = Driving::AtRest(script, token);
        let stdout = dialect::without_onlcr(&output);
        Ok(Output { status: ExitStatus::Code(status), stdout, stderr: Vec::new() })
    }

    /// Waits for a command's end. A prompt is an end, too, when the command has begun.
    fn finish(
        &mut self,
        script: &Script,
        token: &str,
        begun: Begun,
        deadline: &Deadline,
        doing: &str,
    ) -> Result<(Mark, Vec<u8>)> {
        if begun == Begun::No {
            self.wait_for_mark(token, deadline, "waiting for the command to begin", &|mark| *mark == Mark::Begin)?;
            self.driving = Driving::Busy(script.clone(), token.to_owned(), Begun::Yes);
        }
        self.wait_for_mark(token, deadline, doing, &|mark| matches!(mark, Mark::End(_) | Mark::Prompt))
    }

    /// Makes sure that the shell waits at our prompt.
    fn ready(&mut self, deadline: &Deadline) -> Result<(Script, String)> {
        match std::mem::take(&mut self.driving) {
            Driving::AtRest(script, token) => Ok((script, token)),
            Driving::Busy(script, token, begun) => {
                self.driving = Driving::Busy(script.clone(), token.clone(), begun);
                self.finish(&script, &token, begun, deadline, "waiting for the end of the command before")?;
                Ok((script, token))
            }
            Driving::No => self.enter(deadline),
        }
    }

    fn enter(&mut self, deadline: &Deadline) -> Result<(Script, String)> {
        let token = random_token();
        let deadline = deadline.or_after(START);
        let asking = "asking the shell what it is";
        self.type_raw(&[dialect::probe(&token)].concat_lines(), &deadline, asking)?;
        let (answer, _) = self.wait_for_mark(&token, &deadline, asking, &|mark| matches!(mark, Mark::Is(_)))?;
        let dialect = if let Mark::Is(dialect) = answer { dialect } else { Dialect::Posix };
        log::debug!("the shell is of the kind {dialect:?}");
        let script = Script::new(dialect, &token);
        let taking_over = "setting the shell's prompt aside";
        self.type_raw(&[script.enter()].concat_lines(), &deadline, taking_over)?;
        self.wait_for_mark(&token, &deadline, taking_over, &|mark| *mark == Mark::Prompt)?;
        Ok((script, token))
    }

    /// Gives the shell back to whoever types: prompt, echo and line editor as they were.
    pub(super) fn leave(&mut self, deadline: &Deadline) -> Result<()> {
        match std::mem::take(&mut self.driving) {
            Driving::AtRest(script, _) => {
                self.type_raw(&[script.leave()].concat_lines(), deadline, "giving the shell back")
            }
            // Who types now types to the command.
            busy => {
                self.driving = busy;
                Ok(())
            }
        }
    }

    fn status_of_what_was_given_up(&mut self, script: &Script, token: &str, deadline: &Deadline) -> Result<u32> {
        let asking = "asking for the status";
        self.type_raw(&[script.ask_status()].concat_lines(), deadline, asking)?;
        match self.wait_for_mark(token, deadline, asking, &|mark| matches!(mark, Mark::End(_)))? {
            (Mark::End(status), _) => Ok(status),
            (other, _) => Err(Error::Internal(format!("{other:?} is no status"))),
        }
    }

    /// Waits for a mark that is wanted; gives it back with what came before it. Others are passed over.
    fn wait_for_mark(
        &mut self,
        token: &str,
        deadline: &Deadline,
        doing: &str,
        wanted: &dyn Fn(&Mark) -> bool,
    ) -> Result<(Mark, Vec<u8>)> {
        let start = dialect::mark_start(token);
        let finder = memmem::Finder::new(&start);
        let mut answering = Answering::default();
        let mut searched: usize = 0;
        loop {
            while !answering.holds_back(&self.responders, &mut self.inbox) {
                let from = searched.min(self.inbox.bytes.len());
                let Some(at) = finder.find(&self.inbox.bytes[from..]).map(|at| from + at) else {
                    searched = self.inbox.bytes.len().saturating_sub(start.len());
                    break;
                };
                match dialect::mark_at(&self.inbox.bytes[at..], token) {
                    Some((mark, length)) if wanted(&mark) => {
                        let rest = self.inbox.bytes.split_off(at + length);
                        let mut output = std::mem::replace(&mut self.inbox.bytes, rest);
                        output.truncate(at);
                        return Ok((mark, output));
                    }
                    Some((_, length)) => searched = at + length,
                    // Not all of it is here.
                    None if self.inbox.bytes.len() - at < LONGEST_MARK => {
                        searched = at;
                        break;
                    }
                    None => searched = at + start.len(),
                }
            }
            self.answer(&mut answering, deadline)?;
            self.more(deadline, || doing.to_owned())?;
        }
    }
}

/// A mark that is not whole after so many bytes is none.
const LONGEST_MARK: usize = 400;

/// The lines as they are typed.
trait ConcatLines {
    fn concat_lines(&self) -> Vec<u8>;
}

impl<T: AsRef<[String]> + ?Sized> ConcatLines for T {
    fn concat_lines(&self) -> Vec<u8> {
        self.as_ref().iter().flat_map(|line| [line.as_bytes(), b"\r"].concat()).collect()
    }
}

/// Digits that no output contains by chance. They need not be secret: who prints the marks is whom we ask.
fn random_token() -> String {
    let number = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", number(), number())
}
