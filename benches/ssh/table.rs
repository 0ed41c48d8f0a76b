//! The table: rows of cells and the targets that were set, printed as Markdown.

use std::fmt;

/// The clients, in the order of the columns.
pub const CLIENTS: [&str; 5] = ["threadline", "ssh2", "ssh", "ControlMaster", "paramiko"];

/// What was to be reached, what was, and whether that is enough.
pub type Target = (String, String, bool);

/// One measurement of all clients that can do it.
#[derive(Debug)]
pub struct Row {
    what: String,
    cells: [String; CLIENTS.len()],
    target: [String; 3],
}

impl Row {
    /// A row without numbers yet.
    pub fn new(what: impl Into<String>) -> Row {
        Row { what: what.into(), cells: Default::default(), target: Default::default() }
    }

    /// Puts a client's number in.
    pub fn cell(mut self, client: &str, value: impl Into<String>) -> Row {
        if let Some(column) = CLIENTS.iter().position(|name| *name == client) {
            self.cells[column] = value.into();
        }
        self
    }

    /// Puts the target in.
    pub fn target(mut self, (target, measured, reached): Target) -> Row {
        self.target = [target, measured, if reached { "yes" } else { "**no**" }.to_owned()];
        self
    }
}

/// All rows.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Appends a row, and shows it on stderr: a run takes minutes.
    pub fn push(&mut self, row: Row) {
        let cells = CLIENTS.iter().zip(&row.cells).filter(|(_, cell)| !cell.is_empty());
        let cells: Vec<String> = cells.map(|(client, cell)| format!("{client} {cell}")).collect();
        eprintln!("{}: {} {}", row.what, cells.join(", "), row.target.join(" "));
        self.rows.push(row);
    }

    fn lines(&self) -> Vec<Vec<String>> {
        let mut head = vec![String::new()];
        head.extend(CLIENTS.map(str::to_owned));
        head.extend(["target", "measured", "reached"].map(str::to_owned));
        let rows = self.rows.iter().map(|row| {
            let cells = row.cells.iter().chain(&row.target).cloned();
            std::iter::once(row.what.clone()).chain(cells).collect()
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
