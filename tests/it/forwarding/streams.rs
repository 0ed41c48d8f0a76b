//! Streams through the server.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use threadline::{Error, Phase};

use super::{accept, echoes, exchange, listener, BlackHole, EchoServer, NEVER};
use crate::connect::{builder, client, PATIENCE};
use crate::sshd::Sshd;
use crate::util::within;

#[test]
fn a_stream_has_both_directions_and_their_ends_at_the_same_time() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let (listener, address) = listener();
    let stream = client.tcp_connect(&address.to_string()).unwrap();
    assert_eq!(stream.peer_addr(), Some(address));
    exchange(stream, accept(&listener), 100_000_000);
}

#[test]
fn a_unix_socket_of_the_server_is_a_stream_too() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let path = server.dir().join("echo.sock");
    let _echo = EchoServer::start_unix(&path);
    let stream = client.unix_connect(&path).unwrap();
    echoes(&stream, b"hello");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!((&stream).read(&mut [0; 8]).unwrap(), 0);
    let error = client.unix_connect(server.dir().join("nobody")).unwrap_err();
    assert!(matches!(&error, Error::OpenRefused { reason: 2, .. }), "{error}");
}

#[test]
fn each_direction_ends_on_its_own() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let (listener, address) = listener();
    let mut stream = client.tcp_connect(&address.to_string()).unwrap();
    let mut target = accept(&listener);
    within(PATIENCE, move || {
        // Ours first: the target sees the end behind the bytes, and can still answer.
        stream.write_all(b"question").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut asked = String::new();
        target.read_to_string(&mut asked).unwrap();
        assert_eq!(asked, "question");
        assert_eq!(stream.write(b"more").unwrap_err().kind(), ErrorKind::BrokenPipe);
        target.write_all(b"answer").unwrap();
        drop(target);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "answer");
    });
    // Theirs first.
    let mut stream = client.tcp_connect(&address.to_string()).unwrap();
    let mut target = accept(&listener);
    within(PATIENCE, move || {
        target.write_all(b"greeting").unwrap();
        target.shutdown(Shutdown::Write).unwrap();
        let mut greeting = String::new();
        stream.read_to_string(&mut greeting).unwrap();
        assert_eq!(greeting, "greeting");
        stream.write_all(b"thanks").unwrap();
        drop(stream);
        let mut thanks = String::new();
        target.read_to_string(&mut thanks).unwrap();
        assert_eq!(thanks, "thanks", "what was written before the drop arrives");
    });
}

#[test]
fn a_dropped_stream_sends_what_was_written_and_closes() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let (listener, address) = listener();
    let mut stream = client.tcp_connect(&address.to_string()).unwrap();
    let target = accept(&listener);
    // All that fits ahead of the network, and then the drop: the target has not read a byte of it.
    let written = within(PATIENCE, move || {
        let (chunk, mut written) = (vec![7; 64 * 1024], 0);
        stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        while let Ok(n) = stream.write(&chunk) {
            written += n;
        }
        let began = Instant::now();
        drop(stream);
        assert!(began.elapsed() < Duration::from_secs(1), "dropping does not wait");
        written
    });
    let (mut target, mut got) = (target, 0);
    within(PATIENCE, move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(n @ 1..) = target.read(&mut buffer) {
            got += n;
        }
        assert_eq!(got, written);
    });
}

#[test]
fn a_dropped_stream_is_closed_although_its_target_goes_on() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let (listener, address) = listener();
    let stream = client.tcp_connect(&address.to_string()).unwrap();
    let mut target = accept(&listener);
    drop(stream);
    // Sooner than what is left of a stream is given up anyway.
    within(PATIENCE / 2, move || {
        assert_eq!(target.read(&mut [0; 1]).unwrap(), 0);
        while target.write_all(b"nobody reads this").is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    });
}

