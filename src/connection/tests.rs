//! The protocol, message by message, against bytes written by hand from the RFC.

use super::*;

/// What the peer calls the channels that [`opened`] makes.
const PEER: u32 = 7;

fn encoded(message: Message<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

fn receive(connection: &mut Connection, message: Message<'_>) -> Result<(), Violation> {
    connection.received(&encoded(message)).map(drop)
}

fn sent(connection: &mut Connection) -> Vec<Vec<u8>> {
    std::iter::from_fn(|| connection.next_message()).collect()
}

fn confirmation(recipient: u32) -> Message<'static> {
    Message::OpenConfirmation { recipient, sender: PEER, window: 100, max_packet: 50, data: b"" }
}

/// A connection with one open channel, on which the peer may send `window` bytes and we 100, 50 at a time.
pub(super) fn opened(window: u32) -> (Connection, ChannelId) {
    let mut connection = Connection::new();
    let id = connection.open("session", b"", window);
    assert_eq!(connection.received(&encoded(confirmation(0))), Ok(Event::Opened { channel: id }));
    sent(&mut connection);
    (connection, id)
}

/// One message of each kind, for channel 0.
pub(super) fn sample(which: u8) -> Vec<u8> {
    let recipient = 0;
    encoded(match which {
        0 => Message::GlobalRequest { name: b"keepalive@openssh.com", want_reply: true, data: b"x" },
        1 => Message::RequestSuccess { data: b"x" },
        2 => Message::RequestFailure,
        3 => Message::Open { kind: b"forwarded-tcpip", sender: 1, window: 2, max_packet: 3, data: b"x" },
        4 => confirmation(recipient),
        5 => Message::OpenFailure { recipient, reason: 1, description: b"no" },
        6 => Message::WindowAdjust { recipient, bytes: 1 },
        7 => Message::Data { recipient, data: b"data" },
        8 => Message::ExtendedData { recipient, data_type: 1, data: b"data" },
        9 => Message::Eof { recipient },
        10 => Message::Close { recipient },
        11 => Message::Request { recipient, name: b"exit-status", want_reply: false, data: &[0, 0, 0, 1] },
        12 => {
            let data = b"\0\0\0\x04TERM\x01\0\0\0\x04done\0\0\0\0";
            Message::Request { recipient, name: b"exit-signal", want_reply: true, data }
        }
        13 => Message::Success { recipient },
        14 => Message::Failure { recipient },
        _ => Message::Ping { data: b"hello" },
    })
}

#[test]
fn an_open_is_written_as_in_rfc_4254_5_1() {
    let mut connection = Connection::new();
    let id = connection.open("session", b"", 0x0020_0000);
    assert_eq!(sent(&mut connection), [b"\x5a\0\0\0\x07session\0\0\0\0\0\x20\0\0\0\0\x80\0".to_vec()]);
    assert!(!connection.is_open(id));
    assert_eq!(connection.sendable(id), 0);
    assert_eq!(connection.granted(id), 0x0020_0000);
    assert_eq!(id.to_string(), "#0");
}

#[test]
fn opens_are_answered_in_any_order() {
    let mut connection = Connection::new();
    let ids: Vec<_> = (0..3).map(|_| connection.open("session", b"", 0)).collect();
    let refusal = b"\x5c\0\0\0\x01\0\0\0\x04\0\0\0\x04full\0\0\0\x02en";
    assert_eq!(connection.received(&encoded(confirmation(2))), Ok(Event::Opened { channel: ids[2] }));
    assert_eq!(
        connection.received(refusal),
        Ok(Event::OpenFailed { channel: ids[1], reason: 4, description: b"full" })
    );
    assert_eq!(connection.received(&encoded(confirmation(0))), Ok(Event::Opened { channel: ids[0] }));
    assert_eq!(ids.iter().map(|&id| connection.is_open(id)).collect::<Vec<_>>(), [true, false, true]);
    assert_eq!(connection.channel_count(), 2);
}

