//! What this build and this machine offer, for `threadline doctor` and for programs that want to show it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::connect::agent::Agent;
use crate::connect::{host_key, offer};
use crate::error::{Error, Result};
use crate::transport::{self, cipher, cipher::Implementation};

/// Which versions of what this process runs with.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Versions {
    /// This library.
    pub threadline: String,
    /// The bundled libssh2.
    pub libssh2: String,
    /// The OpenSSL that libssh2 computes with, as it names itself.
    pub openssl: String,
}

/// The versions of this library and of what it stands on.
#[must_use]
pub fn versions() -> Versions {
    let (libssh2, openssl) = transport::versions();
    Versions { threadline: env!("CARGO_PKG_VERSION").to_owned(), libssh2, openssl }
}

/// Checks that the bundled libssh2 takes the method through which this library sees its packets; connecting does the
/// same. Does not block.
///
/// ```
/// threadline::check_seam()?;
/// # Ok::<(), threadline::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Internal`]: no connection is possible in this process, for the reason given.
pub fn check_seam() -> Result<()> {
    transport::check_seam().map_err(Error::Internal)
}

/// A cipher of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct CipherInfo {
    /// Its SSH name, as [`ClientBuilder::ciphers`](crate::ClientBuilder::ciphers) takes it.
    pub name: String,
    /// Whose code encrypts with it.
    pub implementation: Implementation,
    /// Its place in the default order, 0 being offered first; `None`: it is offered only when named.
    pub rank: Option<usize>,
}

/// The ciphers that there are and whose code is behind each: first those that are offered by default, in their order,
/// then those that have to be named.
///
/// This is the self-check of the feature `fast-ciphers`: it looks at libssh2's table as the next connection finds it.
/// Our methods are stored there first, if that has not happened yet, as connecting does. Does not block.
///
/// # Examples
///
/// ```
/// use threadline::Implementation;
///
/// let ciphers = threadline::ciphers();
/// let gcm = ciphers.iter().find(|cipher| cipher.name == "aes128-gcm@openssh.com").expect("always there");
/// let expected =
///     if cfg!(feature = "fast-ciphers") { Implementation::Threadline } else { Implementation::Libssh2 };
/// assert_eq!(gcm.implementation, expected);
/// ```
#[must_use]
pub fn ciphers() -> Vec<CipherInfo> {
    cipher::install();
    let known = cipher::in_use();
    let order = offer::ciphers(&known, offer::processor_has_aes());
    let info = |(name, implementation): (String, _)| {
        let rank = order.iter().position(|offered| *offered == name);
        CipherInfo { name, implementation, rank }
    };
    let mut ciphers: Vec<_> = known.into_iter().map(info).collect();
    ciphers.sort_by_key(|cipher| cipher.rank.unwrap_or(usize::MAX));
    ciphers
}

/// Whether this processor has instructions for AES and for the carry-less multiplication of GCM. Where it has, and with
/// the feature `fast-ciphers`, AES-GCM is offered before chacha20-poly1305.
#[must_use]
pub fn processor_has_aes() -> bool {
    offer::processor_has_aes()
}

/// A key that the agent holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AgentKey {
    /// `SHA256:…`, as `ssh-add -l` prints it.
    pub fingerprint: String,
    /// What its owner called it. Escape it before showing it.
    pub comment: String,
}

/// The keys of the agent at SSH_AUTH_SOCK; `None` if that is not set. Blocks for at most `timeout`.
///
/// # Errors
///
/// [`Error::Io`], which names the socket, if the agent does not answer.
pub fn agent_keys(timeout: Duration) -> Result<Option<Vec<AgentKey>>> {
    let Some(mut agent) = Agent::from_env(Instant::now() + timeout)? else { return Ok(None) };
    let key = |identity: crate::connect::agent::Identity| AgentKey {
        fingerprint: host_key::fingerprint(&identity.blob),
        comment: identity.comment,
    };
    Ok(Some(agent.identities()?.into_iter().map(key).collect()))
}

/// The known-hosts files that are read unless a builder names others, whether or not they exist.
#[must_use]
pub fn known_hosts_files() -> Vec<PathBuf> {
    host_key::default_files()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_are_those_of_the_pinned_library_and_the_seam_fits_it() {
        let versions = versions();
        assert!(versions.libssh2.starts_with("1."), "{versions:?}");
        assert!(versions.openssl.contains("SSL"), "{versions:?}");
        check_seam().unwrap();
    }

    #[test]
    fn the_ciphers_are_listed_in_the_order_in_which_they_are_offered() {
        let ciphers = ciphers();
        let offered: Vec<_> = ciphers.iter().map_while(|c| c.rank.map(|_| c.name.clone())).collect();
        assert_eq!(offered, offer::default_ciphers());
        assert!(ciphers.iter().take(offered.len()).enumerate().all(|(at, c)| c.rank == Some(at)), "{ciphers:?}");
        let rest: Vec<_> = ciphers.iter().skip(offered.len()).collect();
        assert!(!rest.is_empty() && rest.iter().all(|c| c.rank.is_none() && c.name.contains("cbc")), "{rest:?}");
    }

    #[test]
    fn each_cipher_is_whose_the_feature_says() {
        for cipher in ciphers() {
            // CBC is libssh2's in any case.
            let ours = cfg!(feature = "fast-ciphers") && !cipher.name.contains("cbc");
            let expected = if ours { Implementation::Threadline } else { Implementation::Libssh2 };
            assert_eq!(cipher.implementation, expected, "{}", cipher.name);
        }
    }
}
