//! Accepting here what connects at the server; and the agent.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use threadline::{Endpoint, Error, RemoteListener};

use super::{echoes, exchange};
use crate::connect::{builder, client, PATIENCE};
use crate::sshd::Sshd;
use crate::util::{eventually, within};

fn connect(listener: &RemoteListener) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, listener.endpoint().port().unwrap())).unwrap()
}

#[test]
fn what_connects_at_the_server_is_accepted_here() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let listener = client.listen_remote("127.0.0.1:0").unwrap();
    let near = connect(&listener);
    let stream = listener.accept().unwrap();
    assert_eq!(stream.peer_addr(), Some(near.local_addr().unwrap()));
    exchange(stream, near, 100_000_000);

    let path = server.dir().join("listen.sock");
    let listener = client.listen_remote(Endpoint::unix(&path)).unwrap();
    let near = UnixStream::connect(&path).unwrap();
    exchange(listener.accept().unwrap(), near, 1_000_000);
}

#[test]
fn several_threads_accept_and_each_connection_goes_to_one() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let listener = std::sync::Arc::new(client.listen_remote("127.0.0.1:0").unwrap());
    let echoing: Vec<_> = (0..4)
        .map(|_| {
            let listener = std::sync::Arc::clone(&listener);
            std::thread::spawn(move || {
                let mut served = 0;
                for stream in listener.incoming() {
                    let Ok(stream) = stream else { return served };
                    // The last may be cut off by the end below.
                    let _ = std::io::copy(&mut &stream, &mut &stream);
                    served += 1;
                }
                served
            })
        })
        .collect();
    within(PATIENCE, move || {
        for n in 0..40 {
            echoes(connect(&listener), format!("connection {n}").as_bytes());
        }
        client.close(PATIENCE).unwrap();
        let served: Vec<i32> = echoing.into_iter().map(|t| t.join().unwrap()).collect();
        assert_eq!(served.iter().sum::<i32>(), 40, "{served:?}");
    });
}

#[test]
fn accepting_ends_in_time_and_with_the_connection() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let listener = client.listen_remote("127.0.0.1:0").unwrap();
    let error = listener.accept_timeout(Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    // What came before the end is accepted first.
    let _near = connect(&listener);
    let _stream = listener.accept_timeout(PATIENCE).unwrap();
    let waiting = std::thread::spawn(move || listener.incoming().map(|stream| stream.unwrap_err()).collect::<Vec<_>>());
    server.kill9();
    let errors = within(PATIENCE, move || waiting.join().unwrap());
    assert!(matches!(&errors[..], [Error::ConnectionLost { .. }]), "{errors:?}");
}

#[test]
fn a_dropped_listener_closes_what_nobody_accepted_and_keeps_what_somebody_did() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let listener = client.listen_remote("127.0.0.1:0").unwrap();
    let port = listener.endpoint().port().unwrap();
    let mut kept = connect(&listener);
    let mut stream = listener.accept().unwrap();
    let mut waiting = connect(&listener);
    within(PATIENCE, move || {
        drop(listener);
        assert!(matches!(waiting.read(&mut [0; 1]), Ok(0) | Err(_)));
        eventually(PATIENCE, "nobody listens", || TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err());
        stream.write_all(b"kept").unwrap();
        let mut got = [0; 4];
        kept.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"kept");
    });
}

#[test]
fn connections_that_nobody_accepts_are_bounded() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    let listener = client.listen_remote("127.0.0.1:0").unwrap();
    let held: Vec<_> = (0..140).map(|_| connect(&listener)).collect();
    eventually(PATIENCE, "those beyond are refused", || listener.refused() == 12);
    let accepted: Vec<_> = (0..128).map(|_| listener.accept_timeout(PATIENCE).unwrap()).collect();
    assert!(listener.accept_timeout(Duration::from_millis(20)).is_err());
    drop((held, accepted));
}

#[test]
fn two_listeners_on_one_port_get_each_their_own() {
    let server = Sshd::builder().option("GatewayPorts clientspecified").start().unwrap();
    let client = client(&server);
    let first = client.listen_remote("127.0.0.1:0").unwrap();
    let port = first.endpoint().port().unwrap();
    let second = client.listen_remote(format!("127.0.0.2:{port}")).unwrap();
    let mut near = TcpStream::connect(("127.0.0.2", port)).unwrap();
    near.write_all(b"second").unwrap();
    let mut got = [0; 6];
    second.accept_timeout(PATIENCE).unwrap().read_exact(&mut got).unwrap();
    assert_eq!(&got, b"second");
    let _near = connect(&first);
    first.accept_timeout(PATIENCE).unwrap();
}

/// An agent that answers each request with "failure", and counts them.
fn agent(path: &std::path::Path) -> std::sync::mpsc::Receiver<()> {
    let (sender, requests) = std::sync::mpsc::channel();
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 4];
            while stream.read_exact(&mut length).is_ok() {
                let mut request = vec![0; u32::from_be_bytes(length) as usize];
                stream.read_exact(&mut request).unwrap();
                sender.send(()).unwrap();
                stream.write_all(&[0, 0, 0, 1, 5]).unwrap();
            }
        }
    });
    requests
}

#[test]
fn the_agent_is_for_commands_that_were_given_it_only() {
    let server = Sshd::start().unwrap();
    let path = server.dir().join("agent.sock");
    let requests = agent(&path);
    let client = builder(&server).forward_agent(&path).connect().unwrap();
    let list = "echo \"<$SSH_AUTH_SOCK>\"; ssh-add -l; echo $?";
    let without = client.sh(list).output().unwrap();
    assert!(String::from_utf8_lossy(&without.stdout).starts_with("<>\n"), "{without:?}");
    assert!(requests.try_recv().is_err());

    let with = client.sh(list).forward_agent(true).output().unwrap();
    let said = String::from_utf8_lossy(&with.stdout).into_owned();
    assert!(said.starts_with("</"), "{said}");
    requests.recv_timeout(PATIENCE).expect("it was asked");

    let other = builder(&server).connect().unwrap();
    let error = other.sh("true").forward_agent(true).spawn().unwrap_err();
    assert!(error.to_string().contains("ClientBuilder::forward_agent"), "{error}");
}

#[test]
fn an_agent_that_was_not_given_is_refused() {
    let server = Sshd::start().unwrap();
    let path = server.dir().join("agent.sock");
    let requests = agent(&path);
    let client = builder(&server).forward_agent(&path).connect().unwrap();
    // A daemon keeps the socket's name beyond its command: sshd still asks for a channel.
    let mut given = client.sh("echo $SSH_AUTH_SOCK; read x").stdin(threadline::Stdio::piped()).forward_agent(true);
    given = given.env_inline("IGNORED", "1");
    let mut given = given.spawn().unwrap();
    let mut socket = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(given.stdout.take().unwrap()), &mut socket).unwrap();
    let ask = format!("SSH_AUTH_SOCK={} ssh-add -l", socket.trim());
    let while_given = client.sh(&ask).output().unwrap();
    assert!(requests.try_recv().is_ok(), "{while_given:?}");
    drop(given.stdin.take());
    given.wait().unwrap();
    let after = client.sh(&ask).output().unwrap();
    assert!(!after.status.success() && requests.try_recv().is_err(), "{after:?}");
}
