//! Several commands at once, each on its own channel of one connection and with a thread of its own; their lines go to
//! one printer. A lone command comes here, too, when its output is wanted as lines.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{json, Map, Value};
use threadline::{
    Child, ChunkSource, Client, Command, Control, Ended, Ending, Error, KillOutcome, OutputEnd, Phase, Printed,
    Printer, Result as ClientResult, Stopper, Stream,
};

use super::verdict::{self, Status, Verdict};
use super::{Form, Label, Plan, GOODBYE, LIKE_SSH};
use crate::connect::NotConnected;
use crate::interrupt::{self, Interrupts};
use crate::output::json::{Journal, JsonSink};
use crate::report::{self, Failure};
use crate::INTERNAL;

pub(super) fn run(plan: &Plan, interrupts: &Interrupts) -> Result<u8, Failure> {
    let run = Arc::new(Run::new(plan));
    if let Err(e) = run.announce(plan) {
        return output_failed(e);
    }
    let client = match crate::connect::connect(&plan.connect) {
        Ok(client) => client,
        Err(NotConnected::Local(failure)) => return Err(failure),
        Err(NotConnected::Remote(error)) => return run.nothing_ran(plan, &error),
    };
    if plan.kill_grace.is_some() {
        let failed = |e| Failure::new(format!("cannot start a thread: {e}"), INTERNAL);
        Run::end_at_signal(&run, interrupts).map_err(failed)?;
    }
    let printed = print(plan, &client, &run);
    let code = printed.map_err(|e| Failure::new(report::describe(&e), INTERNAL)).and_then(|p| run.conclude(plan, &p));
    if let Err(e) = client.close(GOODBYE) {
        log::debug!("goodbye: {e}");
    }
    code
}

/// Starts every command and prints until all have ended.
fn print(plan: &Plan, client: &Client, run: &Arc<Run>) -> ClientResult<Printed> {
    let printer = printer(plan, run);
    for (number, text) in plan.commands.iter().enumerate() {
        let task = Task {
            command: plan.command(client, text),
            number,
            run: Arc::clone(run),
            child: None,
            deadline: None,
            timeout: plan.timeout,
        };
        printer.follow(label(plan, number, text), task)?;
    }
    printer.join()
}

fn printer(plan: &Plan, run: &Arc<Run>) -> Printer {
    match (plan.form, &run.journal) {
        (_, Some(journal)) => {
            let run = Arc::clone(run);
            let end_fields = Box::new(move |ended: &Ended| run.end_fields(ended));
            let sink = JsonSink::new(journal.clone(), &plan.connect.host, plan.commands.len(), end_fields);
            Printer::builder().print_to_sink(sink)
        }
        (Form::Lines { label, times }, None) => {
            let mut builder = Printer::builder();
            if label == Label::Nothing {
                builder = builder.without_labels();
            }
            if times {
                builder = builder.timestamps_since(run.began);
            }
            builder.print_to_stdout()
        }
        (Form::Bytes | Form::Json, None) => Printer::stdout(),
    }
}

fn label(plan: &Plan, number: usize, text: &[u8]) -> String {
    match plan.form {
        Form::Lines { label: Label::Host, .. } => plan.connect.host.clone(),
        Form::Lines { label: Label::Command, .. } => String::from_utf8_lossy(text).into_owned(),
        _ => (number + 1).to_string(),
    }
}

/// Our stdout failed: quietly if nobody reads it any more.
fn output_failed(e: io::Error) -> Result<u8, Failure> {
    if e.kind() == io::ErrorKind::BrokenPipe {
        return Ok(interrupt::end_by_broken_pipe());
    }
    Err(Failure::new(format!("cannot write to stdout: {e}"), INTERNAL))
}

/// What the threads of one run share.
struct Run {
    began: Instant,
    host: String,
    grace: Option<Duration>,
    journal: Option<Journal>,
    /// A signal told us to end.
    signal: OnceLock<i32>,
    commands: Vec<Progress>,
}

