//! Shells that are none: devices that print a prompt and take one command a line.

use std::time::Duration;

use super::expect::Deadline;
use super::pattern::Pattern;
use super::respond::Answering;
use super::Shell;
use crate::child::Output;
use crate::error::{Error, Result, ShellFailure};
use crate::exit_status::ExitStatus;

/// How long a device may take to show its first prompt.
const START: Duration = Duration::from_secs(60);

/// How [`Shell::run`] works on a device whose command line is no Unix shell: a switch, a router, a console server.
///
/// A command is typed, and its output is what comes until the last line is the prompt again. There is no exit status:
/// it is [`ExitStatus::Unknown`], which is no success. [`error`](Profile::error) tells refusals by their text.
///
/// # Examples
///
/// ```no_run
/// # fn main() -> threadline::Result<()> {
/// # let client = threadline::Client::connect("admin@switch1")?;
/// use threadline::{Pattern, Profile};
///
/// let mut shell = client.invoke_shell()?;
/// shell.set_profile(
///     Profile::new(Pattern::regex(r"^[\w.-]+(\([\w-]+\))?[>#]$")?)
///         .setup("terminal length 0")
///         .pager("--More--", " ")
///         .error(Pattern::regex(r"(?m)^% ")?),
/// );
/// let version = shell.run("show version")?;
/// print!("{}", String::from_utf8_lossy(&version.stdout));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Profile {
    prompt: Pattern,
    setup: Vec<String>,
    pagers: Vec<(Pattern, Vec<u8>)>,
    error: Option<Pattern>,
    line_end: Vec<u8>,
    ready: bool,
}

impl Profile {
    /// The prompt, as a pattern that is found in the last line when the device waits for a command; spaces at the
    /// line's end and escape sequences in it are taken out before.
    pub fn new(prompt: impl Into<Pattern>) -> Profile {
        Profile {
            prompt: prompt.into(),
            setup: Vec::new(),
            pagers: Vec::new(),
            error: None,
            line_end: b"\r".to_vec(),
            ready: false,
        }
    }

    /// A command to run before the first one, such as `terminal length 0`, which turns the pager off. May be repeated.
    pub fn setup(mut self, command: impl Into<String>) -> Profile {
        self.setup.push(command.into());
        self
    }

    /// What a pager that cannot be turned off shows in the last line, and the key that it wants. The pager's line is
    /// taken out of the output.
    pub fn pager(mut self, shows: impl Into<Pattern>, key: impl Into<Vec<u8>>) -> Profile {
        self.pagers.push((shows.into(), key.into()));
        self
    }

    /// What the output of a refused command contains. [`Shell::run`] then fails with
    /// [`Refused`](crate::ShellFailure::Refused).
    pub fn error(mut self, pattern: impl Into<Pattern>) -> Profile {
        self.error = Some(pattern.into());
        self
    }

    /// What the Return key sends: `\r`, unless set.
    pub fn line_end(mut self, bytes: impl Into<Vec<u8>>) -> Profile {
        self.line_end = bytes.into();
        self
    }

    fn prompts(&self, bytes: &[u8]) -> bool {
        let line = plain(last_line(bytes));
        self.prompt.last(line.trim_ascii_end()).is_some()
    }
}

impl Shell {
    /// Lets [`run`](Shell::run) work by prompt from now on. The setup is done before the first command.
    pub fn set_profile(&mut self, profile: Profile) {
        self.profile = Some(profile);
    }

    pub(super) fn run_at_prompt(&mut self, command: &[u8], deadline: &Deadline) -> Result<Output> {
        if command.contains(&b'\n') || command.contains(&b'\r') {
            return Err(Error::invalid("a device takes one line at a time: run the lines one by one"));
        }
        let Some(mut profile) = self.profile.take() else {
            return Err(Error::Internal("no profile".into()));
        };
        let ran = self.prepare(&mut profile, deadline).and_then(|()| self.type_and_wait(&profile, command, deadline));
        self.profile = Some(profile);
        ran
    }

    fn prepare(&mut self, profile: &mut Profile, deadline: &Deadline) -> Result<()> {
        if profile.ready {
            return Ok(());
        }
        self.wait_for_prompt(profile, 0, &deadline.or_after(START), "waiting for the device's first prompt")?;
        for command in profile.setup.clone() {
            self.type_and_wait(profile, command.as_bytes(), deadline)?;
        }
        profile.ready = true;
        Ok(())
    }

    fn type_and_wait(&mut self, profile: &Profile, command: &[u8], deadline: &Deadline) -> Result<Output> {
        // What was said before belongs to nobody.
        self.inbox.consume(self.inbox.bytes.len());
        self.type_raw(&[command, &profile.line_end].concat(), deadline, "sending the command")?;
        self.wait_for_prompt(profile, 1, deadline, "waiting for the prompt")?;
        let said = &self.inbox.bytes;
        let output = plain(&said[..said.len() - last_line(said).len()]);
        let output = without_echo(&output, command).to_vec();
        let refused = profile.error.as_ref().is_some_and(|pattern| pattern.last(&output).is_some());
        self.inbox.bytes.clear();
        if refused {
            self.inbox.bytes = output;
            let error = self.failed("running the command", ShellFailure::Refused);
            self.inbox.bytes.clear();
            return Err(error);
        }
        Ok(Output { status: ExitStatus::Unknown, stdout: output, stderr: Vec::new() })
    }