#[test]
fn two_threads_share_a_stream_and_a_shutdown_frees_the_reader() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let echo = EchoServer::start();
    let stream = client.tcp_connect(&echo.target()).unwrap();
    let reader = stream.try_clone().unwrap();
    let reading = thread::spawn(move || {
        let mut all = Vec::new();
        (&reader).read_to_end(&mut all).map(|_| all)
    });
    (&stream).write_all(b"to the other thread").unwrap();
    let mut other = client.tcp_connect(&echo.target()).unwrap();
    echoes(&mut other, b"past the reader that waits");
    stream.shutdown(Shutdown::Read).unwrap();
    let got = within(PATIENCE, move || reading.join().unwrap().unwrap());
    assert!(b"to the other thread".starts_with(&got), "{got:?}");
    assert_eq!((&stream).read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn timeouts_end_single_reads_and_writes_only() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let (listener, address) = listener();
    let mut stream = client.tcp_connect(&address.to_string()).unwrap();
    let mut target = accept(&listener);
    within(PATIENCE, move || {
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::TimedOut);
        assert!(stream.set_read_timeout(Some(Duration::ZERO)).is_err());
        target.write_all(b"late").unwrap();
        stream.set_read_timeout(None).unwrap();
        let mut late = [0; 4];
        stream.read_exact(&mut late).unwrap();
        assert_eq!(&late, b"late");
        // Nobody reads: windows and buffers fill up.
        stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let full = (0..).find_map(|_| stream.write(&[0; 256 * 1024]).err()).unwrap();
        assert_eq!(full.kind(), ErrorKind::TimedOut);
    });
}

#[test]
fn the_servers_reason_is_told() {
    let server = Sshd::builder().option("PermitOpen 127.0.0.1:1").start().unwrap();
    let client = client(&server);
    let error = client.tcp_connect("127.0.0.1:2").unwrap_err();
    assert!(
        matches!(&error, Error::OpenRefused { reason: 1, kind, to, .. }
        if kind == "direct-tcpip" && to == "127.0.0.1:2"),
        "{error:?}"
    );
    let said = error.to_string();
    assert!(said.contains("direct-tcpip channel to 127.0.0.1:2") && said.contains("prohibited"), "{said}");
    assert!(error.hint().unwrap().contains("AllowTcpForwarding"));
    // Nobody listens on port 1.
    let error = client.tcp_connect("127.0.0.1:1").unwrap_err();
    assert!(matches!(&error, Error::OpenRefused { reason: 2, .. }), "{error:?}");
    assert_eq!(std::io::Error::from(error).kind(), ErrorKind::ConnectionRefused);
    for nonsense in ["db", "db:0", ":80", "/tmp/socket"] {
        assert!(matches!(client.tcp_connect(nonsense), Err(Error::InvalidTarget { .. })), "{nonsense}");
    }
}

#[test]
fn a_target_that_never_answers_holds_up_nobody_and_is_given_up_in_time() {
    let server = Sshd::start().unwrap();
    let patient = builder(&server).open_timeout(NEVER).connect().unwrap();
    let (hole, echo) = (BlackHole::dig(), EchoServer::start());
    let target = hole.address.to_string();
    let stuck = thread::spawn({
        let (client, target) = (patient.clone(), target.clone());
        move || client.tcp_connect(&target).map(drop)
    });
    for round in 0..5 {
        let stream = patient.tcp_connect(&echo.target()).unwrap();
        echoes(stream, format!("round {round}").as_bytes());
    }
    assert!(!stuck.is_finished());

    let hasty = builder(&server).open_timeout(Duration::from_millis(200)).connect().unwrap();
    let error = within(PATIENCE, move || hasty.tcp_connect(&target).unwrap_err());
    assert!(matches!(error, Error::Timeout { phase: Phase::Open, .. }), "{error}");
    // The one that waits gets its answer when the hole closes.
    drop(hole);
    let answer = within(PATIENCE, move || stuck.join().unwrap());
    assert!(matches!(answer, Err(Error::OpenRefused { reason: 2, .. })), "{answer:?}");
}

