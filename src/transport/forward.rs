//! What crosses between the user's handle of a forward and the transport, which carries its connections.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::listener::Listener;
use super::message::Token;
use super::pipe::{Limit, Pipe};
use crate::error::{Error, Phase, Result};
use crate::forward::{Endpoint, ForwardEvent};

/// Events kept for somebody who asks for them; older ones give way.
const MAX_EVENTS: usize = 1024;

/// A forward that is to begin.
#[derive(Debug)]
pub(crate) struct Listen {
    pub source: Source,
    pub destination: Destination,
    /// Connections at once.
    pub most: usize,
    /// A connection must have reached its target within this time.
    pub open_timeout: Duration,
}

/// Where its connections come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// This machine.
    Here(Vec<Listener>),
    /// The server, which is asked to listen there.
    There(Endpoint),
}

/// Where its connections lead.
#[derive(Debug, Clone)]
pub(crate) enum Destination {
    /// To the other side: the server connects there.
    There(Endpoint),
    /// To this side: we connect there.
    Here(Endpoint),
    /// Wherever the client says, in SOCKS; seen from the other side.
    Anywhere,
    /// To whoever accepts them here.
    Queue,
}

/// A connection that the server passed on, for who accepts it.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub token: Token,
    pub pipe: Arc<Pipe>,
    /// Where it came from, as the server says.
    pub origin: String,
}

/// What the transport and the handles of one forward share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub counters: Counters,
    /// A mutex and not queues, because several waits look at one state: for the beginning, for the end, for the next
    /// event and for the next arrival. Held for moving an element only.
    state: Mutex<State>,
    news: Condvar,
}

/// Of all its connections, ended or not.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub accepted: AtomicU64,
    pub open: AtomicU64,
    pub refused: AtomicU64,
    pub failed: AtomicU64,
    pub sent: AtomicU64,
    pub received: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// How the beginning went; the port, where the server chose it.
    begun: Option<Result<Option<u16>>>,
    ended: Option<Error>,
    events: VecDeque<ForwardEvent>,
    missed: u64,
    /// Who waits for news. Without anybody, telling it would be a system call for nothing at each event.
    waiting: usize,
    arrivals: VecDeque<Arrival>,
}

/// The transport's side.
impl Shared {
    pub fn begun(&self, outcome: Result<Option<u16>>) {
        let mut state = self.lock();
        state.begun.get_or_insert(outcome);
        self.tell(state);
    }

    /// The first reason stays.
    pub fn ended(&self, reason: Error) {
        let mut state = self.lock();
        state.begun.get_or_insert(Err(reason.clone()));
        state.ended.get_or_insert(reason);
        self.tell(state);
    }

    pub fn event(&self, event: ForwardEvent) {
        let mut state = self.lock();
        if state.events.len() == MAX_EVENTS {
            state.events.pop_front();
            state.missed += 1;
        }
        state.events.push_back(event);
        self.tell(state);
    }

    pub fn arrived(&self, arrival: Arrival) {
        let mut state = self.lock();
        state.arrivals.push_back(arrival);
        self.tell(state);
    }

    /// Wakes whoever waits.
    fn tell(&self, state: MutexGuard<'_, State>) {
        let waiting = state.waiting > 0;
        drop(state);
        if waiting {
            self.news.notify_all();
        }
    }

    /// Connections that nobody has accepted yet.
    pub fn waiting(&self) -> usize {
        self.lock().arrivals.len()
    }

    pub fn take_arrivals(&self) -> VecDeque<Arrival> {
        std::mem::take(&mut self.lock().arrivals)
    }
}

/// The user's side.
impl Shared {
    /// Waits until it has begun; the port, where the server chose it.
    pub fn wait_begun(&self, limit: &Limit) -> Result<Option<u16>> {
        self.wait_for(limit, Phase::Open, |state| state.begun.clone())?
    }

    /// Waits for its end, and says why.
    pub fn wait_ended(&self, limit: &Limit) -> Result<Error> {
        self.wait_for(limit, Phase::Total, |state| state.ended.clone())
    }

    pub fn try_ended(&self) -> Option<Error> {
        self.lock().ended.clone()
    }

    /// The next event; `None` when it has ended and all were told.
    pub fn next_event(&self, limit: &Limit) -> Result<Option<ForwardEvent>> {
        self.wait_for(limit, Phase::Read, |state| match state.events.pop_front() {
            None => state.ended.is_some().then_some(None),
            event => Some(event),
        })
    }

    /// How many events gave way to newer ones since this was asked last.
    pub fn take_missed(&self) -> u64 {
        std::mem::take(&mut self.lock().missed)
    }

    /// The next connection that the server passed on; those that came before the end come first.
    pub fn next_arrival(&self, limit: &Limit) -> Result<Arrival> {
        self.wait_for(limit, Phase::Read, |state| match state.arrivals.pop_front() {
            None => state.ended.clone().map(Err),
            Some(arrival) => Some(Ok(arrival)),
        })?
    }

    fn wait_for<T>(&self, limit: &Limit, phase: Phase, mut found: impl FnMut(&mut State) -> Option<T>) -> Result<T> {
        let mut state = self.lock();
        loop {
            if let Some(found) = found(&mut state) {
                return Ok(found);
            }
            let left = limit.total.map(|(at, after)| (at.saturating_duration_since(Instant::now()), after));
            if let Some((Duration::ZERO, after)) = left {
                return Err(Error::timeout(phase, after));
            }
            state.waiting += 1;
            state = match left {
                None => self.news.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some((left, _)) => self.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
            state.waiting -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves whole elements behind.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counters {
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// Asks for a forward. If it is dropped before the transport took it, whoever waits learns that the connection is over.
#[derive(Debug)]
pub(crate) struct Begin {
    pub token: Token,
    pub listen: Option<Listen>,
    pub shared: Arc<Shared>,
    /// Why the transport ended, once it has.
    pub over: Arc<std::sync::OnceLock<Error>>,
}

impl Drop for Begin {
    fn drop(&mut self) {
        if self.listen.is_some() {
            self.shared.ended(self.over.get().cloned().unwrap_or(Error::Closed));
        }
    }
}
