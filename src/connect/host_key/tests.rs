use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::Barrier;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A key that no server has: its type and a few bytes.
fn key(key_type: &str, body: u8) -> HostKey {
    let mut blob = (key_type.len() as u32).to_be_bytes().to_vec();
    blob.extend_from_slice(key_type.as_bytes());
    blob.extend_from_slice(&[0, 0, 0, 1, body]);
    HostKey::from_blob(&blob).unwrap()
}

fn ed(body: u8) -> HostKey {
    key("ssh-ed25519", body)
}

fn known(text: &str) -> KnownHosts {
    let path = PathBuf::from("known_hosts");
    KnownHosts { lines: parse(&path, text.as_bytes()), files: vec![path] }
}

/// The number of the line that a standing points to.
fn short(standing: &Standing<'_>) -> String {
    match standing {
        Standing::Known => "known".into(),
        Standing::Unknown => "unknown".into(),
        Standing::Changed(line) => format!("changed {}", line.number),
        Standing::Revoked(line) => format!("revoked {}", line.number),
    }
}

fn ssh_keygen(arguments: &[&str]) -> String {
    let run = Command::new("ssh-keygen").args(arguments).output().expect("ssh-keygen must be installed for the tests");
    assert!(run.status.success(), "ssh-keygen {arguments:?}: {}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8(run.stdout).unwrap()
}

/// A real key, made by ssh-keygen in `dir`, and its fingerprint as ssh-keygen tells it.
fn real_key(dir: &Path, key_type: &str) -> (HostKey, String) {
    let path = dir.join(format!("key_{key_type}"));
    let path = path.to_str().unwrap();
    ssh_keygen(&["-q", "-t", key_type, "-N", "", "-f", path]);
    let public = fs::read_to_string(format!("{path}.pub")).unwrap();
    let blob = STANDARD.decode(public.split(' ').nth(1).unwrap()).unwrap();
    let fingerprint = ssh_keygen(&["-l", "-f", path]).split(' ').nth(1).unwrap().to_owned();
    (HostKey::from_blob(&blob).unwrap(), fingerprint)
}

#[test]
fn a_host_is_looked_up_as_openssh_does() {
    assert_eq!(HostName::new("Web1", 22).lookup(), "web1");
    assert_eq!(HostName::new("WEB1", 2222).lookup(), "[web1]:2222");
    assert_eq!(HostName::new("2001:DB8::7", 22).lookup(), "2001:db8::7");
    assert_eq!(HostName::new("::1", 2222).to_string(), "[::1]:2222");
    assert_eq!(HostName::new("a\nb", 22).to_string(), "a\\nb");
}

#[test]
fn a_blob_without_a_type_is_no_key() {
    let long = [&[0, 0, 0, 65][..], &[b'a'; 65]].concat();
    let blobs: [&[u8]; 8] = [
        b"",
        b"\0\0\0",
        b"\0\0\0\0",
        b"\0\0\0\x05abcd",
        b"\xff\xff\xff\xffabcd",
        b"\0\0\0\x03a c",
        b"\0\0\0\x03a\nc",
        &long,
    ];
    for blob in blobs {
        assert!(matches!(HostKey::from_blob(blob), Err(Error::Protocol(_))), "{blob:?}");
    }
}

#[test]
fn real_keys_have_the_fingerprint_that_ssh_keygen_prints() {
    let dir = TempDir::new().unwrap();
    for (key_type, name) in [("ed25519", "ssh-ed25519"), ("ecdsa", "ecdsa-sha2-nistp256"), ("rsa", "ssh-rsa")] {
        let (key, fingerprint) = real_key(dir.path(), key_type);
        assert_eq!(key.key_type(), name);
        assert_eq!(key.fingerprint(), fingerprint);
        let line = fs::read_to_string(dir.path().join(format!("key_{key_type}.pub"))).unwrap();
        assert!(line.starts_with(&key.to_openssh()), "{line}");
    }
}

#[test]
fn globs_fit_as_in_openssh() {
    let table = [
        ("web1", "web1", true),
        ("web1", "web10", false),
        ("web?", "web1", true),
        ("web?", "web", false),
        ("*", "", true),
        ("*", "anything", true),
        ("*.example.org", "a.b.example.org", true),
        ("*.example.org", "example.org", false),
        ("w*b*1", "wxxbyy1", true),
        ("w*b*1", "wxxbyy2", false),
        ("a**", "a", true),
        ("[web*]:22*", "[web7]:2222", true),
        ("[abc]", "a", false),
        ("", "", true),
        ("", "a", false),
    ];
    for (glob, name, expected) in table {
        assert_eq!(glob_fits(glob.as_bytes(), name.as_bytes()), expected, "{glob} {name}");
    }
    // would not end in a lifetime with a matcher that tries every split
    assert!(!glob_fits("*a".repeat(200).as_bytes(), "a".repeat(10_000).replace("a", "ab").as_bytes()));
}

#[test]
fn the_names_of_a_line() {
    let table = [
        ("web1,web2", "web2", true),
        ("web1,,web2", "web2", true),
        ("WEB1", "web1", true),
        ("web*,!web3", "web1", true),
        ("web*,!web3", "web3", false),
        ("!web3,web*", "web3", false),
        ("!web3", "web1", false),
        ("[web1]:2222,10.0.0.7", "[web1]:2222", true),
        ("[web1]:2222,10.0.0.7", "web1", false),
        ("[*.example.org]:2222", "[a.example.org]:2222", true),
        ("::1", "::1", true),
    ];
    for (names, host, expected) in table {
        assert_eq!(parse_names(names.as_bytes()).unwrap().include(host), expected, "{names} {host}");
    }
}

#[test]
fn the_standing_of_a_key() {
    let (a, b) = (ed(1).to_openssh(), ed(2).to_openssh());
    let rsa = key("ssh-rsa", 1).to_openssh();
    let table = [
        // the text of the known hosts, the host's port, what becomes of key a
        (String::new(), 22, "unknown"),
        (format!("web1 {a}"), 22, "known"),
        (format!("web1 {b}"), 22, "changed 1"),
        (format!("web2 {b}"), 22, "unknown"),
        (format!("web1 {b}\nweb1 {a}"), 22, "known"),
        (format!("web1 {rsa}\nweb1 {b}"), 22, "changed 2"),
        // OpenSSH 9.2, asked: a type that is not on record is a change
        (format!("web1 {rsa}"), 22, "changed 1"),
        (format!("web1 {rsa}\nweb1 {a}"), 22, "known"),
        (format!("# web1 {b}\n\n  web1\t{a} a comment"), 22, "known"),
        (format!("[web1]:2222 {a}"), 22, "unknown"),
        (format!("[web1]:2222 {a}"), 2222, "known"),
        (format!("[web1]:2222 {b}"), 2222, "changed 1"),
        (format!("[web1]:2223 {b}"), 2222, "unknown"),
        // the plain name helps only when the port is unknown, and never harms
        (format!("web1 {a}"), 2222, "known"),
        (format!("web1 {b}"), 2222, "unknown"),
        (format!("web1 {a}\n[web1]:2222 {b}"), 2222, "changed 2"),
        (format!("web1 {b}\n[web1]:2222 {a}"), 2222, "known"),
        // revoked outweighs known, wherever it stands
        (format!("web1 {a}\n@revoked web1 {a}"), 22, "revoked 2"),
        (format!("@revoked * {a}\nweb1 {a}"), 22, "revoked 1"),
        (format!("@revoked web1 {a}\n[web1]:2222 {a}"), 2222, "revoked 1"),
        (format!("@revoked web2 {a}\nweb1 {a}"), 22, "known"),
        (format!("@revoked web1 {b}\nweb1 {a}"), 22, "known"),
        (format!("@revoked web1 {b}"), 22, "unknown"),
        // an authority says nothing about plain keys
        (format!("@cert-authority * {a}"), 22, "unknown"),
        (format!("@cert-authority * {b}"), 22, "unknown"),
        // bad lines do not hide good ones
        (format!("web1\nweb1 ssh-ed25519\nweb1 ssh-ed25519 !!!\n@what web1 {b}\nweb1 {a}"), 22, "known"),
        (format!("web1 ssh-rsa {}", b.split(' ').nth(1).unwrap()), 22, "unknown"),
        (format!("web1 1024 35 1234567\n|1|x|y {b}\n|2|x|y {b}\n, {b}\nweb1 {a}"), 22, "known"),
        (format!("web1 {a}\r\nweb2 {b}\r\n"), 22, "known"),
        (format!("{}web1 {a}", "x,".repeat(100_000)), 22, "known"),
        (format!("WEB1 {a}"), 22, "known"),
        (format!("*,!web1 {a}"), 22, "unknown"),
    ];
    for (text, port, expected) in table {
        let known = known(&text);
        let standing = judge(&known, &HostName::new("Web1", port), &ed(1));
        assert_eq!(short(&standing), expected, "{}", &text[text.len().saturating_sub(300)..]);
    }
}

#[test]
fn a_comment_in_another_encoding_does_no_harm() {
    let text = [b"web1 ", ed(1).to_openssh().as_bytes(), b" J\xfcrgen\n"].concat();
    assert_eq!(parse(Path::new("known_hosts"), &text).len(), 1);
}

#[test]
fn types_on_record_are_asked_for_first_and_certificates_never() {
    let all = algorithms(&known(""), &HostName::new("web1", 22));
    assert_eq!(
        all,
        [
            "ssh-ed25519",
            "ecdsa-sha2-nistp256",
            "ecdsa-sha2-nistp384",
            "ecdsa-sha2-nistp521",
            "rsa-sha2-512",
            "rsa-sha2-256"
        ]
    );
    let rsa = key("ssh-rsa", 1).to_openssh();
    let ecdsa = key("ecdsa-sha2-nistp384", 1).to_openssh();
    let table = [
        (format!("web1 {rsa}"), 22, vec!["rsa-sha2-512", "rsa-sha2-256", "ssh-ed25519"]),
        (format!("web1 {rsa}\nweb1 {ecdsa}"), 22, vec!["ecdsa-sha2-nistp384", "rsa-sha2-512", "rsa-sha2-256"]),
        (format!("web1 {rsa}"), 2222, vec!["rsa-sha2-512"]),
        (format!("web1 {rsa}\n[web1]:2222 {ecdsa}"), 2222, vec!["ecdsa-sha2-nistp384", "ssh-ed25519"]),
        (format!("@revoked web1 {rsa}"), 22, vec!["ssh-ed25519"]),
        (format!("web1 {}", key("ssh-dss", 1).to_openssh()), 22, vec!["ssh-ed25519"]),
    ];
    for (text, port, first) in table {
        let offered = algorithms(&known(&text), &HostName::new("web1", port));
        assert!(offered.starts_with(&first), "{text}: {offered:?}");
        assert_eq!(offered.iter().collect::<HashSet<_>>(), all.iter().collect(), "{text}");
    }
}

#[test]
fn what_ssh_keygen_hashes_is_found() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("known_hosts");
    let (key, _) = real_key(dir.path(), "ed25519");
    let (other, _) = real_key(dir.path(), "ecdsa");
    let text = format!("web1,10.0.0.7 {0}\n[web1]:2222 {1}\n[::1]:2222 {0}\n", key.to_openssh(), other.to_openssh());
    fs::write(&path, text).unwrap();
    ssh_keygen(&["-H", "-f", path.to_str().unwrap()]);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.lines().count() >= 4 && text.lines().all(|line| line.starts_with("|1|")), "{text}");

    let known = KnownHosts::read(&[path]).unwrap();
    assert_eq!(known.lines.len(), text.lines().count());
    let standing = |host, port| short(&judge(&known, &HostName::new(host, port), &key));
    assert_eq!(standing("WEB1", 22), "known");
    assert_eq!(standing("10.0.0.7", 22), "known");
    assert_eq!(standing("::1", 2222), "known");
    assert_eq!(standing("web2", 22), "unknown");
    assert!(standing("web1", 2222).starts_with("changed"));
}

