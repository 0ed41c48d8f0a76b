//! Every packet length, both ways, compared with RustCrypto; and any keys, nonces, numbers and lengths.
//!
//! Tens of thousands of packets are only affordable because under one key and nonce a shorter text is encrypted to the
//! beginning of what a longer one is, and because the state of GHASH and Poly1305 can be copied on the way: RustCrypto
//! works through each byte once, our ciphers through each packet.

use ::ctr::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use ::ctr::Ctr128BE;
use aes::cipher::{Array, BlockCipherEncrypt};
use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use chacha20::ChaCha20Legacy;
use ghash::universal_hash::UniversalHash;
use ghash::GHash;
use poly1305::Poly1305;
use proptest::prelude::*;

use super::*;

/// libssh2's limit is 40000 (LIBSSH2_PACKET_MAXPAYLOAD), and no packet that it takes is longer.
const LONGEST: usize = 40_000;
/// Of a packet's length, of which the ciphers make nothing: the same for all here.
const HEADER: [u8; LENGTH] = [0x5a, 0xa5, 0, 0xff];

/// All lengths; under valgrind, which says so by the number of cases, a few.
fn lengths() -> impl Iterator<Item = usize> {
    let step = if few() { 1999 } else { 1 };
    (0..=LONGEST).step_by(step)
}

fn few() -> bool {
    std::env::var("PROPTEST_CASES").is_ok()
}

fn packet_of(text: &[u8]) -> Vec<u8> {
    [&HEADER[..], text, &[0; TAG]].concat()
}

/// AES-GCM in RustCrypto's parts, with the tag of every prefix of one text.
struct GcmPrefixes<A> {
    aes: A,
    nonce: [u8; 12],
    /// Behind the header and all whole blocks of the text so far.
    hash: GHash,
}

impl<A: BlockCipherEncrypt<BlockSize = aes::cipher::consts::U16> + KeyInit> GcmPrefixes<A> {
    fn new(key: &[u8], nonce: [u8; 12]) -> Self {
        let aes = A::new_from_slice(key).unwrap();
        let mut h = Array::default();
        aes.encrypt_block(&mut h);
        let mut hash = GHash::new(&h);
        hash.update_padded(&HEADER);
        GcmPrefixes { aes, nonce, hash }
    }

    fn block(&self, counter: u32) -> [u8; 16] {
        let mut block = [&self.nonce[..], &counter.to_be_bytes()].concat();
        self.aes.encrypt_block(block.as_mut_slice().try_into().unwrap());
        block.try_into().unwrap()
    }

    fn encrypt(&self, text: &[u8]) -> Vec<u8> {
        let stream = (2..).flat_map(|counter| self.block(counter));
        text.iter().zip(stream).map(|(byte, key)| byte ^ key).collect()
    }

    /// Takes in the whole block that ends here.
    fn advance(&mut self, sealed: &[u8], len: usize) {
        if len % 16 == 0 && len > 0 {
            self.hash.update_padded(&sealed[len - 16..len]);
        }
    }

    /// The tag of the first `len` bytes, all whole blocks of which have been taken in.
    fn tag(&self, sealed: &[u8], len: usize) -> [u8; TAG] {
        let whole = len / 16 * 16;
        let mut hash = self.hash.clone();
        hash.update_padded(&sealed[whole..len]);
        let bits = |bytes: usize| (bytes as u64 * 8).to_be_bytes();
        hash.update_padded(&[bits(LENGTH), bits(len)].concat());
        let (tag, mask) = (hash.finalize(), self.block(1));
        std::array::from_fn(|n| tag[n] ^ mask[n])
    }
}

fn every_length_of_gcm<A: BlockCipherEncrypt<BlockSize = aes::cipher::consts::U16> + KeyInit>(key: &[u8]) {
    let nonce = noise(2, 12).try_into().unwrap();
    let text = noise(1, LONGEST);
    let mut known = GcmPrefixes::<A>::new(key, nonce);
    let sealed = known.encrypt(&text);
    for len in 0..=LONGEST {
        known.advance(&sealed, len);
        if few() && len % 1999 != 0 {
            continue;
        }
        let tag = known.tag(&sealed, len);
        let mut packet = packet_of(&text[..len]);
        Gcm::new(key, &nonce, true).unwrap().seal(&mut packet, LENGTH).unwrap();
        assert!(packet[..LENGTH] == HEADER && packet[LENGTH..][..len] == sealed[..len], "{len}");
        assert_eq!(packet[LENGTH + len..], tag, "{len}");
        Gcm::new(key, &nonce, false).unwrap().open(&mut packet, LENGTH).unwrap();
        assert!(packet[..LENGTH] == HEADER && packet[LENGTH..][..len] == text[..len], "{len}");
    }
}

