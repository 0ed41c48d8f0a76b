//! Clients that listen here and carry what comes, each in a process of its own, and what programs do through them.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use crate::openssh::{self, PATIENCE};
use crate::process::{cpu, Run};
use crate::sshd::{Sshd, HOST};
use crate::worker::Worker;
use crate::Outcome;

/// Free ports may be taken before `ssh` listens on them.
const PORT_ATTEMPTS: usize = 10;
/// How often is looked whether it listens.
const GLANCE: Duration = Duration::from_millis(5);
/// Bytes asked for by one read and offered to one write.
const BUFFER: usize = 256 * 1024;

/// How a program reaches its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A port of its own for each target, `ssh -L`.
    Local,
    /// It says in SOCKS where it wants to go, `ssh -D`.
    Dynamic,
}

impl Way {
    pub const ALL: [Way; 2] = [Way::Local, Way::Dynamic];

    pub fn name(self) -> &'static str {
        match self {
            Way::Local => "-L",
            Way::Dynamic => "-D",
        }
    }
}

/// Where a client listens, and which process it is.
#[derive(Debug, Clone)]
pub struct Entrances {
    pid: u32,
    /// A target's port and the one on this side that leads to it.
    local: Vec<(u16, u16)>,
    socks: u16,
}

impl Entrances {
    /// threadline, which is connected.
    pub fn ours(worker: &mut Worker, targets: &[u16]) -> Outcome<Entrances> {
        let words: Vec<String> = targets.iter().map(u16::to_string).collect();
        let (ports, _) = worker.ask_for_more(&format!("listen {}", words.join(" ")))?;
        let mut ports: Vec<u16> = ports.into_iter().map(|port| port as u16).collect();
        let socks = ports.pop().ok_or("no ports")?;
        Ok(Entrances { pid: worker.pid(), local: targets.iter().copied().zip(ports).collect(), socks })
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A connection to this port of 127.0.0.1, as the server sees it.
    pub fn connect(&self, way: Way, target: u16) -> Outcome<TcpStream> {
        let local = self.local.iter().find(|(port, _)| *port == target);
        let port = match way {
            Way::Local => local.ok_or("no forward leads there")?.1,
            Way::Dynamic => self.socks,
        };
        let mut stream = TcpStream::connect((HOST, port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        if way == Way::Dynamic {
            ask_socks(&mut stream, target)?;
        }
        Ok(stream)
    }

    /// What a task takes, and the processor time that it costs the client.
    pub fn measure(&self, task: impl FnOnce(&Entrances) -> Outcome<()>) -> Outcome<Run> {
        let before = cpu(self.pid)?;
        let began = Instant::now();
        task(self)?;
        let seconds = began.elapsed().as_secs_f64();
        Ok(Run { seconds, cpu: cpu(self.pid)? - before, ..Run::default() })
    }
}

/// SOCKS5 without authentication, to 127.0.0.1.
fn ask_socks(stream: &mut TcpStream, port: u16) -> Outcome<()> {
    stream.write_all(&[5, 1, 0])?;
    let mut method = [0; 2];
    stream.read_exact(&mut method)?;
    let [high, low] = port.to_be_bytes();
    stream.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low])?;
    let mut reply = [0; 10];
    stream.read_exact(&mut reply)?;
    match (method, reply[1]) {
        ([5, 0], 0) => Ok(()),
        _ => Err(format!("the SOCKS proxy said {method:?}, {reply:?}").into()),
    }
}

/// An `ssh` that listens. Dropping it ends it.
#[derive(Debug)]
pub struct Ssh {
    process: Child,
    pub entrances: Entrances,
}

impl Ssh {
    /// Logs in at this port with this cipher, and waits until it listens.
    pub fn start(server: &Sshd, port: u16, cipher: &str, targets: &[u16]) -> Outcome<Ssh> {
        for _ in 0..PORT_ATTEMPTS {
            if let Some(ssh) = Ssh::try_start(server, port, cipher, targets)? {
                return Ok(ssh);
            }
        }
        Err(format!("ssh did not listen in {PORT_ATTEMPTS} attempts").into())
    }

