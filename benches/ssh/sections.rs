//! The rows, one function a section. What each measures and how is told in `docs/benchmarks.md`.

/// Every transfer with every cipher.
mod ciphers;
/// Programs through `ssh -L` and `-D`, and through ours.
mod tunnels;

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::openssh::{self, Master};
use crate::process::Run;
use crate::proxy::Proxy;
use crate::sshd::Sshd;
use crate::table::{rate, time, Row, Table, Target, CLIENTS};
use crate::worker::Worker;
use crate::{copy, printer, Outcome};

const MIB: u64 = 1 << 20;

/// What comes by itself; it differs from client to client.
const DEFAULT: &str = "default";
/// A byte there and back without any SSH, measured in turn with the clients: one round trip of that moment.
const ECHO: &str = "echo";
/// Ciphers that a transfer is measured with.
const CIPHERS: [&str; 3] = [DEFAULT, "aes128-gcm@openssh.com", "chacha20-poly1305@openssh.com"];

/// How much of everything.
#[derive(Debug, Clone)]
pub struct Sizes {
    only: Vec<String>,
    repeats: usize,
    /// The same where only the best turn counts.
    rounds: usize,
    /// `true`s in one sequence.
    sequence: usize,
    bytes: u64,
    long_bytes: u64,
    seconds: f64,
    lines: usize,
    /// Turns of each candidate of a cipher.
    #[cfg(feature = "fast-ciphers")]
    kernel_turns: usize,
    /// Connections held idle, and commands that tick.
    many: usize,
    /// Connections through a tunnel, one after the other.
    visits: usize,
    /// Bytes there and back through a tunnel, one after the other.
    echoes: usize,
    /// Connections through a tunnel held open.
    held: usize,
}

impl Sizes {
    /// What the environment says; small if it is only to be shown that everything works.
    pub fn new(in_earnest: bool) -> Outcome<Sizes> {
        let pick = |name: &str, in_earnest_default: u64, small: u64| -> Outcome<u64> {
            match std::env::var(name) {
                Ok(text) => text.parse().map_err(|_| format!("{name} is no number: {text}").into()),
                Err(_) => Ok(if in_earnest { in_earnest_default } else { small }),
            }
        };
        let only = std::env::var("BENCH_ONLY").unwrap_or_default();
        Ok(Sizes {
            only: only.split_whitespace().map(str::to_owned).collect(),
            repeats: pick("BENCH_REPEATS", 5, 1)?.max(1) as usize,
            rounds: pick("BENCH_REPEATS", 3, 1)?.max(1) as usize,
            sequence: if in_earnest { 40 } else { 3 },
            bytes: pick("BENCH_MIB", 256, 4)? * MIB,
            long_bytes: pick("BENCH_LONG_MIB", 1024, 8)? * MIB,
            seconds: pick("BENCH_SECONDS", 5, 1)? as f64,
            lines: pick("BENCH_LINES", 5_000_000, 40_000)? as usize,
            #[cfg(feature = "fast-ciphers")]
            kernel_turns: if in_earnest { 40 } else { 1 },
            many: if in_earnest { 100 } else { 4 },
            visits: if in_earnest { 1000 } else { 5 },
            echoes: if in_earnest { 3000 } else { 10 },
            held: if in_earnest { 200 } else { 5 },
        })
    }
}

/// The server, the links, and the rows so far.
#[derive(Debug)]
pub struct Bench {
    sizes: Sizes,
    server: Sshd,
    python: String,
    table: Table,
    ciphers: Table,
    tunnels: Table,
    #[cfg(feature = "fast-ciphers")]
    kernel: Table,
}

impl Bench {
    /// Starts the server that everybody logs in to, and makes sure of paramiko.
    pub fn new(sizes: Sizes) -> Outcome<Bench> {
        // A plain login shell: what a shell does before it runs `true` is not the subject.
        let server = Sshd::builder().login_shell("/bin/sh").option("MaxSessions 100").start()?;
        let (table, ciphers) = (Table::new(&CLIENTS), Table::new(&ciphers::COLUMNS));
        let tunnels = Table::new(&tunnels::COLUMNS);
        Ok(Bench {
            sizes,
            server,
            python: find_paramiko()?,
            table,
            ciphers,
            tunnels,
            #[cfg(feature = "fast-ciphers")]
            kernel: Table::new(&crate::kernel::COLUMNS),
        })
    }

