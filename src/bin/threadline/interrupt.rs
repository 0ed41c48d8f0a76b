//! Signals that ask us to end: the first lets the work end in order, the second leaves at once.

use std::fs;
use std::io;
use std::sync::mpsc::{channel, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM, SIGUSR1, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::terminal;

/// The exit code of a tool that a signal ended.
pub(crate) fn exit_code(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(255)
}

/// Watches for SIGINT, SIGTERM and SIGHUP. Until somebody asks for the first of them, any ends the process.
#[derive(Debug, Clone)]
pub(crate) struct Interrupts {
    /// A mutex because two threads own it in turn: main puts it in, the signal thread takes it out.
    first: Arc<Mutex<Option<Sender<i32>>>>,
}

impl Interrupts {
    /// Starts the thread that waits for signals. What the caller has us ignore (nohup) stays ignored.
    pub fn watch() -> io::Result<Interrupts> {
        let ignored = ignored_signals();
        let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| ignored & (1 << (signal - 1)) == 0);
        let mut signals = Signals::new(wanted)?;
        let interrupts = Interrupts { first: Arc::default() };
        let first = Arc::clone(&interrupts.first);
        thread::Builder::new().name("tl:signals".into()).spawn(move || {
            for signal in signals.forever() {
                let listener = first.lock().unwrap_or_else(PoisonError::into_inner).take();
                let told = listener.is_some_and(|listener| listener.send(signal).is_ok());
                if !told {
                    leave(exit_code(signal));
                }
            }
        })?;
        Ok(interrupts)
    }

    /// Where the next signal is told instead of ending the process. The one after it ends the process again.
    pub fn first(&self) -> Receiver<i32> {
        let (sender, receiver) = channel();
        *self.first.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }
}

/// Ends the process now, whatever other threads do; they must not see libraries being torn down.
pub(crate) fn leave(code: u8) -> ! {
    terminal::restore();
    signal_hook::low_level::exit(code.into())
}

/// Ends as `cat` does when nobody reads its output any more: by SIGPIPE, which Rust programs ignore otherwise.
pub(crate) fn end_by_broken_pipe() -> u8 {
    terminal::restore();
    // If that fails the exit code says the same.
    let _ = signal_hook::low_level::emulate_default_handler(SIGPIPE);
    exit_code(SIGPIPE)
}

/// Calls `changed` whenever the terminal's size has changed.
pub(crate) fn on_resize(changed: impl Fn() + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGWINCH])?;
    thread::Builder::new().name("tl:resize".into()).spawn(move || signals.forever().for_each(|_| changed()))?;
    Ok(())
}

/// Calls `asked` at each SIGUSR1.
pub(crate) fn on_status_request(asked: impl Fn() + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGUSR1])?;
    thread::Builder::new().name("tl:status".into()).spawn(move || signals.forever().for_each(|_| asked()))?;
    Ok(())
}

/// The mask of ignored signals, where the system tells it.
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}
