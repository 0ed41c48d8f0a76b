//! Lines per second through the printer: short lines of four sources, with labels, into a file.
//!
//! The baseline of the same run is what one would write by hand: a thread for each source, `read_line`, and a
//! `BufWriter` behind a `Mutex`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use threadline::{FromReader, Printer, Stream};

const SOURCES: usize = 4;

/// Seconds of all lines.
pub struct Took {
    pub printer: f64,
    pub by_hand: f64,
}

/// Lets both print in turn; the median counts.
pub fn measure(lines: usize, repeats: usize) -> io::Result<Took> {
    let text = Arc::new(Text::new(lines / SOURCES));
    let (mut printer, mut by_hand) = (Vec::new(), Vec::new());
    for _ in 0..repeats {
        printer.push(seconds(|file| print_with_printer(&text, file))?);
        by_hand.push(seconds(|file| print_naively(&text, file))?);
    }
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    Ok(Took { printer: median(printer), by_hand: median(by_hand) })
}

fn seconds(print: impl Fn(File) -> io::Result<()>) -> io::Result<f64> {
    let file = tempfile::tempfile()?;
    let start = Instant::now();
    print(file)?;
    Ok(start.elapsed().as_secs_f64())
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
