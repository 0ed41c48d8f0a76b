//! Any bytes at all against the protocol: the bodies of the fuzz targets, run by the unit tests too.

use super::wire::Message;
use super::{forwarded_streamlocal, forwarded_tcpip, host_keys, ChannelId, ChannelRequest, Connection, Event};
use super::{OpenFailure, Violation, MAX_PACKET};

/// Decodes a payload every way there is; what was understood must survive being written and read again.
pub fn wire(payload: &[u8]) {
    if let Ok(message) = Message::decode(payload) {
        let mut again = Vec::new();
        message.encode(&mut again);
        assert_eq!(Message::decode(&again), Ok(message));
    }
    let _ = (host_keys(payload), forwarded_tcpip(payload), forwarded_streamlocal(payload));
}

/// Runs `script` as operations of ours and payloads of a hostile peer, in any order.
///
/// A violation changes nothing in the connection, so the run goes on after one and comes further.
pub fn connection(script: &[u8]) {
    let mut run = Run { script, connection: Connection::new(), live: Vec::new(), ended: Vec::new() };
    while let Some(operation) = run.byte() {
        let Some(()) = run.step(operation) else { return };
        run.check();
    }
}

struct Run<'a> {
    script: &'a [u8],
    connection: Connection,
    live: Vec<ChannelId>,
    ended: Vec<ChannelId>,
}

impl<'a> Run<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.script.split_first()?;
        self.script = rest;
        Some(byte)
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.byte()?).min(self.script.len());
        let (bytes, rest) = self.script.split_at(len);
        self.script = rest;
        Some(bytes)
    }

    /// Small numbers, where the channels are, and the edges of uint32.
    fn number(&mut self) -> Option<u32> {
        let byte = self.byte()?;
        Some(match byte {
            0..=199 => u32::from(byte) % 20,
            200..=227 => u32::from(byte) << 8,
            228..=249 => MAX_PACKET + u32::from(byte) - 238,
            _ => u32::MAX - (255 - u32::from(byte)),
        })
    }

    /// A channel, ended or not; one that never was if there is none.
    fn channel(&mut self) -> Option<ChannelId> {
        let pick = usize::from(self.byte()?);
        let all = self.live.len() + self.ended.len();
        let pick = pick.checked_rem(all).unwrap_or_default();
        Some(*self.live.iter().chain(&self.ended).nth(pick).unwrap_or(&ChannelId { number: 9, generation: 9 }))
    }

    /// `None` at the end of the script.
    fn step(&mut self, operation: u8) -> Option<()> {
        match operation % 16 {
            0 => {
                let (window, data) = (self.number()?, self.bytes()?);
                let id = self.connection.open("session", data, window);
                self.live.push(id);
            }
            1 => {
                let (id, window) = (self.channel()?, self.number()?);
                self.connection.accept(id, window);
            }
            2 => {
                let id = self.channel()?;
                let before = self.connection.channel_count();
                self.connection.refuse(id, OpenFailure::ConnectFailed, "no");
                if self.connection.channel_count() < before {
                    self.end(id);
                }
            }
            3 => {
                let (id, command) = (self.channel()?, self.bytes()?);
                let _ = self.connection.request(id, &ChannelRequest::Exec { command }, operation > 127);
            }
            4 => {
                let data = self.bytes()?;
                self.connection.global_request("keepalive@openssh.com", data, operation > 127);
            }
            5 => {
                let (id, bytes) = (self.channel()?, self.number()?);
                self.connection.grant(id, bytes);
            }
            6 => {
                let (id, bytes) = (self.channel()?, self.number()?);
                let len = self.connection.sendable(id).min(bytes as usize);
                assert_eq!(self.connection.data_header(id, len).as_ref().len(), 9);
            }
            7 => {
                let id = self.channel()?;
                self.connection.eof(id);
            }
            8 => {
                let id = self.channel()?;
                let before = self.connection.channel_count();
                self.connection.close(id);
                assert!(!self.connection.is_open(id));
                if self.connection.channel_count() < before {
                    self.end(id);
                }
            }
            9 => self.send(),
            10 => {
                let payload = self.bytes()?;
                self.receive(payload)?;
            }
            _ => {
                let payload = self.likely_payload(operation)?;
                self.receive(&payload)?;
            }
        }
        Some(())
    }

    /// A payload that reaches beyond the decoder: known numbers, channels that exist.
    fn likely_payload(&mut self, operation: u8) -> Option<Vec<u8>> {
        let recipient = self.number()?;
        let value = self.number()?;
        let data = self.bytes()?;
        let peer = Message::OpenConfirmation { recipient, sender: value, window: value, max_packet: value, data };
        let names: [&[u8]; 4] = [b"exit-status", b"exit-signal", b"eow@openssh.com", b"keepalive@openssh.com"];
        let (name, want_reply) = (names[value as usize % 4], operation > 127);
        let message = match operation >> 4 {
            0 | 1 => peer,
            2 => Message::OpenFailure { recipient, reason: value, description: data },
            3 => Message::WindowAdjust { recipient, bytes: value },
            4 => Message::Data { recipient, data },
            5 => Message::ExtendedData { recipient, data_type: value, data },
            6 => Message::Eof { recipient },
            7 => Message::Close { recipient },
            8 | 9 => Message::Request { recipient, name, want_reply, data },
            10 => Message::Success { recipient },
            11 => Message::Failure { recipient },
            12 => Message::Open { kind: data, sender: recipient, window: value, max_packet: value, data },
            13 => Message::GlobalRequest { name: b"hostkeys-00@openssh.com", want_reply, data },
            14 => Message::RequestSuccess { data },
            _ => Message::Ping { data },
        };
        let mut payload = Vec::new();
        message.encode(&mut payload);
        Some(payload)
    }

    fn receive(&mut self, payload: &[u8]) -> Option<()> {
        let event = match self.connection.received(payload) {
            Ok(event) => event,
            // the one that is found after the event, which is lost
            Err(Violation::ReplyFlood { .. }) => return None,
            Err(_) => return Some(()),
        };
        match event {
            Event::OpenRequested { channel, .. } => self.live.push(channel),
            Event::OpenFailed { channel, .. } | Event::Closed { channel } => self.end(channel),
            Event::Data { range, .. } => assert!(!range.is_empty() && range.end <= payload.len()),
            _ => {}
        }
        Some(())
    }

    fn end(&mut self, id: ChannelId) {
        let at = self.live.iter().position(|&live| live == id);
        self.live.swap_remove(at.expect("a channel ends once"));
        self.ended.push(id);
    }

    fn send(&mut self) {
        assert!(self.connection.has_messages() || self.connection.next_message().is_none());
        if let Some(message) = self.connection.next_message() {
            assert!(Message::decode(&message).is_ok(), "we do not send what we would not take");
            self.connection.recycle(message);
        }
    }

    fn check(&self) {
        assert_eq!(self.connection.channel_count(), self.live.len());
        for &id in &self.live {
            assert!(self.connection.sendable(id) <= MAX_PACKET as usize);
        }
        for &id in &self.ended {
            assert!(!self.connection.is_open(id));
            assert_eq!((self.connection.sendable(id), self.connection.granted(id)), (0, 0));
        }
    }
}
