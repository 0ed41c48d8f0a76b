//! The printer against sources and outputs that the tests hold in their hands.

use super::*;
use crate::DEFAULT_LINE_LIMIT;
use proptest::prelude::*;
use std::os::unix::net::UnixStream;

const DEADLINE: Duration = Duration::from_secs(60);

/// A source that says what the test sends it, and ends when the test drops the sender.
struct Feed {
    chunks: Receiver<(Stream, Vec<u8>)>,
    chunk: Vec<u8>,
}

fn feed() -> (Sender<(Stream, Vec<u8>)>, Feed) {
    let (sender, chunks) = unbounded();
    (sender, Feed { chunks, chunk: Vec::new() })
}

impl ChunkSource for Feed {
    fn next_chunk(&mut self) -> Result<Option<(Stream, &[u8])>> {
        let Ok((stream, chunk)) = self.chunks.recv() else { return Ok(None) };
        self.chunk = chunk;
        Ok(Some((stream, &self.chunk)))
    }
}

trait Say {
    fn out(&self, text: impl AsRef<[u8]>);
    fn err(&self, text: impl AsRef<[u8]>);
}

impl Say for Sender<(Stream, Vec<u8>)> {
    fn out(&self, text: impl AsRef<[u8]>) {
        self.send((Stream::Stdout, text.as_ref().to_vec())).expect("the source is read");
    }

    fn err(&self, text: impl AsRef<[u8]>) {
        self.send((Stream::Stderr, text.as_ref().to_vec())).expect("the source is read");
    }
}

/// A source that repeats one chunk for ever (or as often as said), counts the bytes it gave, and tells when it is
/// dropped.
struct Flood {
    chunk: Vec<u8>,
    left: usize,
    given: Arc<AtomicUsize>,
    progress: Option<Sender<usize>>,
    dropped: Sender<()>,
}

impl Flood {
    fn new(chunk: impl AsRef<[u8]>, times: usize) -> (Flood, Receiver<()>) {
        let (dropped, was_dropped) = bounded(1);
        let chunk = chunk.as_ref().to_vec();
        (Flood { chunk, left: times, given: Arc::default(), progress: None, dropped }, was_dropped)
    }
}

impl ChunkSource for Flood {
    fn next_chunk(&mut self) -> Result<Option<(Stream, &[u8])>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let given = self.given.fetch_add(self.chunk.len(), Ordering::SeqCst) + self.chunk.len();
        if let Some(progress) = &self.progress {
            let _ = progress.send(given);
        }
        Ok(Some((Stream::Stdout, &self.chunk)))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.dropped.send(());
    }
}

/// A source that is silent until it is stopped, then fails.
struct Silent {
    stopped: Receiver<()>,
    stop: Sender<()>,
}

impl Silent {
    fn new() -> Silent {
        let (stop, stopped) = bounded(1);
        Silent { stopped, stop }
    }
}

impl ChunkSource for Silent {
    fn next_chunk(&mut self) -> Result<Option<(Stream, &[u8])>> {
        let _ = self.stopped.recv();
        Err(Error::Cancelled)
    }

    fn stopper(&self) -> Option<Stopper> {
        let stop = self.stop.clone();
        Some(Box::new(move || {
            let _ = stop.send(());
        }))
    }
}

/// A writer that sends each write to the test.
struct Tape(Sender<Vec<u8>>);

fn tape() -> (Tape, Written) {
    let (sender, blocks) = unbounded();
    (Tape(sender), Written { blocks, seen: Vec::new() })
}

impl Write for Tape {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send(bytes.to_vec()).expect("the test listens");
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Written {
    blocks: Receiver<Vec<u8>>,
    seen: Vec<u8>,
}

impl Written {
    /// Waits until `wanted` bytes are written.
    fn wait_for(&mut self, wanted: usize) -> &[u8] {
        let deadline = Instant::now() + DEADLINE;
        while self.seen.len() < wanted {
            let block = self.blocks.recv_deadline(deadline).expect("written in time");
            self.seen.extend(block);
        }
        &self.seen
    }

    fn expect(&mut self, text: &str) {
        let seen = String::from_utf8_lossy(self.wait_for(text.len())).into_owned();
        assert_eq!(seen, text);
    }

    /// All that was written until the writer was dropped.
    fn all(mut self) -> Vec<u8> {
        self.seen.extend(self.blocks.iter().flatten());
        self.seen
    }

