//! Everything before a connection is up, straight-line and under one deadline.

mod agent;
mod host_key;
mod target;
mod tcp;

pub use host_key::{AutoAddPolicy, HostKey, HostName, MissingHostKeyPolicy, RejectPolicy, Verdict, WarningPolicy};
pub use target::Target;
