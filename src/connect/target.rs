//! Where to connect: `alice@web1:2222` and its other spellings, turned into user, host and port.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A host to connect to, as people write it, with the user and the port where they were given.
///
/// Understood are `host`, `user@host`, `user@host:port`, `[v6]:port`, `user@[v6]`, a bare IPv6 address (`::1`,
/// `fe80::1%eth0`) and `ssh://user@host:port` (RFC 3986 §3.2, with `%40` and the like in the user). The last `@`
/// separates the user, who may therefore contain one. [`Display`](fmt::Display) writes a text that parses to the same
/// target.
///
/// A host or a user that begins with `-` is refused, as in OpenSSH, so that it can never be taken for an option when
/// it is handed to another program; so are hosts with spaces or with characters that mean something to a shell or in a
/// known-hosts file.
///
/// # Examples
///
/// ```
/// let target: threadline::Target = "alice@[2001:db8::7]:2222".parse()?;
/// assert_eq!(target.user.as_deref(), Some("alice"));
/// assert_eq!(target.host, "2001:db8::7");
/// assert_eq!(target.port, Some(2222));
/// # Ok::<(), threadline::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Target {
    /// The remote user, where one was given.
    pub user: Option<String>,
    /// The name or address, without brackets.
    pub host: String,
    /// The TCP port, where one was given.
    pub port: Option<u16>,
}

impl FromStr for Target {
    type Err = Error;

    /// # Errors
    ///
    /// [`Error::InvalidTarget`], which says what is wrong with the text.
    fn from_str(text: &str) -> Result<Target> {
        parse(text).map_err(|reason| Error::InvalidTarget { input: without_password(text), reason })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        match self.port {
            Some(port) if self.host.contains(':') => write!(f, "[{}]:{port}", self.host),
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

/// What is wrong with a text; the text itself is added by the caller.
type Parsed<T> = std::result::Result<T, String>;

fn parse(text: &str) -> Parsed<Target> {
    match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("ssh") => parse_url(rest),
        Some((scheme, _)) => Err(format!("'{scheme}://' is not understood; only ssh:// is")),
        None => parse_plain(text),
    }
}

fn parse_plain(text: &str) -> Parsed<Target> {
    let (user, address) = split_user(text);
    let (host, port) = split_port(address)?;
    checked(user.map(str::to_owned), host.to_owned(), port)
}

/// What follows `ssh://`: the authority of RFC 3986 §3.2, and at most a slash.
fn parse_url(rest: &str) -> Parsed<Target> {
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err("an ssh:// URL ends after the port; a path is not understood here".into());
    }
    let (user, address) = split_user(authority);
    let user = user.map(url_user).transpose()?;
    let (host, port) = split_port(address)?;
    // RFC 6874: the '%' before an IPv6 zone is itself written as "%25"
    let host = if is_ipv6(host) { host.replacen("%25", "%", 1) } else { percent_decode(host)? };
    checked(user, host, port)
}

fn url_user(userinfo: &str) -> Parsed<String> {
    if userinfo.contains(':') {
        return Err("a password does not belong in a URL, where others can read it".into());
    }
    if userinfo.contains(';') {
        return Err("connection parameters after the user are not understood".into());
    }
    percent_decode(userinfo)
}

/// The last `@` separates: user names of directory services contain one, host names never do.
fn split_user(text: &str) -> (Option<&str>, &str) {
    match text.rsplit_once('@') {
        Some((user, address)) => (Some(user), address),
        None => (None, text),
    }
}

fn split_port(address: &str) -> Parsed<(&str, Option<u16>)> {
    if let Some(inside) = address.strip_prefix('[') {
        let (host, after) = inside.split_once(']').ok_or("the '[' is never closed")?;
        return match after.strip_prefix(':') {
            Some(port) => Ok((host, Some(parse_port(port)?))),
            None if after.is_empty() => Ok((host, None)),
            None => Err("only ':' and a port may follow ']'".into()),
        };
    }
    if is_ipv6(address) {
        return Ok((address, None));
    }
    match address.split_once(':') {
        None => Ok((address, None)),
        Some((_, port)) if port.contains(':') => {
            Err("it is no IPv6 address, and with a port one is written [address]:port".into())
        }
        Some((host, port)) => Ok((host, Some(parse_port(port)?))),
    }
}

fn parse_port(text: &str) -> Parsed<u16> {
    // u16's own parser would let "+22" pass
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ if text.is_empty() => Err("a port must follow the ':'".into()),
        _ => Err(format!("the port must be a number from 1 to 65535, not '{text}'")),
    }
}

