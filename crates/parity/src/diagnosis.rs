//! What is wrong, and where.

use q35_architecture::tensor_table;
use q35_inference::{CancelToken, LogitsFor, Model, Weights};
use q35_metrics::{Summarizer, compare_rows};
use serde::{Deserialize, Serialize};

use crate::disguise::{Disguised, Mistake, suspects_for_execution};
use crate::float_pass::{FloatPass, Logits};
use crate::rows::{Catch, Hidden, Running, Who};
use crate::{ConfigDifference, ParityError, Progress, Prompt, SiteReport, Stage, WeightCheck};

/// A fault and its place.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Finding {
    /// "config", "weights", "implementation", "conversion".
    pub scope: String,
    /// The first layer concerned, if it is in one.
    pub layer: Option<usize>,
    /// The class of tensor or the part of the layer: "norm", "convolution", "self_attn", "mlp".
    pub class: String,
    /// The first tensor concerned, if one is known.
    pub tensor: Option<String>,
    /// The whole in words.
    pub message: String,
}

pub(crate) fn of_config(differences: &[ConfigDifference]) -> Vec<Finding> {
    differences
        .iter()
        .map(|difference| {
            let (class, reach) = match difference.field.as_str() {
                "rms_norm_eps" => ("norm", "every norm, from layer 0 on"),
                _ => ("self_attn", "every full-attention layer"),
            };
            Finding {
                scope: "config".into(),
                layer: None,
                class: class.into(),
                tensor: None,
                message: format!(
                    "config.json: `{}` is {} where the source has {}; this concerns {reach}",
                    difference.field, difference.candidate, difference.reference
                ),
            }
        })
        .collect()
}

/// One finding for each cause and class of tensor, naming the first tensor and counting the others.
pub(crate) fn of_weights(check: &WeightCheck) -> Vec<Finding> {
    let mut groups: Vec<(String, Vec<&crate::TensorReport>)> = Vec::new();
    for tensor in check.failed() {
        let cause = tensor.cause.clone().unwrap_or_else(|| "outside what its encoding explains".into());
        // A place is of one tensor; a systematic mistake is one finding for all that it touches.
        let single = cause.contains("row ") && !cause.contains("rows shifted");
        let swapped = cause.starts_with("layers swapped");
        let key = match (single, swapped) {
            (true, _) => format!("{cause} {}", tensor.name),
            (_, true) => cause.clone(),
            _ => format!("{cause} {}", tensor.class),
        };
        match groups.iter_mut().find(|(known, _)| *known == key) {
            Some((_, list)) => list.push(tensor),
            None => groups.push((key, vec![tensor])),
        }
    }
    let finding = |(_, tensors): (String, Vec<&crate::TensorReport>)| {
        let first = tensors[0];
        let place = match first.layer {
            Some(layer) => format!("`{}` (layer {layer}, {})", first.name, first.class),
            None => format!("`{}` ({})", first.name, first.class),
        };
        let others = match tensors.len() {
            1 => String::new(),
            n => format!(" and {} more of its kind", n - 1),
        };
        let worst = first.worst.map_or(String::new(), |worst| {
            format!(
                "; worst at row {}, column {}: {:.6} where the source has {:.6}, {:.1} times what is explained",
                worst.row, worst.column, worst.found, worst.expected, first.excess
            )
        });
        let cause = first.cause.as_deref().unwrap_or("outside what its encoding explains");
        Finding {
            scope: "weights".into(),
            layer: first.layer,
            class: first.class.clone(),
            tensor: Some(first.name.clone()),
            message: format!("{place}{others}: {cause}{worst}"),
        }
    };
    groups.into_iter().map(finding).collect()
}

/// Where the residual stream first leaves its bound.
pub(crate) fn of_sites(scope: &str, bad: Option<&SiteReport>, last_is_good: bool) -> Option<Finding> {
    let (layer, class, message) = match bad {
        Some(site) => {
            let since = match site.first_position {
                0 => String::new(),
                position => format!(", from position {position} on"),
            };
            let words = match site.layer {
                Some(layer) if site.part == "mlp" => {
                    format!("layer {layer}: its mixer is right and its MLP is not")
                }
                Some(layer) => format!(
                    "layer {layer}: its input is right and its mixer ({}, with its input norm) is not",
                    site.part
                ),
                None => format!("the {}", site.site),
            };
            // Quantization is no mistake; how soon it is felt is worth knowing all the same.
            let message = if scope == "conversion" {
                format!(
                    "the residual stream is first far off at the {} (relative error {:.2e}{since})",
                    site.site, site.relative
                )
            } else {
                format!("first wrong at {words} (relative error {:.2e}{since})", site.relative)
            };
            (site.layer, site.part.clone(), message)
        }
        None if last_is_good => (
            None,
            "head".to_owned(),
            "hidden states are right to the final norm, logits are not: the head".into(),
        ),
        None => return None,
    };
    Some(Finding { scope: scope.to_owned(), layer, class, tensor: None, message })
}

