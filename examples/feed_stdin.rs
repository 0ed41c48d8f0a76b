//! Streams our stdin into a remote command, and its output to ours, while both run: any amount of it.
//!
//! `cargo run --example feed_stdin -- alice@web1 'sort | uniq -c' < words.txt`

use std::error::Error;
use std::io::{self, ErrorKind};
use std::process::ExitCode;

use threadline::{Client, Stdio};

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(target), Some(command)) = (arguments.next(), arguments.next()) else {
        return Err("usage: feed_stdin user@host:port COMMAND".into());
    };
    let client = Client::connect(&target)?;

    // Inherited streams are copied by threads of the library: output flows while this thread feeds.
    let command = client.sh(command).stdin(Stdio::piped()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().expect("a pipe");
    match io::copy(&mut io::stdin().lock(), &mut stdin) {
        Ok(bytes) => eprintln!("fed {bytes} bytes"),
        // It has read what it wants, as `head` does. Its status will tell.
        Err(e) if e.kind() == ErrorKind::BrokenPipe => eprintln!("the command has stopped reading"),
        Err(e) => return Err(e.into()),
    }
    drop(stdin); // the end of the command's input

    let status = child.wait()?;
    eprintln!("{status}");
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
