//! The unsafe room: libssh2's undeclared symbols, its method slot and its callbacks, behind safe functions.
//!
//! Everything here rests on facts of the pinned libssh2-sys (see SECURITY.md for how a new one is adopted):
//!
//! * `ssh2_comp_methods` returns a writable table. Our own "none" is stored in its slot once; libssh2 then shows us
//!   each decrypted payload of a session of ours before it acts on it.
//! * What was taken counts only when the SSH_MSG_IGNORE left in its place has passed the MAC check (the IGNORE
//!   callback): for non-AEAD ciphers the payload is shown *before* a bad MAC is rejected.
//! * SEND always takes the whole packet into our out-buffer, so libssh2 never owns a half-sent packet.
//!
//! No Rust reference to the [`Tap`] lives across a call into C: callbacks reach it through a cell that refuses
//! overlapping borrows instead of aliasing. No panic leaves a callback.

pub(crate) mod poll;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::ffi::{c_char, c_int, c_long, c_void, CStr};
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, PoisonError};

use libssh2_sys::LIBSSH2_SESSION;
use ssh2::Session;

use super::chunk::Pool;
use super::cipher;
use super::fault::{self, Fault};
use super::socket::Socket;

/// "Try again later."
pub(crate) const EAGAIN: c_int = -37;
/// "The peer broke the protocol", as our decompressor says it.
const ERROR_PROTO: c_int = -14;
const ERROR_ALLOC: c_int = -6;

const CALLBACK_IGNORE: c_int = 0;
const CALLBACK_DISCONNECT: c_int = 2;
const CALLBACK_SEND: c_int = 5;
const CALLBACK_RECV: c_int = 6;

const MSG_IGNORE: u8 = 2;
const MSG_KEXINIT: u8 = 20;
const MSG_USERAUTH_BANNER: u8 = 53;
const MSG_NEWKEYS: u8 = 21;
/// The first message number of the connection protocol (RFC 4250 §4.1.2).
const FIRST_CONNECTION_MESSAGE: u8 = 80;
/// Messages of one key exchange that libssh2 may be shown; it keeps what it does not expect, for ever.
const MAX_EXCHANGE_MESSAGES: u32 = 64;

type InitFn = unsafe extern "C" fn(*mut LIBSSH2_SESSION, c_int, *mut *mut c_void) -> c_int;
type CompFn =
    unsafe extern "C" fn(*mut LIBSSH2_SESSION, *mut u8, *mut usize, *const u8, usize, *mut *mut c_void) -> c_int;
type DecompFn = unsafe extern "C" fn(
    *mut LIBSSH2_SESSION,
    *mut *mut u8,
    *mut usize,
    usize,
    *const u8,
    usize,
    *mut *mut c_void,
) -> c_int;
type GenericCallback = unsafe extern "C" fn();
type SignFn =
    unsafe extern "C" fn(*mut LIBSSH2_SESSION, *mut *mut u8, *mut usize, *const u8, usize, *mut *mut c_void) -> c_int;

/// `struct comp_method` of libssh2_priv.h.
#[repr(C)]
struct CompMethod {
    name: *const c_char,
    compress: c_int,
    use_in_auth: c_int,
    init: Option<InitFn>,
    comp: Option<CompFn>,
    decomp: Option<DecompFn>,
    dtor: Option<InitFn>,
}

// SAFETY: the struct is immutable and points to static data and functions only.
unsafe impl Sync for CompMethod {}

