//! The ciphers without a network: ours, which are the files that the library compiles, beside what was left and what
//! was not taken.

use std::time::Instant;

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes128Gcm, Aes256Gcm, KeyInit};
use chacha20::ChaCha20Legacy;
use ctr::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use poly1305::Poly1305;

use crate::Outcome;

#[path = "../../src/transport/cipher/chacha.rs"]
mod chacha;
#[path = "../../src/transport/cipher/ctr.rs"]
mod ctr_ahead;
#[path = "../../src/transport/cipher/gcm.rs"]
mod gcm;

/// The authentication tag, by the name that those files know it by.
const TAG: usize = 16;
/// The packet length in front of a packet.
const HEADER: usize = 4;
/// What libssh2 hands to a block cipher at a time.
const BLOCK: usize = 16;

/// The columns: who encrypts.
pub const COLUMNS: [&str; 3] = ["threadline", BY_BLOCK, RUST_CRYPTO];
/// OpenSSL as libssh2 calls it.
const BY_BLOCK: &str = "OpenSSL, 16 bytes a call";
const RUST_CRYPTO: &str = "RustCrypto";

/// One way to encrypt and decrypt packets; both keep their own count of the packets.
trait Packets {
    /// The length in front and the tag behind are part of the packet.
    fn seal(&mut self, packet: &mut [u8]) -> Option<()>;
    fn open(&mut self, packet: &mut [u8]) -> Option<()>;
}

/// A cipher, and everybody who is compared.
pub struct Candidates {
    pub cipher: &'static str,
    candidates: Vec<(&'static str, Box<dyn Packets>)>,
}

/// All ciphers.
pub fn all() -> Outcome<Vec<Candidates>> {
    let made = || {
        let (key, iv) = ([7; 64], [9; 16]);
        let gcm = |len: usize| -> Option<Vec<(&'static str, Box<dyn Packets>)>> {
            let (key, nonce) = (&key[..len], &iv[..12]);
            let rust: Box<dyn Packets> = match len {
                16 => Box::new(RustGcm { cipher: Aes128Gcm::new_from_slice(key).ok()?, sealed: 0, opened: 0 }),
                _ => Box::new(RustGcm { cipher: Aes256Gcm::new_from_slice(key).ok()?, sealed: 0, opened: 0 }),
            };
            let ours = OurGcm { seal: gcm::Gcm::new(key, nonce, true)?, open: gcm::Gcm::new(key, nonce, false)? };
            Some(vec![(COLUMNS[0], Box::new(ours)), (BY_BLOCK, Box::new(BlockGcm::new(key)?)), (RUST_CRYPTO, rust)])
        };
        let chacha: Vec<(&'static str, Box<dyn Packets>)> = vec![
            (COLUMNS[0], Box::new(OurChaCha { cipher: chacha::ChaCha::new(&key)?, sealed: 0, opened: 0 })),
            (RUST_CRYPTO, Box::new(RustChaCha { key: [7; 32], sealed: 0, opened: 0 })),
        ];
        let ctr = |len: usize| -> Option<Vec<(&'static str, Box<dyn Packets>)>> {
            let key = &key[..len];
            let ours = || ctr_ahead::Ctr::new(key, &iv);
            let rust: Box<dyn Packets> = match len {
                16 => Box::new(rust_ctr::<ctr::Ctr128BE<aes::Aes128>>(key, &iv)?),
                _ => Box::new(rust_ctr::<ctr::Ctr128BE<aes::Aes256>>(key, &iv)?),
            };
            Some(vec![
                (COLUMNS[0], Box::new(Stream { seal: ours()?, open: ours()? })),
                (BY_BLOCK, Box::new(Stream { seal: block_ctr(key, &iv)?, open: block_ctr(key, &iv)? })),
                (RUST_CRYPTO, rust),
            ])
        };
        Some(vec![
            Candidates { cipher: "aes128-gcm@openssh.com", candidates: gcm(16)? },
            Candidates { cipher: "aes256-gcm@openssh.com", candidates: gcm(32)? },
            Candidates { cipher: "chacha20-poly1305@openssh.com", candidates: chacha },
            Candidates { cipher: "aes128-ctr, 16 bytes a call, no MAC", candidates: ctr(16)? },
            Candidates { cipher: "aes256-ctr, 16 bytes a call, no MAC", candidates: ctr(32)? },
        ])
    };
    Ok(made().ok_or("a cipher cannot be made")?)
}

/// Nanoseconds a packet.
#[derive(Debug, Clone, Copy)]
pub struct Nanoseconds {
    pub seal: f64,
    pub open: f64,
}

impl Candidates {
    /// What a packet with so many bytes of text takes everybody, in the best of so many turns. Everybody's turn is
    /// `packets` packets, as many as fit into a cache.
    pub fn measure(&mut self, text: usize, packets: usize, turns: usize) -> Outcome<Vec<(&'static str, Nanoseconds)>> {
        let mut best: Vec<_> = self
            .candidates
            .iter()
            .map(|(name, _)| (*name, Nanoseconds { seal: f64::INFINITY, open: f64::INFINITY }))
            .collect();
        let sent: Vec<Vec<u8>> = (0..packets).map(|n| vec![n as u8; HEADER + text + TAG]).collect();
        for _ in 0..turns {
            for ((name, candidate), (_, best)) in self.candidates.iter_mut().zip(&mut best) {
                let mut all = sent.clone();
                let timed = |all: &mut [Vec<u8>], run: &mut dyn FnMut(&mut [u8]) -> Option<()>| {
                    let began = Instant::now();
                    all.iter_mut().try_for_each(|packet| run(packet))?;
                    Some(began.elapsed().as_secs_f64() * 1e9 / packets as f64)
                };
                let seal = timed(&mut all, &mut |packet| candidate.seal(packet)).ok_or("a packet was not sealed")?;
                if all.iter().zip(&sent).any(|(sealed, sent)| sealed[HEADER..][..text] == sent[HEADER..][..text]) {
                    return Err(format!("{}, {name}: a packet was not encrypted", self.cipher).into());
                }
                let open = timed(&mut all, &mut |packet| candidate.open(packet)).ok_or("a packet was not opened")?;
                if all.iter().zip(&sent).any(|(opened, sent)| opened[HEADER..][..text] != sent[HEADER..][..text]) {
                    return Err(format!("{}, {name}: what was opened is not what was sealed", self.cipher).into());
                }
                best.seal = best.seal.min(seal);
                best.open = best.open.min(open);
            }
        }
        Ok(best)
    }
}

struct OurGcm {
    seal: gcm::Gcm,
    open: gcm::Gcm,
}

impl Packets for OurGcm {
    fn seal(&mut self, packet: &mut [u8]) -> Option<()> {
        self.seal.seal(packet, HEADER)
    }

