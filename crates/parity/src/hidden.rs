//! The residual stream, place by place.

use q35_architecture::{LayerKind, TextConfig};
use q35_metrics::VectorError;
use serde::{Deserialize, Serialize};

use crate::rows::{Hidden, Place};

/// How far the residual stream is off at one place.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct SiteReport {
    /// "embedding", "layer 3 mixer", "layer 3 mlp", "final norm".
    pub site: String,
    /// The decoder layer, if it is in one.
    pub layer: Option<usize>,
    /// "embedding", "linear_attn", "self_attn", "mlp", "norm".
    pub part: String,
    /// Cosine over all positions.
    pub cosine: f64,
    /// Length of the error relative to the length of what was expected, over all positions.
    pub relative: f64,
    /// The first position whose own relative error is beyond a tenth of the worst one's.
    pub first_position: usize,
}

/// Compares two runs over the same tokens, at the places that both have.
pub(crate) fn compare(config: &TextConfig, expected: &Hidden, found: &Hidden) -> Vec<SiteReport> {
    let width = expected.width.max(1);
    let mut list = Vec::new();
    for (place, expected) in &expected.sites {
        let Some(found) = found.sites.get(place) else { continue };
        let error = VectorError::of(expected, found);
        let of_position: Vec<f64> = expected
            .chunks_exact(width)
            .zip(found.chunks_exact(width))
            .map(|(expected, found)| VectorError::of(expected, found).relative())
            .collect();
        let worst = of_position.iter().copied().fold(0.0, f64::max);
        let (site, layer, part) = describe(config, *place);
        let relative = if error.not_finite() > 0 { f64::INFINITY } else { error.relative() };
        list.push(SiteReport {
            site,
            layer,
            part: part.to_owned(),
            cosine: error.cosine(),
            relative,
            first_position: of_position.iter().position(|e| *e > 0.1 * worst).unwrap_or(0),
        });
    }
    list
}

fn describe(config: &TextConfig, place: Place) -> (String, Option<usize>, &'static str) {
    match place {
        Place::Embedding => ("embedding".into(), None, "embedding"),
        Place::FinalNorm => ("final norm".into(), None, "norm"),
        Place::Within(layer, 0) => {
            let part = match config.layer_types.get(layer) {
                Some(LayerKind::LinearAttention) => "linear_attn",
                _ => "self_attn",
            };
            (format!("layer {layer} mixer"), Some(layer), part)
        }
        Place::Within(layer, _) => (format!("layer {layer} mlp"), Some(layer), "mlp"),
    }
}

/// The first place whose error is beyond `limit`, or leaps from a much smaller one.
///
/// Rounding grows along the layers slowly; a fault is a step. A place counts if its error is above `limit`, or above
/// a twentieth of it and `leap` times what it was before.
pub(crate) fn first_bad(sites: &[SiteReport], limit: f64, leap: f64) -> Option<&SiteReport> {
    let mut before = 0.0;
    for site in sites {
        let leaps = site.relative > limit / 20.0 && before > 0.0 && site.relative > leap * before;
        if site.relative > limit || leaps {
            return Some(site);
        }
        before = site.relative;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_step_is_found() {
        let config = q35_testkit::tiny();
        let mut expected = Hidden::new(3, 2);
        let places = [
            Place::Embedding,
            Place::Within(0, 0),
            Place::Within(0, 1),
            Place::Within(3, 0),
            Place::FinalNorm,
        ];
        for place in places {
            expected.sites.insert(place, vec![1.0; 6]);
        }
        let mut found = expected.clone();
        found.sites.get_mut(&Place::Within(0, 1)).unwrap()[0] = 1.0001;
        found.sites.get_mut(&Place::Within(3, 0)).unwrap()[4] = 1.5;
        found.sites.get_mut(&Place::FinalNorm).unwrap()[4] = 1.5;
        let sites = compare(&config, &expected, &found);
        let bad = first_bad(&sites, 1e-3, 10.0).unwrap();
        assert_eq!(
            (bad.site.as_str(), bad.part.as_str(), bad.first_position),
            ("layer 3 mixer", "self_attn", 2)
        );
        assert_eq!(first_bad(&sites, 1.0, 1e9), None);
        found.sites.get_mut(&Place::Within(0, 0)).unwrap()[5] = f32::NAN;
        let sites = compare(&config, &expected, &found);
        assert_eq!(first_bad(&sites, 1e-3, 10.0).unwrap().part, "linear_attn");
    }
}
