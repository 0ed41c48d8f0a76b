//! The client: an authenticated connection, and how to get one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use crate::connect::auth::{authenticate, Credentials};
use crate::connect::handshake::{check_names, handshake, Algorithms, Deadline, Handshake, Preferences};
use crate::connect::host_key::{self, KnownHosts};
use crate::connect::key_file;
use crate::connect::tcp::{self, TcpLimits};
use crate::connect::{HostKey, HostName, MissingHostKeyPolicy, RejectPolicy, Target};
use crate::error::{escape, AuthAttempt, Error, Result};
use crate::transport::chunk::Pool;
use crate::transport::message::AtLimit;
use crate::transport::packet::Packets;
use crate::transport::socket::Socket;
use crate::transport::{self, Handle};

const DEFAULT_PORT: u16 = 22;
/// Key files tried when none is named, as ssh does.
const DEFAULT_IDENTITIES: [&str; 3] = ["id_ed25519", "id_ecdsa", "id_rsa"];

/// One authenticated connection. Cheap to clone; all clones share it.
///
/// Every method may be called from any thread at any time; what blocks says so, and holds up nobody else. The
/// connection ends when the last clone and the last child, stream or shell of it is dropped, in the background;
/// [`close`](Client::close) is the way to be sure that everything queued went out.
///
/// # Examples
///
/// ```no_run
/// # fn main() -> threadline::Result<()> {
/// use threadline::Client;
///
/// let client = Client::connect("alice@web1:2222")?;
/// let out = client.exec_command("uname; uptime")?.output()?;
/// assert!(out.status.success());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    handle: Handle,
    about: Arc<About>,
}

/// Shows the server's words before authentication.
type BannerFn = Arc<dyn Fn(&str) + Send + Sync>;

/// What does not change during a connection.
#[derive(Debug)]
struct About {
    user: String,
    host: HostName,
    address: SocketAddr,
    handshake: Handshake,
    auth_banner: Option<String>,
    authenticated_by: AuthAttempt,
    command_timeout: Option<Duration>,
    open_timeout: Duration,
    at_limit: AtLimit,
    has_agent: bool,
}

impl Client {
    /// Connects with the defaults of [`Client::builder`] to `host`, `user@host`, `user@host:port`, `[v6]:port` or
    /// `ssh://user@host:port`.
    ///
    /// # Errors
    ///
    /// As [`ClientBuilder::connect`].
    pub fn connect(target: &str) -> Result<Client> {
        Client::builder(target).connect()
    }

    /// Sets up a connection step by step.
    pub fn builder(target: &str) -> ClientBuilder {
        ClientBuilder::new(target)
    }

    /// The remote user.
    #[must_use]
    pub fn user(&self) -> &str {
        &self.about.user
    }

    /// The host and port as given.
    #[must_use]
    pub fn host(&self) -> &HostName {
        &self.about.host
    }

