//! SSH servers of several makers, thrown away afterwards: OpenSSH, Dropbear, asyncssh, paramiko and russh.
//!
//! Each serves one user with one key, from a directory of its own, on a port of 127.0.0.1 that it or we have bound: no
//! port is guessed. Each understands `cat FILE`, `cat` and `sha256sum`: OpenSSH and Dropbear by running them, the others
//! by doing the same. Each but Dropbear exchanges keys anew after a MiB; Dropbear does so after a GiB, which is compiled
//! in.
//!
//! The servers end when they are dropped, and when this process is killed: sshd has its watchdog, Dropbear loses its
//! connections, the others lose a pipe.

/// Dropbear, a process for each connection.
mod dropbear;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use tempfile::TempDir;
use threadline::{Client, ClientBuilder};

use crate::connect::PATIENCE;
use crate::sshd::{self, Sshd};
use crate::util::{self, within};

/// A running server.
pub struct Server {
    port: u16,
    user: String,
    identity: PathBuf,
    known_hosts: PathBuf,
    log: PathBuf,
    /// What the log says once for each key exchange, where the server has that to say.
    exchange: Option<&'static str>,
    /// What runs, and the directory, which goes after it.
    _running: Box<dyn Send + Sync>,
    _dir: Option<TempDir>,
}

impl Server {
    /// OpenSSH, whichever is installed.
    pub fn openssh() -> Server {
        let sshd = Sshd::builder().option("RekeyLimit 1M").option("LogLevel DEBUG1").option("MaxSessions 20").start();
        let sshd = sshd.unwrap_or_else(|error| panic!("{error}"));
        Server {
            port: sshd.port(),
            user: sshd.user().to_owned(),
            identity: sshd.identity(),
            known_hosts: sshd.known_hosts(),
            log: sshd.dir().join("log"),
            exchange: Some("SSH2_MSG_NEWKEYS received"),
            _running: Box::new(sshd),
            _dir: None,
        }
    }

    /// Dropbear.
    pub fn dropbear() -> Server {
        let dir = directory();
        let (running, host_key) = dropbear::Dropbear::start(dir.path());
        Server::of(dir, running.port(), &host_key, None, running)
    }

    /// Ron Frederick's asyncssh.
    pub fn asyncssh() -> Server {
        Server::python("asyncssh_server.py", "Completed key exchange")
    }

    /// paramiko's server side.
    pub fn paramiko() -> Server {
        Server::python("paramiko_server.py", "Switch to new keys")
    }

    /// russh's server side; its package is in tests/servers/russh.
    pub fn russh() -> Server {
        let program = util::tool("bin/threadline-test-russh", "the russh server");
        Server::process(&mut Command::new(program), "new keys received")
    }

    fn python(script: &str, exchange: &'static str) -> Server {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/servers").join(script);
        // -B: leave nothing beside the sources.
        let python = util::tool("paramiko/bin/python3", "the Python with paramiko and asyncssh");
        Server::process(Command::new(python).arg("-B").arg(script), exchange)
    }