// SAFETY: the signatures are those of the bundled libssh2 (comp.c, transport.c, packet.c, libssh2.h, libssh2_priv.h);
// a name that changes breaks the link, and the test `the_seam_matches_the_bundled_library` checks the rest.
unsafe extern "C" {
    fn ssh2_comp_methods(session: *mut LIBSSH2_SESSION) -> *mut *const CompMethod;
    fn ssh2_transport_read(session: *mut LIBSSH2_SESSION) -> c_int;
    fn ssh2_transport_send(
        session: *mut LIBSSH2_SESSION,
        data: *const u8,
        data_len: usize,
        data2: *const u8,
        data2_len: usize,
    ) -> c_int;
    fn ssh2_packet_ask(
        session: *mut LIBSSH2_SESSION,
        kind: u8,
        data: *mut *mut u8,
        data_len: *mut usize,
        match_offset: c_int,
        match_bytes: *const u8,
        match_len: usize,
    ) -> c_int;
    fn ssh2_packet_add(
        session: *mut LIBSSH2_SESSION,
        data: *mut u8,
        data_len: usize,
        mac_state: c_int,
        seq: u32,
    ) -> c_int;
    fn libssh2_session_callback_set2(
        session: *mut LIBSSH2_SESSION,
        kind: c_int,
        callback: Option<GenericCallback>,
    ) -> Option<GenericCallback>;
    fn libssh2_session_set_read_timeout(session: *mut LIBSSH2_SESSION, seconds: c_long);
    fn libssh2_session_set_last_error(session: *mut LIBSSH2_SESSION, code: c_int, message: *const c_char) -> c_int;
    fn libssh2_version(required: c_int) -> *const c_char;
    /// libcrypto's, which the bundled libssh2 is linked with on every Unix.
    fn OpenSSL_version(kind: c_int) -> *const c_char;
    fn libssh2_userauth_publickey(
        session: *mut LIBSSH2_SESSION,
        username: *const c_char,
        public_key: *const u8,
        public_key_len: usize,
        sign: SignFn,
        context: *mut *mut c_void,
    ) -> c_int;
}

/// The versions of libssh2 and of OpenSSL that this process runs with, as they say it.
pub(crate) fn versions() -> (String, String) {
    // SAFETY: both return a static NUL-terminated text for 0 (OPENSSL_VERSION), or null.
    let texts = unsafe { [libssh2_version(0), OpenSSL_version(0)] };
    let [libssh2, openssl] = texts.map(|text| match NonNull::new(text.cast_mut()) {
        // SAFETY: see above.
        Some(text) => unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned(),
        None => "unknown".to_owned(),
    });
    (libssh2, openssl)
}

/// Puts our method into libssh2's table as a connection does, or says why that is impossible.
pub(crate) fn check_seam() -> Result<(), String> {
    let session = Session::new().map_err(|e| format!("libssh2 cannot make a session: {}", e.message()))?;
    let raw = NonNull::from(&mut *session.raw());
    install_method(raw)
}

/// Our method in the place of libssh2's "none".
static TAP_METHOD: CompMethod = CompMethod {
    name: c"none".as_ptr(),
    compress: 1,
    // Not for what is taken, but to see a key exchange begin before anybody is logged in.
    use_in_auth: 1,
    init: Some(on_init),
    comp: Some(on_comp),
    decomp: Some(on_decomp),
    dtor: None,
};

/// Sessions of ours that are alive: session address -> tap address.
///
/// A mutex because libssh2 calls `init` on whichever thread does a handshake, also for sessions that are not ours.
static REGISTRY: Mutex<Option<HashMap<usize, usize>>> = Mutex::new(None);

thread_local! {
    /// The tap of the session that this thread is calling into; the socket callbacks get nothing else to go by.
    static ACTIVE: Cell<*const Tap> = const { Cell::new(ptr::null()) };
}

/// What the server said when it disconnected (RFC 4253 §11.1).
#[derive(Debug, Clone)]
pub(crate) struct Disconnected {
    pub reason: u32,
    pub text: String,
}

