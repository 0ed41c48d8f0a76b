//! Dialogues: expect, lines and control characters, programs without a shell around them.

use std::io::{Read, Write};
use std::time::Duration;

use threadline::{Error, ExitStatus, Pattern, Phase, Pty, Shell, ShellFailure, TerminalMode};

use super::{client, shell_error, within, Sshd, PATIENCE};
use crate::connect::client_via;
use crate::proxy::Proxy;
use crate::util::noise;

/// A server whose login shell is sh, and a shell that does not echo.
fn quiet_shell() -> (Sshd, Shell) {
    let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
    let shell = client(&server).invoke_shell_on(&Pty::default().mode(TerminalMode::ECHO, 0)).unwrap();
    (server, shell)
}

#[test]
fn of_several_patterns_the_first_in_the_output_is_found_with_its_groups() {
    within(PATIENCE, || {
        let (_server, mut shell) = quiet_shell();
        shell.send_line("echo one two; printf 'user=%s id=%d.' alice 7; echo; echo three").unwrap();
        let words =
            [Pattern::from("three"), Pattern::regex(r"user=(?<user>\w+) id=(\d+)(x)?\.").unwrap(), "two".into()];
        let found = shell.expect(&words[..], PATIENCE).unwrap();
        assert_eq!((found.which, found.bytes()), (2, &b"two"[..]));
        assert!(found.before.ends_with(b"one "), "{}", found.before_text());
        let found = shell.expect(&words[..], PATIENCE).unwrap();
        assert_eq!((found.which, found.before_text().as_ref()), (1, "\r\n"));
        assert_eq!((found.name("user"), found.group(2), found.group(3)), (Some(&b"alice"[..]), Some(&b"7"[..]), None));
        assert_eq!(found.text(), "user=alice id=7.");
        assert_eq!(shell.expect(["nothing", "three"], PATIENCE).unwrap().which, 1);
        // What comes behind a match is there for a reader.
        shell.send_line("echo left; echo right; exit").unwrap();
        shell.expect("left", PATIENCE).unwrap();
        let mut rest = String::new();
        shell.read_to_string(&mut rest).unwrap();
        assert!(rest.starts_with("\r\nright\r\n"), "{rest:?}");
    });
}

#[test]
fn a_deadline_carries_what_was_seen_and_the_next_wait_still_finds_it() {
    within(PATIENCE, || {
        let (_server, mut shell) = quiet_shell();
        shell.send_line("printf 'half a '; sleep 0.3; echo line; printf '\\033[2J'; cat").unwrap();
        let error = shell.expect("never", Duration::from_millis(600)).unwrap_err();
        assert_eq!(error.phase(), Some(Phase::Read));
        assert_eq!(std::io::Error::from(error.clone()).kind(), std::io::ErrorKind::TimedOut);
        let text = error.to_string();
        assert!(text.contains(r#"waiting for "never": timed out after 0.6 s"#), "{text}");
        assert!(text.contains("half a line") && !text.contains('\x1b'), "{text}");
        assert!(error.hint().unwrap().contains("it may wait for input"));
        let error = shell_error(error);
        assert!(String::from_utf8_lossy(&error.seen).contains("half a line\r\n"));
        assert!(!format!("{error:?}").contains("half"), "output may be secret: {error:?}");
        assert_eq!(shell.expect(Pattern::regex("a l.ne").unwrap(), PATIENCE).unwrap().bytes(), b"a line");
        shell.send_line("to cat").unwrap();
        shell.expect("to cat", PATIENCE).unwrap();
    });
}

#[test]
fn an_end_carries_the_status_and_what_was_seen() {
    within(PATIENCE, || {
        let (_server, mut shell) = quiet_shell();
        shell.send_line("echo last words; exit 6").unwrap();
        let error = shell_error(shell.expect("never", PATIENCE).unwrap_err());
        assert!(matches!(error.reason, ShellFailure::Ended(Some(ExitStatus::Code(6)))), "{error:?}");
        assert!(String::from_utf8_lossy(&error.seen).contains("last words\r\n"));
        assert_eq!(shell.expect("words", PATIENCE).unwrap().bytes(), b"words");
        assert!(matches!(shell.send_line("x"), Err(Error::BrokenPipe)));
    });
}

#[test]
fn a_lost_connection_carries_what_was_seen() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
        let proxy = Proxy::to((std::net::Ipv4Addr::LOCALHOST, server.port()).into()).start().unwrap();
        let mut shell = client_via(&server, &proxy).invoke_shell().unwrap();
        shell.send_line("echo be''fore; sleep 7020").unwrap();
        shell.expect("bef", PATIENCE).unwrap();
        proxy.cut();
        let error = shell_error(shell.expect("never", PATIENCE).unwrap_err());
        assert!(matches!(error.reason, ShellFailure::Failed(Error::ConnectionLost { .. })), "{error:?}");
        assert!(std::error::Error::source(&error).is_some());
        assert!(error.seen.starts_with(b"ore\r\n"), "{error}");
    });
}

