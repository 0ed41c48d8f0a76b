//! What can go wrong: one enum, cloned to every waiter, that says what was tried, on what, and what to do next.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::exit_status::ExitStatus;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The part of the work that a deadline or an error belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Turning a name into addresses.
    Resolve,
    /// Opening the TCP connection.
    Connect,
    /// Waiting for the server's identification string (RFC 4253 §4.2).
    Banner,
    /// Agreeing on keys and proving the host key (RFC 4253 §7, §8).
    KeyExchange,
    /// Comparing the host key with what is known.
    HostKey,
    /// Proving who we are (RFC 4252).
    Auth,
    /// Opening a channel (RFC 4254 §5.1).
    Open,
    /// Starting a command, shell or subsystem on a channel (RFC 4254 §6).
    Exec,
    /// Waiting for the remote side's data or for a command's end.
    Read,
    /// Waiting for room to send.
    Write,
    /// Waiting for a command that has been silent.
    Idle,
    /// The whole of an operation, whichever part it is in.
    Total,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Resolve => "resolving the name",
            Phase::Connect => "connecting",
            Phase::Banner => "waiting for the server's banner",
            Phase::KeyExchange => "exchanging keys",
            Phase::HostKey => "checking the host key",
            Phase::Auth => "authenticating",
            Phase::Open => "opening a channel",
            Phase::Exec => "starting the command",
            Phase::Read => "waiting for the remote side",
            Phase::Write => "sending",
            Phase::Idle => "waiting for output",
            Phase::Total => "the whole operation",
        })
    }
}

/// Which of a command's two output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// Ordinary channel data (RFC 4254 §5.2).
    Stdout,
    /// Extended data of type 1 (RFC 4254 §5.2).
    Stderr,
}

impl Stream {
    /// The other stream.
    #[must_use]
    pub fn other(self) -> Stream {
        match self {
            Stream::Stdout => Stream::Stderr,
            Stream::Stderr => Stream::Stdout,
        }
    }

    pub(crate) fn index(self) -> usize {
        match self {
            Stream::Stdout => 0,
            Stream::Stderr => 1,
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        })
    }
}