/// What the callbacks work on: the socket, and the payloads on their way to us.
pub(crate) struct TapState {
    pub socket: Socket,
    pub pool: Pool,
    /// Payloads of 80 and up and KEXINIT are taken; before authentication ends nothing is, and KEXINIT is refused.
    on: bool,
    /// Taken, but not yet behind the MAC check.
    pending: Option<Vec<u8>>,
    /// Behind the MAC check, in order.
    pub committed: VecDeque<Vec<u8>>,
    /// How often the receiving direction got keys.
    pub inits: u32,
    /// A KEXINIT was committed and the keys it leads to are not there yet.
    pub exchanging: bool,
    exchange_messages: u32,
    pub disconnected: Option<Disconnected>,
    /// Why the connection cannot go on, when a callback found out.
    pub violation: Option<&'static str>,
    /// A callback panicked; the text of the panic.
    pub panicked: Option<String>,
    /// A test's wish to see a callback panic.
    pub fault: Option<Fault>,
}

struct Tap {
    state: RefCell<TapState>,
}

/// One libssh2 session, ours alone: all calls go through here, with the callbacks' state made findable around them.
pub(crate) struct RawSession {
    /// `None` only while being dropped.
    session: Option<Session>,
    raw: NonNull<LIBSSH2_SESSION>,
    tap: NonNull<Tap>,
}

// SAFETY: the session and the tap are owned by this value alone and used by one thread at a time (`&mut self`);
// libssh2 keeps no thread-local state.
unsafe impl Send for RawSession {}

/// The file descriptor as `ssh2::Session` wants it, without ownership: the [`Socket`] owns it.
struct BorrowedSocket(RawFd);

impl AsRawFd for BorrowedSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0
    }
}

impl RawSession {
    /// A non-blocking session over the socket with our callbacks and our method in place, before its handshake.
    pub fn new(socket: Socket, pool: Pool) -> Result<RawSession, String> {
        let mut session = Session::new().map_err(|e| format!("libssh2 cannot make a session: {}", e.message()))?;
        session.set_blocking(false);
        session.set_tcp_stream(BorrowedSocket(socket.as_raw_fd()));
        // The guard is released at once; the pointer stays valid as long as the only `Session` does.
        let raw = NonNull::from(&mut *session.raw());
        let state = TapState {
            socket,
            pool,
            on: false,
            pending: None,
            committed: VecDeque::new(),
            inits: 0,
            exchanging: false,
            exchange_messages: 0,
            disconnected: None,
            violation: None,
            panicked: None,
            fault: None,
        };
        let tap = NonNull::from(Box::leak(Box::new(Tap { state: RefCell::new(state) })));
        let raw_session = RawSession { session: Some(session), raw, tap };
        install_method(raw)?;
        cipher::install();
        register(raw, tap);
        raw_session.set_callbacks();
        Ok(raw_session)
    }

    fn set_callbacks(&self) {
        // SAFETY: the session is alive; each function has the signature that libssh2.h documents for its type number,
        // and the read timeout (which also acts in non-blocking mode, LIBSSH2 "requirev") is plain data.
        unsafe {
            let set = |kind, f: *const ()| {
                libssh2_session_callback_set2(
                    self.raw.as_ptr(),
                    kind,
                    Some(std::mem::transmute::<*const (), GenericCallback>(f)),
                );
            };
            set(CALLBACK_IGNORE, on_ignore as *const ());
            set(CALLBACK_DISCONNECT, on_disconnect as *const ());
            set(CALLBACK_SEND, on_send as *const ());
            set(CALLBACK_RECV, on_recv as *const ());
            libssh2_session_set_read_timeout(self.raw.as_ptr(), c_int::MAX.into());
        }
    }

    /// Calls the `ssh2` crate with the callbacks' state in reach.
    pub fn call<T>(&mut self, f: impl FnOnce(&mut Session) -> T) -> T {
        let _entered = Entered::new(self.tap);
        f(self.session.as_mut().expect("the session lives until drop"))
    }

    /// Looks at, or changes, what the callbacks work on. `f` must not call libssh2.
    pub fn with<R>(&self, f: impl FnOnce(&mut TapState) -> R) -> R {
        // SAFETY: the tap was leaked by `new` and is freed only by `drop`.
        let tap = unsafe { self.tap.as_ref() };
        f(&mut tap.state.borrow_mut())
    }

