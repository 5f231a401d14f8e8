//! What a faithful reader would see in an artefact that was made with one classic mistake.
//!
//! A mistake of a converter, or of a runtime, that is equivalent to other weights or another configuration can be
//! recognised: put it into the source deliberately and see whether that explains the candidate. So the report can
//! say "RoPE interleaved" where it would otherwise say "layer 3 differs". The list holds the mistakes that were met
//! in published conversions and those that the model's layout invites.

use std::ops::Range;

use q35_architecture::{LayerKind, Role, TensorSpec, TextConfig, tensor_table};
use q35_inference::{WeightError, Weights};

/// One classic mistake.
#[derive(Clone, Debug, PartialEq)]
pub enum Mistake {
    /// Zero-centred norms, stored as `1 + w`, have 1 added once more, or (-1) not at all.
    NormsShifted {
        /// What stands in the artefact beyond what should: 1 or -1.
        by: f32,
        /// Whether only the final norm is meant, or all others.
        only_final: bool,
    },
    /// The convolution's taps in reverse order of time.
    TapsReversed,
    /// `q_proj` read as all queries, then all gates.
    QueryGateHalves,
    /// `q_proj` stored as all queries, then all gates, though readers expect them by head.
    QueryGateStoredAsHalves,
    /// Neighbouring components of a head rotated together, instead of those half the rotary width apart.
    RotaryInterleaved,
    /// The inverse reordering of the rows of queries and keys.
    RotaryDeinterleaved,
    /// Row `r` of a table holds what belongs into row `r + by`.
    EmbeddingShifted {
        /// The distance.
        by: isize,
    },
    /// Two layers of the same kind in each other's place.
    LayersSwapped {
        /// One.
        first: usize,
        /// The other.
        second: usize,
    },
    /// `mlp.gate_proj` and `mlp.up_proj` in each other's place.
    GateUpSwapped,
    /// `self_attn.k_proj` and `self_attn.v_proj` in each other's place.
    KeyValueSwapped,
    /// Another epsilon in the norms.
    Epsilon(f64),
    /// Another base of the rotary frequencies.
    RopeTheta(f64),
    /// `A_log` negated, as when the sign of the decay was folded in twice.
    DecayNegated,
}

impl std::fmt::Display for Mistake {
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

/// The weights of a model in which one mistake was made.
pub struct Disguised<'a> {
    inner: &'a dyn Weights,
    config: TextConfig,
    mistake: Mistake,
    table: Vec<TensorSpec>,
}

impl<'a> Disguised<'a> {
    /// `inner`, as if `mistake` had been made.
    pub fn new(inner: &'a dyn Weights, mistake: Mistake) -> Self {
        let mut config = inner.config().clone();
        match mistake {
            Mistake::Epsilon(eps) => config.rms_norm_eps = eps,
            Mistake::RopeTheta(theta) => config.rope_theta = theta,
            _ => {}
        }
        Self { inner, table: tensor_table(&config), config, mistake }
    }

    /// Whether the mistake touches that tensor.
    pub fn touches(&self, spec: &TensorSpec) -> bool {
        let name = spec.name.as_str();
        let attention = |part: &str| name.contains("self_attn.") && name.contains(part);
        match &self.mistake {
            Mistake::NormsShifted { only_final, .. } => {
                spec.role == Role::CenteredNorm && *only_final == spec.layer.is_none()
            }
            Mistake::TapsReversed => spec.role == Role::Convolution,
            Mistake::QueryGateHalves | Mistake::QueryGateStoredAsHalves => attention("q_proj"),
            Mistake::RotaryInterleaved | Mistake::RotaryDeinterleaved => {
                ["q_proj", "k_proj", "q_norm", "k_norm"].into_iter().any(attention)
            }
            Mistake::EmbeddingShifted { .. } => matches!(spec.role, Role::Embedding | Role::Head),
            Mistake::LayersSwapped { first, second } => {
                spec.layer == Some(*first) || spec.layer == Some(*second)
            }
            Mistake::GateUpSwapped => name.contains("mlp.gate_proj") || name.contains("mlp.up_proj"),
            Mistake::KeyValueSwapped => attention("k_proj") || attention("v_proj"),
            Mistake::Epsilon(_) | Mistake::RopeTheta(_) => false,
            Mistake::DecayNegated => spec.role == Role::DecayLog,
        }
    }

