//! How a remote command ended.

use std::fmt;

/// How a remote command ended (RFC 4254 §6.10).
///
/// Success is `Code(0)` that the server really sent; a command that was killed, or whose status never came, is none.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitStatus {
    /// The command ended with this status; 0 to 255 with every known server.
    Code(u32),
    /// A signal ended the command.
    Signal(ExitSignal),
    /// The channel was closed without a word about the command.
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
