//! What comes down while nobody reads it, and how much.

use std::io::Read;
use std::time::{Duration, Instant};

use threadline::{Child, Client, Error, Stream};

use super::{at_once, own};
use crate::connect::{builder, builder_via, client, PATIENCE};
use crate::proxy::Proxy;
use crate::sshd::Sshd;
use crate::util::within;

const MIB: u64 = 1 << 20;

/// A command that prints so many `o` to stdout and `e` to stderr, in this order.
fn both(client: &Client, first: (Stream, u64), second: (Stream, u64)) -> Child {
    let part = |(stream, bytes): (Stream, u64)| match stream {
        Stream::Stdout => format!("head -c {bytes} /dev/zero | tr '\\0' o"),
        Stream::Stderr => format!("head -c {bytes} /dev/zero | tr '\\0' e >&2"),
    };
    client.sh(format!("{}; {}", part(first), part(second))).spawn().unwrap()
}

/// Reads to the end, checks that every byte is this one, and counts them.
fn count(mut stream: impl Read, letter: u8) -> std::io::Result<u64> {
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(total),
            n => {
                assert!(buffer[..n].iter().all(|&byte| byte == letter), "not only {}", char::from(letter));
                total += n as u64;
            }
        }
    }
}

#[test]
fn forty_eight_mib_on_each_stream_can_be_read_one_after_the_other() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        // The stream that is printed first is read last.
        let mut child = both(&client, (Stream::Stderr, 48 * MIB), (Stream::Stdout, 48 * MIB));
        assert_eq!(count(child.stdout.take().unwrap(), b'o').unwrap(), 48 * MIB);
        assert_eq!(count(child.stderr.take().unwrap(), b'e').unwrap(), 48 * MIB);
        assert!(child.wait().unwrap().success());

        let mut child = both(&client, (Stream::Stdout, 48 * MIB), (Stream::Stderr, 48 * MIB));
        assert_eq!(count(child.stderr.take().unwrap(), b'e').unwrap(), 48 * MIB);
        assert_eq!(count(child.stdout.take().unwrap(), b'o').unwrap(), 48 * MIB);
        assert!(child.wait().unwrap().success());
    });
}

#[test]
fn eighty_mib_unread_end_the_wait_for_the_other_stream_with_an_error_that_names_it() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        for (waiting, unread) in [(Stream::Stdout, Stream::Stderr), (Stream::Stderr, Stream::Stdout)] {
            let mut child = both(&client, (unread, 80 * MIB), (waiting, 5));
            let (mut stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
            let error = match waiting {
                Stream::Stdout => stdout.read(&mut [0; 1]).unwrap_err(),
                Stream::Stderr => stderr.read(&mut [0; 1]).unwrap_err(),
            };
            let error = own(&error);
            let names = matches!(&error, Error::UnreadStream { waiting: w, unread: u, limit }
                if (*w, *u, *limit) == (waiting, unread, 64 * MIB));
            assert!(names, "{error:?}");
            assert!(error.to_string().contains(&unread.to_string()), "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains(&unread.to_string())));

            // It is no dead end: who reads the other stream first gets all of both.
            let counts = match waiting {
                Stream::Stdout => (count(stderr, b'e').unwrap(), count(stdout, b'o').unwrap()),
                Stream::Stderr => (count(stdout, b'o').unwrap(), count(stderr, b'e').unwrap()),
            };
            assert_eq!(counts, (80 * MIB, 5));
            assert!(child.wait().unwrap().success());
        }
    });
}

#[test]
fn wait_ends_though_nobody_reads_and_what_it_threw_away_is_told_to_who_reads_then() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        let mut child = both(&client, (Stream::Stdout, 80 * MIB), (Stream::Stderr, 5));
        assert!(child.wait().unwrap().success());

        let mut stdout = child.stdout.take().unwrap();
        let mut kept = 0;
        let error = loop {
            match stdout.read(&mut [0; 64 * 1024]) {
                Ok(0) => panic!("an end, and not a word of what is missing"),
                Ok(n) => kept += n as u64,
                Err(error) => break own(&error),
            }
        };
        assert!(kept > 63 * MIB && kept <= 64 * MIB, "{kept} bytes kept");
        let Error::Discarded { stream: Stream::Stdout, bytes } = error else { panic!("{error}") };
        assert_eq!(kept + bytes, 80 * MIB);
        assert_eq!(count(child.stderr.take().unwrap(), b'e').unwrap(), 5);
    });
}

