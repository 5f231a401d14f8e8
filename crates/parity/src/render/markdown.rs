//! The report as Markdown, for the summary of a CI job.

use std::fmt::Write;

use super::{
    check_title, comparison_rows, comparisons, mebibytes, metric_title, metric_value, number, one_line,
    predicted_token, relation,
};
use crate::{Grade, ParityReport, TokenProbability};

impl ParityReport {
    /// The report as GitHub-flavoured Markdown.
    pub fn to_markdown(&self) -> String {
        let mut out = String::new();
        self.write_markdown(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write_markdown(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "## Parity of `{}`: {}\n", code(&self.candidate.name), self.badge())?;
        writeln!(out, "- **Implementation**: {}", self.implementation_phrase())?;
        write!(out, "- **Fidelity**: {}", escape(&self.fidelity_phrase()))?;
        match (self.grade(), self.required) {
            (Some(grade), Some(required)) if grade < required => {
                writeln!(out, "; **below the required grade, {required}**\n")?;
            }
            _ => writeln!(out, "\n")?,
        }
        let size = self.candidate.size_bytes.map_or(String::new(), |bytes| format!(", {}", mebibytes(bytes)));
        let recipe = self.candidate.recipe.as_ref().map_or(String::new(), |recipe| format!(", {recipe}"));
        write!(
            out,
            "Against `{}` in float. {} ({}{recipe}{size}).",
            code(&self.reference.name),
            escape(&self.candidate.description),
            self.candidate.kind
        )?;
        if let Some(hash) = &self.reference.hash {
            write!(out, " Source `{}`.", hash.get(..16).unwrap_or(hash))?;
        }
        if !self.date.is_empty() {
            write!(out, " {}.", self.date)?;
        }
        writeln!(out, "\n")?;
        for finding in &self.findings {
            writeln!(out, "- **{}**: {}", finding.scope, escape(&finding.message))?;
        }
        if !self.findings.is_empty() {
            writeln!(out)?;
        }
        self.write_grade_table(out)?;
        self.write_word_tables(out)?;
        self.write_comparison_table(out)?;
        if let Some(weights) = &self.weights {
            writeln!(
                out,
                "{} tensors, {:.3} bits per weight ({:.3} where quantized).\n",
                weights.tensors.len(),
                weights.bits_per_weight,
                weights.bits_per_quantized_weight
            )?;
        }
        self.write_check_table(out)
    }

    /// Both verdicts with a coloured mark.
    fn badge(&self) -> String {
        let implementation = if self.passed { "✅ computed right" } else { "❌ not computed right" };
        let Some(grade) = self.grade() else { return implementation.into() };
        let mark = match grade {
            Grade::Faithful => "🟢",
            Grade::Close => "🔵",
            Grade::Degraded => "🟠",
            Grade::Destroyed => "🔴",
        };
        format!("{mark} {grade}, {implementation}")
    }

    fn write_grade_table(&self, out: &mut String) -> std::fmt::Result {
        let Some(fidelity) = &self.fidelity else { return Ok(()) };
        writeln!(out, "| fidelity | value | grade | faithful | close | degraded |")?;
        writeln!(out, "|---|---:|---|---:|---:|---:|")?;
        for metric in &fidelity.metrics {
            let limit = |limit: f64| metric_value(metric, limit);
            writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} |",
                metric_title(metric),
                metric_value(metric, metric.value),
                metric.grade,
                limit(metric.limits.faithful.limit),
                limit(metric.limits.close.limit),
                limit(metric.limits.degraded.limit)
            )?;
        }
        writeln!(out)
    }

    fn write_word_tables(&self, out: &mut String) -> std::fmt::Result {
        let texts: Vec<_> =
            self.greedy.iter().filter_map(|greedy| Some((greedy, greedy.texts.as_ref()?))).collect();
        if !texts.is_empty() {
            writeln!(out, "| greedy after | float | candidate |\n|---|---|---|")?;
            for (greedy, texts) in texts {
                writeln!(
                    out,
                    "| {} | {} | {} |",
                    escape(&greedy.prompt),
                    escape(&one_line(&texts.reference)),
                    escape(&one_line(&texts.candidate))
                )?;
            }
            writeln!(out)?;
        }
        let Some(worst) = &self.worst_position else { return Ok(()) };
        let Some(context) = &worst.context_text else { return Ok(()) };
        let list = |predicted: &[TokenProbability]| {
            let tokens: Vec<String> =
                predicted.iter().map(|predicted| escape(&predicted_token(predicted))).collect();
            tokens.join(", ")
        };
        writeln!(
            out,
            "Worst position, {}:{} (KL {}), after \"{}\": float {}; candidate {}.\n",
            escape(&worst.prompt),
            worst.position,
            number(worst.kl),
            escape(&one_line(context)),
            list(&worst.reference),
            list(&worst.candidate)
        )
    }

    fn write_comparison_table(&self, out: &mut String) -> std::fmt::Result {
        let columns = comparisons(self);
        if !columns.is_empty() {
            let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
            writeln!(out, "| | {} |", names.join(" | "))?;
            writeln!(out, "|---|{}", "---:|".repeat(columns.len()))?;
            for (title, value) in comparison_rows() {
                let cells: Vec<String> = columns.iter().map(|(_, column)| escape(&value(column))).collect();
                writeln!(out, "| {title} | {} |", cells.join(" | "))?;
            }
            writeln!(out)?;
        }
        if let Some(perplexity) = &self.perplexity {
            writeln!(
                out,
                "Perplexity over {} tokens: float {:.4}, candidate {:.4} ({:+.2} %).\n",
                perplexity.tokens,
                perplexity.reference,
                perplexity.candidate.unwrap_or(perplexity.own_float),
                100.0 * perplexity.change()
            )?;
        }
        Ok(())
    }

    fn write_check_table(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "<details{}><summary>Checks</summary>\n", if self.passed { "" } else { " open" })?;
        writeln!(out, "| | check | value | limit | where the limit comes from |\n|---|---|---:|---:|---|")?;
        for check in &self.checks {
            writeln!(
                out,
                "| {} | {} | {} | {} {} | {} |",
                if check.passed { "✅" } else { "❌" },
                check_title(&check.name),
                number(check.value),
                relation(check),
                number(check.limit),
                escape(&check.because)
            )?;
        }
        writeln!(out, "\n</details>")
    }
}

/// Escapes text that would end a table cell or start markup.
fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('\n', " ")
}

/// Replaces backticks, which would end inline code.
fn code(text: &str) -> String {
    text.replace('`', "'")
}
