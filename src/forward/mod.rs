//! Tunnels: connections of others, carried over ours. What listens and carries is the transport's; here is what its
//! users hold.

mod bind;
mod endpoint;
mod event;
mod listener;
pub(crate) mod socks;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::transport::forward::{Destination, Listen, Shared, Source};
use crate::transport::message::Token;
use crate::transport::pipe::Limit;
use crate::transport::Handle;

pub use endpoint::Endpoint;
pub use event::ForwardEvent;
pub use listener::{Incoming, RemoteListener};

/// Connections of one forward at once, unless set otherwise: each takes a descriptor, of which a process has 1024 by
/// default.
const MOST_CONNECTIONS: usize = 512;

/// A forward that runs: somebody listens, here or at the server, and each connection is carried to the other side.
///
/// Made by [`Client::forward_local`], [`forward_remote`](Client::forward_remote),
/// [`forward_dynamic`](Client::forward_dynamic), or, with settings, by [`Forward::local`] and its kind. No thread of its
/// own belongs to it: its sockets are in the poll set of the connection's thread. A connection that is slow, stuck or
/// silent holds up no other.
///
/// Dropping it does not block: nobody listens any more, the file of a Unix socket is removed, and its connections end
/// with a reset. [`stop`](Forward::stop) lets them go on. It keeps the [`Client`]'s connection open.
///
/// An end of file is passed on in each direction on its own. A connection that was cut off, or did not come about, is
/// reset, so that its program does not take what it got for all there was.
///
/// X11 forwarding is not offered.
///
/// # Examples
///
/// ```no_run
/// # fn main() -> threadline::Result<()> {
/// let client = threadline::Client::connect("alice@bastion")?;
/// let forward = client.forward_local("127.0.0.1:0", "db:5432")?;
/// println!("the database is at {}", forward.endpoint());
/// let reason = forward.wait();
/// # let _ = reason;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Forward {
    handle: Handle,
    token: Token,
    shared: Arc<Shared>,
    endpoint: Endpoint,
    local_addr: Option<SocketAddr>,
}

/// What a [`Forward`] has carried so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForwardCounters {
    /// Connections that were taken in.
    pub connections: u64,
    /// Of those, the ones that have not ended.
    pub open: u64,
    /// Connections that were turned away because too many were open.
    pub refused: u64,
    /// Connections that were taken in and did not reach their target.
    pub failed: u64,
    /// Bytes from this side to the other.
    pub sent: u64,
    /// Bytes from the other side to this.
    pub received: u64,
}

/// Sets a forward up; made by [`Forward::local`] and its kind, ends with [`start`](ForwardBuilder::start).
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it starts"]
pub struct ForwardBuilder {
    kind: Result<Kind>,
    most: usize,
    open_timeout: Option<Duration>,
}

#[derive(Debug, Clone)]
enum Kind {
    Local { bind: Endpoint, target: Endpoint },
    Remote { bind: Endpoint, target: Endpoint },
    Dynamic { bind: Endpoint },
    RemoteDynamic { bind: Endpoint },
}

/// Where to listen or connect to: an [`Endpoint`], or the text of one.
pub trait ToEndpoint {
    /// The endpoint.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidTarget`] if the text is none.
    fn to_endpoint(&self) -> Result<Endpoint>;
}

impl ToEndpoint for Endpoint {
    fn to_endpoint(&self) -> Result<Endpoint> {
        self.clone().checked()
    }
}

impl ToEndpoint for str {
    fn to_endpoint(&self) -> Result<Endpoint> {
        self.parse()
    }
}

impl ToEndpoint for String {
    fn to_endpoint(&self) -> Result<Endpoint> {
        self.parse()
    }
}

impl<T: ToEndpoint + ?Sized> ToEndpoint for &T {
    fn to_endpoint(&self) -> Result<Endpoint> {
        (**self).to_endpoint()
    }
}

fn ends(bind: impl ToEndpoint, target: impl ToEndpoint) -> Result<(Endpoint, Endpoint)> {
    Ok((bind.to_endpoint()?, target.to_endpoint()?.into_target()?))
}

impl ForwardBuilder {
    fn new(kind: Result<Kind>) -> ForwardBuilder {
        ForwardBuilder { kind, most: MOST_CONNECTIONS, open_timeout: None }
    }

