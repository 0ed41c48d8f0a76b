//! What is left of a forward: nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use threadline::{Endpoint, Error};

use super::tunnel::{paths, plan, tunnel, Entrance, Kind, Target, ALL};
use super::{echoes, EchoServer};
use crate::connect::{builder, client, PATIENCE};
use crate::sshd::Sshd;
use crate::util::{alone, cpu_time, eventually, open_files, threads, within};

#[test]
fn a_dropped_forward_listens_no_more_and_cuts_its_connections_off() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    for kind in ALL {
        let (forward, entrance, target) = tunnel(kind, &server, &client);
        let (mut near, mut far) = (entrance.connect().unwrap(), target.accept());
        near.write_all(b"x").unwrap();
        far.read_exact(&mut [0; 1]).unwrap();
        let began = Instant::now();
        drop(forward);
        assert!(began.elapsed() < Duration::from_secs(1), "dropping does not wait");
        within(PATIENCE, move || {
            // A reset where there is such a thing; in any case an end.
            for end in [&mut near, &mut far] {
                assert!(matches!(end.read(&mut [0; 1]), Ok(0) | Err(_)));
            }
            eventually(PATIENCE, "nobody listens", || entrance.connect().is_err());
        });
        if let Target::Unix(_) = target {
            eventually(PATIENCE, "the file is gone", || kind == Kind::RemoteUnix || !paths(&server)[0].exists());
            paths(&server).iter().for_each(|path| drop(std::fs::remove_file(path)));
        }
    }
    assert!(client.sh("true").status().unwrap().success());
}

#[test]
fn a_stopped_forward_lets_its_connections_go_on_and_ends_with_the_last() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    for kind in [Kind::Local, Kind::Remote] {
        let (forward, entrance, target) = tunnel(kind, &server, &client);
        let (mut near, mut far) = (entrance.connect().unwrap(), target.accept());
        forward.stop();
        within(PATIENCE, move || {
            eventually(PATIENCE, "nobody listens", || entrance.tcp().is_err());
            near.write_all(b"still").unwrap();
            far.read_exact(&mut [0; 5]).unwrap();
            assert!(forward.ended().is_none());
            assert!(matches!(forward.wait_timeout(Duration::from_millis(10)), Err(Error::Timeout { .. })));
            drop((near, far));
            assert!(matches!(forward.wait(), Error::Closed));
        });
    }
}

#[test]
fn the_port_is_free_again_on_either_side() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let echo = EchoServer::start();
    for kind in [Kind::Local, Kind::Remote] {
        let forward = plan(kind, &server, echo.address).start(&client).unwrap();
        let endpoint = forward.endpoint().clone();
        drop(forward);
        let again = Endpoint::tcp("127.0.0.1", endpoint.port().unwrap());
        eventually(PATIENCE, "it can be listened on again", || {
            let forward = match kind {
                Kind::Local => client.forward_local(&again, echo.target()),
                _ => client.forward_remote(&again, echo.target()),
            };
            forward.is_ok_and(|f| {
                echoes(Entrance::to(kind, &f, echo.address).connect().unwrap(), b"once more");
                true
            })
        });
    }
}

#[test]
fn closing_the_client_ends_its_forwards() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let (forward, entrance, target) = tunnel(Kind::Local, &server, &client);
    let (mut near, _far) = (entrance.connect().unwrap(), target.accept());
    client.close(PATIENCE).unwrap();
    within(PATIENCE, move || {
        assert!(matches!(forward.wait(), Error::Closed));
        assert_eq!(near.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert!(matches!(client.forward_local("127.0.0.1:0", "127.0.0.1:1"), Err(Error::Closed)));
    });
}

#[test]
fn a_forward_keeps_the_connection_when_the_client_is_dropped() {
    let server = Sshd::start().unwrap();
    let echo = EchoServer::start();
    let client = client(&server);
    let forward = client.forward_local("127.0.0.1:0", echo.target()).unwrap();
    drop(client);
    echoes(TcpStream::connect(forward.local_addr().unwrap()).unwrap(), b"alive");
    drop(forward);
    eventually(PATIENCE, "the server's session ends", || server.session_pids().is_empty());
}

