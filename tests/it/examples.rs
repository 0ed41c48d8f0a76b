//! The programs below examples/, as their readers run them: with a host as the argument, and with the key and the
//! known hosts in `~/.ssh`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

use crate::connect::PATIENCE;
use crate::sshd::Sshd;
use crate::util::{output_within, within};

/// An example, ready to be given what follows the host.
pub fn example(name: &str, server: &Sshd) -> Command {
    let mut command = at_home(server, built(name));
    command.arg(format!("{}@{}:{}", server.user(), server.host(), server.port()));
    command
}

/// A program whose user has the server's key and host key in `~/.ssh`, and no agent.
pub fn at_home(server: &Sshd, program: impl Into<PathBuf>) -> Command {
    let home = server.dir().join("home");
    let ssh = home.join(".ssh");
    fs::create_dir_all(&ssh).unwrap();
    fs::copy(server.identity(), ssh.join("id_ed25519")).unwrap();
    fs::copy(server.known_hosts(), ssh.join("known_hosts")).unwrap();
    let mut command = Command::new(program.into());
    command.env("HOME", home).env_remove("SSH_AUTH_SOCK").env_remove("RUST_LOG");
    command
}

/// Cargo puts examples beside the tests' directory.
fn built(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("the path of this program");
    let path = tests.ancestors().nth(2).expect("target/debug").join("examples").join(name);
    assert!(path.is_file(), "{} is not built; `cargo test` does, or `cargo build --examples`", path.display());
    path
}

/// A line that a program printed, and when it arrived here.
#[derive(Debug, Clone)]
pub struct Printed {
    pub text: String,
    pub at: SystemTime,
}

/// Runs a program to its end and returns its lines, each with its time.
///
/// # Panics
/// When it fails, or has not ended in time (it is killed then).
#[track_caller]
pub fn lines_of(command: &mut Command) -> Vec<Printed> {
    let shown = format!("{command:?}");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = Killed(child.unwrap_or_else(|error| panic!("{shown}: {error}")));
    let (sender, receiver) = mpsc::channel();
    let stdout = BufReader::new(child.0.stdout.take().expect("piped"));
    let mut stderr = child.0.stderr.take().expect("piped");
    thread::spawn(move || {
        let mut lines = Vec::new();
        for line in stdout.lines() {
            lines.push(Printed { text: line.expect("text"), at: SystemTime::now() });
        }
        let mut said = String::new();
        stderr.read_to_string(&mut said).expect("text");
        // The receiver is gone only when the test has failed already.
        let _ = sender.send((lines, said));
    });
    let (lines, said) = receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("not ended in time: {shown}"));
    let status = child.0.wait().expect("its status");
    assert!(status.success(), "{shown}: {status}: {said}\n{lines:?}");
    lines
}

/// A program that does not outlive the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server whose login shell is sh, whoever runs the tests: the examples' commands are sh's.
fn server() -> Sshd {
    Sshd::builder().login_shell("/bin/sh").start().unwrap()
}

