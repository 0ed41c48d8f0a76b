//! A server that makes us remember too much: a byte a packet, for somebody who does not read.

use threadline::Stream;

use super::builder;
use crate::connect::PATIENCE;
use crate::rogue::{Behaviour, Offer, Rogue, ServerConn};
use crate::util::{alone, eventually, memory};

/// Packets of one byte. With a buffer each they would take more than the limit.
const PACKETS: usize = 400_000;
const LIMIT: u64 = 64 << 20;

/// How much the memory of this process grows while nobody reads what this server sends.
fn growth(send: fn(&mut ServerConn, u32) -> std::io::Result<()>) -> u64 {
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
    let (now, most) = memory();
    let lines = child.lines();
    let mut bytes = [0, 0];
    for line in lines {
        let line = line.expect("a line");
        bytes[usize::from(line.stream == Stream::Stderr)] += line.bytes.len();
    }
    assert_eq!(bytes[0] + bytes[1], PACKETS);
    println!("{} MiB more for {PACKETS} packets, at most {} MiB", (now - before) >> 20, (most - before) >> 20);
    most - before
}

#[test]
fn a_byte_a_packet_to_a_stalled_reader_takes_little_memory() {
    alone("hostile::memory::a_byte_a_packet_to_a_stalled_reader_takes_little_memory", PATIENCE, || {
        let grown = growth(|conn, channel| conn.data_bytewise(channel, &[b'x'; PACKETS]));
        assert!(grown < LIMIT, "{} MiB", grown >> 20);
    });
}

#[test]
fn a_byte_a_packet_on_both_streams_in_turn_takes_little_memory() {
    alone("hostile::memory::a_byte_a_packet_on_both_streams_in_turn_takes_little_memory", PATIENCE, || {
        let grown = growth(|conn, channel| {
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
        assert!(grown < LIMIT, "{} MiB", grown >> 20);
    });
}
