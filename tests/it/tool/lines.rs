//! Several commands over one connection: labels, NDJSON, exit codes.

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use serde_json::Value;

use super::*;

#[test]
fn several_commands_run_at_the_same_time_over_one_connection() {
    let server = Sshd::start().unwrap();
    let fifos = ["to1", "to2"].map(|name| server.dir().join(name).display().to_string());
    assert!(run(Command::new("mkfifo").args(&fifos)).status.success());
    let [to1, to2] = &fifos;
    // Each waits for the other: one after the other they would never end.
    let first = format!("echo a; read x <{to1}; echo b $x; echo done >{to2}");
    let second = format!("echo A; echo go >{to1}; read x <{to2}; echo B $x; echo bad >&2");
    let output = run(exec(&server, &[]).args(["-c", &first, "-c", &second]));
    assert_eq!(output.status.code(), Some(0));
    let stdout = text(&output.stdout);
    let of = |label: &str| stdout.lines().filter(|l| l.starts_with(label)).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!((of("1"), of("2")), (vec!["1: a".into(), "1: b go".into()], vec!["2: A".into(), "2: B done".into()]));
    assert_eq!(stdout.lines().count(), 4, "{stdout}");
    assert_eq!(text(&output.stderr), "2! bad\n");
    let logins = server.log().lines().filter(|line| line.contains("Accepted publickey")).count();
    assert_eq!(logins, 1, "{}", server.log());
}

#[test]
fn labels_are_what_was_asked_for() {
    let server = Sshd::start().unwrap();
    let said = |options: &[&str]| {
        let output = run(exec(&server, options).args(["-c", "echo x", "-c", "true"]));
        text(&output.stdout)
    };
    assert_eq!(said(&[]), "1: x\n");
    assert_eq!(said(&["--label", "n"]), "1: x\n");
    assert_eq!(said(&["--label", "host"]), format!("{HOST}: x\n"));
    assert_eq!(said(&["--label", "cmd"]), "echo x: x\n");
    assert_eq!(said(&["--label", "none"]), "x\n");
    assert_eq!(said(&["-N"]), "x\n");
    let stamped = said(&["--ts"]);
    let seconds = stamped.strip_suffix(" 1: x\n").unwrap_or_else(|| panic!("{stamped}"));
    assert!(seconds.parse::<f64>().is_ok(), "{stamped}");
}

#[test]
fn the_lowest_failure_is_the_exit_code_and_each_is_named() {
    let server = Sshd::start().unwrap();
    let ends = |commands: &[&str]| {
        let mut tool = exec(&server, &[]);
        for command in commands {
            tool.args(["-c", command]);
        }
        let output = run(&mut tool);
        (output.status.code().unwrap(), text(&output.stderr))
    };
    assert_eq!(ends(&["true", "true"]), (0, String::new()));
    assert_eq!(ends(&["true", "exit 7"]), (5, "threadline: command 2: exit status 7\n".into()));
    let (code, said) = ends(&["exit 7", "kill -TERM $$"]);
    assert!(code == 3 && said.contains("command 2: signal TERM"), "{code} {said}");

    let known = ["--known-hosts", "/dev/null"];
    let mut stranger = threadline();
    stranger.args(["exec", "-p", &server.port().to_string(), "-l", "x"]).args(known).arg(HOST);
    let (code, said) = failure(&run(stranger.args(["-c", "true", "-c", "true"])));
    assert!(code == 4 && said.contains("--accept-new"), "{code} {said}");
}

