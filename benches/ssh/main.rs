//! Tables: threadline beside plain blocking `ssh2`, OpenSSH, paramiko and Go, against the same sshd, in the same run.
//!
//! `make bench` runs it. Every client runs in a process of its own, so that its processor time and memory are its own;
//! the clients take turns (A B A B …), so that a busy moment of the machine falls on all of them; a cell is the median,
//! or among the ciphers, which take longest, the best of fewer turns. What is compared is a ratio of one run.
//! `docs/benchmarks.md` says what each row does.
//!
//! | variable | what | default |
//! |---|---|---|
//! | `BENCH_ONLY` | only the sections whose name contains one of these words | all |
//! | `BENCH_REPEATS` | turns of each client | 5, 3 for ciphers and tunnels |
//! | `BENCH_MIB` | MiB of a download or upload | 256 |
//! | `BENCH_LONG_MIB` | MiB of the download over the long link | 1024 |
//! | `BENCH_SECONDS` | how long tickers tick and idle connections are watched | 5 |
//! | `BENCH_LINES` | lines through the printer | 5000000 |
//!
//! Without `--bench` (as `cargo test --all-targets` does) it runs everything once, very small, to show that it works.

/// The clients written in Rust: ours and plain `ssh2`.
mod clients;
/// A raw TCP copy, for what the machine and the proxy can do without any SSH.
mod copy;
/// The ciphers without a network.
#[cfg(feature = "fast-ciphers")]
mod kernel;
/// OpenSSH's client, alone and through ControlMaster.
mod openssh;
/// Lines through the printer.
mod printer;
/// What a process uses.
mod process;
#[path = "../../tests/it/proxy.rs"]
mod proxy;
/// The rows, one function a section.
mod sections;
/// The far ends of forwarded connections.
mod source;
#[path = "../../src/bin/threadline/sshd.rs"]
mod sshd;
/// The table.
mod table;
/// Clients that listen here and carry what comes, and what programs do through them.
mod tunnel;
/// A client in a process of its own, asked line by line.
mod worker;

use std::time::Instant;

use sections::{Bench, Sizes};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == worker::ROLE) {
        return worker::serve(&arguments[1..]);
    }
    let in_earnest = arguments.iter().any(|argument| argument == "--bench");
    let began = Instant::now();
    for table in Bench::new(Sizes::new(in_earnest)?)?.run()?.iter().filter(|table| !table.is_empty()) {
        println!("{table}");
    }
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').nth(2).unwrap_or_default();
    let processors = std::thread::available_parallelism()?;
    let took = began.elapsed().as_secs_f64();
    println!("{took:.0} s in all; load average of the last 15 minutes {load} on {processors} processors");
    Ok(())
}
