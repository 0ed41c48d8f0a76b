//! Two ends wired to each other: whatever they do in whatever order, nothing is lost, doubled or left behind.

use std::collections::{HashMap, VecDeque};

use proptest::prelude::*;

use super::wire::Message;
use super::{ChannelId, ChannelRequest, Connection, Event, OpenFailure, Stream};

#[derive(Debug, Clone)]
enum Op {
    Open {
        window: u32,
    },
    Answer {
        pick: usize,
        accept: bool,
        window: u32,
    },
    Request {
        pick: usize,
        known: bool,
        want_reply: bool,
    },
    GlobalRequest {
        known: bool,
        want_reply: bool,
    },
    Ping,
    Grant {
        pick: usize,
        bytes: u32,
    },
    Send {
        pick: usize,
        len: usize,
        stream: Stream,
    },
    Eof {
        pick: usize,
    },
    Close {
        pick: usize,
    },
    /// Everything queued goes onto the wire.
    Flush,
    /// Some of what is on the wire towards this end arrives.
    Deliver {
        messages: usize,
    },
}

/// Windows that run out, and ones at the edge of uint32.
fn window() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..200u32, 3 => 1000..100_000u32, 1 => Just(u32::MAX), 1 => Just(u32::MAX / 2 + 1)]
}

fn op() -> impl Strategy<Value = Op> {
    let pick = any::<usize>;
    let stream = prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)];
    prop_oneof![
        2 => window().prop_map(|window| Op::Open { window }),
        3 => (pick(), prop::bool::weighted(0.8), window())
            .prop_map(|(pick, accept, window)| Op::Answer { pick, accept, window }),
        3 => (pick(), any::<bool>(), any::<bool>())
            .prop_map(|(pick, known, want_reply)| Op::Request { pick, known, want_reply }),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(known, want_reply)| Op::GlobalRequest { known, want_reply }),
        1 => Just(Op::Ping),
        3 => (pick(), window()).prop_map(|(pick, bytes)| Op::Grant { pick, bytes }),
        6 => (pick(), 0..70_000usize, stream).prop_map(|(pick, len, stream)| Op::Send { pick, len, stream }),
        1 => pick().prop_map(|pick| Op::Eof { pick }),
        1 => pick().prop_map(|pick| Op::Close { pick }),
        4 => Just(Op::Flush),
        6 => (1..6usize).prop_map(|messages| Op::Deliver { messages }),
    ]
}

/// What one end knows of one channel.
#[derive(Debug, Default)]
struct Record {
    /// The same at both ends.
    key: u64,
    ours: bool,
    answered: bool,
    ended: bool,
    closed_by_us: bool,
    eof_received: bool,
    sent: [u64; 2],
    received: [u64; 2],
    ignored: u64,
    /// The window we gave and have not seen used.
    granted: u64,
    /// The window we got and have not used.
    peer_window: u64,
    /// The answers that our requests must get, in order.
    expected: VecDeque<bool>,
    replies: u64,
    /// Requests of the peer that arrived when we could answer.
    answerable: u64,
}

#[derive(Default)]
struct End {
    name: u64,
    connection: Connection,
    ids: Vec<ChannelId>,
    records: HashMap<ChannelId, Record>,
    unanswered: Vec<ChannelId>,
    expected_globals: VecDeque<bool>,
    pings: u64,
    pongs: u64,
    /// What is on its way from this end.
    wire: VecDeque<Vec<u8>>,
}

impl End {
    fn pick(&self, pick: usize) -> Option<ChannelId> {
        self.ids.get(pick.checked_rem(self.ids.len())?).copied()
    }

    fn record(&mut self, id: ChannelId) -> &mut Record {
        self.records.get_mut(&id).expect("an event for a channel that exists")
    }

    fn add(&mut self, id: ChannelId, record: Record) {
        assert!(self.records.insert(id, record).is_none(), "an id is never given twice");
        self.ids.push(id);
    }

