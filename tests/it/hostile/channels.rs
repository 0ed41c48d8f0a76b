//! Breaches of RFC 4254, and what looks like one and is none.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use threadline::{Error, ExitStatus};

use super::{builder, client, each, outcome};
use crate::connect::PATIENCE;
use crate::rogue::{message, msg, reason, Behaviour, Reader, Rogue, ServerConn};
use crate::util::{eventually, within};

/// A breach: its name, what the server sends on the channel of a running command, and what the error says.
type Breach = (&'static str, fn(&mut ServerConn, u32) -> io::Result<()>, &'static str);

const BREACHES: [Breach; 16] = [
    (
        "data beyond the window",
        |conn, channel| (0..3).try_for_each(|_| conn.packet_of_data(channel, &[0; 32 * 1024])),
        "where the window allows 0",
    ),
    (
        "stderr beyond the window",
        |conn, channel| (0..3).try_for_each(|_| conn.packet_of_extended_data(channel, 1, &[0; 32 * 1024])),
        "where the window allows 0",
    ),
    (
        "a packet larger than we accept",
        |conn, channel| conn.packet_of_data(channel, &[0; 32 * 1024 + 1]),
        "32769 bytes of data in one message",
    ),
    (
        "data for a channel that never was",
        |conn, _| conn.send(&message(msg::CHANNEL_DATA).u32(4242).string("?").done()),
        "CHANNEL_DATA for channel 4242, which does not exist",
    ),
    (
        "a request for a channel that never was",
        |conn, _| {
            conn.send(&message(msg::CHANNEL_REQUEST).u32(u32::MAX).string("exit-status").bool(false).u32(0).done())
        },
        "for channel 4294967295, which does not exist",
    ),
    (
        "a reply without a request",
        |conn, channel| send_on(conn, channel, msg::CHANNEL_SUCCESS),
        "a reply on channel 0, where no request waits for one",
    ),
    (
        "a refusal without a request",
        |conn, channel| send_on(conn, channel, msg::CHANNEL_FAILURE),
        "a reply on channel 0, where no request waits for one",
    ),
    (
        "a global reply without a request",
        |conn, _| conn.send(&[msg::REQUEST_SUCCESS]),
        "a reply to a global request, where none waits",
    ),
    (
        "data after EOF",
        |conn, channel| {
            conn.eof(channel)?;
            conn.packet_of_data(channel, b"late")
        },
        "4 bytes of data on channel 0 after its EOF",
    ),
    (
        "a second EOF",
        |conn, channel| {
            conn.eof(channel)?;
            conn.eof(channel)
        },
        "a second EOF on channel 0",
    ),
    (
        "a window of more than 4 GiB",
        |conn, channel| {
            let adjust = conn.on(channel, msg::CHANNEL_WINDOW_ADJUST)?.u32(u32::MAX).done();
            conn.send(&adjust)
        },
        "cannot grow by 4294967295",
    ),
    (
        "a confirmation of what is open",
        |conn, channel| {
            let again = conn.on(channel, msg::CHANNEL_OPEN_CONFIRMATION)?.u32(701).u32(1).u32(1).done();
            conn.send(&again)
        },
        "which we are not opening",
    ),
    (
        "a refusal of what is open",
        |conn, channel| {
            let refusal = conn.on(channel, msg::CHANNEL_OPEN_FAILURE)?.u32(1).string("").string("").done();
            conn.send(&refusal)
        },
        "which we are not opening",
    ),
    (
        "a message that is cut short",
        |conn, channel| {
            let cut = conn.on(channel, msg::CHANNEL_DATA)?.u32(1000).raw(b"few").done();
            conn.send(&cut)
        },
        "is cut short",
    ),
    (
        "an exit status of two bytes",
        |conn, channel| {
            let cut = conn.request(channel, "exit-status", false)?.raw(&[0, 7]).done();
            conn.send(&cut)
        },
        "is cut short",
    ),
    (
        "a string longer than everything",
        |conn, _| conn.send(&message(msg::GLOBAL_REQUEST).u32(u32::MAX).raw(b"x").done()),
        "is cut short",
    ),
];

fn send_on(conn: &mut ServerConn, channel: u32, number: u8) -> io::Result<()> {
    let payload = conn.on(channel, number)?.done();
    conn.send(&payload)
}