    /// The address that answered.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.about.address
    }

    /// The algorithms in use.
    #[must_use]
    pub fn algorithms(&self) -> &Algorithms {
        &self.about.handshake.algorithms
    }

    /// The server's identification, e.g. `SSH-2.0-OpenSSH_9.2p1` (RFC 4253 §4.2). Escape it before showing it.
    #[must_use]
    pub fn server_banner(&self) -> &str {
        &self.about.handshake.banner
    }

    /// What the server showed before authentication (RFC 4252 §5.4). Escape it before showing it.
    #[must_use]
    pub fn auth_banner(&self) -> Option<&str> {
        self.about.auth_banner.as_deref()
    }

    /// The authentication attempt that got us in: the method and the key.
    #[must_use]
    pub fn authenticated_by(&self) -> &AuthAttempt {
        &self.about.authenticated_by
    }

    /// The host key that the server proved to hold.
    #[must_use]
    pub fn host_key(&self) -> &HostKey {
        &self.about.handshake.host_key
    }

    /// Asks the server for a sign of life and waits for it: the round trip through its SSH process.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], or why the connection was lost.
    pub fn ping(&self, timeout: Duration) -> Result<Duration> {
        let began = Instant::now();
        self.handle.global("keepalive@openssh.com", &[], timeout)?;
        Ok(began.elapsed())
    }

    /// Why the connection is over, if it is: an error of what it was used for last, or [`Error::Closed`].
    #[must_use]
    pub fn lost(&self) -> Option<Error> {
        self.handle.lost()
    }

    /// Sends everything that is queued on every channel, waits until the server has passed it on to its commands, says
    /// goodbye, and waits for the end; at most for `deadline` and a few seconds more for the goodbye. Commands that
    /// still run are hung up, and connections through forwards are cut off. All clones are closed.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] if something queued did not go out in time or a command did not take its input, or why the
    /// connection had been lost.
    pub fn close(&self, deadline: Duration) -> Result<()> {
        self.handle.finish(deadline)
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(crate) fn command_timeout(&self) -> Option<Duration> {
        self.about.command_timeout
    }

    pub(crate) fn open_timeout(&self) -> Duration {
        self.about.open_timeout
    }

    pub(crate) fn has_agent(&self) -> bool {
        self.about.has_agent
    }

    pub(crate) fn at_limit(&self) -> AtLimit {
        self.about.at_limit
    }

    /// Makes a callback or the transport thread panic at its next turn. For this crate's own tests.
    #[cfg(feature = "_faults")]
    #[doc(hidden)]
    pub fn inject(&self, fault: crate::Fault) {
        self.handle.inject(fault);
    }
}

/// Sets up a connection. Made by [`Client::builder`]; ends with [`connect`](ClientBuilder::connect).
#[derive(Clone)]
#[must_use = "a builder does nothing until it connects"]
pub struct ClientBuilder {
    target: Result<Target>,
    user: Option<String>,
    port: Option<u16>,
    credentials: Credentials,
    on_auth_banner: Option<BannerFn>,
    known_hosts: Option<Vec<PathBuf>>,
    policy: Arc<dyn MissingHostKeyPolicy>,
    preferences: Preferences,
    resolve_timeout: Duration,
    connect_timeout: Duration,
    handshake_timeout: Duration,
    auth_timeout: Duration,
    timeout: Option<Duration>,
    command_timeout: Option<Duration>,
    open_timeout: Duration,
    at_limit: AtLimit,
    config: transport::Config,
}

impl std::fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("target", &self.target)
            .field("user", &self.user)
            .field("port", &self.port)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

impl ClientBuilder {
    fn new(target: &str) -> ClientBuilder {
        ClientBuilder {
            target: target.parse(),
            user: None,
            port: None,
            credentials: Credentials { agent: true, ..Credentials::default() },
            on_auth_banner: None,
            known_hosts: None,
            policy: Arc::new(RejectPolicy),
            preferences: Preferences::default(),
            resolve_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(20),
            auth_timeout: Duration::from_secs(60),
            timeout: None,
            command_timeout: None,
            open_timeout: Duration::from_secs(30),
            at_limit: AtLimit::Wait,
            config: transport::Config {
                window: 2 << 20,
                max_window: 16 << 20,
                unread_limit: 64 << 20,
                memory_limit: 256 << 20,
                spare_channel: true,
                liveness: Some((Duration::from_secs(15), 3)),
                exchange_timeout: Duration::from_secs(30),
                agent: None,
            },
        }
    }

