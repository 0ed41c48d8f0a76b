//! On a terminal: one of tmux's, which has a size and a screen to look at.

use super::*;

/// A tmux server of its own with one window.
pub(super) struct Tmux {
    socket: String,
}

impl Tmux {
    /// A window of this size in which a shell runs the script, and stays when it has ended.
    pub fn start(name: &str, columns: u32, rows: u32, script: &str) -> Tmux {
        let tmux = Tmux { socket: format!("threadline-test-{name}-{}", std::process::id()) };
        let (columns, rows) = (columns.to_string(), rows.to_string());
        let size = ["new-session", "-d", "-x", &columns, "-y", &rows];
        tmux.run(&[&size[..], &["sh", "-c", &format!("{script}; exec sleep 1000")]].concat());
        tmux
    }

    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        let mut tmux = Command::new("tmux");
        tmux.args(["-f", "/dev/null", "-L", &self.socket]).args(arguments);
        tmux.env_remove("TMUX").env("SHELL", "/bin/sh").env("TERM", "xterm").env("LC_ALL", "C.UTF-8");
        let output = run(&mut tmux);
        assert!(output.status.success(), "tmux (make deps installs it): {}", text(&output.stderr));
        text(&output.stdout)
    }

    pub fn screen(&self) -> String {
        self.run(&["capture-pane", "-p"])
    }

    #[track_caller]
    pub fn shows(&self, expected: &str) {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if screen.contains(expected) {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{expected:?} is not on the screen:\n{screen}");
            thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

impl Tmux {
    /// Presses keys, by tmux's names for them; what is no name is typed as it is.
    pub fn keys(&self, keys: &[&str]) {
        self.run(&[&["send-keys"], keys].concat());
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        let _ = Command::new("tmux").args(["-L", &self.socket, "kill-server"]).output();
    }
}

/// The command line in the shell's words.
pub(super) fn line(tool: &Command) -> String {
    let words = std::iter::once(tool.get_program()).chain(tool.get_args());
    words.map(|word| format!("'{}'", word.to_string_lossy().replace('\'', "'\\''"))).collect::<Vec<_>>().join(" ")
}

#[test]
fn t_gives_the_command_our_terminals_type_and_size_and_restores_it() {
    let server = Sshd::start().unwrap();
    let mut tool = exec(&server, &["-t"]);
    tool.arg("tty >/dev/null && echo TERM=$TERM SIZE=$(stty size); read x; echo SIZE=$(stty size) got:$x; exit 6");
    let before_and_after = "stty -a | tr ';' '\\n' | grep -c ' -echo '";
    let script = format!("TERM=vt220 {}; echo code:$? hidden:$({before_and_after})", line(&tool));
    let tmux = Tmux::start("size", 93, 31, &script);
    tmux.shows("TERM=vt220 SIZE=31 93");
    tmux.run(&["resize-window", "-x", "101", "-y", "29"]);
    // What is typed is echoed by the remote terminal alone.
    tmux.run(&["send-keys", "abc", "Enter"]);
    tmux.shows("SIZE=29 101 got:abc");
    tmux.shows("code:6 hidden:0");
    assert_eq!(tmux.screen().matches("abc").count(), 2, "once typed, once printed:\n{}", tmux.screen());
}

#[test]
fn the_terminal_is_restored_when_a_signal_ends_us() {
    let server = Sshd::start().unwrap();
    let mut tool = exec(&server, &["-t"]);
    tool.arg("stty -echo; echo up; sleep 300");
    let pid_file = server.dir().join("pid");
    let note = format!("sh -c 'echo $$ >{}; exec \"$@\"' sh", pid_file.display());
    let tmux = Tmux::start("restore", 120, 40, &format!("{note} {}; echo code:$?; stty -a", line(&tool)));
    tmux.shows("up");
    let pid = std::fs::read_to_string(pid_file).unwrap();
    assert!(run(Command::new("kill").args(["-TERM", pid.trim()])).status.success());
    tmux.shows("interrupted; the remote command is gone");
    tmux.shows("code:143");
    tmux.shows(" icanon ");
}

#[test]
fn ctrl_c_goes_to_the_remote_terminal() {
    let server = Sshd::start().unwrap();
    let mut tool = exec(&server, &["-t"]);
    tool.arg("trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done");
    let tmux = Tmux::start("intr", 80, 24, &format!("{}; echo code:$?", line(&tool)));
    tmux.shows("ready");
    tmux.run(&["send-keys", "C-c"]);
    tmux.shows("caught");
    tmux.shows("code:9");
}

#[test]
fn without_a_terminal_of_ours_t_gives_none_and_tt_does() {
    let server = Sshd::start().unwrap();
    let output = run(exec(&server, &["-t"]).arg("tty"));
    assert_eq!(text(&output.stdout), "not a tty\n");
    assert!(text(&output.stderr).contains("-tt gives it one"), "{}", text(&output.stderr));
    let output = run(exec(&server, &["-tt"]).arg("tty; stty size"));
    assert!(text(&output.stdout).starts_with("/dev/"), "{}", text(&output.stdout));
    assert!(text(&output.stdout).ends_with("24 80\r\n"), "{}", text(&output.stdout));
}

#[test]
fn control_characters_are_escaped_on_a_terminal_only() {
    let server = Sshd::start().unwrap();
    let mut tool = exec(&server, &[]);
    tool.args(["-c", "printf '\\033]0;title\\007x\\n'", "-c", "true"]);
    assert_eq!(run(&mut tool).stdout, b"1: \x1b]0;title\x07x\n");
    let tmux = Tmux::start("escape", 80, 24, &line(&tool));
    tmux.shows("1: \\x1b]0;title\\x07x");
}

#[test]
fn passwords_and_passphrases_are_asked_for_on_the_terminal() {
    let server = Sshd::builder().login_user("alice").password().start().unwrap();
    let key = server.add_identity("locked", &["-t", "ed25519", "-N", "open sesame"]).unwrap();
    let mut by_password = threadline();
    by_password.args(["exec", "--ask-pass", "-i", "/dev/null", "--known-hosts"]).arg(server.known_hosts());
    by_password.arg(format!("alice@{HOST}:{}", server.port())).arg("echo in by password");
    let mut by_key = threadline();
    by_key.args(["exec", "-i"]).arg(key).arg("--known-hosts").arg(server.known_hosts());
    by_key.arg(format!("alice@{HOST}:{}", server.port())).arg("echo in by key");
    let tmux = Tmux::start("ask", 120, 24, &format!("{} ; {}", line(&by_password), line(&by_key)));
    tmux.shows("'s password:");
    tmux.run(&["send-keys", crate::sshd::PASSWORD, "Enter"]);
    tmux.shows("in by password");
    tmux.shows("Passphrase for the key");
    tmux.run(&["send-keys", "open sesame", "Enter"]);
    tmux.shows("in by key");
    assert!(!tmux.screen().contains("sesame") && !tmux.screen().contains("horse"), "{}", tmux.screen());
    let without_terminal = run(Command::new("setsid").args(["-w", "env"]).args(by_password.get_args()));
    let (code, said) = failure(&without_terminal);
    assert!(code == 2 && said.contains("--password-file"), "{code} {said}");
}
