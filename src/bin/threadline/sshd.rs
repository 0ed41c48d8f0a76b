//! A throw-away sshd: own keys, own configuration, own directory, a free port of 127.0.0.1, gone when dropped.
//!
//! `threadline demo` plays its programs against one, and the tests and benches include this file by `#[path]`, so there
//! is one such server and not two. It works as root and as a normal user and changes nothing on the machine, but for
//! `/run/sshd`, the empty directory that a root sshd insists on.
//!
//! **Nothing is left behind.** sshd puts every connection and every command into a session of its own, and a command
//! may detach itself; no process group and no parent leads to all of them. So the server is *marked*: it gets a limit on
//! real-time CPU (`RLIMIT_RTTIME`), which touches no ordinary process, of a value that no other server has. A limit is
//! inherited through fork, exec and setuid, and anybody may read it in `/proc`. Whatever carries the mark is killed at
//! drop. When the owner itself is killed there is no drop: then a watchdog, a shell that reads a pipe of ours, sees the
//! end of that pipe and does the same.
//!
//! **Other users, other shells.** sshd takes login shell, user id and password hash from the user database.
//! `login_user`, `login_shell`, `login_uid` and `password` answer it from a file of ours by way of nss_wrapper (package
//! libnss-wrapper), which also lets a normal user's sshd check a password. The commands do not see nss_wrapper.
#![allow(dead_code, reason = "the demo, the tests and the benches each use a part")]

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{chown, DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{getuid, kill_process, prlimit, Pid, Resource, Rlimit, Signal};
use tempfile::TempDir;

/// The address every server listens on.
pub const HOST: &str = "127.0.0.1";

/// What [`Builder::password`] lets in.
pub const PASSWORD: &str = "correct horse";

/// [`PASSWORD`] as crypt(3) stores it, with few rounds: a login should cost no time here.
const PASSWORD_HASH: &str =
    "$6$rounds=1000$threadline$LspJGoXUb.NRG5XJQWqlwqcWabPr2msZMhatoqkj/z7A0J8N29XYkTYLPEiCLrAvvng6DRpDLw.NXbuzLyPH3/";

/// How long sshd may take until it listens, and its processes until they are gone. Generous: loaded machines are slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a condition that nobody announces is looked at.
const GLANCE: Duration = Duration::from_millis(2);

/// Ports tried before giving up; a port is lost only when somebody takes it in the moment between.
const PORT_ATTEMPTS: usize = 20;

/// Kills whatever carries the mark `$1` and removes the directory `$2` once our end of its stdin is closed.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
read -r _
for _ in 1 2 3 4 5 6 7 8 9 10; do
    # grep also says 2 when any process ended while it looked, whatever it found.
    found=$(grep -ls "^Max realtime timeout  *$1 " /proc/[0-9]*/limits)
    [ -n "$found" ] || break
    for limits in $found; do
        pid=${limits#/proc/}
        kill -9 "${pid%/limits}"
    done
    sleep 0.1
done
rm -rf -- "$2"
"#;

/// What a server is to be like; made by [`Sshd::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    options: Vec<String>,
    env: Vec<(String, String)>,
    host_key_types: Vec<String>,
    login_user: Option<String>,
    login_shell: Option<PathBuf>,
    login_uid: Option<u32>,
    password: bool,
}

impl Builder {
    /// Adds a line of sshd_config(5), such as `MaxSessions 3`. It wins over ours: sshd takes the first value it reads.
    pub fn option(mut self, line: &str) -> Self {
        self.options.push(line.to_owned());
        self
    }

    /// Allows these ciphers only, comma-separated.
    pub fn ciphers(self, names: &str) -> Self {
        self.option(&format!("Ciphers {names}"))
    }

    /// Host keys to have, in ssh-keygen's words: `ed25519` (the default), `ecdsa`, `rsa`. An RSA key takes up to a
    /// second to make.
    pub fn host_key_types(mut self, types: &[&str]) -> Self {
        self.host_key_types = types.iter().map(|kind| (*kind).to_owned()).collect();
        self
    }

    /// Sets an environment variable in every command the server starts (`SetEnv`).
    ///
    /// sshd gives its own environment to nobody. `SHLVL=1` is set by default: without it bash takes a command for a
    /// first login and reads `~/.bashrc`, which costs 100 ms where that file does much.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The user that logs in; without it, the user who runs us. Any name will do. It has our user id (see
    /// [`login_uid`](Self::login_uid)), an empty home directory of its own, and `/bin/sh`. Needs libnss-wrapper.
    pub fn login_user(mut self, name: &str) -> Self {
        self.login_user = Some(name.to_owned());
        self
    }

    /// The login shell, an absolute path; without it, the user's own, or `/bin/sh` where that lets nobody in (nobody's
    /// does not). Needs libnss-wrapper.
    pub fn login_shell(mut self, shell: impl Into<PathBuf>) -> Self {
        self.login_shell = Some(shell.into());
        self
    }

    /// The user and group id of who logs in; other than our own for root only. The id need not exist. Needs
    /// libnss-wrapper.
    pub fn login_uid(mut self, uid: u32) -> Self {
        self.login_uid = Some(uid);
        self
    }

    /// Lets the user in with [`PASSWORD`] as well. Needs libnss-wrapper.
    pub fn password(mut self) -> Self {
        self.password = true;
        self
    }

    /// Makes keys and files and starts sshd; returns when it listens, typically in 50 ms.
    ///
    /// # Errors
    /// When a program is missing (the message names the package), when sshd refuses its configuration or ends (the
    /// message carries its log), and when it does not listen within 20 s.
    pub fn start(self) -> io::Result<Sshd> {
        let sshd = find_sshd()?;
        let dir = make_dir()?;
        let account = self.account(dir.path())?;
        make_key(&dir.path().join("id_ed25519"), &["-t", "ed25519", "-N", ""])?;
        let authorized = dir.path().join("authorized_keys");
        fs::copy(dir.path().join("id_ed25519.pub"), &authorized)?;
        // Read by sshd as the user who logs in.
        fs::set_permissions(&authorized, fs::Permissions::from_mode(0o644))?;
        let host_keys = self.make_host_keys(dir.path())?;

        let config = self.config(dir.path());
        let mark = new_mark();
        let watchdog = Watchdog::start(mark, dir.path())?;
        let (listener, port) = listen(&sshd, &config, &account, mark, dir.path())?;
        let server = Sshd { listener, mark, port, account, host_keys, watchdog: Some(watchdog), dir };
        server.known_hosts_for(port)?;
        Ok(server)
    }

    /// sshd_config but for the port: the caller's lines first, because the first one wins.
    fn config(&self, dir: &Path) -> String {
        let mut text = String::new();
        let mut line = |line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        self.options.iter().for_each(|option| line(option));
        line(&self.set_env());
        for kind in &self.host_key_types {
            line(&format!("HostKey {}", host_key_path(dir, kind).display()));
        }
        line(&format!("AuthorizedKeysFile {}", dir.join("authorized_keys").display()));
        line(&format!("PasswordAuthentication {}", if self.password { "yes" } else { "no" }));
        // Without PAM anybody may run it; without strict modes the directory may be anywhere.
        for fixed in ["UsePAM no", "StrictModes no", "PidFile none", "PermitRootLogin yes", "UseDNS no"] {
            line(fixed);
        }
        for fixed in ["KbdInteractiveAuthentication no", "PrintMotd no", "PrintLastLog no", "LogLevel VERBOSE"] {
            line(fixed);
        }
        // Not the limit a test runs into by accident when it opens many connections at once.
        line("MaxStartups 1000");
        line("Subsystem sftp internal-sftp");
        text
    }

    /// The `SetEnv` line: one for all, because sshd takes the first line only.
    fn set_env(&self) -> String {
        let mut line = String::from("SetEnv SHLVL=1");
        for (name, value) in &self.env {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            // Writing to a String cannot fail.
            let _ = write!(line, " \"{name}={escaped}\"");
        }
        line
    }

    /// Makes the host keys and returns their public lines, `algorithm base64`.
    fn make_host_keys(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        for kind in &self.host_key_types {
            let path = host_key_path(dir, kind);
            make_key(&path, &["-t", kind, "-N", ""])?;
            let public = fs::read_to_string(path.with_extension("pub"))?;
            lines.push(public.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
        }
        Ok(lines)
    }

    /// Decides who logs in, and writes the user database that says so where the machine's own does not.
    fn account(&self, dir: &Path) -> io::Result<Account> {
        let invented = self.login_user.is_some() || self.login_shell.is_some() || self.login_uid.is_some();
        if !invented && !self.password && !own_shell_refuses() {
            return Ok(Account { user: own_user_name()?, nss: None });
        }
        let user = match &self.login_user {
            Some(name) => name.clone(),
            None if self.login_uid.is_some() => "tester".to_owned(),
            None => own_user_name()?,
        };
        let us = getuid().as_raw();
        let uid = self.login_uid.unwrap_or(us);
        if uid != us && us != 0 {
            return Err(io::Error::other("sshd: only root can let another user id log in"));
        }
        let library = find_nss_wrapper()?;
        let home = dir.join("home");
        fs::create_dir(&home)?;
        let gid = if uid == us { rustix::process::getgid().as_raw() } else { uid };
        chown(&home, Some(uid), Some(gid))?;

        let shell = self.login_shell.as_deref().unwrap_or(Path::new("/bin/sh"));
        // The first entry of a name or an id is the one that counts, so ours comes first.
        let entry = format!("{user}:{PASSWORD_HASH}:{uid}:{gid}::{}:{}\n", home.display(), shell.display());
        fs::write(dir.join("passwd"), entry + &fs::read_to_string("/etc/passwd")?)?;
        let mut groups = fs::read_to_string("/etc/group")?;
        if us != 0 {
            // sshd gives a terminal to group tty, which takes root where /dev/pts is mounted without its gid, as in
            // some containers. Where there is no such group it does without.
            groups = groups.split_inclusive('\n').filter(|line| !line.starts_with("tty:")).collect();
        }
        fs::write(dir.join("group"), format!("{user}:x:{gid}:\n") + &groups)?;
        Ok(Account { user, nss: Some(library) })
    }
}

/// Who logs in.
#[derive(Debug)]
struct Account {
    user: String,
    /// The nss_wrapper library, when `passwd` and `group` in the server's directory are the user database.
    nss: Option<PathBuf>,
}

/// A running sshd; see the module's first lines. Dropping it ends it, its sessions and all they started, and removes
/// its directory; that waits until the processes are gone, typically a few milliseconds.
#[derive(Debug)]
pub struct Sshd {
    listener: Child,
    mark: u64,
    port: u16,
    account: Account,
    host_keys: Vec<String>,
    watchdog: Option<Watchdog>,
    dir: TempDir,
}

impl Sshd {
    /// A server to be described further.
    pub fn builder() -> Builder {
        Builder {
            options: Vec::new(),
            env: Vec::new(),
            host_key_types: vec!["ed25519".to_owned()],
            login_user: None,
            login_shell: None,
            login_uid: None,
            password: false,
        }
    }

    /// A server as it comes: one ed25519 host key, key login, the user who runs us.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub fn start() -> io::Result<Sshd> {
        Sshd::builder().start()
    }

    /// The address it listens on, 127.0.0.1.
    pub fn host(&self) -> &'static str {
        HOST
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The user who may log in.
    pub fn user(&self) -> &str {
        &self.account.user
    }

    /// The server's own directory, for files that shall go when it goes.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The private key that is let in, without a passphrase.
    pub fn identity(&self) -> PathBuf {
        self.dir().join("id_ed25519")
    }

    /// Makes one more key pair that is let in, and returns the private key's path. `arguments` are ssh-keygen's, such
    /// as `["-t", "rsa", "-m", "PEM", "-N", "passphrase"]`.
    ///
    /// # Errors
    /// When ssh-keygen fails, with what it said.
    pub fn add_identity(&self, name: &str, arguments: &[&str]) -> io::Result<PathBuf> {
        let path = self.dir().join(name);
        make_key(&path, arguments)?;
        let public = fs::read(self.dir().join(format!("{name}.pub")))?;
        io::Write::write_all(&mut File::options().append(true).open(self.dir().join("authorized_keys"))?, &public)?;
        Ok(path)
    }

    /// A known_hosts file with this server's keys.
    pub fn known_hosts(&self) -> PathBuf {
        self.dir().join(format!("known_hosts.{}", self.port))
    }

    /// A known_hosts file with this server's keys at another port of 127.0.0.1: a proxy's.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn known_hosts_for(&self, port: u16) -> io::Result<PathBuf> {
        let path = self.dir().join(format!("known_hosts.{port}"));
        let lines: String = self.host_keys.iter().map(|key| format!("[{HOST}]:{port} {key}\n")).collect();
        // Not written anew: a client may be reading it.
        if !fs::read_to_string(&path).is_ok_and(|written| written == lines) {
            fs::write(&path, lines)?;
        }
        Ok(path)
    }

    /// The public host keys, `algorithm base64` each, in the order of [`Builder::host_key_types`].
    pub fn host_keys(&self) -> &[String] {
        &self.host_keys
    }

    /// OpenSSH's own client, ready for this server: only the command is to be added.
    pub fn ssh(&self) -> Command {
        self.ssh_to(self.port, &self.known_hosts())
    }

    /// The same through a proxy that listens on `port` of 127.0.0.1.
    ///
    /// # Errors
    /// As [`known_hosts_for`](Self::known_hosts_for).
    pub fn ssh_via(&self, port: u16) -> io::Result<Command> {
        Ok(self.ssh_to(port, &self.known_hosts_for(port)?))
    }

    fn ssh_to(&self, port: u16, known_hosts: &Path) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"]);
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", known_hosts.display()));
        ssh.args(["-o", "GlobalKnownHostsFile=none", "-o", "StrictHostKeyChecking=yes", "-o", "LogLevel=ERROR"]);
        ssh.arg("-i").arg(self.identity()).arg("-p").arg(port.to_string());
        ssh.arg(format!("{}@{HOST}", self.account.user));
        ssh
    }

    /// What sshd has written so far, at `LogLevel VERBOSE`.
    pub fn log(&self) -> String {
        read_log(self.dir())
    }

    /// The listener's process id.
    pub fn pid(&self) -> u32 {
        self.listener.id()
    }

    /// The sshd processes that serve connections: two for a connection of a normal user to root's server, else one.
    pub fn session_pids(&self) -> Vec<u32> {
        let mut pids = self.processes();
        pids.retain(|&pid| pid != self.pid() && is_sshd(pid));
        pids
    }

    /// Every living process of this server: the listener, the sessions, and all that was started in them and since
    /// detached.
    pub fn processes(&self) -> Vec<u32> {
        marked(self.mark)
    }

    /// Sends a signal to every sshd process that serves a connection: `Signal::STOP` makes the peer mute,
    /// `Signal::KILL` ends the connections while the listener takes new ones.
    pub fn signal_sessions(&self, signal: Signal) {
        let mut told = Vec::new();
        loop {
            // Where sshd gives up its privileges it forks once more behind the login: after our first look, perhaps.
            let mut pids = self.session_pids();
            pids.retain(|pid| !told.contains(pid));
            if pids.is_empty() {
                return;
            }
            pids.iter().for_each(|&pid| send_signal(pid, signal));
            // One that is being stopped or killed may run on for a moment on another processor, and fork.
            while matches!(signal, Signal::STOP | Signal::KILL) && pids.iter().any(|&pid| runs_on(pid)) {
                thread::sleep(Duration::from_millis(1));
            }
            told.extend(pids);
        }
    }

    /// `kill -9` of the listener and of every session. The commands live on, as they do after a crash, until drop.
    pub fn kill9(&self) {
        // The listener first, so that nothing new begins meanwhile.
        send_signal(self.pid(), Signal::KILL);
        self.signal_sessions(Signal::KILL);
    }

    /// Starts a listener anew, after [`kill9`](Sshd::kill9): same port, same keys. Its log begins anew, too.
    ///
    /// # Errors
    /// As [`Builder::start`], and when somebody has taken the port meanwhile.
    pub fn restart(&mut self) -> io::Result<()> {
        let _ = self.listener.kill();
        self.listener.wait()?;
        self.listener = spawn(&find_sshd()?, &self.account, self.dir.path())?;
        mark_process(self.listener.id(), self.mark)?;
        wait_until_listening(&mut self.listener, self.port, self.dir.path())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        // Errors have nowhere to go here; what survives is left to the watchdog, which tries once more.
        let _ = self.listener.kill();
        let _ = self.listener.wait();
        kill_marked(self.mark);
        drop(self.watchdog.take());
    }
}

