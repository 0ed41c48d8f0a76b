//! Who we are: passwords, keys, agents, against a real sshd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use threadline::{AuthError, Client, ClientBuilder, Error, Phase};

use crate::connect::PATIENCE;
use crate::sshd::{Sshd, PASSWORD};
use crate::util::{eventually, output_within, within};

/// A builder that has nothing to log in with but a key that the server does not know.
fn nobody(server: &Sshd) -> ClientBuilder {
    let stranger = server.dir().join("stranger");
    if !stranger.exists() {
        super::ssh_keygen(&["-t", "ed25519", "-N", "", "-f", "stranger"], server.dir());
    }
    with_key(server, &stranger)
}

fn with_key(server: &Sshd, key: &Path) -> ClientBuilder {
    Client::builder(server.host())
        .port(server.port())
        .user(server.user())
        .identity(key)
        .agent(false)
        .known_hosts(server.known_hosts())
}

#[track_caller]
fn works(builder: ClientBuilder) {
    let client = builder.connect().unwrap_or_else(|error| panic!("{error}"));
    assert!(client.sh("true").status().expect("ran").success());
}

#[track_caller]
fn refused(builder: ClientBuilder) -> AuthError {
    match builder.connect() {
        Err(Error::Auth(why)) => {
            assert_eq!(Error::Auth(why.clone()).phase(), Some(Phase::Auth));
            *why
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("logged in"),
    }
}

#[test]
fn a_password_gets_in_and_a_wrong_one_does_not() {
    within(PATIENCE, || {
        let server = Sshd::builder().password().start().expect("sshd");
        works(nobody(&server).password(PASSWORD));

        let why = refused(nobody(&server).password("wrong horse"));
        let tried: Vec<_> = why.attempts.iter().map(|a| (a.method.as_str(), a.outcome.as_str())).collect();
        assert_eq!(tried, [("publickey", "refused by the server"), ("password", "refused by the server")]);
        assert_eq!(why.server_accepts, ["publickey", "password"]);
        let text = why.to_string();
        assert!(text.contains("SHA256:") && text.contains("stranger"), "{text}");
        assert!(text.ends_with("(the server accepts: publickey, password)"), "{text}");
        assert!(!text.contains("horse") && !format!("{why:?}").contains("horse"), "{text}");
    });
}

#[test]
fn the_error_says_what_the_server_would_accept() {
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let why = refused(nobody(&server).password("whatever"));
        assert_eq!(why.server_accepts, ["publickey"]);
        assert_eq!(why.attempts.len(), 1, "{why}");
        let why = refused(with_key(&server, Path::new("/nonexistent/key")));
        assert!(why.attempts[0].outcome.contains("cannot read the key"), "{why}");
    });
}

