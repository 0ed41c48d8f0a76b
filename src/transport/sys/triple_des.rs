//! What it takes to read a private key that is encrypted with 3DES: the bundled libssh2 is compiled without that cipher.
//! The key derivation is libssh2's own, the cipher is that of the OpenSSL which libssh2 is linked with.

use std::ffi::{c_char, c_int, c_uint, c_void, CStr};
use std::ptr;

use zeroize::Zeroizing;

const KEY: usize = 24;
const BLOCK: usize = 8;
/// libssh2's own limit (pem.c): each round takes its time.
const MAX_ROUNDS: u32 = 1 << 20;

// SAFETY: the signatures are those of libssh2_priv.h and of OpenSSL's evp.h, the same from 1.1.0 on.
unsafe extern "C" {
    fn ssh2_bcrypt_pbkdf(
        pass: *const c_char,
        passlen: usize,
        salt: *const u8,
        saltlen: usize,
        key: *mut u8,
        keylen: usize,
        rounds: c_uint,
    ) -> c_int;
    fn EVP_get_cipherbyname(name: *const c_char) -> *const c_void;
    fn EVP_CIPHER_CTX_new() -> *mut c_void;
    fn EVP_CIPHER_CTX_free(ctx: *mut c_void);
    fn EVP_CIPHER_CTX_set_padding(ctx: *mut c_void, padding: c_int) -> c_int;
    fn EVP_DecryptInit_ex(
        ctx: *mut c_void,
        cipher: *const c_void,
        engine: *mut c_void,
        key: *const u8,
        iv: *const u8,
    ) -> c_int;
    fn EVP_DecryptUpdate(ctx: *mut c_void, out: *mut u8, outl: *mut c_int, input: *const u8, inl: c_int) -> c_int;
}

/// An OpenSSL cipher context, freed with its keys wiped.
struct Context(*mut c_void);

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by EVP_CIPHER_CTX_new, or null, which is allowed.
        unsafe { EVP_CIPHER_CTX_free(self.0) };
    }
}

/// Decrypts what `ssh-keygen -Z 3des-cbc` has encrypted (PROTOCOL.key); `None` if the numbers are impossible, or this
/// OpenSSL has no 3DES. A wrong passphrase gives nonsense.
pub(crate) fn decrypt(passphrase: &[u8], salt: &[u8], rounds: u32, encrypted: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if passphrase.is_empty() || salt.is_empty() || !(1..=MAX_ROUNDS).contains(&rounds) {
        return None;
    }
    let mut key = Zeroizing::new([0; KEY + BLOCK]);
    // SAFETY: all pointers come with their lengths; libssh2 keeps none of them.
    let rc = unsafe {
        let (salt, key) = ((salt.as_ptr(), salt.len()), (key.as_mut_ptr(), key.len()));
        ssh2_bcrypt_pbkdf(passphrase.as_ptr().cast(), passphrase.len(), salt.0, salt.1, key.0, key.1, rounds)
    };
    if rc != 0 || encrypted.len() % BLOCK != 0 {
        return None;
    }
    let (key, iv) = key.split_at(KEY);
    cbc(c"DES-EDE3-CBC", key, iv, encrypted)
}

fn cbc(cipher: &CStr, key: &[u8], iv: &[u8], encrypted: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let len = c_int::try_from(encrypted.len()).ok()?;
    // Room for one block more, as OpenSSL asks for.
    let mut plain = Zeroizing::new(vec![0; encrypted.len() + BLOCK]);
    let mut written = 0;
    // SAFETY: the cipher is looked up by a name that has 24 bytes of key and 8 of IV, which is what there is; the output
    // has a block more than the input.
    let done = unsafe {
        let cipher = EVP_get_cipherbyname(cipher.as_ptr());
        let ctx = Context(EVP_CIPHER_CTX_new());
        !cipher.is_null()
            && !ctx.0.is_null()
            && EVP_DecryptInit_ex(ctx.0, cipher, ptr::null_mut(), key.as_ptr(), iv.as_ptr()) == 1
            && EVP_CIPHER_CTX_set_padding(ctx.0, 0) == 1
            && EVP_DecryptUpdate(ctx.0, plain.as_mut_ptr(), &mut written, encrypted.as_ptr(), len) == 1
    };
    plain.truncate(encrypted.len());
    (done && written == len).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        assert!(decrypt(b"pass", b"salt", 1, &[0; 16]).is_some());
        assert!(decrypt(b"", b"salt", 1, &[0; 16]).is_none());
        assert!(decrypt(b"pass", b"", 1, &[0; 16]).is_none());
        assert!(decrypt(b"pass", b"salt", 0, &[0; 16]).is_none());
        assert!(decrypt(b"pass", b"salt", u32::MAX, &[0; 16]).is_none());
        assert!(decrypt(b"pass", b"salt", 1, &[0; 15]).is_none());
        assert!(decrypt(b"pass", b"salt", 1, &[]).is_some_and(|plain| plain.is_empty()));
    }
}
