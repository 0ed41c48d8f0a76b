//! `threadline demo`: the tutorial's three programs against a throw-away sshd, with a line of commentary each.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use threadline::{Client, Pty, TerminalMode};

use crate::output::{self, raw};
use crate::report::{self, escape, Failure};
use crate::sshd::{Sshd, HOST};
use crate::INTERNAL;

/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_secs(5);

/// Plays it. The server goes when this returns, and when it is killed.
pub(crate) fn run() -> Result<u8, Failure> {
    let server = Sshd::start().map_err(|e| Failure::new(format!("the demo needs an SSH server: {e}"), INTERNAL))?;
    match play(&server) {
        Ok(()) => Ok(0),
        // Nobody looks any more.
        Err(Stopped::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => Ok(0),
        Err(Stopped::Output(e)) => Err(Failure::new(format!("cannot write to stdout: {e}"), INTERNAL)),
        Err(Stopped::Ssh(e)) => Err(Failure::new(report::describe(&e), INTERNAL)),
    }
}

/// Why the play ended early.
enum Stopped {
    Output(io::Error),
    Ssh(threadline::Error),
}

impl From<threadline::Error> for Stopped {
    fn from(error: threadline::Error) -> Stopped {
        Stopped::Ssh(error)
    }
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Stopped {
        match error.downcast::<threadline::Error>() {
            Ok(ours) => Stopped::Ssh(ours),
            Err(error) => Stopped::Output(error),
        }
    }
}

fn play(server: &Sshd) -> Result<(), Stopped> {
    let stage = Stage::new();
    stage.say(format_args!(
        "A throw-away sshd listens on {HOST}:{}, with keys and a directory of its own.",
        server.port()
    ))?;
    let began = Instant::now();
    let client = Client::builder(server.host())
        .port(server.port())
        .user(server.user())
        .identity(server.identity())
        .agent(false)
        .known_hosts(server.known_hosts())
        .connect()?;
    let cipher = escape(&client.algorithms().cipher_out);
    stage.say(format_args!(
        "Connected as {} in {}: one connection for all that follows ({cipher}).",
        escape(client.user()),
        Took(began)
    ))?;

    shell_session(&stage, &client)?;
    individual_commands(&stage, &client)?;
    two_at_once(&stage, &client)?;

    client.close(GOODBYE)?;
    stage.say(format_args!("\nThe connection is closed; the sshd and all its files go now."))?;
    Ok(())
}

/// A raw shell, as a person at a terminal has it.
fn shell_session(stage: &Stage, client: &Client) -> Result<(), Stopped> {
    stage.heading("1  A shell session", "What is typed comes back as an echo, between prompts and output.")?;
    let began = Instant::now();
    let pty = Pty::new("dumb").mode(TerminalMode::ECHO, 1);
    let mut shell = client.invoke_shell_on(&pty)?;
    shell.write_all(b"echo Hello, world\rexit\r")?;
    let mut said = Vec::new();
    shell.read_to_end(&mut said)?;
    for line in String::from_utf8_lossy(&said).lines().filter(|line| !line.trim().is_empty()) {
        stage.remote(line)?;
    }
    stage.took(began)
}

/// One channel for each command, with an exit status.
fn individual_commands(stage: &Stage, client: &Client) -> Result<(), Stopped> {
    stage.heading("2  Individual commands", "Each has a channel of its own: only its output, and its exit status.")?;
    let began = Instant::now();
    for command in ["echo \"Hello, world!\"", "uname", "uptime"] {
        stage.say(format_args!("  $ {command}"))?;
        let output = client.exec_command(command)?.output()?;
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        for line in stdout.lines().chain(stderr.lines()) {
            stage.remote(line)?;
        }
        stage.note(&output.status.to_string())?;
    }
    stage.took(began)
}

/// The tutorial's two commands, a thread for each; every line is printed when it arrives.
fn two_at_once(stage: &Stage, client: &Client) -> Result<(), Stopped> {
    stage.heading(
        "3  Two commands at once",
        "A thread for each channel: every line appears the moment it is written.",
    )?;
    let began = Instant::now();
    let (lines, arriving) = channel();
    for (name, command) in
        [("one", "echo One;sleep 2;echo Two;sleep 1;echo Three"), ("two", "echo A;sleep 1;echo B;sleep 2;echo C")]
    {
        stage.say(format_args!("  {name} $ {command}"))?;
        let mut child = client.exec_command(command)?;
        let lines = lines.clone();
        thread::spawn(move || {
            let Some(stdout) = child.stdout.take() else { return };
            for line in BufReader::new(stdout).lines() {
                if lines.send((name, line)).is_err() {
                    return;
                }
            }
        });
    }
    drop(lines);
    for (name, line) in &arriving {
        stage.remote(&format!("{:.1} s  {name}: {}", began.elapsed().as_secs_f64(), line?))?;
    }
    stage.took(began)
}

/// A time since then, as people read it.
struct Took(Instant);

impl fmt::Display for Took {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let took = self.0.elapsed();
        if took < Duration::from_secs(1) {
            write!(f, "{:.0} ms", took.as_secs_f64() * 1000.0)
        } else {
            write!(f, "{:.2} s", took.as_secs_f64())
        }
    }
}

/// Our stdout, and how it is painted.
struct Stage {
    bold: &'static str,
    dim: &'static str,
    plain: &'static str,
}

impl Stage {
    fn new() -> Stage {
        if output::colour_is_welcome() {
            Stage { bold: "\x1b[1m", dim: "\x1b[2m", plain: "\x1b[0m" }
        } else {
            Stage { bold: "", dim: "", plain: "" }
        }
    }

    fn say(&self, text: fmt::Arguments<'_>) -> Result<(), Stopped> {
        raw::write_all(rustix::stdio::stdout(), format!("{text}\n").as_bytes()).map_err(Stopped::Output)
    }

    fn heading(&self, title: &str, comment: &str) -> Result<(), Stopped> {
        self.say(format_args!("\n{}{title}{}\n   {comment}", self.bold, self.plain))
    }

    /// What the remote side said.
    fn remote(&self, line: &str) -> Result<(), Stopped> {
        self.say(format_args!("    {}|{} {}", self.dim, self.plain, escape(line)))
    }

    fn took(&self, began: Instant) -> Result<(), Stopped> {
        self.say(format_args!("   {}took {}{}", self.dim, Took(began), self.plain))
    }

    fn note(&self, text: &str) -> Result<(), Stopped> {
        self.say(format_args!("    {}{text}{}", self.dim, self.plain))
    }
}
