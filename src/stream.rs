//! A channel as a byte stream, with the ways of a `TcpStream`.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use crate::client::Client;
use crate::connection::{direct_streamlocal, direct_tcpip};
use crate::error::{Error, Result, Stream};
use crate::forward::Endpoint;
use crate::transport::message::{OpenPlan, Token};
use crate::transport::pipe::{Limit, Pipe};
use crate::transport::Handle;

/// The longest type and data of a channel, or name and data of a request, that one packet carries.
const MAX_TEXT: usize = 32 * 1024;

/// One channel as a stream of bytes both ways: a connection that the server made for us ([`Client::tcp_connect`],
/// [`Client::unix_connect`]), one that it passes on ([`RemoteListener`](crate::RemoteListener)), or any other channel
/// ([`Client::open_channel`]).
///
/// It has the ways of [`std::net::TcpStream`]: [`Read`] and [`Write`] are there for `&ChannelStream` too, so that two
/// threads may share it, and [`try_clone`](ChannelStream::try_clone) gives another handle to the same stream.
///
/// A write queues up to 512 KiB ahead of the network and blocks while that is full; flushing does nothing, because what
/// is queued is sent at once. Dropping the last handle does not block: what was written is still sent, for up to a
/// minute, then the channel is closed. A program that ends sooner calls [`Client::close`].
///
/// It keeps the connection open, as a clone of its [`Client`] does.
///
/// # Examples
///
/// ```no_run
/// # use std::io::{Read, Write};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let client = threadline::Client::connect("alice@web1")?;
/// let mut stream = client.tcp_connect("intranet:80")?;
/// stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
/// let mut page = String::new();
/// stream.read_to_string(&mut page)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct ChannelStream {
    shared: Arc<Shared>,
}

/// What all handles of one stream share.
#[derive(Debug)]
struct Shared {
    handle: Handle,
    token: Token,
    pipe: Arc<Pipe>,
    peer: String,
    read_timeout: Timeout,
    write_timeout: Timeout,
}

/// A limit that any handle may set; in nanoseconds, 0 for none.
#[derive(Debug, Default)]
struct Timeout(AtomicU64);

impl Timeout {
    fn set(&self, timeout: Option<Duration>) -> io::Result<()> {
        if timeout.is_some_and(|t| t.is_zero()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a timeout of zero; None is for no timeout"));
        }
        let nanos = timeout.map_or(0, |t| u64::try_from(t.as_nanos()).unwrap_or(u64::MAX));
        self.0.store(nanos, Ordering::Relaxed);
        Ok(())
    }

    fn get(&self) -> Option<Duration> {
        let nanos = self.0.load(Ordering::Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }

    fn limit(&self) -> Limit {
        self.get().map_or_else(Limit::none, |t| Limit::after(Some(t)))
    }
}

impl ChannelStream {
    /// Opens a channel and waits for the answer, at most as long as opening may take.
    fn open(client: &Client, plan: OpenPlan) -> Result<ChannelStream> {
        ChannelStream::open_within(client, plan, client.open_timeout())
    }

    fn open_within(client: &Client, plan: OpenPlan, timeout: Duration) -> Result<ChannelStream> {
        if plan.kind.len() + plan.data.len() > MAX_TEXT {
            let len = plan.kind.len() + plan.data.len();
            return Err(Error::invalid(format!(
                "the channel's type and data have {len} bytes; one SSH packet carries {MAX_TEXT}"
            )));
        }
        let peer = plan.to.clone();
        let limit = Limit::after(Some(timeout));
        let (token, pipe) = client.handle().start(plan);
        let stream = ChannelStream::over(client.handle().clone(), token, pipe, peer);
        // Past the limit the stream is dropped here, and the channel closed when its answer comes.
        stream.shared.pipe.wait_started(&limit)?;
        Ok(stream)
    }

    /// A stream over a channel that is, or will be, open.
    pub(crate) fn over(handle: Handle, token: Token, pipe: Arc<Pipe>, peer: String) -> ChannelStream {
        pipe.take_stream(Stream::Stdout);
        pipe.drop_stream(Stream::Stderr);
        let (read_timeout, write_timeout) = (Timeout::default(), Timeout::default());
        ChannelStream { shared: Arc::new(Shared { handle, token, pipe, peer, read_timeout, write_timeout }) }
    }

    /// Whom the stream leads to: what was asked for, such as `db:5432`, or, if it came from the other side, where the
    /// server says it came from. Escape it before showing it.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.shared.peer
    }

    /// [`peer`](ChannelStream::peer) as an address, if it is one and not a name or a path.
    #[must_use]
    pub fn peer_addr(&self) -> Option<SocketAddr> {
        self.shared.peer.parse().ok()
    }

    /// Another handle to the same stream: both read the same bytes, and timeouts are shared. Does not fail; it is a
    /// `Result` so that it stands where a `TcpStream`'s stood.
    ///
    /// # Errors
    ///
    /// None.
    pub fn try_clone(&self) -> io::Result<ChannelStream> {
        Ok(ChannelStream { shared: Arc::clone(&self.shared) })
    }

