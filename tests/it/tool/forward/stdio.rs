//! `-W`: stdin and stdout through the server.

use super::*;

/// A target for one connection.
fn target(serve: impl FnOnce(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || serve(listener.accept().unwrap().0));
    address
}

#[test]
fn bytes_pass_untouched_and_each_direction_ends_by_itself() {
    let server = Sshd::start().unwrap();
    // It answers when all has come.
    let address = target(|mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        all.reverse();
        stream.write_all(&all).unwrap();
    });
    let mut data: Vec<u8> = (0..=255).collect();
    noise(5, 3 << 20).read_to_end(&mut data).unwrap();
    let output = run_with(&mut forward(&server, &["-W", &address]), data.clone());
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    data.reverse();
    assert_eq!(sha256(&output.stdout[..]).unwrap(), sha256(&data[..]).unwrap());
}

#[test]
fn the_end_of_the_other_side_is_seen_while_stdin_is_still_read() {
    let server = Sshd::start().unwrap();
    let (tell, told) = channel();
    let address = target(move |mut stream| {
        stream.write_all(b"that is all").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).unwrap();
        tell.send(rest).unwrap();
    });
    let mut tool = forward(&server, &["-W", &address]);
    let mut child = tool.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let got = within(PATIENCE, move || {
        let mut got = String::new();
        stdout.read_to_string(&mut got).unwrap();
        got
    });
    assert_eq!(got, "that is all");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"and this").unwrap();
    drop(stdin);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), "and this");
    assert_eq!(within(PATIENCE, move || child.wait().unwrap()).code(), Some(0));
}

#[test]
fn a_unix_socket_is_reached_by_its_path() {
    let server = Sshd::start().unwrap();
    let path = server.dir().join("echo");
    let _echo = EchoServer::start_unix(&path);
    let output = run_with(&mut forward(&server, &["-W", &path.display().to_string()]), b"there and back".to_vec());
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), "there and back".into()));
}

#[test]
fn a_refused_target_and_a_lost_connection_are_255_and_one_line() {
    let mut server = Sshd::start().unwrap();
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().to_string();
    let (code, said) = failure(&run(&mut forward(&server, &["-W", &closed])));
    assert!(code == 255 && said.contains(&closed) && said.contains("refused"), "{code} {said}");

    for half_closed in [false, true] {
        let (connected, accepted) = channel();
        let address = target(move |mut stream| {
            stream.write_all(b"x").unwrap();
            if half_closed {
                stream.shutdown(std::net::Shutdown::Write).unwrap();
            }
            connected.send(()).unwrap();
            let _ = stream.read(&mut [0; 1]);
        });
        let mut tool = forward(&server, &["-W", &address]);
        let mut child = tool.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        accepted.recv_timeout(PATIENCE).unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let stdout = within(PATIENCE, move || {
            let mut first = vec![0; if half_closed { 2 } else { 1 }];
            let count = stdout.read(&mut first).unwrap();
            // Where the other side has ended, that is seen, too.
            assert!(count == 1 && (!half_closed || stdout.read(&mut first).unwrap() == 0));
            stdout
        });
        server.kill9();
        let output = within(PATIENCE, move || child.wait_with_output().unwrap());
        drop((stdin, stdout));
        let (code, said) = failure(&output);
        assert!(code == 255 && said.contains("connection lost"), "{code} {said}");
        server.restart().unwrap();
    }
}
