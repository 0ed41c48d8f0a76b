//! What threadline has to do in every build, however it was compiled and linked.

pub mod whose;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::time::Duration;
use std::{env, thread};

use threadline::{Client, Stdio};

/// Anything that went wrong.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The ciphers that are tried. CBC is left out: sshd does not allow it by default.
pub const CIPHERS: [&str; 6] = [
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
];

/// Sent and received with each cipher: more than a window, so that both sides have to grant anew.
const BYTES: usize = 3 << 20;

/// For everything that waits.
const PATIENCE: Duration = Duration::from_secs(60);

/// The throw-away sshd that `with-sshd` has started for this process.
#[derive(Debug)]
pub struct Server {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub identity: PathBuf,
    pub known_hosts: PathBuf,
    /// Files put here go when the server goes.
    pub dir: PathBuf,
    /// The only cipher that it allows, if it was told so.
    pub cipher: Option<String>,
}

impl Server {
    pub fn from_env() -> Result<Server, Failure> {
        let get = |name: &str| env::var(name).map_err(|error| format!("{name}: {error}; run this below with-sshd"));
        Ok(Server {
            host: get("SSHD_HOST")?,
            port: get("SSHD_PORT")?.parse()?,
            user: get("SSHD_USER")?,
            identity: get("SSHD_IDENTITY")?.into(),
            known_hosts: get("SSHD_KNOWN_HOSTS")?.into(),
            dir: get("SSHD_DIR")?.into(),
            cipher: env::var("SSHD_CIPHER").ok(),
        })
    }

    /// A connection that uses this cipher in both directions.
    pub fn connect(&self, cipher: &str) -> Result<Client, Failure> {
        let client = Client::builder(&self.host)
            .port(self.port)
            .user(&self.user)
            .identity(&self.identity)
            .agent(false)
            .known_hosts(&self.known_hosts)
            .ciphers([cipher])
            .command_timeout(PATIENCE)
            .connect()?;
        let used = client.algorithms();
        whose::check(cipher)?;
        if used.cipher_in != cipher || used.cipher_out != cipher {
            return Err(format!("asked for {cipher} and got {} and {}", used.cipher_in, used.cipher_out).into());
        }
        Ok(client)
    }
}

/// Sends so much noise through a remote `cat` and compares what comes back.
pub fn echo(client: &Client, bytes: usize) -> Result<(), Failure> {
    let sent = noise(bytes);
    let mut child = client.command("cat").stdin(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().ok_or("no stdin")?;
    let mut stdout = child.stdout.take().ok_or("no stdout")?;
    let mut received = Vec::with_capacity(bytes);
    thread::scope(|scope| -> Result<(), Failure> {
        let writer = scope.spawn(|| {
            stdin.write_all(&sent)?;
            stdin.finish(PATIENCE).map_err(std::io::Error::other)
        });
        stdout.read_to_end(&mut received)?;
        Ok(writer.join().map_err(|_| "the writer panicked")??)
    })?;
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("cat: {status}").into());
    }
    if received != sent {
        let same = received.iter().zip(&sent).take_while(|(a, b)| a == b).count();
        return Err(format!("{} of {bytes} bytes came back, right up to byte {same}", received.len()).into());
    }
    Ok(())
}

/// Bytes that no compressor likes, the same each time (xorshift64).
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Everything: is our packet layer in place, are the ciphers whose they should be, and does each cipher carry data both ways? Returns what was done.
pub fn check() -> Result<String, Failure> {
    threadline::check_seam()?;
    let server = Server::from_env()?;
    for cipher in CIPHERS {
        let failed = |error: Failure| format!("{cipher}: {error}");
        let client = server.connect(cipher).map_err(failed)?;
        echo(&client, BYTES).map_err(failed)?;
        client.close(PATIENCE).map_err(|error| failed(error.into()))?;
    }
    Ok(format!("{} ciphers, {} MiB each way with each, encrypted by {}", CIPHERS.len(), BYTES >> 20, whose::EXPECTED))
}

/// [`check`] for a C program: says on stdout what was done or on stderr what failed, and returns `main`'s exit code.
pub fn check_for_c() -> i32 {
    match check() {
        Ok(done) => {
            println!("{done}");
            0
        }
        Err(error) => {
            eprintln!("{error}");
            1
        }
    }
}
