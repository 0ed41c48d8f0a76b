//! A command as root: sudo asks for the password, a responder answers. The password is read from this program's stdin.
//!
//! sudo is given a prompt that nobody can guess, so that no other program gets the password by asking for one.
//!
//! `cargo run --example sudo -- alice@web1 'id -un' <password-file`

use std::error::Error;
use std::time::Duration;

use threadline::{Client, Responder};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let target = arguments.next().ok_or("usage: sudo user@host:port COMMAND <password")?;
    let command = arguments.next().ok_or("usage: sudo user@host:port COMMAND <password")?;
    let mut password = String::new();
    std::io::stdin().read_line(&mut password)?;
    password.truncate(password.trim_end().len());

    let client = Client::connect(&target)?;
    let mut shell = client.invoke_shell()?;
    let prompt = format!("password-{:x}:", std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0));
    shell.respond(Responder::secret(prompt.as_str(), password)); // overwritten when the shell is dropped

    let output = shell.run_within(format!("sudo -p '{prompt}' {command}"), Duration::from_secs(60))?;
    // The prompt stands before what the command said.
    print!("{}", String::from_utf8_lossy(&output.stdout).replace(&prompt, "").trim_start());
    println!("[{}]", output.status);
    Ok(())
}
