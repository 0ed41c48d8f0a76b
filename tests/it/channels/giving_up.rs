//! Everything given up in every order, from every thread.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use threadline::{Child, Error};

use super::{at_once, meanwhile, own, Echo};
use crate::connect::{client, PATIENCE};
use crate::sshd::Sshd;
use crate::util::{alone, eventually, open_files, threads_named, within};

/// What a caller can hold of a connection, to be dropped.
type Held = Box<dyn FnOnce()>;

fn held(thing: impl Sized + 'static) -> Held {
    Box::new(move || drop(thing))
}

fn drop_timed(held: Held) -> Duration {
    let start = Instant::now();
    held();
    start.elapsed()
}

/// Which two are one for [`busy`], so that there are 24 orders and not 120 connections.
#[derive(Debug, Clone, Copy)]
enum Together {
    Outputs,
    ChildAndInput,
}

/// A connection whose command floods both outputs, with its input full as well.
fn busy(server: &Sshd, together: Together) -> Vec<Held> {
    let client = client(server);
    let mut child = client.exec_command("cat /dev/zero >&2 & exec cat /dev/zero").unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(&vec![0; 400 * 1024]).unwrap();
    let (stdout, stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    match together {
        Together::Outputs => vec![held(client), held(child), held(stdin), held((stdout, stderr))],
        Together::ChildAndInput => vec![held(client), held((child, stdin)), held(stdout), held(stderr)],
    }
}

/// Every order of so many things.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let shorter = orders(count - 1);
    let with = |order: &Vec<usize>, at: usize| {
        let mut order = order.clone();
        order.insert(at, count - 1);
        order
    };
    (0..count).flat_map(|at| shorter.iter().map(move |order| with(order, at))).collect()
}

#[test]
fn everything_can_be_dropped_in_every_order_and_no_drop_waits() {
    alone("channels::giving_up::everything_can_be_dropped_in_every_order_and_no_drop_waits", PATIENCE, || {
        let server = Sshd::start().unwrap();
        let before = open_files();
        let both = [Together::Outputs, Together::ChildAndInput];
        for (order, together) in orders(4).into_iter().flat_map(|order| both.map(|together| (order.clone(), together)))
        {
            // A drop that waits does so each time; a machine that is busy does not.
            let fast = (0..3).any(|_| {
                let mut held: Vec<_> = busy(&server, together).into_iter().map(Some).collect();
                let took: Duration = order.iter().map(|&at| drop_timed(held[at].take().unwrap())).sum();
                took < Duration::from_millis(100)
            });
            assert!(fast, "{order:?} {together:?}");
        }
        eventually(PATIENCE, "every transport ends", || threads_named("tl:") == 0);
        assert_eq!(open_files(), before);
    });
}

/// The end of a command that we closed: that we did, or how it took the end of its output if it was fast.
fn is_closed(child: &mut Child) -> bool {
    match child.wait() {
        Err(Error::Closed) => true,
        Ok(status) => status.signal() == Some("PIPE"),
        Err(_) => false,
    }
}

#[test]
fn closing_a_command_ends_the_reads_of_others_and_leaves_other_commands_alone() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let mut other = Echo::on(&client);
    let mut floods = Vec::new();
    for n in 0..8 {
        let mut child = client.sh(if n % 2 == 0 { "exec cat /dev/zero" } else { "exec sleep 1000" }).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let reading = meanwhile(move || loop {
            match stdout.read(&mut [0; 8192]) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(own(&error)),
            }
        });
        floods.push((child, reading));
    }
    other.rounds(10);
    for (n, (mut child, reading)) in floods.into_iter().enumerate() {
        reading.still_waits();
        match n % 4 {
            0 | 1 => child.close(),
            _ => child.control().close(),
        }
        let ended = reading.wait();
        assert!(matches!(ended, Some(Error::Closed)), "{ended:?}");
        assert!(is_closed(&mut child));
        other.rounds(1);
    }
    other.ends_well();
}

#[test]
fn what_had_come_before_a_close_is_read_and_then_the_close_is_told_and_no_end_of_file() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        let mut child = client.sh("exec cat /dev/zero").spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut [0; 1]).unwrap();
        child.close();
        // The server's own CLOSE has come, too: it sends that before it answers the second of these.
        for _ in 0..3 {
            client.ping(PATIENCE).unwrap();
        }
        let mut rest = Vec::new();
        let error = stdout.read_to_end(&mut rest).unwrap_err();
        assert!(matches!(own(&error), Error::Closed), "{error}");
        assert!(rest.iter().all(|&byte| byte == 0));
        assert!(is_closed(&mut child));
    });
}

#[test]
fn cancel_ends_every_wait_on_its_command_and_no_other() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let mut other = Echo::on(&client);
    let mut child = client.exec_command("sleep 1000").unwrap();
    let (mut stdin, mut stdout, mut stderr) =
        (child.stdin.take().unwrap(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let control = child.control();
    let writing = meanwhile(move || stdin.write_all(&vec![0; 64 << 20]).map_err(|e| own(&e)));
    let out = meanwhile(move || stdout.read(&mut [0; 1]).map(drop).map_err(|e| own(&e)));
    let err = meanwhile(move || stderr.read(&mut [0; 1]).map(drop).map_err(|e| own(&e)));
    let status = meanwhile(move || child.wait().map(drop));
    writing.still_waits();
    at_once([move || control.cancel()]);
    for ended in [writing.wait(), out.wait(), err.wait(), status.wait()] {
        assert!(matches!(ended, Err(Error::Cancelled)), "{ended:?}");
    }
    other.rounds(5);
    other.ends_well();
}

#[test]
fn closing_the_client_ends_all_waits_of_all_threads() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let readers: Vec<_> = (0..6)
        .map(|n| {
            let mut child =
                client.sh(if n % 2 == 0 { "exec cat /dev/zero" } else { "exec sleep 1000" }).spawn().unwrap();
            meanwhile(move || {
                let mut stdout = child.stdout.take().unwrap();
                let mut buffer = vec![0; 8192];
                loop {
                    match stdout.read(&mut buffer) {
                        Ok(0) => panic!("an end, as if the command had ended"),
                        Ok(_) => {}
                        Err(error) => return own(&error),
                    }
                }
            })
        })
        .collect();
    readers.iter().for_each(super::Meanwhile::still_waits);
    let closer = client.clone();
    within(PATIENCE, move || closer.close(PATIENCE).unwrap());
    for reader in readers {
        assert!(matches!(reader.wait(), Error::Closed));
    }
    eventually(PATIENCE, "the server's session ends", || server.session_pids().is_empty());
}

#[test]
fn a_control_outlives_its_command_and_does_nothing_then() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        let mut child = client.sh("exit 5").spawn().unwrap();
        let control = child.control();
        assert_eq!(child.wait().unwrap().code(), Some(5));
        drop(child);
        assert_eq!(control.status().and_then(|status| status.code()), Some(5));
        control.signal("TERM");
        control.close();
        control.cancel();
        Echo::on(&client).ends_well();
    });
}

#[test]
fn a_command_whose_start_nobody_waits_for_any_more_is_hung_up() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        // Each ends by itself soon: a session counts at sshd as long as its process lives, and there are but ten.
        // Every moment between the call and the answer, as far as chance finds them.
        for micros in (0..40).map(|n| n * 250) {
            let outcome = client.sh("exec sleep 0.05").start_timeout(Duration::from_micros(micros)).spawn();
            if let Err(error) = outcome {
                assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
            }
        }
        Echo::on(&client).ends_well();
        client.close(PATIENCE).unwrap();
    });
}
