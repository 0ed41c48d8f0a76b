//! Peers that fall silent, links that break, links that are slow.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use threadline::{Client, Error};

use super::{meanwhile, own, Echo, Meanwhile};
use crate::connect::{builder, builder_via, client_via, PATIENCE};
use crate::proxy::{Direction, Proxy};
use crate::rogue::{Answer, Behaviour, Rogue};
use crate::sshd::Sshd;
use crate::util::{noise, sha256, within};

const INTERVAL: Duration = Duration::from_millis(200);
const COUNT: u32 = 3;

fn proxy_to(server: &Sshd) -> crate::proxy::Builder {
    Proxy::to((Ipv4Addr::LOCALHOST, server.port()).into())
}

/// One thread each that reads, writes and waits, and how it ended.
fn waiters(client: &Client) -> Vec<Meanwhile<Error>> {
    let mut child = client.exec_command("sleep 1000").unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let waiters = vec![
        meanwhile(move || own(&stdout.read(&mut [0; 1]).unwrap_err())),
        meanwhile(move || own(&stdin.write_all(&vec![0; 64 << 20]).unwrap_err())),
        meanwhile(move || child.wait().unwrap_err()),
    ];
    waiters.iter().for_each(Meanwhile::still_waits);
    waiters
}

/// Everybody is told, and told for how long nothing had come.
#[track_caller]
fn all_told_of_the_silence(waiters: Vec<Meanwhile<Error>>) {
    for waiter in waiters {
        let error = waiter.wait();
        let Error::ConnectionLost { silent: Some(silent), .. } = &error else { panic!("{error:?}") };
        assert!(*silent >= INTERVAL * COUNT && *silent < PATIENCE, "{silent:?}");
        assert!(error.to_string().contains("silent for"), "{error}");
    }
}

#[test]
fn a_black_hole_is_noticed_and_named() {
    let server = Sshd::start().unwrap();
    let proxy = proxy_to(&server).start().unwrap();
    let client = builder_via(&server, &proxy).keepalive(INTERVAL, COUNT).connect().unwrap();
    let waiters = waiters(&client);
    proxy.black_hole();
    all_told_of_the_silence(waiters);
}

#[test]
fn a_link_that_is_dead_in_one_direction_is_noticed() {
    for direction in [Direction::Up, Direction::Down] {
        let server = Sshd::start().unwrap();
        let proxy = proxy_to(&server).start().unwrap();
        let client = builder_via(&server, &proxy).keepalive(INTERVAL, COUNT).connect().unwrap();
        let waiters = waiters(&client);
        proxy.swallow(direction);
        all_told_of_the_silence(waiters);
    }
}

#[test]
fn a_server_that_is_stopped_is_noticed() {
    let server = Sshd::start().unwrap();
    let client = builder(&server).keepalive(INTERVAL, COUNT).connect().unwrap();
    let waiters = waiters(&client);
    server.signal_sessions(Signal::STOP);
    all_told_of_the_silence(waiters);
}

#[test]
fn a_server_that_says_nothing_but_answers_probes_is_alive() {
    let server = Sshd::start().unwrap();
    let client = builder(&server).keepalive(Duration::from_millis(100), 20).connect().unwrap();
    within(PATIENCE, move || {
        let start = Instant::now();
        assert_eq!(client.sh("sleep 3; echo alive").output().unwrap().stdout, b"alive\n");
        assert!(start.elapsed() >= Duration::from_secs(3));
    });
}

#[test]
fn a_server_that_answers_no_probe_is_not_believed_to_be_alive_and_without_probes_it_is() {
    let mute = || {
        Rogue::serving(|| {
            Behaviour::new()
                .answer("keepalive@openssh.com", Answer::Never)
                .on_exec(|conn, channel, _| conn.set_input(channel, crate::rogue::Input::Stall))
        })
    };
    let server = mute();
    let (builder, _directory) = super::builder_for(&server);
    let client = builder.keepalive(INTERVAL, COUNT).connect().unwrap();
    within(PATIENCE, move || {
        let error = client.sh("x").status().unwrap_err();
        assert!(matches!(error, Error::ConnectionLost { silent: Some(_), .. }), "{error:?}");
        drop(server);
    });

    let server = mute();
    let (builder, _directory) = super::builder_for(&server);
    let client = builder.no_keepalive().connect().unwrap();
    within(PATIENCE, move || {
        let mut child = client.sh("x").spawn().unwrap();
        let error = child.wait_timeout(INTERVAL * COUNT * 2).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
        assert!(client.lost().is_none());
        drop((child, server));
    });
}

