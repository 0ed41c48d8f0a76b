//! Is this the host we mean? The known hosts, as OpenSSH's files record them, and the policy for hosts not among them.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use base64::Engine;
use hmac::{Hmac, KeyInit, Mac};
use log::{debug, warn};
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::error::{escape, Error, HostKeyError, Result};

const SSH_PORT: u16 = 22;

/// The host key algorithms that are offered, best first (RFC 4253 §6.6, RFC 5656, RFC 8332, RFC 8709), each with the
/// key type that a known-hosts line has for it. Certificate types are not among them: nobody would check the
/// certificate.
const ALGORITHMS: [(&str, &str); 6] = [
    ("ssh-ed25519", "ssh-ed25519"),
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256"),
    ("ecdsa-sha2-nistp384", "ecdsa-sha2-nistp384"),
    ("ecdsa-sha2-nistp521", "ecdsa-sha2-nistp521"),
    ("rsa-sha2-512", "ssh-rsa"),
    ("rsa-sha2-256", "ssh-rsa"),
];

/// A known-hosts file of more bytes than this is taken for something else. It is some 400,000 lines.
const MAX_FILE: u64 = 64 << 20;

/// How long another process may keep a known-hosts file locked before a line is added all the same.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// A host and its port, as known-hosts files name it.
///
/// Names are compared without regard to ASCII case, so the host is kept in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostName {
    host: String,
    port: u16,
}

impl HostName {
    /// The host (a name, or an address without brackets) on this TCP port.
    #[must_use]
    pub fn new(host: &str, port: u16) -> HostName {
        HostName { host: host.to_ascii_lowercase(), port }
    }

    /// The name or address, in lower case, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The TCP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The name that known-hosts files have for it: `host` on port 22, `[host]:port` on any other.
    #[must_use]
    pub fn lookup(&self) -> String {
        match self.port {
            SSH_PORT => self.host.clone(),
            port => format!("[{}]:{port}", self.host),
        }
    }
}

/// Writes [`lookup`](HostName::lookup), control characters escaped.
impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.lookup()))
    }
}

/// A server's public key, as it crosses the wire (RFC 4253 §6.6).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HostKey {
    blob: Vec<u8>,
    key_type: String,
}

impl HostKey {
    /// Takes a copy of a public key blob. Of its contents, only the type is looked at.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`] if the blob does not begin with the name of a key type.
    pub fn from_blob(blob: &[u8]) -> Result<HostKey> {
        let key_type =
            key_type_of(blob).ok_or_else(|| Error::Protocol("a host key does not begin with its type".into()))?;
        Ok(HostKey { key_type: key_type.to_owned(), blob: blob.to_owned() })
    }

    /// The key's type, e.g. `ssh-ed25519`.
    #[must_use]
    pub fn key_type(&self) -> &str {
        &self.key_type
    }

    /// The SHA-256 fingerprint, `SHA256:…` in base64 without padding, as `ssh-keygen -l` prints it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.blob)
    }

    /// The key as in an OpenSSH public key file: type and base64, without a comment.
    #[must_use]
    pub fn to_openssh(&self) -> String {
        format!("{} {}", self.key_type, STANDARD.encode(&self.blob))
    }

    /// The blob itself.
    #[must_use]
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }
}

/// Type and fingerprint; the whole key would fill the screen.
impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostKey({} {})", self.key_type, self.fingerprint())
    }
}

/// `SHA256:…` of any public key blob.
pub(crate) fn fingerprint(blob: &[u8]) -> String {
    format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(blob)))
}

/// The name that a key blob begins with. Names are printable ASCII of at most 64 characters (RFC 4251 §6).
fn key_type_of(blob: &[u8]) -> Option<&str> {
    let (length, rest) = blob.split_first_chunk::<4>()?;
    let name = rest.get(..usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
    let valid = (1..=64).contains(&name.len()) && name.iter().all(|b| b.is_ascii_graphic() && *b != b',');
    valid.then(|| std::str::from_utf8(name).ok())?
}

/// What a policy says about a host that is not in the known hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Do not connect; the error shows the fingerprint and says what to do.
    Reject,
    /// Do not connect, for a reason of the policy's own, which the error repeats.
    RejectBecause(String),
    /// Connect this once.
    Accept,
    /// Connect, and add the key to the first of the known-hosts files.
    AcceptAndRemember,
}

