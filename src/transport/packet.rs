//! The safe face of the seam: payloads of the connection protocol in and out, key exchanges kept in order.

use std::time::{Duration, Instant};

use ssh2::Session;

use super::chunk::Pool;
use super::fault::Fault;
use super::socket::{End, Socket};
use super::sys::{RawSession, EAGAIN};
use crate::error::{escape, Error};

/// Packets that one call of [`Packets::receive`] reads at most when none of them is for us.
const MAX_FRUITLESS_READS: usize = 256;

/// The payload of a KEXINIT begins with this (RFC 4253 §7.1).
const MSG_KEXINIT: u8 = 20;

/// What [`Packets::receive`] found.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// A payload of 80 and up.
    Payload(Vec<u8>),
    /// Nothing more until the socket is readable.
    Empty,
    /// The budget is used up; there may be more.
    Later,
}

/// What became of a payload given to [`Packets::send`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// It is on its way.
    Taken,
    /// A key exchange runs: give it again later, and nothing else before it.
    NotNow,
}

/// libssh2 as a packet layer. After an error every call returns the same error.
#[derive(Debug)]
pub(crate) struct Packets {
    raw: RawSession,
    /// When the running key exchange began, and how often keys had been taken into use before.
    exchange: Option<(Instant, u32)>,
    /// The host key that was judged at the beginning: another one at a rekey is somebody else.
    host_key: Option<Vec<u8>>,
    /// Since the last read that found nothing, something was sent or read.
    must_read: bool,
    dead: Option<Error>,
}

impl Packets {
    /// A session over the socket, before its handshake.
    pub fn new(socket: Socket, pool: Pool) -> Result<Packets, String> {
        let raw = RawSession::new(socket, pool)?;
        Ok(Packets { raw, exchange: None, host_key: None, must_read: true, dead: None })
    }

    /// Calls the `ssh2` crate, before the connection protocol begins.
    pub fn session<T>(&mut self, f: impl FnOnce(&mut Session) -> T) -> T {
        self.raw.call(f)
    }

    /// The raw session, for what the `ssh2` crate does not offer before the connection protocol begins.
    pub fn raw(&mut self) -> &mut RawSession {
        &mut self.raw
    }

    /// Looks at the socket.
    pub fn socket<R>(&self, f: impl FnOnce(&mut Socket) -> R) -> R {
        self.raw.with(|t| f(&mut t.socket))
    }

    /// Authentication is over: from here on the connection protocol's payloads come to us.
    pub fn begin_connection(&mut self) {
        self.host_key = self.shown_host_key();
        self.raw.open_tap();
        self.socket(Socket::authenticated);
    }

    /// Whether the handshake went through our method; if not, nothing would ever arrive.
    pub fn seam_holds(&self) -> bool {
        self.raw.with(|t| t.inits > 0)
    }

    /// Asks a callback to panic at its next turn.
    pub fn inject(&mut self, fault: Fault) {
        self.raw.with(|t| t.fault = Some(fault));
    }

    /// Whether the connection is over, for the time before the connection protocol: the server disconnected, broke the
    /// protocol, or a callback panicked.
    pub fn check(&mut self) -> Result<(), Error> {
        self.after_call(0);
        self.dead.clone().map_or(Ok(()), Err)
    }

    /// The next payload, in order.
    pub fn receive(&mut self) -> Result<Incoming, Error> {
        for _ in 0..MAX_FRUITLESS_READS {
            if let Some(payload) = self.committed() {
                if payload[0] != MSG_KEXINIT {
                    return Ok(Incoming::Payload(payload));
                }
                self.exchange_keys(payload)?;
                continue;
            }
            if let Some(error) = &self.dead {
                return Err(error.clone());
            }
            let rc = self.raw.transport_read();
            if rc == EAGAIN {
                if self.more_to_come() {
                    continue;
                }
                return Ok(self.nothing_now());
            }
            // What the same call committed comes first, the error after it.
            self.after_call(rc.min(0));
        }
        Ok(Incoming::Later)
    }

    /// A call that said EAGAIN may still have committed something; and for whole-packet ciphers libssh2 says it as soon
    /// as a packet is not complete, without looking whether the socket has the rest.
    fn more_to_come(&self) -> bool {
        self.raw.with(|t| !t.committed.is_empty() || t.socket.may_read_on())
    }

    fn nothing_now(&mut self) -> Incoming {
        self.after_call(EAGAIN);
        if self.dead.is_some() || self.raw.with(|t| t.socket.may_have_more()) {
            return Incoming::Later;
        }
        let ended = self.raw.with(|t| t.socket.end().cloned());
        if let Some(end) = ended {
            // Everything that came before the end has been handed on: now it may be told.
            self.die(lost(end.to_string()));
            return Incoming::Later;
        }
        self.must_read = false;
        Incoming::Empty
    }

    fn committed(&mut self) -> Option<Vec<u8>> {
        self.raw.with(|t| t.committed.pop_front())
    }

