//! Commands: quoting, environment, streams, timeouts, signals, process groups.

use std::collections::HashSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process;
use std::thread;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, TestError, TestRunner};
use rustix::process::Signal;
use threadline::{
    Child, Client, Command, Error, ExitPolicy, ExitStatus, KillOutcome, OnDrop, Phase, Pty, Stdio, Stream,
};

use crate::connect::{client, PATIENCE};
use crate::sshd::{Builder, Sshd};
use crate::util::{eventually, output_within, within};

const FISH: &str = "/usr/bin/fish";
const TCSH: &str = "/bin/tcsh";
/// One of each kind.
const SHELLS: [&str; 6] = ["/bin/sh", "/bin/bash", "/bin/zsh", "/bin/ksh", FISH, TCSH];

/// A server whose user has this login shell.
#[track_caller]
fn server_with(shell: &str) -> Sshd {
    assert!(Path::new(shell).exists(), "{shell} is not installed: `make deps`");
    Sshd::builder().login_shell(shell).option("AcceptEnv LC_ALL").start().unwrap()
}

/// A server for scripts of sh, whatever shell we have ourselves.
fn sh_server() -> Sshd {
    Sshd::builder().login_shell("/bin/sh").start().unwrap()
}

/// A server that lets us in as we are, and, if we are root, one that lets another user in: sshd treats root apart.
fn users() -> Vec<Builder> {
    let sh = || Sshd::builder().login_shell("/bin/sh");
    let mut all = vec![sh()];
    if rustix::process::getuid().is_root() {
        all.push(sh().login_uid(12345));
    }
    all
}

/// A server that lets somebody in who is not root.
fn not_root() -> Builder {
    users().pop().expect("one at least")
}

fn stdout_of(command: &Command) -> String {
    let out = command.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stderr), "", "nothing on stderr, and {}", out.status);
    String::from_utf8(out.stdout).unwrap()
}

/// The running processes of a process group of this machine.
fn members(group: u32) -> HashSet<u32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map(|(_, fields)| fields.split(' ').collect::<Vec<_>>());
        fields.is_some_and(|f| !matches!(f[0], "Z" | "X") && f[2] == group.to_string())
    })
    .collect()
}

/// Waits until so many processes are in the child's group, and returns the group.
#[track_caller]
fn group_of(child: &Child, count: usize) -> u32 {
    let group = child.process_group_id().expect("the command told its process group");
    eventually(PATIENCE, "all processes of the command run", || members(group).len() == count);
    group
}

fn read_line(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    line
}

// ---- Quoting ----

/// Words that some shell reads in its own way.
fn awkward() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = (1..=255).map(|byte| vec![byte]).collect();
    all.extend((1..=255).map(|byte| vec![0xc3, byte, b'\'']));
    for word in [
        "",
        "-",
        "--",
        "-n",
        "-e",
        "!",
        "!!",
        "!$",
        "a!b",
        "\\",
        "\\\\",
        "\\n",
        "a\\",
        "'",
        "''",
        "'\\''",
        "\"",
        "~",
        "~root",
        "*",
        "/*",
        "\n",
        "\n\n",
        "a\nb",
        "\r\n",
        "\nexit 9\n",
        "'\nexit 9\n'",
        "$HOME",
        "${HOME}",
        "`id`",
        "$(id)",
        "(id)",
        "%s",
        "%self",
        "{a,b}",
        "[a-z]",
        "#",
        "a#",
        "=ls",
        "^a^b",
        "a=b",
        "&",
        "&&",
        ";",
        "|",
        ">x",
        "<x",
        "if",
        "@",
        ":",
        "ü€😀",
        "\u{f600}\u{f6ff}",
        "\x1b[31m",
    ] {
        all.push(word.into());
    }
    all.extend([b"\xff\xfe".to_vec(), b"\xe2\x82".to_vec(), b"\xe2\x82'".to_vec()]);
    all
}

/// Any bytes but NUL, with a liking for those that mean something.
fn words() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let any = vec(1..=255u8, 0..24);
    let special = proptest::sample::select(b"'\\!\n\x83\xc3\xe2\xff a$`\"".to_vec());
    vec(proptest::prop_oneof![any, vec(special, 0..12)], 1..48)
}

/// Ways to run the same program.
fn ways(client: &Client) -> Vec<Command> {
    let printf = client.command("printf").arg("%s\\0");
    vec![
        printf.clone(),
        client.command("/usr/bin/printf").arg("%s\\0"),
        printf.clone().env("LC_ALL", "C.UTF-8"),
        printf.clone().current_dir("/").env_inline("A", "it's\n!"),
        printf.clone().env("LC_ALL", "C.UTF-8").process_group(true),
        printf.process_group(true).current_dir("/").env_inline("A", "\\"),
    ]
}

