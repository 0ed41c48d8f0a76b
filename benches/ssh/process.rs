//! What a process uses: processor time, memory, threads. From /proc, because it is also asked of other processes.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::Outcome;

/// What a task took and used; memory and threads are the most there were until then.
#[derive(Debug, Clone, Copy, Default)]
pub struct Run {
    pub seconds: f64,
    pub cpu: f64,
    pub peak_kib: f64,
    pub threads: f64,
}

impl Run {
    /// Only a time is known.
    pub fn of(seconds: f64) -> Run {
        Run { seconds, ..Run::default() }
    }

    /// What so many of them would take, or a part of one.
    pub fn times(self, factor: f64) -> Run {
        Run { seconds: self.seconds * factor, cpu: self.cpu * factor, ..self }
    }
}

/// The most threads that were counted so far.
static MOST_THREADS: AtomicU64 = AtomicU64::new(0);

/// Counts this process's threads; called in the midst of a task.
pub fn note_threads() -> Outcome<()> {
    MOST_THREADS.fetch_max(status("self", "Threads")? as u64, Ordering::Relaxed);
    Ok(())
}

/// The most threads that [`note_threads`] has counted.
pub fn most_threads() -> f64 {
    MOST_THREADS.load(Ordering::Relaxed) as f64
}

/// Processor time of this process, in user and kernel mode, all threads, in seconds.
pub fn own_cpu() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0)).as_secs_f64()
}

/// A field of `/proc/PID/status`, such as `VmHWM` (KiB, the most there ever was) or `Threads`.
pub fn status(pid: &str, field: &str) -> Outcome<f64> {
    number(&fs::read_to_string(format!("/proc/{pid}/status"))?, field)
}

/// Memory that is this process's alone, in KiB: what another one like it would cost.
pub fn private_dirty(pid: &str) -> Outcome<f64> {
    number(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?, "Private_Dirty")
}

fn number(text: &str, field: &str) -> Outcome<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let value = line.and_then(|line| line.split_whitespace().next()).ok_or(format!("no {field} in /proc"))?;
    Ok(value.parse()?)
}

/// Processor seconds of another process, to 10 ms; also of one that has ended and not been waited for.
pub fn cpu(pid: u32) -> Outcome<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = text.rsplit_once(") ").ok_or("an odd /proc/PID/stat")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    // utime and stime, the 14th and 15th of all fields; a tick is 10 ms wherever Linux shows it to programs.
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    Ok(ticks / 100.0)
}
