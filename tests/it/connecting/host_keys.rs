//! Whom we talk to: known hosts and policies, against a real sshd.

use std::fs;
use std::path::{Path, PathBuf};

use threadline::{
    AutoAddPolicy, Client, ClientBuilder, Error, HostKey, HostKeyError, HostName, MissingHostKeyPolicy, Phase, Verdict,
    WarningPolicy,
};

use super::ssh_keygen;
use crate::connect;
use crate::connect::PATIENCE;
use crate::sshd::{Sshd, HOST};
use crate::util::{output_within, within};

/// The tutorial's policy: trusts everybody.
struct AllowAnything;

impl MissingHostKeyPolicy for AllowAnything {
    fn missing_host_key(&self, _host: &HostName, _key: &HostKey) -> Verdict {
        Verdict::Accept
    }
}

/// A builder that knows no host but those of this file.
fn knowing(server: &Sshd, file: &Path) -> ClientBuilder {
    Client::builder(server.host())
        .port(server.port())
        .user(server.user())
        .identity(server.identity())
        .agent(false)
        .known_hosts(file)
}

fn file_with(server: &Sshd, name: &str, text: &str) -> PathBuf {
    let path = server.dir().join(name);
    fs::write(&path, text).expect("written");
    path
}

/// A key that the server does not have.
fn other_key(server: &Sshd) -> String {
    ssh_keygen(&["-t", "ed25519", "-N", "", "-f", "other"], server.dir());
    let public = fs::read_to_string(server.dir().join("other.pub")).expect("made");
    public.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

fn works(builder: ClientBuilder) {
    let client = builder.connect().unwrap_or_else(|error| panic!("{error}"));
    assert!(client.sh("true").status().expect("ran").success());
}

#[track_caller]
fn refused(builder: ClientBuilder) -> (HostKeyError, Error) {
    match builder.connect() {
        Err(Error::HostKey(why)) => ((*why).clone(), Error::HostKey(why)),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("connected"),
    }
}

fn fingerprint(server: &Sshd, kind: &str) -> String {
    let key = server.dir().join("fingerprint.pub");
    let line = server.host_keys().iter().find(|line| line.starts_with(kind)).expect("it has one");
    fs::write(&key, format!("{line}\n")).expect("written");
    let output = output_within(PATIENCE, std::process::Command::new("ssh-keygen").arg("-lf").arg(&key));
    String::from_utf8_lossy(&output.stdout).split(' ').nth(1).expect("a fingerprint").to_owned()
}

#[test]
fn an_unknown_host_is_refused_with_its_fingerprint_and_the_file() {
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let file = server.dir().join("no such file");
        let (why, error) = refused(knowing(&server, &file));
        assert!(matches!(why, HostKeyError::Unknown { .. }), "{why:?}");
        assert_eq!(error.phase(), Some(Phase::HostKey));
        let text = error.to_string();
        for part in [&fingerprint(&server, "ssh-ed25519"), &format!("[{HOST}]:{}", server.port()), "no such file"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(error.hint().expect("a hint").contains("ssh-keyscan"));
        assert!(!file.exists());
    });
}

#[test]
fn hashed_and_bracketed_lines_are_found() {
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let name = format!("[{HOST}]:{}", server.port());
        let plain = file_with(&server, "plain", &format!("{name} {}\n", server.host_keys()[0]));
        works(knowing(&server, &plain));
        ssh_keygen(&["-H", "-f", "plain"], server.dir());
        let hashed = fs::read_to_string(&plain).expect("read");
        assert!(hashed.starts_with("|1|") && !hashed.contains(HOST), "{hashed}");
        works(knowing(&server, &plain));
        // A line for the host without a port, with this very key.
        let portless = file_with(&server, "portless", &format!("{HOST} {}\n", server.host_keys()[0]));
        works(knowing(&server, &portless));
    });
}

#[test]
fn an_added_host_is_known_from_then_on() {
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let file = server.dir().join("new/known_hosts");
        works(knowing(&server, &file).missing_host_key_policy(AutoAddPolicy));
        let text = fs::read_to_string(&file).expect("written");
        assert_eq!(text, format!("[{HOST}]:{} {}\n", server.port(), server.host_keys()[0]));
        works(knowing(&server, &file));
        works(knowing(&server, &file).missing_host_key_policy(AutoAddPolicy));
        assert_eq!(fs::read_to_string(&file).expect("read"), text, "written once");
        // OpenSSH reads it, too.
        let mut ssh = server.ssh();
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", file.display())).arg("true");
        assert!(output_within(PATIENCE, &mut ssh).status.success());
    });
}

#[test]
fn a_warning_connects_and_writes_nothing() {
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let file = server.dir().join("empty");
        works(knowing(&server, &file).missing_host_key_policy(WarningPolicy));
        works(knowing(&server, &file).missing_host_key_policy(AllowAnything));
        assert!(!file.exists());
    });
}

