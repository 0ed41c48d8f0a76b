//! Interactive shells on pseudo-terminals.

mod device;
mod dialogue;
mod respond;
mod run;

use std::io::{BufRead, Read, Write};
use std::thread;
use std::time::Duration;

use threadline::{Control, Error, ExitStatus, Pty, PtySize, Shell, ShellError, TerminalMode};

use crate::connect::{client, PATIENCE};
use crate::sshd::Sshd;
use crate::util::{eventually, within};

/// The error of a shell.
#[track_caller]
fn shell_error(error: Error) -> ShellError {
    match error {
        Error::Shell(error) => *error,
        other => panic!("{other:?}"),
    }
}

/// Reads until the text has come, and returns all that came up to its end.
#[track_caller]
fn read_until(from: &mut impl BufRead, text: &str) -> String {
    let mut said = Vec::new();
    loop {
        let buffer = from.fill_buf().unwrap();
        assert!(!buffer.is_empty(), "ended before {text:?}: {:?}", String::from_utf8_lossy(&said));
        let before = said.len();
        said.extend_from_slice(buffer);
        let whole = String::from_utf8_lossy(&said).into_owned();
        if let Some(at) = whole.find(text) {
            let taken = at + text.len() - before;
            from.consume(taken);
            return whole[..at + text.len()].to_owned();
        }
        let taken = said.len() - before;
        from.consume(taken);
    }
}

/// Types a line; what comes back is the echo, then what the command prints, which the echo must not look like.
fn run(shell: &mut Shell, line: &str, answer: &str) -> String {
    shell.write_all(format!("{line}\r").as_bytes()).unwrap();
    read_until(shell, answer)
}

#[test]
fn the_tutorials_shell_says_hello_twice() {
    within(PATIENCE, || {
        // One that does not echo by itself, as line editors do, what the terminal has echoed already.
        let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
        let mut shell = client(&server).invoke_shell().unwrap();
        shell.write_all(b"echo Hello, world\rexit\r").unwrap();
        let mut said = Vec::new();
        shell.read_to_end(&mut said).unwrap();
        let said = String::from_utf8_lossy(&said);
        // Once as it is typed, once as it is printed, with the terminal's line ends.
        assert_eq!(said.matches("Hello, world\r\n").count(), 2, "{said:?}");
        assert_eq!(said.matches("echo Hello, world\r\n").count(), 1, "{said:?}");
        assert_eq!(shell.wait().unwrap(), ExitStatus::Code(0));
    });
}

#[test]
fn type_size_and_modes_arrive() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
        let pty = Pty::new("vt220")
            .size(PtySize::new(123, 45))
            .mode(TerminalMode::ECHO, 1)
            .mode(TerminalMode::ECHO, 0)
            .mode(TerminalMode::ONLCR, 0)
            .mode(TerminalMode::VINTR, 7)
            .mode(TerminalMode::OSPEED, 9600)
            .mode(TerminalMode::ISPEED, 9600);
        let mut shell = client(&server).invoke_shell_on(&pty).unwrap();
        shell.write_all(b"stty -a; echo type $TERM; exit 3\r").unwrap();
        let mut said = String::new();
        shell.read_to_string(&mut said).unwrap();
        for part in ["speed 9600 baud", "rows 45; columns 123;", "intr = ^G;", " -echo ", " -onlcr ", "type vt220\n"] {
            assert!(said.contains(part), "{part:?} is not in {said}");
        }
        assert!(!said.contains("stty"), "no echo: {said}");
        assert_eq!(shell.wait().unwrap(), ExitStatus::Code(3));
    });
}

#[test]
fn a_command_on_a_terminal_has_one_stream() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
        let on_terminal = client(&server).sh("stty size; echo err >&2; test -t 0").pty(Pty::default());
        let out = on_terminal.output().unwrap();
        assert_eq!((out.stdout.as_slice(), out.stderr.as_slice()), (b"24 80\r\nerr\r\n".as_slice(), b"".as_slice()));
        assert!(out.status.success());
    });
}

#[test]
fn a_new_size_is_told_to_what_runs() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
        let mut shell = client(&server).invoke_shell().unwrap();
        // Not the interactive shell itself: what it runs is in a process group of its own, and that is told.
        let text = "trap 'stty size' WINCH; echo re\\ady; while :; do sleep 0.01; done";
        run(&mut shell, &format!("exec sh -c \"{text}\""), "ready");
        shell.resize(PtySize::new(132, 50));
        read_until(&mut shell, "50 132");
        // From any thread, whoever holds the shell.
        let control = shell.control();
        thread::spawn(move || control.resize(PtySize::new(99, 9))).join().unwrap();
        read_until(&mut shell, "9 99");
    });
}

