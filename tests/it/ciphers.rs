//! Ciphers: keys that change and begin anew, keys that wear out, sessions of others in the same process.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Barrier;
use std::thread;

use threadline::{Client, Error, Fault, Stdio};

use crate::connect::{builder, client, PATIENCE};
use crate::hostile::{self, each};
use crate::rogue::{Behaviour, Rogue};
use crate::rogue_fixture::{every_protection, megabyte};
use crate::seam::Plain;
use crate::sshd::Sshd;
use crate::util::tool;
use crate::util::{alone, eventually, noise, output_within, sha256, within};

/// Every way in which packets are encrypted and counted: whole packets, and blocks with the length inside or before.
const METHODS: [(&str, &str); 9] = [
    ("chacha20-poly1305@openssh.com", "hmac-sha2-256"),
    ("aes128-gcm@openssh.com", "hmac-sha2-256"),
    ("aes256-gcm@openssh.com", "hmac-sha2-256"),
    ("aes128-ctr", "hmac-sha2-256"),
    ("aes192-ctr", "hmac-sha2-512-etm@openssh.com"),
    ("aes256-ctr", "hmac-sha2-256-etm@openssh.com"),
    ("aes256-ctr", "hmac-sha2-512"),
    ("aes128-cbc", "hmac-sha2-256"),
    ("aes256-cbc", "hmac-sha2-256-etm@openssh.com"),
];

fn sshd(options: &[&str]) -> Sshd {
    let mut ciphers = METHODS.map(|(cipher, _)| cipher).to_vec();
    ciphers.dedup();
    ciphers.push("aes192-cbc");
    let mut macs = METHODS.map(|(_, mac)| mac).to_vec();
    macs.sort_unstable();
    macs.dedup();
    let server = Sshd::builder().ciphers(&ciphers.join(",")).option(&format!("MACs {}", macs.join(",")));
    options.iter().fold(server, |server, option| server.option(option)).start().expect("sshd")
}

/// A connection on which nothing is sent that nobody asked for.
fn quiet(server: &Sshd, (cipher, mac): (&str, &str)) -> Client {
    let client = builder(server).ciphers([cipher]).macs([mac]).no_keepalive().spare_channel(false);
    let client = client.connect().unwrap_or_else(|error| panic!("{cipher} {mac}: {error}"));
    assert_eq!([&client.algorithms().cipher_in, &client.algorithms().cipher_out], [cipher, cipher]);
    client
}

#[test]
fn the_vectors_are_what_their_program_prints() {
    let vectors = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors");
    let mut program = Command::new(tool("paramiko/bin/python3", "the Python with cryptography"));
    let printed = output_within(PATIENCE, program.arg("-B").arg(format!("{vectors}/ciphers.py")));
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    assert!(printed.stdout == fs::read(format!("{vectors}/ciphers.json")).expect("committed"), "run it again");
}

