//! libssh2's handshake under a deadline: RFC 4253 §4.2 to §8, and what has to be settled right after it.

use std::time::{Duration, Instant};

use ssh2::{ErrorCode, MethodType, Session};

use super::host_key::HostKey;
use super::offer::{self, Lists};
use crate::error::{escape, Error, Phase, Result};
use crate::transport::cipher::{self, Implementation};
use crate::transport::packet::Packets;
use crate::transport::wake;
use crate::transport::{instant_after, EAGAIN};

/// Bytes taken in between two looks at the clock.
const STEP: usize = 64 * 1024;

/// When a part of the connect must be over, and the limit that the error names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    pub at: Instant,
    pub limit: Duration,
}

impl Deadline {
    /// `limit` from now.
    pub fn after(limit: Duration) -> Deadline {
        Deadline { at: instant_after(limit), limit }
    }

    /// `limit` from now, but not after the whole operation's deadline.
    pub fn new(limit: Duration, total: Option<Deadline>) -> Deadline {
        let own = Deadline::after(limit);
        match total {
            Some(total) if total.at < own.at => total,
            _ => own,
        }
    }
}

/// The algorithms that a connection uses, by their SSH names. Client to server is "out".
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Algorithms {
    /// Key exchange.
    pub kex: String,
    /// Host key signature.
    pub host_key: String,
    /// Cipher, client to server.
    pub cipher_out: String,
    /// Cipher, server to client.
    pub cipher_in: String,
    /// Whose code encrypts what we send.
    pub cipher_out_by: Implementation,
    /// Whose code decrypts what we receive.
    pub cipher_in_by: Implementation,
    /// MAC, client to server; `INTEGRATED-AES-GCM` or the like where the cipher has its own.
    pub mac_out: String,
    /// MAC, server to client.
    pub mac_in: String,
}

/// Which algorithms to offer, best first; empty means the default order: [`offer::ciphers`], and libssh2's for the rest.
#[derive(Debug, Clone, Default)]
pub(crate) struct Preferences {
    pub kex: Vec<String>,
    pub host_keys: Vec<String>,
    pub ciphers: Vec<String>,
    pub macs: Vec<String>,
}

/// What the handshake found out.
#[derive(Debug, Clone)]
pub(crate) struct Handshake {
    pub algorithms: Algorithms,
    pub banner: String,
    pub host_key: HostKey,
}

/// How a driven call ended without success.
#[derive(Debug)]
pub(crate) enum Failure {
    TimedOut,
    /// The connection is over.
    Ended(Error),
    /// libssh2's error code and words.
    Code(i32, String),
}

/// Calls libssh2 until it no longer says "try again", waiting for the socket in between.
///
/// Non-blocking, so that the clock is looked at whatever the peer does; a server that floods before its banner keeps
/// libssh2's blocking calls busy for ever.
pub(crate) fn drive<T>(
    packets: &mut Packets,
    deadline: Deadline,
    mut call: impl FnMut(&mut Packets) -> std::result::Result<T, (i32, String)>,
) -> std::result::Result<T, Failure> {
    loop {
        packets.socket(|s| s.allow(STEP));
        let outcome = call(packets);
        let flushed = packets.socket(|s| s.flush());
        packets.check().map_err(Failure::Ended)?;
        match outcome {
            Ok(value) => return Ok(value),
            Err((EAGAIN, _)) => {}
            Err((code, words)) => return Err(failure(packets, code, words)),
        }
        let flushed = flushed.map_err(|e| Failure::Ended(lost(format!("cannot send: {e}"))))?;
        if deadline.at <= Instant::now() {
            return Err(Failure::TimedOut);
        }
        if packets.socket(|s| s.may_have_more()) {
            continue;
        }
        if let Some(end) = packets.socket(|s| s.end().cloned()) {
            return Err(Failure::Ended(lost(end.to_string())));
        }
        let found = packets.socket(|s| wake::wait(s, wake::interest(true, !flushed), deadline.at));
        let found = found.map_err(|e| Failure::Ended(Error::io("cannot wait for the socket", e)))?;
        if wake::is_readable(found) {
            packets.readable();
        }
    }
}

