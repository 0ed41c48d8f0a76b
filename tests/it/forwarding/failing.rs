//! Targets that cannot be reached, servers that do not allow it, and limits.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use threadline::{Endpoint, Error, Forward, ForwardEvent};

use super::tunnel::{plan, socks5, tunnel, Entrance, Kind, Socket};
use super::{accept, echoes, listener, BlackHole, EchoServer};
use crate::connect::{builder, client, PATIENCE};
use crate::sshd::Sshd;
use crate::util::{eventually, within};

/// An address at which nobody listens.
fn nowhere() -> SocketAddr {
    listener().1
}

/// The next connection that did not come about.
#[track_caller]
fn refusal(forward: &Forward) -> (String, Error) {
    match forward.next_event_timeout(PATIENCE).unwrap() {
        Some(ForwardEvent::Refused { target, error, .. }) => (target, error),
        other => panic!("{other:?}"),
    }
}

/// A connection that ends without a byte: reset, or closed.
#[track_caller]
fn ends(mut stream: impl Read + Send + 'static) -> Option<ErrorKind> {
    within(PATIENCE, move || match stream.read(&mut [0; 1]) {
        Ok(n) => {
            assert_eq!(n, 0);
            None
        }
        Err(error) => Some(error.kind()),
    })
}

#[test]
fn a_target_that_refuses_is_said_to_the_client_and_counted() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let target = nowhere();
    let local = plan(Kind::Local, &server, target).start(&client).unwrap();
    assert_eq!(ends(TcpStream::connect(local.local_addr().unwrap()).unwrap()), Some(ErrorKind::ConnectionReset));
    let (to, error) = refusal(&local);
    assert!(to == target.to_string() && matches!(&error, Error::OpenRefused { reason: 2, .. }), "{error}");

    let dynamic = plan(Kind::Dynamic, &server, target).start(&client).unwrap();
    let mut stream = TcpStream::connect(dynamic.local_addr().unwrap()).unwrap();
    assert_eq!(socks5(&mut stream, target).unwrap(), 5);
    assert_eq!(ends(stream), None, "the answer is not overtaken by a reset");
    assert_eq!(refusal(&dynamic).0, target.to_string());

    for kind in [Kind::Remote, Kind::RemoteUnix] {
        let remote = plan(kind, &server, target).start(&client).unwrap();
        ends(Entrance::to(kind, &remote, target).connect().unwrap());
        let (_, error) = refusal(&remote);
        assert!(matches!(&error, Error::Io { .. }) && error.to_string().starts_with("cannot connect to "), "{error}");
    }
    let remote = plan(Kind::RemoteDynamic, &server, target).start(&client).unwrap();
    let mut stream = Entrance::to(Kind::RemoteDynamic, &remote, target).tcp().unwrap();
    assert_eq!(within(PATIENCE, move || socks5(&mut stream, target).unwrap()), 5);
    for forward in [local, dynamic, remote] {
        let counters = forward.counters();
        assert_eq!((counters.connections, counters.failed, counters.open), (1, 1, 0));
    }
}

#[test]
fn targets_that_never_answer_hold_up_nobody_and_are_given_up_in_time() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let (hole, echo) = (BlackHole::dig(), EchoServer::start());
    for kind in [Kind::Local, Kind::Dynamic, Kind::Remote] {
        let slow = plan(kind, &server, hole.address).open_timeout(Duration::from_secs(1)).start(&client).unwrap();
        let entrance = Entrance::to(kind, &slow, hole.address);
        let stuck: Vec<_> = (0..10).map(|_| entrance.tcp().unwrap()).collect();
        let asked = stuck.into_iter().map(|mut stream| {
            std::thread::spawn(move || match kind {
                Kind::Dynamic => socks5(&mut stream, hole.address).unwrap(),
                _ => u8::from(stream.read(&mut [0; 1]).is_err()),
            })
        });
        let asked: Vec<_> = asked.collect();
        let quick = plan(kind, &server, echo.address).start(&client).unwrap();
        let quick_entrance = Entrance::to(kind, &quick, echo.address);
        for round in 0..40 {
            echoes(quick_entrance.connect().unwrap(), format!("round {round}").as_bytes());
        }
        let answers: Vec<u8> = within(PATIENCE, move || asked.into_iter().map(|a| a.join().unwrap()).collect());
        let expected = match kind {
            Kind::Dynamic => 4,
            Kind::Local => 1,
            _ => answers[0],
        };
        assert_eq!(answers, [expected; 10], "{kind:?}");
        for _ in 0..10 {
            let (_, error) = refusal(&slow);
            assert!(matches!(error, Error::Timeout { .. }), "{error}");
        }
        assert_eq!(slow.counters().failed, 10);
    }
}