    fn open(&mut self, packet: &mut [u8]) -> Option<()> {
        self.open.open(packet, HEADER)
    }
}

/// The number of a packet as a nonce, and the next one.
fn next(count: &mut u64) -> [u8; 12] {
    *count += 1;
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&count.to_be_bytes());
    nonce
}

struct BlockGcm {
    seal: CipherCtx,
    open: CipherCtx,
    sealed: u64,
    opened: u64,
}

impl BlockGcm {
    fn new(key: &[u8]) -> Option<BlockGcm> {
        let cipher = if key.len() == 16 { Cipher::aes_128_gcm() } else { Cipher::aes_256_gcm() };
        let (mut seal, mut open) = (CipherCtx::new().ok()?, CipherCtx::new().ok()?);
        seal.encrypt_init(Some(cipher), Some(key), None).ok()?;
        open.decrypt_init(Some(cipher), Some(key), None).ok()?;
        Some(BlockGcm { seal, open, sealed: 0, opened: 0 })
    }
}

fn block_by_block(ctx: &mut CipherCtx, packet: &mut [u8]) -> Option<()> {
    let (header, rest) = packet.split_at_mut(HEADER);
    let (text, _) = rest.split_at_mut(rest.len() - TAG);
    ctx.cipher_update(header, None).ok()?;
    for block in text.chunks_mut(BLOCK) {
        let len = block.len();
        ctx.cipher_update_inplace(block, len).ok()?;
    }
    Some(())
}

impl Packets for BlockGcm {
    fn seal(&mut self, packet: &mut [u8]) -> Option<()> {
        self.seal.encrypt_init(None, None, Some(&next(&mut self.sealed))).ok()?;
        block_by_block(&mut self.seal, packet)?;
        self.seal.cipher_final(&mut []).ok()?;
        let tag = packet.len() - TAG;
        self.seal.tag(&mut packet[tag..]).ok()
    }

    fn open(&mut self, packet: &mut [u8]) -> Option<()> {
        self.open.decrypt_init(None, None, Some(&next(&mut self.opened))).ok()?;
        block_by_block(&mut self.open, packet)?;
        self.open.set_tag(&packet[packet.len() - TAG..]).ok()?;
        self.open.cipher_final(&mut []).ok().map(drop)
    }
}

struct RustGcm<C> {
    cipher: C,
    sealed: u64,
    opened: u64,
}

impl<C: AeadInOut<NonceSize = aes_gcm::aead::consts::U12, TagSize = aes_gcm::aead::consts::U16>> Packets
    for RustGcm<C>
{
    fn seal(&mut self, packet: &mut [u8]) -> Option<()> {
        let (header, rest) = packet.split_at_mut(HEADER);
        let (text, tag) = rest.split_at_mut(rest.len() - TAG);
        let made = self.cipher.encrypt_inout_detached(&next(&mut self.sealed).into(), header, text.into()).ok()?;
        tag.copy_from_slice(&made);
        Some(())
    }

    fn open(&mut self, packet: &mut [u8]) -> Option<()> {
        let (header, rest) = packet.split_at_mut(HEADER);
        let (text, tag) = rest.split_at_mut(rest.len() - TAG);
        let tag = (&*tag).try_into().ok()?;
        self.cipher.decrypt_inout_detached(&next(&mut self.opened).into(), header, text.into(), tag).ok()
    }
}

