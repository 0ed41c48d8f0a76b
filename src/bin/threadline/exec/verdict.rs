//! What an ending means: a word for machines, and an exit code. Pure.

use threadline::{Ending, Error, ExitStatus, KillOutcome, Phase};

/// pssh's exit codes; the lowest that applies wins.
pub(super) const TIMEOUT_OR_SIGNAL: u8 = 3;
pub(super) const NOT_REACHED: u8 = 4;
pub(super) const NOT_ZERO: u8 = 5;

/// What became of one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub status: Status,
    /// Where it was ended by us, how that went.
    pub kill: Option<KillOutcome>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    Exit(u32),
    Signal(String),
    Timeout,
    Idle,
    Killed,
    Lost,
    Refused,
    Dns,
    HostKey,
    Auth,
    Unstarted,
}

impl Status {
    /// NDJSON's word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Exit(_) => "exit",
            Status::Signal(_) => "signal",
            Status::Timeout => "timeout",
            Status::Idle => "idle",
            Status::Killed => "killed",
            Status::Lost => "lost",
            Status::Refused => "refused",
            Status::Dns => "dns",
            Status::HostKey => "hostkey",
            Status::Auth => "auth",
            Status::Unstarted => "unstarted",
        }
    }

    fn of_status(status: &ExitStatus) -> Status {
        match status {
            ExitStatus::Code(0) => Status::Ok,
            ExitStatus::Code(code) => Status::Exit(*code),
            ExitStatus::Signal(signal) => Status::Signal(signal.name.clone()),
            _ => Status::Lost,
        }
    }

    /// Of a command that ended without a status, or of all of them when there is no connection.
    pub fn of_error(error: &Error) -> Status {
        match error {
            Error::Timeout { phase: Phase::Idle, .. } => Status::Idle,
            Error::Timeout { .. } => Status::Timeout,
            Error::Resolve { .. } | Error::InvalidTarget { .. } => Status::Dns,
            Error::HostKey(_) => Status::HostKey,
            Error::Auth(_) => Status::Auth,
            Error::Connect { .. }
            | Error::Handshake { .. }
            | Error::OpenRefused { .. }
            | Error::RequestRefused { .. }
            | Error::InvalidInput { .. } => Status::Refused,
            Error::Cancelled => Status::Killed,
            _ => Status::Lost,
        }
    }

    /// The class of failure among [`TIMEOUT_OR_SIGNAL`], [`NOT_REACHED`] and [`NOT_ZERO`].
    pub fn class(&self) -> Option<u8> {
        match self {
            Status::Ok => None,
            Status::Exit(_) => Some(NOT_ZERO),
            Status::Signal(_) | Status::Timeout | Status::Idle | Status::Killed => Some(TIMEOUT_OR_SIGNAL),
            Status::Lost | Status::Refused | Status::Dns | Status::HostKey | Status::Auth | Status::Unstarted => {
                Some(NOT_REACHED)
            }
        }
    }
}

impl Verdict {
    /// `killed` when a signal to us ended it; `started` when it had begun.
    pub fn of(ending: &Ending, kill: Option<KillOutcome>, killed: bool, started: bool) -> Verdict {
        let status = match ending {
            _ if killed && !started => Status::Unstarted,
            _ if killed && kill.is_some() => Status::Killed,
            Ending::Exited(status) => Status::of_status(status),
            Ending::Failed(error) => Status::of_error(error),
            Ending::OutputClosed => Status::Killed,
            _ => Status::Lost,
        };
        Verdict { status, kill }
    }
}

/// The exit code of several commands: the lowest class that applies.
pub(super) fn exit_code<'a>(statuses: impl IntoIterator<Item = &'a Status>) -> u8 {
    statuses.into_iter().filter_map(Status::class).min().unwrap_or(0)
}

/// The exit code that a shell gives for a command that ended like this; 255 as in ssh where nobody knows.
pub(crate) fn shell_code(status: &ExitStatus) -> u8 {
    match status {
        // Only 0 to 255 exist; a server that says more must not turn failure into success.
        ExitStatus::Code(code) => u8::try_from(*code).unwrap_or(super::LIKE_SSH),
        ExitStatus::Signal(signal) => signal_number(&signal.name).map_or(super::LIKE_SSH, |number| 128 + number),
        _ => super::LIKE_SSH,
    }
}

/// The names of RFC 4254 §6.10 and a few more that servers send, with Linux's numbers.
pub(super) fn signal_number(name: &str) -> Option<u8> {
    let name = name.split('@').next().unwrap_or_default();
    let name = name.strip_prefix("SIG").unwrap_or(name);
    Some(match name {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "ILL" => 4,
        "TRAP" => 5,
        "ABRT" => 6,
        "BUS" => 7,
        "FPE" => 8,
        "KILL" => 9,
        "USR1" => 10,
        "SEGV" => 11,
        "USR2" => 12,
        "PIPE" => 13,
        "ALRM" => 14,
        "TERM" => 15,
        "XCPU" => 24,
        "XFSZ" => 25,
        "VTALRM" => 26,
        "SYS" => 31,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn timeout(phase: Phase) -> Error {
        Error::Timeout { phase, after: Duration::from_secs(1), received: None }
    }

    #[test]
    fn every_ending_has_its_word_and_its_class() {
        let exited = |code| Ending::Exited(ExitStatus::Code(code));
        let gone = Some(KillOutcome::Gone);
        let table = [
            (Verdict::of(&exited(0), None, false, true), "ok", None),
            (Verdict::of(&exited(7), None, false, true), "exit", Some(5)),
            // it ended by itself while we began to end it
            (Verdict::of(&exited(7), None, true, true), "exit", Some(5)),
            (Verdict::of(&exited(0), gone, true, true), "killed", Some(3)),
            (Verdict::of(&Ending::Failed(Error::Cancelled), None, true, false), "unstarted", Some(4)),
            (Verdict::of(&Ending::Failed(timeout(Phase::Total)), gone, false, true), "timeout", Some(3)),
            (Verdict::of(&Ending::Failed(timeout(Phase::Idle)), gone, false, true), "idle", Some(3)),
            (Verdict::of(&Ending::Failed(Error::Closed), None, false, true), "lost", Some(4)),
            (Verdict::of(&Ending::Exited(ExitStatus::Unknown), None, false, true), "lost", Some(4)),
            (Verdict::of(&Ending::OutputClosed, None, false, true), "killed", Some(3)),
            (Verdict::of(&Ending::Panicked("x".into()), None, false, true), "lost", Some(4)),
        ];
        for (verdict, word, class) in table {
            assert_eq!((verdict.status.word(), verdict.status.class()), (word, class), "{verdict:?}");
        }
    }

    #[test]
    fn the_lowest_class_wins() {
        let (exit, lost, signal) = (Status::Exit(1), Status::Lost, Status::Signal("TERM".into()));
        assert_eq!(exit_code([&Status::Ok, &Status::Ok]), 0);
        assert_eq!(exit_code([&Status::Ok, &exit]), 5);
        assert_eq!(exit_code([&exit, &lost]), 4);
        assert_eq!(exit_code([&exit, &lost, &signal]), 3);
    }

    #[test]
    fn an_impossible_exit_code_is_no_success() {
        assert_eq!(shell_code(&ExitStatus::Code(256)), 255);
        assert_eq!(shell_code(&ExitStatus::Code(254)), 254);
        assert_eq!(signal_number("TERM"), Some(15));
        assert_eq!(signal_number("SIGSYS@openssh.com"), Some(31));
    }
}