#[test]
fn files_are_read_in_order_and_a_missing_one_is_empty() {
    let dir = TempDir::new().unwrap();
    let files = ["missing", "first", "missing/too", "second"].map(|name| dir.path().join(name)).to_vec();
    fs::write(&files[1], format!("web1 {}\n", ed(1).to_openssh())).unwrap();
    fs::write(&files[3], format!("web1 {}\nweb2 {}", ed(2).to_openssh(), ed(3).to_openssh())).unwrap();
    let known = KnownHosts::read(&files).unwrap();
    assert_eq!(judge(&known, &HostName::new("web1", 22), &ed(2)), Standing::Known);
    match judge(&known, &HostName::new("web2", 22), &ed(1)) {
        Standing::Changed(line) => assert_eq!((&line.file, line.number), (&files[3], 2)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_that_names_it() {
    let dir = TempDir::new().unwrap();
    let error = KnownHosts::read(&[dir.path().to_owned()]).unwrap_err();
    assert!(matches!(error, Error::HostKey(_)), "{error:?}");
    assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
    let error = KnownHosts::read(&["/dev/zero".into()]).unwrap_err();
    assert!(error.to_string().contains("larger than 64 MiB"), "{error}");
}

#[test]
fn the_default_files_are_openssh_s() {
    let files = files_below(Some(Path::new("/home/alice")));
    let texts: Vec<_> = files.iter().map(|f| f.to_str().unwrap()).collect();
    assert_eq!(
        texts,
        [
            "/home/alice/.ssh/known_hosts",
            "/home/alice/.ssh/known_hosts2",
            "/etc/ssh/ssh_known_hosts",
            "/etc/ssh/ssh_known_hosts2"
        ]
    );
    assert_eq!(files_below(None), files[2..]);
    assert!(home_dir().is_some());
}

struct Because;

impl MissingHostKeyPolicy for Because {
    fn missing_host_key(&self, host: &HostName, key: &HostKey) -> Verdict {
        Verdict::RejectBecause(format!("{host} is not {}\u{7}", key.key_type()))
    }
}

/// Fails the test when it is asked.
struct NotAsked;

impl MissingHostKeyPolicy for NotAsked {
    fn missing_host_key(&self, host: &HostName, _key: &HostKey) -> Verdict {
        panic!("asked about {host}")
    }
}

#[test]
fn the_policy_decides_about_unknown_hosts_only() {
    let web1 = HostName::new("web1", 22);
    let text = format!("web1 {}\n@revoked web1 {}\n", ed(1).to_openssh(), ed(3).to_openssh());
    let known = known(&text);
    check(&known, &NotAsked, &web1, &ed(1)).unwrap();
    let accepting: [&dyn MissingHostKeyPolicy; 3] = [&NotAsked, &AutoAddPolicy, &WarningPolicy];
    for policy in accepting {
        let error = check(&known, policy, &web1, &ed(2)).unwrap_err();
        assert!(error.to_string().contains("HAS CHANGED"), "{error}");
        assert!(error.to_string().contains("known_hosts:1 says SHA256:"), "{error}");
        assert!(error.hint().unwrap().contains("remove line 1"), "{error:?}");
        let error = check(&known, policy, &web1, &ed(3)).unwrap_err();
        assert!(error.to_string().contains("is revoked"), "{error}");
    }
    let web2 = HostName::new("web2", 2222);
    check(&known, &WarningPolicy, &web2, &ed(1)).unwrap();
    let error = check(&known, &RejectPolicy, &web2, &ed(1)).unwrap_err();
    let expected = format!("the host key of [web2]:2222 is not known: ssh-ed25519 {}", ed(1).fingerprint());
    assert!(error.to_string().starts_with(&expected), "{error}");
    let error = check(&known, &Because, &web2, &ed(1)).unwrap_err();
    assert!(error.to_string().ends_with("[web2]:2222 is not ssh-ed25519\\u{7}"), "{error}");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_new_host_is_added_and_openssh_finds_it() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("home/.ssh/known_hosts");
    let files = vec![file.clone(), dir.path().join("second")];
    let (key, _) = real_key(dir.path(), "ed25519");
    let web1 = HostName::new("Web1", 2222);
    check(&KnownHosts::read(&files).unwrap(), &AutoAddPolicy, &web1, &key).unwrap();

    assert_eq!((mode(file.parent().unwrap()), mode(&file)), (0o700, 0o600));
    assert!(!files[1].exists());
    let found = ssh_keygen(&["-F", "[web1]:2222", "-f", file.to_str().unwrap()]);
    assert!(found.contains(&key.to_openssh()), "{found}");
    let known = KnownHosts::read(&files).unwrap();
    check(&known, &NotAsked, &web1, &key).unwrap();
}

#[test]
fn a_file_without_a_last_newline_gets_one_first() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("known_hosts");
    let before = format!("web1 {}", ed(1).to_openssh());
    fs::write(&file, &before).unwrap();
    let known = KnownHosts::read(std::slice::from_ref(&file)).unwrap();
    check(&known, &AutoAddPolicy, &HostName::new("web2", 22), &ed(2)).unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("{before}\nweb2 {}\n", ed(2).to_openssh()));
}

#[test]
fn a_key_added_by_another_in_the_meantime_is_compared() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("known_hosts");
    let stale = KnownHosts::read(std::slice::from_ref(&file)).unwrap();
    let text = format!("web1 {}\n", ed(1).to_openssh());
    fs::write(&file, &text).unwrap();
    let web1 = HostName::new("web1", 22);
    check(&stale, &AutoAddPolicy, &web1, &ed(1)).unwrap();
    let error = check(&stale, &AutoAddPolicy, &web1, &ed(2)).unwrap_err();
    assert!(error.to_string().contains("HAS CHANGED"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
}

#[test]
fn writers_at_the_same_time_neither_tear_nor_repeat_lines() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("known_hosts");
    let (hosts, threads) = (8, 6);
    let start = Barrier::new(threads);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                start.wait();
                let stale = KnownHosts { files: vec![file.clone()], lines: Vec::new() };
                for host in 0..hosts {
                    check(&stale, &AutoAddPolicy, &HostName::new(&format!("web{host}"), 22), &ed(host)).unwrap();
                }
            });
        }
    });
    let text = fs::read_to_string(&file).unwrap();
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    let expected: Vec<_> = (0..hosts).map(|host| format!("web{host} {}", ed(host).to_openssh())).collect();
    assert_eq!(lines, expected);
}

