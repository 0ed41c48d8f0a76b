//! libssh2's cipher table: whole-packet AES-GCM and chacha20-poly1305 and a keystream in advance for AES-CTR, instead
//! of one call for every 16 bytes, which made the cipher the speed limit of every program over libssh2.
//!
//! `ssh2_crypt_methods` returns a writable array of pointers to methods. Before our first handshake each slot whose
//! method is known gets a method of ours with the same name and sizes; all other slots stay. Nothing of libssh2 is
//! defined or changed otherwise. The table is the process's: other users of libssh2 in it get our methods too.
//!
//! * Whole-packet methods use a path that libssh2 has for its own chacha20 (`SSH2_CRYPT_FLAG_REQUIRES_FULL_PACKET`):
//!   one `get_len` and one `crypt` a packet. The ciphers themselves are OpenSSL's and RustCrypto's ([`gcm`],
//!   [`chacha`], [`ctr`]; safe code). Without the feature `fast-ciphers` none of them exists.
//! * What is left block-wise gets a guard in any case. libssh2 decrypts a packet block by block and `assert`s that what
//!   is left of it is a whole number of blocks (transport.c, `transport_decrypt`), also in release builds. With a MAC
//!   over the plain text it does so before the MAC is checked: one bit of a length flipped on the way, by anybody,
//!   ended the whole process. The guard refuses such a packet at its first block.
//! * A session that began before the methods were stored meets ours at its next key exchange: until that is over, its
//!   old contexts, made by libssh2, are worked on by libssh2's functions as before ([`Context::of`] tells them apart).
//! * libssh2 never begins a key exchange. A packet too many under one key is refused (RFC 4344 §3.1).

use std::ffi::{c_char, c_int, c_long, c_uint, c_void, CStr};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Once, OnceLock};

use libssh2_sys::LIBSSH2_SESSION;

use super::sys;

#[cfg(feature = "fast-ciphers")]
pub(crate) mod chacha;
#[cfg(feature = "fast-ciphers")]
pub(crate) mod ctr;
mod framing;
#[cfg(feature = "_faults")]
pub(crate) mod fuzzing;
#[cfg(feature = "fast-ciphers")]
pub(crate) mod gcm;
#[cfg(any(test, feature = "_faults"))]
mod harness;

#[cfg(feature = "fast-ciphers")]
use self::{chacha::ChaCha, ctr::Ctr, gcm::Gcm};
use framing::{Framing, LengthField, LENGTH};

/// The method carries its own MAC through `crypt`, piece by piece.
const FLAG_INTEGRATED_MAC: c_long = 1;
/// The packet length is not encrypted but authenticated: GCM.
const FLAG_LENGTH_IN_CLEAR: c_long = 2;
/// Whole packets only: one call a packet, and the length by a function of its own.
const FLAG_WHOLE_PACKET: c_long = 4;
/// In `firstlast`.
const FIRST_BLOCK: c_int = 1;
const MIDDLE_BLOCK: c_int = 0;
const LAST_BLOCK: c_int = 2;
/// What a method's functions return when they fail.
const FAILED: c_int = -12;
/// The authentication tag of AES-GCM and of Poly1305.
pub(crate) const TAG: usize = 16;
/// Packets that one key may be used for: beyond that the packet number, and with it chacha20's nonce, comes near its
/// repetition (RFC 4344 §3.1, RFC 4253 §9).
const PACKETS_PER_KEY: u32 = 1 << 31;
const WORN_SENDING: &str =
    "2147483648 packets were sent under one key: another one would weaken the encryption and is \
     not sent; only the server can begin a new key exchange (OpenSSH: RekeyLimit), libssh2 cannot";
const WORN_RECEIVING: &str = "2147483648 packets were received under one key: another one is refused, the encryption \
     would be weakened; only the server can begin a new key exchange (OpenSSH: RekeyLimit), libssh2 cannot";
const BAD_LENGTH: &str =
    "a packet failed its integrity check: its length is impossible under this cipher; it was damaged \
     or changed on its way";
