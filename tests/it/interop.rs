//! Servers of other makers, with each cipher and MAC that both sides have: everything arrives intact, both ways, in large
//! pieces and in small ones, while the server exchanges keys once a MiB.
//!
//! What is tested is what the server offers, by its own KEXINIT. [`every_cipher_that_we_offer_is_tested`] and the test
//! `nothing_that_both_sides_have_is_left_out` of each server see to it that this is everything. All keep to strict key
//! exchange, and so do we, so that each exchange begins the packet numbers anew.
//!
//! Dropbear exchanges keys after a GiB, compiled in: with it there is one exchange only.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::LazyLock;
use std::thread;

use threadline::{Client, ClientBuilder};

use crate::connect::PATIENCE;
use crate::servers::{Offer, Server};
use crate::util::{noise, sha256, within};

const MIB: usize = 1 << 20;
/// What goes each way in one piece, and once more both ways at once.
const BULK: usize = 8 * MIB;
/// The same with all MACs but the first: each cipher has carried the whole by then.
const LESS: usize = MIB;
/// How many channels share what goes both ways at once.
const CHANNELS: usize = 4;
/// A packet of each size up to this one goes each way: all of the ciphers' block sizes and paddings.
const SMALL: usize = 300;

const GCM: &[&str] = &["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"];
const CHACHA20: &[&str] = &["chacha20-poly1305@openssh.com"];
const CTR: &[&str] = &["aes128-ctr", "aes192-ctr", "aes256-ctr"];
/// Of the ciphers that need one. The MAC of the plain text, and of what was encrypted.
const MACS: &[&str] = &["hmac-sha2-256", "hmac-sha2-512"];
const ETM_MACS: &[&str] = &["hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com"];

/// What all connections carry.
static DATA: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut data = Vec::with_capacity(BULK);
    noise(4, BULK as u64).read_to_end(&mut data).unwrap();
    data
});

/// What one test tests: each of these ciphers with each of these MACs.
#[derive(Clone, Copy)]
struct Family {
    ciphers: &'static [&'static str],
    /// None for ciphers with a MAC of their own.
    macs: &'static [&'static str],
}

const FAMILY_GCM: Family = Family { ciphers: GCM, macs: &[] };
const FAMILY_CHACHA20: Family = Family { ciphers: CHACHA20, macs: &[] };
const FAMILY_CTR: Family = Family { ciphers: CTR, macs: MACS };
const FAMILY_CTR_ETM: Family = Family { ciphers: CTR, macs: ETM_MACS };

impl Family {
    /// The pairs that a server has.
    fn pairs(self, offer: &Offer) -> Vec<(&'static str, Option<&'static str>)> {
        let offered = |names: &[String], name: &&&str| names.iter().any(|offered| offered == **name);
        let ciphers = self.ciphers.iter().filter(|cipher| offered(&offer.ciphers, cipher));
        let macs: Vec<_> = self.macs.iter().filter(|mac| offered(&offer.macs, mac)).collect();
        let with_macs = |cipher: &&'static str| match self.macs {
            [] => vec![(*cipher, None)],
            _ => macs.iter().map(|mac| (*cipher, Some(**mac))).collect(),
        };
        ciphers.flat_map(with_macs).collect()
    }

    /// Carries data over a connection for each pair.
    fn test(self, server: &Server) {
        let pairs = self.pairs(&server.offer());
        assert!(!pairs.is_empty(), "the server has nothing of what this test tests");
        for (cipher, mac) in pairs {
            carry(server, cipher, mac);
        }
    }
}

/// A connection over which everything goes that this file is about.
fn carry(server: &Server, cipher: &str, mac: Option<&str>) {
    let whole = mac.is_none_or(|mac| mac == MACS[0]);
    let data: &'static [u8] = if whole { &DATA[..] } else { &DATA[..LESS] };
    let names = format!("{cipher} {}", mac.unwrap_or_default());
    let before = server.exchanges();
    let client = only(server.builder(), cipher, mac).connect();
    let client = client.unwrap_or_else(|error| panic!("{names}: {error}\n{}", server.log()));
    let algorithms = client.algorithms();
    assert_eq!((&*algorithms.cipher_out, &*algorithms.cipher_in), (cipher, cipher));
    if let Some(mac) = mac {
        assert_eq!((&*algorithms.mac_out, &*algorithms.mac_in), (mac, mac));
    }

    let file = server.file(data);
    within(PATIENCE, {
        let client = client.clone();
        move || {
            down(&client, &file, data);
            up(&client, data);
            both_ways(&client, data);
            in_small_packets(&client);
            client.close(PATIENCE).unwrap();
        }
    });
    if let (Some(before), Some(after)) = (before, server.exchanges()) {
        // One begins the connection. Twice the data came down, and not all servers count what goes up. None interrupts
        // what it is about to send, so that there are fewer than one for each MiB.
        let again = after - before - 1;
        assert!(again >= data.len() / MIB, "{names}: {again} key exchanges\n{}", server.log());
    }
}

/// A builder that offers one cipher, and one MAC if the cipher has none of its own.
fn only(builder: ClientBuilder, cipher: &str, mac: Option<&str>) -> ClientBuilder {
    match mac {
        Some(mac) => builder.ciphers([cipher]).macs([mac]),
        None => builder.ciphers([cipher]),
    }
}

fn down(client: &Client, file: &str, data: &[u8]) {
    let mut child = client.exec_command(format!("cat {file}")).unwrap();
    assert_eq!(sha256(child.stdout.take().unwrap()).unwrap(), sha256(data).unwrap());
    assert!(child.wait().unwrap().success());
}