#[test]
fn every_breach_ends_the_connection_with_an_error_that_names_it() {
    within(PATIENCE, || {
        each(&BREACHES, |&(name, breach, says)| {
            let server = Rogue::logged_in(move |conn| {
                let (channel, _) = conn.expect_exec()?;
                breach(conn, channel)?;
                conn.wait_for_end().map(|_| ())
            });
            // A small window, so that it is full soon. Nobody reads.
            let client = builder(&server).window(64 * 1024, 64 * 1024).spare_channel(false).connect().expect("in");
            let mut child = client.exec_command("true").expect("started");
            eventually(PATIENCE, name, || client.lost().is_some());
            let text = match child.wait() {
                Err(error @ Error::Protocol(_)) => error.to_string(),
                other => panic!("{name}: {other:?}"),
            };
            assert!(text.contains(says), "{name}: {text}");
            assert!(text.starts_with("the server broke the SSH protocol: "), "{name}: {text}");
            server.wait().expect("the client goes");
        });
    });
}

#[test]
fn messages_that_cross_our_close_are_no_breach() {
    within(PATIENCE, || {
        let server = Rogue::logged_in(|conn| {
            let (channel, _) = conn.expect_exec()?;
            conn.close(channel)?;
            // As sshd does: a request on a channel that it has closed, before it knows that we have closed it too.
            let request = conn.request(channel, "keepalive@openssh.com", true)?.done();
            conn.send(&request)?;
            conn.serve(&mut Behaviour::new())
        });
        let client = client(&server);
        assert_eq!(client.sh("true").status().expect("ended"), ExitStatus::Unknown);
        assert!(client.sh("true").status().expect("ended").success());
    });
}

#[test]
fn commands_end_as_the_server_says() {
    within(PATIENCE, || {
        let server = Rogue::serving(|| {
            Behaviour::new().on_exec(|conn, channel, command| {
                conn.stderr(channel, b"to stderr\n")?;
                match command {
                    "signal" => conn.exit_signal(channel, "TERM", true, "shot at \u{1b}[31mdawn")?,
                    "status first" => {
                        conn.exit_status(channel, 42)?;
                        conn.data(channel, b"behind the status\n")?;
                    }
                    "eow" => {
                        conn.eow(channel)?;
                        conn.exit_status(channel, 0)?;
                    }
                    _ => {}
                }
                conn.close(channel)
            })
        });
        let client = client(&server);

        let out = client.sh("signal").output().expect("ended");
        let ExitStatus::Signal(signal) = &out.status else { panic!("{:?}", out.status) };
        let told = (signal.name.as_str(), signal.core_dumped, signal.message.as_str());
        assert_eq!(told, ("TERM", true, "shot at \u{1b}[31mdawn"));
        assert_eq!(out.status.to_string(), "signal TERM (core dumped): shot at \\u{1b}[31mdawn");
        assert_eq!(out.stderr, b"to stderr\n");

        let out = client.sh("status first").output().expect("ended");
        assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(42), &b"behind the status\n"[..]));

        let out = client.sh("nothing").output().expect("ended");
        assert_eq!((out.status, out.stderr.as_slice()), (ExitStatus::Unknown, &b"to stderr\n"[..]));

        let mut child = client.exec_command("eow").expect("started");
        let mut stdin = child.stdin.take().expect("piped");
        let refused = (0..1000).find_map(|_| stdin.write_all(&[0; 4096]).err()).expect("the command reads nothing");
        assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
        assert!(child.wait().expect("ended").success());
    });
}

#[test]
fn channels_that_nobody_expects_are_refused() {
    const KINDS: [&str; 5] = ["session", "forwarded-tcpip", "x11", "auth-agent@openssh.com", "\u{1b}[31mred"];
    within(PATIENCE, || {
        let server = Rogue::logged_in(|conn| {
            let (channel, _) = conn.expect_exec()?;
            // More than the client would keep unanswered.
            for number in 0..2000_u32 {
                let kind = KINDS[number as usize % KINDS.len()];
                let open = message(msg::CHANNEL_OPEN).string(kind).u32(number).u32(1 << 20).u32(1 << 15);
                conn.send(&open.raw(&[0; 40]).done())?;
                let refusal = conn.expect(msg::CHANNEL_OPEN_FAILURE)?;
                let mut fields = Reader::message(&refusal, msg::CHANNEL_OPEN_FAILURE)?;
                // The last is no type at all.
                let why = [reason::ADMINISTRATIVELY_PROHIBITED, 3][usize::from(kind == KINDS[4])];
                assert_eq!((fields.u32()?, fields.u32()?), (number, why), "{kind}");
            }
            conn.finish(channel, 0)?;
            conn.serve(&mut Behaviour::new())
        });
        assert!(client(&server).sh("true").status().expect("ended").success());
    });
}

