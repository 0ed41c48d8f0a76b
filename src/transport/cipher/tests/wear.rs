//! How many packets one key is used for.

use super::*;

/// Each family, with the layouts that it can have.
fn every_layout() -> Vec<(&'static str, usize, usize, bool)> {
    vec![
        ("aes128-gcm@openssh.com", 16, 12, false),
        ("aes256-gcm@openssh.com", 32, 12, false),
        ("chacha20-poly1305@openssh.com", 64, 0, false),
        ("aes128-ctr", 16, 16, false),
        ("aes128-ctr", 16, 16, true),
        ("aes256-ctr", 32, 16, false),
        ("aes256-cbc", 32, 16, false),
        ("aes256-cbc", 32, 16, true),
    ]
}

fn keys(of: &(&'static str, usize, usize, bool), wanted: Use) -> Keys {
    let &(name, key, iv, encrypt_then_mac) = of;
    let keys = Keys::new(name, &noise(1, key), &noise(2, iv), wanted);
    if encrypt_then_mac {
        keys.encrypt_then_mac()
    } else {
        keys
    }
}

/// A packet of so many blocks.
fn packet(keys: &Keys, blocks: usize) -> Vec<u8> {
    let apart = keys.whole_packets() || keys.method.flags & FLAG_LENGTH_IN_CLEAR != 0 || keys.encrypt_then_mac;
    let block = keys.method.blocksize.unsigned_abs() as usize;
    let len = if apart { block * blocks } else { block * blocks - LENGTH };
    [&u32::try_from(len).unwrap().to_be_bytes()[..], &noise(blocks, len)].concat()
}

/// Whether the packet comes out; but for its last four bytes, padding that libssh2's own chacha20 does not move.
fn opens(receiving: &mut Keys, number: u32, sealed: &[u8], plain: &[u8]) -> bool {
    let cares = plain.len() - LENGTH;
    receiving.open(number, sealed).is_some_and(|opened| opened[..cares] == plain[..cares])
}

/// libssh2 marks first and last blocks in a way of its own for each layout and direction; a packet of one block too.
#[test]
fn each_packet_is_counted_once() {
    for layout in every_layout() {
        let (mut sending, mut receiving) = (keys(&layout, Use::Sending), keys(&layout, Use::Receiving));
        for (number, blocks) in [1, 2, 3, 1, 1, 40, 2].into_iter().enumerate() {
            let plain = packet(&sending, blocks);
            let sealed = sending.seal(number as u32, &plain).unwrap();
            assert!(opens(&mut receiving, number as u32, &sealed, &plain), "{layout:?}");
            let count = number as u32 + 1;
            assert_eq!((sending.context().packets, receiving.context().packets), (count, count), "{layout:?}");
        }
    }
}

#[test]
fn the_last_packet_of_a_key_passes_and_the_next_does_not() {
    for layout in every_layout() {
        for blocks in [1, 3] {
            let (mut sending, mut receiving) = (keys(&layout, Use::Sending), keys(&layout, Use::Receiving));
            let plain = packet(&sending, blocks);
            sending.context().packets = PACKETS_PER_KEY - 1;
            receiving.context().packets = PACKETS_PER_KEY - 1;
            let sealed = sending.seal(9, &plain).expect("packet 2^31");
            assert!(opens(&mut receiving, 9, &sealed, &plain), "{layout:?}");
            for _ in 0..3 {
                assert_eq!(sending.seal(10, &plain), None, "{layout:?}");
                assert_eq!(receiving.open(10, &sealed), None, "{layout:?}");
            }
            // New keys begin anew.
            let (mut sending, mut receiving) = (keys(&layout, Use::Sending), keys(&layout, Use::Receiving));
            let sealed = sending.seal(11, &plain).expect("new keys");
            assert!(opens(&mut receiving, 11, &sealed, &plain), "{layout:?}");
        }
    }
}

/// What is refused is not encrypted, nor is a nonce used for it.
#[test]
fn a_refused_packet_is_left_as_it_is() {
    for layout in every_layout() {
        let mut sending = keys(&layout, Use::Sending);
        let plain = packet(&sending, 2);
        sending.context().packets = PACKETS_PER_KEY;
        let mut buffer = [&plain[..], &[0; TAG]].concat();
        let before = buffer.clone();
        let at = if sending.encrypt_then_mac { LENGTH } else { 0 };
        let whole = plain.len() - at;
        let len = if sending.whole_packets() { whole } else { sending.method.blocksize.unsigned_abs() as usize };
        let refused = sending.crypt(1, &mut buffer, at, len, FIRST_BLOCK | LAST_BLOCK);
        assert_eq!((refused, buffer == before), (None, true), "{layout:?}");
    }
}

#[test]
fn a_private_key_has_no_packets_to_count() {
    let mut keys = Keys::new("aes256-cbc", &noise(1, 32), &noise(2, 16), Use::PrivateKey);
    let slot = ptr::from_mut(&mut keys.slot);
    // SAFETY: the slot is what `init` was given.
    let context = unsafe { Context::of(slot) }.unwrap();
    context.packets = PACKETS_PER_KEY;
    for mark in [FIRST_BLOCK, MIDDLE_BLOCK, LAST_BLOCK] {
        assert!(keys.crypt(0, &mut [0; 16], 0, 16, mark).is_some());
    }
}
