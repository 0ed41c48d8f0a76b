//! The tutorial's programs beside their Python originals: Python 3 with real paramiko, and ours, against one sshd.
//!
//! **The moment the remote wrote a line** is told by the remote shell itself: the server's environment makes bash read
//! a file (`BASH_ENV`) in which `echo` notes the time before it writes. So the programs and their commands are the
//! tutorial's, to the letter, and a lateness is never counted too small. Both clocks are this machine's.
//!
//! **On a busy machine** a process may wait longer for a processor than a line may be late. So the thread program is
//! played up to three times, and one faultless performance is enough: lateness that the program caused would be there
//! each time. What is printed, and in which order, has no second chance but for the interleave, which is a matter of
//! time as well.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::examples::{at_home, example, lines_of, Printed};
use crate::sshd::Sshd;

/// How late a line may be printed.
const LATENESS: Duration = Duration::from_millis(150);
const PERFORMANCES: usize = 3;

/// One of the Python programs, ready to run.
fn python(name: &str, server: &Sshd) -> Command {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/tutorial").join(name).with_extension("py");
    let mut command = at_home(server, interpreter());
    // -u: print what is printed at once, though it goes into a pipe. -B: leave nothing beside the sources.
    command.arg("-uB").arg(source).args([server.host(), &server.port().to_string(), server.user()]);
    command
}

/// The Python that has paramiko.
pub fn interpreter() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools");
    let tools = std::env::var_os("TOOLS").map_or_else(|| default.into(), PathBuf::from);
    let python = tools.join("paramiko/bin/python3");
    assert!(python.exists(), "paramiko is not installed at {}; `make deps` does it", python.display());
    python
}

fn texts(lines: &[Printed]) -> Vec<String> {
    lines.iter().map(|line| line.text.clone()).collect()
}

/// A server whose shells note when they echo what.
struct Punctual {
    server: Sshd,
    notes: PathBuf,
}

impl Punctual {
    fn start() -> Punctual {
        let dir = tempfile::tempdir().unwrap().keep();
        let (script, notes) = (dir.join("bash_env"), dir.join("notes"));
        let note = format!("printf '%s %s\\n' \"$EPOCHREALTIME\" \"$*\" >>'{}'", notes.display());
        fs::write(&script, format!("echo() {{ {note}; builtin echo \"$@\"; }}\n")).unwrap();
        // The C locale, so that the time has a point and no comma.
        let server = Sshd::builder().login_shell("/bin/bash").env("LC_ALL", "C");
        let server = server.env("BASH_ENV", script.to_str().unwrap()).start().unwrap();
        Punctual { server, notes }
    }

    /// When each line was written since the last time this was asked.
    fn written(&self) -> HashMap<String, SystemTime> {
        let notes = fs::read_to_string(&self.notes).unwrap();
        fs::remove_file(&self.notes).unwrap();
        let time = |text: &str| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(text.parse().unwrap());
        notes.lines().map(|note| note.split_once(' ').unwrap()).map(|(at, line)| (line.to_owned(), time(at))).collect()
    }

    /// How late the latest of these lines was printed.
    fn lateness(&self, printed: &[Printed]) -> Duration {
        let written = self.written();
        let late = |line: &Printed| line.at.duration_since(written[&line.text]).unwrap_or_default();
        printed.iter().map(late).max().unwrap_or_default()
    }
}

impl Drop for Punctual {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.notes.parent().expect("a directory of its own"));
    }
}

#[test]
fn the_shell_program_shows_the_same_lines() {
    // A shell without an editor of its own: what is typed is echoed by the terminal, once.
    let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
    let theirs = lines_of(&mut python("shell", &server));
    let ours = lines_of(&mut example("shell", &server));
    assert_eq!(on_the_terminal(&ours), on_the_terminal(&theirs));
    assert_eq!(on_the_terminal(&ours), ["Hello, world", "echo Hello, world", "exit"]);
}

/// The lines, sorted and without prompts: what is typed in advance is echoed before, between or behind the prompts.
fn on_the_terminal(lines: &[Printed]) -> Vec<String> {
    let prompt = |c: char| c == '#' || c == '$' || c.is_whitespace();
    let mut lines: Vec<_> = lines.iter().map(|line| line.text.trim_matches(prompt).to_owned()).collect();
    lines.retain(|line| !line.is_empty());
    lines.sort();
    lines
}

