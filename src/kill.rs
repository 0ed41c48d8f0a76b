//! Ending a remote process group: TERM, a grace, KILL, and a look whether it is gone, in one remote script.
//!
//! The SSH signal request is not enough: sshd ignores it for root logins of some versions and for forced commands, and
//! nobody says what came of it. A command started with `process_group` tells its process id before it runs; sshd
//! starts each command in a session of its own, so that is its process group as well, and a second channel can signal
//! it. The announcement also tells when the process began, so that a number that was given to others since is noticed.

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
    /// It could not be found out: the process group is not known, or the server does not show it.
    Unknown,
}

/// What begins the line that tells the process id; no program's output begins like this.
const MARK: &str = "\u{1}threadline-process-group ";
/// How far into the output the line may come: a noisy login shell may speak before it.
pub(crate) const MARK_WITHIN: usize = 64 * 1024;
/// The time between TERM and KILL when a dropped child is killed.
const DROP_GRACE: Duration = Duration::from_secs(5);
/// Nobody means longer.
const LONGEST_GRACE: Duration = Duration::from_secs(24 * 60 * 60);
/// For the script to start, to look after KILL, and to report, besides the grace.
const OVERHEAD: Duration = Duration::from_secs(10);

/// A remote process group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    pub id: u32,
    /// When its leader began, in the kernel's count (proc(5), stat, field 22); where there is no /proc, unknown.
    pub started: Option<u64>,
}

/// Who is to read a command that is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reader {
    Sh,
    LoginShell,
}

/// Wraps a command so that it tells its process id first and then runs, under the same id, as it would have.
pub(crate) fn announce(reader: Reader, command: &[u8]) -> Vec<u8> {
    let shell = match reader {
        Reader::Sh => "/bin/sh",
        Reader::LoginShell => "\"${SHELL:-/bin/sh}\"",
    };
    // A subshell reads the file: no variable of ours gets into the command's environment.
    let started = r#"$({ read -r s < /proc/$$/stat && printf %s "${s##*) }"; } 2>/dev/null)"#;
    let script = format!("printf '{MARK}%s %s\\n' \"$$\" \"{started}\"; exec {shell} -c \"$1\"");
    let mut text = b"exec ".to_vec();
    text.extend(quote::words(&[b"/bin/sh".as_slice(), b"-c", script.as_bytes(), b"sh", command]));
    text
}

/// The announcement in the beginning of the output: where the line stands, and the group.
pub(crate) fn announced(output: &[u8]) -> Option<(std::ops::Range<usize>, Group)> {
    let mark = MARK.as_bytes();
    let start = output.windows(mark.len()).position(|w| w == mark)?;
    let told = &output[start + mark.len()..];
    let len = told.iter().position(|&b| b == b'\n')?;
    let mut fields = std::str::from_utf8(&told[..len]).ok()?.split_ascii_whitespace();
    let id = fields.next()?.parse().ok()?;
    // The process's state, field 3, is the first that follows its name.
    let started = fields.nth(22 - 3).and_then(|field| field.parse().ok());
    // Group 1 and 0 would be everybody's; no command of ours is that.
    (id > 1).then_some((start..start + mark.len() + len + 1, Group { id, started }))
}

/// The remote script; its arguments are the group, the grace in tenths of a second, and when the group's leader began,
/// or nothing. It reports one word.
const SCRIPT: &str = r#"
LC_ALL=C; export LC_ALL
group=$1 tenths=$2 started=$3

