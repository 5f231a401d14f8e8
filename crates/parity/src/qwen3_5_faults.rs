//! Fault injection: known faults of Qwen3.5 conversions and runtimes, injected into weights on purpose.
//!
//! Many faults of a converter or a runtime are equivalent to other weights or another configuration. The diagnosis
//! injects each [`KnownFault`] into correct weights through [`FaultyWeights`] and tests whether the result explains the
//! candidate, so that a report says "RoPE interleaved" and not only "layer 3 differs". The list holds faults seen in
//! published conversions and faults that the model's tensor layout makes likely.

use std::ops::Range;

use q35_architecture::{LayerKind, Role, TensorSpec, TextConfig, tensor_table};
use q35_inference::{WeightError, Weights};

/// A known fault of a conversion or a runtime.
#[derive(Clone, Debug, PartialEq)]
pub enum KnownFault {
    /// Zero-centred norms, stored as `1 + w`, have 1 added once more, or (-1) not at all.
    NormsShifted {
        /// Error of the stored value: 1 or -1.
        by: f32,
        /// True for the final norm alone, false for all others.
        only_final: bool,
    },
    /// Convolution taps in reversed order.
    TapsReversed,
    /// `q_proj` read as all queries, then all gates.
    QueryGateHalves,
    /// `q_proj` stored as all queries, then all gates; the layout alternates them head by head.
    QueryGateStoredAsHalves,
    /// RoPE rotates neighbouring components (2i, 2i+1) together, instead of (i, i + rotary width / 2).
    RotaryInterleaved,
    /// Query and key rows permuted by the inverse of that interleaving.
    RotaryDeinterleaved,
    /// Row `r` of the embedding holds the vector of token `r + by`.
    EmbeddingShifted {
        /// Offset in rows.
        by: isize,
    },
    /// Two layers exchanged.
    LayersSwapped {
        /// Index of one layer.
        first: usize,
        /// Index of the other layer.
        second: usize,
    },
    /// `mlp.gate_proj` and `mlp.up_proj` exchanged.
    GateUpSwapped,
    /// `self_attn.k_proj` and `self_attn.v_proj` exchanged.
    KeyValueSwapped,
    /// Another epsilon in the norms.
    Epsilon(f64),
    /// Another base of the rotary frequencies.
    RopeTheta(f64),
    /// `A_log` negated: the sign of the decay is folded in twice.
    DecayNegated,
}

impl std::fmt::Display for KnownFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NormsShifted { by, only_final } => {
                let which = if *only_final { "final norm" } else { "norm" };
                if *by > 0.0 {
                    write!(f, "{which} shifted twice: the artefact holds 2 + w where 1 + w belongs")
                } else {
                    write!(f, "{which} not shifted: the artefact holds w where 1 + w belongs")
                }
            }
            Self::TapsReversed => {
                f.write_str("convolution taps reversed: the last tap must meet the current token")
            }
            Self::QueryGateHalves => {
                f.write_str("query and gate split as halves of q_proj; they alternate head by head")
            }
            Self::QueryGateStoredAsHalves => {
                f.write_str("q_proj stored as all queries then all gates; they must alternate head by head")
            }
            Self::RotaryInterleaved => f.write_str(
                "RoPE interleaved: component 2i is rotated with 2i+1, instead of i with i + rotary/2",
            ),
            Self::RotaryDeinterleaved => f.write_str(
                "rows of queries and keys reordered for an interleaved RoPE, which this model does not use",
            ),
            Self::EmbeddingShifted { by } => {
                write!(f, "rows shifted by {by}: row r holds what belongs to row r{by:+}")
            }
            Self::LayersSwapped { first, second } => {
                write!(f, "layers swapped: layer {first} holds the weights of layer {second}")
            }
            Self::GateUpSwapped => f.write_str("mlp.gate_proj and mlp.up_proj swapped"),
            Self::KeyValueSwapped => f.write_str("self_attn.k_proj and self_attn.v_proj swapped"),
            Self::Epsilon(eps) => write!(f, "rms_norm_eps is {eps:e}"),
            Self::RopeTheta(theta) => write!(f, "rope_theta is {theta:e}"),
            Self::DecayNegated => f.write_str("A_log negated"),
        }
    }
}

/// Weights with one fault injected.
pub struct FaultyWeights<'a> {
    inner: &'a dyn Weights,
    config: TextConfig,
    fault: KnownFault,
    table: Vec<TensorSpec>,
}

impl<'a> FaultyWeights<'a> {
    /// `inner` with `fault` injected.
    pub fn new(inner: &'a dyn Weights, fault: KnownFault) -> Self {
        let mut config = inner.config().clone();
        match fault {
            KnownFault::Epsilon(eps) => config.rms_norm_eps = eps,
            KnownFault::RopeTheta(theta) => config.rope_theta = theta,
            _ => {}
        }
        Self { inner, table: tensor_table(&config), config, fault }
    }

