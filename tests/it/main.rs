//! The integration tests: one binary, one file per subject.

/// The tests of the three tools below.
mod fixtures;
/// A TCP proxy that delays, slows, splits, falsifies, stalls and cuts.
mod proxy;
/// The throw-away sshd, the same that `threadline demo` starts.
#[path = "../../src/bin/threadline/sshd.rs"]
mod sshd;
/// Deadlines, counts of what this process uses, hashes, data.
mod util;


/// An SSH server that misbehaves as told.
mod rogue;
/// The rogue server against the real ssh client.
mod rogue_fixture;
/// Connecting and running commands.
mod smoke;
