//! What a shell's output is searched for; pure.

use std::fmt;

use memchr::memmem;
use regex::bytes::Regex;

use crate::error::{Error, Result};

/// What to look for in a shell's output: bytes as they are, or a regular expression.
///
/// A `&str`, a `String` and a `&[u8]` turn into a literal pattern. A regular expression sees the output as it comes,
/// in pieces of any size: `$` and `\z` mean the end of what has come so far, and a greedy `.*` takes what is there.
/// One match may span at most 64 KiB.
///
/// # Examples
///
/// ```
/// use threadline::Pattern;
///
/// # fn main() -> threadline::Result<()> {
/// let literal = Pattern::from("login: ");
/// let prompt = Pattern::regex(r"(?<host>[\w.-]+)[>#] ?$")?;
/// # let _ = (literal, prompt);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Pattern(Kind);

#[derive(Clone)]
enum Kind {
    Literal(Box<memmem::Finder<'static>>),
    Regex(Regex),
}

/// How far behind new bytes a match may begin. It bounds what is searched anew with each chunk.
const REACH: usize = 64 * 1024;

impl Pattern {
    /// These bytes.
    #[must_use]
    pub fn literal(bytes: impl AsRef<[u8]>) -> Pattern {
        Pattern(Kind::Literal(Box::new(memmem::Finder::new(bytes.as_ref()).into_owned())))
    }

    /// A regular expression in the syntax of the `regex` crate, over bytes: `(?-u:\xff)` matches one that is not UTF-8.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidInput`] when it cannot be understood.
    pub fn regex(text: &str) -> Result<Pattern> {
        let understood = Regex::new(text).map_err(|e| Error::invalid(format!("cannot understand the pattern: {e}")))?;
        Ok(Pattern(Kind::Regex(understood)))
    }

    /// The first match, given that none ends within the first `searched` bytes.
    pub(super) fn find(&self, bytes: &[u8], searched: usize) -> Option<Found> {
        match &self.0 {
            Kind::Literal(finder) => {
                let from = searched.saturating_sub(finder.needle().len());
                let start = from + finder.find(&bytes[from..])?;
                let whole = (start, start + finder.needle().len());
                Some(Found { start, end: whole.1, groups: vec![Some(whole)], names: Vec::new() })
            }
            Kind::Regex(regex) => {
                let captures = regex.captures_at(bytes, searched.saturating_sub(REACH))?;
                let groups: Vec<_> = captures.iter().map(|group| group.map(|m| (m.start(), m.end()))).collect();
                let (start, end) = groups.first().copied().flatten()?;
                let names = regex.capture_names().map(|name| name.map(str::to_owned)).collect();
                Some(Found { start, end, groups, names })
            }
        }
    }

    /// The last match in these bytes.
    pub(super) fn last(&self, bytes: &[u8]) -> Option<(usize, usize)> {
        match &self.0 {
            Kind::Literal(finder) => {
                memmem::rfind(bytes, finder.needle()).map(|start| (start, start + finder.needle().len()))
            }
            Kind::Regex(regex) => regex.find_iter(bytes).last().map(|found| (found.start(), found.end())),
        }
    }
}

/// Where a pattern was found.
#[derive(Debug)]
pub(super) struct Found {
    pub start: usize,
    pub end: usize,
    pub groups: Vec<Option<(usize, usize)>>,
    /// Of the groups, as far as they have one; empty for a literal.
    pub names: Vec<Option<String>>,
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Literal(finder) => write!(f, "{:?}", String::from_utf8_lossy(finder.needle())),
            Kind::Regex(regex) => write!(f, "/{}/", crate::error::escape(regex.as_str())),
        }
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pattern({self})")
    }
}

impl From<&str> for Pattern {
    fn from(text: &str) -> Pattern {
        Pattern::literal(text)
    }
}

impl From<String> for Pattern {
    fn from(text: String) -> Pattern {
        Pattern::literal(text)
    }
}

impl From<&[u8]> for Pattern {
    fn from(bytes: &[u8]) -> Pattern {
        Pattern::literal(bytes)
    }
}

impl From<&Pattern> for Pattern {
    fn from(pattern: &Pattern) -> Pattern {
        pattern.clone()
    }
}

/// One or several [`Pattern`]s: whatever turns into one, an array, a vector or a slice of them.
#[derive(Debug, Clone)]
pub struct Patterns(pub(super) Vec<Pattern>);

impl Patterns {
    /// The match that begins first; of those that begin together, that of the pattern named first.
    pub(super) fn find(&self, bytes: &[u8], searched: usize) -> Option<(usize, Found)> {
        let found = self.0.iter().enumerate().filter_map(|(which, p)| Some((which, p.find(bytes, searched)?)));
        found.min_by_key(|(which, found)| (found.start, *which))
    }
}

impl fmt::Display for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.0.iter().map(Pattern::to_string).collect();
        f.write_str(&all.join(" or "))
    }
}

impl<P: Into<Pattern>> From<P> for Patterns {
    fn from(pattern: P) -> Patterns {
        Patterns(vec![pattern.into()])
    }
}

impl<P: Into<Pattern>, const N: usize> From<[P; N]> for Patterns {
    fn from(patterns: [P; N]) -> Patterns {
        Patterns(patterns.into_iter().map(Into::into).collect())
    }
}

impl<P: Into<Pattern>> From<Vec<P>> for Patterns {
    fn from(patterns: Vec<P>) -> Patterns {
        Patterns(patterns.into_iter().map(Into::into).collect())
    }
}

impl From<&[Pattern]> for Patterns {
    fn from(patterns: &[Pattern]) -> Patterns {
        Patterns(patterns.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_match_that_begins_first_wins_and_of_two_the_first_named() {
        let patterns = Patterns::from([Pattern::from("cd"), Pattern::regex("b.").unwrap(), Pattern::from("bc")]);
        let (which, found) = patterns.find(b"abcd", 0).unwrap();
        assert_eq!((which, found.start, found.end), (1, 1, 3));
        assert!(patterns.find(b"xyz", 0).is_none());
    }

    #[test]
    fn a_match_across_two_chunks_is_found_and_a_searched_part_is_not_searched_again() {
        let literal = Pattern::from("login: ");
        assert!(literal.find(b"the log", 0).is_none());
        assert_eq!(literal.find(b"the login: ", 7).unwrap().start, 4);
        let regex = Pattern::regex(r"lo+gin").unwrap();
        assert_eq!(regex.find(b"the login", 7).unwrap().start, 4);
        // Far behind what is new nothing is looked for.
        let mut long = b"login ".to_vec();
        long.resize(2 * REACH, b'.');
        assert!(regex.find(&long, 2 * REACH - 1).is_none());
    }

    #[test]
    fn groups_have_places_and_names() {
        let pattern = Pattern::regex(r"(?<user>\w+)@(\w+)(!)?").unwrap();
        let found = pattern.find(b" alice@web1 ", 0).unwrap();
        assert_eq!(found.groups, [Some((1, 11)), Some((1, 6)), Some((7, 11)), None]);
        assert_eq!(found.names[1].as_deref(), Some("user"));
    }

    #[test]
    fn bytes_that_are_no_text_can_be_looked_for() {
        assert_eq!(Pattern::from(&b"\xff\x00"[..]).find(b"a\xff\x00", 0).unwrap().start, 1);
        assert_eq!(Pattern::regex(r"(?-u)\xff+").unwrap().find(b"a\xff\xff", 0).unwrap().end, 3);
        assert!(Pattern::regex("(").unwrap_err().to_string().contains("cannot understand the pattern"));
    }
}
