//! All that crosses between user threads and the transport thread: requests one way, a [`Pipe`] per channel for bytes
//! and endings both ways.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::fault::Fault;
use super::forward::Begin;
use super::pipe::Pipe;
use crate::error::Error;

/// Names one channel between a handle and the transport; never used twice in one connection.
pub(crate) type Token = u64;

/// What user threads ask of the transport thread. The queue is unbounded, because `Drop` posts and must not wait;
/// what carries data has its own bound (the pipe's).
#[derive(Debug)]
pub(crate) enum Request {
    /// Open a channel and start what it is for.
    Start(Start),
    /// The pipe's outbound side has something new: bytes, an EOF, or somebody waiting for the flush.
    Wrote(Token),
    /// A reader took bytes, went away or began to wait: look whether more may be granted.
    Consumed(Token),
    /// Send a request that has no reply: signal or window-change.
    Tell(Token, Notice),
    /// Close the channel; whatever is still queued either way is dropped.
    Close(Token),
    /// Close the channel once all that was written has been sent; what comes is dropped.
    Release(Token),
    /// Send a global request.
    Global { name: String, data: Vec<u8>, reply: Sender<Result<Vec<u8>, Error>> },
    /// Begin a forward.
    Forward(Begin),
    /// Take no new connections.
    StopForward(Token),
    /// End a forward and its connections.
    EndForward(Token),
    /// What a name of this side was looked up to.
    Resolved(Token, Result<Vec<SocketAddr>, Error>),
    /// Send all that is queued on every channel, say goodbye and end, not later than the deadline.
    Finish { deadline: Instant, limit: Duration, done: Sender<Result<(), Error>> },
    /// The last handle is gone: say goodbye and end.
    Abandon,
    /// Panic at the given place, for a test.
    #[cfg_attr(not(feature = "_faults"), expect(dead_code, reason = "only tests post it"))]
    Inject(Fault),
}

/// A channel request without a reply.
#[derive(Debug, Clone)]
pub(crate) enum Notice {
    /// RFC 4254 §6.9; the name without "SIG".
    Signal(String),
    /// RFC 4254 §6.7.
    Resize(PtySize),
}

/// The request to open a channel. If it is dropped before the channel runs or failed, whoever waits learns that the
/// connection is over.
#[derive(Debug)]
pub(crate) struct Start {
    pub token: Token,
    pub pipe: Arc<Pipe>,
    pub plan: Plan,
    /// The transport has taken it over.
    answered: bool,
}

impl Start {
    pub fn new(token: Token, pipe: Arc<Pipe>, plan: Plan) -> Start {
        Start { token, pipe, plan, answered: false }
    }

    /// Somebody else answers for the pipe from now on.
    pub fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        if !self.answered {
            self.pipe.abandoned_by_transport();
        }
    }
}

/// What a channel is for.
#[derive(Debug, Clone)]
pub(crate) enum Plan {
    Session(SessionPlan),
    /// A channel of any other type: it is of use as soon as it is open.
    Other(OpenPlan),
}

impl Plan {
    /// The session's plan, if it is one.
    pub fn session(&self) -> Option<&SessionPlan> {
        match self {
            Plan::Session(plan) => Some(plan),
            Plan::Other(_) => None,
        }
    }
}

impl From<OpenPlan> for Plan {
    fn from(plan: OpenPlan) -> Plan {
        Plan::Other(plan)
    }
}

impl From<SessionPlan> for Plan {
    fn from(plan: SessionPlan) -> Plan {
        Plan::Session(plan)
    }
}

/// A channel that is asked for by its type (RFC 4254 §5.1).
#[derive(Debug, Clone)]
pub(crate) struct OpenPlan {
    pub kind: String,
    /// What follows the fixed fields of the CHANNEL_OPEN.
    pub data: Vec<u8>,
    /// What it is to lead to, for the error; empty if the type says it all.
    pub to: String,
}

/// What a session channel is to run, and how.
#[derive(Clone)]
pub(crate) struct SessionPlan {
    /// Environment variables to request before the start; a refusal is an error.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    pub pty: Option<Pty>,
    pub run: Run,
    /// Once the exit status is there, wait only this long for the channel's end.
    pub grace: Option<Duration>,
    /// What to do at a refusal that looks like the limit of sessions.
    pub at_limit: AtLimit,
    /// It is to start even if the last handle goes away meanwhile.
    pub urgent: bool,
    /// It is given the agent (`auth-agent-req@openssh.com`).
    pub agent: bool,
}

impl std::fmt::Debug for SessionPlan {
    /// Without values: commands and variables may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionPlan").field("run", &self.run).field("pty", &self.pty.is_some()).finish_non_exhaustive()
    }
}

/// What starts a session (RFC 4254 §6.5).
#[derive(Clone)]
pub(crate) enum Run {
    Exec(Vec<u8>),
    Shell,
    Subsystem(String),
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Run::Exec(_) => "Exec",
            Run::Shell => "Shell",
            Run::Subsystem(_) => "Subsystem",
        })
    }
}

/// A pseudo-terminal to request (RFC 4254 §6.2).
#[derive(Debug, Clone)]
pub(crate) struct Pty {
    pub term: String,
    pub size: PtySize,
    /// Encoded terminal modes (RFC 4254 §8).
    pub modes: Vec<u8>,
}

/// The size of a terminal. Zero pixels mean "unknown".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PtySize {
    /// Characters in a row.
    pub columns: u32,
    /// Rows.
    pub rows: u32,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

impl PtySize {
    /// A size in characters, of unknown size in pixels.
    #[must_use]
    pub fn new(columns: u32, rows: u32) -> PtySize {
        PtySize { columns, rows, width: 0, height: 0 }
    }
}

impl Default for PtySize {
    /// 80 columns, 24 rows.
    fn default() -> PtySize {
        PtySize::new(80, 24)
    }
}

/// What a command does when the server refuses a session because of its limit (sshd's MaxSessions).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum AtLimit {
    /// It waits until a session of this connection ends; a refusal while there is none is an error.
    #[default]
    Wait,
    /// It fails at once, with an error that names the limit.
    Fail,
}
