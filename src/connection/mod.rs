//! RFC 4254, the connection protocol: all channels of one connection.
//!
//! Pure: decrypted payloads (message numbers 80 and up) go in, payloads to send and [`Event`]s come out. No I/O, no
//! clock, no thread. One owner drives it:
//!
//! * everything received goes through [`Connection::received`], in order;
//! * [`Connection::next_message`] is emptied before any data is sent: messages keep the order in which they were queued,
//!   and data sent behind them is then in order too;
//! * data is not queued here: [`Connection::sendable`] says how much one message may carry, and
//!   [`Connection::data_header`] is sent at once, in front of that many bytes.
//!
//! What a hostile peer can make this hold is bounded: its unanswered opens, our unsent answers, and per channel one
//! pending window adjustment.

#![cfg_attr(
    not(any(test, feature = "_faults")),
    allow(dead_code, unused_imports, reason = "some of it only the tests and the fuzz targets ask for")
)]

mod channel;
#[cfg(any(test, feature = "_faults"))]
pub mod fuzzing;
mod outbox;
#[cfg(test)]
mod pair;
mod table;
#[cfg(test)]
mod tests;
mod violation;
mod wire;

use std::ops::Range;

use crate::error::Stream;
use channel::{Channel, Fate, Peer};
use outbox::{Outbox, Outgoing};
use table::Table;
use wire::Message;

pub(crate) use channel::ChannelId;
pub(crate) use violation::Violation;
pub(crate) use wire::{
    allocated_port, direct_streamlocal, direct_tcpip, forwarded_streamlocal, forwarded_tcpip, host_keys,
    streamlocal_forward, tcpip_forward, ChannelRequest, DataHeader, OpenFailure,
};

/// The maximum packet size we advertise: bytes of data in one message that we accept, and the most we send in one.
pub(crate) const MAX_PACKET: u32 = 32768;

/// Channels that the peer may ask for before we have answered (the owner answers each as soon as it sees it).
const MAX_UNANSWERED_OPENS: usize = 1024;

