//! What a SOCKS client says before its connection begins: SOCKS5 (RFC 1928), SOCKS4 and 4a. Pure.
//!
//! Connections only, without authentication: the listener is this machine's, or behind the server's own login.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The longest user or name in a SOCKS4 request; in SOCKS5 the lengths are single bytes.
const LONGEST: usize = 255;

/// A request as far as it has come.
#[derive(Debug, Default)]
pub(crate) struct Handshake {
    seen: Vec<u8>,
    /// SOCKS5: the methods are agreed, and what is seen begins with the request.
    greeted: bool,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Wait for more.
    More,
    /// Send this, and look again.
    Say(&'static [u8]),
    /// Connect there, and send [`granted`] or [`refused`].
    Connect { host: String, port: u16, version: Version },
    /// Send this, if anything, and hang up.
    Fail { reply: &'static [u8], why: &'static str },
}

/// In which protocol the answer is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Four,
    Five,
}

/// Why a connection did not come about, in SOCKS5's numbers (RFC 1928 §6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    General = 1,
    NotAllowed = 2,
    HostUnreachable = 4,
    ConnectionRefused = 5,
}

const COMMAND_NOT_SUPPORTED: &[u8] = &[5, 7, 0, 1, 0, 0, 0, 0, 0, 0];
const ADDRESS_NOT_SUPPORTED: &[u8] = &[5, 8, 0, 1, 0, 0, 0, 0, 0, 0];
const FAILED_5: &[u8] = &[5, 1, 0, 1, 0, 0, 0, 0, 0, 0];
const FAILED_4: &[u8] = &[0, 0x5b, 0, 0, 0, 0, 0, 0];

/// The answer to a request that was granted. The address in it says nothing: it would be the server's.
pub(crate) fn granted(version: Version) -> &'static [u8] {
    match version {
        Version::Four => &[0, 0x5a, 0, 0, 0, 0, 0, 0],
        Version::Five => &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0],
    }
}

/// The answer to a request that came to nothing.
pub(crate) fn refused(version: Version, refusal: Refusal) -> &'static [u8] {
    match (version, refusal) {
        (Version::Four, _) => FAILED_4,
        (Version::Five, Refusal::General) => FAILED_5,
        (Version::Five, Refusal::NotAllowed) => &[5, 2, 0, 1, 0, 0, 0, 0, 0, 0],
        (Version::Five, Refusal::HostUnreachable) => &[5, 4, 0, 1, 0, 0, 0, 0, 0, 0],
        (Version::Five, Refusal::ConnectionRefused) => &[5, 5, 0, 1, 0, 0, 0, 0, 0, 0],
    }
}