/// The shell that cleans up when we are killed; dropping it makes it clean up at once and waits for it.
#[derive(Debug)]
struct Watchdog {
    shell: Child,
    /// Our end of its stdin. Rust opens it close-on-exec, so that no other child of ours keeps it open.
    pipe: Option<ChildStdin>,
}

impl Watchdog {
    fn start(mark: u64, dir: &Path) -> io::Result<Watchdog> {
        use std::os::unix::process::CommandExt;
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", WATCHDOG, "threadline-watchdog"]).arg(mark.to_string()).arg(dir);
        // A group of its own: Ctrl-C on the terminal is for us, not for it.
        shell.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut shell = shell.spawn()?;
        let pipe = shell.stdin.take();
        Ok(Watchdog { shell, pipe })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.pipe.take());
        let _ = self.shell.wait();
    }
}

/// Starts sshd on a free port. The port is free when chosen and may be taken when sshd binds it; sshd then says so and
/// the next one is tried.
fn listen(sshd: &Path, config: &str, account: &Account, mark: u64, dir: &Path) -> io::Result<(Child, u16)> {
    make_privilege_separation_directory();
    for _ in 0..PORT_ATTEMPTS {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        fs::write(dir.join("sshd_config"), format!("ListenAddress {HOST}:{port}\n{config}"))?;
        let mut child = spawn(sshd, account, dir)?;
        match mark_process(child.id(), mark).and_then(|()| wait_until_listening(&mut child, port, dir)) {
            Ok(()) => return Ok((child, port)),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                if error.kind() != ErrorKind::AddrInUse {
                    return Err(error);
                }
            }
        }
    }
    Err(io::Error::new(
        ErrorKind::AddrInUse,
        format!("sshd: {PORT_ATTEMPTS} ports were taken before it could bind one"),
    ))
}

