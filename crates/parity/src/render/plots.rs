//! The plots of a report.

use super::svg::{Color, Plot, Scale};
use super::{number, percent};
use crate::{Comparison, ParityReport, PromptReport, SiteReport};

/// Exponent of the smallest KL that is shown: below it is rounding of the comparison itself.
const KL_FLOOR: i32 = -14;

/// KL of every scored position, prompt after prompt.
pub(super) fn kl_over_positions(report: &ParityReport) -> Option<String> {
    type Values = fn(&PromptReport) -> &[f64];
    let series: [(&str, Color, Values); 3] = [
        ("implementation", Color::Implementation, |p| &p.implementation_kl),
        ("conversion", Color::Conversion, |p| &p.conversion_kl),
        ("total", Color::Total, |p| &p.total_kl),
    ];
    let count: usize = report.prompts.iter().map(|p| p.conversion_kl.len()).sum();
    if count == 0 {
        return None;
    }
    let all = series.iter().flat_map(|(_, _, get)| report.prompts.iter().flat_map(*get).copied());
    let y = Scale::decades(all, KL_FLOOR);
    let mut plot =
        Plot::new(Scale::Linear(0.0, count as f64), y, "scored position, prompt after prompt", "KL (nats)");
    for (name, color, get) in series {
        let values: Vec<f64> = report.prompts.iter().flat_map(get).copied().collect();
        // If the implementation is right, the total coincides with the conversion and is not drawn.
        if values.is_empty() || (name == "total" && nearly_conversion(report)) {
            continue;
        }
        plot.line(values.iter().enumerate().map(|(i, kl)| (i as f64 + 0.5, *kl)), color);
        plot.legend(name, color);
    }
    let (mut start, mut starts) = (0, Vec::new());
    for prompt in &report.prompts {
        starts.push(start as f64);
        start += prompt.conversion_kl.len();
    }
    plot.segments(&starts);
    let names = report.prompts.iter().enumerate();
    let names: Vec<String> = names.map(|(index, prompt)| format!("{} {}", index + 1, prompt.name)).collect();
    Some(plot.finish(&format!(
        "KL divergence over positions; smaller values are drawn on the lowest line. Prompts: {}.",
        names.join(", ")
    )))
}

/// True if the total divergence is within 5 % of the conversion's.
fn nearly_conversion(report: &ParityReport) -> bool {
    match (&report.total, &report.conversion) {
        (Some(total), Some(conversion)) => {
            (total.kl.mean - conversion.kl.mean).abs() < 0.05 * conversion.kl.mean
        }
        _ => false,
    }
}

/// Histogram of KL over positions.
pub(super) fn kl_distribution(report: &ParityReport) -> Option<String> {
    let series = [
        ("implementation", Color::Implementation, &report.implementation),
        ("conversion", Color::Conversion, &report.conversion),
    ];
    let series: Vec<(&str, Color, &Comparison)> =
        series.into_iter().filter_map(|(name, color, c)| c.as_ref().map(|c| (name, color, c))).collect();
    let first = series.first()?.2;
    let used =
        |c: &Comparison| -> Vec<usize> { (0..c.histogram.len()).filter(|i| c.histogram[*i] > 0).collect() };
    let bins: Vec<usize> = series.iter().flat_map(|(_, _, c)| used(c)).collect();
    let (low, high) = (*bins.iter().min()?, *bins.iter().max()? + 1);
    let per = first.histogram_per_decade as i32;
    let decade = |bin: usize| first.histogram_from + (bin as i32).div_euclid(per);
    let x = Scale::Decades(decade(low), decade(high + per as usize - 1).max(decade(low) + 1));
    let most = series.iter().flat_map(|(_, _, c)| c.histogram.iter()).max().copied().unwrap_or(1);
    let mut plot = Plot::new(x, Scale::Linear(0.0, most as f64 * 1.08), "KL (nats)", "positions");
    let edge = |bin: f64| 10f64.powf(f64::from(first.histogram_from) + bin / f64::from(per));
    let share = 1.0 / series.len() as f64;
    for (index, (name, color, comparison)) in series.into_iter().enumerate() {
        for bin in used(comparison) {
            let from = bin as f64 + index as f64 * share;
            let tooltip = format!(
                "{name}: {} positions with KL from {:.1e} to {:.1e}",
                comparison.histogram[bin],
                edge(bin as f64),
                edge(bin as f64 + 1.0)
            );
            plot.bar(edge(from), edge(from + share), comparison.histogram[bin] as f64, color, &tooltip);
        }
        plot.legend(name, color);
    }
    Some(plot.finish("Distribution of KL over positions; the lowest bin holds all smaller values."))
}

