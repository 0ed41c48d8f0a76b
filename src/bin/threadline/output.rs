//! What goes to our stdout: bytes, text, and NDJSON.

pub(crate) mod json;
pub(crate) mod raw;

use std::io::{self, IsTerminal};

use crate::report::Failure;
use crate::{interrupt, INTERNAL};

/// Prints a text of ours.
pub(crate) fn print(text: &[u8]) -> Result<u8, Failure> {
    match raw::write_all(rustix::stdio::stdout(), text) {
        Ok(()) => Ok(0),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(interrupt::end_by_broken_pipe()),
        Err(e) => Err(Failure::new(format!("cannot write to stdout: {e}"), INTERNAL)),
    }
}

/// Whether text of ours may be coloured: a terminal that can, and nobody who objects (<https://no-color.org>).
pub(crate) fn colour_is_welcome() -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|value| value == "dumb");
    io::stdout().is_terminal() && !no_color && !dumb
}