fn up(client: &Client, data: &[u8]) {
    let mut child = client.exec_command("sha256sum").unwrap();
    child.stdin.take().unwrap().write_all(data).unwrap();
    let output = child.output().unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.split_whitespace().next(), Some(&*sha256(data).unwrap().0));
}

fn both_ways(client: &Client, data: &'static [u8]) {
    thread::scope(|scope| {
        let channels = data.chunks(data.len() / CHANNELS).map(|part| scope.spawn(move || echo(client, part)));
        let channels: Vec<_> = channels.collect();
        // A panic's own words are worth more than that there was one.
        channels.into_iter().for_each(|channel| channel.join().unwrap_or_else(|why| std::panic::resume_unwind(why)));
    });
}

fn echo(client: &Client, part: &'static [u8]) {
    let mut child = client.exec_command("cat").unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let writer = thread::spawn(move || stdin.write_all(part).unwrap());
    assert_eq!(sha256(stdout).unwrap(), sha256(part).unwrap());
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
}

fn in_small_packets(client: &Client) {
    let mut child = client.exec_command("cat").unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut back = [0; SMALL];
    for size in 1..=SMALL {
        // Waited for, so that no two of them share a packet.
        stdin.write_all(&DATA[size..2 * size]).unwrap();
        stdout.read_exact(&mut back[..size]).unwrap();
        assert_eq!(back[..size], DATA[size..2 * size], "{size} bytes");
    }
    drop(stdin);
    assert_eq!(stdout.read(&mut back).unwrap(), 0);
    assert!(child.wait().unwrap().success());
}

/// Everything that a server shares with us belongs to one of the families that are tested against it.
fn nothing_is_left_out(server: &Server, families: &[Family]) {
    let offer = server.offer();
    assert!(offer.kex.iter().any(|name| name == "kex-strict-s-v00@openssh.com"), "no strict kex: {offer:?}");
    let tested: Vec<_> = families.iter().flat_map(|family| family.pairs(&offer)).collect();
    let all = [FAMILY_GCM, FAMILY_CHACHA20, FAMILY_CTR, FAMILY_CTR_ETM];
    for pair in all.iter().flat_map(|family| family.pairs(&offer)) {
        assert!(tested.contains(&pair), "the server has {pair:?}, and no test uses it: add its family below");
    }
}

/// What we offer unasked, by our own KEXINIT.
fn our_offer() -> Offer {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let connecting = thread::spawn(move || Client::builder("127.0.0.1").port(port).user("nobody").connect());
    let (mut stream, _) = listener.accept().unwrap();
    let offer = Offer::of(&mut stream).unwrap();
    drop(stream);
    assert!(connecting.join().unwrap().is_err());
    offer
}

#[test]
fn every_cipher_that_we_offer_is_tested() {
    let ours = our_offer();
    assert!(ours.kex.iter().any(|name| name == "kex-strict-c-v00@openssh.com"), "no strict kex: {ours:?}");
    // No server of today offers CBC.
    let ciphers = ours.ciphers.iter().filter(|name| !name.contains("-cbc"));
    let untested = ciphers.filter(|&name| ![GCM, CHACHA20, CTR].concat().contains(&&**name)).collect::<Vec<_>>();
    assert!(untested.is_empty(), "no family has {untested:?}");
    let untested = ours.macs.iter().filter(|&name| ![MACS, ETM_MACS].concat().contains(&&**name)).collect::<Vec<_>>();
    assert!(untested.is_empty(), "no family has {untested:?}");
    // OpenSSH has everything that we have, so that everything is tested against it at least.
    let theirs = Server::openssh().offer();
    for name in [GCM, CHACHA20, CTR].concat() {
        assert!(ours.ciphers.iter().any(|ours| ours == name), "{name} is not offered any more");
        assert!(theirs.ciphers.iter().any(|theirs| theirs == name), "sshd does not offer {name}");
    }
}

/// The tests of one server, which begin a server each.
macro_rules! tests {
    ($server:ident: $($name:ident $family:ident,)+) => {
        mod $server {
            use super::*;

            $(
                #[test]
                fn $name() {
                    $family.test(&Server::$server());
                }
            )+

            #[test]
            fn nothing_that_both_sides_have_is_left_out() {
                nothing_is_left_out(&Server::$server(), &[$($family),+]);
            }
        }
    };
}

tests!(openssh:
    everything_arrives_with_gcm FAMILY_GCM,
    everything_arrives_with_chacha20 FAMILY_CHACHA20,
    everything_arrives_with_ctr FAMILY_CTR,
    everything_arrives_with_ctr_etm FAMILY_CTR_ETM,
);
tests!(dropbear:
    everything_arrives_with_chacha20 FAMILY_CHACHA20,
    everything_arrives_with_ctr FAMILY_CTR,
);
tests!(asyncssh:
    everything_arrives_with_gcm FAMILY_GCM,
    everything_arrives_with_chacha20 FAMILY_CHACHA20,
    everything_arrives_with_ctr FAMILY_CTR,
    everything_arrives_with_ctr_etm FAMILY_CTR_ETM,
);
tests!(paramiko:
    everything_arrives_with_gcm FAMILY_GCM,
    everything_arrives_with_ctr FAMILY_CTR,
    everything_arrives_with_ctr_etm FAMILY_CTR_ETM,
);
tests!(russh:
    everything_arrives_with_gcm FAMILY_GCM,
    everything_arrives_with_chacha20 FAMILY_CHACHA20,
    everything_arrives_with_ctr FAMILY_CTR,
    everything_arrives_with_ctr_etm FAMILY_CTR_ETM,
);
