//! What this build and this machine offer, for `threadline doctor` and for programs that want to show it.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::connect::agent::Agent;
use crate::connect::host_key;
use crate::error::{Error, Result};
use crate::transport;

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
}