/// What a received payload means to the owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// Dealt with in here, or nothing to do.
    Nothing,
    /// The peer agreed to our open (§5.1). Also comes for a channel that was closed while it was being opened; its
    /// [`Closed`](Event::Closed) follows.
    Opened { channel: ChannelId },
    /// The peer refused our open (§5.1). The last event of this channel.
    OpenFailed { channel: ChannelId, reason: u32, description: &'a [u8] },
    /// The peer opens a channel: to be answered by [`Connection::accept`] or [`Connection::refuse`].
    OpenRequested { channel: ChannelId, kind: &'a [u8], data: &'a [u8] },
    /// Data, at least one byte: `range` is where it lies in the payload (§5.2).
    Data { channel: ChannelId, stream: Stream, range: Range<usize> },
    /// Data that used up window but is nobody's: on a channel we have closed, or of an unknown extended type.
    Ignored { channel: ChannelId, bytes: u32 },
    /// The peer's window has room (§5.2).
    Writable { channel: ChannelId },
    /// The peer sends no more data (§5.3).
    Eof { channel: ChannelId },
    /// The peer's CLOSE (§5.3), and ours is queued. The last event of this channel; requests not answered until now
    /// never will be.
    Closed { channel: ChannelId },
    /// The answer to the channel's oldest unanswered request (§5.4).
    Reply { channel: ChannelId, success: bool },
    /// The command ended with a status (§6.10). Final only at [`Closed`](Event::Closed).
    ExitStatus { channel: ChannelId, status: u32 },
    /// The command was ended by a signal, named without SIG (§6.10).
    ExitSignal { channel: ChannelId, name: &'a [u8], core_dumped: bool, message: &'a [u8] },
    /// The peer reads no more of what we send (`eow@openssh.com`).
    Eow { channel: ChannelId },
    /// The answer to the oldest unanswered global request (§4).
    GlobalReply { success: bool, data: &'a [u8] },
    /// The server's host keys (`hostkeys-00@openssh.com`), to be read by [`host_keys`].
    HostKeys { data: &'a [u8] },
}

/// All channels of one connection, and what waits to be sent.
#[derive(Debug, Default)]
pub(crate) struct Connection {
    channels: Table,
    outbox: Outbox,
    /// Global requests of ours that the peer has not answered.
    unanswered_globals: usize,
    /// Opens of the peer that we have not answered.
    unanswered_opens: usize,
}

/// What the owner does.
impl Connection {
    /// A connection without channels.
    pub(crate) fn new() -> Connection {
        Connection::default()
    }

    /// Asks the peer for a channel (§5.1) on which it may send `window` bytes at first. Any number may be in flight; the
    /// answer is [`Event::Opened`] or [`Event::OpenFailed`].
    ///
    /// Requests, grants, EOF and CLOSE may follow at once: they go out when the peer has agreed.
    pub(crate) fn open(&mut self, kind: &str, data: &[u8], window: u32) -> ChannelId {
        let id = self.channels.insert(|id| Channel::opening(id, window));
        let (kind, sender) = (kind.as_bytes(), id.number);
        self.queue(Message::Open { kind, sender, window, max_packet: MAX_PACKET, data });
        id
    }

    /// Agrees to an [`Event::OpenRequested`] and lets the peer send `window` bytes at first.
    pub(crate) fn accept(&mut self, id: ChannelId, window: u32) {
        let Some(recipient) = self.channels.get_mut(id).and_then(|channel| channel.accept(window)) else { return };
        self.unanswered_opens -= 1;
        let (sender, max_packet) = (id.number, MAX_PACKET);
        self.reply(Message::OpenConfirmation { recipient, sender, window, max_packet, data: &[] });
    }

    /// Refuses an [`Event::OpenRequested`], which ends the channel. `description` is shown to people on the other side.
    pub(crate) fn refuse(&mut self, id: ChannelId, reason: OpenFailure, description: &str) {
        let Some(recipient) = self.channels.get(id).and_then(Channel::requested_by) else { return };
        self.unanswered_opens -= 1;
        self.channels.remove(id);
        self.reply(Message::OpenFailure { recipient, reason: reason as u32, description: description.as_bytes() });
    }

    /// Queues a request on a channel (§5.4). With `want_reply` an [`Event::Reply`] answers it, in order.
    ///
    /// `false`, and nothing is queued, if the channel has ended, or our CLOSE is sent, or we have not accepted it.
    #[must_use]
    pub(crate) fn request(&mut self, id: ChannelId, request: &ChannelRequest<'_>, want_reply: bool) -> bool {
        let Some(channel) = self.channels.get_mut(id).filter(|channel| channel.may_send_messages()) else {
            return false;
        };
        if want_reply {
            channel.asked();
        }
        let mut message = self.outbox.buffer();
        request.encode(channel.recipient(), want_reply, &mut message);
        self.send(id, message);
        true
    }

    /// Queues a global request (§4). With `want_reply` an [`Event::GlobalReply`] answers it, in order.
    pub(crate) fn global_request(&mut self, name: &str, data: &[u8], want_reply: bool) {
        self.unanswered_globals += usize::from(want_reply);
        self.queue(Message::GlobalRequest { name: name.as_bytes(), want_reply, data });
    }

    /// Lets the peer send `bytes` more (§5.2), up to a total of 2^32-1. Does nothing once the peer's EOF has come or our
    /// CLOSE is sent: there is nothing to be sent for it, or no way to say so.
    pub(crate) fn grant(&mut self, id: ChannelId, bytes: u32) {
        if self.channels.get_mut(id).is_some_and(|channel| channel.grant(bytes)) {
            self.outbox.push(Outgoing::Adjust(id));
        }
    }

    /// Bytes of data the peer may still send on this channel; 0 if it has ended.
    pub(crate) fn granted(&self, id: ChannelId) -> u32 {
        self.channels.get(id).map_or(0, Channel::granted)
    }

    /// Bytes of data that one message may carry now: 0 if the channel is not open, the peer's window is used up, or our
    /// EOF or CLOSE is sent.
    pub(crate) fn sendable(&self, id: ChannelId) -> usize {
        self.channels.get(id).map_or(0, Channel::sendable) as usize
    }

    /// The head of a CHANNEL_DATA (§5.2) with `len` bytes, to be sent at once in front of them. Takes them out of the
    /// peer's window.
    ///
    /// # Panics
    /// If `len` is more than [`sendable`](Connection::sendable) allows: the peer would end the connection.
    pub(crate) fn data_header(&mut self, id: ChannelId, len: usize) -> DataHeader {
        let allowed = self.sendable(id);
        assert!(len <= allowed, "{len} bytes of data for channel {id}, where {allowed} may be sent");
        // no more than MAX_PACKET, so the cast keeps it
        let len = len as u32;
        let recipient = self.channels.get_mut(id).map_or(0, |channel| {
            channel.debit(len);
            channel.recipient()
        });
        DataHeader::new(recipient, len)
    }

    /// Says that we send no more data (§5.3). At most once and never after CLOSE: then it does nothing.
    pub(crate) fn eof(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(id).filter(|channel| channel.may_send_messages()) else { return };
        if channel.end_data() {
            let recipient = channel.recipient();
            self.send_message(id, Message::Eof { recipient });
        }
    }

    /// Sends our CLOSE (§5.3), at most once. The channel lives on until the peer's CLOSE comes ([`Event::Closed`]); what
    /// the peer still sends is counted and dropped. On a channel the peer asks for, this refuses it.
    pub(crate) fn close(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(id) else { return };
        if channel.requested_by().is_some() {
            self.refuse(id, OpenFailure::AdministrativelyProhibited, "refused");
        } else if channel.end_all() {
            let recipient = channel.recipient();
            self.send_message(id, Message::Close { recipient });
        }
    }

    /// The next message to send. All of them go out before data does.
    pub(crate) fn next_message(&mut self) -> Option<Vec<u8>> {
        loop {
            match self.outbox.pop()? {
                Outgoing::Message(bytes) | Outgoing::Reply(bytes) => return Some(bytes),
                // a channel that is gone has its CLOSE further back in the queue: the adjustment is of no use to it
                Outgoing::Adjust(id) => {
                    if let Some(adjust) = self.window_adjust(id) {
                        return Some(adjust);
                    }
                }
            }
        }
    }

    fn window_adjust(&mut self, id: ChannelId) -> Option<Vec<u8>> {
        let channel = self.channels.get_mut(id)?;
        let adjust = Message::WindowAdjust { recipient: channel.recipient(), bytes: channel.tell() };
        Some(self.encode(adjust))
    }

    /// Whether [`next_message`](Connection::next_message) has one.
    pub(crate) fn has_messages(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Takes back the buffer of a message that has been sent, so that the next one need not be allocated.
    pub(crate) fn recycle(&mut self, message: Vec<u8>) {
        self.outbox.recycle(message);
    }

    /// Whether data and requests can pass: the peer has agreed, and no CLOSE has been sent or received.
    pub(crate) fn is_open(&self, id: ChannelId) -> bool {
        self.channels.get(id).is_some_and(Channel::is_open)
    }

    /// Whether the peer has not answered our open yet.
    pub(crate) fn is_opening(&self, id: ChannelId) -> bool {
        self.channels.get(id).is_some_and(Channel::is_opening)
    }

    /// Channels that have a number: those being opened and those waiting for the peer's CLOSE too.
    pub(crate) fn channel_count(&self) -> usize {
        self.channels.len()
    }
}

/// What the peer does.
impl Connection {
    /// Takes one payload in. Does not allocate for data.
    ///
    /// # Errors
    /// A [`Violation`] says how the peer broke the protocol; the connection is of no more use.
    pub(crate) fn received<'a>(&mut self, payload: &'a [u8]) -> Result<Event<'a>, Violation> {
        let message = Message::decode(payload)?;
        if self.has_crossed_our_close(&message) {
            return Ok(Event::Nothing);
        }
        let name = message.name();
        let event = match message {
            Message::Data { recipient, data } => {
                self.received_data(name, recipient, Some(Stream::Stdout), wire::DATA_AT, data)?
            }
            Message::ExtendedData { recipient, data_type, data } => {
                let stream = (data_type == wire::STDERR).then_some(Stream::Stderr);
                self.received_data(name, recipient, stream, wire::EXTENDED_DATA_AT, data)?
            }
            Message::WindowAdjust { recipient, bytes } => self.received_adjust(name, recipient, bytes)?,
            Message::Eof { recipient } => self.received_eof(name, recipient)?,
            Message::Close { recipient } => self.received_close(name, recipient)?,
            Message::Request { recipient, name: request, want_reply, data } => {
                self.received_request(name, recipient, request, want_reply, data)?
            }
            Message::Success { recipient } => self.received_reply(name, recipient, true)?,
            Message::Failure { recipient } => self.received_reply(name, recipient, false)?,
            Message::Open { kind, sender, window, max_packet, data } => {
                self.received_open(kind, Peer { number: sender, window, max_packet }, data)?
            }
            Message::OpenConfirmation { recipient, sender, window, max_packet, .. } => {
                self.received_confirmation(name, recipient, Peer { number: sender, window, max_packet })?
            }
            Message::OpenFailure { recipient, reason, description } => {
                self.received_refusal(name, recipient, reason, description)?
            }
            Message::GlobalRequest { name, want_reply, data } => self.received_global_request(name, want_reply, data),
            Message::RequestSuccess { data } => self.received_global_reply(true, data)?,
            Message::RequestFailure => self.received_global_reply(false, &[])?,
            Message::Ping { data } => self.received_ping(data),
            // never asked for; and the answer to an unknown number, UNIMPLEMENTED, is not ours to send (RFC 4253 §11.4)
            Message::Pong { .. } | Message::Unknown { .. } => Event::Nothing,
        };
        self.outbox.check_replies()?;
        Ok(event)
    }

    /// Whether this was sent between the peer's CLOSE and the arrival of ours. For the peer the channel was not closed
    /// yet (§5.3), so it is no breach: sshd's ClientAlive request goes to any channel it has, even one on which it has
    /// sent CLOSE. Data after CLOSE has no such excuse.
    fn has_crossed_our_close(&self, message: &Message<'_>) -> bool {
        match *message {
            Message::WindowAdjust { recipient, .. }
            | Message::Request { recipient, .. }
            | Message::Success { recipient }
            | Message::Failure { recipient } => self.channels.is_stale(recipient),
            _ => false,
        }
    }
}

/// One message each.
impl Connection {
    fn received_data<'a>(
        &mut self,
        message: &'static str,
        recipient: u32,
        stream: Option<Stream>,
        start: usize,
        data: &[u8],
    ) -> Result<Event<'a>, Violation> {
        let channel = self.channel(message, recipient)?;
        // the length was a uint32 on the wire
        let bytes = data.len() as u32;
        let fate = channel.take(message, bytes)?;
        let channel = channel.id();
        Ok(match (fate, stream) {
            _ if bytes == 0 => Event::Nothing,
            (Fate::Delivered, Some(stream)) => Event::Data { channel, stream, range: start..start + data.len() },
            _ => Event::Ignored { channel, bytes },
        })
    }

    fn received_adjust<'a>(
        &mut self,
        message: &'static str,
        recipient: u32,
        bytes: u32,
    ) -> Result<Event<'a>, Violation> {
        let channel = self.channel(message, recipient)?;
        Ok(if channel.adjusted(bytes)? { Event::Writable { channel: channel.id() } } else { Event::Nothing })
    }

    fn received_eof<'a>(&mut self, message: &'static str, recipient: u32) -> Result<Event<'a>, Violation> {
        let channel = self.channel(message, recipient)?;
        channel.eof_received()?;
        Ok(Event::Eof { channel: channel.id() })
    }

    fn received_close<'a>(&mut self, message: &'static str, recipient: u32) -> Result<Event<'a>, Violation> {
        let channel = self.channel(message, recipient)?;
        channel.require_open(message)?;
        let id = channel.id();
        self.close(id);
        self.channels.remove(id);
        log::debug!("channel {id}: CLOSE received");
        Ok(Event::Closed { channel: id })
    }

    fn received_reply<'a>(
        &mut self,
        message: &'static str,
        recipient: u32,
        success: bool,
    ) -> Result<Event<'a>, Violation> {
        let channel = self.channel(message, recipient)?;
        channel.answered(message)?;
        Ok(Event::Reply { channel: channel.id(), success })
    }

    fn received_request<'a>(
        &mut self,
        message: &'static str,
        recipient: u32,
        name: &[u8],
        want_reply: bool,
        data: &'a [u8],
    ) -> Result<Event<'a>, Violation> {
        let peer_channel = self.channel(message, recipient)?;
        peer_channel.require_open(message)?;
        let channel = peer_channel.id();
        let event = match name {
            b"exit-status" => Event::ExitStatus { channel, status: wire::exit_status(data)? },
            b"exit-signal" => {
                let wire::ExitSignal { name, core_dumped, message } = wire::exit_signal(data)?;
                Event::ExitSignal { channel, name, core_dumped, message }
            }
            b"eow@openssh.com" => Event::Eow { channel },
            _ => Event::Nothing,
        };
        if want_reply {
            self.reply_to_request(channel, event != Event::Nothing);
        }
        Ok(event)
    }

    /// Nothing is said on a channel that we have closed, not even a reply.
    fn reply_to_request(&mut self, id: ChannelId, known: bool) {
        let Some(channel) = self.channels.get(id).filter(|channel| channel.is_open()) else { return };
        let recipient = channel.recipient();
        self.reply(if known { Message::Success { recipient } } else { Message::Failure { recipient } });
    }

    fn received_open<'a>(&mut self, kind: &'a [u8], peer: Peer, data: &'a [u8]) -> Result<Event<'a>, Violation> {
        if self.unanswered_opens == MAX_UNANSWERED_OPENS {
            return Err(Violation::OpenFlood { opens: self.unanswered_opens + 1 });
        }
        self.unanswered_opens += 1;
        let channel = self.channels.insert(|id| Channel::requested(id, peer));
        Ok(Event::OpenRequested { channel, kind, data })
    }

    fn received_confirmation<'a>(
        &mut self,
        message: &'static str,
        recipient: u32,
        peer: Peer,
    ) -> Result<Event<'a>, Violation> {
        let channel = self.channel(message, recipient)?;
        let deferred = channel.confirmed(peer)?;
        let (id, has_untold) = (channel.id(), channel.has_untold());
        if has_untold {
            self.outbox.push(Outgoing::Adjust(id));
        }
        for mut message in deferred {
            wire::readdress(&mut message, peer.number);
            self.outbox.push(Outgoing::Message(message));
        }
        Ok(Event::Opened { channel: id })
    }

    fn received_refusal<'a>(
        &mut self,
        message: &'static str,
        recipient: u32,
        reason: u32,
        description: &'a [u8],
    ) -> Result<Event<'a>, Violation> {
        let channel = self.channel(message, recipient)?;
        channel.refused()?;
        let channel = channel.id();
        self.channels.remove(channel);
        log::debug!("channel {channel}: refused by the peer");
        Ok(Event::OpenFailed { channel, reason, description })
    }

    fn received_ping<'a>(&mut self, data: &[u8]) -> Event<'a> {
        self.reply(Message::Pong { data });
        Event::Nothing
    }

    fn received_global_request<'a>(&mut self, name: &[u8], want_reply: bool, data: &'a [u8]) -> Event<'a> {
        let known = name == b"hostkeys-00@openssh.com";
        if want_reply {
            self.reply(if known { Message::RequestSuccess { data: &[] } } else { Message::RequestFailure });
        }
        if known {
            Event::HostKeys { data }
        } else {
            Event::Nothing
        }
    }

    fn received_global_reply<'a>(&mut self, success: bool, data: &'a [u8]) -> Result<Event<'a>, Violation> {
        self.unanswered_globals = self.unanswered_globals.checked_sub(1).ok_or(Violation::GlobalReplyWithoutRequest)?;
        Ok(Event::GlobalReply { success, data })
    }

    /// The channel a message is for.
    fn channel(&mut self, message: &'static str, recipient: u32) -> Result<&mut Channel, Violation> {
        self.channels.numbered(recipient).ok_or(Violation::UnknownChannel { message, channel: recipient })
    }
}

/// Into the outbox.
impl Connection {
    fn encode(&mut self, message: Message<'_>) -> Vec<u8> {
        let mut bytes = self.outbox.buffer();
        message.encode(&mut bytes);
        bytes
    }

    /// A message of ours that is no channel's.
    fn queue(&mut self, message: Message<'_>) {
        let bytes = self.encode(message);
        self.outbox.push(Outgoing::Message(bytes));
    }

    /// A message that the peer made us send: these are counted.
    fn reply(&mut self, message: Message<'_>) {
        let bytes = self.encode(message);
        self.outbox.push(Outgoing::Reply(bytes));
    }

    fn send_message(&mut self, id: ChannelId, message: Message<'_>) {
        let bytes = self.encode(message);
        self.send(id, bytes);
    }

    /// A message of ours on a channel: at once, or when the peer has told its number.
    fn send(&mut self, id: ChannelId, message: Vec<u8>) {
        match self.channels.get_mut(id).and_then(Channel::deferred) {
            Some(deferred) => deferred.push(message),
            None => self.outbox.push(Outgoing::Message(message)),
        }
    }
}
