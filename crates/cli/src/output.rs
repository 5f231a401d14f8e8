//! Output on stdout, as text or as one JSON value, and notes on stderr.

use std::io::{self, Write};

use comfy_table::{CellAlignment, ContentArrangement, presets};
use indicatif::{DecimalBytes, HumanCount};
use serde::Serialize;

/// Prints a line to stdout.
///
/// # Errors
/// The reader has closed the pipe.
pub fn line(text: impl AsRef<str>) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{}", text.as_ref())
}

/// Prints a value as indented JSON to stdout.
///
/// # Errors
/// The reader has closed the pipe.
pub fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    Ok(line(text)?)
}

/// Prints a note to stderr.
#[expect(clippy::print_stderr, reason = "notes must not mix with results")]
pub fn note(text: impl AsRef<str>) {
    eprintln!("{}", text.as_ref());
}

/// A table without borders: the first column is left-aligned, the others are right-aligned.
#[derive(Clone, Debug)]
pub struct Table(comfy_table::Table);

impl Table {
    /// A table with column titles.
    pub fn with_titles<const N: usize>(titles: [&str; N]) -> Self {
        Self::with_title_row(titles.map(str::to_owned).to_vec())
    }

    /// A table whose number of columns is known only at run time.
    pub fn with_title_row(titles: Vec<String>) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(titles);
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding(if index == 0 { (0, 0) } else { (2, 0) });
            column.set_cell_alignment(if index == 0 { CellAlignment::Left } else { CellAlignment::Right });
        }
        Self(table)
    }

    /// Appends a row to a table whose number of columns is known only at run time.
    pub fn add_row(&mut self, cells: Vec<String>) {
        self.0.add_row(cells);
    }

    /// Appends a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells);
    }

    /// The table as lines, without a line break at the end.
    pub fn render(&self) -> String {
        self.0.trim_fmt()
    }
}

/// A number of bytes in decimal units.
pub fn bytes(count: u64) -> String {
    DecimalBytes(count).to_string()
}

/// A whole number with separators between thousands.
pub fn grouped(number: u64) -> String {
    HumanCount(number).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1500, "1.50 kB"),
            (999_960, "999.96 kB"),
            (1_746_882_752, "1.75 GB"),
        ] {
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
