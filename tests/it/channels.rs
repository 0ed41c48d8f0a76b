//! Channels over one connection: independence, windows, limits, endings, leftovers.

/// How a command ends, and what a connection's end does to it.
mod endings;
/// Everything given up in every order, from every thread.
mod giving_up;
/// Nobody waits for somebody else.
mod independence;
/// 1,000 commands later nothing is left, and an idle connection costs nothing.
mod leftovers;
/// More commands than the server allows sessions.
mod limits;
/// Peers that fall silent, links that break, links that are slow.
mod links;
/// What arrives in which order, and when.
mod order;
/// The server exchanges keys while data flows, and while none does.
mod rekeying;
/// The channel that is opened in advance.
mod spare;
/// What goes up: input, and its end.
mod stdin;
/// What comes down while nobody reads it, and how much.
mod windows;

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;
use threadline::{Child, ChildStdin, ChildStdout, Client, ClientBuilder, Error};

use crate::connect::PATIENCE;
use crate::rogue::Rogue;
use crate::util::within;

/// The error of ours that a read or write carries.
#[track_caller]
fn own(error: &std::io::Error) -> Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    inner.unwrap_or_else(|| panic!("not an error of ours: {error}")).clone()
}

/// Runs all jobs at once, a thread each, and gives back what they return, in their order.
#[track_caller]
fn at_once<T: Send + 'static>(jobs: impl IntoIterator<Item = impl FnOnce() -> T + Send + 'static>) -> Vec<T> {
    let threads: Vec<_> = jobs.into_iter().map(thread::spawn).collect();
    within(PATIENCE, move || {
        let ended = threads.into_iter().map(thread::JoinHandle::join);
        ended.map(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// Does it on a thread of its own; what it gave can be waited for.
fn meanwhile<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> Meanwhile<T> {
    let (sender, receiver) = mpsc::channel();
    // The receiver is gone only when the test has failed already.
    thread::spawn(move || drop(sender.send(job())));
    Meanwhile { receiver }
}

struct Meanwhile<T> {
    receiver: mpsc::Receiver<T>,
}

impl<T> Meanwhile<T> {
    /// What the job gave.
    #[track_caller]
    fn wait(self) -> T {
        self.receiver.recv_timeout(PATIENCE).expect("it ends, and without a panic")
    }

    /// The job is not done, and is not for a moment more.
    #[track_caller]
    fn still_waits(&self) {
        let early = self.receiver.recv_timeout(Duration::from_millis(100));
        assert!(matches!(early, Err(mpsc::RecvTimeoutError::Timeout)), "it is over");
    }
}

/// A remote `cat` that one line at a time goes through.
struct Echo {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    child: Child,
}

impl Echo {
    fn on(client: &Client) -> Echo {
        let mut child = client.exec_command("cat").unwrap();
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Echo { stdin, stdout: BufReader::new(stdout), child }
    }

    /// Sends lines and waits for each before the next.
    #[track_caller]
    fn rounds(&mut self, count: usize) {
        let mut line = String::new();
        for round in 0..count {
            self.stdin.write_all(format!("round {round}\n").as_bytes()).unwrap();
            line.clear();
            self.stdout.read_line(&mut line).unwrap();
            assert_eq!(line, format!("round {round}\n"));
        }
    }

    /// The command has not noticed anything and ends well.
    #[track_caller]
    fn ends_well(mut self) {
        self.rounds(1);
        drop(self.stdin);
        let mut rest = Vec::new();
        self.stdout.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
        assert!(self.child.wait().unwrap().success());
    }
}

/// A builder for the misbehaving server, and the directory of its known hosts.
fn builder_for(server: &Rogue) -> (ClientBuilder, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let (known_hosts, key) = (directory.path().join("known_hosts"), directory.path().join("no_key"));
    std::fs::write(&known_hosts, server.known_hosts_line()).unwrap();
    let builder = Client::builder("127.0.0.1").port(server.port()).user("tester").password("any").agent(false);
    (builder.identity(key).known_hosts(known_hosts), directory)
}

/// A connection to the misbehaving server.
#[track_caller]
fn client_of(server: &Rogue) -> Client {
    let (builder, _directory) = builder_for(server);
    builder.connect().unwrap()
}
