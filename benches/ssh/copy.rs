//! A raw TCP copy, for what the machine and the proxy can do without any SSH.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::proxy::Proxy;
use crate::Outcome;

/// Seconds that so many bytes take over a link of this round trip.
pub fn download(round_trip: Duration, bytes: u64) -> Outcome<f64> {
    over(
        round_trip,
        move |mut server| {
            let zeros = vec![0; 256 * 1024];
            let mut left = bytes as usize;
            while left > 0 {
                left -= server.write(&zeros[..left.min(zeros.len())])?;
            }
            Ok(())
        },
        |mut client| {
            let mut buffer = vec![0; 256 * 1024];
            while client.read(&mut buffer)? > 0 {}
            Ok(())
        },
    )
}

/// Seconds that `count` single bytes take there and back, one after the other.
pub fn echoes(round_trip: Duration, count: usize) -> Outcome<f64> {
    over(
        round_trip,
        |mut server| {
            let mut byte = [0];
            while server.read(&mut byte)? > 0 {
                server.write_all(&byte)?;
            }
            Ok(())
        },
        move |mut client| {
            for _ in 0..count {
                client.write_all(&[7])?;
                client.read_exact(&mut [0])?;
            }
            Ok(())
        },
    )
}

fn over(
    round_trip: Duration,
    serve: impl FnOnce(TcpStream) -> std::io::Result<()> + Send + 'static,
    ask: impl FnOnce(TcpStream) -> std::io::Result<()>,
) -> Outcome<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address: SocketAddr = listener.local_addr()?;
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        serve(stream)
    });
    let proxy = Proxy::to(address).delay(round_trip / 2).start()?;
    let client = TcpStream::connect(proxy.address())?;
    client.set_nodelay(true)?;
    let began = Instant::now();
    ask(client)?;
    let took = began.elapsed().as_secs_f64();
    server.join().map_err(|_| "the serving thread panicked")??;
    Ok(took)
}
