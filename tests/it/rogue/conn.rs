//! One connection, seen from the server: packets, key exchanges and logins, one verb for every step, so that a script
//! can do anything in between.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::channel::Channel;
use super::cipher::{flip, Part, Protection, HEAD};
use super::kex::{answer, lists, negotiate, Agreed, HostKey, Offer, Secrets, Transcript, Way};
use super::wire::{invalid, message, msg, Reader};

/// How long any one wait for the client may take, unless the script says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(20);

const BANNER: &str = "SSH-2.0-Rogue_1";

/// A connection in the hands of a script. Everything blocks, each wait for at most `deadline`.
#[derive(Debug)]
pub struct ServerConn {
    stream: TcpStream,
    /// Disconnected when the server is dropped; nothing is ever sent.
    stop: Receiver<()>,
    /// How long any one wait for the client may take.
    pub deadline: Duration,
    /// What the next exchange signs with. A script may put another in its place before a rekey.
    pub host_key: HostKey,
    /// What exchanges offer that the *client* begins: the last offer made.
    pub offer: Offer,
    /// The client's identification string.
    pub client_banner: String,
    server_banner: String,
    /// Bytes off the wire that are not yet a packet.
    arrived: Vec<u8>,
    /// Sealed bytes held back by `capture`.
    captured: Option<Vec<u8>>,
    /// Messages that came while something else was waited for, in order.
    pub(super) early: VecDeque<Vec<u8>>,
    sending: Direction,
    receiving: Direction,
    session_id: Option<Vec<u8>>,
    strict: bool,
    exchange: Exchange,
    /// What the last exchange that was finished agreed on.
    agreed: Option<Agreed>,
    pub(super) channels: BTreeMap<u32, Channel>,
    /// Payload bytes of channels both ways since the last exchange.
    pub(super) traffic: u64,
    /// Exchanges finished so far, the first included.
    pub exchanges: u32,
}

#[derive(Debug)]
struct Direction {
    protection: Protection,
    sequence: u32,
}

impl Direction {
    fn plain() -> Self {
        Self { protection: Protection::Plain, sequence: 0 }
    }

    fn count_packet(&mut self) -> u32 {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        sequence
    }
}

/// How far a key exchange has come: each step fills in its field, and both NEWKEYS empty them again.
#[derive(Debug, Default)]
struct Exchange {
    server_kexinit: Option<Vec<u8>>,
    client_kexinit: Option<Vec<u8>>,
    client_point: Option<Vec<u8>>,
    secrets: Option<(Agreed, Secrets)>,
    sent_newkeys: bool,
    received_newkeys: bool,
}

