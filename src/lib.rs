//! Blocking SSH with threads.
#![deny(missing_docs)]

#[cfg(windows)]
compile_error!("threadline needs a Unix: it waits with poll and talks to agents over Unix sockets");

mod about;
mod channel;
mod child;
mod client;
mod command;
mod connect;
mod connection;
mod error;
mod exit_status;
mod kill;
mod lines;
mod printer;
mod quote;
mod shell;
mod transport;

pub use about::{agent_keys, check_seam, known_hosts_files, versions, AgentKey, Versions};
pub use channel::{ChildStderr, ChildStdin, ChildStdout, Control, OnDrop};
pub use child::{Child, Line, Output, OutputLines};
pub use client::{Client, ClientBuilder};
pub use command::{Command, ExitPolicy, Stdio};
pub use connect::handshake::Algorithms;
pub use connect::{
    AutoAddPolicy, HostKey, HostName, MissingHostKeyPolicy, RejectPolicy, Target, Verdict, WarningPolicy,
};
pub use error::{AuthAttempt, AuthError, Error, HostKeyError, Phase, Received, Result, Stream};
pub use exit_status::{ExitSignal, ExitStatus};
pub use kill::KillOutcome;
pub use lines::{LineBuffer, LineEnd, Lines, Piece, Pieces, DEFAULT_LINE_LIMIT};
pub use printer::{
    Batch, ChunkSource, Ended, Ending, FromReader, OutputEnd, Printed, Printer, PrinterBuilder, Sink, Stopper, When,
    BATCHES_PER_SOURCE, DEFAULT_PATIENCE, DEFAULT_QUEUE,
};
pub use shell::{Pty, Shell, TerminalMode};
#[cfg(feature = "_faults")]
#[doc(hidden)]
pub use transport::fault::Fault;
pub use transport::message::{AtLimit, PtySize};

/// The bodies of the fuzz targets. Not part of the public API.
#[doc(hidden)]
#[cfg(feature = "_faults")]
pub mod fuzzing {
    pub use crate::connection::fuzzing::{connection, wire};
}