struct OurChaCha {
    cipher: chacha::ChaCha,
    sealed: u32,
    opened: u32,
}

impl Packets for OurChaCha {
    fn seal(&mut self, packet: &mut [u8]) -> Option<()> {
        self.sealed += 1;
        self.cipher.seal(self.sealed, packet, HEADER)
    }

    fn open(&mut self, packet: &mut [u8]) -> Option<()> {
        self.opened += 1;
        // The length is wanted before the packet is there.
        self.cipher.length(self.opened, packet[..HEADER].try_into().ok()?)?;
        self.cipher.open(self.opened, packet, HEADER)
    }
}

struct RustChaCha {
    key: [u8; 32],
    sealed: u64,
    opened: u64,
}

impl RustChaCha {
    /// The keystream for the text, and the tag's one-time key.
    fn begin(&self, count: u64) -> (ChaCha20Legacy, Poly1305) {
        let mut stream = ChaCha20Legacy::new(&self.key.into(), &count.to_be_bytes().into());
        let mut one_time = [0; 32];
        stream.apply_keystream(&mut one_time);
        stream.seek(64u32);
        (stream, Poly1305::new(&one_time.into()))
    }

    fn length(&self, count: u64, field: &mut [u8]) {
        ChaCha20Legacy::new(&self.key.into(), &count.to_be_bytes().into()).apply_keystream(field);
    }
}

impl Packets for RustChaCha {
    fn seal(&mut self, packet: &mut [u8]) -> Option<()> {
        self.sealed += 1;
        self.length(self.sealed, &mut packet[..HEADER]);
        let (mut stream, authenticator) = self.begin(self.sealed);
        let (covered, tag) = packet.split_at_mut(packet.len() - TAG);
        stream.apply_keystream(&mut covered[HEADER..]);
        tag.copy_from_slice(&authenticator.compute_unpadded(covered));
        Some(())
    }

    fn open(&mut self, packet: &mut [u8]) -> Option<()> {
        self.opened += 1;
        let mut field: [u8; HEADER] = packet[..HEADER].try_into().ok()?;
        self.length(self.opened, &mut field);
        let (mut stream, authenticator) = self.begin(self.opened);
        let (covered, tag) = packet.split_at_mut(packet.len() - TAG);
        if !openssl::memcmp::eq(&authenticator.compute_unpadded(covered), tag) {
            return None;
        }
        stream.apply_keystream(&mut covered[HEADER..]);
        Some(())
    }
}

/// A keystream, asked for as libssh2 asks: a block at a time. The MAC is another's.
trait Keystream {
    fn apply(&mut self, block: &mut [u8]) -> Option<()>;
}

impl Keystream for ctr_ahead::Ctr {
    fn apply(&mut self, block: &mut [u8]) -> Option<()> {
        ctr_ahead::Ctr::apply(self, block)
    }
}

impl Keystream for CipherCtx {
    fn apply(&mut self, block: &mut [u8]) -> Option<()> {
        let len = block.len();
        self.cipher_update_inplace(block, len).ok().map(drop)
    }
}

/// One of RustCrypto's.
struct Rust<C>(C);

impl<C: StreamCipher> Keystream for Rust<C> {
    fn apply(&mut self, block: &mut [u8]) -> Option<()> {
        self.0.apply_keystream(block);
        Some(())
    }
}

struct Stream<K> {
    seal: K,
    open: K,
}

impl<K: Keystream> Packets for Stream<K> {
    fn seal(&mut self, packet: &mut [u8]) -> Option<()> {
        let text = HEADER..packet.len() - TAG;
        packet[text].chunks_mut(BLOCK).try_for_each(|block| self.seal.apply(block))
    }

    fn open(&mut self, packet: &mut [u8]) -> Option<()> {
        let text = HEADER..packet.len() - TAG;
        packet[text].chunks_mut(BLOCK).try_for_each(|block| self.open.apply(block))
    }
}

fn block_ctr(key: &[u8], counter: &[u8]) -> Option<CipherCtx> {
    let cipher = if key.len() == 16 { Cipher::aes_128_ctr() } else { Cipher::aes_256_ctr() };
    let mut ctx = CipherCtx::new().ok()?;
    ctx.encrypt_init(Some(cipher), Some(key), Some(counter)).ok()?;
    Some(ctx)
}

fn rust_ctr<C: KeyIvInit + StreamCipher>(key: &[u8], counter: &[u8]) -> Option<Stream<Rust<C>>> {
    let new = || Some(Rust(C::new_from_slices(key, counter).ok()?));
    Some(Stream { seal: new()?, open: new()? })
}
