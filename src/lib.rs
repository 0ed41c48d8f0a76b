//! Blocking SSH with threads.
#![deny(missing_docs)]

mod error;
mod lines;

pub use error::{AuthAttempt, AuthError, Error, HostKeyError, Phase, Received, Result, Stream};
pub use lines::{LineBuffer, LineEnd, Lines, Piece, Pieces, DEFAULT_LINE_LIMIT};
