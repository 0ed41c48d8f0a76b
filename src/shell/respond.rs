//! Answers to prompts, given while something else is waited for.

use std::fmt;

use zeroize::{Zeroize, Zeroizing};

use super::expect::Inbox;
use super::pattern::Pattern;
use super::Shell;

/// A prompt and the line to answer it with: sudo's question for a password, a pager's `--More--`.
///
/// A prompt is answered when the output *ends* with it, but for spaces; the same words in the middle of other output are
/// not. A secret is never logged, shown by `Debug`, or part of an error, is overwritten when the responder is dropped,
/// and is taken out of the output should the terminal echo it right behind the prompt. What the connection's queue holds
/// of it until it is encrypted is not overwritten.
///
/// A program that you do not trust can print any prompt. `sudo -p` takes one of your own, which nobody can guess.
///
/// # Examples
///
/// ```no_run
/// # fn ask_for_password() -> String { String::new() }
/// # fn main() -> threadline::Result<()> {
/// # let client = threadline::Client::connect("alice@web1")?;
/// use threadline::Responder;
///
/// let mut shell = client.invoke_shell()?;
/// shell.respond(Responder::secret("[sudo] password for alice:", ask_for_password()));
/// let out = shell.run("sudo id -u")?;
/// # let _ = out;
/// # Ok(())
/// # }
/// ```
pub struct Responder {
    prompt: Pattern,
    answer: Zeroizing<Vec<u8>>,
    secret: bool,
    end: &'static [u8],
    times: u32,
}

/// A prompt is no longer than this.
const LONGEST_PROMPT: usize = 4096;

impl Responder {
    /// Answers with a secret: once in each [`expect`](Shell::expect) or [`run`](Shell::run). When the prompt comes again
    /// the secret was wrong, and the call fails with [`AskedAgain`](crate::ShellFailure::AskedAgain).
    #[must_use]
    pub fn secret(prompt: impl Into<Pattern>, secret: impl Into<Vec<u8>>) -> Responder {
        Responder { prompt: prompt.into(), answer: Zeroizing::new(secret.into()), secret: true, end: b"\r", times: 1 }
    }

    /// Answers with a text, as often as it is asked.
    #[must_use]
    pub fn text(prompt: impl Into<Pattern>, text: impl Into<Vec<u8>>) -> Responder {
        let answer = Zeroizing::new(text.into());
        Responder { prompt: prompt.into(), answer, secret: false, end: b"\r", times: u32::MAX }
    }

    /// Answers at most so often in each call.
    #[must_use]
    pub fn times(mut self, times: u32) -> Responder {
        self.times = times;
        self
    }

    /// Sends no Return key behind the answer, as a pager wants it.
    #[must_use]
    pub fn without_return(mut self) -> Responder {
        self.end = b"";
        self
    }

    pub(super) fn prompt(&self) -> &Pattern {
        &self.prompt
    }

    /// What to type.
    pub(super) fn line(&self) -> Zeroizing<Vec<u8>> {
        // No growth: that would leave a copy behind.
        let mut line = Zeroizing::new(Vec::with_capacity(self.answer.len() + self.end.len()));
        line.extend_from_slice(&self.answer);
        line.extend_from_slice(self.end);
        line
    }

    /// Whether the output ends with the prompt.
    fn asked(&self, bytes: &[u8]) -> bool {
        let tail = &bytes[bytes.len().saturating_sub(LONGEST_PROMPT)..];
        self.prompt.last(tail).is_some_and(|(_, end)| tail[end..].iter().all(|byte| *byte == b' '))
    }

    /// Takes a secret out of bytes that go into an error.
    pub(super) fn scrub(&self, bytes: &mut Zeroizing<Vec<u8>>) {
        if !self.secret || self.answer.is_empty() {
            return;
        }
        let places: Vec<_> = memchr::memmem::find_iter(bytes, &*self.answer).collect();
        if places.is_empty() {
            return;
        }
        let mut clean = Vec::with_capacity(bytes.len() + places.len() * HIDDEN.len());
        let mut from = 0;
        for at in places {
            clean.extend_from_slice(&bytes[from..at]);
            clean.extend_from_slice(HIDDEN);
            from = at + self.answer.len();
        }
        clean.extend_from_slice(&bytes[from..]);
        *bytes = Zeroizing::new(clean);
    }
}

/// Stands for a secret in an error.
const HIDDEN: &[u8] = b"[hidden]";

