//! The clients written in Rust: ours, and plain blocking `ssh2` as its documentation shows it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::process;
use crate::sshd::HOST;
use crate::worker::Account;
use crate::Outcome;

/// Bytes asked for by one read and offered to one write, the same for all clients.
const BUFFER: usize = 256 * 1024;

/// What a client is asked to do; a task returns its seconds.
pub trait Client {
    /// Connects, runs `true`, and knows its exit status. Saying goodbye is not counted.
    fn login(&mut self, port: u16) -> Outcome<f64>;
    /// A connection for the tasks that follow.
    fn connect(&mut self, port: u16, cipher: Option<&str>) -> Outcome<f64>;
    /// `true`, so many times, one after the other.
    fn sequence(&mut self, n: usize) -> Outcome<f64>;
    /// `true`, so many times, all at once, a thread each.
    fn burst(&mut self, n: usize) -> Outcome<f64>;
    /// So many bytes in all, over so many channels at once, from the moment on when all commands are there.
    fn download(&mut self, bytes: u64, channels: u64) -> Outcome<f64>;
    /// So many bytes to the stdin of a command that is there, until its exit status is.
    fn upload(&mut self, bytes: u64) -> Outcome<f64>;
    /// So many bytes from this port of 127.0.0.1 over a connection that the server makes.
    fn forward(&mut self, port: u16, bytes: u64) -> Outcome<f64>;
    /// Listens here for each of these ports of 127.0.0.1, as the server sees them, and once more as a SOCKS proxy; the
    /// ports on this side, in that order.
    fn listen(&mut self, targets: &[u16]) -> Outcome<Vec<u16>>;
    /// How late the lines of n commands arrive, p50, p99 and the latest in seconds, besides; with `flood` beside a channel that nobody
    /// reads and one that never ends.
    fn tickers(&mut self, n: usize, ticks: usize, flood: bool) -> Outcome<(f64, Vec<f64>)>;
    /// Opens so many connections and keeps them.
    fn hold(&mut self, port: u16, n: usize) -> Outcome<()>;
}

/// threadline.
pub struct Ours {
    account: Account,
    client: Option<threadline::Client>,
    held: Vec<threadline::Client>,
    forwards: Vec<threadline::Forward>,
}

impl Ours {
    pub fn new(account: Account) -> Ours {
        Ours { account, client: None, held: Vec::new(), forwards: Vec::new() }
    }

    fn builder(&self, port: u16) -> threadline::ClientBuilder {
        threadline::Client::builder(HOST)
            .port(port)
            .user(&self.account.user)
            .identity(&self.account.identity)
            .agent(false)
            .known_hosts(self.account.dir.join(format!("known_hosts.{port}")))
    }

    fn client(&self) -> Outcome<threadline::Client> {
        Ok(self.client.clone().ok_or("not connected")?)
    }
}

impl Client for Ours {
    fn login(&mut self, port: u16) -> Outcome<f64> {
        let began = Instant::now();
        let client = self.builder(port).connect()?;
        run_true(&client)?;
        let took = began.elapsed();
        client.close(Duration::from_secs(5))?;
        Ok(took.as_secs_f64())
    }

    fn connect(&mut self, port: u16, cipher: Option<&str>) -> Outcome<f64> {
        let began = Instant::now();
        let builder = self.builder(port);
        let builder = match cipher {
            Some(cipher) => builder.ciphers([cipher]),
            None => builder,
        };
        self.client = Some(builder.connect()?);
        Ok(began.elapsed().as_secs_f64())
    }

    fn sequence(&mut self, n: usize) -> Outcome<f64> {
        let client = self.client()?;
        let began = Instant::now();
        (0..n).try_for_each(|_| run_true(&client))?;
        Ok(began.elapsed().as_secs_f64())
    }

    fn burst(&mut self, n: usize) -> Outcome<f64> {
        let client = self.client()?;
        at_once(vec![(); n], |()| run_true(&client))
    }

    fn download(&mut self, bytes: u64, channels: u64) -> Outcome<f64> {
        let client = self.client()?;
        let each = bytes / channels;
        let ready: Vec<_> = (0..channels).map(|_| start(&client, &zeros_when_told(each))).collect::<Outcome<_>>()?;
        at_once(ready, |(mut child, stdin, stdout)| {
            tell(stdin)?;
            expect_bytes(stdout, each)?;
            expect_success(&child.wait()?)
        })
    }

