//! Waiting for what a shell says.

use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::pattern::{Found, Patterns};
use super::respond::Answering;
use super::Shell;
use crate::error::{Error, Result, ShellError, ShellFailure};
use crate::transport::pipe::Limit;

/// Unmatched bytes kept while a pattern is waited for; what is older than that goes, half of it at a time.
const KEPT: usize = 16 << 20;

/// How long a shell that closed its output may take to tell its status.
const LAST_WORD: Duration = Duration::from_secs(5);

/// What [`Shell::expect`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Match {
    /// Which of the patterns it was, from 0.
    pub which: usize,
    /// What the shell said before it, up to 16 MiB.
    pub before: Vec<u8>,
    /// How many bytes before that were not kept.
    pub skipped: u64,
    groups: Vec<Option<Vec<u8>>>,
    names: Vec<Option<String>>,
}

impl Match {
    fn new(which: usize, found: Found, bytes: &[u8], skipped: u64) -> Match {
        let cut = |range: (usize, usize)| bytes[range.0..range.1].to_vec();
        Match {
            which,
            before: bytes[..found.start].to_vec(),
            skipped,
            groups: found.groups.into_iter().map(|group| group.map(cut)).collect(),
            names: found.names,
        }
    }

    /// The bytes that matched.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.group(0).unwrap_or_default()
    }

    /// The bytes of a group of a regular expression; 0 is the whole match.
    #[must_use]
    pub fn group(&self, number: usize) -> Option<&[u8]> {
        self.groups.get(number)?.as_deref()
    }

    /// The bytes of a named group: `(?<name>…)`.
    #[must_use]
    pub fn name(&self, name: &str) -> Option<&[u8]> {
        self.group(self.names.iter().position(|known| known.as_deref() == Some(name))?)
    }

    /// What the shell said before it, as text; invalid UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn before_text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.before)
    }

    /// The bytes that matched, as text; invalid UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(self.bytes())
    }
}

/// When a wait is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    at: Option<Instant>,
    limit: Duration,
}

impl Deadline {
    pub fn after(limit: Option<Duration>) -> Deadline {
        Deadline { at: limit.and_then(|l| Instant::now().checked_add(l)), limit: limit.unwrap_or_default() }
    }

    /// The one that comes first.
    pub fn or_after(self, limit: Duration) -> Deadline {
        let other = Deadline::after(Some(limit));
        match (self.at, other.at) {
            (Some(a), Some(b)) if a <= b => self,
            (Some(_), None) => self,
            _ => other,
        }
    }

    fn left(&self) -> Option<Duration> {
        self.at.map(|at| at.saturating_duration_since(Instant::now()))
    }
}

/// What has come from the shell and was not handed out yet.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub bytes: Vec<u8>,
    /// Bytes that were not kept before those.
    pub skipped: u64,
}

impl Inbox {
    /// Takes everything up to here out.
    pub fn consume(&mut self, n: usize) {
        self.bytes.drain(..n);
        self.skipped = 0;
    }
}