fn spawn(sshd: &Path, account: &Account, dir: &Path) -> io::Result<Child> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(sshd);
    command.arg("-D").arg("-e").arg("-f").arg(dir.join("sshd_config"));
    if let Some(library) = &account.nss {
        command.env("LD_PRELOAD", library);
        command.env("NSS_WRAPPER_PASSWD", dir.join("passwd")).env("NSS_WRAPPER_GROUP", dir.join("group"));
    }
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(dir.join("log"))?);
    command.spawn().map_err(|error| context(error, &sshd.display().to_string()))
}

/// Waits for sshd's own word that it listens on `port`. A connection would not do: whoever took the port would answer.
fn wait_until_listening(child: &mut Child, port: u16, dir: &Path) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let listening = format!("Server listening on {HOST} port {port}.");
    loop {
        // Asked before the log is read, so that an ended sshd's log is complete.
        let ended = child.try_wait()?;
        let log = read_log(dir);
        if log.contains("Address already in use") {
            return Err(ErrorKind::AddrInUse.into());
        }
        if let Some(status) = ended {
            return Err(io::Error::other(format!("sshd ended at once ({status}); it said: {}", log.trim())));
        }
        if log.contains(&listening) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(ErrorKind::TimedOut, format!("sshd does not listen; it said: {}", log.trim())));
        }
        thread::sleep(GLANCE);
    }
}

