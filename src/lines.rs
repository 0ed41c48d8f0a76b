//! Chunks in, lines out; pure. A line is the bytes up to a newline, whatever those bytes are.
//!
//! A channel delivers bytes in chunks that have nothing to do with lines. [`LineBuffer`] holds back the unfinished
//! line at a chunk's end until the rest arrives, so that whatever is handed on is whole. Only a line longer than its
//! limit is handed on in pieces: that is what keeps memory bounded when a remote writes 100 MB without a newline.

use memchr::{memchr_iter, memrchr, Memchr};

/// How much of an unfinished line is held back before it is handed on in pieces, unless set otherwise.
///
/// Larger than any line people write (a `PATH`, a stack frame, most JSON records), small enough to hold two of them
/// for each of a thousand channels.
pub const DEFAULT_LINE_LIMIT: usize = 64 * 1024;

/// Cuts one stream into lines.
///
/// However the same bytes are split into chunks, the same lines come out, byte for byte: carriage returns, NUL and
/// invalid UTF-8 are ordinary bytes. Nothing blocks, and at most the limit is held between two calls.
///
/// # Examples
///
/// ```
/// use threadline::{LineBuffer, Lines};
///
/// let (mut buffer, mut lines) = (LineBuffer::new(), Lines::new());
/// buffer.push(b"one\ntw", &mut lines);
/// buffer.push(b"o\nthree", &mut lines);
/// buffer.finish(&mut lines);
/// let texts: Vec<_> = lines.iter().map(|piece| piece.bytes).collect();
/// assert_eq!(texts, [&b"one"[..], b"two", b"three"]);
/// ```
#[derive(Debug, Clone)]
pub struct LineBuffer {
    held: Vec<u8>,
    limit: usize,
    /// The beginning of the current line has been handed on already.
    inside_long_line: bool,
}

impl LineBuffer {
    /// A buffer that holds back at most [`DEFAULT_LINE_LIMIT`] bytes.
    #[must_use]
    pub fn new() -> Self {
        LineBuffer::with_limit(DEFAULT_LINE_LIMIT)
    }

    /// A buffer that holds back at most `limit` bytes of an unfinished line; what is longer is handed on in pieces.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        LineBuffer { held: Vec::new(), limit, inside_long_line: false }
    }

    /// Takes in the stream's next bytes and appends to `lines` what can be handed on now: every line that is whole,
    /// and the unfinished one if it has outgrown the limit.
    ///
    /// `lines` may hold earlier lines of the same buffer. It grows by at most the limit and the length of `chunk`.
    pub fn push(&mut self, chunk: &[u8], lines: &mut Lines) {
        let whole = memrchr(b'\n', chunk).map_or(0, |newline| newline + 1);
        let (whole, rest) = chunk.split_at(whole);
        if !whole.is_empty() {
            self.hand_on(whole, Tail::None, lines);
        }
        if self.held.len() + rest.len() > self.limit {
            self.hand_on(rest, Tail::More, lines);
        } else {
            self.held.extend_from_slice(rest);
        }
    }

    /// Says that the stream has ended: appends the last line if it had no newline. The buffer is as new afterwards.
    pub fn finish(&mut self, lines: &mut Lines) {
        // a long line that ends here has to be ended even if nothing more of it came
        if !self.held.is_empty() || self.inside_long_line {
            self.hand_on(b"", Tail::EndOfStream, lines);
        }
    }

    fn hand_on(&mut self, bytes: &[u8], tail: Tail, lines: &mut Lines) {
        if lines.is_empty() {
            lines.begins_inside = self.inside_long_line;
        }
        lines.bytes.extend_from_slice(&self.held);
        lines.bytes.extend_from_slice(bytes);
        lines.tail = tail;
        self.held.clear();
        self.inside_long_line = tail == Tail::More;
    }
}

impl Default for LineBuffer {
    fn default() -> Self {
        LineBuffer::new()
    }
}

/// Consecutive lines of one stream, in one piece of memory: all whole lines of a chunk travel together.
///
/// Clear it and use it again: its memory is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lines {
    bytes: Vec<u8>,
    /// The first piece goes on with a line whose beginning was handed on earlier.
    begins_inside: bool,
    tail: Tail,
}

/// What follows the last newline of a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Tail {
    #[default]
    None,
    More,
    EndOfStream,
}

impl Lines {
    /// No lines yet.
    #[must_use]
    pub fn new() -> Self {
        Lines::default()
    }

