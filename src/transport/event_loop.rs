//! The transport thread's loop: take requests, receive packets, send packets, wait.

use std::collections::{HashMap, HashSet, VecDeque};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::chunk::ByteQueue;
use super::fault::{self, Fault};
use super::flow::Flow;
use super::message::{AtLimit, Notice, Plan, PtySize, Request, Run, SessionPlan, Start, Token};
use super::packet::{Incoming, Packets, Sent};
use super::pipe::{Credit, Pipe, Shared};
use super::sessions::Sessions;
use super::socket::Socket;
use super::wake::{self, Ready, Wake};
use super::Config;
use crate::connection::{ChannelId, ChannelRequest, Connection, DataHeader, Event, OpenFailure};
use crate::error::{escape, Error, Result, Stream};
use crate::exit_status::{ExitSignal, ExitStatus};

/// Bytes taken in before the other side of the loop gets its turn: a flooding server starves nobody.
const TURN_BYTES: usize = 512 * 1024;
/// Payloads handled in one turn, for floods of tiny ones.
const TURN_PACKETS: usize = 1024;
/// Data is given to libssh2 while less than this is unsent; more would only wait in our buffer.
const UNSENT_HIGH: usize = 512 * 1024;
/// Data given to libssh2 in one turn.
const TURN_SENT: usize = 2 * 1024 * 1024;
/// The goodbye of a dropped client is given this long to leave.
const GOODBYE: Duration = Duration::from_secs(2);
/// After this long without traffic, buffers kept for reuse are freed.
const TRIM_AFTER: Duration = Duration::from_millis(500);
/// The smallest receive window, for when the memory limit is near.
const MIN_WINDOW: u32 = 64 * 1024;

pub(crate) struct EventLoop {
    packets: Packets,
    connection: Connection,
    requests: Receiver<Request>,
    wake: Arc<Wake>,
    shared: Shared,
    config: Config,
    ready: Ready,
    entries: HashMap<Token, Entry>,
    owners: HashMap<ChannelId, Owner>,
    /// Session channels, opening, open or closing: what counts against the server's limit.
    session_channels: HashSet<ChannelId>,
    sessions: Sessions,
    /// Channels that have bytes to send and may have window, in turn.
    sendable: VecDeque<Token>,
    /// Channels whose writer waits for the flush.
    flushing: Vec<Token>,
    /// Channels that want credit which the memory limit withholds.
    withheld: Vec<Token>,
    graces: Vec<(Instant, Token)>,
    globals: VecDeque<GlobalWaiter>,
    held: Option<Held>,
    round_trip: Option<Duration>,
    probes: Probes,
    trimmed: bool,
    ending: Ending,
    fault: Option<Fault>,
}

/// One channel of a user's.
struct Entry {
    pipe: Arc<Pipe>,
    plan: Plan,
    id: Option<ChannelId>,
    stage: Stage,
    flow: Flow,
    asked: Instant,
    outbound: ByteQueue,
    eof_wanted: bool,
    eof_sent: bool,
    in_turn: bool,
    /// Where the socket's count stood after our last packet.
    mark: u64,
    /// It runs on a channel opened in advance, which the server may have closed meanwhile.
    on_spare: bool,
}

/// Where a channel is on its way.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    /// Waits for another session to end.
    Parked,
    /// CHANNEL_OPEN is sent.
    Opening,
    /// Environment and terminal are asked for; these answers are due.
    Preparing(VecDeque<Asked>),
    /// exec, shell or subsystem is asked for.
    Starting(Asked),
    Running,
    /// Our CLOSE is sent (or will be, once the open is answered).
    Closing,
}

/// A request whose answer is due.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    request: &'static str,
    detail: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    User(Token),
    Spare,
    /// Was spare or never ours; only its end is of interest.
    Nobody,
}

enum GlobalWaiter {
    Probe,
    User { name: String, reply: Sender<Result<Vec<u8>, Error>> },
}

/// A message that libssh2 could not take because a key exchange ran. It goes before everything else.
enum Held {
    Control(Vec<u8>),
    Data { token: Token, header: DataHeader, body: Vec<u8> },
}

/// Liveness: probes sent since the last byte came.
#[derive(Default)]
struct Probes {
    unanswered: u32,
    last: Option<Instant>,
}

enum Ending {
    No,
    Finish {
        deadline: Instant,
        done: Sender<Result<(), Error>>,
    },
    /// Say goodbye now.
    Now,
}

