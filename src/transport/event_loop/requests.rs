//! What user threads ask for.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant;

use super::super::fault::Fault;
use super::super::flow::Flow;
use super::super::message::{AtLimit, Notice, Plan, PtySize, Request, Start, Token};
use super::entry::{Entry, Owner, Stage};
use super::{Ending, EventLoop, GlobalWaiter, LINGER, MIN_WINDOW};
use crate::connection::{ChannelId, ChannelRequest};
use crate::error::{Error, Stream};

impl EventLoop {
    pub(super) fn request(&mut self, request: Request) {
        match request {
            Request::Start(start) => self.start(start),
            Request::Wrote(token) => self.wrote(token),
            Request::Consumed(token) => {
                self.credit(token);
                self.credit_withheld();
            }
            Request::Tell(token, notice) => self.tell(token, &notice),
            Request::Close(token) => self.close(token),
            Request::Release(token) => self.release(token),
            Request::Global { name, data, reply } => {
                self.connection.global_request(&name, &data, true);
                self.globals.push_back(GlobalWaiter::User { name, reply });
            }
            Request::Forward(begin) => self.begin_forward(begin),
            Request::StopForward(token) => self.stop_forward(token),
            Request::EndForward(token) => self.end_forward(token, Error::Closed),
            Request::Resolved(token, found) => self.resolved(token, found),
            Request::Finish { deadline, limit, done } => self.finish(deadline, limit, done),
            Request::Abandon => self.ending = Ending::Now,
            Request::Inject(Fault::Loop) => self.fault = Some(Fault::Loop),
            Request::Inject(fault) => self.packets.inject(fault),
        }
    }

    pub(super) fn start(&mut self, start: Start) {
        let now = Instant::now();
        let (token, pipe, plan) = (start.token, Arc::clone(&start.pipe), start.plan.clone());
        let window = self.initial_window();
        pipe.set_window(window);
        let is_session = plan.session().is_some();
        let entry = Entry::new(pipe, plan, Flow::new(window, self.config.max_window, now), now);
        // From here on the entry answers for the pipe.
        start.answered();
        self.entries.insert(token, entry);
        match is_session {
            true => self.start_session(token, now),
            false => self.open(token),
        }
    }

    pub(super) fn start_session(&mut self, token: Token, now: Instant) {
        let starts = |e: &&Entry| e.plan.session().is_some() && !matches!(e.stage, Stage::Running | Stage::Closing);
        let at_once = self.entries.values().filter(starts).count();
        self.sessions.command_begins(at_once, now);
        if let Some(id) = self.sessions.take_spare() {
            self.run_on(token, id, true);
        } else if let Some((id, asked)) = self.sessions.take_opening(now) {
            self.open_as(token, id, asked);
        } else if self.sessions.may_open(self.session_channels.len(), now) && !self.sessions.has_parked() {
            self.open(token);
        } else if self.at_limit(token) == AtLimit::Fail {
            self.refuse_for_limit(token);
        } else {
            self.sessions.park(token);
        }
    }

    pub(super) fn at_limit(&self, token: Token) -> AtLimit {
        self.entries.get(&token).and_then(|e| e.plan.session()).map_or(AtLimit::Fail, |plan| plan.at_limit)
    }

    pub(super) fn refuse_for_limit(&mut self, token: Token) {
        let limit = Some(self.session_channels.len());
        let description = "not asked for: the server refused a session a moment ago".into();
        let (kind, to) = ("session".into(), String::new());
        self.fail(token, Error::OpenRefused { kind, to, reason: 4, description, limit });
    }

    /// Sends CHANNEL_OPEN for an entry.
    pub(super) fn open(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let window = u32::try_from(entry.flow.window()).unwrap_or(u32::MAX);
        let id = match &entry.plan {
            Plan::Session(_) => {
                let id = self.connection.open("session", &[], window);
                self.session_channels.insert(id);
                id
            }
            Plan::Other(plan) => self.connection.open(&plan.kind, &plan.data, window),
        };
        log::debug!("{id}: opening");
        self.open_as(token, id, Instant::now());
    }

