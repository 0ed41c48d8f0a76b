//! The packets of RFC 4253 §6, sealed and opened: plain, AES-CTR with a MAC (RFC 4344, before or after encryption),
//! AES-GCM (RFC 5647) and chacha20-poly1305@openssh.com (OpenSSH's PROTOCOL.chacha20poly1305).

use std::io;

use aes::{Aes128, Aes256};
use aes_gcm::aead::{Aead, Payload};
use aes_gcm::{Aes128Gcm, Aes256Gcm, KeyInit};
use chacha20::ChaCha20Legacy;
use ctr::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use ctr::Ctr128BE;
use hmac::Hmac;
use poly1305::Poly1305;
use sha2::{Sha256, Sha512};

use super::wire::invalid;

/// No packet is shorter than this on the wire under any method here, so this much may always be waited for.
pub const HEAD: usize = 16;

/// The largest packet taken from a client, far above the 35000 bytes that RFC 4253 §6.1 asks for.
const MAX_PACKET: usize = 256 * 1024;

/// The tag of the ciphers that authenticate themselves.
const TAG: usize = 16;

/// The longest MAC.
const MAX_TAG: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    Aes128Ctr,
    Aes256Ctr,
    Aes128Gcm,
    Aes256Gcm,
    ChaCha20Poly1305,
}

impl Cipher {
    pub const NAMES: [(&'static str, Cipher); 5] = [
        ("chacha20-poly1305@openssh.com", Cipher::ChaCha20Poly1305),
        ("aes128-gcm@openssh.com", Cipher::Aes128Gcm),
        ("aes256-gcm@openssh.com", Cipher::Aes256Gcm),
        ("aes128-ctr", Cipher::Aes128Ctr),
        ("aes256-ctr", Cipher::Aes256Ctr),
    ];

    pub fn by_name(name: &str) -> Option<Cipher> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|&(_, cipher)| cipher)
    }

    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, cipher)| *cipher == self).map_or("", |(name, _)| name)
    }

    /// Authenticates its packets itself: the MAC that was negotiated beside it is not used.
    pub fn is_aead(self) -> bool {
        !matches!(self, Cipher::Aes128Ctr | Cipher::Aes256Ctr)
    }

    pub fn key_size(self) -> usize {
        match self {
            Cipher::Aes128Ctr | Cipher::Aes128Gcm => 16,
            Cipher::Aes256Ctr | Cipher::Aes256Gcm => 32,
            Cipher::ChaCha20Poly1305 => 64,
        }
    }

    pub fn iv_size(self) -> usize {
        match self {
            Cipher::Aes128Ctr | Cipher::Aes256Ctr => 16,
            Cipher::Aes128Gcm | Cipher::Aes256Gcm => 12,
            Cipher::ChaCha20Poly1305 => 0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hash {
    Sha256,
    Sha512,
}

/// A MAC algorithm: the hash, and whether it covers the cipher text ("encrypt then MAC") or the plain packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac {
    hash: Hash,
    encrypt_then_mac: bool,
}

impl Mac {
    pub const NAMES: [(&'static str, Mac); 4] = [
        ("hmac-sha2-256-etm@openssh.com", Mac { hash: Hash::Sha256, encrypt_then_mac: true }),
        ("hmac-sha2-512-etm@openssh.com", Mac { hash: Hash::Sha512, encrypt_then_mac: true }),
        ("hmac-sha2-256", Mac { hash: Hash::Sha256, encrypt_then_mac: false }),
        ("hmac-sha2-512", Mac { hash: Hash::Sha512, encrypt_then_mac: false }),
    ];

    pub fn by_name(name: &str) -> Option<Mac> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|&(_, mac)| mac)
    }

    /// Bytes of the key, and of the code that follows each packet.
    pub fn size(self) -> usize {
        match self.hash {
            Hash::Sha256 => 32,
            Hash::Sha512 => 64,
        }
    }

    fn code(self, key: &[u8], sequence: u32, data: &[u8]) -> Vec<u8> {
        let sequence = sequence.to_be_bytes();
        match self.hash {
            Hash::Sha256 => hmac::<Hmac<Sha256>>(key, &sequence, data),
            Hash::Sha512 => hmac::<Hmac<Sha512>>(key, &sequence, data),
        }
    }
}