fn printed(command: &Command, words: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, String> {
    let out = command.clone().args(words).output().map_err(|e| e.to_string())?;
    if !out.stderr.is_empty() || !out.status.success() {
        return Err(format!("{}: {}", out.status, String::from_utf8_lossy(&out.stderr)));
    }
    let mut all: Vec<Vec<u8>> = out.stdout.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect();
    all.pop();
    Ok(all)
}

/// The property: the program gets exactly the bytes given, whichever shell reads the command.
fn arguments_arrive_through(shell: &'static str) {
    within(PATIENCE, move || {
        let server = server_with(shell);
        let client = client(&server);
        for command in ways(&client) {
            for some in awkward().chunks(300) {
                assert_eq!(printed(&command, some).as_deref(), Ok(some), "{shell}");
            }
        }

        let big = vec(1..=255u8, 20_000).new_tree(&mut TestRunner::deterministic()).unwrap().current();
        let out = client.command("printf").arg("%s").arg(&big).output().unwrap();
        assert!(out.stdout == big, "{shell}: 20 kB in one argument: {} came", out.stdout.len());

        let config = Config { cases: 30, max_shrink_iters: 60, failure_persistence: None, ..Config::default() };
        let ways = ways(&client);
        let outcome = TestRunner::new(config).run(&(0..ways.len(), words()), |(way, words)| {
            proptest::prop_assert_eq!(printed(&ways[way], &words), Ok(words.clone()));
            Ok(())
        });
        if let Err(TestError::Fail(reason, words)) = outcome {
            panic!("{shell}: {reason}\n{words:?}");
        }
    });
}

#[test]
fn any_bytes_but_nul_arrive_through_sh() {
    arguments_arrive_through("/bin/sh");
}

#[test]
fn any_bytes_but_nul_arrive_through_dash() {
    arguments_arrive_through("/bin/dash");
}

#[test]
fn any_bytes_but_nul_arrive_through_bash() {
    arguments_arrive_through("/bin/bash");
}

#[test]
fn any_bytes_but_nul_arrive_through_zsh() {
    arguments_arrive_through("/bin/zsh");
}

#[test]
fn any_bytes_but_nul_arrive_through_ksh() {
    arguments_arrive_through("/bin/ksh");
}

#[test]
fn any_bytes_but_nul_arrive_through_fish() {
    arguments_arrive_through(FISH);
}

#[test]
fn any_bytes_but_nul_arrive_through_tcsh() {
    arguments_arrive_through(TCSH);
}

#[test]
fn tcsh_ends_a_command_at_a_newline_even_inside_quotes_so_command_sends_none() {
    within(PATIENCE, || {
        let server = server_with(TCSH);
        let client = client(&server);
        let text = client.sh("printf %s 'a\necho not data any more\n'").output().unwrap();
        assert_eq!(text.stdout, b"not data any more\n");
        assert!(String::from_utf8_lossy(&text.stderr).contains("Unmatched"), "{text:?}");
        // arg() of sh() is part of that text.
        let text = client.sh("printf %s").arg("a\necho not data any more\n").output().unwrap();
        assert_eq!(text.stdout, b"not data any more\n");

        assert_eq!(stdout_of(&client.command("printf").arg("%s").arg("a\necho b\n")), "a\necho b\n");
        // As `!` is escaped outside of quotes it is no history substitution either; typed by hand it is one.
        assert_eq!(stdout_of(&client.command("echo").arg("!!")), "!!\n");
        let typed = client.sh("echo '!x'").output().unwrap();
        assert!(String::from_utf8_lossy(&typed.stderr).contains("Event not found"), "{typed:?}");
    });
}

#[test]
fn text_for_sh_is_not_text_for_fish_or_tcsh() {
    within(PATIENCE, || {
        let fish = server_with(FISH);
        let out = client(&fish).sh("false; echo $?").output().unwrap();
        assert_eq!(out.stdout, b"");
        assert!(String::from_utf8_lossy(&out.stderr).contains("please use $status"), "{out:?}");
        assert_eq!(stdout_of(&client(&fish).sh("false; echo $status")), "1\n");
        // Without a locale, and sshd sets none, fish hands on the variables that it was given in another encoding.
        let variable = client(&fish).sh("printenv A").env_inline("A", "ü");
        assert_eq!(stdout_of(&variable), "Ã¼\n");
        assert_eq!(stdout_of(&variable.env("LC_ALL", "C.UTF-8")), "ü\n");

        let tcsh = server_with(TCSH);
        let out = client(&tcsh).sh("A=b printenv A").output().unwrap();
        assert_eq!((out.stdout.as_slice(), out.status.code()), (b"".as_slice(), Some(1)));
        assert_eq!(stdout_of(&client(&tcsh).sh("setenv A b; printenv A")), "b\n");
        // What is meant for sh whatever the login shell is says so.
        for server in [&fish, &tcsh] {
            let sh = client(server).command("sh").arg("-c").arg("A=b printenv A\nfalse; echo $?");
            assert_eq!(stdout_of(&sh), "b\n1\n");
        }
    });
}

#[test]
fn an_alias_or_a_reserved_word_does_not_take_a_programs_place_but_a_fish_function_does() {
    within(PATIENCE, || {
        for (shell, file) in [("/bin/zsh", ".zshenv"), (TCSH, ".tcshrc"), (FISH, ".config/fish/config.fish")] {
            let server = server_with(shell);
            let file = server.dir().join("home").join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            let alias = if shell == "/bin/zsh" { "alias ls='echo alias'" } else { "alias ls 'echo alias'" };
            fs::write(&file, alias).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
            let client = client(&server);
            let ls = client.command("ls").args(["-d", "/"]);
            assert_eq!(stdout_of(&client.sh("ls -d /")), "alias -d /\n", "the control: {shell}");
            assert_eq!(stdout_of(&ls), if shell == FISH { "alias -d /\n" } else { "/\n" }, "{shell}");
            // Behind exec, it is a program everywhere.
            assert_eq!(stdout_of(&ls.clone().current_dir("/")), "/\n", "{shell}");
            assert_eq!(stdout_of(&ls.process_group(true)), "/\n", "{shell}");
        }
        let bash = server_with("/bin/bash");
        let out = client(&bash).command("if").arg("true").output().unwrap();
        assert_eq!(out.status.code(), Some(127), "no such program, and no syntax error: {out:?}");
    });
}

#[test]
fn what_cannot_be_sent_is_refused_before_anything_is() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        let refused = |command: Command| match command.output() {
            Err(Error::InvalidInput { what }) => what,
            other => panic!("{other:?}"),
        };
        assert!(matches!(client.exec_command("echo \0"), Err(Error::InvalidInput { .. })));
        assert!(refused(client.command("echo").arg("a\0b")).contains("NUL"));
        assert!(refused(client.sh("echo").current_dir("a\0b")).contains("NUL"));
        assert!(refused(client.sh("echo").env("A", "a\0b")).contains("NUL"));
        assert!(refused(client.sh("echo").env_inline("A", "a\0b")).contains("NUL"));
        for name in ["", "1A", "A-B", "A=B", "A B", "Ä"] {
            assert!(refused(client.sh("echo").env(name, "")).contains("no name"), "{name:?}");
            assert!(refused(client.sh("echo").env_inline(name, "")).contains("no name"), "{name:?}");
        }
        let long = refused(client.command("echo").arg(vec![b'x'; 40_000]));
        assert!(long.contains("40007 bytes") && long.contains("32768") && long.contains("stdin"), "{long}");
        assert!(refused(client.sh("echo").env("A", vec![b'x'; 40_000])).contains("environment variable"));
        assert!(refused(client.sh("tty").pty(Pty::new(&"x".repeat(2000)))).contains("terminal type"));
        assert!(refused(client.subsystem("sftp").arg("x")).contains("arguments"));
        // And the way the message names.
        let mut child = client.exec_command("sh -s").unwrap();
        child.stdin.take().unwrap().write_all(format!("#{}\necho long", "x".repeat(40_000)).as_bytes()).unwrap();
        assert_eq!(child.output().unwrap().stdout, b"long\n");
    });
}

