//! What is sent: control messages first, then data, one packet per channel in turn.

use super::super::message::Token;
use super::super::packet::{Incoming, Sent};
use super::{EventLoop, Held, TURN_BYTES, TURN_SENT, UNSENT_HIGH};
use crate::error::Result;

impl EventLoop {
    pub(super) fn exchanging(&self) -> bool {
        self.packets.exchanging()
    }

    pub(super) fn send(&mut self) -> Result<()> {
        if self.exchanging() {
            return Ok(());
        }
        if !self.send_held()? || !self.send_control()? {
            return Ok(());
        }
        self.send_data()?;
        // EOFs and closes that became due behind the data.
        self.send_control()?;
        Ok(())
    }

    /// False: not now.
    pub(super) fn send_held(&mut self) -> Result<bool> {
        let Some(held) = self.held.take() else { return Ok(true) };
        let sent = match &held {
            Held::Control(message) => self.packets.send(message, &[])?,
            Held::Data { header, body, .. } => self.packets.send(header.as_ref(), body)?,
        };
        if sent == Sent::NotNow {
            self.held = Some(held);
            return Ok(false);
        }
        match held {
            Held::Control(message) => self.connection.recycle(message),
            Held::Data { token, body, .. } => self.data_sent(token, body.len()),
        }
        Ok(true)
    }

    /// False: not now. Answers stay in the connection, which counts them, while the peer does not read.
    pub(super) fn send_control(&mut self) -> Result<bool> {
        loop {
            if self.packets.socket(|s| s.unsent()) >= UNSENT_HIGH && !self.flush()? {
                return Ok(false);
            }
            let Some(message) = self.connection.next_message() else { return Ok(true) };
            if self.packets.send(&message, &[])? == Sent::NotNow {
                self.held = Some(Held::Control(message));
                return Ok(false);
            }
            self.trimmed = false;
            self.connection.recycle(message);
        }
    }

    /// One packet per channel and round, as full as the peer allows.
    pub(super) fn send_data(&mut self) -> Result<()> {
        let mut sent = 0;
        while sent < TURN_SENT {
            if self.packets.socket(|s| s.unsent()) >= UNSENT_HIGH && !self.flush()? {
                return Ok(());
            }
            let Some(token) = self.sendable.pop_front() else { return Ok(()) };
            match self.send_one(token)? {
                Some(n) => sent += n,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Sends a channel's next packet and lines it up again if it has more; `None`: a key exchange runs.
    pub(super) fn send_one(&mut self, token: Token) -> Result<Option<usize>> {
        if self.links.contains_key(&token) {
            return self.send_link(token);
        }
        let Some(entry) = self.entries.get_mut(&token) else { return Ok(Some(0)) };
        entry.in_turn = false;
        let Some(id) = entry.id else { return Ok(Some(0)) };
        if entry.outbound.is_empty() {
            entry.eof_wanted = entry.pipe.take_outbound(&mut entry.outbound);
        }
        if entry.outbound.is_empty() {
            if entry.eof_wanted && !entry.eof_sent {
                entry.eof_sent = true;
                self.connection.eof(id);
                self.close_if_sent(token);
            }
            return Ok(Some(0));
        }
        let n = self.connection.sendable(id).min(entry.outbound.front().len());
        if n == 0 {
            // No window: its next WINDOW_ADJUST lines it up again.
            return Ok(Some(0));
        }
        let header = self.connection.data_header(id, n);
        let body = &entry.outbound.front()[..n];
        if self.packets.send(header.as_ref(), body)? == Sent::NotNow {
            let body = body.to_vec();
            entry.outbound.consume(n, &self.shared.pool);
            self.held = Some(Held::Data { token, header, body });
            self.line_up(token);
            return Ok(None);
        }
        entry.outbound.consume(n, &self.shared.pool);
        self.data_sent(token, n);
        self.line_up(token);
        Ok(Some(n))
    }

    pub(super) fn data_sent(&mut self, token: Token, n: usize) {
        self.trimmed = false;
        let mark = self.packets.socket(|s| s.taken());
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.mark = mark;
        entry.pipe.sent(n);
        if entry.outbound.is_empty() {
            entry.eof_wanted = entry.pipe.take_outbound(&mut entry.outbound);
        }
    }

    /// Writes to the socket; true when nothing is left. If the write fails, what the server said last is read first.
    pub(super) fn flush(&mut self) -> Result<bool> {
        let error = match self.packets.flush() {
            Ok(flushed) => return Ok(flushed),
            Err(error) => error,
        };
        loop {
            self.packets.readable();
            self.packets.socket(|s| s.allow(TURN_BYTES));
            match self.packets.receive()? {
                Incoming::Payload(payload) => self.payload(payload)?,
                Incoming::Later => {}
                Incoming::Empty => return Err(error),
            }
        }
    }

    /// Tells the writers that wait for it that their bytes are with the kernel.
    pub(super) fn tell_flushed(&mut self) {
        if self.flushing.is_empty() || self.held.is_some() || self.connection.has_messages() {
            return;
        }
        let (flushed, taken) = self.packets.socket(|s| (s.flushed(), s.taken()));
        let entries = &mut self.entries;
        self.flushing.retain_mut(|(token, eof_end)| {
            let Some(entry) = entries.get_mut(token) else { return false };
            let empty = entry.outbound.is_empty() && !entry.pipe.has_outbound();
            let eof_done = !entry.eof_wanted || entry.eof_sent;
            if !empty || !eof_done {
                return true;
            }
            // The EOF is a control message and has no mark: it is out when all that is taken by now is, and not what
            // others send behind it.
            let due = if entry.eof_sent { *eof_end.get_or_insert(taken) } else { entry.mark };
            if flushed < due {
                return true;
            }
            entry.pipe.flushed(entry.eof_sent);
            false
        });
    }
}
