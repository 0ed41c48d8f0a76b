//! Blocking SSH with threads.
#![deny(missing_docs)]

mod connection;
mod error;

pub use error::{AuthAttempt, AuthError, Error, HostKeyError, Phase, Received, Result, Stream};

/// The bodies of the fuzz targets. Not part of the public API.
#[doc(hidden)]
#[cfg(feature = "_faults")]
pub mod fuzzing {
    pub use crate::connection::fuzzing::{connection, wire};
}
