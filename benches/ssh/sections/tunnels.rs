//! Programs through our forwards and through those of `ssh`, in a table of its own.

use std::time::Duration;

use super::{at_least, at_most, best, take_turns, Bench, Turn, MIB};
use crate::clients::percentiles;
use crate::process::{private_dirty, status, Run};
use crate::source::{self, BlackHole, Source};
use crate::table::{rate, time, Row};
use crate::tunnel::{self, Entrances, Ssh, Way};
use crate::worker::{Worker, SETTLE};
use crate::Outcome;

/// The columns of the table.
pub const COLUMNS: [&str; 4] = ["threadline", "ssh", CHANNEL, STREAM];

/// Our own plain channel, a command's, on the same connection.
const CHANNEL: &str = "own channel";
/// Our own `Client::tcp_connect`, on the same connection.
const STREAM: &str = "own stream";

/// Everybody's. It is the cheapest, so that what is above it counts.
const CIPHER: &str = "aes128-gcm@openssh.com";

const GIB: f64 = (1024 * MIB) as f64;

/// Programs at once at 20 ms, and connections of each.
const PROGRAMS: usize = 16;
const EACH: usize = 15;

/// A page's targets, and how many of them never answer.
const TARGETS: usize = 50;
const BLACK_HOLES: usize = 10;

/// One target of each kind.
#[derive(Debug)]
struct Targets {
    source: Source,
    sink: u16,
    echo: u16,
}

/// Both clients, connected and listening.
#[derive(Debug)]
struct Tunnels {
    worker: Worker,
    ours: Entrances,
    ssh: Ssh,
}

impl Bench {
    /// Throughput, connections, latency and memory.
    pub(super) fn tunnels(&mut self) -> Outcome<()> {
        let targets =
            Targets { source: Source::start(self.sizes.bytes)?, sink: source::sink()?, echo: source::echo()? };
        self.tunnel_transfers(&targets)?;
        self.tunnel_visits(&targets)?;
        self.tunnel_latency(&targets)?;
        self.tunnel_far(&targets)?;
        self.tunnel_page(&targets)?;
        self.tunnel_memory(&targets)
    }

    /// Both clients anew, through the server's port or a link's, after one connection each way.
    fn dig(&self, port: u16, targets: &Targets) -> Outcome<Tunnels> {
        let ports = [targets.source.port, targets.sink, targets.echo];
        let mut worker = self.ours()?;
        worker.ask(&format!("connect {port} {CIPHER}"))?;
        let ours = Entrances::ours(&mut worker, &ports)?;
        let ssh = Ssh::start(&self.server, port, CIPHER, &ports)?;
        for entrances in [&ours, &ssh.entrances] {
            Way::ALL.into_iter().try_for_each(|way| tunnel::visit(entrances, way, targets.echo, 1))?;
        }
        Ok(Tunnels { worker, ours, ssh })
    }

    /// One connection that is busy, beside a plain channel.
    fn tunnel_transfers(&mut self, targets: &Targets) -> Outcome<()> {
        let Tunnels { mut worker, ours, ssh } = self.dig(self.server.port(), targets)?;
        let bytes = self.sizes.bytes;
        for (direction, up) in [("download", false), ("upload", true)] {
            let through = |entrances: &Entrances, way| {
                entrances.measure(|entrances| match up {
                    false => tunnel::download(entrances, way, targets.source.port, bytes),
                    true => tunnel::upload(entrances, way, targets.sink, bytes),
                })
            };
            for way in Way::ALL {
                let channel = if up { format!("upload {bytes}") } else { format!("download {bytes} 1") };
                let stream = format!("forward {} {bytes}", targets.source.port);
                // The streams of the worker's own take turns with it.
                let asked = std::cell::RefCell::new(&mut worker);
                let mut turns: Vec<(&'static str, Turn)> = vec![
                    ("threadline", Box::new(|| through(&ours, way))),
                    ("ssh", Box::new(|| through(&ssh.entrances, way))),
                    (CHANNEL, Box::new(|| asked.borrow_mut().ask(&channel))),
                ];
                if !up {
                    turns.push((STREAM, Box::new(|| asked.borrow_mut().ask(&stream))));
                }
                let took = take_turns(self.sizes.rounds, turns, best)?;
                let times = |name: &str| took.of(name) / took.of("threadline");
                let row = took.row(&format!("{direction} through {}", way.name()), |run| rate(bytes, run.seconds));
                self.tunnels.push(row.target(at_least("1.2 x ssh", times("ssh"), 1.2)));
                let row = Row::new("  the same beside a plain channel");
                self.tunnels.push(row.target(at_least("0.95 x own channel", times(CHANNEL), 0.95)));
                let cost = |run: &Run| format!("{:.2} s", run.cpu * GIB / bytes as f64);
                self.tunnels.push(took.row("  client: processor time per GiB", cost));
            }
        }
        Ok(())
    }

