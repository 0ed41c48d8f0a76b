//! demo, doctor, completions, man pages.

use super::*;

#[test]
fn the_demo_plays_the_three_programs_and_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let output = run(threadline().arg("demo").env("TMPDIR", scratch.path()));
    let said = text(&output.stdout);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{said}");
    let (one, two) = (said.find("1  A shell session").unwrap(), said.find("2  Individual commands").unwrap());
    let three = said.find("3  Two commands at once").unwrap();
    assert!(said[one..two].matches("Hello, world").count() >= 2, "the echo and the output: {said}");
    assert!(said[two..three].contains("| Hello, world!") && said[two..three].contains("| Linux"), "{said}");
    let lines: Vec<_> = said[three..].lines().filter(|line| line.contains("  | ")).collect();
    let place = |text: &str| lines.iter().position(|line| line.ends_with(text)).unwrap_or_else(|| panic!("{said}"));
    let order = ["one: One", "two: B", "one: Two"].map(place);
    assert!(
        order.is_sorted() && place("two: A") < place("two: B") && place("one: Two") < place("one: Three"),
        "{said}"
    );
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "its directory is gone");
}

#[test]
fn the_demo_killed_in_the_middle_leaves_nothing_behind() {
    let scratch = tempfile::tempdir().unwrap();
    let mut child = threadline().arg("demo").env("TMPDIR", scratch.path()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    within(PATIENCE, move || std::io::Read::read_exact(&mut stdout, &mut [0]).unwrap());
    send(&child, Signal::INT);
    within(PATIENCE, move || child.wait().unwrap());
    let empty = || std::fs::read_dir(scratch.path()).unwrap().count() == 0;
    eventually(PATIENCE, "the watchdog has removed the server's directory", empty);
}

#[test]
fn the_doctor_shows_this_machine_and_what_a_connection_negotiated() {
    let server = Sshd::builder().ciphers("aes256-gcm@openssh.com").start().unwrap();
    let output = run(threadline().args(["doctor"]).args(access(&server)).arg(HOST));
    let said = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{said}{}", text(&output.stderr));
    for expected in [
        concat!("threadline    ", env!("CARGO_PKG_VERSION")),
        "our packet layer is in place",
        "OpenSSL ",
        "AES instructions: ",
        "open files",
        "SSH_AUTH_SOCK is not set",
        "known hosts",
        "SSH-2.0-OpenSSH",
        "publickey with ",
        "aes256-gcm@openssh.com",
        "round trip",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let alone = run(threadline().arg("doctor"));
    assert!(alone.status.success() && !text(&alone.stdout).contains("round trip"));
    let refused = run(threadline().args(["doctor", "-p", &server.port().to_string(), "-l", "x", HOST]));
    assert_eq!(failure(&refused).0, 255);
}

#[test]
fn the_doctor_and_the_log_say_whose_code_encrypts() {
    let server = Sshd::builder().ciphers("aes128-gcm@openssh.com,aes128-cbc").start().unwrap();
    let whose = if cfg!(feature = "fast-ciphers") { "threadline" } else { "libssh2" };
    let output = run(threadline().args(["doctor", "-vv"]).args(access(&server)).arg(HOST));
    let (said, log) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}{log}");
    let listed = |cipher: &str| {
        let line = said.lines().find(|line| line.trim_start().starts_with(cipher)).expect(cipher);
        line.trim_start().split_once(char::is_whitespace).expect(cipher).1.trim_start().to_owned()
    };
    assert_eq!(listed("aes128-gcm@openssh.com"), whose);
    assert_eq!(listed("chacha20-poly1305@openssh.com"), whose);
    assert_eq!(listed("aes128-cbc"), "libssh2, offered only when named");
    assert!(said.contains(&format!("as offered, {} first: ", threadline::ciphers()[0].name)), "{said}");
    assert!(said.contains("fast ciphers  on") == cfg!(feature = "fast-ciphers") && !said.contains("WARNING"), "{said}");
    assert!(said.matches(&format!("(cipher: {whose})")).count() == 2, "{said}");
    let expected =
        format!("sends with aes128-gcm@openssh.com of {whose}, receives with aes128-gcm@openssh.com of {whose}");
    assert!(log.contains(&expected), "{log}");

    let named = run(threadline().args(["doctor", "-o", "Ciphers=aes128-cbc"]).args(access(&server)).arg(HOST));
    assert_eq!(text(&named.stdout).matches("(cipher: libssh2)").count(), 2, "{}", text(&named.stderr));
    let unknown = run(threadline().args(["doctor", "-o", "Ciphers=aes128-cbc,rot13"]).args(access(&server)).arg(HOST));
    let (code, said) = failure(&unknown);
    assert!(code == 255 && said.contains("unknown cipher algorithm 'rot13'; there are: "), "{code} {said}");
}

#[test]
fn every_shell_can_read_its_completions() {
    let scratch = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        let script = run(threadline().args(["completions", shell]));
        assert!(script.status.success() && text(&script.stdout).contains("kill-grace"), "{shell}");
        assert!(text(&script.stdout).contains("ready-command"), "{shell}");
        let file = scratch.path().join(shell);
        std::fs::write(&file, script.stdout).unwrap();
        let read = run(Command::new(shell).arg("-n").arg(&file));
        assert!(read.status.success() && read.stderr.is_empty(), "{shell}: {}", text(&read.stderr));
    }
}

#[test]
fn the_man_pages_are_sound() {
    for page in [&["man"][..], &["man", "exec"], &["man", "shell"], &["man", "forward"], &["man", "doctor"]] {
        let source = run(threadline().args(page));
        assert!(source.status.success(), "{page:?}");
        let rendered = run_with(Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]), source.stdout.clone());
        assert_eq!((rendered.status.code(), text(&rendered.stderr)), (Some(0), String::new()), "{page:?}");
        assert!(text(&source.stdout).contains(".SH NAME"), "{page:?}");
    }
    let (code, said) = failure(&run(threadline().args(["man", "nonsense"])));
    assert!(code == 2 && said.contains("exec, shell, forward, "), "{code} {said}");
}

#[test]
fn help_goes_to_stdout_and_ends_quietly_when_nobody_reads_it() {
    let help = run(threadline().args(["exec", "--help"]));
    assert!(help.status.success() && help.stderr.is_empty());
    for expected in ["--kill-grace", "Exit codes:", "-c, --command"] {
        assert!(text(&help.stdout).contains(expected), "{expected}");
    }
    assert!(text(&run(threadline().arg("--version")).stdout).starts_with("threadline "));
}
