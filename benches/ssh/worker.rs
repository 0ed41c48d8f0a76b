//! A client in a process of its own, asked line by line: `connect 2222 default`, `sequence 50`, `download 1000000 8`.
//! It answers each with `ok` and numbers, the last four of them seconds, processor seconds, peak memory in KiB and the
//! most threads so far; or with `error` and why.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::clients::{Client, Ours, Plain};
use crate::process::{most_threads, own_cpu, private_dirty, status, Run};
use crate::sshd::Sshd;
use crate::Outcome;

/// The first argument of this program when it is to be a worker.
pub const ROLE: &str = "worker";

/// After so long an idle connection has given back what it keeps for being busy.
pub const SETTLE: Duration = Duration::from_millis(1500);

/// Where to log in, and as whom.
#[derive(Debug, Clone)]
pub struct Account {
    pub user: String,
    pub identity: PathBuf,
    /// Has the files `known_hosts.PORT`.
    pub dir: PathBuf,
}

/// The asking side. Dropping it ends the process.
#[derive(Debug)]
pub struct Worker {
    name: &'static str,
    process: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts this program again as the client `threadline` or `ssh2`.
    pub fn rust(server: &Sshd, name: &'static str) -> Outcome<Worker> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(ROLE).arg(name);
        Worker::start(server, name, command)
    }

    /// Starts the Python program beside this file.
    pub fn paramiko(server: &Sshd, python: &str) -> Outcome<Worker> {
        let mut command = Command::new(python);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/ssh/paramiko_client.py"));
        Worker::start(server, "paramiko", command)
    }

    /// Starts the Go program, built from `benches/go`.
    pub fn go(server: &Sshd, program: &Path) -> Outcome<Worker> {
        Worker::start(server, "Go", Command::new(program))
    }

    fn start(server: &Sshd, name: &'static str, mut command: Command) -> Outcome<Worker> {
        command.arg(server.user()).arg(server.identity()).arg(server.dir());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = process.stdin.take();
        let stdout = process.stdout.take().ok_or("a worker without stdout")?;
        Ok(Worker { name, process, stdin, stdout: BufReader::new(stdout) })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Lets it do a task and waits for what it took.
    pub fn ask(&mut self, task: &str) -> Outcome<Run> {
        Ok(self.ask_for_more(task)?.1)
    }

    /// As [`ask`](Self::ask), with the numbers that are this task's own.
    pub fn ask_for_more(&mut self, task: &str) -> Outcome<(Vec<f64>, Run)> {
        let stdin = self.stdin.as_mut().ok_or("the worker is told to end")?;
        writeln!(stdin, "{task}")?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let numbers = line.trim().strip_prefix("ok ").ok_or_else(|| format!("{}: {task}: {line}", self.name))?;
        let numbers = numbers.split(' ').map(str::parse).collect::<Result<Vec<f64>, _>>()?;
        let [own @ .., seconds, cpu, peak_kib, threads] = &numbers[..] else {
            return Err(format!("{}: {task}: too few numbers: {line}", self.name).into());
        };
        Ok((own.to_vec(), Run { seconds: *seconds, cpu: *cpu, peak_kib: *peak_kib, threads: *threads }))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.process.wait();
    }
}

/// The answering side.
pub fn serve(arguments: &[String]) -> Outcome<()> {
    let [name, user, identity, dir] = arguments else { return Err("worker NAME USER IDENTITY DIR".into()) };
    let account = Account { user: user.clone(), identity: identity.into(), dir: dir.into() };
    let mut client: Box<dyn Client> = match name.as_str() {
        "threadline" => Box::new(Ours::new(account)),
        // No threadline in this process: what threadline puts into libssh2's tables is process-wide.
        _ => Box::new(Plain::new(account)),
    };
    for line in std::io::stdin().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let before = own_cpu();
        match task(&mut *client, &words) {
            Ok((seconds, mut numbers)) => {
                numbers.extend([seconds, own_cpu() - before, status("self", "VmHWM")?, most_threads()]);
                println!("ok {}", numbers.iter().map(f64::to_string).collect::<Vec<_>>().join(" "));
            }
            Err(error) => println!("error {}", error.to_string().replace('\n', " ")),
        }
    }
    Ok(())
}

/// Seconds, and the numbers of the task's own.
fn task(client: &mut dyn Client, words: &[&str]) -> Outcome<(f64, Vec<f64>)> {
    let seconds = match words {
        ["login", port] => client.login(port.parse()?)?,
        ["connect", port, cipher] => client.connect(port.parse()?, (*cipher != "default").then_some(cipher))?,
        ["sequence", n] => client.sequence(n.parse()?)?,
        ["burst", n] => client.burst(n.parse()?)?,
        ["download", bytes, channels] => client.download(bytes.parse()?, channels.parse()?)?,
        ["upload", bytes] => client.upload(bytes.parse()?)?,
        ["forward", port, bytes] => client.forward(port.parse()?, bytes.parse()?)?,
        ["listen", targets @ ..] => {
            let targets = targets.iter().map(|port| port.parse()).collect::<Result<Vec<u16>, _>>()?;
            return Ok((0.0, client.listen(&targets)?.into_iter().map(f64::from).collect()));
        }
        ["tickers", n, ticks, flood] => return client.tickers(n.parse()?, ticks.parse()?, flood.parse()?),
        ["idle", port, n, seconds] => return idle(client, port.parse()?, n.parse()?, seconds.parse()?),
        other => return Err(format!("an unknown task: {other:?}").into()),
    };
    Ok((seconds, Vec::new()))
}

/// Memory of an idle connection (private, and resident, in KiB) and the processor seconds that all of them used in so
/// many seconds.
fn idle(client: &mut dyn Client, port: u16, n: usize, seconds: f64) -> Outcome<(f64, Vec<f64>)> {
    let memory = || -> Outcome<[f64; 2]> {
        thread::sleep(SETTLE);
        Ok([private_dirty("self")?, status("self", "VmRSS")?])
    };
    // The first ones pay for what all share.
    client.login(port)?;
    client.hold(port, 2)?;
    let before = memory()?;
    client.hold(port, n)?;
    let after = memory()?;
    let cpu = own_cpu();
    thread::sleep(Duration::from_secs_f64(seconds));
    let cpu = own_cpu() - cpu;
    let each = |which: usize| (after[which] - before[which]) / n as f64;
    Ok((seconds, vec![each(0), each(1), cpu]))
}
