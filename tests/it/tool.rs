//! The `threadline` tool as its users run it.

mod forward;
mod interrupts;
mod lines;
mod others;
mod shell;
mod terminal;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

use rustix::process::{kill_process, Pid, Signal};

use crate::connect::PATIENCE;
use crate::sshd::{Sshd, HOST};
use crate::util::{eventually, noise, output_within, sha256, within};

/// The tool itself; signals act on it as at a terminal, however the tests were started.
fn threadline() -> Command {
    let mut tool = Command::new("env");
    tool.args(["--default-signal=INT,HUP,PIPE", env!("CARGO_BIN_EXE_threadline")]);
    for variable in ["RUST_LOG", "SSH_AUTH_SOCK", "NO_COLOR"] {
        tool.env_remove(variable);
    }
    tool
}

/// `threadline exec` with these options for a host that lets us in; what to run is to be added.
fn exec(server: &Sshd, options: &[&str]) -> Command {
    let mut tool = threadline();
    tool.arg("exec").args(access(server)).args(options).arg(HOST);
    tool
}

/// `threadline shell` with these options for a host that lets us in.
fn shell(server: &Sshd, options: &[&str]) -> Command {
    let mut tool = threadline();
    tool.arg("shell").args(access(server)).args(options).arg(HOST);
    tool
}

/// The options that let us in.
fn access(server: &Sshd) -> Vec<String> {
    let path = |path: &Path| path.display().to_string();
    let mut options = vec!["-p".to_owned(), server.port().to_string(), "-l".to_owned(), server.user().to_owned()];
    options.extend([
        "-i".to_owned(),
        path(&server.identity()),
        "--known-hosts".to_owned(),
        path(&server.known_hosts()),
    ]);
    options
}

#[track_caller]
fn run(tool: &mut Command) -> Output {
    output_within(PATIENCE, tool)
}

/// Runs it with this on its stdin.
#[track_caller]
fn run_with(tool: &mut Command, stdin: Vec<u8>) -> Output {
    let mut child = tool.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut to = child.stdin.take().unwrap();
    // It may end before it has read all of it.
    thread::spawn(move || to.write_all(&stdin));
    within(PATIENCE, move || child.wait_with_output().unwrap())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The exit code and the one line that says why.
#[track_caller]
fn failure(output: &Output) -> (i32, String) {
    let said = text(&output.stderr);
    assert!(said.starts_with("threadline: ") && said.ends_with('\n'), "{said:?}");
    assert_eq!(said.lines().count(), 1, "{said}");
    (output.status.code().unwrap_or(-1), said.trim_end().to_owned())
}

/// Whether a process runs: one that only waits for its parent to ask does not.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

fn send(child: &std::process::Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn bytes_pass_through_untouched_both_ways() {
    let server = Sshd::start().unwrap();
    let mut data = (0..=255).collect::<Vec<u8>>();
    std::io::Read::read_to_end(&mut noise(1, 1 << 20), &mut data).unwrap();
    let output = run_with(exec(&server, &[]).arg("cat"), data.clone());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(sha256(&output.stdout[..]).unwrap(), sha256(&data[..]).unwrap());
    assert_eq!(text(&output.stderr), "", "with one command that is well nothing is said");
}

#[test]
fn stderr_goes_to_stderr_and_the_words_are_joined_by_spaces() {
    let server = Sshd::start().unwrap();
    let output = run(exec(&server, &[]).args(["echo", "a  b;", "echo", "err", ">&2"]));
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("a b\n".into(), "err\n".into()));
    let same = run(exec(&server, &[]).args(["-c", "echo 'a  b'; echo err >&2"]));
    assert_eq!((text(&same.stdout), text(&same.stderr)), ("a  b\n".into(), "err\n".into()));
}

#[test]
fn the_end_of_stdin_is_forwarded_and_n_reads_none() {
    let server = Sshd::start().unwrap();
    let output = run_with(exec(&server, &[]).arg("wc -c"), b"12345".to_vec());
    assert_eq!(text(&output.stdout).trim(), "5");
    // Our end of its stdin stays open: without -n it would wait for ever.
    let mut child = exec(&server, &["-n"]).arg("wc -c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take();
    let output = within(PATIENCE, move || child.wait_with_output().unwrap());
    assert_eq!(text(&output.stdout).trim(), "0");
    drop(stdin);
}

#[test]
fn the_exit_code_is_the_remote_one_and_a_signal_is_128_and_its_number() {
    let server = Sshd::start().unwrap();
    for code in [0, 1, 2, 3, 126, 127, 128, 200, 254, 255] {
        let output = run(exec(&server, &[]).arg(format!("exit {code}")));
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(code), String::new()));
    }
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("USR1", 138)] {
        let output = run(exec(&server, &[]).arg(format!("kill -{signal} $$")));
        assert_eq!(output.status.code(), Some(code), "{signal}");
    }
}

