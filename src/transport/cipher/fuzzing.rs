//! Any bytes at all against the ciphers, as packets received and as private keys: the body of the fuzz target, run by
//! the unit tests too.

use super::harness::{family_of, noise, Keys, Use};
use super::*;

/// As libssh2 has it behind a packet: it must not change.
const BEHIND: [u8; 64] = [0xee; 64];
/// LIBSSH2_PACKET_MAXPAYLOAD.
const LONGEST: usize = 40_000;

/// Runs `script` as packets under one cipher: made up, and sealed and then changed. What was changed is refused where
/// the cipher authenticates it, what was not is opened, and nothing outside of a packet is written to.
pub fn ciphers(script: &[u8]) {
    let mut script = Script(script);
    let Some([pick, kind, seed]) = script.take() else { return };
    install();
    let names = in_use();
    let name = names[usize::from(pick) % names.len()].0.as_str();
    let wanted = Wanted { name, kind, seed };
    let (mut sending, mut receiving) = (wanted.keys(Use::Sending), wanted.keys(Use::Receiving));
    let mut sequence = u32::from_be_bytes([seed, kind, 0xff, 0xfe]);
    while let Some([operation]) = script.take() {
        let whole = match operation % 4 {
            0 => made_up(&mut receiving, sequence, script.bytes()),
            1 => {
                private_key(&wanted, script.bytes());
                Some(())
            }
            _ => exchange(&mut sending, &mut receiving, sequence, &mut script),
        };
        sequence = sequence.wrapping_add(1);
        // That is the end of a connection.
        if whole.is_none() {
            (sending, receiving) = (wanted.keys(Use::Sending), wanted.keys(Use::Receiving));
        }
    }
}

struct Wanted<'a> {
    name: &'a str,
    /// Encrypt-then-MAC, and whether libssh2 made the contexts.
    kind: u8,
    seed: u8,
}

impl Wanted<'_> {
    fn keys(&self, wanted: Use) -> Keys {
        let method = super::harness::method(self.name);
        let key = noise(self.seed.into(), method.secret_len.unsigned_abs() as usize);
        let iv = noise(usize::from(self.seed) + 1, method.iv_len.unsigned_abs() as usize);
        #[cfg(feature = "fast-ciphers")]
        if self.kind & 2 != 0 && wanted != Use::PrivateKey {
            return Keys::before_us(self.name, &key, &iv, wanted);
        }
        let keys = Keys::new(self.name, &key, &iv, wanted);
        if self.kind & 1 != 0 && family_of(self.name) == BLOCK_WISE && wanted != Use::PrivateKey {
            keys.encrypt_then_mac()
        } else {
            keys
        }
    }
}

struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (&taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(taken)
    }

    fn bytes(&mut self) -> &'a [u8] {
        let len = self.take().map_or(0, u16::from_be_bytes);
        let (taken, rest) = self.0.split_at(usize::from(len).min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// What transport.c does with what came: the length first, then all of the packet, or block after block.
fn receive(keys: &mut Keys, sequence: u32, came: &[u8]) -> Option<()> {
    let mut buffer = [came, &BEHIND].concat();
    let block = keys.method.blocksize.unsigned_abs() as usize;
    let opened = if keys.whole_packets() {
        if came.len() < LENGTH {
            assert_eq!(keys.length(sequence, &mut buffer[..came.len()]), None);
            return None;
        }
        let length = keys.length(sequence, &mut buffer[..came.len()])? as usize;
        // More would be waited for; less than there is, is another packet.
        let fits = (1..=LONGEST).contains(&length) && LENGTH + length + TAG <= came.len();
        fits.then(|| keys.crypt(sequence, &mut buffer, 0, length, MIDDLE_BLOCK))?
    } else {
        let first = if keys.encrypt_then_mac { LENGTH } else { 0 };
        let ends = (first + block..=came.len()).step_by(block);
        ends.enumerate().try_for_each(|(number, end)| {
            let mark = if number == 0 { FIRST_BLOCK } else { MIDDLE_BLOCK };
            keys.crypt(0, &mut buffer, end - block, block, mark)
        })
    };
    assert!(buffer.ends_with(&BEHIND), "written behind the packet");
    opened
}

/// Without a MAC of its own a cipher makes something of anything; the MAC, which libssh2 checks, ends it.
fn made_up(receiving: &mut Keys, sequence: u32, came: &[u8]) -> Option<()> {
    let opened = receive(receiving, sequence, came);
    assert!(opened.is_none() || !receiving.whole_packets(), "a made-up packet is authentic");
    None
}

fn private_key(wanted: &Wanted<'_>, came: &[u8]) {
    let mut keys = wanted.keys(Use::PrivateKey);
    let block = keys.method.blocksize.unsigned_abs() as usize;
    let tag = if keys.whole_packets() { TAG } else { 0 };
    // pem.c has seen to that.
    let Some(len) = came.len().checked_sub(tag).filter(|len| len % block == 0) else { return };
    let opened = keys.open_private_key(came);
    assert_eq!(opened.is_some(), tag == 0, "a made-up key file is authentic");
    assert!(opened.is_none_or(|opened| opened.len() == len));
}

/// A packet of ours, changed or not, and what comes out at the other end.
fn exchange(sending: &mut Keys, receiving: &mut Keys, sequence: u32, script: &mut Script<'_>) -> Option<()> {
    let block = sending.method.blocksize.unsigned_abs() as usize;
    let [blocks, at_high, at_low, change] = script.take()?;
    let text = (usize::from(blocks) + 1) * block.max(16);
    let apart = sending.whole_packets() || sending.method.flags & FLAG_LENGTH_IN_CLEAR != 0 || sending.encrypt_then_mac;
    let len = if apart { text } else { text - LENGTH };
    let plain = [&u32::try_from(len).unwrap_or(0).to_be_bytes()[..], &noise(text, len)].concat();
    let mut sealed = sending.seal(sequence, &plain).expect("sealed");
    let at = usize::from(u16::from_be_bytes([at_high, at_low])) % sealed.len();
    sealed[at] ^= change;
    if change == 0 {
        let opened = receiving.open(sequence, &sealed).expect("opened");
        // libssh2's chacha20 does not move the last four bytes, which are padding.
        let cares = plain.len() - if family_of_method(receiving) == CHACHA { LENGTH } else { 0 };
        assert!(opened[..cares] == plain[..cares], "something else comes out");
        return Some(());
    }
    let opened = receive(receiving, sequence, &sealed);
    assert!(opened.is_none() || !receiving.whole_packets(), "a changed packet is authentic");
    None
}

fn family_of_method(keys: &Keys) -> usize {
    // SAFETY: names are static strings.
    family_of(unsafe { CStr::from_ptr(keys.method.name) }.to_str().unwrap_or_default())
}
