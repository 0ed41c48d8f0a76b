//! The tables: rows of cells and the targets that were set, printed as Markdown.

use std::fmt;

/// The clients, in the order of the columns, of the table of everything but ciphers.
pub const CLIENTS: [&str; 5] = ["threadline", "ssh2", "ssh", "ControlMaster", "paramiko"];

/// What was to be reached, what was, and whether that is enough.
pub type Target = (String, String, bool);

/// One measurement of all clients that can do it.
#[derive(Debug)]
pub struct Row {
    what: String,
    cells: Vec<(String, String)>,
    target: [String; 3],
}

impl Row {
    /// A row without numbers yet.
    pub fn new(what: impl Into<String>) -> Row {
        Row { what: what.into(), cells: Default::default(), target: Default::default() }
    }

    /// Puts a client's number in; it is shown where the table has a column for it.
    pub fn cell(mut self, client: &str, value: impl Into<String>) -> Row {
        self.cells.push((client.to_owned(), value.into()));
        self
    }

    fn get(&self, client: &str) -> Option<&str> {
        self.cells.iter().find(|(name, _)| name == client).map(|(_, value)| value.as_str())
    }

    /// Puts the target in.
    pub fn target(mut self, (target, measured, reached): Target) -> Row {
        self.target = [target, measured, if reached { "yes" } else { "**no**" }.to_owned()];
        self
    }

    /// The same, if there is one.
    pub fn target_if(self, target: Option<Target>) -> Row {
        match target {
            Some(target) => self.target(target),
            None => self,
        }
    }
}

/// All rows, and what is to be said below them.
#[derive(Debug)]
pub struct Table {
    columns: &'static [&'static str],
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Table {
    /// A table without rows yet.
    pub fn new(columns: &'static [&'static str]) -> Table {
        Table { columns, rows: Vec::new(), notes: Vec::new() }
    }

    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a sentence below the table, and shows it on stderr.
    pub fn note(&mut self, text: impl Into<String>) {
        let text = text.into();
        eprintln!("{text}");
        self.notes.push(text);
    }

    /// Appends a row, and shows it on stderr: a run takes minutes.
    pub fn push(&mut self, row: Row) {
        let cells = self.columns.iter().filter_map(|column| Some(format!("{column} {}", row.get(column)?)));
        let cells: Vec<String> = cells.collect();
        eprintln!("{}: {} {}", row.what, cells.join(", "), row.target.join(" "));
        self.rows.push(row);
    }

    fn lines(&self) -> Vec<Vec<String>> {
        let mut head = vec![String::new()];
        head.extend(self.columns.iter().map(|column| (*column).to_owned()));
        let targets = self.rows.iter().any(|row| !row.target[0].is_empty());
        let shown = if targets { 3 } else { 0 };
        head.extend(["target", "measured", "reached"][..shown].iter().map(|name| (*name).to_owned()));
        let rows = self.rows.iter().map(|row| {
            let cells = self.columns.iter().map(|column| row.get(column).unwrap_or_default().to_owned());
            std::iter::once(row.what.clone()).chain(cells).chain(row.target[..shown].to_vec()).collect()
        });
        std::iter::once(head).chain(rows).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lines();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
        for (n, line) in lines.iter().enumerate() {
            let padded = line.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            writeln!(f, "| {} |", padded.collect::<Vec<_>>().join(" | "))?;
            if n == 0 {
                let rules = widths.iter().map(|&width| "-".repeat(width.max(1)));
                writeln!(f, "|-{}-|", rules.collect::<Vec<_>>().join("-|-"))?;
            }
        }
        if !self.notes.is_empty() {
            writeln!(f, "\n{}", self.notes.join("\n"))?;
        }
        Ok(())
    }
}

/// A duration in a unit that leaves few digits.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 0.01 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.2} ms", s * 1e3),
    }
}

/// Bytes a second, in MB/s.
pub fn rate(bytes: u64, seconds: f64) -> String {
    format!("{:.0} MB/s", bytes as f64 / seconds / 1e6)
}
