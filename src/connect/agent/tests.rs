use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::process::{Child, Command, Stdio};
use std::thread;

use base64::engine::general_purpose::STANDARD;
use base64::Engine;
use proptest::prelude::*;
use sha2::{Digest, Sha512};
use tempfile::TempDir;

use super::*;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

fn kind(error: &Error) -> io::ErrorKind {
    io::Error::from(error.clone()).kind()
}

/// An agent that has said `answers` before it was asked, and says nothing more.
fn agent_that_says(answers: &[u8]) -> (Agent, UnixStream) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(answers).unwrap();
    theirs.shutdown(Shutdown::Write).unwrap();
    (Agent::over(ours, Path::new("/run/fake"), soon()), theirs)
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    put_string(&mut message, &[&[kind], body].concat());
    message
}

fn strings(parts: &[&[u8]]) -> Vec<u8> {
    let mut body = Vec::new();
    parts.iter().for_each(|part| put_string(&mut body, part));
    body
}

fn identity() -> Identity {
    Identity { blob: b"blob".to_vec(), comment: "key".into() }
}

#[test]
fn the_request_is_as_in_the_draft_and_the_answer_is_understood() {
    let signature = strings(&[b"rsa-sha2-512", b"signature"]);
    let list = [&2u32.to_be_bytes()[..], &strings(&[b"one", b"first key", b"two", b"\xff"])].concat();
    let answers = [message(IDENTITIES_ANSWER, &list), message(SIGN_RESPONSE, &strings(&[&signature]))].concat();
    let (mut agent, mut theirs) = agent_that_says(&answers);
    let identities = agent.identities().unwrap();
    assert_eq!(identities[0], Identity { blob: b"one".to_vec(), comment: "first key".into() });
    assert_eq!(identities[1], Identity { blob: b"two".to_vec(), comment: "\u{fffd}".into() });
    assert_eq!(agent.sign(&identities[0], b"data", SSH_AGENT_RSA_SHA2_512).unwrap(), signature);
    assert_eq!(signature_parts(&signature).unwrap(), ("rsa-sha2-512", &strings(&[b"signature"])[..]));

    drop(agent);
    let mut asked = Vec::new();
    theirs.read_to_end(&mut asked).unwrap();
    let sign = [strings(&[b"one", b"data"]), 4u32.to_be_bytes().to_vec()].concat();
    assert_eq!(asked, [message(REQUEST_IDENTITIES, b""), message(SIGN_REQUEST, &sign)].concat());
}

#[test]
fn bad_answers_are_errors_that_name_the_socket() {
    let huge = ((MAX_MESSAGE + 1) as u32).to_be_bytes();
    let short_list = [&3u32.to_be_bytes()[..], &strings(&[b"one", b"key"])].concat();
    let table = [
        (vec![], "closed the connection"),
        (vec![0, 0], "closed the connection"),
        (vec![0, 0, 0, 9, 12], "closed the connection"),
        (vec![0, 0, 0, 0], "impossible length"),
        (huge.to_vec(), "impossible length"),
        (vec![255; 4], "impossible length"),
        (message(FAILURE, b""), "it refused"),
        (message(SIGN_RESPONSE, b""), "no answer to that question"),
        (message(IDENTITIES_ANSWER, b""), "malformed"),
        (message(IDENTITIES_ANSWER, &short_list), "malformed"),
        (message(IDENTITIES_ANSWER, &u32::MAX.to_be_bytes()), "malformed"),
    ];
    for (answer, expected) in table {
        let (mut agent, _theirs) = agent_that_says(&answer);
        let error = agent.identities().unwrap_err().to_string();
        assert!(error.starts_with("cannot list the keys of the agent at /run/fake: "), "{answer:?}: {error}");
        assert!(error.contains(expected), "{answer:?}: {error}");
    }
}

#[test]
fn bad_signatures_are_errors() {
    let table = [
        (strings(&[]), "malformed"),
        (strings(&[b""]), "malformed"),
        (strings(&[&strings(&[b"", b"signature"])]), "malformed"),
        (strings(&[&strings(&[b"\xff", b"signature"])]), "malformed"),
        (strings(&[&strings(&[b"ssh-rsa", b"signature"])]), "too old to sign with RSA and SHA-2"),
    ];
    for (body, expected) in table {
        let (mut agent, _theirs) = agent_that_says(&message(SIGN_RESPONSE, &body));
        let error = agent.sign(&identity(), b"data", SSH_AGENT_RSA_SHA2_256).unwrap_err();
        assert!(error.to_string().contains(expected), "{body:?}: {error}");
    }
}

