//! A server that works, but for what a test changes about it: `conn.serve(&mut Behaviour::new().refuse("pty-req"))`.

use std::collections::HashMap;
use std::fmt;
use std::io;

use super::channel::{Input, Open, Request};
use super::conn::{is_gone, ServerConn};
use super::wire::{invalid, message, msg, Reader};

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Success,
    Failure,
    /// No answer at all, for ever.
    Never,
}

/// What becomes of a CHANNEL_OPEN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenAnswer {
    Confirm,
    /// A reason of RFC 4254 §5.1 and a text.
    Refuse(u32, &'static str),
    /// No answer at all, for ever.
    Never,
}

type OnOpen<'a> = Box<dyn FnMut(&Open) -> OpenAnswer + 'a>;
type OnExec<'a> = Box<dyn FnMut(&mut ServerConn, u32, &str) -> io::Result<()> + 'a>;

/// How `serve` answers. What is not said otherwise is what a good server does.
pub struct Behaviour<'a> {
    on_open: OnOpen<'a>,
    on_exec: OnExec<'a>,
    answers: HashMap<&'static str, Answer>,
    rekey_every: Option<u64>,
}

impl fmt::Debug for Behaviour<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Behaviour")
            .field("answers", &self.answers)
            .field("rekey_every", &self.rekey_every)
            .finish_non_exhaustive()
    }
}

impl Default for Behaviour<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Behaviour<'a> {
    /// A good server: confirms sessions, grants their requests and runs the commands of `run`.
    pub fn new() -> Self {
        Self {
            on_open: Box::new(|open| match open.kind.as_str() {
                "session" => OpenAnswer::Confirm,
                _ => OpenAnswer::Refuse(super::channel::reason::UNKNOWN_CHANNEL_TYPE, "only sessions here"),
            }),
            on_exec: Box::new(run),
            answers: HashMap::from([
                ("pty-req", Answer::Success),
                ("env", Answer::Success),
                ("shell", Answer::Success),
                ("exec", Answer::Success),
                ("signal", Answer::Success),
                ("window-change", Answer::Success),
            ]),
            rekey_every: None,
        }
    }

    /// Decides about every CHANNEL_OPEN.
    #[must_use]
    pub fn on_open(self, decide: impl FnMut(&Open) -> OpenAnswer + 'a) -> Self {
        Self { on_open: Box::new(decide), ..self }
    }

    /// Runs every command whose exec succeeded. A shell is the command "cat".
    #[must_use]
    pub fn on_exec(self, run: impl FnMut(&mut ServerConn, u32, &str) -> io::Result<()> + 'a) -> Self {
        Self { on_exec: Box::new(run), ..self }
    }

    /// Answers channel requests and global requests of this kind so. Those that are not named fail.
    #[must_use]
    pub fn answer(mut self, kind: &'static str, answer: Answer) -> Self {
        self.answers.insert(kind, answer);
        self
    }

    /// Refuses channel requests and global requests of this kind.
    #[must_use]
    pub fn refuse(self, kind: &'static str) -> Self {
        self.answer(kind, Answer::Failure)
    }

    /// Begins a key exchange after about so many bytes of channel data, both ways counted.
    #[must_use]
    pub fn rekey_every(self, bytes: u64) -> Self {
        Self { rekey_every: Some(bytes), ..self }
    }

    fn answer_to(&self, kind: &str) -> Answer {
        self.answers.get(kind).copied().unwrap_or(Answer::Failure)
    }
}

