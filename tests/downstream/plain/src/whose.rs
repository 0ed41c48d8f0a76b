//! Whose code encrypts in this process: what the library says of it when it stores its methods, at debug.

use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::Failure;

/// Who should encrypt in this build, in the library's words.
pub const EXPECTED: &str = if cfg!(feature = "fast-ciphers") { "threadline" } else { "libssh2" };

/// What the message begins with; `NAME WHOSE, NAME WHOSE…` follows.
const MESSAGE: &str = "ciphers: ";

/// The rest of the message.
static SAID: OnceLock<String> = OnceLock::new();

struct Listener;

impl Log for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() == Level::Debug && metadata.target().starts_with("threadline::")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            if let Some(said) = record.args().to_string().strip_prefix(MESSAGE) {
                // It is said once; were it not, the first time counts.
                let _ = SAID.set(said.to_owned());
            }
        }
    }

    fn flush(&self) {}
}

/// Listens from now on; to be called before the first connection.
pub fn listen() -> Result<(), Failure> {
    log::set_logger(&Listener).map_err(|error| error.to_string())?;
    log::set_max_level(LevelFilter::Debug);
    Ok(())
}

/// Is the cipher encrypted by whom this build says? To be called after the first connection.
pub fn check(cipher: &str) -> Result<(), Failure> {
    let said = SAID.get().ok_or("the library has not said whose ciphers are in use")?;
    let whose = said.split(", ").find_map(|entry| entry.strip_prefix(cipher)?.strip_prefix(' '));
    match whose {
        Some(whose) if whose == EXPECTED => Ok(()),
        _ => Err(format!("{cipher} is to be {EXPECTED}'s own, and the library said: {said}").into()),
    }
}