    /// True if there is nothing to iterate over.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.tail == Tail::None
    }

    /// The lines as they came, newlines included.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many bytes the lines are, newlines included.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// True if the last line is unfinished: its next piece comes with the next lines of the same stream.
    #[must_use]
    pub fn more_follows(&self) -> bool {
        self.tail == Tail::More
    }

    /// The lines one by one. All are whole except pieces of a line longer than the buffer's limit.
    #[must_use]
    pub fn iter(&self) -> Pieces<'_> {
        Pieces {
            bytes: &self.bytes,
            newlines: memchr_iter(b'\n', &self.bytes),
            next: 0,
            starts: !self.begins_inside,
            tail: self.tail,
        }
    }

    /// Adds the lines that follow these in the same stream.
    pub(crate) fn append(&mut self, next: &Lines) {
        self.bytes.extend_from_slice(&next.bytes);
        self.tail = next.tail;
    }

    /// Forgets the lines and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.begins_inside = false;
        self.tail = Tail::None;
    }
}

impl<'a> IntoIterator for &'a Lines {
    type Item = Piece<'a>;
    type IntoIter = Pieces<'a>;

    fn into_iter(self) -> Pieces<'a> {
        self.iter()
    }
}

/// A line, or a part of one that is longer than the buffer's limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Piece<'a> {
    /// The bytes, without the newline.
    pub bytes: &'a [u8],
    /// True if the line begins here; false if these bytes go on where the stream's previous piece stopped.
    pub starts: bool,
    /// What comes behind these bytes.
    pub end: LineEnd,
}

/// What comes behind the bytes of a [`Piece`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineEnd {
    /// A newline.
    Newline,
    /// The end of the stream: the last line had no newline.
    EndOfStream,
    /// More of the same line.
    More,
}

/// Iterator over the pieces of [`Lines`].
#[derive(Debug, Clone)]
pub struct Pieces<'a> {
    bytes: &'a [u8],
    newlines: Memchr<'a>,
    next: usize,
    starts: bool,
    tail: Tail,
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    #[inline]
    fn next(&mut self) -> Option<Piece<'a>> {
        let starts = std::mem::replace(&mut self.starts, true);
        if let Some(newline) = self.newlines.next() {
            let bytes = &self.bytes[self.next..newline];
            self.next = newline + 1;
            return Some(Piece { bytes, starts, end: LineEnd::Newline });
        }
        let end = match std::mem::take(&mut self.tail) {
            Tail::None => return None,
            Tail::More => LineEnd::More,
            Tail::EndOfStream => LineEnd::EndOfStream,
        };
        Some(Piece { bytes: &self.bytes[self.next..], starts, end })
    }
}