    /// How many connections may be open at once; those beyond are turned away and counted. The default is 512.
    pub fn max_connections(mut self, most: usize) -> Self {
        self.most = most;
        self
    }

    /// How long reaching the target may take. The default is the client's
    /// [`open_timeout`](crate::ClientBuilder::open_timeout).
    pub fn open_timeout(mut self, timeout: Duration) -> Self {
        self.open_timeout = Some(timeout);
        self
    }

    /// Begins to listen. On this side that is done at once; blocks while the server is asked to, and while the name to
    /// listen on is looked up.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidTarget`] and [`Error::Resolve`] for a place that is none; [`Error::Io`] when it cannot be listened
    /// on here; [`Error::RequestRefused`] when the server does not want to listen (AllowTcpForwarding, PermitListen, a
    /// port that is taken); [`Error::Timeout`]; why the connection was lost.
    pub fn start(&self, client: &Client) -> Result<Forward> {
        let (source, destination, endpoint, local_addr) = match self.kind.clone()? {
            Kind::Local { bind, target } => {
                let (listeners, endpoint, address) = bind::listen(&bind)?;
                (Source::Here(listeners), Destination::There(target), endpoint, address)
            }
            Kind::Dynamic { bind } => {
                let (listeners, endpoint, address) = bind::listen(&bind)?;
                (Source::Here(listeners), Destination::Anywhere, endpoint, address)
            }
            Kind::Remote { bind, target } => (Source::There(on_server(&bind)), Destination::Here(target), bind, None),
            Kind::RemoteDynamic { bind } => (Source::There(on_server(&bind)), Destination::Anywhere, bind, None),
        };
        let open_timeout = self.open_timeout.unwrap_or_else(|| client.open_timeout());
        let listen = Listen { source, destination, most: self.most, open_timeout };
        let (token, shared) = client.handle().forward(listen);
        let mut forward = Forward { handle: client.handle().clone(), token, shared, endpoint, local_addr };
        // If it fails it is dropped here, and cancelled when the answer comes.
        let port = forward.shared.wait_begun(&Limit::after(Some(client.open_timeout())))?;
        set_port(&mut forward.endpoint, port);
        log::info!("listening on {}", forward.endpoint);
        Ok(forward)
    }
}

/// The port that the server chose.
fn set_port(endpoint: &mut Endpoint, chosen: Option<u16>) {
    if let (Endpoint::Tcp { port, .. }, Some(chosen)) = (endpoint, chosen) {
        *port = chosen;
    }
}

/// In the words of RFC 4254 §7.1: "localhost" is the loopback, the empty string all addresses.
fn on_server(bind: &Endpoint) -> Endpoint {
    match bind {
        Endpoint::Tcp { host, port } => {
            let host = match host.as_str() {
                "" => "localhost",
                "*" => "",
                host => host,
            };
            Endpoint::tcp(host, *port)
        }
        Endpoint::Unix(path) => Endpoint::Unix(path.clone()),
    }
}

impl Forward {
    /// From here to there, ssh's `-L`: whoever connects to `bind` on this machine is connected by the server to `target`.
    pub fn local(bind: impl ToEndpoint, target: impl ToEndpoint) -> ForwardBuilder {
        ForwardBuilder::new(ends(bind, target).map(|(bind, target)| Kind::Local { bind, target }))
    }

    /// From there to here, ssh's `-R`: whoever connects to `bind` on the server is connected by this machine to `target`.
    pub fn remote(bind: impl ToEndpoint, target: impl ToEndpoint) -> ForwardBuilder {
        ForwardBuilder::new(ends(bind, target).map(|(bind, target)| Kind::Remote { bind, target }))
    }

    /// A SOCKS proxy here, ssh's `-D`: whoever connects to `bind` on this machine says where the server is to connect.
    pub fn dynamic(bind: impl ToEndpoint) -> ForwardBuilder {
        ForwardBuilder::new(bind.to_endpoint().map(|bind| Kind::Dynamic { bind }))
    }

    /// A SOCKS proxy at the server, ssh's `-R` with a port alone: whoever connects to `bind` there says where this
    /// machine is to connect.
    pub fn remote_dynamic(bind: impl ToEndpoint) -> ForwardBuilder {
        ForwardBuilder::new(bind.to_endpoint().map(|bind| Kind::RemoteDynamic { bind }))
    }

