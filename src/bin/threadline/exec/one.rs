//! One command, as ssh runs it: bytes pass through untouched both ways.

use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{channel, Receiver};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use threadline::{Child, ChildStdin, Control, Error, ExitStatus, KillOutcome};

use super::verdict::shell_code;
use super::{Plan, Terminal, GOODBYE, LIKE_SSH};
use crate::interrupt::{self, Interrupts};
use crate::output::raw;
use crate::report::{self, Failure};
use crate::terminal::{self, RawMode};

/// Read from our stdin at once: as much as an SSH packet carries.
const CHUNK: usize = 32 * 1024;

pub(super) fn run(plan: &Plan, interrupts: &Interrupts) -> Result<u8, Failure> {
    let client = super::connect(&plan.connect)?;
    let with_terminal = wants_terminal(plan);
    let mut command = plan.command(&client, &plan.commands[0]);
    if with_terminal {
        command = command.pty(terminal::pty());
    }
    let mut child = command.spawn().map_err(|e| Failure::new(report::describe(&e), LIKE_SSH))?;
    let raw_mode = if with_terminal { enter_raw_mode(&child)? } else { None };
    let ending = Running::begin(plan, &mut child, interrupts)?.finish(child);
    drop(raw_mode);

    let code = ending.report(plan);
    if let Err(e) = client.close(GOODBYE) {
        log::debug!("goodbye: {e}");
    }
    Ok(code)
}

fn wants_terminal(plan: &Plan) -> bool {
    match plan.terminal {
        Terminal::No => false,
        Terminal::Yes => true,
        Terminal::IfOurs if io::stdin().is_terminal() => true,
        Terminal::IfOurs => {
            if !plan.connect.quiet {
                report::line("stdin is no terminal, so the command gets none; -tt gives it one in any case");
            }
            false
        }
    }
}

/// What is typed goes to the remote terminal, which follows the size of ours.
fn enter_raw_mode(child: &Child) -> Result<Option<RawMode>, Failure> {
    if !io::stdin().is_terminal() {
        return Ok(None);
    }
    let failed = |e| Failure::new(format!("cannot set up the terminal: {e}"), LIKE_SSH);
    let control = child.control();
    interrupt::on_resize(move || {
        if let Some(size) = terminal::size() {
            control.resize(size);
        }
    })
    .map_err(failed)?;
    RawMode::enter().map(Some).map_err(failed)
}

/// The threads that serve a running command.
struct Running {
    stdout: JoinHandle<Result<(), Copying>>,
    stderr: JoinHandle<Result<(), Copying>>,
    control: Control,
    interrupted: Interrupted,
}

/// Whether a signal told us to end, and what became of the command then.
struct Interrupted {
    /// Set before anything is done about it.
    flag: Arc<AtomicBool>,
    outcome: Receiver<(i32, KillOutcome)>,
}

impl Running {
    fn begin(plan: &Plan, child: &mut Child, interrupts: &Interrupts) -> Result<Running, Failure> {
        let failed = |e: io::Error| Failure::new(format!("cannot start a thread: {e}"), LIKE_SSH);
        let control = child.control();
        // Before anything is printed: whoever has read something may well end us.
        let interrupted = end_at_signal(plan, &control, interrupts).map_err(failed)?;
        if let Some(stdin) = child.stdin.take() {
            send_stdin(stdin).map_err(failed)?;
        }
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        // When its output cannot be written the command is hung up, as by ssh.
        let hang_up = control.clone();
        let stdout = start("tl:stdout", move || match stdout {
            Some(from) => copy(from, rustix::stdio::stdout()).inspect_err(|e| e.hang_up(&hang_up)),
            None => Ok(()),
        });
        let stderr = start("tl:stderr", move || match stderr {
            Some(from) => copy(from, rustix::stdio::stderr()),
            None => Ok(()),
        });
        Ok(Running { stdout: stdout.map_err(failed)?, stderr: stderr.map_err(failed)?, interrupted, control })
    }