    /// The remote user; overrides one in the target. The default is the local user's name (USER, LOGNAME, passwd).
    pub fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// The TCP port; overrides one in the target. The default is 22.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// A password to try when keys are not enough. Our copy is zeroed after use.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.credentials.password = Some(Zeroizing::new(password.into()));
        self
    }

    /// A private key file to try; may be called again for more. `~/` stands for the home directory. The default, if
    /// none is named, is `~/.ssh/id_ed25519`, `id_ecdsa` and `id_rsa`, as far as they exist.
    pub fn identity(mut self, path: impl AsRef<Path>) -> Self {
        self.credentials.identities.push(expand_home(path.as_ref()));
        self
    }

    /// Asked for the passphrase of an encrypted key file; `None` skips that key.
    pub fn passphrase(mut self, ask: impl Fn(&Path) -> Option<String> + Send + Sync + 'static) -> Self {
        self.credentials.passphrase = Some(Arc::new(ask));
        self
    }

    /// Whether to try the keys of the agent at SSH_AUTH_SOCK. The default is yes.
    pub fn agent(mut self, agent: bool) -> Self {
        self.credentials.agent = agent;
        self
    }

    /// The agent's socket, in place of what SSH_AUTH_SOCK names. `~/` stands for the home directory.
    pub fn agent_socket(mut self, path: impl AsRef<Path>) -> Self {
        self.credentials.agent = true;
        self.credentials.agent_socket = Some(expand_home(path.as_ref()));
        self
    }

    /// The agent's socket that commands of this connection may be given, so that programs on the server can log in
    /// elsewhere with the keys it holds. By itself this gives it to none: a command asks for it with
    /// [`Command::forward_agent`](crate::Command::forward_agent). `~/` stands for the home directory.
    ///
    /// Whoever is root on the server can use the agent's keys for as long as such a command runs.
    pub fn forward_agent(mut self, socket: impl AsRef<Path>) -> Self {
        self.config.agent = Some(expand_home(socket.as_ref()));
        self
    }

    /// Called with what the server shows before authentication (RFC 4252 §5.4), whether or not authentication succeeds
    /// afterwards. Escape it before showing it. [`Client::auth_banner`] has it, too.
    pub fn on_auth_banner(mut self, show: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.on_auth_banner = Some(Arc::new(show));
        self
    }

    /// The known-hosts file to use instead of the user's and the system's; may be called again for more. New keys are
    /// added to the first.
    pub fn known_hosts(mut self, path: impl AsRef<Path>) -> Self {
        self.known_hosts.get_or_insert_with(Vec::new).push(expand_home(path.as_ref()));
        self
    }

    /// Decides about hosts that are not known. The default is [`RejectPolicy`]. A *changed* key is refused whatever
    /// the policy says.
    pub fn missing_host_key_policy(mut self, policy: impl MissingHostKeyPolicy + 'static) -> Self {
        self.policy = Arc::new(policy);
        self
    }

    /// Limits resolving the name. The default is 10 s.
    pub fn resolve_timeout(mut self, timeout: Duration) -> Self {
        self.resolve_timeout = timeout;
        self
    }

    /// Limits opening the TCP connection, all addresses together. The default is 10 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Limits the exchange of banners and keys. The default is 20 s.
    pub fn handshake_timeout(mut self, timeout: Duration) -> Self {
        self.handshake_timeout = timeout;
        self
    }

    /// Limits authentication. The default is 60 s: somebody may have to touch a token.
    pub fn auth_timeout(mut self, timeout: Duration) -> Self {
        self.auth_timeout = timeout;
        self
    }

    /// Limits all of [`connect`](ClientBuilder::connect). The default is none beyond the parts'.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// The timeout of commands that set none themselves. The default is none.
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.command_timeout = Some(timeout);
        self
    }

    /// Limits opening a stream through the server ([`Client::tcp_connect`] and its kind), and the answer to a
    /// [`request`](Client::request). The default is 30 s. It holds for connections through a
    /// [`Forward`](crate::Forward), too.
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.open_timeout = timeout;
        self
    }

    /// Probes the server after `interval` of silence, and gives the connection up after `count` probes without an
    /// answer. The default is 15 s and 3. It also is the limit for data that the network does not acknowledge
    /// (TCP_USER_TIMEOUT).
    pub fn keepalive(mut self, interval: Duration, count: u32) -> Self {
        self.config.liveness = Some((interval.max(Duration::from_millis(10)), count.max(1)));
        self
    }

    /// Never probes: a peer that vanishes is noticed only by TCP.
    pub fn no_keepalive(mut self) -> Self {
        self.config.liveness = None;
        self
    }

    /// The receive window of each channel in bytes, and what it may grow to on a long link; what one channel can hold
    /// unread is the first. The default is 2 MiB and 16 MiB; at least 64 KiB.
    pub fn window(mut self, initial: u32, most: u32) -> Self {
        self.config.window = initial.max(64 * 1024);
        self.config.max_window = most.max(self.config.window);
        self
    }

    /// How many unread bytes of one stream are taken in while somebody waits for the other stream of the same command,
    /// or for its end. The default is 64 MiB. Past it the reader gets [`Error::UnreadStream`].
    pub fn unread_limit(mut self, bytes: u64) -> Self {
        self.config.unread_limit = bytes;
        self
    }

    /// How many unread bytes all channels of the connection may hold before each gets a window of no more than 64 KiB.
    /// The default is 256 MiB.
    pub fn memory_limit(mut self, bytes: u64) -> Self {
        self.config.memory_limit = bytes;
        self
    }

    /// Whether to keep a session channel opened in advance from the second command on, which saves each command one
    /// of its two round trips. The default is yes; it ends by itself at the server's first refusal.
    pub fn spare_channel(mut self, spare: bool) -> Self {
        self.config.spare_channel = spare;
        self
    }

    /// What commands do when the server has no session left, unless they say otherwise.
    pub fn at_limit(mut self, at_limit: AtLimit) -> Self {
        self.at_limit = at_limit;
        self
    }

    /// Limits a key exchange that the server starts later on. The default is 30 s.
    pub fn rekey_timeout(mut self, timeout: Duration) -> Self {
        self.config.exchange_timeout = timeout;
        self
    }

    /// Key exchange algorithms to offer, best first. The default is libssh2's order. A name that is not known makes
    /// [`connect`](ClientBuilder::connect) fail with the names that are; so it is for ciphers, MACs and host keys.
    pub fn kex_algorithms<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.preferences.kex = names.into_iter().map(Into::into).collect();
        self
    }

    /// Ciphers to offer, best first. [`ciphers`](crate::ciphers()) says which there are and which are offered by
    /// default: AES-GCM, chacha20-poly1305, then AES-CTR; chacha20-poly1305 first where the processor has no
    /// instructions for AES, or without the feature `fast-ciphers`. AES-CBC is offered only when named here.
    pub fn ciphers<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.preferences.ciphers = names.into_iter().map(Into::into).collect();
        self
    }

    /// MACs to offer, best first. The default is libssh2's order.
    pub fn macs<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.preferences.macs = names.into_iter().map(Into::into).collect();
        self
    }

    /// Host key algorithms to offer, best first. The default: those whose keys are known for the host, then the
    /// others; never certificates.
    pub fn host_key_algorithms<S: Into<String>>(mut self, names: impl IntoIterator<Item = S>) -> Self {
        self.preferences.host_keys = names.into_iter().map(Into::into).collect();
        self
    }

    /// Connects: resolve, TCP, handshake, host key, authentication, transport. Blocks until done, or until a limit
    /// passes.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidTarget`], [`Error::InvalidInput`] for an algorithm that nobody knows, [`Error::Resolve`],
    /// [`Error::Connect`], [`Error::Handshake`], [`Error::HostKey`], [`Error::Auth`], and [`Error::Timeout`] with the phase that took too long.
    pub fn connect(mut self) -> Result<Client> {
        let target = self.target.clone()?;
        let host = HostName::new(&target.host, self.port.or(target.port).unwrap_or(DEFAULT_PORT));
        let user = self.user.take().or(target.user).map_or_else(local_user, Ok)?;
        let total = self.timeout.map(Deadline::after);
        let known = KnownHosts::read(&self.known_hosts_files())?;

        let address = self.open_tcp(&host, total)?;
        let (stream, address) = address;
        let pool = Pool::new();
        let mut packets = self.seam(stream, pool.clone())?;
        let handshake = self.exchange_keys(&mut packets, &host, &known, total)?;
        host_key::check(&known, &*self.policy, &host, &handshake.host_key)?;
        let logged_in = self.log_in(&mut packets, &user, &host, total);
        let auth_banner = auth_banner(&mut packets);
        if let (Some(show), Some(banner)) = (&self.on_auth_banner, &auth_banner) {
            show(banner);
        }
        let authenticated_by = logged_in?;
        packets.begin_connection();
        log::info!("connected to {host} as {}", escape(&user));
        let has_agent = self.config.agent.is_some();
        let handle = transport::start(packets, pool, self.config, host.host())?;

        let about = About {
            user,
            host,
            address,
            handshake,
            auth_banner,
            authenticated_by,
            command_timeout: self.command_timeout,
            open_timeout: self.open_timeout,
            at_limit: self.at_limit,
            has_agent,
        };
        Ok(Client { handle, about: Arc::new(about) })
    }

    fn known_hosts_files(&self) -> Vec<PathBuf> {
        self.known_hosts.clone().unwrap_or_else(host_key::default_files)
    }

    fn open_tcp(&self, host: &HostName, total: Option<Deadline>) -> Result<(std::net::TcpStream, SocketAddr)> {
        let limits =
            TcpLimits { resolve: self.resolve_timeout, connect: self.connect_timeout, deadline: total.map(|d| d.at) };
        let (stream, address) = tcp::connect(host.host(), host.port(), &limits)?;
        let user_timeout = self.config.liveness.map(|(interval, count)| interval.saturating_mul(count));
        tcp::tune(&stream, user_timeout);
        Ok((stream, address))
    }

    fn seam(&self, stream: std::net::TcpStream, pool: Pool) -> Result<Packets> {
        let socket = Socket::new(stream).map_err(|e| Error::io("cannot set up the socket", e))?;
        Packets::new(socket, pool).map_err(Error::Internal)
    }

    fn exchange_keys(
        &self,
        packets: &mut Packets,
        host: &HostName,
        known: &KnownHosts,
        total: Option<Deadline>,
    ) -> Result<Handshake> {
        check_names(packets, &self.preferences)?;
        let mut preferences = self.preferences.clone();
        if preferences.host_keys.is_empty() {
            preferences.host_keys = host_key::algorithms(known, host).into_iter().map(str::to_owned).collect();
        }
        handshake(packets, host.host(), &preferences, Deadline::new(self.handshake_timeout, total))
    }

    fn log_in(
        &self,
        packets: &mut Packets,
        user: &str,
        host: &HostName,
        total: Option<Deadline>,
    ) -> Result<AuthAttempt> {
        let mut credentials = self.credentials.clone();
        if credentials.identities.is_empty() {
            credentials.default_identities = true;
            let home = host_key::home_dir().map(|home| home.join(".ssh"));
            credentials.identities =
                home.iter().flat_map(|dir| DEFAULT_IDENTITIES.map(|name| dir.join(name))).collect();
        }
        authenticate(packets, user, host.host(), &credentials, Deadline::new(self.auth_timeout, total))
    }
}

