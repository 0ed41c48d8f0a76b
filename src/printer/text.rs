//! Lines as text: `web1: text`, `web1! text`; safe for a terminal where the output is one.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};

use super::{Batch, Sink};
use crate::error::escape;
use crate::{LineEnd, Piece, Stream};

/// Output is written in blocks of about this many bytes, and whenever nothing waits to be printed.
const BLOCK: usize = 128 * 1024;

/// How long to wait for room in an output that somebody made non-blocking.
const RETRY: Duration = Duration::from_millis(5);

const RED: &[u8] = b"\x1b[31m";
const PLAIN: &[u8] = b"\x1b[0m";

/// Writes lines in the form of the tool's stream output.
pub(super) struct TextSink {
    stdout: Output,
    /// Where stderr lines go if not to the same output.
    stderr: Option<Output>,
    /// Whose lines were written last.
    last: Stream,
    labels: bool,
    since: Option<Instant>,
    /// Stands before each line of the batch.
    prefix: Vec<u8>,
    /// The row that the cursor is in.
    open_row: Option<OpenRow>,
}

/// A row whose line is not finished.
struct OpenRow {
    source: usize,
    stream: Stream,
    /// The last bytes of its last piece, if the next piece decides what they mean.
    undecided: Vec<u8>,
}

impl TextSink {
    pub(super) fn new(stdout: Output, stderr: Option<Output>, labels: bool, since: Option<Instant>) -> Self {
        TextSink { stdout, stderr, last: Stream::Stdout, labels, since, prefix: Vec::new(), open_row: None }
    }

    fn output(&mut self, stream: Stream) -> &mut Output {
        match (&mut self.stderr, stream) {
            (Some(stderr), Stream::Stderr) => stderr,
            _ => &mut self.stdout,
        }
    }

    /// Both outputs may be the same terminal: what went to one has to be there before the other is written to.
    fn turn_to(&mut self, stream: Stream) -> io::Result<()> {
        let last = std::mem::replace(&mut self.last, stream);
        if self.stderr.is_some() && last != stream {
            self.output(last).flush()?;
        }
        Ok(())
    }

    /// Ends the row of a line that was interrupted.
    fn end_row_of_others(&mut self, batch: &Batch) -> io::Result<()> {
        match self.open_row.take() {
            Some(row) if (row.source, row.stream) != (batch.number(), batch.stream()) => {
                self.turn_to(row.stream)?;
                let output = self.output(row.stream);
                escape_into(&mut output.buffer, &row.undecided);
                output.end_row(row.stream);
            }
            row => self.open_row = row,
        }
        Ok(())
    }

    fn set_prefix(&mut self, batch: &Batch) {
        self.prefix.clear();
        if self.output(batch.stream()).is_coloured(batch.stream()) {
            self.prefix.extend_from_slice(RED);
        }
        if let Some(start) = self.since {
            let seconds = batch.arrived().saturating_duration_since(start).as_secs_f64();
            let _ = write!(self.prefix, "{seconds:.3} "); // a Vec takes everything
        }
        if self.labels {
            // a label with a newline in it would look like a line of its own
            self.prefix.extend_from_slice(escape(batch.label()).as_bytes());
            self.prefix.extend_from_slice(match batch.stream() {
                Stream::Stdout => b": ",
                Stream::Stderr => b"! ",
            });
        }
    }

    /// The prefix of a row that goes on with an interrupted line: `web1:~ `.
    fn continued_prefix(&self) -> Vec<u8> {
        let mut prefix = self.prefix.clone();
        if self.labels {
            prefix.pop();
            prefix.extend_from_slice(b"~ ");
        }
        prefix
    }

    /// The pieces that need thought: the first and last of a long line, and all on a terminal.
    fn write_piece(&mut self, batch: &Batch, piece: Piece<'_>) {
        let resumed = self.open_row.take();
        let row_is_new = resumed.is_none();
        let mut row = resumed.unwrap_or_else(|| OpenRow {
            source: batch.number(),
            stream: batch.stream(),
            undecided: Vec::new(),
        });
        let prefix = match (row_is_new, piece.starts) {
            (true, true) => self.prefix.clone(),
            (true, false) => self.continued_prefix(),
            (false, _) => Vec::new(),
        };
        let output = self.output(batch.stream());
        output.buffer.extend_from_slice(&prefix);
        output.write_text(piece, &mut row.undecided);
        if piece.end == LineEnd::More {
            self.open_row = Some(row);
        } else {
            output.end_row(batch.stream());
        }
    }
}

