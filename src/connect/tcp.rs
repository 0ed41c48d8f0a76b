//! A name becomes a TCP connection: every address is tried, raced as RFC 8305 says, under one deadline.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, never, select_biased, Receiver};
use log::debug;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::sockopt;

use crate::error::{Error, Phase, Result};
use crate::transport::dial::{begin, finish};

/// How long an attempt stays alone before the next address is tried beside it: the "Connection Attempt Delay" that
/// RFC 8305 §8 recommends.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// How long each part of [`connect`] may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TcpLimits {
    /// Turning the name into addresses.
    pub(crate) resolve: Duration,
    /// The race of all addresses, from its start.
    pub(crate) connect: Duration,
    /// When the whole operation that this is part of must have ended.
    pub(crate) deadline: Option<Instant>,
}

/// Opens a TCP connection to `host`, a name or an address, and says which address answered.
///
/// Blocks until an address has answered, all have failed, or a limit has passed. The stream is left **non-blocking**,
/// with TCP_NODELAY and close-on-exec set.
///
/// The system's resolver cannot be cancelled: past its limit, the thread that waits for it is abandoned and ends when
/// the resolver returns.
///
/// # Errors
///
/// [`Error::Resolve`], or [`Error::Timeout`] in [`Phase::Resolve`]. [`Error::Connect`] lists every address and what
/// became of it, in the order tried. That is so when time ran out, too: which addresses kept silent and which refused is
/// what the reader needs to know.
pub(crate) fn connect(host: &str, port: u16, limits: &TcpLimits) -> Result<(TcpStream, SocketAddr)> {
    let addresses = resolve(host, port, limits)?;
    race(host, interleave(addresses), limits, ATTEMPT_DELAY)
}

/// Makes a peer that has vanished be noticed: TCP keepalive, and on Linux a limit on how long sent data may stay
/// unacknowledged (TCP_USER_TIMEOUT, RFC 5482).
///
/// Does not fail: a connection over a socket that has no such options is as good, only slower to notice a dead peer.
pub(crate) fn tune(stream: &TcpStream, user_timeout: Option<Duration>) {
    if let Err(e) = sockopt::set_socket_keepalive(stream, true) {
        debug!("SO_KEEPALIVE: {e}");
    }
    #[cfg(target_os = "linux")]
    if let Some(limit) = user_timeout {
        // 0 would mean the system's default, which is minutes; the kernel reads the number as signed
        let milliseconds = limit.as_millis().clamp(1, i32::MAX as u128) as u32;
        if let Err(e) = sockopt::set_tcp_user_timeout(stream, milliseconds) {
            debug!("TCP_USER_TIMEOUT: {e}");
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = user_timeout;
}

fn resolve(host: &str, port: u16, limits: &TcpLimits) -> Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let name = host.to_owned();
    let addresses = within(limits.resolve, limits.deadline, move || {
        (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>)
    })?
    .map_err(|e| Error::Resolve { host: host.to_owned(), source: Arc::new(e) })?;
    debug!("{host:?} is {addresses:?}");
    Ok(addresses)
}

/// Runs `lookup` in a thread of its own, which is abandoned when the time is up.
fn within<T: Send + 'static>(
    limit: Duration,
    whole: Option<Instant>,
    lookup: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let started = Instant::now();
    let deadline = earliest(started, limit, whole);
    let (answer, answers) = bounded(1);
    thread::Builder::new()
        .name("tl:resolve".into())
        // a failed send: we have given up and nobody waits for the answer
        .spawn(move || drop(answer.send(lookup())))
        .map_err(|e| Error::io("starting a thread for the resolver", e))?;
    receive_by(&answers, deadline).map_err(|gone| match (gone, deadline) {
        (Gone::Late, Some(deadline)) => Error::timeout(Phase::Resolve, deadline.saturating_duration_since(started)),
        _ => Error::Internal("the resolver's thread ended without an answer".into()),
    })
}

enum Gone {
    Late,
    Dead,
}