    fn act(&mut self, op: &Op) {
        match *op {
            Op::Open { window } => self.open(window),
            Op::Answer { pick, accept, window } => self.answer(pick, accept, window),
            Op::Request { pick, known, want_reply } => self.request(pick, known, want_reply),
            Op::GlobalRequest { known, want_reply } => {
                let name = if known { "hostkeys-00@openssh.com" } else { "keepalive@openssh.com" };
                self.connection.global_request(name, b"", want_reply);
                self.expected_globals.extend(want_reply.then_some(known));
            }
            Op::Ping => {
                self.flush();
                self.wire.push_back(b"\xc0\0\0\0\x02hi".to_vec());
                self.pings += 1;
            }
            Op::Grant { pick, bytes } => self.grant(pick, bytes),
            Op::Send { pick, len, stream } => self.send(pick, len, stream),
            Op::Eof { pick } => {
                if let Some(id) = self.pick(pick) {
                    self.connection.eof(id);
                    assert_eq!(self.connection.sendable(id), 0);
                }
            }
            Op::Close { pick } => {
                if let Some(id) = self.pick(pick) {
                    self.close(id);
                }
            }
            Op::Flush => self.flush(),
            Op::Deliver { .. } => unreachable!("needs both ends"),
        }
    }

    fn open(&mut self, window: u32) {
        let key = self.name << 32 | self.ids.len() as u64;
        let id = self.connection.open("session", &key.to_be_bytes(), window);
        self.add(id, Record { key, ours: true, granted: window.into(), ..Record::default() });
    }

    fn answer(&mut self, pick: usize, accept: bool, window: u32) {
        let Some(at) = pick.checked_rem(self.unanswered.len()) else { return };
        let id = self.unanswered.swap_remove(at);
        if accept {
            self.connection.accept(id, window);
            self.record(id).granted = window.into();
        } else {
            self.connection.refuse(id, OpenFailure::ResourceShortage, "no");
            self.record(id).ended = true;
        }
        self.record(id).answered = true;
    }

    fn request(&mut self, pick: usize, known: bool, want_reply: bool) {
        let Some(id) = self.pick(pick) else { return };
        let request = if known {
            ChannelRequest::Other { name: "exit-status", data: &[0, 0, 0, 7] }
        } else {
            ChannelRequest::Subsystem { name: "sftp" }
        };
        let queued = self.connection.request(id, &request, want_reply);
        if queued && want_reply {
            self.record(id).expected.push_back(known);
        }
    }

    fn grant(&mut self, pick: usize, bytes: u32) {
        let Some(id) = self.pick(pick) else { return };
        let unanswered = self.unanswered.contains(&id);
        self.connection.grant(id, bytes);
        let record = self.record(id);
        if !(unanswered || record.ended || record.closed_by_us || record.eof_received) {
            record.granted = (record.granted + u64::from(bytes)).min(u32::MAX.into());
        }
    }

    fn send(&mut self, pick: usize, len: usize, stream: Stream) {
        let Some(id) = self.pick(pick) else { return };
        self.flush();
        let len = len.min(self.connection.sendable(id));
        if len == 0 {
            return;
        }
        let header = self.connection.data_header(id, len);
        let record = self.record(id);
        assert!(len as u64 <= record.peer_window, "more than the peer granted");
        record.peer_window -= len as u64;
        let sent = &mut record.sent[stream.index()];
        let body = (*sent..*sent + len as u64).map(|offset| (offset % 251) as u8);
        *sent += len as u64;
        let mut payload = header.as_ref().to_vec();
        if stream == Stream::Stderr {
            payload[0] = 95;
            payload.splice(5..5, [0, 0, 0, 1]);
        }
        payload.extend(body);
        self.wire.push_back(payload);
    }

