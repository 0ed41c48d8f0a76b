//! One connection, a thread for each command, and one thread that prints: lines never mix, each comes when it is whole.
//!
//! [`threadline::Printer`] is this with labels, limits and escapes; here is how it goes by hand.
//!
//! `cargo run --example many_threads -- alice@web1 'vmstat 1 5' 'ping -c 3 web2' 'tail -n 3 /etc/passwd'`

use std::error::Error;
use std::thread;

use crossbeam_channel::bounded;
use threadline::{Client, ExitStatus};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let target = arguments.next().ok_or("usage: many_threads user@host:port COMMAND...")?;
    let client = Client::connect(&target)?;
    // A bound: when the terminal is slow the readers wait, then their remote commands do, and memory stays small.
    let (sender, printer) = bounded(1024);

    let read = |(number, command): (usize, String)| {
        let (client, sender) = (client.clone(), sender.clone());
        thread::spawn(move || -> threadline::Result<ExitStatus> {
            let mut lines = client.sh(command).spawn()?.lines();
            for line in &mut lines {
                if sender.send((number, line?)).is_err() {
                    break; // nobody prints any more
                }
            }
            lines.into_child().wait()
        })
    };
    let readers: Vec<_> = arguments.enumerate().map(read).collect();
    drop(sender); // now the queue ends when the last reader does

    for (number, line) in printer {
        println!("{number}: {}", line.text());
    }
    for (number, reader) in readers.into_iter().enumerate() {
        println!("{number} ended: {}", reader.join().expect("a reader ends in peace")?);
    }
    Ok(())
}
