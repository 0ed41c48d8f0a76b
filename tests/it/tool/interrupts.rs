//! Ctrl-C, timeouts, readers that go away: the remote work ends, too.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout};

use super::*;

/// Starts it and reads the first line of its stdout: the remote process id.
#[track_caller]
fn start(tool: &mut Command) -> (Child, BufReader<ChildStdout>, String) {
    let mut child = tool.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let (stdout, line) = within(PATIENCE, move || {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        (stdout, line)
    });
    let pid = line.trim().rsplit(' ').next().unwrap().to_owned();
    assert!(runs(&pid), "{line:?}");
    (child, stdout, pid)
}

#[track_caller]
fn finish(child: Child) -> Output {
    within(PATIENCE, move || child.wait_with_output().unwrap())
}

#[test]
fn ctrl_c_ends_the_remote_command_and_its_children() {
    let server = Sshd::start().unwrap();
    let (child, mut stdout, pid) = start(exec(&server, &[]).arg("echo $$; sleep 300 | sleep 301; echo never"));
    send(&child, Signal::INT);
    let output = finish(child);
    assert_eq!(output.status.code(), Some(130));
    assert_eq!(text(&output.stderr), "threadline: interrupted; the remote command is gone\n");
    assert!(!runs(&pid));
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
}

#[test]
fn a_command_that_ignores_term_is_killed_after_the_grace_and_what_it_says_meanwhile_is_printed() {
    let server = Sshd::start().unwrap();
    let stubborn = "trap 'echo not yet' TERM; echo $$; while :; do sleep 0.05; done";
    let (child, mut stdout, pid) = start(exec(&server, &["--kill-grace", "500ms"]).arg(stubborn));
    send(&child, Signal::TERM);
    let output = finish(child);
    assert_eq!(output.status.code(), Some(143), "SIGTERM to us is 128 + 15");
    assert!(!runs(&pid), "{}", text(&output.stderr));
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "not yet\n");
}

#[test]
fn a_second_ctrl_c_leaves_at_once() {
    let server = Sshd::start().unwrap();
    let stubborn = "trap 'echo caught' TERM; echo $$; while :; do sleep 0.05; done";
    let (child, mut stdout, pid) = start(exec(&server, &["--kill-grace", "1h"]).arg(stubborn));
    send(&child, Signal::INT);
    let first = within(PATIENCE, move || {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        (line, stdout)
    });
    assert_eq!(first.0, "caught\n");
    send(&child, Signal::INT);
    assert_eq!(finish(child).status.code(), Some(130));
    assert!(runs(&pid));
}

#[test]
fn with_no_kill_the_remote_command_is_left_running() {
    let server = Sshd::start().unwrap();
    let (child, _stdout, pid) = start(exec(&server, &["--no-kill"]).arg("echo $$; exec sleep 300"));
    send(&child, Signal::INT);
    assert_eq!(finish(child).status.code(), Some(130));
    eventually(PATIENCE, "the connection is closed", || server.session_pids().is_empty());
    assert!(runs(&pid));
}

#[test]
fn ctrl_c_ends_several_commands_and_each_is_reported() {
    let server = Sshd::start().unwrap();
    let sleeper = "echo $$; exec sleep 300";
    let mut tool = exec(&server, &[]);
    let (child, mut stdout, first) = start(tool.args(["-c", sleeper, "-c", sleeper]));
    let (second, stdout) = within(PATIENCE, move || {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        (line.trim().rsplit(' ').next().unwrap().to_owned(), stdout)
    });
    send(&child, Signal::INT);
    let output = finish(child);
    drop(stdout);
    assert_eq!(output.status.code(), Some(130));
    let said = text(&output.stderr);
    for number in [1, 2] {
        assert!(said.contains(&format!("command {number}: interrupted; the remote command is gone")), "{said}");
    }
    assert!(!runs(&first) && !runs(&second));
}

#[test]
fn a_timeout_ends_the_remote_command_and_is_3() {
    let server = Sshd::start().unwrap();
    for (options, command) in [
        (["--timeout", "700ms"], "echo $$; exec sleep 300"),
        (["--idle", "700ms"], "echo $$; sleep 0.2; echo more; exec sleep 300"),
        // It never pauses, so that nobody ever waits for it.
        (["--timeout", "700ms"], "echo $$; exec yes"),
    ] {
        let output = run(exec(&server, &options).arg(command));
        let (code, said) = failure(&output);
        let pid = text(&output.stdout).lines().next().unwrap_or_default().to_owned();
        assert!(code == 3 && said.contains("timed out after 0.7 s"), "{options:?}: {code} {said}");
        assert!(said.ends_with("the remote command is gone"), "{said}");
        assert!(!runs(&pid), "{options:?} {pid:?}");
    }
}

#[test]
fn a_timeout_of_one_of_several_leaves_the_others_alone() {
    let server = Sshd::start().unwrap();
    let mut tool = exec(&server, &["--json", "--timeout", "4s"]);
    let output = run(tool.args(["-c", "echo $$; exec sleep 300", "-c", "echo fine", "-c", "echo $$; exec yes"]));
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let events: Vec<serde_json::Value> =
        text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (cmd, status) in [(1, "timeout"), (2, "ok"), (3, "timeout")] {
        let end = events.iter().find(|e| e["ev"] == "end" && e["cmd"] == cmd).unwrap();
        assert_eq!(end["status"], status, "{end}");
        assert_eq!(end["kill"].as_str(), (status == "timeout").then_some("gone"), "{end}");
        if status == "timeout" {
            let first = events.iter().find(|e| e["ev"] == "out" && e["cmd"] == cmd).unwrap();
            assert!(!runs(first["line"].as_str().unwrap()));
        }
    }
}

#[test]
fn when_nobody_reads_the_output_any_more_the_tool_ends_as_cat_does() {
    let server = Sshd::start().unwrap();
    for commands in [&["-c", "echo $$; exec yes"][..], &["-c", "echo $$; exec yes", "-c", "exec sleep 300"]] {
        let (child, stdout, pid) = start(exec(&server, &[]).args(commands));
        drop(stdout);
        let output = finish(child);
        assert_eq!(output.status.signal(), Some(13), "{commands:?} {:?}", output.status);
        assert_eq!(text(&output.stderr), "", "{commands:?}");
        eventually(PATIENCE, "the remote command ends as well", || !runs(&pid));
    }
}
