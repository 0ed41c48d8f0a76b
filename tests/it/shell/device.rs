//! Devices that are no Unix shell: a prompt, a pager, one command a line.

use std::os::unix::fs::PermissionsExt;

use threadline::{Error, ExitStatus, Pattern, Profile, Shell, ShellFailure};

use super::{client, within, Sshd, PATIENCE};

/// A switch: echoes, pages after five lines until told not to, knows few words.
const SWITCH: &str = r#"#!/bin/sh
stty -echo -icanon
pages=yes
mode=
show() {
    n=0
    while [ $n -lt 12 ]; do
        n=$((n + 1))
        if [ $pages = yes ] && [ $((n % 5)) = 0 ]; then
            printf ' --More-- '
            key=$(dd bs=1 count=1 2>/dev/null)
            printf '\r          \r'
            [ "$key" = q ] && return
        fi
        echo "line $n sw1# not a prompt"
    done
}
echo 'Welcome to sw1#'
while :; do
    printf 'sw1%s# ' "$mode"
    IFS= read -r line || exit
    printf '%s\n' "$line"
    case $line in
        'terminal length 0') pages=no ;;
        'show lines') show ;;
        'show clock') echo '12:00:00' ;;
        'configure terminal') mode='(config)' ;;
        end) mode= ;;
        exit) exit 0 ;;
        *) echo "% Invalid input: $line" ;;
    esac
done
"#;

fn shell() -> (Sshd, Shell) {
    let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
    let program = server.dir().join("home/switch");
    std::fs::write(&program, SWITCH).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let shell = client(&server).sh("exec ./switch").spawn_shell().unwrap();
    (server, shell)
}

fn profile() -> Profile {
    Profile::new(Pattern::regex(r"^sw1(\(\w+\))?#$").unwrap()).error(Pattern::regex(r"(?m)^% ").unwrap())
}

#[track_caller]
fn said(shell: &mut Shell, command: &str) -> String {
    let output = shell.run_within(command, PATIENCE).unwrap_or_else(|e| panic!("{command}: {e}"));
    assert_eq!(output.status, ExitStatus::Unknown, "a device tells no status");
    String::from_utf8(output.stdout).unwrap()
}

fn lines() -> String {
    (1..=12).map(|n| format!("line {n} sw1# not a prompt\n")).collect()
}

#[test]
fn commands_run_by_prompt_with_the_pager_turned_off() {
    within(PATIENCE, || {
        let (_server, mut shell) = shell();
        shell.set_profile(profile().setup("terminal length 0"));
        assert_eq!(said(&mut shell, "show clock"), "12:00:00\n");
        assert_eq!(said(&mut shell, "show lines"), lines());
        assert_eq!(said(&mut shell, "configure terminal"), "");
        assert_eq!(said(&mut shell, "show clock"), "12:00:00\n");
        assert_eq!(said(&mut shell, "end"), "");
        match shell.run_within("sho clock", PATIENCE) {
            Err(Error::Shell(error)) => {
                assert!(matches!(error.reason, ShellFailure::Refused), "{error:?}");
                assert_eq!(error.seen, b"% Invalid input: sho clock\n");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(said(&mut shell, "show clock"), "12:00:00\n");
        assert!(matches!(shell.run("a\nb"), Err(Error::InvalidInput { .. })));
        match shell.run_within("exit", PATIENCE) {
            Err(Error::Shell(error)) => {
                assert!(matches!(error.reason, ShellFailure::Ended(Some(ExitStatus::Code(0)))), "{error:?}");
            }
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn a_pager_that_cannot_be_turned_off_is_answered_and_leaves_no_trace() {
    within(PATIENCE, || {
        let (_server, mut shell) = shell();
        shell.set_profile(profile().pager("--More--", " "));
        assert_eq!(said(&mut shell, "show lines"), lines());
        assert_eq!(said(&mut shell, "show clock"), "12:00:00\n");
    });
}

#[test]
fn without_a_profile_a_device_is_an_error_that_says_what_to_do() {
    within(PATIENCE, || {
        let (_server, mut shell) = shell();
        let error = shell.run_within("show clock", std::time::Duration::from_millis(500)).unwrap_err();
        assert!(error.hint().unwrap().contains("set_profile"), "{error}");
    });
}