#[test]
fn more_than_fits_is_searched_and_the_oldest_is_not_kept() {
    within(PATIENCE, || {
        let (server, mut shell) = quiet_shell();
        let file = server.dir().join("much");
        std::io::copy(&mut noise(5, 20 << 20), &mut std::fs::File::create(&file).unwrap()).unwrap();
        shell.send_line(format!("stty raw; cat {}; echo the needle", file.display())).unwrap();
        let found = shell.expect("the needle", PATIENCE).unwrap();
        assert!(found.skipped > 0 && found.before.len() <= 17 << 20, "{} + {}", found.skipped, found.before.len());
        assert!(found.skipped + found.before.len() as u64 >= 20 << 20);
    });
}

#[test]
fn a_program_is_driven_without_a_shell_around_it() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
        let program = "printf 'name? '; read name; printf 'sure, %s? ' $name; read yes; test $yes = y";
        let mut dialogue = client(&server).sh(program).spawn_shell().unwrap();
        dialogue.expect("name? ", PATIENCE).unwrap();
        dialogue.send_line("bob").unwrap();
        dialogue.expect("sure, bob? ", PATIENCE).unwrap();
        dialogue.send_line("y").unwrap();
        assert_eq!(dialogue.wait().unwrap(), ExitStatus::Code(0));

        let mut cat = client(&server).command("cat").spawn_shell().unwrap();
        cat.write_all(b"line\r").unwrap();
        cat.expect("line\r\nline\r\n", PATIENCE).unwrap();
        cat.send_control('D').unwrap();
        assert_eq!(cat.wait().unwrap(), ExitStatus::Code(0));
        // Each as the byte that the key sends.
        let keys = "stty raw -echo; printf ready; od -An -tx1 -N4";
        let mut keys = client(&server).sh(keys).spawn_shell().unwrap();
        keys.expect("ready", PATIENCE).unwrap();
        "cZ[?".chars().for_each(|key| keys.send_control(key).unwrap());
        keys.expect(" 03 1a 1b 7f", PATIENCE).unwrap();
    });
}

#[test]
fn what_was_taken_in_is_read_from_the_split_end_first() {
    within(PATIENCE, || {
        let (_server, mut shell) = quiet_shell();
        shell.send_line("echo left; echo right; exit").unwrap();
        shell.expect("left", PATIENCE).unwrap();
        shell.expect("never", Duration::from_millis(300)).unwrap_err();
        let (_writer, mut reader) = shell.split();
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(rest.starts_with("\r\nright\r\n"), "{rest:?}");
    });
}

#[test]
fn a_login_shell_without_a_terminal_reads_its_stdin_as_a_script() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
        let client = client(&server);
        let mut shell = client.login_shell().stdin(threadline::Stdio::piped()).spawn().unwrap();
        shell.stdin.take().unwrap().write_all(b"x=1\necho out $x\necho err >&2\nexit 4\n").unwrap();
        let output = shell.output().unwrap();
        assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out 1\n"[..], &b"err\n"[..]));
        assert_eq!(output.status, ExitStatus::Code(4));
        for refused in [client.login_shell().arg("x"), client.login_shell().current_dir("/")] {
            assert!(matches!(refused.spawn(), Err(Error::InvalidInput { .. })));
        }
    });
}
