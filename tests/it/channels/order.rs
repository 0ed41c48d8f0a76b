//! What arrives in which order, and when.

use std::time::{Duration, Instant};

use threadline::{LineEnd, Stream};

use super::client_of;
use crate::connect::{client, PATIENCE};
use crate::rogue::{Behaviour, Rogue};
use crate::sshd::Sshd;
use crate::util::within;

#[test]
fn lines_of_both_streams_come_in_their_order_with_the_time_of_their_arrival() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        let script = "for i in 1 2 3; do echo out$i; sleep 0.2; echo err$i >&2; sleep 0.2; done; printf rest";
        let before = Instant::now();
        let mut lines = client.sh(script).spawn().unwrap().lines();
        // Read when all is there: the time is that of the arrival, not of the reading.
        std::thread::sleep(Duration::from_millis(1500));
        let got: Vec<_> = lines.by_ref().map(|line| line.unwrap()).collect();
        let shown: Vec<_> = got.iter().map(|line| (line.stream, line.text().into_owned())).collect();
        let expected: Vec<_> = (1..=3)
            .flat_map(|i| [(Stream::Stdout, format!("out{i}")), (Stream::Stderr, format!("err{i}"))])
            .chain([(Stream::Stdout, "rest".to_owned())])
            .collect();
        assert_eq!(shown, expected);
        assert!(got[0].arrived >= before);
        for pair in got[..6].windows(2) {
            let apart = pair[1].arrived.duration_since(pair[0].arrived);
            assert!(apart >= Duration::from_millis(100), "{pair:?}: {apart:?} apart");
        }
        assert!(got.iter().take(6).all(|line| line.end == LineEnd::Newline));
        assert_eq!(got[6].end, LineEnd::EndOfStream);
        assert!(lines.into_child().wait().unwrap().success());
    });
}

#[test]
fn the_order_holds_across_a_thousand_changes_of_the_stream() {
    let server = Rogue::serving(|| {
        Behaviour::new().on_exec(|conn, channel, _| {
            for n in 0..1000 {
                let line = format!("{n}\n");
                match n % 3 {
                    0 => conn.data(channel, line.as_bytes())?,
                    1 => conn.stderr(channel, line.as_bytes())?,
                    // A line in two packets.
                    _ => {
                        conn.data(channel, &line.as_bytes()[..1])?;
                        conn.data(channel, &line.as_bytes()[1..])?;
                    }
                }
            }
            conn.finish(channel, 0)
        })
    });
    let client = client_of(&server);
    within(PATIENCE, move || {
        let lines: Vec<_> = client.sh("x").spawn().unwrap().lines().map(|line| line.unwrap()).collect();
        assert_eq!(lines.len(), 1000);
        for (n, line) in lines.iter().enumerate() {
            let stream = if n % 3 == 1 { Stream::Stderr } else { Stream::Stdout };
            assert_eq!((line.stream, line.text().as_ref()), (stream, n.to_string().as_str()));
        }
        assert!(lines.windows(2).all(|pair| pair[0].arrived <= pair[1].arrived));
        drop(server);
    });
}

#[test]
fn a_line_arrives_while_its_command_goes_on() {
    let server = Sshd::start().unwrap();
    let client = client(&server);
    within(PATIENCE, move || {
        let release = server.dir().join("release");
        let script = format!("echo one; while [ ! -e {} ]; do sleep 0.02; done; echo two", release.display());
        let mut lines = client.sh(script).spawn().unwrap().lines();
        assert_eq!(lines.next().unwrap().unwrap().bytes, b"one");
        // The command waits for us, so the line cannot have waited for its end.
        std::fs::write(release, "").unwrap();
        assert_eq!(lines.next().unwrap().unwrap().bytes, b"two");
        assert!(lines.next().is_none());
    });
}
