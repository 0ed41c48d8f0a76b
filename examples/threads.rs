//! The tutorial's third program: two commands at once over one connection, a thread reads each.
//!
//! `cargo run --example threads -- alice@web1`

use std::error::Error;
use std::io::{self, BufRead};
use std::thread;

use threadline::Client;

fn read_until_eof(stream: impl BufRead) -> io::Result<()> {
    for line in stream.lines() {
        println!("{}", line?.trim());
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args().nth(1).ok_or("usage: threads user@host:port")?;
    let client = Client::connect(&target)?;

    let out1 = client.exec_command("echo One;sleep 2;echo Two;sleep 1;echo Three")?.stdout.expect("a pipe");
    let out2 = client.exec_command("echo A;sleep 1;echo B;sleep 2;echo C")?.stdout.expect("a pipe");
    let thread1 = thread::spawn(move || read_until_eof(out1));
    let thread2 = thread::spawn(move || read_until_eof(out2));
    thread1.join().expect("the first reader ends in peace")?;
    thread2.join().expect("the second reader ends in peace")?;
    Ok(())
}
