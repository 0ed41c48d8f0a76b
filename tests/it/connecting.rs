//! Getting a connection: targets, host keys, authentication, limits.

/// Who we are: passwords, keys, agents.
mod auth;
/// Whom we talk to: known hosts and policies.
mod host_keys;
/// Where to, how fast, and with which algorithms.
mod targets;

use std::path::Path;
use std::process::Command;

use crate::connect::PATIENCE;
use crate::util::output_within;

/// Runs ssh-keygen, without a terminal to ask on.
#[track_caller]
fn ssh_keygen(arguments: &[&str], directory: &Path) {
    let mut command = Command::new("ssh-keygen");
    command.arg("-q").args(arguments).current_dir(directory);
    let output = output_within(PATIENCE, &mut command);
    assert!(output.status.success(), "ssh-keygen {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
