//! The report as text for the terminal.

use std::fmt::Write;

use super::{
    check_title, comparison_rows, comparisons, mebibytes, metric_title, metric_value, number, one_line,
    predicted_token, relation,
};
use crate::{ParityReport, TokenProbability};

impl ParityReport {
    /// The report as text of at most 110 columns, without colours.
    pub fn to_table(&self) -> String {
        let mut out = String::new();
        self.write_table(&mut out).expect("writing to a string does not fail");
        out
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        self.write_models(out)?;
        self.write_comparisons(out)?;
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
        self.write_words(out)?;
        self.write_checks(out)?;
        self.write_grades(out)?;
        for finding in &self.findings {
            writeln!(out, "\n{}: {}", finding.scope, finding.message)?;
        }
        self.write_verdicts(out)
    }

    fn write_models(&self, out: &mut String) -> std::fmt::Result {
        let size = self.candidate.size_bytes.map_or(String::new(), |bytes| format!(", {}", mebibytes(bytes)));
        writeln!(out, "reference  {}", self.reference.name)?;
        writeln!(out, "candidate  {} ({}{size})", self.candidate.name, self.candidate.kind)?;
        writeln!(out, "           {}", self.candidate.description)?;
        if let Some(recipe) = &self.candidate.recipe {
            writeln!(out, "recipe     {recipe}")?;
        }
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
        Ok(())
    }

    fn write_comparisons(&self, out: &mut String) -> std::fmt::Result {
        let columns = comparisons(self);
        if !columns.is_empty() {
            write!(out, "\n{:28}", "")?;
            for (name, _) in &columns {
                write!(out, "{name:>20}")?;
            }
            writeln!(out)?;
            for (title, value) in comparison_rows() {
                write!(out, "{title:28}")?;
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
        if let Some(perplexity) = &self.perplexity {
            writeln!(
                out,
                "\nperplexity over {} tokens: float {:.4}, candidate {:.4} ({:+.2} %)",
                perplexity.tokens,
                perplexity.reference,
                perplexity.candidate.unwrap_or(perplexity.own_float),
                100.0 * perplexity.change()
            )?;
        }
        Ok(())
    }

    /// Both continuations of each prompt, and the worst position.
    fn write_words(&self, out: &mut String) -> std::fmt::Result {
        for greedy in &self.greedy {
            let Some(texts) = &greedy.texts else { continue };
            writeln!(out, "\nafter `{}`: ...{}", greedy.prompt, tail(&one_line(&texts.prompt), 78))?;
            writeln!(out, "  float      {}", head(&one_line(&texts.reference), 96))?;
            writeln!(out, "  candidate  {}", head(&one_line(&texts.candidate), 96))?;
        }
        let Some(worst) = &self.worst_position else { return Ok(()) };
        let Some(context) = &worst.context_text else { return Ok(()) };
        let list = |predicted: &[TokenProbability]| {
            predicted.iter().map(predicted_token).collect::<Vec<_>>().join(", ")
        };
        writeln!(
            out,
            "\nworst position, {}:{} (KL {}): ...{}",
            worst.prompt,
            worst.position,
            number(worst.kl),
            tail(&one_line(context), 60)
        )?;
        if let Some(next) = &worst.next_text {
            writeln!(out, "  text       `{}`", one_line(next))?;
        }
        writeln!(out, "  float      {}", list(&worst.reference))?;
        writeln!(out, "  candidate  {}", list(&worst.candidate))
    }

    fn write_checks(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\nimplementation verdict: is the artefact computed right?")?;
        for check in &self.checks {
            writeln!(
                out,
                "{} {:52} {:>10}  {} {}",
                if check.passed { "ok  " } else { "FAIL" },
                check_title(&check.name),
                number(check.value),
                relation(check),
                number(check.limit)
            )?;
        }
        Ok(())
    }

    fn write_grades(&self, out: &mut String) -> std::fmt::Result {
        let Some(fidelity) = &self.fidelity else { return Ok(()) };
        writeln!(out, "\nfidelity verdict: is it still the model?")?;
        writeln!(
            out,
            "{:20} {:>12}  {:10} {:>12} {:>12} {:>12}",
            "", "value", "grade", "faithful", "close", "degraded"
        )?;
        for metric in &fidelity.metrics {
            let limit = |limit: f64| metric_value(metric, limit);
            writeln!(
                out,
                "{:20} {:>12}  {:10} {:>12} {:>12} {:>12}",
                metric_title(metric),
                metric_value(metric, metric.value),
                metric.grade,
                limit(metric.limits.faithful.limit),
                limit(metric.limits.close.limit),
                limit(metric.limits.degraded.limit)
            )?;
        }
        Ok(())
    }

    fn write_verdicts(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\nimplementation: {}", self.implementation_phrase())?;
        writeln!(out, "fidelity:       {}", self.fidelity_phrase())?;
        if let (Some(fidelity), Some(required)) = (&self.fidelity, self.required)
            && fidelity.grade < required
        {
            writeln!(
                out,
                "BELOW THE REQUIRED GRADE: {} is required (--require), this is {}",
                required, fidelity.grade
            )?;
        }
        Ok(())
    }
}

/// The first `most` characters.
fn head(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The last `most` characters.
fn tail(text: &str, most: usize) -> &str {
    let skipped = text.chars().count().saturating_sub(most);
    text.char_indices().nth(skipped).map_or(text, |(start, _)| &text[start..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!((head("äöü", 2), head("äö", 2)), ("äö...".to_owned(), "äö".to_owned()));
        assert_eq!((tail("äöü", 2), tail("äö", 5), tail("", 3)), ("öü", "äö", ""));
    }
}