    /// `None` if it has ended: most likely a port was taken.
    fn try_start(server: &Sshd, port: u16, cipher: &str, targets: &[u16]) -> Outcome<Option<Ssh>> {
        let free = free_ports(targets.len() + 1)?;
        let mut command = openssh::ssh(server, port, Some(cipher))?;
        // -L knows no port 0.
        for (here, there) in free.iter().zip(targets) {
            command.arg("-L").arg(format!("{HOST}:{here}:{HOST}:{there}"));
        }
        let socks = free[targets.len()];
        command.args(["-N", "-o", "ExitOnForwardFailure=yes", "-D", &format!("{HOST}:{socks}")]);
        let process = command.spawn()?;
        let local = targets.iter().copied().zip(free).collect();
        let entrances = Entrances { pid: process.id(), local, socks };
        let mut ssh = Ssh { process, entrances };
        let deadline = Instant::now() + PATIENCE;
        // The dynamic one begins after the local ones.
        while TcpStream::connect((HOST, socks)).is_err() {
            if ssh.process.try_wait()?.is_some() {
                return Ok(None);
            }
            if Instant::now() > deadline {
                return Err("ssh does not listen".into());
            }
            thread::sleep(GLANCE);
        }
        Ok(Some(ssh))
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn free_ports(n: usize) -> Outcome<Vec<u16>> {
    // All at once, so that they differ.
    let listeners: Vec<TcpListener> =
        (0..n).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<_, _>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

/// So many bytes from a source.
pub fn download(entrances: &Entrances, way: Way, source: u16, bytes: u64) -> Outcome<()> {
    let mut stream = entrances.connect(way, source)?;
    stream.write_all(b"\n")?;
    let (mut buffer, mut got) = (vec![0; BUFFER], 0);
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            n => got += n as u64,
        }
    }
    expect(got, bytes)
}

/// So many bytes to a sink, until it has said that they are there.
pub fn upload(entrances: &Entrances, way: Way, sink: u16, bytes: u64) -> Outcome<()> {
    let mut stream = entrances.connect(way, sink)?;
    let zeros = vec![0; BUFFER];
    let mut left = bytes as usize;
    while left > 0 {
        left -= stream.write(&zeros[..left.min(BUFFER)])?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut said = [0; 8];
    stream.read_exact(&mut said)?;
    expect(u64::from_be_bytes(said), bytes)
}

fn expect(got: u64, bytes: u64) -> Outcome<()> {
    if got == bytes {
        return Ok(());
    }
    Err(format!("{got} bytes instead of {bytes}").into())
}

/// One byte there and back.
pub fn echo_once(stream: &mut TcpStream) -> Outcome<()> {
    let mut back = [0];
    stream.write_all(&[7])?;
    stream.read_exact(&mut back)?;
    expect(back[0].into(), 7)
}

/// So many connections, one after the other: one byte there and back, and the end.
pub fn visit(entrances: &Entrances, way: Way, echo: u16, n: usize) -> Outcome<()> {
    (0..n).try_for_each(|_| echo_once(&mut entrances.connect(way, echo)?))
}

/// So many programs at once, each of which makes so many connections.
pub fn visit_at_once(entrances: &Entrances, way: Way, echo: u16, programs: usize, each: usize) -> Outcome<()> {
    thread::scope(|scope| {
        let one = || scope.spawn(|| visit(entrances, way, echo, each));
        let threads: Vec<_> = (0..programs).map(|_| one()).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a visiting thread panicked")?)
    })
}

/// Seconds that each of so many bytes took there and back, one after the other on one connection.
pub fn latencies(entrances: &Entrances, way: Way, echo: u16, n: usize) -> Outcome<Vec<f64>> {
    let mut stream = entrances.connect(way, echo)?;
    echo_once(&mut stream)?;
    let one = |_| {
        let began = Instant::now();
        echo_once(&mut stream)?;
        Ok(began.elapsed().as_secs_f64())
    };
    (0..n).map(one).collect()
}

/// A page: a connection to each of these at once through SOCKS. Over when as many as `answers` have answered; the
/// others are left.
pub fn page(entrances: &Entrances, targets: &[u16], answers: usize) -> Outcome<()> {
    let (done, finished) = std::sync::mpsc::channel();
    for &target in targets {
        let (entrances, done) = (entrances.clone(), done.clone());
        thread::spawn(move || {
            let visited = entrances.connect(Way::Dynamic, target).and_then(|mut stream| echo_once(&mut stream));
            // Nobody waits for those that hang.
            let _ = done.send(visited);
        });
    }
    (0..answers).try_for_each(|_| finished.recv_timeout(PATIENCE)?)
}
