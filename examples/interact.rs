//! A shell that the program prepares, a person uses, and the program goes on with: `~.` gives it back.
//!
//! `cargo run --example interact -- alice@web1`

use std::error::Error;

use threadline::{Client, Interacted};

fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args().nth(1).ok_or("usage: interact user@host:port")?;
    let client = Client::connect(&target)?;

    let mut shell = client.invoke_shell()?;
    shell.run("cd /usr && export STAGE=test")?;
    println!("the shell is yours; ~. at the start of a line gives it back");
    match shell.interact()? {
        Interacted::Ended(status) => println!("it has ended: {status}"),
        _ => {
            let left = shell.run("pwd")?;
            println!("it was left in {}", String::from_utf8_lossy(&left.stdout).trim_end());
        }
    }
    Ok(())
}
