//! `-o Key=Value`: the options of ssh_config(5) that exist here, under their names there.

use std::path::PathBuf;
use std::time::Duration;

use crate::connect::Plan;

/// Every key that is understood, for the error that names them.
const KEYS: [&str; 14] = [
    "BatchMode",
    "Ciphers",
    "ConnectTimeout",
    "HostKeyAlgorithms",
    "IdentityAgent",
    "IdentityFile",
    "KexAlgorithms",
    "MACs",
    "Port",
    "ServerAliveCountMax",
    "ServerAliveInterval",
    "StrictHostKeyChecking",
    "User",
    "UserKnownHostsFile",
];

/// What OpenSSH probes with unless told otherwise, when only one of the two options is given.
const PROBES: u32 = 3;
const INTERVAL: Duration = Duration::from_secs(15);

/// Changes the plan as the option says.
pub(super) fn apply(text: &str, plan: &mut Plan) -> Result<(), String> {
    let (key, value) = text.split_once(['=', ' ']).ok_or_else(|| format!("-o needs Key=Value, not '{text}'"))?;
    let (key, value) = (key.trim(), value.trim().trim_matches('"'));
    if value.is_empty() {
        return Err(format!("-o {key} has no value; write -o {key}=VALUE"));
    }
    let keepalive = plan.keepalive.unwrap_or((INTERVAL, PROBES));
    match key.to_ascii_lowercase().as_str() {
        "batchmode" => plan.batch = switch(key, value)?,
        "ciphers" => plan.algorithms.ciphers = list(key, value)?,
        "connecttimeout" => plan.connect_timeout = Duration::from_secs(number(key, value)?.max(1)),
        "hostkeyalgorithms" => plan.algorithms.host_keys = list(key, value)?,
        "identityagent" => plan.agent = one_of(key, value, &[("none", false), ("SSH_AUTH_SOCK", true)])?,
        "identityfile" => plan.identities.push(PathBuf::from(value)),
        "kexalgorithms" => plan.algorithms.kex = list(key, value)?,
        "macs" => plan.algorithms.macs = list(key, value)?,
        "port" => plan.port = Some(port(value)?),
        "serveralivecountmax" => {
            let count = u32::try_from(number(key, value)?).unwrap_or(u32::MAX);
            plan.keepalive = Some((keepalive.0, count));
        }
        "serveraliveinterval" => plan.keepalive = Some((Duration::from_secs(number(key, value)?), keepalive.1)),
        "stricthostkeychecking" => {
            plan.accept_new = one_of(key, value, &[("yes", false), ("accept-new", true)])?;
        }
        "user" => plan.user = Some(value.to_owned()),
        "userknownhostsfile" => plan.known_hosts = value.split_whitespace().map(PathBuf::from).collect(),
        _ => return Err(format!("-o {key} is not supported; supported are: {}", KEYS.join(", "))),
    }
    Ok(())
}

fn number(key: &str, value: &str) -> Result<u64, String> {
    value.parse::<u32>().map(u64::from).map_err(|_| format!("-o {key} needs a number, not '{value}'"))
}

fn port(value: &str) -> Result<u16, String> {
    let port = value.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("-o Port needs a number from 1 to 65535, not '{value}'"))
}

fn switch(key: &str, value: &str) -> Result<bool, String> {
    one_of(key, value, &[("yes", true), ("no", false)])
}

fn one_of(key: &str, value: &str, known: &[(&str, bool)]) -> Result<bool, String> {
    let found = known.iter().find(|(word, _)| word.eq_ignore_ascii_case(value));
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let words: Vec<_> = known.iter().map(|(word, _)| *word).collect();
        format!("-o {key} can be {}, not '{value}'", words.join(" or "))
    })
}

/// Changes to the default list (`+`, `-`, `^`) are not understood.
fn list(key: &str, value: &str) -> Result<Vec<String>, String> {
    if value.starts_with(['+', '-', '^']) {
        return Err(format!("-o {key} takes a whole list here, best first; '+', '-' and '^' are not supported"));
    }
    Ok(value.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect())
}