/// Everything that can go wrong, in one enum.
///
/// It is `Clone`: when a connection is lost, every waiter gets the same reason. [`phase`](Error::phase) tells which
/// part of the work failed, [`hint`](Error::hint) what to do next. It turns into an [`io::Error`] with a fitting
/// [`io::ErrorKind`].
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text that names a host cannot be understood.
    #[error("cannot understand the host '{}': {reason}", escape(.input))]
    InvalidTarget {
        /// The text as given.
        input: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A command, path, name or setting that cannot be used; nothing was sent.
    #[error("{what}")]
    InvalidInput {
        /// What is wrong and what would be right.
        what: String,
    },
    /// The name has no address, or the resolver failed.
    #[error("cannot resolve '{}': {source}", escape(.host))]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        source: Arc<io::Error>,
    },
    /// No address of the host accepted a TCP connection.
    #[error("cannot connect to {}: {}", escape(.host), list_attempts(.attempts))]
    Connect {
        /// The host as given.
        host: String,
        /// Each address tried and why it failed, in the order tried.
        attempts: Vec<(SocketAddr, Arc<io::Error>)>,
    },
    /// The SSH handshake failed: the peer is no SSH server, or no algorithm is shared, or the exchange broke.
    #[error("SSH handshake with {} failed while {phase}: {reason}", escape(.host))]
    Handshake {
        /// The host as given.
        host: String,
        /// `Banner` or `KeyExchange`.
        phase: Phase,
        /// What happened; what the server said is escaped.
        reason: String,
    },
    /// The server's host key was not accepted.
    #[error(transparent)]
    HostKey(Box<HostKeyError>),
    /// No authentication method succeeded.
    #[error(transparent)]
    Auth(Box<AuthError>),
    /// A deadline passed. The remote work is cleaned up in the background.
    #[error("timed out after {} {phase}{}", seconds(.after), received_note(.received))]
    Timeout {
        /// What was being waited for.
        phase: Phase,
        /// The limit that passed.
        after: Duration,
        /// What had been received until then, where the call collects output.
        received: Option<Arc<Received>>,
    },
    /// The connection ended under the operation.
    #[error("connection lost: {reason}{}", silence_note(.silent))]
    ConnectionLost {
        /// Why, with the server's own words (escaped) where it gave any.
        reason: String,
        /// How long nothing had been received when it was given up, if silence was the reason.
        silent: Option<Duration>,
    },
    /// The server refused to open a channel (RFC 4254 §5.1).
    #[error("the server refused to open a {kind} channel{}: {} ({}){}", to_note(.to), escape(.description), reason_name(*.reason), limit_note(.limit))]
    OpenRefused {
        /// The channel type.
        kind: String,
        /// What it was to lead to, such as `db:5432`; empty for a session.
        to: String,
        /// The reason code (RFC 4254 §5.1): 1 prohibited, 2 connect failed, 3 unknown type, 4 resource shortage.
        reason: u32,
        /// The server's words.
        description: String,
        /// How many sessions were open when the refusal looked like sshd's MaxSessions limit.
        limit: Option<usize>,
    },
    /// The server refused a request on an open channel: exec, shell, subsystem, pty-req, env.
    #[error("the server refused the {request} request{}", detail_note(.detail))]
    RequestRefused {
        /// The request's name (RFC 4254 §6).
        request: String,
        /// What was asked for, e.g. the variable's name; never its value.
        detail: Option<String>,
    },
    /// The server broke the protocol; the connection was ended.
    #[error("the server broke the SSH protocol: {0}")]
    Protocol(String),
    /// A reader of one stream waited while the other, unread, stream reached the limit.
    #[error("waiting for {waiting}, but {unread} holds {limit} unread bytes, which is the limit")]
    UnreadStream {
        /// The stream that was being read.
        waiting: Stream,
        /// The stream nobody reads.
        unread: Stream,
        /// The limit in bytes.
        limit: u64,
    },
    /// Output that nobody read was thrown away while `wait` ran past the limit.
    #[error("{bytes} bytes of {stream} were thrown away: nobody read it while the command was being waited for")]
    Discarded {
        /// The stream.
        stream: Stream,
        /// How many bytes are missing.
        bytes: u64,
    },
    /// The remote side no longer reads: the command closed its stdin or ended.
    #[error("the remote side no longer reads its input")]
    BrokenPipe,
    /// The operation was cancelled through a control handle.
    #[error("cancelled")]
    Cancelled,
    /// The channel or client was closed on our side before the operation.
    #[error("closed on our side")]
    Closed,
    /// A local file, socket or stream failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done, and to what.
        context: String,
        /// The system's answer.
        source: Arc<io::Error>,
    },
    /// A dialogue with a shell came to no good end.
    #[error(transparent)]
    Shell(Box<ShellError>),
    /// A fault in this library, such as a panic in one of its threads. Please report it.
    #[error("internal fault in threadline: {0}; please report it")]
    Internal(String),
}

/// What a call that collects output had received when its deadline passed.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Received {
    /// Bytes of stdout.
    pub stdout: Vec<u8>,
    /// Bytes of stderr.
    pub stderr: Vec<u8>,
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Received {{ stdout: {} bytes, stderr: {} bytes }}", self.stdout.len(), self.stderr.len())
    }
}

/// A dialogue with a [`Shell`](crate::Shell) came to no good end: what was being done, why it ended, and what the shell
/// had said.
#[derive(Clone)]
#[non_exhaustive]
pub struct ShellError {
    /// What was being done, e.g. `waiting for "login: "`.
    pub doing: String,
    /// Why that ended.
    pub reason: ShellFailure,
    /// What the shell had said and nothing had matched: of [`run`](crate::Shell::run) the command's output, as it came.
    /// Secrets that a [`Responder`](crate::Responder) holds are taken out.
    pub seen: Vec<u8>,
}

/// Why a dialogue with a shell ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ShellFailure {
    /// The deadline, this long, passed. The shell lives on.
    Timeout(Duration),
    /// The shell ended; with which status, if the server said so.
    Ended(Option<ExitStatus>),
    /// The prompt that a [`Responder`](crate::Responder) had answered came again: the answer was wrong.
    AskedAgain,
    /// The output contains what the [`Profile`](crate::Profile) calls an error.
    Refused,
    /// The connection was lost, or the shell was closed on this side.
    Failed(Error),
}

/// How much of what was seen an error's text shows: its end, where the reason stands.
const SHOWN: usize = 160;