impl EventLoop {
    pub fn new(
        packets: Packets,
        requests: Receiver<Request>,
        wake: Arc<Wake>,
        shared: Shared,
        config: Config,
    ) -> EventLoop {
        EventLoop {
            packets,
            connection: Connection::new(),
            requests,
            wake,
            shared,
            ready: Ready::default(),
            entries: HashMap::new(),
            owners: HashMap::new(),
            session_channels: HashSet::new(),
            sessions: Sessions::new(config.spare_channel),
            sendable: VecDeque::new(),
            flushing: Vec::new(),
            withheld: Vec::new(),
            graces: Vec::new(),
            globals: VecDeque::new(),
            held: None,
            round_trip: None,
            probes: Probes::default(),
            trimmed: true,
            ending: Ending::No,
            fault: None,
            config,
        }
    }

    /// Runs until the connection ends, however it does; then tells everybody.
    pub fn run(mut self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.turns()));
        let error = match outcome {
            Ok(error) => error,
            Err(panic) => Error::Internal(fault::panic_text(&*panic)),
        };
        self.end(error);
    }

    fn turns(&mut self) -> Error {
        loop {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => return self.goodbye(),
                Err(error) => return error,
            }
        }
    }

    /// One turn; false when it is time to say goodbye.
    fn turn(&mut self) -> Result<bool> {
        self.wake.clear(self.ready.woken);
        while let Ok(request) = self.requests.try_recv() {
            self.request(request);
        }
        fault::strike(&mut self.fault, Fault::Loop);
        self.receive()?;
        self.send()?;
        let flushed = self.flush()?;
        self.tell_flushed();
        self.keep_spares();
        self.keep_time()?;
        if self.is_over(flushed) {
            return Ok(false);
        }
        self.wait(flushed)?;
        Ok(true)
    }

    fn wait(&mut self, flushed: bool) -> Result<()> {
        let can_send = flushed && !self.exchanging() && (self.connection.has_messages() || !self.sendable.is_empty());
        if self.packets.must_read() || can_send {
            self.ready = Ready::default();
            return Ok(());
        }
        let deadline = self.next_deadline();
        let wake = Arc::clone(&self.wake);
        let ready = self.packets.socket(|s| wake::wait(s, !flushed, Some(&wake), deadline));
        self.ready = ready.map_err(|e| Error::io("cannot wait for the socket", e))?;
        if self.ready.readable {
            self.packets.readable();
        }
        Ok(())
    }
}

/// Requests of user threads.
impl EventLoop {
    fn request(&mut self, request: Request) {
        match request {
            Request::Start(start) => self.start(start),
            Request::Wrote(token) => self.wrote(token),
            Request::Consumed(token) => {
                self.credit(token);
                self.credit_withheld();
            }
            Request::Tell(token, notice) => self.tell(token, &notice),
            Request::Close(token) => self.close(token),
            Request::Global { name, data, reply } => {
                self.connection.global_request(&name, &data, true);
                self.globals.push_back(GlobalWaiter::User { name, reply });
            }
            Request::Finish { deadline, done } => self.ending = Ending::Finish { deadline, done },
            Request::Abandon => self.ending = Ending::Now,
            Request::Inject(Fault::Loop) => self.fault = Some(Fault::Loop),
            Request::Inject(fault) => self.packets.inject(fault),
        }
    }

    fn start(&mut self, start: Start) {
        let now = Instant::now();
        let (token, pipe, plan) = (start.token, Arc::clone(&start.pipe), start.plan.clone());
        let window = self.initial_window();
        let entry = Entry {
            pipe,
            plan,
            id: None,
            stage: Stage::Parked,
            flow: Flow::new(window, self.config.max_window, now),
            asked: now,
            outbound: ByteQueue::default(),
            eof_wanted: false,
            eof_sent: false,
            in_turn: false,
            mark: 0,
            on_spare: false,
        };
        // From here on the entry answers for the pipe.
        start.answered();
        self.entries.insert(token, entry);
        if matches!(self.entries[&token].plan, Plan::Session(_)) {
            self.start_session(token, now);
        } else {
            self.open(token);
        }
    }

    fn start_session(&mut self, token: Token, now: Instant) {
        self.sessions.command_begins(now);
        if let Some(id) = self.sessions.take_spare() {
            self.run_on(token, id, true);
        } else if self.sessions.may_open(self.session_channels.len(), now) && !self.sessions.has_parked() {
            self.open(token);
        } else if self.at_limit(token) == AtLimit::Fail {
            self.refuse_for_limit(token);
        } else {
            self.sessions.park(token);
        }
    }

    fn at_limit(&self, token: Token) -> AtLimit {
        match self.entries.get(&token).map(|e| &e.plan) {
            Some(Plan::Session(plan)) => plan.at_limit,
            _ => AtLimit::Fail,
        }
    }

