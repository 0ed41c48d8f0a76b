//! The tests' own tools are tested too: what they claim about threadline is worth no more than they are.

use std::fs;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::proxy::{Direction, Proxy};
use crate::sshd::{self, Sshd};
use crate::util::{alone, eventually, noise, open_files, output_within, sha256, threads_named, within};

/// For what takes milliseconds, on a machine that has much else to do.
const SOON: Duration = Duration::from_secs(30);

/// What a command that succeeds prints.
#[track_caller]
fn text_of(command: &mut Command) -> String {
    let output = output_within(SOON, command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Whether a process runs, asked without the server's own means.
fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with('Z'))
}

// The throw-away sshd.

#[test]
fn nothing_is_left_of_a_dropped_server_not_even_a_daemon() {
    let server = Sshd::start().unwrap();
    let daemon = text_of(server.ssh().arg("setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"));
    let mut running = server.ssh();
    let mut running = running.arg("echo $$; exec sleep 1000").stdout(Stdio::piped()).spawn().unwrap();
    let mut session = String::new();
    BufReader::new(running.stdout.take().unwrap()).read_line(&mut session).unwrap();
    let (daemon, session) = (daemon.trim(), session.trim());
    assert!(lives(daemon) && lives(session));
    assert!(server.processes().len() >= 4, "{:?}", server.processes());

    let (dir, listener) = (server.dir().to_owned(), server.pid().to_string());
    drop(server);
    assert!(!lives(daemon) && !lives(session) && !lives(&listener));
    assert!(!dir.exists());
    assert_eq!(running.wait().unwrap().code(), Some(255));
}

/// The inner process owns a server and is killed; the outer one looks at what is left.
#[test]
fn a_killed_owner_leaves_nothing() {
    const INNER: &str = "THREADLINE_TEST_OWNER";
    if std::env::var_os(INNER).is_some() {
        let server = Sshd::start().unwrap();
        let daemon = text_of(server.ssh().arg("setsid sleep 1000 </dev/null >/dev/null 2>&1 & echo $!"));
        println!("\nowner: {} {} {}", server.dir().display(), server.pid(), daemon.trim());
        thread::sleep(SOON);
        return;
    }
    let mut owner = Command::new(std::env::current_exe().unwrap());
    owner.args(["fixtures::a_killed_owner_leaves_nothing", "--exact", "--nocapture"]).env(INNER, "1");
    let mut owner = owner.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines();
    let line = lines.find_map(|line| line.unwrap().strip_prefix("owner: ").map(str::to_owned)).unwrap();
    let [dir, listener, daemon] = line.split(' ').collect::<Vec<_>>().try_into().unwrap();
    assert!(lives(listener) && lives(daemon));

    owner.kill().unwrap();
    assert_eq!(owner.wait().unwrap().signal(), Some(9));
    eventually(SOON, "everything is gone", || !lives(listener) && !lives(daemon) && !Path::new(dir).exists());
}

#[test]
fn kill9_ends_every_connection_and_leaves_the_commands() {
    let server = Sshd::start().unwrap();
    let mut ssh = server.ssh().arg("echo $$; exec sleep 1000").stdout(Stdio::piped()).spawn().unwrap();
    let mut command = String::new();
    BufReader::new(ssh.stdout.take().unwrap()).read_line(&mut command).unwrap();
    assert!(!server.session_pids().is_empty());

    server.kill9();
    assert_eq!(within(SOON, move || ssh.wait().unwrap().code()), Some(255));
    eventually(SOON, "the sessions are gone", || server.session_pids().is_empty());
    assert_eq!(server.processes(), [command.trim().parse::<u32>().unwrap()]);
    assert!(TcpStream::connect((server.host(), server.port())).is_err());
}