/// What a program printed to its stdout.
#[track_caller]
fn stdout_of(command: &mut Command) -> String {
    let output = output_within(PATIENCE, command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn shell_prints_what_a_terminal_shows() {
    let server = server();
    let shown = stdout_of(&mut example("shell", &server));
    // Once as it was typed, once as the command's output.
    assert!(shown.matches("Hello, world\r\n").count() >= 2, "{shown:?}");
    assert!(shown.contains("exit\r\n"), "{shown:?}");
}

#[test]
fn exec_prints_the_output_of_each_command_in_turn() {
    let server = server();
    let printed = stdout_of(&mut example("exec", &server));
    let lines: Vec<_> = printed.lines().collect();
    let uname = String::from_utf8(Command::new("uname").output().unwrap().stdout).unwrap();
    assert_eq!(lines[..2], [r#""Hello, world!\n""#, &format!("{uname:?}")]);
    assert_eq!(lines.len(), 3, "{printed}");
}

#[test]
fn threads_prints_each_line_when_it_is_written() {
    let server = server();
    let lines = lines_of(&mut example("threads", &server));
    let texts: Vec<_> = lines.iter().map(|line| line.text.as_str()).collect();
    assert_eq!(lines.len(), 6, "{texts:?}");
    assert_eq!(texts.iter().filter(|text| text.parse::<char>().is_ok()).collect::<Vec<_>>(), [&"A", &"B", &"C"]);
    assert_eq!(texts.iter().filter(|text| text.len() > 1).collect::<Vec<_>>(), [&"One", &"Two", &"Three"]);
    // What is printed at its end has one time; what is printed as it comes has three seconds between first and last.
    let took = lines[5].at.duration_since(lines[0].at).expect("a clock that goes forward");
    assert!(took >= Duration::from_millis(2500), "all within {took:?}");
}

#[test]
fn subprocess_like_has_arguments_streams_and_a_status() {
    let server = server();
    assert_eq!(
        stdout_of(&mut example("subprocess_like", &server)),
        "<it's $HOME>\n<*>\n<>\n\
         exit status 1, success: false\n\
         stdout: QUIETLY\n\
         stderr: done\n\
         exit status 3\n"
    );
}

#[test]
fn allow_anything_talks_to_a_host_that_is_not_known_and_exec_does_not() {
    let server = server();
    let mut strict = example("exec", &server);
    let mut lenient = example("allow_anything", &server);
    fs::write(server.dir().join("home/.ssh/known_hosts"), "").unwrap();

    let refused = output_within(PATIENCE, &mut strict);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("HostKey"), "{said}");

    let printed = stdout_of(&mut lenient);
    let lines: Vec<_> = printed.lines().collect();
    let new = format!("[{}]:{} is new: ssh-ed25519 SHA256:", server.host(), server.port());
    assert!(lines[0].starts_with(&new), "{printed}");
    assert_eq!(lines[1..], ["Hello, world"]);
}

#[test]
fn allow_anything_does_not_talk_to_a_host_whose_key_has_changed() {
    let server = server();
    let other = Sshd::start().unwrap();
    let mut lenient = example("allow_anything", &server);
    let line = format!("[{}]:{} {}\n", server.host(), server.port(), other.host_keys()[0]);
    fs::write(server.dir().join("home/.ssh/known_hosts"), line).unwrap();

    let refused = output_within(PATIENCE, &mut lenient);
    assert!(!refused.status.success());
    assert_eq!(String::from_utf8_lossy(&refused.stdout), "", "it was asked about a changed key");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("Changed"), "{said}");
}

/// Runs `feed_stdin` with this input, and returns its stdout, its stderr and whether it succeeded.
fn fed(server: &Sshd, command: &str, input: Vec<u8>) -> (Vec<u8>, String, bool) {
    let mut feed = example("feed_stdin", server);
    feed.arg(command).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    within(PATIENCE, move || {
        let mut child = Killed(feed.spawn().unwrap());
        let mut stdin = child.0.stdin.take().expect("piped");
        // It may end before it has read all: that is one of the tests.
        let feeder = thread::spawn(move || stdin.write_all(&input).is_ok());
        let mut stderr = child.0.stderr.take().expect("piped");
        let listener = thread::spawn(move || {
            let mut said = String::new();
            stderr.read_to_string(&mut said).map(|_| said)
        });
        let mut printed = Vec::new();
        child.0.stdout.take().expect("piped").read_to_end(&mut printed).unwrap();
        let success = child.0.wait().unwrap().success();
        feeder.join().unwrap();
        (printed, listener.join().unwrap().unwrap(), success)
    })
}

#[test]
fn feed_stdin_streams_both_ways_at_once() {
    let server = server();
    // More than pipes, windows and queues hold together: it comes back only if output is read while input is fed.
    let mut input = Vec::new();
    crate::util::noise(7, 24 << 20).read_to_end(&mut input).unwrap();
    let (printed, said, success) = fed(&server, "cat", input.clone());
    assert!(success, "{said}");
    assert!(printed == input, "{} bytes came back of {}", printed.len(), input.len());
    assert_eq!(said, format!("fed {} bytes\nexit status 0\n", input.len()));
}

#[test]
fn feed_stdin_ends_when_the_command_has_read_enough() {
    let server = server();
    let (printed, said, success) = fed(&server, "head -n 1", b"first\nsecond\n".repeat(2 << 20));
    assert_eq!(String::from_utf8_lossy(&printed), "first\n");
    assert!(success, "{said}");
    assert_eq!(said, "the command has stopped reading\nexit status 0\n");
}

#[test]
fn feed_stdin_passes_a_failure_on() {
    let server = server();
    let (_, said, success) = fed(&server, "cat >/dev/null; exit 7", b"x".to_vec());
    assert!(!success);
    assert_eq!(said, "fed 1 bytes\nexit status 7\n");
}

#[test]
fn many_threads_prints_whole_lines_of_all_commands_while_they_run() {
    let server = server();
    let gate = server.dir().join("gate");
    let gate = gate.to_str().unwrap();
    // Neither command ends unless both run at once: each waits for what the other does after its first line.
    let opens = format!("echo first; mkdir {gate}; while [ ! -d {gate}.2 ]; do sleep 0.02; done; echo last; exit 3");
    let waits = format!("while [ ! -d {gate} ]; do sleep 0.02; done; echo in >&2; mkdir {gate}.2");
    // Half lines of one command while another prints: they must not mix.
    let halves = "for i in 1 2 3; do printf ha; sleep 0.05; echo lf; done";
    let printed = stdout_of(example("many_threads", &server).args([&opens, &waits, halves]));

    let (lines, ends): (Vec<_>, Vec<_>) = printed.lines().partition(|line| !line.contains("ended"));
    let of = |label: &str| lines.iter().filter_map(|line| line.strip_prefix(label)).collect::<Vec<_>>();
    assert_eq!(of("0: "), ["first", "last"]);
    assert_eq!(of("1: "), ["in"]);
    assert_eq!(of("2: "), ["half", "half", "half"]);
    assert_eq!(lines.len(), 6, "{printed}");
    assert_eq!(ends, ["0 ended: exit status 3", "1 ended: exit status 0", "2 ended: exit status 0"]);
}

/// A web site: answers each connection with the path that was asked for, in capitals; as many as were announced.
fn site(pages: usize) -> (String, thread::JoinHandle<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = thread::spawn(move || {
        for _ in 0..pages {
            let mut stream = BufReader::new(listener.accept().unwrap().0);
            let (mut request, mut line) = (String::new(), String::new());
            stream.read_line(&mut request).unwrap();
            while stream.read_line(&mut line).unwrap() > 2 {
                line.clear();
            }
            let path = request.split(' ').nth(1).unwrap().to_uppercase();
            write!(stream.get_mut(), "HTTP/1.0 200 OK\r\nServer: this test\r\n\r\n{path}\n").unwrap();
        }
    });
    (address, serving)
}

/// A program that runs until the end of its input, once it has printed its first line.
struct Running {
    child: Killed,
    stdout: BufReader<std::process::ChildStdout>,
    first: String,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut child = Killed(child);
        let mut stdout = BufReader::new(child.0.stdout.take().expect("piped"));
        let (stdout, first) = within(PATIENCE, move || {
            let mut first = String::new();
            stdout.read_line(&mut first).unwrap();
            (stdout, first)
        });
        Running { child, stdout, first: first.trim_end().to_owned() }
    }

    /// Ends its input; what else it printed, to stdout and to stderr.
    fn end(mut self) -> (String, String) {
        drop(self.child.0.stdin.take());
        within(PATIENCE, move || {
            let (mut rest, mut said) = (String::new(), String::new());
            self.stdout.read_to_string(&mut rest).unwrap();
            self.child.0.stderr.take().expect("piped").read_to_string(&mut said).unwrap();
            assert!(self.child.0.wait().unwrap().success(), "{said}");
            (rest, said)
        })
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn local_forward_leads_to_a_site_behind_the_server() {
    let server = server();
    let (address, serving) = site(2);
    let running = Running::start(example("local_forward", &server).args(["127.0.0.1:0", &address]));
    let entrance = running.first.strip_prefix("listening on ").unwrap().to_owned();
    assert!(get(&entrance, "/one").ends_with("/ONE\n") && get(&entrance, "/two").ends_with("/TWO\n"));
    serving.join().unwrap();
    // Nobody is there any more.
    assert!(std::net::TcpStream::connect(&entrance).unwrap().read(&mut [0; 1]).is_err());
    let (printed, said) = running.end();
    assert!(printed.starts_with("3 connections, "), "{printed}");
    assert!(said.contains(&format!("to {address}")) && said.contains("refused"), "{said}");
}

#[test]
fn socks_leads_wherever_the_client_says() {
    let server = server();
    let (address, serving) = site(1);
    let running = Running::start(example("socks", &server).arg("127.0.0.1:0"));
    let proxy = running.first.strip_prefix("socks5h://").unwrap();
    let mut stream = std::net::TcpStream::connect(proxy).unwrap();
    let port = address.rsplit_once(':').unwrap().1.parse::<u16>().unwrap();
    // By name: it is the server that looks it up.
    stream.write_all(&[&b"\x05\x01\0\x05\x01\0\x03\x09localhost"[..], &port.to_be_bytes()].concat()).unwrap();
    stream.read_exact(&mut [0; 12]).unwrap();
    stream.write_all(b"GET /through HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("/THROUGH\n"), "{answer}");
    serving.join().unwrap();
    let (printed, _) = running.end();
    assert!(printed.contains("connections: 1,"), "{printed}");
}

#[test]
fn http_over_ssh_prints_the_page() {
    let server = server();
    let (address, serving) = site(1);
    assert_eq!(stdout_of(example("http_over_ssh", &server).args([&address, "/page"])), "/PAGE\n");
    serving.join().unwrap();
}

#[test]
fn remote_listener_answers_what_connects_at_the_server() {
    let server = server();
    let running = Running::start(example("remote_listener", &server).arg("127.0.0.1:0"));
    let (host, at) = running.first.split_once(" listens on ").unwrap();
    assert_eq!(host, server.host());
    let mut stream = std::net::TcpStream::connect(at).unwrap();
    stream.write_all(b"hello\nworld\n").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "HELLO\nWORLD\n");
}

#[test]
fn expect_answers_the_questions() {
    let server = server();
    let printed = stdout_of(&mut example("expect", &server));
    assert_eq!(printed, "asked about Alice\nit says Welcome\nexit status 0\n");
}

#[test]
fn shell_run_keeps_the_shell_and_tells_each_status() {
    let server = server();
    let commands = ["cd /usr; x='a b'", "pwd; echo \"$x\"", "(exit 3)"];
    let printed = stdout_of(example("shell_run", &server).args(commands));
    assert_eq!(
        printed,
        "$ cd /usr; x='a b'\n[exit status 0]\n\
         $ pwd; echo \"$x\"\n/usr\na b\n[exit status 0]\n\
         $ (exit 3)\n[exit status 3]\n"
    );
}

/// A sudo that knows one password and makes nobody root: the machine's own asks for passwords that a test cannot have.
const SUDO: &str = r#"#!/bin/sh
[ "$1" = -p ] && { prompt=$2; shift 2; }
stty -echo </dev/tty
printf %s "$prompt" >/dev/tty
IFS= read -r given </dev/tty
stty echo </dev/tty
echo >/dev/tty
[ "$given" = "open sesame" ] || { echo 'sudo: a password is required'; exit 1; }
exec "$@"
"#;

#[test]
fn sudo_is_answered_and_the_password_is_shown_nowhere() {
    let server = server();
    let directory = server.dir().join("home/bin");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("sudo"), SUDO).unwrap();
    fs::set_permissions(directory.join("sudo"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("PATH={}:$PATH; export PATH\n", directory.display());
    fs::write(server.dir().join("home/.profile"), path).unwrap();
    let sudo = |password: &str| {
        let mut command = example("sudo", &server);
        command.args(["echo root says hello"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
        let output = within(PATIENCE, move || child.wait_with_output().unwrap());
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    assert_eq!(sudo("open sesame\n"), "root says hello\n[exit status 0]\n");
    assert_eq!(sudo("wrong\n"), "sudo: a password is required\n[exit status 1]\n");
}

#[test]
fn every_example_is_tested_and_says_how_it_is_used() {
    let mut names: Vec<_> = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/examples"))
        .unwrap()
        .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    let tested = [
        "allow_anything",
        "exec",
        "expect",
        "feed_stdin",
        "http_over_ssh",
        "interact",
        "local_forward",
        "many_threads",
        "remote_listener",
        "shell",
        "shell_run",
        "socks",
        "subprocess_like",
        "sudo",
        "threads",
    ];
    assert_eq!(names, tested);
    for name in names {
        let output = output_within(PATIENCE, &mut Command::new(built(&name)));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&format!("usage: {name} user@host:port")), "{said}");
    }
}
