//! Which algorithms are offered, in which order, and what a server has in common with that. Pure, but for one look at
//! the processor.

use super::handshake::Preferences;
use super::key_file::take_string;
use crate::error::escape;
use crate::transport::cipher::{self, Implementation};

const CHACHA20: &str = "chacha20-poly1305@openssh.com";
const AES128_GCM: &str = "aes128-gcm@openssh.com";
const AES256_GCM: &str = "aes256-gcm@openssh.com";

/// Where AES is an instruction GCM is the fastest of all, and its shorter key the faster.
const AES_FIRST: [&str; 6] = [AES128_GCM, AES256_GCM, CHACHA20, "aes128-ctr", "aes192-ctr", "aes256-ctr"];
/// Where AES is computed from tables chacha20 is the fastest by far, and does not tell its key by its timing.
const CHACHA20_FIRST: [&str; 6] = [CHACHA20, AES128_GCM, AES256_GCM, "aes128-ctr", "aes192-ctr", "aes256-ctr"];

/// Longer lists of names are cut in an error.
const MAX_SHOWN: usize = 600;

/// Whether this processor has instructions for AES and for the carry-less multiplication that GCM needs.
pub(crate) fn processor_has_aes() -> bool {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
    return false;
}

/// The ciphers offered when none are named, best first: those of `known` that are neither CBC nor otherwise old.
///
/// AES-GCM comes first only where it is ours: libssh2's own takes 16 bytes a call and is half as fast as chacha20, AES
/// instructions or not.
pub(crate) fn ciphers(known: &[(String, Implementation)], aes: bool) -> Vec<String> {
    let ours = |name| known.iter().any(|(known, whose)| known == name && *whose == Implementation::Threadline);
    let order = if aes && ours(AES128_GCM) && ours(AES256_GCM) { AES_FIRST } else { CHACHA20_FIRST };
    let there = |name: &&str| known.iter().any(|(known, _)| known == name);
    order.into_iter().filter(there).map(str::to_owned).collect()
}

/// The same for this process.
pub(crate) fn default_ciphers() -> Vec<String> {
    ciphers(&cipher::in_use(), processor_has_aes())
}

/// The names of `wanted` that are not among `known`.
pub(crate) fn unknown<'w>(wanted: &'w [String], known: &[&str]) -> Vec<&'w str> {
    wanted.iter().map(String::as_str).filter(|name| !known.contains(name)).collect()
}

/// Names in a KEXINIT's list of key exchanges that are none.
pub(crate) fn is_announcement(name: &str) -> bool {
    name.starts_with("ext-info-") || name.starts_with("kex-strict-")
}

/// What a KEXINIT offers (RFC 4253 §7.1), or what is known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Lists {
    pub kex: Vec<String>,
    pub host_keys: Vec<String>,
    /// To the server, from the server.
    pub ciphers: [Vec<String>; 2],
    /// To the server, from the server.
    pub macs: [Vec<String>; 2],
}

impl Lists {
    /// What the server offers, from what it sent first: lines, the last of which is its banner, and the packet of its
    /// KEXINIT, in the clear.
    pub fn of_server(head: &[u8]) -> Option<Lists> {
        let mut rest = head;
        loop {
            let end = rest.iter().position(|&b| b == b'\n')?;
            let banner = rest.starts_with(b"SSH-");
            rest = &rest[end + 1..];
            if banner {
                break;
            }
        }
        // Length, length of the padding, message number, cookie (RFC 4253 §6, §7.1).
        let packet = rest.get(4..)?;
        if packet.get(1) != Some(&20) {
            return None;
        }
        let mut fields = packet.get(2 + 16..)?;
        let mut list = || {
            let names = String::from_utf8_lossy(take_string(&mut fields)?).into_owned();
            Some(
                names.split(',').filter(|name| !name.is_empty() && !is_announcement(name)).map(str::to_owned).collect(),
            )
        };
        Some(Lists { kex: list()?, host_keys: list()?, ciphers: [list()?, list()?], macs: [list()?, list()?] })
    }
}