    /// All sections.
    pub fn run(mut self) -> Outcome<Vec<Table>> {
        let sections: &[(&str, Section)] = &[
            ("links", Bench::links),
            ("login", Bench::login),
            ("commands", Bench::commands),
            ("far", Bench::far_bursts),
            ("download", Bench::downloads),
            ("upload", Bench::uploads),
            ("long", Bench::long_download),
            ("ciphers", Bench::ciphers),
            #[cfg(feature = "fast-ciphers")]
            ("cipher-kernel", Bench::kernel),
            ("tunnels", Bench::tunnels),
            ("tickers", Bench::tickers),
            ("idle", Bench::idle),
            ("printer", Bench::lines),
        ];
        for (name, section) in sections {
            if self.wants(name) {
                section(&mut self)?;
            }
        }
        Ok(vec![
            self.table,
            self.ciphers,
            self.tunnels,
            #[cfg(feature = "fast-ciphers")]
            self.kernel,
        ])
    }

    fn wants(&self, name: &str) -> bool {
        self.sizes.only.is_empty() || self.sizes.only.iter().any(|word| name.contains(word.as_str()))
    }

    fn ours(&self) -> Outcome<Worker> {
        Worker::rust(&self.server, "threadline")
    }

    fn plain(&self) -> Outcome<Worker> {
        Worker::rust(&self.server, "ssh2")
    }

    fn paramiko(&self) -> Outcome<Worker> {
        Worker::paramiko(&self.server, &self.python)
    }

