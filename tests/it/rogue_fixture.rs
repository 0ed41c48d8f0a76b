//! The misbehaving server is what it says it is: OpenSSH's own client and libssh2 talk to it when it behaves, and notice
//! when it does not.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::rogue::{
    base64, fields, ignore, msg, reason, Behaviour, Cipher, Mac, Offer, OpenAnswer, Part, RekeyFault, Rogue, FORBIDDEN,
};

/// No run of `ssh` here takes longer, even on a busy machine.
const SSH_DEADLINE: Duration = Duration::from_secs(60);

/// The real `ssh`, strict about the host key and with a key of its own.
struct Ssh {
    directory: TempDir,
    options: Vec<String>,
}

impl Ssh {
    fn to(server: &Rogue) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name).display().to_string();
        std::fs::write(path("known_hosts"), server.known_hosts_line()).expect("known_hosts written");
        let keygen = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &path("key")]).status();
        assert!(keygen.expect("ssh-keygen is installed").success());
        let mut options: Vec<String> =
            ["-F", "/dev/null", "-l", "tester", "-i", &path("key"), "-p"].map(str::to_owned).to_vec();
        options.push(server.port().to_string());
        for option in [
            &format!("UserKnownHostsFile={}", path("known_hosts")),
            "GlobalKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=yes",
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
        ] {
            options.extend(["-o".to_owned(), option.to_owned()]);
        }
        Self { directory, options }
    }

    fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }

    /// Runs a command with this on its stdin.
    fn run(&self, command: &str, stdin: &[u8]) -> Output {
        let mut child = Command::new("ssh")
            .args(&self.options)
            .args(["127.0.0.1", command])
            .current_dir(&self.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ssh is installed");
        let mut pipe = child.stdin.take().expect("stdin is piped");
        let (mut out, mut err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        thread::scope(|scope| {
            // An ssh that ends early breaks the pipe: the test looks at what it printed.
            scope.spawn(move || drop(pipe.write_all(stdin)));
            let stdout = scope.spawn(move || read_all(&mut out));
            let stderr = scope.spawn(move || read_all(&mut err));
            let (done, watched) = mpsc::channel::<()>();
            let pid = rustix::process::Pid::from_child(&child);
            scope.spawn(move || {
                if watched.recv_timeout(SSH_DEADLINE) == Err(mpsc::RecvTimeoutError::Timeout) {
                    // Not yet waited for, so the process identifier is still its own.
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            });
            let (stdout, stderr) = (stdout.join().expect("read"), stderr.join().expect("read"));
            drop(done);
            Output { status: child.wait().expect("ssh ended"), stdout, stderr }
        })
    }

    fn complaint(&self, command: &str) -> String {
        let output = self.run(command, b"");
        assert!(!output.status.success(), "ssh was content: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }
}

fn read_all(from: &mut impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    from.read_to_end(&mut bytes).expect("a pipe can be read");
    bytes
}

/// Every cipher, the ones that need a MAC with every MAC.
pub fn every_protection() -> Vec<Offer> {
    let mut offers = Vec::new();
    for (name, cipher) in Cipher::NAMES {
        let offer = Offer::default().cipher(name);
        if cipher.is_aead() {
            offers.push(offer);
        } else {
            offers.extend(Mac::NAMES.iter().map(|(mac, _)| offer.clone().mac(mac)));
        }
    }
    offers
}

/// A megabyte in which no part repeats another.
pub fn megabyte() -> Vec<u8> {
    (0..1024 * 1024 / 4u32).flat_map(|number| number.wrapping_mul(0x9E37_79B1).to_be_bytes()).collect()
}

#[test]
fn ssh_echoes_a_megabyte_under_every_cipher_and_mac_with_rekeys_in_the_middle() {
    let data = megabyte();
    for offer in every_protection() {
        let methods = format!("{:?} {:?}", offer.ciphers[0], offer.macs[0]);
        let server = Rogue::logged_in_with(offer, |conn| {
            assert!(conn.is_strict());
            conn.serve(&mut Behaviour::new().rekey_every(400_000))?;
            assert!(conn.exchanges >= 4, "only {} key exchanges", conn.exchanges);
            Ok(())
        });
        let output = Ssh::to(&server).run("cat", &data);
        assert!(output.status.success(), "{methods}: {output:?}");
        assert!(output.stdout == data, "{methods}: {} bytes came back, and not the same", output.stdout.len());
        server.wait().expect(&methods);
    }
}

#[test]
fn ssh_rekeys_on_its_own_and_without_strict_kex() {
    let data = megabyte();
    let server = Rogue::logged_in_with(Offer::default().lenient(), |conn| {
        assert!(!conn.is_strict());
        conn.serve(&mut Behaviour::new())?;
        assert!(conn.exchanges > 2, "only {} key exchanges", conn.exchanges);
        Ok(())
    });
    let output = Ssh::to(&server).option("-oRekeyLimit=300K").run("cat", &data);
    assert!(output.stdout == data, "{}", String::from_utf8_lossy(&output.stderr));
    server.wait().expect("served");
}

#[test]
fn ssh_notices_a_bad_mac_under_every_cipher_and_mac() {
    for offer in every_protection() {
        let methods = format!("{:?} {:?}", offer.ciphers[0], offer.macs[0]);
        let server = Rogue::logged_in_with(offer, |conn| {
            let (channel, _) = conn.expect_exec()?;
            let data = conn.on(channel, msg::CHANNEL_DATA)?.string("forged\n").done();
            conn.send_with_bad_mac(&data)?;
            conn.wait_for_end().map(|_| ())
        });
        let output = Ssh::to(&server).run("true", b"");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(complaint.contains("message authentication code incorrect"), "{methods}: {complaint}");
        assert!(output.stdout.is_empty(), "{methods}: a forged packet was delivered");
        server.wait().expect(&methods);
    }
}

#[test]
fn ssh_notices_a_bit_flipped_in_the_body() {
    let server = Rogue::logged_in_with(Offer::default().cipher("aes128-ctr").mac("hmac-sha2-256"), |conn| {
        conn.expect_exec()?;
        conn.send_corrupted(&ignore(&[0; 100]), Part::Body)?;
        conn.wait_for_end().map(|_| ())
    });
    assert!(Ssh::to(&server).complaint("true").contains("Corrupted MAC on input"));
    server.wait().expect("the script ends");
}

/// What `ssh` says about a server that does this at a key exchange in the middle of a command, and what it delivers.
fn ssh_at(fault: RekeyFault) -> (String, String) {
    let offer = Offer::default().cipher("aes128-ctr").mac("hmac-sha2-256");
    let server = Rogue::logged_in_with(offer, move |conn| {
        let (channel, _) = conn.expect_exec()?;
        conn.data(channel, b"before\n")?;
        let goes_on = conn.rekey_with(fault).is_ok() && conn.is_between_exchanges();
        if goes_on {
            conn.data(channel, b"after\n")?;
            conn.finish(channel, 0)?;
        }
        // A client that waits for ever, as OpenSSH's does, is sent away.
        conn.deadline = if goes_on { SSH_DEADLINE } else { Duration::from_millis(500) };
        conn.wait_for_end().map(|_| ())
    });
    let output = Ssh::to(&server).run("true", b"");
    (String::from_utf8_lossy(&output.stderr).into_owned(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn ssh_sees_each_fault_of_a_key_exchange() {
    use RekeyFault::*;
    let sent_away = "closed by remote host";
    let wrong = [
        (NothingInCommon, "no matching cipher found. Their offer: rot13"),
        (BadMacInside(Part::Tag), "message authentication code incorrect"),
        (BadSignature, "incorrect signature"),
        (OtherHostKey, "Host key verification failed"),
        (SecondKexinit, "kex_protocol_error: type 20"),
        (KexinitForReply, "kex_protocol_error: type 20"),
        (NewkeysTooEarly, "dispatch_protocol_error: type 21"),
        (NeverReplies, sent_away),
        (NeverNewkeys, sent_away),
        (EndsInside, sent_away),
    ];
    for (fault, complaint) in wrong {
        let (stderr, stdout) = ssh_at(fault);
        assert!(stderr.contains(complaint), "{fault:?}: {stderr}");
        assert!(["before\n", ""].contains(&stdout.as_str()), "{fault:?}: {stdout}");
    }
}

#[test]
fn ssh_goes_along_with_a_split_packet_and_a_change_of_methods() {
    use RekeyFault::*;
    for unusual in [SplitBehindKexinit(1), SplitBehindKexinit(20), OtherCipher, OtherMac] {
        let (stderr, stdout) = ssh_at(unusual);
        assert_eq!((stderr.as_str(), stdout.as_str()), ("", "before\nafter\n"), "{unusual:?}");
    }
}

#[test]
fn data_inside_a_key_exchange_really_arrives() {
    let server = Rogue::logged_in(|conn| {
        let (channel, _) = conn.expect_exec()?;
        conn.rekey_with(RekeyFault::DataBehindKexinit(channel))?;
        conn.rekey_with(RekeyFault::DataBeforeNewkeys(channel))?;
        conn.finish(channel, 0)?;
        conn.serve(&mut Behaviour::new())
    });
    // OpenSSH's client delivers it: proof that the packets are good but for their place.
    assert_eq!(Ssh::to(&server).run("true", b"").stdout, [FORBIDDEN, FORBIDDEN].concat());
    server.wait().expect("served");
}

#[test]
fn refusals_reach_ssh() {
    let refusing = |make: fn() -> Behaviour<'static>| Rogue::serving(make);
    let open = refusing(|| {
        Behaviour::new().on_open(|_| OpenAnswer::Refuse(reason::RESOURCE_SHORTAGE, "not one channel more"))
    });
    assert!(Ssh::to(&open).complaint("true").contains("resource shortage: not one channel more"));
    let exec = refusing(|| Behaviour::new().refuse("exec"));
    assert!(Ssh::to(&exec).complaint("true").contains("exec request failed on channel 0"));
    let pty = refusing(|| Behaviour::new().refuse("pty-req"));
    assert!(Ssh::to(&pty).option("-tt").complaint("true").contains("PTY allocation request failed on channel 0"));
}

#[test]
fn two_opens_are_answered_in_reverse_order() {
    let server = Rogue::logged_in(|conn| {
        let (first, second) = (conn.expect_open()?, conn.expect_open()?);
        let of_second = conn.confirm(&second)?;
        let of_first = conn.confirm(&first)?;
        for _ in [of_second, of_first] {
            let request = conn.expect_request("exec")?;
            conn.success(&request)?;
            conn.data(request.channel, request.text()?.as_bytes())?;
            conn.finish(request.channel, 0)?;
        }
        conn.serve(&mut Behaviour::new())
    });
    let ssh = Ssh::to(&server).option("-S").option("control");
    let master = Command::new("ssh")
        .args(&ssh.options)
        .args(["-fNM", "127.0.0.1"])
        .current_dir(&ssh.directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(master.expect("ssh is installed").success());
    let both = thread::scope(|scope| {
        ["one", "two"].map(|command| scope.spawn(|| ssh.run(command, b""))).map(|run| run.join().expect("ran").stdout)
    });
    assert_eq!(both, [b"one", b"two"]);
}

#[test]
fn commands_end_as_the_script_says() {
    let server = Rogue::logged_in(|conn| {
        let (channel, command) = conn.expect_exec()?;
        conn.stderr(channel, b"to stderr\n")?;
        match command.as_str() {
            "status" => {
                conn.exit_status(channel, 42)?;
                conn.data(channel, b"behind the status\n")?;
                conn.close(channel)?;
            }
            "signal" => {
                conn.exit_signal(channel, "TERM", false, "shot at dawn")?;
                conn.eow(channel)?;
                conn.close(channel)?;
            }
            _ => conn.close(channel)?,
        }
        conn.serve(&mut Behaviour::new())
    });
    let ssh = Ssh::to(&server);
    let status = ssh.run("status", b"");
    assert_eq!((status.status.code(), status.stdout.as_slice()), (Some(42), &b"behind the status\n"[..]));
    assert_eq!(status.stderr, b"to stderr\n");
    assert_eq!(ssh.run("signal", b"").status.code(), Some(255));
    assert_eq!(ssh.run("neither", b"").status.code(), Some(255));
    for _ in 0..3 {
        server.wait().expect("served");
    }
}

#[test]
fn the_answers_of_the_client_are_checked() {
    let server = Rogue::logged_in(|conn| {
        let (channel, _) = conn.expect_exec()?;
        conn.keepalive(channel)?;
        assert!(!conn.ask_global("keepalive@openssh.com")?);
        conn.finish(channel, 0)?;
        conn.serve(&mut Behaviour::new())
    });
    assert!(Ssh::to(&server).run("true", b"").status.success());
    server.wait().expect("served");
}

#[test]
fn a_disconnect_carries_its_text() {
    let server = Rogue::logged_in(|conn| {
        conn.expect_exec()?;
        conn.disconnect(11, "closing time")?;
        conn.wait_for_end().map(|_| ())
    });
    assert!(Ssh::to(&server).complaint("true").contains("11: closing time"));
}

/// libssh2 as it is, without anything of ours.
fn libssh2(server: &Rogue) -> ssh2::Session {
    let mut session = ssh2::Session::new().expect("a session");
    session.set_timeout(u32::try_from(SSH_DEADLINE.as_millis()).expect("fits"));
    session.set_tcp_stream(TcpStream::connect(("127.0.0.1", server.port())).expect("connected"));
    session.handshake().expect("a handshake");
    let (key, _) = session.host_key().expect("a host key");
    assert_eq!(key, server.host_key_blob());
    session.userauth_password("tester", "whatever").expect("anybody gets in");
    session
}

#[test]
fn libssh2_echoes_under_every_cipher_and_mac_with_rekeys_in_the_middle() {
    let data = &megabyte()[..200_000];
    for offer in every_protection() {
        let methods = format!("{:?} {:?}", offer.ciphers[0], offer.macs[0]);
        let server = Rogue::logged_in_with(offer, |conn| {
            assert!(conn.is_strict());
            conn.serve(&mut Behaviour::new().rekey_every(100_000))?;
            assert!(conn.exchanges >= 3, "only {} key exchanges", conn.exchanges);
            Ok(())
        });
        let session = libssh2(&server);
        let mut channel = session.channel_session().expect("a channel");
        channel.exec("cat").expect("exec succeeds");
        channel.write_all(data).expect("written");
        channel.send_eof().expect("EOF sent");
        assert!(read_all(&mut channel) == data, "{methods}");
        channel.wait_close().expect("closed");
        assert_eq!(channel.exit_status().ok(), Some(0), "{methods}");
        drop(channel);
        session.disconnect(None, "done", None).expect("disconnected");
        server.wait().expect(&methods);
    }
}

#[test]
fn the_servers_without_a_key_exchange_do_what_they_are_called() {
    let connect = |server: &Rogue| {
        let stream = TcpStream::connect(("127.0.0.1", server.port())).expect("connected");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        stream
    };
    let beginning = |server: &Rogue, size: usize| {
        let mut bytes = vec![0; size];
        connect(server).read_exact(&mut bytes).expect("bytes come");
        bytes
    };
    let flood = beginning(&Rogue::banner_flood(), 1_000_000);
    assert!(flood.split(|&byte| byte == b'\n').all(|line| line.len() < 255 && !line.starts_with(b"SSH-")));
    assert!(!beginning(&Rogue::endless_line(), 1_000_000).contains(&b'\n'));
    assert_ne!(beginning(&Rogue::garbage(), 1_000_000)[..64], beginning(&Rogue::garbage(), 64)[..]);
    assert_eq!(beginning(&Rogue::slow_banner(Duration::from_millis(5)), 8), b"SSH-2.0-");

    let http = Rogue::http();
    let mut stream = connect(&http);
    stream.write_all(b"SSH-2.0-Client\r\n").expect("written");
    assert!(read_all(&mut stream).starts_with(b"HTTP/1.1 400"));

    let mute = Rogue::mute();
    let mut stream = connect(&mute);
    stream.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
    assert_eq!(stream.read(&mut [0]).expect_err("silence").kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn dropping_the_server_ends_its_pauses_and_closes_its_sockets() {
    let server = Rogue::start(|conn| conn.pause(Duration::from_secs(3600)));
    let mut stream = TcpStream::connect(("127.0.0.1", server.port())).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let begun = Instant::now();
    drop(server);
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(matches!(stream.read(&mut [0]), Ok(0)));
}

#[test]
#[should_panic(expected = "server's script panicked: as it should")]
fn a_panic_of_the_script_reaches_the_test() {
    let server = Rogue::start(|_| panic!("as it should"));
    drop(TcpStream::connect(("127.0.0.1", server.port())).expect("connected"));
    let _ = server.wait();
}

#[test]
fn a_byte_a_packet_arrives_whole() {
    let data = &megabyte()[..20_000];
    let sent = data.to_vec();
    let server = Rogue::logged_in_with(Offer::default().cipher("aes128-gcm@openssh.com"), move |conn| {
        let (channel, _) = conn.expect_exec()?;
        conn.data_bytewise(channel, &sent)?;
        conn.finish(channel, 0)?;
        conn.serve(&mut Behaviour::new())
    });
    assert!(Ssh::to(&server).run("true", b"").stdout == data);
    server.wait().expect("served");
}

#[test]
fn numbers_and_base64_are_encoded_as_the_rfcs_show() {
    let mpint = |magnitude: &[u8]| fields().mpint(magnitude).done();
    // RFC 4251 §5
    assert_eq!(mpint(&[0, 0]), [0, 0, 0, 0]);
    assert_eq!(mpint(&[0, 0x80]), [0, 0, 0, 2, 0, 0x80]);
    assert_eq!(mpint(&[0x09, 0xa3]), [0, 0, 0, 2, 0x09, 0xa3]);
    // RFC 4648 §10
    let encoded = ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes()));
    assert_eq!(encoded, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
}