#[cfg(feature = "fast-ciphers")]
const BAD_TAG: &str =
    "a packet failed its integrity check: its authentication tag is wrong; it was damaged or changed on \
     its way";

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
type LengthFn =
    unsafe extern "C" fn(*mut LIBSSH2_SESSION, c_uint, *mut u8, usize, *mut c_uint, *mut *mut c_void) -> c_int;
type CryptFn = unsafe extern "C" fn(*mut LIBSSH2_SESSION, c_uint, *mut u8, usize, *mut *mut c_void, c_int) -> c_int;
type DtorFn = unsafe extern "C" fn(*mut LIBSSH2_SESSION, *mut *mut c_void) -> c_int;

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
    get_len: Option<LengthFn>,
    crypt: Option<CryptFn>,
    dtor: Option<DtorFn>,
    algo: Option<unsafe extern "C" fn()>,
}

// SAFETY: the signature is that of crypt.c; a name that changes breaks the link, and the tests below look at what the
// methods found there say of themselves.
unsafe extern "C" {
    fn ssh2_crypt_methods() -> *mut *const CryptMethod;
}

/// Whose code encrypts with a cipher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Implementation {
    /// This library's: whole packets, or the keystream in advance.
    Threadline,
    /// libssh2's own: 16 bytes a call.
    Libssh2,
    /// Somebody else has put a method into libssh2's table before us.
    Other,
}

impl std::fmt::Display for Implementation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Implementation::Threadline => "threadline",
            Implementation::Libssh2 => "libssh2",
            Implementation::Other => "somebody else's",
        })
    }
}

/// The families of methods: each has functions of its own in libssh2.
const BLOCK_WISE: usize = 0;
const GCM: usize = 1;
const CHACHA: usize = 2;

/// Whether libssh2 hands the methods in this family's slots a packet a call.
const fn takes_whole_packets(family: usize) -> bool {
    family == CHACHA || (family == GCM && cfg!(feature = "fast-ciphers"))
}

/// libssh2's own functions of a family.
#[derive(Clone, Copy)]
struct Original {
    init: InitFn,
    get_len: Option<LengthFn>,
    crypt: CryptFn,
    dtor: DtorFn,
}

/// Known before anybody can get a method of ours: another thread may be in a handshake of its own right now.
static ORIGINAL: [OnceLock<Original>; 3] = [const { OnceLock::new() }; 3];

/// Stores our methods in libssh2's table, the first time.
pub(crate) fn install() {
    static STORED: Once = Once::new();
    // SAFETY: the table is a static, writable, NULL-terminated array of pointers to static structs of the layout above
    // (crypt.c); its pointers are read and written atomically because other threads may be reading. Ours live for
    // ever, as what they replace does.
    STORED.call_once(|| unsafe {
        for_each_slot(|_, method| remember(method));
        for_each_slot(|slot, method| {
            if let Some(ours) = replacement(method) {
                slot.store(ptr::from_mut(Box::leak(Box::new(ours))), Ordering::Release);
            }
        });
        if log::log_enabled!(log::Level::Debug) {
            let names: Vec<_> = in_use().into_iter().map(|(name, whose)| format!("{name} {whose}")).collect();
            log::debug!("ciphers: {}", names.join(", "));
        }
    });
}

/// The names in libssh2's table, in its order, and whose code is behind each.
pub(crate) fn in_use() -> Vec<(String, Implementation)> {
    let mut found = Vec::new();
    // SAFETY: as in `install`; names are static strings.
    unsafe {
        for_each_slot(|_, method| {
            let name = CStr::from_ptr(method.name).to_string_lossy().into_owned();
            found.push((name, whose(method)));
        });
    }
    found
}

/// Whose code is behind the cipher of this name.
pub(crate) fn implementation(name: &str) -> Implementation {
    let found = in_use().into_iter().find(|(known, _)| known == name);
    found.map_or(Implementation::Other, |(_, whose)| whose)
}