    /// Connections one after the other.
    fn tunnel_visits(&mut self, targets: &Targets) -> Outcome<()> {
        let Tunnels { worker: _worker, ours, ssh } = self.dig(self.server.port(), targets)?;
        let n = self.sizes.visits;
        for way in Way::ALL {
            let visit =
                |entrances: &Entrances| entrances.measure(|entrances| tunnel::visit(entrances, way, targets.echo, n));
            let turns: Vec<(&'static str, Turn)> =
                vec![("threadline", Box::new(|| visit(&ours))), ("ssh", Box::new(|| visit(&ssh.entrances)))];
            let took = take_turns(self.sizes.rounds, turns, best)?;
            let what = format!("connections one after the other through {}, a second", way.name());
            let row = took.row(&what, |run| format!("{:.0}", n as f64 / run.seconds));
            self.tunnels.push(row.target(at_least("1.15 x ssh", took.of("ssh") / took.of("threadline"), 1.15)));
            let cpu = |name: &str| took.get(name).map_or(f64::NAN, |run| run.cpu);
            let row = took.row("  client: processor time of each", |run| time(run.cpu / n as f64));
            self.tunnels.push(row.target(at_most("0.6 x ssh", cpu("threadline") / cpu("ssh"), 0.6)));
        }
        Ok(())
    }

    /// One byte there and back on a connection that is there.
    fn tunnel_latency(&mut self, targets: &Targets) -> Outcome<()> {
        let Tunnels { worker: _worker, ours, ssh } = self.dig(self.server.port(), targets)?;
        let clients = [("threadline", &ours), ("ssh", &ssh.entrances)];
        for way in Way::ALL {
            let mut least = [[f64::INFINITY; 2]; 2];
            for _ in 0..self.sizes.rounds {
                for ((_, entrances), least) in clients.iter().zip(&mut least) {
                    let took = percentiles(tunnel::latencies(entrances, way, targets.echo, self.sizes.echoes)?);
                    *least = [least[0].min(took[0]), least[1].min(took[1])];
                }
            }
            let [ours, ssh] = least;
            for (which, name) in ["p50", "p99"].into_iter().enumerate() {
                let row = Row::new(format!("a byte there and back through {}, {name}", way.name()));
                let row = row.cell("threadline", time(ours[which])).cell("ssh", time(ssh[which]));
                self.tunnels.push(row.target(at_most("1.1 x ssh", ours[which] / ssh[which], 1.1)));
            }
        }
        Ok(())
    }

    /// Several programs at once over a long link.
    fn tunnel_far(&mut self, targets: &Targets) -> Outcome<()> {
        let link = self.link(Duration::from_millis(20))?;
        let Tunnels { worker: _worker, ours, ssh } = self.dig(link.port(), targets)?;
        for way in Way::ALL {
            let visit = |entrances: &Entrances| {
                entrances.measure(|entrances| tunnel::visit_at_once(entrances, way, targets.echo, PROGRAMS, EACH))
            };
            let turns: Vec<(&'static str, Turn)> =
                vec![("threadline", Box::new(|| visit(&ours))), ("ssh", Box::new(|| visit(&ssh.entrances)))];
            let took = take_turns(self.sizes.rounds, turns, best)?;
            let what = format!("connections of {PROGRAMS} programs at 20 ms through {}, a second", way.name());
            let row = took.row(&what, |run| format!("{:.0}", (PROGRAMS * EACH) as f64 / run.seconds));
            self.tunnels.push(row.target(at_least("1.0 x ssh", took.of("ssh") / took.of("threadline"), 1.0)));
        }
        Ok(())
    }

    /// Many targets at once, some of which never answer.
    fn tunnel_page(&mut self, targets: &Targets) -> Outcome<()> {
        let link = self.link(Duration::from_millis(100))?;
        let Tunnels { worker: _worker, ours, ssh } = self.dig(link.port(), targets)?;
        let holes = (0..BLACK_HOLES).map(|_| BlackHole::dig()).collect::<Outcome<Vec<_>>>()?;
        // The black holes among the others, as they are on a page.
        let mut all = vec![targets.echo; TARGETS];
        for (n, hole) in holes.iter().enumerate() {
            all[n * TARGETS / BLACK_HOLES] = hole.port;
        }
        let look =
            |entrances: &Entrances| entrances.measure(|entrances| tunnel::page(entrances, &all, TARGETS - BLACK_HOLES));
        let turns: Vec<(&'static str, Turn)> =
            vec![("threadline", Box::new(|| look(&ours))), ("ssh", Box::new(|| look(&ssh.entrances)))];
        let took = take_turns(self.sizes.rounds, turns, best)?;
        let what = format!("{TARGETS} targets at 100 ms through -D, {BLACK_HOLES} never answer: until the others have");
        let row = took.row(&what, |run| time(run.seconds));
        self.tunnels.push(row.target(at_most("1.2 x ssh", took.of("threadline") / took.of("ssh"), 1.2)));
        Ok(())
    }

    /// Memory with many connections open, and what each adds.
    fn tunnel_memory(&mut self, targets: &Targets) -> Outcome<()> {
        let Tunnels { worker: _worker, ours, ssh } = self.dig(self.server.port(), targets)?;
        let n = self.sizes.held;
        let memory = |entrances: &Entrances| -> Outcome<[f64; 2]> {
            std::thread::sleep(SETTLE);
            let pid = entrances.pid().to_string();
            Ok([private_dirty(&pid)?, status(&pid, "VmRSS")?])
        };
        let mut whole = Row::new(format!("memory with {n} connections, private / resident"));
        let mut each = Row::new("  what each connection adds");
        for (name, entrances) in [("threadline", &ours), ("ssh", &ssh.entrances)] {
            let before = memory(entrances)?;
            let mut held = Vec::new();
            for _ in 0..n {
                let mut stream = entrances.connect(Way::Local, targets.echo)?;
                tunnel::echo_once(&mut stream)?;
                held.push(stream);
            }
            let after = memory(entrances)?;
            whole = whole.cell(name, format!("{:.1} / {:.1} MiB", after[0] / 1024.0, after[1] / 1024.0));
            let added = |which: usize| (after[which] - before[which]) / n as f64;
            each = each.cell(name, format!("{:.1} / {:.1} KiB", added(0), added(1)));
        }
        self.tunnels.push(whole);
        self.tunnels.push(each);
        Ok(())
    }
}
