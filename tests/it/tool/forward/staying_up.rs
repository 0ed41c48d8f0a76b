//! Forwards that come back, forwards that fail, and what ends the tool.

use super::*;

#[track_caller]
fn reconnected(tool: &mut Running, times: u64) {
    tool.event("a reconnect", |event| event["ev"] == "connected" && event["reconnects"] == times);
    let count = tool.told("plan")["forwards"].as_array().unwrap().len();
    let all_up = |status: &Value| status["forwards"].as_array().unwrap().iter().filter(|f| f["up"] == true).count();
    tool.status("all are up again", |status| all_up(status) == count);
}

#[test]
fn when_the_server_comes_back_so_do_all_forwards_at_their_places() {
    let mut server = Sshd::start().unwrap();
    let echo = EchoServer::start();
    let port = echo.port();
    let (plain, socket) = (format!("0:127.0.0.1:{port}"), server.dir().join("s").display().to_string());
    let to_socket = format!("{socket}:127.0.0.1:{port}");
    let there = format!("{}:127.0.0.1:{port}", server.dir().join("there").display());
    let plain = ["-L", &plain, "-L", &to_socket, "-R", &plain, "-R", &there];
    let mut tool = Running::start(&server, &[&plain[..], &["-R", "0", "-D", "0"]].concat());
    let places = tool.places();
    let proxies = [false, false, false, false, true, true];
    let use_all = || {
        for (place, proxy) in places.iter().zip(proxies) {
            echoes(place, proxy.then_some(port));
        }
    };
    use_all();
    for times in 1..=2 {
        // One connection is open when it happens.
        let _held = connect_to(&places[0]);
        tool.status("it is counted", |status| status["forwards"][0]["open"] == 1);
        server.kill9();
        let lost = tool.event("the loss", |e| e["ev"] == "lost" || e["ev"] == "unreachable");
        assert!(lost["error"].as_str().unwrap().contains("connection lost"), "{lost:#}");
        let unreachable = |e: &Value| e["ev"] == "unreachable";
        tool.event("attempts in vain", unreachable);
        server.restart().unwrap();
        reconnected(&mut tool, times);
        use_all();
    }
    let status = tool.status("all have ended", |s| s["forwards"].as_array().unwrap().iter().all(|f| f["open"] == 0));
    assert_eq!((&status["connected"], &status["reconnects"]), (&true.into(), &2.into()));
    for (number, forward) in status["forwards"].as_array().unwrap().iter().enumerate() {
        let expected = if number == 0 { 5 } else { 3 };
        assert_eq!(forward["connections"], expected, "counted over all connections: {forward:#}");
        assert_eq!(forward["listen"], places[number], "the port is kept");
        assert!(forward["received"].as_u64() >= Some(75), "{forward:#}");
    }
    assert_eq!(tool.end(), (0, String::new()));
    assert!(!std::path::Path::new(&socket).exists());
}

#[test]
fn one_forward_that_fails_leaves_the_others_alone_and_is_tried_again() {
    let server = Sshd::start().unwrap();
    let echo = EchoServer::start();
    let good = format!("0:127.0.0.1:{}", echo.port());
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = holder.local_addr().unwrap().port();
    let options = ["-L", &good, "-L", &format!("127.0.0.1:{taken}:127.0.0.1:{}", echo.port())];
    let mut tool = Running::start(&server, &options);
    let failed = tool.told("failed");
    assert_eq!(failed["forward"], 2);
    assert!(failed["error"].as_str().unwrap().contains("in use"), "{failed:#}");
    let up = tool.told("up");
    echoes(up["listen"].as_str().unwrap(), None);
    assert!(!tool.told.iter().any(|e| e["ev"] == "ready"), "not all stand");
    drop(holder);
    let places = tool.places();
    assert_eq!(places[1], format!("127.0.0.1:{taken}"));
    echoes(&places[1], None);
    assert_eq!(tool.end().0, 0);
}

#[test]
fn a_socket_left_behind_is_replaced_and_one_that_is_listened_on_is_not() {
    let server = Sshd::start().unwrap();
    let echo = EchoServer::start();
    let path = |name: &str| server.dir().join(name);
    drop(std::os::unix::net::UnixListener::bind(path("stale")).unwrap());
    let used = std::os::unix::net::UnixListener::bind(path("used")).unwrap();
    std::fs::write(path("file"), "kept").unwrap();
    for (option, side) in [("-L", "here"), ("-R", "there")] {
        let spec = |name: &str| format!("{}:127.0.0.1:{}", path(name).display(), echo.port());
        let (stale, taken, file) = (spec("stale"), spec("used"), spec("file"));
        let mut tool = Running::start(&server, &[option, &stale, option, &taken, option, &file]);
        let up = tool.told("up");
        assert_eq!(up["forward"], 1, "{side}");
        echoes(up["listen"].as_str().unwrap(), None);
        for number in [2, 3] {
            tool.event("the others fail", |event| event["ev"] == "failed" && event["forward"] == number);
        }
        tool.end();
        // Its listener has not lost its file, nor has anything come to it but the question whether it is there.
        assert!(UnixStream::connect(path("used")).is_ok());
        assert_eq!(std::fs::read(path("file")).unwrap(), b"kept");
        if !path("stale").exists() {
            drop(std::os::unix::net::UnixListener::bind(path("stale")).unwrap());
        }
    }
    drop(used);
}