/// sshd refuses to run as root without it. Where it cannot be made, sshd's own message says more than ours would.
fn make_privilege_separation_directory() {
    if getuid().is_root() {
        let _ = fs::DirBuilder::new().mode(0o755).create("/run/sshd");
    }
}

/// A value of `RLIMIT_RTTIME` (in microseconds: no process gets near it) that no other server has.
fn new_mark() -> u64 {
    static SERVERS: AtomicU64 = AtomicU64::new(0);
    let serial = SERVERS.fetch_add(1, Ordering::Relaxed);
    (1 << 60) | (u64::from(std::process::id()) << 24) | (serial & 0xff_ffff)
}

/// Done between its start and its first connection, so that every process it ever starts inherits it.
fn mark_process(pid: u32, mark: u64) -> io::Result<()> {
    let limit = Rlimit { current: Some(mark), maximum: Some(mark) };
    prlimit(to_pid(pid), Resource::Rttime, limit).map_err(|error| context(error.into(), "mark sshd's processes"))?;
    Ok(())
}

/// The living processes that carry a mark.
fn marked(mark: u64) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| carries(pid, mark) && !is_dead(pid)).collect()
}

fn carries(pid: u32, mark: u64) -> bool {
    let Ok(limits) = fs::read_to_string(format!("/proc/{pid}/limits")) else { return false };
    let Some(limit) = limits.lines().find_map(|line| line.strip_prefix("Max realtime timeout")) else { return false };
    limit.split_whitespace().next() == Some(mark.to_string().as_str())
}