fn whose(method: &CryptMethod) -> Implementation {
    let address = |f: Option<CryptFn>| f.map_or(0, |f| f as usize);
    let crypt = address(method.crypt);
    let ours = [on_crypt::<BLOCK_WISE>, on_crypt::<GCM>, on_crypt::<CHACHA>].map(|f| address(Some(f)));
    if ours.contains(&crypt) {
        // A guard around libssh2's own work is libssh2's work.
        let fast = cfg!(feature = "fast-ciphers") && (crypt != ours[BLOCK_WISE] || is_ctr(method));
        return if fast { Implementation::Threadline } else { Implementation::Libssh2 };
    }
    let known = ORIGINAL.iter().any(|o| o.get().is_some_and(|o| o.crypt as usize == crypt));
    // Before anything was stored nobody can have replaced what we would recognise.
    if known || family(method).is_some() {
        Implementation::Libssh2
    } else {
        Implementation::Other
    }
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

/// Which family a method of the pinned libssh2 belongs to, by its name and all that it says of itself.
fn family(method: &CryptMethod) -> Option<usize> {
    // SAFETY: names are static strings.
    let name = unsafe { CStr::from_ptr(method.name) };
    let sizes = (method.blocksize, method.iv_len, method.secret_len, method.auth_len, method.flags);
    match name.to_bytes() {
        b"aes128-gcm@openssh.com" => {
            (sizes == (16, 12, 16, 16, FLAG_INTEGRATED_MAC | FLAG_LENGTH_IN_CLEAR)).then_some(GCM)
        }
        b"aes256-gcm@openssh.com" => {
            (sizes == (16, 12, 32, 16, FLAG_INTEGRATED_MAC | FLAG_LENGTH_IN_CLEAR)).then_some(GCM)
        }
        b"chacha20-poly1305@openssh.com" => (sizes == (8, 0, 64, 16, FLAG_WHOLE_PACKET)).then_some(CHACHA),
        _ => (method.blocksize > 1 && method.flags == 0).then_some(BLOCK_WISE),
    }
}

fn is_ctr(method: &CryptMethod) -> bool {
    // SAFETY: names are static strings.
    let name = unsafe { CStr::from_ptr(method.name) };
    matches!(name.to_bytes(), b"aes128-ctr" | b"aes192-ctr" | b"aes256-ctr")
}

fn remember(method: &CryptMethod) {
    let Some(family) = family(method) else { return };
    let (Some(init), Some(crypt), Some(dtor)) = (method.init, method.crypt, method.dtor) else { return };
    ORIGINAL[family].get_or_init(|| Original { init, get_len: method.get_len, crypt, dtor });
}

/// Our method for the place of `method`; `None` where we have none, or do not know what stands there.
fn replacement(method: &CryptMethod) -> Option<CryptMethod> {
    let family = family(method)?;
    let original = ORIGINAL[family].get()?;
    if method.crypt.map(|f| f as usize) != Some(original.crypt as usize) {
        return None;
    }
    let same = *method;
    Some(match family {
        GCM if cfg!(feature = "fast-ciphers") => CryptMethod {
            flags: FLAG_WHOLE_PACKET,
            init: Some(on_init::<GCM>),
            get_len: Some(on_length::<GCM>),
            crypt: Some(on_crypt::<GCM>),
            dtor: Some(on_dtor::<GCM>),
            ..same
        },
        // libssh2's own has no assertion, but packets to count: their number is the nonce.
        CHACHA => CryptMethod {
            init: Some(on_init::<CHACHA>),
            get_len: Some(on_length::<CHACHA>),
            crypt: Some(on_crypt::<CHACHA>),
            dtor: Some(on_dtor::<CHACHA>),
            ..same
        },
        // libssh2's own GCM has the assertion too.
        GCM => {
            CryptMethod { init: Some(on_init::<GCM>), crypt: Some(on_crypt::<GCM>), dtor: Some(on_dtor::<GCM>), ..same }
        }
        // Another `init` (arcfour128) would not be called by ours.
        _ if method.init.map(|f| f as usize) != Some(original.init as usize) => return None,
        _ => CryptMethod {
            init: Some(on_init::<BLOCK_WISE>),
            crypt: Some(on_crypt::<BLOCK_WISE>),
            dtor: Some(on_dtor::<BLOCK_WISE>),
            ..same
        },
    })
}

/// The keys of one direction of a session, or of one private key that is being read.
#[repr(C)]
struct Context {
    /// Tells our contexts from libssh2's: theirs begin with an `int` that is 0 or 1.
    magic: [u64; 2],
    cipher: Cipher,
    encrypt: bool,
    /// For a private key file (pem.c): no length before the text, nothing to count.
    private_key: bool,
    framing: Framing,
    /// Begun under this key.
    packets: u32,
}

enum Cipher {
    #[cfg(feature = "fast-ciphers")]
    Gcm(Gcm),
    #[cfg(feature = "fast-ciphers")]
    ChaCha(ChaCha),
    #[cfg(feature = "fast-ciphers")]
    Ctr(Ctr),
    /// A context of libssh2's, which its own function works on.
    Libssh2 { crypt: CryptFn, context: *mut c_void },
}

const MAGIC: [u64; 2] = [0x7468_7265_6164_6c69, 0x6e65_2063_6970_6865];

impl Context {
    /// The context behind libssh2's pointer if it is one of ours.
    ///
    /// # Safety
    ///
    /// `slot` must be the field in which libssh2 keeps what an `init` of the cipher table has stored there.
    unsafe fn of<'a>(slot: *mut *mut c_void) -> Option<&'a mut Context> {
        // SAFETY: the caller's promise; libssh2's own contexts are larger than 16 bytes and aligned for a pointer.
        unsafe {
            let context = *slot;
            if context.is_null() || context.cast::<[u64; 2]>().read_unaligned() != MAGIC {
                return None;
            }
            Some(&mut *context.cast::<Context>())
        }
    }

    /// Counts a packet that begins; false when it is one too many.
    fn may_begin(&mut self) -> bool {
        if cfg!(feature = "_faults") && sys::worn_key_wanted() {
            self.packets = PACKETS_PER_KEY;
        }
        if self.packets >= PACKETS_PER_KEY {
            sys::refuse_packet(if self.encrypt { WORN_SENDING } else { WORN_RECEIVING });
            return false;
        }
        self.packets += 1;
        true
    }

    /// Whether a call with these flags is the one by which its packet is counted: a whole packet's only one, or that with
    /// the first block. With encrypt-then-MAC libssh2 marks no first block when it sends.
    fn counts<const FAMILY: usize>(&self, firstlast: c_int) -> bool {
        let mark = if self.encrypt && self.framing.length == LengthField::Before { LAST_BLOCK } else { FIRST_BLOCK };
        !self.private_key && (takes_whole_packets(FAMILY) || firstlast & mark != 0)
    }
}

/// Runs a callback's body: what it refuses, and a panic, is a failure of the method.
fn method_call(body: impl FnOnce() -> Option<()>) -> c_int {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Some(())) => 0,
        Ok(None) => FAILED,
        Err(panic) => {
            sys::report_panic(&*panic);
            FAILED
        }
    }
}

