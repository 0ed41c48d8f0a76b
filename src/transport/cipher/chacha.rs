//! `chacha20-poly1305@openssh.com` (OpenSSH's PROTOCOL.chacha20poly1305): two ChaCha20 keys, one for the packet length
//! and one for the packet; the nonce is the packet's number; the tag covers the encrypted length too.

use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use poly1305::universal_hash::KeyInit;
use poly1305::Poly1305;
use zeroize::{Zeroize, Zeroizing};

use super::TAG;

/// One block of ChaCha20's keystream.
const BLOCK: usize = 64;

/// The keys of one direction. OpenSSL wipes them when they are dropped.
pub(crate) struct ChaCha {
    /// For the packet, and for the one-time key of its tag.
    main: CipherCtx,
    /// For the packet's length.
    header: CipherCtx,
}

impl ChaCha {
    /// The two keys of 32 bytes one after the other; `None` if the length is another, or OpenSSL refuses.
    pub fn new(key: &[u8]) -> Option<ChaCha> {
        if key.len() != 64 {
            return None;
        }
        let (main, header) = key.split_at(32);
        let context = |key| {
            let mut ctx = CipherCtx::new().ok()?;
            ctx.encrypt_init(Some(Cipher::chacha20()), Some(key), None).ok()?;
            Some(ctx)
        };
        Some(ChaCha { main: context(main)?, header: context(header)? })
    }

    /// The length in the four bytes with which packet number `sequence` begins. It is not authenticated yet.
    pub fn length(&mut self, sequence: u32, mut field: [u8; 4]) -> Option<u32> {
        apply(&mut self.header, sequence, &mut field)?;
        Some(u32::from_be_bytes(field))
    }

    /// Encrypts the length in the first `header` bytes and what follows it; the tag goes into the last 16. `None`: it
    /// was not done, and the packet must not be sent.
    pub fn seal(&mut self, sequence: u32, packet: &mut [u8], header: usize) -> Option<()> {
        let body = packet.len().checked_sub(TAG)?;
        let (covered, tag) = packet.split_at_mut(body);
        let (length, text) = covered.split_at_mut_checked(header)?;
        if !length.is_empty() {
            apply(&mut self.header, sequence, length)?;
        }
        let one_time = self.one_time(sequence)?;
        update(&mut self.main, text)?;
        tag.copy_from_slice(&authenticate(&one_time, covered));
        Some(())
    }

    /// The reverse of [`seal`](ChaCha::seal), but that the length stays encrypted. `None`: the packet is not what was
    /// sent; it is not decrypted then.
    pub fn open(&mut self, sequence: u32, packet: &mut [u8], header: usize) -> Option<()> {
        let body = packet.len().checked_sub(TAG)?;
        let (covered, tag) = packet.split_at_mut(body);
        if header > covered.len() {
            return None;
        }
        let one_time = self.one_time(sequence)?;
        // In constant time.
        if !openssl::memcmp::eq(&authenticate(&one_time, covered), tag) {
            return None;
        }
        update(&mut self.main, &mut covered[header..])
    }

    /// Begins the packet's keystream: its first block is the key of the tag, the text begins with the second.
    fn one_time(&mut self, sequence: u32) -> Option<Zeroizing<[u8; BLOCK]>> {
        let mut block = Zeroizing::new([0; BLOCK]);
        apply(&mut self.main, sequence, &mut block[..])?;
        Some(block)
    }
}

/// The keystream for packet number `sequence` from its beginning on: a block counter of 64 bits and the number of the
/// packet as a nonce of 64 bits, which is OpenSSL's counter of 32 bits and nonce of 96.
fn apply(ctx: &mut CipherCtx, sequence: u32, bytes: &mut [u8]) -> Option<()> {
    let mut iv = [0; 16];
    iv[8..].copy_from_slice(&u64::from(sequence).to_be_bytes());
    ctx.encrypt_init(None, None, Some(&iv)).ok()?;
    update(ctx, bytes)
}

/// The keystream from where it is.
fn update(ctx: &mut CipherCtx, bytes: &mut [u8]) -> Option<()> {
    let len = bytes.len();
    if len > 0 {
        ctx.cipher_update_inplace(bytes, len).ok()?;
    }
    Some(())
}

fn authenticate(one_time: &[u8; BLOCK], covered: &[u8]) -> [u8; TAG] {
    let mut key = poly1305::Key::default();
    key.copy_from_slice(&one_time[..32]);
    let tag = Poly1305::new(&key).compute_unpadded(covered);
    key.zeroize();
    tag.into()
}
