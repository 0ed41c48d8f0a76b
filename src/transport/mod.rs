//! The transport: one thread per connection that owns libssh2's session.
//!
//! # Threading contract
//!
//! * The transport thread is the only one that calls libssh2 after authentication. It waits only in `poll`: on the
//!   socket, on the wake descriptor and for its next timer.
//! * User threads post [`Request`]s to an unbounded queue (so `Drop` never waits) and wake it; bytes
//!   and endings cross in a [`Pipe`] per channel, whose lock is held for moving buffers only.
//! * Nobody waits while holding anything that another channel needs. Waiting is acyclic: reader → printer → terminal;
//!   caller → transport → poll.
//! * The thread ends when the last [`Handle`] is dropped, when [`Handle::finish`] asks it to, or when the connection
//!   is lost. However it ends, a panic included, every waiter gets the reason.

pub(crate) mod chunk;
pub(crate) mod cipher;
pub(crate) mod dial;
mod event_loop;
pub(crate) mod fault;
mod flow;
pub(crate) mod forward;
pub(crate) mod listener;
pub(crate) mod message;
pub(crate) mod packet;
pub(crate) mod pipe;
mod sessions;
pub(crate) mod socket;
mod sys;
pub(crate) mod wake;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, unbounded, Sender};

use crate::error::{Error, Phase, Result};
use chunk::Pool;
use event_loop::EventLoop;
#[cfg(feature = "_faults")]
use fault::Fault;
use forward::{Begin, Listen};
use message::{Notice, Plan, Request, Start, Token};
use packet::Packets;
use pipe::{Pipe, Shared};
use wake::Wake;

pub(crate) use sys::{check_seam, triple_des, versions, EAGAIN};

/// The thread's stack; only what is used of it takes memory. Key exchanges run on it.
const STACK: usize = 512 * 1024;

/// How a connection behaves once it is up.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Receive window of a new channel in bytes.
    pub window: u32,
    /// What a window may grow to on a long link.
    pub max_window: u32,
    /// Unread bytes of one channel while somebody waits for its other stream.
    pub unread_limit: u64,
    /// Unread bytes of all channels together, past which only the smallest window is granted.
    pub memory_limit: u64,
    /// Keep a session channel opened in advance.
    pub spare_channel: bool,
    /// Probe after this much silence; give up after so many unanswered ones.
    pub liveness: Option<(Duration, u32)>,
    /// A key exchange must be over after this.
    pub exchange_timeout: Duration,
    /// The agent's socket that commands may be given.
    pub agent: Option<PathBuf>,
}

/// Posts requests to one transport thread. The thread ends when the last clone is gone.
#[derive(Debug, Clone)]
pub(crate) struct Handle {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    inbox: Sender<Request>,
    wake: Arc<Wake>,
    tokens: AtomicU64,
    /// The process that made the connection: in a fork without exec a handle does nothing, there is no thread.
    process: u32,
    shared: Shared,
    /// A mutex because whoever finishes the connection takes the handle out, from any thread.
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// The time `limit` from now. A limit that no clock can tell, such as [`Duration::MAX`], means "none": that is far away.
pub(crate) fn instant_after(limit: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    Instant::now() + limit.min(FAR)
}

/// Starts the transport thread for an authenticated connection. `name` ends up in the thread's name.
pub(crate) fn start(packets: Packets, pool: Pool, config: Config, name: &str) -> Result<Handle> {
    let wake = Arc::new(Wake::new().map_err(|e| Error::io("cannot make the wake descriptor", e))?);
    let (inbox, requests) = unbounded();
    let shared = Shared {
        pool,
        unread: Arc::new(AtomicU64::new(0)),
        ended: Arc::new(OnceLock::new()),
        withheld: Arc::new(AtomicBool::new(false)),
        unread_limit: config.unread_limit,
    };
    let ends = (inbox.clone(), requests);
    let event_loop = EventLoop::new(packets, ends, Arc::clone(&wake), shared.clone(), config);
    let thread = std::thread::Builder::new()
        .name(format!("tl:{name}"))
        .stack_size(STACK)
        .spawn(move || event_loop.run())
        .map_err(|e| Error::io("cannot start the transport thread", e))?;
    let inner = Inner {
        inbox,
        wake,
        tokens: AtomicU64::new(1),
        process: std::process::id(),
        shared,
        thread: Mutex::new(Some(thread)),
    };
    Ok(Handle { inner: Arc::new(inner) })
}

/// A handle that does not keep the connection open.
#[derive(Debug, Clone)]
pub(crate) struct WeakHandle {
    inner: Weak<Inner>,
}

impl WeakHandle {
    /// The handle itself, if the connection still has one.
    pub fn upgrade(&self) -> Option<Handle> {
        Some(Handle { inner: self.inner.upgrade()? })
    }

