//! The generator of random checkpoints.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use half::{bf16, f16};
use q35_architecture::{Role, TextConfig, tensor_table};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::config::{VISION_HIDDEN, VISION_INTERMEDIATE, VISION_POSITIONS, config_json, tiny};
use crate::memory::{MemoryTensor, MemoryWeights};
use crate::{END_OF_TEXT, Random, write_tokenizer};

/// Float type of the tensors, except `A_log` and the gated norms, which are f32 as in the real checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// bfloat16, as the real checkpoint.
    Bf16,
    /// IEEE half.
    F16,
    /// IEEE single.
    F32,
}

impl Precision {
    fn dtype(self) -> Dtype {
        match self {
            Self::Bf16 => Dtype::BF16,
            Self::F16 => Dtype::F16,
            Self::F32 => Dtype::F32,
        }
    }

    fn round(self, value: f32) -> f32 {
        match self {
            Self::Bf16 => bf16::from_f32(value).to_f32(),
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::F32 => value,
        }
    }

    fn bytes(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            Self::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Self::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }
}

/// Description of a random checkpoint. [`Self::write_to`] writes its files, [`Self::weights`] returns its weights.
#[derive(Clone, Debug)]
pub struct TinyCheckpoint {
    config: TextConfig,
    precision: Precision,
    nested: bool,
    vision: bool,
    mtp: bool,
    shards: usize,
    seed: u64,
}

impl Default for TinyCheckpoint {
    fn default() -> Self {
        Self::new()
    }
}

/// Distribution of a tensor's values.
enum Distribution {
    /// Normal, with rows of different deviation and one outlier column.
    Matrix {
        deviation: f32,
    },
    /// Normal with mean 0.2 and deviation 0.3.
    ConvolutionTaps,
    Normal {
        mean: f32,
        deviation: f32,
    },
    /// Uniform between ln 0.01 and ln 16.
    DecayLog,
}

struct RandomTensor {
    name: String,
    shape: Vec<usize>,
    precision: Precision,
    values: Vec<f32>,
}

impl TinyCheckpoint {
    /// A checkpoint with the sizes of [`tiny`], bf16, nested and tied, with vision tower and MTP block, in one file.
    pub fn new() -> Self {
        Self {
            config: tiny(),
            precision: Precision::Bf16,
            nested: true,
            vision: true,
            mtp: true,
            shards: 1,
            seed: 0,
        }
    }

    /// Sets the configuration.
    pub fn with_config(mut self, config: TextConfig) -> Self {
        self.config = config;
        self
    }

    /// Sets the float type.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Adds a separate `lm_head.weight`.
    pub fn untied(mut self) -> Self {
        self.config.tie_word_embeddings = false;
        self
    }

    /// Selects the layout of text-only exports: a flat config.json, names under `model.`, no vision tower, no MTP block.
    pub fn text_only(mut self) -> Self {
        self.nested = false;
        self.vision = false;
        self.mtp = false;
        self
    }

    /// Omits the vision tower's tensors.
    pub fn without_vision(mut self) -> Self {
        self.vision = false;
        self
    }

    /// Omits the MTP block's tensors.
    pub fn without_mtp(mut self) -> Self {
        self.mtp = false;
        self
    }

    /// Sets the number of weight files: one is `model.safetensors`, several have an index.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    /// Sets the seed of the weights.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The configuration.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The text model's weights, rounded to the float type in which the files hold them.
    pub fn weights(&self) -> MemoryWeights {
        let drawn = self.text_tensors();
        let names = tensor_table(&self.config).into_iter().map(|spec| spec.name);
        let tensors: BTreeMap<_, _> = names
            .zip(drawn)
            .map(|(name, tensor)| (name, MemoryTensor { shape: tensor.shape, values: tensor.values }))
            .collect();
        MemoryWeights { config: self.config.clone(), tensors }
    }

    /// Writes the checkpoint into `dir`: weights, config.json, tokenizer files and chat template.
    ///
    /// # Panics
    /// It cannot be written, or the vocabulary is too small for the tokenizer.
    pub fn write_to(&self, dir: &Path) {
        assert!(self.config.vocab_size >= 269, "bytes, special tokens and four image tokens");
        std::fs::create_dir_all(dir).unwrap();
        let mut tensors = self.text_tensors();
        if self.vision {
            tensors.extend(self.vision_tensors());
        }
        if self.mtp {
            tensors.extend(self.mtp_tensors());
        }
        self.write_tensors(dir, &tensors);
        let config = config_json(&self.config, self.nested, END_OF_TEXT);
        std::fs::write(dir.join("config.json"), serde_json::to_string_pretty(&config).unwrap()).unwrap();
        write_tokenizer(dir);
    }

