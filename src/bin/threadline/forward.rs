//! `threadline forward`: tunnels that stay up, or stdin and stdout through the server.

mod backoff;
mod ready;
mod report;
mod spec;
mod stdio;
mod supervisor;
mod worker;

use std::ffi::OsString;
use std::time::Duration;

use threadline::{Endpoint, Error};

use crate::connect;
use crate::interrupt::Interrupts;
use crate::report::Failure;

pub(crate) use backoff::Backoff;
pub(crate) use spec::{Letter, Spec};

/// The exit code for a failure of our own, as in ssh.
const LIKE_SSH: u8 = 255;
/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_secs(5);

/// What to forward, by way of whom.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub connect: connect::Plan,
    pub what: What,
}

/// What to forward.
#[derive(Debug, Clone)]
pub(crate) enum What {
    /// Our stdin and stdout, to this place.
    Stdio(Endpoint),
    Tunnels(Tunnels),
}

/// Forwards that are kept up.
#[derive(Debug, Clone)]
pub(crate) struct Tunnels {
    /// At least one.
    pub specs: Vec<Spec>,
    /// One that fails ends all.
    pub exit_on_failure: bool,
    /// A lost connection is made again.
    pub reconnect: bool,
    pub backoff: Backoff,
    /// Told when all stand for the first time.
    pub ready_fd: Option<u32>,
    /// Run when all stand for the first time.
    pub ready_command: Option<OsString>,
    /// NDJSON on stdout in place of lines on stderr.
    pub json: bool,
}

/// Runs the plan; returns the exit code.
pub(crate) fn run(plan: Plan) -> Result<u8, Failure> {
    let interrupts = Interrupts::watch().map_err(|e| failed("wait for signals", &e))?;
    match plan.what {
        What::Stdio(target) => stdio::run(plan.connect, &target),
        What::Tunnels(tunnels) => supervisor::run(plan.connect, tunnels, &interrupts),
    }
}

fn failed(what: &str, error: &std::io::Error) -> Failure {
    Failure::new(format!("cannot {what}: {error}"), crate::INTERNAL)
}

/// An error with what to do about it. A lost connection speaks for itself: nothing of a command's was lost with it.
fn describe(error: &Error) -> String {
    match error {
        Error::ConnectionLost { .. } => error.to_string(),
        error => crate::report::describe(error),
    }
}
