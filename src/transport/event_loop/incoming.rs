//! What arrives, and what may arrive: events of the connection protocol, and credit.

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::chunk::ByteQueue;
use super::super::message::{AtLimit, OpenPlan, Plan, Token};
use super::super::packet::Incoming;
use super::super::pipe::Credit;
use super::entry::{begin, prepare, Asked, Entry, Owner, Stage};
use super::{EventLoop, GlobalWaiter, BULK_PACKET, MIN_WINDOW, TURN_BYTES, TURN_PACKETS, WAKE_BYTES, WAKE_DELAY};
use crate::connection::{ChannelId, Event};
use crate::error::{escape, Error, Result, Stream};
use crate::exit_status::{ExitSignal, ExitStatus};

impl EventLoop {
    pub(super) fn receive(&mut self) -> Result<()> {
        if self.packets.must_read() {
            self.packets.socket(|s| s.allow(TURN_BYTES));
            for _ in 0..TURN_PACKETS {
                match self.packets.receive()? {
                    Incoming::Payload(payload) => self.payload(payload)?,
                    Incoming::Empty | Incoming::Later => break,
                }
            }
        }
        self.wake_readers_in_time();
        Ok(())
    }

    /// Wakes those for whom something was queued, at the latest a moment after it came.
    fn wake_readers_in_time(&mut self) {
        if self.waking.is_empty() {
            self.wake_now = false;
            return;
        }
        let now = Instant::now();
        let at = *self.wake_at.get_or_insert(now + WAKE_DELAY);
        if self.wake_now || at <= now {
            self.wake_readers();
        }
    }

    /// At the connection's end everybody is woken anyway.
    fn wake_readers(&mut self) {
        for pipe in self.waking.drain(..) {
            pipe.wake_readers();
        }
        self.wake_at = None;
        self.wake_now = false;
    }

    pub(super) fn payload(&mut self, payload: Vec<u8>) -> Result<()> {
        self.trimmed = false;
        let event = self.connection.received(&payload).map_err(|v| Error::Protocol(v.to_string()))?;
        if let Event::Data { channel, stream, range } = event {
            self.data(channel, stream, payload, range);
            return Ok(());
        }
        self.event(event);
        self.shared.pool.put(payload);
        Ok(())
    }

    pub(super) fn data(&mut self, id: ChannelId, stream: Stream, payload: Vec<u8>, range: std::ops::Range<usize>) {
        let token = match self.owners.get(&id) {
            Some(&Owner::User(token)) => token,
            Some(&Owner::Link(token)) => return self.link_data(token, payload, range),
            _ => return,
        };
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let len = range.len();
        let credit = entry.pipe.push(stream, payload, range, entry.flow.window());
        let round_trip = self.round_trip.unwrap_or_default();
        let ought_to_grow = entry.flow.received(len, credit.unread, round_trip, Instant::now());
        let more = entry.flow.window();
        if credit.wake {
            self.waking.push(Arc::clone(&entry.pipe));
        }
        self.wake_now |= len < BULK_PACKET;
        // All windows together stay within the memory limit: their readers may stop at the same time.
        if ought_to_grow && self.spoken_for() + more <= self.config.memory_limit {
            if let Some(entry) = self.entries.get_mut(&token) {
                entry.flow.grow();
            }
        }
        self.grant(token, credit);
        if credit.unread >= WAKE_BYTES {
            self.wake_readers();
        }
    }

    fn eof(&mut self, id: ChannelId) {
        let token = match self.owners.get(&id) {
            Some(&Owner::User(token)) => token,
            Some(&Owner::Link(token)) => return self.link_eof(token),
            _ => return,
        };
        let Some(entry) = self.entries.get(&token) else { return };
        entry.pipe.eof();
        self.waking.push(Arc::clone(&entry.pipe));
        self.wake_now = true;
    }