    /// Where connections come in, on whichever side that is, with the real port.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The address on this machine at which connections come in, if it is a TCP port here: the first, where a name has
    /// several.
    #[must_use]
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.local_addr
    }

    /// What it has carried so far.
    #[must_use]
    pub fn counters(&self) -> ForwardCounters {
        let counters = &self.shared.counters;
        ForwardCounters {
            connections: counters.accepted.load(Ordering::Relaxed),
            open: counters.open.load(Ordering::Relaxed),
            refused: counters.refused.load(Ordering::Relaxed),
            failed: counters.failed.load(Ordering::Relaxed),
            sent: counters.sent.load(Ordering::Relaxed),
            received: counters.received.load(Ordering::Relaxed),
        }
    }

    /// Waits for the next thing that happens to one of its connections; `None` when the forward has ended. The last 1024
    /// are kept until they are asked for; [`missed_events`](Forward::missed_events) counts what gave way.
    #[must_use]
    pub fn next_event(&self) -> Option<ForwardEvent> {
        self.shared.next_event(&Limit::none()).ok().flatten()
    }

    /// As [`next_event`](Forward::next_event), at most for so long.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when nothing has happened in time.
    pub fn next_event_timeout(&self, timeout: Duration) -> Result<Option<ForwardEvent>> {
        self.shared.next_event(&Limit::after(Some(timeout)))
    }

    /// How many events gave way to newer ones since this was asked last.
    #[must_use]
    pub fn missed_events(&self) -> u64 {
        self.shared.take_missed()
    }

    /// Takes no new connections; those that are there go on, and the forward has ended when the last of them has. Does
    /// not wait.
    pub fn stop(&self) {
        self.handle.stop_forward(self.token);
    }

    /// Waits for its end, and says why: [`Error::Closed`] after [`stop`](Forward::stop) or
    /// [`Client::close`], else why the connection was lost.
    pub fn wait(&self) -> Error {
        self.shared.wait_ended(&Limit::none()).unwrap_or_else(|error| error)
    }

    /// As [`wait`](Forward::wait), at most for so long.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when it goes on.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Error> {
        self.shared.wait_ended(&Limit::after(Some(timeout)))
    }

    /// Why it has ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<Error> {
        self.shared.try_ended()
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.handle.end_forward(self.token);
    }
}

impl Client {
    /// Listens on `bind` on this machine and carries each connection through the server to `target`, ssh's `-L`. Either
    /// is text as [`Endpoint`] has it: `127.0.0.1:0`, `db:5432`, a path. [`Forward::local`] takes settings.
    ///
    /// # Errors
    ///
    /// As [`ForwardBuilder::start`].
    pub fn forward_local(&self, bind: impl ToEndpoint, target: impl ToEndpoint) -> Result<Forward> {
        Forward::local(bind, target).start(self)
    }

    /// Lets the server listen on `bind` and carries each connection to `target` on this side, ssh's `-R`. Where the
    /// server listens on other addresses than its loopback is up to it (sshd's GatewayPorts).
    ///
    /// # Errors
    ///
    /// As [`ForwardBuilder::start`].
    pub fn forward_remote(&self, bind: impl ToEndpoint, target: impl ToEndpoint) -> Result<Forward> {
        Forward::remote(bind, target).start(self)
    }

    /// A SOCKS proxy on `bind` on this machine, ssh's `-D`: SOCKS5 with IPv4, IPv6 and names, SOCKS4 and 4a; connections
    /// only, without authentication.
    ///
    /// # Errors
    ///
    /// As [`ForwardBuilder::start`].
    pub fn forward_dynamic(&self, bind: impl ToEndpoint) -> Result<Forward> {
        Forward::dynamic(bind).start(self)
    }

    /// Lets the server listen on `bind`; what connects there is [accepted](RemoteListener::accept) here.
    ///
    /// # Errors
    ///
    /// As [`ForwardBuilder::start`].
    pub fn listen_remote(&self, bind: impl ToEndpoint) -> Result<RemoteListener> {
        RemoteListener::start(self, bind.to_endpoint()?)
    }
}