    /// The entry waits for this channel's confirmation, which was asked for then.
    pub(super) fn open_as(&mut self, token: Token, id: ChannelId, asked: Instant) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.asked = asked;
        entry.id = Some(id);
        entry.stage = Stage::Opening;
        self.owners.insert(id, Owner::User(token));
    }

    /// The configured window, or less when much memory is spoken for already.
    pub(super) fn initial_window(&self) -> u32 {
        let left = self.config.memory_limit.saturating_sub(self.spoken_for()) / 4;
        let least = MIN_WINDOW.min(self.config.window);
        u32::try_from(left).unwrap_or(u32::MAX).clamp(least, self.config.window)
    }

    /// What has arrived and was not read, and what may still arrive, of all channels.
    pub(super) fn spoken_for(&self) -> u64 {
        let granted: u64 = self.owners.keys().map(|&id| u64::from(self.connection.granted(id))).sum();
        granted + self.shared.unread.load(Ordering::Relaxed)
    }

    pub(super) fn wrote(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.eof_wanted = entry.pipe.take_outbound(&mut entry.outbound);
        if entry.pipe.flush_wanted() && !self.flushing.iter().any(|&(t, _)| t == token) {
            self.flushing.push((token, None));
        }
        self.line_up(token);
    }

    /// Puts a channel into the round of those that have something to send.
    pub(super) fn line_up(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let eof_due = entry.eof_wanted && !entry.eof_sent;
        if entry.stage == Stage::Running && !entry.in_turn && (!entry.outbound.is_empty() || eof_due) {
            entry.in_turn = true;
            self.sendable.push_back(token);
        }
    }

    pub(super) fn tell(&mut self, token: Token, notice: &Notice) {
        let Some(Entry { id: Some(id), stage: Stage::Running, .. }) = self.entries.get(&token) else { return };
        let request = match notice {
            Notice::Signal(name) => ChannelRequest::Signal { name },
            Notice::Resize(PtySize { columns, rows, width, height }) => {
                ChannelRequest::WindowChange { columns: *columns, rows: *rows, width_px: *width, height_px: *height }
            }
        };
        // False only if the channel is gone, and with it whom to tell.
        let _ = self.connection.request(*id, &request, false);
    }

    /// The user gives the channel up.
    pub(super) fn close(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.pipe.closed_by_us();
        entry.outbound.clear(&self.shared.pool);
        match entry.id {
            Some(id) => {
                entry.stage = Stage::Closing;
                log::debug!("{id}: closing");
                self.connection.close(id);
            }
            None => {
                self.sessions.forget_parked(token);
                self.forget(token);
            }
        }
    }

    /// The user has let go of a channel: what was written to it still goes out, within [`LINGER`].
    pub(super) fn release(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        if entry.stage != Stage::Running {
            self.close(token);
            return;
        }
        entry.pipe.drop_stream(Stream::Stdout);
        entry.pipe.drop_stream(Stream::Stderr);
        entry.pipe.want_eof();
        if let Some(end) = Instant::now().checked_add(LINGER) {
            entry.released = Some(end);
            self.graces.insert((end, token));
        }
        self.credit(token);
        self.wrote(token);
        self.close_if_sent(token);
    }

    /// Closes a released channel whose EOF is on its way.
    pub(super) fn close_if_sent(&mut self, token: Token) {
        let Some(entry) = self.entries.get(&token) else { return };
        if entry.released.is_some() && entry.eof_sent && entry.stage == Stage::Running {
            self.close(token);
        }
    }

    /// Forgets a channel that has ended.
    pub(super) fn forget(&mut self, token: Token) {
        if let Some(Entry { released: Some(end), .. }) = self.entries.remove(&token) {
            self.graces.remove(&(end, token));
        }
    }

    /// Ends an entry that never ran.
    pub(super) fn fail(&mut self, token: Token, error: Error) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.pipe.failed(error);
        match entry.id {
            Some(id) if self.owners.contains_key(&id) => {
                entry.stage = Stage::Closing;
                self.connection.close(id);
            }
            _ => self.forget(token),
        }
    }
}