    /// Hands the peer's KEXINIT to libssh2, which answers and goes on with the exchange in its reads.
    ///
    /// libssh2 itself would start the exchange from within the read and then forget that a nested read may own a
    /// half-read packet; handed over like this it does not (LIBSSH2 "rev19").
    fn exchange_keys(&mut self, payload: Vec<u8>) -> Result<(), Error> {
        log::debug!("the server starts a key exchange");
        self.exchange = Some((Instant::now(), self.raw.with(|t| t.inits)));
        self.raw.clear_error();
        let rc = self.raw.packet_add(&payload);
        self.raw.with(|t| t.pool.put(payload));
        self.after_call(rc.min(0));
        if rc != EAGAIN && self.exchange.is_some() {
            // It is over and there are no new keys; libssh2 swallows that, and has no words for it.
            self.die(Error::Protocol("a key exchange failed: the server offers none of the algorithms in use".into()));
        }
        self.dead.clone().map_or(Ok(()), Err)
    }

    /// Gives one payload, in two parts, to libssh2.
    pub fn send(&mut self, head: &[u8], body: &[u8]) -> Result<Sent, Error> {
        if let Some(error) = &self.dead {
            return Err(error.clone());
        }
        let rc = self.raw.transport_send(head, body);
        self.must_read = true;
        self.after_call(rc);
        match (&self.dead, rc) {
            (Some(error), _) => Err(error.clone()),
            (None, 0) => Ok(Sent::Taken),
            (None, _) => Ok(Sent::NotNow),
        }
    }

    /// Whether a read is due before anybody may wait for the socket.
    pub fn must_read(&self) -> bool {
        self.must_read || self.dead.is_some()
    }

    /// poll reported the socket readable.
    pub fn readable(&mut self) {
        self.must_read = true;
        self.socket(Socket::set_readable);
    }

    /// Writes what libssh2 has given us; true when all is with the kernel.
    pub fn flush(&mut self) -> Result<bool, Error> {
        let outcome = self.socket(Socket::flush);
        outcome.map_err(|e| {
            // The reason that the server gave, if any, may still be unread: reading goes on until it is found.
            lost(format!("cannot send: {e}"))
        })
    }

    /// When the running key exchange has to be over.
    pub fn exchange_deadline(&self, limit: Duration) -> Option<Instant> {
        self.exchange.and_then(|(since, _)| since.checked_add(limit))
    }

    /// Whether a key exchange runs: nothing can be sent.
    pub fn exchanging(&self) -> bool {
        self.exchange.is_some()
    }

    /// Gives the connection up for a reason found elsewhere.
    pub fn die(&mut self, error: Error) {
        if self.dead.is_none() {
            self.socket(Socket::finish);
            self.dead = Some(error);
        }
    }

    /// Looks at everything that a call into libssh2 may have changed besides its result.
    fn after_call(&mut self, rc: i32) {
        let (inits, panicked, violation, disconnected) =
            self.raw.with(|t| (t.inits, t.panicked.take(), t.violation, t.disconnected.clone()));
        if let Some(text) = panicked {
            self.die(Error::Internal(text));
        }
        if let Some(what) = violation {
            self.die(Error::Protocol(what.into()));
        }
        if let Some(said) = disconnected {
            self.die(lost(format!("the server disconnected: {} (reason {})", escape(&said.text), said.reason)));
        }
        if rc < 0 && rc != EAGAIN {
            let reason = self.reason(rc);
            self.die(reason);
        }
        self.check_exchange(inits);
    }

    /// A copy: libssh2 frees its own at each exchange.
    fn shown_host_key(&mut self) -> Option<Vec<u8>> {
        self.raw.call(|s| s.host_key().map(|(blob, _)| blob.to_vec()))
    }

    /// libssh2 swallows the failure of an exchange in some places; its last error tells.
    fn check_exchange(&mut self, inits: u32) {
        let Some((_, before)) = self.exchange else { return };
        if inits > before {
            log::debug!("new keys are in use");
            self.exchange = None;
            if self.shown_host_key() != self.host_key {
                // The same call may have taken something in behind the new keys.
                self.raw.with(|t| t.committed.clear());
                self.die(Error::Protocol("the server showed another host key at a later key exchange".into()));
            }
            return;
        }
        if let Some((code, text)) = self.raw.last_error() {
            if code != EAGAIN {
                self.die(Error::Protocol(format!("a key exchange failed: {} ({code})", escape(&text))));
            }
        }
    }

    fn reason(&self, rc: i32) -> Error {
        if let Some(end) = self.raw.with(|t| t.socket.end().cloned()) {
            return match end {
                End::TooLarge => Error::Protocol(end.to_string()),
                _ => lost(end.to_string()),
            };
        }
        match rc {
            -4 => Error::Protocol("a packet failed its integrity check (bad MAC)".into()),
            -12 => Error::Protocol("a packet could not be decrypted (bad length or authentication tag)".into()),
            -5 | -8 => Error::Protocol("a key exchange failed: a wrong signature or a damaged packet".into()),
            -13 => lost("the server closed the connection".into()),
            -14 => Error::Protocol("a packet has an impossible form".into()),
            -41 => Error::Protocol("a packet is longer than the protocol allows".into()),
            _ => {
                let words = self.raw.last_error().map(|(_, text)| escape(&text)).unwrap_or_default();
                lost(format!("libssh2 gave up: {words} ({rc})"))
            }
        }
    }

    /// Says goodbye. Nothing may be sent or received afterwards.
    pub fn disconnect(&mut self) {
        if self.dead.is_none() {
            self.raw.disconnect();
        }
    }
}

fn lost(reason: String) -> Error {
    Error::ConnectionLost { reason, silent: None }
}
