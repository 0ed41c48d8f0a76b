//! What `-L`, `-R`, `-D` and `-W` say, in OpenSSH's syntax. Pure.
//!
//! Fields are separated by colons. One in brackets, as `[::1]`, is taken as it is; elsewhere a backslash takes the next
//! character as it is. A field with a `/` in it is the path of a Unix socket.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use threadline::{Endpoint, Forward, ForwardBuilder};

/// Which side listens, and who says where to connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `-L`: here, to a place at the server's side.
    Local,
    /// `-R` with a target: at the server, to a place on our side.
    Remote,
    /// `-D`: here; SOCKS says where to.
    Dynamic,
    /// `-R` without a target: at the server; SOCKS says where to.
    RemoteDynamic,
}

/// The option that a text belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Letter {
    L,
    R,
    D,
    W,
}

/// One forward that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    pub kind: Kind,
    /// Where to listen; an empty host is the loopback, `*` all addresses.
    pub listen: Endpoint,
    /// Where to connect; SOCKS says it where there is none.
    pub target: Option<Endpoint>,
    /// The option as it was given.
    pub text: String,
}

impl Spec {
    /// Reads what follows `-L`, `-R` or `-D`.
    pub fn parse(letter: Letter, text: &OsStr) -> Result<Spec, String> {
        let shown = format!("{letter} {}", text.to_string_lossy());
        let fields = fields(text.as_bytes()).and_then(|fields| {
            let (listen, rest) = listen_end(letter, &fields)?;
            let target = target_end(letter, rest, fields.len() - rest.len())?;
            Ok((listen, target))
        });
        let (listen, target) = fields.map_err(|problem| format!("{shown}: {problem}"))?;
        let kind = match (letter, &target) {
            (Letter::L, _) => Kind::Local,
            (Letter::R, Some(_)) => Kind::Remote,
            (Letter::R, None) => Kind::RemoteDynamic,
            (Letter::D | Letter::W, _) => Kind::Dynamic,
        };
        Ok(Spec { kind, listen, target, text: shown })
    }

    /// Reads what follows `-W`: `host:port`, or a path.
    pub fn parse_target(text: &OsStr) -> Result<Endpoint, String> {
        let named = |problem| format!("{} {}: {problem}", Letter::W, text.to_string_lossy());
        let fields = fields(text.as_bytes()).map_err(named)?;
        let target = target_end(Letter::W, &fields, 0).map_err(named)?;
        target.ok_or_else(|| named(Letter::W.forms().to_owned()))
    }

    /// The forward as the library sets it up, listening at this place.
    pub fn builder(&self, listen: &Endpoint) -> ForwardBuilder {
        match (self.kind, &self.target) {
            (Kind::Local, Some(target)) => Forward::local(listen, target),
            (Kind::Remote, Some(target)) => Forward::remote(listen, target),
            (Kind::Local | Kind::Dynamic, _) => Forward::dynamic(listen),
            (Kind::Remote | Kind::RemoteDynamic, _) => Forward::remote_dynamic(listen),
        }
    }

    /// Whether the server listens.
    pub fn listens_there(&self) -> bool {
        matches!(self.kind, Kind::Remote | Kind::RemoteDynamic)
    }

    /// The kind's name in NDJSON.
    pub fn kind_name(&self) -> &'static str {
        match self.kind {
            Kind::Local => "local",
            Kind::Remote => "remote",
            Kind::Dynamic => "dynamic",
            Kind::RemoteDynamic => "remote-dynamic",
        }
    }
}

impl fmt::Display for Letter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-{self:?}")
    }
}

impl Letter {
    /// How it is written.
    fn forms(self) -> &'static str {
        match self {
            Letter::L => "write -L [BIND:]PORT:HOST:HOSTPORT, with a /PATH in place of [BIND:]PORT or HOST:HOSTPORT for a Unix socket",
            Letter::R => "write -R [BIND:]PORT:HOST:HOSTPORT, with a /PATH in place of [BIND:]PORT or HOST:HOSTPORT for a Unix socket, or -R [BIND:]PORT for a SOCKS proxy at the server",
            Letter::D => "write -D [BIND:]PORT, or -D /PATH for a Unix socket",
            Letter::W => "write -W HOST:PORT, or -W /PATH for a Unix socket",
        }
    }
}

/// What stands between two colons.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Field {
    bytes: Vec<u8>,
    is_path: bool,
}