    /// Where the faulty artefact took the row `row` of `spec` from.
    fn source_row(&self, spec: &TensorSpec, row: usize) -> usize {
        let c = &self.config;
        let (heads, width) = (c.num_attention_heads, c.head_dim);
        let rows = spec.shape[0];
        // Rows of a head: 2 x width in q_proj (the query first), width elsewhere.
        let block = if spec.name.contains("q_proj") { 2 * width } else { width };
        match &self.mistake {
            Mistake::QueryGateHalves => {
                let (head, part, at) = (row / (2 * width), row % (2 * width) / width, row % width);
                part * heads * width + head * width + at
            }
            Mistake::QueryGateStoredAsHalves => {
                let (part, head, at) = (row / (heads * width), row % (heads * width) / width, row % width);
                head * 2 * width + part * width + at
            }
            Mistake::RotaryInterleaved => match row % block {
                at if at >= c.rotary_dim() => row,
                at if at < c.rotary_dim() / 2 => row - at + 2 * at,
                at => row - at + 2 * (at - c.rotary_dim() / 2) + 1,
            },
            Mistake::RotaryDeinterleaved => match row % block {
                at if at >= c.rotary_dim() => row,
                at if at % 2 == 0 => row - at + at / 2,
                at => row - at + c.rotary_dim() / 2 + at / 2,
            },
            Mistake::EmbeddingShifted { by } => (row as isize + by).rem_euclid(rows as isize) as usize,
            _ => row,
        }
    }

    fn source_name(&self, name: &str) -> String {
        let swapped = |a: &str, b: &str| {
            if name.contains(a) { name.replace(a, b) } else { name.replace(b, a) }
        };
        match &self.mistake {
            Mistake::LayersSwapped { first, second } => {
                let (a, b) = (format!("layers.{first}."), format!("layers.{second}."));
                match name.starts_with(&a) || name.starts_with(&b) {
                    true => swapped(&a, &b),
                    false => name.to_owned(),
                }
            }
            Mistake::GateUpSwapped => swapped("mlp.gate_proj", "mlp.up_proj"),
            Mistake::KeyValueSwapped => swapped("self_attn.k_proj", "self_attn.v_proj"),
            _ => name.to_owned(),
        }
    }
}

impl Weights for Disguised<'_> {
    fn config(&self) -> &TextConfig {
        &self.config
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), WeightError> {
        let Some(spec) = self.table.iter().find(|spec| spec.name == name).filter(|spec| self.touches(spec))
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
        match &self.mistake {
            Mistake::NormsShifted { by, .. } => out.iter_mut().for_each(|w| *w += by),
            Mistake::DecayNegated => out.iter_mut().for_each(|w| *w = -*w),
            Mistake::TapsReversed => {
                out.chunks_exact_mut(self.config.linear_conv_kernel_dim).for_each(<[f32]>::reverse);
            }
            _ => {}
        }
        Ok(())
    }
}

/// The mistakes that could explain a tensor that is not what it should be.
pub(crate) fn suspects_for_tensor(config: &TextConfig, spec: &TensorSpec) -> Vec<Mistake> {
    let mut list = Vec::new();
    for by in [1.0, -1.0] {
        list.push(Mistake::NormsShifted { by, only_final: spec.layer.is_none() });
    }
    list.extend([
        Mistake::TapsReversed,
        Mistake::QueryGateHalves,
        Mistake::QueryGateStoredAsHalves,
        Mistake::RotaryInterleaved,
        Mistake::RotaryDeinterleaved,
        Mistake::EmbeddingShifted { by: 1 },
        Mistake::EmbeddingShifted { by: -1 },
        Mistake::GateUpSwapped,
        Mistake::KeyValueSwapped,
        Mistake::DecayNegated,
    ]);
    if let Some(layer) = spec.layer {
        let same_kind = config.layers_of(config.layer_types[layer]).filter(|other| *other != layer);
        let any_kind = spec.name.contains(".mlp.") || spec.name.contains("layernorm");
        let others: Vec<usize> = if any_kind {
            (0..config.num_hidden_layers).filter(|other| *other != layer).collect()
        } else {
            same_kind.collect()
        };
        list.extend(others.into_iter().map(|second| Mistake::LayersSwapped { first: layer, second }));
    }
    list
}

