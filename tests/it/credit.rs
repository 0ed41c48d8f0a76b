//! What the server may send: every byte that is read, thrown away or nobody's makes room for another.

use std::io::{BufRead, Read};
use std::time::Duration;

use crossbeam_channel::{unbounded, Receiver, Sender};
use threadline::{ClientBuilder, Error};

use crate::hostile;
use crate::rogue::{run, Behaviour, Rogue, ServerConn};
use crate::util::within;

const PATIENCE: Duration = Duration::from_secs(30);
/// The smallest window there is.
const WINDOW: u32 = 64 * 1024;

fn builder(server: &Rogue) -> ClientBuilder {
    hostile::builder(server).window(WINDOW, WINDOW).spare_channel(false)
}

/// A server that runs this for every command. What it tells arrives here.
fn server(
    script: impl Fn(&mut ServerConn, u32, &Tell) -> std::io::Result<()> + Send + Sync + Clone + 'static,
) -> (Rogue, Receiver<()>) {
    let (tell, told) = unbounded();
    let server = Rogue::serving(move || {
        let (script, tell) = (script.clone(), Tell(tell.clone()));
        Behaviour::new().on_exec(move |conn, channel, _| script(conn, channel, &tell))
    });
    (server, told)
}

struct Tell(Sender<()>);

impl Tell {
    /// Tells the test once the client has taken in all that was sent.
    fn arrived(&self, conn: &mut ServerConn, channel: u32) -> std::io::Result<()> {
        conn.keepalive(channel)?;
        let _ = self.0.send(());
        Ok(())
    }
}

#[test]
fn what_was_read_of_a_stream_counts_when_another_reader_takes_it_over() {
    within(PATIENCE, || {
        let (server, arrived) = server(|conn, channel, tell| {
            conn.data(channel, &[7; WINDOW as usize])?;
            tell.arrived(conn, channel)?;
            conn.data(channel, &[8; 100_000])?;
            conn.finish(channel, 0)
        });
        let client = builder(&server).connect().unwrap();
        let mut child = client.exec_command("x").unwrap();
        arrived.recv_timeout(PATIENCE).unwrap();
        let mut begin = [0; 60_000];
        child.stdout.as_mut().unwrap().read_exact(&mut begin).unwrap();
        let rest = child.output().unwrap().stdout;
        assert_eq!(rest.len(), WINDOW as usize - 60_000 + 100_000);
    });
}

#[test]
fn a_reader_that_has_read_a_small_window_makes_room_before_it_asks_for_more() {
    within(PATIENCE, || {
        let (server, told) = server(|conn, channel, tell| {
            conn.data(channel, &[7; WINDOW as usize])?;
            tell.arrived(conn, channel)?;
            conn.data(channel, &[8])?;
            tell.arrived(conn, channel)?;
            conn.finish(channel, 0)
        });
        let client = builder(&server).connect().unwrap();
        let mut child = client.exec_command("x").unwrap();
        told.recv_timeout(PATIENCE).unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0; WINDOW as usize]).unwrap();
        told.recv_timeout(PATIENCE / 2).expect("the server may go on");
    });
}

#[test]
fn what_comes_after_thrown_away_output_is_delivered() {
    const SENT: usize = 400_000;
    within(PATIENCE, || {
        let (go, wait) = unbounded::<()>();
        let (server, told) = server(move |conn, channel, tell| {
            conn.data(channel, &[7; SENT])?;
            tell.arrived(conn, channel)?;
            let _ = wait.recv_timeout(PATIENCE);
            conn.data(channel, b"tail")?;
            conn.finish(channel, 0)
        });
        let client = builder(&server).unread_limit(100_000).connect().unwrap();
        let mut child = client.exec_command("x").unwrap();
        while told.try_recv().is_err() {
            let error = child.wait_timeout(Duration::from_millis(50)).unwrap_err();
            assert!(matches!(error, Error::Timeout { .. }), "{error}");
        }
        let mut stdout = child.stdout.take().unwrap();
        let (mut kept, mut gap) = (0, 0);
        while gap == 0 {
            match stdout.fill_buf() {
                Ok(bytes) => {
                    let n = bytes.len();
                    assert!(n > 0, "no gap in {kept} bytes");
                    kept += n;
                    stdout.consume(n);
                }
                Err(error) => match error.get_ref().and_then(|e| e.downcast_ref()) {
                    Some(Error::Discarded { bytes, .. }) => gap = usize::try_from(*bytes).unwrap(),
                    _ => panic!("{error}"),
                },
            }
        }
        assert_eq!(kept + gap, SENT);
        go.send(()).unwrap();
        let mut tail = Vec::new();
        stdout.read_to_end(&mut tail).unwrap();
        assert_eq!(tail, b"tail");
    });
}

#[test]
fn extended_data_of_an_unknown_kind_does_not_use_the_window_up() {
    within(PATIENCE, || {
        let (server, _) = server(|conn, channel, _| {
            for _ in 0..2 {
                conn.packet_of_extended_data(channel, 7, &[0; WINDOW as usize / 2])?;
            }
            conn.data(channel, b"there")?;
            conn.finish(channel, 0)
        });
        let client = builder(&server).connect().unwrap();
        assert_eq!(client.sh("x").output().unwrap().stdout, b"there");
    });
}

#[test]
fn memory_that_stalled_channels_hold_does_not_stop_the_others() {
    const STALLED: usize = 4;
    within(PATIENCE, || {
        let (tell, told) = unbounded();
        let server = Rogue::serving(move || {
            let tell = Tell(tell.clone());
            Behaviour::new().on_exec(move |conn, channel, command| {
                if command == "stall" {
                    conn.data(channel, &[7; WINDOW as usize])?;
                    return tell.arrived(conn, channel);
                }
                run(conn, channel, command)
            })
        });
        let client = builder(&server).memory_limit(STALLED as u64 * u64::from(WINDOW)).connect().unwrap();
        let mut stalled = Vec::new();
        for _ in 0..STALLED {
            stalled.push(client.exec_command("stall").unwrap());
            told.recv_timeout(PATIENCE).unwrap();
        }
        assert_eq!(client.sh("head -c 1000000 /dev/zero").output().unwrap().stdout.len(), 1_000_000);
        drop(stalled);
    });
}