/// The events, each checked for what all have.
#[track_caller]
fn events(stdout: &[u8]) -> Vec<Value> {
    let events: Vec<Value> = text(stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (number, event) in events.iter().enumerate() {
        assert_eq!((&event["v"], &event["seq"]), (&1.into(), &(number + 1).into()), "{event}");
        // After 2020 and before 2200.
        assert!(
            (1_577_836_800_000_000_000..7_258_118_400_000_000_000).contains(&event["t"].as_u64().unwrap()),
            "{event}"
        );
    }
    events
}

/// The bytes of one stream, put together again.
fn stream(events: &[Value], cmd: u64, stream: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for event in events.iter().filter(|e| e["ev"] == "out" && e["cmd"] == cmd && e["stream"] == stream) {
        match (event["line"].as_str(), event["b64"].as_str()) {
            (Some(line), None) => bytes.extend_from_slice(line.as_bytes()),
            (None, Some(b64)) => bytes.extend(STANDARD.decode(b64).unwrap()),
            _ => panic!("{event}"),
        }
        if event["eol"] == true {
            bytes.push(b'\n');
        }
    }
    bytes
}

#[test]
fn ndjson_is_complete_and_gives_every_byte_back() {
    let server = Sshd::start().unwrap();
    let long = "head -c 300000 /dev/zero | tr '\\0' x; printf '\\n\\377\\376\\0\\n\\033[31mno newline'";
    let both = "printf 'o1\\n'; printf 'e1\\n' >&2; exit 9";
    let output = run(exec(&server, &["--json"]).args(["-c", long, "-c", both]));
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(5), String::new()));
    let events = events(&output.stdout);

    let expected = [&vec![b'x'; 300_000][..], b"\n\xff\xfe\0\n\x1b[31mno newline"].concat();
    assert!(stream(&events, 1, "stdout") == expected);
    assert_eq!((stream(&events, 2, "stdout"), stream(&events, 2, "stderr")), (b"o1\n".to_vec(), b"e1\n".to_vec()));

    assert_eq!((&events[0]["ev"], &events[0]["commands"][1]), (&"plan".into(), &both.into()));
    let position = |ev: &str, cmd: u64| events.iter().position(|e| e["ev"] == ev && e["cmd"] == cmd).unwrap();
    for cmd in [1, 2] {
        assert!(position("start", cmd) < position("out", cmd) && position("out", cmd) < position("end", cmd));
    }
    let end = |cmd| &events[position("end", cmd)];
    assert_eq!((&end(1)["status"], &end(1)["code"]), (&"ok".into(), &0.into()));
    assert_eq!(end(1)["bytes"], expected.len());
    assert_eq!((&end(2)["status"], &end(2)["code"], &end(2)["bytes"]), (&"exit".into(), &9.into(), &6.into()));
    let summary = events.last().unwrap();
    assert_eq!(summary["ev"], "summary");
    assert_eq!((&summary["planned"], &summary["ok"], &summary["failed"]), (&2.into(), &1.into(), &1.into()));
    assert_eq!(summary["exit"], 5);
}

#[test]
fn ndjson_keeps_the_order_in_which_both_streams_arrived() {
    let server = Sshd::start().unwrap();
    // The pauses make each line a packet of its own; the order is what is tested, not the time.
    let alternating = "for i in 1 2 3 4 5; do echo o$i; sleep 0.02; echo e$i >&2; sleep 0.02; done";
    let output = run(exec(&server, &["--json"]).arg(alternating));
    let lines: Vec<_> = events(&output.stdout).iter().filter_map(|e| e["line"].as_str().map(str::to_owned)).collect();
    assert_eq!(lines.join(" "), "o1 e1 o2 e2 o3 e3 o4 e4 o5 e5");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn ndjson_reports_commands_that_never_started() {
    let server = Sshd::start().unwrap();
    let mut stranger = threadline();
    stranger.args(["exec", "--json", "-p", &server.port().to_string(), "-l", "x", "--known-hosts", "/dev/null", HOST]);
    let output = run(stranger.args(["-c", "true", "-c", "false"]));
    failure(&output);
    let events = events(&output.stdout);
    let ends: Vec<_> = events.iter().filter(|e| e["ev"] == "end").map(|e| e["status"].clone()).collect();
    assert_eq!(ends, ["hostkey", "hostkey"]);
    assert_eq!((&events.last().unwrap()["unreachable"], output.status.code()), (&2.into(), Some(4)));
}

#[test]
fn one_command_as_lines_gets_our_stdin_and_gives_its_exit_code() {
    let server = Sshd::start().unwrap();
    let output = run_with(exec(&server, &["--label", "host"]).arg("cat; exit 42"), b"a\nb".to_vec());
    assert_eq!((text(&output.stdout), output.status.code()), (format!("{HOST}: a\n{HOST}: b\n"), Some(42)));
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn more_commands_than_the_server_has_sessions_are_all_done() {
    let server = Sshd::builder().option("MaxSessions 2").start().unwrap();
    let mut tool = exec(&server, &["-N"]);
    for number in 1..=7 {
        tool.args(["-c", &format!("echo {number}")]);
    }
    let output = run(&mut tool);
    let mut lines: Vec<_> = text(&output.stdout).lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!((lines.join(" "), output.status.code()), ("1 2 3 4 5 6 7".into(), Some(0)), "{}", text(&output.stderr));
}