/// What became of one command so far.
#[derive(Default)]
struct Progress {
    started: OnceLock<Instant>,
    control: OnceLock<Control>,
    /// Nobody wants to see it any more.
    stopped: AtomicBool,
    /// A mutex and not a queue: whoever asks last must see it, too.
    kill: Mutex<Kill>,
    killed: Condvar,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Kill {
    #[default]
    None,
    UnderWay,
    Done(KillOutcome),
}

impl Progress {
    fn set_kill(&self, kill: Kill) {
        *self.kill.lock().unwrap_or_else(PoisonError::into_inner) = kill;
        self.killed.notify_all();
    }

    /// How ending it went, if we ended it; waits while that is under way.
    fn kill(&self) -> Option<KillOutcome> {
        let kill = self.kill.lock().unwrap_or_else(PoisonError::into_inner);
        let kill = self.killed.wait_while(kill, |kill| *kill == Kill::UnderWay);
        match *kill.unwrap_or_else(PoisonError::into_inner) {
            Kill::Done(outcome) => Some(outcome),
            Kill::None | Kill::UnderWay => None,
        }
    }

    /// Ends the remote work, unless it has ended by itself.
    fn end(&self, control: &Control, grace: Duration) {
        self.set_kill(Kill::UnderWay);
        let kill = match control.status() {
            Some(_) => Kill::None,
            None => Kill::Done(super::end(control, grace)),
        };
        self.set_kill(kill);
    }
}

impl Run {
    fn new(plan: &Plan) -> Run {
        Run {
            began: Instant::now(),
            host: plan.connect.host.clone(),
            grace: plan.kill_grace,
            journal: (plan.form == Form::Json).then(Journal::new),
            signal: OnceLock::new(),
            commands: plan.commands.iter().map(|_| Progress::default()).collect(),
        }
    }

    fn announce(&self, plan: &Plan) -> io::Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let commands: Vec<_> = plan.commands.iter().map(|text| String::from_utf8_lossy(text)).collect();
        journal.event("plan", json!({ "hosts": [self.host], "commands": commands }))
    }

    /// At the first signal every command is ended, while what they still print is printed.
    fn end_at_signal(run: &Arc<Run>, interrupts: &Interrupts) -> io::Result<()> {
        let (first, run) = (interrupts.first(), Arc::clone(run));
        let wait = move || {
            let Ok(signal) = first.recv() else { return };
            let _ = run.signal.set(signal);
            thread::scope(|scope| {
                for command in &run.commands {
                    // One that is starting now sees the signal itself.
                    let Some(control) = command.control.get() else { continue };
                    scope.spawn(|| command.end(control, run.grace.unwrap_or_default()));
                }
            });
        };
        thread::Builder::new().name("tl:kill".into()).spawn(wait).map(drop)
    }

    fn verdict(&self, ended: &Ended) -> Verdict {
        let command = &self.commands[ended.number];
        let started = command.started.get().is_some();
        Verdict::of(&ended.ending, command.kill(), self.signal.get().is_some(), started)
    }

    /// What NDJSON says about a command's end.
    fn end_fields(&self, ended: &Ended) -> Value {
        let mut fields = status_fields(&self.verdict(ended));
        if let Ending::Failed(error) = &ended.ending {
            fields.insert("error".into(), error.to_string().into());
        }
        let started = self.commands[ended.number].started.get();
        fields.insert("ms".into(), started.map_or(0, |at| milliseconds(*at)).into());
        Value::Object(fields)
    }