#[test]
fn every_length_of_aes128_gcm_is_rust_cryptos() {
    every_length_of_gcm::<aes::Aes128>(&noise(3, 16));
}

#[test]
fn every_length_of_aes256_gcm_is_rust_cryptos() {
    every_length_of_gcm::<aes::Aes256>(&noise(4, 32));
}

/// RustCrypto's keystream of 64 bit nonces, from a block on.
fn chacha(key: &[u8], sequence: u32, block: u32, data: &mut [u8]) {
    let nonce = u64::from(sequence).to_be_bytes();
    let mut cipher = ChaCha20Legacy::new(key.try_into().unwrap(), &nonce.into());
    cipher.seek(block * 64);
    cipher.apply_keystream(data);
}

fn poly1305_of(key: &[u8], sequence: u32) -> Poly1305 {
    let mut one_time = [0; 32];
    chacha(&key[..32], sequence, 0, &mut one_time);
    Poly1305::new(&one_time.into())
}

#[test]
fn every_length_of_chacha20_poly1305_is_rust_cryptos() {
    let (key, text) = (noise(5, 64), noise(6, LONGEST));
    // The greatest number first, and such whose nonce differs in one byte only.
    for (sequence, step) in [(u32::MAX, 1), (0, 97), (1 << 31, 89), (0x00ff_ffff, 83)] {
        // The header and the text in one, as the tag covers them.
        let mut sealed = [&HEADER[..], &text].concat();
        chacha(&key[32..], sequence, 0, &mut sealed[..LENGTH]);
        chacha(&key[..32], sequence, 1, &mut sealed[LENGTH..]);
        let mut mac = poly1305_of(&key, sequence);
        let mut hashed = 0;
        let mut cipher = ChaCha::new(&key).unwrap();
        for len in lengths().step_by(step) {
            let covered = LENGTH + len;
            let whole = covered / 16 * 16;
            sealed[hashed..whole].chunks(16).for_each(|block| mac.update_padded(block));
            hashed = whole;
            let tag = mac.clone().compute_unpadded(&sealed[whole..covered]);
            let mut packet = packet_of(&text[..len]);
            cipher.seal(sequence, &mut packet, LENGTH).unwrap();
            assert!(packet[..covered] == sealed[..covered], "{sequence} {len}");
            assert_eq!(packet[covered..], tag[..], "{sequence} {len}");
            let field = packet[..LENGTH].try_into().unwrap();
            assert_eq!(cipher.length(sequence, field), Some(u32::from_be_bytes(HEADER)));
            cipher.open(sequence, &mut packet, LENGTH).unwrap();
            assert!(packet[LENGTH..covered] == text[..len], "{sequence} {len}");
        }
    }
}

/// Packets of whole blocks, asked for one by one, of every so manieth length; and any length at once.
fn lengths_of_ctr<S: StreamCipher + KeyIvInit>(key: &[u8], counter: &[u8], every: usize) {
    let text = noise(7, LONGEST);
    let mut sealed = text.clone();
    S::new_from_slices(key, counter).unwrap().apply_keystream(&mut sealed);
    for len in (0..=LONGEST).step_by(16 * if few() { 1000 } else { every }) {
        let mut packet = text[..len].to_vec();
        let mut cipher = Ctr::new(key, counter).unwrap();
        packet.chunks_exact_mut(16).for_each(|block| cipher.apply(block).unwrap());
        assert!(packet == sealed[..len], "{len}");
    }
    // The keystream goes on where it was.
    for len in lengths().step_by(109) {
        let mut packet = text[..LONGEST.min(len + 40)].to_vec();
        let mut cipher = Ctr::new(key, counter).unwrap();
        let (first, rest) = packet.split_at_mut(len);
        cipher.apply(first).unwrap();
        cipher.apply(rest).unwrap();
        assert!(packet == sealed[..packet.len()], "{len}");
    }
}

