//! Blocking SSH with threads.
#![deny(missing_docs)]

mod connect;
mod error;

pub use connect::{
    AutoAddPolicy, HostKey, HostName, MissingHostKeyPolicy, RejectPolicy, Target, Verdict, WarningPolicy,
};
pub use error::{AuthAttempt, AuthError, Error, HostKeyError, Phase, Received, Result, Stream};