#[test]
fn questions_of_the_server_are_answered() {
    within(PATIENCE, || {
        let server = Rogue::logged_in(|conn| {
            assert!(!conn.ask_global("keepalive@openssh.com")?);
            assert!(!conn.ask_global("no-such-request@threadline.test")?);
            let (channel, _) = conn.expect_exec()?;
            conn.keepalive(channel)?;
            conn.ping(b"are you there?")?;
            conn.ping(&[7; 30_000])?;
            // More at once than an honest server asks, and within the limit.
            for _ in 0..2000 {
                conn.send(&message(msg::GLOBAL_REQUEST).string("keepalive@openssh.com").bool(true).done())?;
            }
            for _ in 0..2000 {
                conn.expect(msg::REQUEST_FAILURE)?;
            }
            conn.finish(channel, 0)?;
            conn.serve(&mut Behaviour::new())
        });
        assert!(client(&server).sh("true").status().expect("ended").success());
    });
}

#[test]
fn a_server_that_asks_and_does_not_read_the_answers_is_sent_away() {
    within(PATIENCE, || {
        let server = Rogue::logged_in(|conn| {
            conn.expect_exec()?;
            let ping = message(msg::PING).string([0; 32_000]).done();
            // 32 MB of answers, more than sockets hold. Fails when the client has gone.
            let sent = (0..1000).try_for_each(|_| conn.send(&ping));
            assert!(sent.is_err(), "the client takes everything");
            Ok(())
        });
        let client = builder(&server).spare_channel(false).connect().expect("logged in");
        let (_, status) = outcome(client.exec_command("true").expect("started"));
        let error = status.expect_err("the connection has ended");
        assert!(error.to_string().contains("the peer asks but does not read"), "{error}");
    });
}

#[test]
fn a_flood_that_wants_no_answer_holds_up_nobody() {
    within(PATIENCE, || {
        let server = Rogue::logged_in(|conn| {
            let (channel, _) = conn.expect_exec()?;
            for _ in 0..20_000 {
                conn.send(&message(msg::GLOBAL_REQUEST).string("noise@threadline.test").bool(false).done())?;
            }
            conn.data(channel, b"after the flood\n")?;
            conn.finish(channel, 0)?;
            conn.serve(&mut Behaviour::new())
        });
        let out = client(&server).sh("true").output().expect("ended");
        assert_eq!(out.stdout, b"after the flood\n");
    });
}

#[test]
fn a_window_of_one_byte_and_packets_of_one_byte_carry_everything() {
    within(PATIENCE, || {
        let server = Rogue::logged_in(|conn| {
            let open = conn.expect_open()?;
            let channel = conn.confirm_with(&open, 1, 1)?;
            let exec = conn.expect_request("exec")?;
            conn.success(&exec)?;
            let mut taken = Vec::new();
            while taken != b"hello, world" {
                let data = conn.expect(msg::CHANNEL_DATA)?;
                let mut fields = Reader::message(&data, msg::CHANNEL_DATA)?;
                assert_eq!(fields.u32()?, channel);
                let bytes = fields.string()?;
                assert_eq!(bytes.len(), 1);
                taken.extend_from_slice(bytes);
                conn.grant(channel, 1)?;
            }
            conn.expect(msg::CHANNEL_EOF)?;
            conn.finish(channel, 0)?;
            conn.serve(&mut Behaviour::new())
        });
        let client = builder(&server).spare_channel(false).connect().expect("logged in");
        let mut child = client.exec_command("cat").expect("started");
        child.stdin.take().expect("piped").write_all(b"hello, world").expect("queued");
        assert!(child.wait().expect("ended").success());
    });
}

#[test]
fn a_channel_without_packets_holds_up_its_writer_only() {
    within(PATIENCE, || {
        let server = Rogue::logged_in(|conn| {
            let open = conn.expect_open()?;
            conn.confirm_with(&open, 1 << 20, 0)?;
            let exec = conn.expect_request("exec")?;
            conn.success(&exec)?;
            conn.serve(&mut Behaviour::new())
        });
        let client = builder(&server).spare_channel(false).connect().expect("logged in");
        let mut child = client.exec_command("cat").expect("started");
        let mut stdin = child.stdin.take().expect("piped");
        let writer = thread::spawn(move || {
            stdin.set_write_timeout(Some(Duration::from_millis(200)));
            stdin
                .write_all(b"nothing of this can be sent")
                .and_then(|()| stdin.flush())
                .expect_err("no packet is allowed")
        });
        assert_eq!(writer.join().expect("returns").kind(), io::ErrorKind::TimedOut);
        assert_eq!(client.sh("echo neighbour").output().expect("ended").stdout, b"neighbour\n");
    });
}