#[test]
fn every_length_of_aes_ctr_is_rust_cryptos() {
    // The lower half of the counter carries over, and the whole of it.
    let carries = [[&[7; 8][..], &[0xff; 7], &[0xf0]].concat(), [&[0xff; 15][..], &[0xfe]].concat()];
    lengths_of_ctr::<Ctr128BE<aes::Aes128>>(&noise(8, 16), &carries[0], 1);
    lengths_of_ctr::<Ctr128BE<aes::Aes192>>(&noise(9, 24), &carries[1], 29);
    lengths_of_ctr::<Ctr128BE<aes::Aes256>>(&noise(10, 32), &carries[0], 31);
}

/// A packet as RustCrypto's own AEAD, or its parts in the simplest way, seals it. `nonce` is GCM's.
fn seal(name: &str, key: &[u8], nonce: [u8; 12], sequence: u32, plain: &[u8]) -> Vec<u8> {
    let (mut header, mut text) = (plain[..LENGTH].to_vec(), plain[LENGTH..].to_vec());
    let tag = match name {
        "aes128-gcm@openssh.com" => {
            let cipher = Aes128Gcm::new_from_slice(key).unwrap();
            cipher.encrypt_inout_detached(&nonce.into(), &header, text.as_mut_slice().into()).unwrap().to_vec()
        }
        "aes256-gcm@openssh.com" => {
            let cipher = Aes256Gcm::new_from_slice(key).unwrap();
            cipher.encrypt_inout_detached(&nonce.into(), &header, text.as_mut_slice().into()).unwrap().to_vec()
        }
        _ => {
            chacha(&key[32..], sequence, 0, &mut header);
            chacha(&key[..32], sequence, 1, &mut text);
            poly1305_of(key, sequence).compute_unpadded(&[&header[..], &text].concat()).to_vec()
        }
    };
    [header, text, tag].concat()
}

/// RFC 5647 §7.1.
fn after(nonce: [u8; 12], packets: u64) -> [u8; 12] {
    let [fixed, counter] = [&nonce[..4], &nonce[4..]];
    let counter = u64::from_be_bytes(counter.try_into().unwrap()).wrapping_add(packets);
    [fixed, &counter.to_be_bytes()].concat().try_into().unwrap()
}

/// Half of the numbers are near the largest, where they and all counters carry over.
fn near_the_end() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), (0..300_u64).prop_map(|back| u64::MAX - back), Just(0x00ff_ffff_ffff_fffe)]
}

fn whole_packet_ciphers() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just("aes128-gcm@openssh.com"), Just("aes256-gcm@openssh.com"), Just("chacha20-poly1305@openssh.com")]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if few() { 4 } else { 200 }, ..ProptestConfig::default() })]

    /// Through the methods, in libssh2's layout, several packets under one key.
    #[test]
    fn any_packets_are_rust_cryptos(
        name in whole_packet_ciphers(),
        secret in any::<[u8; 64]>(),
        fixed in any::<[u8; 4]>(),
        counter in near_the_end(),
        lengths in prop::collection::vec(1..200_usize, 1..6),
    ) {
        let method = method(name);
        let key = &secret[..method.secret_len.unsigned_abs() as usize];
        let nonce: [u8; 12] = [&fixed[..], &counter.to_be_bytes()].concat().try_into().unwrap();
        let iv = &nonce[..method.iv_len.unsigned_abs() as usize];
        let mut sending = Keys::new(name, key, iv, Use::Sending);
        let mut receiving = Keys::new(name, key, iv, Use::Receiving);
        for (number, blocks) in lengths.into_iter().enumerate() {
            let text = noise(blocks, blocks * 16);
            let plain = [&u32::try_from(text.len()).unwrap().to_be_bytes()[..], &text].concat();
            // The number wraps around, too.
            let sequence = (counter as u32).wrapping_add(number as u32);
            let expected = seal(name, key, after(nonce, number as u64), sequence, &plain);
            let sealed = sending.seal(sequence, &plain);
            prop_assert_eq!(sealed.as_ref(), Some(&expected));
            prop_assert_eq!(receiving.open(sequence, &expected), Some(plain));
        }
    }
}