    /// A link of this round trip to the server.
    fn link(&self, round_trip: Duration) -> Outcome<Proxy> {
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, self.server.port()));
        let proxy = Proxy::to(server).delay(round_trip / 2).start()?;
        self.server.known_hosts_for(proxy.port())?;
        Ok(proxy)
    }

    /// What the proxy can do: it must not be what is measured.
    fn links(&mut self) -> Outcome<()> {
        for ms in [20, 100] {
            let round_trip = Duration::from_millis(ms);
            let (echo, bytes) = (echo(round_trip)?.seconds, self.sizes.long_bytes);
            let took = copy::download(round_trip, bytes)?;
            let what = format!("no SSH, the {ms} ms link: a byte there and back, a TCP copy");
            self.table.push(Row::new(what).cell("threadline", format!("{}, {}", time(echo), rate(bytes, took))));
        }
        Ok(())
    }

    fn login(&mut self) -> Outcome<()> {
        let port = self.server.port();
        let (mut ours, mut plain, mut paramiko) = (self.ours()?, self.plain()?, self.paramiko()?);
        let (task, server) = (format!("login {port}"), &self.server);
        let took = take_turns(
            self.sizes.repeats * 2,
            vec![
                ("threadline", Box::new(|| ours.ask(&task))),
                ("ssh2", Box::new(|| plain.ask(&task))),
                ("ssh", Box::new(|| Ok(Run::of(openssh::time(openssh::ssh(server, port, None)?.arg("true"))?)))),
                ("paramiko", Box::new(|| paramiko.ask(&task))),
            ],
            median,
        )?;
        let target = at_most("0.6 x ssh2", took.of("threadline") / took.of("ssh2"), 0.6);
        self.table.push(took.row("login and `true`", |run| time(run.seconds)).target(target));
        Ok(())
    }

    /// `true` in sequence and at once, near and at 20 ms.
    fn commands(&mut self) -> Outcome<()> {
        let (n, round_trip) = (self.sizes.sequence, Duration::from_millis(20));
        let link = self.link(round_trip)?;
        let each = |run: &Run| time(run.seconds / n as f64);

        let near = self.on_one_connection("sequence", n, self.server.port(), Duration::ZERO)?;
        let target = at_least("4 x ControlMaster", near.of("ControlMaster") / near.of("threadline"), 4.0);
        self.table.push(near.row("`true` in sequence, each", each).target(target));

        let far = self.on_one_connection("sequence", n, link.port(), round_trip)?;
        let ideal = far.of(ECHO) + near.of("threadline") / n as f64;
        let target = at_most("1.1 x (round trip + own time at 0 ms)", far.of("threadline") / n as f64 / ideal, 1.1);
        self.table.push(far.row("the same at 20 ms", each).target(target));

        let whole = |run: &Run| time(run.seconds);
        let near = self.on_one_connection("burst", 16, self.server.port(), Duration::ZERO)?;
        self.table.push(near.row("16 `true` at once", whole));
        let far = self.on_one_connection("burst", 16, link.port(), round_trip)?;
        self.table.push(far.row("the same at 20 ms", whole));
        Ok(())
    }

    /// What everybody does on a connection that is up and has run commands before.
    fn on_one_connection(&self, how: &str, n: usize, port: u16, round_trip: Duration) -> Outcome<Taken> {
        let (mut ours, mut plain, mut paramiko) = (self.ours()?, self.plain()?, self.paramiko()?);
        for worker in [&mut ours, &mut plain, &mut paramiko] {
            worker.ask(&format!("connect {port} default"))?;
            worker.ask("sequence 3")?;
        }
        let master = Master::start(&self.server, port, None)?;
        let task = format!("{how} {n}");
        take_turns(
            self.sizes.repeats,
            vec![
                ("threadline", Box::new(|| ours.ask(&task))),
                ("ssh2", Box::new(|| plain.ask(&task))),
                ("ControlMaster", Box::new(|| master.run_true(how, n))),
                ("paramiko", Box::new(|| paramiko.ask(&task))),
                (ECHO, Box::new(|| echo(round_trip))),
            ],
            median,
        )
    }

    /// Many commands at once, the first on their connection, at 100 ms.
    fn far_bursts(&mut self) -> Outcome<()> {
        let round_trip = Duration::from_millis(100);
        let link = self.link(round_trip)?;
        for (n, repeats) in [(8, self.sizes.repeats.min(3)), (64, 1)] {
            let took = self.on_new_connections(n, link.port(), round_trip, repeats)?;
            let trip = took.of(ECHO);
            let row = took
                .row(&format!("{n} `true` at once at 100 ms, round trips"), |run| format!("{:.2}", run.seconds / trip));
            let target = at_most("2.3 round trips", took.of("threadline") / trip, 2.3);
            self.table.push(if n == 8 { row.target(target) } else { row });
        }
        Ok(())
    }

    fn on_new_connections(&self, n: usize, port: u16, round_trip: Duration, repeats: usize) -> Outcome<Taken> {
        let (mut ours, mut plain, mut paramiko) = (self.ours()?, self.plain()?, self.paramiko()?);
        let (connect, burst) = (format!("connect {port} default"), format!("burst {n}"));
        let fresh = |worker: &mut Worker| worker.ask(&connect).and_then(|_| worker.ask(&burst));
        take_turns(
            repeats,
            vec![
                ("threadline", Box::new(|| fresh(&mut ours))),
                ("ssh2", Box::new(|| fresh(&mut plain))),
                ("ControlMaster", Box::new(|| Master::start(&self.server, port, None)?.run_true("burst", n))),
                ("paramiko", Box::new(|| fresh(&mut paramiko))),
                (ECHO, Box::new(|| echo(round_trip))),
            ],
            median,
        )
    }

    /// One channel with each cipher, then eight.
    fn downloads(&mut self) -> Outcome<()> {
        self.transfers("download")?;
        let (bytes, port) = (self.sizes.bytes, self.server.port());
        let worker = RefCell::new(self.ours()?);
        worker.borrow_mut().ask(&format!("connect {port} default"))?;
        let ask = |channels: u32| worker.borrow_mut().ask(&format!("download {bytes} {channels}"));
        let took =
            take_turns(self.sizes.repeats, vec![("one", Box::new(|| ask(1))), ("eight", Box::new(|| ask(8)))], median)?;
        let Some(run) = took.get("eight") else { return Ok(()) };
        let row = Row::new("download over 8 channels at once").cell("threadline", rate(bytes, run.seconds));
        self.table.push(row.target(at_least("0.95 x one channel", took.of("one") / run.seconds, 0.95)));
        self.table.push(Row::new(USAGE).cell("threadline", usage(run, bytes)));
        Ok(())
    }

    fn uploads(&mut self) -> Outcome<()> {
        self.transfers("upload")
    }

    /// With each cipher, and what it costs.
    fn transfers(&mut self, direction: &str) -> Outcome<()> {
        let bytes = self.sizes.bytes;
        for cipher in CIPHERS {
            let took = self.transfer(direction, cipher, self.server.port(), bytes, self.sizes.repeats)?;
            let row = took.row(&format!("{direction}, {cipher}"), |run| rate(bytes, run.seconds));
            self.table.push(row.target(at_least("1.0 x ssh2", took.of("ssh2") / took.of("threadline"), 1.0)));
            self.table.push(took.row(USAGE, |run| usage(run, bytes)));
        }
        Ok(())
    }

    fn long_download(&mut self) -> Outcome<()> {
        let link = self.link(Duration::from_millis(20))?;
        let bytes = self.sizes.long_bytes;
        let took = self.transfer("download", DEFAULT, link.port(), bytes, self.sizes.repeats.min(2))?;
        let target = at_least("2 x ssh", took.of("ssh") / took.of("threadline"), 2.0);
        let what = format!("download of {} MiB at 20 ms", bytes / MIB);
        self.table.push(took.row(&what, |run| rate(bytes, run.seconds)).target(target));
        Ok(())
    }

    /// Moves so many bytes over one channel of a connection that is up.
    fn transfer(&self, direction: &str, cipher: &str, port: u16, bytes: u64, repeats: usize) -> Outcome<Taken> {
        let (mut ours, mut plain, mut paramiko) = (self.ours()?, self.plain()?, self.paramiko()?);
        let task = |bytes: u64| match direction {
            "download" => format!("download {bytes} 1"),
            _ => format!("upload {bytes}"),
        };
        for worker in [&mut ours, &mut plain] {
            worker.ask(&format!("connect {port} {cipher}"))?;
        }
        let named = (cipher != DEFAULT).then_some(cipher);
        let mut turns: Vec<(&'static str, Turn)> = vec![
            ("threadline", Box::new(|| ours.ask(&task(bytes)))),
            ("ssh2", Box::new(|| plain.ask(&task(bytes)))),
            ("ssh", Box::new(|| self.ssh_transfer(direction, named, port, bytes))),
        ];
        if named.is_none() {
            paramiko.ask(&format!("connect {port} default"))?;
            // It is slow, and a rate is a rate.
            turns.push(("paramiko", Box::new(|| Ok(paramiko.ask(&task(bytes / 8))?.times(8.0)))));
        }
        take_turns(repeats, turns, median)
    }

    /// By an `ssh` of its own.
    fn ssh_transfer(&self, direction: &str, cipher: Option<&str>, port: u16, bytes: u64) -> Outcome<Run> {
        let ssh = openssh::ssh(&self.server, port, cipher)?;
        match direction {
            "download" => openssh::download(vec![ssh], None, bytes),
            _ => openssh::upload(ssh, &self.server.dir().join("zeros"), bytes),
        }
    }

    /// How late lines arrive, on a quiet connection and beside one channel that stalls and one that floods.
    fn tickers(&mut self) -> Outcome<()> {
        let (n, ticks) = (self.sizes.many.min(64), self.sizes.seconds as usize * 10);
        let mut worker = self.ours()?;
        worker.ask(&format!("connect {} default", self.server.port()))?;
        for flood in [false, true] {
            let (late, _) = worker.ask_for_more(&format!("tickers {n} {ticks} {flood}"))?;
            let [p50, p99, most] = late[..] else { return Err("no percentiles".into()) };
            let beside = if flood { "beside a stalled and a flooding channel" } else { "alone" };
            let text = format!("{} / {} / {}", time(p50), time(p99), time(most));
            let mut row = Row::new(format!("line lag of {n} tickers {beside}, p50 / p99 / most"));
            row = row.cell("threadline", text);
            if flood {
                row = row.target(("p99 < 20 ms".into(), time(p99), p99 < 0.02));
            }
            self.table.push(row);
        }
        Ok(())
    }

    /// Memory of connections that do nothing, and their processor time.
    fn idle(&mut self) -> Outcome<()> {
        let n = self.sizes.many;
        let task = format!("idle {} {n} {}", self.server.port(), self.sizes.seconds);
        let (ours, _) = self.ours()?.ask_for_more(&task)?;
        let (plain, _) = self.plain()?.ask_for_more(&task)?;
        let memory = |numbers: &[f64]| format!("{:.0} / {:.0} KiB", numbers[0], numbers[1]);
        let row = Row::new("memory of an idle connection, private / resident").cell("threadline", memory(&ours));
        let target = ("<= 300 KiB".into(), format!("{:.0} KiB", ours[1]), ours[1] <= 300.0);
        self.table.push(row.cell("ssh2", memory(&plain)).target(target));
        let cpu = |numbers: &[f64]| time(numbers[2]);
        let row = Row::new(format!("processor time of {n} idle connections in {} s", self.sizes.seconds));
        // Asking for it costs some hundred microseconds by itself.
        let target = ("none (< 1 ms)".into(), time(ours[2]), ours[2] < 0.001);
        self.table.push(row.cell("threadline", cpu(&ours)).cell("ssh2", cpu(&plain)).target(target));
        Ok(())
    }

    fn lines(&mut self) -> Outcome<()> {
        let took = printer::measure(self.sizes.lines, self.sizes.repeats)?;
        let lines = self.sizes.lines as f64;
        let row = Row::new(format!("{} lines through the printer, labelled, to a file", self.sizes.lines));
        let row = row.cell("threadline", format!("{:.1} M lines/s", lines / took.printer / 1e6));
        let target = at_least("10 M lines/s", lines / took.printer / 1e6, 10.0);
        self.table.push(row.target(target));
        let row = Row::new("  the same by hand: a `Mutex<BufWriter>` and `read_line`");
        self.table.push(row.cell("threadline", format!("{:.1} M lines/s", lines / took.by_hand / 1e6)));
        Ok(())
    }
}

