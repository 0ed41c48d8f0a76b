//! The server listens, and its connections are answered here: each gets its lines back in capitals.
//!
//! `cargo run --example remote_listener -- alice@web1 127.0.0.1:0`

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::thread;

use threadline::{ChannelStream, Client};

fn answer(stream: &ChannelStream) -> std::io::Result<()> {
    let mut writer = stream;
    for line in BufReader::new(stream).lines() {
        writeln!(writer, "{}", line?.to_uppercase())?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let server = arguments.next().ok_or("usage: remote_listener user@host:port [LISTEN]")?;
    let bind = arguments.next().unwrap_or_else(|| "127.0.0.1:0".into());

    let client = Client::connect(&server)?;
    let listener = client.listen_remote(&bind)?;
    println!("{} listens on {}", client.host().host(), listener.endpoint());
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = answer(&stream) {
                eprintln!("{}: {error}", stream.peer());
            }
        });
    }
    Ok(())
}
