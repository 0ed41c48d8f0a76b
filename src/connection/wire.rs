//! The messages of RFC 4254 and their bytes (RFC 4251 §5). No input panics; decoding allocates nothing.

use super::violation::Violation;

type Result<T> = std::result::Result<T, Violation>;

/// The message numbers of RFC 4250 §4.1.2, and OpenSSH's ping (OpenSSH PROTOCOL §1.9).
mod number {
    pub(super) const GLOBAL_REQUEST: u8 = 80;
    pub(super) const REQUEST_SUCCESS: u8 = 81;
    pub(super) const REQUEST_FAILURE: u8 = 82;
    pub(super) const CHANNEL_OPEN: u8 = 90;
    pub(super) const CHANNEL_OPEN_CONFIRMATION: u8 = 91;
    pub(super) const CHANNEL_OPEN_FAILURE: u8 = 92;
    pub(super) const CHANNEL_WINDOW_ADJUST: u8 = 93;
    pub(super) const CHANNEL_DATA: u8 = 94;
    pub(super) const CHANNEL_EXTENDED_DATA: u8 = 95;
    pub(super) const CHANNEL_EOF: u8 = 96;
    pub(super) const CHANNEL_CLOSE: u8 = 97;
    pub(super) const CHANNEL_REQUEST: u8 = 98;
    pub(super) const CHANNEL_SUCCESS: u8 = 99;
    pub(super) const CHANNEL_FAILURE: u8 = 100;
    pub(super) const PING: u8 = 192;
    pub(super) const PONG: u8 = 193;
}

/// The lowest number that belongs to the connection protocol (RFC 4250 §4.1.1).
const FIRST: u8 = 80;

/// Where the bytes start in a CHANNEL_DATA: behind the number, the recipient and the string's length.
pub(super) const DATA_AT: usize = 9;

/// Where the bytes start in a CHANNEL_EXTENDED_DATA: behind the data type too.
pub(super) const EXTENDED_DATA_AT: usize = 13;

/// The `data_type_code` of stderr (RFC 4254 §5.2).
pub(super) const STDERR: u32 = 1;

