//! `threadline forward`: every syntax, every ending, and other people's programs through it.

mod programs;
mod staying_up;
mod stdio;

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::sync::mpsc::{channel, Receiver};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::terminal::{line, Tmux};
use super::*;
use crate::forwarding::EchoServer;

/// So that a test does not wait for long where the tool waits before another attempt.
const SOON: [&str; 2] = ["--backoff", "20ms..100ms"];

/// `threadline forward` with these options for a host that lets us in.
fn forward(server: &Sshd, options: &[&str]) -> Command {
    let mut tool = threadline();
    tool.arg("forward").args(access(server)).args(options).arg(HOST);
    tool
}

/// A tool that runs and tells events.
struct Running {
    child: Option<Child>,
    lines: Receiver<String>,
    /// All that it has told so far.
    told: Vec<Value>,
}

impl Running {
    #[track_caller]
    fn start(server: &Sshd, options: &[&str]) -> Running {
        let options = [&["--json"][..], &SOON, options].concat();
        Running::spawn(&mut forward(server, &options))
    }

    fn spawn(tool: &mut Command) -> Running {
        let mut child = tool.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        Running { child: Some(child), lines, told: Vec::new() }
    }

    /// The first event, told already or to come, that this holds for.
    #[track_caller]
    fn event(&mut self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let mut from = 0;
        loop {
            if let Some(found) = self.told[from..].iter().find(|event| holds(event)) {
                return found.clone();
            }
            from = self.told.len();
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.told.push(serde_json::from_str(&line).unwrap()),
                Err(e) => {
                    let said = self.end();
                    panic!("{what} was not told ({e}); told was {:#?}; at the end {said:?}", self.told);
                }
            }
        }
    }

    #[track_caller]
    fn told(&mut self, ev: &str) -> Value {
        self.event(ev, |event| event["ev"] == ev)
    }

    /// Where each forward listens, once all do.
    #[track_caller]
    fn places(&mut self) -> Vec<String> {
        let ready = self.told("ready");
        ready["forwards"].as_array().unwrap().iter().map(|place| place.as_str().unwrap().to_owned()).collect()
    }

    /// What it has carried; asked anew until this holds.
    #[track_caller]
    fn status(&mut self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let known = self.told.iter().filter(|event| event["ev"] == "status").count();
            self.signal(Signal::USR1);
            while self.told.iter().filter(|event| event["ev"] == "status").count() == known {
                let line = self.lines.recv_timeout(PATIENCE).expect("a status");
                self.told.push(serde_json::from_str(&line).unwrap());
            }
            let status = self.told.iter().rfind(|event| event["ev"] == "status").unwrap();
            if holds(status) {
                return status.clone();
            }
            assert!(Instant::now() < deadline, "{what}: {status:#}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn signal(&self, signal: Signal) {
        // `env` has become the tool.
        send(self.child.as_ref().unwrap(), signal);
    }

    /// The exit code, and what it has said on stderr.
    #[track_caller]
    fn wait(&mut self) -> (i32, String) {
        let child = self.child.take().unwrap();
        let output = within(PATIENCE, move || child.wait_with_output().unwrap());
        self.told.extend(self.lines.iter().map(|line| serde_json::from_str::<Value>(&line).unwrap()));
        (output.status.code().unwrap_or(-1), text(&output.stderr))
    }

    #[track_caller]
    fn end(&mut self) -> (i32, String) {
        self.signal(Signal::TERM);
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Connects to a place as the tool shows it.
fn connect_to(place: &str) -> Box<dyn ReadWrite> {
    let stream: std::io::Result<Box<dyn ReadWrite>> = if place.contains('/') {
        UnixStream::connect(place).map(|stream| Box::new(stream) as _)
    } else {
        TcpStream::connect(place.replace('*', "127.0.0.1")).map(|stream| Box::new(stream) as _)
    };
    stream.unwrap_or_else(|e| panic!("{place}: {e}"))
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

/// Sends a line there and waits for it to come back.
#[track_caller]
fn echoes(place: &str, target: Option<u16>) {
    let place = place.to_owned();
    within(PATIENCE, move || {
        let mut stream = connect_to(&place);
        if let Some(port) = target {
            // SOCKS5: no authentication; connect to an IPv4 address.
            let [high, low] = port.to_be_bytes();
            stream.write_all(&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, high, low]).unwrap();
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer[..4], [5, 0, 5, 0], "{place}");
        }
        crate::forwarding::echoes(stream, b"hello through the tunnel\n");
    });
}

#[test]
fn every_syntax_of_ssh_makes_a_tunnel() {
    let server = Sshd::start().unwrap();
    let echo = EchoServer::start();
    let port = echo.port();
    let path = |name: &str| server.dir().join(name).display().to_string();
    let _unix = EchoServer::start_unix(&server.dir().join("echo"));
    let proxies = ["-D0".to_owned(), "-D*:0".into(), format!("-D{}", path("d")), "-R0".into(), "-R127.0.0.1:0".into()];
    let plain = [
        format!("-L0:127.0.0.1:{port}"),
        format!("-L127.0.0.1:0:localhost:{port}"),
        format!("-L[127.0.0.1]:0:[127.0.0.1]:{port}"),
        format!("-L*:0:127.0.0.1:{port}"),
        format!("-L:0:127.0.0.1:{port}"),
        format!("-L{}:127.0.0.1:{port}", path("l1")),
        format!("-L{}:{}", path("l2"), path("echo")),
        format!("-L0:{}", path("echo")),
        format!("-L127.0.0.1:0:{}", path("echo")),
        format!("-R0:127.0.0.1:{port}"),
        format!("-R127.0.0.1:0:localhost:{port}"),
        format!("-R*:0:127.0.0.1:{port}"),
        format!("-R:0:127.0.0.1:{port}"),
        format!("-R{}:127.0.0.1:{port}", path("r1")),
        format!("-R{}:{}", path("r2"), path("echo")),
        format!("-R0:{}", path("echo")),
    ];
    let options: Vec<&str> = proxies.iter().chain(&plain).map(String::as_str).collect();
    let mut tool = Running::start(&server, &options);
    let places = tool.places();
    let plan = tool.told("plan");
    assert_eq!(places.len(), options.len());
    for (place, forward) in places.iter().zip(plan["forwards"].as_array().unwrap()) {
        let proxy = forward["kind"].as_str().unwrap().ends_with("dynamic");
        echoes(place, proxy.then_some(port));
    }
    let status =
        tool.status("all have ended", |status| status["forwards"].as_array().unwrap().iter().all(|f| f["open"] == 0));
    for forward in status["forwards"].as_array().unwrap() {
        let carried = ["connections", "refused", "failed"].map(|name| forward[name].as_u64().unwrap());
        assert_eq!(carried, [1, 0, 0], "{forward:#}");
        assert!(forward["sent"].as_u64() >= Some(25) && forward["received"].as_u64() >= Some(25), "{forward:#}");
    }
    for (ev, number) in ["opened", "closed"].into_iter().flat_map(|ev| (1..=places.len()).map(move |n| (ev, n))) {
        tool.event("each connection", |event| event["ev"] == ev && event["forward"] == number);
    }
    assert_eq!(tool.end(), (0, String::new()));
    for name in ["d", "l1", "l2"] {
        assert!(!server.dir().join(name).exists(), "{name} is left behind");
    }
    assert_eq!(tool.told("end")["code"], 0);
}

#[test]
fn a_person_sees_a_line_for_each_change_and_each_forward_when_asked() {
    let server = Sshd::start().unwrap();
    let echo = EchoServer::start();
    let target = format!("0:127.0.0.1:{}", echo.port());
    let pid_file = server.dir().join("pid");
    let note = format!("sh -c 'echo $$ >{}; exec \"$@\"' sh", pid_file.display());
    let ready = "echo the place is $THREADLINE_FORWARD_1 of $THREADLINE_HOST";
    let tool = forward(&server, &["-L", &target, "-D", "*:0", "--ready-command", ready]);
    let tmux = Tmux::start("forward", 200, 40, &format!("trap : INT; {note} {}; echo code:$?", line(&tool)));
    tmux.shows("the place is localhost:");
    let screen = tmux.screen();
    assert!(screen.contains(&format!("threadline: -L {target}: up, listening on localhost:")), "{screen}");
    assert!(screen.contains("threadline: -D *:0: up, listening on *:"), "{screen}");
    let place = screen.split("the place is ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    echoes(&place, None);
    let pid = std::fs::read_to_string(pid_file).unwrap();
    assert!(run(Command::new("kill").args(["-USR1", pid.trim()])).status.success());
    tmux.shows("connected, 0 reconnects");
    tmux.shows("0 refused, 0 failed; 25 B sent, 25 B received");
    tmux.run(&["send-keys", "C-c"]);
    tmux.shows("code:0");
}

#[test]
fn a_script_is_told_once_all_stand() {
    let server = Sshd::start().unwrap();
    let echo = EchoServer::start();
    let target = format!("0:127.0.0.1:{}", echo.port());
    let note = server.dir().join("ready");
    let mut tool = Command::new("sh");
    tool.args(["-c", &format!("exec \"$@\" 3>{}", note.display()), "sh"]);
    let inner = forward(&server, &["-q", "-L", &target, "-R", &target, "--ready-fd", "3"]);
    tool.arg(inner.get_program()).args(inner.get_args());
    let mut tool = Running::spawn(&mut tool);
    let said = || std::fs::read_to_string(&note).unwrap_or_default();
    eventually(PATIENCE, "it is told", || said().ends_with('\n'));
    let said = said();
    let words: Vec<_> = said.trim_end().split('\t').collect();
    assert_eq!((words[0], words.len()), ("ready", 3), "{said}");
    words[1..].iter().for_each(|place| echoes(place, None));
    assert_eq!(tool.end(), (0, String::new()), "with -q nothing is said");

    let (code, said) = failure(&run(&mut forward(&server, &["-L", &target, "--ready-fd", "77"])));
    assert!(code == 2 && said.contains("--ready-fd 77 cannot be written to"), "{code} {said}");
    let mut tool = Running::start(&server, &["-L", &target, "--ready-command", "exit 3"]);
    tool.places();
    let mut stderr = BufReader::new(tool.child.as_mut().unwrap().stderr.take().unwrap());
    let line = within(PATIENCE, move || {
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        line
    });
    assert_eq!(line, "threadline: the ready command failed: exit status: 3\n");
    assert_eq!(tool.end().0, 0, "it goes on all the same");
}

#[test]
fn events_that_nobody_reads_are_counted_and_hold_up_no_connection() {
    const CONNECTIONS: u64 = 1100;
    let server = Sshd::start().unwrap();
    let echo = EchoServer::start();
    let mut tool = forward(&server, &["--json", "-L", &format!("0:127.0.0.1:{}", echo.port())]);
    let mut child = tool.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = move || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    let (place, mut next) = within(PATIENCE, move || loop {
        let event = next();
        if event["ev"] == "ready" {
            return (event["forwards"][0].as_str().unwrap().to_owned(), next);
        }
    });
    (0..CONNECTIONS).for_each(|_| crate::forwarding::echoes(connect_to(&place), b"x"));
    let missed = within(PATIENCE, move || {
        let (mut told, mut missed) = (0, 0);
        while told + missed < 2 * CONNECTIONS {
            let event = next();
            match event["ev"].as_str().unwrap() {
                "opened" | "closed" => told += 1,
                "missed" => missed += event["count"].as_u64().unwrap(),
                other => panic!("{other}"),
            }
        }
        missed
    });
    assert!(missed > 0);
    send(&child, Signal::TERM);
    within(PATIENCE, move || child.wait().unwrap());
}

#[test]
fn what_cannot_be_begun_is_one_line_and_a_code() {
    let server = Sshd::start().unwrap();
    for (options, code, expected) in [
        (&["-L", "80"][..], 2, "-L 80: 1 field is not understood"),
        (&[], 2, "-L, -R or -D"),
        (&["-D", "no-such-host.invalid:0"], 255, "cannot resolve 'no-such-host.invalid'"),
    ] {
        let (found, said) = failure(&run(&mut forward(&server, options)));
        assert!(found == code && said.contains(expected), "{options:?}: {found} {said}");
    }
    // The first connection has to come about; only those after it are tried again.
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port().to_string();
    let (code, said) = failure(&run(threadline().args(["forward", "-p", &closed, "-l", "x", "-D", "0", HOST])));
    assert!(code == 255 && said.contains("refused") && said.contains("-p PORT"), "{code} {said}");
}