    fn close(&mut self, id: ChannelId) {
        self.connection.close(id);
        assert!(!self.connection.is_open(id));
        let refused = self.unanswered.iter().position(|&unanswered| unanswered == id);
        if let Some(at) = refused {
            self.unanswered.swap_remove(at);
        }
        let record = self.record(id);
        record.closed_by_us = true;
        record.ended |= refused.is_some();
        record.answered |= refused.is_some();
    }

    fn flush(&mut self) {
        while let Some(message) = self.connection.next_message() {
            self.wire.push_back(message.clone());
            self.connection.recycle(message);
        }
        assert!(!self.connection.has_messages());
    }

    /// Takes in one payload of an honest peer: never a violation.
    fn receive(&mut self, payload: &[u8]) {
        self.note_request(payload);
        let message = Message::decode(payload).expect("a whole message");
        match self.connection.received(payload).expect("an honest peer") {
            Event::Opened { channel } => {
                let Message::OpenConfirmation { window, .. } = message else { panic!("{message:?}") };
                let record = self.record(channel);
                assert!(record.ours && !record.answered, "an open is answered once");
                record.answered = true;
                record.peer_window = window.into();
            }
            Event::OpenFailed { channel, reason, description } => {
                let record = self.record(channel);
                assert!(record.ours && !record.answered && !record.ended, "an open is answered once");
                (record.answered, record.ended) = (true, true);
                assert!(matches!((reason, description), (4, b"no") | (1, b"refused")));
            }
            Event::OpenRequested { channel, kind, data } => {
                let Message::Open { window, .. } = message else { panic!("{message:?}") };
                assert_eq!(kind, b"session");
                let key = u64::from_be_bytes(data.try_into().expect("eight bytes"));
                self.add(channel, Record { key, peer_window: window.into(), ..Record::default() });
                self.unanswered.push(channel);
            }
            Event::Data { channel, stream, range } => {
                let record = self.record(channel);
                assert!(!record.closed_by_us);
                for &byte in &payload[range] {
                    let received = &mut record.received[stream.index()];
                    assert_eq!(byte, (*received % 251) as u8, "in order and unchanged");
                    *received += 1;
                    record.granted -= 1;
                }
            }
            Event::Ignored { channel, bytes } => {
                let record = self.record(channel);
                assert!(record.closed_by_us);
                record.ignored += u64::from(bytes);
                record.granted -= u64::from(bytes);
            }
            Event::Eof { channel } => self.record(channel).eof_received = true,
            Event::Closed { channel } => {
                let record = self.record(channel);
                assert!(!record.ended, "a channel ends once");
                record.ended = true;
            }
            Event::Reply { channel, success } => {
                let record = self.record(channel);
                assert_eq!(record.expected.pop_front(), Some(success), "replies keep the order of requests");
                record.replies += 1;
            }
            Event::ExitStatus { status, .. } => assert_eq!(status, 7),
            Event::GlobalReply { success, .. } => {
                assert_eq!(self.expected_globals.pop_front(), Some(success), "replies keep the order of requests");
            }
            Event::Writable { channel } => assert!(self.connection.sendable(channel) > 0),
            Event::Nothing => self.pongs += u64::from(matches!(message, Message::Pong { data: b"hi" })),
            Event::HostKeys { data } => assert_eq!(data, b""),
            event @ (Event::ExitSignal { .. } | Event::Eow { .. }) => panic!("nobody sent {event:?}"),
        }
    }

    /// Counts what the connection does not show: adjustments, and requests that it must answer.
    fn note_request(&mut self, payload: &[u8]) {
        let (recipient, bytes, asked) = match Message::decode(payload) {
            Ok(Message::WindowAdjust { recipient, bytes }) => (recipient, bytes, false),
            Ok(Message::Request { recipient, want_reply, .. }) => (recipient, 0, want_reply),
            _ => return,
        };
        let id = self.ids.iter().copied().find(|id| id.number == recipient && !self.records[id].ended);
        let id = id.expect("an honest peer writes to channels that exist");
        let open = self.connection.is_open(id);
        let record = self.record(id);
        record.peer_window += u64::from(bytes);
        record.answerable += u64::from(asked && open);
    }