#[test]
fn a_target_that_resets_ends_its_connection_only() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    for kind in [Kind::Local, Kind::Remote] {
        let (forward, entrance, target) = tunnel(kind, &server, &client);
        let (near, far) = (entrance.connect().unwrap(), target.accept());
        let Socket::Tcp(far) = far else { unreachable!() };
        rustix::net::sockopt::set_socket_linger(&far, Some(Duration::ZERO)).unwrap();
        drop(far);
        ends(near);
        eventually(PATIENCE, "it is counted out", || forward.counters().open == 0);
        let (near, far) = (entrance.connect().unwrap(), target.accept());
        drop((near, far));
    }
}

#[test]
fn a_server_that_does_not_allow_it_says_so() {
    let server =
        Sshd::builder().option("AllowTcpForwarding no").option("AllowStreamLocalForwarding no").start().unwrap();
    let client = client(&server);
    let target = EchoServer::start();
    let forward = client.forward_local("127.0.0.1:0", target.target()).unwrap();
    assert_eq!(ends(TcpStream::connect(forward.local_addr().unwrap()).unwrap()), Some(ErrorKind::ConnectionReset));
    let (_, error) = refusal(&forward);
    assert!(matches!(&error, Error::OpenRefused { reason: 1, .. }), "{error}");
    assert!(error.to_string().contains("administratively prohibited"), "{error}");

    let dynamic = client.forward_dynamic("127.0.0.1:0").unwrap();
    let mut stream = TcpStream::connect(dynamic.local_addr().unwrap()).unwrap();
    assert_eq!(socks5(&mut stream, target.address).unwrap(), 2);

    let error = client.forward_remote("127.0.0.1:0", target.target()).unwrap_err();
    assert!(matches!(&error, Error::RequestRefused { request, .. } if request == "tcpip-forward"), "{error}");
    assert!(error.hint().unwrap().contains("AllowTcpForwarding"), "{error}");
    assert!(error.to_string().contains("127.0.0.1:0"), "{error}");
    let path = server.dir().join("s");
    let error = client.listen_remote(Endpoint::unix(path)).unwrap_err();
    assert!(matches!(&error, Error::RequestRefused { request, .. } if request.starts_with("streamlocal")), "{error}");
}

#[test]
fn connections_beyond_the_limit_are_turned_away_and_counted() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let echo = EchoServer::start();
    for kind in [Kind::Local, Kind::Remote] {
        let forward = plan(kind, &server, echo.address).max_connections(3).start(&client).unwrap();
        let entrance = Entrance::to(kind, &forward, echo.address);
        let mut held: Vec<_> = (0..3).map(|_| entrance.connect().unwrap()).collect();
        held.iter_mut().for_each(|socket| echoes(socket, b"in"));
        ends(entrance.connect().unwrap());
        assert_eq!((forward.counters().refused, forward.counters().open), (1, 3));
        let refused = std::iter::from_fn(|| forward.next_event()).find(|e| matches!(e, ForwardEvent::Refused { .. }));
        let Some(ForwardEvent::Refused { error, .. }) = refused else { unreachable!() };
        assert!(error.to_string().contains("3 connections are open"), "{error}");
        // One goes, another comes.
        held.pop();
        eventually(PATIENCE, "there is room", || forward.counters().open == 2);
        echoes(entrance.connect().unwrap(), b"in");
    }
}

