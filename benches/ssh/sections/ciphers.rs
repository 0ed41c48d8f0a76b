//! The same transfers with each cipher, in a table of its own, with what they cost the client.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{at_least, at_most, best, take_turns, Bench, Taken, Turn, MIB};
use crate::openssh::{self, Master};
use crate::source::Source;
use crate::sshd::Sshd;
use crate::table::{rate, Row, Target};
use crate::worker::Worker;
use crate::Outcome;

/// The columns of the table.
pub const COLUMNS: [&str; 5] = ["threadline", "ssh2", "ssh", "Go", RATIOS];

/// What threadline's number is of the others'.
const RATIOS: &str = "threadline is";

const GIB: u64 = 1024 * MIB;

const AES128_GCM: &str = "aes128-gcm@openssh.com";
const AES256_GCM: &str = "aes256-gcm@openssh.com";
const CHACHA20: &str = "chacha20-poly1305@openssh.com";

const CIPHERS: [&str; 5] = [AES128_GCM, AES256_GCM, CHACHA20, "aes128-ctr", "aes256-ctr"];

/// The MAC of the ciphers that need one: the server has no other, so it is everybody's.
const MAC: &str = "hmac-sha2-256-etm@openssh.com";

/// Plain `ssh2` moves half of the bytes: it is slow, and a rate is a rate.
const PLAIN_PART: u64 = 2;

/// What is done with each cipher.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Transfer {
    Download,
    Upload,
    /// A download over so many channels of one connection at once.
    Channels(u64),
    /// A download over a connection that the server makes.
    Forward,
}

const TRANSFERS: [Transfer; 4] = [Transfer::Download, Transfer::Upload, Transfer::Channels(8), Transfer::Forward];

impl Transfer {
    fn name(self) -> String {
        match self {
            Transfer::Download => "download".into(),
            Transfer::Upload => "upload".into(),
            Transfer::Channels(n) => format!("{n} downloads at once"),
            Transfer::Forward => "download through the server".into(),
        }
    }

    /// The task of a worker.
    fn task(self, bytes: u64, source: &Source) -> String {
        match self {
            Transfer::Download => format!("download {bytes} 1"),
            Transfer::Upload => format!("upload {bytes}"),
            Transfer::Channels(n) => format!("download {bytes} {n}"),
            Transfer::Forward => format!("forward {} {bytes}", source.port),
        }
    }
}

impl Bench {
    /// Every transfer with every cipher.
    pub(super) fn ciphers(&mut self) -> Outcome<()> {
        let option = format!("MACs {MAC}");
        let server = Sshd::builder().login_shell("/bin/sh").option("MaxSessions 100").option(&option).start()?;
        let (go, about_go) = find_go()?;
        self.ciphers.note(about_go);
        let aes = has_aes()?;
        if !aes {
            self.ciphers.note("This processor has no AES instructions: no target for processor time.");
        }
        for cipher in CIPHERS {
            let mut clients = Clients::connect(&server, cipher, go.as_ref())?;
            if go.is_some() && clients.go.is_none() {
                self.ciphers.note(format!("This x/crypto has no {cipher}."));
            }
            for transfer in TRANSFERS {
                let took = clients.take_turns(transfer, self.sizes.bytes, self.sizes.rounds)?;
                for row in rows(cipher, transfer, &took, self.sizes.bytes, aes) {
                    self.ciphers.push(row);
                }
            }
        }
        Ok(())
    }
}

#[cfg(feature = "fast-ciphers")]
impl Bench {
    /// The ciphers without a network: packets as they are in a transfer, and as they are when somebody types.
    pub(super) fn kernel(&mut self) -> Outcome<()> {
        // Either fits into a processor's cache.
        for mut candidates in crate::kernel::all()? {
            for (text, packets) in [(32 * 1024, 32), (64, 4096)] {
                let took = candidates.measure(text, packets, self.sizes.kernel_turns)?;
                let show = |nanoseconds: f64| match text {
                    64 => format!("{nanoseconds:.0} ns"),
                    _ => rate(text as u64, nanoseconds / 1e9),
                };
                let mut row = Row::new(format!("{}: encrypt, decrypt {text} bytes", candidates.cipher));
                for (name, one) in took {
                    row = row.cell(name, format!("{}, {}", show(one.seal), show(one.open)));
                }
                self.kernel.push(row);
            }
        }
        Ok(())
    }
}

/// All clients, connected with one cipher.
#[derive(Debug)]
struct Clients<'a> {
    server: &'a Sshd,
    cipher: &'static str,
    ours: Worker,
    /// A process in which threadline never connects: libssh2's own methods.
    plain: Worker,
    master: Master<'a>,
    /// Where it is installed and knows the cipher.
    go: Option<Worker>,
}