/// Decides about hosts that are not in the known hosts.
///
/// It is asked while connecting, on the thread that connects. It is not asked about a host that is known with another
/// key, nor about a revoked key: those are refused under every policy.
///
/// # Examples
///
/// The policy that trusts everybody, which a program should not have outside of a test network:
///
/// ```
/// use threadline::{HostKey, HostName, MissingHostKeyPolicy, Verdict};
///
/// struct AllowAnything;
///
/// impl MissingHostKeyPolicy for AllowAnything {
///     fn missing_host_key(&self, _host: &HostName, _key: &HostKey) -> Verdict {
///         Verdict::Accept
///     }
/// }
/// ```
pub trait MissingHostKeyPolicy: Send + Sync {
    /// `key` is proven to be held by the server that answered as `host`. Is it that host's?
    fn missing_host_key(&self, host: &HostName, key: &HostKey) -> Verdict;
}

/// Refuses every host that is not in the known hosts. The default.
#[derive(Debug, Clone, Copy, Default)]
pub struct RejectPolicy;

impl MissingHostKeyPolicy for RejectPolicy {
    fn missing_host_key(&self, _host: &HostName, _key: &HostKey) -> Verdict {
        Verdict::Reject
    }
}

/// Adds the key of a new host to the known hosts and accepts it, as OpenSSH does with
/// `StrictHostKeyChecking=accept-new`.
#[derive(Debug, Clone, Copy, Default)]
pub struct AutoAddPolicy;

impl MissingHostKeyPolicy for AutoAddPolicy {
    fn missing_host_key(&self, _host: &HostName, _key: &HostKey) -> Verdict {
        Verdict::AcceptAndRemember
    }
}

/// Accepts a new host, this once, and logs a warning with its fingerprint.
#[derive(Debug, Clone, Copy, Default)]
pub struct WarningPolicy;

impl MissingHostKeyPolicy for WarningPolicy {
    fn missing_host_key(&self, host: &HostName, key: &HostKey) -> Verdict {
        warn!("accepting the unknown host key of {host}: {} {}", key.key_type(), key.fingerprint());
        Verdict::Accept
    }
}

/// The files that OpenSSH reads: the user's, then the system's. A new key is added to the first.
pub(crate) fn default_files() -> Vec<PathBuf> {
    files_below(home_dir().as_deref())
}

fn files_below(home: Option<&Path>) -> Vec<PathBuf> {
    let user = home.map(|home| home.join(".ssh"));
    let both = |dir: &Path, name: &str| [dir.join(name), dir.join(format!("{name}2"))];
    let mut files: Vec<PathBuf> = user.iter().flat_map(|dir| both(dir, "known_hosts")).collect();
    files.extend(both(Path::new("/etc/ssh"), "ssh_known_hosts"));
    files
}

/// The user's home: the HOME variable, else what the user database says.
pub(crate) fn home_dir() -> Option<PathBuf> {
    #[allow(deprecated, reason = "deprecated for its behaviour on Windows until Rust 1.87")]
    std::env::home_dir().filter(|home| !home.as_os_str().is_empty())
}

/// Refuses, accepts or remembers the key that `host` has shown.
///
/// May block for the file system, and up to five seconds for another process that is adding a key.
///
/// # Errors
///
/// [`Error::HostKey`]; what it says is ready to be shown.
pub(crate) fn check(
    known: &KnownHosts,
    policy: &dyn MissingHostKeyPolicy,
    host: &HostName,
    key: &HostKey,
) -> Result<()> {
    match judge(known, host, key) {
        Standing::Known => Ok(()),
        Standing::Changed(line) => Err(changed(line, host, key)),
        Standing::Revoked(line) => Err(revoked(line, host, key)),
        Standing::Unknown => match policy.missing_host_key(host, key) {
            Verdict::Accept => Ok(()),
            Verdict::AcceptAndRemember => remember(known, host, key),
            Verdict::Reject => Err(unknown(known, host, key)),
            Verdict::RejectBecause(reason) => {
                Err(HostKeyError::Policy { host: host.to_string(), reason: escape(&reason) }.into())
            }
        },
    }
}