impl std::iter::FusedIterator for Pieces<'_> {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The lines of a stream put together again from their pieces: the bytes and whether a newline ended them.
    #[derive(Default)]
    struct Assembled {
        done: Vec<(Vec<u8>, bool)>,
        open: Option<Vec<u8>>,
    }

    impl Assembled {
        fn take(&mut self, lines: &mut Lines) {
            for piece in lines.iter() {
                assert_eq!(piece.starts, self.open.is_none(), "a piece says whether it starts a line");
                let line = self.open.get_or_insert_with(Vec::new);
                line.extend_from_slice(piece.bytes);
                if piece.end != LineEnd::More {
                    let line = self.open.take().unwrap_or_default();
                    self.done.push((line, piece.end == LineEnd::Newline));
                }
            }
            lines.clear();
        }
    }

    fn lines_of<'a>(chunks: impl IntoIterator<Item = &'a [u8]>, limit: usize) -> Vec<(Vec<u8>, bool)> {
        let (mut buffer, mut lines) = (LineBuffer::with_limit(limit), Lines::new());
        let mut assembled = Assembled::default();
        for chunk in chunks {
            buffer.push(chunk, &mut lines);
            assert!(buffer.held.len() <= limit);
            assembled.take(&mut lines);
        }
        buffer.finish(&mut lines);
        assembled.take(&mut lines);
        assert!(assembled.open.is_none(), "every line is ended at the end of the stream");
        assembled.done
    }

    /// The specification, written the slow way.
    fn expected(input: &[u8]) -> Vec<(Vec<u8>, bool)> {
        let mut lines: Vec<_> = input.split(|&b| b == b'\n').map(|line| (line.to_vec(), true)).collect();
        match lines.pop() {
            Some((last, _)) if !last.is_empty() => lines.push((last, false)),
            _ => {}
        }
        lines
    }

    fn split<'a>(input: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut % (input.len() + 1)).collect();
        cuts.sort_unstable();
        cuts.push(input.len());
        let mut from = 0;
        cuts.into_iter().map(|to| &input[std::mem::replace(&mut from, to)..to]).collect()
    }

    /// Random bytes in which newlines, carriage returns, NUL and invalid UTF-8 are frequent.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![3 => Just(b'\n'), 1 => Just(b'\r'), 1 => Just(0), 1 => Just(0xff), 6 => any::<u8>()];
        proptest::collection::vec(byte, 0..400)
    }

    proptest! {
        #[test]
        fn any_split_of_any_input_gives_the_same_lines(
            input in bytes(),
            cuts in proptest::collection::vec(any::<usize>(), 0..40),
            limit in prop_oneof![Just(0usize), 1..20usize, Just(DEFAULT_LINE_LIMIT)],
        ) {
            prop_assert_eq!(lines_of(split(&input, &cuts), limit), expected(&input));
        }

        #[test]
        fn lines_of_several_chunks_may_be_gathered_in_one_block(
            input in bytes(),
            cuts in proptest::collection::vec(any::<usize>(), 0..40),
            limit in 0..20usize,
        ) {
            let (mut buffer, mut lines) = (LineBuffer::with_limit(limit), Lines::new());
            for chunk in split(&input, &cuts) {
                buffer.push(chunk, &mut lines);
            }
            buffer.finish(&mut lines);
            prop_assert_eq!(lines.as_bytes(), &input[..]);
            let mut assembled = Assembled::default();
            assembled.take(&mut lines);
            prop_assert_eq!(assembled.done, expected(&input));
        }
    }

    #[test]
    fn one_byte_at_a_time_gives_the_same_lines() {
        let input = b"\n\none\r\ntwo\0\xff\xfe\n\rlast";
        assert_eq!(lines_of(input.chunks(1), 64), expected(input));
    }

    #[test]
    fn an_unfinished_line_within_the_limit_is_held_back() {
        let (mut buffer, mut lines) = (LineBuffer::with_limit(8), Lines::new());
        buffer.push(b"Password", &mut lines);
        assert!(lines.is_empty());
        buffer.push(b":", &mut lines);
        let pieces: Vec<_> = lines.iter().collect();
        assert_eq!(pieces, [Piece { bytes: b"Password:", starts: true, end: LineEnd::More }]);
        assert!(lines.more_follows());
    }

    #[test]
    fn a_long_line_that_ends_at_the_end_of_the_stream_is_ended() {
        let (mut buffer, mut lines) = (LineBuffer::with_limit(2), Lines::new());
        buffer.push(b"long", &mut lines);
        lines.clear();
        buffer.finish(&mut lines);
        let pieces: Vec<_> = lines.iter().collect();
        assert_eq!(pieces, [Piece { bytes: b"", starts: false, end: LineEnd::EndOfStream }]);
    }

    #[test]
    fn after_the_end_the_buffer_is_as_new() {
        let (mut buffer, mut lines) = (LineBuffer::with_limit(2), Lines::new());
        buffer.push(b"long", &mut lines);
        buffer.finish(&mut lines);
        lines.clear();
        buffer.finish(&mut lines);
        assert!(lines.is_empty());
        buffer.push(b"a\n", &mut lines);
        assert_eq!(lines.iter().next(), Some(Piece { bytes: b"a", starts: true, end: LineEnd::Newline }));
    }

    #[test]
    fn a_line_of_100_megabytes_passes_in_bounded_memory() {
        const CHUNK: usize = 32 * 1024;
        let chunk = [b'x'; CHUNK];
        let (mut buffer, mut lines) = (LineBuffer::new(), Lines::new());
        let (mut passed, mut started) = (0, 0);
        for _ in 0..(100 << 20) / CHUNK {
            buffer.push(&chunk, &mut lines);
            for piece in &lines {
                passed += piece.bytes.len();
                started += usize::from(piece.starts);
                assert_eq!(piece.end, LineEnd::More);
            }
            lines.clear();
            assert!(buffer.held.capacity() + lines.bytes.capacity() <= 4 * (DEFAULT_LINE_LIMIT + CHUNK));
        }
        buffer.push(b"\n", &mut lines);
        passed += lines.iter().map(|piece| piece.bytes.len()).sum::<usize>();
        assert_eq!((passed, started), (100 << 20, 1));
        assert_eq!(lines.iter().last().map(|piece| piece.end), Some(LineEnd::Newline));
    }
}
