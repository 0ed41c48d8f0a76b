//! Blocking SSH with threads: one connection, many channels, one OS thread per channel, and nobody waits for somebody
//! else.
//!
//! Three kinds of readers come here, and start in three places:
//!
//! * From **paramiko** and its tutorial: [connecting](#connecting), then [two commands at
//!   once](#two-commands-at-once-a-thread-each). The names are paramiko's where its programs use them; the guide
//!   `docs/python-to-rust.md` sets those programs beside their Rust.
//! * From **`std::process`**: [commands](#commands), then [stdin](#stdin). [`Command`], [`Child`], [`Output`] and
//!   [`ExitStatus`] are std's words with std's meaning.
//! * With a **program that runs for months**: [timeouts](#timeouts), [endings and errors](#endings-and-errors),
//!   [threads and memory](#threads-and-memory).
//!
//! # Connecting
//!
//! ```no_run
//! # fn main() -> threadline::Result<()> {
//! use threadline::Client;
//!
//! let client = Client::connect("alice@web1:2222")?;
//! println!("{} encrypts with {}", client.host(), client.algorithms().cipher_in);
//! # Ok(())
//! # }
//! ```
//!
//! A target is `host`, `user@host`, `user@host:port`, `[v6]:port` or `ssh://user@host:port`. Without more words the
//! local user's name is taken, port 22, the keys of the agent and `~/.ssh/id_ed25519`, `id_ecdsa` and `id_rsa`. What
//! else there is to say, [`Client::builder`] takes:
//!
//! ```no_run
//! # fn ask_for_password() -> String { String::new() }
//! # fn main() -> threadline::Result<()> {
//! use std::time::Duration;
//! use threadline::Client;
//!
//! let client = Client::builder("web1")
//!     .user("alice")
//!     .identity("~/.ssh/id_deploy")
//!     .password(ask_for_password()) // tried when the key is not enough
//!     .timeout(Duration::from_secs(15)) // for all of connect
//!     .connect()?;
//! # Ok(())
//! # }
//! ```
//!
//! A [`Client`] is cheap to clone, and all clones share one connection. Give each thread its own.
//!
//! # Host keys
//!
//! A server proves that it holds a key; whether that is the key of the host you meant, `~/.ssh/known_hosts` and
//! `/etc/ssh/ssh_known_hosts` say. A host that is not in there is refused, and the error shows its fingerprint. A policy
//! decides otherwise, [`AutoAddPolicy`], [`WarningPolicy`] or one of your own:
//!
//! ```no_run
//! # fn main() -> threadline::Result<()> {
//! use threadline::{Client, HostKey, HostName, MissingHostKeyPolicy, Verdict};
//!
//! struct OurNetwork;
//!
//! impl MissingHostKeyPolicy for OurNetwork {
//!     fn missing_host_key(&self, host: &HostName, _key: &HostKey) -> Verdict {
//!         if host.host().ends_with(".test") {
//!             Verdict::AcceptAndRemember
//!         } else {
//!             Verdict::Reject
//!         }
//!     }
//! }
//!
//! let client = Client::builder("alice@web1.test").missing_host_key_policy(OurNetwork).connect()?;
//! # Ok(())
//! # }
//! ```
//!
//! No policy is asked about a host whose key has *changed*: it is refused, always. The tutorial's policy that allows
//! anything is `examples/allow_anything.rs`.
//!
//! # Commands
//!
//! ```no_run
//! # fn main() -> threadline::Result<()> {
//! # let client = threadline::Client::connect("alice@web1")?;
//! // Text for the remote shell, as paramiko has it.
//! let out = client.exec_command("uname; uptime")?.output()?;
//! print!("{}", String::from_utf8_lossy(&out.stdout));
//!
//! // A program and its arguments, which arrive as they are. Use it whenever an argument comes from elsewhere.
//! let found = client.command("grep").args(["-c", "it's"]).arg("/var/log/my app.log").output()?;
//!
//! // The remote shell again, with settings.
//! let status = client.sh("make && make install").current_dir("/srv/app").env_inline("LANG", "C").status()?;
//! if !status.success() {
//!     eprintln!("install: {status}");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `output` collects, `status` only waits, [`spawn`](Command::spawn) gives a [`Child`] whose streams are [`Read`] and
//! [`Write`]. What a command prints are bytes; nothing here takes them for UTF-8.
//!
//! # Two commands at once, a thread each
//!
//! Each command has a channel of its own on the one connection. A thread that waits for one holds up no other:
//!
//! ```no_run
//! use std::io::{self, BufRead};
//! use std::thread;
//! use threadline::Client;
//!
//! fn read_until_eof(stream: impl BufRead) -> io::Result<()> {
//!     for line in stream.lines() {
//!         println!("{}", line?.trim());
//!     }
//!     Ok(())
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect("alice@web1")?;
//! let out1 = client.exec_command("echo One;sleep 2;echo Two;sleep 1;echo Three")?.stdout.expect("a pipe");
//! let out2 = client.exec_command("echo A;sleep 1;echo B;sleep 2;echo C")?.stdout.expect("a pipe");
//! let thread1 = thread::spawn(move || read_until_eof(out1));
//! let thread2 = thread::spawn(move || read_until_eof(out2));
//! thread1.join().expect("no panic")?;
//! thread2.join().expect("no panic")?;
//! # Ok(())
//! # }
//! ```
//!
//! It prints One and A, B, Two, Three and C, each when it is written.
//!
//! # Lines and the printer
//!
//! Many commands and one terminal: a [`Printer`] reads each source on a thread of its own and writes whole lines, with
//! labels, from one thread.
//!
//! ```no_run
//! # fn main() -> threadline::Result<()> {
//! # let client = threadline::Client::connect("alice@web1")?;
//! use threadline::Printer;
//!
//! let printer = Printer::stdout();
//! printer.follow("disk", client.exec_command("iostat 1 5")?)?;
//! printer.follow("memory", client.exec_command("vmstat 1 5")?)?;
//! for source in printer.join()?.sources {
//!     eprintln!("{}: {:?}", source.label, source.ending);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! To do something else with the lines, [`Child::lines`] gives those of both streams in the order they arrived:
//!
//! ```no_run
//! # fn main() -> threadline::Result<()> {
//! # let client = threadline::Client::connect("alice@web1")?;
//! let mut lines = client.sh("make 2>&1").spawn()?.lines();
//! for line in &mut lines {
//!     let line = line?;
//!     println!("{} {:?} {}", line.stream, line.arrived.elapsed(), line.text());
//! }
//! let status = lines.into_child().wait()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Stdin
//!
//! [`exec_command`](Client::exec_command) gives a pipe, as paramiko does; a [`Command`] has no input unless it is asked
//! for. Dropping [`ChildStdin`] is the end of the input.
//!
//! ```no_run
//! # use std::io::{Read, Write};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let client = threadline::Client::connect("alice@web1")?;
//! use threadline::Stdio;
//!
//! let mut child = client.sh("sort -u").stdin(Stdio::piped()).spawn()?;
//! let mut stdin = child.stdin.take().expect("a pipe");
//! stdin.write_all(b"pear\napple\npear\n")?;
//! drop(stdin);
//! let sorted = child.output()?.stdout;
//! assert_eq!(sorted, b"apple\npear\n");
//! # Ok(())
//! # }
//! ```
//!
//! When much goes in *and* comes out, write on one thread and read on another, as with a local pipe
//! (`examples/feed_stdin.rs`). A command that ends before it has read all gives the writer
//! [`BrokenPipe`](std::io::ErrorKind::BrokenPipe), and nobody else anything. [`ChildStdin::finish`] says when all of it
//! has gone out.
//!
//! # A shell
//!
//! [`invoke_shell`](Client::invoke_shell) is a login shell on a pseudo-terminal, one that lives on between commands.
//! [`run`](Shell::run) gives each its output and its status, whatever the shell's prompt looks like:
//!
//! ```no_run
//! # fn main() -> threadline::Result<()> {
//! # let client = threadline::Client::connect("alice@web1")?;
//! let mut shell = client.invoke_shell()?;
//! shell.run("cd /srv/app && . ./settings")?;
//! let tested = shell.run("make test")?;
//! println!("{}: {}", tested.status, String::from_utf8_lossy(&tested.stdout));
//! # Ok(())
//! # }
//! ```
//!
//! A program that asks questions is driven with [`expect`](Shell::expect), passwords are given by a [`Responder`],
//! devices without a Unix shell have a [`Profile`], and [`interact`](Shell::interact) hands the shell to whoever sits at
//! the local terminal:
//!
//! ```no_run
//! # fn ask_for_password() -> String { String::new() }
//! # fn main() -> threadline::Result<()> {
//! # let client = threadline::Client::connect("alice@web1")?;
//! use std::time::Duration;
//! use threadline::Responder;
//!
//! let mut dialogue = client.sh("ftp mirror").spawn_shell()?;
//! dialogue.respond(Responder::secret("Password:", ask_for_password()));
//! dialogue.expect("Name", Duration::from_secs(10))?;
//! dialogue.send_line("alice")?;
//! dialogue.expect("ftp> ", Duration::from_secs(10))?;
//! # Ok(())
//! # }
//! ```
//!
//! It echoes what is typed and prints prompts; two threads may have its two ends ([`split`](Shell::split)):
//!
//! ```no_run
//! # use std::io::{self, Write};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let client = threadline::Client::connect("alice@web1")?;
//! let (mut stdin, mut stdout) = client.invoke_shell()?.split();
//! let screen = std::thread::spawn(move || io::copy(&mut stdout, &mut io::stdout()));
//! stdin.write_all(b"echo Hello, world\rexit\r")?;
//! screen.join().expect("no panic")?;
//! # Ok(())
//! # }
//! ```
//!
//! # Tunnels
//!
//! The server connects where only it can, and what comes is a stream with the ways of a
//! [`TcpStream`](std::net::TcpStream); an HTTP client or a database driver that takes a [`Read`] and [`Write`] works over
//! it (`examples/http_over_ssh.rs`). A forward does so for other programs, ssh's `-L`, `-R` and `-D`:
//!
//! ```no_run
//! # use std::io::{Read, Write};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let client = threadline::Client::connect("alice@bastion")?;
//! let mut stream = client.tcp_connect("intranet:80")?;
//! stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
//! let mut page = Vec::new();
//! stream.read_to_end(&mut page)?;
//!
//! let database = client.forward_local("127.0.0.1:0", "db:5432")?;
//! println!("psql -h 127.0.0.1 -p {}", database.local_addr().expect("a TCP port").port());
//! let proxy = client.forward_dynamic("127.0.0.1:1080")?;
//! let published = client.forward_remote("127.0.0.1:8080", "localhost:3000")?;
//! println!("{:?}", published.counters());
//! # drop(proxy);
//! # Ok(())
//! # }
//! ```
//!
//! Dropping a [`Forward`] ends it. It needs no thread: each connection is carried by the one that the [`Client`] has, and
//! a slow or silent one holds up no other. [`Client::listen_remote`] accepts in your program what connects at the server;
//! [`Client::open_channel`] and [`Client::request`] reach what has no name here. X11 is not forwarded.
//!
//! # Timeouts
//!
//! Getting connected has limits by default: 10 s each to resolve and to connect, 20 s for the key exchange, 60 s to log
//! in. A peer that vanishes is noticed after three probes, 15 s apart ([`keepalive`](ClientBuilder::keepalive)). A
//! command has no limit unless you set one:
//!
//! ```no_run
//! # fn main() -> threadline::Result<()> {
//! # let client = threadline::Client::connect("alice@web1")?;
//! use std::time::Duration;
//! use threadline::Error;
//!
//! let backup = client.sh("pg_dump shop | gzip | wc -c").timeout(Duration::from_secs(600));
//! match backup.idle_timeout(Duration::from_secs(60)).output() {
//!     Ok(out) => println!("{} bytes", String::from_utf8_lossy(&out.stdout).trim()),
//!     Err(Error::Timeout { phase, received: Some(received), .. }) => {
//!         eprintln!("too slow while {phase}; it had said: {}", String::from_utf8_lossy(&received.stderr));
//!     }
//!     Err(error) => return Err(error),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! [`ClientBuilder::command_timeout`] sets it for all; [`Child::wait_timeout`], [`ChildStdout::set_read_timeout`] and
//! [`ChildStdin::set_write_timeout`] are for single waits. A [`Control`] ends a wait from another thread.
//!
//! # Endings and errors
//!
//! A command ends with [`ExitStatus::Code`], by [`ExitStatus::Signal`], or it is
//! [unknown](ExitStatus::Unknown) how. Success is a status of 0 that really arrived.
//!
//! Dropping never blocks. A dropped [`Child`] closes its channel in the background, and [`OnDrop`] says what becomes of
//! the remote command. To end it and all its children, start it with
//! [`process_group(true)`](Command::process_group) and call [`Child::kill`]. A program that must know that everything
//! it wrote has gone out before it ends calls [`Client::close`].
//!
//! There is one [`Error`]. It says what was tried, on what, and what the peer said; [`phase`](Error::phase) names the
//! step and [`hint`](Error::hint) what to do next:
//!
//! ```no_run
//! use threadline::{Client, Error};
//!
//! match Client::connect("alice@web1") {
//!     Ok(client) => println!("{:?}", client.address()),
//!     Err(Error::Auth(error)) => {
//!         for attempt in &error.attempts {
//!             eprintln!("{} {}: {}", attempt.method, attempt.with, attempt.outcome);
//!         }
//!     }
//!     Err(error) => {
//!         eprintln!("{error}");
//!         error.hint().into_iter().for_each(|hint| eprintln!("{hint}"));
//!     }
//! }
//! ```
//!
//! When a connection is lost, everybody who waits on it gets the same error, after what had arrived. It does not come
//! back by itself: connect again. What a server says is not to be trusted; it is escaped in errors and logs.
//!
//! # Threads and memory
//!
//! Each connection has one thread of the library's own. It alone talks to libssh2 and the socket; your threads exchange
//! bytes with it and hold nothing while they wait. So every method may be called from any thread, and a silent or
//! stalled command holds up only who waits for it.
//!
//! Nothing grows without bound. A command whose output nobody reads is held back by the server after 2 MiB
//! ([`window`](ClientBuilder::window)), as a local one is by a full pipe. stdout and stderr share that window, so while
//! you wait for one the other is taken in, up to 64 MiB ([`unread_limit`](ClientBuilder::unread_limit)); past that you
//! get [`Error::UnreadStream`] and not a deadlock. One connection holds at most 256 MiB unread
//! ([`memory_limit`](ClientBuilder::memory_limit)).
//!
//! A server allows so many sessions on a connection (sshd's MaxSessions, 10 by default). A command that finds none free
//! waits for one of yours to end, unless [`AtLimit`] says otherwise.
//!
//! # Ciphers
//!
//! AES-GCM is offered first where the processor has instructions for AES, chacha20-poly1305 elsewhere; AES-CBC only when
//! [named](ClientBuilder::ciphers). With the feature `fast-ciphers` a packet is encrypted by one call of OpenSSL's,
//! where libssh2 makes one for every 16 bytes. [`ciphers`] looks at what is in place and says whose code is behind each
//! cipher, [`Client::algorithms`] says it of a connection:
//!
//! ```
//! use threadline::Implementation;
//!
//! for cipher in threadline::ciphers().iter().filter(|cipher| cipher.rank.is_some()) {
//!     println!("{} by {}", cipher.name, cipher.implementation);
//!     if cfg!(feature = "fast-ciphers") {
//!         assert_eq!(cipher.implementation, Implementation::Threadline);
//!     }
//! }
//! ```
//!
//! The feature stores methods in libssh2's table of ciphers, once, before the first connection. That table belongs to
//! the process: another user of libssh2 in it, such as `git2` with ssh, gets them too, from then on, and at the next key
//! exchange of a session that it has already. They do what libssh2's own do. A program that does not want this takes
//! `default-features = false` and the features that it wants, without this one. Then one thing is still stored, a guard
//! around libssh2's own functions, against packets whose length would end the whole process.
//!
//! # Your development builds
//!
//! libssh2 is C, and cargo compiles it with your profile. These two lines in your `Cargo.toml` keep your debug builds
//! from crawling:
//!
//! ```toml
//! [profile.dev.package.libssh2-sys]
//! opt-level = 3
//! ```
//!
//! # Features
//!
//! | feature | default | what it is for |
//! |---|---|---|
//! | `cli` | yes | what only the `threadline` tool needs: a library takes `default-features = false, features = ["fast-ciphers"]` |
//! | `fast-ciphers` | yes | encrypts a packet a call: [ciphers](#ciphers), and what it does to another user of libssh2 |
//! | `vendored-openssl` | no | builds OpenSSL from source instead of linking the system's |
//!
//! What happens is told to the [`log`] crate: connections at info, channels and their stages at debug. Never a secret.
//!
//! [`Read`]: std::io::Read
//! [`Write`]: std::io::Write
#![deny(missing_docs)]

