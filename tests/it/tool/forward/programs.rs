//! Other people's programs through the tunnels.

use super::*;

/// The line that a program's option or variable takes.
fn proxy_command(server: &Sshd) -> String {
    line(&forward(server, &["-W", "%h:%p"]))
}

/// ssh that reaches the server by way of the tool.
fn ssh_through(server: &Sshd) -> String {
    let quote = |text: String| format!("'{}'", text.replace('\'', "'\\''"));
    let known = format!("UserKnownHostsFile={}", server.known_hosts().display());
    let options = [
        "-F".to_owned(),
        "/dev/null".into(),
        "-i".into(),
        server.identity().display().to_string(),
        "-o".into(),
        known,
        "-o".into(),
        "BatchMode=yes".into(),
        "-o".into(),
        format!("ProxyCommand={}", proxy_command(server)),
        "-p".into(),
        server.port().to_string(),
    ];
    format!("ssh {}", options.map(quote).join(" "))
}

#[track_caller]
fn done(command: &mut Command) -> String {
    let output = run(command);
    assert!(output.status.success(), "{command:?} (make deps installs it): {}", text(&output.stderr));
    text(&output.stdout)
}

/// A web server with one page, for any number of requests.
fn web(page: Vec<u8>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let page = std::sync::Arc::new(page);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, page) = (stream.unwrap(), std::sync::Arc::clone(&page));
            thread::spawn(move || {
                let mut request = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                while request.next().is_some_and(|line| !line.is_empty()) {}
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", page.len());
                // Who does not want all of it says so by going away.
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&page));
            });
        }
    });
    port
}

#[test]
fn curl_gets_a_page_through_each_kind_of_tunnel() {
    let server = Sshd::start().unwrap();
    let mut page = Vec::new();
    noise(7, 2 << 20).read_to_end(&mut page).unwrap();
    let expected = sha256(&page[..]).unwrap();
    let port = web(page);
    let socket = server.dir().join("web").display().to_string();
    let (plain, to_socket) = (format!("0:localhost:{port}"), format!("{socket}:localhost:{port}"));
    let options = ["-L", &plain, "-L", &to_socket, "-R", &plain, "-R", "0", "-D", "0"];
    let mut tool = Running::start(&server, &options);
    let places = tool.places();
    let direct = format!("http://localhost:{port}/");
    let there = |place: &str| format!("http://{place}/");
    for arguments in [
        vec![there(&places[0])],
        vec!["--unix-socket".into(), socket.clone(), "http://web/".into()],
        vec![there(&places[2])],
        vec!["--socks5-hostname".into(), places[3].clone(), direct.clone()],
        vec!["--socks5".into(), places[4].clone(), direct.clone()],
        vec!["--socks5-hostname".into(), places[4].clone(), direct.clone()],
        vec!["--socks4".into(), places[4].clone(), format!("http://127.0.0.1:{port}/")],
        vec!["--socks4a".into(), places[4].clone(), direct.clone()],
    ] {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail", "--noproxy", ""]).args(&arguments);
        let output = run(&mut curl);
        assert!(output.status.success(), "curl {arguments:?} (make deps installs it): {}", text(&output.stderr));
        assert_eq!(sha256(&output.stdout[..]).unwrap(), expected, "{arguments:?}");
    }
    assert_eq!(tool.end().0, 0);
}

