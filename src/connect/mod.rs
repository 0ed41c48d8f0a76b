//! Everything before a connection is up, straight-line and under one deadline.

pub(crate) mod agent;
pub(crate) mod auth;
pub(crate) mod handshake;
pub(crate) mod host_key;
pub(crate) mod key_file;
pub(crate) mod offer;
pub(crate) mod target;
pub(crate) mod tcp;

pub use host_key::{AutoAddPolicy, HostKey, HostName, MissingHostKeyPolicy, RejectPolicy, Verdict, WarningPolicy};
pub use target::Target;