// ---- Environment and directory ----

#[test]
fn a_variable_is_asked_for_and_a_refusal_runs_nothing() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/sh").option("AcceptEnv LANG LC_*").start().unwrap();
        let client = client(&server);
        let out = client.sh("printf %s \"$LANG/$LC_TIME\"").env("LANG", "it's\n!").env("LC_TIME", "ü");
        assert_eq!(stdout_of(&out), "it's\n!/ü");

        let witness = server.dir().join("ran");
        let touch = client.command("touch").arg(witness.to_str().unwrap()).env("LANG", "C").env("SECRET", "value");
        match touch.output() {
            Err(error @ Error::RequestRefused { .. }) => {
                let said = error.to_string();
                assert!(said.contains("env") && said.contains("SECRET") && !said.contains("value"), "{said}");
            }
            other => panic!("{other:?}"),
        }
        client.sh("true").status().unwrap();
        assert!(!witness.exists(), "it ran in spite of the refusal");
    });
}

#[test]
fn variables_and_directory_work_inside_the_text_with_every_login_shell() {
    within(PATIENCE, || {
        for shell in SHELLS {
            let server = server_with(shell);
            let client = client(&server);
            let dir = server.dir().join("home/-a b's\n!");
            fs::create_dir(&dir).unwrap();
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
            let (path, value) = (format!("{}\n", dir.display()), "it's $HOME\n\\ !x 'ü");
            for group in [false, true] {
                let with = |command: Command| {
                    let command = command.env("LC_ALL", "C.UTF-8").process_group(group);
                    command.env_inline("A", value).env_inline("B", "")
                };
                let show = with(client.command("printenv").arg("A"));
                assert_eq!(stdout_of(&show), format!("{value}\n"), "{shell}");
                // A relative directory is one of the home directory's, though it looks like an option.
                assert_eq!(stdout_of(&with(client.command("pwd")).current_dir("-a b's\n!")), path, "{shell}");
                assert_eq!(stdout_of(&client.command("pwd").current_dir(&dir).process_group(group)), path, "{shell}");
                // Text with more than one command: all of it runs there, and with the variables.
                let text = client.sh("printenv A; pwd").current_dir(&dir);
                assert_eq!(stdout_of(&with(text)), format!("{value}\n{path}"), "{shell}");
                let text = with(client.sh("cd /; pwd | cat; exit 5").current_dir(&dir)).output().unwrap();
                assert_eq!((text.stdout.as_slice(), text.status.code()), (b"/\n".as_slice(), Some(5)), "{shell}");
                // A program with a = in its name is no variable.
                let out = with(client.command("./no=program")).output().unwrap();
                assert_eq!(out.status.code(), Some(127), "{shell}: {out:?}");
            }
        }
    });
}

#[test]
fn a_directory_that_cannot_be_entered_runs_nothing() {
    within(PATIENCE, || {
        for shell in SHELLS {
            let server = server_with(shell);
            let client = client(&server);
            for command in [client.sh("echo ran; echo ran"), client.command("echo").arg("ran")] {
                for command in [command.clone(), command.process_group(true)] {
                    let out = command.current_dir("/no such directory").output().unwrap();
                    assert_eq!(out.stdout, b"", "{shell}");
                    assert!(matches!(out.status, ExitStatus::Code(1 | 2)), "{shell}: {out:?}");
                    assert!(!out.stderr.is_empty(), "{shell} says why");
                }
            }
        }
    });
}

#[test]
fn cdpath_and_directory_stacks_have_no_say() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/zsh").env("CDPATH", "/usr").start().unwrap();
        let client = client(&server);
        for name in ["bin", "+1"] {
            fs::create_dir(server.dir().join("home").join(name)).unwrap();
            let expected = server.dir().join("home").join(name);
            assert_eq!(stdout_of(&client.command("pwd").current_dir(name)), format!("{}\n", expected.display()));
        }
    });
}

// ---- Process groups ----