impl fmt::Display for ShellError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.doing)?;
        match &self.reason {
            ShellFailure::Timeout(after) => write!(f, "timed out after {}", seconds(after))?,
            ShellFailure::Ended(Some(status)) => write!(f, "the shell ended ({status})")?,
            ShellFailure::Ended(None) => f.write_str("the shell ended")?,
            ShellFailure::AskedAgain => f.write_str("the same prompt came again, so the answer was wrong")?,
            ShellFailure::Refused => f.write_str("the device refused it")?,
            ShellFailure::Failed(error) => write!(f, "{error}")?,
        }
        let tail = &self.seen[self.seen.len().saturating_sub(SHOWN)..];
        if tail.is_empty() {
            return f.write_str("; it had said nothing");
        }
        let cut = if tail.len() < self.seen.len() { "…" } else { "" };
        write!(f, "; it had said: {cut}{}", escape(&String::from_utf8_lossy(tail)))
    }
}

impl fmt::Debug for ShellError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ShellError { doing, reason, seen } = self;
        write!(f, "ShellError {{ doing: {doing:?}, reason: {reason:?}, seen: {} bytes }}", seen.len())
    }
}

impl std::error::Error for ShellError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.reason {
            ShellFailure::Failed(error) => Some(error),
            _ => None,
        }
    }
}

/// Why a host key was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostKeyError {
    /// The host is not in the known hosts, and the policy refuses unknown ones.
    #[error("the host key of {host} is not known: {key_type} {fingerprint} (looked in {})", list_paths(.files))]
    Unknown {
        /// The name as looked up: `host`, or `[host]:port` for other ports than 22.
        host: String,
        /// The key's type, e.g. `ssh-ed25519`.
        key_type: String,
        /// `SHA256:…`, as OpenSSH prints it.
        fingerprint: String,
        /// The known-hosts files that were read.
        files: Vec<PathBuf>,
    },
    /// The host is known with another key: refused under every policy.
    #[error(
        "the host key of {host} HAS CHANGED: the server shows {key_type} {fingerprint}, but {}:{line} says {known_fingerprint}; \
         someone may be listening in", .file.display()
    )]
    Changed {
        /// The name as looked up.
        host: String,
        /// The type of the key shown.
        key_type: String,
        /// The fingerprint of the key shown.
        fingerprint: String,
        /// The fingerprint on record.
        known_fingerprint: String,
        /// The file that has it.
        file: PathBuf,
        /// The line in it, from 1.
        line: usize,
    },
    /// The key is marked `@revoked`.
    #[error("the host key of {host} is revoked: {key_type} {fingerprint} ({}:{line})", .file.display())]
    Revoked {
        /// The name as looked up.
        host: String,
        /// The key's type.
        key_type: String,
        /// Its fingerprint.
        fingerprint: String,
        /// The file that says so.
        file: PathBuf,
        /// The line in it, from 1.
        line: usize,
    },
    /// The known hosts could not be read, or a new key could not be written.
    #[error("{what}")]
    File {
        /// What failed and on which file.
        what: String,
    },
    /// The policy refused, in its own words.
    #[error("the host key of {host} was refused by the policy: {reason}")]
    Policy {
        /// The name as looked up.
        host: String,
        /// The policy's words.
        reason: String,
    },
}

/// Authentication failed: every attempt, in order, and what the server would still accept.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuthError {
    /// The remote user.
    pub user: String,
    /// The host as given.
    pub host: String,
    /// What was tried, in order; empty when there was nothing to try.
    pub attempts: Vec<AuthAttempt>,
    /// The methods that the server would still accept, as it lists them.
    pub server_accepts: Vec<String>,
}

/// One authentication attempt and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuthAttempt {
    /// The method: `password`, `publickey`, `keyboard-interactive`.
    pub method: String,
    /// With what: a key's path or comment and its fingerprint; never a secret.
    pub with: String,
    /// How it ended, e.g. `refused by the server`, `wrong passphrase`.
    pub outcome: String,
}

impl AuthAttempt {
    pub(crate) fn new(method: &str, with: impl Into<String>, outcome: impl Into<String>) -> Self {
        AuthAttempt { method: method.to_owned(), with: with.into(), outcome: outcome.into() }
    }
}

