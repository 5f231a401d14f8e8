//! The report as one self-contained HTML page.

use minijinja::value::Serde;
use minijinja::{Environment, Value, context};

use super::{
    check_title, comparison_rows, comparisons, mebibytes, metric_title, metric_value, number, one_line,
    percent, plots, relation, signed_percent,
};
use crate::{FidelityMetric, ParityReport};

const TEMPLATE: &str = include_str!("report.html.jinja");

impl ParityReport {
    /// The report as a self-contained HTML page without script, web font or external image.
    ///
    /// # Panics
    /// Never: the template is part of the program and its tests render it.
    pub fn to_html(&self) -> String {
        self.render_html().expect("the template renders every report")
    }

    fn render_html(&self) -> Result<String, minijinja::Error> {
        let mut environment = Environment::new();
        environment.add_filter("number", number);
        environment.add_filter("percent", percent);
        environment.add_filter("one_line", |text: String| one_line(&text));
        // The name's extension turns HTML escaping on.
        environment.add_template("report.html", TEMPLATE)?;
        let figures = [
            plots::kl_over_positions(self),
            plots::kl_distribution(self),
            plots::layers(self),
            plots::states(self),
            plots::calibration(self),
            plots::tensors(self),
        ];
        environment.get_template("report.html")?.render(context! {
            report => Serde(self),
            implementation => self.implementation_phrase(),
            fidelity => self.fidelity_phrase(),
            grade => self.grade().map(|grade| grade.name()),
            meaning => self.grade().map(|grade| grade.meaning()),
            below_required => self.passed && !self.accepted(),
            facts => self.facts(),
            tiles => self.tiles(),
            metrics => self.metric_rows(),
            columns => comparisons(self).into_iter().map(|(name, _)| name).collect::<Vec<_>>(),
            rows => self.comparison_cells(),
            perplexity_change => self.perplexity.map(|perplexity| signed_percent(perplexity.change())),
            figures => figures.into_iter().flatten().collect::<String>(),
            checks => self.check_rows(),
            tensors => self.tensor_order(),
        })
    }

    /// Names and values of the list below the title.
    fn facts(&self) -> Vec<(&'static str, String)> {
        let short = |hash: &String| hash.get(..16).unwrap_or(hash).to_owned();
        let encoding = match &self.candidate.recipe {
            Some(recipe) => format!("{}, {recipe}", self.candidate.kind),
            None => self.candidate.kind.clone(),
        };
        let seconds: f64 = self.seconds.values().sum();
        let facts = [
            ("date", Some(self.date.clone()).filter(|date| !date.is_empty())),
            ("reference", Some(self.reference.name.clone())),
            ("source SHA-256", self.reference.hash.as_ref().map(short)),
            ("encoding", Some(encoding)),
            ("executed by", Some(self.candidate.description.clone())),
            ("arithmetic", Some(self.candidate.execution.clone())),
            ("program", Some(self.tool.clone())),
            ("duration", Some(format!("{seconds:.1} s"))),
        ];
        facts.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// Values and names of the tiles.
    fn tiles(&self) -> Vec<(String, &'static str)> {
        let total = self.total.as_ref().or(self.conversion.as_ref());
        let tiles = [
            (self.candidate.size_bytes.map(mebibytes), "weight files"),
            (self.weights.as_ref().map(|check| format!("{:.3}", check.bits_per_weight)), "bits per weight"),
            (total.map(|comparison| number(comparison.kl.mean)), "mean KL"),
            (total.map(|comparison| percent(comparison.top1_agreement)), "top-1 agreement"),
            (self.perplexity.map(|perplexity| signed_percent(perplexity.change())), "perplexity"),
            (crate::GreedyReport::agreement(&self.greedy).map(percent), "greedy agreement"),
        ];
        tiles.into_iter().filter_map(|(value, name)| Some((value?, name))).collect()
    }

    fn metric_rows(&self) -> Vec<Value> {
        let row = |metric: &FidelityMetric| {
            let (limits, value) = (&metric.limits, |value| metric_value(metric, value));
            let because = match metric.grade {
                crate::Grade::Faithful => &limits.faithful.because,
                crate::Grade::Close => &limits.close.because,
                _ => &limits.degraded.because,
            };
            context! {
                title => metric_title(metric),
                value => value(metric.value),
                grade => metric.grade.name(),
                faithful => value(limits.faithful.limit),
                close => value(limits.close.limit),
                degraded => value(limits.degraded.limit),
                because => because,
            }
        };
        self.fidelity.iter().flat_map(|fidelity| &fidelity.metrics).map(row).collect()
    }

    fn comparison_cells(&self) -> Vec<(&'static str, Vec<String>)> {
        let columns = comparisons(self);
        if columns.is_empty() {
            return Vec::new();
        }
        let cells = |value: fn(&crate::Comparison) -> String| columns.iter().map(|(_, c)| value(c)).collect();
        comparison_rows().into_iter().map(|(title, value)| (title, cells(value))).collect()
    }

    fn check_rows(&self) -> Vec<Value> {
        let row = |check: &crate::Check| {
            context! {
                passed => check.passed,
                title => check_title(&check.name),
                value => number(check.value),
                limit => format!("{} {}", relation(check), number(check.limit)),
                because => &check.because,
            }
        };
        self.checks.iter().map(row).collect()
    }

    /// All tensors, failed ones first.
    fn tensor_order(&self) -> Vec<Value> {
        let tensors = self.weights.iter().flat_map(|check| &check.tensors);
        let (failed, passed): (Vec<_>, Vec<_>) = tensors.partition(|tensor| !tensor.passed);
        failed.into_iter().chain(passed).map(|tensor| Value::from(Serde(tensor))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative luminance of an sRGB colour `#rgb` or `#rrggbb`, as WCAG 2 defines it.
    fn luminance(color: &str) -> f64 {
        let digits = color.trim_start_matches('#');
        let width = digits.len() / 3;
        let channel = |index: usize| {
            let digits = &digits[index * width..(index + 1) * width];
            let value = f64::from(u8::from_str_radix(&digits.repeat(3 - width), 16).unwrap()) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        0.2126 * channel(0) + 0.7152 * channel(1) + 0.0722 * channel(2)
    }

    fn contrast(a: &str, b: &str) -> f64 {
        let (a, b) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }

    #[test]
    fn every_colour_is_readable_in_both_schemes() {
        assert!((contrast("#fff", "#000000") - 21.0).abs() < 1e-9);
        let schemes: Vec<&str> =
            TEMPLATE.split(":root{").skip(1).map(|s| s.split('}').next().unwrap()).collect();
        assert_eq!(schemes.len(), 2);
        for scheme in schemes {
            let color = |name: &str| {
                let start = scheme.find(&format!("--{name}:")).unwrap() + name.len() + 3;
                scheme[start..].split(';').next().unwrap()
            };
            for name in [
                "text",
                "soft",
                "good",
                "near",
                "warn",
                "bad",
                "implementation",
                "conversion",
                "total",
                "wrong",
            ] {
                for ground in ["ground", "card"] {
                    let found = contrast(color(name), color(ground));
                    assert!(found >= 4.5, "{name} on {ground}: {found:.2}");
                }
            }
            for badge in ["good", "near", "warn", "bad", "soft"] {
                assert!(contrast(color("on-badge"), color(badge)) >= 4.5, "badge {badge}");
            }
        }
    }
}