#[test]
fn what_is_asked_of_a_channel_before_it_is_open_goes_out_when_it_is() {
    let mut connection = Connection::new();
    let id = connection.open("session", b"", 0);
    assert!(connection.request(id, &ChannelRequest::Shell, true));
    connection.grant(id, 5);
    connection.grant(id, 6);
    connection.eof(id);
    connection.close(id);
    assert!(!connection.request(id, &ChannelRequest::Shell, true));
    assert_eq!(sent(&mut connection).len(), 1, "only the open");
    assert_eq!(connection.received(&encoded(confirmation(0))), Ok(Event::Opened { channel: id }));
    assert!(!connection.is_open(id));
    assert_eq!(
        sent(&mut connection),
        [&b"\x5d\0\0\0\x07\0\0\0\x0b"[..], b"\x62\0\0\0\x07\0\0\0\x05shell\x01", b"\x60\0\0\0\x07", b"\x61\0\0\0\x07"]
    );
}

#[test]
fn a_refused_open_takes_what_waited_for_it_along() {
    let mut connection = Connection::new();
    let id = connection.open("session", b"", 0);
    connection.close(id);
    sent(&mut connection);
    let refusal = encoded(Message::OpenFailure { recipient: 0, reason: 1, description: b"" });
    assert_eq!(connection.received(&refusal), Ok(Event::OpenFailed { channel: id, reason: 1, description: b"" }));
    assert!(!connection.has_messages());
    assert_eq!(connection.channel_count(), 0);
}