    /// From now on payloads of 80 and up and KEXINIT come to us. Call right after authentication.
    pub fn open_tap(&mut self) {
        self.with(|t| t.on = true);
    }

    /// Reads and acts on at most one packet: > 0 its type, [`EAGAIN`] nothing more, anything else is the end.
    pub fn transport_read(&mut self) -> c_int {
        let _entered = Entered::new(self.tap);
        // SAFETY: the session is alive and no Rust reference to the tap is held.
        unsafe { ssh2_transport_read(self.raw.as_ptr()) }
    }

    /// Sends one payload given in two parts: 0 taken, [`EAGAIN`] a key exchange runs, anything else is the end.
    pub fn transport_send(&mut self, head: &[u8], body: &[u8]) -> c_int {
        let _entered = Entered::new(self.tap);
        let body_ptr = if body.is_empty() { ptr::null() } else { body.as_ptr() };
        // SAFETY: the session is alive; both slices are copied before the call returns.
        unsafe { ssh2_transport_send(self.raw.as_ptr(), head.as_ptr(), head.len(), body_ptr, body.len()) }
    }

    /// Hands a payload to libssh2 as if it had just been received (used for KEXINIT).
    pub fn packet_add(&mut self, payload: &[u8]) -> c_int {
        let Some(copy) = malloc_copy(payload) else { return ERROR_ALLOC };
        let _entered = Entered::new(self.tap);
        // SAFETY: libssh2 takes ownership of the malloc'ed copy on every path (packet.c) and frees it by free(),
        // the allocator that `Session::new` chose.
        unsafe { ssh2_packet_add(self.raw.as_ptr(), copy, payload.len(), 0, 0) }
    }

    /// libssh2's last error on this session, with its words.
    pub fn last_error(&self) -> Option<(c_int, String)> {
        let mut text: *mut c_char = ptr::null_mut();
        let mut len: c_int = 0;
        // SAFETY: the session is alive; libssh2 returns a pointer that is valid until its next call, copied at once.
        let code = unsafe { libssh2_sys::libssh2_session_last_error(self.raw.as_ptr(), &mut text, &mut len, 0) };
        if code == 0 {
            return None;
        }
        if text.is_null() {
            return Some((code, String::new()));
        }
        // SAFETY: as above, NUL-terminated.
        let text = unsafe { CStr::from_ptr(text) };
        Some((code, text.to_string_lossy().into_owned()))
    }

    /// Forgets libssh2's last error, so that one that is there later is new.
    pub fn clear_error(&mut self) {
        // SAFETY: the session is alive; the text is static.
        unsafe { libssh2_session_set_last_error(self.raw.as_ptr(), 0, c"".as_ptr()) };
    }

    /// What the server accepts, asked with the method "none" (RFC 4252 §5.2); `None`: it accepted "none".
    /// The error is libssh2's code and words.
    pub fn userauth_list(&mut self, user: &CStr) -> Result<Option<Vec<u8>>, (c_int, String)> {
        let entered = Entered::new(self.tap);
        let len = u32::try_from(user.to_bytes().len()).unwrap_or(u32::MAX);
        // SAFETY: the session is alive; the user's bytes are copied before the call returns; the answer is
        // NUL-terminated, owned by libssh2 and copied at once.
        let list = unsafe {
            let list = libssh2_sys::libssh2_userauth_list(self.raw.as_ptr(), user.as_ptr(), len);
            if list.is_null() {
                None
            } else {
                Some(CStr::from_ptr(list).to_bytes().to_vec())
            }
        };
        drop(entered);
        if let Some(list) = list {
            return Ok(Some(list));
        }
        // SAFETY: as above.
        if unsafe { libssh2_sys::libssh2_userauth_authenticated(self.raw.as_ptr()) } != 0 {
            return Ok(None);
        }
        Err(self.last_error().unwrap_or((ERROR_PROTO, "no answer to the question for methods".into())))
    }

