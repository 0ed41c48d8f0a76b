//! `threadline shell`: in tmux, where there is a terminal, and in pipes, where there is none.

use super::terminal::{line, Tmux};
use super::*;

/// A server whose login shell is sh.
fn server() -> Sshd {
    Sshd::builder().login_shell("/bin/sh").start().unwrap()
}

/// What the local shell says after the tool: its exit code, and whether the terminal is as it was.
const AFTER: &str = "echo code:$? raw:$(stty -a | tr ';' '\\n' | grep -c -e ' -echo ' -e ' -icanon ')";

/// A window in which the tool runs with these options and this command.
fn window(name: &str, server: &Sshd, options: &[&str], command: &[&str]) -> Tmux {
    let mut tool = shell(server, options);
    tool.args(command);
    Tmux::start(name, 100, 30, &format!("TERM=screen {}; {AFTER}", line(&tool)))
}

#[test]
fn a_shell_has_our_terminals_type_and_size_follows_it_and_passes_its_status_on() {
    let server = server();
    let tmux = window("shell", &server, &[], &[]);
    prompt(&tmux);
    tmux.keys(&["echo TERM=$TERM SIZE=$(stty size)", "Enter"]);
    tmux.shows("TERM=screen SIZE=30 100");
    tmux.run(&["resize-window", "-x", "111", "-y", "27"]);
    tmux.keys(&["while [ \"$(stty size)\" != '27 111' ]; do sleep 0.05; done; echo resi''zed", "Enter"]);
    tmux.shows("resized");
    // Control characters are the remote terminal's.
    tmux.keys(&["sleep 7030", "Enter"]);
    eventually(PATIENCE, "it runs", || sleeps(&server, "7030"));
    tmux.keys(&["C-c"]);
    eventually(PATIENCE, "it was interrupted", || !sleeps(&server, "7030"));
    tmux.keys(&["exit 7", "Enter"]);
    tmux.shows("code:7 raw:0");
}

/// Waits for the remote shell, and gives it a prompt that nobody else has.
fn prompt(tmux: &Tmux) {
    tmux.keys(&["PS1='remo''te$ '", "Enter"]);
    tmux.shows("remote$");
}

/// Whether the server runs a sleep of this length.
fn sleeps(server: &Sshd, seconds: &str) -> bool {
    server.processes().iter().any(|pid| {
        std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == format!("sleep\0{seconds}\0").as_bytes())
    })
}

#[test]
fn a_command_in_place_of_the_shell_has_the_terminal() {
    let server = server();
    let tmux = window("shellcmd", &server, &[], &["stty size; read x; echo got $x; exit 3"]);
    tmux.shows("30 100");
    tmux.keys(&["abc", "Enter"]);
    tmux.shows("got abc");
    tmux.shows("code:3 raw:0");
}

#[test]
fn escapes_at_the_start_of_a_line_help_tell_and_end() {
    let server = server();
    let tmux = window("escapes", &server, &[], &["stty -echo; echo ready; cat"]);
    tmux.shows("ready");
    tmux.keys(&["~?"]);
    tmux.shows("Escape sequences, at the start of a line:");
    tmux.keys(&["~#"]);
    tmux.shows("1 shell open for");
    tmux.keys(&["~~ one", "Enter", "two~.", "Enter"]);
    tmux.shows("~ one\ntwo~.");
    tmux.keys(&["~."]);
    tmux.shows("was closed by its user");
    tmux.shows("code:255 raw:0");
    eventually(PATIENCE, "the remote side was hung up", || server.session_pids().is_empty());
}

#[test]
fn another_escape_character_or_none_may_be_chosen() {
    let server = server();
    let script = "stty -echo; echo ready; cat";
    let tmux = window("escapeother", &server, &["-e", "%"], &[script]);
    tmux.shows("ready");
    tmux.keys(&["~.", "Enter"]);
    tmux.shows("~.");
    tmux.keys(&["%."]);
    tmux.shows("code:255 raw:0");
    let tmux = window("escapenone", &server, &["-e", "none"], &[script]);
    tmux.shows("ready");
    tmux.keys(&["~.", "Enter"]);
    tmux.shows("~.");
    tmux.keys(&["C-d"]);
    tmux.shows("code:0 raw:0");
}

#[test]
fn suspended_it_gives_the_terminal_back_and_goes_on_where_it_was() {
    let server = server();
    let mut tool = shell(&server, &[]);
    tool.arg("echo re''ady; read x; echo got $x");
    let tmux = Tmux::start("suspend", 100, 30, "PS1='local$ ' exec bash --norc --noprofile -i");
    tmux.shows("local$");
    tmux.keys(&[&line(&tool), "Enter"]);
    tmux.shows("ready");
    tmux.keys(&["~", "C-z"]);
    tmux.shows("Stopped");
    tmux.keys(&["stty -a | grep -o ' icanon'; echo lo''cal", "Enter"]);
    tmux.shows(" icanon\nlocal");
    tmux.keys(&["fg", "Enter"]);
    tmux.keys(&["abc", "Enter"]);
    tmux.shows("got abc");
}