fn unknown(known: &KnownHosts, host: &HostName, key: &HostKey) -> Error {
    HostKeyError::Unknown {
        host: host.to_string(),
        key_type: key.key_type.clone(),
        fingerprint: key.fingerprint(),
        files: known.files.clone(),
    }
    .into()
}

fn changed(line: &Line, host: &HostName, key: &HostKey) -> Error {
    HostKeyError::Changed {
        host: host.to_string(),
        key_type: key.key_type.clone(),
        fingerprint: key.fingerprint(),
        known_fingerprint: line.key.fingerprint(),
        file: line.file.clone(),
        line: line.number,
    }
    .into()
}

fn revoked(line: &Line, host: &HostName, key: &HostKey) -> Error {
    HostKeyError::Revoked {
        host: host.to_string(),
        key_type: key.key_type.clone(),
        fingerprint: key.fingerprint(),
        file: line.file.clone(),
        line: line.number,
    }
    .into()
}

fn unusable(what: String) -> Error {
    HostKeyError::File { what }.into()
}

/// What the known hosts say about a host and the key that it shows.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Standing<'k> {
    /// The key is on record.
    Known,
    /// No key of this host is on record.
    Unknown,
    /// Another key is, in this line.
    Changed(&'k Line),
    /// This line revokes the key.
    Revoked(&'k Line),
}

/// Compares as OpenSSH does, file by file and line by line:
///
/// * A line marked `@revoked` for this host and key outweighs all others. (OpenSSH misses one that names the host
///   without its port; here that counts too.)
/// * A host with keys on record that shows another one is *changed*, even if its key is of a type that is not on
///   record: one who can take a connection over would otherwise only have to show a key of a new type. That an honest
///   server is not hit by this, the types on record are asked for first ([`algorithms`]).
/// * On another port than 22 the host is looked for as `[host]:port`. Only if there is nothing at all, a line for the
///   plain `host` with this very key makes it known. A plain line with another key means nothing: two ports may well
///   be two servers.
pub(crate) fn judge<'k>(known: &'k KnownHosts, host: &HostName, key: &HostKey) -> Standing<'k> {
    for name in [&host.lookup(), &host.host] {
        if let Some(line) = known.lines_for(name, Mark::Revoked).into_iter().find(|line| line.key == *key) {
            return Standing::Revoked(line);
        }
    }
    let here = known.lines_for(&host.lookup(), Mark::None);
    if here.iter().any(|line| line.key == *key) {
        return Standing::Known;
    }
    // the line of the same type is the one to look at
    if let Some(line) = here.iter().find(|line| line.key.key_type == key.key_type).or(here.first()) {
        return Standing::Changed(line);
    }
    if known.lines_for(&host.host, Mark::None).iter().any(|line| line.key == *key) {
        return Standing::Known;
    }
    Standing::Unknown
}

/// The host key algorithms to offer to this host, in order: those whose keys are on record first, so that a server
/// with several keys shows one that can be compared; then the others.
pub(crate) fn algorithms(known: &KnownHosts, host: &HostName) -> Vec<&'static str> {
    let mut lines = known.lines_for(&host.lookup(), Mark::None);
    if lines.is_empty() {
        lines = known.lines_for(&host.host, Mark::None);
    }
    let on_record = |key_type: &str| lines.iter().any(|line| line.key.key_type == key_type);
    let (first, then): (Vec<_>, Vec<_>) = ALGORITHMS.into_iter().partition(|(_, key_type)| on_record(key_type));
    first.into_iter().chain(then).map(|(algorithm, _)| algorithm).collect()
}

/// The lines of all known-hosts files, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownHosts {
    files: Vec<PathBuf>,
    lines: Vec<Line>,
}

