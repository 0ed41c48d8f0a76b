//! NDJSON, version 1: one object per line, `{"v":1,"t":<unix ns>,"seq":n,"ev":…}`.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use serde_json::{json, Map, Value};
use threadline::{Batch, Ended, LineEnd, Sink};

use crate::output::raw;

/// Bytes gathered before they are written.
const BLOCK: usize = 64 * 1024;

/// Numbers the events and writes them. Cheap to clone; all clones write one stream.
///
/// A mutex, because a command's start has to stand before its first line, and the printer's thread hears of a command
/// only by its lines.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    state: Arc<Mutex<State>>,
    clock: Clock,
}

#[derive(Debug)]
struct State {
    seq: u64,
    buffer: Vec<u8>,
}

/// Turns arrival times into dates.
#[derive(Debug, Clone, Copy)]
struct Clock {
    instant: Instant,
    since_epoch: Duration,
}

impl Clock {
    fn now() -> Clock {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Clock { instant: Instant::now(), since_epoch }
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        let date = match at.checked_duration_since(self.instant) {
            Some(later) => self.since_epoch + later,
            None => self.since_epoch.saturating_sub(self.instant - at),
        };
        u64::try_from(date.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Journal {
    pub fn new() -> Journal {
        Journal { state: Arc::new(Mutex::new(State { seq: 0, buffer: Vec::new() })), clock: Clock::now() }
    }

    /// Writes an event that happens now.
    pub fn event(&self, ev: &str, fields: Value) -> io::Result<()> {
        let mut state = self.lock();
        state.add(self.clock.nanoseconds(Instant::now()), ev, fields);
        state.flush()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, nanoseconds: u64, ev: &str, fields: Value) {
        self.seq += 1;
        let mut object = Map::new();
        object.insert("v".into(), 1.into());
        object.insert("t".into(), nanoseconds.into());
        object.insert("seq".into(), self.seq.into());
        object.insert("ev".into(), ev.into());
        if let Value::Object(fields) = fields {
            object.extend(fields);
        }
        // A Vec takes everything.
        let _ = writeln!(self.buffer, "{}", Value::Object(object));
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = raw::write_all(rustix::stdio::stdout(), &self.buffer);
        self.buffer.clear();
        written
    }
}

/// What an `end` event says beside who ended; asked for once per command.
pub(crate) type EndFields = Box<dyn FnMut(&Ended) -> Value + Send>;

/// The printer's lines as `out` events, and each command's end.
pub(crate) struct JsonSink {
    journal: Journal,
    host: String,
    /// Received by each command.
    bytes: Vec<u64>,
    end_fields: EndFields,
}

impl JsonSink {
    pub fn new(journal: Journal, host: &str, commands: usize, end_fields: EndFields) -> JsonSink {
        JsonSink { journal, host: host.to_owned(), bytes: vec![0; commands], end_fields }
    }
}

impl Sink for JsonSink {
    fn lines(&mut self, batch: &Batch) -> io::Result<()> {
        if let Some(bytes) = self.bytes.get_mut(batch.number()) {
            *bytes += batch.as_bytes().len() as u64;
        }
        let arrived = self.journal.clock.nanoseconds(batch.arrived());
        let mut state = self.journal.lock();
        for piece in batch.lines() {
            let (key, text) = text_of(piece.bytes);
            let fields = json!({
                "host": self.host,
                "cmd": batch.number() + 1,
                "stream": batch.stream().to_string(),
                key: text,
                "eol": piece.end == LineEnd::Newline,
            });
            state.add(arrived, "out", fields);
            if state.buffer.len() >= BLOCK {
                state.flush()?;
            }
        }
        Ok(())
    }

    fn ended(&mut self, ended: &Ended) -> io::Result<()> {
        let mut fields = json!({ "host": self.host, "cmd": ended.number + 1 });
        if let (Value::Object(fields), Value::Object(more)) = (&mut fields, (self.end_fields)(ended)) {
            fields.extend(more);
            let bytes = self.bytes.get(ended.number).copied().unwrap_or(0);
            fields.insert("bytes".into(), bytes.into());
        }
        self.journal.event("end", fields)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.journal.lock().flush()
    }
}

/// Text as it is, other bytes in base64: both can be turned back into exactly what came.
fn text_of(bytes: &[u8]) -> (&'static str, String) {
    match std::str::from_utf8(bytes) {
        Ok(text) => ("line", text.to_owned()),
        Err(_) => ("b64", STANDARD.encode(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text_and_other_bytes_become_base64() {
        assert_eq!(text_of("é\u{1b}\0".as_bytes()), ("line", "é\u{1b}\0".to_owned()));
        assert_eq!(text_of(b"\xff\n"), ("b64", "/wo=".to_owned()));
    }

    #[test]
    fn times_before_the_start_are_dates_too() {
        let clock = Clock::now();
        let earlier = clock.instant.checked_sub(Duration::from_millis(5)).unwrap();
        assert_eq!(clock.nanoseconds(clock.instant) - clock.nanoseconds(earlier), 5_000_000);
    }
}
