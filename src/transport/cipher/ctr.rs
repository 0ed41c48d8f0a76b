//! AES-CTR (RFC 4344 §4) with its keystream made in advance: libssh2 asks for 16 bytes at a time, OpenSSL is fast only
//! when asked for many.

use openssl::cipher::Cipher;
use openssl::cipher_ctx::CipherCtx;
use zeroize::Zeroizing;

/// Keystream that is made at once.
const AHEAD: usize = 4096;

/// The key of one direction. It and the keystream are wiped when they are dropped.
pub(crate) struct Ctr {
    ctx: CipherCtx,
    stream: Zeroizing<Box<[u8]>>,
    /// How much of the keystream is used up.
    used: usize,
}

impl Ctr {
    /// A key of 16, 24 or 32 bytes and the first counter; `None` if the lengths are others, or OpenSSL refuses.
    pub fn new(key: &[u8], counter: &[u8]) -> Option<Ctr> {
        let cipher = match key.len() {
            16 => Cipher::aes_128_ctr(),
            24 => Cipher::aes_192_ctr(),
            32 => Cipher::aes_256_ctr(),
            _ => return None,
        };
        if counter.len() != 16 {
            return None;
        }
        let mut ctx = CipherCtx::new().ok()?;
        ctx.encrypt_init(Some(cipher), Some(key), Some(counter)).ok()?;
        let stream = Zeroizing::new(vec![0; AHEAD].into_boxed_slice());
        Some(Ctr { ctx, stream, used: AHEAD })
    }

    /// Encrypts or decrypts, which is the same, in place.
    #[inline]
    pub fn apply(&mut self, data: &mut [u8]) -> Option<()> {
        // What libssh2 always asks for.
        if let (Ok(block), Some(stream)) =
            (<&mut [u8; 16]>::try_from(&mut *data), self.stream.get(self.used..self.used + 16))
        {
            for (byte, key) in block.iter_mut().zip(stream) {
                *byte ^= key;
            }
            self.used += 16;
            return Some(());
        }
        self.apply_any(data)
    }

    fn apply_any(&mut self, mut data: &mut [u8]) -> Option<()> {
        while !data.is_empty() {
            if self.used == AHEAD {
                self.stream.fill(0);
                self.ctx.cipher_update_inplace(&mut self.stream, AHEAD).ok()?;
                self.used = 0;
            }
            let stream = &self.stream[self.used..];
            let n = stream.len().min(data.len());
            let (now, later) = data.split_at_mut(n);
            for (byte, key) in now.iter_mut().zip(stream) {
                *byte ^= key;
            }
            self.used += n;
            data = later;
        }
        Some(())
    }
}
