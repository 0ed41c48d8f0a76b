//! Closing and deadlines: how long anything may take.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use threadline::{Error, ExitPolicy, Phase, Stdio};

use crate::connect::{builder, builder_via, client};
use crate::hostile;
use crate::proxy::Proxy;
use crate::rogue::{Behaviour, Rogue};
use crate::sshd::Sshd;
use crate::util::within;

const PATIENCE: Duration = Duration::from_secs(40);

fn ours(error: &std::io::Error) -> Error {
    error.get_ref().and_then(|e| e.downcast_ref::<Error>()).cloned().unwrap_or_else(|| panic!("{error}"))
}

#[test]
fn two_threads_that_close_at_once_both_learn_how_it_went() {
    within(PATIENCE, || {
        let server = Sshd::start().unwrap();
        let client = client(&server);
        let mut child = client.exec_command("sleep 100").unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.set_write_timeout(Some(Duration::from_millis(500)));
        let full = stdin.write_all(&vec![0; 8 << 20]).unwrap_err();
        assert!(matches!(ours(&full), Error::Timeout { .. }), "{full}");
        let closers = [(); 2].map(|()| {
            let client = client.clone();
            thread::spawn(move || client.close(Duration::from_secs(2)))
        });
        for closer in closers {
            let error = closer.join().unwrap().unwrap_err();
            assert!(matches!(error, Error::Timeout { phase: Phase::Write, .. }), "{error:?}");
        }
    });
}

#[test]
fn limits_that_no_clock_can_tell_are_no_limits() {
    const FOREVER: Duration = Duration::MAX;
    within(PATIENCE, || {
        let server = Sshd::builder().option("RekeyLimit 100K").start().unwrap();
        let client = builder(&server)
            .timeout(FOREVER)
            .resolve_timeout(FOREVER)
            .connect_timeout(FOREVER)
            .handshake_timeout(FOREVER)
            .auth_timeout(FOREVER)
            .keepalive(FOREVER, 3)
            .rekey_timeout(FOREVER)
            .command_timeout(FOREVER)
            .connect()
            .unwrap();
        let command = client.sh("head -c 1000000 /dev/zero").exit_policy(ExitPolicy::AfterStatus(FOREVER));
        let out = command.timeout(FOREVER).idle_timeout(FOREVER).start_timeout(FOREVER).output().unwrap();
        assert_eq!(out.stdout.len(), 1_000_000);
        client.ping(FOREVER).unwrap();
        client.close(FOREVER).unwrap();
    });
}

#[test]
fn the_end_of_one_input_is_flushed_while_another_never_pauses() {
    within(PATIENCE, || {
        let server = Sshd::start().unwrap();
        let proxy = Proxy::to(format!("127.0.0.1:{}", server.port()).parse().unwrap()).rate(8 << 20).start().unwrap();
        let client = builder_via(&server, &proxy).connect().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        // As many as fill what the kernel takes in, for as long as the test lasts.
        let writers: Vec<_> = (0..8)
            .map(|_| {
                let mut child = client.exec_command("cat >/dev/null").unwrap();
                let (stop, mut stdin) = (Arc::clone(&stop), child.stdin.take().unwrap());
                thread::spawn(move || {
                    let deadline = Instant::now() + PATIENCE / 2;
                    while !stop.load(Ordering::Relaxed) && Instant::now() < deadline {
                        stdin.write_all(&[0; 64 * 1024]).unwrap();
                    }
                    drop(child);
                })
            })
            .collect();
        thread::sleep(Duration::from_secs(1));
        let mut child = client.exec_command("cat").unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"little").unwrap();
        let outcome = stdin.finish(Duration::from_secs(12));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap();
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        assert_eq!(child.output().unwrap().stdout, b"little");
    });
}

#[test]
fn a_write_ends_with_the_command_whatever_its_own_limit() {
    within(PATIENCE, || {
        let server = Sshd::start().unwrap();
        let client = client(&server);
        let limit = Duration::from_millis(700);
        let mut child = client.sh("sleep 100").stdin(Stdio::piped()).timeout(limit).spawn().unwrap();
        let stdin = child.stdin.as_mut().unwrap();
        stdin.set_write_timeout(Some(PATIENCE * 2));
        let error = ours(&stdin.write_all(&vec![0; 8 << 20]).unwrap_err());
        assert!(matches!(error, Error::Timeout { after, .. } if after == limit), "{error:?}");
    });
}

#[test]
fn a_command_that_never_pauses_is_out_of_time_as_well() {
    within(PATIENCE, || {
        let server = Sshd::start().unwrap();
        let client = client(&server);
        let mut child = client.sh("yes").timeout(Duration::from_secs(1)).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut buffer = vec![0; 16 * 1024];
        let error = loop {
            match stdout.read(&mut buffer) {
                Ok(n) => assert!(n > 0),
                Err(error) => break ours(&error),
            }
            // A reader that is slower than the command: there is always something to read.
            thread::sleep(Duration::from_millis(1));
        };
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");

        let child = client.sh("yes").timeout(Duration::from_secs(1)).spawn().unwrap();
        let error = child.lines().find_map(Result::err).unwrap();
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    });
}

#[test]
fn what_came_in_time_is_read_however_late() {
    within(PATIENCE, || {
        let server = Sshd::start().unwrap();
        let client = client(&server);
        let limit = Duration::from_secs(2);
        let mut child = client.sh("head -c 1000000 /dev/zero").timeout(limit).spawn().unwrap();
        child.wait().unwrap();
        thread::sleep(limit);
        let mut all = Vec::new();
        child.stdout.take().unwrap().read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), 1_000_000);
    });
}

#[test]
fn waiting_for_a_shell_does_not_wait_for_somebody_to_read_it() {
    within(PATIENCE, || {
        let server = Sshd::start().unwrap();
        let client = client(&server);
        let mut shell = client.invoke_shell().unwrap();
        shell.write_all(b"head -c 6000000 /dev/zero | tr '\\0' x; exit 3\n").unwrap();
        assert_eq!(shell.wait().unwrap().code(), Some(3));
    });
}

#[test]
fn a_command_waits_for_sessions_that_are_closed_but_not_over() {
    within(PATIENCE, || {
        let server = Sshd::builder().option("MaxSessions 2").start().unwrap();
        let client = builder(&server).spare_channel(false).connect().unwrap();
        // Hanging up does not end them, and sshd holds a session for as long as its command runs.
        for _ in 0..2 {
            drop(client.sh("trap '' HUP; sleep 2 >/dev/null 2>&1").spawn().unwrap());
        }
        assert_eq!(client.sh("echo hi").output().unwrap().stdout, b"hi\n");
    });
}

#[test]
fn a_channel_that_we_closed_has_no_end_of_its_own() {
    within(PATIENCE, || {
        let server = Rogue::serving(Behaviour::new);
        let client = hostile::client(&server);
        let mut child = client.exec_command("sleep").unwrap();
        child.control().close();
        // The server's CLOSE has come when this is answered.
        client.ping(PATIENCE).unwrap();
        let end = child.stdout.as_mut().unwrap().read(&mut [0]).unwrap_err();
        assert!(matches!(ours(&end), Error::Closed), "{end}");
        assert!(matches!(child.wait(), Err(Error::Closed)));
    });
}