    fn text(self) -> String {
        String::from_utf8(self.all()).expect("UTF-8")
    }
}

/// `join` that fails the test instead of hanging it.
fn join(printer: Printer) -> Result<Printed> {
    let (done, joined) = bounded(1);
    thread::spawn(move || done.send(printer.join()));
    joined.recv_timeout(DEADLINE).expect("join returns in time")
}

/// What a printer with these settings makes of the chunks of one source labelled `w`.
fn print(builder: PrinterBuilder, chunks: &[(Stream, &[u8])]) -> Vec<u8> {
    let (writer, written) = tape();
    let (say, source) = feed();
    let printer = builder.print_to(writer);
    printer.follow("w", source).expect("follow");
    for (stream, chunk) in chunks {
        say.send((*stream, chunk.to_vec())).expect("the source is read");
    }
    drop(say);
    join(printer).expect("join");
    written.all()
}

fn stdout(text: &[u8]) -> [(Stream, &[u8]); 1] {
    [(Stream::Stdout, text)]
}

#[test]
fn lines_carry_their_label_and_stderr_is_marked() {
    let chunks: &[(Stream, &[u8])] =
        &[(Stream::Stdout, b"one\ntw"), (Stream::Stderr, b"oops\n"), (Stream::Stdout, b"o\nlast")];
    let text = print(Printer::builder(), chunks);
    assert_eq!(String::from_utf8_lossy(&text), "w: one\nw! oops\nw: two\nw: last\n");
}

#[test]
fn without_labels_the_lines_stand_alone() {
    assert_eq!(print(Printer::builder().without_labels(), &stdout(b"one\n\ntwo\n")), b"one\n\ntwo\n");
}

#[test]
fn a_label_cannot_pass_for_a_line() {
    let (writer, written) = tape();
    let printer = Printer::new(writer);
    printer.follow("a\nb\0", FromReader::new(Stream::Stdout, &b"x\n"[..])).expect("follow");
    join(printer).expect("join");
    assert_eq!(written.text(), "a\\nb\\u{0}: x\n");
}

#[test]
fn timestamps_are_seconds_since_the_start() {
    let start = Instant::now();
    let text = print(Printer::builder().timestamps_since(start), &stdout(b"x\ny\n"));
    let most = start.elapsed().as_secs_f64() + 0.001;
    let text = String::from_utf8(text).expect("UTF-8");
    let rows: Vec<_> = text.lines().map(|row| row.split_once(' ').expect("a time")).collect();
    assert_eq!(rows.iter().map(|row| row.1).collect::<Vec<_>>(), ["w: x", "w: y"]);
    for (seconds, _) in rows {
        assert!((0.0..=most).contains(&seconds.parse::<f64>().expect("a number")), "{seconds} of {most}");
    }
}

#[test]
fn off_a_terminal_every_byte_passes_as_it_is() {
    let line: Vec<u8> = (0..=255).filter(|&byte| byte != b'\n').collect();
    let text = print(Printer::builder(), &stdout(&[&line[..], b"\r\n"].concat()));
    assert_eq!(text, [b"w: ", &line[..], b"\r\n"].concat());
}

#[test]
fn on_a_terminal_control_characters_are_escaped() {
    for (line, shown) in [
        (&b"plain\ttext"[..], "plain\ttext"),
        (b"\x1b[2J\x07", "\\x1b[2J\\x07"),
        (b"over\rwritten", "over\\rwritten"),
        (b"dos line\r", "dos line\r"),
        (b"nul \0 del \x7f", "nul \\x00 del \\x7f"),
        ("C1 \u{9b}31m".as_bytes(), "C1 \\u{9b}31m"),
        (b"invalid \xff\x9b", "invalid \\xff\\x9b"),
        ("Grüße, 日本 🦀".as_bytes(), "Grüße, 日本 🦀"),
        (b"cut \xe6\x97", "cut \\xe6\\x97"),
    ] {
        let text = print(Printer::builder().escape(When::Always), &stdout(&[line, b"\n"].concat()));
        assert_eq!(String::from_utf8_lossy(&text), format!("w: {shown}\n"));
    }
}

#[test]
fn a_character_cut_by_the_pieces_of_a_long_line_stays_whole_on_a_terminal() {
    let line = "日本🦀".repeat(3 * DEFAULT_LINE_LIMIT / 10);
    let (writer, written) = tape();
    let printer = Printer::builder().escape(When::Always).print_to(writer);
    let (say, source) = feed();
    printer.follow("w", source).expect("follow");
    let long = format!("{line}\r\n");
    long.as_bytes().chunks(1001).for_each(|chunk| say.out(chunk));
    drop(say);
    join(printer).expect("join");
    assert_eq!(written.text(), format!("w: {long}"));
}

#[test]
fn stderr_is_red_where_colour_is_wanted() {
    let chunks: &[(Stream, &[u8])] = &[(Stream::Stderr, b"oops\n"), (Stream::Stdout, b"fine\n")];
    let text = print(Printer::builder().colour(When::Always), chunks);
    assert_eq!(String::from_utf8_lossy(&text), "\x1b[31mw! oops\x1b[0m\nw: fine\n");
}

/// Names each write and flush in a common record.
struct Named(&'static str, Sender<String>);

impl Write for Named {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.1.send(format!("{} {}", self.0, String::from_utf8_lossy(bytes)));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.1.send(format!("{} flush", self.0));
        Ok(())
    }
}

#[test]
fn stderr_lines_go_to_their_own_writer_and_stdout_is_flushed_before() {
    let (record, events) = unbounded();
    let builder = Printer::builder().stderr_to(Named("err", record.clone()));
    let printer = builder.print_to(Named("out", record));
    let (say, source) = feed();
    say.out("one\n");
    say.err("two\n");
    say.out("three\n");
    drop(say);
    printer.follow("w", source).expect("follow");
    join(printer).expect("join");
    let events: Vec<_> = events.try_iter().collect();
    assert_eq!(events, ["out w: one\n", "out flush", "err w! two\n", "err flush", "out w: three\n", "out flush"]);
}

#[test]
fn each_line_is_printed_the_moment_it_arrives() {
    let (writer, mut written) = tape();
    let printer = Printer::new(writer);
    let (say, source) = feed();
    printer.follow("w", source).expect("follow");
    say.out("one\ntw");
    written.expect("w: one\n");
    say.out("o\n");
    written.expect("w: one\nw: two\n");
    drop(say);
    join(printer).expect("join");
}

#[test]
fn a_prompt_without_newline_holds_up_nobody_and_is_not_cut() {
    let (writer, mut written) = tape();
    let printer = Printer::new(writer);
    let (prompt, prompting) = feed();
    let (other, speaking) = feed();
    printer.follow("p", prompting).expect("follow");
    printer.follow("o", speaking).expect("follow");
    prompt.out("Pass");
    other.out("one\n");
    written.expect("o: one\n");
    prompt.out("word: ");
    other.out("two\n");
    written.expect("o: one\no: two\n");
    drop(prompt);
    written.expect("o: one\no: two\np: Password: \n");
    drop(other);
    join(printer).expect("join");
}

/// Checks rows as they are written, without keeping them.
struct RowCheck {
    row: usize,
    first: Vec<u8>,
    only_x: bool,
    rows: Sender<(usize, Vec<u8>, bool)>,
}

impl Write for RowCheck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, ended) = part.strip_suffix(b"\n").map_or((part, false), |text| (text, true));
            let label = 3usize.saturating_sub(self.row).min(text.len());
            self.first.extend_from_slice(&text[..label]);
            self.only_x &= text[label..].iter().all(|&byte| byte == b'x');
            self.row += text.len();
            if ended {
                let _ = self.rows.send((self.row, std::mem::take(&mut self.first), self.only_x));
                (self.row, self.only_x) = (0, true);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_other_line_gets_into_a_line_of_100_megabytes() {
    const CHUNK: usize = 32 * 1024;
    const CHUNKS: usize = (100 << 20) / CHUNK;
    let (rows, row) = unbounded();
    let builder = Printer::builder().patience(DEADLINE);
    let printer = builder.print_to(RowCheck { row: 0, first: Vec::new(), only_x: true, rows });
    for label in ["A", "B"] {
        let (long, _) = Flood::new([b'x'; CHUNK], CHUNKS);
        printer.follow(label, long).expect("follow");
        let (short, _) = Flood::new("yyyy\n".repeat(100), 500);
        printer.follow("s", short).expect("follow");
    }
    let printed = join(printer).expect("join");
    assert!(printed.sources.iter().all(|ended| matches!(ended.ending, Ending::EndOfStream)));
    let rows: Vec<_> = row.try_iter().collect();
    let mut long: Vec<_> = rows.iter().filter(|(_, _, only_x)| *only_x).collect();
    long.sort();
    assert_eq!(long, [&(3 + (100 << 20), b"A: ".to_vec(), true), &(3 + (100 << 20), b"B: ".to_vec(), true)]);
    let short = rows.iter().filter(|(length, label, _)| *length == 7 && label == b"s: ").count();
    assert_eq!((short, rows.len()), (100_000, 100_002));
}

#[test]
fn a_long_line_that_does_not_go_on_is_interrupted_visibly() {
    let (writer, mut written) = tape();
    let printer = Printer::builder().patience(Duration::from_millis(20)).print_to(writer);
    let (long, silent) = feed();
    let (other, speaking) = feed();
    let half = "x".repeat(DEFAULT_LINE_LIMIT + 1);
    printer.follow("l", silent).expect("follow");
    printer.follow("o", speaking).expect("follow");
    long.out(&half);
    written.expect(&format!("l: {half}"));
    other.out("one\n");
    let interrupted = format!("l: {half}\no: one\n");
    written.expect(&interrupted);
    long.out("rest\nnext\n");
    written.expect(&format!("{interrupted}l:~ rest\nl: next\n"));
    drop((long, other));
    join(printer).expect("join");
}

#[test]
fn a_long_line_goes_on_in_its_row_while_nobody_waits() {
    let (writer, mut written) = tape();
    let printer = Printer::builder().patience(Duration::ZERO).print_to(writer);
    let (long, source) = feed();
    let half = "x".repeat(DEFAULT_LINE_LIMIT + 1);
    printer.follow("l", source).expect("follow");
    long.out(&half);
    written.expect(&format!("l: {half}"));
    long.out(&half);
    written.expect(&format!("l: {half}{half}"));
    drop(long);
    join(printer).expect("join");
    assert_eq!(written.text(), format!("l: {half}{half}\n"));
}

#[test]
fn a_long_line_stays_whole_while_its_source_reports_on_stderr() {
    let (writer, written) = tape();
    let printer = Printer::builder().patience(DEADLINE).print_to(writer);
    let (say, source) = feed();
    let half = "x".repeat(DEFAULT_LINE_LIMIT + 1);
    say.out(&half);
    for _ in 0..10 * BATCHES_PER_SOURCE {
        say.err("10%\n");
    }
    say.out("end\n");
    say.err("100%\n");
    drop(say);
    printer.follow("w", source).expect("follow");
    join(printer).expect("join");
    let reports = "w! 10%\n".repeat(10 * BATCHES_PER_SOURCE);
    assert_eq!(written.text(), format!("w: {half}end\n{reports}w! 100%\n"));
}

#[test]
fn of_two_long_lines_of_one_source_the_first_ends_without_waiting_for_the_second() {
    let (writer, mut written) = tape();
    let printer = Printer::builder().patience(DEADLINE).print_to(writer);
    let (say, source) = feed();
    let half = "x".repeat(DEFAULT_LINE_LIMIT + 1);
    printer.follow("w", source).expect("follow");
    say.out(&half);
    say.err(&half);
    say.out("end\n");
    written.expect(&format!("w: {half}end\nw! {half}"));
    say.out("next\n");
    say.err("end\n");
    written.expect(&format!("w: {half}end\nw! {half}end\nw: next\n"));
    drop(say);
    join(printer).expect("join");
}

#[test]
fn a_long_line_that_does_not_go_on_lets_its_own_source_s_stderr_through() {
    let (writer, mut written) = tape();
    let printer = Printer::builder().patience(Duration::from_millis(20)).print_to(writer);
    let (say, source) = feed();
    let half = "x".repeat(DEFAULT_LINE_LIMIT + 1);
    printer.follow("w", source).expect("follow");
    say.out(&half);
    say.err("stuck\n");
    written.expect(&format!("w: {half}\nw! stuck\n"));
    drop(say);
    join(printer).expect("join");
    assert_eq!(written.text(), format!("w: {half}\nw! stuck\nw:~ \n"));
}

#[test]
fn a_flood_on_stderr_cannot_lock_up_its_source_s_long_line() {
    let (writer, written) = tape();
    let printer = Printer::builder().patience(Duration::from_millis(20)).print_to(writer);
    let (say, source) = feed();
    let half = "x".repeat(DEFAULT_LINE_LIMIT + 1);
    let noise = "noise\n".repeat(reader::BATCH / 6);
    say.out(&half);
    for _ in 0..10 * BATCHES_PER_SOURCE {
        say.err(&noise);
    }
    say.out("end\n");
    drop(say);
    printer.follow("w", source).expect("follow");
    join(printer).expect("join");
    let noise = "w! noise\n".repeat(10 * BATCHES_PER_SOURCE * (reader::BATCH / 6));
    assert_eq!(written.text(), format!("w: {half}\n{noise}w:~ end\n"));
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let (writer, reader) = UnixStream::pair().expect("a socket pair");
    let printer = Printer::new(writer);
    let (flood, dropped) = Flood::new("y\n".repeat(1000), usize::MAX);
    printer.follow("yes", flood).expect("follow");
    let mut first = [0; 9];
    (&reader).read_exact_within(&mut first);
    assert_eq!(&first, b"yes: y\nye");
    drop(reader);
    let printed = join(printer).expect("a closed pipe is no error");
    assert_eq!(printed.output, OutputEnd::Closed);
    assert!(matches!(printed.sources[..], [Ended { ending: Ending::OutputClosed, .. }]), "{printed:?}");
    dropped.recv_timeout(DEADLINE).expect("the source is dropped");
}

#[test]
fn an_output_that_closes_frees_a_reader_whose_batches_are_all_queued() {
    /// Closes at the end of a source, with no batch in its hands.
    struct ClosesLater {
        reached: Sender<()>,
        close: Receiver<()>,
    }
    impl Sink for ClosesLater {
        fn lines(&mut self, _: &Batch) -> io::Result<()> {
            Ok(())
        }

        fn ended(&mut self, _: &Ended) -> io::Result<()> {
            let _ = self.reached.send(());
            let _ = self.close.recv_timeout(DEADLINE);
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (reached, reaches) = bounded(1);
    let (release, close) = bounded::<()>(0);
    let printer = Printer::builder().print_to_sink(ClosesLater { reached, close });
    printer.follow("short", FromReader::new(Stream::Stdout, io::empty())).expect("follow");
    reaches.recv_timeout(DEADLINE).expect("the first source ends");
    let (mut flood, dropped) = Flood::new([b"y".repeat(reader::BATCH - 1), b"\n".to_vec()].concat(), usize::MAX);
    let (progress, progressed) = unbounded();
    flood.progress = Some(progress);
    printer.follow("w", flood).expect("follow");
    for _ in 0..=BATCHES_PER_SOURCE {
        progressed.recv_timeout(DEADLINE).expect("so many fit");
    }
    drop(release);
    let printed = join(printer).expect("a closed pipe is no error");
    assert_eq!(printed.output, OutputEnd::Closed);
    dropped.recv_timeout(DEADLINE).expect("the source is dropped");
}

trait ReadWithin {
    fn read_exact_within(self, buffer: &mut [u8]);
}

impl ReadWithin for &UnixStream {
    fn read_exact_within(mut self, buffer: &mut [u8]) {
        self.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        io::Read::read_exact(&mut self, buffer).expect("bytes in time");
    }
}

#[test]
fn a_closed_pipe_stops_a_silent_source() {
    let (writer, reader) = UnixStream::pair().expect("a socket pair");
    drop(reader);
    let printer = Printer::new(writer);
    let silent = Silent::new();
    let stop = silent.stop.clone();
    printer.follow("silent", silent).expect("follow");
    let (say, source) = feed();
    printer.follow("speaks", source).expect("follow");
    say.out("x\n");
    let printed = join(printer).expect("a closed pipe is no error");
    assert_eq!(printed.output, OutputEnd::Closed);
    assert!(matches!(printed.sources[0].ending, Ending::OutputClosed), "{printed:?}");
    drop((stop, say));
}

#[test]
fn a_silent_source_that_cannot_be_stopped_does_not_hold_up_join() {
    let (writer, reader) = UnixStream::pair().expect("a socket pair");
    drop(reader);
    let printer = Printer::new(writer);
    let (_silent, source) = feed();
    printer.follow("silent", source).expect("follow");
    printer.follow("speaks", FromReader::new(Stream::Stdout, &b"x\n"[..])).expect("follow");
    let printed = join(printer).expect("a closed pipe is no error");
    assert!(matches!(printed.sources[0].ending, Ending::OutputClosed), "{printed:?}");
}

#[test]
fn another_write_error_is_returned() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let printer = Printer::new(Full);
    let (flood, dropped) = Flood::new("y\n", usize::MAX);
    printer.follow("w", flood).expect("follow");
    match join(printer) {
        Err(Error::Io { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::StorageFull),
        other => panic!("{other:?}"),
    }
    dropped.recv_timeout(DEADLINE).expect("the source is dropped");
}

#[test]
fn an_output_that_would_block_loses_nothing() {
    struct Reluctant(Tape, u32);
    impl Write for Reluctant {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.1 += 1;
            match self.1 % 3 {
                0 => self.0.write(&bytes[..1]),
                1 => Err(io::ErrorKind::WouldBlock.into()),
                _ => Err(io::ErrorKind::Interrupted.into()),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (writer, written) = tape();
    let printer = Printer::new(Reluctant(writer, 0));
    printer.follow("w", FromReader::new(Stream::Stdout, &b"one\ntwo\n"[..])).expect("follow");
    join(printer).expect("join");
    assert_eq!(written.text(), "w: one\nw: two\n");
}

/// A writer that waits for the test before its first write.
struct Gate(Receiver<()>, usize);

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv_timeout(DEADLINE);
        self.1 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_slow_output_holds_the_readers_back() {
    const CHUNK: usize = 1 << 20; // larger than a batch: what a source hands out must not widen the bound
    const SOURCES: usize = 8;
    const TIMES: usize = 4;
    let (open, gate) = bounded::<()>(0);
    let printer = Printer::new(Gate(gate, 0));
    let (progress, progressed) = unbounded();
    let mut given = Vec::new();
    for n in 0..SOURCES {
        let (mut flood, _) = Flood::new("line\n".repeat(CHUNK / 5), TIMES);
        flood.progress = Some(progress.clone());
        given.push(Arc::clone(&flood.given));
        printer.follow(format!("w{n}"), flood).expect("follow");
    }
    drop(progress);
    // each gives its first chunk, and then nobody goes on: of each only a few batches fit
    for _ in 0..SOURCES {
        progressed.recv_timeout(DEADLINE).expect("every source starts");
    }
    assert!(progressed.recv_timeout(Duration::from_millis(300)).is_err(), "a reader ran on against a stopped output");
    assert!(given.iter().all(|given| given.load(Ordering::SeqCst) == CHUNK / 5 * 5));
    drop(open);
    join(printer).expect("join");
    assert!(given.iter().all(|given| given.load(Ordering::SeqCst) == TIMES * (CHUNK / 5 * 5)));
}

#[test]
fn a_batch_is_no_larger_than_promised_and_a_source_has_only_a_few() {
    /// Keeps batches for ever, as an output that never finishes would.
    struct Keeper {
        sizes: Sender<usize>,
        release: Receiver<()>,
    }
    impl Sink for Keeper {
        fn lines(&mut self, batch: &Batch) -> io::Result<()> {
            let _ = self.sizes.send(batch.as_bytes().len());
            let _ = self.release.recv_timeout(DEADLINE);
            Ok(())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (sizes, size) = unbounded();
    let (release, released) = bounded(0);
    let printer = Printer::builder().print_to_sink(Keeper { sizes, release: released });
    let (mut flood, _) = Flood::new([b"y".repeat(reader::BATCH - 1), b"\n".to_vec()].concat(), 20);
    let (progress, progressed) = unbounded();
    flood.progress = Some(progress);
    printer.follow("w", flood).expect("follow");
    size.recv_timeout(DEADLINE).expect("a batch arrives");
    // the batches under way, and the chunk that waits for a free one
    for _ in 0..=BATCHES_PER_SOURCE {
        progressed.recv_timeout(DEADLINE).expect("so many fit");
    }
    assert!(progressed.recv_timeout(Duration::from_millis(300)).is_err(), "more fit than promised");
    drop(release);
    join(printer).expect("join");
    assert!(size.try_iter().all(|size| size <= DEFAULT_LINE_LIMIT + reader::BATCH));
}

#[test]
fn a_source_that_panics_ends_only_itself() {
    struct Bomb(bool);
    impl ChunkSource for Bomb {
        fn next_chunk(&mut self) -> Result<Option<(Stream, &[u8])>> {
            assert!(!std::mem::replace(&mut self.0, true), "the bomb went off");
            Ok(Some((Stream::Stdout, b"one\ntick")))
        }
    }
    let (writer, mut written) = tape();
    let printer = Printer::new(writer);
    printer.follow("bomb", Bomb(false)).expect("follow");
    written.expect("bomb: one\nbomb: tick\n");
    printer.follow("calm", FromReader::new(Stream::Stdout, &b"two\n"[..])).expect("follow");
    let printed = join(printer).expect("join");
    match &printed.sources[..] {
        [Ended { ending: Ending::Panicked(text), .. }, Ended { ending: Ending::EndOfStream, label, .. }] => {
            assert_eq!((text.as_str(), label.as_str()), ("the bomb went off", "calm"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(written.text(), "bomb: one\nbomb: tick\ncalm: two\n");
}

/// A sink that tells what it hears, in order.
struct Listener(Sender<String>);

impl Sink for Listener {
    fn lines(&mut self, batch: &Batch) -> io::Result<()> {
        for piece in batch.lines() {
            let text = String::from_utf8_lossy(piece.bytes);
            let _ =
                self.0.send(format!("{} {} {} {text} {:?}", batch.number(), batch.label(), batch.stream(), piece.end));
        }
        Ok(())
    }

    fn ended(&mut self, ended: &Ended) -> io::Result<()> {
        let _ = self.0.send(format!("{} {} ended {:?}", ended.number, ended.label, ended.ending));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_sink_hears_of_an_end_after_the_last_line() {
    struct Breaks(bool);
    impl ChunkSource for Breaks {
        fn next_chunk(&mut self) -> Result<Option<(Stream, &[u8])>> {
            if std::mem::replace(&mut self.0, true) {
                return Err(Error::Closed);
            }
            Ok(Some((Stream::Stderr, b"one\ntwo")))
        }
    }
    let (heard, hears) = unbounded();
    let printer = Printer::builder().print_to_sink(Listener(heard));
    printer.follow("w", Breaks(false)).expect("follow");
    let printed = join(printer).expect("join");
    assert!(matches!(printed.sources[0].ending, Ending::Failed(Error::Closed)));
    let heard: Vec<_> = hears.try_iter().collect();
    assert_eq!(heard, ["0 w stderr one Newline", "0 w stderr two EndOfStream", "0 w ended Failed(Closed)"]);
}

#[test]
fn an_end_waits_behind_lines_that_wait_for_a_long_one() {
    let (heard, hears) = unbounded();
    let printer = Printer::builder().patience(DEADLINE).print_to_sink(Listener(heard));
    let (long, source) = feed();
    long.out("x".repeat(DEFAULT_LINE_LIMIT + 1));
    printer.follow("long", source).expect("follow");
    let first = hears.recv_timeout(DEADLINE).expect("the long line begins");
    assert!(first.ends_with("More"));
    printer.follow("short", FromReader::new(Stream::Stdout, &b"y\n"[..])).expect("follow");
    let [long_one, short_one] = [(); 2].map(|()| printer.followed.1.try_recv().expect("two are followed"));
    short_one.thread.join().expect("its line and its end are queued");
    printer.followed.0.send(long_one).expect("the receiver is there");
    long.out("\n");
    drop(long);
    join(printer).expect("join");
    let mut heard: Vec<_> = hears.try_iter().collect();
    heard.retain(|text| text.starts_with('1'));
    assert_eq!(heard, ["1 short stdout y Newline", "1 short ended EndOfStream"]);
}

#[test]
fn a_source_says_how_it_ended() {
    struct Late;
    impl ChunkSource for Late {
        fn next_chunk(&mut self) -> Result<Option<(Stream, &[u8])>> {
            Ok(None)
        }

        fn ending(&mut self) -> Result<Ending> {
            Err(Error::Discarded { stream: Stream::Stderr, bytes: 7 })
        }
    }
    let printer = Printer::new(io::sink());
    printer.follow("w", Late).expect("follow");
    let printed = join(printer).expect("join");
    assert!(matches!(printed.sources[0].ending, Ending::Failed(Error::Discarded { bytes: 7, .. })));
}

#[test]
fn a_sink_that_panics_is_reported_and_stops_the_sources() {
    struct Bomb;
    impl Sink for Bomb {
        fn lines(&mut self, _: &Batch) -> io::Result<()> {
            panic!("the sink went down");
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let printer = Printer::builder().print_to_sink(Bomb);
    printer.follow("silent", Silent::new()).expect("follow");
    printer.follow("w", FromReader::new(Stream::Stdout, &b"x\n"[..])).expect("follow");
    match join(printer) {
        Err(Error::Internal(text)) => assert!(text.contains("the sink went down"), "{text}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn dropping_the_printer_ends_nothing() {
    let (writer, mut written) = tape();
    let printer = Printer::new(writer);
    let (say, source) = feed();
    printer.follow("w", source).expect("follow");
    drop(printer);
    say.out("still here\n");
    written.expect("w: still here\n");
}

#[test]
fn threads_are_named_for_what_they_read() {
    struct WhoAmI(Sender<Option<String>>);
    impl ChunkSource for WhoAmI {
        fn next_chunk(&mut self) -> Result<Option<(Stream, &[u8])>> {
            let _ = self.0.send(thread::current().name().map(str::to_owned));
            Ok(None)
        }
    }
    let (name, names) = unbounded();
    let printer = Printer::new(io::sink());
    printer.follow("web1#2", WhoAmI(name.clone())).expect("follow");
    join(printer).expect("join");
    assert_eq!(names.recv_timeout(DEADLINE).expect("a name").as_deref(), Some("tl:web1#2"));
    assert_eq!(thread_name("a\0b"), "tl:a?b");
}

#[test]
fn an_error_that_was_wrapped_for_read_comes_out_as_it_was() {
    struct Lost;
    impl io::Read for Lost {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(Error::Cancelled.into())
        }
    }
    let printer = Printer::new(io::sink());
    printer.follow("w", FromReader::new(Stream::Stdout, Lost)).expect("follow");
    let printed = join(printer).expect("join");
    assert!(matches!(printed.sources[0].ending, Ending::Failed(Error::Cancelled)));
}

/// Which stream, what length, and where the chunk is cut: the makings of one source's output.
fn sources() -> impl Strategy<Value = Vec<Vec<(bool, usize, usize)>>> {
    let line = (any::<bool>(), prop_oneof![30 => 0..60usize, 1 => 60_000..100_000usize], 1..3000usize);
    proptest::collection::vec(proptest::collection::vec(line, 0..60), 16)
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20, ..ProptestConfig::with_cases(12) })]

    #[test]
    fn sixteen_sources_print_whole_lines_each_in_its_order(sources in sources(), queue in 1..8usize) {
        let (writer, written) = tape();
        let printer = Printer::builder().queue(queue).patience(DEADLINE).print_to(writer);
        let mut expected: HashMap<String, Vec<String>> = HashMap::new();
        for (n, lines) in sources.iter().enumerate() {
            let (say, source) = feed();
            printer.follow(n.to_string(), source).expect("follow");
            // The streams take turns a piece at a time, so that half lines of one meet lines of the other.
            let mut texts = [String::new(), String::new()];
            let mut cut = 1;
            for (number, (stdout, length, chunk)) in lines.iter().enumerate() {
                let stream = if *stdout { Stream::Stdout } else { Stream::Stderr };
                let text = format!("{number} {}", "z".repeat(*length));
                expected.entry(format!("{n} {stream}")).or_default().push(text.clone());
                texts[stream.index()] += &text;
                texts[stream.index()].push('\n');
                cut = *chunk;
            }
            let [out, err] = texts.each_ref().map(|text| text.as_bytes().chunks(cut).collect::<Vec<_>>());
            for turn in 0..out.len().max(err.len()) {
                if let Some(chunk) = out.get(turn) {
                    say.out(chunk);
                }
                if let Some(chunk) = err.get(turn) {
                    say.err(chunk);
                }
            }
        }
        join(printer).expect("join");
        let mut printed: HashMap<String, Vec<String>> = HashMap::new();
        for row in written.text().lines() {
            let mark = row.find([':', '!']).expect("a label");
            let stream = if row.as_bytes()[mark] == b':' { Stream::Stdout } else { Stream::Stderr };
            printed.entry(format!("{} {stream}", &row[..mark])).or_default().push(row[mark + 2..].to_owned());
        }
        prop_assert!(printed == expected, "a line was torn, lost or out of order");
    }
}