impl ServerConn {
    pub(super) fn new(stream: TcpStream, stop: Receiver<()>, host_key: HostKey) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            stop,
            deadline: DEADLINE,
            host_key,
            offer: Offer::default(),
            client_banner: String::new(),
            server_banner: BANNER.to_owned(),
            arrived: Vec::new(),
            captured: None,
            early: VecDeque::new(),
            sending: Direction::plain(),
            receiving: Direction::plain(),
            session_id: None,
            strict: false,
            exchange: Exchange::default(),
            agreed: None,
            channels: BTreeMap::new(),
            traffic: 0,
            exchanges: 0,
        })
    }

    /// Everything up to the first service request: banners and the first key exchange.
    pub fn handshake(&mut self, offer: &Offer) -> io::Result<()> {
        self.send_banner(BANNER)?;
        self.recv_banner()?;
        self.rekey(offer)
    }

    /// A whole key exchange that we begin: the first one or another. What the client sent before its own KEXINIT is
    /// kept for later.
    pub fn rekey(&mut self, offer: &Offer) -> io::Result<()> {
        self.send_kexinit(offer)?;
        self.recv_kexinit()?;
        self.finish_exchange()
    }

    /// What is left of an exchange once both KEXINITs went over the wire.
    pub fn finish_exchange(&mut self) -> io::Result<()> {
        self.recv_ecdh_init()?;
        let reply = self.kex_reply()?;
        self.send(&reply)?;
        self.send_newkeys()?;
        self.recv_newkeys()
    }

    // ---- banners (RFC 4253 §4.2)

    /// Sends this identification string; the exchange hash will contain it.
    pub fn send_banner(&mut self, banner: &str) -> io::Result<()> {
        self.server_banner = banner.to_owned();
        self.write_raw(format!("{banner}\r\n").as_bytes())
    }

    pub fn recv_banner(&mut self) -> io::Result<()> {
        let until = self.until();
        let end = loop {
            match self.arrived.iter().position(|&byte| byte == b'\n') {
                Some(end) => break end,
                None if self.arrived.len() > 255 => return Err(invalid("an endless banner from the client")),
                None => self.read_more(until)?,
            }
        };
        let line: Vec<u8> = self.arrived.drain(..=end).collect();
        self.client_banner = String::from_utf8_lossy(&line).trim_end().to_owned();
        if self.client_banner.starts_with("SSH-2.0-") {
            Ok(())
        } else {
            Err(invalid(format!("the client's banner is {:?}", self.client_banner)))
        }
    }

    // ---- the steps of a key exchange

    /// Begins an exchange. Sent twice, it is a second KEXINIT, which no exchange has.
    pub fn send_kexinit(&mut self, offer: &Offer) -> io::Result<()> {
        self.offer = offer.clone();
        let kexinit = offer.kexinit();
        self.send(&kexinit)?;
        self.exchange.server_kexinit = Some(kexinit);
        Ok(())
    }

    /// Waits for the client's KEXINIT; what comes before it is kept for later.
    pub fn recv_kexinit(&mut self) -> io::Result<()> {
        loop {
            let payload = self.recv_from_wire()?;
            if payload[0] == msg::KEXINIT {
                self.exchange.client_kexinit = Some(payload);
                return Ok(());
            }
            let payload = self.housekeeping(payload)?;
            self.early.extend(payload);
        }
    }

    /// What the client's KEXINIT offers, ten lists, while its exchange is going on.
    pub fn client_lists(&self) -> io::Result<Vec<Vec<String>>> {
        lists(step(&self.exchange.client_kexinit)?)
    }

    /// Waits for the client's point.
    pub fn recv_ecdh_init(&mut self) -> io::Result<()> {
        if self.agreed()?.wrong_guess {
            self.recv_in_exchange(msg::KEX_ECDH_INIT)?;
        }
        let payload = self.recv_in_exchange(msg::KEX_ECDH_INIT)?;
        let point = Reader::message(&payload, msg::KEX_ECDH_INIT)?.string()?.to_vec();
        self.exchange.client_point = Some(point);
        Ok(())
    }

    /// The payload of KEX_ECDH_REPLY, not yet sent. From here on both NEWKEYS may come.
    pub fn kex_reply(&mut self) -> io::Result<Vec<u8>> {
        let agreed = self.agreed()?;
        let transcript = Transcript {
            client_banner: &self.client_banner,
            server_banner: &self.server_banner,
            client_kexinit: step(&self.exchange.client_kexinit)?,
            server_kexinit: step(&self.exchange.server_kexinit)?,
            client_point: step(&self.exchange.client_point)?,
        };
        let (reply, secrets) = answer(&transcript, &self.host_key)?;
        if self.session_id.is_none() {
            self.session_id = Some(secrets.hash.clone());
            self.strict = agreed.strict;
        }
        self.exchange.secrets = Some((agreed, secrets));
        Ok(reply)
    }

    /// Sends NEWKEYS and seals what follows with the new keys.
    pub fn send_newkeys(&mut self) -> io::Result<()> {
        let protection = self.new_protection(Way::ServerToClient)?;
        self.send(&[msg::NEWKEYS])?;
        self.sending = self.rekeyed(protection, self.sending.sequence);
        self.exchange.sent_newkeys = true;
        self.end_exchange_if_done();
        Ok(())
    }

    /// Waits for the client's NEWKEYS and opens what follows with the new keys.
    pub fn recv_newkeys(&mut self) -> io::Result<()> {
        let protection = self.new_protection(Way::ClientToServer)?;
        self.recv_in_exchange(msg::NEWKEYS)?;
        self.receiving = self.rekeyed(protection, self.receiving.sequence);
        self.exchange.received_newkeys = true;
        self.end_exchange_if_done();
        Ok(())
    }

    fn agreed(&self) -> io::Result<Agreed> {
        negotiate(step(&self.exchange.server_kexinit)?, step(&self.exchange.client_kexinit)?)
    }

    /// No exchange is going on: neither side has sent a KEXINIT that was not followed by NEWKEYS both ways.
    pub fn is_between_exchanges(&self) -> bool {
        self.exchange.server_kexinit.is_none() && self.exchange.client_kexinit.is_none()
    }

    /// Both sides do strict kex.
    pub fn is_strict(&self) -> bool {
        self.strict
    }

    /// What the keys in use were agreed for.
    pub fn agreed_before(&self) -> io::Result<&Agreed> {
        step(&self.agreed)
    }

    fn new_protection(&self, way: Way) -> io::Result<Protection> {
        let (agreed, secrets) = step(&self.exchange.secrets)?;
        Ok(secrets.protection(agreed, step(&self.session_id)?, way))
    }

    fn rekeyed(&self, protection: Protection, sequence: u32) -> Direction {
        Direction { protection, sequence: if self.strict { 0 } else { sequence } }
    }

    fn end_exchange_if_done(&mut self) {
        if self.exchange.sent_newkeys && self.exchange.received_newkeys {
            self.agreed = std::mem::take(&mut self.exchange).secrets.map(|(agreed, _)| agreed);
            self.traffic = 0;
            self.exchanges += 1;
        }
    }

    /// The next message inside an exchange. The client has sent its KEXINIT, so nothing of a channel may come now.
    fn recv_in_exchange(&mut self, number: u8) -> io::Result<Vec<u8>> {
        loop {
            let payload = self.recv_from_wire()?;
            if payload[0] == number {
                return Ok(payload);
            }
            if let Some(payload) = self.housekeeping(payload)? {
                return Err(invalid(format!("message {} from the client inside a key exchange", payload[0])));
            }
        }
    }

    // ---- messages out

    /// Sends one message in one packet.
    pub fn send(&mut self, payload: &[u8]) -> io::Result<()> {
        let packet = self.seal(payload);
        self.write_raw(&packet)
    }

    /// The packet of this message. It counts as sent: its number and key stream are used up.
    pub fn seal(&mut self, payload: &[u8]) -> Vec<u8> {
        let sequence = self.sending.count_packet();
        self.sending.protection.seal(sequence, payload)
    }

    /// `seal` for a packet that is not a whole number of blocks, its MAC or tag right: no honest server makes one.
    pub fn seal_unaligned(&mut self, payload: &[u8]) -> Vec<u8> {
        let sequence = self.sending.count_packet();
        self.sending.protection.seal_unaligned(sequence, payload)
    }

    /// Whatever `send` sends is collected and given back instead: to be cut, joined, damaged, or written in one segment.
    pub fn capture(&mut self, send: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<Vec<u8>> {
        let outer = self.captured.replace(Vec::new());
        let sent = send(self);
        let bytes = std::mem::replace(&mut self.captured, outer).unwrap_or_default();
        sent.map(|()| bytes)
    }

    /// Sends a packet in pieces of the sizes given, the rest as the last, with a pause behind each but the last.
    pub fn send_split(&mut self, payload: &[u8], pieces: &[usize], pause: Duration) -> io::Result<()> {
        let packet = self.seal(payload);
        self.write_split(&packet, pieces, pause)
    }

    /// `send_split` for bytes that are already sealed.
    pub fn write_split(&mut self, mut bytes: &[u8], pieces: &[usize], pause: Duration) -> io::Result<()> {
        for &size in pieces {
            let (piece, rest) = bytes.split_at(size.min(bytes.len()));
            self.write_raw(piece)?;
            self.pause(pause)?;
            bytes = rest;
        }
        self.write_raw(bytes)
    }

    /// Sends a packet with one bit of its MAC or tag flipped.
    pub fn send_with_bad_mac(&mut self, payload: &[u8]) -> io::Result<()> {
        self.send_corrupted(payload, Part::Tag)
    }

    /// Sends a packet with one bit flipped somewhere.
    pub fn send_corrupted(&mut self, payload: &[u8], part: Part) -> io::Result<()> {
        let mut packet = self.seal(payload);
        flip(&mut packet, part);
        self.write_raw(&packet)
    }

    /// SSH_MSG_DISCONNECT (RFC 4253 §11.1) with this reason and text. The socket stays open.
    pub fn disconnect(&mut self, reason: u32, text: &str) -> io::Result<()> {
        self.send(&message(msg::DISCONNECT).u32(reason).string(text).string("").done())
    }

    /// Bytes as they are, in one write.
    pub fn write_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some(captured) = &mut self.captured {
            captured.extend_from_slice(bytes);
            return Ok(());
        }
        self.stream.set_write_timeout(Some(self.deadline))?;
        self.stream.write_all(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::TimedOut, "the client does not read"),
            _ => error,
        })
    }

    // ---- messages in

    /// The next message, whatever it is; those that were kept for later come first.
    pub fn recv(&mut self) -> io::Result<Vec<u8>> {
        match self.early.pop_front() {
            Some(payload) => Ok(payload),
            None => self.recv_from_wire(),
        }
    }

    /// The next message that is not the transport's own: IGNORE, DEBUG and UNIMPLEMENTED are skipped, a key exchange
    /// that the client begins is done, a disconnect is `ConnectionAborted` with the client's text.
    pub fn next(&mut self) -> io::Result<Vec<u8>> {
        match self.early.pop_front() {
            Some(payload) => Ok(payload),
            None => self.next_from_wire(),
        }
    }

    /// The next message that is `wanted`; the others are kept for later.
    pub fn next_where(&mut self, wanted: impl Fn(&[u8]) -> bool) -> io::Result<Vec<u8>> {
        if let Some(found) = self.early.iter().position(|payload| wanted(payload)) {
            return Ok(self.early.remove(found).unwrap_or_default());
        }
        loop {
            let payload = self.next_from_wire()?;
            if wanted(&payload) {
                return Ok(payload);
            }
            self.early.push_back(payload);
        }
    }

    /// Waits for a message of this number; the others are kept for later.
    pub fn expect(&mut self, number: u8) -> io::Result<Vec<u8>> {
        self.next_where(|payload| payload[0] == number)
    }

    /// True if no message comes within `quiet`, ignoring what is the transport's own.
    pub fn is_silent_for(&mut self, quiet: Duration) -> io::Result<bool> {
        let deadline = std::mem::replace(&mut self.deadline, quiet);
        let next = self.next();
        self.deadline = deadline;
        match next {
            Ok(payload) => {
                self.early.push_front(payload);
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn next_from_wire(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let payload = self.recv_from_wire()?;
            if payload[0] == msg::KEXINIT && self.exchange.server_kexinit.is_none() {
                self.answer_exchange(payload)?;
            } else if let Some(payload) = self.housekeeping(payload)? {
                return Ok(payload);
            }
        }
    }

    /// Does the exchange that the client began with this KEXINIT.
    fn answer_exchange(&mut self, kexinit: Vec<u8>) -> io::Result<()> {
        self.send_kexinit(&self.offer.clone())?;
        self.exchange.client_kexinit = Some(kexinit);
        self.finish_exchange()
    }

    fn housekeeping(&self, payload: Vec<u8>) -> io::Result<Option<Vec<u8>>> {
        match payload[0] {
            msg::IGNORE | msg::DEBUG | msg::UNIMPLEMENTED => Ok(None),
            msg::DISCONNECT => {
                let mut fields = Reader::message(&payload, msg::DISCONNECT)?;
                let (reason, text) = (fields.u32()?, fields.text()?);
                let text = format!("the client disconnects: {text} (reason {reason})");
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, text))
            }
            _ => Ok(Some(payload)),
        }
    }

    /// The next packet, opened. Nothing of it is lost if the deadline passes in its middle.
    fn recv_from_wire(&mut self) -> io::Result<Vec<u8>> {
        self.recv_before(self.until())
    }

    fn recv_before(&mut self, until: Instant) -> io::Result<Vec<u8>> {
        while self.arrived.len() < HEAD {
            self.read_more(until)?;
        }
        let mut head = [0; HEAD];
        head.copy_from_slice(&self.arrived[..HEAD]);
        let size = self.receiving.protection.packet_size(self.receiving.sequence, &head)?;
        while self.arrived.len() < size {
            self.read_more(until)?;
        }
        let packet = self.arrived.drain(..size).collect();
        let sequence = self.receiving.count_packet();
        self.receiving.protection.open(sequence, packet)
    }

    /// Bytes off the wire as they are, what has arrived already first. Empty means that the client has closed.
    pub fn read_raw(&mut self) -> io::Result<Vec<u8>> {
        if self.arrived.is_empty() {
            match self.read_more(self.until()) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                outcome => outcome?,
            }
        }
        Ok(std::mem::take(&mut self.arrived))
    }

    fn until(&self) -> Instant {
        Instant::now() + self.deadline
    }

    fn read_more(&mut self, until: Instant) -> io::Result<()> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, "the client sends nothing");
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(late());
        }
        self.stream.set_read_timeout(Some(left))?;
        let mut buffer = [0; 32 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the client has closed the connection")),
            Ok(count) => {
                self.arrived.extend_from_slice(&buffer[..count]);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(late()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }

    // ---- time, and the end

    /// Does nothing for this long, reads nothing either. Ends early, as an error, when the server is dropped.
    pub fn pause(&self, time: Duration) -> io::Result<()> {
        match self.stop.recv_timeout(time) {
            Err(RecvTimeoutError::Timeout) => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server is being dropped")),
        }
    }

    /// Reads and throws away, answers nothing, until the client closes (`Ok`) or the deadline passes.
    pub fn ignore_until_closed(&mut self) -> io::Result<()> {
        let until = self.until();
        loop {
            self.arrived.clear();
            match self.read_more(until) {
                Ok(()) => {}
                Err(error) if is_gone(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads what comes until the client is gone and gives back its last words: the text of its disconnect message, or
    /// what happened to the socket. All else that it still sends is thrown away; no exchange is begun or continued.
    /// `TimedOut` if it stays for longer than `deadline`.
    pub fn wait_for_end(&mut self) -> io::Result<String> {
        let until = self.until();
        loop {
            match self.recv_before(until).and_then(|payload| self.housekeeping(payload)) {
                Ok(_) => {}
                Err(error) if is_gone(&error) => return Ok(error.to_string()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Closes our direction: the client reads an end of file.
    pub fn shutdown_write(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }
}

/// The client went away, in whatever way.
pub fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

fn step<T>(done: &Option<T>) -> io::Result<&T> {
    done.as_ref().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "the script does the steps of a key exchange out of order")
    })
}
