//! What goes up: input, and its end.

use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use threadline::{Client, Error, OnDrop, Phase};

use super::{client_of, meanwhile, own, Echo};
use crate::connect::{builder_via, client, PATIENCE};
use crate::proxy::{Direction, Proxy};
use crate::rogue::{Behaviour, Input, Rogue};
use crate::sshd::Sshd;
use crate::util::{eventually, noise, output_within, sha256, within};

const TEN_MB: u64 = 10_000_000;

/// Tells the test, started once more, that it is the process that sends and leaves: where to, and how.
const INNER: &str = "THREADLINE_TEST_SENDS_AND_LEAVES";

/// Sends 10 MB to a command that is slow to read it, and ends this process as soon as it is said that all went out.
fn send_and_leave(place: &str) -> ! {
    let [port, user, identity, known_hosts, target, how] = place.split('\n').collect::<Vec<_>>().try_into().unwrap();
    let client = Client::builder("127.0.0.1").port(port.parse().unwrap()).user(user).identity(identity).agent(false);
    let client = client.known_hosts(known_hosts).connect().unwrap();
    let mut child = client
        .sh(format!("sleep 0.3; cat >{target}.part && mv {target}.part {target}"))
        .stdin(threadline::Stdio::piped())
        .on_drop(OnDrop::Leave)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::io::copy(&mut noise(7, TEN_MB), &mut stdin).unwrap();
    match how {
        "finish, close" => {
            stdin.finish(PATIENCE).unwrap();
            client.close(PATIENCE).unwrap();
        }
        "close" => {
            drop(stdin);
            client.close(PATIENCE).unwrap();
        }
        "drop, close" => {
            drop((stdin, child));
            client.close(PATIENCE).unwrap();
        }
        other => panic!("{other}"),
    }
    std::process::exit(0)
}

#[test]
fn ten_megabytes_arrive_whole_though_the_process_ends_at_once() {
    if let Ok(place) = std::env::var(INNER) {
        send_and_leave(&place);
    }
    let server = Sshd::start().unwrap();
    for how in ["finish, close", "close", "drop, close"] {
        let target = server.dir().join(how.replace(", ", "_"));
        let text = |path: &Path| path.display().to_string();
        let place = [
            server.port().to_string(),
            server.user().to_owned(),
            text(&server.identity()),
            text(&server.known_hosts()),
            text(&target),
            how.to_owned(),
        ];
        let mut this = Command::new(std::env::current_exe().unwrap());
        let test = "channels::stdin::ten_megabytes_arrive_whole_though_the_process_ends_at_once";
        this.args([test, "--exact", "--nocapture"]).env(INNER, place.join("\n"));
        let said = output_within(PATIENCE, &mut this);
        assert!(said.status.success(), "{how}: {}", String::from_utf8_lossy(&said.stderr));
        eventually(PATIENCE, "all has been written", || target.exists());
        let arrived = sha256(std::fs::File::open(&target).unwrap()).unwrap();
        assert_eq!(arrived, sha256(noise(7, TEN_MB)).unwrap(), "{how}");
    }
}

#[test]
fn close_sends_what_is_queued_through_a_slow_link() {
    let server = Sshd::start().unwrap();
    let proxy = Proxy::to((std::net::Ipv4Addr::LOCALHOST, server.port()).into());
    let proxy = proxy.delay(Duration::from_millis(50)).rate(2_000_000).start().unwrap();
    let client = builder_via(&server, &proxy).connect().unwrap();
    let target = server.dir().join("target");
    within(PATIENCE, move || {
        // It answers as much as it gets, which nobody reads: that must not cost the input. That it goes on when its
        // output is hung up is its own decision.
        let mut child = client.exec_command(format!("trap '' PIPE; tee {}", target.display())).unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::io::copy(&mut noise(8, 1_500_000), &mut stdin).unwrap();
        drop(stdin);
        client.close(PATIENCE).unwrap();
        let expected = sha256(noise(8, 1_500_000)).unwrap();
        eventually(PATIENCE, "all has been written", || {
            std::fs::File::open(&target).is_ok_and(|file| sha256(file).unwrap() == expected)
        });
    });
}