    fn refuse_for_limit(&mut self, token: Token) {
        let limit = Some(self.session_channels.len());
        let description = "not asked for: the server refused a session a moment ago".into();
        self.fail(token, Error::OpenRefused { kind: "session".into(), reason: 4, description, limit });
    }

    /// Sends CHANNEL_OPEN for an entry.
    fn open(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let window = u32::try_from(entry.flow.window()).unwrap_or(u32::MAX);
        let id = match &entry.plan {
            Plan::Session(_) => {
                let id = self.connection.open("session", &[], window);
                self.session_channels.insert(id);
                id
            }
            Plan::Other { kind, data } => self.connection.open(kind, data, window),
        };
        log::debug!("{id}: opening");
        entry.id = Some(id);
        entry.stage = Stage::Opening;
        entry.asked = Instant::now();
        self.owners.insert(id, Owner::User(token));
    }

    /// The configured window, or less when much memory is spoken for already.
    fn initial_window(&self) -> u32 {
        let granted: u64 = self.owners.keys().map(|&id| u64::from(self.connection.granted(id))).sum();
        let spoken_for = granted + self.shared.unread.load(Ordering::Relaxed);
        let left = self.config.memory_limit.saturating_sub(spoken_for) / 4;
        let least = MIN_WINDOW.min(self.config.window);
        u32::try_from(left).unwrap_or(u32::MAX).clamp(least, self.config.window)
    }

    fn wrote(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.eof_wanted = entry.pipe.take_outbound(&mut entry.outbound);
        if entry.pipe.flush_wanted() && !self.flushing.contains(&token) {
            self.flushing.push(token);
        }
        self.line_up(token);
    }

    /// Puts a channel into the round of those that have something to send.
    fn line_up(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let eof_due = entry.eof_wanted && !entry.eof_sent;
        if entry.stage == Stage::Running && !entry.in_turn && (!entry.outbound.is_empty() || eof_due) {
            entry.in_turn = true;
            self.sendable.push_back(token);
        }
    }

    fn tell(&mut self, token: Token, notice: &Notice) {
        let Some(Entry { id: Some(id), stage: Stage::Running, .. }) = self.entries.get(&token) else { return };
        let request = match notice {
            Notice::Signal(name) => ChannelRequest::Signal { name },
            Notice::Resize(PtySize { columns, rows, width, height }) => {
                ChannelRequest::WindowChange { columns: *columns, rows: *rows, width_px: *width, height_px: *height }
            }
        };
        // False only if the channel is gone, and with it whom to tell.
        let _ = self.connection.request(*id, &request, false);
    }

    /// The user gives the channel up.
    fn close(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.pipe.closed_by_us();
        entry.outbound.clear(&self.shared.pool);
        match entry.id {
            Some(id) => {
                entry.stage = Stage::Closing;
                log::debug!("{id}: closing");
                self.connection.close(id);
            }
            None => {
                self.sessions.forget_parked(token);
                self.entries.remove(&token);
            }
        }
    }

    /// Ends an entry that never ran.
    fn fail(&mut self, token: Token, error: Error) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.pipe.failed(error);
        match entry.id {
            Some(id) if self.owners.contains_key(&id) => {
                entry.stage = Stage::Closing;
                self.connection.close(id);
            }
            _ => {
                self.entries.remove(&token);
            }
        }
    }
}

/// What arrives.
impl EventLoop {
    fn receive(&mut self) -> Result<()> {
        if !self.packets.must_read() {
            return Ok(());
        }
        self.packets.socket(|s| s.allow(TURN_BYTES));
        for _ in 0..TURN_PACKETS {
            match self.packets.receive()? {
                Incoming::Payload(payload) => self.payload(payload)?,
                Incoming::Empty | Incoming::Later => return Ok(()),
            }
        }
        Ok(())
    }

    fn payload(&mut self, payload: Vec<u8>) -> Result<()> {
        self.trimmed = false;
        let event = self.connection.received(&payload).map_err(|v| Error::Protocol(v.to_string()))?;
        if let Event::Data { channel, stream, range } = event {
            self.data(channel, stream, payload, range);
            return Ok(());
        }
        self.event(event);
        self.shared.pool.put(payload);
        Ok(())
    }

    fn data(&mut self, id: ChannelId, stream: Stream, payload: Vec<u8>, range: std::ops::Range<usize>) {
        let Some(Owner::User(token)) = self.owners.get(&id).copied() else { return };
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let len = range.len();
        let credit = entry.pipe.push(stream, payload, range, entry.flow.window());
        let round_trip = self.round_trip.unwrap_or_default();
        entry.flow.received(len, credit.unread, round_trip, Instant::now());
        self.grant(token, credit);
    }

