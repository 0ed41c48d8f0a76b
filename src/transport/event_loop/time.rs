//! What happens because time passes: spares, probes, graces, and the smaller footprint of an idle connection.

use std::time::{Duration, Instant};

use super::super::socket::Socket;
use super::entry::{Owner, Stage};
use super::{Ending, EventLoop, GlobalWaiter, Probes, GOODBYE, TRIM_AFTER};
use crate::error::{Error, Result};

impl EventLoop {
    pub(super) fn keep_spares(&mut self) {
        for _ in 0..self.sessions.missing() {
            let id = self.connection.open("session", &[], self.initial_window());
            self.session_channels.insert(id);
            self.owners.insert(id, Owner::Spare);
            self.sessions.spare_opening(id, Instant::now());
        }
        self.close_surplus();
    }

    pub(super) fn close_surplus(&mut self) {
        for id in self.sessions.surplus(Instant::now()) {
            self.owners.insert(id, Owner::Nobody);
            self.connection.close(id);
        }
    }

    pub(super) fn keep_time(&mut self) -> Result<()> {
        let now = Instant::now();
        self.check_liveness(now)?;
        if self.packets.exchange_deadline(self.config.exchange_timeout).is_some_and(|d| d <= now) {
            let limit = self.config.exchange_timeout.as_secs_f64();
            return Err(Error::Protocol(format!("a key exchange was not finished within {limit} s")));
        }
        self.end_graces(now);
        self.end_late_links(now);
        if self.sessions.has_parked() {
            self.serve_parked();
        }
        if !self.trimmed && self.idle_for(now) >= TRIM_AFTER {
            self.trimmed = true;
            self.shared.pool.trim();
            self.packets.socket(Socket::trim);
        }
        Ok(())
    }

    pub(super) fn idle_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.packets.socket(|s| s.last_received()))
    }

    /// Probes a silent peer, and gives up one that stays silent.
    pub(super) fn check_liveness(&mut self, now: Instant) -> Result<()> {
        let Some((interval, count)) = self.config.liveness else { return Ok(()) };
        let silent = self.idle_for(now);
        if silent < interval {
            self.probes = Probes::default();
            return Ok(());
        }
        let due = self.probes.last.is_none_or(|last| now.saturating_duration_since(last) >= interval);
        if !due {
            return Ok(());
        }
        if self.probes.unanswered >= count {
            let reason = format!("no answer to {count} probes");
            return Err(Error::ConnectionLost { reason, silent: Some(silent) });
        }
        log::debug!("silent for {:.1} s: probing", silent.as_secs_f64());
        self.probes = Probes { unanswered: self.probes.unanswered + 1, last: Some(now) };
        self.connection.global_request("keepalive@openssh.com", &[], true);
        self.globals.push_back(GlobalWaiter::Probe);
        self.send()?;
        self.flush()?;
        Ok(())
    }

    /// Channels whose command has ended and whose grace is over.
    pub(super) fn end_graces(&mut self, now: Instant) {
        while let Some(&(at, token)) = self.graces.first().filter(|(at, _)| *at <= now) {
            self.graces.remove(&(at, token));
            let Some(entry) = self.entries.get_mut(&token) else { continue };
            log::debug!("the command has ended but its output is held open: closing");
            entry.pipe.closed();
            entry.stage = Stage::Closing;
            if let Some(id) = entry.id {
                self.connection.close(id);
            }
        }
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let last = self.packets.socket(|s| s.last_received());
        let liveness = self.config.liveness.and_then(|(interval, _)| match self.probes.last {
            Some(probed) if probed > last => probed.checked_add(interval),
            _ => last.checked_add(interval),
        });
        let ending = match &self.ending {
            Ending::Finish { deadline, .. } => Some(*deadline),
            Ending::Now => Some(Instant::now() + GOODBYE),
            Ending::No => None,
        };
        [
            liveness,
            ending,
            self.packets.exchange_deadline(self.config.exchange_timeout),
            self.wake_at,
            self.graces.first().map(|&(at, _)| at),
            self.link_deadlines.first().map(|&(at, _)| at),
            self.forwards.values().filter_map(|forward| forward.rests).min(),
            self.sessions.next_review(),
            self.sessions.next_try(),
            (!self.trimmed).then(|| last + TRIM_AFTER),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}
