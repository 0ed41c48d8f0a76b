//! Keeps the forwards up: one thread that hears what signals, workers and connection attempts tell, and decides.

use std::io;
use std::sync::mpsc::{channel, sync_channel, Receiver, Sender, SyncSender};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use threadline::{Client, Endpoint, Error, Forward, ForwardCounters};

use super::ready::Ready;
use super::report::{Reporter, Retry, Standing};
use super::worker::{Gone, Told, Worker};
use super::{describe, failed, Spec, Tunnels, GOODBYE, LIKE_SSH};
use crate::connect::{self, Connector};
use crate::interrupt::{self, Interrupts};
use crate::report::Failure;
use crate::{terminal, INTERNAL};

/// The exit code when a forward never stood.
const SOME_NEVER_STOOD: u8 = 5;
/// Tidings that may wait for the supervisor; whoever has more to tell waits.
const TIDINGS: usize = 256;

/// What the supervisor hears.
enum Tiding {
    Connected(threadline::Result<Client>),
    /// Of a forward, on which connection.
    Forward {
        number: usize,
        connection: u64,
        told: Told,
    },
    Signal(i32),
    StatusWanted,
}

/// Runs until a signal or a failure that trying again does not mend; returns the exit code.
pub(super) fn run(connect: connect::Plan, plan: Tunnels, interrupts: &Interrupts) -> Result<u8, Failure> {
    let ready = Ready::prepare(&connect.host, &plan)?;
    let reporter = Reporter::new(&connect.host, connect.quiet, plan.json);
    let connector = Arc::new(Connector::new(connect)?);
    let (tell, tidings) = sync_channel(TIDINGS);
    watch_signals(interrupts, &tell).map_err(|e| failed("wait for signals", &e))?;
    let tunnels = plan.specs.iter().cloned().map(Tunnel::new).collect();
    let mut supervisor = Supervisor {
        plan,
        connector,
        reporter,
        ready: Some(ready),
        tell,
        tunnels,
        client: None,
        connections: 0,
        since: Instant::now(),
        failures: 0,
        trouble: None,
        stop: None,
    };
    let end = supervisor.supervise(&tidings);
    supervisor.conclude(end)
}

fn watch_signals(interrupts: &Interrupts, tell: &SyncSender<Tiding>) -> io::Result<()> {
    let (first, told) = (interrupts.first(), tell.clone());
    let pass_on = move || {
        if let Ok(signal) = first.recv() {
            // We are ending anyway if nobody hears it.
            let _ = told.send(Tiding::Signal(signal));
        }
    };
    thread::Builder::new().name("tl:interrupt".into()).spawn(pass_on)?;
    let told = tell.clone();
    interrupt::on_status_request(move || drop(told.send(Tiding::StatusWanted)))
}

/// Why the tool ends.
enum End {
    Signal(i32),
    Failure(Failure),
    /// Our NDJSON could not be written.
    Output(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> End {
        End::Output(error)
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        End::Failure(failure)
    }
}

/// One forward over all connections.
struct Tunnel {
    spec: Spec,
    /// Where it listens, or did.
    place: Option<Endpoint>,
    state: State,
    /// It has stood at some time.
    stood: bool,
    /// Carried by forwards that have ended.
    past: ForwardCounters,
}

enum State {
    /// Nothing is known since the connection was begun.
    Waiting,
    Up(Arc<Forward>),
    Failed(String),
}

impl Tunnel {
    fn new(spec: Spec) -> Tunnel {
        Tunnel { spec, place: None, state: State::Waiting, stood: false, past: ForwardCounters::default() }
    }

    /// What it carries now becomes what it has carried. The reason why it was not up before, if it was not.
    fn becomes(&mut self, state: State) -> Option<String> {
        let before = std::mem::replace(&mut self.state, state);
        match before {
            State::Up(forward) => {
                add(&mut self.past, &forward.counters());
                None
            }
            State::Failed(reason) => Some(reason),
            State::Waiting => None,
        }
    }