/// The mistakes of a runtime that are equivalent to other weights or another configuration.
pub(crate) fn suspects_for_execution(config: &TextConfig) -> Vec<Mistake> {
    let mut list: Vec<Mistake> = [1e-5, 1e-6, 1e-8, 1e-12]
        .into_iter()
        .filter(|eps| *eps != config.rms_norm_eps)
        .map(Mistake::Epsilon)
        .collect();
    list.extend([10.0, 0.1].map(|factor| Mistake::Epsilon(config.rms_norm_eps * factor)));
    list.push(Mistake::NormsShifted { by: -1.0, only_final: true });
    list.push(Mistake::NormsShifted { by: 1.0, only_final: true });
    list.push(Mistake::NormsShifted { by: -1.0, only_final: false });
    list.push(Mistake::NormsShifted { by: 1.0, only_final: false });
    if config.layers_of(LayerKind::LinearAttention).next().is_some() {
        list.extend([Mistake::TapsReversed, Mistake::DecayNegated]);
    }
    if config.layers_of(LayerKind::FullAttention).next().is_some() {
        list.extend([
            Mistake::RotaryInterleaved,
            Mistake::RotaryDeinterleaved,
            Mistake::QueryGateHalves,
            Mistake::QueryGateStoredAsHalves,
        ]);
        list.extend([1e4, 1e6, 1e7].into_iter().filter(|t| *t != config.rope_theta).map(Mistake::RopeTheta));
    }
    list.extend([
        Mistake::GateUpSwapped,
        Mistake::EmbeddingShifted { by: 1 },
        Mistake::EmbeddingShifted { by: -1 },
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
            (Mistake::QueryGateHalves, Mistake::QueryGateStoredAsHalves),
            (Mistake::RotaryInterleaved, Mistake::RotaryDeinterleaved),
            (Mistake::EmbeddingShifted { by: 1 }, Mistake::EmbeddingShifted { by: -1 }),
            (Mistake::TapsReversed, Mistake::TapsReversed),
            (Mistake::GateUpSwapped, Mistake::GateUpSwapped),
            (Mistake::LayersSwapped { first: 0, second: 2 }, Mistake::LayersSwapped { first: 2, second: 0 }),
        ];
        for (there, back) in pairs {
            let once = Disguised::new(&source, there.clone());
            let twice = Disguised::new(&once, back);
            let mut changed = false;
            for spec in tensor_table(source.config()) {
                let plain = read(&source, &spec.name, spec.shape[0]);
                assert_eq!(read(&twice, &spec.name, spec.shape[0]), plain, "{there:?} {}", spec.name);
                let differs = read(&once, &spec.name, spec.shape[0]) != plain;
                assert_eq!(differs, once.touches(&spec), "{there:?} {}", spec.name);
                changed |= differs;
            }
            assert!(changed, "{there:?}");
        }
    }

    #[test]
    fn norms_are_told_apart() {
        let source = TinyCheckpoint::new().weights();
        let last = Disguised::new(&source, Mistake::NormsShifted { by: -1.0, only_final: true });
        assert_ne!(read(&last, "norm.weight", 1), read(&source, "norm.weight", 1));
        let name = "layers.0.input_layernorm.weight";
        assert_eq!(read(&last, name, 1), read(&source, name, 1));
        // The gated norm is stored as is everywhere and is never shifted.
        let all = Disguised::new(&source, Mistake::NormsShifted { by: 1.0, only_final: false });
        let gated = "layers.0.linear_attn.norm.weight";
        assert_eq!(read(&all, gated, 1), read(&source, gated, 1));
    }
}
