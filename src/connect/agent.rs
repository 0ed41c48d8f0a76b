//! The agent's protocol (draft-ietf-sshm-ssh-agent): which keys it holds, and their signatures.
//!
//! libssh2's own agent client waits without a limit and closes a file descriptor twice when it cannot connect.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_timeout, Timeout};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketType};

use crate::error::{escape, Error, Result};

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;

/// Flag of [`Agent::sign`]: sign with an RSA key as `rsa-sha2-256` (RFC 8332). Without a flag it would be SHA-1.
pub(crate) const SSH_AGENT_RSA_SHA2_256: u32 = 2;
/// Flag of [`Agent::sign`]: sign with an RSA key as `rsa-sha2-512` (RFC 8332).
pub(crate) const SSH_AGENT_RSA_SHA2_512: u32 = 4;

/// The longest message either way, in bytes; OpenSSH's agent has the same limit.
const MAX_MESSAGE: usize = 256 << 10;

/// A connection to an agent, such as `ssh-agent`, over its Unix socket.
///
/// Everything it does ends at one deadline, whatever the agent does. After an error in the exchange of messages (not
/// after a refusal) the connection is of no use any more, and says so.
#[derive(Debug)]
pub(crate) struct Agent {
    path: PathBuf,
    /// None after an error: an answer that comes late must not be taken for that to another question.
    stream: Option<UnixStream>,
    deadline: Instant,
}

/// A key that the agent can sign with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The public key, as it crosses the wire (RFC 4253 §6.6).
    pub(crate) blob: Vec<u8>,
    /// What the user called it; not to be trusted to be printable.
    pub(crate) comment: String,
}

impl Agent {
    /// Connects to the agent that listens at `path`. This and all that follows must be done by `deadline`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], which names the socket; so do all errors of an agent.
    pub(crate) fn connect(path: &Path, deadline: Instant) -> Result<Agent> {
        match connect_by(path, deadline) {
            Ok(stream) => Ok(Agent::over(stream, path, deadline)),
            Err(e) => Err(failed("cannot reach the agent", path, e)),
        }
    }

    /// Connects to the agent that the variable SSH_AUTH_SOCK names; none if it is not set, or empty.
    ///
    /// # Errors
    ///
    /// As [`connect`](Agent::connect).
    pub(crate) fn from_env(deadline: Instant) -> Result<Option<Agent>> {
        match std::env::var_os("SSH_AUTH_SOCK") {
            Some(path) if !path.is_empty() => Agent::connect(Path::new(&path), deadline).map(Some),
            _ => Ok(None),
        }
    }

    fn over(stream: UnixStream, path: &Path, deadline: Instant) -> Agent {
        Agent { path: path.to_owned(), stream: Some(stream), deadline }
    }

    /// The keys it holds, in its order. A locked agent has none. Blocks until the answer or the deadline.
    pub(crate) fn identities(&mut self) -> Result<Vec<Identity>> {
        let doing = "cannot list the keys of the agent";
        let answer = self.ask(doing, &[REQUEST_IDENTITIES])?;
        let body = expect(IDENTITIES_ANSWER, &answer).map_err(|e| failed(doing, &self.path, e))?;
        parse_identities(body).ok_or_else(|| failed(doing, &self.path, malformed("its list of keys is malformed")))
    }

    /// The agent's signature of `data`: a signature blob, algorithm name included (RFC 4253 §6.6), which
    /// [`signature_parts`] takes apart. `flags` are the `SSH_AGENT_RSA_SHA2_…` for an RSA key, else 0.
    ///
    /// Blocks until the answer or the deadline; the user may have to confirm, or to touch a token.
    pub(crate) fn sign(&mut self, identity: &Identity, data: &[u8], flags: u32) -> Result<Vec<u8>> {
        let doing = "cannot sign with the agent";
        let mut request = vec![SIGN_REQUEST];
        put_string(&mut request, &identity.blob);
        put_string(&mut request, data);
        request.extend_from_slice(&flags.to_be_bytes());
        let answer = self.ask(doing, &request)?;
        expect(SIGN_RESPONSE, &answer)
            .and_then(|body| parse_signature(body, flags))
            .map_err(|e| failed(doing, &self.path, e))
    }

    fn ask(&mut self, doing: &str, request: &[u8]) -> Result<Vec<u8>> {
        let exchanged = match self.stream.take() {
            Some(stream) => exchange(&stream, request, self.deadline).map(|answer| (stream, answer)),
            None => Err(io::Error::new(io::ErrorKind::NotConnected, "it failed before")),
        };
        let (stream, answer) = exchanged.map_err(|e| failed(doing, &self.path, e))?;
        self.stream = Some(stream);
        Ok(answer)
    }
}

/// Takes a signature blob apart: the algorithm's name, and what follows it. For most algorithms that is one string
/// with the signature proper; for `sk-` types flags and a counter come after it.
pub(crate) fn signature_parts(blob: &[u8]) -> Option<(&str, &[u8])> {
    let mut rest = blob;
    let algorithm = std::str::from_utf8(take_string(&mut rest)?).ok()?;
    (!algorithm.is_empty()).then_some((algorithm, rest))
}