    fn write_tensors(&self, dir: &Path, tensors: &[RandomTensor]) {
        let mut weight_map = BTreeMap::new();
        let mut total_size = 0;
        for (index, part) in tensors.chunks(tensors.len().div_ceil(self.shards)).enumerate() {
            let file = match self.shards {
                1 => "model.safetensors".to_owned(),
                count => format!("model.safetensors-{:05}-of-{count:05}.safetensors", index + 1),
            };
            let bytes: Vec<Vec<u8>> = part.iter().map(|t| t.precision.bytes(&t.values)).collect();
            let views = part.iter().zip(&bytes).map(|(tensor, bytes)| {
                let view = TensorView::new(tensor.precision.dtype(), tensor.shape.clone(), bytes).unwrap();
                (tensor.name.as_str(), view)
            });
            let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
            safetensors::serialize_to_file(views, Some(metadata), &dir.join(&file)).unwrap();
            total_size += bytes.iter().map(Vec::len).sum::<usize>();
            weight_map.extend(part.iter().map(|tensor| (tensor.name.clone(), file.clone())));
        }
        if self.shards > 1 {
            let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
            let text = serde_json::to_string_pretty(&index).unwrap();
            std::fs::write(dir.join("model.safetensors.index.json"), text).unwrap();
        }
    }

    /// The text model's tensors in the order of [`tensor_table`], with their names in the files.
    fn text_tensors(&self) -> Vec<RandomTensor> {
        let prefix = if self.nested { "model.language_model." } else { "model." };
        let tensor = |spec: q35_architecture::TensorSpec| {
            let inputs: usize = spec.shape[1..].iter().product();
            let (distribution, precision) = match spec.role {
                Role::Embedding | Role::Head => (Distribution::Matrix { deviation: 0.06 }, self.precision),
                Role::Linear => {
                    (Distribution::Matrix { deviation: (inputs as f32).sqrt().recip() }, self.precision)
                }
                Role::Convolution => (Distribution::ConvolutionTaps, self.precision),
                Role::CenteredNorm => (Distribution::Normal { mean: 0.0, deviation: 0.1 }, self.precision),
                Role::GatedNorm => (Distribution::Normal { mean: 1.0, deviation: 0.1 }, Precision::F32),
                Role::DecayLog => (Distribution::DecayLog, Precision::F32),
                Role::StepBias => (Distribution::Normal { mean: 1.0, deviation: 0.5 }, self.precision),
            };
            let name = if spec.role == Role::Head { spec.name } else { format!("{prefix}{}", spec.name) };
            self.draw(name, spec.shape, distribution, precision)
        };
        tensor_table(&self.config).into_iter().map(tensor).collect()
    }

    fn vision_tensors(&self) -> Vec<RandomTensor> {
        let (width, merged) = (VISION_HIDDEN, 4 * VISION_HIDDEN);
        let mut list = vec![
            ("patch_embed.proj.weight", vec![width, 3, 2, 8, 8]),
            ("patch_embed.proj.bias", vec![width]),
            ("pos_embed.weight", vec![VISION_POSITIONS, width]),
            ("merger.norm.weight", vec![width]),
            ("merger.norm.bias", vec![width]),
            ("merger.linear_fc1.weight", vec![merged, merged]),
            ("merger.linear_fc1.bias", vec![merged]),
            ("merger.linear_fc2.weight", vec![self.config.hidden_size, merged]),
            ("merger.linear_fc2.bias", vec![self.config.hidden_size]),
        ];
        list.extend([
            ("blocks.0.norm1.weight", vec![width]),
            ("blocks.0.norm1.bias", vec![width]),
            ("blocks.0.norm2.weight", vec![width]),
            ("blocks.0.norm2.bias", vec![width]),
            ("blocks.0.attn.qkv.weight", vec![3 * width, width]),
            ("blocks.0.attn.qkv.bias", vec![3 * width]),
            ("blocks.0.attn.proj.weight", vec![width, width]),
            ("blocks.0.attn.proj.bias", vec![width]),
            ("blocks.0.mlp.linear_fc1.weight", vec![VISION_INTERMEDIATE, width]),
            ("blocks.0.mlp.linear_fc1.bias", vec![VISION_INTERMEDIATE]),
            ("blocks.0.mlp.linear_fc2.weight", vec![width, VISION_INTERMEDIATE]),
            ("blocks.0.mlp.linear_fc2.bias", vec![width]),
        ]);
        list.into_iter()
            .map(|(name, shape)| self.dropped_tensor(format!("model.visual.{name}"), shape))
            .collect()
    }