#[test]
fn a_failure_of_ours_is_255_and_one_line_that_says_what_to_do() {
    let server = Sshd::start().unwrap();
    let stranger = server.dir().join("stranger");
    let keygen = ["-q", "-t", "ed25519", "-N", "", "-f"];
    assert!(run(Command::new("ssh-keygen").args(keygen).arg(&stranger)).status.success());
    let (port, known) = (server.port().to_string(), server.known_hosts().display().to_string());
    let host = format!("{}@{HOST}:{port}", server.user());

    let mut tool = threadline();
    tool.args(["exec", "-i"]).arg(&stranger).args(["--known-hosts", &known, &host, "true"]);
    let (code, said) = failure(&run(&mut tool));
    assert!(code == 255 && said.contains("refused by the server") && said.contains("-i"), "{code} {said}");

    let mut tool = threadline();
    tool.args(["exec", "--known-hosts", "/dev/null", &host, "true"]);
    let (code, said) = failure(&run(&mut tool));
    assert!(code == 255 && said.contains("SHA256:") && said.contains("--accept-new"), "{code} {said}");

    let closed = std::net::TcpListener::bind((HOST, 0)).unwrap().local_addr().unwrap().port();
    let (code, said) = failure(&run(threadline().args(["exec", "-p", &closed.to_string(), "-l", "x", HOST, "true"])));
    assert!(code == 255 && said.contains("refused") && said.contains("-p PORT"), "{code} {said}");

    let (code, said) = failure(&run(threadline().args(["exec", "-l", "x", "no-such-host.invalid", "true"])));
    assert!(code == 255 && said.contains("cannot resolve"), "{code} {said}");
}

#[test]
fn a_wrong_command_line_is_2_and_one_line() {
    for (line, expected) in [
        (&["exec", "--bogus", "web1", "true"][..], "--bogus"),
        (&["exec", "web1"], "needs a command"),
        (&["exec", "-A", "web1", "true"], "not supported yet"),
        (&["exec", "-e", "~", "web1", "true"], "only -e none"),
        (&["exec", "-o", "ProxyJump=x", "web1", "true"], "supported are: BatchMode"),
        (&["exec", "--idle", "5", "web1", "true"], "500ms, 10s"),
        (&["exec", "-p", "66000", "web1", "true"], "66000"),
        (&["exec", "a b", "true"], "spaces"),
        (&["no-such-verb"], "no-such-verb"),
    ] {
        let (code, said) = failure(&run(threadline().args(line)));
        assert_eq!(code, 2, "{line:?}: {said}");
        assert!(said.contains(expected), "{line:?}: {said}");
    }
}

#[test]
fn the_banner_is_shown_escaped_even_when_the_login_fails_and_not_with_q() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "Be\twarned\n\x1b[31mred\n").unwrap();
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let server = Sshd::builder().option(&format!("Banner {}", file.path().display())).start().unwrap();
    let shown = "Be\twarned\n\\u{1b}[31mred\n";
    let output = run(exec(&server, &[]).arg("echo hi"));
    assert_eq!((text(&output.stdout), text(&output.stderr)), ("hi\n".into(), shown.into()));
    assert_eq!(text(&run(exec(&server, &["-q"]).arg("true")).stderr), "");

    let known = server.known_hosts().display().to_string();
    let host = format!("nobody-here@{HOST}:{}", server.port());
    let refused =
        run(threadline().args(["exec", "--known-hosts", &known, "-i"]).arg(server.identity()).args([&host, "true"]));
    assert_eq!(refused.status.code(), Some(255));
    assert!(text(&refused.stderr).starts_with(shown), "{}", text(&refused.stderr));
}

