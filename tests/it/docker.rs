//! The hosts of docker/compose.yaml, and what befalls hosts: paused, cut off, restarted. Run by `make docker-test`.
//!
//! The tests named `docker_…` are ignored by plain `cargo test`, which cannot start the hosts: `make docker-test`
//! selects them, with the hosts named in `THREADLINE_TEST_HOSTS`. A test claims all hosts for itself while it runs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take that is expected to happen at all.
const PATIENCE: Duration = Duration::from_secs(30);

/// One test at a time: each disturbs hosts that the others use.
static TURN: Mutex<()> = Mutex::new(());

/// The hosts, claimed for one test.
pub struct Hosts {
    endpoints: Endpoints,
    files: PathBuf,
    project: String,
    _turn: MutexGuard<'static, ()>,
}

/// One host that has a port published on this machine.
pub struct Host<'a> {
    hosts: &'a Hosts,
    name: String,
    address: SocketAddr,
}

/// A host out of order; in order again when this is dropped, or at [`Disturbance::end`].
#[must_use]
pub struct Disturbance<'a> {
    host: &'a Host<'a>,
    undo: Vec<String>,
}

/// What `THREADLINE_TEST_HOSTS` says: `web1=127.0.0.1:20001,web2=127.0.0.1:20002,internal=db1`.
#[derive(Debug, PartialEq, Eq)]
struct Endpoints {
    /// Hosts that are reached from here, by name.
    published: BTreeMap<String, SocketAddr>,
    /// The name of the host that only the others reach.
    internal: String,
}

impl Hosts {
    /// Waits for the other tests of this file, then hands out the hosts. Panics when they are not up.
    pub fn claim() -> Hosts {
        // a failed test left the hosts in order (Disturbance is undone by drop), so its poison means nothing
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let endpoints = parse_endpoints(&variable("THREADLINE_TEST_HOSTS")).expect("THREADLINE_TEST_HOSTS");
        let files = PathBuf::from(variable("THREADLINE_TEST_FILES"));
        Hosts { endpoints, files, project: variable("THREADLINE_TEST_PROJECT"), _turn: turn }
    }

    /// A host whose port is published, by its name.
    pub fn host(&self, name: &str) -> Host<'_> {
        let address = *self.endpoints.published.get(name).unwrap_or_else(|| panic!("no host named {name}"));
        Host { hosts: self, name: name.to_owned(), address }
    }

    /// The name, among the hosts, of the one that only the others reach; its port is 22.
    pub fn internal(&self) -> &str {
        &self.endpoints.internal
    }

    /// The private key that may log in as root and as alice.
    pub fn identity(&self) -> PathBuf {
        self.files.join("id_ed25519")
    }

    /// The hosts' keys: `[127.0.0.1]:port` for the published ones, the plain name for the internal one.
    pub fn known_hosts(&self) -> PathBuf {
        self.files.join("known_hosts")
    }

    /// The password of root and of alice.
    pub fn password(&self) -> String {
        fs::read_to_string(self.files.join("password")).expect("the password file").trim_end().to_owned()
    }

    fn container(&self, name: &str) -> String {
        format!("{}-{name}", self.project)
    }

    /// OpenSSH's client with the hosts' key and known hosts, and nothing of this machine's configuration.
    fn ssh(&self) -> Command {
        let mut ssh = within(PATIENCE, "ssh");
        ssh.args(self.ssh_options());
        ssh
    }

    fn ssh_options(&self) -> Vec<String> {
        let identity = format!("IdentityFile={}", self.identity().display());
        let known_hosts = format!("UserKnownHostsFile={}", self.known_hosts().display());
        let fixed =
            ["IdentitiesOnly=yes", "StrictHostKeyChecking=yes", "ServerAliveInterval=1", "ServerAliveCountMax=15"];
        let settings = fixed.into_iter().chain([identity.as_str(), known_hosts.as_str()]);
        let options = settings.flat_map(|setting| ["-o".to_owned(), setting.to_owned()]);
        ["-F".to_owned(), "none".to_owned()].into_iter().chain(options).collect()
    }
}