impl Handshake {
    /// Takes in what has come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.seen.extend_from_slice(bytes);
    }

    /// What has come behind the request: the connection's first bytes.
    pub fn into_rest(self) -> Vec<u8> {
        self.seen
    }

    /// Looks at what has come. After [`Step::Connect`] and [`Step::Fail`] there is no next step.
    pub fn step(&mut self) -> Step {
        let step = match self.seen.first() {
            None => None,
            Some(_) if self.greeted => self.request_5(),
            Some(5) => self.greeting_5(),
            Some(4) => self.request_4(),
            Some(_) => Some(Step::Fail { reply: &[], why: "it does not speak SOCKS" }),
        };
        step.unwrap_or(Step::More)
    }

    /// RFC 1928 §3; the one method is "no authentication".
    fn greeting_5(&mut self) -> Option<Step> {
        let count = usize::from(*self.seen.get(1)?);
        let methods = self.seen.get(2..2 + count)?;
        if !methods.contains(&0) {
            return Some(Step::Fail {
                reply: &[5, 0xff],
                why: "it wants SOCKS authentication, of which there is none",
            });
        }
        self.seen.drain(..2 + count);
        self.greeted = true;
        Some(Step::Say(&[5, 0]))
    }

    /// RFC 1928 §4.
    fn request_5(&mut self) -> Option<Step> {
        let &[version, command, _, kind, first] = self.seen.get(..5)? else { return None };
        if version != 5 {
            return Some(Step::Fail { reply: FAILED_5, why: "its SOCKS5 request has another version" });
        }
        if command != 1 {
            return Some(Step::Fail {
                reply: COMMAND_NOT_SUPPORTED,
                why: "it wants a SOCKS command other than CONNECT",
            });
        }
        let (from, len) = match kind {
            1 => (4, 4),
            3 => (5, usize::from(first)),
            4 => (4, 16),
            _ => {
                return Some(Step::Fail { reply: ADDRESS_NOT_SUPPORTED, why: "its SOCKS address is of no known kind" })
            }
        };
        let address = self.seen.get(from..from + len)?;
        let port = self.seen.get(from + len..from + len + 2)?;
        let port = u16::from_be_bytes([port[0], port[1]]);
        let host = match kind {
            1 => v4(address),
            4 => <[u8; 16]>::try_from(address).ok().map(|a| Ipv6Addr::from(a).to_string()),
            _ => name(address),
        };
        let Some(host) = host else {
            return Some(Step::Fail { reply: FAILED_5, why: "the name in its SOCKS request is none" });
        };
        self.seen.drain(..from + len + 2);
        Some(Step::Connect { host, port, version: Version::Five })
    }

    /// SOCKS4, and 4a, where an address of 0.0.0.x means that a name follows.
    fn request_4(&mut self) -> Option<Step> {
        let &[_, command, p1, p2, a, b, c, d] = self.seen.get(..8)? else { return None };
        if command != 1 {
            return Some(Step::Fail { reply: FAILED_4, why: "it wants a SOCKS command other than CONNECT" });
        }
        let endless = Step::Fail { reply: FAILED_4, why: "a text in its SOCKS4 request does not end" };
        let Ok(user) = terminated(&self.seen[8..])? else { return Some(endless) };
        let user_end = 8 + user;
        let (host, end) = if [a, b, c] == [0, 0, 0] && d != 0 {
            let from = user_end + 1;
            let Ok(len) = terminated(&self.seen[from..])? else { return Some(endless) };
            (name(&self.seen[from..from + len]), from + len + 1)
        } else {
            (v4(&[a, b, c, d]), user_end + 1)
        };
        let Some(host) = host else {
            return Some(Step::Fail { reply: FAILED_4, why: "the name in its SOCKS request is none" });
        };
        self.seen.drain(..end);
        Some(Step::Connect { host, port: u16::from_be_bytes([p1, p2]), version: Version::Four })
    }
}

/// How long the text is that a NUL ends, once it is there; an error if it is too long.
fn terminated(bytes: &[u8]) -> Option<Result<usize, ()>> {
    match bytes.iter().take(LONGEST + 1).position(|&b| b == 0) {
        Some(at) => Some(Ok(at)),
        None => (bytes.len() > LONGEST).then_some(Err(())),
    }
}

fn v4(address: &[u8]) -> Option<String> {
    <[u8; 4]>::try_from(address).ok().map(|a| Ipv4Addr::from(a).to_string())
}

/// A host's name: something that can be seen, of at most 255 bytes.
fn name(bytes: &[u8]) -> Option<String> {
    let seen = |b: &u8| b.is_ascii_graphic() || !b.is_ascii();
    let good = !bytes.is_empty() && bytes.len() <= 255 && bytes.iter().all(seen);
    good.then(|| String::from_utf8(bytes.to_vec()).ok()).flatten()
}

/// Any bytes, however they are cut: the body of the fuzz target, run by the unit tests too. The first byte says how.
#[cfg(any(test, feature = "_faults"))]
pub fn fuzz(script: &[u8]) {
    let Some((&cut, bytes)) = script.split_first() else { return };
    let whole = run(&[bytes]);
    let pieces: Vec<&[u8]> = bytes.chunks(usize::from(cut).max(1)).collect();
    let cut = run(&pieces);
    assert_eq!(whole, cut, "how a request is cut must not matter");
    if let Some(Step::Connect { host, .. }) = &whole.0 {
        assert!(!host.is_empty() && host.len() <= 255 && !host.contains('\0'));
    }
}

