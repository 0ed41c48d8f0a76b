//! In steady state the transport thread allocates nothing for a packet, whichever cipher it is encrypted with. Counted
//! by an allocator of this program's own, and by one for OpenSSL, which is why this is not a part of `it`. What libssh2
//! allocates, which is a buffer for each packet that it receives, is not ours to change.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use threadline::{Client, Stdio};

#[path = "../src/bin/threadline/sshd.rs"]
mod sshd;

/// The thread whose allocations are counted, by the kernel's number; 0: none.
static WATCHED: AtomicI32 = AtomicI32::new(0);
/// Whether OpenSSL's count.
static OPENSSL_TOO: AtomicBool = AtomicBool::new(true);
static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// This thread's number, once it has been asked for.
    static NUMBER: Cell<i32> = const { Cell::new(0) };
}

struct Counting;

impl Counting {
    fn count(&self) {
        let watched = WATCHED.load(Ordering::Relaxed);
        if watched == 0 {
            return;
        }
        // A thread that ends has none any more.
        let number = NUMBER.try_with(|number| {
            if number.get() == 0 {
                // SAFETY: it takes nothing and cannot fail.
                number.set(unsafe { libc::gettid() });
            }
            number.get()
        });
        if number == Ok(watched) {
            COUNT.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: every call goes to the system's allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.count();
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count();
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// OpenSSL's allocations, on the same thread.
mod openssl {
    use std::ffi::{c_char, c_int, c_void};
    use std::sync::atomic::AtomicU64;

    // SAFETY: the signatures are those of crypto.h since OpenSSL 1.1.0.
    unsafe extern "C" {
        fn CRYPTO_set_mem_functions(
            malloc: unsafe extern "C" fn(usize, *const c_char, c_int) -> *mut c_void,
            realloc: unsafe extern "C" fn(*mut c_void, usize, *const c_char, c_int) -> *mut c_void,
            free: unsafe extern "C" fn(*mut c_void, *const c_char, c_int),
        ) -> c_int;
    }

    /// On any thread: whether OpenSSL uses these functions at all.
    pub static COUNT: AtomicU64 = AtomicU64::new(0);

    fn count_one() {
        COUNT.fetch_add(1, super::Ordering::Relaxed);
        if super::OPENSSL_TOO.load(super::Ordering::Relaxed) {
            super::ALLOCATOR.count();
        }
    }

    unsafe extern "C" fn malloc(size: usize, _: *const c_char, _: c_int) -> *mut c_void {
        count_one();
        // SAFETY: it takes any size.
        unsafe { libc::malloc(size) }
    }

    unsafe extern "C" fn realloc(memory: *mut c_void, size: usize, _: *const c_char, _: c_int) -> *mut c_void {
        count_one();
        // SAFETY: OpenSSL passes what the function above gave it.
        unsafe { libc::realloc(memory, size) }
    }

    unsafe extern "C" fn free(memory: *mut c_void, _: *const c_char, _: c_int) {
        // SAFETY: as above.
        unsafe { libc::free(memory) };
    }

    /// Must come before all that uses OpenSSL.
    pub fn count() {
        // SAFETY: the three belong together, and nothing has been allocated yet, as OpenSSL checks.
        let taken = unsafe { CRYPTO_set_mem_functions(malloc, realloc, free) };
        assert_eq!(taken, 1, "OpenSSL has allocated something already");
    }
}

const MIB: u64 = 1 << 20;
/// Counted after the first, in which buffers are made.
const WARM: u64 = 16 * MIB;
const COUNTED: u64 = 32 * MIB;
/// What one packet carries at most.
const PACKET: u64 = 32 * 1024;

/// The transport thread of the only connection.
fn transport() -> i32 {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap());
    let named = |name: &str| name.starts_with("tl:");
    let task = tasks.into_iter().find(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|n| named(&n)));
    task.expect("a transport thread").file_name().to_str().unwrap().parse().unwrap()
}

/// Allocations of the transport thread while `work` runs.
fn counted(work: &mut dyn FnMut()) -> u64 {
    let before = COUNT.load(Ordering::SeqCst);
    work();
    COUNT.load(Ordering::SeqCst) - before
}

/// Fewer than one allocation for ten packets, at the third try at the latest: on a busy machine a reader falls behind
/// further than before, which takes more buffers.
fn hardly_allocates(what: &str, packets: u64, mut work: impl FnMut()) {
    let hardly = (0..3).any(|_| {
        let count = counted(&mut work);
        println!("{what}: {count} allocations for {packets} packets");
        count * 10 < packets
    });
    assert!(hardly, "{what}: too many allocations each time");
}

fn read_exactly(mut stream: impl Read, bytes: u64) {
    let mut buffer = vec![0; 64 * 1024];
    let mut left = bytes;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let n = stream.read(&mut buffer[..most]).unwrap();
        assert_ne!(n, 0, "the stream ends early");
        left -= n as u64;
    }
}

