//! The report for the summary of a CI job.

use std::fmt::Write;

use super::table::rows;
use super::{mebibytes, number, relation, words};
use crate::ParityReport;

impl ParityReport {
    /// The report as GitHub-flavoured Markdown.
    pub fn to_markdown(&self) -> String {
        let mut out = String::new();
        self.write_markdown(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write_markdown(&self, out: &mut String) -> std::fmt::Result {
        let failed = self.checks.iter().filter(|check| !check.passed).count();
        let verdict = match failed {
            0 => "✅ within its thresholds".to_owned(),
            n => format!("❌ outside its thresholds: {n} of {} checks", self.checks.len()),
        };
        writeln!(out, "## Parity of `{}`: {verdict}\n", code(&self.candidate.name))?;
        let size = self.candidate.size_bytes.map_or(String::new(), |bytes| format!(", {}", mebibytes(bytes)));
        writeln!(
            out,
            "Against `{}` in float. {} ({}{size}).\n",
            code(&self.reference.name),
            escape(&self.candidate.description),
            self.candidate.kind
        )?;
        for finding in &self.findings {
            writeln!(out, "- **{}**: {}", finding.scope, escape(&finding.message))?;
        }
        if !self.findings.is_empty() {
            writeln!(out)?;
        }
        let columns = [
            ("implementation", &self.implementation),
            ("conversion", &self.conversion),
            ("total", &self.total),
        ];
        let columns: Vec<_> = columns.into_iter().filter_map(|(n, c)| c.as_ref().map(|c| (n, c))).collect();
        if !columns.is_empty() {
            let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
            writeln!(out, "| | {} |", names.join(" | "))?;
            writeln!(out, "|---|{}", "---:|".repeat(columns.len()))?;
            for (name, value) in rows() {
                let cells: Vec<String> = columns.iter().map(|(_, column)| escape(&value(column))).collect();
                writeln!(out, "| {name} | {} |", cells.join(" | "))?;
            }
            writeln!(out)?;
        }
        if let Some(p) = &self.perplexity {
            writeln!(
                out,
                "Perplexity over {} tokens: float {:.4}, candidate {:.4} ({:+.2} %).\n",
                p.tokens,
                p.reference,
                p.candidate.unwrap_or(p.own_float),
                100.0 * p.change()
            )?;
        }
        if let Some(weights) = &self.weights {
            writeln!(
                out,
                "{} tensors, {:.3} bits per weight ({:.3} where quantized).\n",
                weights.tensors.len(),
                weights.bits_per_weight,
                weights.bits_per_quantized_weight
            )?;
        }
        writeln!(out, "<details{}><summary>Checks</summary>\n", if failed > 0 { " open" } else { "" })?;
        writeln!(out, "| | check | value | limit | where the limit comes from |\n|---|---|---:|---:|---|")?;
        for check in &self.checks {
            writeln!(
                out,
                "| {} | {} | {} | {} {} | {} |",
                if check.passed { "✅" } else { "❌" },
                words(&check.name),
                number(check.value),
                relation(check),
                number(check.limit),
                escape(&check.because)
            )?;
        }
        writeln!(out, "\n</details>")
    }
}

/// Text that must not become a table's border or markup.
fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

/// Text between backticks.
fn code(text: &str) -> String {
    text.replace('`', "'")
}
