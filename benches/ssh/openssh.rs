//! OpenSSH's client, a process for each command: alone, and through ControlMaster.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{waitid, Pid, WaitId, WaitIdOptions};

use crate::clients::{zeros_when_told, READY, TAKE_ALL};
use crate::process::{cpu, status, Run};
use crate::source::Source;
use crate::sshd::{Sshd, HOST};
use crate::Outcome;

/// How long `ssh` may take until it is there.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often the memory of a running client is looked at.
const GLANCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// `ssh` to the server at this port, with this cipher if any; the command is to be added.
pub fn ssh(server: &Sshd, port: u16, cipher: Option<&str>) -> Outcome<Command> {
    let mut ssh = server.ssh_via(port)?;
    if let Some(cipher) = cipher {
        ssh.args(["-c", cipher]);
    }
    ssh.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    Ok(ssh)
}

/// Seconds of a command, from the start of the process to its end.
pub fn time(command: &mut Command) -> Outcome<f64> {
    let began = Instant::now();
    let ended = command.status()?;
    expect_success(command, ended)?;
    Ok(began.elapsed().as_secs_f64())
}

/// So many zeros from each of these at once, to `/dev/null`, from the moment on when all are connected and the other
/// end is ready. `process` does the work: a master, or the only one of these.
pub fn download(all: Vec<Command>, process: Option<u32>, each: u64) -> Outcome<Run> {
    let script = zeros_when_told(each);
    let start = |mut ssh: Command| Started::new(ssh.stdin(Stdio::piped()), &script);
    let all = all.into_iter().map(start).collect::<Outcome<Vec<_>>>()?;
    measure(all, process)
}

/// So many zeros to the stdin of a command, from the moment on when it is there. They come from a file with a hole: a
/// pipe would be filled by one process more.
pub fn upload(mut ssh: Command, zeros: &Path, bytes: u64) -> Outcome<Run> {
    let mut file = File::options().read(true).write(true).create(true).truncate(true).open(zeros)?;
    file.set_len(bytes)?;
    // What the kernel does for the first reader is not what is measured.
    io::copy(&mut file, &mut io::sink())?;
    let started = Started::new(ssh.stdin(File::open(zeros)?), TAKE_ALL)?;
    measure(vec![started], None)
}

/// So many bytes from the source, over a connection that the server makes, from the moment on when it is made.
pub fn forward(mut ssh: Command, source: &Source) -> Outcome<Run> {
    source.forget();
    let target = format!("{HOST}:{}", source.port);
    let mut process = ssh.args(["-W", &target]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stderr = process.stderr.take().ok_or("no stderr")?;
    let started = Started { process, stderr };
    source.wait()?;
    measure(vec![started], None)
}

/// An `ssh` that is logged in and whose command has said so.
#[derive(Debug)]
struct Started {
    process: Child,
    stderr: ChildStderr,
}

impl Started {
    fn new(ssh: &mut Command, script: &str) -> Outcome<Started> {
        // Its stdout goes to /dev/null.
        let script = script.replacen("echo ready;", "echo ready >&2;", 1);
        let mut process = ssh.arg(script).stderr(Stdio::piped()).spawn()?;
        let mut stderr = process.stderr.take().ok_or("no stderr")?;
        let mut said = [0; READY.len()];
        let ready = stderr.read_exact(&mut said).is_ok() && said == READY.as_bytes();
        let started = Started { process, stderr };
        if ready {
            return Ok(started);
        }
        Err(format!("ssh is not ready; it said: {}", String::from_utf8_lossy(&said)).into())
    }

    /// Waits for the end of the process, and glances at the memory of the one that works. It is not reaped, so that
    /// its processor time can be read.
    fn watch(&mut self, pid: u32, run: &mut Run) -> Outcome<()> {
        loop {
            let mut fds = [PollFd::new(&self.stderr, PollFlags::IN)];
            let readable = poll(&mut fds, Some(&GLANCE))? > 0;
            // A process that has ended has no memory.
            if let Ok(peak) = status(&pid.to_string(), "VmHWM") {
                run.peak_kib = run.peak_kib.max(peak);
            }
            let mut said = [0; 1024];
            if readable {
                match self.stderr.read(&mut said)? {
                    0 => break,
                    n => eprint!("{}", String::from_utf8_lossy(&said[..n])),
                }
            }
        }
        let id = WaitId::Pid(Pid::from_child(&self.process));
        waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)?;
        Ok(())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Tells all to begin and waits for all.
fn measure(mut all: Vec<Started>, process: Option<u32>) -> Outcome<Run> {
    let pid = process.or(all.first().map(|one| one.process.id())).ok_or("no ssh at all")?;
    let mut run = Run { threads: 1.0, ..Run::default() };
    let before = cpu(pid)?;
    let began = Instant::now();
    // With its stdin open, `ssh -W` would not end.
    for mut stdin in all.iter_mut().filter_map(|one| one.process.stdin.take()) {
        stdin.write_all(b"\n")?;
    }
    all.iter_mut().try_for_each(|one| one.watch(pid, &mut run))?;
    run.seconds = began.elapsed().as_secs_f64();
    run.cpu = cpu(pid)? - before;
    for one in &mut all {
        let ended = one.process.wait()?;
        if !ended.success() {
            return Err(format!("ssh: {ended}").into());
        }
    }
    Ok(run)
}

/// A master and its socket. Dropping it ends the master.
#[derive(Debug)]
pub struct Master<'a> {
    server: &'a Sshd,
    port: u16,
    socket: PathBuf,
    process: Child,
}

impl Master<'_> {
    /// Starts a master, with this cipher if any, and waits until it answers.
    pub fn start<'a>(server: &'a Sshd, port: u16, cipher: Option<&str>) -> Outcome<Master<'a>> {
        let socket = server.dir().join(format!("control.{port}"));
        let mut command = ssh(server, port, cipher)?;
        let log = File::create(server.dir().join("control.log"))?;
        let process = command.args(["-M", "-N", "-S"]).arg(&socket).stderr(log).spawn()?;
        let master = Master { server, port, socket, process };
        let deadline = Instant::now() + PATIENCE;
        while !master.command()?.args(["-O", "check"]).stderr(Stdio::null()).status()?.success() {
            if Instant::now() > deadline {
                let log = std::fs::read_to_string(server.dir().join("control.log"))?;
                return Err(format!("the ControlMaster does not answer; it said: {log}").into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(master)
    }

    /// The master's process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// `ssh` through this master; the command is to be added.
    pub fn command(&self) -> Outcome<Command> {
        let mut command = ssh(self.server, self.port, None)?;
        command.arg("-S").arg(&self.socket);
        Ok(command)
    }

    /// `true`, so many times: `sequence`, one after the other, or `burst`, all at once.
    pub fn run_true(&self, how: &str, n: usize) -> Outcome<Run> {
        let began = Instant::now();
        if how == "sequence" {
            (0..n).try_for_each(|_| time(self.command()?.arg("true")).map(drop))?;
        } else {
            let children = (0..n).map(|_| Ok(self.command()?.arg("true").spawn()?)).collect::<Outcome<Vec<_>>>()?;
            children.into_iter().try_for_each(|mut child| expect_success(&self.command()?, child.wait()?))?;
        }
        Ok(Run::of(began.elapsed().as_secs_f64()))
    }
}

fn expect_success(command: &Command, ended: ExitStatus) -> Outcome<()> {
    if ended.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {ended}").into())
}

impl Drop for Master<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}
