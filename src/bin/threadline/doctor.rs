//! `threadline doctor`: what this machine offers, and what a connection negotiates.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{getrlimit, Resource};
use threadline::{Client, Implementation};

use crate::connect::{self, NotConnected};
use crate::report::{self, escape, Failure};
use crate::{output, INTERNAL};

/// How long the agent and the round trip may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Round trips measured; the shortest is shown.
const ROUND_TRIPS: usize = 5;
/// The exit code when the host cannot be reached.
const NOT_CONNECTED: u8 = 255;

/// Whether this program has whole-packet ciphers of its own.
const FAST: bool = cfg!(feature = "fast-ciphers");
/// What is to be said when a method is neither libssh2's nor ours.
const OTHERS: &str =
    "WARNING: somebody else in this process has put methods of their own into libssh2's table; whether \
     they encrypt well is not known here";

/// Whom to look at besides this machine.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub connect: Option<connect::Plan>,
}

/// Shows it; fails if no connection is possible, or the one to the host is not.
pub(crate) fn run(plan: Plan) -> Result<u8, Failure> {
    let mut page = Page::default();
    machine(&mut page);
    output::print(page.0.as_bytes())?;
    threadline::check_seam().map_err(|e| Failure::new(e.to_string(), INTERNAL))?;
    let Some(connect) = plan.connect else { return Ok(0) };

    let began = Instant::now();
    let client = connect::connect(&connect).map_err(|e| match e {
        NotConnected::Local(failure) => failure,
        NotConnected::Remote(error) => Failure::new(report::describe(&error), NOT_CONNECTED),
    })?;
    let mut page = Page::default();
    connection(&mut page, &client, began.elapsed());
    let code = output::print(page.0.as_bytes())?;
    if let Err(e) = client.close(PATIENCE) {
        log::debug!("goodbye: {e}");
    }
    Ok(code)
}

/// Names and what is to be said about them, in two columns.
#[derive(Debug, Default)]
struct Page(String);

impl Page {
    fn line(&mut self, name: &str, text: impl std::fmt::Display) {
        // A String takes everything.
        let _ = writeln!(self.0, "{name:<14}{text}");
    }
}

fn machine(page: &mut Page) {
    let versions = threadline::versions();
    page.line("threadline", &versions.threadline);
    let seam = match threadline::check_seam() {
        Ok(()) => "bundled, our packet layer is in place".to_owned(),
        Err(e) => e.to_string(),
    };
    page.line("libssh2", format!("{} ({seam})", versions.libssh2));
    page.line("OpenSSL", &versions.openssl);
    page.line("processor", processor());
    ciphers(page);
    page.line("open files", limit(Resource::Nofile, "each connection takes 2"));
    page.line("threads", limit(Resource::Nproc, "each connection and each command shown as lines takes 1"));
    agent(page);
    for path in threadline::known_hosts_files() {
        page.line("known hosts", known_hosts(&path));
    }
}

fn processor() -> String {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let aes = if threadline::processor_has_aes() { "yes" } else { "no" };
    format!("{threads} threads at once; AES instructions: {aes}")
}

fn ciphers(page: &mut Page) {
    let ciphers = threadline::ciphers();
    let aes = threadline::processor_has_aes();
    page.line("fast ciphers", if FAST { "on" } else { "off: built without the feature fast-ciphers" });
    page.line("ciphers", order_of(ciphers.first().map_or("", |first| &first.name), aes, FAST));
    for cipher in &ciphers {
        page.line("", format!("{:<31}{}", cipher.name, described(cipher.implementation, cipher.rank)));
    }
    if ciphers.iter().any(|cipher| cipher.implementation == Implementation::Other) {
        page.line("", OTHERS);
    }
}

/// The order, and why it is so.
fn order_of(first: &str, aes: bool, fast: bool) -> String {
    let why = match (aes, fast) {
        (true, true) if first.contains("gcm") => "the processor has AES instructions",
        (true, true) => "AES-GCM is not this program's own here",
        (true, false) => "without fast ciphers AES-GCM is slower, whatever the processor has",
        (false, _) => "the processor has no AES instructions",
    };
    format!("as offered, {first} first: {why} (-o Ciphers= names others)")
}