    fn standing(&self) -> Standing {
        let mut counters = self.past;
        if let State::Up(forward) = &self.state {
            let now = forward.counters();
            add(&mut counters, &now);
            counters.open = now.open;
        }
        let error = if let State::Failed(reason) = &self.state { Some(reason.clone()) } else { None };
        let place = self.place.as_ref().map(shown);
        let up = matches!(self.state, State::Up(_));
        Standing { spec: self.spec.clone(), place, up, error, counters }
    }
}

/// Adds what was carried; what is open ends with its forward.
fn add(total: &mut ForwardCounters, more: &ForwardCounters) {
    total.connections += more.connections;
    total.refused += more.refused;
    total.failed += more.failed;
    total.sent += more.sent;
    total.received += more.received;
}

struct Supervisor {
    plan: Tunnels,
    connector: Arc<Connector>,
    reporter: Reporter,
    /// Until it was told.
    ready: Option<Ready>,
    tell: SyncSender<Tiding>,
    tunnels: Vec<Tunnel>,
    client: Option<Client>,
    /// How many there have been.
    connections: u64,
    /// When the last was made.
    since: Instant,
    /// Attempts to connect that failed, and connections that did not last, one after the other.
    failures: u32,
    /// Why there is no connection, as it was said.
    trouble: Option<String>,
    /// Dropped to end the workers of a connection.
    stop: Option<Vec<Sender<()>>>,
}

impl Supervisor {
    fn supervise(&mut self, tidings: &Receiver<Tiding>) -> End {
        match self.hear_all(tidings) {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    fn hear_all(&mut self, tidings: &Receiver<Tiding>) -> Result<std::convert::Infallible, End> {
        self.reporter.plan(&self.plan.specs)?;
        self.begin_connecting(Duration::ZERO)?;
        loop {
            // It has a sender of its own: this ends by an error only.
            match tidings.recv().map_err(|e| Failure::new(format!("internal fault: {e}"), INTERNAL))? {
                Tiding::Connected(Ok(client)) => self.connected(client)?,
                Tiding::Connected(Err(error)) => self.not_connected(&error)?,
                Tiding::Forward { number, connection, told } => self.told(number, connection, told)?,
                Tiding::Signal(signal) => return Err(End::Signal(signal)),
                Tiding::StatusWanted => self.report_status()?,
            }
        }
    }

    /// Connects after a while, on a thread of its own: it may take long, and a signal must not wait for it.
    fn begin_connecting(&self, wait: Duration) -> Result<(), End> {
        let (connector, tell, again) = (Arc::clone(&self.connector), self.tell.clone(), self.connections > 0);
        let run = move || {
            thread::sleep(wait);
            let outcome = if again { connector.connect_again() } else { connector.connect() };
            // We are ending if nobody hears it.
            let _ = tell.send(Tiding::Connected(outcome));
        };
        let started = thread::Builder::new().name("tl:connect".into()).spawn(run);
        Ok(started.map(drop).map_err(|e| failed("start a thread", &e))?)
    }

    fn reconnects(&self) -> u64 {
        self.connections.saturating_sub(1)
    }

    fn connected(&mut self, client: Client) -> Result<(), End> {
        self.connections += 1;
        self.since = Instant::now();
        self.trouble = None;
        self.reporter.connected(client.user(), &client.address().to_string(), self.reconnects())?;
        let mut stops = Vec::new();
        for (number, tunnel) in self.tunnels.iter_mut().enumerate() {
            tunnel.becomes(State::Waiting);
            let (stop, stopped) = channel();
            stops.push(stop);
            let (tell, connection) = (self.tell.clone(), self.connections);
            let worker = Worker {
                client: client.clone(),
                spec: tunnel.spec.clone(),
                before: tunnel.place.clone(),
                backoff: self.plan.backoff,
                stop: stopped,
                tell: Box::new(move |told| tell.send(Tiding::Forward { number, connection, told }).map_err(|_| Gone)),
            };
            worker.start().map_err(|e| failed("start a thread", &e))?;
        }
        self.stop = Some(stops);
        self.client = Some(client);
        Ok(())
    }

    fn not_connected(&mut self, error: &Error) -> Result<(), End> {
        if self.connections == 0 || is_final(error) {
            return Err(Failure::new(describe(error), LIKE_SSH).into());
        }
        self.connect_again("unreachable", error)
    }

    fn connect_again(&mut self, ev: &str, error: &Error) -> Result<(), End> {
        let wait = self.plan.backoff.wait(self.failures);
        self.failures = self.failures.saturating_add(1);
        let said = error.to_string();
        let news = self.trouble.as_ref() != Some(&said);
        self.trouble = Some(said);
        self.reporter.no_connection(ev, error, Retry { wait, news })?;
        self.begin_connecting(wait)
    }

    fn told(&mut self, number: usize, connection: u64, told: Told) -> Result<(), End> {
        // Events of an earlier connection, too: they tell how it ended.
        let spec = &self.tunnels[number].spec;
        match &told {
            Told::Event(event) => return Ok(self.reporter.happened(number, spec, event)?),
            Told::Missed(count) => return Ok(self.reporter.missed(number, spec, *count)?),
            _ => {}
        }
        if self.client.is_none() || connection != self.connections {
            return Ok(());
        }
        match told {
            Told::Up(forward) => self.up(number, forward),
            Told::Failed(error, wait) => self.not_up("failed", number, &error, wait),
            Told::Down(error, wait) => self.not_up("down", number, &error, wait),
            Told::Lost(error) => self.lost(&error),
            Told::Event(_) | Told::Missed(_) => Ok(()),
        }
    }

    fn up(&mut self, number: usize, forward: Arc<Forward>) -> Result<(), End> {
        let tunnel = &mut self.tunnels[number];
        let place = forward.endpoint().clone();
        tunnel.becomes(State::Up(forward));
        tunnel.stood = true;
        self.reporter.up(number, &tunnel.spec, &shown(&place))?;
        tunnel.place = Some(place);
        if self.tunnels.iter().all(|tunnel| matches!(tunnel.state, State::Up(_))) {
            if let Some(ready) = self.ready.take() {
                let places = self.tunnels.iter().filter_map(|t| t.place.as_ref()).map(shown);
                let places: Vec<_> = places.collect();
                self.reporter.ready(&places)?;
                ready.tell(&places);
            }
        }
        Ok(())
    }

    fn not_up(&mut self, ev: &str, number: usize, error: &Error, wait: Duration) -> Result<(), End> {
        let tunnel = &mut self.tunnels[number];
        let said = error.to_string();
        let before = tunnel.becomes(State::Failed(said.clone()));
        let text = format!("{}: {}", tunnel.spec.text, describe(error));
        if self.plan.exit_on_failure {
            return Err(Failure::new(text, LIKE_SSH).into());
        }
        if self.none_ever_will() {
            let text = match self.tunnels.len() {
                1 => text,
                count => format!("none of the {count} forwards could be set up; {text}"),
            };
            return Err(Failure::new(text, LIKE_SSH).into());
        }
        let retry = Retry { wait, news: before != Some(said) };
        let spec = &self.tunnels[number].spec;
        Ok(self.reporter.not_up(ev, number, spec, error, retry)?)
    }

    /// Each was tried, and not one has ever stood.
    fn none_ever_will(&self) -> bool {
        self.tunnels.iter().all(|tunnel| !tunnel.stood && matches!(tunnel.state, State::Failed(_)))
    }

    fn lost(&mut self, error: &Error) -> Result<(), End> {
        self.client = None;
        self.stop = None;
        for tunnel in &mut self.tunnels {
            tunnel.becomes(State::Failed("the connection is lost".into()));
        }
        if !self.plan.reconnect {
            return Err(Failure::new(describe(error), LIKE_SSH).into());
        }
        if self.since.elapsed() > self.plan.backoff.longest {
            self.failures = 0;
        }
        self.connect_again("lost", error)
    }

    fn report_status(&self) -> Result<(), End> {
        let standings: Vec<_> = self.tunnels.iter().map(Tunnel::standing).collect();
        Ok(self.reporter.status(self.client.is_some(), self.reconnects(), &standings)?)
    }

    /// Says goodbye, and what the exit code is.
    fn conclude(mut self, end: End) -> Result<u8, Failure> {
        let code = match &end {
            End::Signal(_) if self.tunnels.iter().all(|tunnel| tunnel.stood) => 0,
            End::Signal(signal) if self.connections == 0 => interrupt::exit_code(*signal),
            End::Signal(_) => SOME_NEVER_STOOD,
            End::Failure(failure) => failure.code,
            End::Output(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(interrupt::end_by_broken_pipe()),
            End::Output(e) => return Err(failed("write to stdout", e)),
        };
        let (signal, error) = match &end {
            End::Signal(signal) => (Some(*signal), None),
            End::Failure(failure) => (None, Some(failure.text.as_str())),
            End::Output(_) => (None, None),
        };
        // A question may stand on it.
        terminal::restore();
        // With NDJSON only; if nobody reads it any more we end all the same.
        if self.plan.json {
            let _ = self.report_status();
        }
        let _ = self.reporter.end(code, signal, error);
        self.stop = None;
        if let Some(client) = self.client.take() {
            if let Err(e) = client.close(GOODBYE) {
                log::debug!("goodbye: {e}");
            }
        }
        match end {
            End::Failure(failure) => Err(failure),
            End::Signal(_) | End::Output(_) => Ok(code),
        }
    }
}

/// A place to listen at, as who connects there has to write it.
fn shown(place: &Endpoint) -> String {
    match place {
        Endpoint::Tcp { host, port } if host.is_empty() => format!("localhost:{port}"),
        place => place.to_string(),
    }
}

/// Whether trying again would only do harm, or cannot help: a key that is not the host's, a login that is refused (the
/// next ones may lock the account), a setting that is wrong.
fn is_final(error: &Error) -> bool {
    matches!(
        error,
        Error::HostKey(_)
            | Error::Auth(_)
            | Error::InvalidTarget { .. }
            | Error::InvalidInput { .. }
            | Error::Internal(_)
    )
}
