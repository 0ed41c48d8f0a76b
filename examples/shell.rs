//! The tutorial's first program: a shell on a terminal, as a person would have it.
//!
//! What is typed comes back as well, and nothing tells it from what the commands print. For commands see `exec.rs`.
//!
//! `cargo run --example shell -- alice@web1`

use std::error::Error;
use std::io::{Read, Write};

use threadline::Client;

fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args().nth(1).ok_or("usage: shell user@host:port")?;
    let client = Client::connect(&target)?;

    let (mut stdin, mut stdout) = client.invoke_shell()?.split();

    stdin.write_all(b"echo Hello, world\rexit\r")?;
    let mut output = Vec::new();
    stdout.read_to_end(&mut output)?;
    println!("{}", String::from_utf8_lossy(&output));
    Ok(())
}
