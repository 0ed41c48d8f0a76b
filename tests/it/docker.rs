//! The hosts of docker/compose.yaml, and what befalls hosts: paused, cut off, restarted. Run by `make docker-test`.
//!
//! The tests named `docker_…` are ignored by plain `cargo test`, which cannot start the hosts: `make docker-test`
//! selects them, with the hosts named in `THREADLINE_TEST_HOSTS`. A test claims all hosts for itself while it runs.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use threadline::{Child, ChildStdout, Client, ClientBuilder, Error, OutputLines};

use crate::util;

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

    /// A builder for a connection as alice, with the key. A read of what never comes fails rather than hangs.
    pub fn builder(&self) -> ClientBuilder {
        self.builder_without_credentials().identity(self.hosts.identity())
    }

    fn builder_without_credentials(&self) -> ClientBuilder {
        let builder = Client::builder(&self.address.ip().to_string()).port(self.address.port()).user("alice");
        builder.agent(false).command_timeout(PATIENCE).known_hosts(self.hosts.known_hosts())
    }

    /// A connection as alice.
    pub fn connect(&self) -> Client {
        self.builder().connect().unwrap_or_else(|error| panic!("{}: {error}", self.name))
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

/// A remote `cat`: what goes in comes back, as long as the host is in order.
struct Echo {
    child: Child,
    stdout: ChildStdout,
}

impl Echo {
    fn start(client: &Client) -> Echo {
        let mut child = client.exec_command("cat").unwrap();
        let stdout = child.stdout.take().unwrap();
        let mut echo = Echo { child, stdout };
        echo.say("hello");
        assert_eq!(echo.hear().unwrap(), "hello\n");
        echo
    }

    fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn hear(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).map(|_| line)
    }
}

/// Numbers, twenty a second, for as long as somebody listens.
fn start_counting(client: &Client) -> OutputLines {
    client.sh("n=0; while echo $n; do n=$((n+1)); sleep 0.05; done").spawn().unwrap().lines()
}

/// What arrives from here on, until the error that ends it.
///
/// # Panics
/// When what arrives does not go on from `next`, one by one.
fn listen_to_the_end(counting: &mut OutputLines, mut next: u32) -> Error {
    for line in counting {
        match line {
            Ok(line) => assert_eq!(line.text(), next.to_string()),
            Err(error) => return error,
        }
        next += 1;
    }
    panic!("it ended without a word after {next} lines");
}

fn hostname(client: &Client) -> String {
    stdout_of(client, "hostname")
}

