//! Findings: faults, their places and likely causes.

use q35_architecture::tensor_table;
use q35_inference::{CancelToken, LogitsFor, Model, Weights};
use q35_metrics::{Summarizer, compare_rows};
use serde::{Deserialize, Serialize};

use crate::float_pass::{FloatPass, PassLogits};
use crate::qwen3_5_faults::{FaultyWeights, KnownFault, candidate_faults_of_execution};
use crate::runner::{HiddenStates, LogitRecorder, Participant, RunningSequence};
use crate::weights::tensor_class;
use crate::{ConfigDifference, ParityError, Progress, Prompt, SiteReport, Stage, TensorReport, WeightCheck};

/// A fault and its place.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Finding {
    /// "config", "weights", "implementation", "conversion".
    pub scope: String,
    /// The first affected layer, if the fault is in one.
    pub layer: Option<usize>,
    /// Class of tensor or part of the layer: "norm", "convolution", "self_attn", "mlp".
    pub class: String,
    /// The first affected tensor, if it was identified.
    pub tensor: Option<String>,
    /// Description of the fault.
    pub message: String,
}

/// One finding for each setting that differs.
pub(crate) fn config_findings(differences: &[ConfigDifference]) -> Vec<Finding> {
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
pub(crate) fn weight_findings(check: &WeightCheck) -> Vec<Finding> {
    let mut groups: Vec<(String, Vec<&TensorReport>)> = Vec::new();
    for tensor in check.failed() {
        let cause = tensor.cause.clone().unwrap_or_else(|| "outside what its encoding explains".into());
        // Damaged rows concern one tensor; a systematic fault is one finding for all tensors that it affects.
        let single = cause.contains("row ") && !cause.contains("rows shifted");
        let swapped = cause.starts_with("layers swapped");
        let key = match (single, swapped) {
            (true, _) => format!("{cause} {}", tensor.name),
            (_, true) => cause.clone(),
            _ => format!("{cause} {}", tensor.class),
        };
        match groups.iter_mut().find(|(other, _)| *other == key) {
            Some((_, list)) => list.push(tensor),
            None => groups.push((key, vec![tensor])),
        }
    }
    let finding = |(_, tensors): (String, Vec<&TensorReport>)| {
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

/// Finding for the first faulty site of the residual stream. `head_is_faulty` is true if all sites are right and the
/// logits are not.
pub(crate) fn site_finding(
    scope: &str,
    faulty: Option<&SiteReport>,
    head_is_faulty: bool,
) -> Option<Finding> {
    let (layer, class, message) = match faulty {
        Some(site) => {
            let since = match site.first_position {
                0 => String::new(),
                position => format!(", from position {position} on"),
            };
            let place = match site.layer {
                Some(layer) if site.part == "mlp" => {
                    format!("layer {layer}: its mixer is right and its MLP is not")
                }
                Some(layer) => format!(
                    "layer {layer}: its input is right and its mixer ({}, with its input norm) is not",
                    site.part
                ),
                None => format!("the {}", site.site),
            };
            // Quantization is not a fault, but the first layer that it affects is worth reporting.
            let message = if scope == "conversion" {
                format!(
                    "the residual stream is first far off at the {} (relative error {:.2e}{since})",
                    site.site, site.relative
                )
            } else {
                format!("first wrong at {place} (relative error {:.2e}{since})", site.relative)
            };
            (site.layer, site.part.clone(), message)
        }
        None if head_is_faulty => (
            None,
            "head".to_owned(),
            "hidden states are right to the final norm, logits are not: the head".into(),
        ),
        None => return None,
    };
    Some(Finding { scope: scope.to_owned(), layer, class, tensor: None, message })
}

/// A known fault that makes the float reference behave as the candidate does.
pub(crate) struct Explanation {
    pub(crate) fault: KnownFault,
    /// Mean KL of the candidate from the float reference without the fault.
    pub(crate) plain_kl: f64,
    /// Mean KL of the candidate from the float reference with the fault.
    pub(crate) explained_kl: f64,
}

/// Injects the known faults of the faulty `part` into the candidate's weights, one at a time, and returns the one that
/// explains the execution best.
pub(crate) fn explain_execution(
    dequantized: &dyn Weights,
    model: &dyn Model,
    prompt: &Prompt,
    part: Option<&str>,
    cancel: &CancelToken,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Option<Explanation>, ParityError> {
    let vocab = dequantized.config().vocab_size;
    let executed = {
        let recorder = LogitRecorder::new(cancel);
        let capacity = prompt.ids.len();
        let mut running =
            RunningSequence::start(Participant::Candidate, model, &prompt.name, capacity, recorder)?;
        running.feed(&prompt.ids, LogitsFor::AllTokens)?;
        std::mem::take(&mut running.recorder.logits)
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
        let (participant, hidden) = (Participant::Dequantized, HiddenStates::default());
        let pass = FloatPass::run(participant, weights, prompts, hidden, cancel, &|_, _| {})?;
        let logits = PassLogits::new(participant, &pass, weights)?.compute(0, 0..prompt.scored())?;
        Ok(mean_kl(&logits))
    };
    let plain_kl = run(dequantized)?;
    if !plain_kl.is_finite() {
        return Ok(None);
    }
    let faults: Vec<KnownFault> = candidate_faults_of_execution(dequantized.config())
        .into_iter()
        .filter(|fault| can_appear_first_at(fault, part))
        .collect();
    let total = faults.len() as u64;
    let mut best: Option<Explanation> = None;
    for (index, fault) in faults.into_iter().enumerate() {
        progress(Progress { stage: Stage::Diagnosis, done: index as u64, total });
        let faulty = FaultyWeights::new(dequantized, fault.clone());
        let explained_kl = run(&faulty)?;
        if explained_kl < plain_kl / 20.0 && best.as_ref().is_none_or(|b| explained_kl < b.explained_kl) {
            best = Some(Explanation { fault, plain_kl, explained_kl });
        }
    }
    progress(Progress { stage: Stage::Diagnosis, done: total, total });
    Ok(best)
}

/// True if the effect of a fault can first appear at that part of the model.
fn can_appear_first_at(fault: &KnownFault, part: Option<&str>) -> bool {
    let Some(part) = part else { return true };
    match fault {
        KnownFault::NormsShifted { only_final: true, .. } => part == "norm" || part == "head",
        KnownFault::NormsShifted { .. } | KnownFault::Epsilon(_) => !matches!(part, "embedding" | "head"),
        KnownFault::TapsReversed | KnownFault::DecayNegated => part == "linear_attn",
        KnownFault::EmbeddingShifted { .. } => part == "embedding" || part == "head",
        KnownFault::GateUpSwapped => part == "mlp",
        KnownFault::LayersSwapped { .. } => true,
        KnownFault::QueryGateHalves
        | KnownFault::QueryGateStoredAsHalves
        | KnownFault::RotaryInterleaved
        | KnownFault::RotaryDeinterleaved
        | KnownFault::RopeTheta(_)
        | KnownFault::KeyValueSwapped => part == "self_attn",
    }
}

/// The finding for an explanation.
pub(crate) fn explanation_finding(dequantized: &dyn Weights, explanation: &Explanation) -> Finding {
    let faulty = FaultyWeights::new(dequantized, explanation.fault.clone());
    let first = tensor_table(dequantized.config()).into_iter().find(|spec| faulty.affects(spec));
    let (layer, class, tensor) = match &first {
        Some(spec) => (spec.layer, tensor_class(spec).to_owned(), Some(spec.name.clone())),
        None if matches!(explanation.fault, KnownFault::Epsilon(_)) => (Some(0), "norm".to_owned(), None),
        None => {
            let layer = dequantized.config().layers_of(q35_architecture::LayerKind::FullAttention).next();
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
            explanation.fault, explanation.explained_kl, explanation.plain_kl
        ),
    }
}
