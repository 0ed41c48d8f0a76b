//! The server exchanges keys while data flows, and while none does.

use std::io::Write;
use std::time::Duration;

use super::{at_once, client_of, Echo};
use crate::connect::{client, PATIENCE};
use crate::rogue::{Behaviour, Rogue};
use crate::sshd::Sshd;
use crate::util::{noise, sha256, within};

const CHANNELS: u64 = 16;
/// 256 MiB in all, half of it up and half of it down.
const EACH: u64 = 8 << 20;

/// How many key exchanges sshd has begun, by its log.
fn exchanges(server: &Sshd) -> usize {
    server.log().matches("SSH2_MSG_KEXINIT sent").count()
}

#[test]
fn sixteen_channels_carry_everything_intact_while_the_server_rekeys_every_megabyte() {
    let server = Sshd::builder().option("RekeyLimit 1M").option("LogLevel DEBUG1").option("MaxSessions 16").start();
    let server = server.unwrap();
    let client = client(&server);
    let hashes = at_once((0..CHANNELS).map(|n| {
        let client = client.clone();
        move || {
            let mut child = client.exec_command("cat").unwrap();
            let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            let writer = std::thread::spawn(move || std::io::copy(&mut noise(n, EACH), &mut stdin).unwrap());
            let hash = sha256(stdout).unwrap();
            assert_eq!(writer.join().unwrap(), EACH);
            assert!(child.wait().unwrap().success());
            hash
        }
    }));
    for (n, hash) in hashes.into_iter().enumerate() {
        assert_eq!(hash, sha256(noise(n as u64, EACH)).unwrap(), "channel {n}");
    }
    let count = exchanges(&server);
    assert!(count > 100, "{count} key exchanges");
}

#[test]
fn an_idle_connection_takes_part_in_key_exchanges() {
    let server = Sshd::builder().option("RekeyLimit default 1s").option("LogLevel DEBUG1").start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        let mut cat = Echo::on(&client);
        let before = exchanges(&server);
        // sshd looks at its clock when something wakes it: it is asked something now and then, and between that we do
        // nothing at all.
        for round in 1..=3 {
            crate::util::eventually(PATIENCE, "another key exchange", || {
                std::thread::sleep(Duration::from_millis(300));
                cat.rounds(1);
                exchanges(&server) >= before + round
            });
        }
        cat.ends_well();
        client.close(PATIENCE).unwrap();
    });
}

#[test]
fn commands_start_and_end_in_the_middle_of_key_exchanges() {
    let server = Rogue::serving(|| Behaviour::new().rekey_every(20_000));
    let client = client_of(&server);
    let counts = at_once((0..8).map(|_| {
        let client = client.clone();
        move || {
            (0..10)
                .map(|n| {
                    let mut child = client.exec_command("wc -c").unwrap();
                    let size = 3000 * n;
                    child.stdin.take().unwrap().write_all(&vec![0; size]).unwrap();
                    let output = child.output().unwrap();
                    assert!(output.status.success());
                    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), size.to_string());
                    size
                })
                .sum::<usize>()
        }
    }));
    assert_eq!(counts, [135_000; 8]);
    drop(client);
    drop(server);
}