    /// There is no connection: nothing was started, and everything is reported.
    fn nothing_ran(&self, plan: &Plan, error: &Error) -> Result<u8, Failure> {
        let status = Status::of_error(error);
        let code = if plan.lone() { LIKE_SSH } else { verdict::NOT_REACHED };
        if let Some(journal) = &self.journal {
            let ends = plan.commands.iter().enumerate().try_for_each(|(number, _)| {
                let mut fields = status_fields(&Verdict { status: status.clone(), kill: None });
                fields.insert("host".into(), self.host.clone().into());
                fields.insert("cmd".into(), (number + 1).into());
                fields.insert("error".into(), error.to_string().into());
                fields.insert("ms".into(), 0.into());
                fields.insert("bytes".into(), 0.into());
                journal.event("end", Value::Object(fields))
            });
            let statuses = vec![status; plan.commands.len()];
            if let Err(e) = ends.and_then(|()| self.summarise(&statuses, code)) {
                return output_failed(e);
            }
        }
        Err(Failure::new(report::describe(error), code))
    }

    /// Says what went wrong; returns the exit code.
    fn conclude(&self, plan: &Plan, printed: &Printed) -> Result<u8, Failure> {
        if printed.output == OutputEnd::Closed {
            return Ok(interrupt::end_by_broken_pipe());
        }
        let verdicts: Vec<_> = printed.sources.iter().map(|ended| self.verdict(ended)).collect();
        let statuses: Vec<_> = verdicts.iter().map(|verdict| verdict.status.clone()).collect();
        let code = match (self.signal.get(), &printed.sources[..]) {
            (Some(signal), _) => interrupt::exit_code(*signal),
            (None, [ended]) => lone_code(&ended.ending, &statuses[0]),
            (None, _) => verdict::exit_code(&statuses),
        };
        if self.journal.is_some() {
            if let Err(e) = self.summarise(&statuses, code) {
                return output_failed(e);
            }
        } else {
            for (ended, verdict) in printed.sources.iter().zip(&verdicts) {
                self.complain(plan, ended, verdict);
            }
        }
        Ok(code)
    }

    /// One line about a command that did not do well. A lone command's exit code says it already.
    fn complain(&self, plan: &Plan, ended: &Ended, verdict: &Verdict) {
        let ours = match &ended.ending {
            Ending::Exited(status) if verdict.kill.is_none() => {
                if status.success() || plan.lone() {
                    return;
                }
                status.to_string()
            }
            _ if verdict.status == Status::Unstarted => "not started".to_owned(),
            Ending::Failed(error) if verdict.kill.is_some() || self.grace.is_none() => {
                let fate = super::fate(verdict.kill);
                if verdict.status == Status::Killed {
                    format!("interrupted; {fate}")
                } else {
                    format!("{error}; {fate}")
                }
            }
            Ending::Failed(error) => report::describe(error),
            Ending::Panicked(text) => format!("internal fault: {text}; please report it"),
            _ => format!("interrupted; {}", super::fate(verdict.kill)),
        };
        match plan.lone() {
            true => report::line(&ours),
            false => report::line(&format!("command {}: {ours}", ended.number + 1)),
        }
    }

    fn summarise(&self, statuses: &[Status], code: u8) -> io::Result<()> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let count = |wanted: &dyn Fn(&Status) -> bool| statuses.iter().filter(|status| wanted(status)).count();
        let ok = count(&|status| *status == Status::Ok);
        let unstarted = count(&|status| *status == Status::Unstarted);
        let unreachable = count(&|status| status.class() == Some(verdict::NOT_REACHED) && *status != Status::Unstarted);
        let fields = json!({
            "planned": statuses.len(),
            "ok": ok,
            "failed": statuses.len() - ok - unstarted - unreachable,
            "unreachable": unreachable,
            "unstarted": unstarted,
            "ms": milliseconds(self.began),
            "exit": code,
        });
        journal.event("summary", fields)
    }
}