/// One line of a known-hosts file that says something about plain keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line {
    names: Names,
    mark: Mark,
    key: HostKey,
    file: PathBuf,
    /// From 1.
    number: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    None,
    Revoked,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Names {
    /// HMAC-SHA1 of the one name, with the salt as the key.
    Hashed {
        salt: Vec<u8>,
        hash: Vec<u8>,
    },
    Patterns(Vec<Pattern>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    negated: bool,
    /// In lower case; `*` and `?` are wildcards.
    glob: Vec<u8>,
}

impl KnownHosts {
    /// Reads the files. One that does not exist is an empty one; a line that cannot be understood is logged and
    /// skipped.
    ///
    /// # Errors
    ///
    /// [`HostKeyError::File`] if a file is there and cannot be read.
    pub(crate) fn read(files: &[PathBuf]) -> Result<KnownHosts> {
        let mut known = KnownHosts { files: files.to_vec(), lines: Vec::new() };
        for path in files {
            match File::open(path).and_then(|file| read_all(&file)) {
                Ok(text) => known.lines.extend(parse(path, &text)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => debug!("{}: {e}", shown(path)),
                Err(e) => return Err(unusable(format!("cannot read the known hosts in {}: {e}", shown(path)))),
            }
        }
        Ok(known)
    }

    /// The lines with this mark that speak of the host with this (lower case) name.
    fn lines_for(&self, name: &str, mark: Mark) -> Vec<&Line> {
        self.lines.iter().filter(|line| line.mark == mark && line.names.include(name)).collect()
    }
}

fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    if file.take(MAX_FILE + 1).read_to_end(&mut text)? as u64 > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 64 MiB"));
    }
    Ok(text)
}

fn parse(path: &Path, text: &[u8]) -> Vec<Line> {
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        match parse_line(line) {
            Ok(Some((names, mark, key))) => lines.push(Line { names, mark, key, file: path.to_owned(), number }),
            Ok(None) => {}
            Err(reason) => warn!("{}:{number}: line skipped: {reason}", shown(path)),
        }
    }
    lines
}

/// `[@marker] names type base64 [comment]`, sshd(8) "SSH_KNOWN_HOSTS FILE FORMAT". None for an empty line, a comment,
/// and a certificate authority, which says nothing about plain keys.
fn parse_line(line: &[u8]) -> std::result::Result<Option<(Names, Mark, HostKey)>, &'static str> {
    // bytes, since the comment may be in any encoding
    let mut fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty()).peekable();
    let mark = match fields.peek() {
        None => return Ok(None),
        Some(first) if first.starts_with(b"#") => return Ok(None),
        Some(&b"@cert-authority") => return Ok(None),
        Some(&b"@revoked") => Mark::Revoked,
        Some(first) if first.starts_with(b"@") => return Err("unknown marker"),
        Some(_) => Mark::None,
    };
    if mark == Mark::Revoked {
        fields.next();
    }
    let names = parse_names(fields.next().ok_or("no host")?)?;
    let key_type = fields.next().ok_or("no key type")?;
    let blob = STANDARD.decode(fields.next().ok_or("no key")?).map_err(|_| "the key is not base64")?;
    let key = HostKey::from_blob(&blob).map_err(|_| "the key is malformed")?;
    if key.key_type.as_bytes() != key_type {
        return Err("the key is not of the type that the line says");
    }
    Ok(Some((names, mark, key)))
}

fn parse_names(field: &[u8]) -> std::result::Result<Names, &'static str> {
    if let Some(hashed) = field.strip_prefix(b"|") {
        return parse_hashed(hashed).ok_or("the hashed host is malformed");
    }
    let patterns: Vec<Pattern> = field.split(|byte| *byte == b',').filter_map(parse_pattern).collect();
    if patterns.is_empty() {
        return Err("no host");
    }
    Ok(Names::Patterns(patterns))
}

/// `1|salt|hash`, both in base64; 1 stands for HMAC-SHA1.
fn parse_hashed(field: &[u8]) -> Option<Names> {
    let (salt, hash) = std::str::from_utf8(field).ok()?.strip_prefix("1|")?.split_once('|')?;
    let (salt, hash) = (STANDARD.decode(salt).ok()?, STANDARD.decode(hash).ok()?);
    (hash.len() == Sha1::output_size()).then_some(Names::Hashed { salt, hash })
}

