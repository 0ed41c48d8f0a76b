//! Nobody waits for somebody else.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Duration;

use threadline::{Error, Phase, Stdio};

use super::{at_once, meanwhile, own, Echo};
use crate::connect::{client, PATIENCE};
use crate::sshd::Sshd;
use crate::util::within;

#[test]
fn a_silent_and_a_stalled_channel_do_not_hold_up_a_busy_one() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    // A reader that waits for a command that says nothing.
    let mut silent = client.sh("sleep 1000").spawn().unwrap();
    let mut silence = silent.stdout.take().unwrap();
    let reading = meanwhile(move || silence.read(&mut [0; 1]).map_err(|e| own(&e)));
    // A command that says more than anybody reads.
    let stalled = client.sh("cat /dev/zero").spawn().unwrap();
    // A command that reads nothing of what somebody writes.
    let mut deaf = client.exec_command("sleep 1000").unwrap();
    let mut input = deaf.stdin.take().unwrap();
    let writing = meanwhile(move || input.write_all(&vec![0; 64 << 20]).map_err(|e| own(&e)));

    within(PATIENCE, move || {
        let mut busy = Echo::on(&client);
        busy.rounds(200);
        assert_eq!(client.sh("echo new").output().unwrap().stdout, b"new\n");
        assert!(client.ping(PATIENCE).is_ok());
        reading.still_waits();
        writing.still_waits();
        busy.ends_well();
        silent.control().cancel();
        deaf.control().cancel();
        assert!(matches!(reading.wait(), Err(Error::Cancelled)));
        assert!(matches!(writing.wait(), Err(Error::Cancelled)));
        drop(stalled);
    });
}

#[test]
fn a_flood_that_is_read_starves_none_of_sixteen_others() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let mut flood = client.sh("cat /dev/zero").spawn().unwrap();
    let mut stdout = flood.stdout.take().unwrap();
    let flooded = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&flooded);
    let reading = meanwhile(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = stdout.read(&mut buffer) {
            counted.fetch_add(n as u64, Ordering::Relaxed);
        }
    });
    at_once((0..16).map(|_| {
        let client = client.clone();
        move || {
            let mut ticker = Echo::on(&client);
            ticker.rounds(20);
            ticker.ends_well();
        }
    }));
    // It flowed all the while.
    let before = flooded.load(Ordering::Relaxed);
    crate::util::eventually(PATIENCE, "the flood goes on", || flooded.load(Ordering::Relaxed) > before + (8 << 20));
    flood.close();
    reading.wait();
}

#[test]
fn a_flood_upwards_starves_none_of_sixteen_others() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let mut sink = client.exec_command("cat >/dev/null").unwrap();
    let mut stdin = sink.stdin.take().unwrap();
    let writing = meanwhile(move || {
        let chunk = vec![0; 256 * 1024];
        let mut written = 0u64;
        loop {
            match stdin.write_all(&chunk) {
                Ok(()) => written += chunk.len() as u64,
                Err(error) => return (written, own(&error)),
            }
        }
    });
    at_once((0..16).map(|_| {
        let client = client.clone();
        move || {
            let mut ticker = Echo::on(&client);
            ticker.rounds(20);
            ticker.ends_well();
        }
    }));
    writing.still_waits();
    sink.control().cancel();
    let (written, error) = writing.wait();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert!(written > 8 << 20, "{written} bytes are no flood");
}

#[test]
fn one_client_serves_sixty_four_threads() {
    let server = Sshd::builder().option("MaxSessions 64").start().unwrap();
    let client = client(&server);
    at_once((0..64).map(|thread| {
        let client = client.clone();
        move || {
            for round in 0..4 {
                let n = thread * 4 + round;
                let out = client.sh(format!("echo out{n}; echo err{n} >&2; exit {}", n % 256)).output().unwrap();
                assert_eq!(out.stdout, format!("out{n}\n").as_bytes());
                assert_eq!(out.stderr, format!("err{n}\n").as_bytes());
                assert_eq!(out.status.code(), Some(n % 256));
            }
            let mut child = client.exec_command("cat").unwrap();
            let text = format!("{thread} ").repeat(20_000);
            child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
            assert_eq!(child.output().unwrap().stdout, text.as_bytes());
        }
    }));
    assert!(client.lost().is_none());
    client.close(PATIENCE).unwrap();
}

#[test]
fn a_child_s_streams_and_its_wait_serve_four_threads() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let mut child = client.exec_command("tee /dev/stderr").unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let stderr = child.stderr.take().unwrap();
    let expected = crate::util::sha256(crate::util::noise(1, 4 << 20)).unwrap();
    let status = meanwhile(move || {
        // `wait` ends only what nobody has taken; the input is another thread's.
        child.wait().unwrap()
    });
    let writing = meanwhile(move || std::io::copy(&mut crate::util::noise(1, 4 << 20), &mut stdin).unwrap());
    let out = meanwhile(move || crate::util::sha256(stdout).unwrap());
    let err = meanwhile(move || crate::util::sha256(stderr).unwrap());
    assert_eq!(writing.wait(), 4 << 20);
    assert_eq!(out.wait(), expected);
    assert_eq!(err.wait(), expected);
    assert!(status.wait().success());
}

#[test]
fn a_write_that_finds_no_room_ends_at_its_deadline_and_harms_nobody() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let mut deaf = client.command("sleep").arg("1000").stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = deaf.stdin.take().unwrap();
    stdin.set_write_timeout(Some(Duration::from_millis(200)));
    let error = within(PATIENCE, move || stdin.write_all(&vec![0; 64 << 20]).unwrap_err());
    assert!(matches!(own(&error), Error::Timeout { phase: Phase::Write, .. }), "{error}");
    Echo::on(&client).ends_well();
}
