//! What is typed to a login shell so that it runs commands for a program; pure.
//!
//! The shell at the other end is an interactive one on a terminal: it edits lines, echoes, prints prompts. None of that
//! can be trusted to look like anything. So its line editor is turned off where it can be, its prompt becomes a mark of
//! ours, and each command is typed as text that no line editor and no history expansion touches, decoded over there and
//! evaluated by the living shell itself. Marks are printed before and behind it.
//!
//! A mark is RS, 32 random digits, a colon, its meaning, US. What is typed has the escapes `\036` and `\037` in their
//! place, so an echo never looks like a mark.

/// A family of shells that understand the same text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// sh, dash, bash, ksh, zsh, ash.
    Posix,
    Fish,
    /// csh and tcsh. A command goes through a file of mktemp's, because their `eval` takes one line only.
    Csh,
}

/// The texts for one shell. Each is one line, to be followed by the Return key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Script {
    pub dialect: Dialect,
    token: String,
}

/// What the shell says with a mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mark {
    /// The answer to the probe.
    Is(Dialect),
    /// The command begins.
    Begin,
    /// The command has ended with this status.
    End(u32),
    /// The prompt.
    Prompt,
    /// All that was typed before has been read.
    Here,
}

/// Encoded bytes on one line. A terminal that is not in the hands of a line editor takes 4095.
const LINE: usize = 1500;

/// Lines that may be typed before the shell has read them: together they must stay below 32 KiB. While a terminal does
/// not echo, sshd answers what it writes to it with an SSH_MSG_IGNORE of the same length, all of it in one packet,
/// however long; libssh2 takes a packet of more than 40000 bytes for the end of the world.
pub(super) const AHEAD: usize = 12;

/// A mark's meaning is short; what is longer is none.
const LONGEST_MEANING: usize = 300;

/// The first bytes of every mark.
pub(super) fn mark_start(token: &str) -> Vec<u8> {
    format!("\x1e{token}:").into_bytes()
}

/// The mark at the beginning of these bytes, and its length. `None` when it is none, or not all of it has come.
pub(super) fn mark_at(bytes: &[u8], token: &str) -> Option<(Mark, usize)> {
    let start = mark_start(token);
    let rest = bytes.strip_prefix(start.as_slice())?;
    let length = memchr::memchr(b'\x1f', &rest[..rest.len().min(LONGEST_MEANING)])?;
    let meaning = std::str::from_utf8(&rest[..length]).ok()?;
    let mark = match meaning {
        "b" => Mark::Begin,
        "p" => Mark::Prompt,
        "h" => Mark::Here,
        _ => match meaning.strip_prefix('q') {
            // The question come back, by something that repeats what it gets and knows backslashes.
            Some(UNANSWERED) => return None,
            Some(answer) => Mark::Is(dialect_of(answer)),
            None => Mark::End(meaning.parse().ok()?),
        },
    };
    Some((mark, start.len() + length + 1))
}

/// What the probe asks, in printf's words.
const UNANSWERED: &str = "%s:%s:%s";

/// A line that every shell understands, free of aliases. Two backslashes in single quotes are one to fish; csh has a
/// status that is a number, as zsh has, and the variable `shell`, which zsh has not.
pub(super) fn probe(token: &str) -> String {
    format!(r#" \printf '\036{token}:q{UNANSWERED}\037' '\\' "$status" "$shell""#)
}

fn dialect_of(answer: &str) -> Dialect {
    let mut parts = answer.splitn(3, ':');
    let mut part = || parts.next().unwrap_or_default();
    let (backslashes, status, shell) = (part(), part(), part());
    if backslashes == r"\" {
        Dialect::Fish
    } else if status.parse::<u32>().is_ok() && !shell.is_empty() {
        Dialect::Csh
    } else {
        Dialect::Posix
    }
}

impl Script {
    pub fn new(dialect: Dialect, token: &str) -> Script {
        Script { dialect, token: token.to_owned() }
    }