#[test]
fn a_refusal_leaves_the_agent_usable_and_a_broken_exchange_does_not() {
    let answers = [message(FAILURE, b""), message(IDENTITIES_ANSWER, &[0; 4])].concat();
    let (mut agent, _theirs) = agent_that_says(&answers);
    assert_eq!(kind(&agent.sign(&identity(), b"data", 0).unwrap_err()), io::ErrorKind::PermissionDenied);
    assert_eq!(agent.identities().unwrap(), []);
    assert_eq!(kind(&agent.identities().unwrap_err()), io::ErrorKind::UnexpectedEof);
    assert_eq!(kind(&agent.identities().unwrap_err()), io::ErrorKind::NotConnected);
}

#[test]
fn what_is_too_long_to_sign_is_refused_before_it_is_sent() {
    let (mut agent, mut theirs) = agent_that_says(b"");
    let error = agent.sign(&identity(), &vec![0; MAX_MESSAGE], 0).unwrap_err();
    assert_eq!(kind(&error), io::ErrorKind::InvalidInput);
    drop(agent);
    assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
}

#[test]
fn an_agent_that_never_answers_is_given_up() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let mut agent = Agent::over(ours, Path::new("/run/fake"), Instant::now() + Duration::from_millis(50));
    let error = agent.identities().unwrap_err();
    assert_eq!(kind(&error), io::ErrorKind::TimedOut);
    assert!(error.to_string().contains("/run/fake: no answer in time"), "{error}");
}

#[test]
fn an_agent_that_never_reads_is_given_up() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&ours, 4096).unwrap();
    let mut agent = Agent::over(ours, Path::new("/run/fake"), Instant::now() + Duration::from_millis(50));
    let error = agent.sign(&identity(), &vec![0; 200 << 10], 0).unwrap_err();
    assert_eq!(kind(&error), io::ErrorKind::TimedOut);
}

#[test]
fn an_agent_that_trickles_is_given_up() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let trickle = thread::spawn(move || {
        theirs.write_all(&(MAX_MESSAGE as u32).to_be_bytes()).unwrap();
        // one byte at a time, until the other end is closed
        while theirs.write_all(&[0]).is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
    });
    let mut agent = Agent::over(ours, Path::new("/run/fake"), Instant::now() + Duration::from_millis(50));
    assert_eq!(kind(&agent.identities().unwrap_err()), io::ErrorKind::TimedOut);
    drop(agent);
    trickle.join().unwrap();
}

#[test]
fn an_agent_that_accepts_nobody_is_given_up() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("agent");
    let address = SocketAddrUnix::new(&path).unwrap();
    let listener = cloexec_socket().unwrap();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let mut queue = Vec::new();
    let full = loop {
        let socket = cloexec_socket().unwrap();
        rustix::io::ioctl_fionbio(&socket, true).unwrap();
        match rustix::net::connect(&socket, &address) {
            Ok(()) => queue.push(socket),
            Err(e) => break e,
        }
    };
    assert_eq!(full, Errno::AGAIN);
    let error = Agent::connect(&path, Instant::now() + Duration::from_millis(50)).unwrap_err();
    assert_eq!(kind(&error), io::ErrorKind::TimedOut);
    assert!(error.to_string().starts_with(&format!("cannot reach the agent at {}", path.display())), "{error}");
}

#[test]
fn a_socket_that_is_not_there_is_named() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("agent");
    let error = Agent::connect(&missing, soon()).unwrap_err();
    assert_eq!(kind(&error), io::ErrorKind::NotFound);
    assert!(error.to_string().contains(missing.to_str().unwrap()), "{error}");
    let long = dir.path().join("x".repeat(200));
    assert!(matches!(Agent::connect(&long, soon()), Err(Error::Io { .. })));
    let error = Agent::connect(&missing, Instant::now()).unwrap_err();
    assert_eq!(kind(&error), io::ErrorKind::TimedOut);
}

/// OpenSSH's ssh-agent at a socket of its own; killed at the end.
struct RealAgent {
    child: Child,
    dir: TempDir,
}