#[test]
fn with_exit_on_failure_one_ends_all_and_when_none_stands_it_ends_anyway() {
    let server = Sshd::start().unwrap();
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let taken = format!("127.0.0.1:{}", holder.local_addr().unwrap().port());
    let (code, said) = failure(&run(&mut forward(&server, &["-q", "-D", "0", "-D", &taken, "--exit-on-failure"])));
    assert!(code == 255 && said.contains(&format!("-D {taken}: cannot listen")), "{code} {said}");
    let (code, said) = failure(&run(&mut forward(&server, &["-D", &taken])));
    assert!(code == 255 && said.contains(&format!("-D {taken}: cannot listen")), "{code} {said}");
    let both = run(&mut forward(&server, &["-D", &taken, "-R", &taken]));
    assert_eq!(both.status.code(), Some(255));
    assert!(text(&both.stderr).contains("none of the 2 forwards could be set up"), "{}", text(&both.stderr));
}

#[test]
fn what_the_server_refuses_is_told() {
    let server = Sshd::builder().option("AllowTcpForwarding local").option("PermitOpen 127.0.0.1:1").start().unwrap();
    let echo = EchoServer::start();
    let target = format!("0:127.0.0.1:{}", echo.port());
    let mut tool = Running::start(&server, &["-L", &target, "-R", &target]);
    let failed = tool.told("failed");
    assert_eq!(failed["spec"], format!("-R {target}"));
    assert!(failed["error"].as_str().unwrap().contains("refused"), "{failed:#}");
    let place = tool.told("up")["listen"].as_str().unwrap().to_owned();
    within(PATIENCE, move || assert!(matches!(connect_to(&place).read(&mut [0; 1]), Ok(0) | Err(_))));
    let refused = tool.told("refused");
    assert!(refused["error"].as_str().unwrap().contains("prohibited"), "{refused:#}");
    tool.status("it is counted", |status| status["forwards"][0]["failed"] == 1);
    assert_eq!(tool.end().0, 5, "one has never stood");
}

#[test]
fn a_login_that_is_refused_later_on_ends_it() {
    let mut server = Sshd::start().unwrap();
    let mut tool = Running::start(&server, &["-D", "0"]);
    tool.places();
    server.kill9();
    std::fs::write(server.dir().join("authorized_keys"), "").unwrap();
    server.restart().unwrap();
    let (code, said) = tool.wait();
    assert!(code == 255 && said.lines().count() == 1 && said.contains("refused"), "{code} {said}");
    assert_eq!(tool.told("end")["code"], 255);
}

#[test]
fn with_no_reconnect_a_lost_connection_ends_it() {
    let server = Sshd::start().unwrap();
    let mut tool = Running::start(&server, &["-D", "0", "--no-reconnect"]);
    tool.places();
    server.kill9();
    let (code, said) = tool.wait();
    assert!(code == 255 && said.contains("connection lost"), "{code} {said}");
    assert!(
        !tool.told.iter().any(|event| event["ev"] == "down"),
        "it is the connection that was lost: {:#?}",
        tool.told
    );
}

#[test]
fn a_silent_server_is_given_up_and_the_tunnels_made_again() {
    let server = Sshd::start().unwrap();
    let proxy = crate::proxy::Proxy::to((Ipv4Addr::LOCALHOST, server.port()).into()).start().unwrap();
    let known = server.known_hosts_for(proxy.port()).unwrap();
    let mut tool = threadline();
    tool.args(["forward", "--json", "-p", &proxy.port().to_string(), "-l", server.user(), "-i"]);
    tool.arg(server.identity()).arg("--known-hosts").arg(known).args(SOON).args(["-D", "0", HOST]);
    tool.args(["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1"]);
    let mut tool = Running::spawn(&mut tool);
    let place = tool.places().remove(0);
    proxy.stall(crate::proxy::Direction::Down);
    let lost = tool.told("lost");
    assert!(lost["error"].as_str().unwrap().contains("connection lost"), "{lost:#}");
    proxy.resume(crate::proxy::Direction::Down);
    reconnected(&mut tool, 1);
    let echo = EchoServer::start();
    echoes(&place, Some(echo.port()));
    assert_eq!(tool.end().0, 0);
}

#[test]
fn a_signal_is_heard_while_it_connects() {
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = silent.local_addr().unwrap().port().to_string();
    let mut tool = threadline();
    tool.args(["forward", "--json", "-p", &port, "-l", "x", "--connect-timeout", "1h", "-D", "0", HOST]);
    let mut tool = Running::spawn(&mut tool);
    let _connection = within(PATIENCE, move || silent.accept().unwrap());
    tool.signal(Signal::INT);
    assert_eq!(tool.wait(), (130, String::new()));
}
