//! `threadline shell`: an interactive shell, or a command, on a terminal of the remote host's.

use std::io::{self, IsTerminal};

use threadline::{Client, Interacted, Interaction, Shell};

use crate::exec::{self, verdict, Kind, Terminal, GOODBYE, LIKE_SSH};
use crate::interrupt::Interrupts;
use crate::report::{self, Failure};
use crate::terminal;

/// What to run, where, and how to leave it.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The same as for `exec`, which does it where there is no terminal of ours.
    pub exec: exec::Plan,
    pub escape: Option<u8>,
}

/// Runs the plan; returns the exit code.
pub(crate) fn run(plan: &Plan) -> Result<u8, Failure> {
    if plan.exec.terminal == Terminal::No || !io::stdin().is_terminal() {
        return exec::run(plan.exec.clone());
    }
    let failed = |e| Failure::new(format!("cannot wait for signals: {e}"), LIKE_SSH);
    // Each of them ends us, and the terminal is put right then.
    let _interrupts = Interrupts::watch().map_err(failed)?;
    let client = exec::connect(&plan.exec.connect)?;
    let shell = start(plan, &client).map_err(|e| Failure::new(report::describe(&e), LIKE_SSH))?;
    let interacted = interact(plan, shell)?;
    let code = match interacted {
        Ok(Interacted::Ended(status)) => verdict::shell_code(&status),
        Ok(_) => {
            report::line(&format!("the connection to {} was closed by its user", plan.exec.connect.host));
            LIKE_SSH
        }
        Err(error) => {
            report::line(&report::describe(&error));
            LIKE_SSH
        }
    };
    if let Err(e) = client.close(GOODBYE) {
        log::debug!("goodbye: {e}");
    }
    Ok(code)
}

fn start(plan: &Plan, client: &Client) -> threadline::Result<Shell> {
    let pty = terminal::pty();
    match plan.exec.kind {
        Kind::LoginShell => client.invoke_shell_on(&pty),
        _ => client.sh(&plan.exec.commands[0]).pty(pty).spawn_shell(),
    }
}

/// The terminal is as it was when this returns, and when a signal or a panic ends us meanwhile.
fn interact(plan: &Plan, mut shell: Shell) -> Result<threadline::Result<Interacted>, Failure> {
    terminal::keep().map_err(|e| Failure::new(format!("cannot set up the terminal: {e}"), LIKE_SSH))?;
    #[cfg(feature = "_faults")]
    panic_if_asked();
    let interacted = shell.interact_with(&Interaction::new().escape(plan.escape));
    terminal::restore();
    Ok(interacted)
}

/// For a test: a fault of ours while the terminal is raw.
#[cfg(feature = "_faults")]
fn panic_if_asked() {
    if std::env::var_os("THREADLINE_TEST_PANIC").is_some() {
        let raw = terminal::RawMode::enter();
        panic!("asked for by a test ({})", raw.is_ok());
    }
}
