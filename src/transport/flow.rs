//! How much a channel's peer may send: grants in eighths of the window, and a window that grows on long links. Pure.

use std::time::{Duration, Instant};

/// A window is granted in this many steps: fewer messages than one per packet, and the sender never runs dry
/// (measured at 20 ms: topped up at half a window 199 MB/s, in eighths 353).
pub(crate) const STEPS: u32 = 8;

/// Below this round trip a window is never what holds a sender back, so it does not grow.
const LONG_LINK: Duration = Duration::from_millis(2);

/// One channel's receive window.
#[derive(Debug)]
pub(crate) struct Flow {
    window: u32,
    max: u32,
    /// It may grow on a short link, too.
    growing: bool,
    epoch: Instant,
    /// Bytes received since the epoch began.
    in_epoch: u64,
}

impl Flow {
    pub fn new(window: u32, max: u32, now: Instant) -> Flow {
        Flow { window, max: max.max(window), growing: false, epoch: now, in_epoch: 0 }
    }

    /// A window that begins small, for one of many, and grows wherever it is what holds the sender back.
    pub fn growing(window: u32, max: u32, now: Instant) -> Flow {
        Flow { growing: true, ..Flow::new(window, max, now) }
    }

    /// The window in bytes.
    pub fn window(&self) -> u64 {
        self.window.into()
    }

    /// Bytes arrived; `unread` of the channel's are waiting for a reader. True when the window ought to grow: at least
    /// half of it arrived within one round trip (so it is what limits the sender) and the reader keeps up.
    #[must_use]
    pub fn received(&mut self, n: usize, unread: u64, round_trip: Duration, now: Instant) -> bool {
        self.in_epoch += n as u64;
        let epoch = if self.growing { round_trip.max(LONG_LINK) } else { round_trip };
        if epoch < LONG_LINK || now.duration_since(self.epoch) < epoch {
            return false;
        }
        let window = u64::from(self.window);
        let arrived = std::mem::take(&mut self.in_epoch);
        self.epoch = now;
        arrived >= window / 2 && unread <= window / 4 && self.window < self.max
    }

    /// Doubles the window, up to the most that was configured.
    pub fn grow(&mut self) {
        self.window = self.window.saturating_mul(2).min(self.max);
        log::debug!("receive window grows to {} bytes", self.window);
    }

    /// How much to grant now, given what the peer may have outstanding and what it has: nothing, or at least a step.
    pub fn grant(&self, allowed: u64, outstanding: u64) -> Option<u32> {
        let more = allowed.saturating_sub(outstanding);
        let step = u64::from(self.window / STEPS).max(1);
        if more >= step || (outstanding == 0 && more > 0) {
            return u32::try_from(more).ok();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 1 << 20;

    #[test]
    fn a_step_is_granted_and_less_is_not() {
        let flow = Flow::new(8 * MIB, 8 * MIB, Instant::now());
        assert_eq!(flow.grant(8 << 20, 8 << 20), None);
        assert_eq!(flow.grant(8 << 20, (7 << 20) + 1), None);
        assert_eq!(flow.grant(8 << 20, 7 << 20), Some(MIB));
        assert_eq!(flow.grant(0, 0), None);
        assert_eq!(flow.grant(5, 0), Some(5), "a peer without window gets what there is");
    }

    #[test]
    fn the_window_grows_on_a_long_link_while_the_reader_keeps_up() {
        let start = Instant::now();
        let rtt = Duration::from_millis(20);
        let mut flow = Flow::new(2 * MIB, 16 * MIB, start);
        let mut now = start;
        for _ in 0..10 {
            now += rtt;
            let arrived = flow.window() as usize * 7 / 8;
            if flow.received(arrived, 0, rtt, now) {
                flow.grow();
            }
        }
        assert_eq!(flow.window(), 16 << 20);
    }

    #[test]
    fn a_window_that_begins_small_grows_on_a_short_link_too() {
        let start = Instant::now();
        let mut flow = Flow::growing(MIB / 4, 2 * MIB, start);
        let mut now = start;
        let mut grow = |flow: &mut Flow, arrived: usize| {
            now += LONG_LINK;
            let grows = flow.received(arrived, 0, Duration::from_micros(100), now);
            grows.then(|| flow.grow()).is_some()
        };
        assert!(!grow(&mut flow, 1000));
        assert!(grow(&mut flow, 200_000) && grow(&mut flow, 300_000));
        assert_eq!(flow.window(), 1 << 20);
    }

    #[test]
    fn the_window_stays_when_the_reader_lags_or_the_link_is_short_or_slow() {
        let start = Instant::now();
        let rtt = Duration::from_millis(20);
        for (arrived, unread, rtt) in
            [(2 << 20, 1 << 20, rtt), (2 << 20, 0, Duration::from_micros(100)), (1 << 19, 0, rtt)]
        {
            let mut flow = Flow::new(2 * MIB, 16 * MIB, start);
            let grows = flow.received(arrived, unread, rtt, start + Duration::from_millis(25));
            assert!(!grows, "{arrived} {unread} {rtt:?}");
        }
    }
}