fn status_fields(verdict: &Verdict) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("status".into(), verdict.status.word().into());
    match &verdict.status {
        Status::Ok => fields.insert("code".into(), 0.into()),
        Status::Exit(code) => fields.insert("code".into(), (*code).into()),
        Status::Signal(name) => fields.insert("signal".into(), name.clone().into()),
        _ => None,
    };
    let kill = verdict.kill.map(|outcome| match outcome {
        KillOutcome::Gone => "gone",
        KillOutcome::Survived => "survived",
        _ => "unknown",
    });
    if let Some(kill) = kill {
        fields.insert("kill".into(), kill.into());
    }
    fields
}

fn milliseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// One command shown as lines: as ssh, like one whose bytes pass through.
fn lone_code(ending: &Ending, status: &Status) -> u8 {
    match (ending, status) {
        (Ending::Exited(status), _) => verdict::shell_code(status),
        (_, Status::Timeout | Status::Idle) => verdict::TIMEOUT_OR_SIGNAL,
        _ => LIKE_SSH,
    }
}

/// One command on its reader's thread: started there, so that all start at once.
struct Task {
    command: Command,
    number: usize,
    run: Arc<Run>,
    child: Option<Child>,
    deadline: Option<Instant>,
    timeout: Option<Duration>,
}

impl Task {
    fn start(&mut self) -> ClientResult<()> {
        let progress = &self.run.commands[self.number];
        if self.run.signal.get().is_some() || progress.stopped.load(Ordering::SeqCst) {
            return Err(Error::Cancelled);
        }
        let mut child = self.command.spawn()?;
        let began = Instant::now();
        let _ = progress.started.set(began);
        self.deadline = self.timeout.map(|timeout| began + timeout);
        if let Some(journal) = &self.run.journal {
            // If our stdout has failed the printer finds out.
            let _ = journal.event("start", json!({ "host": self.run.host, "cmd": self.number + 1 }));
        }
        if let Some(stdin) = child.stdin.take() {
            super::one::send_stdin(stdin).map_err(|e| Error::Internal(format!("no thread for stdin: {e}")))?;
        }
        let control = child.control();
        let _ = progress.control.set(control.clone());
        if progress.stopped.load(Ordering::SeqCst) {
            control.cancel();
        } else if self.run.signal.get().is_some() && progress.kill().is_none() {
            // The signal came while it was starting.
            progress.end(&control, self.run.grace.unwrap_or_default());
        }
        self.child = Some(child);
        Ok(())
    }
}

impl ChunkSource for Task {
    fn next_chunk(&mut self) -> ClientResult<Option<(Stream, &[u8])>> {
        if self.child.is_none() {
            self.start()?;
        }
        let Some(child) = self.child.as_mut() else { return Ok(None) };
        let control = child.control();
        // A command that never stops printing is never waited for.
        let late = self.deadline.is_some_and(|deadline| deadline <= Instant::now());
        let chunk = if late {
            let after = self.timeout.unwrap_or_default();
            Err(Error::Timeout { phase: Phase::Total, after, received: None })
        } else {
            child.next_chunk()
        };
        chunk.inspect_err(|error| self.run.give_up(self.number, &control, error))
    }

    fn ending(&mut self) -> ClientResult<Ending> {
        let Some(child) = self.child.as_mut() else { return Ok(Ending::EndOfStream) };
        let control = child.control();
        child.ending().inspect_err(|error| self.run.give_up(self.number, &control, error))
    }

    fn stopper(&self) -> Option<Stopper> {
        let (run, number) = (Arc::clone(&self.run), self.number);
        Some(Box::new(move || {
            let progress = &run.commands[number];
            progress.stopped.store(true, Ordering::SeqCst);
            if let Some(control) = progress.control.get() {
                control.cancel();
            }
        }))
    }
}

impl Run {
    /// A command whose time is over is ended; one that failed otherwise has ended.
    fn give_up(&self, number: usize, control: &Control, error: &Error) {
        if let (Error::Timeout { .. }, Some(grace)) = (error, self.grace) {
            self.commands[number].end(control, grace);
        }
    }
}