fn failure(packets: &Packets, code: i32, words: String) -> Failure {
    match packets.socket(|s| s.end().cloned()) {
        Some(end) => Failure::Ended(lost(end.to_string())),
        None if matches!(code, -13 | -43 | -7) => Failure::Ended(lost("the server closed the connection".into())),
        None => Failure::Code(code, words),
    }
}

fn lost(reason: String) -> Error {
    Error::ConnectionLost { reason, silent: None }
}

/// A call of the `ssh2` crate as [`drive`] wants it.
pub(crate) fn session_call<T>(
    packets: &mut Packets,
    call: impl FnOnce(&mut Session) -> std::result::Result<T, ssh2::Error>,
) -> std::result::Result<T, (i32, String)> {
    packets.session(call).map_err(|e| match e.code() {
        ErrorCode::Session(code) | ErrorCode::SFTP(code) => (code, e.message().to_owned()),
    })
}

/// Exchanges banners and keys; afterwards the host key is proven, but not yet judged.
pub(crate) fn handshake(
    packets: &mut Packets,
    host: &str,
    preferences: &Preferences,
    deadline: Deadline,
) -> Result<Handshake> {
    let mut preferences = preferences.clone();
    if preferences.ciphers.is_empty() {
        preferences.ciphers = offer::default_ciphers();
    }
    offer(packets, &preferences)?;
    let outcome = drive(packets, deadline, |p| session_call(p, Session::handshake));
    if let Err(failure) = outcome {
        return Err(explain(packets, host, &preferences, failure, deadline));
    }
    if !packets.seam_holds() {
        return Err(Error::Internal("libssh2's handshake did not go through our method".into()));
    }
    let found = found_out(packets, host)?;
    pin(packets, &found.algorithms);
    log::debug!("{host}: {} speaks {:?}", escape(&found.banner), found.algorithms);
    let Algorithms { cipher_out, cipher_in, cipher_out_by, cipher_in_by, .. } = &found.algorithms;
    log::debug!("{host}: sends with {cipher_out} of {cipher_out_by}, receives with {cipher_in} of {cipher_in_by}");
    Ok(found)
}

fn methods(preferences: &Preferences) -> [(MethodType, &Vec<String>, &'static str); 6] {
    [
        (MethodType::Kex, &preferences.kex, "key exchange"),
        (MethodType::HostKey, &preferences.host_keys, "host key"),
        (MethodType::CryptCs, &preferences.ciphers, "cipher"),
        (MethodType::CryptSc, &preferences.ciphers, "cipher"),
        (MethodType::MacCs, &preferences.macs, "MAC"),
        (MethodType::MacSc, &preferences.macs, "MAC"),
    ]
}

/// Refuses names that libssh2 does not know. It would leave them out itself and say nothing, unless it knows none.
pub(crate) fn check_names(packets: &mut Packets, preferences: &Preferences) -> Result<()> {
    for (method, names, what) in methods(preferences) {
        let known = known(packets, method);
        let unknown = offer::unknown(names, &known);
        if !unknown.is_empty() {
            let them = if unknown.len() == 1 { "" } else { "s" };
            let (unknown, known) = (escape(&unknown.join("', '")), known.join(", "));
            return Err(Error::invalid(format!("unknown {what} algorithm{them} '{unknown}'; there are: {known}")));
        }
    }
    Ok(())
}

fn known(packets: &mut Packets, method: MethodType) -> Vec<&'static str> {
    let all = packets.session(|s| s.supported_algs(method)).unwrap_or_default();
    all.into_iter().filter(|name| !offer::is_announcement(name)).collect()
}

fn offer(packets: &mut Packets, preferences: &Preferences) -> Result<()> {
    for (method, names, what) in methods(preferences) {
        if names.is_empty() {
            continue;
        }
        let list = names.join(",");
        packets
            .session(|s| s.method_pref(method, &list))
            .map_err(|e| Error::Internal(format!("libssh2 refuses the {what} algorithms {list}: {}", e.message())))?;
    }
    Ok(())
}

