//! What every kind of forward carries, and how its ends end.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use threadline::{Error, ForwardEvent};

use super::tunnel::{tunnel, Entrance, Kind, ALL};
use super::{echoes, exchange, EchoServer};
use crate::connect::{builder, client, client_via, PATIENCE};
use crate::proxy::Proxy;
use crate::sshd::Sshd;
use crate::util::{eventually, noise, sha256, within};

fn exchanges_100_megabytes(kind: Kind) {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let (forward, entrance, target) = tunnel(kind, &server, &client);
    let near = entrance.connect().unwrap();
    exchange(near, target.accept(), 100_000_000);
    eventually(PATIENCE, "the connection has ended", || forward.counters().open == 0);
    let counters = forward.counters();
    let least = if kind == Kind::RemoteDynamic { 100_000_000 } else { 99_999_999 };
    assert!(counters.sent > least && counters.received >= 100_000_000, "{counters:?}");
    assert_eq!((counters.connections, counters.failed, counters.refused), (1, 0, 0));
}

#[test]
fn a_local_forward_carries_both_directions_at_once() {
    exchanges_100_megabytes(Kind::Local);
}

#[test]
fn a_local_forward_of_unix_sockets_carries_both_directions_at_once() {
    exchanges_100_megabytes(Kind::LocalUnix);
}

#[test]
fn a_remote_forward_carries_both_directions_at_once() {
    exchanges_100_megabytes(Kind::Remote);
}

#[test]
fn a_remote_forward_of_unix_sockets_carries_both_directions_at_once() {
    exchanges_100_megabytes(Kind::RemoteUnix);
}

#[test]
fn a_socks_proxy_carries_both_directions_at_once() {
    exchanges_100_megabytes(Kind::Dynamic);
}

#[test]
fn a_socks_proxy_at_the_server_carries_both_directions_at_once() {
    exchanges_100_megabytes(Kind::RemoteDynamic);
}

#[test]
fn each_direction_ends_on_its_own_in_every_kind_of_forward() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    for kind in ALL {
        let (forward, entrance, target) = tunnel(kind, &server, &client);
        // The near end first, then the far one.
        for near_first in [true, false] {
            let (near, far) = (entrance.connect().unwrap(), target.accept());
            let (mut first, mut second) = if near_first { (near, far) } else { (far, near) };
            within(PATIENCE, move || {
                first.write_all(b"question").unwrap();
                first.end_writing();
                let mut asked = String::new();
                second.read_to_string(&mut asked).unwrap();
                second.write_all(b"answer").unwrap();
                drop(second);
                let mut answer = String::new();
                first.read_to_string(&mut answer).unwrap();
                assert_eq!((asked.as_str(), answer.as_str()), ("question", "answer"), "{kind:?}");
            });
            eventually(PATIENCE, "both ends have ended", || forward.counters().open == 0);
        }
        drop(forward);
        std::fs::remove_file(server.dir().join("target.sock")).ok();
        std::fs::remove_file(server.dir().join("entrance.sock")).ok();
    }
}

fn carries_500_short_connections(kind: Kind) {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let echo = EchoServer::start();
    let forward = super::tunnel::plan(kind, &server, echo.address).start(&client).unwrap();
    let entrance = Entrance::to(kind, &forward, echo.address);
    within(PATIENCE * 2, move || {
        for n in 0..500 {
            echoes(entrance.connect().unwrap(), format!("connection {n}").as_bytes());
        }
        eventually(PATIENCE, "all have ended", || forward.counters().open == 0);
        assert_eq!(forward.counters().connections, 500);
    });
}

#[test]
fn five_hundred_short_connections_through_a_local_forward() {
    carries_500_short_connections(Kind::Local);
}

#[test]
fn five_hundred_short_connections_through_a_remote_forward() {
    carries_500_short_connections(Kind::Remote);
}

#[test]
fn five_hundred_short_connections_through_a_socks_proxy() {
    carries_500_short_connections(Kind::Dynamic);
}

