//! A server that makes us remember too much: a byte a packet, for somebody who does not read.

use threadline::Stream;

use super::builder;
use crate::connect::PATIENCE;
use crate::rogue::{Behaviour, Offer, Rogue, ServerConn};
use crate::util::{alone, eventually, memory};

/// Packets of one byte; a whole window of them takes a debug build a minute.
const PACKETS: usize = if cfg!(debug_assertions) { 100_000 } else { WINDOW };
const WINDOW: usize = 2 << 20;
/// For a whole window. With a buffer for each packet it would be more.
const LIMIT: usize = 64 << 20;
/// What a connection takes besides, and the server, which is in this process, too.
const BESIDES: usize = 3 << 19;

/// How much the memory of this process grows while nobody reads what this server sends.
fn is_bounded(send: fn(&mut ServerConn, u32) -> std::io::Result<()>) {
    let offer = Offer::default().cipher("aes128-gcm@openssh.com");
    let server = Rogue::logged_in_with(offer, move |conn| {
        let (channel, _) = conn.expect_exec()?;
        send(conn, channel)?;
        conn.finish(channel, 0)?;
        conn.serve(&mut Behaviour::new())
    });
    let client = builder(&server).spare_channel(false).connect().expect("logged in");
    let (before, _) = memory();
    let child = client.exec_command("true").expect("started");
    eventually(PATIENCE, "the command ends", || child.control().status().is_some());
    let (_, most) = memory();
    let lines = child.lines();
    let mut bytes = [0, 0];
    for line in lines {
        let line = line.expect("a line");
        bytes[usize::from(line.stream == Stream::Stderr)] += line.bytes.len();
    }
    assert_eq!(bytes[0] + bytes[1], PACKETS);
    let most = usize::try_from(most - before).expect("fits");
    println!("{} KiB more for {PACKETS} packets", most >> 10);
    assert!(most < LIMIT / WINDOW * PACKETS + BESIDES, "{} KiB for {PACKETS} packets", most >> 10);
}

#[test]
fn a_byte_a_packet_to_a_stalled_reader_takes_little_memory() {
    alone("hostile::memory::a_byte_a_packet_to_a_stalled_reader_takes_little_memory", PATIENCE, || {
        is_bounded(|conn, channel| conn.data_bytewise(channel, &[b'x'; PACKETS]));
    });
}

#[test]
fn a_byte_a_packet_on_both_streams_in_turn_takes_little_memory() {
    alone("hostile::memory::a_byte_a_packet_on_both_streams_in_turn_takes_little_memory", PATIENCE, || {
        is_bounded(|conn, channel| {
            for _ in 0..PACKETS / 1000 {
                let packets = conn.capture(|conn| {
                    for _ in 0..500 {
                        conn.packet_of_data(channel, b"o")?;
                        conn.packet_of_extended_data(channel, 1, b"e")?;
                    }
                    Ok(())
                })?;
                conn.write_raw(&packets)?;
            }
            Ok(())
        });
    });
}
