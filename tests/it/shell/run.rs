//! Commands in one living shell.

use std::time::Duration;

use threadline::{Client, Error, ExitStatus, Pty, Shell, ShellFailure, TerminalMode};

use super::{client, eventually, shell_error, within, Sshd, PATIENCE};
use crate::util::{noise, sha256};

/// Sh's own language, and what nearly speaks it.
const POSIX: [&str; 4] = ["/bin/dash", "/bin/bash", "/bin/zsh", "/bin/ksh"];

/// For a single wait: its error says more than that of the whole test.
const LIMIT: Duration = PATIENCE.checked_div(2).unwrap();

/// A server with this login shell, whose user has seen zsh's questions to newcomers.
fn server(shell: &str) -> Sshd {
    let server = Sshd::builder().login_shell(shell).start().unwrap();
    std::fs::write(server.dir().join("home/.zshrc"), "").unwrap();
    server
}

/// Does this with each login shell, all at once: most of it is waiting.
fn with_each(login_shells: &[&'static str], body: impl Fn(&'static str) + Clone + Send + 'static) {
    let each: Vec<_> = login_shells
        .iter()
        .map(|&login_shell| {
            let body = body.clone();
            std::thread::spawn(move || within(PATIENCE, move || body(login_shell)))
        })
        .collect();
    let ends: Vec<_> = each.into_iter().map(std::thread::JoinHandle::join).collect();
    ends.into_iter().for_each(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
}

fn shell(server: &Sshd) -> (Client, Shell) {
    let client = client(server);
    let shell = client.invoke_shell().unwrap();
    (client, shell)
}

/// The output and the status of a command.
#[track_caller]
fn ran(shell: &mut Shell, command: &str) -> (String, u32) {
    let output = shell.run_within(command, LIMIT).unwrap_or_else(|e| panic!("{command}: {e}"));
    assert!(output.stderr.is_empty());
    (String::from_utf8(output.stdout).expect("text"), output.status.code().expect("a code"))
}

#[test]
fn commands_have_output_and_status_and_leave_directory_and_variables() {
    with_each(&POSIX, |login_shell| {
        let server = server(login_shell);
        let (_client, mut shell) = shell(&server);
        let mut ran = |command: &str| ran(&mut shell, command);
        assert_eq!(ran("echo 'Hello, world'"), ("Hello, world\n".into(), 0), "{login_shell}");
        assert_eq!(ran("cd /usr; x='a  b!'; f() { echo \"f $1\"; }"), (String::new(), 0), "{login_shell}");
        assert_eq!(ran("pwd; echo \"$x\"; f 1; echo err >&2; false"), ("/usr\na  b!\nf 1\nerr\n".into(), 1));
        assert_eq!(ran("printf 'no newline'"), ("no newline".into(), 0), "{login_shell}");
        assert_eq!(ran(""), (String::new(), 0), "{login_shell}");
        assert_eq!(ran("for i in 1 2\ndo\n\techo \"$i\t~\"\ndone\n"), ("1\t~\n2\t~\n".into(), 0), "{login_shell}");
        assert_eq!(ran("cat <<'X'\nit's \\n $x %s !! ^a^b\nX\n"), ("it's \\n $x %s !! ^a^b\n".into(), 0));
        assert_eq!(ran("printf '\\r\\n\\r'; echo 'é\u{1f600}'"), ("\r\n\ré\u{1f600}\n".into(), 0), "{login_shell}");
        assert_eq!(ran("(exit 7)").1, 7, "{login_shell}");
        let killed = if login_shell.ends_with("ksh") { 256 + 15 } else { 128 + 15 };
        assert_eq!(ran("sh -c 'kill -TERM $$'").1, killed, "{login_shell}");
        assert_eq!(ran("nosuchcommand").1, 127, "{login_shell}");
        // What the shell cannot read, or gives the whole line up for, is no end.
        assert_ne!(ran("if done").1, 0, "{login_shell}");
        let (said, status) = ran("echo ${nosuch?is missing}; echo not here");
        assert!(status != 0 && said.contains("is missing") && !said.contains("not here"), "{login_shell}: {said:?}");
        ran("break 2>/dev/null");
        assert_eq!(ran("pwd"), ("/usr\n".into(), 0), "{login_shell}");
        // Who runs on does not disturb what is run next.
        assert_eq!(ran("(sleep 0.1; echo late) & echo first").1, 0, "{login_shell}");
        assert_eq!(ran("wait; echo next").0.lines().last(), Some("next"), "{login_shell}");
    });
}

#[test]
fn fish_speaks_its_own_language() {
    within(PATIENCE, || {
        let server = server("/usr/bin/fish");
        let (_client, mut shell) = shell(&server);
        let mut ran = |command: &str| ran(&mut shell, command);
        assert_eq!(ran("echo 'Hello, world'"), ("Hello, world\n".into(), 0));
        assert_eq!(ran("cd /usr; set x 'a  b!'; function f; echo \"f $argv\"; end"), (String::new(), 0));
        assert_eq!(ran("pwd; echo $x; f 1; echo err >&2; false"), ("/usr\na  b!\nf 1\nerr\n".into(), 1));
        assert_eq!(ran("for i in 1 2\n\techo \"$i\t~\"\nend\n"), ("1\t~\n2\t~\n".into(), 0));
        assert_eq!(
            ran("printf '\\r\\n\\r'; echo 'it\\'s \\\\n é\u{1f600}'"),
            ("\r\n\rit's \\n é\u{1f600}\n".into(), 0)
        );
        assert_eq!(ran("sh -c 'exit 7'").1, 7);
        assert_eq!(ran("nosuchcommand").1, 127);
        assert_ne!(ran("if then end end").1, 0);
        assert_eq!(ran("pwd"), ("/usr\n".into(), 0));
    });
}

#[test]
fn csh_and_tcsh_speak_theirs() {
    with_each(&["/bin/tcsh", "/bin/csh"], |login_shell| {
        let server = server(login_shell);
        let (_client, mut shell) = shell(&server);
        let mut ran = |command: &str| ran(&mut shell, command);
        assert_eq!(ran("echo 'Hello, world'"), ("Hello, world\n".into(), 0));
        let files = server.dir().join("files");
        std::fs::create_dir(&files).unwrap();
        assert_eq!(ran(&format!("setenv TMPDIR {}", files.display())), (String::new(), 0));
        assert_eq!(ran("ls $TMPDIR | wc -l").0.trim(), "1", "the command's own file");
        assert_eq!(ran("cd /usr; set x = 'a  b'; setenv Y y; alias f 'echo f \\!*'"), (String::new(), 0));
        assert_eq!(ran("pwd; echo \"$x\" $Y; f 1; sh -c 'exit 3'"), ("/usr\na  b y\nf 1\n".into(), 3));
        assert_eq!(ran("foreach i (1 2)\n\techo \"$i\t~\"\nend\n"), ("1\t~\n2\t~\n".into(), 0));
        assert_eq!(ran("nosuchcommand").1, 1);
        assert_ne!(ran("echo 'never closed").1, 0);
        assert_eq!(ran("pwd"), ("/usr\n".into(), 0));
        eventually(PATIENCE, "nothing is left", || std::fs::read_dir(&files).unwrap().count() == 0);
    });
}

#[test]
fn prompts_and_habits_of_the_user_do_not_matter_and_come_back() {
    within(PATIENCE, || {
        let server = server("/bin/bash");
        let noisy =
            "PS1='\\[\\e[31m\\]prompt> \\[\\e[0m\\]'\nPROMPT_COMMAND='PS1=\"again \\w> \"'\nPS2=more\nset -o vi\n\
                     alias printf='echo aliased' ll='echo long'\necho 'Welcome, $? : 0'\nHISTCONTROL=ignoredups\n";
        std::fs::write(server.dir().join("home/.bash_profile"), noisy).unwrap();
        let (_client, mut shell) = shell(&server);
        for i in 0..3 {
            assert_eq!(ran(&mut shell, &format!("cd /usr; ll {i}\nfalse")), (format!("long {i}\n"), 1));
        }
        // Whoever types finds everything as it was.
        shell.send_line("echo $((40 + 2)) $HISTCONTROL; set -o | grep '^vi '; stty -a | grep -o ' echo '").unwrap();
        shell.expect("42 ignoredups\r\nvi             \ton\r\n echo \r\n", LIMIT).unwrap();
        shell.expect("again /usr> ", LIMIT).unwrap();
        // And after that it is run again.
        assert_eq!(ran(&mut shell, "pwd"), ("/usr\n".into(), 0));
        shell.send_line("PS1=; history | tail -n 20; exit").unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut shell, &mut said).unwrap();
        assert!(said.contains("echo $((40 + 2))") && !said.contains("_tl_c."), "the history is the user's: {said}");
    });
}