impl fmt::Debug for Responder {
    /// Without the answer.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").field("prompt", &self.prompt).field("times", &self.times).finish_non_exhaustive()
    }
}

/// What was answered during one call.
#[derive(Debug, Default)]
pub(super) struct Answering {
    /// How often each responder has answered.
    counts: Vec<u32>,
    /// Output before this place has been answered.
    from: usize,
    /// The last answer, and where its echo would be.
    echo: Option<(usize, usize)>,
}

impl Answering {
    /// Which responder's prompt the output ends with.
    pub fn asked(&mut self, responders: &[Responder], bytes: &[u8]) -> Option<usize> {
        self.from = self.from.min(bytes.len());
        let new = &bytes[self.from..];
        responders.iter().position(|responder| responder.asked(new))
    }

    pub fn may_answer(&mut self, responders: &[Responder], which: usize) -> bool {
        self.counts.resize(responders.len(), 0);
        self.counts[which] < responders[which].times
    }

    pub fn answered(&mut self, which: usize, at: usize) {
        self.counts[which] += 1;
        self.from = at;
        self.echo = Some((which, at));
    }

    /// Whether the answer may be about to be echoed: then the output must not be used yet. A whole echo is taken out.
    pub fn holds_back(&mut self, responders: &[Responder], inbox: &mut Inbox) -> bool {
        let Some((which, at)) = self.echo else { return false };
        let responder = &responders[which];
        let bytes = inbox.bytes.get(at..).unwrap_or_default();
        if !responder.secret || bytes.is_empty() || responder.answer.is_empty() {
            return false;
        }
        if bytes.starts_with(&responder.answer) {
            let end = at + responder.answer.len();
            inbox.bytes[at..end].zeroize();
            inbox.bytes.drain(at..end);
            self.echo = None;
            return false;
        }
        let held = responder.answer.starts_with(bytes);
        if !held {
            self.echo = None;
        }
        held
    }

    /// The first bytes of the output have gone.
    pub fn dropped(&mut self, n: usize) {
        self.from = self.from.saturating_sub(n);
        self.echo = self.echo.and_then(|(which, at)| Some((which, at.checked_sub(n)?)));
    }
}

impl Shell {
    /// Answers this prompt from now on, whenever it comes while [`expect`](Shell::expect) or [`run`](Shell::run) wait.
    /// Of several responders that know a prompt the one that was added first answers.
    pub fn respond(&mut self, responder: Responder) {
        self.responders.push(responder);
    }

    /// Forgets all responders, and overwrites their secrets.
    pub fn stop_responding(&mut self) {
        self.responders.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox(bytes: &[u8]) -> Inbox {
        Inbox { bytes: bytes.to_vec(), skipped: 0 }
    }

    #[test]
    fn a_prompt_counts_at_the_end_of_the_output_only() {
        let responder = Responder::secret("Password:", "hunter2");
        assert!(responder.asked(b"motd\r\nPassword:"));
        assert!(responder.asked(b"Password: Password:  "));
        assert!(!responder.asked(b"Password: no\r\n"));
        assert!(!responder.asked(b"Password:\r\n"));
        assert_eq!(*responder.line(), b"hunter2\r");
    }

    #[test]
    fn an_echo_is_held_back_until_it_is_whole_and_then_gone() {
        let responders = [Responder::secret("Password:", "hunter2")];
        let mut answering = Answering::default();
        assert_eq!(answering.asked(&responders, b"Password:"), Some(0));
        assert!(answering.may_answer(&responders, 0));
        answering.answered(0, 9);
        assert!(!answering.may_answer(&responders, 0));
        assert_eq!(answering.asked(&responders, b"Password:"), None);

        let mut seen = inbox(b"Password:hunt");
        assert!(answering.holds_back(&responders, &mut seen));
        seen.bytes.extend_from_slice(b"er2\r\nok");
        assert!(!answering.holds_back(&responders, &mut seen));
        assert_eq!(seen.bytes, b"Password:\r\nok");

        answering.answered(0, 9);
        assert!(!answering.holds_back(&responders, &mut inbox(b"Password:\r\nhunter2")));
    }

    #[test]
    fn a_secret_is_in_no_debug_text_and_in_no_error() {
        let responder = Responder::secret("Password:", "hunter2");
        assert!(!format!("{responder:?}").contains("hunter2"));
        let mut seen = Zeroizing::new(b"hunter2 and hunter2!".to_vec());
        responder.scrub(&mut seen);
        assert_eq!(*seen, b"[hidden] and [hidden]!");
    }
}