#[test]
fn a_cut_and_an_end_of_the_link_are_told_at_once() {
    for nicely in [false, true] {
        let server = Sshd::start().unwrap();
        let proxy = proxy_to(&server).start().unwrap();
        let client = client_via(&server, &proxy);
        let waiters = waiters(&client);
        if nicely {
            proxy.close_nicely();
        } else {
            proxy.cut();
        }
        // The defaults would take 45 s and more to notice a silence; this is none.
        let start = Instant::now();
        for waiter in waiters {
            let error = waiter.wait();
            assert!(
                matches!(&error, Error::ConnectionLost { silent: None, reason } if !reason.is_empty()),
                "{error:?}"
            );
        }
        assert!(start.elapsed() < Duration::from_secs(30));
    }
}

#[test]
fn a_connection_that_stands_still_holds_up_no_other_and_goes_on_where_it_stood() {
    let server = Sshd::start().unwrap();
    let proxy = proxy_to(&server).start().unwrap();
    for direction in [Direction::Up, Direction::Down] {
        let (stalled, other) = (client_via(&server, &proxy), crate::connect::client(&server));
        let mut child = stalled.exec_command("cat").unwrap();
        let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let writing = meanwhile(move || std::io::copy(&mut noise(5, 16 << 20), &mut stdin).unwrap());
        let passed = proxy.delivered(direction);
        assert!(proxy.wait_until_delivered(direction, passed + (1 << 20), PATIENCE) || direction == Direction::Down);
        proxy.stall(direction);
        let reading = meanwhile(move || sha256(stdout).unwrap());
        writing.still_waits();
        let mut echo = Echo::on(&other);
        echo.rounds(20);
        echo.ends_well();
        reading.still_waits();
        // On the stalled connection itself every call with a deadline keeps it.
        let error = stalled.ping(Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error:?}");

        proxy.resume(direction);
        assert_eq!(writing.wait(), 16 << 20);
        assert_eq!(reading.wait(), sha256(noise(5, 16 << 20)).unwrap());
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn one_byte_at_a_time_everything_works() {
    let server = Sshd::start().unwrap();
    let proxy = proxy_to(&server).byte_wise().start().unwrap();
    let client = client_via(&server, &proxy);
    within(PATIENCE, move || {
        let mut child = client.exec_command("cat; echo end >&2; exit 9").unwrap();
        std::io::copy(&mut noise(6, 30_000), child.stdin.as_mut().unwrap()).unwrap();
        let output = child.output().unwrap();
        assert_eq!(sha256(output.stdout.as_slice()).unwrap(), sha256(noise(6, 30_000)).unwrap());
        assert_eq!((output.stderr.as_slice(), output.status.code()), (b"end\n".as_slice(), Some(9)));
        drop((server, proxy));
    });
}

#[test]
fn many_commands_at_once_on_a_long_link_cost_two_round_trips_together() {
    let server = Sshd::start().unwrap();
    let round_trip = Duration::from_millis(300);
    let proxy = proxy_to(&server).delay(round_trip / 2).start().unwrap();
    let client = client_via(&server, &proxy);
    let start = Instant::now();
    let outputs = super::at_once((0..8).map(|n| {
        let client = client.clone();
        move || client.sh(format!("echo {n}")).output().unwrap().stdout
    }));
    let took = start.elapsed();
    assert_eq!(outputs, (0..8).map(|n| format!("{n}\n").into_bytes()).collect::<Vec<_>>());
    // One after the other they would take 16 round trips, opened one after the other 9.
    assert!(took >= round_trip * 2 && took < round_trip * 7, "{took:?}");
}