#[test]
fn a_place_that_cannot_be_listened_on_is_an_error_here() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let (taken, address) = listener();
    let error = client.forward_local(address.to_string(), "db:5432").unwrap_err();
    assert!(error.to_string().starts_with(&format!("cannot listen on {address}: ")), "{error}");
    assert_eq!(std::io::Error::from(error).kind(), ErrorKind::AddrInUse);
    let error = client.forward_remote(address.to_string(), "127.0.0.1:1").unwrap_err();
    assert!(matches!(error, Error::RequestRefused { .. }), "{error}");
    drop(taken);
    assert!(matches!(client.forward_local("127.0.0.1:0", "db"), Err(Error::InvalidTarget { .. })));
    assert!(matches!(client.forward_local("nonsense", "db:1"), Err(Error::InvalidTarget { .. })));
    assert!(matches!(client.forward_local("/nonexistent/dir/s", "db:1"), Err(Error::Io { .. })));
}

#[test]
fn clients_that_speak_no_socks_are_sent_away() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let echo = EchoServer::start();
    let forward = client.forward_dynamic("127.0.0.1:0").unwrap();
    let address = forward.local_addr().unwrap();
    let mut silent = TcpStream::connect(address).unwrap();
    let mut http = TcpStream::connect(address).unwrap();
    http.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    ends(http);
    let (_, error) = refusal(&forward);
    assert!(error.to_string().contains("does not speak SOCKS"), "{error}");
    // SOCKS4a by name, a byte at a time, with the first data right behind the request.
    let mut four = TcpStream::connect(address).unwrap();
    let port = echo.address.port().to_be_bytes();
    let request = [&[4, 1], &port[..], b"\0\0\0\x01me\0localhost\0hello"].concat();
    for byte in request {
        four.write_all(&[byte]).unwrap();
    }
    let mut reply = [0; 13];
    within(PATIENCE, move || {
        four.read_exact(&mut reply).unwrap();
        assert_eq!((&reply[..2], &reply[8..]), (&[0, 0x5a][..], &b"hello"[..]));
        // The silent one was in nobody's way, and is served when it speaks.
        assert_eq!(socks5(&mut silent, echo.address).unwrap(), 0);
        echoes(silent, b"at last");
    });
}

#[test]
fn a_local_name_is_looked_up_for_each_connection_and_holds_up_nobody() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let echo = EchoServer::start();
    let port = echo.address.port();
    let by_name = client.forward_remote("127.0.0.1:0", format!("localhost:{port}")).unwrap();
    let unknown = client.forward_remote("127.0.0.1:0", format!("no-such-host.invalid:{port}")).unwrap();
    let entrance = |forward: &Forward| Entrance::to(Kind::Remote, forward, echo.address).connect().unwrap();
    let lost = entrance(&unknown);
    echoes(entrance(&by_name), b"found");
    ends(lost);
    let (_, error) = refusal(&unknown);
    assert!(matches!(&error, Error::Resolve { host, .. } if host == "no-such-host.invalid"), "{error}");
}

#[test]
fn a_hasty_client_gives_a_slow_server_up() {
    let server = Sshd::start().unwrap();
    let client = builder(&server).open_timeout(Duration::from_millis(300)).connect().unwrap();
    server.signal_sessions(rustix::process::Signal::STOP);
    let error = within(PATIENCE, {
        let client = client.clone();
        move || client.forward_remote("127.0.0.1:0", "127.0.0.1:1").unwrap_err()
    });
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    server.signal_sessions(rustix::process::Signal::CONT);
    // It listens when it comes to that, and is told not to.
    let target = EchoServer::start();
    eventually(PATIENCE, "the server answers again", || client.forward_remote("127.0.0.1:0", target.target()).is_ok());
    let (listener, address) = listener();
    let _stream = client.tcp_connect(&address.to_string()).unwrap();
    drop(accept(&listener));
}
