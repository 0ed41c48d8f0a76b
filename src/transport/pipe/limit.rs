//! Limits of waits: a deadline, and a time without output.

use std::time::{Duration, Instant};

use crate::error::{Error, Phase};

/// How long a user's call may wait.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limit {
    /// When, and how long that was when it was set (for the error).
    pub total: Option<(Instant, Duration)>,
    /// No output for this long.
    pub idle: Option<Duration>,
}

impl Limit {
    pub fn none() -> Limit {
        Limit::default()
    }

    pub fn after(timeout: Option<Duration>) -> Limit {
        // A time that no clock can tell is no limit.
        Limit { total: timeout.and_then(|t| Some((Instant::now().checked_add(t)?, t))), idle: None }
    }

    /// The earlier of the two deadlines, given when output last came.
    pub(super) fn deadline(&self, last_output: Instant) -> Option<Instant> {
        let idle = self.idle.and_then(|t| last_output.checked_add(t));
        match (self.total.map(|(at, _)| at), idle) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// The error for a deadline that has passed.
    pub(super) fn error(&self, phase: Phase, last_output: Instant) -> Error {
        match (self.total, self.idle) {
            (Some((at, limit)), _) if at <= Instant::now() => Error::timeout(phase, limit),
            (_, Some(idle)) if last_output.elapsed() >= idle => Error::timeout(Phase::Idle, idle),
            (Some((_, limit)), _) => Error::timeout(phase, limit),
            (None, idle) => Error::timeout(Phase::Idle, idle.unwrap_or_default()),
        }
    }
}