    /// True if the fault changes that tensor.
    pub fn affects(&self, spec: &TensorSpec) -> bool {
        let name = spec.name.as_str();
        let attention = |part: &str| name.contains("self_attn.") && name.contains(part);
        match &self.fault {
            KnownFault::NormsShifted { only_final, .. } => {
                spec.role == Role::CenteredNorm && *only_final == spec.layer.is_none()
            }
            KnownFault::TapsReversed => spec.role == Role::Convolution,
            KnownFault::QueryGateHalves | KnownFault::QueryGateStoredAsHalves => attention("q_proj"),
            KnownFault::RotaryInterleaved | KnownFault::RotaryDeinterleaved => {
                ["q_proj", "k_proj", "q_norm", "k_norm"].into_iter().any(attention)
            }
            KnownFault::EmbeddingShifted { .. } => matches!(spec.role, Role::Embedding | Role::Head),
            KnownFault::LayersSwapped { first, second } => {
                spec.layer == Some(*first) || spec.layer == Some(*second)
            }
            KnownFault::GateUpSwapped => name.contains("mlp.gate_proj") || name.contains("mlp.up_proj"),
            KnownFault::KeyValueSwapped => attention("k_proj") || attention("v_proj"),
            KnownFault::Epsilon(_) | KnownFault::RopeTheta(_) => false,
            KnownFault::DecayNegated => spec.role == Role::DecayLog,
        }
    }

    /// Row of the correct tensor from which the faulty tensor's row `row` is read.
    fn source_row(&self, spec: &TensorSpec, row: usize) -> usize {
        let c = &self.config;
        let (heads, width) = (c.num_attention_heads, c.head_dim);
        let rows = spec.shape[0];
        // Rows per head: 2 x width in q_proj (query rows first), width elsewhere.
        let head_rows = if spec.name.contains("q_proj") { 2 * width } else { width };
        match &self.fault {
            KnownFault::QueryGateHalves => {
                let (head, part, at) = (row / (2 * width), row % (2 * width) / width, row % width);
                part * heads * width + head * width + at
            }
            KnownFault::QueryGateStoredAsHalves => {
                let (part, head, at) = (row / (heads * width), row % (heads * width) / width, row % width);
                head * 2 * width + part * width + at
            }
            KnownFault::RotaryInterleaved => match row % head_rows {
                at if at >= c.rotary_dim() => row,
                at if at < c.rotary_dim() / 2 => row - at + 2 * at,
                at => row - at + 2 * (at - c.rotary_dim() / 2) + 1,
            },
            KnownFault::RotaryDeinterleaved => match row % head_rows {
                at if at >= c.rotary_dim() => row,
                at if at % 2 == 0 => row - at + at / 2,
                at => row - at + c.rotary_dim() / 2 + at / 2,
            },
            KnownFault::EmbeddingShifted { by } => (row as isize + by).rem_euclid(rows as isize) as usize,
            _ => row,
        }
    }

    /// Name of the correct tensor from which the faulty tensor is read.
    fn source_name(&self, name: &str) -> String {
        let swapped = |a: &str, b: &str| {
            if name.contains(a) { name.replace(a, b) } else { name.replace(b, a) }
        };
        match &self.fault {
            KnownFault::LayersSwapped { first, second } => {
                let (a, b) = (format!("layers.{first}."), format!("layers.{second}."));
                match name.starts_with(&a) || name.starts_with(&b) {
                    true => swapped(&a, &b),
                    false => name.to_owned(),
                }
            }
            KnownFault::GateUpSwapped => swapped("mlp.gate_proj", "mlp.up_proj"),
            KnownFault::KeyValueSwapped => swapped("self_attn.k_proj", "self_attn.v_proj"),
            _ => name.to_owned(),
        }
    }
}

impl Weights for FaultyWeights<'_> {
    fn config(&self) -> &TextConfig {
        &self.config
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), WeightError> {
        let Some(spec) = self.table.iter().find(|spec| spec.name == name).filter(|spec| self.affects(spec))
        else {
            return self.inner.read_rows(name, rows, out);
        };
        let source = self.source_name(name);
        let identity = rows.clone().all(|row| self.source_row(spec, row) == row);
        if identity {
            self.inner.read_rows(&source, rows, out)?;
        } else {
            out.clear();
            let mut one = Vec::new();
            for row in rows {
                let row = self.source_row(spec, row);
                self.inner.read_rows(&source, row..row + 1, &mut one)?;
                out.extend_from_slice(&one);
            }
        }
        match &self.fault {
            KnownFault::NormsShifted { by, .. } => out.iter_mut().for_each(|w| *w += by),
            KnownFault::DecayNegated => out.iter_mut().for_each(|w| *w = -*w),
            KnownFault::TapsReversed => {
                out.chunks_exact_mut(self.config.linear_conv_kernel_dim).for_each(<[f32]>::reverse);
            }
            _ => {}
        }
        Ok(())
    }
}