/// Whether a process only waits for its parent to ask. In a container without an init nobody ever does.
fn is_dead(pid: u32) -> bool {
    state_of(pid).is_none_or(|state| matches!(state, 'Z' | 'X'))
}

/// The letter of proc(5), of a process that is there.
fn state_of(pid: u32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // It follows the name, which may hold anything, a parenthesis too.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// `sshd`, and from OpenSSH 9.8 on `sshd-session` and `sshd-auth`.
fn is_sshd(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.starts_with("sshd"))
}

/// Kills until nothing with the mark lives: what is forked while we look is found the next time.
fn kill_marked(mark: u64) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let pids = marked(mark);
        if pids.is_empty() || Instant::now() > deadline {
            return;
        }
        pids.into_iter().for_each(|pid| send_signal(pid, Signal::KILL));
        thread::sleep(GLANCE);
    }
}

/// Whether a process is there and neither stopped nor a zombie.
fn runs_on(pid: u32) -> bool {
    state_of(pid).is_some_and(|state| !matches!(state, 'T' | 't' | 'Z' | 'X'))
}

fn send_signal(pid: u32, signal: Signal) {
    if let Some(pid) = to_pid(pid) {
        // Gone already is as good as gone now.
        let _ = kill_process(pid, signal);
    }
}