    /// A program that takes a host key and the authorized keys, prints its port and ends with its stdin.
    fn process(command: &mut Command, exchange: &'static str) -> Server {
        let dir = directory();
        let host_key = dir.path().join("host_ed25519");
        sshd::make_key(&host_key, &["-t", "ed25519", "-N", ""]).unwrap();
        let public = fs::read_to_string(host_key.with_extension("pub")).unwrap();

        command.arg(&host_key).arg(dir.path().join("id_ed25519.pub")).current_dir(dir.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(dir.path().join("log")).unwrap());
        let mut process = Process(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")));
        let stdout = process.0.stdout.take().unwrap();
        let line = within(PATIENCE, move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line = line.unwrap();
        let said = || fs::read_to_string(dir.path().join("log")).unwrap_or_default();
        let port = line.trim().parse().unwrap_or_else(|_| panic!("{command:?} printed no port: {line}{}", said()));
        Server::of(dir, port, &public, Some(exchange), process)
    }

    /// A server that keeps its files in `dir`.
    fn of(
        dir: TempDir,
        port: u16,
        host_key: &str,
        exchange: Option<&'static str>,
        running: impl Send + Sync + 'static,
    ) -> Server {
        let known_hosts = dir.path().join("known_hosts");
        fs::write(&known_hosts, format!("[{}]:{port} {}\n", sshd::HOST, host_key.trim())).unwrap();
        Server {
            port,
            user: dropbear::USER.to_owned(),
            identity: dir.path().join("id_ed25519"),
            known_hosts,
            log: dir.path().join("log"),
            exchange,
            _running: Box::new(running),
            _dir: Some(dir),
        }
    }

    /// A builder that gets in.
    pub fn builder(&self) -> ClientBuilder {
        let builder = Client::builder(sshd::HOST).port(self.port).user(&self.user);
        builder.identity(&self.identity).agent(false).known_hosts(&self.known_hosts)
    }

    /// The path of a file of the server's with these bytes.
    pub fn file(&self, bytes: &[u8]) -> String {
        let path = self.log.with_file_name(format!("{}.bytes", bytes.len()));
        if !path.exists() {
            fs::write(&path, bytes).unwrap();
        }
        path.display().to_string()
    }

    /// What the server has written so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// How many key exchanges have ended in new keys so far, by the server's own word; `None` for a server that neither
    /// says so nor starts one.
    pub fn exchanges(&self) -> Option<usize> {
        self.exchange.map(|line| self.log().matches(line).count())
    }

    /// What the server offers to everybody.
    pub fn offer(&self) -> Offer {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        Offer::of(&mut stream).unwrap_or_else(|error| panic!("no KEXINIT: {error}\n{}", self.log()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("the server's last words:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("port", &self.port).finish_non_exhaustive()
    }
}

/// A directory with a key that is let in.
fn directory() -> TempDir {
    let dir = tempfile::Builder::new().prefix("threadline-server-").tempdir().unwrap();
    sshd::make_key(&dir.path().join("id_ed25519"), &["-t", "ed25519", "-N", ""]).unwrap();
    dir
}

/// Ends with us.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Gone already is as good as gone now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One side's KEXINIT (RFC 4253 §7.1), as far as it matters here. For each direction the same, or the test fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    pub kex: Vec<String>,
    pub ciphers: Vec<String>,
    pub macs: Vec<String>,
}

impl Offer {
    /// Exchanges banners and reads what the peer offers.
    pub fn of(stream: &mut TcpStream) -> io::Result<Offer> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"SSH-2.0-looking\r\n")?;
        let mut stream = BufReader::new(stream);
        let mut banner = Vec::new();
        while !banner.starts_with(b"SSH-") {
            banner.clear();
            if stream.read_until(b'\n', &mut banner)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        let [a, b, c, d, padding] = head;
        let mut payload = vec![0; u32::from_be_bytes([a, b, c, d]) as usize - 1];
        stream.read_exact(&mut payload)?;
        payload.truncate(payload.len() - usize::from(padding));
        assert_eq!(payload[0], 20, "KEXINIT comes first");

        // Behind the number and the cookie: ten lists of names.
        let mut rest = &payload[17..];
        let lists: Vec<Vec<String>> = (0..10).map(|_| names(&mut rest)).collect();
        assert_eq!((&lists[2], &lists[4]), (&lists[3], &lists[5]), "both directions alike");
        Ok(Offer { kex: lists[0].clone(), ciphers: lists[2].clone(), macs: lists[4].clone() })
    }
}

/// Takes a list of names off the front (RFC 4251 §5).
fn names(rest: &mut &[u8]) -> Vec<String> {
    let (length, behind) = rest.split_first_chunk::<4>().expect("a length");
    let (list, behind) = behind.split_at(u32::from_be_bytes(*length) as usize);
    *rest = behind;
    let list = std::str::from_utf8(list).expect("names are ASCII");
    list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}