#[test]
fn a_thousand_connections_leave_no_channel_no_thread_and_no_descriptor() {
    let name = "forwarding::ending::a_thousand_connections_leave_no_channel_no_thread_and_no_descriptor";
    alone(name, PATIENCE * 2, || {
        let server = Sshd::start().unwrap();
        let client = builder(&server).connect().unwrap();
        // The target's own threads and descriptors must not be counted: it serves one after the other.
        let target = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = target.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in target.incoming() {
                let mut stream = stream.unwrap();
                let mut buffer = [0; 64];
                while let Ok(n @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..n]).is_err() {
                        break;
                    }
                }
            }
        });
        let before = (open_files(), threads().len());
        for kind in [Kind::Local, Kind::Remote, Kind::Dynamic] {
            let forward = plan(kind, &server, address).start(&client).unwrap();
            let entrance = Entrance::to(kind, &forward, address);
            echoes(entrance.connect().unwrap(), b"first");
            for n in 0..340 {
                let mut socket = entrance.connect().unwrap();
                match n % 3 {
                    0 => echoes(&mut socket, b"whole"),
                    // Given up with an answer on its way.
                    1 => socket.write_all(b"half").unwrap(),
                    _ => drop(socket),
                }
            }
            eventually(PATIENCE, "all have ended", || forward.counters().open == 0);
            drop(forward);
        }
        for _ in 0..200 {
            echoes(client.tcp_connect(&address.to_string()).unwrap(), b"stream");
        }
        // At most one of the target's own is still open.
        eventually(PATIENCE, "nothing is left here", || (open_files(), threads().len()) == before);
        let sockets = |pid: u32| {
            let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
            fds.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().contains("socket")))
                .count()
        };
        let held = || server.session_pids().into_iter().map(sockets).sum::<usize>();
        // The connection itself, and what sshd's two processes talk over.
        eventually(PATIENCE, "nothing is left at the server", || held() < 12);
        client.close(PATIENCE).unwrap();
    });
}

#[test]
fn idle_connections_through_a_forward_use_no_cpu() {
    alone("forwarding::ending::idle_connections_through_a_forward_use_no_cpu", PATIENCE, || {
        let server = Sshd::start().unwrap();
        let client = builder(&server).connect().unwrap();
        let echo = EchoServer::start();
        let mut held = Vec::new();
        let forwards: Vec<_> =
            [Kind::Local, Kind::Remote].map(|k| (k, plan(k, &server, echo.address))).into_iter().collect();
        let forwards: Vec<_> = forwards.into_iter().map(|(k, plan)| (k, plan.start(&client).unwrap())).collect();
        for (kind, forward) in &forwards {
            let entrance = Entrance::to(*kind, forward, echo.address);
            for n in 0..20 {
                let mut socket = entrance.connect().unwrap();
                echoes(&mut socket, b"busy once");
                // Some half closed: poll must not report those for ever.
                if n % 4 == 0 {
                    socket.end_writing();
                }
                held.push(socket);
            }
        }
        // And one that is stuck each way: there is always something to read and never a window, and the other way round.
        let (_stuck, entrance, target) = tunnel(Kind::Local, &server, &client);
        let (near, far) = (entrance.connect().unwrap(), target.accept());
        for socket in [near, far] {
            let crate::forwarding::tunnel::Socket::Tcp(mut socket) = socket else { unreachable!() };
            socket.set_write_timeout(Some(Duration::from_millis(400))).unwrap();
            while socket.write(&[0; 64 * 1024]).is_ok() {}
            held.push(crate::forwarding::tunnel::Socket::Tcp(socket));
        }
        std::thread::sleep(Duration::from_millis(800));
        let before = cpu_time();
        std::thread::sleep(Duration::from_secs(2));
        let used = cpu_time() - before;
        assert!(used < Duration::from_millis(10), "{used:?} in 2 s");
        held.truncate(1);
    });
}
