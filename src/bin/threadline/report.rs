//! What we say ourselves: one line on stderr that tells what happened and what to do.

use std::io::{self, Write};

use threadline::{Error, HostKeyError, Phase};

use crate::terminal;

/// Why the tool ends without having done what it was asked for.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What happened and what to do.
    pub text: String,
    /// The exit code.
    pub code: u8,
}

/// The exit code of a wrong command line: nothing was started.
pub(crate) const USAGE: u8 = 2;

impl Failure {
    pub fn new(text: impl Into<String>, code: u8) -> Failure {
        Failure { text: text.into(), code }
    }

    pub fn usage(text: impl Into<String>) -> Failure {
        Failure::new(text, USAGE)
    }
}

/// Says one thing on stderr, in one write, so that lines of several threads do not mix.
pub(crate) fn line(text: &str) {
    let line = format!("threadline: {}\n", one_line(text));
    // There is nobody left to tell.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// An error of the library with what to do about it.
pub(crate) fn describe(error: &Error) -> String {
    match hint(error) {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

/// Text of others made safe for a terminal: control characters become escapes.
pub(crate) fn escape(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// A panic is a fault of ours: the terminal is put right and one line says so.
pub(crate) fn panics_in_one_line() {
    std::panic::set_hook(Box::new(|panic| {
        terminal::restore();
        let place = panic.location().map(|l| format!(" at {}:{}", l.file(), l.line())).unwrap_or_default();
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
        line(&format!("internal fault{place}: {}; please report it", text.unwrap_or("(no text)")));
    }));
}

fn one_line(text: &str) -> String {
    escape(&text.split('\n').map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" "))
}

/// What to do, in the tool's words; where the library's own serve, those.
fn hint(error: &Error) -> Option<String> {
    let text = match error {
        Error::Resolve { .. } => "check the name, or give the address",
        Error::Connect { .. } => "check that the host is up and that sshd listens there (-p PORT names another port)",
        Error::HostKey(e) => match &**e {
            HostKeyError::Unknown { .. } => {
                "compare the fingerprint with one from a source you trust, then connect once with --accept-new"
            }
            _ => return error.hint(),
        },
        Error::Auth(e) if e.attempts.iter().any(|a| a.outcome.contains("no passphrase was given")) => {
            "run it where a terminal can ask for the passphrase, or add the key to an agent (ssh-add)"
        }
        Error::Auth(e) if e.server_accepts.iter().any(|m| m == "password") => {
            "name the right user (-l) and key (-i), or give a password with --ask-pass"
        }
        Error::Auth(_) => "name the right user (-l) and key (-i), or start an agent that holds it",
        Error::Timeout { phase: Phase::Resolve | Phase::Connect | Phase::Banner | Phase::KeyExchange, .. } => {
            "check that the host is up, or allow more with --connect-timeout"
        }
        Error::Timeout { phase: Phase::Exec, .. } => {
            "the remote shell did not start the command; --no-kill sends its text unchanged, as a forced command needs"
        }
        Error::Handshake { .. } => "check that an SSH server listens there (-p PORT names another port), or see -vv",
        Error::ConnectionLost { .. } => "what had been received was printed; run it again when the host answers",
        Error::RequestRefused { request, .. } if request == "pty-req" => "run it without -t",
        Error::RequestRefused { request, .. } if request == "subsystem" => "the server has no such subsystem",
        _ => return error.hint(),
    };
    Some(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_text_contains_it_is_one_line_without_control_characters() {
        assert_eq!(one_line("a\n  b\n\nc\x1b[2J\r"), "a b c\\u{1b}[2J");
    }
}