#[test]
fn one_that_adds_waits_for_another_that_is_adding() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("known_hosts");
    let (web1, stale) = (HostName::new("web1", 22), KnownHosts::read(std::slice::from_ref(&path)).unwrap());
    let mut other = open_to_add(&path).unwrap();
    lock(&other);
    let (done, added) = crossbeam_channel::bounded(1);
    thread::scope(|scope| {
        scope.spawn(|| done.send(check(&stale, &AutoAddPolicy, &web1, &ed(1))).unwrap());
        assert!(added.recv_timeout(Duration::from_millis(100)).is_err(), "it did not wait");
        other.write_all(format!("web1 {}\n", ed(1).to_openssh()).as_bytes()).unwrap();
        drop(other);
        added.recv_timeout(Duration::from_secs(30)).unwrap().unwrap();
    });
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1);
}

#[test]
fn a_key_that_cannot_be_remembered_is_not_accepted() {
    let dir = TempDir::new().unwrap();
    let nowhere = KnownHosts::default();
    let web1 = HostName::new("web1", 22);
    let error = check(&nowhere, &AutoAddPolicy, &web1, &ed(1)).unwrap_err();
    assert!(error.to_string().contains("no known-hosts file"), "{error}");

    let directory = KnownHosts { files: vec![dir.path().to_owned()], lines: Vec::new() };
    let error = check(&directory, &AutoAddPolicy, &web1, &ed(1)).unwrap_err();
    assert!(error.to_string().contains("cannot add the host key of web1"), "{error}");

    let file = dir.path().join("known_hosts");
    let known = KnownHosts::read(std::slice::from_ref(&file)).unwrap();
    for host in ["*", "web?", "!web1", "a,b", "a b", "a\nb", "|1|a|b", "#web1", "@revoked", ""] {
        let error = check(&known, &AutoAddPolicy, &HostName::new(host, 22), &ed(1)).unwrap_err();
        assert!(error.to_string().contains("would mean something else"), "{host:?}: {error}");
    }
    assert!(!file.exists());
}