impl ServerConn {
    /// Serves the client until it goes away (`Ok`), is silent for `deadline`, or breaks the protocol.
    pub fn serve(&mut self, behaviour: &mut Behaviour<'_>) -> io::Result<()> {
        loop {
            match self.serve_one(behaviour) {
                Ok(()) => {}
                Err(error) if is_gone(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for one message and does what it asks. For loops that do something else between messages.
    pub fn serve_one(&mut self, behaviour: &mut Behaviour<'_>) -> io::Result<()> {
        let payload = self.next()?;
        match payload[0] {
            msg::CHANNEL_OPEN => self.serve_open(&Open::parse(&payload)?, behaviour)?,
            msg::CHANNEL_REQUEST => self.serve_request(&Request::parse(&payload)?, behaviour)?,
            msg::CHANNEL_DATA => self.serve_data(&payload)?,
            msg::CHANNEL_WINDOW_ADJUST => self.adjust(&payload)?,
            msg::CHANNEL_EOF => self.serve_eof(recipient(&payload)?)?,
            msg::CHANNEL_CLOSE => self.serve_close(recipient(&payload)?)?,
            msg::GLOBAL_REQUEST => self.serve_global(&payload, behaviour)?,
            msg::PING => {
                let data = Reader::message(&payload, msg::PING)?.string()?;
                self.send(&message(msg::PONG).string(data).done())?;
            }
            number => return Err(invalid(format!("message {number} from the client, which nothing asked for"))),
        }
        match behaviour.rekey_every {
            Some(bytes) if self.traffic >= bytes => self.rekey(&self.offer.clone()),
            _ => Ok(()),
        }
    }

    fn serve_open(&mut self, open: &Open, behaviour: &mut Behaviour<'_>) -> io::Result<()> {
        match (behaviour.on_open)(open) {
            OpenAnswer::Confirm => self.confirm(open).map(|_| ()),
            OpenAnswer::Refuse(reason, text) => self.refuse_open(open, reason, text),
            OpenAnswer::Never => Ok(()),
        }
    }

    fn serve_request(&mut self, request: &Request, behaviour: &mut Behaviour<'_>) -> io::Result<()> {
        if self.channel(request.channel)?.closed {
            return Ok(());
        }
        match behaviour.answer_to(&request.kind) {
            Answer::Never => return Ok(()),
            Answer::Failure => return self.failure(request),
            Answer::Success => self.success(request)?,
        }
        let ran = match request.kind.as_str() {
            "exec" => (behaviour.on_exec)(self, request.channel, &request.text()?),
            "shell" => (behaviour.on_exec)(self, request.channel, "cat"),
            _ => Ok(()),
        };
        unless_closed(ran)
    }

    fn serve_data(&mut self, payload: &[u8]) -> io::Result<()> {
        let mut fields = Reader::message(payload, msg::CHANNEL_DATA)?;
        let (channel, bytes) = (fields.u32()?, fields.string()?);
        self.consume(channel, bytes.len())?;
        let state = self.channel_mut(channel)?;
        match &mut state.input {
            Input::Echo if !state.closed => unless_closed(self.data(channel, bytes))?,
            Input::Count(total) => *total += bytes.len() as u64,
            Input::Echo | Input::Discard | Input::Stall => {}
        }
        self.replenish(channel)
    }

    fn serve_eof(&mut self, channel: u32) -> io::Result<()> {
        let state = self.channel(channel)?;
        match state.input {
            _ if state.closed => Ok(()),
            Input::Echo => self.finish(channel, 0),
            Input::Count(total) => {
                unless_closed(self.data(channel, format!("{total}\n").as_bytes()))?;
                self.finish(channel, 0)
            }
            Input::Discard | Input::Stall => Ok(()),
        }
    }

    fn serve_close(&mut self, channel: u32) -> io::Result<()> {
        if !self.channel(channel)?.closed {
            self.close(channel)?;
        }
        self.channels.remove(&channel);
        Ok(())
    }

    fn serve_global(&mut self, payload: &[u8], behaviour: &Behaviour<'_>) -> io::Result<()> {
        let mut fields = Reader::message(payload, msg::GLOBAL_REQUEST)?;
        let (kind, want_reply) = (fields.text()?, fields.bool()?);
        match behaviour.answer_to(&kind) {
            _ if !want_reply => Ok(()),
            Answer::Success => self.send(&[msg::REQUEST_SUCCESS]),
            Answer::Failure => self.send(&[msg::REQUEST_FAILURE]),
            Answer::Never => Ok(()),
        }
    }

    /// What the client sends on this channel from now on.
    pub fn set_input(&mut self, channel: u32, input: Input) -> io::Result<()> {
        self.channel_mut(channel)?.input = input;
        Ok(())
    }
}

/// The commands of a good server:
///
/// * `cat`: what is sent comes back.
/// * `wc -c`: says how many bytes were sent.
/// * `head -c N /dev/zero`: N bytes.
/// * `echo TEXT`
/// * `exit N`, `true`, `false`
/// * `sleep`: never ends, and takes in nothing.
///
/// Anything else is "not found" on stderr, and status 127.
pub fn run(conn: &mut ServerConn, channel: u32, command: &str) -> io::Result<()> {
    let (name, argument) = command.split_once(' ').unwrap_or((command, ""));
    match name {
        "cat" => conn.set_input(channel, Input::Echo),
        "wc" => conn.set_input(channel, Input::Count(0)),
        "sleep" => conn.set_input(channel, Input::Stall),
        "head" => {
            let count = argument.split(' ').nth(1).and_then(|count| count.parse().ok()).unwrap_or(0);
            conn.data(channel, &vec![0; count])?;
            conn.finish(channel, 0)
        }
        "echo" => {
            conn.data(channel, format!("{argument}\n").as_bytes())?;
            conn.finish(channel, 0)
        }
        "true" => conn.finish(channel, 0),
        "false" => conn.finish(channel, 1),
        "exit" => conn.finish(channel, argument.parse().unwrap_or(2)),
        _ => {
            conn.stderr(channel, format!("{name}: not found\n").as_bytes())?;
            conn.finish(channel, 127)
        }
    }
}

fn recipient(payload: &[u8]) -> io::Result<u32> {
    Reader::new(&payload[1..]).u32()
}

/// A channel that the client closed before it had everything is not a fault.
fn unless_closed(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        outcome => outcome,
    }
}
