//! Which session channels a connection holds: the ones opened in advance, and the ones the server has no room for.
//! Pure: it decides, the event loop acts.
//!
//! A command costs two round trips, open and exec. From the second command on one channel is opened in advance, so
//! that it costs one; more after a burst. The first refusal ends that for good: a spare would take a session that a
//! command needs (sshd's MaxSessions).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::message::Token;
use crate::connection::ChannelId;

/// Spare channels kept after a burst.
const MAX_SPARES: usize = 4;
/// After this long without a command all spares but one are closed.
const SPARES_IDLE: Duration = Duration::from_secs(30);
/// A limit that was met is believed for so long; then it is tried again.
const LIMIT_BELIEVED: Duration = Duration::from_secs(30);
/// A server may count a session for so long after its end. sshd does until it has handled all it read together with
/// our CLOSE, and an OPEN that follows at once is part of that; and until the command's process is gone.
const LINGERS: Duration = Duration::from_secs(1);
/// After this long an open in advance is not waited for by a command.
const OVERDUE: Duration = Duration::from_secs(1);
/// The pause before another try when a refusal may be about sessions that have ended.
const PAUSE: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(crate) struct Sessions {
    /// Opened in advance and confirmed.
    spares: VecDeque<ChannelId>,
    /// Opened in advance, not answered yet: since when.
    opening: Vec<(ChannelId, Instant)>,
    /// Spares wanted.
    target: usize,
    /// Never again: refused, closed by the server twice, or turned off.
    given_up: bool,
    /// The server has closed one while it was spare.
    lost_one: bool,
    last_start: Option<Instant>,
    /// Commands that wait for a session to end, oldest first.
    parked: VecDeque<Token>,
    /// How many sessions the server allowed when it last refused one.
    limit: Option<(usize, Instant)>,
    /// The most sessions the server has allowed at once.
    most: usize,
    /// When a session ended last.
    last_end: Option<Instant>,
    /// A session was refused since then.
    refused_since: bool,
    /// No other try before this.
    pause: Option<Instant>,
}

impl Sessions {
    pub fn new(spare_channel: bool) -> Sessions {
        Sessions {
            spares: VecDeque::new(),
            opening: Vec::new(),
            target: 0,
            given_up: !spare_channel,
            lost_one: false,
            last_start: None,
            parked: VecDeque::new(),
            limit: None,
            most: 0,
            last_end: None,
            refused_since: false,
            pause: None,
        }
    }

    /// A command begins, as one of `at_once` that have not started yet: as many spares are wanted from now on.
    pub fn command_begins(&mut self, at_once: usize, now: Instant) {
        self.last_start = Some(now);
        self.target = self.target.max(at_once.min(MAX_SPARES));
    }

    /// A spare to use now.
    pub fn take_spare(&mut self) -> Option<ChannelId> {
        self.spares.pop_front()
    }

    /// A spare that is on its way: waiting for it is shorter than asking for another.
    /// Not if its answer is long overdue: one that is never answered must not take a command with it.
    pub fn take_opening(&mut self, now: Instant) -> Option<(ChannelId, Instant)> {
        let at = self.opening.iter().position(|&(_, asked)| now.duration_since(asked) < OVERDUE)?;
        Some(self.opening.remove(at))
    }

    /// How many spares are to be opened now.
    pub fn missing(&self) -> usize {
        if self.given_up || !self.parked.is_empty() || self.limit.is_some() {
            return 0;
        }
        self.target.saturating_sub(self.spares.len() + self.opening.len())
    }

    pub fn spare_opening(&mut self, id: ChannelId, now: Instant) {
        self.opening.push((id, now));
    }

    /// If the channel was opened in advance: it is ready now.
    pub fn spare_opened(&mut self, id: ChannelId) -> bool {
        let Some(at) = self.opening.iter().position(|&(o, _)| o == id) else { return false };
        self.opening.swap_remove(at);
        self.spares.push_back(id);
        true
    }

    /// If the channel was opened in advance: the server refused it. No spares any more.
    pub fn spare_refused(&mut self, id: ChannelId) -> bool {
        let Some(at) = self.opening.iter().position(|&(o, _)| o == id) else { return false };
        self.opening.swap_remove(at);
        self.give_up();
        true
    }