    fn upload(&mut self, bytes: u64) -> Outcome<f64> {
        let (mut child, stdin, _stdout) = start(&self.client()?, TAKE_ALL)?;
        let began = Instant::now();
        write_zeros(stdin, bytes)?;
        process::note_threads()?;
        expect_success(&child.wait()?)?;
        Ok(began.elapsed().as_secs_f64())
    }

    fn forward(&mut self, port: u16, bytes: u64) -> Outcome<f64> {
        let client = self.client()?;
        let began = Instant::now();
        let mut stream = client.tcp_connect(&format!("{HOST}:{port}"))?;
        tell(&mut stream)?;
        expect_bytes(stream, bytes)?;
        process::note_threads()?;
        Ok(began.elapsed().as_secs_f64())
    }

    fn listen(&mut self, targets: &[u16]) -> Outcome<Vec<u16>> {
        let client = self.client()?;
        let here = format!("{HOST}:0");
        let mut forwards = Vec::new();
        for target in targets {
            forwards.push(client.forward_local(&here, format!("{HOST}:{target}"))?);
        }
        forwards.push(client.forward_dynamic(&here)?);
        let ports = forwards.iter().map(|forward| Ok(forward.local_addr().ok_or("not a TCP port")?.port())).collect();
        self.forwards = forwards;
        ports
    }

    fn tickers(&mut self, n: usize, ticks: usize, flood: bool) -> Outcome<(f64, Vec<f64>)> {
        let client = self.client()?;
        let began = Instant::now();
        let (mut stalled, mut flooding) = (None, None);
        if flood {
            stalled = Some(client.exec_command("cat /dev/zero")?);
            let mut child = client.exec_command("cat /dev/zero")?;
            let stdout = child.stdout.take().ok_or("no stdout")?;
            let reader = thread::spawn(move || drop(read_all(stdout)));
            flooding = Some((child, reader));
        }
        // All are there before the first one ticks: starting them is not what is measured.
        let mut children = (0..n).map(|_| client.exec_command(ticker(ticks))).collect::<Result<Vec<_>, _>>()?;
        for child in &mut children {
            expect_ready(child.stdout.as_mut().ok_or("no stdout")?)?;
        }
        process::note_threads()?;
        let late = thread::scope(|scope| -> Outcome<Vec<f64>> {
            let follow = |mut child: threadline::Child| -> Outcome<Vec<f64>> {
                drop(child.stdin.take());
                let late = lateness(child.stdout.take().ok_or("no stdout")?)?;
                expect_success(&child.wait()?)?;
                Ok(late)
            };
            let threads: Vec<_> = children.into_iter().map(|child| scope.spawn(move || follow(child))).collect();
            let mut all = Vec::new();
            for thread in threads {
                all.extend(thread.join().map_err(|_| "a following thread panicked")??);
            }
            Ok(all)
        })?;
        drop(stalled);
        if let Some((mut child, reader)) = flooding {
            child.close();
            reader.join().map_err(|_| "the reading thread panicked")?;
        }
        if late.len() != n * ticks {
            return Err(format!("{} lines instead of {}", late.len(), n * ticks).into());
        }
        Ok((began.elapsed().as_secs_f64(), percentiles(late)))
    }

    fn hold(&mut self, port: u16, n: usize) -> Outcome<()> {
        for _ in 0..n {
            // A probe after 15 s of silence would fall into some runs and not into others.
            self.held.push(self.builder(port).no_keepalive().connect()?);
        }
        Ok(())
    }
}

/// A command that has said that it is there, and both its ends.
fn start(
    client: &threadline::Client,
    command: &str,
) -> Outcome<(threadline::Child, threadline::ChildStdin, threadline::ChildStdout)> {
    let mut child = client.exec_command(command)?;
    let stdin = child.stdin.take().ok_or("no stdin")?;
    let mut stdout = child.stdout.take().ok_or("no stdout")?;
    expect_ready(&mut stdout)?;
    Ok((child, stdin, stdout))
}

fn run_true(client: &threadline::Client) -> Outcome<()> {
    expect_success(&client.exec_command("true")?.output()?.status)
}

