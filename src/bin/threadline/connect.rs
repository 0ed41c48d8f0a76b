//! From the options of every verb that connects to a client.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use threadline::{AutoAddPolicy, Client, ClientBuilder, Error};
use zeroize::Zeroizing;

use crate::report::{self, Failure};
use crate::terminal;

/// No password is longer; a wrong file should not be read whole.
const MAX_PASSWORD: u64 = 64 * 1024;

/// Whom to connect to, and how.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The host as given.
    pub host: String,
    pub user: Option<String>,
    pub port: Option<u16>,
    pub identities: Vec<PathBuf>,
    /// Whether to ask the agent.
    pub agent: bool,
    /// In place of the user's and the system's files, where there are any.
    pub known_hosts: Vec<PathBuf>,
    /// Adds the key of an unknown host.
    pub accept_new: bool,
    pub password: Password,
    /// Never asks anything.
    pub batch: bool,
    /// For each step before authentication.
    pub connect_timeout: Duration,
    pub keepalive: Option<(Duration, u32)>,
    pub algorithms: Algorithms,
    /// Does not show the server's banner.
    pub quiet: bool,
}

/// Where a password comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Password {
    None,
    Ask,
    File(PathBuf),
}

/// What to offer, best first; empty means the library's order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Algorithms {
    pub kex: Vec<String>,
    pub host_keys: Vec<String>,
    pub ciphers: Vec<String>,
    pub macs: Vec<String>,
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum NotConnected {
    /// Before anything was sent: a password that cannot be had.
    Local(Failure),
    Remote(Error),
}

impl From<Error> for NotConnected {
    fn from(error: Error) -> NotConnected {
        NotConnected::Remote(error)
    }
}

/// Connects; asks on the terminal for what the plan says.
pub(crate) fn connect(plan: &Plan) -> Result<Client, NotConnected> {
    let password = password(plan).map_err(NotConnected::Local)?;
    let mut builder = builder(plan);
    if let Some(password) = password {
        builder = builder.password(password.as_str());
    }
    Ok(builder.connect()?)
}

/// Connects to one host as often as it takes, and asks for each secret once.
pub(crate) struct Connector {
    plan: Plan,
    password: Option<Zeroizing<String>>,
    passphrases: Passphrases,
}

/// What was answered for each key file; `None` skips it. A mutex because the library asks through a function that any
/// thread may call.
type Passphrases = Arc<Mutex<HashMap<PathBuf, Option<Zeroizing<String>>>>>;

impl Connector {
    /// Asks on the terminal for what the plan says.
    pub fn new(plan: Plan) -> Result<Connector, Failure> {
        let password = password(&plan)?;
        Ok(Connector { plan, password, passphrases: Passphrases::default() })
    }

    /// Connects, shows the server's banner and asks for passphrases.
    pub fn connect(&self) -> threadline::Result<Client> {
        self.builder(self.plan.quiet).connect()
    }

    /// Connects once more: nothing is shown or asked that was before.
    pub fn connect_again(&self) -> threadline::Result<Client> {
        self.builder(true).connect()
    }

    fn builder(&self, quiet: bool) -> ClientBuilder {
        let mut builder = builder(&Plan { quiet, ..self.plan.clone() });
        if let Some(password) = &self.password {
            builder = builder.password(password.as_str());
        }
        if !self.plan.batch {
            let passphrases = Arc::clone(&self.passphrases);
            builder = builder.passphrase(move |key| {
                let mut answers = passphrases.lock().unwrap_or_else(PoisonError::into_inner);
                let answer = answers.entry(key.to_owned()).or_insert_with(|| ask_passphrase(key).map(Zeroizing::new));
                answer.as_ref().map(|answer| answer.as_str().to_owned())
            });
        }
        builder
    }
}

fn builder(plan: &Plan) -> ClientBuilder {
    let limit = plan.connect_timeout;
    let mut builder = Client::builder(&plan.host).agent(plan.agent);
    builder = builder.resolve_timeout(limit).connect_timeout(limit).handshake_timeout(limit);
    if let Some(user) = &plan.user {
        builder = builder.user(user);
    }
    if let Some(port) = plan.port {
        builder = builder.port(port);
    }
    if let Some((interval, count)) = plan.keepalive {
        builder = if interval.is_zero() { builder.no_keepalive() } else { builder.keepalive(interval, count) };
    }
    if plan.accept_new {
        builder = builder.missing_host_key_policy(AutoAddPolicy);
    }
    if !plan.batch {
        builder = builder.passphrase(ask_passphrase);
    }
    if !plan.quiet {
        builder = builder.on_auth_banner(show_banner);
    }
    builder = plan.identities.iter().fold(builder, |b, path| b.identity(path));
    builder = plan.known_hosts.iter().fold(builder, |b, path| b.known_hosts(path));
    offer(builder, &plan.algorithms)
}

fn offer(mut builder: ClientBuilder, algorithms: &Algorithms) -> ClientBuilder {
    if !algorithms.kex.is_empty() {
        builder = builder.kex_algorithms(&algorithms.kex);
    }
    if !algorithms.host_keys.is_empty() {
        builder = builder.host_key_algorithms(&algorithms.host_keys);
    }
    if !algorithms.ciphers.is_empty() {
        builder = builder.ciphers(&algorithms.ciphers);
    }
    if !algorithms.macs.is_empty() {
        builder = builder.macs(&algorithms.macs);
    }
    builder
}

fn password(plan: &Plan) -> Result<Option<Zeroizing<String>>, Failure> {
    match &plan.password {
        Password::None => Ok(None),
        Password::Ask => {
            let whose = match &plan.user {
                Some(user) if !plan.host.contains('@') => format!("{user}@{}", plan.host),
                _ => plan.host.clone(),
            };
            let question = format!("{}'s password: ", report::escape(&whose));
            let asked = terminal::ask_secret(&question).map_err(|e| {
                Failure::usage(format!(
                    "cannot ask for the password: {e}; run it on a terminal, or use --password-file"
                ))
            })?;
            Ok(Some(Zeroizing::new(asked)))
        }
        Password::File(path) => password_from(path).map(Some),
    }
}

/// The first line of a file that only its owner can read.
fn password_from(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let shown = path.display();
    let unreadable = |e: io::Error| Failure::usage(format!("cannot read the password from {shown}: {e}"));
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(Failure::usage(format!(
            "others can read the password in {shown} (mode {mode:03o}); chmod 600 it and, better, change the password"
        )));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_PASSWORD).read_to_string(&mut text).map_err(unreadable)?;
    let password = text.lines().next().unwrap_or_default();
    if password.is_empty() {
        return Err(Failure::usage(format!("{shown} begins with an empty line; put the password there")));
    }
    Ok(Zeroizing::new(password.to_owned()))
}

fn ask_passphrase(key: &Path) -> Option<String> {
    let question = format!("Passphrase for the key {}: ", report::escape(&key.display().to_string()));
    terminal::ask_secret(&question).inspect_err(|e| log::debug!("cannot ask for a passphrase: {e}")).ok()
}

/// As ssh does: on stderr, line by line, control characters escaped.
fn show_banner(banner: &str) {
    let shown = |line: &str| line.split('\t').map(report::escape).collect::<Vec<_>>().join("\t");
    let lines = banner.lines().map(|line| format!("{}\n", shown(line)));
    // Nobody is there to read it then.
    let _ = io::stderr().write_all(lines.collect::<String>().as_bytes());
}