    /// Waits until the last line, which has at least so many before it, is the prompt.
    fn wait_for_prompt(&mut self, profile: &Profile, lines: usize, deadline: &Deadline, doing: &str) -> Result<()> {
        let mut answering = Answering::default();
        loop {
            if !answering.holds_back(&self.responders, &mut self.inbox) {
                let bytes = &self.inbox.bytes;
                let enough = lines == 0 || memchr::memchr(b'\n', bytes).is_some();
                if enough && profile.prompts(bytes) {
                    return Ok(());
                }
                let last = bytes.len() - last_line(bytes).len();
                let paged = profile.pagers.iter().find_map(|(shows, key)| Some((shows.last(&bytes[last..])?, key)));
                if let Some(((start, end), key)) = paged {
                    self.inbox.bytes.drain(last + start..last + end);
                    self.type_raw(key, deadline, "answering the pager")?;
                }
            }
            self.answer(&mut answering, deadline)?;
            self.more(deadline, || doing.to_owned())?;
        }
    }
}

fn last_line(bytes: &[u8]) -> &[u8] {
    memchr::memrchr(b'\n', bytes).map_or(bytes, |at| &bytes[at + 1..])
}

/// The output without the line that was typed, if it came back.
fn without_echo<'a>(output: &'a [u8], command: &[u8]) -> &'a [u8] {
    let end = memchr::memchr(b'\n', output).map_or(output.len(), |at| at + 1);
    let (first, rest) = output.split_at(end);
    if first.trim_ascii_end().ends_with(command.trim_ascii_end()) {
        rest
    } else {
        output
    }
}

/// What a screen would show: escape sequences are gone; backspaces and carriage returns have overwritten what they
/// went back over. Lines end with `\n`.
fn plain(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut line = Vec::new();
    let mut column: usize = 0;
    let mut rest = bytes;
    while let [byte, after @ ..] = rest {
        rest = after;
        match byte {
            b'\n' => {
                out.append(&mut line);
                out.push(b'\n');
                column = 0;
            }
            b'\r' => column = 0,
            b'\x08' => column = column.saturating_sub(1),
            b'\x1b' => {
                let (length, last) = escape_sequence(rest);
                if last == Some(b'K') {
                    line.truncate(column);
                }
                rest = &rest[length..];
            }
            _ => {
                if column < line.len() {
                    line[column] = *byte;
                } else {
                    line.push(*byte);
                }
                column += 1;
            }
        }
    }
    // What a pager's line was erased with are spaces.
    out.append(&mut line);
    out
}

/// The length of what follows ESC, and the last byte of a control sequence.
fn escape_sequence(bytes: &[u8]) -> (usize, Option<u8>) {
    match bytes {
        [b'[', parameters @ ..] => match parameters.iter().position(|b| (0x40..0x7f).contains(b)) {
            Some(at) => (at + 2, Some(parameters[at])),
            None => (bytes.len(), None),
        },
        [b']', text @ ..] => {
            let end = text.iter().position(|b| *b == b'\x07' || *b == b'\x1b');
            (end.map_or(bytes.len(), |at| at + 2), None)
        }
        [_, ..] => (1, None),
        [] => (0, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_overwrites_what_is_gone_back_over() {
        for (said, shown) in [
            (&b"a\r\nb\r\n"[..], &b"a\nb\n"[..]),
            (b"\r        \rgi0/1 up\r\n", b"gi0/1 up\n"),
            (b"xyz\x08\x08\x08   \x08\x08\x08next\r\n", b"next\n"),
            (b"\x1b[1;31mred\x1b[0m\r\n", b"red\n"),
            (b"long line\r\x1b[Kshort\r\n", b"short\n"),
            (b"\x1b]0;title\x07text\x1b", b"text"),
            (b"caf\xc3\xa9 \xff\n", b"caf\xc3\xa9 \xff\n"),
        ] {
            assert_eq!(plain(said), shown, "{said:?}");
        }
    }

    #[test]
    fn the_prompt_is_looked_for_in_the_last_line_only() {
        let profile = Profile::new(Pattern::regex(r"^[\w-]+[>#]$").unwrap());
        assert!(profile.prompts(b"text\r\nsw-1# "));
        assert!(profile.prompts(b"\x1b[1msw-1>\x1b[0m"));
        assert!(!profile.prompts(b"sw-1#\r\ntext"));
        assert!(!profile.prompts(b"sw-1# show"));
    }

    #[test]
    fn the_typed_line_is_taken_out_when_it_came_back() {
        assert_eq!(without_echo(b"show clock\n12:00\n", b"show clock"), b"12:00\n");
        assert_eq!(without_echo(b"sw1#show clock\n12:00\n", b"show clock"), b"12:00\n");
        assert_eq!(without_echo(b"12:00\n", b"show clock"), b"12:00\n");
    }
}
