//! `threadline doctor`: what this machine offers, and what a connection negotiates.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{getrlimit, Resource};
use threadline::Client;

use crate::connect::{self, NotConnected};
use crate::report::{self, escape, Failure};
use crate::{output, INTERNAL};

/// How long the agent and the round trip may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Round trips measured; the shortest is shown.
const ROUND_TRIPS: usize = 5;
/// The exit code when the host cannot be reached.
const NOT_CONNECTED: u8 = 255;

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
    page.line("open files", limit(Resource::Nofile, "each connection takes 2"));
    page.line("threads", limit(Resource::Nproc, "each connection and each command shown as lines takes 1"));
    agent(page);
    for path in threadline::known_hosts_files() {
        page.line("known hosts", known_hosts(&path));
    }
}

fn processor() -> String {
    let has = |yes: bool| if yes { "yes" } else { "no" };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    #[cfg(target_arch = "x86_64")]
    let (aes, carryless) =
        (std::arch::is_x86_feature_detected!("aes"), std::arch::is_x86_feature_detected!("pclmulqdq"));
    #[cfg(target_arch = "aarch64")]
    let (aes, carryless) =
        (std::arch::is_aarch64_feature_detected!("aes"), std::arch::is_aarch64_feature_detected!("pmull"));
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let (aes, carryless) = (false, false);
    format!("{threads} threads at once; AES instructions: {}, for GCM: {}", has(aes), has(carryless))
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
    page.line("to the host", format!("{}, {}", escape(&algorithms.cipher_out), escape(&algorithms.mac_out)));
    page.line("from the host", format!("{}, {}", escape(&algorithms.cipher_in), escape(&algorithms.mac_in)));
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
