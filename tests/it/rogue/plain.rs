//! Servers that never get as far as a key exchange.

use std::io;
use std::time::Duration;

use super::conn::is_gone;
use super::Rogue;

impl Rogue {
    /// Accepts and says nothing.
    pub fn mute() -> Rogue {
        Rogue::start(|conn| conn.ignore_until_closed())
    }

    /// Sends random bytes and a line ending now and then, without end.
    pub fn garbage() -> Rogue {
        Rogue::start(|conn| {
            endless(|| {
                let noise: [u8; 1024] = rand::random();
                conn.write_raw(&noise)
            })
        })
    }

    /// Waits for what it takes for a request, and answers as a web server answers nonsense.
    pub fn http() -> Rogue {
        Rogue::start(|conn| {
            conn.read_raw()?;
            conn.write_raw(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        })
    }

    /// Sends lines before the banner (which RFC 4253 §4.2 allows) and never the banner.
    pub fn banner_flood() -> Rogue {
        let lines = "All work and no play makes Jack a dull boy.\r\n".repeat(200);
        Rogue::start(move |conn| endless(|| conn.write_raw(lines.as_bytes())))
    }

    /// Sends one line before the banner, and that line never ends.
    pub fn endless_line() -> Rogue {
        Rogue::start(|conn| endless(|| conn.write_raw(&[b'a'; 8192])))
    }

    /// Sends the banner a byte at a time with this pause behind each, then nothing.
    pub fn slow_banner(pause: Duration) -> Rogue {
        Rogue::start(move |conn| {
            conn.write_split(b"SSH-2.0-Slow_but_steady_wins_the_race_or_does_it\r\n", &[1; 48], pause)?;
            conn.ignore_until_closed()
        })
    }
}

/// Goes on until the client is gone.
fn endless(mut step: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match step() {
            Ok(()) => {}
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