    fn event(&mut self, event: Event<'_>) {
        match event {
            Event::Nothing | Event::Data { .. } | Event::Ignored { .. } => {}
            Event::Opened { channel } => self.opened(channel),
            Event::OpenFailed { channel, reason, description } => self.open_failed(channel, reason, description),
            Event::OpenRequested { channel, kind, .. } => {
                log::debug!(
                    "the server wants to open '{}', which nobody expects",
                    escape(&String::from_utf8_lossy(kind))
                );
                self.connection.refuse(channel, OpenFailure::AdministrativelyProhibited, "not expected");
            }
            Event::Writable { channel } => self.with_user(channel, Self::line_up),
            Event::Eof { channel } => self.with_entry(channel, |entry| entry.pipe.eof()),
            Event::Closed { channel } => self.closed(channel),
            Event::Reply { channel, success } => self.with_user(channel, |this, token| this.reply(token, success)),
            Event::ExitStatus { channel, status } => self.exit_said(channel, ExitStatus::Code(status)),
            Event::ExitSignal { channel, name, core_dumped, message } => {
                let signal = ExitSignal {
                    name: String::from_utf8_lossy(name).into_owned(),
                    core_dumped,
                    message: String::from_utf8_lossy(message).into_owned(),
                };
                self.exit_said(channel, ExitStatus::Signal(signal));
            }
            Event::Eow { channel } => self.with_entry(channel, |entry| {
                entry.outbound = ByteQueue::default();
                entry.pipe.broken();
            }),
            Event::GlobalReply { success, data } => self.global_reply(success, data),
            Event::HostKeys { .. } => log::debug!("the server lists its host keys"),
        }
    }

    fn with_user(&mut self, id: ChannelId, f: impl FnOnce(&mut Self, Token)) {
        if let Some(Owner::User(token)) = self.owners.get(&id).copied() {
            f(self, token);
        }
    }

    fn with_entry(&mut self, id: ChannelId, f: impl FnOnce(&mut Entry)) {
        if let Some(Owner::User(token)) = self.owners.get(&id) {
            if let Some(entry) = self.entries.get_mut(token) {
                f(entry);
            }
        }
    }

    fn opened(&mut self, id: ChannelId) {
        if self.sessions.spare_opened(id) {
            log::debug!("{id}: open in advance");
            self.use_spare_for_parked();
            return;
        }
        let Some(Owner::User(token)) = self.owners.get(&id).copied() else { return };
        let Some(entry) = self.entries.get(&token) else { return };
        let (measured, wanted) = (entry.asked.elapsed(), entry.stage == Stage::Opening);
        self.note_round_trip(measured);
        if wanted {
            self.run_on(token, id, false);
        }
    }

    fn note_round_trip(&mut self, measured: Duration) {
        self.round_trip = Some(self.round_trip.map_or(measured, |known| known.min(measured)));
    }

    fn use_spare_for_parked(&mut self) {
        while self.sessions.has_parked() {
            let Some(spare) = self.sessions.take_spare() else { return };
            let Some(token) = self.sessions.unpark() else { return };
            self.run_on(token, spare, true);
        }
    }

