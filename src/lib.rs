//! Blocking SSH with threads.
#![deny(missing_docs)]

mod connect;
mod error;

pub use connect::Target;
pub use error::{AuthAttempt, AuthError, Error, HostKeyError, Phase, Received, Result, Stream};