/// Takes a text apart at its colons.
fn fields(text: &[u8]) -> Result<Vec<Field>, String> {
    let (mut fields, mut rest) = (Vec::new(), Some(text));
    while let Some(text) = rest {
        let number = fields.len() + 1;
        let (bytes, after) = if text.first() == Some(&b'[') { bracketed(text, number) } else { plain(text, number) }?;
        fields.push(Field { is_path: bytes.contains(&b'/'), bytes });
        rest = after;
    }
    Ok(fields)
}

/// A field and, where a colon follows, the text behind it.
type Split<'a> = (Vec<u8>, Option<&'a [u8]>);

fn bracketed(text: &[u8], number: usize) -> Result<Split<'_>, String> {
    let end = text.iter().position(|&b| b == b']');
    let end = end.ok_or_else(|| format!("field {number} begins with '[', and no ']' ends it"))?;
    let after = match text.get(end + 1) {
        None => None,
        Some(b':') => Some(&text[end + 2..]),
        Some(_) => return Err(format!("field {number} goes on behind its ']'; a colon has to follow")),
    };
    Ok((text[1..end].to_vec(), after))
}

fn plain(text: &[u8], number: usize) -> Result<Split<'_>, String> {
    let mut bytes = Vec::new();
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        match byte {
            b':' => return Ok((bytes, Some(&text[at + 1..]))),
            b'\\' => {
                at += 1;
                let next = text.get(at);
                bytes.push(
                    *next.ok_or_else(|| format!("field {number} ends with a backslash, which needs a character"))?,
                );
            }
            byte => bytes.push(byte),
        }
        at += 1;
    }
    Ok((bytes, None))
}

/// Where to listen, and the fields that are left for the target. As in ssh, it is the number of fields, and which of
/// them are paths, that tells what they mean.
fn listen_end(letter: Letter, fields: &[Field]) -> Result<(Endpoint, &[Field]), String> {
    let wrong = || {
        let hint = if fields.len() > 4 { "; an IPv6 address is written in brackets" } else { "" };
        let count = if fields.len() == 1 { "1 field".to_owned() } else { format!("{} fields", fields.len()) };
        Err(format!(
            "{count} {}{hint}; {}",
            if fields.len() == 1 { "is not understood" } else { "are not understood" },
            letter.forms()
        ))
    };
    let takes_target = !matches!(letter, Letter::D);
    let proxy = !matches!(letter, Letter::L);
    match fields {
        [path] if path.is_path && proxy => Ok((unix(path), &[])),
        [port] if proxy => Ok((Endpoint::tcp("", listen_port(port, 1)?), &[])),
        [path, rest @ ..] if path.is_path && takes_target && matches!(rest.len(), 1 | 2) => Ok((unix(path), rest)),
        [port, target] if target.is_path && takes_target => {
            Ok((Endpoint::tcp("", listen_port(port, 1)?), std::slice::from_ref(target)))
        }
        [bind, port] if proxy && !bind.is_path && !port.is_path => Ok((bound(bind, port)?, &[])),
        [bind, port, target] if target.is_path && takes_target => {
            Ok((bound(bind, port)?, std::slice::from_ref(target)))
        }
        [port, rest @ ..] if takes_target && rest.len() == 2 => Ok((Endpoint::tcp("", listen_port(port, 1)?), rest)),
        [bind, port, rest @ ..] if takes_target && rest.len() == 2 => Ok((bound(bind, port)?, rest)),
        _ => wrong(),
    }
}

/// Where to connect; `before` fields stand before these.
fn target_end(letter: Letter, fields: &[Field], before: usize) -> Result<Option<Endpoint>, String> {
    match fields {
        [] => Ok(None),
        [path] if path.is_path => Ok(Some(unix(path))),
        [host, port] => {
            let host = name(host, before + 1)?;
            if host.is_empty() || host == "*" {
                return Err(format!("field {} is '{host}', which is no host to connect to", before + 1));
            }
            match number(port, before + 2)? {
                0 => Err(format!("field {} is port 0, at which nobody listens", before + 2)),
                port => Ok(Some(Endpoint::tcp(host, port))),
            }
        }
        _ => Err(letter.forms().to_owned()),
    }
}

