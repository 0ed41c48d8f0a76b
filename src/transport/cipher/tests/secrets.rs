//! What is left in the process's memory of keys and keystreams when a context has ended: nothing, wherever one looks.
//!
//! The test looks through all of its process's memory, stacks included, and so runs in a process of its own, in which
//! no secret stands but in the contexts. What is looked for is kept under a mask.

use std::os::unix::fs::FileExt;
use std::process::Command;
use std::{env, fs};

use ::ctr::cipher::{KeyIvInit, StreamCipher};
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use zeroize::Zeroize;

use super::*;

const TEST: &str = "transport::cipher::tests::secrets::nothing_is_left_of_keys_and_keystreams";
const MARK: &str = "THREADLINE_TEST_SECRETS";
const MASK: u8 = 0xa5;
/// What is looked for at a time: nothing else has the same 16 bytes by chance.
const PIECE: usize = 16;
const SEQUENCE: u32 = 7;
/// The part of the keystream that is made in advance, and never used here.
const AHEAD: usize = 2048;

/// One that is libssh2's is looked for as well.
fn ciphers() -> impl Iterator<Item = (&'static str, usize, usize)> {
    FAST.into_iter().chain([("aes256-cbc", 32, 16)])
}

/// The key of a cipher, masked.
fn masked_key(number: usize, len: usize) -> Vec<u8> {
    noise(1000 + number, len)
}

fn unmasked(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().map(|byte| byte ^ MASK).collect()
}

/// What a cipher derives from its key and keeps, or uses for a packet: computed by the process that needs no clean
/// memory.
fn derived(name: &str, key: &[u8], iv: &[u8]) -> Vec<u8> {
    fn ahead<S: StreamCipher + KeyIvInit>(key: &[u8], iv: &[u8]) -> Vec<u8> {
        let mut stream = vec![0; AHEAD + PIECE];
        S::new_from_slices(key, iv).unwrap().apply_keystream(&mut stream);
        stream.split_off(AHEAD)
    }
    match name {
        // The key of its tag for one packet.
        "chacha20-poly1305@openssh.com" => {
            let nonce = u64::from(SEQUENCE).to_be_bytes();
            let mut one_time = [0; 32];
            let mut cipher = chacha20::ChaCha20Legacy::new(key[..32].try_into().unwrap(), &nonce.into());
            cipher.apply_keystream(&mut one_time);
            one_time.to_vec()
        }
        "aes128-ctr" => ahead::<::ctr::Ctr128BE<aes::Aes128>>(key, iv),
        "aes192-ctr" => ahead::<::ctr::Ctr128BE<aes::Aes192>>(key, iv),
        "aes256-ctr" => ahead::<::ctr::Ctr128BE<aes::Aes256>>(key, iv),
        // The mask of a packet's tag: the tag and it are enough to forge packets.
        "aes128-gcm@openssh.com" => {
            let mut block = [iv, &[0, 0, 0, 1]].concat();
            let cipher = aes::Aes128::new_from_slice(key).unwrap();
            cipher.encrypt_block(block.as_mut_slice().try_into().unwrap());
            block
        }
        _ => Vec::new(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |at: usize| hex.get(at..at + 2).map(|two| u8::from_str_radix(two, 16).unwrap());
    (0..hex.len()).step_by(2).filter_map(digit).collect()
}

#[test]
fn nothing_is_left_of_keys_and_keystreams() {
    if let Ok(given) = env::var(MARK) {
        return look(&given.split(',').map(bytes).collect::<Vec<_>>());
    }
    let given: Vec<String> = ciphers()
        .enumerate()
        .map(|(number, (name, key, iv))| {
            hex(&unmasked(&derived(name, &unmasked(&masked_key(number, key)), &noise(number, iv))))
        })
        .collect();
    let mut this = Command::new(env::current_exe().unwrap());
    let this = this.args([TEST, "--exact", "--nocapture", "--test-threads=1"]).env(MARK, given.join(","));
    let output = this.output().unwrap();
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(said.contains("1 passed"), "in a process of its own ({}):\n{said}", output.status);
}

/// One cipher after the other, in both directions: before it ends its key is found, afterwards nothing is.
fn look(given: &[Vec<u8>]) {
    for (number, ((name, key, iv), masked_derived)) in ciphers().zip(given).enumerate() {
        let (masked, iv) = (masked_key(number, key), noise(number, iv));
        let with_key = |wanted| {
            let mut key = unmasked(&masked);
            let keys = Keys::new(name, &key, &iv, wanted);
            key.zeroize();
            keys
        };
        let (mut sending, mut receiving) = (with_key(Use::Sending), with_key(Use::Receiving));
        let len = if family_of(name) == BLOCK_WISE { 60_u32 } else { 64 };
        let plain = [&len.to_be_bytes()[..], &noise(5, len as usize)].concat();
        let sealed = sending.seal(SEQUENCE, &plain).unwrap();
        assert_eq!(receiving.open(SEQUENCE, &sealed), Some(plain));
        let mut wrong = sealed.clone();
        wrong[20] ^= 1;
        let mut third = with_key(Use::Receiving);
        assert_eq!(third.open(SEQUENCE, &wrong).is_some(), family_of(name) == BLOCK_WISE);

        assert!(!found(&masked).is_empty(), "{name}: a key that is in use is found");
        if name.ends_with("-ctr") {
            assert!(!found(masked_derived).is_empty(), "{name}: a keystream made in advance is found");
        }
        [sending, receiving, third].iter_mut().for_each(Keys::end);
        assert_eq!(found(&masked), [""; 0], "{name}: of its key");
        assert_eq!(found(masked_derived), [""; 0], "{name}: of what was derived from its key");
    }
}

/// Where pieces of a secret stand in this process's memory, looked for in all that can be written.
fn found(masked: &[u8]) -> Vec<String> {
    let memory = fs::File::open("/proc/self/mem").unwrap();
    let mut window = vec![0; 1 << 20];
    let own = window.as_ptr() as usize..window.as_ptr() as usize + window.len();
    let mut places = Vec::new();
    for line in fs::read_to_string("/proc/self/maps").unwrap().lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        if !rest.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').unwrap();
        let [mut at, end] = [start, end].map(|address| usize::from_str_radix(address, 16).unwrap());
        while at < end {
            let size = window.len().min(end - at);
            // A region may have gone since.
            let Ok(n) = memory.read_at(&mut window[..size], at as u64) else { break };
            for piece in masked.chunks_exact(PIECE) {
                for offset in memchr::memchr_iter(piece[0] ^ MASK, &window[..n]) {
                    let there = &window[offset..n];
                    let same = there.len() >= PIECE && piece.iter().zip(there).all(|(a, b)| a ^ MASK == *b);
                    // The copy in which it is looked for is none.
                    if same && !own.contains(&(at + offset)) {
                        places.push(format!("{:x} in {line}", at + offset));
                    }
                }
            }
            window[..n].fill(0);
            if n < size || at + n >= end {
                break;
            }
            at += n - PIECE;
        }
    }
    places
}