impl AuthError {
    pub(crate) fn new(user: &str, host: &str, attempts: Vec<AuthAttempt>, server_accepts: Vec<String>) -> Self {
        AuthError { user: user.to_owned(), host: host.to_owned(), attempts, server_accepts }
    }
}

impl std::error::Error for AuthError {}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot log in as {} at {}: ", escape(&self.user), escape(&self.host))?;
        if self.attempts.is_empty() {
            f.write_str("there was nothing to try")?;
        }
        for (i, attempt) in self.attempts.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{}", attempt.method)?;
            if !attempt.with.is_empty() {
                write!(f, " with {}", escape(&attempt.with))?;
            }
            write!(f, ": {}", escape(&attempt.outcome))?;
        }
        if !self.server_accepts.is_empty() {
            write!(f, " (the server accepts: {})", escape(&self.server_accepts.join(", ")))?;
        }
        Ok(())
    }
}

impl Error {
    /// The part of the work that failed, where the variant belongs to one.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        Some(match self {
            Error::Resolve { .. } => Phase::Resolve,
            Error::Connect { .. } => Phase::Connect,
            Error::Handshake { phase, .. } | Error::Timeout { phase, .. } => *phase,
            Error::HostKey(_) => Phase::HostKey,
            Error::Auth(_) => Phase::Auth,
            Error::OpenRefused { .. } => Phase::Open,
            Error::RequestRefused { .. } => Phase::Exec,
            Error::UnreadStream { .. } | Error::Discarded { .. } => Phase::Read,
            Error::Shell(e) => match &e.reason {
                ShellFailure::Failed(error) => return error.phase(),
                _ => Phase::Read,
            },
            Error::BrokenPipe => Phase::Write,
            _ => return None,
        })
    }

    /// What to do next, in one sentence, where there is something to say.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::InvalidTarget { .. } => {
                "write it as host, user@host, user@host:port, [v6]:port or ssh://user@host:port".into()
            }
            Error::HostKey(e) => match &**e {
                HostKeyError::Unknown { .. } => {
                    "compare the fingerprint with one from a source you trust, then add the key to the known hosts \
                     (ssh-keyscan, or AutoAddPolicy / --accept-new to add unknown keys)"
                        .into()
                }
                HostKeyError::Changed { file, line, .. } => {
                    format!("if the change is expected, remove line {line} of {} and connect again", file.display())
                }
                _ => return None,
            },
            Error::Auth(e) if e.attempts.is_empty() => "name a key, a password or a running agent".into(),
            Error::OpenRefused { limit: Some(_), .. } => {
                "raise MaxSessions in the server's sshd_config, or let commands wait for a free session (the default)"
                    .into()
            }
            Error::OpenRefused { kind, reason: 1, .. } if kind.starts_with("direct-") => {
                "the server's sshd_config forbids it (AllowTcpForwarding, AllowStreamLocalForwarding, PermitOpen), or \
                 restricts the key"
                    .into()
            }
            Error::OpenRefused { kind, reason: 2, .. } if kind.starts_with("direct-") => {
                "the server could not connect there itself: try it from a shell on the server".into()
            }
            Error::RequestRefused { request, .. } if request == "env" => {
                "the server's AcceptEnv does not list this variable; pass it inside the command instead (env_inline)"
                    .into()
            }
            Error::RequestRefused { request, .. } if request == "tcpip-forward" => {
                "the port may be taken, or the server's sshd_config forbids it (AllowTcpForwarding, PermitListen)"
                    .into()
            }
            Error::RequestRefused { request, .. } if request.starts_with("streamlocal-forward") => {
                "the file may exist already, or the server's sshd_config forbids it (AllowStreamLocalForwarding)".into()
            }
            Error::UnreadStream { unread, .. } => {
                format!("read {unread} on another thread, drop it, or raise the unread limit")
            }
            Error::Shell(e) => match &e.reason {
                ShellFailure::Timeout(_) if e.doing.starts_with("asking the shell") => {
                    "if it is no Unix shell, say how it prompts (Shell::set_profile)".into()
                }
                ShellFailure::Timeout(_) => {
                    "it may wait for input: answer it (Shell::respond, send_line), interrupt it (send_control('c')), or \
                     allow more time"
                        .into()
                }
                ShellFailure::AskedAgain => "check the answer before it is tried again: accounts get locked".into(),
                ShellFailure::Failed(error) => return error.hint(),
                _ => return None,
            },
            _ => return None,
        })
    }

    pub(crate) fn io(context: impl Into<String>, source: io::Error) -> Self {
        Error::Io { context: context.into(), source: Arc::new(source) }
    }

    pub(crate) fn invalid(what: impl Into<String>) -> Self {
        Error::InvalidInput { what: what.into() }
    }

    pub(crate) fn timeout(phase: Phase, after: Duration) -> Self {
        Error::Timeout { phase, after, received: None }
    }

    fn kind(&self) -> io::ErrorKind {
        use io::ErrorKind as K;
        match self {
            Error::InvalidTarget { .. } | Error::InvalidInput { .. } => K::InvalidInput,
            Error::Resolve { source, .. } | Error::Io { source, .. } => source.kind(),
            Error::Connect { attempts, .. } => attempts.last().map_or(K::NotFound, |(_, e)| e.kind()),
            Error::HostKey(_) | Error::Auth(_) | Error::RequestRefused { .. } => K::PermissionDenied,
            Error::Timeout { .. } => K::TimedOut,
            Error::ConnectionLost { .. } => K::ConnectionReset,
            Error::OpenRefused { .. } => K::ConnectionRefused,
            Error::Protocol(_) | Error::Handshake { .. } => K::InvalidData,
            Error::BrokenPipe => K::BrokenPipe,
            Error::Closed => K::NotConnected,
            Error::Shell(e) => match &e.reason {
                ShellFailure::Timeout(_) => K::TimedOut,
                ShellFailure::Ended(_) => K::UnexpectedEof,
                ShellFailure::AskedAgain => K::PermissionDenied,
                ShellFailure::Refused => K::Other,
                ShellFailure::Failed(error) => error.kind(),
            },
            // not Interrupted: std's read loops retry that
            Error::Cancelled => K::ConnectionAborted,
            Error::UnreadStream { .. } | Error::Discarded { .. } | Error::Internal(_) => K::Other,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        io::Error::new(error.kind(), error)
    }
}