/// GCM's counter of packets and CTR's of blocks begin anew with each key; chacha20's packet number, as the key exchange
/// was strict, too.
#[test]
fn everything_arrives_under_each_cipher_while_sshd_changes_keys() {
    const SIZE: u64 = 5 << 20;
    within(PATIENCE, || {
        let server = &sshd(&["RekeyLimit 1M", "LogLevel DEBUG1"]);
        each(&METHODS, |&methods| {
            let client = quiet(server, methods);
            let mut child = client.exec_command("cat").expect("started");
            let (mut stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
            let writer = thread::spawn(move || io::copy(&mut noise(1, SIZE), &mut stdin).expect("written"));
            let came = sha256(stdout).unwrap_or_else(|error| panic!("{methods:?}: {error}"));
            assert_eq!(came, sha256(noise(1, SIZE)).expect("hashed"), "{methods:?}");
            assert_eq!(writer.join().expect("no panic"), SIZE);
            assert!(child.wait().expect("ended").success());
            client.close(PATIENCE).expect("closed");
        });
        let exchanges = server.log().matches("SSH2_MSG_KEXINIT sent").count();
        assert!(exchanges >= 6 * METHODS.len(), "only {exchanges} key exchanges");
    });
}

/// The other tests' servers are strict. Here chacha20's nonce, the number of the packet, goes on over new keys.
#[test]
fn packet_numbers_go_on_where_the_key_exchange_is_not_strict() {
    within(PATIENCE, || {
        let data = &megabyte();
        each(&every_protection(), |offer| {
            let server = Rogue::logged_in_with(offer.clone().lenient(), |conn| {
                assert!(!conn.is_strict());
                // The next exchange's offer says it again: it counts in the first one only.
                conn.serve(&mut Behaviour::new().rekey_every(300_000))?;
                assert!(conn.exchanges >= 6, "only {} key exchanges", conn.exchanges);
                Ok(())
            });
            let client = hostile::client(&server);
            let mut child = client.exec_command("cat").expect("started");
            let mut stdin = child.stdin.take().expect("piped");
            let back = thread::scope(|scope| {
                scope.spawn(move || stdin.write_all(data).expect("written"));
                child.output().unwrap_or_else(|error| panic!("{:?}: {error}", offer.ciphers[0]))
            });
            assert!(back.stdout == *data, "{:?}", offer.ciphers[0]);
            client.close(PATIENCE).expect("closed");
            server.wait().expect("served");
        });
    });
}

/// Why the connection ended, and that it says what can be done.
#[track_caller]
fn worn(client: &Client, what: &str, direction: &str) {
    eventually(PATIENCE, "the connection ends", || client.lost().is_some());
    let error = client.lost().expect("it ended");
    let Error::Protocol(text) = &error else { panic!("{what}: {error:?}") };
    assert!(text.contains(&format!("2147483648 packets were {direction} under one key")), "{what}: {text}");
    assert!(text.contains("RekeyLimit"), "{what}: {text}");
}

#[test]
fn a_packet_too_many_under_one_key_is_not_sent() {
    within(PATIENCE, || {
        let server = &sshd(&[]);
        each(&METHODS, |&methods| {
            let client = quiet(server, methods);
            let got = server.dir().join(format!("got-{}-{}", methods.0, methods.1));
            let mut child =
                client.sh(format!("cat >'{}'", got.display())).stdin(Stdio::piped()).spawn().expect("started");
            let mut stdin = child.stdin.take().expect("piped");
            stdin.write_all(b"before\n").expect("written");
            eventually(PATIENCE, "the first line arrives", || fs::read(&got).is_ok_and(|got| got == b"before\n"));
            client.inject(Fault::WornKey);
            // It goes into a queue, and fails where the connection has ended already.
            let _ = stdin.write_all(b"too many\n");
            worn(&client, &format!("{methods:?}"), "sent");
            assert!(matches!(child.wait(), Err(Error::Protocol(_))), "{methods:?}");
            assert_eq!(fs::read(&got).expect("there"), b"before\n", "{methods:?}");
        });
    });
}

#[test]
fn a_packet_too_many_under_one_key_is_not_taken() {
    within(PATIENCE, || {
        let server = &sshd(&[]);
        each(&METHODS, |&methods| {
            let client = quiet(server, methods);
            let go = server.dir().join(format!("go-{}-{}", methods.0, methods.1));
            let script =
                format!("echo before; until [ -e '{}' ]; do sleep 0.1; done; echo too many; sleep 60", go.display());
            // With a pipe for its stdin, that stays open: not even an EOF is sent meanwhile.
            let mut child = client.exec_command(&script).expect("started");
            let mut stdout = child.stdout.take().expect("piped");
            let mut line = [0; 7];
            stdout.read_exact(&mut line).expect("the first line");
            client.inject(Fault::WornKey);
            // The transport takes requests before it receives what comes of this.
            fs::write(&go, "").expect("written");
            worn(&client, &format!("{methods:?}"), "received");
            let mut rest = Vec::new();
            assert!(stdout.read_to_end(&mut rest).is_err(), "{methods:?}");
            assert_eq!((&line, rest.as_slice()), (b"before\n", &b""[..]), "{methods:?}");
        });
    });
}

/// Sessions of libssh2 alone, one for each cipher, and then ours: at their next key exchange they meet our methods with
/// contexts that libssh2 made.
#[test]
fn sessions_that_began_before_ours_go_on_over_new_keys() {
    const SIZE: u64 = 3 << 20;
    alone("ciphers::sessions_that_began_before_ours_go_on_over_new_keys", PATIENCE, || {
        let server = &sshd(&["RekeyLimit 1M", "LogLevel DEBUG1"]);
        let file = server.dir().join("noise");
        io::copy(&mut noise(7, SIZE), &mut fs::File::create(&file).expect("a file")).expect("written");
        let mut data = Vec::new();
        noise(7, SIZE).read_to_end(&mut data).expect("made");
        let (hash, _) = sha256(data.as_slice()).expect("hashed");
        let mut ciphers = METHODS.map(|(cipher, _)| cipher).to_vec();
        ciphers.dedup();

        let before: Vec<_> = ciphers.iter().map(|cipher| (cipher, Plain::connect(server, cipher))).collect();
        // Some of them have changed keys once already, some not.
        before[0].1.read(&format!("cat {}", file.display()));
        let exchanges = || server.log().matches("SSH2_MSG_KEXINIT sent").count();
        let ours = client(server);
        assert_eq!(ours.sh("echo ours").output().expect("ran").stdout, b"ours\n");
        let first = exchanges();
        thread::scope(|scope| {
            for (cipher, session) in &before {
                let (data, hash, file) = (&data, &hash, &file);
                scope.spawn(move || {
                    for _ in 0..2 {
                        let down = session.read(&format!("cat {}", file.display()));
                        assert!(down == *data, "{cipher}: down");
                        let up = session.read_with("sha256sum", data);
                        assert!(up.starts_with(hash.as_bytes()), "{cipher}: up");
                    }
                });
            }
        });
        assert!(exchanges() >= first + 6 * before.len(), "only {} key exchanges", exchanges() - first);
        assert_eq!(ours.sh("echo ours").output().expect("ran").stdout, b"ours\n");
        ours.close(PATIENCE).expect("closed");
    });
}

/// Our methods are stored while sessions of others are in the middle of their handshakes.
#[test]
fn handshakes_beside_the_first_of_ours_end_well() {
    alone("ciphers::handshakes_beside_the_first_of_ours_end_well", PATIENCE, || {
        let server = &sshd(&["MaxStartups 100"]);
        let ciphers = ["aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com", "aes256-ctr", "aes192-cbc"];
        let begun = &AtomicUsize::new(0);
        let barrier = &Barrier::new(2);
        thread::scope(|scope| {
            for cipher in ciphers {
                scope.spawn(move || {
                    for _ in 0..8 {
                        handshake(server, cipher);
                        begun.fetch_add(1, Ordering::SeqCst);
                    }
                    assert_eq!(Plain::connect(server, cipher).read("echo theirs"), b"theirs\n", "{cipher}");
                });
            }
            // Two at once are the first.
            for _ in 0..2 {
                scope.spawn(move || {
                    eventually(PATIENCE, "others are at it", || begun.load(Ordering::SeqCst) >= 4);
                    barrier.wait();
                    assert_eq!(client(server).sh("echo ours").output().expect("ran").stdout, b"ours\n");
                });
            }
        });
    });
}

fn handshake(server: &Sshd, cipher: &str) {
    let mut session = ssh2::Session::new().expect("a session");
    for direction in [ssh2::MethodType::CryptCs, ssh2::MethodType::CryptSc] {
        session.method_pref(direction, cipher).expect("known");
    }
    session.set_tcp_stream(TcpStream::connect((server.host(), server.port())).expect("connected"));
    session.handshake().unwrap_or_else(|error| panic!("{cipher}: {error}"));
}