    pub(super) fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Nothing | Event::Data { .. } => {}
            // It used up window, and nobody will read it.
            Event::Ignored { channel, .. } => match self.owners.get(&channel) {
                Some(&Owner::Link(token)) => self.credit_link(token),
                _ => self.with_user(channel, Self::credit),
            },
            Event::Opened { channel } => self.opened(channel),
            Event::OpenFailed { channel, reason, description } => self.open_failed(channel, reason, description),
            Event::OpenRequested { channel, kind, data } => self.peer_opens(channel, kind, data),
            Event::Writable { channel } => match self.owners.get(&channel) {
                Some(&Owner::Link(token)) => self.line_up_link(token),
                _ => self.with_user(channel, Self::line_up),
            },
            Event::Eof { channel } => self.eof(channel),
            Event::Closed { channel } => self.closed(channel),
            Event::Reply { channel, success } => self.with_user(channel, |this, token| this.reply(token, success)),
            Event::ExitStatus { channel, status } => self.exit_said(channel, ExitStatus::Code(status)),
            Event::ExitSignal { channel, name, core_dumped, message } => {
                let signal = ExitSignal {
                    name: String::from_utf8_lossy(name).into_owned(),
                    core_dumped,
                    message: String::from_utf8_lossy(message).into_owned(),
                };
                self.exit_said(channel, ExitStatus::Signal(signal));
            }
            Event::Eow { channel } => match self.owners.get(&channel) {
                Some(&Owner::Link(token)) => self.link_unheard(token),
                _ => self.with_entry(channel, |entry| {
                    entry.outbound = ByteQueue::default();
                    entry.pipe.broken();
                }),
            },
            Event::GlobalReply { success, data } => self.global_reply(success, data),
            Event::HostKeys { .. } => log::debug!("the server lists its host keys"),
        }
    }

    pub(super) fn with_user(&mut self, id: ChannelId, f: impl FnOnce(&mut Self, Token)) {
        if let Some(Owner::User(token)) = self.owners.get(&id).copied() {
            f(self, token);
        }
    }

    pub(super) fn with_entry(&mut self, id: ChannelId, f: impl FnOnce(&mut Entry)) {
        if let Some(Owner::User(token)) = self.owners.get(&id) {
            if let Some(entry) = self.entries.get_mut(token) {
                f(entry);
            }
        }
    }

    pub(super) fn opened(&mut self, id: ChannelId) {
        if let Some(&Owner::Link(token)) = self.owners.get(&id) {
            self.link_opened(token);
            return;
        }
        self.sessions.began(self.confirmed_sessions());
        if self.sessions.spare_opened(id) {
            log::debug!("{id}: open in advance");
            self.use_spare_for_parked();
            return;
        }
        let Some(Owner::User(token)) = self.owners.get(&id).copied() else { return };
        let Some(entry) = self.entries.get(&token) else { return };
        let (asked, wanted) = (entry.asked, entry.stage == Stage::Opening);
        // A server that connects somewhere first takes longer; the shortest counts.
        self.note_round_trip(asked.elapsed());
        if wanted {
            self.run_on(token, id, false);
        }
    }

    pub(super) fn note_round_trip(&mut self, measured: Duration) {
        self.round_trip = Some(self.round_trip.map_or(measured, |known| known.min(measured)));
    }

    pub(super) fn use_spare_for_parked(&mut self) {
        while self.sessions.has_parked() {
            let Some(spare) = self.sessions.take_spare() else { return };
            let Some(token) = self.sessions.unpark() else { return };
            self.run_on(token, spare, true);
        }
    }

    /// The channel is open: ask for what the entry is to be.
    pub(super) fn run_on(&mut self, token: Token, id: ChannelId, on_spare: bool) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        self.owners.insert(id, Owner::User(token));
        entry.id = Some(id);
        entry.on_spare = on_spare;
        entry.pipe.opened();
        match &entry.plan {
            Plan::Session(plan) => {
                entry.stage = Stage::Preparing(prepare(&mut self.connection, id, plan));
                self.prepared(token);
            }
            Plan::Other(_) => self.runs(token),
        }
    }

    /// If nothing more has to be prepared, starts what the session is for.
    pub(super) fn prepared(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let (Some(id), Plan::Session(plan)) = (entry.id, &entry.plan) else { return };
        if matches!(&entry.stage, Stage::Preparing(due) if due.is_empty()) {
            log::debug!("{id}: starting");
            entry.stage = Stage::Starting(begin(&mut self.connection, id, &plan.run));
        }
    }

    pub(super) fn runs(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        if let Some(id) = entry.id {
            log::debug!("{id}: running");
        }
        entry.stage = Stage::Running;
        entry.pipe.started();
        self.wrote(token);
    }

    pub(super) fn reply(&mut self, token: Token, success: bool) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let asked = match &mut entry.stage {
            Stage::Preparing(due) => due.pop_front(),
            Stage::Starting(_) if success => {
                self.runs(token);
                return;
            }
            Stage::Starting(asked) => Some(std::mem::replace(asked, Asked { request: "", detail: None })),
            _ => return,
        };
        let Some(asked) = asked else { return };
        if success {
            self.prepared(token);
        } else {
            self.fail(token, Error::RequestRefused { request: asked.request.into(), detail: asked.detail });
        }
    }

    pub(super) fn open_failed(&mut self, id: ChannelId, reason: u32, description: &[u8]) {
        let was_session = self.session_channels.remove(&id);
        let owner = self.owners.remove(&id);
        let description = String::from_utf8_lossy(description).into_owned();
        log::debug!("{id}: refused: {} ({reason})", escape(&description));
        if self.sessions.spare_refused(id) {
            self.close_surplus();
            self.serve_parked();
            return;
        }
        if let Some(Owner::Link(token)) = owner {
            self.link_refused(token, reason, description.as_bytes());
            return;
        }
        let Some(Owner::User(token)) = owner else { return };
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.id = None;
        if entry.stage == Stage::Closing {
            self.forget(token);
            return;
        }
        if let Plan::Other(OpenPlan { kind, to, .. }) = &entry.plan {
            let (kind, to) = (kind.clone(), to.clone());
            self.fail(token, Error::OpenRefused { kind, to, reason, description, limit: None });
            return;
        }
        // OpenSSH says "connect failed" when MaxSessions is reached; others say "resource shortage".
        let no_room = was_session && matches!(reason, 2 | 4);
        let ended_about = self.sessions.ended_about(entry.asked);
        let first = !std::mem::replace(&mut entry.asked_again, true);
        let held = self.confirmed_sessions();
        let looks_like_limit = no_room && (held > 0 || ended_about);
        if looks_like_limit {
            if self.at_limit(token) == AtLimit::Wait {
                self.sessions.limit_met(held, ended_about, Instant::now());
                self.park_again(token);
                return;
            }
            if ended_about && first {
                self.open(token);
                return;
            }
            self.sessions.limit_met(held, ended_about, Instant::now());
        }
        let (kind, to) = ("session".to_owned(), String::new());
        let limit = (looks_like_limit && held > 0).then_some(held);
        self.fail(token, Error::OpenRefused { kind, to, reason, description, limit });
    }

    pub(super) fn park_again(&mut self, token: Token) {
        if let Some(entry) = self.entries.get_mut(&token) {
            entry.stage = Stage::Parked;
        }
        self.sessions.park_first(token);
        self.use_spare_for_parked();
        self.close_surplus();
    }

    /// Sessions that the server holds, as opposed to those being asked for. One that we have closed is among them: sshd
    /// keeps it, and does not answer our CLOSE, for as long as its command runs.
    pub(super) fn confirmed_sessions(&self) -> usize {
        self.session_channels.iter().filter(|&&id| !self.connection.is_opening(id)).count()
    }

    /// The peer's CLOSE: the last that is heard of a channel.
    pub(super) fn closed(&mut self, id: ChannelId) {
        log::debug!("{id}: closed");
        if self.session_channels.remove(&id) {
            self.sessions.ended(Instant::now());
        }
        let owner = self.owners.remove(&id);
        self.sessions.spare_closed(id);
        match owner {
            Some(Owner::User(token)) => self.entry_closed(token),
            Some(Owner::Link(token)) => self.link_closed(token),
            _ => {}
        }
        self.serve_parked();
    }

    pub(super) fn entry_closed(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.id = None;
        let unanswered = matches!(entry.stage, Stage::Preparing(_) | Stage::Starting(_));
        if unanswered && entry.on_spare {
            // The server had closed the spare before our request reached it: nothing ran. Once more, on a new channel.
            log::debug!("a channel opened in advance was closed by the server; opening another");
            entry.on_spare = false;
            self.sessions.lost_spare();
            self.open(token);
            return;
        }
        entry.pipe.closed();
        self.forget(token);
    }

    /// A session has ended: the next one that waits may begin.
    pub(super) fn serve_parked(&mut self) {
        let now = Instant::now();
        while self.sessions.has_parked() && self.sessions.may_open(self.session_channels.len(), now) {
            let Some(token) = self.sessions.unpark() else { return };
            self.open(token);
        }
    }

    pub(super) fn exit_said(&mut self, id: ChannelId, status: ExitStatus) {
        let Some(Owner::User(token)) = self.owners.get(&id).copied() else { return };
        let Some(entry) = self.entries.get_mut(&token) else { return };
        log::debug!("{id}: {status}");
        let first = entry.pipe.said().is_none();
        entry.pipe.exit_said(status);
        // Once: a server may say it a million times.
        let grace = entry.plan.session().and_then(|plan| plan.grace).filter(|_| first);
        if let Some(end) = grace.and_then(|grace| Instant::now().checked_add(grace)) {
            self.graces.insert((end, token));
        }
    }

    pub(super) fn global_reply(&mut self, success: bool, data: &[u8]) {
        match self.globals.pop_front() {
            Some(GlobalWaiter::User { name, reply }) => {
                let answer = if success {
                    Ok(data.to_vec())
                } else {
                    Err(Error::RequestRefused { request: name, detail: None })
                };
                let _ = reply.send(answer);
            }
            Some(GlobalWaiter::Listen { token, name, asked }) => {
                self.listening(token, name, success.then_some(data), asked);
            }
            Some(GlobalWaiter::Probe) | None => {}
        }
    }
}