#[test]
fn two_hundred_connections_at_once_each_get_their_own_bytes() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let echo = EchoServer::start();
    for kind in [Kind::Local, Kind::Remote, Kind::Dynamic] {
        let forward = super::tunnel::plan(kind, &server, echo.address).start(&client).unwrap();
        let entrance = Entrance::to(kind, &forward, echo.address);
        let mut all: Vec<_> = (0..200).map(|_| entrance.connect().unwrap()).collect();
        within(PATIENCE, move || {
            let text = |n: usize| format!("{kind:?} connection {n:03}").repeat(100);
            all.iter_mut().enumerate().for_each(|(n, socket)| socket.write_all(text(n).as_bytes()).unwrap());
            for (n, socket) in all.iter_mut().enumerate().rev() {
                let mut back = vec![0; text(n).len()];
                socket.read_exact(&mut back).unwrap();
                assert_eq!(String::from_utf8(back).unwrap(), text(n));
            }
            assert_eq!(forward.counters().open, 200);
        });
    }
}

#[test]
fn a_client_that_does_not_read_holds_back_its_own_connection_only() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let (forward, entrance, target) = tunnel(Kind::Local, &server, &client);
    let mut stalled = entrance.connect().unwrap();
    let mut flood = target.accept();
    // Until nothing goes any more: the window is closed and every buffer full.
    let flooding = std::thread::spawn(move || std::io::copy(&mut noise(3, 64 << 20), &mut flood).unwrap());
    let mut last = (Instant::now(), 0);
    eventually(PATIENCE, "it stalls", || {
        let received = forward.counters().received;
        if received != last.1 {
            last = (Instant::now(), received);
        }
        received > 0 && last.0.elapsed() > Duration::from_millis(300)
    });
    assert!(forward.counters().received < 40 << 20, "{:?}", forward.counters());
    let echo = EchoServer::start();
    let other = client.forward_local("127.0.0.1:0", echo.target()).unwrap();
    for round in 0..20 {
        echoes(TcpStream::connect(other.local_addr().unwrap()).unwrap(), format!("round {round}").as_bytes());
    }
    assert_eq!(client.sh("echo hi").output().unwrap().stdout, b"hi\n");
    // Nothing was lost, and it goes on.
    within(PATIENCE, move || {
        let (hash, length) = sha256((&mut stalled).take(64 << 20)).unwrap();
        assert_eq!((hash, length), sha256(noise(3, 64 << 20)).unwrap());
        flooding.join().unwrap();
    });
}

#[test]
fn a_server_that_takes_no_more_holds_back_the_client() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let (forward, entrance, target) = tunnel(Kind::Local, &server, &client);
    let mut pushing = entrance.connect().unwrap();
    let mut stalled = target.accept();
    let pusher = std::thread::spawn(move || {
        std::io::copy(&mut noise(4, 64 << 20), &mut pushing).unwrap();
        pushing.end_writing();
        pushing
    });
    let mut last = (Instant::now(), 0);
    eventually(PATIENCE, "it stalls", || {
        let sent = forward.counters().sent;
        if sent != last.1 {
            last = (Instant::now(), sent);
        }
        sent > 0 && last.0.elapsed() > Duration::from_millis(300)
    });
    assert!(forward.counters().sent < 40 << 20, "{:?}", forward.counters());
    let echo = EchoServer::start();
    echoes(client.tcp_connect(&echo.target()).unwrap(), b"past it");
    within(PATIENCE, move || {
        assert_eq!(sha256(&mut stalled).unwrap(), sha256(noise(4, 64 << 20)).unwrap());
        drop(pusher.join().unwrap());
    });
}

#[test]
fn a_flood_on_another_channel_does_not_keep_forwards_from_being_heard() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let echo = EchoServer::start();
    let forward = client.forward_local("127.0.0.1:0", echo.target()).unwrap();
    let mut flood = client.sh("exec cat /dev/zero").spawn().unwrap();
    let mut stdout = flood.stdout.take().unwrap();
    let flooded = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()).map(drop));
    within(PATIENCE, move || {
        let mut held = TcpStream::connect(forward.local_addr().unwrap()).unwrap();
        for round in 0..20 {
            echoes(&mut held, format!("round {round}").as_bytes());
            echoes(TcpStream::connect(forward.local_addr().unwrap()).unwrap(), b"new");
        }
    });
    flood.close();
    let _ = within(PATIENCE, move || flooded.join().unwrap());
}