/// The faults that could explain the error of one tensor.
pub(crate) fn candidate_faults_of_tensor(config: &TextConfig, spec: &TensorSpec) -> Vec<KnownFault> {
    let mut list = Vec::new();
    for by in [1.0, -1.0] {
        list.push(KnownFault::NormsShifted { by, only_final: spec.layer.is_none() });
    }
    list.extend([
        KnownFault::TapsReversed,
        KnownFault::QueryGateHalves,
        KnownFault::QueryGateStoredAsHalves,
        KnownFault::RotaryInterleaved,
        KnownFault::RotaryDeinterleaved,
        KnownFault::EmbeddingShifted { by: 1 },
        KnownFault::EmbeddingShifted { by: -1 },
        KnownFault::GateUpSwapped,
        KnownFault::KeyValueSwapped,
        KnownFault::DecayNegated,
    ]);
    if let Some(layer) = spec.layer {
        let same_kind = config.layers_of(config.layer_types[layer]).filter(|other| *other != layer);
        let any_kind = spec.name.contains(".mlp.") || spec.name.contains("layernorm");
        let others: Vec<usize> = if any_kind {
            (0..config.num_hidden_layers).filter(|other| *other != layer).collect()
        } else {
            same_kind.collect()
        };
        list.extend(others.into_iter().map(|second| KnownFault::LayersSwapped { first: layer, second }));
    }
    list
}

/// The faults that could explain the error of an execution.
pub(crate) fn candidate_faults_of_execution(config: &TextConfig) -> Vec<KnownFault> {
    let mut list: Vec<KnownFault> = [1e-5, 1e-6, 1e-8, 1e-12]
        .into_iter()
        .filter(|eps| *eps != config.rms_norm_eps)
        .map(KnownFault::Epsilon)
        .collect();
    list.extend([10.0, 0.1].map(|factor| KnownFault::Epsilon(config.rms_norm_eps * factor)));
    list.push(KnownFault::NormsShifted { by: -1.0, only_final: true });
    list.push(KnownFault::NormsShifted { by: 1.0, only_final: true });
    list.push(KnownFault::NormsShifted { by: -1.0, only_final: false });
    list.push(KnownFault::NormsShifted { by: 1.0, only_final: false });
    if config.layers_of(LayerKind::LinearAttention).next().is_some() {
        list.extend([KnownFault::TapsReversed, KnownFault::DecayNegated]);
    }
    if config.layers_of(LayerKind::FullAttention).next().is_some() {
        list.extend([
            KnownFault::RotaryInterleaved,
            KnownFault::RotaryDeinterleaved,
            KnownFault::QueryGateHalves,
            KnownFault::QueryGateStoredAsHalves,
        ]);
        list.extend(
            [1e4, 1e6, 1e7].into_iter().filter(|t| *t != config.rope_theta).map(KnownFault::RopeTheta),
        );
    }
    list.extend([
        KnownFault::GateUpSwapped,
        KnownFault::EmbeddingShifted { by: 1 },
        KnownFault::EmbeddingShifted { by: -1 },
    ]);
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use q35_testkit::TinyCheckpoint;

    fn read(weights: &dyn Weights, name: &str, rows: usize) -> Vec<f32> {
        let mut out = Vec::new();
        weights.read_rows(name, 0..rows, &mut out).unwrap();
        out
    }

    #[test]
    fn reorderings_undo_each_other() {
        let source = TinyCheckpoint::new().weights();
        let pairs = [
            (KnownFault::QueryGateHalves, KnownFault::QueryGateStoredAsHalves),
            (KnownFault::RotaryInterleaved, KnownFault::RotaryDeinterleaved),
            (KnownFault::EmbeddingShifted { by: 1 }, KnownFault::EmbeddingShifted { by: -1 }),
            (KnownFault::TapsReversed, KnownFault::TapsReversed),
            (KnownFault::GateUpSwapped, KnownFault::GateUpSwapped),
            (
                KnownFault::LayersSwapped { first: 0, second: 2 },
                KnownFault::LayersSwapped { first: 2, second: 0 },
            ),
        ];
        for (there, back) in pairs {
            let once = FaultyWeights::new(&source, there.clone());
            let twice = FaultyWeights::new(&once, back);
            let mut changed = false;
            for spec in tensor_table(source.config()) {
                let plain = read(&source, &spec.name, spec.shape[0]);
                assert_eq!(read(&twice, &spec.name, spec.shape[0]), plain, "{there:?} {}", spec.name);
                let differs = read(&once, &spec.name, spec.shape[0]) != plain;
                assert_eq!(differs, once.affects(&spec), "{there:?} {}", spec.name);
                changed |= differs;
            }
            assert!(changed, "{there:?}");
        }
    }

    #[test]
    fn norms_are_told_apart() {
        let source = TinyCheckpoint::new().weights();
        let last = FaultyWeights::new(&source, KnownFault::NormsShifted { by: -1.0, only_final: true });
        assert_ne!(read(&last, "norm.weight", 1), read(&source, "norm.weight", 1));
        let name = "layers.0.input_layernorm.weight";
        assert_eq!(read(&last, name, 1), read(&source, name, 1));
        // The gated norm is stored as is everywhere and is never shifted.
        let all = FaultyWeights::new(&source, KnownFault::NormsShifted { by: 1.0, only_final: false });
        let gated = "layers.0.linear_attn.norm.weight";
        assert_eq!(read(&all, gated, 1), read(&source, gated, 1));
    }
}