    /// Banners (RFC 4252 §5.4) that libssh2 has received and not looked at: it does so only in
    /// [`userauth_list`](RawSession::userauth_list).
    pub fn take_unread_banners(&mut self) -> Vec<Vec<u8>> {
        let _entered = Entered::new(self.tap);
        let mut banners = Vec::new();
        loop {
            let (mut data, mut len) = (ptr::null_mut(), 0);
            // SAFETY: the session is alive; the packet that is handed over was malloc'ed by libssh2's default allocator,
            // is ours from here on and is freed once.
            unsafe {
                if ssh2_packet_ask(self.raw.as_ptr(), MSG_USERAUTH_BANNER, &mut data, &mut len, 0, ptr::null(), 0) != 0
                {
                    return banners;
                }
                banners.push(std::slice::from_raw_parts(data, len).to_vec());
                libc::free(data.cast());
            }
        }
    }

    /// Public-key authentication (RFC 4252 §7) with a signature made by `sign`, which gets the bytes to sign and
    /// returns the bare signature. May be called again after [`EAGAIN`]; `sign` runs at most once per attempt.
    pub fn userauth_publickey(
        &mut self,
        user: &CStr,
        public_key: &[u8],
        mut sign: &mut dyn FnMut(&[u8]) -> Option<Vec<u8>>,
    ) -> c_int {
        let _entered = Entered::new(self.tap);
        let mut context = ptr::from_mut(&mut sign).cast::<c_void>();
        // SAFETY: `context` points to `sign` (a fat reference on this stack frame), which outlives the call; libssh2
        // uses it only to call `on_sign` within the call.
        unsafe {
            libssh2_userauth_publickey(
                self.raw.as_ptr(),
                user.as_ptr(),
                public_key.as_ptr(),
                public_key.len(),
                on_sign,
                &mut context,
            )
        }
    }

    /// Sends SSH_MSG_DISCONNECT "by application". The last call before the drop: it ends a running key exchange.
    pub fn disconnect(&mut self) {
        self.call(|session| {
            let _ = session.disconnect(Some(ssh2::DisconnectCode::ByApplication), "closed by user", None);
        });
    }
}

impl Drop for RawSession {
    fn drop(&mut self) {
        unregister(self.raw);
        {
            let _entered = Entered::new(self.tap);
            // With no channel of libssh2's and no half-sent packet the free cannot say EAGAIN.
            drop(self.session.take());
        }
        // SAFETY: leaked by `new`, reachable by nobody after the session is gone and unregistered.
        drop(unsafe { Box::from_raw(self.tap.as_ptr()) });
    }
}

/// Makes a tap the current one for this thread, and the former one again at the end.
struct Entered {
    former: *const Tap,
}

impl Entered {
    fn new(tap: NonNull<Tap>) -> Entered {
        Entered { former: ACTIVE.replace(tap.as_ptr()) }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        ACTIVE.set(self.former);
    }
}

fn registry<R>(f: impl FnOnce(&mut HashMap<usize, usize>) -> R) -> R {
    let mut guard = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
    f(guard.get_or_insert_with(HashMap::new))
}

fn register(raw: NonNull<LIBSSH2_SESSION>, tap: NonNull<Tap>) {
    registry(|r| r.insert(raw.as_ptr() as usize, tap.as_ptr() as usize));
}

fn unregister(raw: NonNull<LIBSSH2_SESSION>) {
    registry(|r| r.remove(&(raw.as_ptr() as usize)));
}

