//! Prompts that are answered while something else is waited for.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use threadline::{Pattern, Responder, Shell, ShellFailure};

use super::{client, shell_error, within, Sshd, PATIENCE};

const SECRET: &str = "correct horse 7";

/// A program that asks for a password as sudo does, and tells who got in.
const ASK: &str = r#"#!/bin/sh
tries=0
while [ $tries -lt 2 ]; do
    stty -echo </dev/tty
    printf '[sudo] password for me: ' >/dev/tty
    IFS= read -r given </dev/tty
    stty echo </dev/tty
    echo >/dev/tty
    [ "$given" = "correct horse 7" ] && exec "$@"
    echo 'Sorry, try again.' >/dev/tty
    tries=$((tries + 1))
done
exit 1
"#;

fn shell() -> (Sshd, Shell) {
    let server = Sshd::builder().login_shell("/bin/sh").start().unwrap();
    let program = server.dir().join("home/asks");
    std::fs::write(&program, ASK).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let shell = client(&server).invoke_shell().unwrap();
    (server, shell)
}

#[test]
fn a_password_prompt_is_answered_in_each_run_and_in_expect() {
    within(PATIENCE, || {
        let (_server, mut shell) = shell();
        shell.respond(Responder::secret("password for me:", SECRET));
        for i in 0..3 {
            let output = shell.run_within(format!("~/asks echo in {i}; echo after"), PATIENCE).unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            assert_eq!(said, format!("[sudo] password for me: \nin {i}\nafter\n"));
            assert!(output.status.success());
        }
        shell.send_line("~/asks echo i''n").unwrap();
        let found = shell.expect(Pattern::regex(r"\r\nin\r\n").unwrap(), PATIENCE).unwrap();
        assert!(!found.before_text().contains("horse"), "{}", found.before_text());
        shell.stop_responding();
        shell.run_within("~/asks true", Duration::from_millis(300)).unwrap_err();
    });
}

#[test]
fn a_wrong_answer_is_given_once() {
    within(PATIENCE, || {
        let (_server, mut shell) = shell();
        shell.respond(Responder::secret("password for me:", "wrong"));
        let error = shell.run_within("~/asks echo in", PATIENCE).unwrap_err();
        assert!(error.hint().unwrap().contains("accounts get locked"));
        let error = shell_error(error);
        assert!(matches!(error.reason, ShellFailure::AskedAgain), "{error:?}");
        assert!(String::from_utf8_lossy(&error.seen).contains("Sorry, try again"), "{error}");
        // The program still asks; interrupted, the shell goes on.
        shell.send_control('c').unwrap();
        assert_eq!(shell.run_within("stty echo; echo on", PATIENCE).unwrap().stdout, b"on\n");
    });
}

#[test]
fn an_echoed_secret_is_neither_in_the_output_nor_in_an_error() {
    within(PATIENCE, || {
        let (_server, mut shell) = shell();
        shell.respond(Responder::secret("Pass: ", SECRET));
        // It asks with the echo on.
        let careless = "stty echo; printf 'Pass: '; read -r x; stty -echo; echo \"got ${#x}\"";
        let output = shell.run_within(careless, PATIENCE).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "Pass: \ngot 15\n");
        // It even repeats it, and then nothing more comes.
        let error = shell.run_within("printf 'Pass: '; read -r x; echo \"<$x>\"; cat", Duration::from_millis(500));
        let error = shell_error(error.unwrap_err());
        assert!(String::from_utf8_lossy(&error.seen).contains("<[hidden]>"), "{error}");
        assert!(!error.to_string().contains("horse") && !format!("{error:?} {shell:?}").contains("horse"));
    });
}

#[test]
fn a_prompt_in_the_middle_of_output_is_not_answered_and_a_text_as_often_as_it_comes() {
    within(PATIENCE, || {
        let (_server, mut shell) = shell();
        shell.respond(Responder::secret("Pass: ", SECRET));
        shell.respond(Responder::text(Pattern::regex(r"more\? \[y/n\] $").unwrap(), "y"));
        let output = shell.run_within("echo 'Pass: is the word'; echo 'Pass: '", PATIENCE).unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "Pass: is the word\nPass: \n");
        let asks = "for i in 1 2 3; do printf 'more? [y/n] '; read a; echo \"$i$a\"; done";
        let output = shell.run_within(asks, PATIENCE).unwrap();
        let said = String::from_utf8_lossy(&output.stdout).replace("more? [y/n] ", "");
        assert_eq!(said, "1y\n2y\n3y\n");
    });
}
