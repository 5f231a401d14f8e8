//! Renderings of a report: table for the terminal, Markdown, HTML.

mod html;
mod markdown;
mod plots;
mod svg;
mod table;

use crate::{Check, Comparison, FidelityMetric, ParityReport, Position, TokenProbability};

/// Formats a number: plain between 0.001 and 100,000, with an exponent outside.
pub(crate) fn number(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        v if !v.is_finite() => v.to_string(),
        v if v.abs() < 1e-3 || v.abs() >= 1e5 => format!("{v:.2e}"),
        v if v.fract() == 0.0 => format!("{v}"),
        // Cosines: their distance from one must stay visible.
        v if (0.999..1.0).contains(&v) => format!("{v:.8}"),
        v if v.abs() >= 100.0 => format!("{v:.1}"),
        v => format!("{v:.4}"),
    }
}

/// Formats a share as a percentage.
pub(crate) fn percent(share: f64) -> String {
    match share {
        1.0 => "100 %".into(),
        share => format!("{:.2} %", 100.0 * share),
    }
}

/// Formats a relative change as a signed percentage.
pub(crate) fn signed_percent(change: f64) -> String {
    format!("{:+.2} %", 100.0 * change)
}

pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

pub(crate) fn relation(check: &Check) -> &'static str {
    if check.at_least { "at least" } else { "at most" }
}

/// Title of a check.
pub(crate) fn check_title(name: &str) -> String {
    let (scope, metric) = name.split_once('.').unwrap_or(("", name));
    let metric = match metric {
        "mean_kl" => "mean KL",
        "p99_kl" => "99th percentile of KL",
        "max_kl" => "largest KL",
        "top1_agreement" => "top-1 agreement",
        "cosine_mean" => "mean cosine of logits",
        "hidden_relative" => "largest relative error of a hidden state",
        "state_cosine" => "smallest cosine of a recurrent state",
        "consistency_kl" => "prefill, decode and cuts: mean KL",
        "greedy_tokens" => "equal greedy tokens",
        "tensors_outside" => "tensors beyond their encoding",
        "differences" => "settings that differ",
        other => other,
    };
    format!("{scope}: {metric}")
}

/// Title of a fidelity metric.
pub(crate) fn metric_title(metric: &FidelityMetric) -> &str {
    match metric.name.as_str() {
        "mean_kl" => "mean KL",
        "top1_agreement" => "top-1 agreement",
        "perplexity_change" => "perplexity change",
        "greedy_agreement" => "greedy agreement",
        other => other,
    }
}

/// Formats a value or a limit of a fidelity metric.
pub(crate) fn metric_value(metric: &FidelityMetric, value: f64) -> String {
    match metric.name.as_str() {
        "mean_kl" => number(value),
        "perplexity_change" => signed_percent(value),
        _ => percent(value),
    }
}

/// The comparisons that a report has, with their names.
pub(crate) fn comparisons(report: &ParityReport) -> Vec<(&'static str, &Comparison)> {
    let all = [
        ("implementation", &report.implementation),
        ("conversion", &report.conversion),
        ("total", &report.total),
    ];
    all.into_iter().filter_map(|(name, comparison)| comparison.as_ref().map(|c| (name, c))).collect()
}

type Cell = fn(&Comparison) -> String;

/// Rows of the table of comparisons: title and value.
pub(crate) fn comparison_rows() -> [(&'static str, Cell); 12] {
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
        ("first different top-1", |c| position(c.first_different.as_ref())),
        ("worst position", |c| position(c.worst.as_ref())),
    ]
}

fn position(position: Option<&Position>) -> String {
    position.map_or("none".into(), |at| format!("{}:{}", at.prompt, at.position))
}

/// Text of a token list on one line: line breaks and tabs are written as escapes.
pub(crate) fn one_line(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('\r', "\\r").replace('\t', "\\t")
}

/// A predicted token with its probability: "` Paris` 93.1 %".
pub(crate) fn predicted_token(predicted: &TokenProbability) -> String {
    let text = match &predicted.text {
        Some(text) => one_line(text),
        None => format!("#{}", predicted.token),
    };
    format!("`{text}` {:.1} %", 100.0 * predicted.probability)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (0.25, "0.2500"),
            (64.0, "64"),
            (1.234e-7, "1.23e-7"),
            (1234.5, "1234.5"),
            (0.999999, "0.99999900"),
        ];
        for (value, expected) in cases {
            assert_eq!(number(value), expected);
        }
        assert_eq!(percent(1.0), "100 %");
        assert_eq!(percent(0.9999), "99.99 %");
        assert_eq!(one_line("a\n\\b"), "a\\n\\\\b");
    }
}
