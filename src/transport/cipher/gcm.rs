//! AES-GCM as SSH uses it (RFC 5647 §7, OpenSSH's `aes128-gcm@openssh.com` and `aes256-gcm@openssh.com`): the packet
//! length in the clear and authenticated, the tag behind the packet, a nonce that counts packets.

use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;

use super::TAG;

/// The key of one direction. OpenSSL wipes it when it is dropped.
pub(crate) struct Gcm {
    ctx: CipherCtx,
    nonce: [u8; 12],
    encrypt: bool,
}

impl Gcm {
    /// A key of 16 or 32 bytes and the first nonce; `None` if the lengths are others, or OpenSSL refuses.
    pub fn new(key: &[u8], nonce: &[u8], encrypt: bool) -> Option<Gcm> {
        let cipher = match key.len() {
            16 => Cipher::aes_128_gcm(),
            32 => Cipher::aes_256_gcm(),
            _ => return None,
        };
        let nonce = nonce.try_into().ok()?;
        let mut ctx = CipherCtx::new().ok()?;
        if encrypt {
            ctx.encrypt_init(Some(cipher), Some(key), None).ok()?;
        } else {
            ctx.decrypt_init(Some(cipher), Some(key), None).ok()?;
        }
        Some(Gcm { ctx, nonce, encrypt })
    }

    /// Encrypts what lies between the first `header` bytes, which are only authenticated, and the last 16, which get
    /// the tag. `None`: it was not done, and the packet must not be sent.
    pub fn seal(&mut self, packet: &mut [u8], header: usize) -> Option<()> {
        self.run(packet, header, |ctx, tag| {
            ctx.cipher_final(&mut []).ok()?;
            ctx.tag(tag).ok()
        })
    }

    /// The reverse of [`seal`](Gcm::seal). `None`: the packet is not what was sent; what was in it is wiped.
    pub fn open(&mut self, packet: &mut [u8], header: usize) -> Option<()> {
        let opened = self.run(packet, header, |ctx, tag| {
            ctx.set_tag(tag).ok()?;
            // Compares the tags in constant time.
            ctx.cipher_final(&mut []).ok().map(|_| ())
        });
        if opened.is_none() {
            packet.fill(0);
        }
        opened
    }

    fn run(
        &mut self,
        packet: &mut [u8],
        header: usize,
        finish: impl FnOnce(&mut CipherCtx, &mut [u8]) -> Option<()>,
    ) -> Option<()> {
        let body = packet.len().checked_sub(TAG + header)?;
        if self.encrypt {
            self.ctx.encrypt_init(None, None, Some(&self.nonce)).ok()?;
        } else {
            self.ctx.decrypt_init(None, None, Some(&self.nonce)).ok()?;
        }
        self.count();
        let (header, rest) = packet.split_at_mut(header);
        let (text, tag) = rest.split_at_mut(body);
        if !header.is_empty() {
            self.ctx.cipher_update(header, None).ok()?;
        }
        if !text.is_empty() {
            self.ctx.cipher_update_inplace(text, body).ok()?;
        }
        finish(&mut self.ctx, tag)
    }

    /// The last eight bytes of the nonce are a counter (RFC 5647 §7.1); never again the same one, whatever happens.
    fn count(&mut self) {
        let (_, counter) = self.nonce.split_at_mut(4);
        let counter: &mut [u8; 8] = counter.try_into().expect("12 - 4 bytes");
        *counter = u64::from_be_bytes(*counter).wrapping_add(1).to_be_bytes();
    }
}