#[test]
fn a_process_group_is_told_in_every_login_shell_and_the_output_is_the_commands_alone() {
    within(PATIENCE, || {
        for shell in SHELLS {
            let server = server_with(shell);
            let client = client(&server);
            // A builtin first, a pipeline, an exit status of its own; the process group is the announced one.
            let text = "cd /; echo one | cat; sh -c 'ps -o pgid= -p $$'; exit 3";
            let mut child = client.sh(text).process_group(true).spawn().unwrap();
            let group = child.process_group_id().unwrap_or_else(|| panic!("{shell} told no group"));
            let mut out = String::new();
            child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
            let words: Vec<&str> = out.split_whitespace().collect();
            assert_eq!(words, ["one", &group.to_string()], "{shell}");
            assert_eq!(child.wait().unwrap(), ExitStatus::Code(3), "{shell}");

            // On a terminal, too.
            let mut child = client.command("tty").pty(Pty::default()).process_group(true).spawn().unwrap();
            assert!(child.process_group_id().is_some(), "{shell}");
            let mut tty = String::new();
            child.stdout.take().unwrap().read_to_string(&mut tty).unwrap();
            assert!(tty.starts_with("/dev/"), "{shell}: {tty:?}");
        }
    });
}

#[test]
fn a_command_that_is_replaced_by_the_servers_own_tells_no_group_and_runs() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/sh").option("ForceCommand echo forced; exit 4").start().unwrap();
        let client = client(&server);
        let mut child = client.sh("echo ours").process_group(true).spawn().unwrap();
        assert_eq!(child.process_group_id(), None);
        assert_eq!(child.kill().unwrap(), KillOutcome::Unknown);
        let out = child.output().unwrap();
        assert_eq!((out.stdout.as_slice(), out.status), (b"forced\n".as_slice(), ExitStatus::Code(4)));
    });
}

/// Kills a command in every user's name; a command beside it must not notice.
fn killed(count: usize, grace: Duration, command: impl Fn(&Client) -> Command) -> Vec<(ExitStatus, Vec<u8>, Duration)> {
    let mut ends = Vec::new();
    for user in users() {
        let server = user.start().unwrap();
        let client = client(&server);
        let bystander = client.sh("sleep 6001 | sleep 6002").process_group(true).spawn().unwrap();
        let beside = group_of(&bystander, 3);
        let mut child = command(&client).process_group(true).spawn().unwrap();
        let group = group_of(&child, count);

        let began = Instant::now();
        assert_eq!(child.kill_after(grace).unwrap(), KillOutcome::Gone, "{}", server.log());
        let took = began.elapsed();
        assert_eq!(members(group), HashSet::new(), "said to be gone");
        assert_eq!(members(beside).len(), 3, "something else was killed");
        // Once more does no harm.
        assert_eq!(child.kill().unwrap(), KillOutcome::Gone);
        assert_eq!(members(beside).len(), 3, "something else was killed");
        let out = child.output().unwrap();
        ends.push((out.status, out.stdout, took));
    }
    ends
}

#[test]
fn kill_ends_a_plain_command() {
    within(PATIENCE, || {
        for (status, ..) in killed(1, PATIENCE, |client| client.command("sleep").arg("6003")) {
            assert_eq!(status.signal(), Some("TERM"));
        }
    });
}

#[test]
fn kill_ends_a_pipeline_and_children_in_the_background() {
    within(PATIENCE, || {
        killed(5, PATIENCE, |client| client.sh("sleep 6004 | sleep 6005 & (sleep 6006; true) & wait"));
    });
}

#[test]
fn a_command_may_answer_term_in_its_own_way() {
    within(PATIENCE, || {
        let text = "trap 'echo bye; exit 7' TERM; while :; do sleep 0.01; done";
        let server = sh_server();
        let mut child = client(&server).sh(text).process_group(true).spawn().unwrap();
        // The trap must be set; it is when the loop runs.
        group_of(&child, 2);
        assert_eq!(child.kill_after(PATIENCE).unwrap(), KillOutcome::Gone);
        let out = child.output().unwrap();
        assert_eq!((out.status, out.stdout.as_slice()), (ExitStatus::Code(7), b"bye\n".as_slice()));
    });
}

#[test]
fn what_ignores_term_is_killed_after_the_grace() {
    within(PATIENCE, || {
        let grace = Duration::from_millis(300);
        for (status, _, took) in killed(2, grace, |client| client.sh("trap '' TERM; sleep 6007; sleep 6008")) {
            assert_eq!(status.signal(), Some("KILL"));
            assert!(took >= grace, "only {took:?}");
        }
    });
}

#[test]
fn what_cannot_be_killed_is_said_to_survive() {
    if !rustix::process::getuid().is_root() {
        // It takes root to give a command a child of another user's. The unit tests of the script go everywhere.
        eprintln!("not run: only root can make a process that its starter may not kill");
        return;
    }
    within(PATIENCE, || {
        let server = not_root().start().unwrap();
        let client = client(&server);
        // A setuid program takes the command's child to root, where the user's signals do not reach.
        let setpriv = server.dir().join("setpriv");
        fs::copy("/usr/bin/setpriv", &setpriv).unwrap();
        fs::set_permissions(&setpriv, fs::Permissions::from_mode(0o4755)).unwrap();
        let text = format!("{} --reuid 0 --clear-groups sleep 6009 & echo $!; wait", setpriv.display());
        let mut child = client.sh(text).process_group(true).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let survivor: u32 = read_line(&mut out).trim().parse().unwrap();
        let root = || fs::read_to_string(format!("/proc/{survivor}/status")).is_ok_and(|s| s.contains("Uid:\t0\t0"));
        eventually(PATIENCE, "the child became root", root);
        let group = group_of(&child, 2);
        assert_eq!(child.kill_after(Duration::from_millis(100)).unwrap(), KillOutcome::Survived);
        assert_eq!(members(group), HashSet::from([survivor]), "the rest is gone");
    });
}

