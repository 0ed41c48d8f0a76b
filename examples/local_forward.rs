//! A port of this machine that leads to one behind the server, ssh's `-L`, until the end of the input.
//!
//! `cargo run --example local_forward -- alice@bastion 127.0.0.1:5432 db:5432`

use std::error::Error;
use std::io;

use threadline::{Client, Forward, ForwardEvent};

const USAGE: &str = "usage: local_forward user@host:port LISTEN TARGET";

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or(USAGE);
    let (server, bind, target) = (next()?, next()?, next()?);
    let client = Client::connect(&server)?;

    let forward = Forward::local(&bind, &target).max_connections(100).start(&client)?;
    println!("listening on {}", forward.endpoint());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while let Some(event) = forward.next_event() {
                if let ForwardEvent::Refused { peer, error, .. } = event {
                    eprintln!("{peer}: {error}");
                }
            }
        });
        let stopped = io::copy(&mut io::stdin(), &mut io::sink());
        forward.stop();
        stopped
    })?;
    let counters = forward.counters();
    println!("{} connections, {} bytes sent, {} received", counters.connections, counters.sent, counters.received);
    Ok(())
}