fn stdout_of(client: &Client, command: &str) -> String {
    let output = client.exec_command(command).unwrap().output().unwrap();
    assert!(output.status.success(), "{command}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
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

/// Longer than any one test takes, the disturbances included.
const WHOLE_TEST: Duration = Duration::from_secs(100);

#[test]
#[ignore = "needs make docker-up"]
fn docker_commands_run_on_two_hosts_at_once() {
    util::within(WHOLE_TEST, || {
        let hosts = Hosts::claim();
        let names = ["web1", "web2"];
        let clients = names.map(|name| hosts.host(name).connect());
        // Each of these goes on until its input ends, so all of them run before the first may end.
        let children = [&clients[0], &clients[1], &clients[0], &clients[1]].map(|client| {
            let mut child = client.exec_command("hostname; cat; exit 5").unwrap();
            let mut name = [0; 5];
            child.stdout.as_mut().unwrap().read_exact(&mut name).unwrap();
            (child, String::from_utf8_lossy(&name).trim_end().to_owned())
        });
        for (number, (mut child, name)) in children.into_iter().enumerate() {
            assert_eq!(name, names[number % 2]);
            write!(child.stdin.as_mut().unwrap(), "to {number}").unwrap();
            let output = child.output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("to {number}"));
            assert_eq!(output.status.code(), Some(5));
        }
    });
}

#[test]
#[ignore = "needs make docker-up"]
fn docker_a_paused_host_is_silent_its_neighbour_is_not_and_nothing_is_lost() {
    util::within(WHOLE_TEST, || {
        let hosts = Hosts::claim();
        let web1 = hosts.host("web1");
        let client = web1.connect();
        let mut echo = Echo::start(&client);

        let paused = web1.pause();
        echo.say("while paused");
        echo.stdout.set_read_timeout(Some(Duration::from_secs(1)));
        let error = echo.hear().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
        assert_eq!(hostname(&hosts.host("web2").connect()), "web2");
        paused.end();

        echo.stdout.set_read_timeout(Some(PATIENCE));
        assert_eq!(echo.hear().unwrap(), "while paused\n");
        assert_eq!(hostname(&client), "web1");
    });
}

#[test]
#[ignore = "needs make docker-up"]
fn docker_a_host_paused_in_mid_stream_is_given_up_with_how_long_it_was_silent() {
    util::within(WHOLE_TEST, || {
        let hosts = Hosts::claim();
        let web1 = hosts.host("web1");
        let client = web1.builder().keepalive(Duration::from_millis(500), 3).connect().unwrap();
        let mut counting = start_counting(&client);
        assert_eq!(counting.next().unwrap().unwrap().text(), "0");

        let paused = web1.pause();
        let error = listen_to_the_end(&mut counting, 1);
        let Error::ConnectionLost { silent: Some(silent), .. } = &error else { panic!("{error:?}") };
        // Three probes half a second apart, and then a little patience.
        assert!((Duration::from_millis(1500)..Duration::from_secs(10)).contains(silent), "{silent:?}");
        assert!(error.to_string().contains("silent for"), "{error}");
        // Everybody who asks gets the same reason, at once.
        let later = client.exec_command("hostname").unwrap_err();
        assert_eq!(later.to_string(), error.to_string());
        paused.end();

        assert_eq!(hostname(&web1.connect()), "web1");
    });
}

#[test]
#[ignore = "needs make docker-up"]
fn docker_a_host_cut_off_its_network_in_mid_stream_loses_the_connection_and_comes_back() {
    util::within(WHOLE_TEST, || {
        let hosts = Hosts::claim();
        let web1 = hosts.host("web1");
        // Where the engine forwards by rules and not by a process, silence is all there is to be noticed.
        let client = web1.builder().keepalive(Duration::from_secs(1), 3).connect().unwrap();
        let mut counting = start_counting(&client);
        assert_eq!(counting.next().unwrap().unwrap().text(), "0");
        let neighbour = hosts.host("web2").connect();
        let mut echo = Echo::start(&neighbour);

        let cut_off = web1.cut_off();
        let error = listen_to_the_end(&mut counting, 1);
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
        assert!(!sends_banner(web1.address()));
        echo.say("still here");
        assert_eq!(echo.hear().unwrap(), "still here\n");
        cut_off.end();

        assert!(client.exec_command("hostname").is_err(), "a lost connection is lost for good");
        assert_eq!(hostname(&web1.connect()), "web1");
    });
}

#[test]
#[ignore = "needs make docker-up"]
fn docker_a_restarted_host_has_dropped_its_connections_and_kept_its_key() {
    util::within(WHOLE_TEST, || {
        let hosts = Hosts::claim();
        let web2 = hosts.host("web2");
        let client = web2.builder().keepalive(Duration::from_secs(1), 3).connect().unwrap();
        let key = client.host_key().clone();
        let mut counting = start_counting(&client);
        assert_eq!(counting.next().unwrap().unwrap().text(), "0");

        web2.restart();

        let error = listen_to_the_end(&mut counting, 1);
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
        let again = web2.connect();
        assert_eq!(hostname(&again), "web2");
        assert_eq!(again.host_key(), &key);
    });
}

#[test]
#[ignore = "needs make docker-up"]
fn docker_the_internal_host_is_reached_through_another_one_only() {
    util::within(WHOLE_TEST, || {
        let hosts = Hosts::claim();
        let published = output_of({
            let mut docker = within(PATIENCE, "docker");
            docker.args(["port", &hosts.container(hosts.internal())]);
            docker
        });
        assert_eq!(published, "", "a port of the internal host is published");

        // From both of the others its sshd answers.
        let banner = format!("exec 3<>/dev/tcp/{}/22 && head -n 1 <&3", hosts.internal());
        for name in ["web1", "web2"] {
            let answer = stdout_of(&hosts.host(name).connect(), &banner);
            assert!(answer.starts_with("SSH-2.0-OpenSSH"), "{name}: {answer:?}");
        }

        // And OpenSSH's client gets in by way of one of them, as ours will when it has learned to jump.
        let proxy = [vec!["ssh".to_owned()], hosts.ssh_options(), hosts.host("web1").destination().to_vec()].concat();
        let proxy: Vec<_> = proxy.iter().map(|word| format!("'{word}'")).collect();
        let mut ssh = hosts.ssh();
        ssh.arg("-o").arg(format!("ProxyCommand={} -W {}:22", proxy.join(" "), hosts.internal()));
        ssh.args(["-o", "BatchMode=yes", &format!("alice@{}", hosts.internal()), "hostname"]);
        assert_eq!(output_of(ssh), hosts.internal());
    });
}

#[test]
#[ignore = "needs make docker-up"]
fn docker_root_and_alice_log_in_with_the_password() {
    util::within(WHOLE_TEST, || {
        let hosts = Hosts::claim();
        for user in ["root", "alice"] {
            let client = hosts.host("web1").builder_without_credentials().user(user).password(hosts.password());
            let client = client.connect().unwrap();
            assert_eq!(stdout_of(&client, "id -un"), user);
        }
    });
}
