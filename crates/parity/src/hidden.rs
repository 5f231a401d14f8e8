//! Comparison of the residual stream, layer by layer.

use q35_architecture::{LayerKind, TextConfig};
use q35_inference::HiddenStateAt;
use q35_metrics::VectorError;
use serde::{Deserialize, Serialize};

use crate::runner::HiddenStates;

/// Error of the residual stream at one site.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct SiteReport {
    /// "embedding", "layer 3 mixer", "layer 3 mlp", "final norm".
    pub site: String,
    /// The decoder layer, if the site is in one.
    pub layer: Option<usize>,
    /// "embedding", "linear_attn", "self_attn", "mlp", "norm".
    pub part: String,
    /// Cosine over all positions.
    pub cosine: f64,
    /// Norm of the error relative to the norm of the expected values, over all positions.
    pub relative: f64,
    /// The first position whose relative error exceeds a tenth of the worst position's.
    pub first_position: usize,
}

/// Compares two runs over the same tokens, at the sites that both recorded.
pub(crate) fn compare_hidden(
    config: &TextConfig,
    expected: &HiddenStates,
    found: &HiddenStates,
) -> Vec<SiteReport> {
    let width = expected.width.max(1);
    let mut reports = Vec::new();
    for (at, expected) in &expected.sites {
        let Some(found) = found.sites.get(at) else { continue };
        let error = VectorError::of(expected, found);
        let relative_by_position: Vec<f64> = expected
            .chunks_exact(width)
            .zip(found.chunks_exact(width))
            .map(|(expected, found)| VectorError::of(expected, found).relative())
            .collect();
        let worst = relative_by_position.iter().copied().fold(0.0, f64::max);
        let (site, layer, part) = describe(config, *at);
        let relative = if error.not_finite() > 0 { f64::INFINITY } else { error.relative() };
        reports.push(SiteReport {
            site,
            layer,
            part: part.to_owned(),
            cosine: error.cosine(),
            relative,
            first_position: relative_by_position.iter().position(|e| *e > 0.1 * worst).unwrap_or(0),
        });
    }
    reports
}

fn describe(config: &TextConfig, at: HiddenStateAt) -> (String, Option<usize>, &'static str) {
    match at {
        HiddenStateAt::Embedding => ("embedding".into(), None, "embedding"),
        HiddenStateAt::FinalNorm => ("final norm".into(), None, "norm"),
        HiddenStateAt::AfterAttention(layer) => {
            let part = match config.layer_types.get(layer) {
                Some(LayerKind::LinearAttention) => "linear_attn",
                _ => "self_attn",
            };
            (format!("layer {layer} mixer"), Some(layer), part)
        }
        HiddenStateAt::AfterMlp(layer) => (format!("layer {layer} mlp"), Some(layer), "mlp"),
    }
}

/// The first faulty site.
///
/// Rounding errors grow slowly along the layers, a fault is a step. A site is faulty if its error exceeds `limit`, or
/// exceeds a twentieth of `limit` and `step` times the error at the site before.
pub(crate) fn first_faulty_site(sites: &[SiteReport], limit: f64, step: f64) -> Option<&SiteReport> {
    let mut previous = 0.0;
    for site in sites {
        let steps_up = site.relative > limit / 20.0 && previous > 0.0 && site.relative > step * previous;
        if site.relative > limit || steps_up {
            return Some(site);
        }
        previous = site.relative;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_is_found() {
        let config = q35_testkit::tiny();
        let mut expected = HiddenStates::new(3, 2);
        let sites = [
            HiddenStateAt::Embedding,
            HiddenStateAt::AfterAttention(0),
            HiddenStateAt::AfterMlp(0),
            HiddenStateAt::AfterAttention(3),
            HiddenStateAt::FinalNorm,
        ];
        for at in sites {
            expected.sites.insert(at, vec![1.0; 6]);
        }
        let mut found = expected.clone();
        found.sites.get_mut(&HiddenStateAt::AfterMlp(0)).unwrap()[0] = 1.0001;
        found.sites.get_mut(&HiddenStateAt::AfterAttention(3)).unwrap()[4] = 1.5;
        found.sites.get_mut(&HiddenStateAt::FinalNorm).unwrap()[4] = 1.5;
        let reports = compare_hidden(&config, &expected, &found);
        let faulty = first_faulty_site(&reports, 1e-3, 10.0).unwrap();
        assert_eq!(
            (faulty.site.as_str(), faulty.part.as_str(), faulty.first_position),
            ("layer 3 mixer", "self_attn", 2)
        );
        assert_eq!(first_faulty_site(&reports, 1.0, 1e9), None);
        found.sites.get_mut(&HiddenStateAt::AfterAttention(0)).unwrap()[5] = f32::NAN;
        let reports = compare_hidden(&config, &expected, &found);
        assert_eq!(first_faulty_site(&reports, 1e-3, 10.0).unwrap().part, "linear_attn");
    }
}