    /// The channel is open: ask for what the entry is to be.
    fn run_on(&mut self, token: Token, id: ChannelId, on_spare: bool) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        self.owners.insert(id, Owner::User(token));
        entry.id = Some(id);
        entry.on_spare = on_spare;
        match &entry.plan {
            Plan::Session(plan) => {
                let asked = prepare(&mut self.connection, id, plan);
                entry.stage = Stage::Preparing(asked);
                self.prepared(token);
            }
            Plan::Other { .. } => self.runs(token),
        }
    }

    /// If nothing more has to be prepared, starts what the session is for.
    fn prepared(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let (Some(id), Plan::Session(plan)) = (entry.id, &entry.plan) else { return };
        if matches!(&entry.stage, Stage::Preparing(due) if due.is_empty()) {
            log::debug!("{id}: starting");
            entry.stage = Stage::Starting(begin(&mut self.connection, id, &plan.run));
        }
    }

    fn runs(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        if let Some(id) = entry.id {
            log::debug!("{id}: running");
        }
        entry.stage = Stage::Running;
        entry.pipe.started();
        self.wrote(token);
    }

    fn reply(&mut self, token: Token, success: bool) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        let asked = match &mut entry.stage {
            Stage::Preparing(due) => due.pop_front(),
            Stage::Starting(_) if success => {
                self.runs(token);
                return;
            }
            Stage::Starting(asked) => Some(std::mem::replace(asked, Asked { request: "", detail: None })),
            _ => return,
        };
        let Some(asked) = asked else { return };
        if success {
            self.prepared(token);
        } else {
            self.fail(token, Error::RequestRefused { request: asked.request.into(), detail: asked.detail });
        }
    }

    fn open_failed(&mut self, id: ChannelId, reason: u32, description: &[u8]) {
        let was_session = self.session_channels.remove(&id);
        let owner = self.owners.remove(&id);
        let description = String::from_utf8_lossy(description).into_owned();
        log::debug!("{id}: refused: {} ({reason})", escape(&description));
        if self.sessions.spare_refused(id) {
            self.close_surplus();
            self.serve_parked();
            return;
        }
        let Some(Owner::User(token)) = owner else { return };
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.id = None;
        if entry.stage == Stage::Closing {
            self.entries.remove(&token);
            return;
        }
        let held = self.confirmed_sessions();
        // OpenSSH says "connect failed" when MaxSessions is reached; others say "resource shortage".
        let looks_like_limit = was_session && matches!(reason, 2 | 4) && held > 0;
        if looks_like_limit {
            self.sessions.limit_met(held, Instant::now());
            if self.at_limit(token) == AtLimit::Wait {
                self.park_again(token);
                return;
            }
        }
        let kind = match &self.entries[&token].plan {
            Plan::Session(_) => "session".to_owned(),
            Plan::Other { kind, .. } => kind.clone(),
        };
        let limit = looks_like_limit.then_some(held);
        self.fail(token, Error::OpenRefused { kind, reason, description, limit });
    }

    fn park_again(&mut self, token: Token) {
        if let Some(entry) = self.entries.get_mut(&token) {
            entry.stage = Stage::Parked;
        }
        self.sessions.park_first(token);
        self.use_spare_for_parked();
        self.close_surplus();
    }

    /// Sessions that are open, as opposed to being asked for.
    fn confirmed_sessions(&self) -> usize {
        self.session_channels.iter().filter(|&&id| self.connection.is_open(id)).count()
    }

    /// The peer's CLOSE: the last that is heard of a channel.
    fn closed(&mut self, id: ChannelId) {
        log::debug!("{id}: closed");
        self.session_channels.remove(&id);
        let owner = self.owners.remove(&id);
        self.sessions.spare_closed(id);
        if let Some(Owner::User(token)) = owner {
            self.entry_closed(token);
        }
        self.serve_parked();
    }

    fn entry_closed(&mut self, token: Token) {
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.id = None;
        let unanswered = matches!(entry.stage, Stage::Preparing(_) | Stage::Starting(_));
        if unanswered && entry.on_spare {
            // The server had closed the spare before our request reached it: nothing ran. Once more, on a new channel.
            log::debug!("a channel opened in advance was closed by the server; opening another");
            entry.on_spare = false;
            self.sessions.lost_spare();
            self.open(token);
            return;
        }
        entry.pipe.closed();
        self.entries.remove(&token);
    }

    /// A session has ended: the next one that waits may begin.
    fn serve_parked(&mut self) {
        let now = Instant::now();
        while self.sessions.has_parked() && self.sessions.may_open(self.session_channels.len(), now) {
            let Some(token) = self.sessions.unpark() else { return };
            self.open(token);
        }
    }

    fn exit_said(&mut self, id: ChannelId, status: ExitStatus) {
        let Some(Owner::User(token)) = self.owners.get(&id).copied() else { return };
        let Some(entry) = self.entries.get_mut(&token) else { return };
        log::debug!("{id}: {status}");
        entry.pipe.exit_said(status);
        if let Plan::Session(SessionPlan { grace: Some(grace), .. }) = &entry.plan {
            self.graces.push((Instant::now() + *grace, token));
        }
    }

    fn global_reply(&mut self, success: bool, data: &[u8]) {
        match self.globals.pop_front() {
            Some(GlobalWaiter::User { name, reply }) => {
                let answer = if success {
                    Ok(data.to_vec())
                } else {
                    Err(Error::RequestRefused { request: name, detail: None })
                };
                let _ = reply.send(answer);
            }
            Some(GlobalWaiter::Probe) | None => {}
        }
    }
}

/// Environment and terminal (the channel has just been opened, so it takes requests): asked for together, answered before the start, so that a refusal runs nothing.
fn prepare(connection: &mut Connection, id: ChannelId, plan: &SessionPlan) -> VecDeque<Asked> {
    let mut asked = VecDeque::new();
    for (name, value) in &plan.env {
        let _ = connection.request(id, &ChannelRequest::Env { name, value }, true);
        asked.push_back(Asked { request: "env", detail: Some(String::from_utf8_lossy(name).into_owned()) });
    }
    if let Some(pty) = &plan.pty {
        let request = ChannelRequest::Pty {
            term: &pty.term,
            columns: pty.size.columns,
            rows: pty.size.rows,
            width_px: pty.size.width,
            height_px: pty.size.height,
            modes: &pty.modes,
        };
        let _ = connection.request(id, &request, true);
        asked.push_back(Asked { request: "pty-req", detail: None });
    }
    asked
}

