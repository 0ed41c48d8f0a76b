//! The integration tests: one binary, one file per subject.

mod fixtures;
#[path = "../../src/bin/threadline/sshd.rs"]
mod sshd;