unsafe extern "C" fn on_init<const FAMILY: usize>(
    session: *mut LIBSSH2_SESSION,
    method: *const CryptMethod,
    iv: *mut u8,
    free_iv: *mut c_int,
    secret: *mut u8,
    free_secret: *mut c_int,
    encrypt: c_int,
    private_key: c_int,
    slot: *mut *mut c_void,
) -> c_int {
    method_call(|| {
        // SAFETY: libssh2 passes the method that the table gave it.
        let method = unsafe { &*method };
        let cipher = match fast_cipher::<FAMILY>(method, iv, secret, encrypt != 0) {
            Some(cipher) => cipher?,
            None => {
                let original = ORIGINAL[FAMILY].get()?;
                let mut context = ptr::null_mut();
                // SAFETY: libssh2's own arguments, for the function that stood here before. It uses of the method only
                // what ours has from it.
                let rc = unsafe {
                    (original.init)(
                        session,
                        method,
                        iv,
                        free_iv,
                        secret,
                        free_secret,
                        encrypt,
                        private_key,
                        &mut context,
                    )
                };
                if rc != 0 {
                    return None;
                }
                Cipher::Libssh2 { crypt: original.crypt, context }
            }
        };
        let length = match private_key {
            // SAFETY: libssh2 passes a living session.
            0 => unsafe { length_field(session, method, encrypt) },
            // A private key has no MAC.
            _ => LengthField::Inside,
        };
        let context = Context {
            magic: MAGIC,
            cipher,
            encrypt: encrypt != 0,
            private_key: private_key != 0,
            framing: Framing { block: method.blocksize.unsigned_abs().max(1), length },
            packets: 0,
        };
        // SAFETY: libssh2 passes valid out-pointers. It wipes and frees IV and secret, of which the cipher has copies.
        unsafe {
            *free_iv = 1;
            *free_secret = 1;
            *slot = Box::into_raw(Box::new(context)).cast();
        }
        Some(())
    })
}

