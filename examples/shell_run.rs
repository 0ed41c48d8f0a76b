//! Commands one after the other in one living shell, each with its output and its exit status.
//!
//! What a command changes in the shell, the next one finds. Commands that need nothing of each other are better off with
//! `exec.rs`: they can run at the same time.
//!
//! `cargo run --example shell_run -- alice@web1 'cd /usr' 'pwd' 'ls | wc -l' 'false'`

use std::error::Error;
use std::time::Duration;

use threadline::Client;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let target = arguments.next().ok_or("usage: shell_run user@host:port COMMAND...")?;
    let client = Client::connect(&target)?;

    let mut shell = client.invoke_shell()?;
    for command in arguments {
        let output = shell.run_within(&command, Duration::from_secs(60))?;
        println!("$ {command}");
        print!("{}", String::from_utf8_lossy(&output.stdout));
        println!("[{}]", output.status);
    }
    Ok(())
}
