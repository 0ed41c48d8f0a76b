//! The end of a connection, wanted or not: whoever waits is told, and what can still go out does.

use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use rustix::event::PollFlags;

use super::super::message::Token;
use super::super::wake;
use super::entry::Stage;
use super::{Ending, EventLoop, GlobalWaiter, GOODBYE};
use crate::connection::ChannelId;
use crate::error::{Error, Phase};

impl EventLoop {
    /// Somebody wants the end. Whoever comes later gets the first one's answer; the earliest deadline counts.
    pub(super) fn finish(&mut self, by: Instant, limit: Duration, done: Sender<Result<(), Error>>) {
        // Their connections would go on for as long as somebody talks through them.
        self.end_forwards(&Error::Closed);
        if let Ending::Finish { deadline, .. } = &mut self.ending {
            *deadline = by.min(*deadline);
            self.closers.push(done);
        } else {
            self.ending = Ending::Finish { deadline: by, limit, done, sent: false };
        }
    }

    pub(super) fn is_over(&mut self, flushed: bool) -> bool {
        match &self.ending {
            Ending::No => false,
            Ending::Now => !self.urgent_work(),
            &Ending::Finish { deadline, sent, .. } => {
                let over = if sent { !self.input_under_way() } else { self.finish_sending(flushed) };
                over || deadline <= Instant::now()
            }
        }
    }

    /// Once all is with the kernel, closes the channels. True when nothing else is to be waited for.
    fn finish_sending(&mut self, flushed: bool) -> bool {
        if !self.all_sent(flushed) {
            return false;
        }
        if let Ending::Finish { sent, .. } = &mut self.ending {
            *sent = true;
        }
        let tokens: Vec<Token> = self.entries.keys().copied().collect();
        tokens.into_iter().for_each(|token| self.close(token));
        !self.input_under_way()
    }

    /// Whether a command may not have got all of its input yet. sshd throws away what it has not passed on when we
    /// disconnect; it answers our CLOSE once it has.
    fn input_under_way(&self) -> bool {
        self.entries.values().any(|e| e.id.is_some() && e.mark > 0)
    }

    /// Whether something must be started before we go: the end of a remote command whose child was dropped.
    pub(super) fn urgent_work(&self) -> bool {
        self.entries.values().any(|e| {
            let waits = !matches!(e.stage, Stage::Running | Stage::Closing);
            e.plan.session().is_some_and(|plan| plan.urgent) && waits && e.asked.elapsed() < GOODBYE
        })
    }

    /// Whether everything queued on every channel is with the kernel.
    pub(super) fn all_sent(&mut self, flushed: bool) -> bool {
        flushed
            && self.held.is_none()
            && !self.connection.has_messages()
            && self.entries.values().all(|e| {
                let eof_due = e.eof_wanted && !e.eof_sent;
                e.stage == Stage::Closing || (e.outbound.is_empty() && !e.pipe.has_outbound() && !eof_due)
            })
    }

    /// Closes what is open, disconnects, and gives all of it a bounded time to leave.
    pub(super) fn goodbye(&mut self) -> Error {
        let complete = matches!(self.ending, Ending::Finish { sent: true, .. }) && !self.input_under_way();
        self.end_forwards(&Error::Closed);
        let ids: Vec<ChannelId> = self.owners.keys().copied().collect();
        for id in ids {
            self.connection.close(id);
        }
        let left = self.send_held().and_then(|free| if free { self.send_control() } else { Ok(false) });
        if left.is_ok() {
            self.packets.disconnect();
        }
        let deadline = Instant::now() + GOODBYE;
        while let Ok(false) = self.packets.flush() {
            // Nobody reads any more: a server that still sends would keep a wait for both busy.
            let waited = self.packets.socket(|s| wake::wait(s, PollFlags::OUT, deadline));
            if waited.is_err() || Instant::now() >= deadline {
                break;
            }
        }
        if let Ending::Finish { limit, done, .. } = std::mem::replace(&mut self.ending, Ending::Now) {
            let outcome = if complete { Ok(()) } else { Err(Error::timeout(Phase::Write, limit)) };
            // The waiter is told before the thread ends, and joins it then.
            let _ = self.shared.ended.set(Error::Closed);
            for closer in self.closers.drain(..) {
                let _ = closer.send(outcome.clone());
            }
            let _ = done.send(outcome);
        }
        Error::Closed
    }

    /// Tells everybody the one reason, and lets go of everything.
    pub(super) fn end(mut self, error: Error) {
        match &error {
            Error::Closed => log::info!("connection closed"),
            error => log::info!("connection ended: {error}"),
        }
        let _ = self.shared.ended.set(error);
        let error = self.shared.ended.get().cloned().unwrap_or(Error::Closed);
        for entry in self.entries.values() {
            entry.pipe.lost(error.clone());
        }
        self.end_forwards(&error);
        for waiter in self.globals.drain(..) {
            if let GlobalWaiter::User { reply, .. } = waiter {
                let _ = reply.send(Err(error.clone()));
            }
        }
        self.packets.socket(|s| s.shut());
        // What is still in the queue, or gets there now, is dropped with it, which tells its waiters: they look at `ended`.
    }
}
