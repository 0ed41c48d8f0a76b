//! A russh server on a free port of 127.0.0.1: `threadline-test-russh HOST_KEY AUTHORIZED_KEYS`.
//!
//! Prints its port, then serves until its stdin ends. It knows three commands: `cat FILE` gives the file, `cat` gives
//! back what comes, `sha256sum` hashes what comes. Keys are exchanged anew after each MiB sent or received.

use std::borrow::Cow;
use std::io::Read;
use std::process::exit;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::{load_secret_key, PublicKey};
use russh::server::{self, Auth, Msg, Session, VerifiedPublicKey};
use russh::{cipher, Channel, ChannelId, Limits, MethodKind, MethodSet, Preferred};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const PIECE: usize = 32768;
const MIB: usize = 1 << 20;
/// All it has, the one too that it does not offer unasked.
const CIPHERS: &[cipher::Name] = &[
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_GCM,
    cipher::AES_128_GCM,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];

struct Handler {
    authorized: Arc<Vec<PublicKey>>,
    /// Opened, and not yet told what to do.
    channels: Vec<Channel<Msg>>,
}

impl server::Handler for Handler {
    type Error = russh::Error;

    async fn auth_publickey(&mut self, _user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        let known = self.authorized.iter().any(|authorized| authorized.key_data() == key.public_key.key_data());
        Ok(if known { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: server::ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.channels.push(channel);
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(&mut self, id: ChannelId, command: &[u8], session: &mut Session) -> Result<(), Self::Error> {
        let Some(at) = self.channels.iter().position(|channel| channel.id() == id) else {
            return session.channel_failure(id);
        };
        let channel = self.channels.swap_remove(at);
        let command = String::from_utf8_lossy(command).into_owned();
        session.channel_success(id)?;
        tokio::spawn(async move {
            // What goes wrong here ends the connection, and the test with it.
            if let Err(error) = serve(channel, &command).await {
                eprintln!("{command}: {error}");
            }
        });
        Ok(())
    }
}

async fn serve(mut channel: Channel<Msg>, command: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut writer = channel.make_writer();
    let mut piece = vec![0; PIECE];
    let mut status = 0;
    match command.split_whitespace().collect::<Vec<_>>()[..] {
        ["cat"] => {
            let mut reader = channel.make_reader();
            tokio::io::copy_buf(&mut tokio::io::BufReader::with_capacity(PIECE, &mut reader), &mut writer).await?;
        }
        ["cat", path] => {
            writer.write_all(&tokio::fs::read(path).await?).await?;
        }
        ["sha256sum"] => {
            let mut hash = Sha256::new();
            let mut reader = channel.make_reader();
            loop {
                match reader.read(&mut piece).await? {
                    0 => break,
                    count => hash.update(&piece[..count]),
                }
            }
            writer.write_all(format!("{}  -\n", hex::encode(hash.finalize())).as_bytes()).await?;
        }
        _ => status = 127,
    }
    writer.flush().await?;
    channel.exit_status(status).await?;
    channel.eof().await?;
    channel.close().await?;
    Ok(())
}

/// Shows on stderr each key exchange, and all warnings. The rest holds whole messages, and keys.
struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        if record.level() <= log::Level::Warn || record.args().as_str() == Some("new keys received") {
            eprintln!("{}: {}", record.target(), record.args());
        }
    }

    fn flush(&self) {}
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    log::set_logger(&Stderr)?;
    log::set_max_level(log::LevelFilter::Debug);
    let mut arguments = std::env::args().skip(1);
    let (Some(host_key), Some(authorized)) = (arguments.next(), arguments.next()) else {
        return Err("usage: threadline-test-russh HOST_KEY AUTHORIZED_KEYS".into());
    };
    let authorized = std::fs::read_to_string(authorized)?;
    let authorized = authorized.lines().map(PublicKey::from_openssh).collect::<Result<Vec<_>, _>>()?;
    let authorized = Arc::new(authorized);
    let config = server::Config {
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        keys: vec![load_secret_key(host_key, None)?],
        limits: Limits::new(MIB, MIB, Duration::from_secs(3600)),
        preferred: Preferred { cipher: Cow::Borrowed(CIPHERS), ..Preferred::default() },
        // In a key exchange russh keeps what had been sent before its client knew, and gives up at two windows, of
        // however many channels. So that this does not happen with four, their windows are larger than what they carry.
        window_size: 8 << 20,
        nodelay: true,
        ..server::Config::default()
    };
    let config = Arc::new(config);

    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    println!("{}", listener.local_addr()?.port());
    // Whoever started us holds the other end, and is gone when it ends.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        exit(0);
    });
    loop {
        let (socket, _) = listener.accept().await?;
        let (config, authorized) = (Arc::clone(&config), Arc::clone(&authorized));
        tokio::spawn(async move {
            let handler = Handler { authorized, channels: Vec::new() };
            match server::run_stream(config, socket, handler).await {
                Ok(session) => match session.await {
                    Ok(()) => {}
                    Err(error) => eprintln!("a session ended: {error}"),
                },
                Err(error) => eprintln!("no session: {error}"),
            }
        });
    }
}