fn hmac<M: hmac::Mac + KeyInit>(key: &[u8], sequence: &[u8], data: &[u8]) -> Vec<u8> {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes a key of any size");
    mac.update(sequence);
    mac.update(data);
    mac.finalize().into_bytes().to_vec()
}

/// Which part of a sealed packet to damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The packet length, by 32: plausible and aligned. Where that makes it longer, the receiver waits for what follows.
    Length,
    /// The first byte behind the length.
    Body,
    /// The last byte: of the MAC or tag, where there is one.
    Tag,
    /// This bit of the packet as it is on the wire, counted from its start.
    Bit(usize),
}

/// Flips one bit of a sealed packet.
pub fn flip(packet: &mut [u8], part: Part) {
    let bit = match part {
        Part::Length => 3 * 8 + 5,
        Part::Body => 4 * 8,
        Part::Tag => (packet.len() - 1) * 8,
        Part::Bit(bit) => bit,
    };
    packet[bit / 8] ^= 1 << (bit % 8);
}

/// What protects the packets of one direction.
pub enum Protection {
    /// Nothing, before the first NEWKEYS.
    Plain,
    Ctr {
        stream: CtrStream,
        mac: Mac,
        mac_key: Vec<u8>,
    },
    Gcm {
        key: GcmKey,
        nonce: [u8; 12],
    },
    ChaCha {
        body_key: [u8; 32],
        length_key: [u8; 32],
    },
}

impl std::fmt::Debug for Protection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Protection::Plain => "Plain",
            Protection::Ctr { .. } => "Ctr",
            Protection::Gcm { .. } => "Gcm",
            Protection::ChaCha { .. } => "ChaCha",
        })
    }
}

impl Protection {
    /// Keys of the sizes that `cipher` and `mac` name.
    pub fn new(cipher: Cipher, mac: Mac, key: &[u8], iv: &[u8], mac_key: Vec<u8>) -> Self {
        match cipher {
            Cipher::Aes128Ctr => Self::Ctr { stream: CtrStream::Aes128(ctr(key, iv)), mac, mac_key },
            Cipher::Aes256Ctr => Self::Ctr { stream: CtrStream::Aes256(ctr(key, iv)), mac, mac_key },
            Cipher::Aes128Gcm => Self::Gcm { key: GcmKey::Aes128(gcm(key)), nonce: array(iv) },
            Cipher::Aes256Gcm => Self::Gcm { key: GcmKey::Aes256(gcm(key)), nonce: array(iv) },
            Cipher::ChaCha20Poly1305 => Self::ChaCha { body_key: array(&key[..32]), length_key: array(&key[32..]) },
        }
    }

    /// The packet of this payload as it goes onto the wire.
    pub fn seal(&mut self, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let packet = frame(payload, self.block_size(), self.length_is_apart());
        self.seal_frame(sequence, packet)
    }

    /// The same without padding to whole blocks, against RFC 4253 §6: two bytes of padding, and the MAC or tag is right.
    pub fn seal_unaligned(&mut self, sequence: u32, payload: &[u8]) -> Vec<u8> {
        self.seal_frame(sequence, frame(payload, 1, true))
    }