#[test]
fn without_a_process_group_the_outcome_is_unknown() {
    within(PATIENCE, || {
        let server = not_root().start().unwrap();
        let mut child = client(&server).command("sleep").arg("6010").spawn().unwrap();
        // sshd says "started" before there is a process group to signal.
        eventually(PATIENCE, "it runs", || count(&server, "sleep") == 1);
        assert_eq!(child.process_group_id(), None);
        assert_eq!(child.kill().unwrap(), KillOutcome::Unknown);
        // Yet the signal was sent, and reaches a command of somebody who is not root.
        assert_eq!(child.wait().unwrap().signal(), Some("KILL"));
    });
}

#[test]
fn a_signal_reaches_the_command() {
    within(PATIENCE, || {
        let server = not_root().start().unwrap();
        let client = client(&server);
        let text = "trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.01; done";
        let mut child = client.sh(text).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        assert_eq!(read_line(&mut stdout), "ready\n");
        child.signal("USR1");
        assert_eq!(read_line(&mut stdout), "caught\n");
        assert_eq!(child.wait().unwrap(), ExitStatus::Code(9));

        let mut child = client.command("sleep").arg("6011").spawn().unwrap();
        eventually(PATIENCE, "it runs", || count(&server, "sleep") == 1);
        let control = child.control();
        thread::spawn(move || control.signal("HUP")).join().unwrap();
        let status = child.wait().unwrap();
        assert_eq!((status.signal(), status.to_string().as_str()), (Some("HUP"), "signal HUP"));
    });
}

// ---- Endings ----

#[test]
fn a_status_is_a_code_or_a_signal_and_success_is_code_0_alone() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        for code in [0, 1, 2, 127, 128, 137, 254, 255] {
            let status = client.sh(format!("exit {code}")).status().unwrap();
            assert_eq!((status.code(), status.success()), (Some(code), code == 0));
            assert_eq!(status.to_string(), format!("exit status {code}"));
        }
        // INT and QUIT are ignored by whatever is started in a shell's background, so they are left out.
        for signal in ["HUP", "ILL", "ABRT", "FPE", "KILL", "SEGV", "PIPE", "ALRM", "TERM", "USR1", "USR2"] {
            let status = client.sh(format!("ulimit -c 0; kill -{signal} $$")).status().unwrap();
            assert_eq!((status.signal(), status.code(), status.success()), (Some(signal), None, false));
        }
        assert_eq!(client.command("/no/such/program").status().unwrap(), ExitStatus::Code(127));
    });
}

#[test]
fn wait_closes_stdin_and_reads_what_nobody_has_taken() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        // More than the window of 2 MiB, on both streams: nobody reads, yet it comes to its end.
        let text = "cat; head -c 5000000 /dev/zero; head -c 5000000 /dev/zero >&2; exit 5";
        let mut child = client.exec_command(text).unwrap();
        child.stdin.as_mut().unwrap().write_all(b"in").unwrap();
        assert_eq!(child.wait().unwrap(), ExitStatus::Code(5));
        assert!(child.stdin.is_none(), "as with std");
        // And what came is still there.
        let (mut out, mut err) = (Vec::new(), Vec::new());
        child.stderr.take().unwrap().read_to_end(&mut err).unwrap();
        child.stdout.take().unwrap().read_to_end(&mut out).unwrap();
        assert_eq!((&out[..2], out.len(), err.len()), (b"in".as_slice(), 5_000_002, 5_000_000));
        assert_eq!(child.wait().unwrap(), ExitStatus::Code(5), "once more");
        // So does wait_timeout.
        assert_eq!(client.exec_command("cat").unwrap().wait_timeout(PATIENCE).unwrap(), ExitStatus::Code(0));
    });
}

#[test]
fn try_wait_does_not_wait_and_wait_timeout_not_for_long() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        let mut child = client.exec_command("cat; exit 3").unwrap();
        assert_eq!(child.try_wait().unwrap(), None);
        drop(child.stdin.take());
        eventually(PATIENCE, "the command ends", || child.try_wait().unwrap() == Some(ExitStatus::Code(3)));

        let mut child = client.command("sleep").arg("6012").process_group(true).spawn().unwrap();
        match child.wait_timeout(Duration::from_millis(50)) {
            Err(Error::Timeout { after, received: None, .. }) => assert_eq!(after, Duration::from_millis(50)),
            other => panic!("{other:?}"),
        }
        assert_eq!(child.try_wait().unwrap(), None, "it runs on");
        child.kill().unwrap();
        assert_eq!(child.wait_timeout(Duration::MAX).unwrap().signal(), Some("TERM"));
    });
}

#[test]
fn a_daemon_that_holds_the_output_is_waited_for_unless_the_policy_says_otherwise() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        let daemon = client.sh("sleep 6013 & echo started; exit 6");
        let out = daemon.clone().exit_policy(ExitPolicy::AfterStatus(Duration::from_millis(100))).output().unwrap();
        assert_eq!((out.stdout.as_slice(), out.status), (b"started\n".as_slice(), ExitStatus::Code(6)));
        let mut child = daemon.spawn().unwrap();
        assert!(matches!(child.wait_timeout(Duration::from_millis(300)), Err(Error::Timeout { .. })));
        server.processes().into_iter().filter(|pid| is(*pid, "sleep")).for_each(kill);
        assert_eq!(child.wait().unwrap(), ExitStatus::Code(6));
    });
}

/// How many processes of this name the server runs.
fn count(server: &Sshd, name: &str) -> usize {
    server.processes().into_iter().filter(|&pid| is(pid, name)).count()
}

fn is(pid: u32, name: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let _ = rustix::process::kill_process(pid, Signal::KILL);
}

// ---- Streams ----