#[test]
fn a_passphrase_opens_a_key() {
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let key = server.add_identity("locked", &["-t", "ed25519", "-N", "open sesame"]).expect("made");
        works(with_key(&server, &key).passphrase(|_| Some("open sesame".into())));

        let why = refused(with_key(&server, &key).passphrase(|_| Some("open barley".into())));
        assert_eq!(why.attempts[0].outcome, "wrong passphrase, or the file is damaged", "{why}");
        let why = refused(with_key(&server, &key));
        assert_eq!(why.attempts[0].outcome, "the key is encrypted and no passphrase was given", "{why}");
        let why = refused(with_key(&server, &key).passphrase(|_| None));
        assert_eq!(why.attempts[0].outcome, "the key is encrypted and no passphrase was given", "{why}");

        // A key without a passphrase asks for none, and the question names the file.
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let expected = key.clone();
        let both = with_key(&server, &server.identity()).identity(&key).passphrase(move |path| {
            assert_eq!(path, expected);
            count.fetch_add(1, Ordering::SeqCst);
            None
        });
        works(both);
        assert_eq!(asked.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn every_kind_of_key_that_ssh_keygen_makes_gets_in() {
    const KINDS: [&[&str]; 5] = [
        &["-t", "rsa", "-b", "2048"],
        &["-t", "ecdsa", "-b", "256"],
        &["-t", "ecdsa", "-b", "384"],
        &["-t", "ecdsa", "-b", "521"],
        &["-t", "ed25519"],
    ];
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let mut failures = Vec::new();
        for (number, kind) in KINDS.iter().enumerate() {
            let name = format!("key-{number}");
            let key = server.add_identity(&name, &[*kind, &["-N", ""]].concat()).expect("made");
            // ssh-keygen keeps Ed25519 keys in its own format whatever it is asked for.
            let formats: &[&str] = if kind[1] == "ed25519" { &["RFC4716"] } else { &["RFC4716", "PEM", "PKCS8"] };
            for (format, passphrase) in formats.iter().flat_map(|format| [(format, ""), (format, "secret words")]) {
                let copy = server.dir().join(format!("{name}-{format}-{}", passphrase.len()));
                fs::copy(&key, &copy).expect("copied");
                let path = copy.to_str().expect("a plain name");
                // Without -m it is OpenSSH's own format.
                let wanted: &[&str] = if *format == "RFC4716" { &[] } else { &["-m", format] };
                let change = ["-p", "-P", "", "-N", passphrase, "-a", "1", "-f", path];
                super::ssh_keygen(&[&change, wanted].concat(), server.dir());
                let builder = with_key(&server, &copy).passphrase(move |_| Some(passphrase.into()));
                if let Err(error) = builder.connect() {
                    failures.push(format!("{kind:?} as {format}, passphrase '{passphrase}': {error}"));
                }
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    });
}

/// `ssh -Q cipher`: what `ssh-keygen -Z` takes.
const KEY_CIPHERS: [&str; 10] = [
    "3des-cbc",
    "aes128-cbc",
    "aes192-cbc",
    "aes256-cbc",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
];

/// A copy of a key that lets us in, encrypted with `cipher` and the passphrase "open sesame".
fn locked_with(cipher: &str, key: &Path) -> PathBuf {
    let copy = key.with_extension(cipher.split('@').next().expect("a name"));
    fs::copy(key, &copy).expect("copied");
    let path = copy.to_str().expect("a plain name");
    let change = ["-p", "-P", "", "-N", "open sesame", "-a", "1", "-Z", cipher, "-f", path];
    super::ssh_keygen(&change, key.parent().expect("a directory"));
    copy
}

#[test]
fn a_key_locked_with_any_cipher_gets_in_and_a_wrong_passphrase_is_told() {
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let key = server.add_identity("ed25519", &["-t", "ed25519", "-N", ""]).expect("made");
        let mut failures = Vec::new();
        for cipher in KEY_CIPHERS {
            let copy = locked_with(cipher, &key);
            let builder = with_key(&server, &copy).passphrase(|_| Some("open sesame".into()));
            if let Err(error) = builder.connect() {
                failures.push(format!("{cipher}: {error}"));
            }
            let why = refused(with_key(&server, &copy).passphrase(|_| Some("open barley".into())));
            if why.attempts[0].outcome != "wrong passphrase, or the file is damaged" {
                failures.push(format!("{cipher}, wrong passphrase: {why}"));
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    });
}

#[test]
fn the_other_kinds_of_keys_open_with_any_cipher_too() {
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let keys = [("ecdsa", "256"), ("rsa", "2048")]
            .map(|(kind, bits)| server.add_identity(kind, &["-t", kind, "-b", bits, "-N", ""]).expect("made"));
        for (number, cipher) in KEY_CIPHERS.into_iter().enumerate() {
            let copy = locked_with(cipher, &keys[number % keys.len()]);
            works(with_key(&server, &copy).passphrase(|_| Some("open sesame".into())));
        }
        for key in &keys {
            for cipher in ["3des-cbc", "aes256-gcm@openssh.com"] {
                let copy = locked_with(cipher, key);
                works(with_key(&server, &copy).passphrase(|_| Some("open sesame".into())));
            }
        }
    });
}