fn to_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// A directory that another user may pass through, for the keys sshd reads as the user who logs in, but not list.
fn make_dir() -> io::Result<TempDir> {
    let dir = tempfile::Builder::new().prefix("threadline-sshd-").tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711))?;
    Ok(dir)
}

fn host_key_path(dir: &Path, kind: &str) -> PathBuf {
    dir.join(format!("host_{kind}"))
}

/// Makes a key pair with ssh-keygen.
///
/// # Errors
/// When ssh-keygen is missing or fails, with what it said.
pub fn make_key(path: &Path, arguments: &[&str]) -> io::Result<()> {
    let keygen = Command::new("ssh-keygen").arg("-q").args(arguments).arg("-f").arg(path).stdin(Stdio::null()).output();
    let output =
        keygen.map_err(|error| context(error, "ssh-keygen (`apt-get install openssh-client` or `make deps`)"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("ssh-keygen {}: {}", arguments.join(" "), said.trim())))
}

fn read_log(dir: &Path) -> String {
    fs::read(dir.join("log")).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
}

/// sshd insists on being called by its absolute path; it lies where a normal user's PATH does not lead.
fn find_sshd() -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
    let mut places = usual.into_iter().chain(std::env::split_paths(&path)).map(|place| place.join("sshd"));
    places.find(|file| file.is_absolute() && file.is_file()).ok_or_else(|| {
        let message = "sshd is not installed: `apt-get install openssh-server` or `make deps`";
        io::Error::new(ErrorKind::NotFound, message)
    })
}

/// The library that answers the user database from files of ours.
///
/// # Errors
/// When it is not installed.
pub fn find_nss_wrapper() -> io::Result<PathBuf> {
    let architectures = fs::read_dir("/usr/lib").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut places = ["/usr/lib", "/usr/lib64"].into_iter().map(PathBuf::from).chain(architectures);
    places.find_map(|place| Some(place.join("libnss_wrapper.so")).filter(|file| file.is_file())).ok_or_else(|| {
        let message = "libnss_wrapper.so is not installed: `apt-get install libnss-wrapper` or `make deps`";
        io::Error::new(ErrorKind::NotFound, message)
    })
}

/// The name sshd knows us by. `USER` may say something else, or nothing.
fn own_user_name() -> io::Result<String> {
    let output =
        Command::new("id").arg("-un").stdin(Stdio::null()).output().map_err(|error| context(error, "id -un"))?;
    let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || name.is_empty() {
        return Err(io::Error::other("our user id has no name (`id -un`); give a login_user"));
    }
    Ok(name)
}

/// Whether our user may not log in: the shell of a service's account, such as nobody's, ends at once.
fn own_shell_refuses() -> bool {
    let us = getuid().as_raw().to_string();
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entry = users.lines().find(|entry| entry.split(':').nth(2) == Some(&us));
    let shell = entry.and_then(|entry| entry.rsplit(':').next()).unwrap_or_default();
    ["nologin", "false"].iter().any(|name| Path::new(shell).ends_with(name))
}

fn context(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}