# Whether the number still means the group that was told: a leader that began at another time is another one.
same() {
  [ -n "$started" ] || return 0
  { read -r stat < "/proc/$group/stat"; } 2>/dev/null || return 0
  set -- ${stat##*) }
  [ "${20}" = "$started" ]
}

# The group and state of every process.
list() {
  ps -A -o pgid= -o stat= 2>/dev/null || for file in /proc/[0-9]*/stat; do
    { read -r stat < "$file"; } 2>/dev/null && set -- ${stat##*) } && echo "$3 $1"
  done
}

# What is left: nothing, a running process, or one that is there and not shown to us. A zombie runs no more.
look() {
  said=$(kill -0 "-$group" 2>&1) || case $said in *ermi*) ;; *) echo nothing; return ;; esac
  found=$(list | while read -r g state; do
    case $g/$state in "$group"/[ZX]*) echo zombie ;; "$group"/*) echo running; break ;; esac
  done)
  case $found in *running*) echo running ;; *zombie*) echo nothing ;; *) echo hidden ;; esac
}

same || { echo nothing; exit; }
kill -TERM "-$group" 2>/dev/null
n=0
left=$(look)
while [ "$left" != nothing ] && [ "$n" -lt $((tenths + 20)) ]; do
  if [ "$n" -ge "$tenths" ]; then kill -KILL "-$group" 2>/dev/null; fi
  n=$((n + 1))
  sleep 0.1 2>/dev/null || { n=$((n + 9)); sleep 1; }
  left=$(look)
done
echo "$left"
"#;

fn outcome(report: &[u8]) -> KillOutcome {
    match report.trim_ascii() {
        b"nothing" => KillOutcome::Gone,
        b"running" => KillOutcome::Survived,
        _ => KillOutcome::Unknown,
    }
}

fn plan(group: Group, grace: Duration) -> SessionPlan {
    let tenths = grace.as_millis().div_ceil(100).to_string();
    let started = group.started.map_or_else(String::new, |started| started.to_string());
    let words = ["exec", "/bin/sh", "-c", SCRIPT, "sh", &group.id.to_string(), &tenths, &started];
    SessionPlan {
        env: Vec::new(),
        pty: None,
        run: Run::Exec(quote::on_one_line(quote::words(&words))),
        grace: None,
        at_limit: AtLimit::Wait,
        urgent: true,
        agent: false,
    }
}

/// Ends the group and reports; blocks for at most about twice the grace and a few seconds.
pub(crate) fn group(handle: &Handle, group: Group, grace: Duration) -> Result<KillOutcome> {
    let grace = grace.min(LONGEST_GRACE);
    // The script counts rounds, which take longer on a busy server than they should.
    let limit = Limit::after(Some(grace * 2 + OVERHEAD));
    let channel = Channel::start(handle, plan(group, grace), limit, &Limit::none(), OnDrop::HangUp)?;
    channel.end_stdin();
    let mut reader = crate::channel::StreamReader::new(channel, Stream::Stdout);
    let mut report = Vec::new();
    loop {
        let bytes = reader.fill()?;
        if bytes.is_empty() || report.len() > 1024 {
            break;
        }
        let n = bytes.len();
        report.extend_from_slice(bytes);
        reader.consume(n);
    }
    Ok(outcome(&report))
}

/// Ends the group without anybody waiting for it.
pub(crate) fn in_background(handle: &Handle, group: Group) {
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
        let stat = "S 1 4711 4711 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 8154321 2 3";
        let line = format!("Welcome!\n{MARK}4711 {stat}\nout");
        let (range, group) = announced(line.as_bytes()).unwrap();
        assert_eq!(group, Group { id: 4711, started: Some(8_154_321) });
        assert_eq!((&line[..range.start], &line[range.end..]), ("Welcome!\n", "out"));

        let (_, group) = announced(format!("{MARK}4711 \r\n").as_bytes()).unwrap();
        assert_eq!(group, Group { id: 4711, started: None }, "no /proc, and a terminal");
        for bad in ["0 \n", "1 \n", "-5 \n", "\n", "x\n", "47"] {
            assert_eq!(announced(format!("{MARK}{bad}").as_bytes()), None, "{bad:?}");
        }
    }

    /// Runs the script here, with functions in place of what it calls.
    fn report(functions: &str, arguments: [&str; 3]) -> (KillOutcome, String) {
        let script = format!("{functions}{SCRIPT}");
        let out = std::process::Command::new("/bin/sh").args(["-c", &script, "sh"]).args(arguments).output().unwrap();
        (outcome(&out.stdout), String::from_utf8_lossy(&out.stderr).into_owned())
    }

    #[test]
    fn the_script_tells_what_is_left_of_a_group() {
        // kill says what it was asked on stderr, where the script does not hide it: descriptor 9.
        let kill = |answer: &str| format!("kill() {{ echo \"$*\" >&9; {answer}; }}\n");
        let gone = kill("echo 'kill: No such process' >&2; return 1");
        let foreign = kill("echo 'kill: Operation not permitted' >&2; return 1");
        let ours = kill("return 0");
        let ps = |states: &str| format!("sleep() {{ :; }}\nps() {{ printf '{states}'; }}\n");
        for (kill, states, expected) in [
            (&gone, "", KillOutcome::Gone),
            (&ours, "4711 Z\\n  77 S\\n", KillOutcome::Gone),
            (&ours, "4711 Z\\n4711 D+\\n", KillOutcome::Survived),
            (&foreign, " 4711 Ss\\n", KillOutcome::Survived),
            // Another user's processes can be hidden from us.
            (&foreign, "77 S\\n47110 S\\n", KillOutcome::Unknown),
        ] {
            let functions = format!("exec 9>/dev/null\n{kill}{}", ps(states));
            assert_eq!(report(&functions, ["4711", "1", ""]).0, expected, "{states:?} {kill}");
        }
    }

    #[test]
    fn a_group_whose_number_means_another_one_by_now_is_not_signalled() {
        let kill = "exec 9>&2\nkill() { echo \"$*\" >&9; return 1; }\n";
        let me = std::process::id().to_string();
        let (outcome, signals) = report(kill, [&me, "0", "1"]);
        assert_eq!((outcome, signals.as_str()), (KillOutcome::Gone, ""));
        let (_, signals) = report(kill, [&me, "0", ""]);
        assert!(signals.contains(&format!("-TERM -{me}")), "the control: {signals}");
    }
}