#[test]
fn an_open_that_nobody_waits_for_any_more_is_closed_when_its_answer_comes() {
    let server = Sshd::start().unwrap();
    let client = builder(&server).open_timeout(Duration::from_millis(100)).connect().unwrap();
    let hole = BlackHole::dig();
    let error = client.tcp_connect(&hole.address.to_string()).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    // Room in the backlog: sshd's connection comes through, the last of all, and ends at once as the others do.
    let (socket, fillers) = hole._held;
    let count = fillers.len() + 1;
    drop(fillers);
    let listener = std::net::TcpListener::from(socket);
    within(PATIENCE, move || {
        for _ in 0..count {
            assert_eq!(listener.accept().unwrap().0.read(&mut [0; 1]).unwrap(), 0);
        }
    });
    drop(client);
}

#[test]
fn a_target_that_resets_is_an_end_and_the_connection_lives_on() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let (listener, address) = listener();
    let mut stream = client.tcp_connect(&address.to_string()).unwrap();
    let target = accept(&listener);
    rustix::net::sockopt::set_socket_linger(&target, Some(Duration::ZERO)).unwrap();
    drop(target);
    within(PATIENCE, move || {
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
        // sshd says nothing of the reset; it takes no more.
        let refused = (0..).find_map(|_| {
            thread::sleep(Duration::from_millis(1));
            stream.write(&[0; 1024]).err()
        });
        assert_eq!(refused.unwrap().kind(), ErrorKind::BrokenPipe);
    });
    assert!(client.sh("true").status().unwrap().success());
}

#[test]
fn any_channel_and_any_request_can_be_asked_for() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let echo = EchoServer::start();
    // direct-tcpip, put together by hand.
    let mut data = Vec::new();
    for (text, number) in [("127.0.0.1", u32::from(echo.address.port())), ("here", 0)] {
        data.extend_from_slice(&(text.len() as u32).to_be_bytes());
        data.extend_from_slice(text.as_bytes());
        data.extend_from_slice(&number.to_be_bytes());
    }
    echoes(client.open_channel("direct-tcpip", &data).unwrap(), b"by hand");
    let error = client.open_channel("no-such-type@example.com", &[]).unwrap_err();
    assert!(matches!(&error, Error::OpenRefused { kind, .. } if kind == "no-such-type@example.com"), "{error}");
    let error = client.open_channel("x", &[0; 40_000]).unwrap_err();
    assert!(matches!(error, Error::InvalidInput { .. }), "{error}");

    let error = client.request("no-such-request@example.com", b"data").unwrap_err();
    assert!(matches!(&error, Error::RequestRefused { request, .. } if request.starts_with("no-such")), "{error}");
    // A port of the server's choice comes back as data.
    let answer = client.request("tcpip-forward", b"\0\0\0\x09127.0.0.1\0\0\0\0").unwrap();
    assert_eq!(answer.len(), 4, "{answer:?}");
}

#[test]
fn a_lost_connection_reaches_every_stream() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let echo = EchoServer::start();
    let mut stream = client.tcp_connect(&echo.target()).unwrap();
    echoes(&stream, b"alive");
    server.kill9();
    within(PATIENCE, move || {
        let error = stream.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        assert!(stream.write_all(b"x").is_err());
        assert!(client.tcp_connect(&echo.target()).is_err());
    });
}

#[test]
fn two_hundred_streams_at_once_each_get_their_own_bytes() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let echo = EchoServer::start();
    let streams: Vec<_> = (0..200).map(|_| client.tcp_connect(&echo.target()).unwrap()).collect();
    for (n, stream) in streams.iter().enumerate() {
        let mut stream = stream;
        stream.write_all(format!("stream {n:03}").as_bytes()).unwrap();
    }
    for (n, mut stream) in streams.iter().enumerate() {
        let mut back = [0; 10];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, *format!("stream {n:03}").as_bytes());
    }
    // So that the echo's own end is not the first to go.
    let _ = TcpStream::connect(echo.address);
}