fn failed(doing: &str, path: &Path, e: io::Error) -> Error {
    Error::io(format!("{doing} at {}", escape(&path.display().to_string())), e)
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn connect_by(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let stream = UnixStream::from(cloexec_socket()?);
    loop {
        // it bounds connect, too, which waits while the agent's queue of connections is full
        set_socket_timeout(&stream, Timeout::Send, Some(remaining(deadline)?))?;
        match rustix::net::connect(&stream, &address) {
            Ok(()) => return Ok(stream),
            Err(Errno::INTR) => {}
            Err(e) => return Err(in_time(e.into())),
        }
    }
}

#[cfg(target_os = "linux")]
fn cloexec_socket() -> io::Result<std::os::fd::OwnedFd> {
    use rustix::net::{socket_with, SocketFlags};
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// In two steps, where `socket` takes no flags: a program started in between inherits the socket.
#[cfg(not(target_os = "linux"))]
fn cloexec_socket() -> io::Result<std::os::fd::OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    Ok(socket)
}

/// One message there and one back, each a length and that many bytes.
fn exchange(stream: &UnixStream, request: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
    if request.len() > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "what it shall sign is longer than 256 KiB"));
    }
    let mut message = Vec::with_capacity(4 + request.len());
    put_string(&mut message, request);
    send_all(stream, &message, deadline)?;

    let mut length = [0; 4];
    receive_exact(stream, &mut length, deadline)?;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if !(1..=MAX_MESSAGE).contains(&length) {
        return Err(malformed("its answer has an impossible length"));
    }
    let mut answer = vec![0; length];
    receive_exact(stream, &mut answer, deadline)?;
    Ok(answer)
}

fn send_all(stream: &UnixStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    // a program in another language that uses this library may not ignore SIGPIPE
    #[cfg(target_os = "linux")]
    let flags = SendFlags::NOSIGNAL;
    #[cfg(not(target_os = "linux"))]
    let flags = SendFlags::empty();
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(remaining(deadline)?))?;
        match rustix::net::send(stream, bytes, flags) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(Errno::INTR) => {}
            Err(e) => return Err(in_time(e.into())),
        }
    }
    Ok(())
}

fn receive_exact(mut stream: &UnixStream, mut room: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !room.is_empty() {
        stream.set_read_timeout(Some(remaining(deadline)?))?;
        match stream.read(room) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")),
            Ok(received) => room = &mut room[received..],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(in_time(e)),
        }
    }
    Ok(())
}

/// Never zero, which would mean "no limit" to a socket.
fn remaining(deadline: Instant) -> io::Result<Duration> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(late()),
        // the kernel counts microseconds
        left => Ok(left.max(Duration::from_millis(1))),
    }
}

/// A socket's own limit shows as "would block": say what it means.
fn in_time(e: io::Error) -> io::Error {
    match e.kind() {
        io::ErrorKind::WouldBlock => late(),
        _ => e,
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

/// The body of a message of the wanted type.
fn expect(wanted: u8, answer: &[u8]) -> io::Result<&[u8]> {
    match answer.split_first() {
        Some((kind, body)) if *kind == wanted => Ok(body),
        Some((&FAILURE, _)) => Err(io::Error::new(io::ErrorKind::PermissionDenied, "it refused")),
        _ => Err(malformed("its answer is no answer to that question")),
    }
}

fn parse_identities(mut body: &[u8]) -> Option<Vec<Identity>> {
    let count = take_u32(&mut body)?;
    // nothing is reserved for a count that the message does not bear out
    let mut identities = Vec::new();
    for _ in 0..count {
        let blob = take_string(&mut body)?.to_vec();
        let comment = String::from_utf8_lossy(take_string(&mut body)?).into_owned();
        identities.push(Identity { blob, comment });
    }
    Some(identities)
}

fn parse_signature(mut body: &[u8], flags: u32) -> io::Result<Vec<u8>> {
    let signature = take_string(&mut body).ok_or_else(|| malformed("its signature is malformed"))?;
    match signature_parts(signature) {
        None => Err(malformed("its signature is malformed")),
        Some(("ssh-rsa", _)) if flags != 0 => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "it is too old to sign with RSA and SHA-2"))
        }
        Some(_) => Ok(signature.to_vec()),
    }
}

fn put_string(message: &mut Vec<u8>, bytes: &[u8]) {
    // what is too long is refused in `exchange`, before it is sent
    message.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    message.extend_from_slice(bytes);
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_be_bytes(*number))
}

fn take_string<'b>(bytes: &mut &'b [u8]) -> Option<&'b [u8]> {
    let length = usize::try_from(take_u32(bytes)?).ok()?;
    let (string, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(string)
}

#[cfg(test)]
mod tests;
