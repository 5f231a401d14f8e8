//! The report on a terminal.

use std::fmt::Write;

use super::{mebibytes, number, percent, relation, words};
use crate::{Comparison, ParityReport};

impl ParityReport {
    /// The report as text of at most 110 columns or so, without colours.
    pub fn to_table(&self) -> String {
        let mut out = String::new();
        self.write_table(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let size = self.candidate.size_bytes.map_or(String::new(), |bytes| format!(", {}", mebibytes(bytes)));
        writeln!(out, "reference  {}", self.reference.name)?;
        writeln!(out, "candidate  {} ({}{size})", self.candidate.name, self.candidate.kind)?;
        writeln!(out, "           {}", self.candidate.description)?;
        if let Some(weights) = &self.weights {
            let outside = weights.failed().count();
            let verdict = match outside {
                0 => "all within what their encodings explain".to_owned(),
                n => format!("{n} beyond what their encodings explain"),
            };
            writeln!(
                out,
                "weights    {} tensors, {:.3} bits per weight ({:.3} where quantized): {verdict}",
                weights.tensors.len(),
                weights.bits_per_weight,
                weights.bits_per_quantized_weight
            )?;
        }
        let columns = [
            ("implementation", &self.implementation),
            ("conversion", &self.conversion),
            ("total", &self.total),
        ];
        let columns: Vec<_> = columns.into_iter().filter_map(|(n, c)| c.as_ref().map(|c| (n, c))).collect();
        if !columns.is_empty() {
            write!(out, "\n{:28}", "")?;
            for (name, _) in &columns {
                write!(out, "{name:>20}")?;
            }
            writeln!(out)?;
            for (name, value) in rows() {
                write!(out, "{name:28}")?;
                for (_, column) in &columns {
                    write!(out, "{:>20}", value(column))?;
                }
                writeln!(out)?;
            }
            writeln!(
                out,
                "implementation: executed against its own weights in float; conversion: its weights in float"
            )?;
            writeln!(out, "against the original; total: executed against the original. KL in nats.")?;
        }
        if let Some(p) = &self.perplexity {
            writeln!(
                out,
                "\nperplexity over {} tokens: float {:.4}, candidate {:.4} ({:+.2} %)",
                p.tokens,
                p.reference,
                p.candidate.unwrap_or(p.own_float),
                100.0 * p.change()
            )?;
        }
        for greedy in &self.greedy {
            writeln!(
                out,
                "greedy `{}`: {} of {} as its own weights in float would choose; {} of the float model's from the first on",
                greedy.prompt, greedy.same_as_own_float, greedy.tokens, greedy.same_as_reference
            )?;
        }
        if let Some(worst) = self.consistency.iter().max_by(|a, b| a.mean_kl.total_cmp(&b.mean_kl)) {
            let equal = self.consistency.iter().filter(|way| way.bit_equal).count();
            writeln!(
                out,
                "the same tokens in {} other ways: {equal} equal bit for bit; worst mean KL {} ({})",
                self.consistency.len(),
                number(worst.mean_kl),
                worst.way
            )?;
        }
        writeln!(out)?;
        for check in &self.checks {
            writeln!(
                out,
                "{} {:52} {:>10}  {} {}",
                if check.passed { "ok  " } else { "FAIL" },
                words(&check.name),
                number(check.value),
                relation(check),
                number(check.limit)
            )?;
        }
        for finding in &self.findings {
            writeln!(out, "\n{}: {}", finding.scope, finding.message)?;
        }
        let failed = self.checks.iter().filter(|check| !check.passed).count();
        match failed {
            0 => writeln!(out, "\nwithin its thresholds"),
            n => writeln!(out, "\nOUTSIDE ITS THRESHOLDS: {n} of {} checks", self.checks.len()),
        }
    }
}

type Cell = fn(&Comparison) -> String;

/// The rows of the table of comparisons.
pub(super) fn rows() -> [(&'static str, Cell); 12] {
    [
        ("positions", |c| c.positions.to_string()),
        ("KL mean", |c| number(c.kl.mean)),
        ("KL median", |c| number(c.kl.median)),
        ("KL 99th percentile", |c| number(c.kl.p99)),
        ("KL largest", |c| number(c.kl.max)),
        ("top-1 agreement", |c| percent(c.top1_agreement)),
        ("top-5 overlap", |c| percent(c.top5_overlap)),
        ("cosine of logits, mean", |c| format!("{:.7}", c.cosine_mean)),
        ("cosine of logits, worst", |c| format!("{:.7}", c.cosine_min)),
        ("largest difference", |c| number(c.max_abs_difference)),
        ("first different top-1", |c| match &c.first_different {
            Some(place) => format!("{}:{}", place.prompt, place.position),
            None => "none".into(),
        }),
        ("worst position", |c| match &c.worst {
            Some(place) => format!("{}:{}", place.prompt, place.position),
            None => "none".into(),
        }),
    ]
}