    /// Waits for the command's end, and for its output to be written.
    fn finish(self, mut child: Child) -> Ending {
        let status = child.wait();
        if self.interrupted.flag.load(Ordering::SeqCst) {
            // It was told to end; what it still said is printed.
            if let Ok((signal, outcome)) = self.interrupted.outcome.recv() {
                let _ = (self.stdout.join(), self.stderr.join());
                return Ending::Interrupted(signal, outcome);
            }
        }
        if let Err(error @ Error::Timeout { .. }) = status {
            return Ending::TimedOut(error, self.control);
        }
        let copied = self.stdout.join();
        let _ = self.stderr.join();
        match (copied, status) {
            (Ok(Err(Copying::Ours(error))), _) => Ending::OutputFailed(error),
            (_, Ok(status)) => Ending::Ended(status),
            (Ok(Err(Copying::Remote(error))), Err(_)) | (_, Err(error)) => Ending::Lost(error),
        }
    }
}

fn start<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name.into()).spawn(body)
}

/// Sends our stdin, and its end. The thread is not joined: a read of our stdin cannot be interrupted.
pub(super) fn send_stdin(mut to: ChildStdin) -> io::Result<()> {
    let send = move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            match raw::read(rustix::stdio::stdin(), &mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    if let Err(e) = to.write_all(&buffer[..count]) {
                        log::debug!("the command takes no more input: {e}");
                        return;
                    }
                }
                Err(e) => {
                    log::warn!("cannot read stdin: {e}; the command sees its end");
                    return;
                }
            }
        }
    };
    start("tl:stdin", send).map(drop)
}

/// Why a stream was not copied to its end.
enum Copying {
    Ours(io::Error),
    Remote(Error),
}

impl Copying {
    /// When our side is the reason.
    fn hang_up(&self, control: &Control) {
        if let Copying::Ours(_) = self {
            control.close();
        }
    }
}

fn copy(mut from: impl BufRead, to: impl std::os::fd::AsFd) -> Result<(), Copying> {
    loop {
        let bytes = from.fill_buf().map_err(|e| Copying::Remote(our_error(e)))?;
        let count = bytes.len();
        if count == 0 {
            return Ok(());
        }
        raw::write_all(&to, bytes).map_err(Copying::Ours)?;
        from.consume(count);
    }
}

/// The library's error inside the one that `BufRead` needs.
fn our_error(e: io::Error) -> Error {
    e.downcast::<Error>().unwrap_or_else(|e| Error::Internal(format!("a stream gave a foreign error: {e}")))
}

/// At the first signal the remote work is ended, while its output is still read. With `--no-kill` a signal ends us.
fn end_at_signal(plan: &Plan, control: &Control, interrupts: &Interrupts) -> io::Result<Interrupted> {
    let (told, outcome) = channel();
    let flag = Arc::new(AtomicBool::new(false));
    let Some(grace) = plan.kill_grace else { return Ok(Interrupted { flag, outcome }) };
    let first = interrupts.first();
    let (control, noticed) = (control.clone(), Arc::clone(&flag));
    start("tl:kill", move || {
        if let Ok(signal) = first.recv() {
            noticed.store(true, Ordering::SeqCst);
            // Fails only when main has not waited for it.
            let _ = told.send((signal, super::end(&control, grace)));
        }
    })?;
    Ok(Interrupted { flag, outcome })
}

/// How it went.
enum Ending {
    Ended(ExitStatus),
    Interrupted(i32, KillOutcome),
    TimedOut(Error, Control),
    /// Our stdout failed.
    OutputFailed(io::Error),
    Lost(Error),
}

impl Ending {
    /// Says what has to be said; returns the exit code.
    fn report(self, plan: &Plan) -> u8 {
        match self {
            Ending::Ended(status) => ended(&status),
            Ending::Interrupted(signal, outcome) => {
                report::line(&format!("interrupted; {}", super::fate(Some(outcome))));
                interrupt::exit_code(signal)
            }
            Ending::TimedOut(error, control) => {
                let outcome = plan.kill_grace.map(|grace| super::end(&control, grace));
                report::line(&format!("{error}; {}", super::fate(outcome)));
                super::verdict::TIMEOUT_OR_SIGNAL
            }
            Ending::OutputFailed(e) if e.kind() == io::ErrorKind::BrokenPipe => interrupt::end_by_broken_pipe(),
            Ending::OutputFailed(e) => {
                report::line(&format!("cannot write to stdout: {e}; the command was hung up"));
                LIKE_SSH
            }
            Ending::Lost(error) => {
                report::line(&report::describe(&error));
                LIKE_SSH
            }
        }
    }
}

fn ended(status: &ExitStatus) -> u8 {
    if *status == ExitStatus::Unknown {
        report::line(
            "the server closed the channel without an exit status; whether the command did its work is unknown",
        );
    }
    shell_code(status)
}
