//! What `std::process` does with a local program, and Python's `subprocess`: arguments one by one, streams, a status.
//!
//! `cargo run --example subprocess_like -- alice@web1`

use std::error::Error;
use std::io::Write;

use threadline::{Client, Stdio};

fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args().nth(1).ok_or("usage: subprocess_like user@host:port")?;
    let client = Client::connect(&target)?;

    // Arguments arrive as they are: the remote shell expands nothing and splits nothing.
    let output = client.command("printf").arg("<%s>\\n").args(["it's $HOME", "*", ""]).output()?;
    print!("{}", String::from_utf8_lossy(&output.stdout));

    // Only the status. `Display` says it in words, `code()` is the number.
    let status = client.command("test").args(["-d", "/no such directory"]).status()?;
    println!("{status}, success: {}", status.success());

    // Three streams and a status.
    let mut child = client.sh("tr a-z A-Z; echo done >&2; exit 3").stdin(Stdio::piped()).spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(b"quietly\n")?;
    } // dropped: the command sees the end of its input
    let output = child.output()?;
    print!("stdout: {}", String::from_utf8_lossy(&output.stdout));
    print!("stderr: {}", String::from_utf8_lossy(&output.stderr));
    println!("{}", output.status);
    Ok(())
}