#[test]
fn every_way_out_puts_the_terminal_right() {
    let server = server();
    for (signal, code) in [("TERM", 143), ("HUP", 129), ("INT", 130)] {
        let mut tool = shell(&server, &[]);
        tool.arg("echo ready; sleep 7031");
        let pid_file = server.dir().join("pid");
        let note = format!("sh -c 'echo $$ >{}; exec \"$@\"' sh", pid_file.display());
        let name = format!("out{signal}");
        let tmux = Tmux::start(&name, 100, 30, &format!("{note} {}; {AFTER}", line(&tool)));
        tmux.shows("ready");
        let pid = std::fs::read_to_string(pid_file).unwrap();
        assert!(run(Command::new("kill").args([&format!("-{signal}"), pid.trim()])).status.success());
        tmux.shows(&format!("code:{code} raw:0"));
    }

    let tmux = window("outlost", &server, &[], &["echo ready; sleep 7032"]);
    tmux.shows("ready");
    server.kill9();
    for pid in server.session_pids() {
        let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL);
    }
    tmux.shows("threadline: connection lost");
    tmux.shows("code:255 raw:0");
}

#[test]
fn a_fault_of_our_own_puts_the_terminal_right() {
    let server = server();
    let tool = line(&shell(&server, &[]));
    let tmux = Tmux::start("outpanic", 100, 30, &format!("THREADLINE_TEST_PANIC=1 {tool}; {AFTER}"));
    tmux.shows("asked for by a test (true)");
    tmux.shows("code:1 raw:0");
}

#[test]
fn an_editor_a_pager_and_a_display_that_refreshes_work() {
    let server = server();
    let file = server.dir().join("home/text");
    std::fs::write(&file, (1..=200).map(|i| format!("line {i}\n")).collect::<String>()).unwrap();
    let tmux = window("programs", &server, &[], &[]);
    prompt(&tmux);
    tmux.keys(&["vi -u NONE text; echo vi en''ded $?", "Enter"]);
    tmux.shows("line 29");
    tmux.keys(&["/line 150", "Enter", "A", " edited", "Escape", ":w", "Enter"]);
    tmux.shows("line 150 edited");
    eventually(PATIENCE, "it is saved", || std::fs::read_to_string(&file).unwrap().contains("line 150 edited\n"));
    // It throws away what is typed while it ends.
    tmux.keys(&[":q", "Enter"]);
    tmux.shows("vi ended 0");

    tmux.keys(&["clear; less text; echo less en''ded $?", "Enter"]);
    tmux.shows("line 29");
    tmux.keys(&["G"]);
    tmux.shows("line 200");
    // A new size is redrawn by whoever draws.
    tmux.run(&["resize-window", "-x", "80", "-y", "12"]);
    eventually(PATIENCE, "it has the new size", || {
        tmux.keys(&["g"]);
        let screen = tmux.screen();
        screen.starts_with("line 1\n") && screen.contains("line 11\n") && !screen.contains("line 12\n")
    });
    tmux.keys(&["q"]);
    tmux.shows("less ended 0");

    tmux.keys(&["clear; top -d 0.2; echo top en''ded $?", "Enter"]);
    tmux.shows("load average");
    tmux.keys(&["q"]);
    tmux.shows("top ended 0");
    tmux.keys(&["clear; echo still he''re; exit", "Enter"]);
    tmux.shows("still here");
    tmux.shows("code:0 raw:0");
}

#[test]
fn a_program_hands_its_shell_over_and_takes_it_back() {
    let server = server();
    let mut program = crate::examples::example("interact", &server);
    program.env("TERM", "screen");
    let home = server.dir().join("home");
    let tmux = Tmux::start("interact", 100, 30, &format!("HOME={} {}; {AFTER}", home.display(), line(&program)));
    tmux.shows("the shell is yours");
    prompt(&tmux);
    // What the program did is there, and the terminal echoes again.
    tmux.keys(&["echo in $(pwd) on $STAGE; cd /var; stty -a | grep -o ' echo '", "Enter"]);
    tmux.shows("in /usr on test\n echo");
    tmux.keys(&["~."]);
    tmux.shows("it was left in /var");
    tmux.shows("code:0 raw:0");
}

#[test]
fn without_a_terminal_the_shell_reads_a_script() {
    let server = server();
    let script = b"x=1\necho out $x\necho err >&2\ntty\nexit 4\n";
    for options in [&[][..], &["-T"]] {
        let output = run_with(&mut shell(&server, options), script.to_vec());
        assert_eq!(text(&output.stdout), "out 1\nnot a tty\n");
        assert_eq!((text(&output.stderr).as_str(), output.status.code()), ("err\n", Some(4)));
    }
    let output = run_with(shell(&server, &[]).args(["cat", ";", "exit", "5"]), vec![0, 255, b'\n']);
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&[0, 255, b'\n'][..], Some(5)));
    let output = run_with(&mut shell(&server, &["-tt"]), b"tty; exit 6\n".to_vec());
    assert!(text(&output.stdout).contains("/dev/pts/"), "{}", text(&output.stdout));
    assert_eq!(output.status.code(), Some(6));
}

#[test]
fn a_shell_that_cannot_be_had_is_one_line_and_255() {
    let server = Sshd::builder().login_shell("/bin/sh").option("PermitTTY no").start().unwrap();
    let tmux = window("refused", &server, &[], &[]);
    tmux.shows("refused the pty-req request");
    tmux.shows("code:255 raw:0");
    let mut nowhere = threadline();
    let output = run(nowhere.args(["shell", "-p", "1", "127.0.0.1"]));
    assert_eq!(failure(&output).0, 255);
}
