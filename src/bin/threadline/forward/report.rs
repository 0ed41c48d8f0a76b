//! What the supervisor says: lines on stderr, or NDJSON on stdout.

use std::io;
use std::time::Duration;

use serde_json::{json, Map, Value};
use threadline::{Error, ForwardCounters, ForwardEvent};

use super::{describe, Spec};
use crate::output::json::Journal;
use crate::report::{self, escape};

/// Where it is said.
#[derive(Debug)]
pub(super) enum Reporter {
    Lines { host: String, quiet: bool },
    Json { host: String, journal: Journal },
}

/// What one forward has come to.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub spec: Spec,
    /// Where it listens, or did.
    pub place: Option<String>,
    pub up: bool,
    /// Why it is not up.
    pub error: Option<String>,
    /// On all connections so far.
    pub counters: ForwardCounters,
}

impl Reporter {
    pub fn new(host: &str, quiet: bool, json: bool) -> Reporter {
        let host = host.to_owned();
        match json {
            true => Reporter::Json { host, journal: Journal::new() },
            false => Reporter::Lines { host, quiet },
        }
    }

    pub fn plan(&self, specs: &[Spec]) -> io::Result<()> {
        let Reporter::Json { host, journal } = self else { return Ok(()) };
        let forwards = specs.iter().enumerate();
        let forwards: Vec<Value> =
            forwards.map(|(n, spec)| named(n, spec, json!({ "kind": spec.kind_name() }))).collect();
        journal.event("plan", json!({ "host": host, "forwards": forwards }))
    }

    pub fn connected(&self, user: &str, address: &str, reconnects: u64) -> io::Result<()> {
        match self {
            Reporter::Lines { host, quiet } => {
                if reconnects > 0 && !quiet {
                    report::line(&format!("{host}: connected again, {}", times(reconnects, "reconnect")));
                }
                Ok(())
            }
            Reporter::Json { host, journal } => {
                let fields = json!({ "host": host, "user": user, "address": address, "reconnects": reconnects });
                journal.event("connected", fields)
            }
        }
    }

    pub fn up(&self, number: usize, spec: &Spec, place: &str) -> io::Result<()> {
        match self {
            Reporter::Lines { quiet: true, .. } => Ok(()),
            Reporter::Lines { host, .. } => {
                let whose = if spec.listens_there() { format!("{host} listens") } else { "listening".to_owned() };
                report::line(&format!("{}: up, {whose} on {place}", spec.text));
                Ok(())
            }
            Reporter::Json { journal, .. } => journal.event("up", named(number, spec, json!({ "listen": place }))),
        }
    }

    /// It could not be set up (`failed`) or has ended (`down`). Said again only where something is new.
    pub fn not_up(&self, ev: &str, number: usize, spec: &Spec, error: &Error, retry: Retry) -> io::Result<()> {
        match self {
            Reporter::Lines { .. } => {
                if retry.news {
                    report::line(&format!("{}: {ev}: {}; trying again", spec.text, describe(error)));
                }
                Ok(())
            }
            Reporter::Json { journal, .. } => {
                let fields = json!({ "error": error.to_string(), "retry_ms": milliseconds(retry.wait) });
                journal.event(ev, named(number, spec, fields))
            }
        }
    }

    /// The connection is `lost`, or the host was `unreachable`.
    pub fn no_connection(&self, ev: &str, error: &Error, retry: Retry) -> io::Result<()> {
        match self {
            Reporter::Lines { host, .. } => {
                if retry.news {
                    report::line(&format!("{host}: {error}; connecting again in {}", seconds(retry.wait)));
                }
                Ok(())
            }
            Reporter::Json { host, journal } => {
                let retry = milliseconds(retry.wait);
                journal.event(ev, json!({ "host": host, "error": error.to_string(), "retry_ms": retry }))
            }
        }
    }

    pub fn ready(&self, places: &[String]) -> io::Result<()> {
        match self {
            Reporter::Lines { .. } => Ok(()),
            Reporter::Json { journal, .. } => journal.event("ready", json!({ "forwards": places })),
        }
    }

    /// As lines, only connections that did not come about.
    pub fn happened(&self, number: usize, spec: &Spec, event: &ForwardEvent) -> io::Result<()> {
        match self {
            Reporter::Lines { quiet, .. } => {
                if let (ForwardEvent::Refused { peer, target, error, .. }, false) = (event, quiet) {
                    let from = if peer.is_empty() { String::new() } else { format!(" from {}", escape(peer)) };
                    let to = if target.is_empty() { String::new() } else { format!(" to {}", escape(target)) };
                    report::line(&format!("{}: a connection{from}{to} failed: {error}", spec.text));
                }
                Ok(())
            }
            Reporter::Json { journal, .. } => match connection_event(event) {
                Some((ev, fields)) => journal.event(ev, named(number, spec, fields)),
                None => Ok(()),
            },
        }
    }