#[test]
fn keys_are_exchanged_under_a_forward() {
    let server = Sshd::builder().option("RekeyLimit 1M none").start().unwrap();
    let client = client(&server);
    let (_forward, entrance, target) = tunnel(Kind::Local, &server, &client);
    exchange(entrance.connect().unwrap(), target.accept(), 20_000_000);
}

#[test]
fn a_forward_fills_a_long_link() {
    let server = Sshd::start().unwrap();
    let proxy = Proxy::to((server.host().parse::<std::net::IpAddr>().unwrap(), server.port()).into())
        .delay(Duration::from_millis(50));
    let proxy = proxy.start().unwrap();
    let client = client_via(&server, &proxy);
    let (_forward, entrance, target) = tunnel(Kind::Local, &server, &client);
    let (near, mut far) = (entrance.connect().unwrap(), target.accept());
    let bytes = 16 << 20;
    std::thread::spawn(move || std::io::copy(&mut noise(5, bytes), &mut far).map(drop));
    within(PATIENCE, move || {
        let (began, mut got) = (Instant::now(), Vec::new());
        near.take(bytes).read_to_end(&mut got).unwrap();
        let took = began.elapsed();
        assert_eq!(sha256(&got[..]).unwrap(), sha256(noise(5, bytes)).unwrap());
        // With the window that it begins with it takes 64 round trips of 100 ms; with one that grows, a dozen.
        assert!(took < Duration::from_millis(5000), "{took:?}");
    });
}

#[test]
fn a_client_that_goes_away_in_the_middle_ends_its_connection_and_no_other() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let (forward, entrance, target) = tunnel(Kind::Local, &server, &client);
    let (mut other, mut other_far) = (entrance.connect().unwrap(), target.accept());
    let (gone, mut far) = (entrance.connect().unwrap(), target.accept());
    let flooding = std::thread::spawn(move || std::io::copy(&mut noise(6, u64::MAX), &mut far).unwrap_err());
    eventually(PATIENCE, "bytes flow", || forward.counters().received > 1 << 20);
    drop(gone);
    within(PATIENCE, move || {
        flooding.join().unwrap();
        other.write_all(b"still here").unwrap();
        let mut heard = [0; 10];
        other_far.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still here");
        eventually(PATIENCE, "it is counted out", || forward.counters().open == 1);
        let closed = std::iter::from_fn(|| forward.next_event()).find(|e| matches!(e, ForwardEvent::Closed { .. }));
        let Some(ForwardEvent::Closed { received, error: Some(error), .. }) = closed else { panic!("{closed:?}") };
        assert!(received > 1 << 20 && error.to_string().contains("this side has gone"), "{error}");
    });
}

#[test]
fn a_lost_connection_ends_the_forward_with_its_reason_and_resets_its_connections() {
    let server = Sshd::start().unwrap();
    let client = builder(&server).connect().unwrap();
    let (forward, entrance, target) = tunnel(Kind::Local, &server, &client);
    let (mut near, mut far) = (entrance.connect().unwrap(), target.accept());
    within(PATIENCE, move || {
        far.write_all(b"first").unwrap();
        near.read_exact(&mut [0; 5]).unwrap();
        server.kill9();
        let reason = forward.wait();
        assert!(matches!(reason, Error::ConnectionLost { .. }), "{reason}");
        assert_eq!(near.read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        assert!(entrance.tcp().is_err(), "nobody listens any more");
        let events: Vec<_> = std::iter::from_fn(|| forward.next_event()).collect();
        assert!(
            matches!(&events[..], [ForwardEvent::Opened { .. }, ForwardEvent::Closed { error: Some(_), .. }]),
            "{events:?}"
        );
        assert!(matches!(client.forward_local("127.0.0.1:0", "127.0.0.1:1"), Err(Error::ConnectionLost { .. })));
    });
}
