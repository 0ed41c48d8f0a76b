//! A SOCKS proxy whose connections come from the server, ssh's `-D`, until the end of the input.
//!
//! `cargo run --example socks -- alice@bastion 127.0.0.1:1080`, then `curl --proxy socks5h://127.0.0.1:1080 http://intranet/`

use std::error::Error;
use std::io;

use threadline::Client;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().ok_or("usage: socks user@host:port [LISTEN]")?;
    let bind = arguments.next().unwrap_or_else(|| "127.0.0.1:1080".into());

    let forward = Client::connect(&server)?.forward_dynamic(&bind)?;
    println!("socks5h://{}", forward.endpoint());
    io::copy(&mut io::stdin(), &mut io::sink())?;
    println!("{:?}", forward.counters());
    Ok(())
}