/// Of which kind of algorithm the two sides share none: what each offers, and what would help. `None`: they share one
/// of each kind.
pub(crate) fn nothing_in_common(server: &Lists, offered: &Preferences, known: &Lists) -> Option<String> {
    let lists = [
        ("key exchange", "kex_algorithms, -o KexAlgorithms=", &offered.kex, &server.kex, &known.kex),
        (
            "host key algorithm",
            "host_key_algorithms, -o HostKeyAlgorithms=",
            &offered.host_keys,
            &server.host_keys,
            &known.host_keys,
        ),
        ("cipher", "ciphers, -o Ciphers=", &offered.ciphers, &server.ciphers[0], &known.ciphers[0]),
        ("cipher", "ciphers, -o Ciphers=", &offered.ciphers, &server.ciphers[1], &known.ciphers[1]),
        ("MAC", "macs, -o MACs=", &offered.macs, &server.macs[0], &known.macs[0]),
        ("MAC", "macs, -o MACs=", &offered.macs, &server.macs[1], &known.macs[1]),
    ];
    let mut brings_its_mac = Vec::new();
    for (what, setting, offered, theirs, known) in lists {
        let ours = if offered.is_empty() { known } else { offered };
        let agreed = ours.iter().find(|name| theirs.contains(name));
        if what == "cipher" {
            brings_its_mac.push(agreed.is_some_and(|name| [CHACHA20, AES128_GCM, AES256_GCM].contains(&name.as_str())));
        }
        let not_needed = what == "MAC" && brings_its_mac.remove(0);
        if agreed.is_none() && !not_needed {
            return Some(missing(what, setting, ours, theirs, known));
        }
    }
    None
}

fn missing(what: &str, setting: &str, ours: &[String], theirs: &[String], known: &[String]) -> String {
    let helps: Vec<_> = theirs.iter().filter(|name| known.contains(name)).cloned().collect();
    let advice = if helps.is_empty() {
        format!("the server has to be given one of those known here: {}", shown(known))
    } else {
        format!("name one of the server's that is known here ({setting}): {}", shown(&helps))
    };
    format!("no {what} in common: the server offers {}; we offer {}; {advice}", shown(theirs), shown(ours))
}