/// Measures one subject and puts its rows into the table.
type Section = fn(&mut Bench) -> Outcome<()>;

/// A client's turn of a measurement.
type Turn<'a> = Box<dyn FnMut() -> Outcome<Run> + 'a>;

/// Lets everybody do the same, one after the other, again and again.
fn take_turns(repeats: usize, mut turns: Vec<(&'static str, Turn)>, sum_up: fn(&[Run]) -> Run) -> Outcome<Taken> {
    let mut runs: Vec<Vec<Run>> = turns.iter().map(|_| Vec::new()).collect();
    for _ in 0..repeats {
        for ((_, turn), runs) in turns.iter_mut().zip(&mut runs) {
            runs.push(turn()?);
        }
    }
    let taken = turns.iter().zip(&runs).map(|((name, _), runs)| (*name, sum_up(runs)));
    Ok(Taken(taken.collect()))
}

/// What each client took: its turns summed up.
#[derive(Debug)]
struct Taken(Vec<(&'static str, Run)>);

impl Taken {
    fn get(&self, name: &str) -> Option<&Run> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, run)| run)
    }

    /// Seconds.
    fn of(&self, name: &str) -> f64 {
        self.get(name).map_or(f64::NAN, |run| run.seconds)
    }

    fn row(&self, what: &str, show: impl Fn(&Run) -> String) -> Row {
        self.0.iter().fold(Row::new(what), |row, (name, run)| row.cell(name, show(run)))
    }
}