#[test]
fn dev_null_remembers_nothing_and_is_no_error() {
    let known = KnownHosts::read(&["/dev/null".into()]).unwrap();
    check(&known, &AutoAddPolicy, &HostName::new("web1", 22), &ed(1)).unwrap();
}

proptest! {
    #[test]
    fn no_line_panics(line in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_line(&line);
        let _ = HostKey::from_blob(&line);
    }

    #[test]
    fn almost_good_lines_do_not_panic(
        line in "(@revoked |@cert-authority |@x )?(\\|1\\|[A-Za-z0-9+/=]{0,30}\\|[A-Za-z0-9+/=]{0,30}|[a-z*?!,\\[\\]:0-9]{0,20}) \
                 (ssh-ed25519|ssh-rsa) (AAAAC3NzaC1lZDI1NTE5)?[A-Za-z0-9+/=]{0,40} ?.{0,9}"
    ) {
        if let Ok(Some((names, ..))) = parse_line(line.as_bytes()) {
            let _ = names.include("[web1]:2222");
        }
    }

    #[test]
    fn what_is_written_is_read_back(
        host in "[a-zA-Z0-9.:_-]{1,20}",
        port in 1u16..,
        key_type in "[a-z0-9@.-]{1,64}",
        body in proptest::collection::vec(any::<u8>(), 0..100),
    ) {
        let blob = [&(key_type.len() as u32).to_be_bytes(), key_type.as_bytes(), &body].concat();
        let (host, key) = (HostName::new(&host, port), HostKey::from_blob(&blob).unwrap());
        let known = known(&format!("{} {}\n", host.lookup(), key.to_openssh()));
        prop_assert_eq!(known.lines.len(), 1);
        prop_assert_eq!(&known.lines[0].key, &key);
        prop_assert_eq!(judge(&known, &host, &key), Standing::Known);
        prop_assert_eq!(short(&judge(&known, &host, &ed(1))), "changed 1");
    }

    #[test]
    fn a_glob_made_from_a_name_fits_it(name in "[a-z.]{0,20}", cuts in proptest::collection::vec(any::<bool>(), 20)) {
        let glob: String = name.chars().zip(&cuts).map(|(c, cut)| if *cut { '?' } else { c }).collect();
        prop_assert!(glob_fits(glob.as_bytes(), name.as_bytes()));
        let glob: String = name.chars().zip(&cuts).map(|(c, cut)| if *cut { '*' } else { c }).collect();
        prop_assert!(glob_fits(glob.as_bytes(), name.as_bytes()));
    }
}
