//! Whose code encrypts in this process, by the library's own check.

use crate::Failure;

/// Who should encrypt in this build, in the library's words.
pub const EXPECTED: &str = if cfg!(feature = "fast-ciphers") { "threadline" } else { "libssh2" };

/// Is the cipher encrypted by whom this build says?
pub fn check(cipher: &str) -> Result<(), Failure> {
    let all = threadline::ciphers();
    let whose = all.iter().find(|info| info.name == cipher).map(|info| info.implementation.to_string());
    match whose {
        Some(whose) if whose == EXPECTED => Ok(()),
        _ => Err(format!("{cipher} is to be {EXPECTED}'s own, and the library says: {all:?}").into()),
    }
}