#[test]
fn a_new_host_is_added_and_a_changed_one_refused() {
    let server = Sshd::start().unwrap();
    let known = server.dir().join("new_hosts");
    let mut base = vec!["exec".to_owned(), "--known-hosts".to_owned(), known.display().to_string()];
    base.extend(access(&server).into_iter().take(6));
    let run_it = |more: &[&str]| run(threadline().args(&base).args(more).args([HOST, "true"]));
    assert_eq!(run_it(&[]).status.code(), Some(255));
    assert_eq!(run_it(&["--accept-new"]).status.code(), Some(0));
    assert_eq!(run_it(&[]).status.code(), Some(0), "it is known now");

    let other = Sshd::start().unwrap();
    let changed = other.host_keys()[0].clone();
    std::fs::write(&known, format!("[{HOST}]:{} {changed}\n", server.port())).unwrap();
    let (code, said) = failure(&run_it(&["-o", "StrictHostKeyChecking=accept-new"]));
    assert!(code == 255 && said.contains("HAS CHANGED") && said.contains("remove line 1"), "{code} {said}");
}

#[test]
fn a_password_comes_from_a_file_that_only_its_owner_can_read() {
    let server = Sshd::builder().login_user("alice").password().start().unwrap();
    let file = server.dir().join("password");
    std::fs::write(&file, format!("{}\n", crate::sshd::PASSWORD)).unwrap();
    let mode = |mode| std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    let login = || {
        let mut tool = threadline();
        tool.args(["exec", "-i", "/dev/null", "--known-hosts"]).arg(server.known_hosts());
        tool.arg("--password-file").arg(&file).arg(format!("alice@{HOST}:{}", server.port())).arg("echo in");
        run(&mut tool)
    };
    mode(0o644);
    let (code, said) = failure(&login());
    assert!(code == 2 && said.contains("chmod 600"), "{code} {said}");
    mode(0o600);
    let output = login();
    assert_eq!(text(&output.stdout), "in\n", "{}", text(&output.stderr));
}

#[test]
fn a_subsystem_is_spoken_to_through_stdin_and_stdout() {
    let server = Sshd::start().unwrap();
    // SSH_FXP_INIT of version 3; the answer is SSH_FXP_VERSION.
    let mut tool = exec(&server, &["-s"]);
    let mut child = tool.arg("sftp").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    to.write_all(&[0, 0, 0, 5, 1, 0, 0, 0, 3]).unwrap();
    let answer = within(PATIENCE, move || {
        let mut answer = [0; 9];
        std::io::Read::read_exact(&mut from, &mut answer).unwrap();
        answer
    });
    assert_eq!(answer[4..], [2, 0, 0, 0, 3]);
    drop(to);
    assert_eq!(within(PATIENCE, move || child.wait().unwrap()).code(), Some(0));
}

#[test]
fn variables_are_set_for_the_command_without_the_servers_leave() {
    let server = Sshd::start().unwrap();
    let output = run(exec(&server, &["--env", "A=it's  $HOME", "--env", "B=-x="]).arg("echo \"$A|$B\"; exit 4"));
    assert_eq!((text(&output.stdout), output.status.code()), ("it's  $HOME|-x=\n".into(), Some(4)));
}

#[test]
fn what_happens_is_logged_where_and_as_much_as_was_asked_for() {
    let server = Sshd::start().unwrap();
    let said = |options: &[&str]| text(&run(exec(&server, options).arg("true")).stderr);
    assert_eq!(said(&[]), "");
    assert!(said(&["-v"]).contains("connected to"));
    assert!(said(&["-vvv"]).len() > said(&["-v"]).len());
    let by_variable = run(exec(&server, &[]).arg("true").env("RUST_LOG", "threadline=info"));
    assert!(text(&by_variable.stderr).contains("connected to"));

    let log = server.dir().join("tool.log");
    assert_eq!(said(&["--log", &log.display().to_string()]), "");
    assert!(std::fs::read_to_string(&log).unwrap().contains("connected to"));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&log).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}