    /// Limits each read; `None`, the default, waits for ever. A read that took longer fails with
    /// [`TimedOut`](io::ErrorKind::TimedOut), and the stream is as good as before.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for zero.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.shared.read_timeout.set(timeout)
    }

    /// Limits each write; `None`, the default, waits for ever.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for zero.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.shared.write_timeout.set(timeout)
    }

    /// What [`set_read_timeout`](ChannelStream::set_read_timeout) has set.
    #[must_use]
    pub fn read_timeout(&self) -> Option<Duration> {
        self.shared.read_timeout.get()
    }

    /// What [`set_write_timeout`](ChannelStream::set_write_timeout) has set.
    #[must_use]
    pub fn write_timeout(&self) -> Option<Duration> {
        self.shared.write_timeout.get()
    }

    /// Ends one direction or both, for all handles. Ending `Write` sends an end of file behind what was written, and
    /// reading goes on. Ending `Read` makes every read, running ones too, find the end; what still comes is thrown
    /// away. Does not wait.
    ///
    /// # Errors
    ///
    /// None: what has ended is ended once more.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let Shared { handle, token, pipe, .. } = &*self.shared;
        if matches!(how, Shutdown::Write | Shutdown::Both) && pipe.want_eof() {
            handle.wrote(*token);
        }
        if matches!(how, Shutdown::Read | Shutdown::Both) {
            pipe.drop_stream(Stream::Stdout);
            handle.consumed(*token);
        }
        Ok(())
    }

    /// Waits until all that was written has been handed to the network.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] when `deadline` passes first, [`Error::BrokenPipe`] when the remote side took no more, or why
    /// the connection was lost.
    pub fn drain(&self, deadline: Duration) -> Result<()> {
        let Shared { handle, token, pipe, .. } = &*self.shared;
        pipe.flush(&Limit::after(Some(deadline)), &|| handle.wrote(*token))
    }
}

impl Read for &ChannelStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Shared { handle, token, pipe, read_timeout, .. } = &*self.shared;
        Ok(pipe.read(Stream::Stdout, buffer, &read_timeout.limit(), &|| handle.consumed(*token))?)
    }
}

impl Write for &ChannelStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Shared { handle, token, pipe, write_timeout, .. } = &*self.shared;
        Ok(pipe.write(bytes, &write_timeout.limit(), &|| handle.wrote(*token))?)
    }

    /// Does nothing: what was written is being sent.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for ChannelStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for ChannelStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    /// Does nothing: what was written is being sent.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.handle.release(self.token);
    }
}

impl Client {
    /// Lets the server connect to `host:port` (RFC 4254 §7.2): the name is looked up there, and the connection comes
    /// from there. Blocks until the server has answered, at most for
    /// [`open_timeout`](crate::ClientBuilder::open_timeout); any number may be under way, and a target that does not
    /// answer holds up nobody else.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidTarget`]; [`Error::OpenRefused`] with the server's reason: it could not connect, or it may not;
    /// [`Error::Timeout`]; why the connection was lost.
    pub fn tcp_connect(&self, target: &str) -> Result<ChannelStream> {
        self.tcp_connect_timeout(target, self.open_timeout())
    }

    /// As [`tcp_connect`](Client::tcp_connect), with a limit of its own.
    ///
    /// # Errors
    ///
    /// As [`tcp_connect`](Client::tcp_connect).
    pub fn tcp_connect_timeout(&self, target: &str, timeout: Duration) -> Result<ChannelStream> {
        match target.parse::<Endpoint>()?.into_target()? {
            Endpoint::Tcp { host, port } => {
                let plan = OpenPlan {
                    kind: "direct-tcpip".into(),
                    data: direct_tcpip(&host, port, "127.0.0.1", 0),
                    to: target.to_owned(),
                };
                ChannelStream::open_within(self, plan, timeout)
            }
            Endpoint::Unix(_) => {
                let reason = "it is a path; unix_connect connects to a Unix socket".into();
                Err(Error::InvalidTarget { input: target.to_owned(), reason })
            }
        }
    }

    /// Lets the server connect to the Unix socket at `path` on its side (`direct-streamlocal@openssh.com`). As
    /// [`tcp_connect`](Client::tcp_connect) otherwise.
    ///
    /// # Errors
    ///
    /// As [`tcp_connect`](Client::tcp_connect).
    pub fn unix_connect(&self, path: impl AsRef<Path>) -> Result<ChannelStream> {
        let path = path.as_ref();
        Endpoint::unix(path).checked()?;
        let plan = OpenPlan {
            kind: "direct-streamlocal@openssh.com".into(),
            data: direct_streamlocal(path.as_os_str().as_bytes()),
            to: path.display().to_string(),
        };
        ChannelStream::open(self, plan)
    }

    /// Opens a channel of any type (RFC 4254 §5.1); `data` is what follows the fixed fields of the message. For sessions
    /// take [`command`](Client::command), [`sh`](Client::sh) or [`subsystem`](Client::subsystem): they know how to ask
    /// for something on one.
    ///
    /// # Errors
    ///
    /// As [`tcp_connect`](Client::tcp_connect).
    pub fn open_channel(&self, kind: &str, data: &[u8]) -> Result<ChannelStream> {
        let plan = OpenPlan { kind: kind.to_owned(), data: data.to_vec(), to: String::new() };
        ChannelStream::open(self, plan)
    }

    /// Sends a global request (RFC 4254 §4) and waits for the answer's data, at most for
    /// [`open_timeout`](crate::ClientBuilder::open_timeout).
    ///
    /// # Errors
    ///
    /// [`Error::RequestRefused`] if the server says no, which is also what it says to a name that it does not know;
    /// [`Error::Timeout`]; why the connection was lost.
    pub fn request(&self, name: &str, data: &[u8]) -> Result<Vec<u8>> {
        if name.len() + data.len() > MAX_TEXT {
            let len = name.len() + data.len();
            return Err(Error::invalid(format!("the request has {len} bytes; one SSH packet carries {MAX_TEXT}")));
        }
        let answer = self.handle().global(name, data, self.open_timeout())?;
        answer.ok_or_else(|| Error::RequestRefused { request: name.to_owned(), detail: None })
    }
}
