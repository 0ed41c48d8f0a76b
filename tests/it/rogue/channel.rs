//! Channels (RFC 4254 §5) as verbs of a connection. A channel is named by our own number throughout.

use std::io;

use super::conn::ServerConn;
use super::wire::{invalid, message, msg, Reader, Writer};

/// What a confirmed channel lets the client send, and what is granted again once it is half used up.
const WINDOW: u32 = 2 * 1024 * 1024;

const MAX_PACKET: u32 = 32 * 1024;

/// Our numbers begin here, so that a client that confuses them with its own is noticed.
const FIRST_CHANNEL: u32 = 700;

/// The reasons of RFC 4254 §5.1.
pub mod reason {
    pub const ADMINISTRATIVELY_PROHIBITED: u32 = 1;
    pub const CONNECT_FAILED: u32 = 2;
    pub const UNKNOWN_CHANNEL_TYPE: u32 = 3;
    pub const RESOURCE_SHORTAGE: u32 = 4;
}

/// An open channel.
#[derive(Debug)]
pub struct Channel {
    /// The client's number.
    pub peer: u32,
    /// What the client still lets us send.
    pub window: u32,
    pub max_packet: u32,
    /// What we still let the client send.
    pub granted: u32,
    /// We have sent CLOSE.
    pub closed: bool,
    pub(super) input: Input,
}

/// What happens to what the client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// It is thrown away.
    Discard,
    /// It is sent back; at its end the command ends with status 0.
    Echo,
    /// It is counted; at its end the number is printed and the command ends with status 0.
    Count(u64),
    /// It is left in the window: nothing is granted again.
    Stall,
}

/// A CHANNEL_OPEN from the client.
#[derive(Clone, Debug)]
pub struct Open {
    pub kind: String,
    pub peer: u32,
    pub window: u32,
    pub max_packet: u32,
    /// The fields that depend on the kind.
    pub rest: Vec<u8>,
}

impl Open {
    pub fn parse(payload: &[u8]) -> io::Result<Self> {
        let mut fields = Reader::message(payload, msg::CHANNEL_OPEN)?;
        Ok(Self {
            kind: fields.text()?,
            peer: fields.u32()?,
            window: fields.u32()?,
            max_packet: fields.u32()?,
            rest: fields.rest().to_vec(),
        })
    }
}

/// A CHANNEL_REQUEST from the client.
#[derive(Clone, Debug)]
pub struct Request {
    pub channel: u32,
    pub kind: String,
    pub want_reply: bool,
    /// The fields that depend on the kind.
    pub rest: Vec<u8>,
}

impl Request {
    pub fn parse(payload: &[u8]) -> io::Result<Self> {
        let mut fields = Reader::message(payload, msg::CHANNEL_REQUEST)?;
        Ok(Self {
            channel: fields.u32()?,
            kind: fields.text()?,
            want_reply: fields.bool()?,
            rest: fields.rest().to_vec(),
        })
    }

    /// The first string behind the kind: the command of an exec, the name of a subsystem, of a variable, of a signal.
    pub fn text(&self) -> io::Result<String> {
        Reader::new(&self.rest).text()
    }
}

impl ServerConn {
    // ---- opening

    /// Waits for the client to open a channel.
    pub fn expect_open(&mut self) -> io::Result<Open> {
        Open::parse(&self.expect(msg::CHANNEL_OPEN)?)
    }

    /// Confirms with a window of 2 MiB. Gives back our number.
    pub fn confirm(&mut self, open: &Open) -> io::Result<u32> {
        self.confirm_with(open, WINDOW, MAX_PACKET)
    }

    /// Confirms with this window and packet size.
    pub fn confirm_with(&mut self, open: &Open, window: u32, max_packet: u32) -> io::Result<u32> {
        let id = self.channels.keys().next_back().map_or(FIRST_CHANNEL, |&last| last + 1);
        self.channels.insert(
            id,
            Channel {
                peer: open.peer,
                window: open.window,
                max_packet: open.max_packet,
                granted: window,
                closed: false,
                input: Input::Discard,
            },
        );
        let confirmation = message(msg::CHANNEL_OPEN_CONFIRMATION).u32(open.peer).u32(id).u32(window).u32(max_packet);
        self.send(&confirmation.done())?;
        Ok(id)
    }