#[test]
fn megabytes_and_binary_noise_come_through_and_the_shell_lives_on() {
    within(PATIENCE, || {
        let server = server("/bin/bash");
        let (_client, mut shell) = shell(&server);
        let file = server.dir().join("noise");
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut noise(3, 3 << 20), &mut bytes).unwrap();
        std::fs::write(&file, &bytes).unwrap();
        let output = shell.run_within(format!("cat {}; false", file.display()), LIMIT).unwrap();
        assert_eq!(output.stdout.len(), bytes.len());
        assert_eq!(sha256(&output.stdout[..]).unwrap(), sha256(&bytes[..]).unwrap());
        assert_eq!(output.status, ExitStatus::Code(1));
        assert_eq!(ran(&mut shell, "echo alive"), ("alive\n".into(), 0));
    });
}

#[test]
fn a_command_of_a_hundred_kilobytes_arrives() {
    with_each(&["/bin/dash", "/bin/bash", "/bin/tcsh"], |login_shell| {
        let server = server(login_shell);
        let (_client, mut shell) = shell(&server);
        let lines: String = (0..4000).map(|i| format!("echo 'line {i} !?\\'\n")).collect();
        let expected: String = (0..4000).map(|i| format!("line {i} !?\\\n")).collect();
        // csh takes a ! for history even in quotes, so it is told not to.
        let lines = if login_shell.contains("csh") { lines.replace('!', "\\!") } else { lines };
        let (said, status) = ran(&mut shell, &lines);
        assert!(said == expected && status == 0, "{login_shell}: {} bytes, {status}", said.len());
    });
}