fn receive_by<T>(answers: &Receiver<T>, deadline: Option<Instant>) -> std::result::Result<T, Gone> {
    let late = deadline.map_or_else(never, crossbeam_channel::at);
    // biased: an answer that is there counts, even at the deadline
    select_biased! {
        recv(answers) -> answer => answer.map_err(|_| Gone::Dead),
        recv(late) -> _ => Err(Gone::Late),
    }
}

/// The nearer of "so long from now" and the end of the whole; none if both are beyond what the clock can count.
fn earliest(now: Instant, limit: Duration, whole: Option<Instant>) -> Option<Instant> {
    match (now.checked_add(limit), whole) {
        (Some(own), Some(whole)) => Some(own.min(whole)),
        (own, whole) => own.or(whole),
    }
}

/// Alternates the address families (RFC 8305 §4). The resolver's order is kept within each family, and its first
/// address stays first: it has put first what this host can reach (RFC 6724) and what its gai.conf prefers.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().map(SocketAddr::is_ipv6) else { return addresses };
    let total = addresses.len();
    let (mut now, mut then): (VecDeque<_>, VecDeque<_>) = addresses.into_iter().partition(|a| a.is_ipv6() == first);
    let mut order: Vec<SocketAddr> = Vec::with_capacity(total);
    while let Some(address) = now.pop_front() {
        // /etc/hosts may name an address twice
        if !order.contains(&address) {
            order.push(address);
        }
        if !then.is_empty() {
            std::mem::swap(&mut now, &mut then);
        }
    }
    order
}

/// Which address is tried when. It has no socket and no clock: the time is told to it, and what became of an attempt.
struct Race {
    attempts: Vec<(SocketAddr, Stage)>,
    /// The first address that has not been tried.
    next: usize,
    /// When that one's turn comes.
    next_at: Instant,
    deadline: Option<Instant>,
    delay: Duration,
}

enum Stage {
    Untried,
    InFlight,
    Failed(Arc<io::Error>),
}

/// What to do now.
#[derive(Debug, PartialEq, Eq)]
enum Move {
    /// Begin to connect to the address with this index.
    Start(usize),
    /// Wait for the attempts in flight, at most until then.
    Wait(Option<Instant>),
    /// Nothing is left to try, or the time is up.
    GiveUp,
}

impl Race {
    fn new(addresses: Vec<SocketAddr>, now: Instant, deadline: Option<Instant>, delay: Duration) -> Race {
        let attempts = addresses.into_iter().map(|address| (address, Stage::Untried)).collect();
        Race { attempts, next: 0, next_at: now, deadline, delay }
    }

    /// What to do at this time. A [`Move::Start`] counts as done.
    fn next(&mut self, now: Instant) -> Move {
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return Move::GiveUp;
        }
        let in_flight = self.attempts.iter().any(|(_, stage)| matches!(stage, Stage::InFlight));
        let untried = self.next < self.attempts.len();
        match (in_flight, untried) {
            (_, true) if now >= self.next_at => Move::Start(self.start(now)),
            (_, true) => Move::Wait(earliest(self.next_at, Duration::ZERO, self.deadline)),
            (true, false) => Move::Wait(self.deadline),
            (false, false) => Move::GiveUp,
        }
    }

    fn start(&mut self, now: Instant) -> usize {
        let index = self.next;
        self.attempts[index].1 = Stage::InFlight;
        self.next += 1;
        self.next_at = now + self.delay;
        index
    }

    /// An attempt has failed: its successor need not wait any longer (RFC 8305 §5).
    fn failed(&mut self, index: usize, error: io::Error, now: Instant) {
        debug!("{}: {error}", self.attempts[index].0);
        self.attempts[index].1 = Stage::Failed(Arc::new(error));
        self.next_at = now;
    }

    /// Every address and what became of it.
    fn outcome(self) -> Vec<(SocketAddr, Arc<io::Error>)> {
        let silent = || Arc::new(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
        let untried = || Arc::new(io::Error::new(io::ErrorKind::TimedOut, "not tried, the time was up"));
        let told = |(address, stage)| match stage {
            Stage::Failed(error) => (address, error),
            Stage::InFlight => (address, silent()),
            Stage::Untried => (address, untried()),
        };
        self.attempts.into_iter().map(told).collect()
    }
}