#[test]
fn both_ends_serve_two_threads_and_a_third_waits() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
        let pty = Pty::default().mode(TerminalMode::ECHO, 0);
        let shell = client(&server).invoke_shell_on(&pty).unwrap();
        let control: Control = shell.control();
        let (mut writer, mut reader) = shell.split();
        let reading = thread::spawn(move || {
            let mut said = String::new();
            reader.read_to_string(&mut said).map(|_| said)
        });
        let writing = thread::spawn(move || {
            for i in 0..200 {
                writer.write_all(format!("echo line $(({i} * 1000))\n").as_bytes())?;
            }
            writer.write_all(b"exit 4\n")?;
            Ok::<_, std::io::Error>(writer)
        });
        assert_eq!(control.wait().unwrap(), ExitStatus::Code(4));
        let said = reading.join().unwrap().unwrap();
        for i in 0..200 {
            assert!(said.contains(&format!("line {}\r\n", i * 1000)), "{i}: {said}");
        }
        let mut writer = writing.join().unwrap().unwrap();
        assert_eq!(writer.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
        assert_eq!(control.status(), Some(ExitStatus::Code(4)));
    });
}

#[test]
fn what_is_typed_reaches_the_running_program() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
        let mut shell = client(&server).invoke_shell().unwrap();
        run(&mut shell, "trap : INT; echo re''ady; cat; echo en''d $?", "ready\r\n");
        assert!(run(&mut shell, "to the program", "to the program\r\nto the program\r\n").contains("program"));
        // The interrupt character, then the end of file for the shell itself.
        shell.write_all(b"\x03").unwrap();
        read_until(&mut shell, "end 130\r\n");
        shell.write_all(b"\x04").unwrap();
        shell.read_to_end(&mut Vec::new()).unwrap();
        // The shell ends with the status of what it ran last.
        assert_eq!(shell.wait().unwrap(), ExitStatus::Code(0));
    });
}

#[test]
fn a_dropped_shell_is_hung_up() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
        let client = client(&server);
        client.ping(PATIENCE).unwrap();
        let before = server.processes().len();
        let mut shell = client.invoke_shell().unwrap();
        run(&mut shell, "echo re\"\"ady; sleep 7001", "ready");
        assert!(server.processes().len() > before);
        drop(shell);
        eventually(PATIENCE, "shell and program are gone", || server.processes().len() == before);

        // Split, it lives as long as either end.
        let (mut writer, reader) = client.invoke_shell().unwrap().split();
        drop(reader);
        writer.write_all(b"sleep 7002\r").unwrap();
        let sleeps = || {
            let pids = server.processes();
            pids.iter().any(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains("7002"))
            })
        };
        eventually(PATIENCE, "what is typed is run though nobody reads", sleeps);
        drop(writer);
        eventually(PATIENCE, "shell and program are gone", || server.processes().len() == before);
    });
}

#[test]
fn a_read_may_be_limited_and_another_thread_may_end_it() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
        let mut shell = client(&server).invoke_shell().unwrap();
        run(&mut shell, "echo re''ady; exec sleep 7003", "ready\r\n");
        shell.set_read_timeout(Some(Duration::from_millis(20)));
        assert_eq!(shell.read(&mut [0; 9]).unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        shell.set_read_timeout(None);
        let control = shell.control();
        let reader = thread::spawn(move || (shell.read(&mut [0; 9]), shell));
        control.cancel();
        let (read, mut shell) = reader.join().unwrap();
        assert_eq!(read.unwrap_err().get_ref().unwrap().to_string(), "cancelled");
        assert!(matches!(shell.wait(), Err(Error::Cancelled)));
    });
}

#[test]
fn a_refused_terminal_is_an_error_and_starts_nothing() {
    within(PATIENCE, || {
        let server = Sshd::builder().login_shell("/bin/sh").option("PermitTTY no").start().unwrap();
        let client = client(&server);
        match client.invoke_shell() {
            Err(error @ Error::RequestRefused { .. }) => assert!(error.to_string().contains("pty-req"), "{error}"),
            other => panic!("{other:?}"),
        }
        assert!(client.sh("true").status().unwrap().success());
    });
}
