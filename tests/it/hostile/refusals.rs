//! Refusals: channel, exec, terminal, environment. The error says what was refused, and the connection goes on.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use threadline::{AtLimit, Error, Phase, Pty};

use super::{builder, client};
use crate::connect;
use crate::connect::PATIENCE;
use crate::rogue::{reason, run, Answer, Behaviour, OpenAnswer, Rogue};
use crate::sshd::Sshd;
use crate::util::{eventually, within};

#[test]
fn a_refused_channel_says_why_and_the_next_one_works() {
    within(PATIENCE, || {
        let server = Rogue::serving(|| {
            let mut opens = 0;
            Behaviour::new().on_open(move |_| {
                opens += 1;
                match opens {
                    1 => OpenAnswer::Refuse(reason::ADMINISTRATIVELY_PROHIBITED, "not on \u{1b}[31mSundays"),
                    2 => OpenAnswer::Refuse(reason::RESOURCE_SHORTAGE, ""),
                    _ => OpenAnswer::Confirm,
                }
            })
        });
        let client = builder(&server).spare_channel(false).connect().expect("logged in");

        let error = client.sh("true").spawn().expect_err("refused");
        assert_eq!(error.phase(), Some(Phase::Open));
        let text = error.to_string();
        assert_eq!(
            text,
            "the server refused to open a session channel: not on \\u{1b}[31mSundays (administratively prohibited)"
        );

        // We hold no session, so this is no limit to wait for.
        let error = client.sh("true").spawn().expect_err("refused");
        assert!(matches!(error, Error::OpenRefused { reason: 4, limit: None, .. }), "{error:?}");

        assert!(client.sh("true").status().expect("ran").success());
    });
}

#[test]
fn refused_requests_run_nothing_and_harm_nothing_else() {
    within(PATIENCE, || {
        let ran = Arc::new(Mutex::new(Vec::new()));
        let server = {
            let ran = Arc::clone(&ran);
            Rogue::serving(move || {
                let ran = Arc::clone(&ran);
                Behaviour::new().refuse("env").refuse("pty-req").refuse("shell").on_exec(
                    move |conn, channel, command| {
                        ran.lock().expect("not poisoned").push(command.to_owned());
                        run(conn, channel, command)
                    },
                )
            })
        };
        let client = client(&server);
        let refused = |error: Error| match error {
            Error::RequestRefused { request, detail } => (request, detail),
            other => panic!("{other}"),
        };

        let error = client.sh("echo must not run").env("LANG", "top secret").spawn().expect_err("env is refused");
        assert_eq!(error.phase(), Some(Phase::Exec));
        assert_eq!(error.to_string(), "the server refused the env request (LANG)");
        assert!(error.hint().expect("a hint").contains("env_inline"));
        assert_eq!(refused(error), ("env".into(), Some("LANG".into())));

        let error = client.sh("echo must not run").pty(Pty::new("xterm")).spawn().expect_err("pty-req is refused");
        assert_eq!(refused(error), ("pty-req".into(), None));

        let both = client.sh("echo must not run").pty(Pty::new("xterm")).env("A", "1").env("B", "2");
        assert_eq!(refused(both.spawn().expect_err("env is refused")), ("env".into(), Some("A".into())));

        let error = client.subsystem("no-such").spawn().expect_err("not known");
        assert_eq!(error.to_string(), "the server refused the subsystem request (no-such)");

        let error = client.invoke_shell().expect_err("pty-req is refused");
        assert_eq!(refused(error), ("pty-req".into(), None));

        assert_eq!(client.sh("echo fine").output().expect("ran").stdout, b"fine\n");
        assert_eq!(*ran.lock().expect("not poisoned"), ["echo fine"]);
    });
}

#[test]
fn a_refused_exec_is_an_error_and_the_connection_goes_on() {
    within(PATIENCE, || {
        let server = Rogue::serving(|| Behaviour::new().refuse("exec"));
        let client = client(&server);
        for _ in 0..3 {
            let error = client.sh("true").spawn().expect_err("refused");
            assert_eq!(error.to_string(), "the server refused the exec request");
            assert_eq!(std::io::Error::from(error).kind(), std::io::ErrorKind::PermissionDenied);
        }
        assert!(client.invoke_shell().is_ok());
    });
}

#[test]
fn an_exec_that_is_never_answered_ends_at_its_deadline() {
    within(PATIENCE, || {
        let server = Rogue::serving(|| Behaviour::new().answer("exec", Answer::Never));
        let client = client(&server);
        let limit = Duration::from_millis(200);
        let error = client.sh("true").start_timeout(limit).spawn().expect_err("no answer");
        assert!(matches!(error, Error::Timeout { phase: Phase::Exec, after, .. } if after == limit), "{error:?}");
        let error = client.sh("true").timeout(limit).output().expect_err("no answer");
        assert!(matches!(error, Error::Timeout { phase: Phase::Exec, .. }), "{error:?}");
        assert!(client.invoke_shell().is_ok(), "the connection goes on");
    });
}

