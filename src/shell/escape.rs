//! Escape sequences in what is typed, as ssh has them; pure.

/// Sees what is typed, byte by byte, and finds the escape sequences in it. They are recognised after a newline only.
#[derive(Debug)]
pub(super) struct Escapes {
    character: Option<u8>,
    at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    LineStart,
    Escape,
    Elsewhere,
}

/// What to do about what was typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Typed {
    /// For the remote side.
    Bytes(Vec<u8>),
    /// `~.`
    End,
    /// `~^Z`
    Suspend,
    /// `~#`
    Status,
    /// `~?`
    Help,
}

const CTRL_Z: u8 = 0x1a;

impl Escapes {
    /// With this escape character; with none everything is for the remote side.
    pub fn new(character: Option<u8>) -> Escapes {
        Escapes { character, at: At::LineStart }
    }

    pub fn typed(&mut self, bytes: &[u8]) -> Vec<Typed> {
        let Some(character) = self.character else { return vec![Typed::Bytes(bytes.to_vec())] };
        let mut found = Vec::new();
        let mut plain = Vec::new();
        for &byte in bytes {
            let event = match self.at {
                At::LineStart if byte == character => {
                    self.at = At::Escape;
                    continue;
                }
                At::Escape => match byte {
                    b'.' => Some(Typed::End),
                    CTRL_Z => Some(Typed::Suspend),
                    b'#' => Some(Typed::Status),
                    b'?' => Some(Typed::Help),
                    _ => None,
                },
                At::LineStart | At::Elsewhere => None,
            };
            if let Some(event) = event {
                if !plain.is_empty() {
                    found.push(Typed::Bytes(std::mem::take(&mut plain)));
                }
                found.push(event);
                self.at = At::LineStart;
                continue;
            }
            // The escape character twice is itself; before anything else it is itself, too.
            if self.at == At::Escape && byte != character {
                plain.push(character);
            }
            plain.push(byte);
            self.at = if byte == b'\r' || byte == b'\n' { At::LineStart } else { At::Elsewhere };
        }
        if !plain.is_empty() {
            found.push(Typed::Bytes(plain));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &[u8]) -> Typed {
        Typed::Bytes(text.to_vec())
    }

    #[test]
    fn escapes_count_at_the_start_of_a_line_only() {
        let mut escapes = Escapes::new(Some(b'~'));
        assert_eq!(escapes.typed(b"~."), [Typed::End]);
        assert_eq!(escapes.typed(b"ls ~.\r"), [bytes(b"ls ~.\r")]);
        assert_eq!(escapes.typed(b"~"), []);
        assert_eq!(escapes.typed(b"?"), [Typed::Help]);
        assert_eq!(escapes.typed(b"~#~\x1ax~."), [Typed::Status, Typed::Suspend, bytes(b"x~.")]);
        assert_eq!(escapes.typed(b"a\r~."), [bytes(b"a\r"), Typed::End]);
    }

    #[test]
    fn the_escape_character_twice_is_itself_and_before_another_key_both_are() {
        let mut escapes = Escapes::new(Some(b'~'));
        assert_eq!(escapes.typed(b"~~."), [bytes(b"~.")]);
        assert_eq!(escapes.typed(b"\r~x\r~"), [bytes(b"\r~x\r")]);
        assert_eq!(escapes.typed(b"\r"), [bytes(b"~\r")]);
        assert_eq!(escapes.typed(b"~."), [Typed::End]);
    }

    #[test]
    fn another_character_may_escape_or_none() {
        assert_eq!(Escapes::new(Some(b'%')).typed(b"~.\r%."), [bytes(b"~.\r"), Typed::End]);
        assert_eq!(Escapes::new(None).typed(b"\r~."), [bytes(b"\r~.")]);
    }
}