impl<'a> Host<'a> {
    /// Where its sshd is reached; stays the same over every disturbance.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Freezes every process of the host. Its kernel goes on: TCP acknowledges, and nothing answers.
    pub fn pause(&'a self) -> Disturbance<'a> {
        self.disturb(&["pause", &self.container()], &["unpause", &self.container()])
    }

    /// Takes the host off its network, with all connections open. The engine's port forwarder goes with it, so on this
    /// side a connection ends, by FIN or RST; what a cut without a word looks like is the fault proxy's subject.
    pub fn cut_off(&'a self) -> Disturbance<'a> {
        let network = format!("{}-hosts", self.hosts.project);
        let container = self.container();
        self.disturb(&["network", "disconnect", &network, &container], &["network", "connect", &network, &container])
    }

    /// Stops the host hard and starts it again, with the same host key and port; returns when its sshd answers.
    pub fn restart(&self) {
        docker(&["restart", "--time", "0", &self.container()]);
        self.wait_for_banner();
    }

    fn container(&self) -> String {
        self.hosts.container(&self.name)
    }

    fn disturb(&'a self, how: &[&str], undo: &[&str]) -> Disturbance<'a> {
        docker(how);
        Disturbance { host: self, undo: undo.iter().map(|&word| word.to_owned()).collect() }
    }

    fn wait_for_banner(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !sends_banner(self.address) {
            assert!(Instant::now() < deadline, "{} does not answer at {} within {PATIENCE:?}", self.name, self.address);
            thread::sleep(Duration::from_millis(50)); // between two questions; nothing relies on its length
        }
    }

    fn ssh(&self, command: &str) -> Command {
        let mut ssh = self.hosts.ssh();
        ssh.args(["-o", "BatchMode=yes"]).args(self.destination()).arg(command);
        ssh
    }

    fn destination(&self) -> [String; 3] {
        ["-p".to_owned(), self.address.port().to_string(), format!("alice@{}", self.address.ip())]
    }
}

impl Disturbance<'_> {
    /// Puts the host in order and returns when its sshd answers again.
    pub fn end(mut self) {
        let undo = std::mem::take(&mut self.undo);
        docker(&undo.iter().map(String::as_str).collect::<Vec<_>>());
        self.host.wait_for_banner();
    }
}

impl Drop for Disturbance<'_> {
    fn drop(&mut self) {
        if self.undo.is_empty() {
            return;
        }
        // a test is failing already: the next one should find its hosts, and a second panic would hide the first
        match within(PATIENCE, "docker").args(&self.undo).output() {
            Ok(done) if done.status.success() => {}
            trouble => eprintln!("could not undo docker {}: {trouble:?}", self.undo.join(" ")),
        }
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run this by make docker-up docker-test"))
}

fn parse_endpoints(text: &str) -> Result<Endpoints, String> {
    let mut published = BTreeMap::new();
    let mut internal = None;
    for entry in text.split(',') {
        let (name, value) = entry.split_once('=').ok_or_else(|| format!("{entry:?} is not NAME=ADDRESS:PORT"))?;
        if name == "internal" {
            internal = Some(value.to_owned());
            continue;
        }
        let address = value.parse().map_err(|e| format!("{value:?} is not ADDRESS:PORT: {e}"))?;
        if published.insert(name.to_owned(), address).is_some() {
            return Err(format!("{name} is named twice"));
        }
    }
    Ok(Endpoints { published, internal: internal.ok_or("internal=NAME is missing")? })
}

/// A program that is killed when it runs longer than `limit`.
fn within(limit: Duration, program: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", &limit.as_secs().to_string(), program]);
    command
}

fn docker(args: &[&str]) {
    let done = within(PATIENCE, "docker").args(args).output().expect("docker starts");
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "docker {}: {}: {stderr}", args.join(" "), done.status);
}

fn sends_banner(address: SocketAddr) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(2)) else {
        return false;
    };
    let mut start = [0; 4];
    stream.set_read_timeout(Some(Duration::from_secs(2))).is_ok()
        && stream.read_exact(&mut start).is_ok()
        && &start == b"SSH-"
}

