//! Packet lengths that would abort the process.
//!
//! libssh2 decrypts a packet block by block and `assert`s that what is left of it is a whole number of blocks
//! (transport.c, `transport_decrypt`), also in release builds. With a MAC over the plain text it does so before the MAC
//! is checked: one bit of a length flipped on the way, by anybody, ended the whole process. So the block-wise methods in
//! libssh2's table are replaced, once, by copies that decrypt as before and refuse such a packet at its first block.
//! Private keys (pem.c uses the same table) and sessions that are not ours pass through untouched.

use std::ffi::{c_char, c_int, c_long, c_uint, c_void, CStr};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Once, OnceLock};

use libssh2_sys::LIBSSH2_SESSION;

use super::{in_callback, registry, Tap, ACTIVE};

/// The packet length is not encrypted but authenticated: GCM.
const FLAG_LENGTH_IN_CLEAR: c_long = 2;
/// Whole packets only: such a method gets the length by a function of its own, and no `assert` waits for it.
const FLAG_WHOLE_PACKET: c_long = 4;
/// In `firstlast`.
const FIRST_BLOCK: c_int = 1;
/// The bytes of a packet length.
const LENGTH: usize = 4;
const ERROR_DECRYPT: c_int = -12;

type InitFn = unsafe extern "C" fn(
    *mut LIBSSH2_SESSION,
    *const CryptMethod,
    *mut u8,
    *mut c_int,
    *mut u8,
    *mut c_int,
    c_int,
    c_int,
    *mut *mut c_void,
) -> c_int;
type CryptFn = unsafe extern "C" fn(*mut LIBSSH2_SESSION, c_uint, *mut u8, usize, *mut *mut c_void, c_int) -> c_int;
type Opaque = unsafe extern "C" fn();

/// `struct crypt_method` of libssh2_priv.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct CryptMethod {
    name: *const c_char,
    pem_annotation: *const c_char,
    blocksize: c_int,
    iv_len: c_int,
    secret_len: c_int,
    auth_len: c_int,
    flags: c_long,
    init: Option<InitFn>,
    get_len: Option<Opaque>,
    crypt: Option<CryptFn>,
    dtor: Option<Opaque>,
    algo: Option<Opaque>,
}

// SAFETY: the signature is that of crypt.c; a name that changes breaks the link, and the tests of `sys` look at what
// the methods found there say of themselves.
unsafe extern "C" {
    fn ssh2_crypt_methods() -> *mut *const CryptMethod;
}

/// The functions of libssh2's block-wise methods: all have the same two.
static ORIGINAL: OnceLock<Option<(InitFn, CryptFn)>> = OnceLock::new();

/// How packets of our receiving direction are framed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Framing {
    /// Where libssh2 keeps the context of this direction: tells its calls from all others.
    context: usize,
    block: u32,
    length: LengthField,
}

/// Where the packet length stands when the first block has been decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LengthField {
    /// In the block, as a part of what is encrypted.
    Inside,
    /// In the block, in the clear.
    InClear,
    /// Before the block, in the clear: encrypt-then-MAC.
    Before,
}

impl Framing {
    fn accepts(self, length: u32) -> bool {
        let blocks = match self.length {
            LengthField::Inside => length.checked_add(4),
            LengthField::InClear | LengthField::Before => Some(length),
        };
        blocks.is_some_and(|bytes| bytes >= self.block && bytes % self.block == 0)
    }
}

/// Replaces the methods, the first time.
pub(super) fn install() {
    static STORED: Once = Once::new();
    // The functions that ours call must be known before anybody can get ours: another thread may be in a handshake of
    // its own right now.
    let Some(found) = *ORIGINAL.get_or_init(common_functions) else { return };
    // SAFETY: the table is a static, writable, NULL-terminated array of pointers to static structs of the layout above
    // (crypt.c); its pointers are read and written atomically because other threads may be reading. The copies live for
    // ever, as what they replace does.
    STORED.call_once(|| unsafe {
        for_each_slot(|slot, method| {
            if has_functions(method, found) {
                let ours = CryptMethod { init: Some(on_init), crypt: Some(on_crypt), ..*method };
                slot.store(ptr::from_mut(Box::leak(Box::new(ours))), Ordering::Release);
            }
        });
    });
}

/// Those of the first block-wise method.
fn common_functions() -> Option<(InitFn, CryptFn)> {
    let mut found = None;
    // SAFETY: as in `install`.
    unsafe {
        for_each_slot(|_, method| {
            if found.is_none() && method.flags & FLAG_WHOLE_PACKET == 0 {
                found = method.init.zip(method.crypt);
            }
        });
    }
    found
}

fn has_functions(method: &CryptMethod, (init, crypt): (InitFn, CryptFn)) -> bool {
    let same = |a: Option<usize>, b: usize| a == Some(b);
    method.flags & FLAG_WHOLE_PACKET == 0
        && method.blocksize > 1
        && same(method.init.map(|f| f as usize), init as usize)
        && same(method.crypt.map(|f| f as usize), crypt as usize)
}

