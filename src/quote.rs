//! Quoting for the remote login shell. Pure.
//!
//! sshd hands the command text to the user's login shell, so whatever must arrive unchanged has to be quoted. The
//! form chosen is read alike by sh, dash, bash, zsh, ksh, fish, csh and tcsh: everything that could mean something
//! stands in single quotes, except three characters, which are escaped outside of them: `'`, which ends the quotes,
//! `\`, which fish reads inside them, and `!`, which csh reads inside them.
//!
//! One byte has no form that all shells share: csh and tcsh end a command at a newline, quotes or not, and go on with
//! the next line as another command. [`on_one_line`] therefore writes a text with newlines as a text without, for
//! `/bin/sh` to read.
//!
//! What differs from shell to shell is not what arrives but who receives it: a login shell looks up the program's name
//! among its own builtins (all shells) and functions (fish's `config.fish` and aliases; sh-like shells' and csh's
//! aliases, and reserved words such as `time`, are kept out by quoting the name, see [`command_line`]).

/// Appends one word so that a shell reads back exactly these bytes.
pub(crate) fn word(out: &mut Vec<u8>, word: &[u8]) {
    if !word.is_empty() && word.iter().all(|&b| is_plain(b)) {
        out.extend_from_slice(word);
        return;
    }
    let mut inside = false;
    for &byte in word {
        // `!` outside of quotes and escaped is the only form in which csh leaves it alone.
        let escaped = matches!(byte, b'\'' | b'\\' | b'!');
        if escaped == inside {
            out.push(b'\'');
            inside = !inside;
        }
        if escaped {
            out.push(b'\\');
        }
        out.push(byte);
    }
    if inside {
        out.push(b'\'');
    }
    if word.is_empty() {
        out.extend_from_slice(b"''");
    }
}

/// Bytes that mean nothing to any of the shells, wherever in a word they stand.
fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/' | b':' | b',' | b'+' | b'@')
}

/// A program and its arguments. The program's name is quoted even if it is plain: an alias or a reserved word of the
/// login shell (`time`, `repeat`) must not take its place.
pub(crate) fn command_line(all: &[Vec<u8>]) -> Vec<u8> {
    let Some((program, arguments)) = all.split_first() else { return Vec::new() };
    let mut out = Vec::new();
    if !program.is_empty() && program.iter().all(|&b| is_plain(b)) {
        out.push(b'\'');
        out.extend_from_slice(program);
        out.push(b'\'');
    } else {
        word(&mut out, program);
    }
    for argument in arguments {
        out.push(b' ');
        word(&mut out, argument);
    }
    out
}

/// A text whose newlines all stand inside of words that [`word`] has quoted, written without newlines. It is read by
/// `/bin/sh` then, and what it runs should be `exec`ed, so that no shell is left standing between.
pub(crate) fn on_one_line(text: Vec<u8>) -> Vec<u8> {
    if !text.contains(&b'\n') {
        return text;
    }
    // A command substitution loses newlines at its end. A positional parameter, as no program inherits those.
    let mut inner = br#"set -- "$(printf '\nx')"; set -- "${1%x}"; "#.to_vec();
    for &byte in &text {
        match byte {
            b'\n' => inner.extend_from_slice(br#"'"$1"'"#),
            _ => inner.push(byte),
        }
    }
    let mut out = b"exec /bin/sh -c ".to_vec();
    word(&mut out, &inner);
    out
}

/// The words, quoted and separated by spaces.
pub(crate) fn words<W: AsRef<[u8]>>(all: &[W]) -> Vec<u8> {
    let mut out = Vec::new();
    for (i, w) in all.iter().enumerate() {
        if i > 0 {
            out.push(b' ');
        }
        word(&mut out, w.as_ref());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quoted(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        word(&mut out, bytes);
        String::from_utf8_lossy(&out).into_owned()
    }

    #[test]
    fn plain_words_stay_as_they_are_and_others_are_quoted() {
        for (word, expected) in [
            ("ls", "ls"),
            ("/var/log/x-1.2_3", "/var/log/x-1.2_3"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            (r"back\slash", r"'back'\\'slash'"),
            ("!", r"\!"),
            ("$HOME", "'$HOME'"),
            ("~", "'~'"),
            ("=ls", "'=ls'"),
            ("a\nb", "'a\nb'"),
        ] {
            assert_eq!(quoted(word.as_bytes()), expected, "{word:?}");
        }
    }

    #[test]
    fn a_programs_name_is_quoted_whatever_it_is() {
        for (program, expected) in [("time", "'time' -p"), ("", "'' -p"), ("it's", r"'it'\''s' -p")] {
            let words = [program.as_bytes().to_vec(), b"-p".to_vec()];
            assert_eq!(String::from_utf8_lossy(&command_line(&words)), expected);
        }
    }

    #[test]
    fn newlines_are_left_to_sh() {
        assert_eq!(on_one_line(b"cd / && 'a b'".to_vec()), b"cd / && 'a b'");
        let text = on_one_line(words(&["exec", "printf", "%s|", "\n", "a\n\nb'\n!", "\\\n"]));
        assert!(!text.contains(&b'\n'));
        for shell in ["/bin/sh", "/bin/bash"] {
            use std::os::unix::ffi::OsStrExt;
            let text = std::ffi::OsStr::from_bytes(&text);
            let out = std::process::Command::new(shell).arg("-c").arg(text).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&out.stdout), "\n|a\n\nb'\n!|\\\n|", "{shell}");
        }
    }
}