#[test]
fn redis_is_spoken_to_through_a_tunnel_to_its_socket() {
    let server = Sshd::start().unwrap();
    let socket = server.dir().join("redis.sock");
    let mut redis = Command::new("redis-server");
    redis.args(["--port", "0", "--save", "", "--dir"]).arg(server.dir()).arg("--unixsocket").arg(&socket);
    let redis = redis.stdout(Stdio::null()).spawn();
    let mut redis = redis.unwrap_or_else(|e| panic!("redis-server (make deps installs it): {e}"));
    eventually(PATIENCE, "redis listens", || UnixStream::connect(&socket).is_ok());
    let mut tool = Running::start(&server, &["-L", &format!("0:{}", socket.display())]);
    let place = tool.places().remove(0);
    let port = place.rsplit(':').next().unwrap();
    let cli = |words: &[&str]| done(Command::new("redis-cli").args(["-p", port]).args(words));
    assert_eq!(cli(&["set", "greeting", "hello through ssh"]), "OK\n");
    assert_eq!(cli(&["get", "greeting"]), "hello through ssh\n");
    // Many clients with many requests under way.
    let said = done(
        Command::new("redis-benchmark").args(["-p", port, "-n", "2000", "-c", "20", "-P", "4", "-q", "-t", "set,get"]),
    );
    assert!(said.contains("requests per second"), "{said}");
    assert_eq!(tool.end().0, 0);
    let _ = redis.kill();
    let _ = redis.wait();
}

#[test]
fn git_clones_and_pushes_by_way_of_a_proxy_command() {
    let server = Sshd::start().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let git = |directory: &str, words: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main", "-C", directory]);
        git.args(words).env("GIT_SSH_COMMAND", ssh_through(&server)).env("GIT_CONFIG_NOSYSTEM", "1");
        done(git.env("HOME", scratch.path()).env_remove("GIT_DIR").env_remove("GIT_INDEX_FILE"))
    };
    let path = |name: &str| scratch.path().join(name).display().to_string();
    let top = scratch.path().display().to_string();
    git(&top, &["init", "-q", "work"]);
    let mut file = Vec::new();
    noise(9, 1 << 20).read_to_end(&mut file).unwrap();
    std::fs::write(scratch.path().join("work/file"), &file).unwrap();
    git(&path("work"), &["add", "file"]);
    git(&path("work"), &["commit", "-q", "-m", "one"]);
    git(&top, &["clone", "-q", "--bare", "work", "bare"]);
    let url = format!("ssh://{}@{HOST}:{}{}", server.user(), server.port(), path("bare"));
    git(&top, &["clone", "-q", &url, "copy"]);
    assert!(std::fs::read(scratch.path().join("copy/file")).unwrap() == file);
    std::fs::write(scratch.path().join("copy/more"), "more\n").unwrap();
    git(&path("copy"), &["add", "more"]);
    git(&path("copy"), &["commit", "-q", "-m", "two"]);
    git(&path("copy"), &["push", "-q", "origin", "HEAD"]);
    assert_eq!(git(&path("bare"), &["log", "--format=%s", "main"]), "two\none\n");
}

#[test]
fn rsync_and_ssh_work_by_way_of_a_proxy_command() {
    let server = Sshd::start().unwrap();
    let scratch = tempfile::tempdir().unwrap();
    std::fs::create_dir(scratch.path().join("from")).unwrap();
    let mut file = Vec::new();
    noise(11, 3 << 20).read_to_end(&mut file).unwrap();
    std::fs::write(scratch.path().join("from/file"), &file).unwrap();
    let there = format!("{}@{HOST}:{}/", server.user(), scratch.path().join("to").display());
    let from = format!("{}/", scratch.path().join("from").display());
    // rsync takes its words apart at spaces and knows quotes, but not the shell's escapes inside them.
    let script = scratch.path().join("ssh");
    std::fs::write(&script, format!("#!/bin/sh\nexec {} \"$@\"\n", ssh_through(&server))).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    done(Command::new("rsync").arg("-a").arg("-e").arg(&script).args([&from, &there]));
    assert!(std::fs::read(scratch.path().join("to/file")).unwrap() == file);

    let mut ssh = Command::new(&script);
    let output = run(ssh.arg(format!("{}@{HOST}", server.user())).arg("echo out; echo err >&2; exit 7"));
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(7), "out\n".into()));
    assert_eq!(text(&output.stderr), "err\n", "the tool says nothing when all is well");
}