/// The classic mistake, if any, that makes the float reference behave as the candidate does.
pub(crate) struct Explanation {
    pub(crate) mistake: Mistake,
    pub(crate) plain_kl: f64,
    pub(crate) explained_kl: f64,
}

/// Tries the classic mistakes on the candidate's own weights, those first that touch the part that is wrong.
pub(crate) fn explain_execution(
    own: &dyn Weights,
    model: &dyn Model,
    prompt: &Prompt,
    part: Option<&str>,
    cancel: &CancelToken,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Option<Explanation>, ParityError> {
    let vocab = own.config().vocab_size;
    let executed = {
        let catch = Catch::new(cancel);
        let mut running = Running::start(Who::Candidate, model, &prompt.name, prompt.ids.len(), catch)?;
        running.feed(&prompt.ids, LogitsFor::AllTokens)?;
        std::mem::take(&mut running.catch.rows)
    };
    let mean_kl = |expected: &[f32]| {
        let mut summary = Summarizer::default();
        for (a, b) in expected.chunks_exact(vocab).zip(executed.chunks_exact(vocab)) {
            match compare_rows(a, b) {
                Ok(row) => summary.push(&row),
                Err(_) => return f64::INFINITY,
            }
        }
        summary.finish().kl.mean
    };
    let run = |weights: &dyn Weights| -> Result<f64, ParityError> {
        let prompts = std::slice::from_ref(prompt);
        let pass = FloatPass::run(Who::OwnFloat, weights, prompts, Hidden::default(), cancel, &|_, _| {})?;
        Ok(mean_kl(&Logits::new(Who::OwnFloat, &pass, weights)?.of(0, 0..prompt.scored())?))
    };
    let plain_kl = run(own)?;
    if !plain_kl.is_finite() {
        return Ok(None);
    }
    let suspects: Vec<Mistake> =
        suspects_for_execution(own.config()).into_iter().filter(|m| concerns(m, part)).collect();
    let total = suspects.len() as u64;
    let mut best: Option<Explanation> = None;
    for (index, mistake) in suspects.into_iter().enumerate() {
        progress(Progress { stage: Stage::Diagnosis, done: index as u64, total });
        let disguised = Disguised::new(own, mistake.clone());
        let explained_kl = run(&disguised)?;
        if explained_kl < plain_kl / 20.0 && best.as_ref().is_none_or(|b| explained_kl < b.explained_kl) {
            best = Some(Explanation { mistake, plain_kl, explained_kl });
        }
    }
    progress(Progress { stage: Stage::Diagnosis, done: total, total });
    Ok(best)
}

/// Whether a mistake can be the first thing wrong at that part of the model.
fn concerns(mistake: &Mistake, part: Option<&str>) -> bool {
    let Some(part) = part else { return true };
    match mistake {
        Mistake::NormsShifted { only_final: true, .. } => part == "norm" || part == "head",
        Mistake::NormsShifted { .. } | Mistake::Epsilon(_) => !matches!(part, "embedding" | "head"),
        Mistake::TapsReversed | Mistake::DecayNegated => part == "linear_attn",
        Mistake::EmbeddingShifted { .. } => part == "embedding" || part == "head",
        Mistake::GateUpSwapped => part == "mlp",
        Mistake::LayersSwapped { .. } => true,
        Mistake::QueryGateHalves
        | Mistake::QueryGateStoredAsHalves
        | Mistake::RotaryInterleaved
        | Mistake::RotaryDeinterleaved
        | Mistake::RopeTheta(_)
        | Mistake::KeyValueSwapped => part == "self_attn",
    }
}

/// The finding for an explanation.
pub(crate) fn of_explanation(own: &dyn Weights, found: &Explanation) -> Finding {
    let disguised = Disguised::new(own, found.mistake.clone());
    let first = tensor_table(own.config()).into_iter().find(|spec| disguised.touches(spec));
    let (layer, class, tensor) = match &first {
        Some(spec) => (spec.layer, crate::weights::class_of(spec).to_owned(), Some(spec.name.clone())),
        None if matches!(found.mistake, Mistake::Epsilon(_)) => (Some(0), "norm".to_owned(), None),
        None => {
            let layer = own.config().layers_of(q35_architecture::LayerKind::FullAttention).next();
            (layer, "self_attn".to_owned(), None)
        }
    };
    Finding {
        scope: "implementation".into(),
        layer,
        class,
        tensor,
        message: format!(
            "the candidate computes as if: {} (this explains it: mean KL {:.1e} instead of {:.1e})",
            found.mistake, found.explained_kl, found.plain_kl
        ),
    }
}