#[test]
fn a_key_locked_with_an_unknown_cipher_says_how_to_change_it() {
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let key = server.dir().join("unknown");
        // PROTOCOL.key, as far as it is in the clear.
        let mut bytes = b"openssh-key-v1\0".to_vec();
        for string in [b"blowfish-cbc".as_slice(), b"bcrypt", b"", b"\0\0\0\x01", b"public"] {
            if string != b"\0\0\0\x01" {
                bytes.extend(u32::try_from(string.len()).expect("short").to_be_bytes());
            }
            bytes.extend(string);
        }
        let body = crate::rogue::base64(&bytes);
        let text = format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{body}\n-----END OPENSSH PRIVATE KEY-----\n");
        fs::write(&key, text).expect("written");
        let why = refused(with_key(&server, &key).passphrase(|_| Some("open sesame".into())));
        let expected = "the key is encrypted with blowfish-cbc, which is not known here; \
                        encrypt it anew with ssh-keygen -p -Z aes256-ctr";
        assert_eq!(why.attempts[0].outcome, expected);
    });
}

#[test]
fn too_many_failures_are_listed() {
    within(PATIENCE, || {
        let server = Sshd::builder().option("MaxAuthTries 2").start().expect("sshd");
        let mut builder = nobody(&server);
        for name in ["b", "c", "d"] {
            super::ssh_keygen(&["-t", "ed25519", "-N", "", "-f", name], server.dir());
            builder = builder.identity(server.dir().join(name));
        }
        let why = refused(builder);
        let text = why.to_string();
        assert!(text.contains("Too many authentication failures"), "{text}\n{}", server.log());
        assert!(why.attempts.len() >= 2, "{text}");
        assert_eq!(why.attempts[0].outcome, "refused by the server");
    });
}

#[test]
fn a_server_that_wants_both_gets_both() {
    within(PATIENCE, || {
        let server =
            Sshd::builder().password().option("AuthenticationMethods publickey,password").start().expect("sshd");
        works(with_key(&server, &server.identity()).password(PASSWORD));
        let why = refused(with_key(&server, &server.identity()).password("wrong"));
        assert_eq!(why.attempts.last().expect("one").method, "password");
        assert_eq!(why.server_accepts, ["password"], "{why}");
    });
}

#[test]
fn two_keys_are_asked_for_in_turn() {
    within(PATIENCE, || {
        let server = Sshd::builder().option("AuthenticationMethods publickey,publickey").start().expect("sshd");
        let second = server.add_identity("second", &["-t", "ed25519", "-N", ""]).expect("made");
        works(with_key(&server, &server.identity()).identity(second));
    });
}

/// An agent of the test's own.
struct SshAgent {
    process: Child,
    socket: PathBuf,
}

impl SshAgent {
    fn start(server: &Sshd) -> SshAgent {
        let socket = server.dir().join("agent");
        let mut command = Command::new("ssh-agent");
        command.arg("-D").arg("-a").arg(&socket).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().expect("ssh-agent");
        eventually(PATIENCE, "the agent listens", || socket.exists());
        SshAgent { process, socket }
    }

    fn add(&self, key: &Path) {
        self.tell(&[key.to_str().expect("a plain name")]);
    }

    fn tell(&self, arguments: &[&str]) {
        let mut command = Command::new("ssh-add");
        command.arg("-q").args(arguments).env("SSH_AUTH_SOCK", &self.socket);
        let output = output_within(PATIENCE, &mut command);
        assert!(output.status.success(), "ssh-add {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn each_kind_of_key_gets_in_through_an_agent() {
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let agent = SshAgent::start(&server);
        for kind in ["ed25519", "ecdsa", "rsa"] {
            let key = server.add_identity(&format!("agent-{kind}"), &["-t", kind, "-N", ""]).expect("made");
            agent.tell(&["-D"]);
            agent.add(&key);
            works(nobody(&server).agent_socket(&agent.socket));
        }
    });
}

#[test]
fn what_an_agent_cannot_do_is_listed() {
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let agent = SshAgent::start(&server);
        super::ssh_keygen(&["-t", "ed25519", "-N", "", "-C", "a \u{e4} comment", "-f", "unwanted"], server.dir());
        agent.add(&server.dir().join("unwanted"));
        let why = refused(nobody(&server).agent_socket(&agent.socket));
        let last = why.attempts.last().expect("one");
        assert!(last.with.starts_with("agent key 'a ä comment' SHA256:"), "{why}");
        assert_eq!(last.outcome, "refused by the server");

        let why = refused(nobody(&server).agent_socket(server.dir().join("nothing here")));
        let last = why.attempts.last().expect("one");
        assert!(last.outcome.contains("cannot reach the agent"), "{why}");
    });
}
