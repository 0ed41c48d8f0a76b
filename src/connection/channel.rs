//! One channel: its stage, what each side has ended, and the two windows (RFC 4254 §5).

use std::fmt;

use super::violation::Violation;
use super::MAX_PACKET;

/// Names one channel of one connection, from its open to its last event.
///
/// The number on the wire is reused, the generation is not: a handle kept too long reaches nothing, never a successor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ChannelId {
    pub(super) number: u32,
    pub(super) generation: u32,
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.number)
    }
}

impl fmt::Debug for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}.{}", self.number, self.generation)
    }
}

/// The peer's end of a channel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    /// Its number of the channel: what we write as the recipient.
    pub(super) number: u32,
    /// Bytes of data we may still send.
    pub(super) window: u32,
    /// The most bytes of data it takes in one message.
    pub(super) max_packet: u32,
}

/// How far a channel has come.
#[derive(Debug)]
pub(super) enum Stage {
    /// Our OPEN is on its way. What is to be sent meanwhile waits here: the recipient's number is not known yet.
    Opening { deferred: Vec<Vec<u8>> },
    /// The peer's OPEN waits for our answer.
    Requested { peer: Peer },
    /// Both numbers are known.
    Open { peer: Peer },
}

/// What we have ended, as far as queued: everything queued goes out in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Sending {
    Open,
    EofSent,
    /// Nothing at all may follow. The channel is kept for what the peer sends until its own CLOSE.
    CloseSent,
}

/// What becomes of received data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Delivered,
    /// We have closed: nobody reads it.
    Dropped,
}

/// One channel.
#[derive(Debug)]
pub(super) struct Channel {
    id: ChannelId,
    stage: Stage,
    sending: Sending,
    /// The peer's EOF has come. (Its CLOSE ends the channel.)
    eof_received: bool,
    /// Bytes the peer has been told it may still send.
    window: u32,
    /// Bytes granted but not told yet: the WINDOW_ADJUST has not been taken out of the outbox. Kept apart, because a
    /// peer that uses them knows what it cannot know.
    untold: u32,
    /// Requests of ours that the peer has not answered.
    unanswered: usize,
}

impl Channel {
    /// A channel whose OPEN we send.
    pub(super) fn opening(id: ChannelId, window: u32) -> Channel {
        Channel::new(id, Stage::Opening { deferred: Vec::new() }, window)
    }

    /// A channel that the peer asks for.
    pub(super) fn requested(id: ChannelId, peer: Peer) -> Channel {
        Channel::new(id, Stage::Requested { peer }, 0)
    }

    fn new(id: ChannelId, stage: Stage, window: u32) -> Channel {
        let channel =
            Channel { id, stage, sending: Sending::Open, eof_received: false, window, untold: 0, unanswered: 0 };
        channel.log();
        channel
    }

    pub(super) fn id(&self) -> ChannelId {
        self.id
    }

    /// The peer agreed to our OPEN: the messages that waited for its number, still to be addressed.
    pub(super) fn confirmed(&mut self, peer: Peer) -> Result<Vec<Vec<u8>>, Violation> {
        let deferred = self.take_opening("CHANNEL_OPEN_CONFIRMATION")?;
        self.enter(Stage::Open { peer });
        Ok(deferred)
    }

    /// The peer refused our OPEN; the channel has ended.
    pub(super) fn refused(&mut self) -> Result<(), Violation> {
        self.take_opening("CHANNEL_OPEN_FAILURE").map(drop)
    }

    fn take_opening(&mut self, message: &'static str) -> Result<Vec<Vec<u8>>, Violation> {
        match &mut self.stage {
            Stage::Opening { deferred } => Ok(std::mem::take(deferred)),
            _ => Err(Violation::NotOpening { message, channel: self.id.number }),
        }
    }

    /// We agree to the peer's OPEN and grant `window`: its number, or `None` if that is not what the channel waits for.
    pub(super) fn accept(&mut self, window: u32) -> Option<u32> {
        let Stage::Requested { peer } = self.stage else { return None };
        self.window = window;
        self.enter(Stage::Open { peer });
        Some(peer.number)
    }

    /// The peer's number if its OPEN waits for our answer.
    pub(super) fn requested_by(&self) -> Option<u32> {
        match self.stage {
            Stage::Requested { peer } => Some(peer.number),
            _ => None,
        }
    }

    /// A violation unless the channel is open on both sides, which `message` requires.
    pub(super) fn require_open(&self, message: &'static str) -> Result<(), Violation> {
        match self.stage {
            Stage::Open { .. } => Ok(()),
            _ => Err(Violation::NotOpen { message, channel: self.id.number }),
        }
    }

    /// Our OPEN has not been answered.
    pub(super) fn is_opening(&self) -> bool {
        matches!(self.stage, Stage::Opening { .. })
    }

