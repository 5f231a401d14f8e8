//! A report for people: a table for the terminal, Markdown, HTML.

mod html;
mod markdown;
mod plots;
mod svg;
mod table;

use crate::Check;

/// A number as short as it can be read: plain between 0.001 and 100,000, with an exponent beyond.
pub(crate) fn number(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        v if !v.is_finite() => v.to_string(),
        v if v.abs() < 1e-3 || v.abs() >= 1e5 => format!("{v:.2e}"),
        v if v.fract() == 0.0 => format!("{v}"),
        // A cosine: what matters is how far it is from one.
        v if (0.999..1.0).contains(&v) => format!("{v:.8}"),
        v if v.abs() >= 100.0 => format!("{v:.1}"),
        v => format!("{v:.4}"),
    }
}

/// A part as a percentage.
pub(crate) fn percent(part: f64) -> String {
    match part {
        1.0 => "100 %".into(),
        part => format!("{:.2} %", 100.0 * part),
    }
}

pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

pub(crate) fn relation(check: &Check) -> &'static str {
    if check.at_least { "at least" } else { "at most" }
}

/// A check's name in words.
pub(crate) fn words(name: &str) -> String {
    let (scope, what) = name.split_once('.').unwrap_or(("", name));
    let what = match what {
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
    format!("{scope}: {what}")
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
    }
}
