//! Servers that break the rules, and networks that break packets.

/// Breaches of RFC 4254.
mod channels;
/// A bit flipped on the way.
mod flipped;
/// What a server says, or does not say, before anybody is logged in.
mod greetings;
/// A server that makes us remember too much.
mod memory;
/// Refusals: channel, exec, terminal, environment.
mod refusals;
/// Key exchanges in the middle of a connection.
mod rekey;

use std::io::{self, BufRead};
use std::sync::Arc;

use threadline::{Child, Client, ClientBuilder, Error, ExitStatus, HostKey, HostName, MissingHostKeyPolicy, Verdict};

use crate::rogue::{Offer, Rogue};

/// Accepts one key and no other.
struct Only(Vec<u8>);

impl MissingHostKeyPolicy for Only {
    fn missing_host_key(&self, _host: &HostName, key: &HostKey) -> Verdict {
        if key.blob() == self.0 {
            Verdict::Accept
        } else {
            Verdict::Reject
        }
    }
}

/// A builder that gets into a rogue server.
pub fn builder(server: &Rogue) -> ClientBuilder {
    Client::builder("127.0.0.1")
        .port(server.port())
        .user("tester")
        .agent(false)
        .password("whatever")
        .known_hosts("/dev/null")
        .missing_host_key_policy(Only(server.host_key_blob()))
}

/// A connection to a rogue server.
#[track_caller]
pub fn client(server: &Rogue) -> Client {
    builder(server).connect().unwrap_or_else(|error| panic!("cannot connect: {error}"))
}

/// What the test says when it fails: cipher and MAC.
fn methods(offer: &Offer) -> String {
    format!("{} {}", offer.ciphers[0].join(","), offer.macs[0].join(","))
}

/// All that a stream delivers, and how it ends.
fn drain(stream: &mut impl BufRead) -> (Vec<u8>, Option<Error>) {
    let mut bytes = Vec::new();
    loop {
        match stream.fill_buf() {
            Ok([]) => return (bytes, None),
            Ok(more) => {
                bytes.extend_from_slice(more);
                let n = more.len();
                stream.consume(n);
            }
            Err(error) => return (bytes, Some(ours(&error))),
        }
    }
}

/// What a command delivers on stdout, and how it ends.
fn outcome(mut child: Child) -> (Vec<u8>, Result<ExitStatus, Error>) {
    let (bytes, error) = drain(child.stdout.as_mut().expect("stdout is piped"));
    match error {
        Some(error) => (bytes, Err(error)),
        None => (bytes, child.wait()),
    }
}

/// The library's error inside an error of one of its streams.
#[track_caller]
fn ours(error: &io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    inner.unwrap_or_else(|| panic!("not an error of the library: {error}")).clone()
}

/// Runs a test's body once for each of several servers or settings, all at the same time.
pub fn each<T: Send + Sync>(of: &[T], body: impl Fn(&T) + Send + Sync) {
    let body = Arc::new(body);
    std::thread::scope(|scope| {
        let running: Vec<_> = of
            .iter()
            .map(|one| {
                let body = Arc::clone(&body);
                scope.spawn(move || body(one))
            })
            .collect();
        for one in running {
            if let Err(reason) = one.join() {
                std::panic::resume_unwind(reason);
            }
        }
    });
}