fn begin(connection: &mut Connection, id: ChannelId, run: &Run) -> Asked {
    let (request, asked) = match run {
        Run::Exec(command) => (ChannelRequest::Exec { command }, Asked { request: "exec", detail: None }),
        Run::Shell => (ChannelRequest::Shell, Asked { request: "shell", detail: None }),
        Run::Subsystem(name) => {
            (ChannelRequest::Subsystem { name }, Asked { request: "subsystem", detail: Some(name.clone()) })
        }
    };
    let _ = connection.request(id, &request, true);
    asked
}

/// Windows.
impl EventLoop {
    /// Looks whether a channel's peer may be granted more.
    fn credit(&mut self, token: Token) {
        let Some(entry) = self.entries.get(&token) else { return };
        let credit = entry.pipe.review(entry.flow.window());
        self.grant(token, credit);
    }

    fn grant(&mut self, token: Token, credit: Credit) {
        let Some(entry) = self.entries.get(&token) else { return };
        let Some(id) = entry.id else { return };
        if entry.stage == Stage::Closing {
            return;
        }
        let outstanding = u64::from(self.connection.granted(id));
        let Some(bytes) = entry.flow.grant(credit.allowed, outstanding) else { return };
        if self.shared.unread.load(Ordering::Relaxed) >= self.config.memory_limit {
            if !self.withheld.contains(&token) {
                self.withheld.push(token);
            }
            return;
        }
        self.connection.grant(id, bytes);
    }

    fn credit_withheld(&mut self) {
        if self.withheld.is_empty() || self.shared.unread.load(Ordering::Relaxed) >= self.config.memory_limit {
            return;
        }
        for token in std::mem::take(&mut self.withheld) {
            self.credit(token);
        }
    }
}

/// What is sent.
impl EventLoop {
    fn exchanging(&self) -> bool {
        self.packets.exchange_deadline(Duration::ZERO).is_some()
    }

    fn send(&mut self) -> Result<()> {
        if self.exchanging() {
            return Ok(());
        }
        if !self.send_held()? || !self.send_control()? {
            return Ok(());
        }
        self.send_data()?;
        // EOFs and closes that became due behind the data.
        self.send_control()?;
        Ok(())
    }

    /// False: not now.
    fn send_held(&mut self) -> Result<bool> {
        let Some(held) = self.held.take() else { return Ok(true) };
        let sent = match &held {
            Held::Control(message) => self.packets.send(message, &[])?,
            Held::Data { header, body, .. } => self.packets.send(header.as_ref(), body)?,
        };
        if sent == Sent::NotNow {
            self.held = Some(held);
            return Ok(false);
        }
        match held {
            Held::Control(message) => self.connection.recycle(message),
            Held::Data { token, body, .. } => self.data_sent(token, body.len()),
        }
        Ok(true)
    }

    fn send_control(&mut self) -> Result<bool> {
        while let Some(message) = self.connection.next_message() {
            if self.packets.send(&message, &[])? == Sent::NotNow {
                self.held = Some(Held::Control(message));
                return Ok(false);
            }
            self.trimmed = false;
            self.connection.recycle(message);
        }
        Ok(true)
    }

    /// One packet per channel and round, as full as the peer allows.
    fn send_data(&mut self) -> Result<()> {
        let mut sent = 0;
        while sent < TURN_SENT {
            if self.packets.socket(|s| s.unsent()) >= UNSENT_HIGH && !self.flush()? {
                return Ok(());
            }
            let Some(token) = self.sendable.pop_front() else { return Ok(()) };
            match self.send_one(token)? {
                Some(n) => sent += n,
                None => return Ok(()),
            }
        }
        Ok(())
    }