#[test]
fn a_changed_key_is_refused_under_every_policy() {
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let changed = format!("# a comment\n[{HOST}]:{} {}\n", server.port(), other_key(&server));
        let file = file_with(&server, "changed", &changed);
        for builder in [
            knowing(&server, &file),
            knowing(&server, &file).missing_host_key_policy(AutoAddPolicy),
            knowing(&server, &file).missing_host_key_policy(WarningPolicy),
            knowing(&server, &file).missing_host_key_policy(AllowAnything),
        ] {
            let (why, error) = refused(builder);
            assert!(matches!(why, HostKeyError::Changed { line: 2, .. }), "{why:?}");
            let text = error.to_string();
            assert!(text.contains("HAS CHANGED") && text.contains(&fingerprint(&server, "ssh-ed25519")), "{text}");
            assert!(error.hint().expect("a hint").contains("remove line 2 of"));
        }
        assert_eq!(fs::read_to_string(&file).expect("read"), changed);
    });
}

#[test]
fn a_revoked_key_is_refused_even_where_it_is_known() {
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let line = format!("[{HOST}]:{} {}\n", server.port(), server.host_keys()[0]);
        let file = file_with(&server, "revoked", &format!("{line}@revoked {line}"));
        for builder in [knowing(&server, &file), knowing(&server, &file).missing_host_key_policy(AllowAnything)] {
            let (why, _) = refused(builder);
            assert!(matches!(why, HostKeyError::Revoked { line: 2, .. }), "{why:?}");
        }
    });
}

#[test]
fn the_policy_may_refuse_in_its_own_words() {
    struct NotOnMonday;
    impl MissingHostKeyPolicy for NotOnMonday {
        fn missing_host_key(&self, host: &HostName, key: &HostKey) -> Verdict {
            Verdict::RejectBecause(format!("no {} of {host} on a Monday", key.key_type()))
        }
    }
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let file = server.dir().join("empty");
        let (why, error) = refused(knowing(&server, &file).missing_host_key_policy(NotOnMonday));
        assert!(matches!(why, HostKeyError::Policy { .. }), "{why:?}");
        assert!(error.to_string().contains("no ssh-ed25519 of [127.0.0.1]:"), "{error}");
    });
}

#[test]
fn the_key_that_is_known_is_the_one_that_is_asked_for() {
    within(PATIENCE, || {
        let server = Sshd::builder().host_key_types(&["ed25519", "ecdsa", "rsa"]).start().expect("sshd");
        for key in server.host_keys() {
            let file = file_with(&server, "one", &format!("[{HOST}]:{} {key}\n", server.port()));
            let client = knowing(&server, &file).connect().unwrap_or_else(|error| panic!("{key}: {error}"));
            assert_eq!(client.host_key().to_openssh(), *key);
            assert!(client.sh("true").status().expect("ran").success());
        }
    });
}

#[test]
fn a_server_with_a_host_certificate_shows_its_plain_key() {
    within(PATIENCE, || {
        // The certificate is made of the server's own key, which is there only once it runs: a second server has both.
        let first = Sshd::start().expect("sshd");
        let dir = first.dir();
        ssh_keygen(&["-t", "ed25519", "-N", "", "-f", "ca"], dir);
        ssh_keygen(&["-t", "ed25519", "-N", "", "-f", "host"], dir);
        ssh_keygen(&["-s", "ca", "-I", "test", "-h", "-n", HOST, "host.pub"], dir);
        let server = Sshd::builder()
            .option(&format!("HostKey {}", dir.join("host").display()))
            .option(&format!("HostCertificate {}", dir.join("host-cert.pub").display()))
            .host_key_types(&[])
            .start()
            .expect("sshd");
        let public = fs::read_to_string(dir.join("host.pub")).expect("made");
        let file = file_with(&server, "plain", &format!("[{HOST}]:{} {public}", server.port()));
        let client = knowing(&server, &file).connect().unwrap_or_else(|error| panic!("{error}\n{}", server.log()));
        assert_eq!(client.algorithms().host_key, "ssh-ed25519");
        assert!(client.sh("true").status().expect("ran").success());
    });
}

#[test]
fn what_a_client_says_of_its_server_is_right() {
    within(PATIENCE, || {
        let server = Sshd::start().expect("sshd");
        let client = connect::client(&server);
        assert!(client.server_banner().starts_with("SSH-2.0-OpenSSH_"), "{}", client.server_banner());
        assert_eq!(client.host_key().fingerprint(), fingerprint(&server, "ssh-ed25519"));
        assert_eq!((client.user(), client.host().port()), (server.user(), server.port()));
        assert_eq!(client.address().to_string(), format!("{HOST}:{}", server.port()));
        assert!(client.ping(PATIENCE).expect("answered") > std::time::Duration::ZERO);
    });
}