impl RealAgent {
    fn start() -> RealAgent {
        let dir = TempDir::new().unwrap();
        let mut child = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(dir.path().join("agent"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("ssh-agent must be installed for the tests");
        // it says where it listens once it does
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert!(line.contains("SSH_AUTH_SOCK"), "{line:?}");
        RealAgent { child, dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    fn add(&self, key_type: &str) {
        let key = self.dir.path().join(key_type);
        let run = |command: &mut Command| {
            let output = command.env("SSH_AUTH_SOCK", self.path()).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        run(Command::new("ssh-keygen").args(["-q", "-t", key_type, "-C", key_type, "-N", "", "-f"]).arg(&key));
        run(Command::new("ssh-add").arg("-q").arg(&key));
    }

    /// Locks it with a passphrase (draft-ietf-sshm-ssh-agent, "Locking and unlocking an agent").
    fn lock(&self) {
        let stream = UnixStream::connect(self.path()).unwrap();
        let request = [&[22], &strings(&[b"secret"])[..]].concat();
        assert_eq!(exchange(&stream, &request, soon()).unwrap(), [6]);
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for RealAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lets ssh-keygen check a signature, which must be over `to_be_signed(text)`.
fn verify(dir: &Path, identity: &Identity, text: &[u8], signature: &[u8]) {
    let signed = [b"SSHSIG\0\0\0\x01", &strings(&[&identity.blob, b"test", b"", b"sha512", signature])[..]].concat();
    let path = dir.join("text.sig");
    let armour = format!(
        "-----BEGIN SSH SIGNATURE-----\n{}\n-----END SSH SIGNATURE-----\n",
        STANDARD
            .encode(signed)
            .as_bytes()
            .chunks(70)
            .map(|l| std::str::from_utf8(l).unwrap())
            .collect::<Vec<_>>()
            .join("\n")
    );
    fs::write(&path, armour).unwrap();
    let mut check = Command::new("ssh-keygen")
        .args(["-Y", "check-novalidate", "-n", "test", "-s"])
        .arg(&path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("ssh-keygen must be installed for the tests");
    check.stdin.take().unwrap().write_all(text).unwrap();
    let output = check.wait_with_output().unwrap();
    assert!(output.status.success(), "{}: {output:?}", identity.comment);
}

/// What an SSHSIG signature signs (OpenSSH's PROTOCOL.sshsig).
fn to_be_signed(text: &[u8]) -> Vec<u8> {
    [b"SSHSIG", &strings(&[b"test", b"", b"sha512", &Sha512::digest(text)])[..]].concat()
}

#[test]
fn openssh_s_agent_lists_its_keys_and_ssh_keygen_accepts_their_signatures() {
    let real = RealAgent::start();
    let mut agent = Agent::connect(&real.path(), soon()).unwrap();
    assert_eq!(agent.identities().unwrap(), []);
    ["ed25519", "ecdsa", "rsa"].iter().for_each(|key_type| real.add(key_type));

    let identities = agent.identities().unwrap();
    let comments: Vec<_> = identities.iter().map(|identity| identity.comment.as_str()).collect();
    assert_eq!(comments, ["ed25519", "ecdsa", "rsa"]);
    let text = b"a message";
    let table = [
        (0, 0, "ssh-ed25519"),
        (1, 0, "ecdsa-sha2-nistp256"),
        (2, SSH_AGENT_RSA_SHA2_256, "rsa-sha2-256"),
        (2, SSH_AGENT_RSA_SHA2_512, "rsa-sha2-512"),
    ];
    for (index, flags, algorithm) in table {
        let signature = agent.sign(&identities[index], &to_be_signed(text), flags).unwrap();
        assert_eq!(signature_parts(&signature).unwrap().0, algorithm);
        verify(real.dir.path(), &identities[index], text, &signature);
    }
    let error = agent.sign(&identity(), b"data", 0).unwrap_err();
    assert!(error.to_string().contains("it refused"), "{error}");
}

#[test]
fn a_locked_agent_has_no_keys_and_signs_nothing() {
    let real = RealAgent::start();
    real.add("ed25519");
    let mut agent = Agent::connect(&real.path(), soon()).unwrap();
    let identity = agent.identities().unwrap().remove(0);
    real.lock();
    assert_eq!(agent.identities().unwrap(), []);
    assert_eq!(kind(&agent.sign(&identity, b"data", 0).unwrap_err()), io::ErrorKind::PermissionDenied);
}

#[test]
fn a_dead_agent_is_an_error() {
    let mut real = RealAgent::start();
    let mut agent = Agent::connect(&real.path(), soon()).unwrap();
    assert_eq!(agent.identities().unwrap(), []);
    real.kill();
    agent.identities().unwrap_err();
    let error = Agent::connect(&real.path(), soon()).unwrap_err();
    assert_eq!(kind(&error), io::ErrorKind::ConnectionRefused);
}

proptest! {
    #[test]
    fn no_bytes_panic_or_hang(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = agent_that_says(&bytes).0.identities();
        let _ = signature_parts(&bytes);
    }

    #[test]
    fn no_answer_panics_or_hangs(kind in 10u8..16, body in proptest::collection::vec(0u8..6, 0..300), flags in 0u32..8) {
        let _ = agent_that_says(&message(kind, &body)).0.identities();
        let _ = agent_that_says(&message(kind, &body)).0.sign(&identity(), b"data", flags);
    }

    #[test]
    fn every_list_is_read_as_it_was_written(list in proptest::collection::vec((any::<Vec<u8>>(), ".{0,20}"), 0..8)) {
        let mut body = (list.len() as u32).to_be_bytes().to_vec();
        list.iter().for_each(|(blob, comment)| body.extend(strings(&[blob, comment.as_bytes()])));
        let expected: Vec<_> = list.into_iter().map(|(blob, comment)| Identity { blob, comment }).collect();
        let (mut agent, _theirs) = agent_that_says(&message(IDENTITIES_ANSWER, &body));
        prop_assert_eq!(agent.identities().unwrap(), expected);
    }
}