/// The median of each number by itself, but for the most, which is the most.
fn median(runs: &[Run]) -> Run {
    let middle = |number: fn(&Run) -> f64| {
        let mut numbers: Vec<f64> = runs.iter().map(number).collect();
        numbers.sort_by(f64::total_cmp);
        (numbers[(numbers.len() - 1) / 2] + numbers[numbers.len() / 2]) / 2.0
    };
    let most = |number: fn(&Run) -> f64| runs.iter().map(number).fold(0.0, f64::max);
    Run {
        seconds: middle(|run| run.seconds),
        cpu: middle(|run| run.cpu),
        peak_kib: most(|run| run.peak_kib),
        threads: most(|run| run.threads),
    }
}

/// The best of each number by itself, but for the most: another process's moment only ever takes something away.
fn best(runs: &[Run]) -> Run {
    let least = |number: fn(&Run) -> f64| runs.iter().map(number).fold(f64::INFINITY, f64::min);
    Run { seconds: least(|run| run.seconds), cpu: least(|run| run.cpu), ..median(runs) }
}

/// What else there is to say of a transfer.
const USAGE: &str = "  client: processor time per GB, peak memory, threads";

fn usage(run: &Run, bytes: u64) -> String {
    let (cpu, peak) = (run.cpu / bytes as f64 * 1e9, run.peak_kib / 1024.0);
    format!("{cpu:.2} s, {peak:.0} MiB, {}", run.threads)
}

/// One round trip over a link of this length, in the middle of a few.
fn echo(round_trip: Duration) -> Outcome<Run> {
    const TIMES: usize = 5;
    Ok(Run::of(copy::echoes(round_trip, TIMES)? / TIMES as f64))
}

fn at_most(of: &str, measured: f64, limit: f64) -> Target {
    (format!("<= {of}"), format!("{measured:.2}"), measured <= limit)
}

fn at_least(of: &str, measured: f64, limit: f64) -> Target {
    (format!(">= {of}"), format!("{measured:.2}"), measured >= limit)
}

/// The Python that has paramiko; `.ci/paramiko` makes sure of it.
fn find_paramiko() -> Outcome<String> {
    let (tools, script) = (tools(), concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/paramiko"));
    openssh::time(Command::new(script).env("TOOLS", &tools).stdin(Stdio::null()))?;
    Ok(format!("{tools}/paramiko/bin/python3"))
}

/// Where tools of the build's own are.
fn tools() -> String {
    std::env::var("TOOLS").unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools").to_owned())
}
