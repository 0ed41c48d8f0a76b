//! `-W`: stdin and stdout, through the server, to one place; what ssh's ProxyCommand needs.

use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use threadline::{ChannelStream, Client, Endpoint, Error};

use super::{describe, failed, GOODBYE, LIKE_SSH};
use crate::connect::{self, NotConnected};
use crate::interrupt;
use crate::output::raw;
use crate::report::Failure;

/// Moved at once: as much as an SSH packet carries.
const CHUNK: usize = 32 * 1024;

/// How often to look whether our stdin has ended, when nothing else is left to wait for: its reader cannot be interrupted,
/// and the connection may be lost meanwhile.
const GLANCE: Duration = Duration::from_millis(20);

/// Carries both directions to their ends. A signal ends us at once: there is nothing to tidy up but the connection.
pub(super) fn run(plan: connect::Plan, target: &Endpoint) -> Result<u8, Failure> {
    let remote = |error: &Error| Failure::new(describe(error), LIKE_SSH);
    let client = connect::connect(&plan).map_err(|e| match e {
        NotConnected::Local(failure) => failure,
        NotConnected::Remote(error) => remote(&error),
    })?;
    let stream = open(&client, target).map_err(|e| remote(&e))?;
    let upwards = stream.try_clone().map_err(|e| failed("share the stream", &e))?;
    let upwards = thread::Builder::new().name("tl:stdin".into()).spawn(move || send_stdin(&upwards));
    let upwards = upwards.map_err(|e| failed("start a thread", &e))?;

    match receive(&stream) {
        Ok(()) => {}
        Err(Ended::Ours(e)) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(interrupt::end_by_broken_pipe()),
        Err(Ended::Ours(e)) => return Err(failed("write to stdout", &e)),
        Err(Ended::Theirs(e)) => return Err(remote(&e)),
    }
    // The other side has said all, and may still listen. Nobody waits for a person at a terminal to end their part.
    if !io::stdin().is_terminal() {
        end_stdout();
        while !upwards.is_finished() && client.lost().is_none() {
            thread::sleep(GLANCE);
        }
    }
    if let Some(error) = client.lost() {
        return Err(remote(&error));
    }
    drop(stream);
    if let Err(e) = client.close(GOODBYE) {
        return Err(remote(&e));
    }
    Ok(0)
}

fn open(client: &Client, target: &Endpoint) -> threadline::Result<ChannelStream> {
    match target.path() {
        Some(path) => client.unix_connect(path),
        None => client.tcp_connect(&target.to_string()),
    }
}

/// Sends our stdin, and its end.
fn send_stdin(mut to: &ChannelStream) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match raw::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if let Err(e) = to.write_all(&buffer[..count]) {
                    log::debug!("the other side takes no more: {e}");
                    return;
                }
            }
            Err(e) => {
                log::warn!("cannot read stdin: {e}; the other side sees its end");
                break;
            }
        }
    }
    // Never fails.
    let _ = to.shutdown(Shutdown::Write);
}

/// Why nothing more is received.
enum Ended {
    Ours(io::Error),
    Theirs(Error),
}

fn receive(mut from: &ChannelStream) -> Result<(), Ended> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => raw::write_all(rustix::stdio::stdout(), &buffer[..count]).map_err(Ended::Ours)?,
            Err(e) => {
                let error = e.downcast::<Error>();
                return Err(Ended::Theirs(
                    error.unwrap_or_else(|e| Error::Internal(format!("a stream gave a foreign error: {e}"))),
                ));
            }
        }
    }
}

/// Whoever reads our stdout sees its end, while our stdin is still read.
fn end_stdout() {
    // One socket for both, as some parents give us: its other direction goes on.
    let _ = rustix::net::shutdown(rustix::stdio::stdout(), rustix::net::Shutdown::Write);
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null");
    let closed = null.and_then(|null| Ok(rustix::stdio::dup2_stdout(null)?));
    if let Err(e) = closed {
        log::warn!("cannot end stdout: {e}; its reader sees the end when we end");
    }
}
