//! How a remote command ended.

use std::fmt;

/// How a remote command ended (RFC 4254 §6.10).
///
/// Success is `Code(0)` that the server really sent; a command that was killed, or whose status never came, is none.
/// What a number or a signal means is up to the command; of a login shell, 126 and 127 are "cannot be run" and "not
/// found", and 128 + n is a program that a signal n ended while the shell waited for it: only when the signal ended the
/// last process, the one that the server had started, it is a [`Signal`](ExitStatus::Signal) here.
///
/// # Examples
///
/// ```
/// use threadline::ExitStatus;
///
/// let status = ExitStatus::Code(3);
/// assert!(!status.success());
/// assert_eq!(status.to_string(), "exit status 3");
/// let code = status.code().unwrap_or(255); // as ssh does for a signal and for a status that never came
/// # assert_eq!(code, 3);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitStatus {
    /// The command ended with this status; 0 to 255 with every known server.
    Code(u32),
    /// A signal ended the command.
    Signal(ExitSignal),
    /// The channel was closed without a word about the command. A connection that is lost is an error instead.
    Unknown,
}

/// The signal that ended a remote command.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct ExitSignal {
    /// The name without "SIG", e.g. `TERM`.
    pub name: String,
    /// Whether the server says that memory was dumped.
    pub core_dumped: bool,
    /// The server's words, often empty. Escape them before showing them.
    pub message: String,
}

impl ExitStatus {
    /// Whether the command ended with status 0, and the server said so.
    #[must_use]
    pub fn success(&self) -> bool {
        *self == ExitStatus::Code(0)
    }

    /// The status, if the command ended with one.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        match self {
            ExitStatus::Code(code) => Some(*code),
            _ => None,
        }
    }

    /// The signal's name without "SIG", if one ended the command.
    #[must_use]
    pub fn signal(&self) -> Option<&str> {
        match self {
            ExitStatus::Signal(signal) => Some(&signal.name),
            _ => None,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitStatus::Code(code) => write!(f, "exit status {code}"),
            ExitStatus::Signal(signal) => {
                write!(f, "signal {}", crate::error::escape(&signal.name))?;
                if signal.core_dumped {
                    f.write_str(" (core dumped)")?;
                }
                if !signal.message.is_empty() {
                    write!(f, ": {}", crate::error::escape(&signal.message))?;
                }
                Ok(())
            }
            ExitStatus::Unknown => f.write_str("no exit status"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(core_dumped: bool, message: &str) -> ExitStatus {
        ExitStatus::Signal(ExitSignal { name: "SEGV".into(), core_dumped, message: message.into() })
    }

    #[test]
    fn only_a_zero_that_was_sent_is_success() {
        assert!(ExitStatus::Code(0).success());
        for other in [ExitStatus::Code(1), signal(false, ""), ExitStatus::Unknown] {
            assert!(!other.success(), "{other}");
        }
        assert_eq!((ExitStatus::Code(7).code(), ExitStatus::Code(7).signal()), (Some(7), None));
        assert_eq!((signal(true, "").code(), signal(true, "").signal()), (None, Some("SEGV")));
    }

    #[test]
    fn each_ending_is_told_in_words_and_the_servers_are_escaped() {
        for (status, expected) in [
            (ExitStatus::Code(255), "exit status 255"),
            (signal(false, ""), "signal SEGV"),
            (signal(true, "bad \x1b[2Jaddress"), "signal SEGV (core dumped): bad \\u{1b}[2Jaddress"),
            (ExitStatus::Unknown, "no exit status"),
        ] {
            assert_eq!(status.to_string(), expected);
        }
    }
}