#[test]
fn streams_are_piped_null_or_left_out() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        let both = client.sh("echo out; echo err >&2; cat");
        let out = both.output().unwrap();
        assert_eq!((out.stdout.as_slice(), out.stderr.as_slice()), (b"out\n".as_slice(), b"err\n".as_slice()));
        let out = both.clone().stderr(Stdio::null()).output().unwrap();
        assert_eq!((out.stdout.as_slice(), out.stderr.as_slice()), (b"out\n".as_slice(), b"".as_slice()));
        let child = both.clone().stdout(Stdio::null()).spawn().unwrap();
        assert!(child.stdin.is_none() && child.stdout.is_none() && child.stderr.is_some());
        let lines: Vec<_> = child.lines().map(|line| line.unwrap().text().into_owned()).collect();
        assert_eq!(lines, ["err"]);
        // status() throws the output away, however much it is.
        assert_eq!(client.sh("head -c 9000000 /dev/zero; exit 2").status().unwrap(), ExitStatus::Code(2));
        // stdin, if it is piped.
        let mut child = both.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"in\n").unwrap();
        assert_eq!(child.output().unwrap().stdout, b"out\nin\n");
    });
}

#[test]
fn a_stream_that_was_taken_out_is_read_by_its_taker_alone() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        let mut child = client.exec_command("cat; echo err >&2").unwrap();
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            stdout.read_to_end(&mut all).map(|_| all)
        });
        let writer = thread::spawn(move || stdin.write_all(&[7; 3_000_000]));
        let lines: Vec<_> = child.lines().map(|line| line.unwrap()).collect();
        assert_eq!((lines.len(), lines[0].stream, lines[0].text().as_ref()), (1, Stream::Stderr, "err"));
        writer.join().unwrap().unwrap();
        assert_eq!(reader.join().unwrap().unwrap(), [7; 3_000_000]);
    });
}

#[test]
fn inherited_streams_are_this_processes_own() {
    const PORT: &str = "THREADLINE_TEST_INHERIT";
    let body = || {
        let server = sh_server();
        let inherit = client(&server).sh("read line; echo out $line; echo err $line >&2; exit 3");
        let inherit = inherit.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
        // output() has nothing to collect, and the other two wait until all is written.
        let out = inherit.output().unwrap();
        assert_eq!((out.status, out.stdout.len(), out.stderr.len()), (ExitStatus::Code(3), 0, 0));
    };
    if std::env::var_os(PORT).is_some() {
        return within(PATIENCE, body);
    }
    within(PATIENCE, || {
        let test = "command::inherited_streams_are_this_processes_own";
        let mut child = process::Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(PORT, "1")
            .stdin(process::Stdio::piped())
            .stdout(process::Stdio::piped())
            .stderr(process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"line\n").unwrap();
        let out = child.wait_with_output().unwrap();
        let [stdout, stderr] = [out.stdout, out.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        assert!(stdout.contains("out line\n") && stdout.contains("1 passed"), "{stdout}\n{stderr}");
        assert!(stderr.contains("err line\n"), "{stderr}");
    });
}

#[test]
fn lines_come_in_order_of_arrival_with_stream_and_time() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        // One for each wait: a reader of the second could meet the writer of the first, and would not wait.
        let fifos = ["first", "second"].map(|name| server.dir().join(name));
        let made = output_within(PATIENCE, process::Command::new("mkfifo").args(&fifos));
        assert!(made.status.success());
        let [first, second] = [0, 1].map(|n| format!("read x < {}", fifos[n].display()));
        let text = format!("echo one; {first}; echo two >&2; {second}; printf 'three\\nfo\\377ur'; exit 2");
        let mut lines = client.sh(text).spawn().unwrap().lines();
        let mut before = Instant::now();
        let mut fifos = fifos.iter();
        for (stream, text) in [(Stream::Stdout, "one"), (Stream::Stderr, "two"), (Stream::Stdout, "three")] {
            let line = lines.next().unwrap().unwrap();
            assert_eq!((line.stream, line.text().as_ref()), (stream, text));
            // Arrival is told to the millisecond.
            assert!(line.arrived + Duration::from_millis(1) >= before && line.arrived <= Instant::now());
            if let Some(fifo) = fifos.next() {
                before = Instant::now();
                fs::write(fifo, "\n").unwrap();
            }
        }
        let last = lines.next().unwrap().unwrap();
        assert_eq!((last.bytes.as_slice(), last.text().as_ref()), (b"fo\xffur".as_slice(), "fo\u{fffd}ur"));
        assert!(lines.next().is_none() && lines.next().is_none());
        assert_eq!(lines.into_child().wait().unwrap(), ExitStatus::Code(2));
    });
}

#[test]
fn a_child_that_comes_back_from_its_lines_can_be_waited_for() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        let flood = client.sh("yes | head -c 5000000; exit 4");
        let mut lines = flood.spawn().unwrap().lines();
        assert_eq!(lines.next().unwrap().unwrap().bytes, b"y");
        assert_eq!(lines.child().wait().unwrap(), ExitStatus::Code(4), "between two lines");
        assert_eq!(lines.count(), 2_500_000 - 1);

        let mut lines = flood.spawn().unwrap().lines();
        assert_eq!(lines.next().unwrap().unwrap().bytes, b"y");
        assert_eq!(lines.into_child().wait().unwrap(), ExitStatus::Code(4));
    });
}

// ---- Timeouts ----

