//! Blocking SSH with threads.
#![deny(missing_docs)]

mod connect;
mod connection;
mod error;
mod exit_status;
mod transport;

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
