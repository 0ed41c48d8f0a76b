//! Authentication (RFC 4252): methods in order, and the list of what was tried.

use std::collections::HashSet;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ssh2::Session;
use zeroize::Zeroizing;

use super::agent::{signature_parts, Agent, Identity, SSH_AGENT_RSA_SHA2_256, SSH_AGENT_RSA_SHA2_512};
use super::handshake::{drive, session_call, Deadline, Failure};
use super::host_key::fingerprint;
use super::key_file::{self, KeyFile};
use crate::error::{escape, AuthAttempt, AuthError, Error, Phase, Result};
use crate::transport::cipher;
use crate::transport::packet::Packets;

/// Asked for the passphrase of a key file.
pub(crate) type PassphraseFn = Arc<dyn Fn(&Path) -> Option<String> + Send + Sync>;

/// What to prove ourselves with.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    /// Key files, tried in order. A file that was named must exist; a default one need not.
    pub identities: Vec<PathBuf>,
    pub default_identities: bool,
    pub passphrase: Option<PassphraseFn>,
    pub agent: bool,
    /// Where the agent listens, in place of SSH_AUTH_SOCK.
    pub agent_socket: Option<PathBuf>,
    pub password: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("identities", &self.identities)
            .field("agent", &self.agent)
            .field("password", &self.password.is_some())
            .finish_non_exhaustive()
    }
}

/// Proves to the server that we are `user`; returns how.
pub(crate) fn authenticate(
    packets: &mut Packets,
    user: &str,
    host: &str,
    credentials: &Credentials,
    deadline: Deadline,
) -> Result<AuthAttempt> {
    let user_c = CString::new(user).map_err(|_| Error::invalid("the user name has a NUL in it"))?;
    let mut attempts = Attempts {
        packets,
        user,
        user_c,
        deadline,
        list: Vec::new(),
        tried_files: HashSet::new(),
        tried_keys: HashSet::new(),
    };
    if let Some(accepted) = attempts.named_key(credentials).map_err(|f| attempts.explain(f, host))? {
        return Ok(accepted);
    }
    let mut tried = HashSet::new();
    loop {
        let Some(accepted) = attempts.accepted_methods().map_err(|f| attempts.explain(f, host))? else {
            return Ok(AuthAttempt::new("none", "", ACCEPTED));
        };
        // After a partial success (RFC 4252 §5.1) the server names methods that it did not name before.
        let next = ["publickey", "password"].into_iter().find(|&m| accepted.iter().any(|a| a == m) && tried.insert(m));
        let Some(method) = next else {
            return Err(AuthError::new(user, host, attempts.list, accepted).into());
        };
        let done = match method {
            "publickey" => attempts.public_keys(credentials),
            _ => attempts.password(credentials),
        };
        if let Some(accepted) = done.map_err(|f| attempts.explain(f, host))? {
            return Ok(accepted);
        }
    }
}

/// The outcome of the attempt that succeeded.
const ACCEPTED: &str = "accepted";

struct Attempts<'p> {
    packets: &'p mut Packets,
    user: &'p str,
    user_c: CString,
    deadline: Deadline,
    list: Vec<AuthAttempt>,
    tried_files: HashSet<PathBuf>,
    tried_keys: HashSet<Vec<u8>>,
}

/// The attempt, if it got us in.
type Outcome = std::result::Result<Option<AuthAttempt>, Failure>;