fn timed_out(command: &Command) -> (Phase, Duration, String, String) {
    match command.output() {
        Err(Error::Timeout { phase, after, received: Some(received) }) => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (phase, after, text(&received.stdout), text(&received.stderr))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_timeout_carries_what_had_been_received_and_the_command_is_given_up_as_on_drop_says() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        let limit = Duration::from_secs(3);
        let text = "echo out; echo err >&2; exec sleep 6014";
        let command = client.sh(text).timeout(limit).process_group(true);
        let expected = (Phase::Total, limit, "out\n".to_owned(), "err\n".to_owned());
        assert_eq!(timed_out(&command.clone().on_drop(OnDrop::Kill)), expected);
        eventually(PATIENCE, "it is killed", || count(&server, "sleep") == 0);
        assert_eq!(timed_out(&command.on_drop(OnDrop::Leave)), expected);
        // One round through the server's process: whatever was sent has been done.
        client.sh("true").status().unwrap();
        assert_eq!(count(&server, "sleep"), 1, "left alone");
    });
}

#[test]
fn an_idle_timeout_counts_from_the_last_output() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        let limit = Duration::from_secs(2);
        // On either stream; all in all it speaks for longer than the limit.
        let text = "for i in 1 2 3 4; do echo $i; sleep 0.3; echo $i >&2; sleep 0.3; done; exec sleep 6015";
        let (phase, after, out, err) = timed_out(&client.sh(text).idle_timeout(limit));
        assert_eq!((phase, after, out.as_str(), err.as_str()), (Phase::Idle, limit, "1\n2\n3\n4\n", "1\n2\n3\n4\n"));
        let mut lines = client.sh("echo one; exec sleep 6016").idle_timeout(limit).spawn().unwrap().lines();
        assert_eq!(lines.next().unwrap().unwrap().bytes, b"one");
        assert!(matches!(lines.next(), Some(Err(Error::Timeout { phase: Phase::Idle, .. }))));
        assert!(lines.next().is_none());
    });
}

#[test]
fn a_command_that_waits_for_its_reader_is_not_idle() {
    within(PATIENCE, || {
        let server = sh_server();
        let limit = Duration::from_secs(1);
        let flood = client(&server).sh("head -c 9000000 /dev/zero").idle_timeout(limit);
        let mut child = flood.spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut buffer = vec![0; 4 << 20];
        // The window is full once nothing more comes; then we are busy for longer than the limit, twice.
        let mut total = 0;
        for _ in 0..2 {
            thread::sleep(limit + Duration::from_millis(300));
            total += stdout.read(&mut buffer).unwrap();
        }
        thread::sleep(limit + Duration::from_millis(300));
        total += stdout.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(total, 9_000_000);
        assert_eq!(child.wait().unwrap(), ExitStatus::Code(0));
    });
}

#[test]
fn a_read_timeout_is_for_that_read() {
    within(PATIENCE, || {
        let server = sh_server();
        let mut child = client(&server).exec_command("cat").unwrap();
        let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        stdout.set_read_timeout(Some(Duration::from_millis(20)));
        let mut buffer = [0; 10];
        let error = stdout.read(&mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let own = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
        assert!(matches!(own, Some(Error::Timeout { phase: Phase::Read, .. })), "{error:?}");
        stdout.set_read_timeout(Some(Duration::MAX));
        stdin.write_all(b"again").unwrap();
        assert_eq!(stdout.read(&mut buffer).unwrap(), 5);
    });
}

#[test]
fn the_clients_timeout_is_for_commands_that_have_none() {
    within(PATIENCE, || {
        let server = sh_server();
        let builder = crate::connect::builder(&server).command_timeout(Duration::from_millis(200));
        let client = builder.connect().unwrap();
        let sleep = client.command("sleep").arg("6017");
        assert!(matches!(sleep.status(), Err(Error::Timeout { phase: Phase::Total | Phase::Open, .. })));
        let own = client.sh("sleep 0.4; echo done").timeout(PATIENCE).output().unwrap();
        assert_eq!(own.stdout, b"done\n");
    });
}

// ---- Dropping ----

#[test]
fn a_dropped_child_that_is_left_runs_to_its_end() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        let (fifo, done) = (server.dir().join("fifo"), server.dir().join("done"));
        assert!(output_within(PATIENCE, process::Command::new("mkfifo").arg(&fifo)).status.success());
        // It meets the end of its input, and what it prints goes nowhere without holding it up.
        let text =
            format!("cat; read x < {}; head -c 5000000 /dev/zero && echo $x > {}", fifo.display(), done.display());
        drop(client.sh(text).stdin(Stdio::piped()).on_drop(OnDrop::Leave).spawn().unwrap());
        fs::write(&fifo, "ended\n").unwrap();
        eventually(PATIENCE, "it ends", || fs::read_to_string(&done).is_ok_and(|text| text == "ended\n"));
    });
}

#[test]
fn a_dropped_child_is_hung_up_by_default() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        let child = client.sh("while echo more; do sleep 0.01; done").process_group(true).spawn().unwrap();
        let talker = child.process_group_id().unwrap();
        drop(child);
        eventually(PATIENCE, "who writes finds nobody there", || members(talker).is_empty());

        let child = client.command("sleep").arg("6018").pty(Pty::default()).process_group(true).spawn().unwrap();
        let on_terminal = group_of(&child, 1);
        drop(child);
        eventually(PATIENCE, "a terminal hangs up", || members(on_terminal).is_empty());

        // What the documentation says of the rest: it goes on.
        let child = client.command("sleep").arg("6019").process_group(true).spawn().unwrap();
        let silent = group_of(&child, 1);
        drop(child);
        client.sh("true").status().unwrap();
        assert_eq!(members(silent).len(), 1);
    });
}

