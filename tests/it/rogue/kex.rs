//! The key exchange (RFC 4253 §7, curve25519-sha256 of RFC 8731, ssh-ed25519 of RFC 8709, OpenSSH's strict kex) as
//! pure functions: payloads in, payloads and keys out. When each goes over the wire is the script's business (conn.rs).

use std::io;

use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};
use x25519_dalek::{x25519, X25519_BASEPOINT_BYTES};

use super::cipher::{Cipher, Mac, Protection};
use super::wire::{fields, invalid, message, msg, Reader};

/// "I am a strict server" (OpenSSH's PROTOCOL §1.10): sequence numbers begin again at zero with each NEWKEYS.
const STRICT_SERVER: &str = "kex-strict-s-v00@openssh.com";
const STRICT_CLIENT: &str = "kex-strict-c-v00@openssh.com";

/// What a KEXINIT offers. Any name may stand in it; the exchange goes on if the client picks one that we know.
#[derive(Clone, Debug)]
pub struct Offer {
    pub kex: Vec<&'static str>,
    pub host_keys: Vec<&'static str>,
    /// Client to server, server to client.
    pub ciphers: [Vec<&'static str>; 2],
    /// Client to server, server to client.
    pub macs: [Vec<&'static str>; 2],
    pub compression: Vec<&'static str>,
    /// Offer strict kex. It counts in the first exchange of a connection only.
    pub strict: bool,
}

impl Default for Offer {
    /// All that this server can do.
    fn default() -> Self {
        let ciphers = Cipher::NAMES.map(|(name, _)| name).to_vec();
        let macs = Mac::NAMES.map(|(name, _)| name).to_vec();
        Self {
            kex: vec!["curve25519-sha256", "curve25519-sha256@libssh.org"],
            host_keys: vec!["ssh-ed25519"],
            ciphers: [ciphers.clone(), ciphers],
            macs: [macs.clone(), macs],
            compression: vec!["none"],
            strict: true,
        }
    }
}

impl Offer {
    /// The same with this cipher alone, both ways.
    #[must_use]
    pub fn cipher(self, name: &'static str) -> Self {
        Self { ciphers: [vec![name], vec![name]], ..self }
    }

    /// The same with this MAC alone, both ways.
    #[must_use]
    pub fn mac(self, name: &'static str) -> Self {
        Self { macs: [vec![name], vec![name]], ..self }
    }

    /// The same without strict kex.
    #[must_use]
    pub fn lenient(self) -> Self {
        Self { strict: false, ..self }
    }

    /// The KEXINIT that says so.
    pub fn kexinit(&self) -> Vec<u8> {
        let mut kex = self.kex.clone();
        if self.strict {
            kex.push(STRICT_SERVER);
        }
        let none: [&str; 0] = [];
        message(msg::KEXINIT)
            .raw(&rand::random::<[u8; 16]>())
            .names(&kex)
            .names(&self.host_keys)
            .names(&self.ciphers[0])
            .names(&self.ciphers[1])
            .names(&self.macs[0])
            .names(&self.macs[1])
            .names(&self.compression)
            .names(&self.compression)
            .names(&none)
            .names(&none)
            .bool(false)
            .u32(0)
            .done()
    }
}

/// What two KEXINITs agree on (RFC 4253 §7.1).
#[derive(Clone, Debug)]
pub struct Agreed {
    /// Client to server, server to client.
    pub ciphers: [Cipher; 2],
    /// Client to server, server to client; not used with a cipher that authenticates itself.
    pub macs: [Mac; 2],
    /// Both are strict.
    pub strict: bool,
    /// The client sent a guess behind its KEXINIT, and guessed wrong.
    pub wrong_guess: bool,
}

pub fn negotiate(server: &[u8], client: &[u8]) -> io::Result<Agreed> {
    let (server, client) = (Lists::parse(server)?, Lists::parse(client)?);
    let pick = |list: usize| pick(&client.names[list], &server.names[list]);
    let cipher = |list| {
        let name = pick(list)?;
        Cipher::by_name(&name).ok_or_else(|| invalid(format!("the client agrees to the cipher {name}, unknown here")))
    };
    let ciphers = [cipher(2)?, cipher(3)?];
    let mac = |list, cipher: Cipher| match pick(list).ok().and_then(|name| Mac::by_name(&name)) {
        Some(mac) => Ok(mac),
        None if cipher.is_aead() => Ok(Mac::NAMES[0].1),
        None => Err(invalid("no MAC in common with the client")),
    };
    let macs = [mac(4, ciphers[0])?, mac(5, ciphers[1])?];
    pick(0)?;
    pick(1)?;
    let first = |list: usize| client.names[list].first() == server.names[list].first();
    Ok(Agreed {
        ciphers,
        macs,
        strict: server.has(STRICT_SERVER) && client.has(STRICT_CLIENT),
        wrong_guess: client.guess_follows && !(first(0) && first(1)),
    })
}

/// The lists of a client's KEXINIT, in the order of RFC 4253 §7.1: 2 and 3 are the ciphers to and from the server.
pub fn lists(client: &[u8]) -> io::Result<Vec<Vec<String>>> {
    Ok(Lists::parse(client)?.names)
}

/// The first of the client's names that the server has too.
fn pick(client: &[String], server: &[String]) -> io::Result<String> {
    let common = client.iter().find(|name| server.contains(name));
    common.cloned().ok_or_else(|| invalid(format!("nothing in common: client {client:?}, server {server:?}")))
}

struct Lists {
    names: Vec<Vec<String>>,
    guess_follows: bool,
}

impl Lists {
    fn parse(kexinit: &[u8]) -> io::Result<Self> {
        let mut fields = Reader::message(kexinit, msg::KEXINIT)?;
        fields.take(16)?;
        let names = (0..10).map(|_| fields.names()).collect::<io::Result<_>>()?;
        Ok(Self { names, guess_follows: fields.bool()? })
    }

    fn has(&self, kex: &str) -> bool {
        self.names[0].iter().any(|name| name == kex)
    }
}

/// An ed25519 host key.
#[derive(Clone, Debug)]
pub struct HostKey(SigningKey);

impl HostKey {
    pub fn random() -> Self {
        Self(SigningKey::from_bytes(&rand::random()))
    }

    /// The public key as RFC 8709 §4 encodes it.
    pub fn blob(&self) -> Vec<u8> {
        fields().string("ssh-ed25519").string(self.0.verifying_key().as_bytes()).done()
    }

    fn signature(&self, data: &[u8]) -> Vec<u8> {
        fields().string("ssh-ed25519").string(self.0.sign(data).to_bytes()).done()
    }
}

/// All that goes into the exchange hash (RFC 5656 §4) but the secret.
pub struct Transcript<'a> {
    pub client_banner: &'a str,
    pub server_banner: &'a str,
    pub client_kexinit: &'a [u8],
    pub server_kexinit: &'a [u8],
    pub client_point: &'a [u8],
}

/// Answers the client's point: the KEX_ECDH_REPLY, and the secrets that both sides now have.
pub fn answer(transcript: &Transcript<'_>, host_key: &HostKey) -> io::Result<(Vec<u8>, Secrets)> {
    let client_point = <[u8; 32]>::try_from(transcript.client_point)
        .map_err(|_| invalid("the client's point does not have 32 bytes"))?;
    let secret: [u8; 32] = rand::random();
    let point = x25519(secret, X25519_BASEPOINT_BYTES);
    let shared = fields().mpint(&x25519(secret, client_point)).done();
    let hash = Sha256::digest(
        fields()
            .string(transcript.client_banner)
            .string(transcript.server_banner)
            .string(transcript.client_kexinit)
            .string(transcript.server_kexinit)
            .string(host_key.blob())
            .string(client_point)
            .string(point)
            .raw(&shared)
            .done(),
    )
    .to_vec();
    let reply =
        message(msg::KEX_ECDH_REPLY).string(host_key.blob()).string(point).string(host_key.signature(&hash)).done();
    Ok((reply, Secrets { shared, hash }))
}

/// What the keys are made of.
#[derive(Clone, Debug)]
pub struct Secrets {
    shared: Vec<u8>,
    /// The exchange hash; the first of a connection is its session identifier.
    pub hash: Vec<u8>,
}

/// Which way the packets go.
#[derive(Clone, Copy, Debug)]
pub enum Way {
    ClientToServer = 0,
    ServerToClient = 1,
}

impl Secrets {
    /// The keys of one direction (RFC 4253 §7.2).
    pub fn protection(&self, agreed: &Agreed, session_id: &[u8], way: Way) -> Protection {
        let (cipher, mac) = (agreed.ciphers[way as usize], agreed.macs[way as usize]);
        let [iv, key, mac_key] = match way {
            Way::ClientToServer => [b'A', b'C', b'E'],
            Way::ServerToClient => [b'B', b'D', b'F'],
        };
        let derive = |letter, size| self.derive(session_id, letter, size);
        Protection::new(
            cipher,
            mac,
            &derive(key, cipher.key_size()),
            &derive(iv, cipher.iv_size()),
            derive(mac_key, mac.size()),
        )
    }

    fn derive(&self, session_id: &[u8], letter: u8, size: usize) -> Vec<u8> {
        let start = [&self.shared, &self.hash[..]].concat();
        let mut key = Sha256::digest([&start, &[letter][..], session_id].concat()).to_vec();
        while key.len() < size {
            key.extend(Sha256::digest([&start[..], &key].concat()));
        }
        key.truncate(size);
        key
    }
}