/// Our own cipher for the method: `None` if there is none, `Some(None)` if OpenSSL refuses it.
#[cfg(feature = "fast-ciphers")]
fn fast_cipher<const FAMILY: usize>(
    method: &CryptMethod,
    iv: *const u8,
    secret: *const u8,
    encrypt: bool,
) -> Option<Option<Cipher>> {
    let bytes = |at: *const u8, len: c_int| {
        if at.is_null() {
            return &[][..];
        }
        // SAFETY: libssh2 passes IV and secret with the lengths that the method states.
        unsafe { std::slice::from_raw_parts(at, len.unsigned_abs() as usize) }
    };
    let (iv, secret) = (bytes(iv, method.iv_len), bytes(secret, method.secret_len));
    match FAMILY {
        GCM => Some(Gcm::new(secret, iv, encrypt).map(Cipher::Gcm)),
        CHACHA => Some(ChaCha::new(secret).map(Cipher::ChaCha)),
        _ if is_ctr(method) => Some(Ctr::new(secret, iv).map(Cipher::Ctr)),
        _ => None,
    }
}

#[cfg(not(feature = "fast-ciphers"))]
fn fast_cipher<const FAMILY: usize>(_: &CryptMethod, _: *const u8, _: *const u8, _: bool) -> Option<Option<Cipher>> {
    None
}

/// Where the packet length stands in this direction.
///
/// # Safety
///
/// The session must be alive.
unsafe fn length_field(session: *mut LIBSSH2_SESSION, method: &CryptMethod, encrypt: c_int) -> LengthField {
    if method.flags & (FLAG_LENGTH_IN_CLEAR | FLAG_WHOLE_PACKET) != 0 {
        return LengthField::InClear;
    }
    let direction = if encrypt != 0 { libssh2_sys::LIBSSH2_METHOD_MAC_CS } else { libssh2_sys::LIBSSH2_METHOD_MAC_SC };
    // SAFETY: the session is alive; the name is static.
    let mac = unsafe {
        let name = libssh2_sys::libssh2_session_methods(session, direction);
        if name.is_null() {
            c""
        } else {
            CStr::from_ptr(name)
        }
    };
    if mac.to_bytes().ends_with(b"-etm@openssh.com") {
        LengthField::Before
    } else {
        LengthField::Inside
    }
}

unsafe extern "C" fn on_length<const FAMILY: usize>(
    session: *mut LIBSSH2_SESSION,
    sequence: c_uint,
    data: *mut u8,
    len: usize,
    length: *mut c_uint,
    slot: *mut *mut c_void,
) -> c_int {
    method_call(|| {
        if len < LENGTH {
            return None;
        }
        // SAFETY: libssh2 passes at least `len` bytes of a packet, its context, and an out-pointer.
        unsafe {
            let field = data.cast::<[u8; LENGTH]>().read();
            *length = match Context::of(slot) {
                Some(context) => {
                    let length = match &mut context.cipher {
                        #[cfg(feature = "fast-ciphers")]
                        Cipher::ChaCha(cipher) => cipher.length(sequence, field)?,
                        Cipher::Libssh2 { context: theirs, .. } => {
                            let get_len = ORIGINAL[FAMILY].get()?.get_len?;
                            if get_len(session, sequence, data, len, length, theirs) != 0 {
                                return None;
                            }
                            *length
                        }
                        #[cfg(feature = "fast-ciphers")]
                        Cipher::Gcm(_) | Cipher::Ctr(_) => u32::from_be_bytes(field),
                    };
                    context.framing.check(length)?;
                    length
                }
                None => {
                    let original = ORIGINAL[FAMILY].get()?;
                    match original.get_len {
                        Some(get_len) => {
                            return (get_len(session, sequence, data, len, length, slot) == 0).then_some(());
                        }
                        None => u32::from_be_bytes(field),
                    }
                }
            };
        }
        Some(())
    })
}

