//! Blocking SSH with threads.
#![deny(missing_docs)]

mod connect;
mod connection;
mod error;
mod exit_status;
mod transport;
mod lines;
mod printer;

pub use connect::{
    AutoAddPolicy, HostKey, HostName, MissingHostKeyPolicy, RejectPolicy, Target, Verdict, WarningPolicy,
};
pub use error::{AuthAttempt, AuthError, Error, HostKeyError, Phase, Received, Result, Stream};

/// The bodies of the fuzz targets. Not part of the public API.
#[doc(hidden)]
#[cfg(feature = "_faults")]
pub mod fuzzing {
    pub use crate::connection::fuzzing::{connection, wire};
}
pub use lines::{LineBuffer, LineEnd, Lines, Piece, Pieces, DEFAULT_LINE_LIMIT};
pub use printer::{
    Batch, ChunkSource, Ended, Ending, FromReader, OutputEnd, Printed, Printer, PrinterBuilder, Sink, Stopper, When,
    BATCHES_PER_SOURCE, DEFAULT_PATIENCE, DEFAULT_QUEUE,
};