/// Stores our "none" in libssh2's table of compression methods, where libssh2's own stood.
fn install_method(raw: NonNull<LIBSSH2_SESSION>) -> Result<(), String> {
    // SAFETY: the session is alive; the table is a static, writable, NULL-terminated array of pointers to static
    // structs of the layout above (comp.c). The slot is read and written atomically because other threads may
    // do the same; libssh2 itself only reads whole pointers.
    unsafe {
        let mut slot = ssh2_comp_methods(raw.as_ptr());
        if slot.is_null() {
            return Err("libssh2 has no table of compression methods".into());
        }
        loop {
            let cell = AtomicPtr::from_ptr(slot.cast::<*mut CompMethod>());
            let found = cell.load(Ordering::Acquire);
            if found.is_null() {
                return Err("libssh2's table of compression methods has no \"none\"".into());
            }
            if CStr::from_ptr((*found).name) == c"none" {
                let ours = ptr::from_ref(&TAP_METHOD).cast_mut();
                if found == ours {
                    return Ok(());
                }
                if (*found).compress != 0 || (*found).init.is_some() {
                    return Err("somebody else has replaced libssh2's \"none\" method".into());
                }
                cell.store(ours, Ordering::Release);
                return Ok(());
            }
            slot = slot.add(1);
        }
    }
}

/// A malloc'ed copy, for libssh2 to free.
fn malloc_copy(bytes: &[u8]) -> Option<*mut u8> {
    // SAFETY: malloc of at least one byte, then a copy of `len` bytes into it; the two do not overlap.
    unsafe {
        let copy = libc::malloc(bytes.len().max(1)).cast::<u8>();
        if copy.is_null() {
            return None;
        }
        ptr::copy_nonoverlapping(bytes.as_ptr(), copy, bytes.len());
        Some(copy)
    }
}

/// Runs a callback's body on the current tap; without one, or when it panics, the answer is `otherwise`.
fn in_callback<R: Copy>(tap: *const Tap, otherwise: R, body: impl FnOnce(&mut TapState) -> R) -> R {
    if tap.is_null() {
        return otherwise;
    }
    // SAFETY: a tap lives until its `RawSession` is dropped, which is what called libssh2 if we are here.
    let tap = unsafe { &*tap };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut state = tap.state.borrow_mut();
        body(&mut state)
    }));
    outcome.unwrap_or_else(|panic| {
        if let Ok(mut state) = tap.state.try_borrow_mut() {
            state.panicked = Some(fault::panic_text(&*panic));
        }
        otherwise
    })
}

/// Says why a packet of the session that this thread is calling into is refused.
pub(super) fn refuse_packet(why: &'static str) {
    in_callback(ACTIVE.get(), (), |state| state.violation = Some(why));
}

/// Marks the session that this thread is calling into as one in whose callback something panicked.
pub(super) fn report_panic(panic: &(dyn std::any::Any + Send)) {
    in_callback(ACTIVE.get(), (), |state| state.panicked = Some(fault::panic_text(panic)));
}

/// Whether a test wants the next packet to be one too many under its key; once.
pub(super) fn worn_key_wanted() -> bool {
    in_callback(ACTIVE.get(), false, |state| state.fault.take_if(|f| *f == Fault::WornKey).is_some())
}

unsafe extern "C" fn on_init(session: *mut LIBSSH2_SESSION, compress: c_int, context: *mut *mut c_void) -> c_int {
    let tap = registry(|r| r.get(&(session as usize)).copied());
    // Null (sending, or not ours) makes libssh2 leave the payload alone.
    let tap = if compress == 0 { tap.unwrap_or(0) as *const Tap } else { ptr::null() };
    // SAFETY: libssh2 passes the address of its `comp_abstract` field.
    unsafe { *context = tap.cast_mut().cast() };
    in_callback(tap, 0, |state| {
        fault::strike(&mut state.fault, Fault::Init);
        state.inits += 1;
        state.exchanging = false;
        state.exchange_messages = 0;
        0
    })
}