#[test]
fn close_says_when_something_could_not_go_out_in_time() {
    let server = Sshd::start().unwrap();
    let proxy = Proxy::to((std::net::Ipv4Addr::LOCALHOST, server.port()).into()).start().unwrap();
    let client = builder_via(&server, &proxy).connect().unwrap();
    let mut child = client.exec_command("cat >/dev/null").unwrap();
    let mut stdin = child.stdin.take().unwrap();
    proxy.stall(Direction::Up);
    let (started, other) = (std::time::Instant::now(), client.clone());
    let writing = meanwhile(move || stdin.write_all(&vec![0; 64 << 20]).map_err(|e| own(&e)));
    writing.still_waits();
    let error = within(PATIENCE, move || other.close(Duration::from_millis(300)).unwrap_err());
    assert!(matches!(error, Error::Timeout { phase: Phase::Write, .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
    assert!(matches!(writing.wait(), Err(Error::Closed)));
    assert!(matches!(client.sh("true").spawn(), Err(Error::Closed)));
}

#[test]
fn finish_returns_at_its_deadline_and_the_rest_still_goes_out() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        let release = server.dir().join("release");
        let mut child =
            client.exec_command(format!("while [ ! -e {} ]; do sleep 0.02; done; wc -c", release.display())).unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // More than sshd takes in for a command that does not read, and less than we queue beyond that.
        stdin.write_all(&vec![b'x'; 2_400_000]).unwrap();
        let error = stdin.finish(Duration::from_millis(200)).unwrap_err();
        assert!(matches!(error, Error::Timeout { phase: Phase::Write, .. }), "{error}");
        std::fs::write(release, "").unwrap();
        assert_eq!(String::from_utf8_lossy(&child.output().unwrap().stdout).trim(), "2400000");
    });
}

#[test]
fn writing_to_a_command_that_ended_is_a_broken_pipe_and_harms_nothing_else() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        let mut other = Echo::on(&client);
        for command in ["true", "head -c 10 >/dev/null"] {
            let mut child = client.exec_command(command).unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let error = stdin.write_all(&vec![0; 64 << 20]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BrokenPipe, "{command}: {error}");
            assert!(matches!(own(&error), Error::BrokenPipe));
            // It stays that way.
            assert_eq!(stdin.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
            if command == "true" {
                assert!(child.wait().unwrap().success(), "the status is the command's own");
            }
            other.rounds(5);
        }
        other.ends_well();
    });
}

#[test]
fn what_a_command_left_unread_at_its_end_is_reported_by_finish() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        let mut child = client.exec_command("read line; exit 3").unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let queued = stdin.write_all(b"go\n").and_then(|()| stdin.write_all(&vec![0; 8 << 20]));
        let outcome = queued.map_err(|e| own(&e)).and_then(|()| stdin.finish(PATIENCE));
        assert!(matches!(outcome, Err(Error::BrokenPipe)), "{outcome:?}");
        assert_eq!(child.wait().unwrap().code(), Some(3));
        Echo::on(&client).ends_well();
    });
}

#[test]
fn a_command_that_says_it_reads_no_more_is_a_broken_pipe_while_it_runs() {
    // OpenSSH's `eow@openssh.com`. sshd itself says it to its own client only; what it gets then it throws away.
    let server = Rogue::serving(|| {
        Behaviour::new().on_exec(|conn, channel, _| {
            conn.set_input(channel, Input::Stall)?;
            conn.eow(channel)?;
            conn.data(channel, b"still here")
        })
    });
    let client = client_of(&server);
    within(PATIENCE, move || {
        let mut child = client.exec_command("x").unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let error = stdin.write_all(&vec![0; 64 << 20]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BrokenPipe);
        let mut said = [0; 10];
        child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(&said, b"still here");
        assert_eq!(child.try_wait().unwrap(), None);
        drop((child, server));
    });
}

#[test]
fn a_command_that_closed_its_input_and_runs_on_harms_nobody() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        let mut child = client.exec_command("exec <&-; sleep 0.3; echo done; exit 5").unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // Whether this is taken is the server's choice; it must not end in a wait.
        let written = stdin.write_all(&vec![0; 8 << 20]);
        assert!(written.is_ok() || matches!(own(&written.unwrap_err()), Error::BrokenPipe));
        let output = child.output().unwrap();
        assert_eq!((output.stdout.as_slice(), output.status.code()), (b"done\n".as_slice(), Some(5)));
        Echo::on(&client).ends_well();
    });
}

#[test]
fn empty_input_is_an_end_of_file_and_no_input_is_none() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        let mut child = client.exec_command("cat; echo end").unwrap();
        child.stdin.take().unwrap().finish(PATIENCE).unwrap();
        assert_eq!(child.output().unwrap().stdout, b"end\n");
        // Without a stdin of its own a command finds the end at once.
        assert_eq!(client.sh("cat; echo end").output().unwrap().stdout, b"end\n");
        // `wait` and `output` end the input.
        assert!(client.exec_command("cat").unwrap().wait().unwrap().success());
    });
}