#[test]
fn an_open_that_is_never_answered_holds_up_nobody_else() {
    within(PATIENCE, || {
        let server = Rogue::serving(|| {
            let mut opens = 0;
            Behaviour::new().on_open(move |_| {
                opens += 1;
                if opens == 1 {
                    OpenAnswer::Never
                } else {
                    OpenAnswer::Confirm
                }
            })
        });
        let client = client(&server);
        let waiting = {
            let client = client.clone();
            thread::spawn(move || client.sh("true").start_timeout(Duration::from_secs(2)).spawn().map(|_| ()))
        };
        // The first open is on its way before the others, or one of these is the one without an answer.
        eventually(PATIENCE, "a command beside it", || {
            client.sh("echo hello").start_timeout(Duration::from_millis(500)).output().is_ok()
        });
        for _ in 0..10 {
            assert_eq!(client.sh("echo hello").output().expect("ran").stdout, b"hello\n");
        }
        match waiting.join().expect("returns") {
            Err(Error::Timeout { phase: Phase::Open, .. }) | Ok(()) => {}
            other => panic!("{other:?}"),
        }
        client.close(PATIENCE).expect("closed");
    });
}

#[test]
fn sshd_without_accept_env_refuses_the_variable_and_runs_nothing() {
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let client = connect::client(&server);
        let trace = server.dir().join("trace");
        let error = client.command("touch").arg(trace.display().to_string()).env("FOO", "bar").output();
        let error = error.expect_err("there is no AcceptEnv");
        assert!(matches!(&error, Error::RequestRefused { request, .. } if request == "env"), "{error}");
        assert!(error.hint().expect("a hint").contains("AcceptEnv"));
        let out = client.sh("echo $FOO").env_inline("FOO", "bar").output().expect("ran");
        assert_eq!(out.stdout, b"bar\n");
        assert!(!trace.exists(), "the command ran all the same");
    });
}

#[test]
fn sshd_with_accept_env_takes_the_variable() {
    within(PATIENCE, || {
        let server = Sshd::builder().option("AcceptEnv FOO").start().expect("sshd");
        let out = connect::client(&server).sh("echo $FOO").env("FOO", "b a r").output().expect("ran");
        assert_eq!(out.stdout, b"b a r\n");
    });
}

#[test]
fn sshd_without_terminals_refuses_one() {
    within(PATIENCE, || {
        let server = Sshd::builder().option("PermitTTY no").start().expect("sshd");
        let client = connect::client(&server);
        let error = client.invoke_shell().expect_err("PermitTTY no");
        assert_eq!(error.to_string(), "the server refused the pty-req request");
        assert!(client.sh("true").status().expect("ran").success());
    });
}

#[test]
fn a_full_sshd_is_named_or_waited_for() {
    within(PATIENCE, || {
        let server = Sshd::builder().option("MaxSessions 1").start().expect("sshd");
        let client = connect::client(&server);
        let mut first = client.exec_command("cat").expect("started");

        let error = client.sh("true").at_limit(AtLimit::Fail).spawn().expect_err("there is one session");
        assert!(matches!(error, Error::OpenRefused { limit: Some(1), .. }), "{error:?}");
        assert!(error.to_string().contains("MaxSessions"), "{error}");
        assert!(error.hint().expect("a hint").contains("MaxSessions"));

        let second = {
            let client = client.clone();
            thread::spawn(move || client.sh("echo second").output())
        };
        drop(first.stdin.take());
        assert!(first.wait().expect("ended").success());
        assert_eq!(second.join().expect("returns").expect("ran").stdout, b"second\n");
    });
}

#[test]
fn sshd_without_sessions_at_all_is_an_error() {
    within(PATIENCE, || {
        let server = Sshd::builder().option("MaxSessions 0").start().expect("sshd");
        let error = connect::client(&server).sh("true").status().expect_err("no session");
        assert!(matches!(error, Error::OpenRefused { limit: None, .. }), "{error:?}");
    });
}

#[test]
fn a_forced_command_runs_in_place_of_ours() {
    within(PATIENCE, || {
        let server =
            Sshd::builder().option("ForceCommand echo forced; echo $SSH_ORIGINAL_COMMAND").start().expect("sshd");
        let out = connect::client(&server).sh("rm -rf /tmp/x").output().expect("ran");
        assert_eq!(out.stdout, b"forced\nrm -rf /tmp/x\n");
    });
}