    fn mtp_tensors(&self) -> Vec<RandomTensor> {
        let c = &self.config;
        let (hidden, query, kv) = (c.hidden_size, c.attention_query_dim(), c.attention_key_value_dim());
        let list = [
            ("fc.weight", vec![hidden, 2 * hidden]),
            ("norm.weight", vec![hidden]),
            ("pre_fc_norm_embedding.weight", vec![hidden]),
            ("pre_fc_norm_hidden.weight", vec![hidden]),
            ("layers.0.input_layernorm.weight", vec![hidden]),
            ("layers.0.post_attention_layernorm.weight", vec![hidden]),
            ("layers.0.self_attn.q_proj.weight", vec![2 * query, hidden]),
            ("layers.0.self_attn.k_proj.weight", vec![kv, hidden]),
            ("layers.0.self_attn.v_proj.weight", vec![kv, hidden]),
            ("layers.0.self_attn.o_proj.weight", vec![hidden, query]),
            ("layers.0.self_attn.q_norm.weight", vec![c.head_dim]),
            ("layers.0.self_attn.k_norm.weight", vec![c.head_dim]),
            ("layers.0.mlp.gate_proj.weight", vec![c.intermediate_size, hidden]),
            ("layers.0.mlp.up_proj.weight", vec![c.intermediate_size, hidden]),
            ("layers.0.mlp.down_proj.weight", vec![hidden, c.intermediate_size]),
        ];
        list.into_iter().map(|(name, shape)| self.dropped_tensor(format!("mtp.{name}"), shape)).collect()
    }

    fn dropped_tensor(&self, name: String, shape: Vec<usize>) -> RandomTensor {
        self.draw(name, shape, Distribution::Normal { mean: 0.0, deviation: 0.1 }, self.precision)
    }

    fn draw(
        &self,
        name: String,
        shape: Vec<usize>,
        distribution: Distribution,
        precision: Precision,
    ) -> RandomTensor {
        // Seeded by the name without prefix, so that a text-only export has the same weights as the nested checkpoint.
        let key = name.trim_start_matches("model.").trim_start_matches("language_model.");
        let mut random = Random::named(self.seed, key);
        let (rows, width) = (shape[0], shape[1..].iter().product::<usize>());
        let mut values = Vec::with_capacity(rows * width);
        match distribution {
            Distribution::Matrix { deviation } => {
                // Rows of different deviation and an outlier column, which quantization represents with visible error.
                let outlier = random.below(width);
                for _ in 0..rows {
                    let scale = deviation * (0.5 + random.uniform());
                    values.extend((0..width).map(|column| {
                        let value = scale * random.normal();
                        if column == outlier { 4.0 * value } else { value }
                    }));
                }
            }
            Distribution::ConvolutionTaps => {
                values.extend((0..rows * width).map(|_| 0.2 + 0.3 * random.normal()))
            }
            Distribution::Normal { mean, deviation } => {
                values.extend((0..rows * width).map(|_| mean + deviation * random.normal()));
            }
            Distribution::DecayLog => {
                values.extend((0..rows * width).map(|_| -4.6 + 7.37 * random.uniform()))
            }
        }
        for value in &mut values {
            *value = precision.round(*value);
        }
        RandomTensor { name, shape, precision, values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny_more_value_heads;

    #[test]
    fn the_files_hold_the_numbers_of_weights() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint =
            TinyCheckpoint::new().with_config(tiny_more_value_heads()).untied().shards(3).seed(5);
        checkpoint.write_to(dir.path());
        let index = std::fs::read(dir.path().join("model.safetensors.index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        let name = "model.language_model.layers.3.self_attn.q_proj.weight";
        let file = index["weight_map"][name].as_str().unwrap();
        let bytes = std::fs::read(dir.path().join(file)).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let stored = file.tensor(name).unwrap();
        assert_eq!(stored.shape(), [256, 128]);
        let stored: Vec<f32> =
            stored.data().chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        assert_eq!(stored, checkpoint.weights().values("layers.3.self_attn.q_proj.weight"));
    }

    #[test]
    fn a_text_only_export_holds_the_same_numbers_under_other_names() {
        let nested = TinyCheckpoint::new().weights();
        let flat = TinyCheckpoint::new().text_only().weights();
        let name = "layers.1.linear_attn.in_proj_qkv.weight";
        assert_eq!(nested.values(name), flat.values(name));
    }

    #[test]
    fn the_config_reads_back() {
        for checkpoint in [TinyCheckpoint::new(), TinyCheckpoint::new().text_only().untied()] {
            let dir = tempfile::tempdir().unwrap();
            checkpoint.write_to(dir.path());
            let json = std::fs::read(dir.path().join("config.json")).unwrap();
            let config = TextConfig::from_json(&serde_json::from_slice(&json).unwrap()).unwrap();
            assert_eq!(&config, checkpoint.config());
        }
    }
}
