//! The methods as libssh2 calls them, compared with vectors computed elsewhere, with RustCrypto, and with libssh2's own.

use super::harness::{family_of, method, noise, Keys, Use};
use super::*;

#[cfg(feature = "fast-ciphers")]
mod before_us;
#[cfg(feature = "fast-ciphers")]
mod lengths;
#[cfg(feature = "_faults")]
mod script;
#[cfg(feature = "fast-ciphers")]
mod secrets;
mod table;
#[cfg(feature = "fast-ciphers")]
mod tampering;
#[cfg(feature = "fast-ciphers")]
mod vectors;
mod wear;

/// What is ours with `fast-ciphers`: the length of the key and of the initial value.
#[cfg(feature = "fast-ciphers")]
const FAST: [(&str, usize, usize); 6] = [
    ("aes128-gcm@openssh.com", 16, 12),
    ("aes256-gcm@openssh.com", 32, 12),
    ("chacha20-poly1305@openssh.com", 64, 0),
    ("aes128-ctr", 16, 16),
    ("aes192-ctr", 24, 16),
    ("aes256-ctr", 32, 16),
];
