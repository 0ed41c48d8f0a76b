//! How other threads wake the transport thread out of its poll, and waiting for the socket alone.

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

/// Waits until the socket can be read (or written, if that is in `events`), or the deadline passes; what was found. An
/// interruption by a signal looks like the latter. The event loop, which waits for more than that, has a set of its own.
pub(crate) fn wait(socket: &impl AsFd, events: PollFlags, deadline: Instant) -> io::Result<PollFlags> {
    let timeout = timespec(deadline.saturating_duration_since(Instant::now()));
    let mut fds = [PollFd::new(socket, events)];
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        Ok(_) => Ok(fds[0].revents()),
        Err(Errno::INTR) => Ok(PollFlags::empty()),
        Err(errno) => Err(errno.into()),
    }
}

/// What to wait for: data, room, or both; an end and an error are found in any case.
pub(crate) fn interest(read: bool, write: bool) -> PollFlags {
    let mut events = PollFlags::empty();
    events.set(PollFlags::IN, read);
    events.set(PollFlags::OUT, write);
    events
}

/// Whether there is something to read, an end or an error included. That the socket can be written needs no telling:
/// whoever has something to write tries.
pub(crate) fn is_readable(found: PollFlags) -> bool {
    found.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR)
}

fn timespec(d: Duration) -> Timespec {
    Timespec { tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(d.subsec_nanos()) }
}