/// Plays a [`Race`] with real sockets, in this thread. The losers' sockets are closed on return.
fn race(
    host: &str,
    addresses: Vec<SocketAddr>,
    limits: &TcpLimits,
    delay: Duration,
) -> Result<(TcpStream, SocketAddr)> {
    let started = Instant::now();
    let mut race = Race::new(addresses, started, earliest(started, limits.connect, limits.deadline), delay);
    let mut in_flight: Vec<(usize, OwnedFd)> = Vec::new();
    loop {
        match race.next(Instant::now()) {
            Move::Start(index) => match begin(&race.attempts[index].0) {
                Ok(socket) => in_flight.push((index, socket)),
                Err(error) => race.failed(index, error, Instant::now()),
            },
            Move::Wait(until) => {
                for (index, socket) in ended(&mut in_flight, until)? {
                    let address = race.attempts[index].0;
                    match finish(socket) {
                        Ok(stream) => return Ok((stream, address)),
                        Err(error) => race.failed(index, error, Instant::now()),
                    }
                }
            }
            Move::GiveUp => return Err(Error::Connect { host: host.to_owned(), attempts: race.outcome() }),
        }
    }
}

/// Waits until attempts have ended, well or not, and takes them out; none if it is `until` first.
fn ended(in_flight: &mut Vec<(usize, OwnedFd)>, until: Option<Instant>) -> Result<Vec<(usize, OwnedFd)>> {
    let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
    let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
    let mut fds: Vec<PollFd<'_>> = in_flight.iter().map(|(_, fd)| PollFd::new(fd, PollFlags::OUT)).collect();
    match poll(&mut fds, timeout.as_ref()) {
        // the caller looks at the clock and waits again
        Ok(0) | Err(Errno::INTR) => return Ok(Vec::new()),
        Ok(_) => {}
        Err(e) => return Err(Error::io("waiting for a TCP connection", e.into())),
    }
    let mut ready: VecDeque<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    let (ended, waiting) = in_flight.drain(..).partition(|_| ready.pop_front().unwrap_or(false));
    *in_flight = waiting;
    Ok(ended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::dial::nonblocking_socket;
    use rustix::net::{AddressFamily, SocketType};
    use std::io::ErrorKind;
    use std::net::TcpListener;

    const DELAY: Duration = Duration::from_millis(250);
    /// Longer than any test may take: a wait that should not be there fails the test by its deadline.
    const NEVER: Duration = Duration::from_secs(600);

    fn addresses(text: &str) -> Vec<SocketAddr> {
        text.split_whitespace().map(|a| SocketAddr::new(a.parse().unwrap(), 22)).collect()
    }

    fn refused() -> io::Error {
        Errno::CONNREFUSED.into()
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn limits(connect: Duration) -> TcpLimits {
        TcpLimits { resolve: Duration::from_secs(10), connect, deadline: None }
    }

    #[test]
    fn families_alternate_and_the_resolvers_first_address_stays_first() {
        let table = [
            ("", ""),
            ("10.0.0.1", "10.0.0.1"),
            ("::1 ::2 ::3 10.0.0.1 10.0.0.2", "::1 10.0.0.1 ::2 10.0.0.2 ::3"),
            ("10.0.0.1 ::1 ::2 ::3", "10.0.0.1 ::1 ::2 ::3"),
            ("10.0.0.1 10.0.0.2 ::1", "10.0.0.1 ::1 10.0.0.2"),
            ("::1 ::2", "::1 ::2"),
            ("10.0.0.1 10.0.0.1 ::1 10.0.0.1", "10.0.0.1 ::1"),
        ];
        for (resolved, expected) in table {
            assert_eq!(interleave(addresses(resolved)), addresses(expected), "{resolved}");
        }
    }

    #[test]
    fn a_silent_address_gets_company_after_the_delay() {
        let t = Instant::now();
        let mut race = Race::new(addresses("::1 10.0.0.1"), t, Some(t + ms(10_000)), DELAY);
        assert_eq!(race.next(t), Move::Start(0));
        assert_eq!(race.next(t), Move::Wait(Some(t + DELAY)));
        assert_eq!(race.next(t + ms(249)), Move::Wait(Some(t + DELAY)));
        assert_eq!(race.next(t + ms(250)), Move::Start(1));
        assert_eq!(race.next(t + ms(250)), Move::Wait(Some(t + ms(10_000))));
    }

    #[test]
    fn a_failure_starts_the_next_at_once_and_the_last_failure_ends_the_race() {
        let t = Instant::now();
        let mut race = Race::new(addresses("::1 10.0.0.1 ::2"), t, None, DELAY);
        assert_eq!(race.next(t), Move::Start(0));
        race.failed(0, refused(), t + ms(3));
        assert_eq!(race.next(t + ms(3)), Move::Start(1));
        assert_eq!(race.next(t + ms(4)), Move::Wait(Some(t + ms(253))));
        race.failed(1, refused(), t + ms(5));
        assert_eq!(race.next(t + ms(5)), Move::Start(2));
        assert_eq!(race.next(t + ms(6)), Move::Wait(None));
        race.failed(2, refused(), t + ms(7));
        assert_eq!(race.next(t + ms(7)), Move::GiveUp);
        assert_eq!(race.outcome().len(), 3);
    }

    #[test]
    fn the_deadline_ends_the_race_and_every_address_is_told_of() {
        let t = Instant::now();
        let mut race = Race::new(addresses("10.0.0.1 10.0.0.2 10.0.0.3"), t, Some(t + ms(300)), DELAY);
        assert_eq!(race.next(t), Move::Start(0));
        race.failed(0, refused(), t + ms(1));
        assert_eq!(race.next(t + ms(100)), Move::Start(1));
        assert_eq!(race.next(t + ms(100)), Move::Wait(Some(t + ms(300))));
        assert_eq!(race.next(t + ms(300)), Move::GiveUp);
        let outcome: Vec<_> = race.outcome().into_iter().map(|(a, e)| format!("{}: {e}", a.ip())).collect();
        assert!(outcome[0].starts_with("10.0.0.1: Connection refused"), "{outcome:?}");
        assert_eq!(outcome[1..], ["10.0.0.2: no answer in time", "10.0.0.3: not tried, the time was up"]);
    }

    #[test]
    fn no_address_is_no_race() {
        let t = Instant::now();
        assert_eq!(Race::new(Vec::new(), t, None, DELAY).next(t), Move::GiveUp);
    }

    #[test]
    fn the_nearer_deadline_counts_and_an_endless_limit_is_none() {
        let t = Instant::now();
        assert_eq!(earliest(t, ms(5), Some(t + ms(3))), Some(t + ms(3)));
        assert_eq!(earliest(t, ms(5), Some(t + ms(7))), Some(t + ms(5)));
        assert_eq!(earliest(t, Duration::MAX, Some(t)), Some(t));
        assert_eq!(earliest(t, Duration::MAX, None), None);
    }

    /// A port of 127.0.0.1 that refuses, as long as the guard lives: bound, so that nobody else gets it, and not
    /// listening.
    fn refusing() -> (OwnedFd, SocketAddr) {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = rustix::net::getsockname(&socket).unwrap().try_into().unwrap();
        (socket, address)
    }

    /// An address that never answers: its queue of connections is full.
    fn black_hole() -> (Vec<OwnedFd>, SocketAddr) {
        let listener = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        rustix::net::bind(&listener, &SocketAddr::from(([127, 0, 0, 3], 0))).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = rustix::net::getsockname(&listener).unwrap().try_into().unwrap();
        let mut guards = vec![listener];
        guards.extend((0..8).map(|_| begin(&address).unwrap()));
        (guards, address)
    }

    fn listening() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.2:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[test]
    fn the_stream_is_nonblocking_without_delay_and_closed_on_exec() {
        let (_listener, address) = listening();
        let (stream, peer) = connect("127.0.0.2", address.port(), &limits(NEVER)).unwrap();
        assert_eq!(peer, address);
        assert!(stream.nodelay().unwrap());
        assert!(rustix::fs::fcntl_getfl(&stream).unwrap().contains(rustix::fs::OFlags::NONBLOCK));
        assert!(rustix::io::fcntl_getfd(&stream).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn a_name_is_resolved() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (_stream, peer) = connect("localhost", port, &limits(NEVER)).unwrap();
        assert_eq!(peer.port(), port);
    }

    #[test]
    fn after_a_refusal_the_next_address_is_tried_at_once() {
        let ((_guard, dead), (_listener, alive)) = (refusing(), listening());
        let started = Instant::now();
        let (_stream, peer) = race("web1", vec![dead, alive], &limits(NEVER), NEVER).unwrap();
        assert_eq!(peer, alive);
        assert!(started.elapsed() < NEVER);
    }

    #[test]
    fn a_black_hole_in_front_delays_by_one_step_only() {
        let ((_guard, hole), (_listener, alive)) = (black_hole(), listening());
        let (_stream, peer) = race("web1", vec![hole, alive], &limits(Duration::from_secs(30)), ms(20)).unwrap();
        assert_eq!(peer, alive);
    }

    #[test]
    fn a_socket_connected_to_itself_is_a_refusal() {
        let socket = nonblocking_socket(AddressFamily::INET).unwrap();
        rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let own = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
        match rustix::net::connect(&socket, &own) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(e) => panic!("{e}"),
        }
        let (_, socket) = ended(&mut vec![(0, socket)], None).unwrap().remove(0);
        assert_eq!(finish(socket).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }

    #[test]
    fn refusals_and_silence_are_both_listed() {
        let ((_guard, dead), (_hole, silent)) = (refusing(), black_hole());
        let error = race("web1", vec![silent, dead], &limits(ms(300)), ms(10)).unwrap_err();
        assert_eq!(error.phase(), Some(Phase::Connect));
        let Error::Connect { host, attempts } = &error else { panic!("{error:?}") };
        assert_eq!(host, "web1");
        let told: Vec<_> = attempts.iter().map(|(a, e)| (*a, e.kind())).collect();
        assert_eq!(told, [(silent, ErrorKind::TimedOut), (dead, ErrorKind::ConnectionRefused)]);
        assert!(error.to_string().contains("no answer in time"), "{error}");
    }

    #[test]
    fn the_end_of_the_whole_ends_the_race_too() {
        let (_hole, silent) = black_hole();
        let limits = TcpLimits { deadline: Some(Instant::now() + ms(100)), ..limits(NEVER) };
        let error = connect("127.0.0.3", silent.port(), &limits).unwrap_err();
        assert_eq!(io::Error::from(error).kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_resolver_that_hangs_is_abandoned() {
        let (release, hang) = bounded::<()>(0);
        for (limit, whole) in [(ms(50), None), (NEVER, Some(Instant::now()))] {
            let hang = hang.clone();
            let error = within(limit, whole, move || hang.recv()).unwrap_err();
            assert!(matches!(error, Error::Timeout { phase: Phase::Resolve, .. }), "{error:?}");
        }
        drop(release);
    }

    #[test]
    fn a_resolver_thread_that_panics_is_an_error() {
        let error = within::<()>(NEVER, None, || std::panic::resume_unwind(Box::new("injected"))).unwrap_err();
        assert!(matches!(error, Error::Internal(_)), "{error:?}");
    }

    #[test]
    fn names_that_cannot_be_resolved_are_errors() {
        for host in ["no-such-name.invalid", "with\0nul", ""] {
            let error = connect(host, 22, &limits(NEVER)).unwrap_err();
            assert!(matches!(error, Error::Resolve { .. } | Error::Connect { .. }), "{host:?}: {error:?}");
        }
    }

    #[test]
    fn tuning_sets_the_options() {
        let (_listener, address) = listening();
        let stream = TcpStream::connect(address).unwrap();
        tune(&stream, Some(Duration::from_secs(45)));
        assert!(sockopt::socket_keepalive(&stream).unwrap());
        #[cfg(target_os = "linux")]
        {
            assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 45_000);
            tune(&stream, Some(Duration::MAX));
            assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), i32::MAX as u32);
            tune(&stream, Some(Duration::ZERO));
            assert_eq!(sockopt::tcp_user_timeout(&stream).unwrap(), 1);
        }
    }
}