impl Shell {
    /// Waits until one of the patterns is found in what the shell says, and takes everything up to its end out of the
    /// output. What comes behind is for the next call, or for [`Read`](std::io::Read).
    ///
    /// Of several matches the one that begins first counts; of those that begin together, that of the pattern named
    /// first. Prompts that a [`Responder`](crate::Responder) knows are answered meanwhile. A terminal echoes what is
    /// typed: look for something that the echo of the command does not contain.
    ///
    /// # Errors
    ///
    /// [`Error::Shell`] when `deadline` passes, the shell ends or the connection is lost; it carries what the shell had
    /// said, which the next call still searches.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # fn main() -> threadline::Result<()> {
    /// # let client = threadline::Client::connect("alice@web1")?;
    /// use std::time::Duration;
    /// use threadline::Pattern;
    ///
    /// const SOON: Duration = Duration::from_secs(10);
    /// let mut shell = client.invoke_shell()?;
    /// shell.send_line("ftp mirror")?;
    /// let answer = shell.expect([Pattern::regex(r"Name \((\S+)\): ")?, "refused".into()], SOON)?;
    /// if answer.which == 0 {
    ///     shell.send_line("anonymous")?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn expect(&mut self, patterns: impl Into<Patterns>, deadline: Duration) -> Result<Match> {
        let patterns = patterns.into();
        let deadline = Deadline::after(Some(deadline));
        let mut answering = Answering::default();
        let mut searched = 0;
        loop {
            if !answering.holds_back(&self.responders, &mut self.inbox) {
                if let Some((which, found)) = patterns.find(&self.inbox.bytes, searched) {
                    let end = found.end;
                    let found = Match::new(which, found, &self.inbox.bytes, self.inbox.skipped);
                    self.inbox.consume(end);
                    return Ok(found);
                }
                searched = self.inbox.bytes.len();
            }
            self.answer(&mut answering, &deadline)?;
            if self.inbox.bytes.len() > KEPT {
                let gone = KEPT / 2;
                self.inbox.bytes.drain(..gone);
                self.inbox.skipped += gone as u64;
                searched = searched.saturating_sub(gone);
                answering.dropped(gone);
            }
            self.more(&deadline, || format!("waiting for {patterns}"))?;
        }
    }

    /// Waits for more output. The end of it is an error here.
    pub(super) fn more(&mut self, deadline: &Deadline, doing: impl Fn() -> String) -> Result<()> {
        self.reader.set_timeout(deadline.left());
        let read = self.reader.fill().map(|bytes| {
            self.inbox.bytes.extend_from_slice(bytes);
            bytes.len()
        });
        self.reader.set_timeout(self.read_timeout);
        match read {
            Ok(0) => Err(self.ended(&doing())),
            Ok(n) => {
                self.reader.consume(n);
                Ok(())
            }
            Err(Error::Timeout { .. }) if deadline.left() == Some(Duration::ZERO) => {
                Err(self.failed(&doing(), ShellFailure::Timeout(deadline.limit)))
            }
            Err(error) => Err(self.failed(&doing(), ShellFailure::Failed(error))),
        }
    }

    /// Types these bytes, whatever state the shell is in.
    pub(super) fn type_raw(&mut self, bytes: &[u8], deadline: &Deadline, doing: &str) -> Result<()> {
        self.writer.set_write_timeout(deadline.left().or(self.write_timeout));
        let written = std::io::Write::write_all(&mut self.writer, bytes);
        self.writer.set_write_timeout(self.write_timeout);
        match written.map_err(super::our_error) {
            Ok(()) => Ok(()),
            Err(Error::Timeout { .. }) if deadline.left() == Some(Duration::ZERO) => {
                Err(self.failed(doing, ShellFailure::Timeout(deadline.limit)))
            }
            // It has ended; what it said last is worth having.
            Err(Error::BrokenPipe) => loop {
                match self.reader.fill().map(<[u8]>::to_vec) {
                    Ok(bytes) if !bytes.is_empty() => {
                        self.inbox.bytes.extend_from_slice(&bytes);
                        self.reader.consume(bytes.len());
                    }
                    _ => break Err(self.ended(doing)),
                }
            },
            Err(error) => Err(self.failed(doing, ShellFailure::Failed(error))),
        }
    }

    fn ended(&self, doing: &str) -> Error {
        let status = self.channel.wait([true, false], &Limit::after(Some(LAST_WORD)));
        self.failed(doing, ShellFailure::Ended(status.ok()))
    }

    /// The error for a wait that failed, with what the shell said; secrets that it was given are taken out of that.
    pub(super) fn failed(&self, doing: &str, reason: ShellFailure) -> Error {
        let mut seen = Zeroizing::new(self.inbox.bytes.clone());
        for responder in &self.responders {
            responder.scrub(&mut seen);
        }
        Error::Shell(Box::new(ShellError { doing: doing.to_owned(), reason, seen: std::mem::take(&mut *seen) }))
    }

    /// Answers the prompt that the output ends with, if a responder knows it.
    pub(super) fn answer(&mut self, answering: &mut Answering, deadline: &Deadline) -> Result<()> {
        let Some(which) = answering.asked(&self.responders, &self.inbox.bytes) else { return Ok(()) };
        if !answering.may_answer(&self.responders, which) {
            let prompt = self.responders[which].prompt().to_string();
            return Err(self.failed(&format!("answering {prompt}"), ShellFailure::AskedAgain));
        }
        log::debug!("answering a prompt");
        let line = self.responders[which].line();
        self.type_raw(&line, deadline, "answering a prompt")?;
        answering.answered(which, self.inbox.bytes.len());
        Ok(())
    }
}