/// 1 - cosine of the residual stream along the layers.
pub(super) fn layers(report: &ParityReport) -> Option<String> {
    let series = [
        ("implementation", Color::Implementation, &report.implementation_sites),
        ("conversion", Color::Conversion, &report.conversion_sites),
    ];
    let series: Vec<(&str, Color, &Vec<SiteReport>)> =
        series.into_iter().filter(|(_, _, sites)| !sites.is_empty()).collect();
    let count = series.iter().map(|(_, _, sites)| sites.len()).max()?;
    let distance =
        |site: &SiteReport| if site.cosine.is_finite() { (1.0 - site.cosine).max(0.0) } else { 2.0 };
    let all = series.iter().flat_map(|(_, _, sites)| sites.iter().map(distance).collect::<Vec<_>>());
    let mut plot = Plot::new(
        Scale::Linear(0.0, count as f64),
        Scale::decades(all, -16),
        "embedding, mixer and MLP of each layer, final norm",
        "1 - cosine",
    );
    for (name, color, sites) in series {
        let points = || sites.iter().enumerate().map(|(i, site)| (i as f64 + 0.5, distance(site)));
        plot.line(points(), color);
        for ((x, y), site) in points().zip(sites) {
            let tooltip = format!(
                "{name}, {}: cosine {:.9}, relative error {:.2e}",
                site.site, site.cosine, site.relative
            );
            plot.dot(x, y, 2.6, color, &tooltip);
        }
        plot.legend(name, color);
    }
    Some(plot.finish(
        "Hidden states along the layers: cosine distance of the residual stream from the expected one.",
    ))
}

/// Calibration curve: confidence against agreement.
pub(super) fn calibration(report: &ParityReport) -> Option<String> {
    let (name, color, comparison) = match (&report.total, &report.conversion) {
        (Some(total), _) => ("executed against the original", Color::Total, total),
        (None, Some(conversion)) => {
            ("own weights in float against the original", Color::Conversion, conversion)
        }
        (None, None) => return None,
    };
    let unit = Scale::Linear(0.0, 1.0);
    let mut plot = Plot::new(
        unit,
        unit,
        "candidate's probability of its top-1 token",
        "share with the original's top-1",
    );
    plot.line([(0.0, 0.0), (1.0, 1.0)].into_iter(), Color::Neutral);
    let most = comparison.calibration.iter().map(|bin| bin.positions).max()?.max(1) as f64;
    for bin in comparison.calibration.iter().filter(|bin| bin.positions > 0) {
        let radius = 3.0 + 9.0 * (bin.positions as f64 / most).sqrt();
        let tooltip = format!(
            "{} positions, confidence {}, agreement {}",
            bin.positions,
            percent(bin.confidence),
            percent(bin.agreement)
        );
        plot.dot(bin.confidence, bin.agreement, radius, color, &tooltip);
    }
    plot.legend(name, color);
    Some(plot.finish(
        "Confidence against agreement: the surer the candidate, the more it should agree; larger dots hold more positions.",
    ))
}

/// Relative error of every tensor, coloured by bits.
pub(super) fn tensors(report: &ParityReport) -> Option<String> {
    let weights = report.weights.as_ref()?;
    let errors = weights.tensors.iter().map(|t| t.relative_error);
    let mut plot = Plot::new(
        Scale::Linear(0.0, weights.tensors.len() as f64),
        Scale::decades(errors, -9),
        "tensor, in the order of computation",
        "relative error",
    );
    let classes = [
        ("up to 4.9 bits", 0.0, 4.9, Color::Conversion),
        ("5 to 9 bits", 4.9, 9.5, Color::Implementation),
        ("floats", 9.5, f64::INFINITY, Color::Total),
    ];
    for (name, from, to, color) in classes {
        let mut any = false;
        for (index, tensor) in weights.tensors.iter().enumerate() {
            if tensor.bits_per_weight < from || tensor.bits_per_weight >= to {
                continue;
            }
            any |= tensor.passed;
            let tooltip = format!(
                "{}: {} ({:.2} bits), relative error {}",
                tensor.name,
                tensor.storage,
                tensor.bits_per_weight,
                number(tensor.relative_error)
            );
            let color = if tensor.passed { color } else { Color::Wrong };
            plot.dot(
                index as f64 + 0.5,
                tensor.relative_error,
                if tensor.passed { 3.0 } else { 6.0 },
                color,
                &tooltip,
            );
        }
        if any {
            plot.legend(name, color);
        }
    }
    if weights.failed().next().is_some() {
        plot.legend("beyond its encoding", Color::Wrong);
    }
    Some(plot.finish("Bits and error of every tensor. A tensor without error is drawn on the lowest line."))
}

/// Cosine distance of the recurrent states after the run.
pub(super) fn states(report: &ParityReport) -> Option<String> {
    let last = report.states.last()?.layer;
    let distance = |cosine: f64| (1.0 - cosine).max(0.0);
    let check = report.checks.iter().find(|check| check.name == "implementation.state_cosine");
    let limit = check.map(|check| distance(check.limit));
    let all = report.states.iter().map(|state| distance(state.cosine)).chain(limit);
    let mut plot =
        Plot::new(Scale::Linear(0.0, last as f64 + 1.0), Scale::decades(all, -16), "layer", "1 - cosine");
    for state in &report.states {
        let tooltip = format!(
            "layer {}: cosine {:.9}, relative error {:.2e}",
            state.layer, state.cosine, state.relative
        );
        let x = state.layer as f64;
        plot.bar(x + 0.1, x + 0.9, distance(state.cosine), Color::Implementation, &tooltip);
    }
    plot.legend("implementation", Color::Implementation);
    if let Some(limit) = limit {
        plot.limit(limit, Color::Wrong);
        plot.legend("limit", Color::Wrong);
    }
    Some(plot.finish("Recurrent states after each prompt, the worst prompt of each layer."))
}