    /// Sends a channel's next packet and lines it up again if it has more; `None`: a key exchange runs.
    fn send_one(&mut self, token: Token) -> Result<Option<usize>> {
        let Some(entry) = self.entries.get_mut(&token) else { return Ok(Some(0)) };
        entry.in_turn = false;
        let Some(id) = entry.id else { return Ok(Some(0)) };
        if entry.outbound.is_empty() {
            entry.eof_wanted = entry.pipe.take_outbound(&mut entry.outbound);
        }
        if entry.outbound.is_empty() {
            if entry.eof_wanted && !entry.eof_sent {
                entry.eof_sent = true;
                self.connection.eof(id);
            }
            return Ok(Some(0));
        }
        let n = self.connection.sendable(id).min(entry.outbound.front().len());
        if n == 0 {
            // No window: its next WINDOW_ADJUST lines it up again.
            return Ok(Some(0));
        }
        let header = self.connection.data_header(id, n);
        let body = &entry.outbound.front()[..n];
        if self.packets.send(header.as_ref(), body)? == Sent::NotNow {
            let body = body.to_vec();
            entry.outbound.consume(n, &self.shared.pool);
            self.held = Some(Held::Data { token, header, body });
            self.line_up(token);
            return Ok(None);
        }
        entry.outbound.consume(n, &self.shared.pool);
        self.data_sent(token, n);
        self.line_up(token);
        Ok(Some(n))
    }

    fn data_sent(&mut self, token: Token, n: usize) {
        self.trimmed = false;
        let mark = self.packets.socket(|s| s.taken());
        let Some(entry) = self.entries.get_mut(&token) else { return };
        entry.mark = mark;
        entry.pipe.sent(n);
        if entry.outbound.is_empty() {
            entry.eof_wanted = entry.pipe.take_outbound(&mut entry.outbound);
        }
    }

    /// Writes to the socket; true when nothing is left. If the write fails, what the server said last is read first.
    fn flush(&mut self) -> Result<bool> {
        let error = match self.packets.flush() {
            Ok(flushed) => return Ok(flushed),
            Err(error) => error,
        };
        loop {
            self.packets.readable();
            self.packets.socket(|s| s.allow(TURN_BYTES));
            match self.packets.receive()? {
                Incoming::Payload(payload) => self.payload(payload)?,
                Incoming::Later => {}
                Incoming::Empty => return Err(error),
            }
        }
    }

    /// Tells the writers that wait for it that their bytes are with the kernel.
    fn tell_flushed(&mut self) {
        if self.flushing.is_empty() || self.held.is_some() || self.connection.has_messages() {
            return;
        }
        let (flushed, taken) = self.packets.socket(|s| (s.flushed(), s.taken()));
        let entries = &mut self.entries;
        self.flushing.retain(|token| {
            let Some(entry) = entries.get_mut(token) else { return false };
            let empty = entry.outbound.is_empty() && !entry.pipe.has_outbound();
            let eof_done = !entry.eof_wanted || entry.eof_sent;
            // The EOF is a control message: it is out when all that was taken is.
            let due = if entry.eof_sent { taken } else { entry.mark };
            if !empty || !eof_done || flushed < due {
                return true;
            }
            entry.pipe.flushed(entry.eof_sent);
            false
        });
    }
}

/// Time.
impl EventLoop {
    fn keep_spares(&mut self) {
        for _ in 0..self.sessions.missing() {
            let id = self.connection.open("session", &[], self.initial_window());
            self.session_channels.insert(id);
            self.owners.insert(id, Owner::Spare);
            self.sessions.spare_opening(id);
        }
        self.close_surplus();
    }

    fn close_surplus(&mut self) {
        for id in self.sessions.surplus(Instant::now()) {
            self.owners.insert(id, Owner::Nobody);
            self.connection.close(id);
        }
    }

    fn keep_time(&mut self) -> Result<()> {
        let now = Instant::now();
        self.check_liveness(now)?;
        if self.packets.exchange_deadline(self.config.exchange_timeout).is_some_and(|d| d <= now) {
            let limit = self.config.exchange_timeout.as_secs_f64();
            return Err(Error::Protocol(format!("a key exchange was not finished within {limit} s")));
        }
        self.end_graces(now);
        if self.sessions.has_parked() {
            self.serve_parked();
        }
        if !self.trimmed && self.idle_for(now) >= TRIM_AFTER {
            self.trimmed = true;
            self.shared.pool.trim();
            self.packets.socket(Socket::trim);
        }
        Ok(())
    }