#[test]
fn an_exit_is_told_with_its_status_and_what_was_said() {
    with_each(&["/bin/dash", "/bin/bash", "/bin/zsh", "/usr/bin/fish"], |login_shell| {
        let server = server(login_shell);
        let (_client, mut shell) = shell(&server);
        assert_eq!(ran(&mut shell, "echo alive").1, 0);
        let error = shell.run("echo last words; exit 5").unwrap_err();
        assert_eq!(std::io::Error::from(error.clone()).kind(), std::io::ErrorKind::UnexpectedEof);
        let error = shell_error(error);
        assert!(matches!(error.reason, ShellFailure::Ended(Some(ExitStatus::Code(5)))), "{login_shell}: {error:?}");
        assert!(error.seen.starts_with(b"last words\r\n"), "{login_shell}: {error}");
        let error = shell_error(shell.run("echo more").unwrap_err());
        assert!(matches!(error.reason, ShellFailure::Ended(_)), "{login_shell}: {error:?}");
        assert_eq!(shell.wait().unwrap(), ExitStatus::Code(5));
    });
}

#[test]
fn after_a_deadline_the_command_can_be_answered_or_interrupted_and_the_shell_goes_on() {
    with_each(&["/bin/dash", "/bin/bash", "/bin/zsh", "/bin/ksh", "/usr/bin/fish", "/bin/tcsh"], |login_shell| {
        let server = server(login_shell);
        let (_client, mut shell) = shell(&server);
        assert_eq!(ran(&mut shell, "echo alive").1, 0);
        // It reads the terminal: nothing of ours comes that way.
        let error = shell.run_within("cat; echo over", Duration::from_millis(300)).unwrap_err();
        assert!(error.to_string().contains("running the command: timed out after 0.3 s"), "{error}");
        assert!(matches!(shell_error(error).reason, ShellFailure::Timeout(_)));
        shell.send_line("typed").unwrap();
        shell.send_control('d').unwrap();
        assert_eq!(ran(&mut shell, "echo next"), ("next\n".into(), 0), "{login_shell}");

        shell.run_within("sleep 7010", Duration::from_millis(300)).unwrap_err();
        shell.send_control('c').unwrap();
        assert_eq!(ran(&mut shell, "echo again"), ("again\n".into(), 0), "{login_shell}");
        assert_eq!(ran(&mut shell, "echo again"), ("again\n".into(), 0), "{login_shell}");
    });
}

#[test]
fn no_setting_of_the_terminal_disturbs_the_output() {
    within(PATIENCE, || {
        let server = server("/bin/sh");
        let pty =
            Pty::new("dumb").mode(TerminalMode::ONLCR, 0).mode(TerminalMode::OPOST, 0).mode(TerminalMode::ECHO, 1);
        let mut shell = client(&server).invoke_shell_on(&pty).unwrap();
        assert_eq!(ran(&mut shell, "printf 'a\\nb\\r\\n'"), ("a\nb\r\n".into(), 0));
    });
}

#[test]
fn a_nul_byte_is_refused_and_nothing_is_typed() {
    within(PATIENCE, || {
        let server = server("/bin/sh");
        let (_client, mut shell) = shell(&server);
        assert!(matches!(shell.run("echo \0"), Err(Error::InvalidInput { .. })));
        assert!(shell.send_control('1').unwrap_err().to_string().contains("no Ctrl-1"));
        assert_eq!(ran(&mut shell, "echo alive"), ("alive\n".into(), 0));
    });
}