/// Windows.
impl EventLoop {
    /// Looks whether a channel's peer may be granted more.
    pub(super) fn credit(&mut self, token: Token) {
        let Some(entry) = self.entries.get(&token) else { return };
        let credit = entry.pipe.review(entry.flow.window());
        self.grant(token, credit);
    }

    pub(super) fn grant(&mut self, token: Token, credit: Credit) {
        let Some(entry) = self.entries.get(&token) else { return };
        let Some(id) = entry.id else { return };
        if entry.stage == Stage::Closing {
            return;
        }
        let outstanding = u64::from(self.connection.granted(id));
        let Some(bytes) = entry.flow.grant(credit.allowed, outstanding) else { return };
        self.grant_or_withhold(token, id, bytes, outstanding, &credit);
    }

    /// Grants bytes, unless the memory limit is reached.
    pub(super) fn grant_or_withhold(
        &mut self,
        token: Token,
        id: ChannelId,
        bytes: u32,
        outstanding: u64,
        credit: &Credit,
    ) {
        if self.memory_is_full() {
            if !self.withheld.contains(&token) {
                self.withheld.push(token);
            }
            self.grant_least(id, outstanding + credit.unread);
            return;
        }
        self.connection.grant(id, bytes);
    }

    /// Memory that others hold slows a channel whose reader keeps up down, it does not stop it.
    fn grant_least(&mut self, id: ChannelId, in_use: u64) {
        let least = u64::from(MIN_WINDOW);
        if in_use <= least / 2 {
            self.connection.grant(id, (least - in_use) as u32);
        }
    }

    /// Whether nothing may be granted; then the next read is reported, however small.
    fn memory_is_full(&self) -> bool {
        let full = || self.shared.unread.load(Ordering::SeqCst) >= self.config.memory_limit;
        if !full() {
            return false;
        }
        self.shared.withheld.store(true, Ordering::SeqCst);
        // Again: what was read before the reader could see the mark is not reported.
        if full() {
            return true;
        }
        self.shared.withheld.store(!self.withheld.is_empty(), Ordering::SeqCst);
        false
    }

    pub(super) fn credit_withheld(&mut self) {
        if self.withheld.is_empty() || self.shared.unread.load(Ordering::Relaxed) >= self.config.memory_limit {
            return;
        }
        self.shared.withheld.store(false, Ordering::Relaxed);
        for token in std::mem::take(&mut self.withheld) {
            self.credit(token);
            self.credit_link(token);
        }
    }
}