/// All that the server showed (RFC 4252 §5.4): what libssh2 has looked at, and what it has not.
fn auth_banner(packets: &mut Packets) -> Option<String> {
    let mut banner = packets.session(|s| s.userauth_banner().ok().flatten().unwrap_or_default().as_bytes().to_vec());
    for message in packets.raw().take_unread_banners() {
        let mut rest = message.get(1..).unwrap_or_default();
        banner.extend_from_slice(key_file::take_string(&mut rest).unwrap_or_default());
    }
    (!banner.is_empty()).then(|| String::from_utf8_lossy(&banner).into_owned())
}

/// The local user's name: USER, LOGNAME, or what /etc/passwd calls our user id.
fn local_user() -> Result<String> {
    ["USER", "LOGNAME"]
        .into_iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
        .or_else(|| user_of(&std::fs::read_to_string("/etc/passwd").ok()?, rustix::process::getuid().as_raw()))
        .ok_or_else(|| Error::invalid("no user was given, and the local one's name is not known; write user@host"))
}

/// The name that a passwd(5) file has for a user id.
fn user_of(passwd: &str, uid: u32) -> Option<String> {
    let uid = uid.to_string();
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == uid && !name.is_empty()).then(|| name.to_owned())
    })
}

fn expand_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), host_key::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_id_has_the_name_that_passwd_says() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\n# nonsense\n:x:7:7::/:\nann:x:1000:1000::/home/ann:/bin/sh\n";
        assert_eq!(user_of(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(user_of(passwd, 0).as_deref(), Some("root"));
        assert_eq!((user_of(passwd, 7), user_of(passwd, 100)), (None, None));
    }
}
