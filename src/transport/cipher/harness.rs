//! The methods called as libssh2 calls them (transport.c, pem.c): for the unit tests and the fuzz target.

use std::iter;

use zeroize::Zeroize;

use super::*;

/// The method of this name in libssh2's table, once ours are stored there.
pub(super) fn method(name: &str) -> &'static CryptMethod {
    install();
    let mut found = None;
    // SAFETY: as in `install`; names are static strings, and methods live for ever.
    unsafe {
        for_each_slot(|_, method| {
            if CStr::from_ptr(method.name).to_bytes() == name.as_bytes() {
                found = Some(&*ptr::from_ref(method));
            }
        });
    }
    found.unwrap_or_else(|| panic!("libssh2 has no {name}"))
}

/// What keys are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Sending,
    Receiving,
    PrivateKey,
}

/// A context as libssh2 has one made, and its calls (transport.c, pem.c).
pub(super) struct Keys {
    session: ssh2::Session,
    pub method: &'static CryptMethod,
    pub slot: *mut c_void,
    pub encrypt_then_mac: bool,
}

impl Keys {
    pub fn new(name: &str, key: &[u8], iv: &[u8], wanted: Use) -> Keys {
        let method = method(name);
        Keys::by(method.init.unwrap(), method, key, iv, wanted)
    }

    #[cfg(feature = "fast-ciphers")]
    /// Made by libssh2's own `init`, as for a session that began before our methods were stored.
    pub fn before_us(name: &str, key: &[u8], iv: &[u8], wanted: Use) -> Keys {
        let method = method(name);
        let original = ORIGINAL[family_of(name)].get().unwrap();
        Keys::by(original.init, method, key, iv, wanted)
    }

    fn by(init: InitFn, method: &'static CryptMethod, key: &[u8], iv: &[u8], wanted: Use) -> Keys {
        let session = ssh2::Session::new().unwrap();
        let (mut iv, mut key) = (iv.to_vec(), key.to_vec());
        assert_eq!(
            (iv.len(), key.len()),
            (method.iv_len.unsigned_abs() as usize, method.secret_len.unsigned_abs() as usize)
        );
        let (mut free_iv, mut free_key, mut slot) = (0, 0, ptr::null_mut());
        // SAFETY: the arguments of libssh2's `init`, with IV and key of the lengths that the method states.
        let rc = unsafe {
            init(
                &mut *session.raw(),
                method,
                iv.as_mut_ptr(),
                &mut free_iv,
                key.as_mut_ptr(),
                &mut free_key,
                c_int::from(wanted == Use::Sending),
                c_int::from(wanted == Use::PrivateKey),
                &mut slot,
            )
        };
        assert_eq!((rc, free_iv, free_key), (0, 1, 1), "libssh2 wipes and frees IV and key");
        key.zeroize();
        Keys { session, method, slot, encrypt_then_mac: false }
    }

    /// The same for packets whose MAC covers the encrypted text.
    pub fn encrypt_then_mac(mut self) -> Keys {
        self.context().framing.length = LengthField::Before;
        self.encrypt_then_mac = true;
        self
    }

    pub fn context(&mut self) -> &mut Context {
        // SAFETY: the slot is what `init` was given.
        unsafe { Context::of(&mut self.slot) }.expect("a context of ours")
    }

    pub fn whole_packets(&self) -> bool {
        self.method.flags & FLAG_WHOLE_PACKET != 0
    }

    pub fn length(&mut self, sequence: u32, data: &mut [u8]) -> Option<u32> {
        let mut length = 0;
        let (get_len, session) = (self.method.get_len.unwrap(), ptr::from_mut(&mut *self.session.raw()));
        // SAFETY: as libssh2 calls it: all that has been received.
        let rc = unsafe { get_len(session, sequence, data.as_mut_ptr(), data.len(), &mut length, &mut self.slot) };
        (rc == 0).then_some(length)
    }

    /// `crypt` at this place of a buffer, which holds what libssh2 keeps before and behind it.
    pub fn crypt(&mut self, sequence: u32, buffer: &mut [u8], at: usize, len: usize, mark: c_int) -> Option<()> {
        let tag = if self.whole_packets() { TAG } else { 0 };
        let header = if self.whole_packets() && self.receives() { LENGTH } else { 0 };
        assert!(at + header + len + tag <= buffer.len());
        let (crypt, session) = (self.method.crypt.unwrap(), ptr::from_mut(&mut *self.session.raw()));
        // SAFETY: the buffer is as large as libssh2's, as the line above says.
        let rc = unsafe { crypt(session, sequence, buffer.as_mut_ptr().add(at), len, &mut self.slot, mark) };
        (rc == 0).then_some(())
    }

    fn receives(&self) -> bool {
        // SAFETY: ours or libssh2's, of which the first field tells; no private key is asked.
        unsafe {
            let mut slot = self.slot;
            match Context::of(&mut slot) {
                Some(context) => !context.encrypt && !context.private_key,
                None => *slot.cast::<c_int>() == 0,
            }
        }
    }

