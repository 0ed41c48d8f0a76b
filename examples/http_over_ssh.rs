//! A page that only the server can reach: whatever speaks over a `Read` and a `Write` speaks over a stream.
//!
//! `cargo run --example http_over_ssh -- alice@bastion intranet:80 /`

use std::error::Error;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::time::Duration;

use threadline::Client;

/// As for a `TcpStream`: nothing here knows of SSH.
fn get(mut stream: impl Read + Write, host: &str, path: &str) -> io::Result<(String, String)> {
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = BufReader::new(stream);
    let (mut status, mut body) = (String::new(), String::new());
    answer.read_line(&mut status)?;
    while answer.read_line(&mut body)? > 2 {
        body.clear();
    }
    body.clear();
    answer.read_to_string(&mut body)?;
    Ok((status, body))
}

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: http_over_ssh user@host:port HOST:PORT PATH";
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or(usage);
    let (server, site, path) = (next()?, next()?, next()?);

    let stream = Client::connect(&server)?.tcp_connect(&site)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let (status, body) = get(stream, &site, &path)?;
    eprint!("{status}");
    print!("{body}");
    Ok(())
}