/// # Safety
///
/// The table must be what `install` says.
unsafe fn for_each_slot(mut visit: impl FnMut(&AtomicPtr<CryptMethod>, &CryptMethod)) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut slot = ssh2_crypt_methods();
        loop {
            let cell = AtomicPtr::from_ptr(slot.cast::<*mut CryptMethod>());
            let Some(method) = cell.load(Ordering::Acquire).as_ref() else { return };
            visit(cell, method);
            slot = slot.add(1);
        }
    }
}

unsafe extern "C" fn on_init(
    session: *mut LIBSSH2_SESSION,
    method: *const CryptMethod,
    iv: *mut u8,
    free_iv: *mut c_int,
    secret: *mut u8,
    free_secret: *mut c_int,
    encrypt: c_int,
    private_key: c_int,
    context: *mut *mut c_void,
) -> c_int {
    let Some(Some((init, _))) = ORIGINAL.get() else { return ERROR_DECRYPT };
    if encrypt == 0 && private_key == 0 {
        let tap = registry(|r| r.get(&(session as usize)).copied()).unwrap_or(0) as *const Tap;
        // SAFETY: libssh2 passes the method that it was given by the table, and a living session.
        let framing = unsafe { framing_of(session, &*method, context as usize) };
        in_callback(tap, (), |state| state.framing = Some(framing));
    }
    // SAFETY: libssh2's own arguments, for the function that stood here before.
    unsafe { init(session, method, iv, free_iv, secret, free_secret, encrypt, private_key, context) }
}

/// # Safety
///
/// The session must be alive.
unsafe fn framing_of(session: *mut LIBSSH2_SESSION, method: &CryptMethod, context: usize) -> Framing {
    // SAFETY: the session is alive; the name is static.
    let mac = unsafe {
        let name = libssh2_sys::libssh2_session_methods(session, libssh2_sys::LIBSSH2_METHOD_MAC_SC);
        if name.is_null() {
            c""
        } else {
            CStr::from_ptr(name)
        }
    };
    let length = if method.flags & FLAG_LENGTH_IN_CLEAR != 0 {
        LengthField::InClear
    } else if mac.to_bytes().ends_with(b"-etm@openssh.com") {
        LengthField::Before
    } else {
        LengthField::Inside
    };
    Framing { context, block: method.blocksize.unsigned_abs().max(1), length }
}

unsafe extern "C" fn on_crypt(
    session: *mut LIBSSH2_SESSION,
    sequence: c_uint,
    block: *mut u8,
    len: usize,
    context: *mut *mut c_void,
    firstlast: c_int,
) -> c_int {
    let Some(Some((_, crypt))) = ORIGINAL.get() else { return ERROR_DECRYPT };
    // SAFETY: libssh2's own arguments, for the function that stood here before.
    let rc = unsafe { crypt(session, sequence, block, len, context, firstlast) };
    let tap = ACTIVE.get();
    if rc != 0 || firstlast & FIRST_BLOCK == 0 || len < LENGTH || tap.is_null() {
        return rc;
    }
    in_callback(tap, ERROR_DECRYPT, |state| match state.framing {
        Some(framing) if framing.context == context as usize => {
            let at = if framing.length == LengthField::Before { block.wrapping_sub(LENGTH) } else { block };
            // SAFETY: the block has at least four bytes; with encrypt-then-MAC libssh2 keeps the length right before
            // it (transport.c, `transport_fullpacket` decrypts `payload + 4`).
            let length = unsafe { at.cast::<[u8; LENGTH]>().read() };
            if framing.accepts(u32::from_be_bytes(length)) {
                0
            } else {
                ERROR_DECRYPT
            }
        }
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_blocks_are_accepted() {
        let with = |length| Framing { context: 0, block: 16, length };
        for (length, bad, good) in [
            (LengthField::Inside, [0, 1, 13, 16, u32::MAX], [12, 28, 32764]),
            (LengthField::InClear, [0, 1, 12, 15, u32::MAX], [16, 32, 32768]),
            (LengthField::Before, [0, 1, 12, 17, u32::MAX], [16, 32, 32768]),
        ] {
            assert!(good.iter().all(|&n| with(length).accepts(n)), "{length:?}");
            assert!(!bad.iter().any(|&n| with(length).accepts(n)), "{length:?}");
        }
    }

    #[test]
    fn every_block_wise_method_of_the_table_is_ours() {
        install();
        install();
        let mut seen = Vec::new();
        // SAFETY: as in `install`; names are static strings.
        unsafe {
            for_each_slot(|_, method| {
                let name = CStr::from_ptr(method.name).to_str().unwrap().to_owned();
                let ours = method.crypt.map(|f| f as usize) == Some(on_crypt as CryptFn as usize);
                assert_eq!(ours, method.flags & FLAG_WHOLE_PACKET == 0, "{name}");
                seen.push((name, method.blocksize, method.secret_len));
            });
        }
        // What the struct's layout makes of methods that everybody knows.
        for known in [("aes128-ctr", 16, 16), ("aes256-ctr", 16, 32), ("aes256-gcm@openssh.com", 16, 32)] {
            assert!(seen.contains(&(known.0.to_owned(), known.1, known.2)), "{known:?} in {seen:?}");
        }
    }
}
