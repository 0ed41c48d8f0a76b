//! The local terminal: raw mode and its end, type, size and modes.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::termios::{
    tcgetattr, tcgetwinsize, tcsetattr, InputModes, LocalModes, OptionalActions, OutputModes, SpecialCodeIndex, Termios,
};
use threadline::{Pty, PtySize, TerminalMode};

/// A terminal that was changed, and how it was before.
///
/// A mutex because whoever ends the process puts it right: the main thread, the signal thread or a panic.
static CHANGED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// Puts the terminal back as it was, if it was changed. May be called any number of times.
pub(crate) fn restore() {
    let changed = CHANGED.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((terminal, before)) = changed {
        // If the terminal has gone there is nothing to put right.
        let _ = tcsetattr(&terminal, OptionalActions::Now, &before);
    }
}

/// From now on [`restore`] puts the terminal on stdin back as it is now, whoever changes it.
pub(crate) fn keep() -> io::Result<()> {
    let terminal = rustix::io::dup(rustix::stdio::stdin())?;
    let now = tcgetattr(&terminal)?;
    remember(terminal, now);
    Ok(())
}

/// What is typed goes through byte by byte until this is dropped.
#[derive(Debug)]
pub(crate) struct RawMode(());

impl RawMode {
    pub fn enter() -> io::Result<RawMode> {
        let terminal = rustix::io::dup(rustix::stdio::stdin())?;
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        remember(terminal, before);
        let guard = RawMode(());
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &raw)?;
        Ok(guard)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Asks a question on the terminal without showing what is typed; if a signal ends us meanwhile, what is typed
/// afterwards is shown again.
pub(crate) fn ask_secret(question: &str) -> io::Result<String> {
    let terminal = File::options().read(true).write(true).open("/dev/tty")?;
    let before = tcgetattr(&terminal)?;
    remember(terminal.into(), before);
    let answer = rpassword::prompt_password(question);
    restore();
    answer
}

fn remember(terminal: OwnedFd, before: Termios) {
    CHANGED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert((terminal, before));
}

/// A pseudo-terminal like the one on stdin; where that is none, of the type in TERM and of the usual size.
pub(crate) fn pty() -> Pty {
    let term = std::env::var("TERM").ok().filter(|term| !term.is_empty());
    let mut pty = Pty::new(term.as_deref().unwrap_or("dumb"));
    if !io::stdin().is_terminal() {
        return pty;
    }
    if let Some(size) = size() {
        pty = pty.size(size);
    }
    match tcgetattr(rustix::stdio::stdin()) {
        Ok(termios) => with_modes(pty, &termios),
        Err(_) => pty,
    }
}

/// The size of the terminal on stdin.
pub(crate) fn size() -> Option<PtySize> {
    let found = tcgetwinsize(rustix::stdio::stdin()).ok()?;
    let mut size = PtySize::new(found.ws_col.into(), found.ws_row.into());
    size.width = found.ws_xpixel.into();
    size.height = found.ws_ypixel.into();
    Some(size)
}

/// The numbers are those of RFC 4254 §8.
fn with_modes(mut pty: Pty, termios: &Termios) -> Pty {
    use SpecialCodeIndex as S;
    let characters = [
        (1, S::VINTR),
        (2, S::VQUIT),
        (3, S::VERASE),
        (4, S::VKILL),
        (5, S::VEOF),
        (6, S::VEOL),
        (8, S::VSTART),
        (9, S::VSTOP),
        (10, S::VSUSP),
    ];
    for (mode, index) in characters {
        pty = pty.mode(TerminalMode(mode), termios.special_codes[index].into());
    }
    let (input, local, output) = (termios.input_modes, termios.local_modes, termios.output_modes);
    let switches = [
        (30, input.contains(InputModes::IGNPAR)),
        (33, input.contains(InputModes::ISTRIP)),
        (34, input.contains(InputModes::INLCR)),
        (35, input.contains(InputModes::IGNCR)),
        (36, input.contains(InputModes::ICRNL)),
        (38, input.contains(InputModes::IXON)),
        (39, input.contains(InputModes::IXANY)),
        (40, input.contains(InputModes::IXOFF)),
        (41, input.contains(InputModes::IMAXBEL)),
        (50, local.contains(LocalModes::ISIG)),
        (51, local.contains(LocalModes::ICANON)),
        (53, local.contains(LocalModes::ECHO)),
        (54, local.contains(LocalModes::ECHOE)),
        (55, local.contains(LocalModes::ECHOK)),
        (56, local.contains(LocalModes::ECHONL)),
        (57, local.contains(LocalModes::NOFLSH)),
        (58, local.contains(LocalModes::TOSTOP)),
        (59, local.contains(LocalModes::IEXTEN)),
        (60, local.contains(LocalModes::ECHOCTL)),
        (61, local.contains(LocalModes::ECHOKE)),
        (70, output.contains(OutputModes::OPOST)),
        (72, output.contains(OutputModes::ONLCR)),
    ];
    for (mode, on) in switches {
        pty = pty.mode(TerminalMode(mode), on.into());
    }
    #[cfg(target_os = "linux")]
    {
        pty = pty.mode(TerminalMode::IUTF8, input.contains(InputModes::IUTF8).into());
    }
    pty.mode(TerminalMode::ISPEED, termios.input_speed()).mode(TerminalMode::OSPEED, termios.output_speed())
}