    /// Refuses with this reason (`reason::…`) and text.
    pub fn refuse_open(&mut self, open: &Open, reason: u32, text: &str) -> io::Result<()> {
        self.send(&message(msg::CHANNEL_OPEN_FAILURE).u32(open.peer).u32(reason).string(text).string("").done())
    }

    // ---- requests of the client

    /// Waits for a request of this kind on any channel; others are kept for later.
    pub fn expect_request(&mut self, kind: &str) -> io::Result<Request> {
        let payload = self.next_where(|payload| Request::parse(payload).is_ok_and(|request| request.kind == kind))?;
        Request::parse(&payload)
    }

    /// Opens a session channel for the client and waits for its exec, which succeeds: our number and the command.
    pub fn expect_exec(&mut self) -> io::Result<(u32, String)> {
        let open = self.expect_open()?;
        self.confirm(&open)?;
        let request = self.expect_request("exec")?;
        self.success(&request)?;
        Ok((request.channel, request.text()?))
    }

    /// Answers CHANNEL_SUCCESS, if an answer is wanted.
    pub fn success(&mut self, request: &Request) -> io::Result<()> {
        self.answer(request, msg::CHANNEL_SUCCESS)
    }

    /// Answers CHANNEL_FAILURE, if an answer is wanted.
    pub fn failure(&mut self, request: &Request) -> io::Result<()> {
        self.answer(request, msg::CHANNEL_FAILURE)
    }

    fn answer(&mut self, request: &Request, number: u8) -> io::Result<()> {
        if !request.want_reply {
            return Ok(());
        }
        let answer = self.on(request.channel, number)?.done();
        self.send(&answer)
    }

    // ---- data

    /// Sends data within the client's window and packet size, waiting for window where there is none. Nothing else of
    /// the connection is served meanwhile; a client that reads nothing for `deadline` is `TimedOut`.
    ///
    /// `NotConnected` if the client closes the channel before all is sent.
    pub fn data(&mut self, channel: u32, bytes: &[u8]) -> io::Result<()> {
        self.send_stream(channel, None, bytes)
    }

    /// `data` for stderr.
    pub fn stderr(&mut self, channel: u32, bytes: &[u8]) -> io::Result<()> {
        self.send_stream(channel, Some(1), bytes)
    }