fn parse_pattern(text: &[u8]) -> Option<Pattern> {
    let (negated, glob) = match text.strip_prefix(b"!") {
        Some(glob) => (true, glob),
        None => (false, text),
    };
    (!glob.is_empty()).then(|| Pattern { negated, glob: glob.to_ascii_lowercase() })
}

impl Names {
    /// Does the line speak of this host (in lower case)? One negated pattern that fits outweighs all others.
    fn include(&self, name: &str) -> bool {
        match self {
            Names::Hashed { salt, hash } => Hmac::<Sha1>::new_from_slice(salt)
                .is_ok_and(|mac| mac.chain_update(name.as_bytes()).verify_slice(hash).is_ok()),
            Names::Patterns(patterns) => {
                let mut fitting =
                    patterns.iter().filter(|pattern| glob_fits(&pattern.glob, name.as_bytes())).peekable();
                fitting.peek().is_some() && fitting.all(|pattern| !pattern.negated)
            }
        }
    }
}

/// `*` stands for any bytes, `?` for one. On a mismatch only the last `*` takes one byte more, so that the time is at
/// most the product of the lengths, whatever the pattern.
fn glob_fits(glob: &[u8], name: &[u8]) -> bool {
    let (mut g, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, n));
                g += 1;
            }
            Some(byte) if *byte == b'?' || *byte == name[n] => {
                g += 1;
                n += 1;
            }
            _ => match &mut star {
                Some((at, taken)) => {
                    *taken += 1;
                    (g, n) = (*at + 1, *taken);
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|byte| *byte == b'*')
}

/// Adds the key to the first file, unless another process or thread has done so in the meantime.
fn remember(known: &KnownHosts, host: &HostName, key: &HostKey) -> Result<()> {
    let path = known.files.first().ok_or_else(|| {
        unusable(format!("cannot remember the host key of {host}: there is no known-hosts file to add it to"))
    })?;
    if !is_literal(&host.host) {
        return Err(unusable(format!("the name {host} would mean something else in a known-hosts file")));
    }
    let failed = |e: io::Error| unusable(format!("cannot add the host key of {host} to {}: {e}", shown(path)));
    let file = open_to_add(path).map_err(failed)?;
    lock(&file);
    let text = read_all(&file).map_err(failed)?;
    let now = KnownHosts { files: vec![path.clone()], lines: parse(path, &text) };
    match judge(&now, host, key) {
        Standing::Known => Ok(()),
        Standing::Changed(line) => Err(changed(line, host, key)),
        Standing::Revoked(line) => Err(revoked(line, host, key)),
        Standing::Unknown => append(&file, &text, host, key).map_err(failed),
    }
}

/// May the name stand in a known-hosts line, and mean only itself there?
fn is_literal(host: &str) -> bool {
    let special = |c: char| c.is_control() || c.is_whitespace() || "*?!,#|@\"".contains(c);
    !host.is_empty() && !host.contains(special)
}

fn open_to_add(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

/// Keeps other processes and threads of ours from adding at the same time, until the file is closed. Without the lock
/// (a file system has none, or somebody sits on it) the worst that can happen is that a line is there twice.
fn lock(file: &File) {
    let patience = Instant::now() + LOCK_PATIENCE;
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < patience => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return debug!("the known-hosts file is not locked: {e}"),
            Ok(()) => return,
        }
    }
}

/// One write to a file opened with O_APPEND: the line is not torn by a writer that knows nothing of our lock.
fn append(mut file: &File, text: &[u8], host: &HostName, key: &HostKey) -> io::Result<()> {
    let newline = if text.last().is_none_or(|byte| *byte == b'\n') { "" } else { "\n" };
    let line = format!("{newline}{} {}\n", host.lookup(), key.to_openssh());
    if file.write(line.as_bytes())? < line.len() {
        return Err(io::Error::new(io::ErrorKind::WriteZero, "only a part of the line could be written"));
    }
    match file.sync_all() {
        // not a regular file, such as /dev/null
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced,
    }
}

fn shown(path: &Path) -> String {
    escape(&path.display().to_string())
}

#[cfg(test)]
mod tests;