fn explain(
    packets: &mut Packets,
    host: &str,
    preferences: &Preferences,
    failure: Failure,
    deadline: Deadline,
) -> Error {
    // libssh2 keeps each line that came before the banner in its place.
    let banner = packets.session(|s| s.banner_bytes().is_some_and(|line| line.starts_with(b"SSH-")));
    let phase = if banner { Phase::KeyExchange } else { Phase::Banner };
    let head = packets.socket(|s| s.head().to_vec());
    let reason = match failure {
        Failure::TimedOut if banner || head.is_empty() || head.starts_with(b"SSH-") => {
            return Error::timeout(phase, deadline.limit)
        }
        Failure::TimedOut => format!("no banner within {} s", deadline.limit.as_secs_f64()),
        Failure::Ended(error @ Error::ConnectionLost { .. }) => reason_of(&error),
        Failure::Ended(error) => return error,
        Failure::Code(-5 | -8, words) => match nothing_in_common(packets, preferences, &head) {
            Some(missing) => missing,
            None => escape(&words),
        },
        Failure::Code(code, words) if words.is_empty() => format!("libssh2 says {code}"),
        Failure::Code(code, words) => format!("{} ({code})", escape(&words)),
    };
    Error::Handshake { host: host.to_owned(), phase, reason: format!("{reason}{}", not_ssh(banner, &head)) }
}

fn reason_of(error: &Error) -> String {
    match error {
        Error::ConnectionLost { reason, .. } => reason.clone(),
        other => other.to_string(),
    }
}

fn nothing_in_common(packets: &mut Packets, preferences: &Preferences, head: &[u8]) -> Option<String> {
    let server = Lists::of_server(head)?;
    let mut list = |method| known(packets, method).into_iter().map(str::to_owned).collect::<Vec<_>>();
    let known = Lists {
        kex: list(MethodType::Kex),
        host_keys: list(MethodType::HostKey),
        ciphers: [MethodType::CryptCs, MethodType::CryptSc].map(&mut list),
        macs: [MethodType::MacCs, MethodType::MacSc].map(&mut list),
    };
    offer::nothing_in_common(&server, preferences, &known)
}

/// If the peer has said something that is no SSH banner, says what.
fn not_ssh(banner: bool, head: &[u8]) -> String {
    if banner || head.is_empty() {
        return String::new();
    }
    let line = head.split(|&b| b == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
    format!("; it is no SSH server, it said '{}'", escape(line.trim_end()))
}

/// Copies what libssh2 knows now: its own memory of it is freed at each rekey.
fn found_out(packets: &mut Packets, host: &str) -> Result<Handshake> {
    let (algorithms, banner, key) = packets.session(|s| {
        let name = |method| s.methods(method).unwrap_or_default().to_owned();
        let (cipher_out, cipher_in) = (name(MethodType::CryptCs), name(MethodType::CryptSc));
        let algorithms = Algorithms {
            cipher_out_by: cipher::implementation(&cipher_out),
            cipher_in_by: cipher::implementation(&cipher_in),
            cipher_out,
            cipher_in,
            kex: name(MethodType::Kex),
            host_key: name(MethodType::HostKey),
            mac_out: name(MethodType::MacCs),
            mac_in: name(MethodType::MacSc),
        };
        let banner = String::from_utf8_lossy(s.banner_bytes().unwrap_or_default()).into_owned();
        (algorithms, banner, s.host_key().map(|(blob, _)| blob.to_vec()))
    });
    let no_key = |reason: String| Error::Handshake { host: host.to_owned(), phase: Phase::KeyExchange, reason };
    let blob = key.ok_or_else(|| no_key("the server showed no host key".into()))?;
    let host_key = HostKey::from_blob(&blob).map_err(|e| no_key(e.to_string()))?;
    Ok(Handshake { algorithms, banner, host_key })
}

/// Offers only what was negotiated from now on: a server that picks another method at a rekey would crash libssh2.
fn pin(packets: &mut Packets, algorithms: &Algorithms) {
    packets.session(|s| {
        for (method, name) in [
            (MethodType::CryptCs, &algorithms.cipher_out),
            (MethodType::CryptSc, &algorithms.cipher_in),
            (MethodType::MacCs, &algorithms.mac_out),
            (MethodType::MacSc, &algorithms.mac_in),
        ] {
            // A cipher with its own integrity has a MAC name that cannot be set, and need not be.
            if let Err(e) = s.method_pref(method, name) {
                log::trace!("cannot pin {name}: {}", e.message());
            }
        }
    });
}
