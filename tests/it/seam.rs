//! The seam to libssh2: faults injected, other users of libssh2 beside us.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;

use threadline::{Client, Error, Fault};

use crate::connect;
use crate::connect::PATIENCE;
use crate::hostile;
use crate::rogue::{run, Behaviour, Offer, Rogue};
use crate::sshd::Sshd;
use crate::util::{alone, eventually, noise, open_files, sha256, threads, threads_named, within};

/// A server that changes keys and says goodbye when told to.
fn obedient() -> Rogue {
    Rogue::serving(|| {
        Behaviour::new().on_exec(|conn, channel, command| match command {
            "rekey" => conn.rekey(&Offer::default()),
            "disconnect" => conn.disconnect(11, "as you wish"),
            _ => run(conn, channel, command),
        })
    })
}

/// Everything that waits on this connection when a callback or the loop panics gets the reason, and nobody else.
fn panics_alone(fault: Fault, trigger: &'static str) {
    within(PATIENCE, move || {
        let server = obedient();
        let beside = hostile::client(&server);
        let mut long = beside.exec_command("cat").expect("started");

        let struck = hostile::client(&server);
        // Megabytes on the way would delay the exchange for longer than its limit where all is slow, as under valgrind.
        let writer = if fault == Fault::Init { wait_for_end } else { wait_for_room };
        let waiting: Vec<_> = [wait_for_end, wait_for_output, writer, wait_for_start]
            .into_iter()
            .map(|wait| {
                let client = struck.clone();
                thread::spawn(move || wait(&client))
            })
            .collect();
        struck.inject(fault);
        let _ = struck.exec_command(trigger);

        for one in waiting {
            let error = one.join().expect("a waiter does not panic");
            let Error::Internal(text) = &error else { panic!("{fault:?}: {error:?}") };
            assert_eq!(text, &format!("injected fault: {fault:?}"));
        }
        assert!(matches!(struck.lost(), Some(Error::Internal(_))), "{:?}", struck.lost());
        assert!(matches!(struck.sh("true").status(), Err(Error::Internal(_))));
        assert!(matches!(struck.ping(PATIENCE), Err(Error::Internal(_))));
        drop(struck);

        assert_eq!(beside.sh("echo beside").output().expect("ran").stdout, b"beside\n");
        long.stdin.take().expect("piped").write_all(b"all along").expect("written");
        assert_eq!(long.output().expect("ran").stdout, b"all along");
        assert_eq!(hostile::client(&server).sh("echo new").output().expect("ran").stdout, b"new\n");
        beside.close(PATIENCE).expect("closed");
    });
}

fn wait_for_end(client: &Client) -> Error {
    let started = client.exec_command("sleep");
    started.and_then(|mut child| child.wait()).expect_err("it never ends")
}

fn wait_for_output(client: &Client) -> Error {
    match client.exec_command("sleep") {
        Err(error) => error,
        Ok(mut child) => of(child.stdout.take().expect("piped").read(&mut [0]).expect_err("it says nothing")),
    }
}

fn wait_for_room(client: &Client) -> Error {
    match client.exec_command("sleep") {
        Err(error) => error,
        Ok(mut child) => {
            let mut stdin = child.stdin.take().expect("piped");
            of((0..).find_map(|_| stdin.write_all(&[0; 65536]).err()).expect("it takes in nothing"))
        }
    }
}

fn wait_for_start(client: &Client) -> Error {
    loop {
        if let Err(error) = client.sh("true").status() {
            return error;
        }
    }
}

fn of(error: io::Error) -> Error {
    error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).expect("ours").clone()
}

#[test]
fn a_panic_at_new_keys_ends_one_connection_and_nothing_else() {
    panics_alone(Fault::Init, "rekey");
}

#[test]
fn a_panic_while_taking_a_payload_ends_one_connection_and_nothing_else() {
    panics_alone(Fault::Decomp, "true");
}

#[test]
fn a_panic_at_the_commit_ends_one_connection_and_nothing_else() {
    panics_alone(Fault::Ignore, "true");
}

#[test]
fn a_panic_at_the_servers_goodbye_ends_one_connection_and_nothing_else() {
    panics_alone(Fault::Disconnect, "disconnect");
}

#[test]
fn a_panic_while_sending_ends_one_connection_and_nothing_else() {
    panics_alone(Fault::Send, "true");
}

#[test]
fn a_panic_while_receiving_ends_one_connection_and_nothing_else() {
    panics_alone(Fault::Recv, "true");
}