    pub fn close(&self, token: Token) {
        self.post(Request::Close(token));
    }

    pub fn tell(&self, token: Token, notice: Notice) {
        self.post(Request::Tell(token, notice));
    }

    fn post(&self, request: Request) {
        if let Some(inner) = self.inner.upgrade() {
            inner.post(request);
        }
    }
}

impl Handle {
    pub fn downgrade(&self) -> WeakHandle {
        WeakHandle { inner: Arc::downgrade(&self.inner) }
    }

    /// Opens a channel and starts what it is for, without waiting: the pipe tells how it went.
    pub fn start(&self, plan: impl Into<Plan>) -> (Token, Arc<Pipe>) {
        let token = self.inner.tokens.fetch_add(1, Ordering::Relaxed);
        let pipe = Arc::new(Pipe::new(self.inner.shared.clone()));
        self.inner.post(Request::Start(Start::new(token, Arc::clone(&pipe), plan.into())));
        (token, pipe)
    }

    pub fn wrote(&self, token: Token) {
        self.inner.post(Request::Wrote(token));
    }

    pub fn consumed(&self, token: Token) {
        self.inner.post(Request::Consumed(token));
    }

    pub fn tell(&self, token: Token, notice: Notice) {
        self.inner.post(Request::Tell(token, notice));
    }

    pub fn close(&self, token: Token) {
        self.inner.post(Request::Close(token));
    }

    /// Gives a channel up once all that was written to it has been sent.
    pub fn release(&self, token: Token) {
        self.inner.post(Request::Release(token));
    }

    /// Begins a forward, without waiting: what is shared tells how it went.
    pub fn forward(&self, listen: Listen) -> (Token, Arc<forward::Shared>) {
        let token = self.inner.tokens.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::new(forward::Shared::default());
        let over = Arc::clone(&self.inner.shared.ended);
        self.inner.post(Request::Forward(Begin { token, listen: Some(listen), shared: Arc::clone(&shared), over }));
        (token, shared)
    }

    /// Lets a forward take no new connections.
    pub fn stop_forward(&self, token: Token) {
        self.inner.post(Request::StopForward(token));
    }

    /// Ends a forward and its connections.
    pub fn end_forward(&self, token: Token) {
        self.inner.post(Request::EndForward(token));
    }

    /// Sends a global request and waits for its answer; `Ok(None)`: the server said no.
    pub fn global(&self, name: &str, data: &[u8], timeout: Duration) -> Result<Option<Vec<u8>>> {
        let (reply, answer) = bounded(1);
        self.inner.post(Request::Global { name: name.to_owned(), data: data.to_vec(), reply });
        match answer.recv_timeout(timeout) {
            Ok(Ok(data)) => Ok(Some(data)),
            Ok(Err(Error::RequestRefused { .. })) => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => Err(Error::timeout(Phase::Read, timeout)),
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => Err(self.ended()),
        }
    }

    /// Sends everything queued on every channel, disconnects, and waits for the thread's end.
    pub fn finish(&self, timeout: Duration) -> Result<()> {
        if self.inner.forked() {
            // There is no thread to join, and joining it would not end.
            return Err(Error::Closed);
        }
        let deadline = instant_after(timeout);
        let (done, outcome) = bounded(1);
        self.inner.post(Request::Finish { deadline, limit: timeout, done });
        // The thread keeps the deadline; a little more is for its goodbye.
        let outcome = match outcome.recv_timeout(timeout.saturating_add(Duration::from_secs(5))) {
            Ok(outcome) => outcome,
            Err(crossbeam_channel::RecvTimeoutError::Timeout) => return Err(Error::timeout(Phase::Write, timeout)),
            // Somebody else finished it, or it was lost before.
            Err(crossbeam_channel::RecvTimeoutError::Disconnected) => match self.ended() {
                Error::Closed => Ok(()),
                error => Err(error),
            },
        };
        let thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
        outcome
    }

    /// Why the connection is over, if it is.
    pub fn lost(&self) -> Option<Error> {
        self.inner.shared.ended.get().cloned()
    }

    fn ended(&self) -> Error {
        self.lost().unwrap_or_else(|| match self.inner.forked() {
            true => Error::Closed,
            false => Error::Internal("the transport ended without a reason".into()),
        })
    }

    #[cfg(feature = "_faults")]
    pub fn inject(&self, fault: Fault) {
        self.inner.post(Request::Inject(fault));
    }
}

impl Inner {
    /// Whether this is a process that was forked from the connection's.
    fn forked(&self) -> bool {
        std::process::id() != self.process
    }

    /// Never blocks. A request that nobody takes any more is dropped, which tells its waiter.
    fn post(&self, request: Request) {
        if self.forked() {
            return;
        }
        if self.inbox.send(request).is_ok() {
            self.wake.wake();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.post(Request::Abandon);
    }
}
