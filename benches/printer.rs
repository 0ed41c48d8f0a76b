//! Lines per second through the printer: 5,000,000 short lines of four sources, with labels, into a file.
//!
//! The baseline of the same run is what one would write by hand: a thread for each source, `read_line`, and a
//! `BufWriter` behind a `Mutex`. Run with `cargo bench --bench printer`; without `--bench` (as `cargo test
//! --all-targets` does) it only shows that it works. The best of three rounds counts. The processor time beside it does
//! not depend on what else the machine has to do.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use threadline::{FromReader, Printer, Stream};

const SOURCES: usize = 4;
const ROUNDS: usize = 3;
const TARGET: f64 = 10e6;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let in_earnest = std::env::args().any(|arg| arg == "--bench");
    let lines_per_source = if in_earnest { 5_000_000 / SOURCES } else { 10_000 };
    let text = Arc::new(Text::new(lines_per_source));

    let naive = best_of_rounds(|file| print_naively(&text, file))?;
    let printer = best_of_rounds(|file| print_with_printer(&text, file))?;

    let lines = (lines_per_source * SOURCES) as f64;
    println!("{lines} lines from {SOURCES} sources, with labels, to a file");
    println!("  Mutex<BufWriter> and read_line  {}", naive.describe(lines));
    println!("  Printer                         {}", printer.describe(lines));
    if in_earnest {
        let reached = lines / printer.wall.as_secs_f64() >= TARGET;
        println!("  target {:.0} million: {}", TARGET / 1e6, if reached { "reached" } else { "MISSED" });
    }
    Ok(())
}

/// What each source says: lines of about 20 bytes.
struct Text(Vec<u8>);

impl Text {
    fn new(lines: usize) -> Text {
        let mut text = Vec::with_capacity(lines * 21);
        for n in 0..lines {
            // a Vec takes everything
            let _ = writeln!(text, "line {n:>8} of text");
        }
        Text(text)
    }
}

/// Reads the text in chunks as a channel would deliver it.
struct Reader {
    text: Arc<Text>,
    at: usize,
}

impl Reader {
    fn new(text: &Arc<Text>) -> Reader {
        Reader { text: Arc::clone(text), at: 0 }
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = (&self.text.0[self.at..]).read(buffer)?;
        self.at += length;
        Ok(length)
    }
}

fn print_with_printer(text: &Arc<Text>, file: File) -> io::Result<()> {
    let printer = Printer::new(file);
    for n in 0..SOURCES {
        printer.follow(format!("web{n}"), FromReader::new(Stream::Stdout, Reader::new(text)))?;
    }
    printer.join()?;
    Ok(())
}

fn print_naively(text: &Arc<Text>, file: File) -> io::Result<()> {
    let output = Mutex::new(BufWriter::with_capacity(128 * 1024, file));
    thread::scope(|scope| {
        let print = |n: usize| -> io::Result<()> {
            let mut reader = BufReader::with_capacity(32 * 1024, Reader::new(text));
            let mut line = String::new();
            while reader.read_line(&mut line)? > 0 {
                let mut output = output.lock().map_err(|_| io::Error::other("a printing thread panicked"))?;
                write!(output, "web{n}: {line}")?;
                line.clear();
            }
            Ok(())
        };
        let threads: Vec<_> = (0..SOURCES).map(|n| scope.spawn(move || print(n))).collect();
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| io::Error::other("a printing thread panicked"))?)
    })?;
    output.into_inner().map_err(|_| io::Error::other("a printing thread panicked"))?.flush()
}

/// What a round took.
struct Took {
    wall: Duration,
    processor: Duration,
}

impl Took {
    fn describe(&self, lines: f64) -> String {
        let rate = lines / self.wall.as_secs_f64() / 1e6;
        let nanoseconds = self.processor.as_secs_f64() * 1e9 / lines;
        format!("{rate:>7.2} million lines/s   {nanoseconds:>5.0} ns of processor time per line")
    }
}

fn best_of_rounds(print: impl Fn(File) -> io::Result<()>) -> io::Result<Took> {
    let mut best = Took { wall: Duration::MAX, processor: Duration::MAX };
    for _ in 0..ROUNDS {
        let file = tempfile::tempfile()?;
        let (start, processor) = (Instant::now(), processor_time());
        print(file)?;
        best.wall = best.wall.min(start.elapsed());
        best.processor = best.processor.min(processor_time() - processor);
    }
    Ok(best)
}

/// Of this process, all threads together.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}