/// A remote `cat` in an ssh of its own: what goes in comes back, as long as the host is in order.
struct Echo {
    ssh: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Echo {
    fn start(host: &Host<'_>) -> Echo {
        let mut ssh = host.ssh("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("ssh starts");
        let stdin = ssh.stdin.take().expect("piped");
        let stdout = BufReader::new(ssh.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut echo = Echo { ssh, stdin, lines };
        echo.say("hello");
        assert_eq!(echo.hears(PATIENCE), Ok("hello".to_owned()));
        echo
    }

    fn say(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").expect("ssh takes its input");
    }

    fn hears(&self, patience: Duration) -> Result<String, RecvTimeoutError> {
        self.lines.recv_timeout(patience)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // `timeout` passes no KILL on; a closed stdin ends cat, and with it ssh
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}

fn output_of(mut command: Command) -> String {
    let done = command.output().expect("starts");
    assert!(done.status.success(), "{command:?}: {}: {}", done.status, String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("text").trim_end().to_owned()
}

#[test]
fn the_hosts_variable_names_published_hosts_and_the_internal_one() {
    let endpoints = parse_endpoints("web1=127.0.0.1:20001,web2=127.0.0.1:20002,internal=db1").unwrap();
    assert_eq!(endpoints.internal, "db1");
    assert_eq!(endpoints.published["web2"], "127.0.0.1:20002".parse().unwrap());
    assert_eq!(endpoints.published.len(), 2);
}

#[test]
fn a_wrong_hosts_variable_is_refused_with_the_entry_at_fault() {
    for (text, at_fault) in [
        ("", "\"\" is not NAME"),
        ("web1", "\"web1\" is not NAME"),
        ("web1=localhost,internal=db1", "\"localhost\" is not ADDRESS:PORT"),
        ("web1=127.0.0.1:1,web1=127.0.0.1:2,internal=db1", "web1 is named twice"),
        ("web1=127.0.0.1:1", "internal=NAME is missing"),
    ] {
        let error = parse_endpoints(text).unwrap_err();
        assert!(error.contains(at_fault), "{text:?}: {error}");
    }
}

#[test]
#[ignore = "needs make docker-up"]
fn docker_a_paused_host_is_silent_its_neighbour_is_not_and_nothing_is_lost() {
    let hosts = Hosts::claim();
    let web1 = hosts.host("web1");
    let mut echo = Echo::start(&web1);

    let paused = web1.pause();
    echo.say("while paused");
    assert_eq!(echo.hears(Duration::from_secs(1)), Err(RecvTimeoutError::Timeout));
    assert_eq!(output_of(hosts.host("web2").ssh("hostname")), "web2");
    paused.end();

    assert_eq!(echo.hears(PATIENCE), Ok("while paused".to_owned()));
}

#[test]
#[ignore = "needs make docker-up"]
fn docker_a_host_cut_off_its_network_ends_the_connection_and_comes_back() {
    let hosts = Hosts::claim();
    let web1 = hosts.host("web1");
    let echo = Echo::start(&web1);

    let cut_off = web1.cut_off();
    assert_eq!(echo.hears(PATIENCE), Err(RecvTimeoutError::Disconnected));
    assert!(!sends_banner(web1.address()));
    cut_off.end();

    assert_eq!(output_of(web1.ssh("hostname")), "web1");
}

#[test]
#[ignore = "needs make docker-up"]
fn docker_a_restarted_host_has_dropped_its_connections_and_kept_its_key() {
    let hosts = Hosts::claim();
    let web2 = hosts.host("web2");
    let echo = Echo::start(&web2);

    web2.restart();

    assert_eq!(echo.hears(PATIENCE), Err(RecvTimeoutError::Disconnected));
    assert_eq!(output_of(web2.ssh("hostname")), "web2");
}

#[test]
#[ignore = "needs make docker-up"]
fn docker_the_internal_host_is_reached_through_another_one_only() {
    let hosts = Hosts::claim();
    let published = output_of({
        let mut docker = within(PATIENCE, "docker");
        docker.args(["port", &hosts.container(hosts.internal())]);
        docker
    });
    assert_eq!(published, "", "a port of the internal host is published");

    let proxy = [vec!["ssh".to_owned()], hosts.ssh_options(), hosts.host("web1").destination().to_vec()].concat();
    let proxy: Vec<_> = proxy.iter().map(|word| format!("'{word}'")).collect();
    let mut ssh = hosts.ssh();
    ssh.arg("-o").arg(format!("ProxyCommand={} -W {}:22", proxy.join(" "), hosts.internal()));
    ssh.args(["-o", "BatchMode=yes", &format!("alice@{}", hosts.internal()), "hostname"]);
    assert_eq!(output_of(ssh), hosts.internal());
}

#[test]
#[ignore = "needs make docker-up"]
fn docker_root_and_alice_log_in_with_the_password() {
    let hosts = Hosts::claim();
    let web1 = hosts.host("web1");
    let askpass = hosts.files.join("askpass");
    fs::write(&askpass, format!("#!/bin/sh\necho '{}'\n", hosts.password())).unwrap();
    fs::set_permissions(&askpass, fs::Permissions::from_mode(0o700)).unwrap();

    for user in ["root", "alice"] {
        let mut ssh = hosts.ssh();
        ssh.env("SSH_ASKPASS", &askpass).env("SSH_ASKPASS_REQUIRE", "force").env_remove("SSH_AUTH_SOCK");
        ssh.args(["-o", "PreferredAuthentications=password", "-o", "NumberOfPasswordPrompts=1", "-l", user]);
        ssh.args(["-p", &web1.address().port().to_string(), &web1.address().ip().to_string(), "id -un"]);
        assert_eq!(output_of(ssh), user);
    }
}