    /// Makes the prompt a mark and the terminal and the line editor quiet. What it was is kept in variables of the
    /// shell. In this order: what a shell may refuse, and leave the rest of the line for it, comes last.
    pub fn enter(&self) -> String {
        let token = &self.token;
        match self.dialect {
            Dialect::Posix => [
                " stty -echo opost onlcr 2>/dev/null",
                "_tl_p=${PS1-} _tl_h=${HISTCONTROL-} _tl_q=${PROMPT_COMMAND-} _tl_c=",
                "PROMPT_COMMAND= HISTCONTROL=ignorespace",
                r#"[ -z "${ZSH_VERSION-}" ] || eval "unsetopt zle prompt_sp prompt_cr; setopt hist_ignore_space""#,
                r#"[ -z "${ZSH_VERSION-}" ] || eval "_tl_f=(\$precmd_functions) precmd_functions=()""#,
                &format!(r#"PS1="$(\printf '\036{token}:p\037')""#),
                "case $(set +o) in (*-o\\ vi*|*--vi*) _tl_e=vi;; (*-o\\ emacs*|*--emacs*) _tl_e=emacs;; \
                 (*gmacs*) _tl_e=gmacs;; (*) _tl_e=;; esac",
                r#"[ -z "$_tl_e" ] || [ -n "${ZSH_VERSION-}" ] || set +o $_tl_e"#,
            ]
            .join("; "),
            Dialect::Fish => format!(
                " functions -q _tl_prompt; or functions -c fish_prompt _tl_prompt; set -g _tl_c ''; \
                 function fish_prompt; \\printf '\\036{token}:p\\037' >/dev/tty; end"
            ),
            Dialect::Csh => [
                " stty -echo opost onlcr",
                "unset edit",
                r#"set _tl_p = "$prompt:q""#,
                "set _tl_f = ''",
                &format!(r#"set prompt = "`\printf '\036{token}:p\037'`""#),
            ]
            .join("; "),
        }
    }

    /// Puts back what [`enter`](Script::enter) changed.
    pub fn leave(&self) -> String {
        match self.dialect {
            Dialect::Posix => [
                r#" PS1=$_tl_p HISTCONTROL=$_tl_h PROMPT_COMMAND=$_tl_q"#,
                r#"[ -z "$HISTCONTROL" ] && unset HISTCONTROL"#,
                r#"[ -z "$PROMPT_COMMAND" ] && unset PROMPT_COMMAND"#,
                r#"[ -z "${ZSH_VERSION-}" ] || eval "setopt zle prompt_sp prompt_cr; precmd_functions=(\$_tl_f); unset _tl_f""#,
                r#"[ -z "$_tl_e" ] || [ -n "${ZSH_VERSION-}" ] || set -o $_tl_e"#,
                "unset _tl_p _tl_h _tl_q _tl_e _tl_c",
                "stty echo 2>/dev/null",
            ]
            .join("; "),
            Dialect::Fish => {
                " functions -e fish_prompt; functions -c _tl_prompt fish_prompt; functions -e _tl_prompt; set -e _tl_c"
                    .to_owned()
            }
            Dialect::Csh => [
                r#" set prompt = "$_tl_p:q""#,
                r#"rm -f "$_tl_f""#,
                "unset _tl_p _tl_f _tl_s",
                "set edit",
                "stty echo",
            ]
            .join("; "),
        }
    }

    /// Says that it has been read.
    pub fn here(&self) -> String {
        format!(" \\printf '\\036{}:h\\037'", self.token)
    }

    /// The lines that make the shell run this command; only the last makes it begin.
    pub fn run(&self, command: &[u8]) -> Vec<String> {
        let token = &self.token;
        let mut lines = Vec::new();
        match self.dialect {
            Dialect::Posix => {
                lines.push(" _tl_c=".to_owned());
                lines.extend(encode(command).map(|part| format!(" _tl_c=$_tl_c'{part}'")));
                // Newlines at its end would be lost, and matter to a here-document.
                lines.push(format!(
                    " _tl_c=$(\\printf %b \"$_tl_c.\"); \\printf '\\036{token}:b\\037'; \\eval \"${{_tl_c%.}}\"; \
                     \\printf '\\036{token}:%s\\037' \"$?\""
                ));
            }
            Dialect::Fish => {
                lines.push(" set -g _tl_c ''".to_owned());
                lines.extend(encode(command).map(|part| format!(" set -g _tl_c \"$_tl_c\"'{part}'")));
                lines.push(format!(
                    " \\printf '\\036{token}:b\\037'; eval (\\printf %b \"$_tl_c\" | string collect); \
                     \\printf '\\036{token}:%s\\037' $status"
                ));
            }
            Dialect::Csh => {
                lines.push(r#" set _tl_f = "`mktemp`""#.to_owned());
                lines.extend(encode(command).map(|part| format!(r#" \printf %b '{part}' >> "$_tl_f""#)));
                lines.push(format!(
                    " \\printf '\\n' >> \"$_tl_f\"; \\printf '\\036{token}:b\\037'; source \"$_tl_f\"; \
                     set _tl_s = $status; \\printf '\\036{token}:%s\\037' $_tl_s; rm -f \"$_tl_f\""
                ));
            }
        }
        lines
    }

    /// Asks for the status of what was given up.
    pub fn ask_status(&self) -> String {
        let token = &self.token;
        match self.dialect {
            Dialect::Posix => format!(" \\printf '\\036{token}:%s\\037' \"$?\""),
            Dialect::Fish => format!(" \\printf '\\036{token}:%s\\037' $status"),
            Dialect::Csh => {
                format!(" set _tl_s = $status; rm -f \"$_tl_f\"; \\printf '\\036{token}:%s\\037' $_tl_s")
            }
        }
    }
}

/// The command as `printf %b` reads it, in parts of a line's length. Only what means nothing to any shell inside single
/// quotes stays as it is: `!` is history to csh even there.
fn encode(command: &[u8]) -> impl Iterator<Item = String> + '_ {
    let mut rest = command;
    std::iter::from_fn(move || {
        let mut part = String::new();
        while let [byte, after @ ..] = rest {
            if part.len() > LINE {
                break;
            }
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => part.push(char::from(*byte)),
                b' ' | b'_' | b'.' | b'/' | b'=' | b':' | b',' | b'+' | b'@' | b'-' => part.push(char::from(*byte)),
                other => part.push_str(&format!("\\0{other:03o}")),
            }
            rest = after;
        }
        (!part.is_empty()).then_some(part)
    })
}

/// What a terminal's `onlcr` did to the output, undone: it put a carriage return before every newline.
pub(super) fn without_onlcr(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(at) = memchr::memchr(b'\n', rest) {
        let line = &rest[..at];
        out.extend_from_slice(line.strip_suffix(b"\r").unwrap_or(line));
        out.push(b'\n');
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn marks_are_read_and_their_echo_is_none() {
        let mark = |meaning: &str| mark_at(format!("\x1e{TOKEN}:{meaning}\x1frest").as_bytes(), TOKEN);
        let length = |meaning: &str| TOKEN.len() + meaning.len() + 3;
        assert_eq!(mark("b"), Some((Mark::Begin, length("b"))));
        assert_eq!(mark("127"), Some((Mark::End(127), length("127"))));
        assert_eq!(mark("h").unwrap().0, Mark::Here);
        assert_eq!(mark("p"), Some((Mark::Prompt, length("p"))));
        assert_eq!(mark(r"q\\::").unwrap().0, Mark::Is(Dialect::Posix));
        assert_eq!(mark(r"q\\:0:").unwrap().0, Mark::Is(Dialect::Posix));
        assert_eq!(mark(r"q\:0:").unwrap().0, Mark::Is(Dialect::Fish));
        assert_eq!(mark(r"q\\:1:/bin/tcsh").unwrap().0, Mark::Is(Dialect::Csh));
        assert_eq!(mark("nonsense"), None);
        assert_eq!(mark_at(format!("\x1e{TOKEN}:12").as_bytes(), TOKEN), None);
        // A device that prints what it gets, escapes and all, has not answered.
        assert_eq!(mark("q%s:%s:%s"), None);
        for dialect in [Dialect::Posix, Dialect::Fish, Dialect::Csh] {
            let script = Script::new(dialect, TOKEN);
            let typed = [
                vec![probe(TOKEN), script.enter(), script.leave(), script.ask_status(), script.here()],
                script.run(b"x\x1e"),
            ];
            for line in typed.concat() {
                // Printable, one line, out of the history where a space keeps it out, and nothing csh expands.
                assert!(line.bytes().all(|b| (0x20..0x7f).contains(&b)), "{line}");
                assert!(line.starts_with(' ') && !line.contains('!') && line.len() < 4000, "{line}");
            }
        }
    }

    #[test]
    fn a_command_of_any_bytes_is_typed_in_short_lines_of_plain_ones() {
        let command: Vec<u8> = (1..=255).cycle().take(20_000).collect();
        let parts: Vec<_> = encode(&command).collect();
        assert!(parts.len() > 10 && parts.iter().all(|part| part.len() < LINE + 10));
        assert!(parts.concat().bytes().all(|b| b.is_ascii_alphanumeric() || b" _./=:,+@-\\".contains(&b)));
        assert_eq!(encode(b"it's 100%\n!").collect::<String>(), r"it\0047s 100\0045\0012\0041");
    }

    #[test]
    fn carriage_returns_of_the_terminal_go_and_those_of_the_command_stay() {
        assert_eq!(without_onlcr(b"a\r\nb\r\r\n\rc\r\r\n"), b"a\nb\r\n\rc\r\n");
        assert_eq!(without_onlcr(b"\n\r"), b"\n\r");
    }
}
