//! Accepting here what connects at the server.

use std::sync::Arc;
use std::time::Duration;

use super::{on_server, set_port, Endpoint};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::stream::ChannelStream;
use crate::transport::forward::{Destination, Listen, Shared, Source};
use crate::transport::message::Token;
use crate::transport::pipe::Limit;
use crate::transport::Handle;

/// Connections that may wait to be accepted, as in a socket's backlog; those beyond are refused.
const BACKLOG: usize = 128;

/// The server listens; its connections are accepted here, as with a [`TcpListener`](std::net::TcpListener).
///
/// Made by [`Client::listen_remote`]. Up to 128 connections wait to be accepted, each with at most 256 KiB; those beyond
/// are refused. Several threads may accept. Dropping it does not block: the server listens no more, and what nobody has
/// accepted is closed; streams that were accepted go on.
///
/// # Examples
///
/// ```no_run
/// # use std::io::Write;
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = threadline::Client::connect("alice@web1")?;
/// let listener = client.listen_remote("127.0.0.1:0")?;
/// println!("web1 listens on {}", listener.endpoint());
/// for stream in listener.incoming() {
///     stream?.write_all(b"hello from the other side\n")?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct RemoteListener {
    handle: Handle,
    token: Token,
    shared: Arc<Shared>,
    endpoint: Endpoint,
}

impl RemoteListener {
    pub(super) fn start(client: &Client, bind: Endpoint) -> Result<RemoteListener> {
        let limit = client.open_timeout();
        let source = Source::There(on_server(&bind));
        let listen = Listen { source, destination: Destination::Queue, most: BACKLOG, open_timeout: limit };
        let (token, shared) = client.handle().forward(listen);
        let mut listener = RemoteListener { handle: client.handle().clone(), token, shared, endpoint: bind };
        let port = listener.shared.wait_begun(&Limit::after(Some(limit)))?;
        set_port(&mut listener.endpoint, port);
        log::info!("the server listens on {}", listener.endpoint);
        Ok(listener)
    }

    /// Where the server listens, with the real port.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Waits for the next connection. [`ChannelStream::peer`] says where it came from.
    ///
    /// # Errors
    ///
    /// Why the connection to the server was lost; what had come before is accepted first.
    pub fn accept(&self) -> Result<ChannelStream> {
        self.accept_within(&Limit::none())
    }

    /// Waits for the next connection, at most for so long.
    ///
    /// # Errors
    ///
    /// As [`accept`](RemoteListener::accept), and [`Error::Timeout`].
    pub fn accept_timeout(&self, timeout: Duration) -> Result<ChannelStream> {
        self.accept_within(&Limit::after(Some(timeout)))
    }

    fn accept_within(&self, limit: &Limit) -> Result<ChannelStream> {
        let arrival = self.shared.next_arrival(limit)?;
        Ok(ChannelStream::over(self.handle.clone(), arrival.token, arrival.pipe, arrival.origin))
    }

    /// Accepts for ever; ends with the one error that [`accept`](RemoteListener::accept) ends with.
    pub fn incoming(&self) -> Incoming<'_> {
        Incoming { listener: self, over: false }
    }

    /// Connections that were refused because too many waited.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.shared.counters.refused.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Why nobody listens any more, if that is so.
    #[must_use]
    pub fn ended(&self) -> Option<Error> {
        self.shared.try_ended()
    }
}

impl Drop for RemoteListener {
    fn drop(&mut self) {
        self.handle.end_forward(self.token);
    }
}

/// Accepts connections one after the other; made by [`RemoteListener::incoming`].
#[derive(Debug)]
pub struct Incoming<'a> {
    listener: &'a RemoteListener,
    over: bool,
}

impl Iterator for Incoming<'_> {
    type Item = Result<ChannelStream>;

    fn next(&mut self) -> Option<Result<ChannelStream>> {
        if self.over {
            return None;
        }
        let accepted = self.listener.accept();
        self.over = accepted.is_err();
        Some(accepted)
    }
}
