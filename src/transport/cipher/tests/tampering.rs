//! A packet that was changed on its way is refused, whatever was changed, and nothing of its text can be read then.

use super::*;

const TEXT: usize = 48;

fn fast_aeads() -> [(&'static str, usize, usize); 3] {
    [("aes128-gcm@openssh.com", 16, 12), ("aes256-gcm@openssh.com", 32, 12), ("chacha20-poly1305@openssh.com", 64, 0)]
}

fn plain(len: usize) -> Vec<u8> {
    [&u32::try_from(len).unwrap().to_be_bytes()[..], &noise(len, len)].concat()
}

/// Whether eight bytes of the text in a row stand anywhere.
fn shows(buffer: &[u8], text: &[u8]) -> bool {
    text.windows(8).any(|part| buffer.windows(8).any(|there| there == part))
}

/// The text is not in the buffer, and what is there is nothing, or as it came.
#[track_caller]
fn nothing_to_read(buffer: &[u8], text: &[u8], came: &[u8], what: &str) {
    assert!(!shows(buffer, text), "{what}: the text of a refused packet");
    let wiped = buffer.iter().all(|&byte| byte == 0);
    assert!(wiped || buffer == came, "{what}: neither wiped nor left alone");
}

/// Each bit of the length, the padding length, the text, the padding and the tag; and a packet too short or too long.
#[test]
fn each_bit_of_a_packet_is_authenticated() {
    for (name, key, iv) in fast_aeads() {
        let (key, iv) = (noise(1, key), noise(2, iv));
        let plain = plain(TEXT);
        let sealed = Keys::new(name, &key, &iv, Use::Sending).seal(3, &plain).unwrap();
        let mut refused = 0;
        for bit in 0..sealed.len() * 8 {
            let mut wrong = sealed.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            let came = wrong.clone();
            // Where the length is another it would be another packet: that is told below.
            let len = TEXT;
            let mut keys = Keys::new(name, &key, &iv, Use::Receiving);
            let opened = keys.crypt(3, &mut wrong, 0, len, MIDDLE_BLOCK);
            assert_eq!(opened, None, "{name}: bit {bit}");
            nothing_to_read(&wrong, &plain[LENGTH..], &came, &format!("{name}: bit {bit}"));
            refused += 1;
        }
        assert_eq!(refused, (LENGTH + TEXT + TAG) * 8);
        assert_eq!(Keys::new(name, &key, &iv, Use::Receiving).open(3, &sealed), Some(plain), "{name}");
    }
}

/// What libssh2 would do with a changed length: ask for it, wait for so many bytes, and open those.
#[test]
fn each_bit_of_a_length_leads_to_a_refusal() {
    for (name, key, iv) in fast_aeads() {
        let (key, iv) = (noise(1, key), noise(2, iv));
        let plain = plain(TEXT);
        let sealed = Keys::new(name, &key, &iv, Use::Sending).seal(3, &plain).unwrap();
        for bit in 0..LENGTH * 8 {
            let mut wrong = sealed.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            wrong.extend(noise(bit, 40_000));
            let mut keys = Keys::new(name, &key, &iv, Use::Receiving);
            let Some(length) = keys.length(3, &mut wrong) else { continue };
            assert_ne!(length as usize, TEXT, "{name}: bit {bit}");
            if length > 40_000 {
                continue;
            }
            assert_eq!(length % keys.method.blocksize.unsigned_abs(), 0, "{name}: bit {bit}");
            let opened = keys.crypt(3, &mut wrong, 0, length as usize, MIDDLE_BLOCK);
            assert_eq!(opened, None, "{name}: bit {bit}");
            let end = LENGTH + length as usize + TAG;
            assert!(!shows(&wrong[..end], &plain[LENGTH..]), "{name}: bit {bit}");
        }
    }
}

#[test]
fn each_byte_of_a_long_packet_is_authenticated() {
    for (name, key, iv) in fast_aeads() {
        let (key, iv) = (noise(1, key), noise(2, iv));
        let plain = plain(4096);
        let sealed = Keys::new(name, &key, &iv, Use::Sending).seal(3, &plain).unwrap();
        for at in 0..sealed.len() {
            let mut wrong = sealed.clone();
            wrong[at] ^= 0x80 >> (at % 8);
            let mut keys = Keys::new(name, &key, &iv, Use::Receiving);
            assert_eq!(keys.crypt(3, &mut wrong, 0, 4096, MIDDLE_BLOCK), None, "{name}: byte {at}");
            let beginning = &plain[LENGTH..LENGTH + 16];
            assert!(![0, LENGTH].iter().any(|&at| wrong[at..].starts_with(beginning)), "{name}: byte {at}");
        }
    }
}

#[test]
fn a_packet_of_another_place_in_the_stream_is_refused() {
    for (name, key, iv) in fast_aeads() {
        let (key, iv) = (noise(1, key), noise(2, iv));
        let mut sending = Keys::new(name, &key, &iv, Use::Sending);
        let packets: Vec<_> = (0..3).map(|n| sending.seal(n, &plain(TEXT)).unwrap()).collect();
        for (place, sent) in [(0, 1), (1, 0), (1, 2), (2, 1)] {
            let mut receiving = Keys::new(name, &key, &iv, Use::Receiving);
            for (number, packet) in packets.iter().enumerate().take(place) {
                assert!(receiving.open(number as u32, packet).is_some());
            }
            assert_eq!(receiving.open(place as u32, &packets[sent]), None, "{name}: {sent} for {place}");
        }
        // The same again.
        let mut receiving = Keys::new(name, &key, &iv, Use::Receiving);
        assert!(receiving.open(0, &packets[0]).is_some());
        assert_eq!(receiving.open(1, &packets[0]), None, "{name}");
    }
}

#[test]
fn packets_too_short_for_a_tag_are_refused() {
    for len in 0..TAG + LENGTH {
        let mut packet = noise(1, len);
        let gcm = |encrypt| Gcm::new(&[1; 16], &[2; 12], encrypt).unwrap();
        assert_eq!(gcm(true).seal(&mut packet, LENGTH), None, "{len}");
        assert_eq!(gcm(false).open(&mut packet, LENGTH), None, "{len}");
        let mut cipher = ChaCha::new(&[3; 64]).unwrap();
        assert_eq!(cipher.seal(0, &mut packet, LENGTH), None, "{len}");
        assert_eq!(cipher.open(0, &mut packet, LENGTH), None, "{len}");
    }
}

/// Of a block-wise cipher the MAC tells (libssh2's own), but the first block must not make it `assert`.
#[test]
fn a_first_block_with_an_impossible_length_is_refused() {
    for (name, key) in [("aes128-ctr", 16), ("aes256-ctr", 32), ("aes256-cbc", 32), ("aes128-cbc", 16)] {
        for encrypt_then_mac in [false, true] {
            let keys = |wanted| {
                let keys = Keys::new(name, &noise(1, key), &noise(2, 16), wanted);
                if encrypt_then_mac {
                    keys.encrypt_then_mac()
                } else {
                    keys
                }
            };
            let good = if encrypt_then_mac { 32 } else { 28 };
            for length in (0..70).chain([40_000, u32::MAX - 3, u32::MAX]) {
                let plain = [&length.to_be_bytes()[..], &noise(5, good)].concat();
                let sealed = keys(Use::Sending).seal(0, &plain).unwrap();
                let size = if encrypt_then_mac { length.into() } else { u64::from(length) + 4 };
                let possible = size >= 16 && size % 16 == 0 && length < u32::MAX - 3;
                let opened = keys(Use::Receiving).open(0, &sealed);
                assert_eq!(opened, possible.then_some(plain), "{name} {encrypt_then_mac} {length}");
            }
        }
    }
}
