//! More commands than the server allows sessions.

use std::time::Duration;

use threadline::{AtLimit, Error, Phase};

use super::{at_once, meanwhile, Echo};
use crate::connect::{builder, client, PATIENCE};
use crate::sshd::Sshd;
use crate::util::within;

#[test]
fn two_hundred_commands_at_once_are_all_done_with_ten_sessions() {
    let server = Sshd::builder().option("MaxSessions 10").start().unwrap();
    let client = client(&server);
    let outputs = at_once((0..200).map(|n| {
        let client = client.clone();
        move || client.sh(format!("echo {n}; exit {n}")).output().unwrap()
    }));
    for (n, output) in outputs.iter().enumerate() {
        assert_eq!(output.stdout, format!("{n}\n").as_bytes());
        assert_eq!(output.status.code(), Some(n as u32));
    }
    // And no session is lost on the way: ten at once are there still.
    let ten: Vec<_> = (0..10).map(|_| Echo::on(&client)).collect();
    ten.into_iter().for_each(Echo::ends_well);
}

#[test]
fn a_command_that_may_not_wait_fails_with_an_error_that_names_the_limit() {
    let server = Sshd::builder().option("MaxSessions 2").start().unwrap();
    let client = builder(&server).at_limit(AtLimit::Fail).connect().unwrap();
    within(PATIENCE, move || {
        let (mut first, mut second) = (Echo::on(&client), Echo::on(&client));
        // The first is told by the server; then it is known.
        for _ in 0..2 {
            let error = client.sh("true").spawn().unwrap_err();
            assert!(matches!(error, Error::OpenRefused { limit: Some(2), .. }), "{error:?}");
            assert!(error.to_string().contains("MaxSessions") && error.to_string().contains('2'), "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("MaxSessions")));
        }
        first.rounds(1);
        second.rounds(1);
        // One that ends makes room for another, and it may be that it has not quite ended.
        first.ends_well();
        assert!(client.sh("true").at_limit(AtLimit::Wait).status().unwrap().success());
        second.ends_well();
    });
}

#[test]
fn the_channel_opened_in_advance_takes_nobodys_session() {
    let server = Sshd::builder().option("MaxSessions 2").start().unwrap();
    let client = builder(&server).at_limit(AtLimit::Fail).connect().unwrap();
    within(PATIENCE, move || {
        for _ in 0..3 {
            assert!(client.sh("true").status().unwrap().success());
        }
        let (first, second) = (Echo::on(&client), Echo::on(&client));
        first.ends_well();
        second.ends_well();
    });
}

#[test]
fn a_server_without_sessions_is_an_error_and_not_a_wait() {
    let server = Sshd::builder().option("MaxSessions 0").start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        for _ in 0..2 {
            let error = client.sh("true").spawn().unwrap_err();
            assert!(matches!(error, Error::OpenRefused { limit: None, .. }), "{error:?}");
        }
        assert!(client.ping(PATIENCE).is_ok(), "the connection is as good as before");
    });
}

#[test]
fn commands_that_wait_for_a_session_start_in_the_order_of_their_calls() {
    let server = Sshd::builder().option("MaxSessions 1").start().unwrap();
    let client = client(&server);
    let first = Echo::on(&client);
    let log = server.dir().join("written");
    let mut waiting = Vec::new();
    for n in 0..5 {
        let (client, log) = (client.clone(), log.clone());
        let one = meanwhile(move || client.sh(format!("echo {n} >>{}", log.display())).status().unwrap());
        one.still_waits();
        waiting.push(one);
    }
    first.ends_well();
    assert!(waiting.into_iter().all(|one| one.wait().success()));
    assert_eq!(std::fs::read_to_string(log).unwrap(), "0\n1\n2\n3\n4\n");
}

#[test]
fn a_command_that_gave_up_waiting_for_a_session_is_never_run() {
    let server = Sshd::builder().option("MaxSessions 1").start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        let first = Echo::on(&client);
        let trace = server.dir().join("trace");
        let error = client
            .sh(format!("touch {}", trace.display()))
            .start_timeout(Duration::from_millis(200))
            .spawn()
            .unwrap_err();
        assert!(matches!(error, Error::Timeout { phase: Phase::Open, .. }), "{error:?}");
        first.ends_well();
        // The session is there for the next, which comes after whatever the other would have been.
        assert!(client.sh("true").status().unwrap().success());
        assert!(!trace.exists());
    });
}

#[test]
fn a_connection_that_ends_releases_those_that_wait_for_a_session() {
    let server = Sshd::builder().option("MaxSessions 1").start().unwrap();
    let client = client(&server);
    let _first = Echo::on(&client);
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let client = client.clone();
            meanwhile(move || client.sh("true").spawn())
        })
        .collect();
    waiting.iter().for_each(super::Meanwhile::still_waits);
    server.kill9();
    for one in waiting {
        let error = one.wait().unwrap_err();
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
    }
}
