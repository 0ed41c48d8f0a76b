//! The tutorial's second program: commands, each on a channel of its own, with its own output and exit status.
//!
//! `cargo run --example exec -- alice@web1`

use std::error::Error;

use threadline::Client;

fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args().nth(1).ok_or("usage: exec user@host:port")?;
    let client = Client::connect(&target)?;

    for command in ["echo \"Hello, world!\"", "uname", "uptime"] {
        let child = client.exec_command(command)?;
        // Ends the command's stdin, reads stdout and stderr to their ends, waits for the exit status.
        let output = child.output()?;
        println!("{:?}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}