impl From<HostKeyError> for Error {
    fn from(e: HostKeyError) -> Error {
        Error::HostKey(Box::new(e))
    }
}

impl From<AuthError> for Error {
    fn from(e: AuthError) -> Error {
        Error::Auth(Box::new(e))
    }
}

/// Remote or user text made safe for a terminal and a log: control characters become escapes.
pub(crate) fn escape(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

fn seconds(d: &Duration) -> String {
    format!("{:.1} s", d.as_secs_f64())
}

fn list_attempts(attempts: &[(SocketAddr, Arc<io::Error>)]) -> String {
    if attempts.is_empty() {
        return "the name has no addresses".into();
    }
    attempts.iter().map(|(a, e)| format!("{a}: {e}")).collect::<Vec<_>>().join("; ")
}

fn list_paths(paths: &[PathBuf]) -> String {
    if paths.is_empty() {
        return "no file".into();
    }
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn received_note(received: &Option<Arc<Received>>) -> String {
    match received {
        Some(r) if !r.stdout.is_empty() || !r.stderr.is_empty() => {
            format!(" (received until then: {} bytes of stdout, {} of stderr)", r.stdout.len(), r.stderr.len())
        }
        _ => String::new(),
    }
}

fn silence_note(silent: &Option<Duration>) -> String {
    silent.as_ref().map_or(String::new(), |s| format!(" (silent for {})", seconds(s)))
}

fn reason_name(reason: u32) -> String {
    match reason {
        1 => "administratively prohibited".into(),
        2 => "connect failed".into(),
        3 => "unknown channel type".into(),
        4 => "resource shortage".into(),
        other => format!("reason {other}"),
    }
}

fn to_note(to: &str) -> String {
    if to.is_empty() {
        return String::new();
    }
    format!(" to {}", escape(to))
}

fn limit_note(limit: &Option<usize>) -> String {
    limit.map_or(String::new(), |n| {
        format!("; {n} sessions are open on this connection, which looks like sshd's MaxSessions limit")
    })
}

fn detail_note(detail: &Option<String>) -> String {
    detail.as_ref().map_or(String::new(), |d| format!(" ({})", escape(d)))
}