#[test]
fn requests_are_written_as_in_rfc_4254_6() {
    let pty = ChannelRequest::Pty { term: "vt100", columns: 80, rows: 24, width_px: 640, height_px: 480, modes: b"\0" };
    let size = ChannelRequest::WindowChange { columns: 1, rows: 2, width_px: 3, height_px: 4 };
    let table: [(ChannelRequest<'_>, bool, &[u8]); 11] = [
        (ChannelRequest::Env { name: b"A", value: b"\xff" }, true, b"\0\0\0\x03env\x01\0\0\0\x01A\0\0\0\x01\xff"),
        (pty, true, b"\0\0\0\x07pty-req\x01\0\0\0\x05vt100\0\0\0\x50\0\0\0\x18\0\0\x02\x80\0\0\x01\xe0\0\0\0\x01\0"),
        (ChannelRequest::Shell, true, b"\0\0\0\x05shell\x01"),
        (ChannelRequest::Exec { command: b"ls" }, true, b"\0\0\0\x04exec\x01\0\0\0\x02ls"),
        (ChannelRequest::Subsystem { name: "sftp" }, true, b"\0\0\0\x09subsystem\x01\0\0\0\x04sftp"),
        (size, false, b"\0\0\0\x0dwindow-change\0\0\0\0\x01\0\0\0\x02\0\0\0\x03\0\0\0\x04"),
        (ChannelRequest::Signal { name: "INT" }, false, b"\0\0\0\x06signal\0\0\0\0\x03INT"),
        (ChannelRequest::Break { millis: 500 }, true, b"\0\0\0\x05break\x01\0\0\x01\xf4"),
        (ChannelRequest::Eow, false, b"\0\0\0\x0feow@openssh.com\0"),
        (ChannelRequest::AuthAgent, true, b"\0\0\0\x1aauth-agent-req@openssh.com\x01"),
        (ChannelRequest::Other { name: "x@y", data: b"\x01\x02" }, true, b"\0\0\0\x03x@y\x01\x01\x02"),
    ];
    let (mut connection, id) = opened(0);
    for (request, want_reply, tail) in table {
        assert!(connection.request(id, &request, want_reply));
        let expected = [b"\x62\0\0\0\x07", tail].concat();
        assert_eq!(connection.next_message(), Some(expected), "{request:?}");
    }
}

#[test]
fn replies_go_to_the_channel_and_keep_the_order_of_requests() {
    let (mut connection, first) = opened(0);
    let second = connection.open("session", b"", 0);
    receive(&mut connection, confirmation(1)).unwrap();
    for id in [first, second, first] {
        assert!(connection.request(id, &ChannelRequest::Shell, true));
    }
    assert!(connection.request(first, &ChannelRequest::Shell, false));
    let replies = [(1, true, second), (0, false, first), (0, true, first)];
    for (recipient, success, channel) in replies {
        let reply = if success { Message::Success { recipient } } else { Message::Failure { recipient } };
        assert_eq!(connection.received(&encoded(reply)), Ok(Event::Reply { channel, success }));
    }
    assert_eq!(
        receive(&mut connection, Message::Success { recipient: 0 }),
        Err(Violation::ReplyWithoutRequest { channel: 0 })
    );
}

#[test]
fn global_requests_are_answered_in_order() {
    let mut connection = Connection::new();
    connection.global_request("tcpip-forward", &tcpip_forward("", 0), true);
    connection.global_request("keepalive@openssh.com", b"", true);
    connection.global_request("no-more-sessions@openssh.com", b"", false);
    assert_eq!(connection.next_message().unwrap(), b"\x50\0\0\0\x0dtcpip-forward\x01\0\0\0\0\0\0\0\0");
    let reply = connection.received(b"\x51\0\0\x1f\x90").unwrap();
    assert_eq!(reply, Event::GlobalReply { success: true, data: b"\0\0\x1f\x90" });
    assert_eq!(allocated_port(b"\0\0\x1f\x90"), Ok(8080));
    assert_eq!(connection.received(b"\x52"), Ok(Event::GlobalReply { success: false, data: b"" }));
    assert_eq!(connection.received(b"\x52"), Err(Violation::GlobalReplyWithoutRequest));
}

#[test]
fn data_is_pointed_at_where_it_lies() {
    let (mut connection, channel) = opened(10);
    let stdout = b"\x5e\0\0\0\0\0\0\0\x03abc";
    let stderr = b"\x5f\0\0\0\0\0\0\0\x01\0\0\0\x02de";
    let unknown = b"\x5f\0\0\0\0\0\0\0\x02\0\0\0\x01f";
    let empty = b"\x5e\0\0\0\0\0\0\0\0";
    assert_eq!(connection.received(stdout), Ok(Event::Data { channel, stream: Stream::Stdout, range: 9..12 }));
    assert_eq!(connection.received(stderr), Ok(Event::Data { channel, stream: Stream::Stderr, range: 13..15 }));
    assert_eq!(connection.received(unknown), Ok(Event::Ignored { channel, bytes: 1 }));
    assert_eq!(connection.received(empty), Ok(Event::Nothing));
    assert_eq!(connection.granted(channel), 4, "all of it used up window");
}

#[test]
fn data_goes_out_within_the_peers_window_and_packet_size() {
    let (mut connection, id) = opened(0);
    assert_eq!(connection.sendable(id), 50);
    assert_eq!(connection.data_header(id, 50).as_ref(), b"\x5e\0\0\0\x07\0\0\0\x32");
    assert_eq!(connection.data_header(id, 40).as_ref(), b"\x5e\0\0\0\x07\0\0\0\x28");
    assert_eq!(connection.sendable(id), 10);
    connection.data_header(id, 10);
    assert_eq!(connection.sendable(id), 0);
    let adjust = b"\x5d\0\0\0\0\0\0\0\x01";
    assert_eq!(connection.received(adjust), Ok(Event::Writable { channel: id }));
    assert_eq!(connection.sendable(id), 1);
    connection.eof(id);
    assert_eq!(connection.sendable(id), 0);
    assert_eq!(connection.received(adjust), Ok(Event::Nothing), "nothing is left to be written");
}

#[test]
#[should_panic(expected = "51 bytes of data for channel #0, where 50 may be sent")]
fn data_past_what_may_be_sent_is_a_fault_of_ours() {
    let (mut connection, id) = opened(0);
    connection.data_header(id, 51);
}

#[test]
fn grants_add_up_to_one_adjustment_and_never_pass_the_limit() {
    let (mut connection, id) = opened(10);
    connection.grant(id, 0);
    assert!(!connection.has_messages());
    connection.grant(id, 5);
    connection.grant(id, 7);
    assert_eq!(connection.granted(id), 22);
    assert_eq!(sent(&mut connection), [b"\x5d\0\0\0\x07\0\0\0\x0c"]);
    connection.grant(id, u32::MAX);
    connection.grant(id, 1);
    assert_eq!(connection.granted(id), u32::MAX);
    assert_eq!(sent(&mut connection), [b"\x5d\0\0\0\x07\xff\xff\xff\xe9"]);
}

#[test]
fn a_grant_counts_only_when_its_message_has_left() {
    let (mut connection, id) = opened(1);
    connection.grant(id, 10);
    let data = Message::Data { recipient: 0, data: b"too" };
    assert_eq!(
        receive(&mut connection, data),
        Err(Violation::WindowExceeded { channel: 0, bytes: 3, window: 1 }),
        "the peer cannot know of it"
    );
    let (mut connection, id) = opened(1);
    connection.grant(id, 10);
    sent(&mut connection);
    receive(&mut connection, data).unwrap();
    assert_eq!(connection.granted(id), 8);
}

#[test]
fn eof_and_close_go_out_once_and_nothing_after_close() {
    let (mut connection, id) = opened(10);
    connection.eof(id);
    connection.eof(id);
    connection.close(id);
    connection.close(id);
    connection.eof(id);
    connection.grant(id, 5);
    assert!(!connection.request(id, &ChannelRequest::Signal { name: "TERM" }, false));
    let ping = Message::Request { recipient: 0, name: b"keepalive@openssh.com", want_reply: true, data: b"" };
    receive(&mut connection, ping).unwrap();
    assert_eq!(sent(&mut connection), [b"\x60\0\0\0\x07", b"\x61\0\0\0\x07"]);
    assert_eq!((connection.is_open(id), connection.sendable(id), connection.channel_count()), (false, 0, 1));
}

#[test]
fn a_closed_channel_counts_and_drops_what_still_comes_and_hears_how_the_command_ended() {
    let (mut connection, channel) = opened(10);
    connection.close(channel);
    let data = encoded(Message::Data { recipient: 0, data: b"late" });
    assert_eq!(connection.received(&data), Ok(Event::Ignored { channel, bytes: 4 }));
    assert_eq!(connection.granted(channel), 6);
    assert_eq!(connection.received(&sample(11)), Ok(Event::ExitStatus { channel, status: 1 }));
    assert_eq!(connection.received(b"\x60\0\0\0\0"), Ok(Event::Eof { channel }));
    assert_eq!(connection.received(b"\x61\0\0\0\0"), Ok(Event::Closed { channel }));
    assert_eq!(sent(&mut connection), [b"\x61\0\0\0\x07"], "our CLOSE only once");
}

#[test]
fn a_close_of_the_peer_is_answered_and_ends_the_handle_and_not_its_successor() {
    let (mut connection, old) = opened(10);
    assert_eq!(connection.received(b"\x61\0\0\0\0"), Ok(Event::Closed { channel: old }));
    assert_eq!(connection.channel_count(), 0);
    let new = connection.open("session", b"", 3);
    assert_ne!(old, new);
    assert_eq!(old.to_string(), new.to_string(), "the number is used again");
    assert_eq!(sent(&mut connection)[0], b"\x61\0\0\0\x07", "the CLOSE is in front of the next OPEN");
    receive(&mut connection, confirmation(0)).unwrap();
    connection.close(old);
    connection.eof(old);
    connection.grant(old, 9);
    assert!(!connection.request(old, &ChannelRequest::Shell, true));
    assert!(!connection.has_messages());
    assert_eq!((connection.granted(new), connection.granted(old), connection.sendable(old)), (3, 0, 0));
    assert!(connection.is_open(new) && !connection.is_open(old));
}

#[test]
fn the_end_of_a_command_is_told() {
    let (mut connection, channel) = opened(0);
    assert_eq!(
        connection.received(b"\x62\0\0\0\0\0\0\0\x0bexit-status\0\0\0\0\x03"),
        Ok(Event::ExitStatus { channel, status: 3 })
    );
    assert_eq!(
        connection.received(&sample(12)),
        Ok(Event::ExitSignal { channel, name: b"TERM", core_dumped: true, message: b"done" })
    );
    assert_eq!(connection.received(b"\x62\0\0\0\0\0\0\0\x0feow@openssh.com\0"), Ok(Event::Eow { channel }));
    assert_eq!(sent(&mut connection), [b"\x63\0\0\0\x07"], "only exit-signal wanted a reply");
}

#[test]
fn what_we_do_not_serve_is_refused_if_an_answer_is_wanted() {
    let (mut connection, _) = opened(0);
    let table: [(&[u8], Option<&[u8]>); 8] = [
        (b"\x50\0\0\0\x15keepalive@openssh.com\x01", Some(b"\x52")),
        (b"\x50\0\0\0\x15keepalive@openssh.com\0", None),
        (b"\x62\0\0\0\0\0\0\0\x15keepalive@openssh.com\x01", Some(b"\x64\0\0\0\x07")),
        (b"\x62\0\0\0\0\0\0\0\x15keepalive@openssh.com\0", None),
        (b"\xc0\0\0\0\x02hi", Some(b"\xc1\0\0\0\x02hi")),
        (b"\xc1\0\0\0\x02hi", None),
        (b"\x65anything", None),
        (b"\xbf", None),
    ];
    for (payload, answer) in table {
        assert_eq!(connection.received(payload), Ok(Event::Nothing), "{payload:?}");
        assert_eq!(connection.next_message().as_deref(), answer, "{payload:?}");
    }
}

#[test]
fn host_keys_are_listed() {
    let mut connection = Connection::new();
    let event = connection.received(b"\x50\0\0\0\x17hostkeys-00@openssh.com\0\0\0\0\x01A\0\0\0\x02BC");
    let data = b"\0\0\0\x01A\0\0\0\x02BC";
    assert_eq!(event, Ok(Event::HostKeys { data }));
    assert_eq!(host_keys(data), Ok(vec![&b"A"[..], b"BC"]));
    assert_eq!(
        host_keys(&data[..10]),
        Err(Violation::Truncated { message: "hostkeys-00@openssh.com", field: "hostkey" })
    );
    assert!(!connection.has_messages());
}

#[test]
fn a_channel_of_the_peer_is_accepted_or_refused() {
    let mut connection = Connection::new();
    let open = b"\x5a\0\0\0\x0fforwarded-tcpip\0\0\0\x09\0\0\0\x64\0\0\0\x32data";
    let mut ask = || match connection.received(open) {
        Ok(Event::OpenRequested { channel, kind: b"forwarded-tcpip", data: b"data" }) => channel,
        other => panic!("{other:?}"),
    };
    let (first, second, third) = (ask(), ask(), ask());
    for id in [first, second, third] {
        assert!(!connection.is_open(id));
        assert!(!connection.request(id, &ChannelRequest::Shell, true));
        connection.grant(id, 1);
        connection.eof(id);
        assert_eq!((connection.sendable(id), connection.granted(id)), (0, 0));
    }
    assert!(!connection.has_messages());
    connection.accept(first, 0x0102);
    connection.accept(first, 0x0304);
    connection.refuse(first, OpenFailure::ConnectFailed, "too late");
    connection.refuse(second, OpenFailure::UnknownChannelType, "what?");
    connection.close(third);
    assert_eq!(
        sent(&mut connection),
        [
            &b"\x5b\0\0\0\x09\0\0\0\0\0\0\x01\x02\0\0\x80\0"[..],
            b"\x5c\0\0\0\x09\0\0\0\x03\0\0\0\x05what?\0\0\0\0",
            b"\x5c\0\0\0\x09\0\0\0\x01\0\0\0\x07refused\0\0\0\0",
        ]
    );
    assert!(connection.is_open(first));
    assert_eq!((connection.channel_count(), connection.sendable(first)), (1, 50));
}

#[test]
fn what_crossed_our_close_is_no_violation_and_reaches_no_successor() {
    // sshd's ClientAlive picks any channel it has, even one on which it has sent CLOSE
    let recipient = 0;
    let late = [
        Message::Request { recipient, name: b"keepalive@openssh.com", want_reply: true, data: b"" },
        Message::WindowAdjust { recipient, bytes: u32::MAX },
        Message::Success { recipient },
        Message::Failure { recipient },
    ];
    let (mut connection, _) = opened(9);
    receive(&mut connection, Message::Close { recipient }).unwrap();
    sent(&mut connection);
    for message in late {
        assert_eq!(connection.received(&encoded(message)), Ok(Event::Nothing));
    }
    let successor = connection.open("session", b"", 9);
    assert!(connection.request(successor, &ChannelRequest::Shell, true));
    for message in late {
        assert_eq!(connection.received(&encoded(message)), Ok(Event::Nothing));
    }
    assert_eq!(sent(&mut connection).len(), 1, "the open and no reply");
    receive(&mut connection, confirmation(recipient)).unwrap();
    assert_eq!((connection.is_open(successor), connection.sendable(successor)), (true, 50));
    let reply = encoded(Message::Failure { recipient });
    assert_eq!(connection.received(&reply), Ok(Event::Reply { channel: successor, success: false }));

    let (mut connection, _) = opened(9);
    receive(&mut connection, Message::Close { recipient }).unwrap();
    let data = Message::Data { recipient, data: b"x" };
    let violation = Violation::UnknownChannel { message: "CHANNEL_DATA", channel: 0 };
    assert_eq!(receive(&mut connection, data), Err(violation));
}

#[test]
fn buffers_are_used_again() {
    let (mut connection, id) = opened(0);
    connection.grant(id, 1);
    let message = connection.next_message().unwrap();
    let at = message.as_ptr();
    connection.recycle(message);
    connection.grant(id, 1);
    let next = connection.next_message().unwrap();
    assert_eq!(next.as_ptr(), at);
}

#[test]
fn every_breach_is_named() {
    let long = vec![0; MAX_PACKET as usize + 1];
    let adjust = |bytes| Message::WindowAdjust { recipient: 0, bytes };
    let table = [
        (Message::Eof { recipient: 1 }, Violation::UnknownChannel { message: "CHANNEL_EOF", channel: 1 }),
        (confirmation(u32::MAX), {
            Violation::UnknownChannel { message: "CHANNEL_OPEN_CONFIRMATION", channel: u32::MAX }
        }),
        (confirmation(0), Violation::NotOpening { message: "CHANNEL_OPEN_CONFIRMATION", channel: 0 }),
        (
            Message::OpenFailure { recipient: 0, reason: 1, description: b"" },
            Violation::NotOpening { message: "CHANNEL_OPEN_FAILURE", channel: 0 },
        ),
        (
            Message::Data { recipient: 0, data: &long },
            Violation::PacketTooLarge { channel: 0, bytes: 32769, limit: 32768 },
        ),
        (
            Message::Data { recipient: 0, data: &long[..101] },
            Violation::WindowExceeded { channel: 0, bytes: 101, window: 100 },
        ),
        (
            Message::ExtendedData { recipient: 0, data_type: 9, data: &long[..101] },
            Violation::WindowExceeded { channel: 0, bytes: 101, window: 100 },
        ),
        (adjust(u32::MAX - 99), Violation::WindowOverflow { channel: 0, window: 100, bytes: u32::MAX - 99 }),
        (Message::Success { recipient: 0 }, Violation::ReplyWithoutRequest { channel: 0 }),
        (Message::RequestSuccess { data: b"" }, Violation::GlobalReplyWithoutRequest),
        (
            Message::Request { recipient: 0, name: b"exit-status", want_reply: false, data: b"\0" },
            Violation::Truncated { message: "exit-status", field: "exit_status" },
        ),
        (Message::Unknown { number: 79 }, Violation::BelowConnection { number: 79 }),
    ];
    for (message, violation) in table {
        let (mut connection, _) = opened(100);
        assert_eq!(receive(&mut connection, message), Err(violation.clone()));
    }
    assert_eq!(Connection::new().received(b""), Err(Violation::Empty));
}

#[test]
fn nothing_but_its_close_follows_an_eof() {
    let (mut connection, _) = opened(100);
    receive(&mut connection, Message::Eof { recipient: 0 }).unwrap();
    let data = Message::Data { recipient: 0, data: b"x" };
    assert_eq!(receive(&mut connection, data), Err(Violation::DataAfterEof { channel: 0, bytes: 1 }));
    let eof = Message::Eof { recipient: 0 };
    assert_eq!(receive(&mut connection, eof), Err(Violation::EofAfterEof { channel: 0 }));
    receive(&mut connection, Message::Close { recipient: 0 }).unwrap();
}

#[test]
fn a_channel_that_is_not_open_takes_only_its_answer() {
    for which in (6..=14).filter(|which| ![4, 5].contains(which)) {
        let mut opening = Connection::new();
        opening.open("session", b"", 100);
        let mut requested = Connection::new();
        requested.received(&sample(3)).unwrap();
        for mut connection in [opening, requested] {
            let violation = connection.received(&sample(which)).unwrap_err();
            assert!(matches!(violation, Violation::NotOpen { channel: 0, .. }), "{which}: {violation}");
        }
    }
}

#[test]
fn a_peer_that_asks_and_does_not_read_is_given_up() {
    let mut connection = Connection::new();
    for _ in 0..4096 {
        connection.received(&sample(0)).unwrap();
    }
    assert_eq!(connection.received(&sample(0)), Err(Violation::ReplyFlood { replies: 4097, bytes: 4097 }));

    let mut connection = Connection::new();
    let data = vec![0; 30_000];
    let ping = encoded(Message::Ping { data: &data });
    let violation = (0..100).find_map(|_| connection.received(&ping).err());
    assert_eq!(violation, Some(Violation::ReplyFlood { replies: 35, bytes: 35 * 30_005 }));

    let mut connection = Connection::new();
    for _ in 0..10_000 {
        connection.received(&ping).unwrap();
        assert!(connection.next_message().is_some(), "who reads may ask for ever");
    }
}

#[test]
fn a_peer_that_opens_and_opens_is_given_up() {
    let mut connection = Connection::new();
    for _ in 0..1024 {
        connection.received(&sample(3)).unwrap();
    }
    assert_eq!(connection.received(&sample(3)), Err(Violation::OpenFlood { opens: 1025 }));

    // refusing each at once does not help a peer that reads none of the refusals
    let mut connection = Connection::new();
    let flood = (0..5000).find_map(|_| match connection.received(&sample(3)) {
        Ok(Event::OpenRequested { channel, .. }) => {
            connection.refuse(channel, OpenFailure::AdministrativelyProhibited, "");
            None
        }
        other => other.err(),
    });
    assert!(matches!(flood, Some(Violation::ReplyFlood { replies: 4097, .. })), "{flood:?}");
}

#[test]
fn a_violation_says_on_which_channel_and_how_much() {
    let violation = Violation::WindowExceeded { channel: 3, bytes: 500, window: 20 };
    assert_eq!(violation.to_string(), "500 bytes of data on channel 3, where the window allows 20");
    let violation = Violation::Truncated { message: "CHANNEL_OPEN", field: "channel type" };
    assert_eq!(violation.to_string(), "CHANNEL_OPEN is cut short in its field \"channel type\"");
}