/// An IPv6 address, perhaps with a zone (RFC 4007 §11): `fe80::1%eth0`.
fn is_ipv6(text: &str) -> bool {
    let (address, zone) = text.split_once('%').unwrap_or((text, "0"));
    address.parse::<Ipv6Addr>().is_ok() && !zone.is_empty() && !zone.contains(':')
}

fn percent_decode(text: &str) -> Parsed<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| (b as char).to_digit(16));
        match (digit(bytes.next()), digit(bytes.next())) {
            (Some(high), Some(low)) => decoded.push((high * 16 + low) as u8),
            _ => return Err("two hexadecimal digits must follow a '%' in a URL".into()),
        }
    }
    String::from_utf8(decoded).map_err(|_| "what the '%' escapes stand for is not UTF-8".into())
}

fn checked(user: Option<String>, host: String, port: Option<u16>) -> Parsed<Target> {
    user.as_deref().map_or(Ok(()), check_user)?;
    check_host(&host)?;
    Ok(Target { user, host, port })
}

fn check_user(user: &str) -> Parsed<()> {
    if user.is_empty() {
        return Err("the user before the '@' is missing".into());
    }
    if user.starts_with('-') {
        return Err("a user may not begin with '-'".into());
    }
    if user.contains(char::is_control) {
        return Err("a user may not contain control characters".into());
    }
    // otherwise Display would write something that reads as a URL
    if user.contains("://") {
        return Err("a user may not contain '://'".into());
    }
    Ok(())
}

/// Refuses what no name or address contains and what another program could take for something else: an option, a
/// shell's syntax (a ProxyCommand gets the host), a pattern in a known-hosts file.
fn check_host(host: &str) -> Parsed<()> {
    if host.is_empty() {
        return Err("the host is missing".into());
    }
    if host.starts_with('-') {
        return Err("a host may not begin with '-'".into());
    }
    if host.contains(char::is_control) || host.contains(char::is_whitespace) {
        return Err("a host may not contain spaces or control characters".into());
    }
    if let Some(c) = host.chars().find(|c| "\"'`\\/@[]*?!,#|;&<>(){}$".contains(*c)) {
        return Err(format!("a host may not contain '{c}'"));
    }
    if host.contains(':') && !is_ipv6(host) {
        return Err("a host with a ':' must be an IPv6 address".into());
    }
    Ok(())
}