impl Attempts<'_> {
    /// Asks with the method "none" (RFC 4252 §5.2) what the server accepts; `None`: it lets us in like that.
    fn accepted_methods(&mut self) -> std::result::Result<Option<Vec<String>>, Failure> {
        let user = self.user_c.clone();
        let list = match drive(self.packets, self.deadline, |p| p.raw().userauth_list(&user)) {
            Ok(list) => list,
            // The question counts as an attempt with sshd, and may be one too many.
            Err(failure) => return self.interrupted("none", String::new(), failure).map(|_| None),
        };
        Ok(list.map(|list| {
            let list = String::from_utf8_lossy(&list).into_owned();
            list.split(',').filter(|m| !m.is_empty()).map(str::to_owned).collect()
        }))
    }

    /// A key that the caller named is tried without asking first what the server accepts: a round trip less.
    fn named_key(&mut self, credentials: &Credentials) -> Outcome {
        match credentials.identities.first() {
            Some(path) if !credentials.default_identities => self.key_file(path, credentials),
            _ => Ok(None),
        }
    }

    fn public_keys(&mut self, credentials: &Credentials) -> Outcome {
        for path in &credentials.identities {
            if let Some(accepted) = self.key_file(path, credentials)? {
                return Ok(Some(accepted));
            }
        }
        if credentials.agent {
            return self.agent(credentials.agent_socket.as_deref());
        }
        Ok(None)
    }

    fn key_file(&mut self, path: &Path, credentials: &Credentials) -> Outcome {
        if !self.tried_files.insert(path.to_owned()) {
            return Ok(None);
        }
        let shown = path.display().to_string();
        let file = match key_file::read(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && credentials.default_identities => return Ok(None),
            Err(e) => return self.noted("publickey", shown, format!("cannot read the key: {e}")),
        };
        let with = match &file.public {
            Some(blob) => format!("{shown} {}", fingerprint(blob)),
            None => shown.clone(),
        };
        let passphrase = match self.passphrase(path, &file, credentials) {
            Ok(passphrase) => passphrase,
            Err(outcome) => return self.noted("publickey", with, outcome),
        };
        if let Some(blob) = &file.public {
            self.tried_keys.insert(blob.clone());
        }
        let (user, encrypted) = (self.user, file.encrypted);
        let ciphers: Vec<_> = cipher::in_use().into_iter().map(|(name, _)| name).collect();
        let (text, passphrase) = match file.for_libssh2(passphrase, &ciphers) {
            Ok(both) => both,
            Err(outcome) => return self.noted("publickey", with, outcome),
        };
        let outcome = drive(self.packets, self.deadline, |p| {
            session_call(p, |s| s.userauth_pubkey_memory(user, None, &text, passphrase.as_deref().map(String::as_str)))
        });
        self.key_outcome(outcome, with, encrypted)
    }

    fn passphrase(
        &self,
        path: &Path,
        file: &KeyFile,
        credentials: &Credentials,
    ) -> std::result::Result<Option<Zeroizing<String>>, String> {
        if !file.encrypted {
            return Ok(None);
        }
        let Some(ask) = &credentials.passphrase else {
            return Err("the key is encrypted and no passphrase was given".into());
        };
        match ask(path) {
            Some(passphrase) => Ok(Some(Zeroizing::new(passphrase))),
            None => Err("the key is encrypted and no passphrase was given".into()),
        }
    }

    fn key_outcome(&mut self, outcome: std::result::Result<(), Failure>, with: String, encrypted: bool) -> Outcome {
        let told = match outcome {
            Ok(()) => return Ok(Some(AuthAttempt::new("publickey", with, ACCEPTED))),
            Err(Failure::Code(-18 | -19, _)) => "refused by the server".into(),
            Err(Failure::Code(-16 | -48, _)) if encrypted => key_file::WRONG_PASSPHRASE.into(),
            Err(Failure::Code(-16 | -48, words)) => format!("the file holds no usable key ({})", escape(&words)),
            Err(Failure::Code(-17, _)) => "the key's type is not supported with this server".into(),
            Err(Failure::Code(code, words)) => format!("{} ({code})", escape(&words)),
            Err(other) => return self.interrupted("publickey", with, other),
        };
        self.noted("publickey", with, told)
    }

    fn agent(&mut self, socket: Option<&Path>) -> Outcome {
        let found = match socket {
            Some(path) => Agent::connect(path, self.deadline.at).map(Some),
            None => Agent::from_env(self.deadline.at),
        };
        let mut agent = match found {
            Ok(Some(agent)) => agent,
            Ok(None) => return Ok(None),
            Err(e) => return self.noted("publickey", "the agent", e.to_string()),
        };
        let identities = match agent.identities() {
            Ok(identities) => identities,
            Err(e) => return self.noted("publickey", "the agent", e.to_string()),
        };
        for identity in identities {
            if !self.tried_keys.insert(identity.blob.clone()) {
                continue;
            }
            if let Some(accepted) = self.agent_key(&mut agent, &identity)? {
                return Ok(Some(accepted));
            }
        }
        Ok(None)
    }

    fn agent_key(&mut self, agent: &mut Agent, identity: &Identity) -> Outcome {
        let with = format!("agent key '{}' {}", escape(&identity.comment), fingerprint(&identity.blob));
        let user = self.user_c.clone();
        let mut refusal = None;
        let outcome = drive(self.packets, self.deadline, |p| {
            let code = p.raw().userauth_publickey(&user, &identity.blob, &mut |data| {
                sign(agent, identity, data).map_err(|e| refusal = Some(e)).ok()
            });
            if code == 0 {
                Ok(())
            } else {
                Err((code, String::new()))
            }
        });
        match (outcome, refusal) {
            (Ok(()), _) => self.key_outcome(Ok(()), with, false),
            (Err(Failure::Code(..)), Some(e)) => self.noted("publickey", with, e.to_string()),
            (outcome, None | Some(_)) => self.key_outcome(outcome, with, false),
        }
    }

    fn password(&mut self, credentials: &Credentials) -> Outcome {
        let Some(password) = &credentials.password else { return Ok(None) };
        let user = self.user;
        let outcome =
            drive(self.packets, self.deadline, |p| session_call(p, |s| Session::userauth_password(s, user, password)));
        let told = match outcome {
            Ok(()) => return Ok(Some(AuthAttempt::new("password", "", ACCEPTED))),
            Err(Failure::Code(-18, _)) => "refused by the server".into(),
            Err(Failure::Code(-49, _)) => "the password has expired and must be changed".into(),
            Err(Failure::Code(code, words)) => format!("{} ({code})", escape(&words)),
            Err(other) => return self.interrupted("password", String::new(), other),
        };
        self.noted("password", String::new(), told)
    }

    fn noted(&mut self, method: &str, with: impl Into<String>, outcome: impl Into<String>) -> Outcome {
        let attempt = AuthAttempt::new(method, with, outcome);
        log::debug!("{} with {}: {}", attempt.method, escape(&attempt.with), escape(&attempt.outcome));
        self.list.push(attempt);
        Ok(None)
    }

    /// The attempt during which the connection ended belongs to the list, too.
    fn interrupted(&mut self, method: &str, with: String, failure: Failure) -> Outcome {
        let outcome = match &failure {
            Failure::TimedOut => "no answer in time".to_owned(),
            Failure::Ended(error) => error.to_string(),
            Failure::Code(code, words) => format!("{words} ({code})"),
        };
        self.list.push(AuthAttempt::new(method, with, outcome));
        Err(failure)
    }

    /// A failure that ends authentication. If something had been tried the list says more than the bare ending, such
    /// as "Too many authentication failures".
    fn explain(&mut self, failure: Failure, host: &str) -> Error {
        match failure {
            Failure::TimedOut => Error::timeout(Phase::Auth, self.deadline.limit),
            Failure::Ended(Error::ConnectionLost { .. }) if !self.list.is_empty() => {
                AuthError::new(self.user, host, std::mem::take(&mut self.list), Vec::new()).into()
            }
            Failure::Ended(error) => error,
            Failure::Code(code, words) => Error::Handshake {
                host: host.to_owned(),
                phase: Phase::Auth,
                reason: format!("{} ({code})", escape(&words)),
            },
        }
    }
}

/// The agent's bare signature of what libssh2 wants signed. libssh2 has chosen the algorithm; it stands in the data.
fn sign(agent: &mut Agent, identity: &Identity, data: &[u8]) -> Result<Vec<u8>> {
    let flags = match key_file::signed_algorithm(data) {
        Some(b"rsa-sha2-512") => SSH_AGENT_RSA_SHA2_512,
        Some(b"rsa-sha2-256") => SSH_AGENT_RSA_SHA2_256,
        _ => 0,
    };
    let blob = agent.sign(identity, data, flags)?;
    let (_, rest) = signature_parts(&blob).ok_or_else(|| Error::invalid("the agent's signature is malformed"))?;
    key_file::take_string(&mut &*rest)
        .map(<[u8]>::to_vec)
        .ok_or_else(|| Error::invalid("the agent's signature is malformed"))
}