fn described(implementation: Implementation, rank: Option<usize>) -> String {
    let when = if rank.is_some() { "" } else { ", offered only when named" };
    format!("{implementation}{when}")
}

fn limit(resource: Resource, meaning: &str) -> String {
    let limit = getrlimit(resource);
    let shown = |value: Option<u64>| value.map_or_else(|| "unlimited".to_owned(), |value| value.to_string());
    format!("{}, at most {} ({meaning})", shown(limit.current), shown(limit.maximum))
}

fn agent(page: &mut Page) {
    let socket = std::env::var("SSH_AUTH_SOCK").unwrap_or_default();
    match threadline::agent_keys(PATIENCE) {
        Ok(None) => page.line("agent", "none: SSH_AUTH_SOCK is not set"),
        Ok(Some(keys)) => {
            page.line("agent", format!("{} with {}", escape(&socket), counted(keys.len(), "key")));
            for key in keys {
                page.line("", format!("{} {}", key.fingerprint, escape(&key.comment)));
            }
        }
        Err(e) => page.line("agent", format!("{e}; start one with: eval $(ssh-agent)")),
    }
}

fn known_hosts(path: &Path) -> String {
    let shown = escape(&path.display().to_string());
    match fs::read(path) {
        Ok(text) => {
            let is_entry = |line: &&[u8]| !line.trim_ascii().is_empty() && !line.trim_ascii().starts_with(b"#");
            let entries = text.split(|&b| b == b'\n').filter(is_entry).count();
            format!("{shown}: {}", counted(entries, "line"))
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => format!("{shown}: not there"),
        Err(e) => format!("{shown}: {e}"),
    }
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 {
        format!("1 {what}")
    } else {
        format!("{count} {what}s")
    }
}

fn connection(page: &mut Page, client: &Client, took: Duration) {
    let (algorithms, key, how) = (client.algorithms(), client.host_key(), client.authenticated_by());
    page.line("", "");
    page.line("connected", format!("{} as {} in {}", client.address(), escape(client.user()), milliseconds(took)));
    page.line("server", escape(client.server_banner()));
    page.line("host key", format!("{} {}", escape(key.key_type()), key.fingerprint()));
    let with = if how.with.is_empty() { String::new() } else { format!(" with {}", escape(&how.with)) };
    page.line("let in by", format!("{}{with}", escape(&how.method)));
    page.line("key exchange", format!("{}, {}", escape(&algorithms.kex), escape(&algorithms.host_key)));
    let direction = |cipher: &str, mac: &str, whose| format!("{}, {} (cipher: {whose})", escape(cipher), escape(mac));
    page.line("to the host", direction(&algorithms.cipher_out, &algorithms.mac_out, algorithms.cipher_out_by));
    page.line("from the host", direction(&algorithms.cipher_in, &algorithms.mac_in, algorithms.cipher_in_by));
    page.line("round trip", round_trip(client));
}

fn round_trip(client: &Client) -> String {
    let trips: threadline::Result<Vec<_>> = (0..ROUND_TRIPS).map(|_| client.ping(PATIENCE)).collect();
    match trips {
        Ok(trips) => {
            format!("{} (the shortest of {ROUND_TRIPS})", milliseconds(trips.into_iter().min().unwrap_or_default()))
        }
        Err(e) => report::describe(&e),
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_explained() {
        for (first, aes, fast, why) in [
            ("aes128-gcm@openssh.com", true, true, "the processor has AES instructions"),
            ("chacha20-poly1305@openssh.com", false, true, "the processor has no AES instructions"),
            ("chacha20-poly1305@openssh.com", true, false, "without fast ciphers"),
            ("chacha20-poly1305@openssh.com", true, true, "AES-GCM is not this program's own"),
        ] {
            let text = order_of(first, aes, fast);
            assert!(text.starts_with(&format!("as offered, {first} first: {why}")), "{text}");
        }
    }

    #[test]
    fn each_cipher_says_whose_it_is_and_when_it_is_offered() {
        assert_eq!(described(Implementation::Threadline, Some(0)), "threadline");
        assert_eq!(described(Implementation::Libssh2, None), "libssh2, offered only when named");
        assert_eq!(described(Implementation::Other, Some(3)), "somebody else's");
    }
}