fn expect_success(status: &threadline::ExitStatus) -> Outcome<()> {
    if status.success() {
        return Ok(());
    }
    Err(format!("the command ended with {status}").into())
}

/// Plain `ssh2`, blocking: a session, a channel for each command. Threads share the session, as its documentation
/// allows; it is one lock.
pub struct Plain {
    account: Account,
    session: Option<ssh2::Session>,
    held: Vec<ssh2::Session>,
}

impl Plain {
    pub fn new(account: Account) -> Plain {
        Plain { account, session: None, held: Vec::new() }
    }

    fn open(&self, port: u16, cipher: Option<&str>) -> Outcome<ssh2::Session> {
        let stream = TcpStream::connect((HOST, port))?;
        stream.set_nodelay(true)?;
        let mut session = ssh2::Session::new()?;
        if let Some(cipher) = cipher {
            session.method_pref(ssh2::MethodType::CryptCs, cipher)?;
            session.method_pref(ssh2::MethodType::CryptSc, cipher)?;
        }
        session.set_tcp_stream(stream);
        session.handshake()?;
        let mut known = session.known_hosts()?;
        let file = self.account.dir.join(format!("known_hosts.{port}"));
        known.read_file(&file, ssh2::KnownHostFileKind::OpenSSH)?;
        let (key, _) = session.host_key().ok_or("no host key")?;
        if !matches!(known.check_port(HOST, port, key), ssh2::CheckResult::Match) {
            return Err("the host key is not the known one".into());
        }
        session.userauth_pubkey_file(&self.account.user, None, &self.account.identity, None)?;
        Ok(session)
    }

    fn session(&self) -> Outcome<ssh2::Session> {
        Ok(self.session.clone().ok_or("not connected")?)
    }
}

impl Client for Plain {
    fn login(&mut self, port: u16) -> Outcome<f64> {
        let began = Instant::now();
        let session = self.open(port, None)?;
        run_plain_true(&session)?;
        let took = began.elapsed();
        session.disconnect(None, "done", None)?;
        Ok(took.as_secs_f64())
    }

    fn connect(&mut self, port: u16, cipher: Option<&str>) -> Outcome<f64> {
        let began = Instant::now();
        self.session = Some(self.open(port, cipher)?);
        Ok(began.elapsed().as_secs_f64())
    }

    fn sequence(&mut self, n: usize) -> Outcome<f64> {
        let session = self.session()?;
        let began = Instant::now();
        (0..n).try_for_each(|_| run_plain_true(&session))?;
        Ok(began.elapsed().as_secs_f64())
    }

    fn burst(&mut self, n: usize) -> Outcome<f64> {
        let session = self.session()?;
        at_once(vec![(); n], |()| run_plain_true(&session))
    }

    fn download(&mut self, bytes: u64, channels: u64) -> Outcome<f64> {
        if channels != 1 {
            return Err("a thread that reads holds the session's lock: one channel at a time".into());
        }
        let mut channel = start_plain(&self.session()?, &zeros_when_told(bytes))?;
        let began = Instant::now();
        tell(&mut channel)?;
        expect_bytes(&mut channel, bytes)?;
        end(channel)?;
        process::note_threads()?;
        Ok(began.elapsed().as_secs_f64())
    }

    fn upload(&mut self, bytes: u64) -> Outcome<f64> {
        let mut channel = start_plain(&self.session()?, TAKE_ALL)?;
        let began = Instant::now();
        write_zeros(&mut channel, bytes)?;
        channel.send_eof()?;
        expect_bytes(&mut channel, 0)?;
        process::note_threads()?;
        end(channel)?;
        Ok(began.elapsed().as_secs_f64())
    }

    fn forward(&mut self, port: u16, bytes: u64) -> Outcome<f64> {
        let session = self.session()?;
        let began = Instant::now();
        let mut channel = session.channel_direct_tcpip(HOST, port, None)?;
        tell(&mut channel)?;
        expect_bytes(&mut channel, bytes)?;
        process::note_threads()?;
        let took = began.elapsed();
        channel.close()?;
        Ok(took.as_secs_f64())
    }

    fn listen(&mut self, _: &[u16]) -> Outcome<Vec<u16>> {
        Err("it has nothing that listens".into())
    }

