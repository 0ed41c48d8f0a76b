//! A dialogue with a program that asks questions: wait for each, answer it.
//!
//! `cargo run --example expect -- alice@web1`

use std::error::Error;
use std::time::Duration;

use threadline::{Client, Pattern};

/// The program that asks; `passwd`, `mysql` or an installer would do as well.
const PROGRAM: &str = "printf 'Your name: '; read name; printf 'Age of %s? ' \"$name\"; read age
                       if [ \"$age\" -ge 18 ]; then echo Welcome; else echo Sorry; exit 1; fi";

const SOON: Duration = Duration::from_secs(20);

fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args().nth(1).ok_or("usage: expect user@host:port")?;
    let client = Client::connect(&target)?;

    let mut dialogue = client.command("sh").args(["-c", PROGRAM]).spawn_shell()?;
    dialogue.expect("name: ", SOON)?;
    dialogue.send_line("Alice")?;

    let question = dialogue.expect(Pattern::regex(r"Age of (?<whom>\w+)\? ")?, SOON)?;
    println!("asked about {}", String::from_utf8_lossy(question.name("whom").unwrap_or_default()));
    dialogue.send_line("42")?;

    let answer = dialogue.expect(["Sorry", "Welcome"], SOON)?;
    println!("it says {}", answer.text());
    println!("{}", dialogue.wait()?);
    Ok(())
}
