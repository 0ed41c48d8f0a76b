//! What many tests need: deadlines, what this process uses, hashes, and data that no compressor likes.
#![allow(dead_code, reason = "helpers for all files of the tests")]

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::panic;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

/// Runs the body on a thread of its own and returns what it returns.
///
/// # Panics
/// As the body does, or when it has not returned in time; then with a list of this process's threads and of what each
/// waits for in the kernel. The body's thread is left behind.
#[track_caller]
pub fn within<T: Send + 'static>(patience: Duration, body: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let name = thread::current().name().unwrap_or("test").to_owned();
    let runner = thread::Builder::new().name(name).spawn(move || {
        // The receiver is gone only when the test has failed already.
        let _ = sender.send(body());
    });
    let runner = runner.expect("a thread for the test");
    match receiver.recv_timeout(patience) {
        Ok(value) => value,
        Err(RecvTimeoutError::Timeout) => panic!("not done within {patience:?}\n{}", thread_dump()),
        Err(RecvTimeoutError::Disconnected) => match runner.join() {
            Err(reason) => panic::resume_unwind(reason),
            Ok(()) => unreachable!("it sends before it returns"),
        },
    }
}

/// Waits until a condition holds that nobody announces.
///
/// # Panics
/// When it does not hold in time.
#[track_caller]
pub fn eventually(patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {patience:?}: {what}\n{}", thread_dump());
        thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a program to its end, with nothing on its stdin.
///
/// # Panics
/// When it cannot be started, or has not ended in time (it is killed then).
#[track_caller]
pub fn output_within(patience: Duration, command: &mut Command) -> Output {
    let shown = format!("{command:?}");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.unwrap_or_else(|error| panic!("{shown}: {error}"));
    let pid = rustix::process::Pid::from_child(&child);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(patience) {
        Ok(output) => output.unwrap_or_else(|error| panic!("{shown}: {error}")),
        Err(_) => {
            // Not yet waited for, so the id is still its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            panic!("not ended within {patience:?}: {shown}");
        }
    }
}

/// Runs the body in a process in which nothing else happens, for tests that count threads, descriptors or CPU time.
/// `test` is the full name of the calling test, such as `"channels::nothing_is_left_behind"`.
///
/// # Panics
/// When the body does, or it takes longer than `patience`.
#[track_caller]
pub fn alone(test: &str, patience: Duration, body: impl FnOnce() + Send + 'static) {
    const MARK: &str = "THREADLINE_TEST_ALONE";
    if std::env::var(MARK).is_ok_and(|name| name == test) {
        return within(patience, body);
    }
    let this = std::env::current_exe().expect("the path of this program");
    let arguments = [test, "--exact", "--nocapture", "--test-threads=1"];
    // The inner deadline comes first: its message says more.
    let output = output_within(patience * 2, Command::new(this).args(arguments).env(MARK, test));
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(said.contains("1 passed"), "{test} in a process of its own ({}):\n{said}", output.status);
}

/// Where `make deps` puts what it makes.
pub fn tools() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools");
    std::env::var_os("TOOLS").map_or_else(|| default.into(), PathBuf::from)
}

/// A file that `make deps` makes below $TOOLS. `what` it is, the test says when it is not there.
#[track_caller]
pub fn tool(path: &str, what: &str) -> PathBuf {
    let file = tools().join(path);
    assert!(file.exists(), "{what} is not installed at {}; `make deps` does it", file.display());
    file
}

/// The names of this process's threads.
pub fn threads() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.map(|name| name.trim_end().to_owned()).collect()
}

/// How many of this process's threads have a name that begins so (the kernel keeps 15 bytes of it).
pub fn threads_named(prefix: &str) -> usize {
    threads().iter().filter(|name| name.starts_with(prefix)).count()
}

/// How many file descriptors this process has open.
pub fn open_files() -> usize {
    // One is that of the directory being read.
    fs::read_dir("/proc/self/fd").expect("/proc").count() - 1
}

/// CPU time this process has used, in user and kernel mode, all threads.
pub fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Bytes of memory this process holds now, and held at most.
pub fn memory() -> (u64, u64) {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field of status");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    };
    (field("VmRSS:"), field("VmHWM:"))
}

/// The SHA-256 of a stream, in hexadecimal as sha256sum prints it, and its length.
///
/// # Errors
/// When the stream cannot be read.
pub fn sha256(mut stream: impl Read) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut length = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok((hex(&hash.finalize()), length)),
            Ok(count) => {
                hash.update(&buffer[..count]);
                length += count as u64;
            }
            // A signal to this process ends a receive that has a timeout, whoever handles it.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Hashes what passes on its way to another writer.
#[derive(Debug)]
pub struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Hashing<W> {
    /// A hash of nothing yet.
    pub fn new(inner: W) -> Self {
        Hashing { inner, hash: Sha256::new() }
    }

    /// The writer, and the SHA-256 of all it took.
    pub fn finish(self) -> (W, String) {
        (self.inner, hex(&self.hash.finalize()))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A stream of `length` bytes that look random and are the same each time for the same seed.
pub fn noise(seed: u64, length: u64) -> io::Take<Noise> {
    Noise { state: seed, rest: 0, rest_bytes: 0 }.take(length)
}

/// The endless stream behind [`noise`]: splitmix64, eight bytes of each number.
#[derive(Debug)]
pub struct Noise {
    state: u64,
    /// What is left of the last number: the stream must not depend on how it is read.
    rest: u64,
    rest_bytes: u32,
}

impl Noise {
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn next_byte(&mut self) -> u8 {
        if self.rest_bytes == 0 {
            self.rest = self.next();
            self.rest_bytes = 8;
        }
        let [byte, ..] = self.rest.to_le_bytes();
        self.rest >>= 8;
        self.rest_bytes -= 1;
        byte
    }
}

impl Read for Noise {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut rest = &mut *buffer;
        while !rest.is_empty() && (self.rest_bytes > 0 || rest.len() < 8) {
            rest[0] = self.next_byte();
            rest = &mut rest[1..];
        }
        let mut numbers = rest.chunks_exact_mut(8);
        for number in &mut numbers {
            number.copy_from_slice(&self.next().to_le_bytes());
        }
        for byte in numbers.into_remainder() {
            *byte = self.next_byte();
        }
        Ok(buffer.len())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Every thread of this process: name, state, and the system call it is in, as far as the kernel tells.
fn thread_dump() -> String {
    let mut dump = String::from("threads (name, state, waits in; `gdb -p` shows stacks while the test hangs):\n");
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default().trim().to_owned();
        let status = read("status");
        let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or("?").trim();
        let syscall = read("syscall");
        let syscall = syscall.split(' ').next().unwrap_or_default();
        let _ = writeln!(dump, "  {:<16} {state:<14} {} syscall {syscall}", read("comm"), read("wchan"));
    }
    dump
}
