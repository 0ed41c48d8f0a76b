//! A bit flipped on the way, in either direction, under each cipher and MAC: the connection ends, and nothing of that
//! packet is delivered.

use std::io::{BufRead, Read, Write};
use std::time::Duration;

use threadline::{Child, Error};

use super::{client, drain, each, methods, outcome};
use crate::connect::{builder_via, PATIENCE};
use crate::proxy::{Direction, Proxy};
use crate::rogue::{ignore, msg, Part, Rogue, FORBIDDEN};
use crate::rogue_fixture::every_protection;
use crate::sshd::Sshd;
use crate::util::within;

/// Every cipher and every MAC that OpenSSH and libssh2 both have, each MAC with a stream cipher and with a block cipher.
const METHODS: [(&str, &str); 13] = [
    ("chacha20-poly1305@openssh.com", "hmac-sha2-256"),
    ("aes128-gcm@openssh.com", "hmac-sha2-256"),
    ("aes256-gcm@openssh.com", "hmac-sha2-256"),
    ("aes128-ctr", "hmac-sha2-256"),
    ("aes128-ctr", "hmac-sha2-512"),
    ("aes128-ctr", "hmac-sha2-256-etm@openssh.com"),
    ("aes128-ctr", "hmac-sha2-512-etm@openssh.com"),
    ("aes192-ctr", "hmac-sha2-256"),
    ("aes256-ctr", "hmac-sha2-256-etm@openssh.com"),
    ("aes128-cbc", "hmac-sha2-256"),
    ("aes192-cbc", "hmac-sha2-512"),
    ("aes256-cbc", "hmac-sha2-256-etm@openssh.com"),
    ("aes256-cbc", "hmac-sha2-512-etm@openssh.com"),
];

fn sshd() -> Sshd {
    let mut ciphers: Vec<&str> = METHODS.iter().map(|(cipher, _)| *cipher).collect();
    let mut macs: Vec<&str> = METHODS.iter().map(|(_, mac)| *mac).collect();
    for names in [&mut ciphers, &mut macs] {
        names.sort_unstable();
        names.dedup();
    }
    Sshd::builder().ciphers(&ciphers.join(",")).option(&format!("MACs {}", macs.join(","))).start().expect("sshd")
}

/// Whether the line stays quiet but for what a test sends.
#[derive(Clone, Copy)]
enum Probes {
    /// A packet that has become longer is waited for; the answer to a probe is what it is longer by.
    Soon,
    /// The answer to a probe would be counted as a part of the packet.
    Never,
}

/// A `cat` at the other end of a proxy, the line quiet, and the size of a packet with a hundred bytes from it.
fn echoing(server: &Sshd, proxy: &Proxy, (cipher, mac): (&str, &str), probes: Probes) -> (Child, u64) {
    let builder = builder_via(server, proxy).ciphers([cipher]).macs([mac]);
    let builder = match probes {
        Probes::Soon => builder.keepalive(Duration::from_secs(2), 100),
        Probes::Never => builder.no_keepalive(),
    };
    let client = builder.spare_channel(false).connect().unwrap_or_else(|error| panic!("{cipher} {mac}: {error}"));
    assert_eq!((client.algorithms().cipher_in.as_str(), client.algorithms().cipher_out.as_str()), (cipher, cipher));
    let mut child = client.exec_command("cat").expect("started");
    echo(&mut child);
    let before = proxy.control().position(Direction::Down);
    echo(&mut child);
    let size = proxy.control().position(Direction::Down) - before;
    (child, size)
}

fn echo(child: &mut Child) {
    child.stdin.as_mut().expect("piped").write_all(&[b'x'; 100]).expect("written");
    let mut back = [0; 100];
    child.stdout.as_mut().expect("piped").read_exact(&mut back).expect("read");
    assert_eq!(back, [b'x'; 100]);
}

/// What comes back of so many bytes more, and how it ends.
fn next_echo(child: &mut Child, count: usize) -> (Vec<u8>, Option<Error>) {
    child.stdin.as_mut().expect("piped").write_all(&vec![b'y'; count]).expect("queued");
    drain(child.stdout.as_mut().expect("piped"))
}

/// What the error says of the check that the packet failed.
fn check((cipher, mac): (&str, &str), part: Part) -> &'static str {
    match part {
        // Encrypt-then-MAC covers the length before anybody looks at it.
        Part::Length if !mac.contains("-etm") => "failed its integrity check: its length is impossible",
        _ if cipher.contains("-gcm") || cipher.starts_with("chacha20") => {
            "failed its integrity check: its authentication tag is wrong"
        }
        _ => "failed its integrity check (bad MAC)",
    }
}