#[test]
fn what_wait_took_in_below_the_limit_is_all_there() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        let mut child = both(&client, (Stream::Stdout, 20 * MIB), (Stream::Stderr, 20 * MIB));
        assert!(child.wait().unwrap().success());
        assert_eq!(count(child.stdout.take().unwrap(), b'o').unwrap(), 20 * MIB);
        assert_eq!(count(child.stderr.take().unwrap(), b'e').unwrap(), 20 * MIB);
    });
}

#[test]
fn a_stream_that_is_dropped_holds_up_nothing() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        let mut child = both(&client, (Stream::Stderr, 80 * MIB), (Stream::Stdout, 80 * MIB));
        drop(child.stderr.take());
        assert_eq!(count(child.stdout.take().unwrap(), b'o').unwrap(), 80 * MIB);
        assert!(child.wait().unwrap().success());
        // Neither does one of which a part was read.
        let mut child = both(&client, (Stream::Stdout, 20 * MIB), (Stream::Stderr, 20 * MIB));
        child.stdout.take().unwrap().read_exact(&mut [0; 100_000]).unwrap();
        assert_eq!(count(child.stderr.take().unwrap(), b'e').unwrap(), 20 * MIB);
        assert!(child.wait().unwrap().success());
    });
}

#[test]
fn a_reader_that_stops_holds_back_its_own_command() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        // It tells by a file how far it has come.
        let progress = server.dir().join("progress");
        let script = "i=0; while [ $i -lt 32 ]; do head -c 1048576 /dev/zero; i=$((i+1)); echo $i >\"$0\"; done";
        let mut child =
            client.command("sh").args(["-c", script]).arg(progress.as_os_str().as_encoded_bytes()).spawn().unwrap();
        let printed = || {
            let text = std::fs::read_to_string(&progress).unwrap_or_default();
            text.trim().parse::<u64>().unwrap_or(0)
        };
        crate::util::eventually(PATIENCE, "the window is full", || printed() >= 2);
        // The window, and what the pipe and sshd hold; nothing tells that it does not go on, so it is given the time.
        std::thread::sleep(Duration::from_millis(300));
        assert!(printed() < 8, "{} MiB were taken in for nobody", printed());
        assert_eq!(count(child.stdout.take().unwrap(), 0).unwrap(), 32 * MIB);
    });
}

#[test]
fn the_memory_limit_holds_for_all_channels_together_and_everything_arrives_in_the_end() {
    let server = Sshd::builder().option("MaxSessions 40").start().unwrap();
    let client = builder(&server).memory_limit(4 * MIB).connect().unwrap();
    let children: Vec<_> = (0..24).map(|_| client.sh("head -c 2097152 /dev/zero").spawn().unwrap()).collect();
    // Read from the last to the first: those read first wait for those that hold the memory.
    let counts = at_once(children.into_iter().rev().map(|mut child| {
        move || {
            let stdout = child.stdout.take().unwrap();
            (count(stdout, 0).unwrap(), child.wait().unwrap().success())
        }
    }));
    assert_eq!(counts, vec![(2 * MIB, true); 24]);
}

#[test]
fn a_window_grows_on_a_long_link() {
    let server = Sshd::start().unwrap();
    let proxy = Proxy::to((std::net::Ipv4Addr::LOCALHOST, server.port()).into());
    let proxy = proxy.delay(Duration::from_millis(10)).start().unwrap();
    let download = |most: u32| {
        let client = builder_via(&server, &proxy).window(256 * 1024, most).connect().unwrap();
        within(PATIENCE, move || {
            let start = Instant::now();
            let mut child = client.sh("head -c 33554432 /dev/zero").spawn().unwrap();
            assert_eq!(count(child.stdout.take().unwrap(), 0).unwrap(), 32 * MIB);
            start.elapsed()
        })
    };
    // 128 windows of 256 KiB are 128 round trips of 20 ms.
    let fixed = download(256 * 1024);
    assert!(fixed > Duration::from_millis(2000), "{fixed:?} is faster than the window allows");
    let growing = download(16 << 20);
    assert!(growing * 3 < fixed * 2, "growing {growing:?}, fixed {fixed:?}");
}