    fn seal_frame(&mut self, sequence: u32, mut packet: Vec<u8>) -> Vec<u8> {
        match self {
            Self::Plain => {}
            Self::Ctr { stream, mac, mac_key } if mac.encrypt_then_mac => {
                stream.apply(&mut packet[4..]);
                let code = mac.code(mac_key, sequence, &packet);
                packet.extend(code);
            }
            Self::Ctr { stream, mac, mac_key } => {
                let code = mac.code(mac_key, sequence, &packet);
                stream.apply(&mut packet);
                packet.extend(code);
            }
            Self::Gcm { key, nonce } => {
                let sealed = key.seal(nonce, &packet[..4], &packet[4..]);
                packet.truncate(4);
                packet.extend(sealed);
                count_up(nonce);
            }
            Self::ChaCha { body_key, length_key } => {
                chacha(length_key, sequence).apply_keystream(&mut packet[..4]);
                let (mut body, authenticator) = chacha_body(body_key, sequence);
                body.apply_keystream(&mut packet[4..]);
                packet.extend(authenticator.compute_unpadded(&packet));
            }
        }
        packet
    }

    /// How many bytes the packet that begins with `head` has on the wire, its MAC or tag included.
    pub fn packet_size(&mut self, sequence: u32, head: &[u8; HEAD]) -> io::Result<usize> {
        let mut head = *head;
        match self {
            Self::Ctr { stream, mac, .. } if !mac.encrypt_then_mac => stream.peek(&mut head),
            Self::ChaCha { length_key, .. } => chacha(length_key, sequence).apply_keystream(&mut head[..4]),
            _ => {}
        }
        let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let size = length.saturating_add(4 + self.tag_size());
        if (HEAD..=MAX_PACKET).contains(&size) {
            Ok(size)
        } else {
            Err(invalid(format!("packet length {length} from the client")))
        }
    }

    /// The payload of a packet as it came off the wire, of exactly the size that `packet_size` said.
    pub fn open(&mut self, sequence: u32, mut packet: Vec<u8>) -> io::Result<Vec<u8>> {
        let tag = packet.split_off(packet.len() - self.tag_size());
        match self {
            Self::Plain => {}
            Self::Ctr { stream, mac, mac_key } => {
                if mac.encrypt_then_mac {
                    check(mac.code(mac_key, sequence, &packet) == tag)?;
                    stream.apply(&mut packet[4..]);
                } else {
                    stream.apply(&mut packet);
                    check(mac.code(mac_key, sequence, &packet) == tag)?;
                }
            }
            Self::Gcm { key, nonce } => {
                let opened = key.open(nonce, &packet[..4], &[&packet[4..], &tag].concat()).ok_or_else(bad_mac)?;
                packet.truncate(4);
                packet.extend(opened);
                count_up(nonce);
            }
            Self::ChaCha { body_key, .. } => {
                let (mut body, authenticator) = chacha_body(body_key, sequence);
                check(authenticator.compute_unpadded(&packet)[..] == tag)?;
                body.apply_keystream(&mut packet[4..]);
            }
        }
        unframe(&packet)
    }

    fn tag_size(&self) -> usize {
        match self {
            Self::Plain => 0,
            Self::Ctr { mac, .. } => mac.size(),
            Self::Gcm { .. } | Self::ChaCha { .. } => TAG,
        }
    }

    fn block_size(&self) -> usize {
        match self {
            Self::Plain | Self::ChaCha { .. } => 8,
            Self::Ctr { .. } | Self::Gcm { .. } => 16,
        }
    }

    /// The four length bytes are not encrypted together with the rest, and so do not count for its alignment.
    fn length_is_apart(&self) -> bool {
        match self {
            Self::Plain => false,
            Self::Ctr { mac, .. } => mac.encrypt_then_mac,
            Self::Gcm { .. } | Self::ChaCha { .. } => true,
        }
    }
}

/// Length, padding length, payload, padding (RFC 4253 §6).
fn frame(payload: &[u8], block: usize, length_is_apart: bool) -> Vec<u8> {
    let unpadded = 1 + payload.len() + if length_is_apart { 0 } else { 4 };
    let mut padding = block - unpadded % block;
    if padding < 4 {
        padding += block;
    }
    let length = u32::try_from(1 + payload.len() + padding).expect("a payload of under 4 GiB");
    let mut packet = Vec::with_capacity(4 + 1 + payload.len() + padding + MAX_TAG);
    packet.extend_from_slice(&length.to_be_bytes());
    packet.push(u8::try_from(padding).expect("at most 19 bytes of padding"));
    packet.extend_from_slice(payload);
    packet.extend_from_slice(&rand::random::<[u8; 32]>()[..padding]);
    packet
}