#[test]
fn a_bit_flipped_on_its_way_to_us_ends_the_connection() {
    within(PATIENCE, || {
        let server = &sshd();
        each(&METHODS, |&methods| {
            for part in [Part::Length, if methods.1.ends_with("256") { Part::Body } else { Part::Tag }] {
                let proxy = Proxy::to(([127, 0, 0, 1], server.port()).into()).start().expect("a proxy");
                let probes = if part == Part::Length { Probes::Soon } else { Probes::Never };
                let (mut child, size) = echoing(server, &proxy, methods, probes);
                let position = match part {
                    // The lowest bit: no whole number of blocks any more, which libssh2 on its own does not survive.
                    Part::Length => 3,
                    Part::Body => 20,
                    _ => size - 1,
                };
                proxy.control().flip_bit_ahead(Direction::Down, position);
                let (bytes, error) = next_echo(&mut child, 100);
                assert_eq!(bytes, b"", "{methods:?} {part:?}");
                let Some(Error::Protocol(text)) = error else { panic!("{methods:?} {part:?}: {error:?}") };
                assert!(text.contains(check(methods, part)), "{methods:?} {part:?}: {text}");
            }
        });
    });
}

#[test]
fn a_bit_flipped_on_its_way_to_the_server_ends_the_connection() {
    within(PATIENCE, || {
        let server = &sshd();
        each(&METHODS, |&methods| {
            let proxy = Proxy::to(([127, 0, 0, 1], server.port()).into()).start().expect("a proxy");
            let (mut child, _) = echoing(server, &proxy, methods, Probes::Never);
            proxy.control().flip_bit_ahead(Direction::Up, 20);
            // With a block cipher sshd does not say at once what it has noticed: it reads on for a packet's length.
            let (bytes, error) = next_echo(&mut child, 300_000);
            assert_eq!(bytes, b"", "{methods:?}");
            assert!(matches!(error, Some(Error::ConnectionLost { .. })), "{methods:?}: {error:?}");
        });
        assert!(server.log().contains("message authentication code incorrect"), "{}", server.log());
    });
}

#[test]
fn nothing_of_a_damaged_packet_is_delivered() {
    within(PATIENCE, || {
        for part in [Part::Length, Part::Body, Part::Tag] {
            each(&every_protection(), |offer| {
                let server = Rogue::logged_in_with(offer.clone(), move |conn| {
                    let (channel, _) = conn.expect_exec()?;
                    conn.data(channel, b"before\n")?;
                    let data = conn.on(channel, msg::CHANNEL_DATA)?.string(FORBIDDEN).done();
                    conn.send_corrupted(&data, part)?;
                    // If the length became longer this is what it is longer by. Fails where the client has gone.
                    let _ = conn.send(&ignore(&[0; 200]));
                    conn.wait_for_end().map(|_| ())
                });
                let client = client(&server);
                let mut child = client.exec_command("true").expect("started");
                let mut line = String::new();
                child.stdout.as_mut().expect("piped").read_line(&mut line).expect("a line");
                assert_eq!(line, "before\n");
                let (rest, status) = outcome(child);
                assert_eq!(String::from_utf8_lossy(&rest), "", "{} {part:?}", methods(offer));
                let error = status.expect_err("the connection has ended");
                assert!(matches!(error, Error::Protocol(_)), "{} {part:?}: {error}", methods(offer));
                server.wait().expect("the client goes");
            });
        }
    });
}

#[test]
fn a_packet_of_no_whole_number_of_blocks_ends_the_connection() {
    within(PATIENCE, || {
        let aes: Vec<_> =
            every_protection().into_iter().filter(|offer| offer.ciphers[0][0].starts_with("aes")).collect();
        // The shortest there is; one that lacks a byte to a second block; one of several blocks; its MAC in time or late.
        for (size, late) in [(0, false), (0, true), (11, true), (100, false), (100, true)] {
            each(&aes, |offer| {
                let server = Rogue::logged_in_with(offer.clone(), move |conn| {
                    let (channel, _) = conn.expect_exec()?;
                    conn.data(channel, b"before\n")?;
                    let packet = conn.seal_unaligned(&vec![msg::IGNORE; size + 1]);
                    let pieces: &[usize] = if late { &[17] } else { &[] };
                    conn.write_split(&packet, pieces, Duration::from_millis(20))?;
                    // Fails where the client has gone.
                    let _ = conn.data(channel, FORBIDDEN);
                    conn.wait_for_end().map(|_| ())
                });
                let (stdout, status) = outcome(client(&server).exec_command("true").expect("started"));
                assert_eq!(String::from_utf8_lossy(&stdout), "before\n", "{} {size}", methods(offer));
                let error = status.expect_err("the connection has ended");
                assert!(matches!(error, Error::Protocol(_)), "{} {size}: {error}", methods(offer));
                server.wait().expect("the client goes");
            });
        }
    });
}
