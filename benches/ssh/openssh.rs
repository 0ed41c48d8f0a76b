//! OpenSSH's client, a process for each command: alone, and through ControlMaster.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{cpu_and_end, status, Run};
use crate::sshd::Sshd;
use crate::Outcome;

/// How long the master may take until it answers.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a running client is looked at.
const GLANCE: Duration = Duration::from_millis(2);

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

/// Runs a command to its end and looks at it meanwhile. For commands that take a while: it looks every 2 ms.
pub fn watch(command: &mut Command) -> Outcome<Run> {
    let began = Instant::now();
    let mut child = command.spawn()?;
    let mut run = Run { threads: 1.0, ..Run::default() };
    loop {
        // A process that ends keeps its processor time until it is waited for, but not its memory.
        if let Ok(peak) = status(&child.id().to_string(), "VmHWM") {
            run.peak_kib = run.peak_kib.max(peak);
        }
        let (cpu, ended) = cpu_and_end(child.id())?;
        run.cpu = cpu;
        if ended {
            break;
        }
        thread::sleep(GLANCE);
    }
    run.seconds = began.elapsed().as_secs_f64();
    expect_success(command, child.wait()?)?;
    Ok(run)
}

/// So many zeros to the stdin of `cat` at the other end.
pub fn upload(ssh: &mut Command, bytes: u64) -> Outcome<Run> {
    let mut head = Command::new("head");
    let mut zeros = head.args(["-c", &bytes.to_string(), "/dev/zero"]).stdout(Stdio::piped()).spawn()?;
    ssh.stdin(zeros.stdout.take().ok_or("no stdout")?);
    let run = watch(ssh.arg("cat >/dev/null"));
    // Our copy of the pipe's end goes with it: or head would wait for ever if ssh failed.
    ssh.stdin(Stdio::null());
    zeros.wait()?;
    run
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
    /// Starts a master and waits until it answers.
    pub fn start(server: &Sshd, port: u16) -> Outcome<Master<'_>> {
        let socket = server.dir().join(format!("control.{port}"));
        let mut command = ssh(server, port, None)?;
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

    fn command(&self) -> Outcome<Command> {
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