    /// If the channel was a spare: the server closed it. It is replaced once.
    pub fn spare_closed(&mut self, id: ChannelId) -> bool {
        let Some(at) = self.spares.iter().position(|&s| s == id) else { return false };
        self.spares.remove(at);
        self.lost_spare();
        true
    }

    /// The server closed a spare, or one that had just been taken into use.
    pub fn lost_spare(&mut self) {
        if std::mem::replace(&mut self.lost_one, true) {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        if !std::mem::replace(&mut self.given_up, true) {
            log::debug!("no more channels are opened in advance");
        }
    }

    /// Spares that are no longer wanted, to be closed.
    pub fn surplus(&mut self, now: Instant) -> Vec<ChannelId> {
        let idle = self.last_start.is_some_and(|last| now.duration_since(last) >= SPARES_IDLE);
        if idle {
            self.target = self.target.min(1);
        }
        let keep = if self.given_up { 0 } else { self.target };
        let from = keep.min(self.spares.len());
        self.spares.drain(from..).collect()
    }

    /// When [`surplus`](Sessions::surplus), or a limit that commands wait for, is worth another look.
    pub fn next_review(&self) -> Option<Instant> {
        let idle = self.last_start.filter(|_| self.spares.len() > 1).map(|last| last + SPARES_IDLE);
        let limit = self.limit.filter(|_| self.has_parked()).map(|(_, since)| since + LIMIT_BELIEVED);
        idle.into_iter().chain(limit).min()
    }

    /// When a parked command is worth another try, if that is not at the next end of a session.
    pub fn next_try(&self) -> Option<Instant> {
        self.pause.filter(|_| self.has_parked())
    }

    /// Whether a session may be asked for while `held` are open or being opened.
    pub fn may_open(&mut self, held: usize, now: Instant) -> bool {
        if self.pause.is_some_and(|until| now < until) {
            return false;
        }
        self.pause = None;
        match self.limit {
            Some((_, since)) if now.duration_since(since) >= LIMIT_BELIEVED => {
                self.limit = None;
                true
            }
            Some((limit, _)) => held < limit,
            None => true,
        }
    }

    /// The server refused a session while `held` others were open: that many are allowed. If another had `ended_about`
    /// then, and may have counted, it is as many as it has allowed before; the next try comes at once, further ones
    /// after a pause.
    pub fn limit_met(&mut self, held: usize, ended_about: bool, now: Instant) {
        log::debug!("the server refuses a session while {held} are open");
        let limit = if ended_about { held.max(self.most) } else { held };
        self.limit = Some((limit, now));
        if ended_about && std::mem::replace(&mut self.refused_since, true) {
            self.pause = Some(now + PAUSE);
        }
        self.give_up();
    }

    /// The server has confirmed a session and now allows `held`.
    pub fn began(&mut self, held: usize) {
        self.most = self.most.max(held);
    }

    /// The server has closed a session, used or spare.
    pub fn ended(&mut self, now: Instant) {
        self.last_end = Some(now);
        self.refused_since = false;
        self.pause = None;
    }

    /// Whether one had ended just before this, or has since: a refusal then may be of the past.
    pub fn ended_about(&self, asked: Instant) -> bool {
        self.last_end.is_some_and(|end| asked.saturating_duration_since(end) < LINGERS)
    }

    pub fn park(&mut self, token: Token) {
        self.parked.push_back(token);
    }

    /// A command that was refused goes before those that came after it.
    pub fn park_first(&mut self, token: Token) {
        let at = self.parked.iter().position(|&t| t > token).unwrap_or(self.parked.len());
        self.parked.insert(at, token);
    }

    pub fn unpark(&mut self) -> Option<Token> {
        self.parked.pop_front()
    }

    pub fn forget_parked(&mut self, token: Token) {
        self.parked.retain(|&t| t != token);
    }

    pub fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_waits_is_looked_at_when_the_limit_is_no_longer_believed() {
        let now = Instant::now();
        let mut sessions = Sessions::new(false);
        sessions.limit_met(3, false, now);
        assert_eq!(sessions.next_review(), None);
        sessions.park(7);
        let then = sessions.next_review().unwrap();
        assert!(!sessions.may_open(3, then - Duration::from_millis(1)));
        assert!(sessions.may_open(3, then));
        assert_eq!((sessions.next_review(), sessions.unpark()), (None, Some(7)));
    }
}
