//! A client in a process that was forked from its own, without exec, does nothing: no thread of its connection is there,
//! and the socket is the parent's to use. A program of its own, because it forks.

use std::time::{Duration, Instant};

use threadline::{Client, Error};

#[path = "../src/bin/threadline/sshd.rs"]
mod sshd;

/// What the forked process ends with when all was as it should be.
const WELL: i32 = 17;

/// What a caller may try there: everything ends at once, and nothing says that it worked.
fn try_everything(client: Client, child: threadline::Child) -> bool {
    let mut child = child;
    let stdin = child.stdin.take();
    let refused = client.sh("true").spawn().is_err()
        && client.ping(Duration::from_secs(1)).is_err()
        && client.close(Duration::from_secs(1)).is_err();
    let control = child.control();
    control.close();
    drop((stdin, child, client));
    refused
}

#[test]
fn a_client_in_a_forked_process_does_nothing() {
    let server = sshd::Sshd::start().unwrap();
    let client = Client::builder(server.host()).port(server.port()).user(server.user()).identity(server.identity());
    let client = client.agent(false).known_hosts(server.known_hosts()).connect().unwrap();
    let child = client.exec_command("cat").unwrap();
    let mut other = client.exec_command("cat").unwrap();

    // SAFETY: the forked process has this thread alone. It uses what this thread owns, no lock that another thread of
    // ours may hold (the transport is idle), and leaves by `_exit`, which runs nothing of the parent's.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| try_everything(client, child)));
        // SAFETY: ends the process and does nothing else.
        unsafe { libc::_exit(if well.is_ok_and(|well| well) { WELL } else { 1 }) }
    }
    assert!(pid > 0, "fork: {}", std::io::Error::last_os_error());

    let ended = wait_for(pid, Duration::from_secs(30));
    assert_eq!(ended, Some(WELL), "None: it hangs; 1: something was said to have worked");

    // The parent's connection has not noticed.
    std::io::Write::write_all(other.stdin.as_mut().unwrap(), b"still here").unwrap();
    let output = other.output().unwrap();
    assert_eq!(output.stdout, b"still here");
    assert!(child.output().unwrap().status.success());
    assert_eq!(client.sh("echo hi").output().unwrap().stdout, b"hi\n");
    assert!(!matches!(client.lost(), Some(Error::ConnectionLost { .. })));
    client.close(Duration::from_secs(30)).unwrap();
}

/// The exit code of a process of ours; none when it has not ended in time, or not by itself. It is killed then.
fn wait_for(pid: i32, patience: Duration) -> Option<i32> {
    let pid = rustix::process::Pid::from_raw(pid)?;
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Ok(Some((_, status))) = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG) {
            return status.exit_status();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
    None
}
