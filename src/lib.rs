//! Blocking SSH with threads.
#![deny(missing_docs)]

mod error;

pub use error::{AuthAttempt, AuthError, Error, HostKeyError, Phase, Received, Result, Stream};
