//! How a command ends, and what a connection's end does to it.

use std::io::{BufRead, BufReader, Read, Write};
use std::time::Duration;

use threadline::{Client, Error, ExitPolicy, ExitStatus, Phase};

use super::{at_once, client_of, meanwhile, own, Echo};
use crate::connect::{client, PATIENCE};
use crate::rogue::{Behaviour, Rogue};
use crate::sshd::Sshd;
use crate::util::{eventually, within};

#[test]
fn every_exit_code_arrives() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let codes = at_once((0..8).map(|part| {
        let client = client.clone();
        move || {
            (part * 32..part * 32 + 32).map(|n| client.sh(format!("exit {n}")).status().unwrap()).collect::<Vec<_>>()
        }
    }));
    for (n, status) in codes.concat().into_iter().enumerate() {
        assert_eq!(status, ExitStatus::Code(n as u32));
        assert_eq!(status.success(), n == 0);
    }
}

#[test]
fn a_signal_arrives_by_its_name_and_is_no_success() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        for name in ["TERM", "KILL", "SEGV", "INT", "HUP"] {
            let output = client.sh(format!("echo before; kill -{name} $$; echo after")).output().unwrap();
            assert_eq!(output.status.signal(), Some(name));
            assert_eq!(output.status.code(), None);
            assert!(!output.status.success());
            assert_eq!(output.stdout, b"before\n");
        }
    });
}

#[test]
fn a_dumped_core_and_the_servers_words_are_kept() {
    let server = Rogue::serving(|| {
        Behaviour::new().on_exec(|conn, channel, _command| {
            conn.exit_signal(channel, "SEGV", true, "address \u{1b}[31m0")?;
            conn.eof(channel)?;
            conn.close(channel)
        })
    });
    let client = client_of(&server);
    within(PATIENCE, move || {
        let status = client.sh("crash").status().unwrap();
        let ExitStatus::Signal(signal) = &status else { panic!("{status}") };
        assert_eq!((signal.name.as_str(), signal.core_dumped), ("SEGV", true));
        assert_eq!(signal.message, "address \u{1b}[31m0");
        assert!(!status.to_string().contains('\u{1b}'), "shown, it is escaped: {status}");
        drop(server);
    });
}

#[test]
fn a_command_of_which_no_ending_was_told_is_no_success() {
    let server = Rogue::serving(|| {
        Behaviour::new().on_exec(|conn, channel, _command| {
            conn.data(channel, b"half")?;
            conn.close(channel)
        })
    });
    let client = client_of(&server);
    within(PATIENCE, move || {
        let output = client.sh("vanish").output().unwrap();
        assert_eq!((output.stdout.as_slice(), &output.status), (b"half".as_slice(), &ExitStatus::Unknown));
        assert!(!output.status.success());
        drop(server);
    });
}

#[test]
fn the_status_is_final_only_when_the_channel_is_closed() {
    let server = Rogue::logged_in(|conn| {
        let (channel, _) = conn.expect_exec()?;
        conn.exit_status(channel, 7)?;
        conn.data(channel, b"late")?;
        // Whoever asks now has an answer before the end comes.
        conn.keepalive(channel)?;
        conn.expect(crate::rogue::msg::GLOBAL_REQUEST)?;
        conn.send(&[crate::rogue::msg::REQUEST_FAILURE])?;
        conn.eof(channel)?;
        conn.close(channel)?;
        conn.serve(&mut Behaviour::new())
    });
    let client = client_of(&server);
    within(PATIENCE, move || {
        let mut child = client.sh("x").spawn().unwrap();
        let mut late = [0; 4];
        child.stdout.as_mut().unwrap().read_exact(&mut late).unwrap();
        assert_eq!(child.try_wait().unwrap(), None, "the status has come, the end has not");
        client.ping(PATIENCE).unwrap();
        assert_eq!(child.wait().unwrap(), ExitStatus::Code(7));
        assert_eq!(child.try_wait().unwrap(), Some(ExitStatus::Code(7)));
        drop(server);
    });
}

#[test]
fn a_daemon_that_holds_the_output_delays_the_end_unless_the_status_is_enough() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        let release = server.dir().join("release");
        let daemon = format!("(while [ ! -e {} ]; do sleep 0.05; done) & echo started; exit 7", release.display());

        let policy = ExitPolicy::AfterStatus(Duration::from_millis(100));
        let output = client.sh(&daemon).exit_policy(policy).output().unwrap();
        assert_eq!((output.stdout.as_slice(), output.status.code()), (b"started\n".as_slice(), Some(7)));
        let status = client.sh(&daemon).exit_policy(policy).status().unwrap();
        assert_eq!(status.code(), Some(7));

        let mut child = client.sh(&daemon).spawn().unwrap();
        assert_eq!(child.exit_policy(), ExitPolicy::Closed);
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let error = child.wait_timeout(Duration::from_millis(400)).unwrap_err();
        assert!(matches!(error, Error::Timeout { phase: Phase::Total, .. }), "{error:?}");
        assert_eq!(child.try_wait().unwrap(), None);
        std::fs::write(release, "").unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(7));
        assert_eq!(stdout.read(&mut [0; 1]).unwrap(), 0);
    });
}