    fn check(&self) {
        for (&id, record) in &self.records {
            let granted = if record.ended { 0 } else { record.granted };
            assert_eq!(u64::from(self.connection.granted(id)), granted, "{id:?} {record:?}");
            assert!(self.connection.sendable(id) as u64 <= record.peer_window);
        }
        let live = self.records.values().filter(|record| !record.ended).count();
        assert_eq!(self.connection.channel_count(), live);
    }

    fn wind_up(&mut self) {
        while !self.unanswered.is_empty() {
            self.answer(0, true, 0);
        }
        for id in self.ids.clone() {
            self.close(id);
        }
        self.flush();
    }
}

fn deliver(from: &mut End, to: &mut End, messages: usize) {
    for payload in from.wire.drain(..messages.min(from.wire.len())) {
        to.receive(&payload);
        to.check();
    }
}

/// Lets both ends finish what is on its way and close everything.
fn wind_up(a: &mut End, b: &mut End) {
    loop {
        a.wind_up();
        b.wind_up();
        if a.wire.is_empty() && b.wire.is_empty() {
            return;
        }
        deliver(a, b, usize::MAX);
        deliver(b, a, usize::MAX);
    }
}

/// What `a` has sent, asked and opened, `b` has received, answered and seen.
fn check_conserved(a: &End, b: &End) {
    assert_eq!(a.connection.channel_count(), 0);
    assert!(!a.connection.has_messages());
    assert!(a.expected_globals.is_empty());
    assert_eq!(a.pings, a.pongs);
    for record in a.records.values() {
        assert!(record.answered && record.ended, "{record:?}");
        let other = b.records.values().find(|other| other.key == record.key && other.ours != record.ours);
        let other = other.expect("every open reaches the other end");
        let sent: u64 = record.sent.iter().sum();
        assert_eq!(sent, other.received.iter().sum::<u64>() + other.ignored, "{record:?} {other:?}");
        assert!(other.closed_by_us || record.sent == other.received);
        assert_eq!(record.replies, other.answerable, "every request is answered once: {record:?} {other:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_ends_agree_whatever_they_do(ops in prop::collection::vec((any::<bool>(), op()), 0..300)) {
        let mut ends = [End::default(), End { name: 1, ..End::default() }];
        for (second, op) in &ops {
            let [a, b] = &mut ends;
            let (this, other) = if *second { (b, a) } else { (a, b) };
            match *op {
                Op::Deliver { messages } => deliver(other, this, messages),
                ref op => this.act(op),
            }
            this.check();
        }
        let [a, b] = &mut ends;
        wind_up(a, b);
        check_conserved(a, b);
        check_conserved(b, a);
    }

    #[test]
    fn nothing_an_enemy_sends_panics(script in prop::collection::vec(any::<u8>(), 0..2000)) {
        super::fuzzing::connection(&script);
    }

    #[test]
    fn no_payload_panics_the_decoder(number in any::<u8>(), mut payload in prop::collection::vec(any::<u8>(), 0..200)) {
        payload.insert(0, number);
        super::fuzzing::wire(&payload);
    }

    #[test]
    fn a_damaged_message_is_taken_or_named_and_never_panics(
        which in 0..16u8, at in any::<prop::sample::Index>(), bit in 0..8u8, cut in any::<prop::sample::Index>(),
    ) {
        let mut payload = super::tests::sample(which);
        let flipped = at.index(payload.len());
        payload[flipped] ^= 1 << bit;
        payload.truncate(cut.index(payload.len()) + 1);
        super::fuzzing::wire(&payload);
        let (mut connection, _) = super::tests::opened(100);
        let _ = connection.received(&payload);
        while connection.next_message().is_some() {}
    }
}