    /// Connections of which nothing is told, because there were too many at once.
    pub fn missed(&self, number: usize, spec: &Spec, count: u64) -> io::Result<()> {
        match self {
            Reporter::Lines { .. } => Ok(()),
            Reporter::Json { journal, .. } => journal.event("missed", named(number, spec, json!({ "count": count }))),
        }
    }

    /// All forwards with what they have carried.
    pub fn status(&self, connected: bool, reconnects: u64, standings: &[Standing]) -> io::Result<()> {
        match self {
            Reporter::Lines { host, .. } => {
                let state = if connected { "connected" } else { "not connected" };
                report::line(&format!("{host}: {state}, {}", times(reconnects, "reconnect")));
                standings.iter().for_each(|standing| report::line(&standing.text()));
                Ok(())
            }
            Reporter::Json { host, journal } => {
                let forwards: Vec<_> = standings.iter().enumerate().map(|(n, s)| s.json(n)).collect();
                let fields =
                    json!({ "host": host, "connected": connected, "reconnects": reconnects, "forwards": forwards });
                journal.event("status", fields)
            }
        }
    }

    pub fn end(&self, code: u8, signal: Option<i32>, error: Option<&str>) -> io::Result<()> {
        match self {
            Reporter::Lines { .. } => Ok(()),
            Reporter::Json { journal, .. } => {
                journal.event("end", json!({ "code": code, "signal": signal, "error": error }))
            }
        }
    }
}

/// When it is tried again, and whether that has to be said.
#[derive(Debug, Clone, Copy)]
pub(super) struct Retry {
    pub wait: Duration,
    /// The reason is another one than last time.
    pub news: bool,
}

impl Standing {
    fn text(&self) -> String {
        let Standing { spec, place, up, error, counters } = self;
        let state = match (up, place, error) {
            (true, Some(place), _) => format!("up on {place}"),
            (_, _, Some(error)) => format!("not up ({error})"),
            _ => "not up".to_owned(),
        };
        let ForwardCounters { connections, open, refused, failed, sent, received, .. } = counters;
        format!(
            "{}: {state}; {}, {open} open, {refused} refused, {failed} failed; {} sent, {} received",
            spec.text,
            times(*connections, "connection"),
            amount(*sent),
            amount(*received)
        )
    }

    fn json(&self, number: usize) -> Value {
        let Standing { spec, place, up, error, counters } = self;
        let fields = json!({
            "up": up,
            "listen": place,
            "error": error,
            "connections": counters.connections,
            "open": counters.open,
            "refused": counters.refused,
            "failed": counters.failed,
            "sent": counters.sent,
            "received": counters.received,
        });
        named(number, spec, fields)
    }
}

/// The fields that say which forward it is, and then these.
fn named(number: usize, spec: &Spec, fields: Value) -> Value {
    let mut object = Map::new();
    object.insert("forward".into(), (number + 1).into());
    object.insert("spec".into(), spec.text.clone().into());
    if let Value::Object(fields) = fields {
        object.extend(fields);
    }
    Value::Object(object)
}

fn connection_event(event: &ForwardEvent) -> Option<(&'static str, Value)> {
    Some(match event {
        ForwardEvent::Opened { connection, peer, target } => {
            ("opened", json!({ "connection": connection, "peer": peer, "target": target }))
        }
        ForwardEvent::Refused { connection, peer, target, error } => {
            let error = error.to_string();
            ("refused", json!({ "connection": connection, "peer": peer, "target": target, "error": error }))
        }
        ForwardEvent::Closed { connection, peer, target, sent, received, error } => {
            let error = error.as_ref().map(Error::to_string);
            let fields = json!({
                "connection": connection, "peer": peer, "target": target,
                "sent": sent, "received": received, "error": error,
            });
            ("closed", fields)
        }
        _ => return None,
    })
}

fn times(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Bytes in the unit that leaves one to three digits before the point.
fn amount(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let (mut value, mut unit) = (bytes as f64 / 1000.0, 0);
    // 999.95 would be shown as 1000.0.
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::amount;

    #[test]
    fn bytes_are_shown_in_a_unit_that_fits() {
        for (bytes, shown) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (1_234_567_890, "1.2 GB"),
            (u64::MAX, "18446.7 PB"),
        ] {
            assert_eq!(amount(bytes), shown);
        }
    }
}