fn unframe(packet: &[u8]) -> io::Result<Vec<u8>> {
    let padding = usize::from(packet[4]);
    let end = packet.len().checked_sub(padding).filter(|&end| end > 5);
    let end = end.ok_or_else(|| invalid("a packet without a payload from the client"))?;
    Ok(packet[5..end].to_vec())
}

fn check(authentic: bool) -> io::Result<()> {
    if authentic {
        Ok(())
    } else {
        Err(bad_mac())
    }
}

fn bad_mac() -> io::Error {
    invalid("bad MAC from the client")
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("key material of the size that was asked for")
}

pub enum CtrStream {
    Aes128(Ctr128BE<Aes128>),
    Aes256(Ctr128BE<Aes256>),
}

fn ctr<S: KeyIvInit>(key: &[u8], iv: &[u8]) -> S {
    S::new_from_slices(key, iv).expect("key and counter of the cipher's sizes")
}

impl CtrStream {
    fn apply(&mut self, bytes: &mut [u8]) {
        match self {
            Self::Aes128(stream) => stream.apply_keystream(bytes),
            Self::Aes256(stream) => stream.apply_keystream(bytes),
        }
    }

    /// `apply`, without using the key stream up.
    fn peek(&mut self, bytes: &mut [u8]) {
        fn peek(stream: &mut (impl StreamCipher + StreamCipherSeek), bytes: &mut [u8]) {
            let position: u64 = stream.current_pos();
            stream.apply_keystream(bytes);
            stream.seek(position);
        }
        match self {
            Self::Aes128(stream) => peek(stream, bytes),
            Self::Aes256(stream) => peek(stream, bytes),
        }
    }
}

pub enum GcmKey {
    Aes128(Aes128Gcm),
    Aes256(Aes256Gcm),
}

fn gcm<K: KeyInit>(key: &[u8]) -> K {
    K::new_from_slice(key).expect("a key of the cipher's size")
}

impl GcmKey {
    fn seal(&self, nonce: &[u8; 12], aad: &[u8], msg: &[u8]) -> Vec<u8> {
        let payload = Payload { msg, aad };
        match self {
            Self::Aes128(key) => key.encrypt(nonce.into(), payload),
            Self::Aes256(key) => key.encrypt(nonce.into(), payload),
        }
        .expect("GCM seals any packet of under 64 GiB")
    }

    fn open(&self, nonce: &[u8; 12], aad: &[u8], msg: &[u8]) -> Option<Vec<u8>> {
        let payload = Payload { msg, aad };
        match self {
            Self::Aes128(key) => key.decrypt(nonce.into(), payload),
            Self::Aes256(key) => key.decrypt(nonce.into(), payload),
        }
        .ok()
    }
}

/// RFC 5647 §7.1: four fixed bytes, then a counter of invocations.
fn count_up(nonce: &mut [u8; 12]) {
    let counter = u64::from_be_bytes(array(&nonce[4..]));
    nonce[4..].copy_from_slice(&counter.wrapping_add(1).to_be_bytes());
}

fn chacha(key: &[u8; 32], sequence: u32) -> ChaCha20Legacy {
    ChaCha20Legacy::new(key.into(), &u64::from(sequence).to_be_bytes().into())
}

/// What the body is encrypted and the packet authenticated with: block 0 of the key stream is the key of Poly1305, the
/// body begins at block 1.
fn chacha_body(key: &[u8; 32], sequence: u32) -> (ChaCha20Legacy, Poly1305) {
    let mut stream = chacha(key, sequence);
    let mut authenticator_key = [0; 32];
    stream.apply_keystream(&mut authenticator_key);
    stream.seek(64u32);
    (stream, Poly1305::new(&authenticator_key.into()))
}