#[cfg(windows)]
compile_error!("threadline needs a Unix: it waits with poll and talks to agents over Unix sockets");

mod about;
mod channel;
mod child;
mod client;
mod command;
mod connect;
mod connection;
mod error;
mod exit_status;
mod forward;
mod kill;
mod lines;
mod printer;
mod quote;
mod shell;
mod stream;
mod transport;

pub use about::{
    agent_keys, check_seam, ciphers, known_hosts_files, processor_has_aes, versions, AgentKey, CipherInfo, Versions,
};
pub use channel::{ChildStderr, ChildStdin, ChildStdout, Control, OnDrop};
pub use child::{Child, Line, Output, OutputLines};
pub use client::{Client, ClientBuilder};
pub use command::{Command, ExitPolicy, Stdio};
pub use connect::handshake::Algorithms;
pub use connect::{
    AutoAddPolicy, HostKey, HostName, MissingHostKeyPolicy, RejectPolicy, Target, Verdict, WarningPolicy,
};
pub use error::{
    AuthAttempt, AuthError, Error, HostKeyError, Phase, Received, Result, ShellError, ShellFailure, Stream,
};
pub use exit_status::{ExitSignal, ExitStatus};
pub use forward::{
    Endpoint, Forward, ForwardBuilder, ForwardCounters, ForwardEvent, Incoming, RemoteListener, ToEndpoint,
};
pub use kill::KillOutcome;
pub use lines::{LineBuffer, LineEnd, Lines, Piece, Pieces, DEFAULT_LINE_LIMIT};
pub use printer::{
    Batch, ChunkSource, Ended, Ending, FromReader, OutputEnd, Printed, Printer, PrinterBuilder, Sink, Stopper, When,
    BATCHES_PER_SOURCE, DEFAULT_PATIENCE, DEFAULT_QUEUE,
};
pub use shell::{Interacted, Interaction, Match, Pattern, Patterns, Profile, Pty, Responder, Shell, TerminalMode};
pub use stream::ChannelStream;
pub use transport::cipher::Implementation;
#[cfg(feature = "_faults")]
#[doc(hidden)]
pub use transport::fault::Fault;
pub use transport::message::{AtLimit, PtySize};

/// The bodies of the fuzz targets. Not part of the public API.
#[doc(hidden)]
#[cfg(feature = "_faults")]
pub mod fuzzing {
    pub use crate::connection::fuzzing::{connection, wire};
    pub use crate::forward::socks::fuzz as socks;
    pub use crate::transport::cipher::fuzzing::ciphers;
}

/// The documents' programs, compiled with the documentation's own.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../README.md")]
    mod readme {}
    #[doc = include_str!("../docs/python-to-rust.md")]
    mod python_to_rust {}
}
