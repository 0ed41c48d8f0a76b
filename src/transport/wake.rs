//! How other threads wake the transport thread out of its poll, and the poll itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// A descriptor that is readable after [`wake`](Wake::wake); however often that is called, once is enough.
#[derive(Debug)]
pub(crate) struct Wake {
    read: OwnedFd,
    #[cfg(not(target_os = "linux"))]
    write: OwnedFd,
    /// Set by the first wake after [`clear`](Wake::clear): later ones then cost no system call.
    pending: AtomicBool,
}

impl Wake {
    #[cfg(target_os = "linux")]
    pub fn new() -> io::Result<Wake> {
        use rustix::event::EventfdFlags;
        let read = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Wake { read, pending: AtomicBool::new(false) })
    }

    #[cfg(not(target_os = "linux"))]
    pub fn new() -> io::Result<Wake> {
        let (read, write) = rustix::pipe::pipe()?;
        for end in [&read, &write] {
            rustix::io::fcntl_setfd(end, rustix::io::FdFlags::CLOEXEC)?;
            rustix::io::ioctl_fionbio(end, true)?;
        }
        Ok(Wake { read, write, pending: AtomicBool::new(false) })
    }

    /// Makes the poll return. Never blocks.
    pub fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            #[cfg(target_os = "linux")]
            let _ = rustix::io::write(&self.read, &1u64.to_ne_bytes());
            #[cfg(not(target_os = "linux"))]
            let _ = rustix::io::write(&self.write, &[1]);
        }
    }

    /// Takes the signal back. Call before looking at what was posted, so that nothing posted later is missed.
    /// `seen`: poll reported the descriptor; it must be read even if the flag is not (any longer) set.
    pub fn clear(&self, seen: bool) {
        if seen || self.pending.load(Ordering::Acquire) {
            let mut buffer = [0u8; 64];
            let _ = rustix::io::read(&self.read, &mut buffer);
            // A swap, not a store: whoever found the flag set has posted before, and this makes us see it.
            self.pending.swap(false, Ordering::AcqRel);
        }
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.read.as_fd()
    }
}

/// What poll found. That the socket can be written needs no telling: whoever has something to write tries.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ready {
    pub readable: bool,
    pub woken: bool,
}

/// Waits until the socket can be read (or written, if `want_write`), somebody wakes us, or the deadline passes.
pub(crate) fn wait(
    socket: &impl AsFd,
    want_write: bool,
    wake: Option<&Wake>,
    deadline: Option<Instant>,
) -> io::Result<Ready> {
    let interest = if want_write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    let mut fds = vec_of_two(PollFd::new(socket, interest), wake.map(|w| PollFd::new(&w.read, PollFlags::IN)));
    let count = if wake.is_some() { 2 } else { 1 };
    let timeout = deadline.map(|d| timespec(d.saturating_duration_since(Instant::now())));
    match rustix::event::poll(&mut fds[..count], timeout.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(Ready::default()),
        Err(errno) => return Err(errno.into()),
    }
    let found = fds[0].revents();
    let woken = count == 2 && !fds[1].revents().is_empty();
    Ok(Ready { woken, readable: found.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) })
}

/// Waits until the socket can be written, or the deadline passes; what can be read does not end it.
pub(crate) fn wait_writable(socket: &impl AsFd, deadline: Instant) -> io::Result<()> {
    let timeout = timespec(deadline.saturating_duration_since(Instant::now()));
    match rustix::event::poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Two slots without an allocation; the second repeats the first where there is nothing to put into it.
fn vec_of_two<'a>(first: PollFd<'a>, second: Option<PollFd<'a>>) -> [PollFd<'a>; 2] {
    let second = second.unwrap_or_else(|| first.clone());
    [first, second]
}

fn timespec(d: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(d.subsec_nanos()) }
}