    fn tickers(&mut self, _: usize, _: usize, _: bool) -> Outcome<(f64, Vec<f64>)> {
        Err("a thread that reads a silent channel holds the session's lock".into())
    }

    fn hold(&mut self, port: u16, n: usize) -> Outcome<()> {
        for _ in 0..n {
            self.held.push(self.open(port, None)?);
        }
        Ok(())
    }
}

fn start_plain(session: &ssh2::Session, command: &str) -> Outcome<ssh2::Channel> {
    let mut channel = session.channel_session()?;
    channel.exec(command)?;
    expect_ready(&mut channel)?;
    Ok(channel)
}

fn run_plain_true(session: &ssh2::Session) -> Outcome<()> {
    let mut channel = session.channel_session()?;
    channel.exec("true")?;
    expect_bytes(&mut channel, 0)?;
    end(channel)
}

fn end(mut channel: ssh2::Channel) -> Outcome<()> {
    channel.close()?;
    channel.wait_close()?;
    match channel.exit_status()? {
        0 => Ok(()),
        code => Err(format!("the command ended with exit code {code}").into()),
    }
}

/// Runs the same on each, a thread each, and waits for all.
fn at_once<T: Send>(all: Vec<T>, run: impl Fn(T) -> Outcome<()> + Sync) -> Outcome<f64> {
    let began = Instant::now();
    thread::scope(|scope| {
        let run = |one| {
            run(one)?;
            // While the others still run.
            process::note_threads()
        };
        let threads: Vec<_> = all.into_iter().map(|one| scope.spawn(move || run(one))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })?;
    Ok(began.elapsed().as_secs_f64())
}

/// What a command says first when its start is not what is measured.
pub const READY: &str = "ready\n";

/// A command that says that it is there and takes all it is given.
pub const TAKE_ALL: &str = "echo ready; exec cat >/dev/null";

/// A command that says that it is there, waits for a line, and then prints so many bytes.
pub fn zeros_when_told(bytes: u64) -> String {
    format!("echo ready; read line; exec head -c {bytes} /dev/zero")
}

fn expect_ready(mut from: impl Read) -> Outcome<()> {
    let mut said = [0; READY.len()];
    from.read_exact(&mut said)?;
    if said == READY.as_bytes() {
        return Ok(());
    }
    Err(format!("a command said {:?} first", String::from_utf8_lossy(&said)).into())
}

/// The line that a command waits for.
fn tell(mut to: impl Write) -> std::io::Result<()> {
    to.write_all(b"\n")
}

fn expect_bytes(from: impl Read, expected: u64) -> Outcome<()> {
    let got = read_all(from)?;
    if got == expected {
        return Ok(());
    }
    Err(format!("{got} bytes instead of {expected}").into())
}

fn read_all(mut from: impl Read) -> std::io::Result<u64> {
    let mut buffer = vec![0; BUFFER];
    let mut got = 0;
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(got),
            n => got += n as u64,
        }
    }
}

fn write_zeros(mut to: impl Write, bytes: u64) -> std::io::Result<()> {
    let zeros = vec![0; BUFFER];
    let mut left = bytes as usize;
    while left > 0 {
        let n = left.min(BUFFER);
        to.write_all(&zeros[..n])?;
        left -= n;
    }
    Ok(())
}

/// A command that says that it is there, waits for its stdin to end, and then prints the time ten times a second; each
/// begins at a moment of its own.
fn ticker(ticks: usize) -> String {
    let program = "$| = 1; print qq(ready\\n); <STDIN>; sleep rand 0.1; \
                   for (1 .. $ARGV[0]) { printf qq(%.6f\\n), time; sleep 0.1 }";
    format!("exec perl -MTime::HiRes=time,sleep -e '{program}' {ticks}")
}

/// How long after it was printed each line is here, in seconds: one machine, one clock.
fn lateness(from: impl Read) -> Outcome<Vec<f64>> {
    let mut late = Vec::new();
    for line in BufReader::new(from).lines() {
        let printed: f64 = line?.parse()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
        late.push(now - printed);
    }
    Ok(late)
}

/// p50, p99 and the most.
pub fn percentiles(mut late: Vec<f64>) -> Vec<f64> {
    late.sort_by(f64::total_cmp);
    [0.5, 0.99, 1.0].iter().map(|part| late[((late.len() - 1) as f64 * part) as usize]).collect()
}