unsafe extern "C" fn on_crypt<const FAMILY: usize>(
    session: *mut LIBSSH2_SESSION,
    sequence: c_uint,
    data: *mut u8,
    len: usize,
    slot: *mut *mut c_void,
    firstlast: c_int,
) -> c_int {
    method_call(|| {
        // SAFETY: libssh2 passes the context's field.
        let Some(context) = (unsafe { Context::of(slot) }) else {
            let original = ORIGINAL[FAMILY].get()?;
            let crypt = |data: *mut u8, len: usize, firstlast| {
                // SAFETY: a context of libssh2's own, for the function that it was made for.
                (unsafe { (original.crypt)(session, sequence, data, len, slot, firstlast) } == 0).then_some(())
            };
            return if FAMILY == GCM && takes_whole_packets(GCM) {
                // SAFETY: libssh2 takes the method for a whole-packet one.
                unsafe { piece_by_piece(data, len, slot, crypt) }
            } else {
                crypt(data, len, firstlast)
            };
        };
        if context.counts::<FAMILY>(firstlast) && !context.may_begin() {
            return None;
        }
        match &mut context.cipher {
            Cipher::Libssh2 { crypt, context: theirs } => {
                // SAFETY: libssh2's own arguments and context, for the function that stood here before.
                if unsafe { crypt(session, sequence, data, len, theirs, firstlast) } != 0 {
                    return None;
                }
            }
            #[cfg(feature = "fast-ciphers")]
            // SAFETY: libssh2 passes `len` bytes to work on in place.
            Cipher::Ctr(cipher) => cipher.apply(unsafe { std::slice::from_raw_parts_mut(data, len) })?,
            #[cfg(feature = "fast-ciphers")]
            Cipher::Gcm(_) | Cipher::ChaCha(_) => {
                // SAFETY: libssh2 passes whole packets.
                return unsafe { whole_packet(context, sequence, data, len) };
            }
        }
        // SAFETY: `data` has `len` bytes.
        unsafe { first_block_is_possible(context, data, len, firstlast) }
    })
}

impl Framing {
    /// Refuses a length that the packet cannot have.
    fn check(self, length: u32) -> Option<()> {
        if !self.accepts(length) {
            sys::refuse_packet(BAD_LENGTH);
            return None;
        }
        Some(())
    }
}

/// Whether the first block of a packet leaves a whole number of blocks; for any other piece, yes.
///
/// # Safety
///
/// `data` must have `len` bytes, and what libssh2 keeps before them.
unsafe fn first_block_is_possible(context: &Context, data: *mut u8, len: usize, firstlast: c_int) -> Option<()> {
    if context.encrypt || context.private_key || firstlast & FIRST_BLOCK == 0 || len < LENGTH {
        return Some(());
    }
    let at = if context.framing.length == LengthField::Before { data.wrapping_sub(LENGTH) } else { data };
    // SAFETY: the block has at least four bytes; with encrypt-then-MAC libssh2 keeps the length right before it
    // (transport.c, `transport_fullpacket` decrypts `payload + 4`).
    let length = unsafe { at.cast::<[u8; LENGTH]>().read() };
    context.framing.check(u32::from_be_bytes(length))
}

