//! poll(2) over a set of descriptors that is made anew for each wait, in memory that is kept.
//!
//! `rustix` has a poll, but its entries borrow the descriptors, so that a vector of them cannot outlive one wait: it
//! would be allocated each time.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

/// Descriptors to wait for, by the order in which they were added.
#[derive(Default)]
pub(crate) struct PollSet {
    fds: Vec<libc::pollfd>,
}

impl PollSet {
    /// Empties the set; its memory stays.
    pub fn clear(&mut self) {
        self.fds.clear();
    }

    /// Adds a descriptor. An error or hang-up of it is reported whatever `events` says.
    pub fn add(&mut self, fd: &impl AsFd, events: PollFlags) {
        // The cast keeps the bits: poll's flags are those of a short, signed or not.
        self.fds.push(libc::pollfd { fd: fd.as_fd().as_raw_fd(), events: events.bits() as _, revents: 0 });
    }

    /// Waits until one of them is ready or the deadline has passed. An interruption by a signal looks like the latter.
    pub fn wait(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if poll(&mut self.fds, timeout) >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        self.fds.iter_mut().for_each(|fd| fd.revents = 0);
        Ok(())
    }

    /// What was found of the descriptor that was added as this one.
    pub fn found(&self, index: usize) -> PollFlags {
        PollFlags::from_bits_retain(self.fds[index].revents as _)
    }
}

/// With a timeout in nanoseconds: poll's milliseconds are twenty times what a reader of something long may wait.
#[cfg(target_os = "linux")]
fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> libc::c_int {
    let timeout = timeout.map(|d| libc::timespec {
        tv_sec: libc::time_t::try_from(d.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: d.subsec_nanos() as _,
    });
    let at = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the pointer and the length are those of a live, exclusively borrowed slice, and ppoll writes nothing but
    // the `revents` in it. The timeout lives as long as the call; no signal mask is given. A descriptor that was closed
    // meanwhile would be reported as such.
    unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, at, std::ptr::null()) }
}

/// In milliseconds, rounded up: a wait that ends before its deadline would only begin again.
#[cfg(not(target_os = "linux"))]
fn poll(fds: &mut [libc::pollfd], timeout: Option<Duration>) -> libc::c_int {
    let millis = |d: Duration| libc::c_int::try_from(d.as_nanos().div_ceil(1_000_000)).unwrap_or(libc::c_int::MAX);
    // SAFETY: the pointer and the length are those of a live, exclusively borrowed slice, and poll writes nothing but
    // the `revents` in it. A descriptor that was closed meanwhile would be reported as such.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout.map_or(-1, millis)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_ready_one_is_found_and_the_others_are_not() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let (quiet, _other) = UnixStream::pair().unwrap();
        near.write_all(b"x").unwrap();
        let mut set = PollSet::default();
        for _ in 0..2 {
            set.clear();
            set.add(&quiet, PollFlags::IN);
            set.add(&far, PollFlags::IN);
            set.wait(None).unwrap();
            assert_eq!((set.found(0), set.found(1)), (PollFlags::empty(), PollFlags::IN));
        }
        set.clear();
        set.add(&quiet, PollFlags::IN);
        set.wait(Some(Instant::now() + Duration::from_millis(5))).unwrap();
        assert!(set.found(0).is_empty());
    }
}