#[test]
fn a_dropped_child_is_killed_if_it_is_to_be_even_when_the_client_goes_with_it() {
    within(PATIENCE, || {
        for user in users() {
            let server = user.start().unwrap();
            let client = client(&server);
            let start = || {
                let text = "sleep 6020 | sleep 6021";
                let child = client.sh(text).process_group(true).on_drop(OnDrop::Kill).spawn().unwrap();
                let group = group_of(&child, 3);
                (child, group)
            };
            let (child, group) = start();
            drop(child);
            eventually(PATIENCE, "it is killed", || members(group).is_empty());
            let (child, group) = start();
            drop(client);
            drop(child);
            eventually(PATIENCE, "it is killed though nobody is there any more", || members(group).is_empty());
        }
        // Without a group, by the server's grace.
        let server = not_root().start().unwrap();
        let client = client(&server);
        let child = client.command("sleep").arg("6022").on_drop(OnDrop::Kill).spawn().unwrap();
        eventually(PATIENCE, "it runs", || count(&server, "sleep") == 1);
        drop(child);
        eventually(PATIENCE, "it is killed", || count(&server, "sleep") == 0);
    });
}

#[test]
fn dropping_does_not_wait_for_a_server_that_says_nothing() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        let children: Vec<Child> = [OnDrop::Leave, OnDrop::HangUp, OnDrop::Kill]
            .into_iter()
            .map(|on_drop| {
                let command = client.sh("sleep 6023").process_group(true).stdin(Stdio::piped());
                let mut child = command.on_drop(on_drop).spawn().unwrap();
                // Bytes on their way, more than the server's window takes.
                let stdin = child.stdin.as_mut().unwrap();
                stdin.set_write_timeout(Some(Duration::from_millis(200)));
                assert!(stdin.write_all(&vec![0; 8 << 20]).is_err());
                child
            })
            .collect();
        server.signal_sessions(Signal::STOP);
        let began = Instant::now();
        drop(children);
        drop(client);
        let took = began.elapsed();
        server.signal_sessions(Signal::CONT);
        assert!(took < Duration::from_millis(1500), "{took:?}");
    });
}

#[test]
fn a_stream_keeps_its_command_running_when_the_child_is_dropped() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        // paramiko's exec_command(...)[1].
        let stdout = client.exec_command("cat; echo one; sleep 0.2; echo two").unwrap().stdout.unwrap();
        let lines: Vec<String> = stdout.lines().map(Result::unwrap).collect();
        assert_eq!(lines, ["one", "two"]);
    });
}

#[test]
fn a_start_that_is_given_up_leaves_nothing_behind() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/sh").option("MaxSessions 1").start().unwrap();
        let client = crate::connect::builder(&server).spare_channel(false).connect().unwrap();
        let mut first = client.exec_command("cat").unwrap();
        let witness = server.dir().join("ran");
        let second = client.command("touch").arg(witness.to_str().unwrap()).on_drop(OnDrop::Leave);
        let error = second.start_timeout(Duration::from_millis(200)).spawn().unwrap_err();
        assert!(matches!(error, Error::Timeout { phase: Phase::Open, .. }), "{error}");
        // It would have run now, behind everybody's back.
        first.wait().unwrap();
        client.sh("true").status().unwrap();
        assert!(!witness.exists());
    });
}

// ---- Control ----

#[test]
fn another_thread_cancels_closes_and_asks() {
    within(PATIENCE, || {
        let server = sh_server();
        let client = client(&server);
        let mut child = client.exec_command("echo one; exec cat").unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        assert_eq!(read_line(&mut stdout), "one\n");
        let control = child.control();
        assert_eq!(control.status(), None);
        let reader = thread::spawn(move || (stdout.read(&mut [0; 9]), stdout));
        control.cancel();
        let (read, mut stdout) = reader.join().unwrap();
        let cancelled = |error: &io::Error| error.get_ref().is_some_and(|e| e.to_string() == "cancelled");
        assert!(cancelled(&read.unwrap_err()));
        assert!(cancelled(&stdout.read(&mut [0; 9]).unwrap_err()), "and from now on");
        assert!(matches!(child.wait(), Err(Error::Cancelled)));
        assert!(matches!(control.wait(), Err(Error::Cancelled)));

        let mut child = client.exec_command("echo one; exec cat").unwrap();
        let mut stdout = BufReader::with_capacity(1, child.stdout.take().unwrap());
        assert_eq!(stdout.fill_buf().unwrap(), b"o");
        let control = child.control();
        thread::spawn(move || control.close()).join().unwrap();
        let (mut rest, end) = (Vec::new(), stdout.read_to_end(&mut Vec::new()));
        let end = match end {
            Err(error) => error,
            Ok(n) => panic!("an end of {n} bytes that the command did not make"),
        };
        assert_eq!(end.get_ref().unwrap().to_string(), "closed on our side");
        assert!(matches!(child.wait(), Err(Error::Closed)));
        assert_eq!(stdout.read_to_end(&mut rest).unwrap_err().get_ref().unwrap().to_string(), "closed on our side");

        let mut child = client.exec_command("exit 8").unwrap();
        let control = child.control();
        assert_eq!(thread::spawn(move || control.wait()).join().unwrap().unwrap(), ExitStatus::Code(8));
        assert_eq!(child.control().status(), Some(ExitStatus::Code(8)));
        child.close();
        assert_eq!(child.wait().unwrap(), ExitStatus::Code(8), "what is known stays known");
    });
}

#[test]
fn sessions_one_after_another_are_not_refused_where_one_is_allowed() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/sh").option("MaxSessions 1").start().unwrap();
        let client = crate::connect::builder(&server).spare_channel(false).connect().unwrap();
        for i in 0..200 {
            // sshd still counts the last one when it reads our next request together with our CLOSE.
            let out = client.sh(format!("exit {i}")).output().unwrap_or_else(|e| panic!("{i}: {e}"));
            assert_eq!(out.status.code(), Some(i));
        }
    });
}
