//! A pseudo-terminal to ask for: type, size, modes.

use crate::error::{Error, Result};
use crate::transport::message::{self, PtySize};

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