    /// Sends each byte in a packet of its own, within the client's window. Many packets go out in one write, so that what
    /// costs time is the client's side.
    pub fn data_bytewise(&mut self, channel: u32, bytes: &[u8]) -> io::Result<()> {
        const PACKETS_A_WRITE: usize = 500;
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let (window, _) = self.room(channel)?;
            let (batch, rest) = bytes.split_at(bytes.len().min(window as usize).min(PACKETS_A_WRITE));
            let packets =
                self.capture(|conn| batch.chunks(1).try_for_each(|byte| conn.packet_of_data(channel, byte)))?;
            self.write_raw(&packets)?;
            bytes = rest;
        }
        Ok(())
    }

    fn send_stream(&mut self, channel: u32, code: Option<u32>, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (window, max_packet) = self.room(channel)?;
            let (piece, rest) = bytes.split_at(bytes.len().min(window as usize).min(max_packet as usize));
            match code {
                None => self.packet_of_data(channel, piece)?,
                Some(code) => self.packet_of_extended_data(channel, code, piece)?,
            }
            bytes = rest;
        }
        Ok(())
    }

    /// One packet of data, whatever the window and packet size are; what goes beyond is for the client to punish.
    pub fn packet_of_data(&mut self, channel: u32, bytes: &[u8]) -> io::Result<()> {
        let packet = self.on(channel, msg::CHANNEL_DATA)?.string(bytes).done();
        self.send(&packet)?;
        self.spend(channel, bytes.len())
    }

    /// One packet of extended data; code 1 is stderr.
    pub fn packet_of_extended_data(&mut self, channel: u32, code: u32, bytes: &[u8]) -> io::Result<()> {
        let packet = self.on(channel, msg::CHANNEL_EXTENDED_DATA)?.u32(code).string(bytes).done();
        self.send(&packet)?;
        self.spend(channel, bytes.len())
    }

    fn spend(&mut self, channel: u32, count: usize) -> io::Result<()> {
        let state = self.channel_mut(channel)?;
        state.window = state.window.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
        self.traffic += count as u64;
        Ok(())
    }

    /// What the client's window and packet size are, once there is room for anything.
    fn room(&mut self, channel: u32) -> io::Result<(u32, u32)> {
        loop {
            let state = self.channel(channel)?;
            if state.window > 0 && state.max_packet > 0 {
                return Ok((state.window, state.max_packet));
            }
            let payload = self.next_where(|payload| {
                matches!(payload[0], msg::CHANNEL_WINDOW_ADJUST | msg::CHANNEL_CLOSE)
                    && Reader::new(&payload[1..]).u32().is_ok_and(|recipient| recipient == channel)
            })?;
            if payload[0] == msg::CHANNEL_CLOSE {
                self.early.push_front(payload);
                return Err(io::Error::new(io::ErrorKind::NotConnected, "the client has closed the channel"));
            }
            self.adjust(&payload)?;
        }
    }

    /// What the client lets us send on this channel, by the window adjusts that have been looked at.
    pub fn window(&self, channel: u32) -> io::Result<u32> {
        Ok(self.channel(channel)?.window)
    }

    /// Takes in all window adjusts that come within `quiet` of each other, for a look at `window`.
    pub fn take_adjusts(&mut self, quiet: std::time::Duration) -> io::Result<()> {
        let deadline = std::mem::replace(&mut self.deadline, quiet);
        let outcome = loop {
            match self.expect(msg::CHANNEL_WINDOW_ADJUST).and_then(|payload| self.adjust(&payload)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.deadline = deadline;
        outcome
    }

    pub(super) fn adjust(&mut self, payload: &[u8]) -> io::Result<()> {
        let mut fields = Reader::message(payload, msg::CHANNEL_WINDOW_ADJUST)?;
        let (channel, count) = (fields.u32()?, fields.u32()?);
        let state = self.channel_mut(channel)?;
        state.window = state.window.checked_add(count).ok_or_else(|| invalid("a window of over 4 GiB"))?;
        Ok(())
    }

    /// Lets the client send this much more.
    pub fn grant(&mut self, channel: u32, count: u32) -> io::Result<()> {
        let adjust = self.on(channel, msg::CHANNEL_WINDOW_ADJUST)?.u32(count).done();
        self.send(&adjust)?;
        let state = self.channel_mut(channel)?;
        state.granted = state.granted.saturating_add(count);
        Ok(())
    }

    /// Counts what the client sent against what it was granted, and fails if it was more.
    pub(super) fn consume(&mut self, channel: u32, count: usize) -> io::Result<()> {
        let state = self.channel_mut(channel)?;
        let left = u32::try_from(count).ok().and_then(|count| state.granted.checked_sub(count));
        state.granted = left.ok_or_else(|| invalid("the client sends more than its window"))?;
        self.traffic += count as u64;
        Ok(())
    }

    /// Grants a full window again once half of it is used up.
    pub(super) fn replenish(&mut self, channel: u32) -> io::Result<()> {
        let state = self.channel(channel)?;
        if state.granted < WINDOW / 2 && state.input != Input::Stall && !state.closed {
            self.grant(channel, WINDOW - state.granted)?;
        }
        Ok(())
    }

    // ---- ending

    pub fn eof(&mut self, channel: u32) -> io::Result<()> {
        let eof = self.on(channel, msg::CHANNEL_EOF)?.done();
        self.send(&eof)
    }

    /// The last message of ours on this channel.
    pub fn close(&mut self, channel: u32) -> io::Result<()> {
        let close = self.on(channel, msg::CHANNEL_CLOSE)?.done();
        self.send(&close)?;
        self.channel_mut(channel)?.closed = true;
        Ok(())
    }

    pub fn exit_status(&mut self, channel: u32, status: u32) -> io::Result<()> {
        let request = self.request(channel, "exit-status", false)?.u32(status).done();
        self.send(&request)
    }

    /// A signal by its name without "SIG" (RFC 4254 §6.10).
    pub fn exit_signal(&mut self, channel: u32, name: &str, core_dumped: bool, text: &str) -> io::Result<()> {
        let request = self.request(channel, "exit-signal", false)?;
        self.send(&request.string(name).bool(core_dumped).string(text).string("").done())
    }

    /// Exit status, EOF, CLOSE: how a command ends on a good server.
    pub fn finish(&mut self, channel: u32, status: u32) -> io::Result<()> {
        self.exit_status(channel, status)?;
        self.eof(channel)?;
        self.close(channel)
    }

    // ---- questions to the client

    /// OpenSSH's "end of write": the command will not read any more (PROTOCOL §2.1).
    pub fn eow(&mut self, channel: u32) -> io::Result<()> {
        let request = self.request(channel, "eow@openssh.com", false)?.done();
        self.send(&request)
    }

    /// Asks on a channel whether the client is alive, and waits for its answer: any answer is one.
    pub fn keepalive(&mut self, channel: u32) -> io::Result<()> {
        let request = self.request(channel, "keepalive@openssh.com", true)?.done();
        self.send(&request)?;
        self.next_where(|payload| {
            matches!(payload[0], msg::CHANNEL_SUCCESS | msg::CHANNEL_FAILURE)
                && Reader::new(&payload[1..]).u32().is_ok_and(|recipient| recipient == channel)
        })?;
        Ok(())
    }

    /// A global request that wants an answer, and whether the answer was "success".
    pub fn ask_global(&mut self, kind: &str) -> io::Result<bool> {
        self.send(&message(msg::GLOBAL_REQUEST).string(kind).bool(true).done())?;
        let answer = self.next_where(|payload| matches!(payload[0], msg::REQUEST_SUCCESS | msg::REQUEST_FAILURE))?;
        Ok(answer[0] == msg::REQUEST_SUCCESS)
    }

    /// OpenSSH's transport-level ping: waits for the PONG and checks that it carries the same.
    pub fn ping(&mut self, data: &[u8]) -> io::Result<()> {
        self.send(&message(msg::PING).string(data).done())?;
        let pong = self.expect(msg::PONG)?;
        if Reader::message(&pong, msg::PONG)?.string()? == data {
            Ok(())
        } else {
            Err(invalid("the client's PONG carries something else than our PING"))
        }
    }

    // ---- building blocks

    /// Begins a message to this channel, addressed by the client's number.
    pub fn on(&self, channel: u32, number: u8) -> io::Result<Writer> {
        Ok(message(number).u32(self.channel(channel)?.peer))
    }

    /// Begins a channel request.
    pub fn request(&self, channel: u32, kind: &str, want_reply: bool) -> io::Result<Writer> {
        Ok(self.on(channel, msg::CHANNEL_REQUEST)?.string(kind).bool(want_reply))
    }

    /// The channel that was opened last.
    pub fn newest_channel(&self) -> Option<u32> {
        self.channels.keys().next_back().copied()
    }

    pub fn channel(&self, channel: u32) -> io::Result<&Channel> {
        self.channels.get(&channel).ok_or_else(|| no_such_channel(channel))
    }

    pub fn channel_mut(&mut self, channel: u32) -> io::Result<&mut Channel> {
        self.channels.get_mut(&channel).ok_or_else(|| no_such_channel(channel))
    }
}

fn no_such_channel(channel: u32) -> io::Error {
    invalid(format!("there is no channel {channel}"))
}
