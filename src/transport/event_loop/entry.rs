//! What the loop knows of one channel, and how a session is asked for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use super::super::chunk::ByteQueue;
use super::super::flow::Flow;
use super::super::message::{Plan, Run, SessionPlan, Token};
use super::super::pipe::Pipe;
use crate::connection::{ChannelId, ChannelRequest, Connection};

/// One channel of a user's.
pub(super) struct Entry {
    pub pipe: Arc<Pipe>,
    pub plan: Plan,
    pub id: Option<ChannelId>,
    pub stage: Stage,
    pub flow: Flow,
    pub asked: Instant,
    pub outbound: ByteQueue,
    pub eof_wanted: bool,
    pub eof_sent: bool,
    pub in_turn: bool,
    /// Where the socket's count stood after our last packet.
    pub mark: u64,
    /// It runs on a channel opened in advance, which the server may have closed meanwhile.
    pub on_spare: bool,
    /// It was refused a session before.
    pub asked_again: bool,
    /// Nobody holds it any more: it is closed when all is sent, and at this time whatever is left.
    pub released: Option<Instant>,
}

impl Entry {
    pub fn new(pipe: Arc<Pipe>, plan: Plan, flow: Flow, now: Instant) -> Entry {
        Entry {
            pipe,
            plan,
            id: None,
            stage: Stage::Parked,
            flow,
            asked: now,
            outbound: ByteQueue::default(),
            eof_wanted: false,
            eof_sent: false,
            in_turn: false,
            mark: 0,
            on_spare: false,
            asked_again: false,
            released: None,
        }
    }
}

/// Where a channel is on its way.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Waits for another session to end.
    Parked,
    /// CHANNEL_OPEN is sent.
    Opening,
    /// Environment and terminal are asked for; these answers are due.
    Preparing(VecDeque<Asked>),
    /// exec, shell or subsystem is asked for.
    Starting(Asked),
    Running,
    /// Our CLOSE is sent (or will be, once the open is answered).
    Closing,
}

/// A request whose answer is due.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub request: &'static str,
    pub detail: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    User(Token),
    /// A socket of this side.
    Link(Token),
    Spare,
    /// Was spare or never ours; only its end is of interest.
    Nobody,
}

/// Environment and terminal (the channel has just been opened, so it takes requests): asked for together, answered before the start, so that a refusal runs nothing.
pub(super) fn prepare(connection: &mut Connection, id: ChannelId, plan: &SessionPlan) -> VecDeque<Asked> {
    let mut asked = VecDeque::new();
    for (name, value) in &plan.env {
        let _ = connection.request(id, &ChannelRequest::Env { name, value }, true);
        asked.push_back(Asked { request: "env", detail: Some(String::from_utf8_lossy(name).into_owned()) });
    }
    if plan.agent {
        let _ = connection.request(id, &ChannelRequest::AuthAgent, true);
        asked.push_back(Asked { request: "auth-agent-req@openssh.com", detail: None });
    }
    if let Some(pty) = &plan.pty {
        let request = ChannelRequest::Pty {
            term: &pty.term,
            columns: pty.size.columns,
            rows: pty.size.rows,
            width_px: pty.size.width,
            height_px: pty.size.height,
            modes: &pty.modes,
        };
        let _ = connection.request(id, &request, true);
        asked.push_back(Asked { request: "pty-req", detail: None });
    }
    asked
}

/// Asks for what the session is for.
pub(super) fn begin(connection: &mut Connection, id: ChannelId, run: &Run) -> Asked {
    let (request, asked) = match run {
        Run::Exec(command) => (ChannelRequest::Exec { command }, Asked { request: "exec", detail: None }),
        Run::Shell => (ChannelRequest::Shell, Asked { request: "shell", detail: None }),
        Run::Subsystem(name) => {
            (ChannelRequest::Subsystem { name }, Asked { request: "subsystem", detail: Some(name.clone()) })
        }
    };
    let _ = connection.request(id, &request, true);
    asked
}