#[test]
fn every_login_shell_there_is() {
    for shell in ["dash", "bash", "zsh", "ksh", "fish", "tcsh"] {
        let server = Sshd::builder().login_user("ann").login_shell(format!("/usr/bin/{shell}")).start().unwrap();
        assert_eq!(server.user(), "ann");
        // LOGNAME, because fish sets USER from the user id; `true`, because some shells would make the last command their own process.
        let said = text_of(server.ssh().arg("sh -c 'cat /proc/$PPID/comm; env'; true"));
        assert_eq!(said.lines().next(), Some(shell));
        assert!(said.contains("\nLOGNAME=ann\n"), "{said}");
        assert!(!said.contains("LD_PRELOAD") && !said.contains("NSS_WRAPPER"), "{said}");
    }
}

#[test]
fn another_user_id_logs_in_where_root_serves() {
    let other = Sshd::builder().login_uid(12345).start();
    if rustix::process::getuid().is_root() {
        let server = other.unwrap();
        assert_eq!(text_of(server.ssh().arg("id -u; id -g; touch ~/mine; pwd")), {
            format!("12345\n12345\n{}\n", server.dir().join("home").display())
        });
    } else {
        assert!(other.unwrap_err().to_string().contains("only root"));
    }
}

/// ssh asks a program for secrets when it has no terminal.
fn answer_with(ssh: &mut Command, server: &Sshd, secret: &str) {
    let program = server.dir().join("askpass");
    fs::write(&program, format!("#!/bin/sh\necho '{secret}'\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    // The first value counts, and the one of `Sshd::ssh` comes first; so it is taken out.
    let arguments: Vec<_> = ssh.get_args().map(ToOwned::to_owned).collect();
    *ssh = Command::new("ssh");
    ssh.args(arguments.into_iter().map(|argument| match argument.to_str() {
        Some("BatchMode=yes") => "BatchMode=no".into(),
        _ => argument,
    }));
    ssh.env("SSH_ASKPASS", program).env("SSH_ASKPASS_REQUIRE", "force");
}

#[test]
fn the_password_lets_in_and_another_does_not() {
    let server = Sshd::builder().password().start().unwrap();
    for (secret, code) in [(sshd::PASSWORD, 0), ("wrong", 255)] {
        let mut ssh = server.ssh();
        answer_with(&mut ssh, &server, secret);
        ssh.args(["-o", "NumberOfPasswordPrompts=1"]);
        ssh.args(["-o", "PreferredAuthentications=password", "true"]);
        assert_eq!(output_within(SOON, &mut ssh).status.code(), Some(code), "{secret}: {}", server.log());
    }
}

#[test]
fn a_further_key_with_a_passphrase_lets_in() {
    let server = Sshd::start().unwrap();
    let key = server.add_identity("locked", &["-t", "ecdsa", "-N", "open sesame"]).unwrap();
    let mut ssh = Command::new("ssh");
    ssh.args(server.ssh().get_args().map(|argument| match argument {
        first if first == server.identity() => key.as_os_str(),
        other => other,
    }));
    answer_with(&mut ssh, &server, "open sesame");
    assert_eq!(text_of(ssh.arg("echo in")), "in\n");
}

#[test]
fn options_of_the_server_take_effect() {
    let server = Sshd::builder().host_key_types(&["ecdsa", "rsa"]).ciphers("aes128-ctr");
    let server = server.env("GREETING", r#"a "b" \c"#).option("PermitTTY no").start().unwrap();
    assert_eq!(server.host_keys().len(), 2);
    for algorithm in ["ecdsa-sha2-nistp256", "rsa-sha2-512"] {
        let mut ssh = server.ssh();
        ssh.args(["-o", &format!("HostKeyAlgorithms={algorithm}"), r#"printf '%s\n' "$GREETING""#]);
        assert_eq!(text_of(&mut ssh), "a \"b\" \\c\n");
    }
    let refused = output_within(SOON, server.ssh().args(["-c", "aes256-ctr", "true"]));
    assert_eq!(refused.status.code(), Some(255));
    let no_terminal = output_within(SOON, server.ssh().args(["-tt", "true"]));
    assert!(String::from_utf8_lossy(&no_terminal.stderr).contains("PTY allocation request failed"));
}

#[test]
fn a_wrong_option_is_reported_in_the_words_of_sshd() {
    let error = Sshd::builder().option("NoSuchOption yes").start().unwrap_err();
    assert!(error.to_string().contains("Bad configuration option: NoSuchOption"), "{error}");
}

#[test]
fn servers_start_side_by_side() {
    let starts: Vec<_> = (0..6).map(|_| thread::spawn(|| Sshd::start().unwrap())).collect();
    let servers: Vec<_> = starts.into_iter().map(|start| start.join().unwrap()).collect();
    for server in &servers {
        // Its key is the one in its known_hosts: nobody got somebody else's port.
        assert_eq!(text_of(server.ssh().arg("echo hi")), "hi\n");
    }
}

#[test]
fn a_terminal_can_be_had() {
    let server = Sshd::start().unwrap();
    let said = output_within(SOON, server.ssh().args(["-tt", "test -t 0 && echo terminal"]));
    assert_eq!(String::from_utf8_lossy(&said.stdout), "terminal\r\n");
}

// The proxy.

/// A proxied connection: what the client holds, what the server holds.
fn pair(builder: impl FnOnce(crate::proxy::Builder) -> crate::proxy::Builder) -> (Proxy, TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let proxy = builder(Proxy::to(listener.local_addr().unwrap())).start().unwrap();
    let client = TcpStream::connect(proxy.address()).unwrap();
    let (server, _) = listener.accept().unwrap();
    eventually(SOON, "the proxy has taken the connection on", || proxy.connections() == 1);
    for socket in [&client, &server] {
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket.set_write_timeout(Some(SOON)).unwrap();
    }
    (proxy, client, server)
}

fn read_exactly(mut socket: &TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    socket.read_exact(&mut bytes).unwrap();
    bytes
}

/// Sends noise one way and compares what arrives; returns how long it took.
fn carry(from: TcpStream, to: TcpStream, length: u64) -> Duration {
    let start = Instant::now();
    let sender = thread::spawn(move || {
        let mut from = from;
        io::copy(&mut noise(7, length), &mut io::BufWriter::with_capacity(64 * 1024, &mut from)).unwrap();
        from.shutdown(Shutdown::Write).unwrap();
    });
    let arrived = sha256(to).unwrap();
    sender.join().unwrap();
    assert_eq!(arrived, sha256(noise(7, length)).unwrap());
    start.elapsed()
}

#[test]
fn ssh_works_through_the_proxy() {
    let server = Sshd::start().unwrap();
    let proxy = Proxy::to((Ipv4Addr::LOCALHOST, server.port()).into()).start().unwrap();
    assert_eq!(text_of(server.ssh_via(proxy.port()).unwrap().arg("echo hi")), "hi\n");
    assert_eq!(proxy.accepted(), 1);
    assert!(proxy.delivered(Direction::Up) > 1000 && proxy.delivered(Direction::Down) > 1000);
    eventually(SOON, "the connection is over", || proxy.connections() == 0);
}

#[test]
fn a_delay_is_felt_once_and_not_per_packet() {
    let one_way = Duration::from_millis(100);
    let (_proxy, client, server) = pair(|proxy| proxy.delay(one_way));
    let start = Instant::now();
    for _ in 0..100 {
        (&client).write_all(b"x").unwrap();
    }
    read_exactly(&server, 100);
    let there = start.elapsed();
    assert!(there >= one_way, "{there:?}");
    // A hundred delays would be 10 s; the rest is room for a busy machine.
    assert!(there < one_way * 10, "{there:?}");

    // 64 MiB are 256 chunks of the proxy: one after the other they would take 25 s.
    let took = carry(client, server, 64 * 1024 * 1024);
    assert!(took >= one_way && took < Duration::from_secs(15), "{took:?}");
}

#[test]
fn a_rate_holds_and_holds_the_sender_back() {
    let (proxy, client, server) = pair(|proxy| proxy.rate(4_000_000));
    let took = carry(client, server, 2_000_000);
    assert!(took >= Duration::from_millis(490), "{took:?}");
    assert_eq!(proxy.delivered(Direction::Up), 2_000_000);
}

#[test]
fn byte_by_byte_all_arrives() {
    let (proxy, client, server) = pair(|proxy| proxy.byte_wise());
    carry(client, server, 20_000);
    assert_eq!(proxy.delivered(Direction::Up), 20_000);
}

#[test]
fn a_cut_is_a_reset_on_both_sides() {
    let (proxy, mut client, mut server) = pair(|proxy| proxy.delay(Duration::from_secs(5)));
    client.write_all(b"never arrives").unwrap();
    proxy.cut();
    assert_eq!(proxy.connections(), 0);
    for socket in [&mut client, &mut server] {
        assert_eq!(socket.read(&mut [0; 100]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_cut_reaches_threads_that_are_stuck() {
    let (proxy, client, server) = pair(|proxy| proxy);
    proxy.stall(Direction::Down);
    fill(&client);
    fill(&server);
    let control = proxy.control();
    within(SOON, move || control.cut());
}

/// Writes until TCP takes no more, and says how much that was.
fn fill(mut socket: &TcpStream) -> u64 {
    socket.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let chunk = [0; 64 * 1024];
    let mut total = 0;
    loop {
        match socket.write(&chunk) {
            Ok(count) => total += count as u64,
            Err(error) => {
                assert!(matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{error}");
                return total;
            }
        }
    }
}

#[test]
fn a_nice_close_delivers_what_is_under_way() {
    let (proxy, mut client, mut server) = pair(|proxy| proxy.delay(Duration::from_millis(50)));
    client.write_all(b"up").unwrap();
    server.write_all(b"down").unwrap();
    // Read by the proxy, so that it is under way.
    thread::sleep(Duration::from_millis(20));
    proxy.close_nicely();
    for (socket, expected) in [(&mut client, "down"), (&mut server, "up")] {
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        assert_eq!(text, expected);
    }
    drop((client, server));
    eventually(SOON, "the connection is over", || proxy.connections() == 0);
}

#[test]
fn half_a_close_passes_and_the_other_half_stays_open() {
    let (_proxy, client, server) = pair(|proxy| proxy);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!((&server).read(&mut [0; 1]).unwrap(), 0);
    (&server).write_all(b"still here").unwrap();
    assert_eq!(read_exactly(&client, 10), b"still here");
}

#[test]
fn a_reset_passes() {
    let (_proxy, mut client, server) = pair(|proxy| proxy);
    rustix::net::sockopt::set_socket_linger(&server, Some(Duration::ZERO)).unwrap();
    drop(server);
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[test]
fn a_stall_holds_one_direction_back_and_loses_nothing() {
    let (proxy, client, server) = pair(|proxy| proxy);
    proxy.stall(Direction::Up);
    let mut sender = client.try_clone().unwrap();
    let expected = 64 * 1024 * 1024;
    let sending = thread::spawn(move || io::copy(&mut noise(3, expected), &mut sender).unwrap());
    // The other direction does not notice.
    (&server).write_all(b"hello").unwrap();
    assert_eq!(read_exactly(&client, 5), b"hello");
    assert!(!proxy.wait_until_delivered(Direction::Up, 1, Duration::from_millis(200)));
    assert!(!sending.is_finished(), "64 MiB fit into no TCP buffer");

    proxy.resume(Direction::Up);
    let arrived = sha256((&server).take(expected)).unwrap();
    assert_eq!(arrived, sha256(noise(3, expected)).unwrap());
    assert_eq!(sending.join().unwrap(), expected);
}

#[test]
fn a_stall_at_a_position_is_exact() {
    let (proxy, client, server) = pair(|proxy| proxy);
    proxy.stall_after(Direction::Up, 10);
    (&client).write_all(b"0123456789abcdef").unwrap();
    assert_eq!(read_exactly(&server, 10), b"0123456789");
    server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert_eq!((&server).read(&mut [0; 10]).unwrap_err().kind(), ErrorKind::WouldBlock);
    server.set_read_timeout(Some(SOON)).unwrap();
    proxy.resume(Direction::Up);
    assert_eq!(read_exactly(&server, 6), b"abcdef");
}

#[test]
fn a_black_hole_takes_everything_and_gives_nothing() {
    let (proxy, client, server) = pair(|proxy| proxy);
    proxy.black_hole();
    let length = 64 * 1024 * 1024;
    io::copy(&mut noise(1, length), &mut &client).unwrap();
    eventually(SOON, "all is swallowed", || proxy.swallowed(Direction::Up) == length);
    // Not even the end passes.
    client.shutdown(Shutdown::Write).unwrap();
    server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert_eq!((&server).read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert_eq!(proxy.delivered(Direction::Up), 0);
}

#[test]
fn bits_flip_where_they_shall() {
    let (proxy, client, server) = pair(|proxy| proxy);
    proxy.flip_bit(Direction::Up, 2);
    (&client).write_all(b"aaaa").unwrap();
    assert_eq!(read_exactly(&server, 4), b"aa`a");
    proxy.flip_bit_ahead(Direction::Up, 1);
    (&client).write_all(b"aaaa").unwrap();
    assert_eq!(read_exactly(&server, 4), b"a`aa");
    (&server).write_all(b"aaaa").unwrap();
    assert_eq!(read_exactly(&client, 4), b"aaaa");
}

#[test]
fn a_split_makes_a_pause() {
    let (proxy, client, server) = pair(|proxy| proxy);
    proxy.split_after(Direction::Up, 3);
    let start = Instant::now();
    (&client).write_all(b"abcdef").unwrap();
    assert_eq!(read_exactly(&server, 6), b"abcdef");
    assert!(start.elapsed() >= Duration::from_millis(20));
}

#[test]
fn a_proxy_whose_server_is_gone_resets_its_client() {
    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let proxy = Proxy::to(gone).start().unwrap();
    let mut client = TcpStream::connect(proxy.address()).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(client.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    proxy.redirect(listener.local_addr().unwrap());
    let client = TcpStream::connect(proxy.address()).unwrap();
    let (server, _) = listener.accept().unwrap();
    (&client).write_all(b"moved").unwrap();
    assert_eq!(read_exactly(&server, 5), b"moved");
}

#[test]
fn a_dropped_proxy_leaves_no_thread_and_no_descriptor() {
    alone("fixtures::a_dropped_proxy_leaves_no_thread_and_no_descriptor", SOON, || {
        let before = open_files();
        let (proxy, client, server) = pair(|proxy| proxy.delay(Duration::from_secs(1)));
        (&client).write_all(b"under way").unwrap();
        proxy.stall(Direction::Down);
        // A thread names itself, some time after it was started.
        eventually(SOON, "two threads and four for the connection", || threads_named("proxy") == 6);
        drop((proxy, client, server));
        assert_eq!(threads_named("proxy"), 0);
        assert_eq!(open_files(), before);
    });
}

// The helpers.

#[test]
fn a_deadline_that_passes_fails_with_the_threads_named() {
    let failure = std::panic::catch_unwind(|| within(Duration::from_millis(10), || thread::sleep(SOON)));
    let message = failure.unwrap_err().downcast::<String>().unwrap();
    assert!(message.contains("not done within 10ms") && message.contains("syscall"), "{message}");
}

#[test]
fn noise_does_not_depend_on_how_it_is_read() {
    let mut whole = Vec::new();
    noise(5, 1003).read_to_end(&mut whole).unwrap();
    let mut pieces = noise(5, 1003);
    for piece in [1, 2, 3, 5, 7, 8, 9, 16, 100, 500, 352] {
        let mut bytes = vec![0; piece];
        pieces.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, whole.drain(..piece).collect::<Vec<_>>());
    }
}