    /// The packet on the wire, but for its MAC. `plain` begins with the length.
    pub fn seal(&mut self, sequence: u32, plain: &[u8]) -> Option<Vec<u8>> {
        let mut packet = plain.to_vec();
        if self.whole_packets() {
            packet.extend([0; TAG]);
            self.crypt(sequence, &mut packet, 0, plain.len(), MIDDLE_BLOCK)?;
            return Some(packet);
        }
        if self.is_libssh2s_gcm() {
            packet.extend([0; TAG]);
            return self.gcm_in_pieces(packet, plain.len());
        }
        let block = self.method.blocksize.unsigned_abs() as usize;
        let mut at = if self.encrypt_then_mac { LENGTH } else { 0 };
        while at < packet.len() {
            let mark = match at {
                0 => FIRST_BLOCK,
                _ if at == packet.len() - block => LAST_BLOCK,
                _ => MIDDLE_BLOCK,
            };
            self.crypt(0, &mut packet, at, block, mark)?;
            at += block;
        }
        Some(packet)
    }

    /// The packet with its length as libssh2 gets it back.
    pub fn open(&mut self, sequence: u32, sealed: &[u8]) -> Option<Vec<u8>> {
        let mut packet = sealed.to_vec();
        if self.whole_packets() {
            let length = self.length(sequence, &mut packet)?;
            let len = packet.len() - LENGTH - TAG;
            if length as usize != len {
                return None;
            }
            self.crypt(sequence, &mut packet, 0, len, MIDDLE_BLOCK)?;
            packet.truncate(len);
            packet.splice(0..0, length.to_be_bytes());
            return Some(packet);
        }
        if self.is_libssh2s_gcm() {
            let end = packet.len();
            // The last piece has to hold all of the tag.
            let last = (end - TAG) / TAG * TAG;
            let mut packet = self.gcm_in_pieces(packet, last)?;
            packet.truncate(end - TAG);
            return Some(packet);
        }
        let block = self.method.blocksize.unsigned_abs() as usize;
        let first = if self.encrypt_then_mac { LENGTH } else { 0 };
        for at in (first..packet.len()).step_by(block) {
            let mark = match at {
                _ if at == first => FIRST_BLOCK,
                _ if at == packet.len() - block => LAST_BLOCK,
                _ => MIDDLE_BLOCK,
            };
            self.crypt(0, &mut packet, at, block, mark)?;
        }
        Some(packet)
    }

    /// Guarded, but for the rest as it was: GCM block by block, and the tag through `crypt` too.
    fn is_libssh2s_gcm(&self) -> bool {
        self.method.flags & FLAG_INTEGRATED_MAC != 0
    }

    /// Blocks up to `end`, and then all the rest in one.
    fn gcm_in_pieces(&mut self, mut packet: Vec<u8>, end: usize) -> Option<Vec<u8>> {
        for at in (0..end).step_by(TAG) {
            let mark = if at == 0 { FIRST_BLOCK } else { MIDDLE_BLOCK };
            self.crypt(0, &mut packet, at, TAG.min(end - at), mark)?;
        }
        let rest = packet.len() - end;
        self.crypt(0, &mut packet, end, rest, LAST_BLOCK)?;
        Some(packet)
    }

    /// What pem.c makes of the private part of a key file.
    pub fn open_private_key(&mut self, sealed: &[u8]) -> Option<Vec<u8>> {
        let mut buffer = sealed.to_vec();
        if self.whole_packets() {
            let len = buffer.len() - TAG;
            let (crypt, session) = (self.method.crypt.unwrap(), ptr::from_mut(&mut *self.session.raw()));
            // SAFETY: a private key has no length field; its tag lies behind.
            let rc = unsafe { crypt(session, 0, buffer.as_mut_ptr(), len, &mut self.slot, MIDDLE_BLOCK) };
            buffer.truncate(len);
            return (rc == 0).then_some(buffer);
        }
        let block = self.method.blocksize.unsigned_abs() as usize;
        for at in (0..buffer.len()).step_by(block) {
            self.crypt(0, &mut buffer, at, block, MIDDLE_BLOCK)?;
        }
        Some(buffer)
    }

    /// As libssh2 ends a context.
    pub fn end(&mut self) {
        let (dtor, session) = (self.method.dtor.unwrap(), ptr::from_mut(&mut *self.session.raw()));
        // SAFETY: libssh2's arguments; the slot is null after it.
        unsafe { dtor(session, &mut self.slot) };
        assert!(self.slot.is_null(), "the method forgets what it has freed");
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        // A failed assertion is enough.
        if !std::thread::panicking() {
            self.end();
            // libssh2 may call it for a context that is not there.
            self.end();
        }
    }
}

pub(super) fn family_of(name: &str) -> usize {
    match name {
        _ if name.ends_with("-gcm@openssh.com") => GCM,
        _ if name.starts_with("chacha20") => CHACHA,
        _ => BLOCK_WISE,
    }
}

/// Bytes that look random and are the same each time.
pub(super) fn noise(seed: usize, len: usize) -> Vec<u8> {
    let mut state = seed as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_be_bytes()[0]
    };
    iter::repeat_with(next).take(len).collect()
}