/// What `crypt` of a whole-packet method does. Sending, `len` counts the length field, and there is room for the tag
/// behind. Receiving, `data` begins with the length field, which `len` does not count, the tag lies behind, and the
/// plain text has to be moved to where the length was. A private key has no length field.
///
/// # Safety
///
/// As said: `data` must have `len` bytes, the length field and the tag.
#[cfg(feature = "fast-ciphers")]
unsafe fn whole_packet(context: &mut Context, sequence: c_uint, data: *mut u8, len: usize) -> Option<()> {
    let header = if context.private_key { 0 } else { LENGTH };
    let all = if context.encrypt { len } else { header + len } + TAG;
    if len < header {
        return None;
    }
    // A key file's passphrase may be wrong; a packet was changed.
    let refused = || {
        if header > 0 {
            sys::refuse_packet(BAD_TAG);
        }
        None
    };
    // SAFETY: the caller's promise.
    let packet = unsafe { std::slice::from_raw_parts_mut(data, all) };
    match (&mut context.cipher, context.encrypt) {
        (Cipher::Gcm(cipher), true) => cipher.seal(packet, header)?,
        (Cipher::Gcm(cipher), false) => cipher.open(packet, header).or_else(refused)?,
        (Cipher::ChaCha(cipher), true) => cipher.seal(sequence, packet, header)?,
        (Cipher::ChaCha(cipher), false) => cipher.open(sequence, packet, header).or_else(refused)?,
        _ => return None,
    }
    if !context.encrypt && header > 0 {
        packet.copy_within(header..header + len, 0);
    }
    Some(())
}

/// A whole packet through libssh2's own GCM, in the pieces that libssh2 itself would make of it (transport.c).
///
/// # Safety
///
/// As [`whole_packet`]; `slot` holds a context that libssh2's own `init` made.
unsafe fn piece_by_piece(
    data: *mut u8,
    len: usize,
    slot: *mut *mut c_void,
    mut crypt: impl FnMut(*mut u8, usize, c_int) -> Option<()>,
) -> Option<()> {
    const BLOCK: usize = 16;
    // SAFETY: `struct crypt_ctx` begins with `int encrypt` (crypt.c).
    let encrypt = unsafe { *(*slot).cast::<c_int>() } != 0;
    let end = if encrypt { len } else { LENGTH + len + TAG };
    if len < BLOCK {
        return None;
    }
    let mut at = 0;
    while at < end {
        let left = end - at;
        let (piece, mark) = match at {
            0 => (BLOCK, FIRST_BLOCK),
            // The last piece has to hold the whole tag.
            _ if !encrypt && left < 2 * BLOCK => (left, LAST_BLOCK),
            _ => (BLOCK.min(left), MIDDLE_BLOCK),
        };
        crypt(data.wrapping_add(at), piece, mark)?;
        at += piece;
    }
    if encrypt {
        crypt(data.wrapping_add(end), TAG, LAST_BLOCK)?;
    } else {
        // SAFETY: the caller's promise.
        unsafe { ptr::copy(data.add(LENGTH), data, len) };
    }
    Some(())
}

unsafe extern "C" fn on_dtor<const FAMILY: usize>(session: *mut LIBSSH2_SESSION, slot: *mut *mut c_void) -> c_int {
    let rc = method_call(|| {
        // SAFETY: libssh2 passes the context's field, or null.
        if slot.is_null() || unsafe { (*slot).is_null() } {
            return Some(());
        }
        let original = ORIGINAL[FAMILY].get()?;
        // SAFETY: as above; each context is freed by who made it, once.
        unsafe {
            let Some(context) = Context::of(slot) else {
                (original.dtor)(session, slot);
                return Some(());
            };
            *slot = ptr::null_mut();
            let mut context = Box::from_raw(ptr::from_mut(context));
            match &mut context.cipher {
                Cipher::Libssh2 { context: theirs, .. } => {
                    (original.dtor)(session, theirs);
                }
                #[cfg(feature = "fast-ciphers")]
                Cipher::Gcm(_) | Cipher::ChaCha(_) | Cipher::Ctr(_) => {}
            }
        }
        Some(())
    });
    debug_assert_eq!(rc, 0, "a context that nobody can free");
    0
}

#[cfg(test)]
mod tests;