/// The ciphers that are ours, and whether OpenSSL's allocations are: beside AES-CTR libssh2 has HMAC made of each packet.
const CIPHERS: [(&str, bool); 6] = [
    ("aes256-gcm@openssh.com", true),
    ("aes128-gcm@openssh.com", true),
    ("chacha20-poly1305@openssh.com", true),
    ("aes256-ctr", false),
    ("aes192-ctr", false),
    ("aes128-ctr", false),
];

#[test]
fn the_transport_thread_allocates_nothing_for_a_packet() {
    openssl::count();
    let server = sshd::Sshd::builder().ciphers(&CIPHERS.map(|(name, _)| name).join(",")).start().unwrap();
    for (cipher, openssl_too) in CIPHERS {
        OPENSSL_TOO.store(openssl_too, Ordering::SeqCst);
        let client = Client::builder(server.host()).port(server.port()).user(server.user()).identity(server.identity());
        let client = client.agent(false).known_hosts(server.known_hosts()).ciphers([cipher]).connect().unwrap();
        assert_eq!([&client.algorithms().cipher_in, &client.algorithms().cipher_out], [cipher, cipher]);
        // A thread names itself, some time after it was started.
        assert!(client.sh("true").status().unwrap().success());
        WATCHED.store(transport(), Ordering::SeqCst);
        assert_ne!(counted(&mut || drop(client.sh("true").output().unwrap())), 0, "a command allocates");
        assert_ne!(openssl::COUNT.load(Ordering::SeqCst), 0, "a key exchange allocates");
        // The cipher is the same in both directions, and at once it is quicker.
        if cipher == CIPHERS[0].0 {
            down(&client, cipher);
            up(&client, cipher);
            forward(&client);
        }
        both_ways(&client, cipher);
        WATCHED.store(0, Ordering::SeqCst);
        client.close(Duration::from_secs(30)).unwrap();
    }
}

fn down(client: &Client, cipher: &str) {
    let mut down = client.sh("exec cat /dev/zero").spawn().unwrap();
    let mut stdout = down.stdout.take().unwrap();
    read_exactly(&mut stdout, WARM);
    hardly_allocates(&format!("{cipher} down"), COUNTED / PACKET, || read_exactly(&mut stdout, COUNTED));
    down.close();
}

fn up(client: &Client, cipher: &str) {
    let mut up = client.sh("exec cat >/dev/null").stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = up.stdin.take().unwrap();
    let chunk = vec![0; 256 * 1024];
    let mut write = |bytes: u64| (0..bytes / chunk.len() as u64).for_each(|_| stdin.write_all(&chunk).unwrap());
    write(WARM);
    hardly_allocates(&format!("{cipher} up"), COUNTED / PACKET, || write(COUNTED));
    drop(stdin);
    assert!(up.wait().unwrap().success());
}

/// Both at once, each byte there and back.
fn both_ways(client: &Client, cipher: &str) {
    let mut echo = client.sh("exec cat").stdin(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (echo.stdin.take().unwrap(), echo.stdout.take().unwrap());
    let writer = thread::spawn(move || while stdin.write_all(&[0; 64 * 1024]).is_ok() {});
    read_exactly(&mut stdout, WARM);
    hardly_allocates(&format!("{cipher} both ways"), COUNTED / PACKET, || read_exactly(&mut stdout, COUNTED / 2));
    echo.close();
    writer.join().unwrap();
}

/// Through a forward: no packet changes threads, and none takes an allocation.
fn forward(client: &Client) {
    let target = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let forward = client.forward_local("127.0.0.1:0", target.local_addr().unwrap().to_string()).unwrap();
    let mut near = std::net::TcpStream::connect(forward.local_addr().unwrap()).unwrap();
    let (far, _) = target.accept().unwrap();
    let mut flood = far.try_clone().unwrap();
    let writer = thread::spawn(move || while flood.write_all(&[0; 64 * 1024]).is_ok() {});
    let reader = thread::spawn(move || drop(std::io::copy(&mut &far, &mut std::io::sink())));
    let near_reader = near.try_clone().unwrap();
    let chunk = vec![0; 256 * 1024];
    let mut write = |bytes: u64| (0..bytes / chunk.len() as u64).for_each(|_| near.write_all(&chunk).unwrap());
    read_exactly(&near_reader, WARM);
    hardly_allocates("down a forward", COUNTED / PACKET, || read_exactly(&near_reader, COUNTED));
    thread::spawn(move || drop(std::io::copy(&mut &near_reader, &mut std::io::sink())));
    write(WARM);
    hardly_allocates("both ways through a forward", COUNTED / PACKET, || write(COUNTED));
    drop(forward);
    writer.join().unwrap();
    reader.join().unwrap();
}
