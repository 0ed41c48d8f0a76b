//! The tests' own tools are tested too: what they claim about threadline is worth no more than they are.

use std::process::Command;

use crate::sshd::Sshd;

fn stdout(command: &mut Command) -> String {
    let output = command.output().expect("the command starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn ssh_logs_in_and_nothing_is_left_after_drop() {
    let server = Sshd::start().unwrap();
    assert_eq!(stdout(server.ssh().arg("echo hi")), "hi\n");
    let dir = server.dir().to_owned();
    drop(server);
    assert!(!dir.exists());
}
