//! Blocking SSH with threads.
#![deny(missing_docs)]

mod connection;
mod error;
mod exit_status;
mod transport;

pub use error::{AuthAttempt, AuthError, Error, HostKeyError, Phase, Received, Result, Stream};