unsafe extern "C" fn on_comp(
    _session: *mut LIBSSH2_SESSION,
    _dest: *mut u8,
    _dest_len: *mut usize,
    _src: *const u8,
    _src_len: usize,
    _context: *mut *mut c_void,
) -> c_int {
    // Never called: the sending direction's context is NULL.
    ERROR_PROTO
}

unsafe extern "C" fn on_decomp(
    _session: *mut LIBSSH2_SESSION,
    dest: *mut *mut u8,
    dest_len: *mut usize,
    _limit: usize,
    src: *const u8,
    src_len: usize,
    context: *mut *mut c_void,
) -> c_int {
    if src.is_null() || src_len == 0 {
        return ERROR_PROTO;
    }
    // SAFETY: libssh2 passes its payload buffer and length; the context is what `on_init` stored.
    let (payload, tap) = unsafe { (std::slice::from_raw_parts(src, src_len), (*context).cast::<Tap>()) };
    let kept = in_callback(tap, Err(ERROR_PROTO), |state| state.filter(payload));
    let left: &[u8] = match kept {
        Ok(Left::Unchanged) => payload,
        Ok(Left::Ignore) => &[MSG_IGNORE],
        Err(code) => return code,
    };
    let Some(copy) = malloc_copy(left) else { return ERROR_ALLOC };
    // SAFETY: libssh2 passes valid out-pointers and frees `*dest` by free().
    unsafe {
        *dest = copy;
        *dest_len = left.len();
    }
    0
}

/// What libssh2 gets to see of a payload.
#[derive(Clone, Copy)]
enum Left {
    Unchanged,
    Ignore,
}

impl TapState {
    fn filter(&mut self, payload: &[u8]) -> Result<Left, c_int> {
        fault::strike(&mut self.fault, Fault::Decomp);
        // Whatever comes: what was taken and not committed by now never will be.
        if let Some(stale) = self.pending.take() {
            self.pool.put(stale);
        }
        if !self.on {
            // libssh2 would run it on its own: it crashes on a packet split behind KEXINIT, and on another cipher.
            // OpenSSH's server does not begin one so early either.
            if payload[0] == MSG_KEXINIT {
                return self.refuse("a second key exchange before the login was complete");
            }
            return Ok(Left::Unchanged);
        }
        match payload[0] {
            number if number >= FIRST_CONNECTION_MESSAGE => {
                if self.exchanging {
                    return self.refuse("a message of the connection protocol inside a key exchange");
                }
                self.take(payload);
                Ok(Left::Ignore)
            }
            MSG_KEXINIT => {
                if self.exchanging {
                    return self.refuse("a second KEXINIT inside a key exchange");
                }
                self.take(payload);
                Ok(Left::Ignore)
            }
            // DISCONNECT, IGNORE, DEBUG, EXT_INFO: libssh2 acts on them and keeps nothing.
            1 | MSG_IGNORE | 4 | 7 => Ok(Left::Unchanged),
            MSG_NEWKEYS if self.exchanging && self.exchange_messages == 0 => {
                self.refuse("NEWKEYS before the key exchange was done")
            }
            MSG_NEWKEYS | 30..=49 if self.exchanging => {
                self.exchange_messages += 1;
                if self.exchange_messages > MAX_EXCHANGE_MESSAGES {
                    return self.refuse("too many messages in one key exchange");
                }
                Ok(Left::Unchanged)
            }
            // libssh2 would keep these for ever.
            _ => Ok(Left::Ignore),
        }
    }

    fn take(&mut self, payload: &[u8]) {
        let mut buffer = self.pool.get();
        buffer.extend_from_slice(payload);
        self.pending = Some(buffer);
    }

    fn refuse(&mut self, why: &'static str) -> Result<Left, c_int> {
        self.violation = Some(why);
        Err(ERROR_PROTO)
    }

    fn commit(&mut self) {
        fault::strike(&mut self.fault, Fault::Ignore);
        if let Some(payload) = self.pending.take() {
            if payload[0] == MSG_KEXINIT {
                self.exchanging = true;
            }
            self.committed.push_back(payload);
        }
    }
}