#[test]
fn kill_9_of_the_server_ends_every_wait_and_what_had_come_is_read_first() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let lost = |error: &Error| matches!(error, Error::ConnectionLost { .. });
    let io_lost = move |error: std::io::Error| lost(&own(&error));

    // Somebody reads in the middle of a stream, somebody writes, somebody waits, somebody has not read yet.
    let mut flood = client.sh("cat /dev/zero").spawn().unwrap();
    let mut stdout = flood.stdout.take().unwrap();
    let mut first = vec![1; 1 << 20];
    stdout.read_exact(&mut first).unwrap();
    let reading = meanwhile(move || loop {
        match stdout.read(&mut first) {
            Ok(0) => panic!("a lost stream looks like a whole one"),
            Ok(_) => {}
            Err(error) => return io_lost(error),
        }
    });
    let mut deaf = client.exec_command("sleep 1000").unwrap();
    let mut stdin = deaf.stdin.take().unwrap();
    let writing = meanwhile(move || io_lost(stdin.write_all(&vec![0; 64 << 20]).unwrap_err()));
    let mut silent = client.sh("sleep 1000").spawn().unwrap();
    let waiting = meanwhile(move || lost(&silent.wait().unwrap_err()));
    let mut unread = client.sh("echo first; exec sleep 1000").spawn().unwrap();
    let printed = server.dir().join("printed");
    let both = format!("echo out; echo err >&2; : >'{}'; exec sleep 1000", printed.display());
    let merged = client.sh(both).spawn().unwrap().lines();
    // A round trip through the same process after each has printed.
    let mut echo = Echo::on(&client);
    let mut line = [0; 6];
    unread.stdout.as_mut().unwrap().read_exact(&mut line[..1]).unwrap();
    eventually(PATIENCE, "both lines are printed", || printed.exists());
    echo.rounds(1);
    let gathered = meanwhile(move || merged.collect::<Vec<_>>());
    gathered.still_waits();

    server.kill9();
    assert!(reading.wait() && writing.wait() && waiting.wait());
    within(PATIENCE, move || {
        let mut stdout = unread.stdout.take().unwrap();
        stdout.read_exact(&mut line[1..]).unwrap();
        assert_eq!(&line, b"first\n");
        assert!(io_lost(stdout.read(&mut line).unwrap_err()));
        assert!(lost(&unread.wait().unwrap_err()));
        let mut gathered = gathered.wait();
        let last = gathered.pop().unwrap();
        assert!(matches!(last, Err(Error::ConnectionLost { .. })), "{last:?}");
        let mut lines: Vec<_> = gathered.into_iter().map(|line| line.unwrap().bytes).collect();
        lines.sort();
        assert_eq!(lines, [b"err".to_vec(), b"out".to_vec()]);
        // And so for all that is begun afterwards.
        assert!(lost(&client.sh("true").spawn().unwrap_err()));
        assert!(lost(&client.ping(PATIENCE).unwrap_err()));
        assert!(lost(&client.close(PATIENCE).unwrap_err()));
        assert!(client.lost().is_some_and(|error| lost(&error)));
        assert!(lost(&flood.wait().unwrap_err()));
    });
}

#[test]
fn a_disconnect_is_told_in_the_servers_words_after_all_that_came_before() {
    const LENGTH: usize = 1_000_000;
    let server = Rogue::logged_in(|conn| {
        let (channel, _) = conn.expect_exec()?;
        conn.data(channel, &[b'd'; LENGTH])?;
        conn.stderr(channel, b"last words\n")?;
        conn.disconnect(11, "down for maintenance\u{7}, try again at noon")?;
        // As sshd does: it is gone at once.
        conn.shutdown_write()
    });
    let client = client_of(&server);
    within(PATIENCE, move || {
        let mut child = client.sh("x").spawn().unwrap();
        let mut out = Vec::new();
        let error = own(&child.stdout.take().unwrap().read_to_end(&mut out).unwrap_err());
        assert_eq!(out.len(), LENGTH);
        let mut err = Vec::new();
        child.stderr.take().unwrap().read_to_end(&mut err).unwrap_err();
        assert_eq!(err, b"last words\n");
        for error in [error, child.wait().unwrap_err(), client.lost().unwrap()] {
            let Error::ConnectionLost { reason, .. } = &error else { panic!("{error:?}") };
            assert!(reason.contains("down for maintenance") && reason.contains("try again at noon"), "{reason}");
            assert!(!error.to_string().contains('\u{7}'), "{error}");
        }
        drop(server);
    });
}

#[test]
fn a_server_that_just_goes_is_told_from_one_that_says_goodbye() {
    let server = Rogue::logged_in(|conn| {
        conn.expect_exec()?;
        conn.shutdown_write()
    });
    let client = client_of(&server);
    within(PATIENCE, move || {
        let error = client.sh("x").output().unwrap_err();
        let Error::ConnectionLost { reason, silent: None } = error else { panic!("{error:?}") };
        assert!(!reason.is_empty());
        drop(server);
    });
}

#[test]
fn a_closed_client_is_closed_for_all_its_clones() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let other: Client = client.clone();
    within(PATIENCE, move || {
        let mut child = client.sh("sleep 1000").spawn().unwrap();
        client.close(PATIENCE).unwrap();
        assert!(matches!(child.wait(), Err(Error::Closed)));
        assert!(matches!(other.sh("true").spawn(), Err(Error::Closed)));
        assert!(matches!(other.ping(PATIENCE), Err(Error::Closed)));
        assert!(matches!(other.lost(), Some(Error::Closed)));
        other.close(PATIENCE).unwrap();
    });
}
