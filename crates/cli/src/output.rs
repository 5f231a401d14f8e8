//! What goes to stdout: text for people, or one JSON value for programs.

use std::io::{self, Write};

use serde::Serialize;

/// Prints a line to stdout.
///
/// # Errors
/// The reader has gone away.
pub fn line(text: impl AsRef<str>) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", text.as_ref())
}

/// Prints a value as indented JSON to stdout.
///
/// # Errors
/// The reader has gone away.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    Ok(line(text)?)
}

/// A note for people, to stderr.
#[expect(clippy::print_stderr, reason = "notes must not mix with results")]
pub fn note(text: impl AsRef<str>) {
    eprintln!("{}", text.as_ref());
}

/// Columns of text: the first to the left, the others to the right, as wide as their widest cell.
#[derive(Clone, Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with column titles.
    pub fn with_titles<const N: usize>(titles: [&str; N]) -> Self {
        Self { rows: vec![titles.map(str::to_owned).to_vec()] }
    }

    /// A table with as many columns as there are titles.
    pub fn with_title_row(titles: Vec<String>) -> Self {
        Self { rows: vec![titles] }
    }

    /// Appends a row to a table whose number of columns is known only when it runs.
    pub fn add_row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Appends a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    /// The lines, without a line break at the end.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
            })
            .map(|width| width.unwrap_or(0))
            .collect();
        let cell = |(column, text): (usize, &String)| match column {
            0 => format!("{text:<width$}", width = widths[0]),
            _ => format!("{text:>width$}", width = widths[column]),
        };
        let lines: Vec<String> = self
            .rows
            .iter()
            .map(|row| row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned())
            .collect();
        lines.join("\n")
    }
}

/// A number of bytes, in decimal units.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    if count < 1000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = if unit >= 2 { 2 } else { 1 };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// A whole number with separators between thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (count, text) in
            [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_960, "1.0 MB"), (1_746_882_752, "1.75 GB")]
        {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(grouped(752_393_024), "752,393,024");
        assert_eq!(grouped(12), "12");
    }

    #[test]
    fn columns_align() {
        let mut table = Table::with_titles(["part", "bytes"]);
        table.row(["embedding".to_owned(), "1".to_owned()]);
        table.row(["head".to_owned(), "1,000".to_owned()]);
        assert_eq!(table.render(), "part       bytes\nembedding      1\nhead       1,000");
    }
}