/// The text for an error message, which may end in a log: without the password of a `user:password@` in a URL.
fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    match split_user(rest) {
        (Some(userinfo), address) => match userinfo.split_once(':') {
            Some((user, _)) => format!("{scheme}://{user}:…@{address}"),
            None => text.to_owned(),
        },
        (None, _) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn target(user: Option<&str>, host: &str, port: Option<u16>) -> Target {
        Target { user: user.map(str::to_owned), host: host.to_owned(), port }
    }

    #[test]
    fn every_spelling_is_understood() {
        let table = [
            ("web1", target(None, "web1", None)),
            ("web1.", target(None, "web1.", None)),
            ("web_1:22", target(None, "web_1", Some(22))),
            ("alice@web1", target(Some("alice"), "web1", None)),
            ("alice@web1:2222", target(Some("alice"), "web1", Some(2222))),
            ("alice@example.org@web1:65535", target(Some("alice@example.org"), "web1", Some(65535))),
            ("EXAMPLE\\alice@web1", target(Some("EXAMPLE\\alice"), "web1", None)),
            ("10.0.0.7:1", target(None, "10.0.0.7", Some(1))),
            ("::1", target(None, "::1", None)),
            ("alice@::1", target(Some("alice"), "::1", None)),
            ("::1:2222", target(None, "::1:2222", None)),
            ("fe80::1%eth0", target(None, "fe80::1%eth0", None)),
            ("[::1]", target(None, "::1", None)),
            ("[::1]:2222", target(None, "::1", Some(2222))),
            ("alice@[fe80::1%eth0]:22", target(Some("alice"), "fe80::1%eth0", Some(22))),
            ("[web1]:2222", target(None, "web1", Some(2222))),
            ("ssh://web1", target(None, "web1", None)),
            ("SSH://web1/", target(None, "web1", None)),
            ("ssh://alice@web1:2222/", target(Some("alice"), "web1", Some(2222))),
            ("ssh://al%69ce%40example.org@web1", target(Some("alice@example.org"), "web1", None)),
            ("ssh://%C3%A9ve@web1", target(Some("éve"), "web1", None)),
            ("ssh://[::1]:2222", target(None, "::1", Some(2222))),
            ("ssh://[fe80::1%25eth0]:22/", target(None, "fe80::1%eth0", Some(22))),
            ("ssh://[fe80::1%eth0]", target(None, "fe80::1%eth0", None)),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse::<Target>().unwrap_or_else(|e| panic!("{text}: {e}")), expected, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let table = [
            ("", "the host is missing"),
            ("alice@", "the host is missing"),
            ("@web1", "the user before the '@' is missing"),
            ("[]:22", "the host is missing"),
            (":22", "the host is missing"),
            ("ssh://", "the host is missing"),
            ("ssh:///", "the host is missing"),
            ("web1:", "a port must follow"),
            ("ssh://web1:/", "a port must follow"),
            ("web1:0", "from 1 to 65535, not '0'"),
            ("web1:65536", "from 1 to 65535, not '65536'"),
            ("web1:+22", "from 1 to 65535"),
            ("web1:ssh", "from 1 to 65535"),
            ("[::1]:", "a port must follow"),
            ("[::1", "never closed"),
            ("[::1]2222", "may follow ']'"),
            ("web1:22:33", "[address]:port"),
            ("fe80::1%", "[address]:port"),
            ("fe80::1%eth0:22", "[address]:port"),
            ("[a:b]:22", "must be an IPv6 address"),
            ("-oProxyCommand=x", "a host may not begin with '-'"),
            ("[-web1]", "a host may not begin with '-'"),
            ("-l@web1", "a user may not begin with '-'"),
            ("ssh://%2Dl@web1", "a user may not begin with '-'"),
            ("ssh://%2Dweb1", "a host may not begin with '-'"),
            ("web 1", "spaces or control"),
            ("web1\n", "spaces or control"),
            ("web1\0", "spaces or control"),
            ("al\u{1b}ice@web1", "control characters"),
            ("ssh://a%0Ab@web1", "control characters"),
            ("web*", "may not contain '*'"),
            ("a,b", "may not contain ','"),
            ("web1/etc", "may not contain '/'"),
            ("$(reboot)", "may not contain '$'"),
            ("ssh://web1/etc", "a path is not understood"),
            ("ssh://alice:secret@web1", "a password does not belong"),
            ("ssh://alice;fingerprint=x@web1", "connection parameters"),
            ("ssh://a%4@web1", "two hexadecimal digits"),
            ("ssh://a%zz@web1", "two hexadecimal digits"),
            ("ssh://%FF@web1", "not UTF-8"),
            ("http://web1", "only ssh:// is"),
        ];
        for (text, expected) in table {
            let error = text.parse::<Target>().expect_err(text);
            assert!(matches!(error, Error::InvalidTarget { .. }), "{text:?}: {error:?}");
            assert!(error.to_string().contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_not_repeated_in_the_error() {
        for text in ["ssh://alice:s3cret@web1", "ssh://alice:s3:cr@et@web1/x", "http://alice:s3cret@web1"] {
            let error = text.parse::<Target>().expect_err(text);
            assert!(!format!("{error} {error:?}").contains("s3"), "{error:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_what_parses_is_displayed_as_itself(text in "(ssh://)?[-a-z0-9%@:;/\\[\\]. é\\n]{0,24}") {
            if let Ok(target) = text.parse::<Target>() {
                prop_assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
            }
        }

        #[test]
        fn every_part_survives_display_and_parse(
            user in proptest::option::of("[a-zA-Z0-9_.@\\\\:%é][a-zA-Z0-9_.@\\\\:%é-]{0,12}"),
            host in prop_oneof!["[a-z0-9][a-z0-9._-]{0,12}", any::<Ipv6Addr>().prop_map(|a| a.to_string())],
            port in proptest::option::of(1u16..),
        ) {
            let target = Target { user, host, port };
            prop_assert_eq!(target.to_string().parse::<Target>().unwrap(), target);
        }
    }
}