unsafe extern "C" fn on_ignore(
    _session: *mut LIBSSH2_SESSION,
    _message: *const c_char,
    _len: c_int,
    _context: *mut *mut c_void,
) {
    in_callback(ACTIVE.get(), (), TapState::commit);
}

unsafe extern "C" fn on_disconnect(
    _session: *mut LIBSSH2_SESSION,
    reason: c_int,
    message: *const c_char,
    message_len: c_int,
    _language: *const c_char,
    _language_len: c_int,
    _context: *mut *mut c_void,
) {
    let len = usize::try_from(message_len).unwrap_or(0);
    let text = if message.is_null() || len == 0 {
        String::new()
    } else {
        // SAFETY: libssh2 passes a pointer into the received packet and the length it checked against it.
        let bytes = unsafe { std::slice::from_raw_parts(message.cast::<u8>(), len) };
        String::from_utf8_lossy(bytes).into_owned()
    };
    in_callback(ACTIVE.get(), (), |state| {
        fault::strike(&mut state.fault, Fault::Disconnect);
        // Reason codes are u32 on the wire (RFC 4253 §11.1).
        state.disconnected = Some(Disconnected { reason: reason as u32, text });
    });
}

unsafe extern "C" fn on_send(
    _socket: c_int,
    buffer: *const c_void,
    len: usize,
    _flags: c_int,
    _context: *mut *mut c_void,
) -> isize {
    if buffer.is_null() || len == 0 {
        return 0;
    }
    // SAFETY: libssh2 passes its finished packet and its length.
    let packet = unsafe { std::slice::from_raw_parts(buffer.cast::<u8>(), len) };
    in_callback(ACTIVE.get(), -(libc::EIO as isize), |state| {
        fault::strike(&mut state.fault, Fault::Send);
        match state.socket.take(packet) {
            Ok(()) => len as isize,
            Err(errno) => -(errno as isize),
        }
    })
}

unsafe extern "C" fn on_recv(
    _socket: c_int,
    buffer: *mut c_void,
    len: usize,
    _flags: c_int,
    _context: *mut *mut c_void,
) -> isize {
    let room: &mut [u8] = if buffer.is_null() || len == 0 {
        &mut []
    } else {
        // SAFETY: libssh2 passes its receive buffer (zeroed when the session was made) and the room left in it.
        unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), len) }
    };
    in_callback(ACTIVE.get(), -(libc::EIO as isize), |state| {
        fault::strike(&mut state.fault, Fault::Recv);
        match state.socket.receive(room) {
            Ok(n) => n as isize,
            Err(errno) => -(errno as isize),
        }
    })
}

unsafe extern "C" fn on_sign(
    _session: *mut LIBSSH2_SESSION,
    signature: *mut *mut u8,
    signature_len: *mut usize,
    data: *const u8,
    data_len: usize,
    context: *mut *mut c_void,
) -> c_int {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: `context` is what `userauth_publickey` passed: the address of its `sign` reference.
        let sign = unsafe { &mut *(*context).cast::<&mut dyn FnMut(&[u8]) -> Option<Vec<u8>>>() };
        // SAFETY: libssh2 passes the bytes to sign and their length.
        let data = unsafe { std::slice::from_raw_parts(data, data_len) };
        sign(data)
    }));
    let Ok(Some(bytes)) = outcome else { return -1 };
    let Some(copy) = malloc_copy(&bytes) else { return ERROR_ALLOC };
    // SAFETY: libssh2 passes valid out-pointers and frees the signature by free().
    unsafe {
        *signature = copy;
        *signature_len = bytes.len();
    }
    0
}

impl std::fmt::Debug for RawSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawSession").finish_non_exhaustive()
    }
}

pub(crate) mod triple_des;

#[cfg(test)]
mod tests;
