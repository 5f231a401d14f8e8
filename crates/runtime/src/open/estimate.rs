//! Estimate of a model's memory before it is loaded.

use std::path::Path;

use q35_architecture::{LayerKind, TextConfig};
use q35_artefact::{ArtefactDir, ArtefactKind};
use q35_backend::Precision;
use serde_json::Value;

use super::OpenError;
use crate::LoadOptions;

/// The memory that one session with a full context window needs, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// All weight files.
    pub weight_bytes: u64,
    /// KV caches of a full context window, and recurrent states.
    pub cache_bytes: u64,
    /// Scratch buffers of a prefill.
    pub scratch_bytes: u64,
    /// The prompt cache's limit.
    pub snapshot_bytes: u64,
    /// Tokenizer and tables.
    pub text_bytes: u64,
}

/// Tokens of a prefill chunk, for the estimate; each backend chooses its own.
const CHUNK: u64 = 256;

impl MemoryEstimate {
    /// Estimates from file sizes and config.json.
    ///
    /// # Errors
    /// config.json cannot be read or describes another architecture.
    pub fn of(artefact: &ArtefactDir, options: &LoadOptions) -> Result<Self, OpenError> {
        let weight_bytes = weight_files(&artefact.dir);
        let text_bytes = 4 * size(&artefact.dir.join("tokenizer.json"));
        let snapshot_bytes = options.prompt_cache_bytes;
        let path = artefact.dir.join("config.json");
        if artefact.kind == ArtefactKind::CoreMl && !path.is_file() {
            // Without config.json the size of the caches is unknown.
            return Ok(Self { weight_bytes, cache_bytes: 0, scratch_bytes: 0, snapshot_bytes, text_bytes });
        }
        let broken = |message: String| OpenError::Description { path: path.clone(), message };
        let json = std::fs::read(&path).map_err(|error| broken(error.to_string()))?;
        let json: Value = serde_json::from_slice(&json).map_err(|error| broken(error.to_string()))?;
        let config = TextConfig::from_json(&json).map_err(|error| broken(error.to_string()))?;
        let context = options.max_context.min(config.max_position_embeddings) as u64;
        let caches = |element_bytes| cache_bytes(&config, context, element_bytes);
        Ok(Self {
            weight_bytes,
            cache_bytes: caches(if options.run.precision == Precision::Exact { 4 } else { 2 }),
            scratch_bytes: scratch_bytes(&config),
            snapshot_bytes,
            text_bytes,
        })
    }

    /// Sum of all parts.
    pub fn total_bytes(&self) -> u64 {
        self.weight_bytes + self.cache_bytes + self.scratch_bytes + self.snapshot_bytes + self.text_bytes
    }
}

impl std::fmt::Display for MemoryEstimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        write!(
            f,
            "about {:.0} MB needed (weights {:.0}, caches {:.0}, work space {:.0}, prompt snapshots {:.0}, text {:.0})",
            mb(self.total_bytes()),
            mb(self.weight_bytes),
            mb(self.cache_bytes),
            mb(self.scratch_bytes),
            mb(self.snapshot_bytes),
            mb(self.text_bytes)
        )
    }
}

fn cache_bytes(config: &TextConfig, context: u64, element_bytes: u64) -> u64 {
    let layers = |kind| config.layers_of(kind).count() as u64;
    let key_values = 2 * config.attention_key_value_dim() as u64 * context * element_bytes;
    let state = config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim;
    let window = config.linear_conv_dim() * (config.linear_conv_kernel_dim - 1);
    layers(LayerKind::FullAttention) * key_values
        + layers(LayerKind::LinearAttention) * 4 * (state + window) as u64
}

fn scratch_bytes(config: &TextConfig) -> u64 {
    let mixer = config.linear_conv_dim() + 2 * config.linear_value_dim();
    let attention = 3 * config.attention_query_dim() + 2 * config.attention_key_value_dim();
    let widest = (2 * config.intermediate_size).max(mixer).max(attention);
    4 * (CHUNK * (3 * config.hidden_size + widest) as u64 + config.vocab_size as u64)
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Bytes of weight files, those in packages included.
fn weight_files(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let weights = |path: &Path| path.extension().is_some_and(|kind| kind == "safetensors" || kind == "bin");
    entries
        .map(|entry| entry.path())
        .map(|path| match path.is_dir() {
            true => weight_files(&path),
            false if weights(&path) => size(&path),
            false => 0,
        })
        .sum()
}

/// Physical memory of the machine, where the system publishes it in a file.
pub(super) fn physical_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config() -> TextConfig {
        TextConfig::from_json(&json!({
            "hidden_size": 1024, "num_hidden_layers": 24, "vocab_size": 248_320, "intermediate_size": 3584,
            "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256,
            "linear_num_key_heads": 16, "linear_num_value_heads": 16,
            "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": true, "model_type": "qwen3_5_text",
        }))
        .unwrap()
    }

    #[test]
    fn the_caches_of_the_real_model() {
        // 6 layers of 2 x 512 numbers a token; 18 states of 16 x 128 x 128 and windows of 3 x 6144.
        assert_eq!(cache_bytes(&config(), 1000, 2), 6 * 2 * 512 * 1000 * 2 + 18 * 4 * (262_144 + 18_432));
    }

    #[test]
    fn the_estimate_says_what_it_is_made_of() {
        let estimate = MemoryEstimate {
            weight_bytes: 424_000_000,
            cache_bytes: 10_000_000,
            scratch_bytes: 5_000_000,
            snapshot_bytes: 0,
            text_bytes: 1_000_000,
        };
        let text = estimate.to_string();
        assert_eq!(
            text,
            "about 440 MB needed (weights 424, caches 10, work space 5, prompt snapshots 0, text 1)"
        );
    }
}