#[test]
fn the_exec_program_prints_the_same() {
    let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
    let theirs = lines_of(&mut python("exec", &server));
    let ours = lines_of(&mut example("exec", &server));
    assert_eq!(ours.len(), 3);
    let ours: Vec<_> = texts(&ours).iter().map(|line| without_numbers(line)).collect();
    let theirs: Vec<_> = texts(&theirs).iter().map(|line| without_numbers(&as_rust_shows_it(line))).collect();
    assert_eq!(ours, theirs);
}

/// Python's `b'…'` in the words of Rust's `{:?}`.
fn as_rust_shows_it(repr: &str) -> String {
    format!("\"{}\"", repr.trim_start_matches('b').trim_matches('\''))
}

/// `uptime` is not the same twice: times, loads, and the units they come in.
fn without_numbers(line: &str) -> String {
    match line.find("up ") {
        Some(_) if line.contains("load average") => {
            line.chars().filter(|c| c.is_alphabetic()).collect::<String>().replace("days", "").replace("min", "")
        }
        _ => line.to_owned(),
    }
}

#[test]
fn the_thread_program_prints_the_same_lines_interleaved_and_each_at_once() {
    let stage = Punctual::start();
    let mut faults = String::new();
    for performance in 1..=PERFORMANCES {
        let theirs = lines_of(&mut python("threads", &stage.server));
        let their_lateness = stage.lateness(&theirs);
        let ours = lines_of(&mut example("threads", &stage.server));
        let our_lateness = stage.lateness(&ours);
        for (whose, lines) in [("paramiko's", &theirs), ("ours", &ours)] {
            assert_eq!(of_command(lines, &["One", "Two", "Three"]), ["One", "Two", "Three"], "{whose}");
            assert_eq!(of_command(lines, &["A", "B", "C"]), ["A", "B", "C"], "{whose}");
            assert_eq!(lines.len(), 6, "{whose}: {lines:?}");
        }
        println!("performance {performance}: latest line after {our_lateness:?}, paramiko's {their_lateness:?}");
        if moments(&ours) == moments(&theirs) && are_tutorials(&moments(&ours)) && our_lateness <= LATENESS {
            return;
        }
        faults += &format!(
            "performance {performance}: ours {our_lateness:?} late {:?}, paramiko's {their_lateness:?} late {:?}\n",
            texts(&ours),
            texts(&theirs)
        );
    }
    panic!("no performance of {PERFORMANCES} was faultless:\n{faults}");
}

/// The lines of one command, in the order printed.
fn of_command(lines: &[Printed], command: &[&str]) -> Vec<String> {
    texts(lines).into_iter().filter(|text| command.contains(&text.as_str())).collect()
}

/// What is printed at the same moment has no order: the first two lines, and the last two.
fn moments(lines: &[Printed]) -> [Vec<String>; 4] {
    let texts = texts(lines);
    [&texts[..2], &texts[2..3], &texts[3..4], &texts[4..]].map(|moment| {
        let mut moment = moment.to_vec();
        moment.sort();
        moment
    })
}

fn are_tutorials(moments: &[Vec<String>; 4]) -> bool {
    *moments == [vec!["A", "One"], vec!["B"], vec!["Two"], vec!["C", "Three"]]
}

#[test]
fn the_guide_and_the_readme_show_the_programs_that_are_tested() {
    let read = |path: &str| fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let between = |text: &str, from: &str, to: &str| {
        let (_, text) = text.split_once(from).unwrap();
        text.split_once(to).unwrap().0.trim().to_owned()
    };
    let guide = read("docs/python-to-rust.md");
    for name in ["shell", "exec", "threads"] {
        let ours = between(&read(&format!("examples/{name}.rs")), "Client::connect(&target)?;", "\n}\n");
        assert!(guide.contains(&ours), "the guide does not show the Rust of {name}: {ours}");
        let theirs = between(&read(&format!("tests/it/tutorial/{name}.py")), "# password='')", "client.close()");
        assert!(guide.contains(&theirs), "the guide does not show the Python of {name}: {theirs}");
    }
    let threads = between(&read("examples/threads.rs"), "Client::connect(&target)?;", "\n}\n");
    assert!(read("README.md").contains(&threads), "the README does not show the thread program");
}
