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