    /// Open on both sides, and we have not closed it.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open { .. }) && self.may_send_messages()
    }

    /// Whether messages other than data may still be queued, now or for when the peer has answered.
    pub(super) fn may_send_messages(&self) -> bool {
        self.sending < Sending::CloseSent && !matches!(self.stage, Stage::Requested { .. })
    }

    /// The recipient's number; 0 while it is not known (the message is addressed when it is).
    pub(super) fn recipient(&self) -> u32 {
        match self.stage {
            Stage::Opening { .. } => 0,
            Stage::Requested { peer } | Stage::Open { peer } => peer.number,
        }
    }

    /// Where messages wait until the peer has told its number, if it has not.
    pub(super) fn deferred(&mut self) -> Option<&mut Vec<Vec<u8>>> {
        match &mut self.stage {
            Stage::Opening { deferred } => Some(deferred),
            _ => None,
        }
    }

    /// Bytes of data that one message may carry to the peer now.
    pub(super) fn sendable(&self) -> u32 {
        match self.stage {
            Stage::Open { peer } if self.sending == Sending::Open => peer.window.min(peer.max_packet).min(MAX_PACKET),
            _ => 0,
        }
    }

    /// Takes `len` bytes, at most [`sendable`](Channel::sendable), out of the peer's window.
    pub(super) fn debit(&mut self, len: u32) {
        if let Stage::Open { peer } = &mut self.stage {
            peer.window -= len;
        }
    }

    /// The peer grants `bytes` more. Whether that lets us send.
    pub(super) fn adjusted(&mut self, bytes: u32) -> Result<bool, Violation> {
        self.require_open("CHANNEL_WINDOW_ADJUST")?;
        if let Stage::Open { peer } = &mut self.stage {
            let channel = self.id.number;
            let overflow = Violation::WindowOverflow { channel, window: peer.window, bytes };
            peer.window = peer.window.checked_add(bytes).ok_or(overflow)?;
        }
        Ok(self.sendable() > 0)
    }

    /// Bytes the peer may send, told or about to be told.
    pub(super) fn granted(&self) -> u32 {
        // the sum is kept in range by `grant`
        self.window + self.untold
    }

    /// Grants `bytes` more, up to a total of 2^32-1. Whether a WINDOW_ADJUST is to be queued for it.
    pub(super) fn grant(&mut self, bytes: u32) -> bool {
        if !self.may_send_messages() || self.eof_received {
            return false;
        }
        let bytes = bytes.min(u32::MAX - self.granted());
        let queued_already = self.untold > 0;
        self.untold += bytes;
        bytes > 0 && !queued_already && !self.is_opening()
    }

    /// Whether something was granted while the peer's number was not known.
    pub(super) fn has_untold(&self) -> bool {
        self.untold > 0
    }

    /// The bytes for a WINDOW_ADJUST that is sent now.
    pub(super) fn tell(&mut self) -> u32 {
        let bytes = std::mem::take(&mut self.untold);
        self.window += bytes;
        bytes
    }

    /// Counts received data against the window.
    pub(super) fn take(&mut self, message: &'static str, bytes: u32) -> Result<Fate, Violation> {
        self.require_open(message)?;
        let channel = self.id.number;
        if self.eof_received {
            return Err(Violation::DataAfterEof { channel, bytes });
        }
        if bytes > MAX_PACKET {
            return Err(Violation::PacketTooLarge { channel, bytes, limit: MAX_PACKET });
        }
        let exceeded = Violation::WindowExceeded { channel, bytes, window: self.window };
        self.window = self.window.checked_sub(bytes).ok_or(exceeded)?;
        Ok(if self.sending == Sending::CloseSent { Fate::Dropped } else { Fate::Delivered })
    }

    /// The peer sends no more data.
    pub(super) fn eof_received(&mut self) -> Result<(), Violation> {
        self.require_open("CHANNEL_EOF")?;
        if self.eof_received {
            return Err(Violation::EofAfterEof { channel: self.id.number });
        }
        self.eof_received = true;
        self.log();
        Ok(())
    }

    /// We send no more data. Whether an EOF is to be queued for it.
    pub(super) fn end_data(&mut self) -> bool {
        self.advance_sending(Sending::EofSent)
    }

    /// We send no more at all. Whether a CLOSE is to be queued for it.
    pub(super) fn end_all(&mut self) -> bool {
        self.advance_sending(Sending::CloseSent)
    }

    fn advance_sending(&mut self, to: Sending) -> bool {
        let advances = self.sending < to && self.may_send_messages();
        if advances {
            self.sending = to;
            self.log();
        }
        advances
    }

    /// A request that wants a reply has been queued.
    pub(super) fn asked(&mut self) {
        self.unanswered += 1;
    }

    /// A reply has come: to the oldest request, for replies keep the order of their requests (§5.4).
    pub(super) fn answered(&mut self, message: &'static str) -> Result<(), Violation> {
        self.require_open(message)?;
        let channel = self.id.number;
        self.unanswered = self.unanswered.checked_sub(1).ok_or(Violation::ReplyWithoutRequest { channel })?;
        Ok(())
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
        self.log();
    }

    /// The one place that logs what a channel has become.
    fn log(&self) {
        let stage = match self.stage {
            Stage::Opening { .. } => "opening",
            Stage::Requested { .. } => "requested by the peer",
            Stage::Open { .. } => "open",
        };
        let sending = match self.sending {
            Sending::Open => "",
            Sending::EofSent => ", EOF sent",
            Sending::CloseSent => ", CLOSE sent",
        };
        let received = if self.eof_received { ", EOF received" } else { "" };
        log::debug!("channel {}: {stage}{sending}{received}", self.id);
    }
}
