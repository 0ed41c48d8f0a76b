//! 1,000 commands later nothing is left, and an idle connection costs nothing.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use threadline::{AtLimit, Client};

use crate::connect::{builder, client, PATIENCE};
use crate::sshd::Sshd;
use crate::util::{alone, cpu_time, eventually, memory, open_files, threads};

/// Commands of all kinds, from four threads at once, until so many were run.
fn run_commands(client: &Client, count: usize) {
    let next = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (client, next) = (client.clone(), Arc::clone(&next));
            std::thread::spawn(move || loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= count {
                    return;
                }
                match n % 4 {
                    0 => assert_eq!(client.sh("echo hi").output().unwrap().stdout, b"hi\n"),
                    1 => assert_eq!(client.sh("exit 3").status().unwrap().code(), Some(3)),
                    2 => {
                        let mut child = client.exec_command("read x; exit 4").unwrap();
                        assert_eq!(child.wait().unwrap().code(), Some(4));
                    }
                    // Given up while it runs; it ends when it finds its input at the end.
                    _ => drop(client.exec_command("cat").unwrap()),
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn a_thousand_commands_leave_no_channel_no_thread_and_no_descriptor() {
    let patience = PATIENCE * 2;
    alone("channels::leftovers::a_thousand_commands_leave_no_channel_no_thread_and_no_descriptor", patience, || {
        let server = Sshd::builder().option("MaxSessions 12").start().unwrap();
        let before = (open_files(), threads().len());
        let client = builder(&server).connect().unwrap();
        run_commands(&client, 20);
        let with_client = (open_files(), threads().len());
        let idle = server.processes().len();
        assert_eq!(with_client, (before.0 + 2, before.1 + 1), "the socket and the wake descriptor; the transport");
        let (small, _) = memory();

        run_commands(&client, 1000);
        eventually(PATIENCE, "nothing is left", || (open_files(), threads().len()) == with_client);
        eventually(PATIENCE, "nothing is left on the server", || server.processes().len() <= idle);
        // No session either: all twelve are to be had, but for those that are kept in advance and serve the first.
        eventually(PATIENCE, "twelve sessions", || {
            let cats: Vec<_> = (0..12).map(|_| client.sh("cat").at_limit(AtLimit::Fail).spawn()).collect();
            cats.iter().all(Result::is_ok)
        });
        let (now, _) = memory();
        assert!(now < small + (16 << 20), "{} KiB more than before", (now - small) / 1024);

        client.close(PATIENCE).unwrap();
        drop(client);
        assert_eq!((open_files(), threads().len()), before);
        eventually(PATIENCE, "the server's session ends", || server.session_pids().is_empty());
    });
}

#[test]
fn a_client_that_is_dropped_leaves_no_thread_and_no_descriptor() {
    alone("channels::leftovers::a_client_that_is_dropped_leaves_no_thread_and_no_descriptor", PATIENCE, || {
        let server = Sshd::start().unwrap();
        let before = (open_files(), threads().len());
        for _ in 0..5 {
            let client = client(&server);
            let flood = client.sh("cat /dev/zero").spawn().unwrap();
            drop(client);
            drop(flood);
        }
        eventually(PATIENCE, "nothing is left", || (open_files(), threads().len()) == before);
        eventually(PATIENCE, "the server's sessions end", || server.session_pids().is_empty());
    });
}

#[test]
fn an_idle_connection_uses_no_cpu() {
    alone("channels::leftovers::an_idle_connection_uses_no_cpu", PATIENCE, || {
        let server = Sshd::start().unwrap();
        let client = client(&server);
        let mut waits = client.sh("sleep 1000").spawn().unwrap();
        let reading = {
            let mut stdout = waits.stdout.take().unwrap();
            std::thread::spawn(move || std::io::Read::read(&mut stdout, &mut [0; 1]))
        };
        // Buffers kept for reuse are freed half a second after the last traffic.
        std::thread::sleep(Duration::from_millis(800));
        let before = cpu_time();
        std::thread::sleep(Duration::from_secs(4));
        let used = cpu_time() - before;
        assert!(used < Duration::from_millis(10), "{used:?} in 4 s");
        waits.close();
        assert!(reading.join().unwrap().is_err());
    });
}

#[test]
fn sixty_seconds_idle_under_alive_checks_keep_the_connection_and_cost_next_to_nothing() {
    let patience = PATIENCE * 3;
    alone(
        "channels::leftovers::sixty_seconds_idle_under_alive_checks_keep_the_connection_and_cost_next_to_nothing",
        patience,
        || {
            // A question every second; three without an answer end the connection.
            let server = Sshd::builder().option("ClientAliveInterval 1").option("ClientAliveCountMax 3").start();
            let server = server.unwrap();
            let client = client(&server);
            let mut cat = super::Echo::on(&client);
            cat.rounds(1);
            let before = cpu_time();
            std::thread::sleep(Duration::from_secs(60));
            let used = cpu_time() - before;
            // Sixty answers.
            assert!(used < Duration::from_millis(600), "{used:?} in 60 s");
            cat.rounds(10);
            cat.ends_well();
            assert_eq!(client.sh("echo hi").output().unwrap().stdout, b"hi\n");
        },
    );
}
