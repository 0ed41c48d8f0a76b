//! Dropbear, a process for each connection: we listen and accept, as inetd does, so no port is guessed and nothing
//! outlives its connection.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crate::sshd;

/// Who logs in. Dropbear takes home directory and shell from the user database, which nss_wrapper answers from a file of
/// ours.
pub const USER: &str = "tester";

/// Listens and starts a Dropbear for each connection, until dropped.
pub struct Dropbear {
    port: u16,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Dropbear {
    /// Lets in the key in `dir`; the second value is the public host key.
    pub fn start(dir: &Path) -> (Dropbear, String) {
        let program = find();
        let host_key = make_host_key(dir);
        make_account(dir).unwrap();
        let library = sshd::find_nss_wrapper().unwrap_or_else(|error| panic!("{error}"));
        let log = File::create(dir.join("log")).unwrap();
        let dir = dir.to_owned();
        let start = move |socket: TcpStream| {
            let socket = OwnedFd::from(socket);
            let mut command = Command::new(&program);
            // By way of inetd, no message of the day, no passwords. Its log goes to syslog: it refuses a file here.
            command.args(["-i", "-m", "-s", "-r"]).arg(dir.join("host_key"));
            command.env("LD_PRELOAD", &library);
            command.env("NSS_WRAPPER_PASSWD", dir.join("passwd")).env("NSS_WRAPPER_GROUP", dir.join("group"));
            command.stdin(socket.try_clone()?).stdout(socket).stderr(log.try_clone()?).spawn()
        };

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let over = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&over);
        let thread = thread::spawn(move || serve(&listener, &until, start));
        (Dropbear { port, over, thread: Some(thread) }, host_key)
    }

    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Dropbear {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes it out of its accept.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(Err(reason)) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the thread that accepts for Dropbear failed: {reason:?}");
        }
    }
}

fn serve(listener: &TcpListener, over: &AtomicBool, start: impl Fn(TcpStream) -> io::Result<Child>) {
    let mut children = Vec::new();
    loop {
        let (socket, _) = listener.accept().expect("a connection");
        if over.load(Ordering::SeqCst) {
            break;
        }
        children.push(start(socket).expect("a dropbear"));
    }
    for mut child in children {
        // One that has ended is as good as one that is killed.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// It lies where a normal user's PATH does not lead.
fn find() -> PathBuf {
    let places = ["/usr/sbin/dropbear", "/usr/local/sbin/dropbear", "/usr/bin/dropbear"].map(PathBuf::from);
    let found = places.into_iter().find(|file| file.is_file());
    found.expect("dropbear is not installed: `apt-get install dropbear-bin` or `make deps`")
}

/// Dropbear has a format of its own for private keys.
fn make_host_key(dir: &Path) -> String {
    let output = Command::new("dropbearkey").args(["-t", "ed25519", "-f"]).arg(dir.join("host_key")).output();
    let output = output.expect("dropbearkey: `apt-get install dropbear-bin` or `make deps`");
    let said = String::from_utf8_lossy(&output.stdout);
    let public = said.lines().find(|line| line.starts_with("ssh-ed25519 "));
    let public = public.unwrap_or_else(|| panic!("dropbearkey: {said}{}", String::from_utf8_lossy(&output.stderr)));
    public.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// A user database in which [`USER`] has our user id and a home below `dir`.
fn make_account(dir: &Path) -> io::Result<()> {
    let home = dir.join("home");
    let ssh = home.join(".ssh");
    fs::create_dir_all(&ssh)?;
    fs::copy(dir.join("id_ed25519.pub"), ssh.join("authorized_keys"))?;
    // Dropbear takes no key that others might have written.
    for path in [dir, &home, &ssh] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))?;
    }
    fs::set_permissions(ssh.join("authorized_keys"), fs::Permissions::from_mode(0o600))?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    // The first entry of a name or an id is the one that counts, so ours comes first.
    let entry = format!("{USER}:x:{uid}:{gid}::{}:/bin/sh\n", home.display());
    fs::write(dir.join("passwd"), entry + &fs::read_to_string("/etc/passwd")?)?;
    fs::write(dir.join("group"), format!("{USER}:x:{gid}:\n") + &fs::read_to_string("/etc/group")?)
}