/// The last step, what was said before it, and what came behind the request.
#[cfg(any(test, feature = "_faults"))]
fn run(pieces: &[&[u8]]) -> (Option<Step>, Vec<u8>, Vec<u8>) {
    let (mut handshake, mut said) = (Handshake::default(), Vec::new());
    for (at, piece) in pieces.iter().enumerate() {
        handshake.push(piece);
        loop {
            match handshake.step() {
                Step::More => break,
                Step::Say(bytes) => said.extend_from_slice(bytes),
                Step::Fail { reply, why } => return (Some(Step::Fail { reply, why }), said, Vec::new()),
                connect => {
                    let rest = pieces[at + 1..].concat();
                    return (Some(connect), said, [handshake.into_rest(), rest].concat());
                }
            }
        }
    }
    (None, said, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn connect(host: &str, port: u16, version: Version) -> Option<Step> {
        Some(Step::Connect { host: host.to_owned(), port, version })
    }

    #[test]
    fn each_kind_of_request_is_understood_and_what_follows_is_kept() {
        let five: &[u8] = b"\x05\x02\x02\x00";
        let cases: [(&[u8], &str, Version); 3] = [
            (b"\x05\x01\x00\x01\x7f\0\0\x01\0\x50", "127.0.0.1", Version::Five),
            (b"\x05\x01\x00\x03\x02db\0\x50", "db", Version::Five),
            (b"\x05\x01\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\x50", "::1", Version::Five),
        ];
        for (request, host, version) in cases {
            let (step, said, rest) = run(&[five, request, b"GET"]);
            assert_eq!((step, said, rest), (connect(host, 80, version), vec![5, 0], b"GET".to_vec()));
        }
        for (request, host) in
            [(&b"\x04\x01\0\x50\x7f\0\0\x01me\0GET"[..], "127.0.0.1"), (b"\x04\x01\0\x50\0\0\0\x01\0db\0GET", "db")]
        {
            assert_eq!(run(&[request]), (connect(host, 80, Version::Four), vec![], b"GET".to_vec()));
        }
    }

    #[test]
    fn what_is_not_offered_is_refused_in_the_clients_protocol() {
        for (bytes, expected) in [
            (&b"\x05\x01\x02"[..], &[5, 0xff][..]),
            (b"\x05\x01\0\x05\x02\0\x01\x7f\0\0\x01\0\x50", COMMAND_NOT_SUPPORTED),
            (b"\x05\x01\0\x05\x01\0\x02\x7f\0\0\x01\0\x50", ADDRESS_NOT_SUPPORTED),
            (b"\x05\x01\0\x05\x01\0\x03\0\0\x50\0\0", FAILED_5),
            (b"\x05\x01\0\x05\x01\0\x03\x03d\0b\0\x50", FAILED_5),
            (b"\x04\x02\0\x50\x7f\0\0\x01\0", FAILED_4),
            (b"GET / HTTP/1.1\r\n", &[]),
        ] {
            let (step, ..) = run(&[bytes]);
            assert!(matches!(step, Some(Step::Fail { reply, .. }) if reply == expected), "{bytes:?}: {step:?}");
        }
    }

    #[test]
    fn a_request_that_does_not_end_is_given_up() {
        let endless = [b"\x04\x01\0\x50\x7f\0\0\x01".as_slice(), &[b'u'; 2 * LONGEST]].concat();
        assert!(matches!(run(&[&endless]).0, Some(Step::Fail { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_cut_anyhow_are_understood_the_same(
            head in prop_oneof![Just(&b"\x05\x01\x00\x05\x01\x00"[..]), Just(&b"\x04\x01"[..]), Just(&b""[..])],
            cut in any::<u8>(),
            bytes in proptest::collection::vec(prop_oneof![0u8..6, any::<u8>()], 0..600),
        ) {
            fuzz(&[&[cut], head, &bytes].concat());
        }
    }
}
