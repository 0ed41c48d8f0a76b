//! The tutorial's `AllowAnythingPolicy`: talks to every host, whatever key it shows.
//!
//! Then nobody can tell whether the host is the one that was meant. Use it where that does not matter, as on a test
//! network; the default refuses hosts that `~/.ssh/known_hosts` does not list. A *changed* key is refused all the same.
//!
//! `cargo run --example allow_anything -- alice@web1`

use std::error::Error;

use threadline::{Client, HostKey, HostName, MissingHostKeyPolicy, Verdict};

struct AllowAnythingPolicy;

impl MissingHostKeyPolicy for AllowAnythingPolicy {
    fn missing_host_key(&self, host: &HostName, key: &HostKey) -> Verdict {
        println!("{host} is new: {} {}", key.key_type(), key.fingerprint());
        Verdict::Accept
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let target = std::env::args().nth(1).ok_or("usage: allow_anything user@host:port")?;
    let client = Client::builder(&target).missing_host_key_policy(AllowAnythingPolicy).connect()?;

    let output = client.exec_command("echo Hello, world")?.output()?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    Ok(())
}
