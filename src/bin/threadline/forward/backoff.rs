//! How long to wait before trying again: longer each time, within limits, and never in step with others. Pure, but for
//! the source of chance.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// The limits of the wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backoff {
    pub shortest: Duration,
    pub longest: Duration,
}

impl Backoff {
    /// The wait before the next attempt, after so many that failed.
    pub fn wait(&self, failed: u32) -> Duration {
        self.wait_by(failed, chance())
    }

    /// Between the shortest and twice the shortest at first; the upper end doubles with each failure. `chance` is from
    /// 0 to 1.
    fn wait_by(&self, failed: u32, chance: f64) -> Duration {
        let doubled = 2_u32.saturating_pow(failed.saturating_add(1));
        let most = self.shortest.saturating_mul(doubled).min(self.longest).max(self.shortest);
        self.shortest + (most - self.shortest).mul_f64(chance)
    }
}

/// Another number from 0 to 1 each time: many tools that lost one server do not come back to it at one moment.
fn chance() -> f64 {
    let random = RandomState::new().hash_one(0_u8);
    f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_grows_and_stays_within_its_limits() {
        let backoff = Backoff { shortest: Duration::from_millis(500), longest: Duration::from_secs(30) };
        let most: Vec<_> = (0..8).map(|n| backoff.wait_by(n, 1.0).as_millis()).collect();
        assert_eq!(most, [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        for failed in [0, 3, 31, 32, u32::MAX] {
            assert_eq!(backoff.wait_by(failed, 0.0), backoff.shortest);
            let wait = backoff.wait(failed);
            assert!(wait >= backoff.shortest && wait <= backoff.longest, "{wait:?}");
        }
    }

    #[test]
    fn two_waits_differ() {
        let backoff = Backoff { shortest: Duration::from_secs(1), longest: Duration::from_secs(100) };
        let waits: std::collections::HashSet<_> = (0..20).map(|_| backoff.wait(6)).collect();
        assert!(waits.len() > 10, "{waits:?}");
    }
}