#[test]
fn a_panic_of_the_loop_ends_one_connection_and_nothing_else() {
    panics_alone(Fault::Loop, "true");
}

/// libssh2 as anybody uses it who has never heard of us.
pub struct Plain {
    session: ssh2::Session,
}

impl Plain {
    /// A session that is logged in, with this cipher both ways.
    pub fn connect(server: &Sshd, cipher: &str) -> Plain {
        let mut session = ssh2::Session::new().expect("a session");
        session.set_timeout(u32::try_from(PATIENCE.as_millis()).expect("fits"));
        for direction in [ssh2::MethodType::CryptCs, ssh2::MethodType::CryptSc] {
            session.method_pref(direction, cipher).expect("known");
        }
        session.set_tcp_stream(TcpStream::connect((server.host(), server.port())).expect("connected"));
        session.handshake().expect("a handshake");
        session.userauth_pubkey_file(server.user(), None, &server.identity(), None).expect("logged in");
        Plain { session }
    }

    /// What a command prints.
    pub fn read(&self, command: &str) -> Vec<u8> {
        self.read_with(command, &[])
    }

    /// What a command prints, given this on its stdin; it may print only once it has got that.
    pub fn read_with(&self, command: &str, stdin: &[u8]) -> Vec<u8> {
        let mut channel = self.session.channel_session().expect("a channel");
        channel.exec(command).expect("started");
        channel.write_all(stdin).expect("written");
        channel.send_eof().expect("sent");
        let mut bytes = Vec::new();
        channel.read_to_end(&mut bytes).expect("read");
        channel.wait_close().expect("closed");
        assert_eq!(channel.exit_status().expect("a status"), 0);
        bytes
    }
}

#[test]
fn plain_ssh2_sessions_beside_ours_are_untouched() {
    const SIZE: u64 = 10_000_000;
    // In a process of its own, so that the first session really comes before ours.
    alone("seam::plain_ssh2_sessions_beside_ours_are_untouched", PATIENCE, || {
        let server = Sshd::builder().option("RekeyLimit 1M").start().expect("sshd");
        let file = server.dir().join("noise");
        io::copy(&mut noise(7, SIZE), &mut fs::File::create(&file).expect("a file")).expect("written");
        let (hash, _) = sha256(noise(7, SIZE)).expect("hashed");
        let command = format!("cat {}", file.display());
        let intact = |bytes: &[u8]| assert_eq!(sha256(bytes).expect("hashed"), (hash.clone(), SIZE));

        let before = Plain::connect(&server, "aes128-ctr");
        intact(&before.read(&command));
        let client = connect::client(&server);
        let during = Plain::connect(&server, "aes256-gcm@openssh.com");
        thread::scope(|scope| {
            // Blocking calls on threads of their own, each with rekeys in the middle.
            scope.spawn(|| intact(&before.read(&command)));
            scope.spawn(|| intact(&during.read(&command)));
            scope.spawn(|| intact(&client.sh(&command).output().expect("ran").stdout));
        });
        client.close(PATIENCE).expect("closed");
        drop(client);
        intact(&before.read(&command));
        intact(&during.read(&command));
        let after = Plain::connect(&server, "chacha20-poly1305@openssh.com");
        intact(&after.read(&command));
    });
}

#[test]
fn thirty_two_connections_come_and_go_on_sixteen_threads() {
    alone("seam::thirty_two_connections_come_and_go_on_sixteen_threads", PATIENCE, || {
        let server = &Sshd::start().expect("sshd");
        // Whatever the first connection of a process leaves for the others.
        assert!(connect::client(server).sh("true").status().expect("ran").success());
        eventually(PATIENCE, "the first is gone", || threads_named("tl:") == 0);
        let (files, names) = (open_files(), threads());
        thread::scope(|scope| {
            for number in 0..16 {
                scope.spawn(move || {
                    for round in 0..2 {
                        let client = connect::client(server);
                        let text = format!("{number}.{round}\n");
                        assert_eq!(client.command("printf").arg(&text).output().expect("ran").stdout, text.as_bytes());
                        let running = client.exec_command("cat").expect("started");
                        // Dropped in each order, and closed.
                        match (number + round) % 3 {
                            0 => drop((client, running)),
                            1 => drop((running, client)),
                            _ => client.close(PATIENCE).expect("closed"),
                        }
                    }
                });
            }
        });
        eventually(PATIENCE, "all threads are gone", || threads() == names);
        eventually(PATIENCE, "all descriptors are closed", || open_files() == files);
    });
}
