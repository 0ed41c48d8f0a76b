//! The channel that is opened in advance: what it saves, and when there is none.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use threadline::Client;

use super::{at_once, builder_for, client_of};
use crate::connect::{builder_via, PATIENCE};
use crate::proxy::Proxy;
use crate::rogue::{reason, Behaviour, OpenAnswer, Rogue};
use crate::sshd::Sshd;
use crate::util::{eventually, within};

/// A good server that counts the sessions it is asked for, and answers as told the one of this number (from 1).
fn counting(answer: impl Fn(usize) -> OpenAnswer + Send + Sync + Clone + 'static) -> (Rogue, Arc<AtomicUsize>) {
    let opens = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&opens);
    let server = Rogue::serving(move || {
        let (counted, answer) = (Arc::clone(&counted), answer.clone());
        Behaviour::new().on_open(move |_| answer(counted.fetch_add(1, Ordering::SeqCst) + 1))
    });
    (server, opens)
}

#[track_caller]
fn says(client: &Client, text: &str) {
    let output = client.sh(format!("echo {text}")).output().unwrap();
    assert_eq!(output.stdout, format!("{text}\n").as_bytes());
    assert!(output.status.success());
}

/// The server has taken in all that was sent before: it answers a global request in turn.
#[track_caller]
fn settle(client: &Client) {
    client.ping(PATIENCE).unwrap();
}

#[test]
fn one_command_after_the_other_keeps_one_channel_in_advance() {
    let (server, opens) = counting(|_| OpenAnswer::Confirm);
    let client = client_of(&server);
    within(PATIENCE, move || {
        for n in 1..=5 {
            // So that no two belong to one burst.
            settle(&client);
            std::thread::sleep(Duration::from_millis(60));
            says(&client, "hi");
            settle(&client);
            assert_eq!(opens.load(Ordering::SeqCst), n + 1);
        }
        drop(server);
    });
}

#[test]
fn switched_off_it_is_never_opened() {
    let (server, opens) = counting(|_| OpenAnswer::Confirm);
    let (builder, _directory) = builder_for(&server);
    let client = builder.spare_channel(false).connect().unwrap();
    within(PATIENCE, move || {
        for n in 1..=5 {
            says(&client, "hi");
            settle(&client);
            assert_eq!(opens.load(Ordering::SeqCst), n);
        }
        drop(server);
    });
}

#[test]
fn a_burst_keeps_four_and_not_one_more() {
    let (server, opens) = counting(|_| OpenAnswer::Confirm);
    let client = client_of(&server);
    for _ in 0..3 {
        at_once((0..32).map(|_| {
            let client = client.clone();
            move || says(&client, "hi")
        }));
    }
    within(PATIENCE, move || {
        settle(&client);
        let after = opens.load(Ordering::SeqCst);
        // What is there serves the next ones; each is replaced, and so the count tells nothing; but all there is beyond
        // the commands is what is kept.
        assert!((96 + 2..=96 + 4).contains(&after), "{after} channels for 96 commands");
        drop(server);
    });
}

#[test]
fn the_first_refusal_ends_it_for_good() {
    let (server, opens) = counting(|number| match number {
        2 => OpenAnswer::Refuse(reason::RESOURCE_SHORTAGE, "one is enough"),
        _ => OpenAnswer::Confirm,
    });
    let client = client_of(&server);
    within(PATIENCE, move || {
        for n in 1..=5 {
            says(&client, "hi");
            settle(&client);
            assert_eq!(opens.load(Ordering::SeqCst), n + 1, "one in advance, refused; then one for each command");
        }
        drop(server);
    });
}

#[test]
fn one_that_is_never_confirmed_holds_up_nobody() {
    let (server, _opens) = counting(|number| if number == 2 { OpenAnswer::Never } else { OpenAnswer::Confirm });
    let client = client_of(&server);
    within(PATIENCE, move || {
        says(&client, "first");
        // For a moment a command would wait for it: that is shorter than asking for another.
        std::thread::sleep(Duration::from_millis(1100));
        (0..5).for_each(|_| says(&client, "hi"));
        drop(server);
    });
}

#[test]
fn one_that_the_server_closes_is_replaced_once_and_nobody_hears_of_it() {
    let opens = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&opens);
    let server = Rogue::logged_in(move |conn| {
        let counting = Arc::clone(&counted);
        let mut behaviour = Behaviour::new().on_open(move |_| {
            counting.fetch_add(1, Ordering::SeqCst);
            OpenAnswer::Confirm
        });
        let mut closed = 1;
        loop {
            conn.serve_one(&mut behaviour)?;
            // The second and the third that are opened: the one in advance, and the one in its place.
            let opened = counted.load(Ordering::SeqCst);
            if opened > closed && opened <= 3 {
                closed = opened;
                let newest = conn.newest_channel().expect("it was just confirmed");
                conn.close(newest)?;
            }
        }
    });
    let client = client_of(&server);
    within(PATIENCE, move || {
        says(&client, "first");
        eventually(PATIENCE, "one in advance, and one in its place", || opens.load(Ordering::SeqCst) == 3);
        settle(&client);
        for n in 1..=4 {
            says(&client, "hi");
            settle(&client);
            assert_eq!(opens.load(Ordering::SeqCst), 3 + n, "no more in advance");
        }
        drop(server);
    });
}

#[test]
fn one_that_is_closed_just_when_it_is_used_costs_the_command_nothing() {
    let server = Rogue::logged_in(|conn| {
        let (first, _) = conn.expect_exec()?;
        let spare = conn.expect_open()?;
        let spare = conn.confirm(&spare)?;
        conn.finish(first, 0)?;
        let request = conn.expect_request("exec")?;
        assert_eq!(request.channel, spare);
        // Not a word about the request: it crossed this.
        conn.close(spare)?;
        conn.serve(&mut Behaviour::new().on_exec(move |conn, channel, command| {
            assert_ne!(channel, spare);
            conn.data(channel, command.as_bytes())?;
            conn.finish(channel, 0)
        }))
    });
    let client = client_of(&server);
    within(PATIENCE, move || {
        assert!(client.sh("first").status().unwrap().success());
        let second = client.sh("second").output().unwrap();
        assert_eq!(second.stdout, b"second");
        assert!(second.status.success());
        drop(server);
    });
}

#[test]
fn the_second_command_costs_one_round_trip() {
    let server = Sshd::start().unwrap();
    let round_trip = Duration::from_millis(300);
    let proxy = Proxy::to((Ipv4Addr::LOCALHOST, server.port()).into()).delay(round_trip / 2).start().unwrap();
    let measure = |client: &Client| {
        let start = Instant::now();
        let mut child = client.sh("true").spawn().unwrap();
        let took = start.elapsed();
        assert!(child.wait().unwrap().success());
        took
    };
    let client = builder_via(&server, &proxy).connect().unwrap();
    let without = builder_via(&server, &proxy).spare_channel(false).connect().unwrap();
    within(PATIENCE, move || {
        let first = measure(&client);
        assert!(first >= round_trip * 2, "open and exec in {first:?}");
        // The best of three: the machine may be busy, but not each time.
        let second = (0..3).map(|_| measure(&client)).min().unwrap();
        assert!(second >= round_trip && second < round_trip * 2, "{second:?}");
        let each = (0..2).map(|_| measure(&without)).min().unwrap();
        assert!(each >= round_trip * 2, "without one: {each:?}");
        drop((server, proxy));
    });
}