impl Clients<'_> {
    fn connect<'a>(server: &'a Sshd, cipher: &'static str, go: Option<&PathBuf>) -> Outcome<Clients<'a>> {
        let task = format!("connect {} {cipher}", server.port());
        let (mut ours, mut plain) = (Worker::rust(server, "threadline")?, Worker::rust(server, "ssh2")?);
        ours.ask(&task)?;
        plain.ask(&task)?;
        let go = match go {
            Some(program) => {
                let mut worker = Worker::go(server, program)?;
                match worker.ask(&task) {
                    Ok(_) => Some(worker),
                    // What x/crypto says of a cipher that it does not know.
                    Err(error) if error.to_string().contains("no common algorithm for client to server cipher") => None,
                    Err(error) => return Err(error),
                }
            }
            None => None,
        };
        let master = Master::start(server, server.port(), Some(cipher))?;
        Ok(Clients { server, cipher, ours, plain, master, go })
    }

    fn take_turns(&mut self, transfer: Transfer, bytes: u64, rounds: usize) -> Outcome<Taken> {
        let Clients { server, cipher, ours, plain, master, go } = self;
        let (source, plain_source) = (Source::start(bytes)?, Source::start(bytes / PLAIN_PART)?);
        let (server, task) = (*server, transfer.task(bytes, &source));
        let mut turns: Vec<(&'static str, Turn)> = vec![("threadline", Box::new(|| ours.ask(&task)))];
        // A thread that reads would hold the session's lock.
        if !matches!(transfer, Transfer::Channels(_)) {
            let task = transfer.task(bytes / PLAIN_PART, &plain_source);
            turns.push(("ssh2", Box::new(move || Ok(plain.ask(&task)?.times(PLAIN_PART as f64)))));
        }
        let ssh = || openssh::ssh(server, server.port(), Some(cipher));
        turns.push((
            "ssh",
            Box::new(|| match transfer {
                Transfer::Download => openssh::download(vec![ssh()?], None, bytes),
                Transfer::Upload => openssh::upload(ssh()?, &server.dir().join("zeros"), bytes),
                Transfer::Channels(n) => {
                    let all = (0..n).map(|_| master.command()).collect::<Outcome<_>>()?;
                    openssh::download(all, Some(master.pid()), bytes / n)
                }
                Transfer::Forward => openssh::forward(ssh()?, &source),
            }),
        ));
        if let Some(go) = go {
            turns.push(("Go", Box::new(|| go.ask(&task))));
        }
        take_turns(rounds, turns, best)
    }
}

/// The rate, and below it what it cost.
fn rows(cipher: &str, transfer: Transfer, took: &Taken, bytes: u64, aes: bool) -> [Row; 2] {
    let row = took.row(&format!("{}, {cipher}", transfer.name()), |run| rate(bytes, run.seconds));
    let row = row.cell(RATIOS, ratios(took, |name| 1.0 / took.of(name)));
    let per_gib = |cpu: f64| cpu * GIB as f64 / bytes as f64;
    let cost = took.row("  client: processor time per GiB", |run| format!("{:.2} s", per_gib(run.cpu)));
    let cpu = |name: &str| took.get(name).map_or(f64::NAN, |run| per_gib(run.cpu));
    let cost = cost.cell(RATIOS, ratios(took, cpu));
    let is_gcm = [AES128_GCM, AES256_GCM].contains(&cipher);
    [
        row.target_if(rate_target(cipher, transfer, took)),
        cost.target_if((is_gcm && aes).then(|| at_most("1.2 s", cpu("threadline"), 1.2))),
    ]
}

/// Our number as a multiple of each of the others'.
fn ratios(took: &Taken, number: impl Fn(&str) -> f64) -> String {
    let others = ["ssh2", "ssh", "Go"].into_iter().filter(|name| took.get(name).is_some());
    let all = others.map(|name| format!("{:.2} x {name}", number("threadline") / number(name)));
    all.collect::<Vec<_>>().join(", ")
}

fn rate_target(cipher: &str, transfer: Transfer, took: &Taken) -> Option<Target> {
    let times = |name: &str| took.of(name) / took.of("threadline");
    match (cipher, transfer) {
        (AES128_GCM, Transfer::Download) => Some(at_least("1.05 x ssh", times("ssh"), 1.05)),
        (AES128_GCM, Transfer::Upload) if took.get("Go").is_some() => {
            Some(at_least("1.0 x the best of ssh and Go", times("ssh").min(times("Go")), 1.0))
        }
        (AES128_GCM, Transfer::Upload) => Some(at_least("1.0 x ssh", times("ssh"), 1.0)),
        (CHACHA20, Transfer::Download | Transfer::Upload) => Some(at_least("1.1 x ssh", times("ssh"), 1.1)),
        _ => None,
    }
}

/// Go's client, where Go is installed, and what is to be said of it.
fn find_go() -> Outcome<(Option<PathBuf>, String)> {
    const NOT_INSTALLED: i32 = 3;
    let tools = super::tools();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/.ci/go-client");
    let output = Command::new(script).env("TOOLS", &tools).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match output.status.code() {
        Some(0) => Ok((Some(format!("{tools}/go-client/client").into()), said)),
        Some(NOT_INSTALLED) => Ok((None, said)),
        _ => Err(format!(".ci/go-client: {}; {said}", output.status).into()),
    }
}

/// Whether the processor says that it has instructions for AES.
fn has_aes() -> Outcome<bool> {
    let text = std::fs::read_to_string("/proc/cpuinfo")?;
    Ok(text.split_whitespace().any(|word| word == "aes"))
}
