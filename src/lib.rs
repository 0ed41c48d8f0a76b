//! Blocking SSH with threads.
#![deny(missing_docs)]

mod error;
mod lines;
mod printer;

pub use error::{AuthAttempt, AuthError, Error, HostKeyError, Phase, Received, Result, Stream};
pub use lines::{LineBuffer, LineEnd, Lines, Piece, Pieces, DEFAULT_LINE_LIMIT};
pub use printer::{
    Batch, ChunkSource, Ended, Ending, FromReader, OutputEnd, Printed, Printer, PrinterBuilder, Sink, Stopper, When,
    BATCHES_PER_SOURCE, DEFAULT_PATIENCE, DEFAULT_QUEUE,
};
