//! Quoting for the remote login shell. Pure.
//!
//! sshd hands the command text to the user's login shell, so whatever must arrive unchanged has to be quoted. The
//! form chosen is read alike by sh, dash, bash, zsh, ksh and fish: everything that could mean something stands in
//! single quotes, except the two characters that fish, unlike the others, treats specially inside them (`'` and `\`);
//! those are escaped outside. csh and tcsh read it alike but for two things no quoting of theirs shares with sh: a
//! newline inside quotes is an error for them, and `!` starts a history substitution even in single quotes.

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
}