/// An address to listen on. One that is there and empty is all addresses, as `*` is; one that is not there, the loopback.
fn bound(bind: &Field, port: &Field) -> Result<Endpoint, String> {
    let host = name(bind, 1)?;
    let host = if host.is_empty() { "*".to_owned() } else { host };
    Ok(Endpoint::tcp(host, listen_port(port, 2)?))
}

fn unix(field: &Field) -> Endpoint {
    Endpoint::unix(OsString::from_vec(field.bytes.clone()))
}

fn name(field: &Field, position: usize) -> Result<String, String> {
    if field.is_path {
        return Err(format!("field {position} is a path, where a host has to stand"));
    }
    String::from_utf8(field.bytes.clone()).map_err(|_| format!("field {position} is a host whose name is not UTF-8"))
}

fn listen_port(field: &Field, position: usize) -> Result<u16, String> {
    number(field, position).map_err(|problem| format!("{problem}; 0 is any that is free"))
}

fn number(field: &Field, position: usize) -> Result<u16, String> {
    let text = String::from_utf8_lossy(&field.bytes);
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let port = digits.then(|| text.parse().ok()).flatten();
    port.ok_or_else(|| format!("field {position} is '{text}', which is no port: a number up to 65535"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(letter: Letter, text: &str) -> Result<Spec, String> {
        Spec::parse(letter, OsStr::new(text))
    }

    #[test]
    fn every_form_of_openssh_is_read() {
        use Letter::{D, L, R};
        let tcp = |host: &str, port| Endpoint::tcp(host, port);
        let (socket, other) = (Endpoint::unix("/run/s"), Endpoint::unix("./o:1"));
        for (letter, text, listen, target) in [
            (L, "8080:db:5432", tcp("", 8080), Some(tcp("db", 5432))),
            (L, "0:db:5432", tcp("", 0), Some(tcp("db", 5432))),
            (L, "127.0.0.1:8080:db:5432", tcp("127.0.0.1", 8080), Some(tcp("db", 5432))),
            (L, "*:8080:db:5432", tcp("*", 8080), Some(tcp("db", 5432))),
            (L, ":8080:db:5432", tcp("*", 8080), Some(tcp("db", 5432))),
            (L, "[::1]:8080:[fe80::1%eth0]:80", tcp("::1", 8080), Some(tcp("fe80::1%eth0", 80))),
            (L, "8080:[::1]:80", tcp("", 8080), Some(tcp("::1", 80))),
            (L, r"8080:\:\:1:80", tcp("", 8080), Some(tcp("::1", 80))),
            (L, "8080:/run/s", tcp("", 8080), Some(socket.clone())),
            (L, "localhost:8080:/run/s", tcp("localhost", 8080), Some(socket.clone())),
            (L, "/run/s:db:5432", socket.clone(), Some(tcp("db", 5432))),
            (L, r"/run/s:./o\:1", socket.clone(), Some(other.clone())),
            (L, "[./o:1]:/run/s", other.clone(), Some(socket.clone())),
            (R, "0:localhost:80", tcp("", 0), Some(tcp("localhost", 80))),
            (R, "*:9000:localhost:80", tcp("*", 9000), Some(tcp("localhost", 80))),
            (R, "/run/s:/run/s", socket.clone(), Some(socket.clone())),
            (R, "1080", tcp("", 1080), None),
            (R, "[::]:1080", tcp("::", 1080), None),
            (R, ":1080", tcp("*", 1080), None),
            (R, "/run/s", socket.clone(), None),
            (D, "1080", tcp("", 1080), None),
            (D, "*:1080", tcp("*", 1080), None),
            (D, "[::1]:1080", tcp("::1", 1080), None),
            (D, "/run/s", socket.clone(), None),
        ] {
            let spec = parse(letter, text).unwrap_or_else(|problem| panic!("{problem}"));
            assert_eq!((&spec.listen, &spec.target), (&listen, &target), "{letter} {text}");
            assert_eq!(spec.text, format!("{letter} {text}"));
        }
        for (text, target) in [("db:22", tcp("db", 22)), ("[::1]:22", tcp("::1", 22)), ("/run/s", socket)] {
            assert_eq!(Spec::parse_target(OsStr::new(text)), Ok(target));
        }
        let bytes = Spec::parse(Letter::D, OsStr::from_bytes(b"/tmp/\xff")).unwrap();
        assert_eq!(bytes.listen, Endpoint::unix(OsStr::from_bytes(b"/tmp/\xff")));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        use Letter::{D, L, R};
        for (letter, text, expected) in [
            (L, "", "1 field is not understood"),
            (L, "8080", "write -L [BIND:]PORT:HOST:HOSTPORT"),
            (L, "/run/s", "1 field"),
            (L, "8080:db", "2 fields"),
            (L, "::1:80:db:80", "an IPv6 address is written in brackets"),
            (L, "80x:db:5432", "field 1 is '80x', which is no port"),
            (L, "8080:db:54321x", "field 3 is '54321x'"),
            (L, "8080:db:65536", "field 3 is '65536'"),
            (L, "8080:db:+80", "field 3 is '+80'"),
            (L, "8080:db:", "field 3 is ''"),
            (L, "8080:db:0", "field 3 is port 0"),
            (L, "8080::5432", "field 2 is '', which is no host"),
            (L, "8080:*:5432", "field 2 is '*', which is no host"),
            (L, "[::1:8080:db:80", "field 1 begins with '[', and no ']'"),
            (L, "[::1]8080:db:80", "field 1 goes on behind its ']'"),
            (L, r"8080:db:80\", "field 3 ends with a backslash"),
            (L, "/a:8080:db:80", "field 1 is a path"),
            (L, "8080:/a:80", "field 2 is a path"),
            (R, "", "field 1 is ''"),
            (R, "a:b", "field 2 is 'b'"),
            (R, "1:2:3:4:5", "5 fields"),
            (D, "80:db:80", "3 fields are not understood; write -D"),
            (D, "/a:80", "2 fields"),
        ] {
            let problem = parse(letter, text).expect_err(text);
            assert!(problem.starts_with(&format!("{letter} {text}: ")), "{problem}");
            assert!(problem.contains(expected), "{letter} {text}: {problem}");
        }
        for (text, expected) in
            [("db", "-W HOST:PORT"), (":22", "no host"), ("db:0", "port 0"), ("a:b:c", "-W HOST:PORT")]
        {
            let problem = Spec::parse_target(OsStr::new(text)).expect_err(text);
            assert!(problem.contains(expected) && problem.starts_with("-W "), "{problem}");
        }
    }

    /// As a user has to write it.
    fn written(endpoint: &Endpoint, brackets: bool) -> String {
        let field = |text: &str| {
            if brackets && !text.contains(']') {
                return format!("[{text}]");
            }
            let special = |c| matches!(c, ':' | '\\' | '[');
            text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
        };
        match endpoint {
            Endpoint::Tcp { host, port } => format!("{}:{port}", field(host)),
            other => field(&other.path().unwrap().display().to_string()),
        }
    }

    fn endpoint() -> impl Strategy<Value = Endpoint> {
        let tcp = ("[a-z0-9.:\\\\\\]%é-]{1,20}", 1..=u16::MAX).prop_map(|(host, port)| Endpoint::tcp(host, port));
        let path = "[./a-z :\\\\\\[\\]é]{0,10}/[a-z :\\\\\\[\\]é]{0,10}".prop_map(Endpoint::unix);
        prop_oneof![tcp, path]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(listen in endpoint(), target in endpoint(), brackets: bool) {
            let text = format!("{}:{}", written(&listen, brackets), written(&target, brackets));
            for letter in [Letter::L, Letter::R] {
                let spec = parse(letter, &text);
                prop_assert_eq!(spec.map(|s| (s.listen, s.target)), Ok((listen.clone(), Some(target.clone()))), "{}", &text);
            }
            for letter in [Letter::R, Letter::D] {
                let spec = parse(letter, &written(&listen, brackets));
                prop_assert_eq!(spec.map(|s| (s.listen, s.target)), Ok((listen.clone(), None)));
            }
            prop_assert_eq!(Spec::parse_target(OsStr::new(&written(&target, brackets))), Ok(target));
        }

        #[test]
        fn any_bytes_at_all_are_read_or_explained(bytes in proptest::collection::vec(prop_oneof![Just(b':'), Just(b'['), Just(b']'), Just(b'/'), Just(b'1'), any::<u8>()], 0..30)) {
            for letter in [Letter::L, Letter::R, Letter::D] {
                if let Err(problem) = Spec::parse(letter, OsStr::from_bytes(&bytes)) {
                    prop_assert!(!problem.is_empty());
                }
            }
            let _ = Spec::parse_target(OsStr::from_bytes(&bytes));
        }
    }
}