/// One message of the connection protocol. `recipient` is the receiver's number of the channel, `sender` the sender's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message<'a> {
    /// RFC 4254 §4.
    GlobalRequest { name: &'a [u8], want_reply: bool, data: &'a [u8] },
    /// RFC 4254 §4.
    RequestSuccess { data: &'a [u8] },
    /// RFC 4254 §4.
    RequestFailure,
    /// RFC 4254 §5.1.
    Open { kind: &'a [u8], sender: u32, window: u32, max_packet: u32, data: &'a [u8] },
    /// RFC 4254 §5.1.
    OpenConfirmation { recipient: u32, sender: u32, window: u32, max_packet: u32, data: &'a [u8] },
    /// RFC 4254 §5.1. The language tag is written empty and not read: old servers leave it out, nobody shows it.
    OpenFailure { recipient: u32, reason: u32, description: &'a [u8] },
    /// RFC 4254 §5.2.
    WindowAdjust { recipient: u32, bytes: u32 },
    /// RFC 4254 §5.2.
    Data { recipient: u32, data: &'a [u8] },
    /// RFC 4254 §5.2.
    ExtendedData { recipient: u32, data_type: u32, data: &'a [u8] },
    /// RFC 4254 §5.3.
    Eof { recipient: u32 },
    /// RFC 4254 §5.3.
    Close { recipient: u32 },
    /// RFC 4254 §5.4.
    Request { recipient: u32, name: &'a [u8], want_reply: bool, data: &'a [u8] },
    /// RFC 4254 §5.4.
    Success { recipient: u32 },
    /// RFC 4254 §5.4.
    Failure { recipient: u32 },
    /// OpenSSH's transport-level ping.
    Ping { data: &'a [u8] },
    /// Its answer.
    Pong { data: &'a [u8] },
    /// A number that RFC 4254 does not use.
    Unknown { number: u8 },
}

impl<'a> Message<'a> {
    /// Reads one payload. Bytes behind the last field are tolerated: extensions put theirs there.
    ///
    /// # Errors
    /// [`Violation::Empty`], [`Violation::BelowConnection`], [`Violation::Truncated`].
    pub(crate) fn decode(payload: &'a [u8]) -> Result<Message<'a>> {
        let (&number, rest) = payload.split_first().ok_or(Violation::Empty)?;
        if number < FIRST {
            return Err(Violation::BelowConnection { number });
        }
        match number {
            number::GLOBAL_REQUEST..=number::REQUEST_FAILURE => Message::decode_global(number, rest),
            number::CHANNEL_OPEN..=number::CHANNEL_OPEN_FAILURE => Message::decode_open(number, rest),
            _ => Message::decode_channel(number, rest),
        }
    }

    fn decode_global(number: u8, rest: &'a [u8]) -> Result<Message<'a>> {
        let mut r = Reader::new("GLOBAL_REQUEST", rest);
        Ok(match number {
            number::REQUEST_SUCCESS => Message::RequestSuccess { data: rest },
            number::REQUEST_FAILURE => Message::RequestFailure,
            _ => Message::GlobalRequest {
                name: r.string("request name")?,
                want_reply: r.boolean("want reply")?,
                data: r.rest(),
            },
        })
    }

    fn decode_open(number: u8, rest: &'a [u8]) -> Result<Message<'a>> {
        Ok(match number {
            number::CHANNEL_OPEN => {
                let mut r = Reader::new("CHANNEL_OPEN", rest);
                Message::Open {
                    kind: r.string("channel type")?,
                    sender: r.uint32("sender channel")?,
                    window: r.uint32("initial window size")?,
                    max_packet: r.uint32("maximum packet size")?,
                    data: r.rest(),
                }
            }
            number::CHANNEL_OPEN_CONFIRMATION => {
                let mut r = Reader::new("CHANNEL_OPEN_CONFIRMATION", rest);
                Message::OpenConfirmation {
                    recipient: r.recipient()?,
                    sender: r.uint32("sender channel")?,
                    window: r.uint32("initial window size")?,
                    max_packet: r.uint32("maximum packet size")?,
                    data: r.rest(),
                }
            }
            _ => {
                let mut r = Reader::new("CHANNEL_OPEN_FAILURE", rest);
                Message::OpenFailure {
                    recipient: r.recipient()?,
                    reason: r.uint32("reason code")?,
                    description: r.string("description")?,
                }
            }
        })
    }

    fn decode_channel(number: u8, rest: &'a [u8]) -> Result<Message<'a>> {
        let mut r = Reader::new(name(number), rest);
        Ok(match number {
            number::CHANNEL_WINDOW_ADJUST => {
                Message::WindowAdjust { recipient: r.recipient()?, bytes: r.uint32("bytes to add")? }
            }
            number::CHANNEL_DATA => Message::Data { recipient: r.recipient()?, data: r.string("data")? },
            number::CHANNEL_EXTENDED_DATA => Message::ExtendedData {
                recipient: r.recipient()?,
                data_type: r.uint32("data type code")?,
                data: r.string("data")?,
            },
            number::CHANNEL_EOF => Message::Eof { recipient: r.recipient()? },
            number::CHANNEL_CLOSE => Message::Close { recipient: r.recipient()? },
            number::CHANNEL_REQUEST => Message::Request {
                recipient: r.recipient()?,
                name: r.string("request type")?,
                want_reply: r.boolean("want reply")?,
                data: r.rest(),
            },
            number::CHANNEL_SUCCESS => Message::Success { recipient: r.recipient()? },
            number::CHANNEL_FAILURE => Message::Failure { recipient: r.recipient()? },
            number::PING => Message::Ping { data: r.string("data")? },
            number::PONG => Message::Pong { data: r.string("data")? },
            number => Message::Unknown { number },
        })
    }

    /// Appends the message's bytes to `out`.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.number());
        match *self {
            Message::GlobalRequest { name, want_reply, data } => {
                out.string(name).boolean(want_reply).raw(data);
            }
            Message::RequestSuccess { data } => {
                out.raw(data);
            }
            Message::RequestFailure | Message::Unknown { .. } => {}
            Message::Open { kind, sender, window, max_packet, data } => {
                out.string(kind).uint32(sender).uint32(window).uint32(max_packet).raw(data);
            }
            Message::OpenConfirmation { recipient, sender, window, max_packet, data } => {
                out.uint32(recipient).uint32(sender).uint32(window).uint32(max_packet).raw(data);
            }
            Message::OpenFailure { recipient, reason, description } => {
                out.uint32(recipient).uint32(reason).string(description).string(b"");
            }
            Message::WindowAdjust { recipient, bytes } => {
                out.uint32(recipient).uint32(bytes);
            }
            Message::Data { recipient, data } => {
                out.uint32(recipient).string(data);
            }
            Message::ExtendedData { recipient, data_type, data } => {
                out.uint32(recipient).uint32(data_type).string(data);
            }
            Message::Eof { recipient }
            | Message::Close { recipient }
            | Message::Success { recipient }
            | Message::Failure { recipient } => {
                out.uint32(recipient);
            }
            Message::Request { recipient, name, want_reply, data } => {
                out.uint32(recipient).string(name).boolean(want_reply).raw(data);
            }
            Message::Ping { data } | Message::Pong { data } => {
                out.string(data);
            }
        }
    }

    fn number(&self) -> u8 {
        match *self {
            Message::GlobalRequest { .. } => number::GLOBAL_REQUEST,
            Message::RequestSuccess { .. } => number::REQUEST_SUCCESS,
            Message::RequestFailure => number::REQUEST_FAILURE,
            Message::Open { .. } => number::CHANNEL_OPEN,
            Message::OpenConfirmation { .. } => number::CHANNEL_OPEN_CONFIRMATION,
            Message::OpenFailure { .. } => number::CHANNEL_OPEN_FAILURE,
            Message::WindowAdjust { .. } => number::CHANNEL_WINDOW_ADJUST,
            Message::Data { .. } => number::CHANNEL_DATA,
            Message::ExtendedData { .. } => number::CHANNEL_EXTENDED_DATA,
            Message::Eof { .. } => number::CHANNEL_EOF,
            Message::Close { .. } => number::CHANNEL_CLOSE,
            Message::Request { .. } => number::CHANNEL_REQUEST,
            Message::Success { .. } => number::CHANNEL_SUCCESS,
            Message::Failure { .. } => number::CHANNEL_FAILURE,
            Message::Ping { .. } => number::PING,
            Message::Pong { .. } => number::PONG,
            Message::Unknown { number } => number,
        }
    }

    /// The message's name, as violations show it.
    pub(super) fn name(&self) -> &'static str {
        name(self.number())
    }
}

/// The RFC's name of a message number, without the SSH_MSG_.
fn name(number: u8) -> &'static str {
    match number {
        number::GLOBAL_REQUEST => "GLOBAL_REQUEST",
        number::REQUEST_SUCCESS => "REQUEST_SUCCESS",
        number::REQUEST_FAILURE => "REQUEST_FAILURE",
        number::CHANNEL_OPEN => "CHANNEL_OPEN",
        number::CHANNEL_OPEN_CONFIRMATION => "CHANNEL_OPEN_CONFIRMATION",
        number::CHANNEL_OPEN_FAILURE => "CHANNEL_OPEN_FAILURE",
        number::CHANNEL_WINDOW_ADJUST => "CHANNEL_WINDOW_ADJUST",
        number::CHANNEL_DATA => "CHANNEL_DATA",
        number::CHANNEL_EXTENDED_DATA => "CHANNEL_EXTENDED_DATA",
        number::CHANNEL_EOF => "CHANNEL_EOF",
        number::CHANNEL_CLOSE => "CHANNEL_CLOSE",
        number::CHANNEL_REQUEST => "CHANNEL_REQUEST",
        number::CHANNEL_SUCCESS => "CHANNEL_SUCCESS",
        number::CHANNEL_FAILURE => "CHANNEL_FAILURE",
        number::PING => "PING",
        number::PONG => "PONG",
        _ => "an unknown message",
    }
}

/// A CHANNEL_DATA up to where its bytes begin, on the stack: the body is sent from where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DataHeader([u8; DATA_AT]);

impl DataHeader {
    pub(super) fn new(recipient: u32, len: u32) -> DataHeader {
        let mut bytes = [number::CHANNEL_DATA; DATA_AT];
        bytes[1..5].copy_from_slice(&recipient.to_be_bytes());
        bytes[5..].copy_from_slice(&len.to_be_bytes());
        DataHeader(bytes)
    }
}

impl AsRef<[u8]> for DataHeader {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Writes the recipient into a channel message that was encoded before the peer had told its number.
pub(super) fn readdress(message: &mut [u8], recipient: u32) {
    if let Some(field) = message.get_mut(1..5) {
        field.copy_from_slice(&recipient.to_be_bytes());
    }
}

/// A request on a channel (RFC 4254 §6, §5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "the protocol is whole; a shell's escapes will ask for breaks and for others")]
pub(crate) enum ChannelRequest<'a> {
    /// An environment variable for what is started next (§6.4).
    Env { name: &'a [u8], value: &'a [u8] },
    /// A pseudo-terminal (§6.2). Sizes in characters and in pixels, 0 for unknown; `modes` encoded as in §8.
    Pty { term: &'a str, columns: u32, rows: u32, width_px: u32, height_px: u32, modes: &'a [u8] },
    /// The user's shell (§6.5).
    Shell,
    /// A command line, run by the user's shell (§6.5).
    Exec { command: &'a [u8] },
    /// A subsystem such as `sftp` (§6.5).
    Subsystem { name: &'a str },
    /// The terminal's new size (§6.7); asks for no reply.
    WindowChange { columns: u32, rows: u32, width_px: u32, height_px: u32 },
    /// A signal for the command, its name without SIG (§6.9); asks for no reply.
    Signal { name: &'a str },
    /// A serial break (RFC 4335).
    Break { millis: u32 },
    /// We read no more (`eow@openssh.com`); asks for no reply.
    Eow,
    /// The remote side may open channels to our agent (`auth-agent-req@openssh.com`).
    AuthAgent,
    /// Any other request, its data encoded already.
    Other { name: &'a str, data: &'a [u8] },
}

impl ChannelRequest<'_> {
    /// The request's name on the wire.
    pub(crate) fn name(&self) -> &str {
        match self {
            ChannelRequest::Env { .. } => "env",
            ChannelRequest::Pty { .. } => "pty-req",
            ChannelRequest::Shell => "shell",
            ChannelRequest::Exec { .. } => "exec",
            ChannelRequest::Subsystem { .. } => "subsystem",
            ChannelRequest::WindowChange { .. } => "window-change",
            ChannelRequest::Signal { .. } => "signal",
            ChannelRequest::Break { .. } => "break",
            ChannelRequest::Eow => "eow@openssh.com",
            ChannelRequest::AuthAgent => "auth-agent-req@openssh.com",
            ChannelRequest::Other { name, .. } => name,
        }
    }

    /// Appends the whole CHANNEL_REQUEST to `out`.
    pub(super) fn encode(&self, recipient: u32, want_reply: bool, out: &mut Vec<u8>) {
        Message::Request { recipient, name: self.name().as_bytes(), want_reply, data: &[] }.encode(out);
        match *self {
            ChannelRequest::Env { name, value } => {
                out.string(name).string(value);
            }
            ChannelRequest::Pty { term, columns, rows, width_px, height_px, modes } => {
                out.string(term.as_bytes());
                out.uint32(columns).uint32(rows).uint32(width_px).uint32(height_px).string(modes);
            }
            ChannelRequest::Exec { command } => {
                out.string(command);
            }
            ChannelRequest::Subsystem { name } | ChannelRequest::Signal { name } => {
                out.string(name.as_bytes());
            }
            ChannelRequest::WindowChange { columns, rows, width_px, height_px } => {
                out.uint32(columns).uint32(rows).uint32(width_px).uint32(height_px);
            }
            ChannelRequest::Break { millis } => {
                out.uint32(millis);
            }
            ChannelRequest::Other { data, .. } => {
                out.raw(data);
            }
            ChannelRequest::Shell | ChannelRequest::Eow | ChannelRequest::AuthAgent => {}
        }
    }
}

/// Why we refuse a channel that the peer opens (RFC 4254 §5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenFailure {
    /// Not allowed.
    AdministrativelyProhibited = 1,
    /// What it should lead to cannot be reached.
    ConnectFailed = 2,
    /// We do not know this type.
    UnknownChannelType = 3,
    /// Not now: we have too much to do.
    ResourceShortage = 4,
}

/// The data of an `exit-status` request (RFC 4254 §6.10).
pub(super) fn exit_status(data: &[u8]) -> Result<u32> {
    Reader::new("exit-status", data).uint32("exit_status")
}

/// What an `exit-signal` request says (RFC 4254 §6.10). The language tag is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExitSignal<'a> {
    pub(super) name: &'a [u8],
    pub(super) core_dumped: bool,
    pub(super) message: &'a [u8],
}

/// The data of an `exit-signal` request.
pub(super) fn exit_signal(data: &[u8]) -> Result<ExitSignal<'_>> {
    let mut r = Reader::new("exit-signal", data);
    Ok(ExitSignal {
        name: r.string("signal name")?,
        core_dumped: r.boolean("core dumped")?,
        message: r.string("error message")?,
    })
}

/// The public keys in a `hostkeys-00@openssh.com` request, each as a key blob (OpenSSH PROTOCOL §2.5).
///
/// # Errors
/// [`Violation::Truncated`].
pub(crate) fn host_keys(data: &[u8]) -> Result<Vec<&[u8]>> {
    let mut r = Reader::new("hostkeys-00@openssh.com", data);
    let mut keys = Vec::new();
    while !r.is_empty() {
        keys.push(r.string("hostkey")?);
    }
    Ok(keys)
}

/// The open data of a `direct-tcpip` channel: connect to `host`:`port` (RFC 4254 §7.2).
pub(crate) fn direct_tcpip(host: &str, port: u16, origin_host: &str, origin_port: u16) -> Vec<u8> {
    let mut out = Vec::new();
    out.string(host.as_bytes()).uint32(port.into()).string(origin_host.as_bytes()).uint32(origin_port.into());
    out
}

/// The open data of a `direct-streamlocal@openssh.com` channel: connect to the Unix socket `path` (OpenSSH PROTOCOL
/// §2.4).
pub(crate) fn direct_streamlocal(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.string(path).string(b"").uint32(0);
    out
}

/// The data of a `tcpip-forward` or `cancel-tcpip-forward` global request (RFC 4254 §7.1). Port 0 lets the server
/// choose; [`allocated_port`] reads its choice.
pub(crate) fn tcpip_forward(address: &str, port: u16) -> Vec<u8> {
    let mut out = Vec::new();
    out.string(address.as_bytes()).uint32(port.into());
    out
}

/// The data of a `streamlocal-forward@openssh.com` or `cancel-streamlocal-forward@openssh.com` global request (OpenSSH
/// PROTOCOL §2.4).
pub(crate) fn streamlocal_forward(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    out.string(path);
    out
}

/// The port that the server chose for a `tcpip-forward` of port 0 (RFC 4254 §7.1).
///
/// # Errors
/// [`Violation::Truncated`].
pub(crate) fn allocated_port(reply: &[u8]) -> Result<u32> {
    Reader::new("REQUEST_SUCCESS of tcpip-forward", reply).uint32("port")
}

/// The open data of a `forwarded-tcpip` channel (RFC 4254 §7.2). Ports are as received: no check that they are ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ForwardedTcpip<'a> {
    /// The address that was connected to, as our `tcpip-forward` named it.
    pub(crate) address: &'a [u8],
    /// The port that was connected to.
    pub(crate) port: u32,
    /// Where the connection comes from.
    pub(crate) origin_address: &'a [u8],
    /// Its port.
    pub(crate) origin_port: u32,
}

/// Reads the open data of a `forwarded-tcpip` channel.
///
/// # Errors
/// [`Violation::Truncated`].
pub(crate) fn forwarded_tcpip(data: &[u8]) -> Result<ForwardedTcpip<'_>> {
    let mut r = Reader::new("CHANNEL_OPEN of forwarded-tcpip", data);
    Ok(ForwardedTcpip {
        address: r.string("address that was connected")?,
        port: r.uint32("port that was connected")?,
        origin_address: r.string("originator IP address")?,
        origin_port: r.uint32("originator port")?,
    })
}

/// Reads the open data of a `forwarded-streamlocal@openssh.com` channel: the socket's path (OpenSSH PROTOCOL §2.4).
///
/// # Errors
/// [`Violation::Truncated`].
pub(crate) fn forwarded_streamlocal(data: &[u8]) -> Result<&[u8]> {
    Reader::new("CHANNEL_OPEN of forwarded-streamlocal@openssh.com", data).string("socket path")
}

/// Takes fields off the front of a message; knows the message's name for the violation.
struct Reader<'a> {
    message: &'static str,
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    fn new(message: &'static str, left: &'a [u8]) -> Reader<'a> {
        Reader { message, left }
    }

    fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    fn rest(&self) -> &'a [u8] {
        self.left
    }

    fn recipient(&mut self) -> Result<u32> {
        self.uint32("recipient channel")
    }

    fn boolean(&mut self, field: &'static str) -> Result<bool> {
        // every value but 0 is TRUE (RFC 4251 §5)
        self.take(1, field).map(|byte| byte != [0])
    }

    fn uint32(&mut self, field: &'static str) -> Result<u32> {
        let bytes = self.take(4, field)?;
        Ok(bytes.iter().fold(0, |value, &byte| value << 8 | u32::from(byte)))
    }

    fn string(&mut self, field: &'static str) -> Result<&'a [u8]> {
        let len = self.uint32(field)?;
        // a length that does not fit usize does not fit the message either
        self.take(usize::try_from(len).unwrap_or(usize::MAX), field)
    }

    fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8]> {
        let (taken, left) =
            self.left.split_at_checked(len).ok_or(Violation::Truncated { message: self.message, field })?;
        self.left = left;
        Ok(taken)
    }
}

/// Appends fields; each returns the buffer, so that a message is written as it is drawn in the RFC.
trait Fields {
    fn boolean(&mut self, value: bool) -> &mut Self;
    fn uint32(&mut self, value: u32) -> &mut Self;
    fn string(&mut self, bytes: &[u8]) -> &mut Self;
    fn raw(&mut self, bytes: &[u8]) -> &mut Self;
}

impl Fields for Vec<u8> {
    fn boolean(&mut self, value: bool) -> &mut Self {
        self.push(value.into());
        self
    }

    fn uint32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_be_bytes())
    }

    fn string(&mut self, bytes: &[u8]) -> &mut Self {
        // strings of ours come from callers that bound them far below 4 GiB; a longer one is cut, never misframed
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.uint32(len).raw(&bytes[..bytes.len().min(len as usize)])
    }

    fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.extend_from_slice(bytes);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every message, its bytes written by hand, and its fields with the place where each ends.
    #[allow(clippy::type_complexity)]
    fn table() -> Vec<(Message<'static>, &'static [u8], &'static [(usize, &'static str)])> {
        vec![
            (
                Message::GlobalRequest { name: b"ab", want_reply: true, data: b"z" },
                b"\x50\0\0\0\x02ab\x01z",
                &[(7, "request name"), (8, "want reply")],
            ),
            (Message::RequestSuccess { data: b"z" }, b"\x51z", &[]),
            (Message::RequestFailure, b"\x52", &[]),
            (
                Message::Open { kind: b"x11", sender: 1, window: 2, max_packet: 3, data: b"z" },
                b"\x5a\0\0\0\x03x11\0\0\0\x01\0\0\0\x02\0\0\0\x03z",
                &[
                    (8, "channel type"),
                    (12, "sender channel"),
                    (16, "initial window size"),
                    (20, "maximum packet size"),
                ],
            ),
            (
                Message::OpenConfirmation { recipient: 4, sender: 1, window: 2, max_packet: 3, data: b"z" },
                b"\x5b\0\0\0\x04\0\0\0\x01\0\0\0\x02\0\0\0\x03z",
                &[
                    (5, "recipient channel"),
                    (9, "sender channel"),
                    (13, "initial window size"),
                    (17, "maximum packet size"),
                ],
            ),
            (
                Message::OpenFailure { recipient: 4, reason: 2, description: b"no" },
                b"\x5c\0\0\0\x04\0\0\0\x02\0\0\0\x02no\0\0\0\0",
                &[(5, "recipient channel"), (9, "reason code"), (15, "description")],
            ),
            (
                Message::WindowAdjust { recipient: 4, bytes: 0xfffe_fdfc },
                b"\x5d\0\0\0\x04\xff\xfe\xfd\xfc",
                &[(5, "recipient channel"), (9, "bytes to add")],
            ),
            (
                Message::Data { recipient: 4, data: b"ab" },
                b"\x5e\0\0\0\x04\0\0\0\x02ab",
                &[(5, "recipient channel"), (11, "data")],
            ),
            (
                Message::ExtendedData { recipient: 4, data_type: 1, data: b"ab" },
                b"\x5f\0\0\0\x04\0\0\0\x01\0\0\0\x02ab",
                &[(5, "recipient channel"), (9, "data type code"), (15, "data")],
            ),
            (Message::Eof { recipient: 4 }, b"\x60\0\0\0\x04", &[(5, "recipient channel")]),
            (Message::Close { recipient: 4 }, b"\x61\0\0\0\x04", &[(5, "recipient channel")]),
            (
                Message::Request { recipient: 4, name: b"env", want_reply: false, data: b"z" },
                b"\x62\0\0\0\x04\0\0\0\x03env\0z",
                &[(5, "recipient channel"), (12, "request type"), (13, "want reply")],
            ),
            (Message::Success { recipient: 4 }, b"\x63\0\0\0\x04", &[(5, "recipient channel")]),
            (Message::Failure { recipient: 4 }, b"\x64\0\0\0\x04", &[(5, "recipient channel")]),
            (Message::Ping { data: b"hi" }, b"\xc0\0\0\0\x02hi", &[(7, "data")]),
            (Message::Pong { data: b"hi" }, b"\xc1\0\0\0\x02hi", &[(7, "data")]),
            (Message::Unknown { number: 101 }, b"\x65", &[]),
        ]
    }

    #[test]
    fn every_message_is_written_and_read_as_the_rfc_draws_it() {
        for (message, bytes, _) in table() {
            let mut encoded = Vec::new();
            message.encode(&mut encoded);
            assert_eq!(encoded, bytes, "{message:?}");
            assert_eq!(Message::decode(bytes), Ok(message));
        }
    }

    #[test]
    fn a_message_cut_anywhere_is_named_with_its_field() {
        for (message, bytes, fields) in table() {
            for cut in 1..fields.last().map_or(1, |&(end, _)| end) {
                let (_, field) = *fields.iter().find(|(end, _)| cut < *end).unwrap();
                let violation = Violation::Truncated { message: message.name(), field };
                assert_eq!(Message::decode(&bytes[..cut]), Err(violation), "{message:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn bytes_behind_the_last_field_are_tolerated() {
        assert_eq!(Message::decode(b"\x60\0\0\0\x04more"), Ok(Message::Eof { recipient: 4 }));
        assert_eq!(Message::decode(b"\x52more"), Ok(Message::RequestFailure));
        assert_eq!(exit_status(b"\0\0\x01\0more"), Ok(256));
    }

    #[test]
    fn a_length_beyond_the_message_is_no_length() {
        let violation = Violation::Truncated { message: "CHANNEL_DATA", field: "data" };
        assert_eq!(Message::decode(b"\x5e\0\0\0\x04\xff\xff\xff\xffab"), Err(violation));
    }

    #[test]
    fn every_value_but_zero_is_true() {
        let Ok(Message::GlobalRequest { want_reply, .. }) = Message::decode(b"\x50\0\0\0\0\x02") else { panic!() };
        assert!(want_reply);
    }

    #[test]
    fn an_exit_signal_may_leave_its_language_out() {
        let signal = ExitSignal { name: b"SEGV", core_dumped: true, message: b"" };
        assert_eq!(exit_signal(b"\0\0\0\x04SEGV\x01\0\0\0\0"), Ok(signal));
        let violation = Violation::Truncated { message: "exit-signal", field: "core dumped" };
        assert_eq!(exit_signal(b"\0\0\0\x04SEGV"), Err(violation));
    }

    #[test]
    fn tunnels_are_asked_for_as_the_rfc_and_openssh_draw_it() {
        assert_eq!(direct_tcpip("db", 5432, "::1", 9), b"\0\0\0\x02db\0\0\x15\x38\0\0\0\x03::1\0\0\0\x09");
        assert_eq!(direct_streamlocal(b"/s"), b"\0\0\0\x02/s\0\0\0\0\0\0\0\0");
        assert_eq!(tcpip_forward("localhost", 80), b"\0\0\0\x09localhost\0\0\0\x50");
        assert_eq!(streamlocal_forward(b"/s"), b"\0\0\0\x02/s");
    }

    #[test]
    fn tunnels_of_the_peer_are_read() {
        let forwarded = ForwardedTcpip { address: b"localhost", port: 80, origin_address: b"::1", origin_port: 9 };
        let data = b"\0\0\0\x09localhost\0\0\0\x50\0\0\0\x03::1\0\0\0\x09";
        assert_eq!(forwarded_tcpip(data), Ok(forwarded));
        assert!(matches!(
            forwarded_tcpip(&data[..20]),
            Err(Violation::Truncated { field: "originator IP address", .. })
        ));
        assert_eq!(forwarded_streamlocal(b"\0\0\0\x02/s\0\0\0\0"), Ok(&b"/s"[..]));
        assert!(forwarded_streamlocal(b"\0\0\0\x03/s").is_err());
        assert!(allocated_port(b"\0\0").is_err());
    }
}