fn shown(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let mut text = escape(&names.join(", "));
    if let Some((cut, _)) = text.char_indices().nth(MAX_SHOWN) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use Implementation::{Libssh2, Other, Threadline};

    const TABLE: [&str; 10] = [
        CHACHA20,
        AES256_GCM,
        AES128_GCM,
        "aes256-ctr",
        "aes192-ctr",
        "aes128-ctr",
        "aes256-cbc",
        "rijndael-cbc@lysator.liu.se",
        "aes192-cbc",
        "3des-cbc",
    ];

    fn table(whose: Implementation) -> Vec<(String, Implementation)> {
        TABLE.map(|name| (name.to_owned(), whose)).to_vec()
    }

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn aes_gcm_comes_first_where_it_is_ours_and_the_processor_has_aes() {
        assert_eq!(ciphers(&table(Threadline), true), AES_FIRST);
        assert_eq!(ciphers(&table(Threadline), false), CHACHA20_FIRST);
        // libssh2's own is slow with the instructions, too, and nobody knows about somebody else's.
        assert_eq!(ciphers(&table(Libssh2), true), CHACHA20_FIRST);
        assert_eq!(ciphers(&table(Other), true), CHACHA20_FIRST);
        let mut mixed = table(Threadline);
        mixed[1].1 = Other;
        assert_eq!(ciphers(&mixed, true), CHACHA20_FIRST);
    }

    #[test]
    fn what_is_old_or_not_there_is_never_offered() {
        for aes in [true, false] {
            let order = ciphers(&table(Threadline), aes);
            assert!(!order.iter().any(|name| name.contains("cbc")), "{order:?}");
            let known = vec![("aes128-ctr".to_owned(), Libssh2), ("aes128-cbc".to_owned(), Libssh2)];
            assert_eq!(ciphers(&known, aes), ["aes128-ctr"]);
            assert!(ciphers(&[], aes).is_empty());
        }
    }

    #[test]
    fn unknown_names_are_found_in_whatever_company() {
        let wanted = names(&["aes128-ctr", "rot13", "aes256-ctr", "", "aes128-ctr,aes256-ctr"]);
        assert_eq!(unknown(&wanted, &["aes256-ctr", "aes128-ctr"]), ["rot13", "", "aes128-ctr,aes256-ctr"]);
        assert!(unknown(&[], &[]).is_empty());
    }

    /// What a server sends first.
    fn head(lists: &Lists) -> Vec<u8> {
        let mut payload = vec![20];
        payload.extend([7; 16]);
        let [out, back] = &lists.ciphers;
        let [mac_out, mac_back] = &lists.macs;
        for list in [&lists.kex, &lists.host_keys, out, back, mac_out, mac_back] {
            let text = list.join(",");
            payload.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            payload.extend(text.as_bytes());
        }
        let mut head = b"a line before\r\nSSH-2.0-test\r\n".to_vec();
        head.extend(u32::try_from(payload.len() + 1).unwrap().to_be_bytes());
        head.push(0);
        head.extend(payload);
        head
    }

    fn some() -> Lists {
        let both = |list: &[&str]| [names(list), names(list)];
        Lists {
            kex: names(&["curve25519-sha256"]),
            host_keys: names(&["ssh-ed25519"]),
            ciphers: both(&["aes128-cbc", "aes256-cbc"]),
            macs: both(&["hmac-sha2-256"]),
        }
    }

    fn known() -> Lists {
        let mut known = some();
        known.ciphers = [TABLE; 2].map(|table| names(&table));
        known
    }

    #[test]
    fn a_servers_lists_are_read_from_its_first_packet() {
        let mut lists = some();
        lists.kex.push("kex-strict-s-v00@openssh.com".into());
        let bytes = head(&lists);
        assert_eq!(Lists::of_server(&bytes), Some(some()));
        for len in 0..bytes.len() {
            assert_eq!(Lists::of_server(&bytes[..len]), None, "{len}");
        }
        assert_eq!(Lists::of_server(b"SSH-2.0-x\n\xff\xff\xff\xff\xff\x14"), None);
        assert_eq!(Lists::of_server(b"HTTP/1.1 400 Bad Request\r\n\r\n"), None);
    }

    #[test]
    fn what_is_missing_is_named_with_what_would_help() {
        let offered = Preferences { ciphers: names(&CHACHA20_FIRST), ..Preferences::default() };
        let text = nothing_in_common(&some(), &offered, &known()).unwrap();
        assert!(
            text.starts_with("no cipher in common: the server offers aes128-cbc, aes256-cbc; we offer chacha20"),
            "{text}"
        );
        assert!(
            text.ends_with("name one of the server's that is known here (ciphers, -o Ciphers=): aes256-cbc"),
            "{text}"
        );

        let mut server = some();
        server.ciphers = [names(&["rot\u{1b}13"]), names(&["rot13"])];
        let text = nothing_in_common(&server, &offered, &known()).unwrap();
        assert!(!text.contains('\u{1b}') && text.contains("the server has to be given one"), "{text}");

        // One direction is enough to fail.
        server.ciphers = [names(&["aes128-ctr"]), names(&["aes256-cbc"])];
        assert!(nothing_in_common(&server, &offered, &known()).unwrap().starts_with("no cipher"));

        server.ciphers = [names(&["aes128-ctr"]), names(&["aes128-ctr"])];
        assert_eq!(nothing_in_common(&server, &offered, &known()), None);
        server.macs = [names(&["hmac-md5"]), names(&["hmac-md5"])];
        assert!(nothing_in_common(&server, &offered, &known()).unwrap().starts_with("no MAC in common"));
        server.ciphers = [names(&[AES128_GCM]), names(&[AES128_GCM])];
        assert_eq!(nothing_in_common(&server, &offered, &known()), None, "it brings its own MAC");
        server.host_keys = names(&["ssh-dss"]);
        assert!(nothing_in_common(&server, &offered, &known()).unwrap().starts_with("no host key algorithm in common"));
        server.kex.clear();
        let text = nothing_in_common(&server, &offered, &known()).unwrap();
        assert!(text.starts_with("no key exchange in common: the server offers none"), "{text}");
    }
}