    fn idle_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.packets.socket(|s| s.last_received()))
    }

    /// Probes a silent peer, and gives up one that stays silent.
    fn check_liveness(&mut self, now: Instant) -> Result<()> {
        let Some((interval, count)) = self.config.liveness else { return Ok(()) };
        let silent = self.idle_for(now);
        if silent < interval {
            self.probes = Probes::default();
            return Ok(());
        }
        let due = self.probes.last.is_none_or(|last| now.saturating_duration_since(last) >= interval);
        if !due {
            return Ok(());
        }
        if self.probes.unanswered >= count {
            let reason = format!("no answer to {count} probes");
            return Err(Error::ConnectionLost { reason, silent: Some(silent) });
        }
        log::debug!("silent for {:.1} s: probing", silent.as_secs_f64());
        self.probes = Probes { unanswered: self.probes.unanswered + 1, last: Some(now) };
        self.connection.global_request("keepalive@openssh.com", &[], true);
        self.globals.push_back(GlobalWaiter::Probe);
        self.send()?;
        self.flush()?;
        Ok(())
    }

    /// Channels whose command has ended and whose grace is over.
    fn end_graces(&mut self, now: Instant) {
        let mut due = Vec::new();
        self.graces.retain(|&(at, token)| {
            if at <= now {
                due.push(token);
            }
            at > now
        });
        for token in due {
            let Some(entry) = self.entries.get_mut(&token) else { continue };
            log::debug!("the command has ended but its output is held open: closing");
            entry.pipe.closed();
            entry.stage = Stage::Closing;
            if let Some(id) = entry.id {
                self.connection.close(id);
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        let last = self.packets.socket(|s| s.last_received());
        let liveness = self.config.liveness.map(|(interval, _)| match self.probes.last {
            Some(probed) if probed > last => probed + interval,
            _ => last + interval,
        });
        let ending = match &self.ending {
            Ending::Finish { deadline, .. } => Some(*deadline),
            Ending::Now => Some(Instant::now() + GOODBYE),
            Ending::No => None,
        };
        [
            liveness,
            ending,
            self.packets.exchange_deadline(self.config.exchange_timeout),
            self.graces.iter().map(|&(at, _)| at).min(),
            self.sessions.next_review(),
            (!self.trimmed).then(|| last + TRIM_AFTER),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// The end.
impl EventLoop {
    fn is_over(&mut self, flushed: bool) -> bool {
        match &self.ending {
            Ending::No => false,
            Ending::Now => !self.urgent_work(),
            Ending::Finish { deadline, .. } => *deadline <= Instant::now() || self.all_sent(flushed),
        }
    }

    /// Whether something must be started before we go: the end of a remote command whose child was dropped.
    fn urgent_work(&self) -> bool {
        self.entries.values().any(|e| {
            let waits = !matches!(e.stage, Stage::Running | Stage::Closing);
            let urgent = matches!(&e.plan, Plan::Session(plan) if plan.urgent);
            urgent && waits && e.asked.elapsed() < GOODBYE
        })
    }

    /// Whether everything queued on every channel is with the kernel.
    fn all_sent(&mut self, flushed: bool) -> bool {
        flushed
            && self.held.is_none()
            && !self.connection.has_messages()
            && self.entries.values().all(|e| {
                let eof_due = e.eof_wanted && !e.eof_sent;
                e.stage == Stage::Closing || (e.outbound.is_empty() && !e.pipe.has_outbound() && !eof_due)
            })
    }

    /// Closes what is open, disconnects, and gives all of it a bounded time to leave.
    fn goodbye(&mut self) -> Error {
        let flushed = self.packets.flush().unwrap_or(false);
        let complete = self.all_sent(flushed);
        let ids: Vec<ChannelId> = self.owners.keys().copied().collect();
        for id in ids {
            self.connection.close(id);
        }
        let left = self.send_held().and_then(|free| if free { self.send_control() } else { Ok(false) });
        if left.is_ok() {
            self.packets.disconnect();
        }
        let deadline = Instant::now() + GOODBYE;
        while let Ok(false) = self.packets.flush() {
            if Instant::now() >= deadline || self.packets.socket(|s| wake::wait(s, true, None, Some(deadline))).is_err()
            {
                break;
            }
        }
        if let Ending::Finish { done, .. } = std::mem::replace(&mut self.ending, Ending::Now) {
            let outcome =
                if complete { Ok(()) } else { Err(Error::timeout(crate::error::Phase::Write, Duration::ZERO)) };
            // The waiter is told before the thread ends, and joins it then.
            let _ = self.shared.ended.set(Error::Closed);
            let _ = done.send(outcome);
        }
        Error::Closed
    }

    /// Tells everybody the one reason, and lets go of everything.
    fn end(mut self, error: Error) {
        match &error {
            Error::Closed => log::info!("connection closed"),
            error => log::info!("connection ended: {error}"),
        }
        let _ = self.shared.ended.set(error);
        let error = self.shared.ended.get().cloned().unwrap_or(Error::Closed);
        for entry in self.entries.values() {
            entry.pipe.lost(error.clone());
        }
        for waiter in self.globals.drain(..) {
            if let GlobalWaiter::User { reply, .. } = waiter {
                let _ = reply.send(Err(error.clone()));
            }
        }
        self.packets.socket(|s| s.shut());
        // What is still in the queue is dropped with it, which tells its waiters: they look at `ended`.
    }
}
