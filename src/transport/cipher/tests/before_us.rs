//! Sessions that began before our methods were stored: contexts of libssh2's own, worked on through our functions.

use super::*;

fn packet(name: &str, blocks: usize) -> Vec<u8> {
    let len = if family_of(name) == BLOCK_WISE { blocks * 16 - LENGTH } else { blocks * 16 };
    [&u32::try_from(len).unwrap().to_be_bytes()[..], &noise(blocks, len)].concat()
}

/// What libssh2 cares about of what it got: its chacha20 does not move the last four bytes, which are padding.
fn cared_about<'a>(name: &str, packet: &'a [u8]) -> &'a [u8] {
    &packet[..packet.len() - if family_of(name) == CHACHA { 4 } else { 0 }]
}

/// A peer that was there before and one that came later, in both roles, over every number of blocks that matters to
/// how GCM is cut into pieces.
#[test]
fn old_contexts_and_new_ones_understand_each_other() {
    for (name, key, iv) in FAST {
        let (key, iv) = (noise(3, key), noise(4, iv));
        let mut old = [Use::Sending, Use::Receiving].map(|wanted| Keys::before_us(name, &key, &iv, wanted));
        let mut new = [Use::Sending, Use::Receiving].map(|wanted| Keys::new(name, &key, &iv, wanted));
        for (number, blocks) in (1..40).chain([127, 128, 129, 2180, 1, 1]).enumerate() {
            let plain = packet(name, blocks);
            let number = number as u32;
            let (by_old, by_new) = (old[0].seal(number, &plain).unwrap(), new[0].seal(number, &plain).unwrap());
            assert!(by_old == by_new, "{name}: {blocks} blocks");
            let opened = old[1].open(number, &by_new).unwrap_or_else(|| panic!("{name}: {blocks} blocks"));
            assert!(cared_about(name, &opened) == cared_about(name, &plain), "{name}: {blocks} blocks");
            assert!(new[1].open(number, &by_old) == Some(plain), "{name}: {blocks} blocks");
        }
    }
}

#[test]
fn an_old_context_refuses_what_was_changed() {
    for (name, key, iv) in &FAST[..3] {
        let (key, iv) = (noise(3, *key), noise(4, *iv));
        let plain = packet(name, 3);
        let sealed = Keys::new(name, &key, &iv, Use::Sending).seal(0, &plain).unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut wrong = sealed.clone();
            wrong[bit / 8] ^= 1 << (bit % 8);
            let mut old = Keys::before_us(name, &key, &iv, Use::Receiving);
            let opened = old.crypt(0, &mut wrong, 0, plain.len() - LENGTH, MIDDLE_BLOCK);
            assert_eq!(opened, None, "{name}: bit {bit}");
        }
        assert!(Keys::before_us(name, &key, &iv, Use::Receiving).open(0, &sealed).is_some(), "{name}");
    }
}

/// A packet of no whole number of blocks, and none at all: refused or not, nothing beyond it is touched.
#[test]
fn an_old_context_survives_any_length() {
    for name in ["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"] {
        let (_, key, iv) = FAST.into_iter().find(|(known, ..)| known == &name).unwrap();
        for len in 0..100 {
            let mut buffer = vec![0xee; LENGTH + len + TAG + 64];
            let mut old = Keys::before_us(name, &noise(3, key), &noise(4, iv), Use::Receiving);
            assert_eq!(old.crypt(0, &mut buffer, 0, len, MIDDLE_BLOCK), None, "{name} {len}");
            assert!(buffer[LENGTH + len + TAG..].iter().all(|&byte| byte == 0xee), "{name} {len}");
        }
    }
}

#[test]
fn contexts_are_told_apart() {
    for (name, key, iv) in FAST {
        for wanted in [Use::Sending, Use::Receiving] {
            let (mut old, mut new) = (
                Keys::before_us(name, &noise(3, key), &noise(4, iv), wanted),
                Keys::new(name, &noise(3, key), &noise(4, iv), wanted),
            );
            // SAFETY: both slots are what an `init` was given.
            unsafe {
                assert!(Context::of(&mut old.slot).is_none(), "{name}");
                assert!(Context::of(&mut new.slot).is_some(), "{name}");
                assert!(Context::of(&mut ptr::null_mut()).is_none());
            }
        }
    }
}