impl Sink for TextSink {
    fn lines(&mut self, batch: &Batch) -> io::Result<()> {
        self.end_row_of_others(batch)?;
        self.turn_to(batch.stream())?;
        self.set_prefix(batch);
        let plain = self.output(batch.stream()).is_plain(batch.stream());
        for piece in batch.lines() {
            if plain && piece.starts && piece.end != LineEnd::More {
                // ten million times a second
                let prefix = std::mem::take(&mut self.prefix);
                self.output(batch.stream()).write_line(&prefix, piece.bytes);
                self.prefix = prefix;
            } else {
                self.write_piece(batch, piece);
            }
            self.output(batch.stream()).write_if_full()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()?;
        self.stderr.as_mut().map_or(Ok(()), Output::flush)
    }
}

/// A writer and what has yet to be written to it.
pub(super) struct Output {
    writer: Box<dyn Write + Send>,
    buffer: Vec<u8>,
    escape: bool,
    colour: bool,
}

impl Output {
    pub(super) fn new(writer: Box<dyn Write + Send>, escape: bool, colour: bool) -> Self {
        Output { writer, buffer: Vec::new(), escape, colour }
    }

    fn is_coloured(&self, stream: Stream) -> bool {
        self.colour && stream == Stream::Stderr
    }

    /// Bytes through as they are.
    fn is_plain(&self, stream: Stream) -> bool {
        !self.escape && !self.is_coloured(stream)
    }

    #[inline]
    fn write_line(&mut self, prefix: &[u8], line: &[u8]) {
        self.buffer.extend_from_slice(prefix);
        self.buffer.extend_from_slice(line);
        self.buffer.push(b'\n');
    }

    fn end_row(&mut self, stream: Stream) {
        if self.is_coloured(stream) {
            self.buffer.extend_from_slice(PLAIN);
        }
        self.buffer.push(b'\n');
    }

    fn write_text(&mut self, piece: Piece<'_>, undecided: &mut Vec<u8>) {
        if !self.escape {
            self.buffer.extend_from_slice(piece.bytes);
            return;
        }
        let joined; // a copy only where a long line was cut inside a character
        let text = if undecided.is_empty() {
            piece.bytes
        } else {
            undecided.extend_from_slice(piece.bytes);
            joined = std::mem::take(undecided);
            &joined
        };
        match piece.end {
            LineEnd::More => {
                let (text, rest) = text.split_at(text.len() - undecided_length(text));
                escape_into(&mut self.buffer, text);
                *undecided = rest.to_vec();
            }
            LineEnd::Newline => match text.strip_suffix(b"\r") {
                Some(text) => {
                    escape_into(&mut self.buffer, text);
                    self.buffer.push(b'\r');
                }
                None => escape_into(&mut self.buffer, text),
            },
            LineEnd::EndOfStream => escape_into(&mut self.buffer, text),
        }
    }

    #[inline]
    fn write_if_full(&mut self) -> io::Result<()> {
        if self.buffer.len() < BLOCK {
            return Ok(());
        }
        self.write_buffer()
    }

    fn write_buffer(&mut self) -> io::Result<()> {
        write_whole(&mut self.writer, &self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.write_buffer()?;
        until_ready(|| self.writer.flush())
    }
}

fn write_whole(writer: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match until_ready(|| writer.write(bytes))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => bytes = &bytes[written..],
        }
    }
    Ok(())
}

/// Another process that shares our terminal or pipe may have made it non-blocking; that is no reason to lose lines.
/// A writer may have no descriptor to wait on, so this looks again after a moment.
fn until_ready<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match attempt() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY),
            done => return done,
        }
    }
}

/// How many bytes at the end have a meaning that depends on what follows: a character cut in the middle, or a
/// carriage return that may belong to a newline.
fn undecided_length(text: &[u8]) -> usize {
    if text.ends_with(b"\r") {
        return 1;
    }
    let begins_character =
        |length: &usize| std::str::from_utf8(&text[text.len() - length..]).is_err_and(|e| e.error_len().is_none());
    (1..=3.min(text.len())).find(begins_character).unwrap_or(0)
}

/// Appends remote text so that it cannot command a terminal. Tabs stay.
fn escape_into(buffer: &mut Vec<u8>, text: &[u8]) {
    let harmless = |&byte: &u8| byte == b'\t' || (b' '..0x7f).contains(&byte);
    if text.iter().all(harmless) {
        buffer.extend_from_slice(text);
        return;
    }
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            push_escaped(buffer, character);
        }
        for byte in chunk.invalid() {
            let _ = write!(buffer, "\\x{byte:02x}");
        }
    }
}

fn push_escaped(buffer: &mut Vec<u8>, character: char) {
    let _ = match character {
        '\r' => write!(buffer, "\\r"),
        '\n' => write!(buffer, "\\n"),
        '\t' => write!(buffer, "\t"),
        '\0'..='\x7f' if character.is_control() => write!(buffer, "\\x{:02x}", u32::from(character)),
        _ if character.is_control() => write!(buffer, "\\u{{{:x}}}", u32::from(character)),
        _ => write!(buffer, "{character}"),
    };
}
