//! `threadline exec`: one command as ssh runs it, or several at once over one connection.

mod many;
mod one;
pub(crate) mod verdict;

use std::time::Duration;

use threadline::{Client, Command, KillOutcome, Stdio};

use crate::connect::{self, NotConnected};
use crate::interrupt::Interrupts;
use crate::report::{self, Failure};

/// The exit code for a failure of our own where the command's exit code is passed on, as in ssh.
pub(crate) const LIKE_SSH: u8 = 255;

/// How long the goodbye may take.
pub(crate) const GOODBYE: Duration = Duration::from_secs(5);

/// How long the remote shell may take to begin a lone command.
const START: Duration = Duration::from_secs(30);

/// What to run, where, and what to do with it.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub connect: connect::Plan,
    /// For the remote shell to read; at least one. A login shell's is empty.
    pub commands: Vec<Vec<u8>>,
    pub kind: Kind,
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    pub terminal: Terminal,
    pub input: Input,
    pub form: Form,
    pub timeout: Option<Duration>,
    pub idle: Option<Duration>,
    /// Between TERM and KILL; `None` leaves the remote work alone.
    pub kill_grace: Option<Duration>,
}

/// What a command is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text for the login shell.
    Text,
    /// The name of a subsystem.
    Subsystem,
    /// None: the login shell itself.
    LoginShell,
}

/// Whether the command gets a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminal {
    No,
    /// If our stdin is one.
    IfOurs,
    Yes,
}

/// What a lone command reads; several get nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    None,
    /// Our stdin.
    Ours,
}

/// How output is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it comes.
    Bytes,
    /// Whole lines, as they come.
    Lines { label: Label, times: bool },
    /// NDJSON.
    Json,
}

/// What stands before a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Label {
    Number,
    Host,
    Command,
    Nothing,
}

/// Runs the plan; returns the exit code.
pub(crate) fn run(plan: Plan) -> Result<u8, Failure> {
    let failed = |e| Failure::new(format!("cannot wait for signals: {e}"), LIKE_SSH);
    let interrupts = Interrupts::watch().map_err(failed)?;
    match plan.form {
        Form::Bytes => one::run(&plan, &interrupts),
        Form::Lines { .. } | Form::Json => many::run(&plan, &interrupts),
    }
}

/// Connects; a failure has the exit code that ssh gives it.
pub(crate) fn connect(plan: &connect::Plan) -> Result<Client, Failure> {
    connect::connect(plan).map_err(|e| match e {
        NotConnected::Local(failure) => failure,
        NotConnected::Remote(error) => Failure::new(report::describe(&error), LIKE_SSH),
    })
}

impl Plan {
    /// The command as the library wants it; its stdin is left to the caller.
    fn command(&self, client: &Client, text: &[u8]) -> Command {
        let mut command = match self.kind {
            Kind::Text => client.sh(text).process_group(self.kill_grace.is_some()),
            Kind::Subsystem => client.subsystem(&String::from_utf8_lossy(text)),
            Kind::LoginShell => client.login_shell(),
        };
        for (name, value) in &self.env {
            command = command.env_inline(name, value);
        }
        if let Some(timeout) = self.timeout {
            command = command.timeout(timeout);
        }
        if let Some(idle) = self.idle {
            command = command.idle_timeout(idle);
        }
        if self.lone() {
            command = command.start_timeout(START);
        }
        let stdin = if self.reads_stdin() { Stdio::piped() } else { Stdio::null() };
        command.stdin(stdin)
    }

    /// Its exit code is ours then, and our stdin is its.
    fn lone(&self) -> bool {
        self.commands.len() == 1
    }

    fn reads_stdin(&self) -> bool {
        self.lone() && self.input == Input::Ours
    }
}

/// What became of the remote work, in words for a message.
fn fate(outcome: Option<KillOutcome>) -> &'static str {
    match outcome {
        None => "the remote command was left running",
        Some(KillOutcome::Gone) => "the remote command is gone",
        Some(KillOutcome::Survived) => "the remote command survived TERM and KILL",
        Some(_) => "the remote command was told to end; whether it did is unknown",
    }
}

/// Ends the remote work and says how that went. The channel ends, too, when the command does not.
fn end(control: &threadline::Control, grace: Duration) -> KillOutcome {
    let outcome = control.kill_after(grace).unwrap_or_else(|e| {
        log::warn!("the remote command cannot be ended from a second channel: {e}");
        control.signal("TERM");
        KillOutcome::Unknown
    });
    if outcome != KillOutcome::Gone {
        control.cancel();
    }
    outcome
}
