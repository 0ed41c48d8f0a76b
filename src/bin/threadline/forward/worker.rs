//! One forward on one connection: set up, watched, set up again until the connection ends. A thread of its own, because
//! setting up waits for the server.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use threadline::{Client, Endpoint, Error, Forward, ForwardEvent};

use super::{Backoff, Spec};

/// Attempts for the port that was had before; past them any other will do, where any was asked for.
const LOYAL_ATTEMPTS: u32 = 3;
/// How long the ends of its connections may take to be told, after a forward's own.
const LAST_EVENTS: Duration = Duration::from_secs(2);
/// Why the server did not open a channel (RFC 4254 §5.1).
const CONNECT_FAILED: u32 = 2;
/// How long removing a file at the server may take.
const PATIENCE: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_millis(5);

/// What a worker tells the supervisor.
pub(super) enum Told {
    /// It stands.
    Up(Arc<Forward>),
    /// It could not be set up, and will be tried again after this time.
    Failed(Error, Duration),
    /// It stood and has ended, and will be tried again after this time.
    Down(Error, Duration),
    /// The connection is lost, and the worker ends.
    Lost(Error),
    Event(ForwardEvent),
    /// So many events gave way to newer ones before they could be told.
    Missed(u64),
}

/// Nobody listens to the worker any more.
pub(super) struct Gone;

/// What a worker needs.
pub(super) struct Worker {
    pub client: Client,
    pub spec: Spec,
    /// Where it listened before, with the port that was chosen.
    pub before: Option<Endpoint>,
    pub backoff: Backoff,
    /// Its other end is dropped when the supervisor has given this connection up.
    pub stop: Receiver<()>,
    pub tell: Box<dyn Fn(Told) -> Result<(), Gone> + Send>,
}

impl Worker {
    pub fn start(mut self) -> io::Result<()> {
        let run = move || {
            let mut failures = 0;
            while let Ok(Some(wait)) = self.once(&mut failures) {
                match self.stop.recv_timeout(wait) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        thread::Builder::new().name("tl:forward".into()).spawn(run).map(drop)
    }

    /// Sets it up and watches it; how long to wait before the next time, if there is one.
    fn once(&mut self, failures: &mut u32) -> Result<Option<Duration>, Gone> {
        match self.set_up(*failures) {
            Err(error) => {
                if self.client.lost().is_some() {
                    (self.tell)(Told::Lost(error))?;
                    return Ok(None);
                }
                let wait = self.backoff.wait(*failures);
                *failures += 1;
                (self.tell)(Told::Failed(error, wait))?;
                Ok(Some(wait))
            }
            Ok(forward) => {
                let began = Instant::now();
                let forward = Arc::new(forward);
                self.before = Some(forward.endpoint().clone());
                (self.tell)(Told::Up(Arc::clone(&forward)))?;
                let error = self.watch(&forward)?;
                if let Some(lost) = self.lost_with_it() {
                    (self.tell)(Told::Lost(lost))?;
                    return Ok(None);
                }
                // What held for a while begins anew.
                *failures = if began.elapsed() > self.backoff.longest { 0 } else { *failures + 1 };
                let wait = self.backoff.wait(*failures);
                (self.tell)(Told::Down(error, wait))?;
                Ok(Some(wait))
            }
        }
    }

    fn set_up(&self, failures: u32) -> threadline::Result<Forward> {
        let any_port = self.spec.listen.port() == Some(0);
        let listen = match &self.before {
            Some(before) if any_port && failures < LOYAL_ATTEMPTS => before,
            _ => &self.spec.listen,
        };
        let builder = self.spec.builder(listen);
        match builder.start(&self.client) {
            Err(Error::RequestRefused { .. }) if self.removes_stale_socket(listen) => builder.start(&self.client),
            outcome => outcome,
        }
    }

    /// sshd leaves the file of a Unix socket behind (unless StreamLocalBindUnlink is set), and then cannot listen there
    /// again. As on our own side, it is removed if it is a socket at which nobody listens. True if it was.
    fn removes_stale_socket(&self, listen: &Endpoint) -> bool {
        let Some(path) = listen.path().filter(|path| self.spec.listens_there() && path.is_absolute()) else {
            return false;
        };
        match self.client.unix_connect(path) {
            // There is no such file, or nobody answers.
            Err(Error::OpenRefused { reason: CONNECT_FAILED, .. }) => {}
            _ => return false,
        }
        let script = "test -S \"$1\" && rm -f -- \"$1\"";
        let remove = self.client.command("sh").args(["-c", script, "sh"]).arg(path.as_os_str().as_bytes());
        let removed = remove.timeout(PATIENCE).status();
        log::debug!("{}: a socket that was left there is to be removed: {removed:?}", self.spec.text);
        removed.is_ok_and(|status| status.success())
    }

    /// Why the connection is lost, if it is: its forwards hear of it a moment before everybody else.
    fn lost_with_it(&self) -> Option<Error> {
        let deadline = Instant::now() + LAST_EVENTS;
        while self.client.lost().is_none() && Instant::now() < deadline {
            thread::sleep(GLANCE);
        }
        self.client.lost()
    }

    /// Tells what happens to its connections, until it has ended; why it has.
    fn watch(&self, forward: &Forward) -> Result<Error, Gone> {
        self.pass_on_events(forward)?;
        // Those that end with it are told a moment later.
        let deadline = Instant::now() + LAST_EVENTS;
        loop {
            let all_ended = forward.counters().open == 0;
            self.pass_on_events(forward)?;
            if all_ended || Instant::now() > deadline {
                return Ok(forward.ended().unwrap_or(Error::Closed));
            }
            thread::sleep(GLANCE);
        }
    }

    /// Until it has ended and all that is known is told.
    fn pass_on_events(&self, forward: &Forward) -> Result<(), Gone> {
        while let Some(event) = forward.next_event() {
            (self.tell)(Told::Event(event))?;
            let missed = forward.missed_events();
            if missed > 0 {
                (self.tell)(Told::Missed(missed))?;
            }
        }
        Ok(())
    }
}
