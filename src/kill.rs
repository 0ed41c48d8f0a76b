//! Ending a remote process group: TERM, a grace, KILL, and a look whether it is gone, in one remote script.
//!
//! The SSH signal request is not enough: sshd ignores it for root logins of some versions and for forced commands, and
//! it reaches one process. A command started with `process_group` tells its process id before it runs; sshd starts
//! each command in a session of its own, so that is its process group as well, and a second channel can signal it.

use std::time::Duration;

use crate::channel::{Channel, OnDrop};
use crate::error::{Result, Stream};
use crate::quote;
use crate::transport::message::{AtLimit, Run, SessionPlan};
use crate::transport::pipe::Limit;
use crate::transport::Handle;

/// What became of a remote process group that was to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KillOutcome {
    /// No process of the group is left.
    Gone,
    /// At least one is, even after KILL: it belongs to another user, or hangs in the kernel.
    Survived,
    /// It could not be found out.
    Unknown,
}

/// What begins the line that tells the process id; no program's output begins like this.
const MARK: &str = "\u{1}threadline-process-group ";
/// How far into the output the line may come: a noisy login shell may speak before it.
pub(crate) const MARK_WITHIN: usize = 64 * 1024;
/// The time between TERM and KILL when a dropped child is killed.
const DROP_GRACE: Duration = Duration::from_secs(5);
/// For the script to start and report, besides the grace.
const OVERHEAD: Duration = Duration::from_secs(10);

/// Wraps a command so that it tells its process id first and then runs, under the same id, as it would have.
pub(crate) fn announce(command: &[u8]) -> Vec<u8> {
    let script = format!("printf '{MARK}%s\\n' \"$$\"; exec \"${{SHELL:-/bin/sh}}\" -c \"$1\"");
    let mut text = b"exec ".to_vec();
    text.extend(quote::words(&[b"/bin/sh".as_slice(), b"-c", script.as_bytes(), b"sh", command]));
    text
}

/// The announced process id in the beginning of the output: where the line stands, and the number.
pub(crate) fn announced(output: &[u8]) -> Option<(std::ops::Range<usize>, u32)> {
    let mark = MARK.as_bytes();
    let start = output.windows(mark.len()).position(|w| w == mark)?;
    let number = &output[start + mark.len()..];
    let len = number.iter().position(|&b| b == b'\n')?;
    let id = std::str::from_utf8(&number[..len]).ok()?.trim_end().parse().ok()?;
    // Group 1 and 0 would be everybody's; no command of ours is that.
    (id > 1).then_some((start..start + mark.len() + len + 1, id))
}

/// The remote script. It reports one word. A zombie is no survivor: it runs no more.
fn script(group: u32, grace: Duration) -> String {
    let tenths = u32::try_from(grace.as_millis().div_ceil(100)).unwrap_or(u32::MAX);
    format!(
        r#"alive() {{
  kill -0 -{group} 2>/dev/null || {{ kill -0 -{group} 2>&1 | grep -qi 'permi' || return 1; }}
  states=$(ps -A -o pgid= -o stat= 2>/dev/null) || return 0
  printf '%s\n' "$states" | while read -r g s; do
    if [ "$g" = {group} ]; then case $s in Z*|X*) ;; *) echo yes; break;; esac; fi
  done | grep -q yes
}}
kill -TERM -{group} 2>/dev/null
n=0
while alive; do
  if [ $n -ge {tenths} ]; then
    kill -KILL -{group} 2>/dev/null
    m=0
    while alive; do
      if [ $m -ge 20 ]; then echo survived; exit; fi
      m=$((m+1)); sleep 0.1 2>/dev/null || sleep 1
    done
    break
  fi
  n=$((n+1)); sleep 0.1 2>/dev/null || {{ sleep 1; n=$((n+9)); }}
done
echo gone"#
    )
}

fn plan(group: u32, grace: Duration) -> SessionPlan {
    let command = quote::words(&["/bin/sh", "-c", &script(group, grace)]);
    SessionPlan {
        env: Vec::new(),
        pty: None,
        run: Run::Exec(command),
        grace: None,
        at_limit: AtLimit::Wait,
        urgent: true,
    }
}

/// Ends the group and reports; blocks for at most the grace and a few seconds.
pub(crate) fn group(handle: &Handle, group: u32, grace: Duration) -> Result<KillOutcome> {
    let limit = Limit::after(Some(grace + OVERHEAD));
    let channel = Channel::start(handle, plan(group, grace), limit, &Limit::none(), OnDrop::HangUp)?;
    channel.end_stdin();
    let mut reader = crate::channel::StreamReader::new(channel, Stream::Stdout);
    let mut word = Vec::new();
    loop {
        let bytes = reader.fill()?;
        if bytes.is_empty() || word.len() > 1024 {
            break;
        }
        let n = bytes.len();
        word.extend_from_slice(bytes);
        reader.consume(n);
    }
    Ok(match String::from_utf8_lossy(&word).trim() {
        "gone" => KillOutcome::Gone,
        "survived" => KillOutcome::Survived,
        _ => KillOutcome::Unknown,
    })
}

/// Ends the group without anybody waiting for it.
pub(crate) fn in_background(handle: &Handle, group: u32) {
    let (token, pipe) = handle.start(plan(group, DROP_GRACE));
    pipe.want_eof();
    pipe.drop_stream(Stream::Stdout);
    pipe.drop_stream(Stream::Stderr);
    handle.wrote(token);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_announcement_is_found_behind_noise_and_never_names_everybody() {
        let line = format!("Welcome!\n{MARK}4711\nout");
        let (range, id) = announced(line.as_bytes()).unwrap();
        assert_eq!((id, &line[range.end..]), (4711, "out"));
        assert_eq!(&line[..range.start], "Welcome!\n");
        for bad in [format!("{MARK}0\n"), format!("{MARK}1\n"), format!("{MARK}-5\n"), format!("{MARK}47"), "x".into()]
        {
            assert_eq!(announced(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
