//! The tensors of a text model.

use crate::{LayerKind, TextConfig};

/// A tensor's function in the model. It decides how converters treat the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `embed_tokens.weight` [vocab, hidden]: a lookup table, and the head too when tied.
    Embedding,
    /// `lm_head.weight` [vocab, hidden], only when untied.
    Head,
    /// A projection [out, in], applied as `x W^T`.
    Linear,
    /// Depthwise convolution, [channels, 1, taps] in Hugging Face checkpoints; the last tap multiplies the current token.
    Convolution,
    /// Weight of a zero-centred RMSNorm, `x_hat * (1 + w)`; MLX stores `1 + w`.
    CenteredNorm,
    /// Weight of the gated RMSNorm after linear attention, `w * x_hat * silu(z)`; the same in every format.
    GatedNorm,
    /// `A_log` [value heads]: logarithm of the decay rate.
    DecayLog,
    /// `dt_bias` [value heads]: bias of the step size.
    StepBias,
}

impl Role {
    /// True for matrices, whose rows a converter may quantize.
    pub fn is_quantized(self) -> bool {
        matches!(self, Self::Embedding | Self::Head | Self::Linear)
    }
}

/// One tensor of the model, as stored in a Hugging Face checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name without the prefix of the text model, as in `layers.3.mlp.down_proj.weight`. `lm_head.weight` never has that
    /// prefix in Hugging Face checkpoints.
    pub name: String,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Function in the model.
    pub role: Role,
    /// Index of its decoder layer, if it belongs to one.
    pub layer: Option<usize>,
}

/// Every tensor of the text model, in the order of computation: embedding, layers, final norm, head if untied.
pub fn tensor_table(config: &TextConfig) -> Vec<TensorSpec> {
    let mut table = Table { specs: Vec::new(), layer: None };
    let hidden = config.hidden_size;
    table.push("embed_tokens.weight", &[config.vocab_size, hidden], Role::Embedding);
    for (index, kind) in config.layer_types.iter().enumerate() {
        table.layer = Some(index);
        table.push("input_layernorm.weight", &[hidden], Role::CenteredNorm);
        match kind {
            LayerKind::LinearAttention => table.linear_attention(config),
            LayerKind::FullAttention => table.full_attention(config),
        }
        table.push("post_attention_layernorm.weight", &[hidden], Role::CenteredNorm);
        table.push("mlp.gate_proj.weight", &[config.intermediate_size, hidden], Role::Linear);
        table.push("mlp.up_proj.weight", &[config.intermediate_size, hidden], Role::Linear);
        table.push("mlp.down_proj.weight", &[hidden, config.intermediate_size], Role::Linear);
    }
    table.layer = None;
    table.push("norm.weight", &[hidden], Role::CenteredNorm);
    if !config.tie_word_embeddings {
        table.push("lm_head.weight", &[config.vocab_size, hidden], Role::Head);
    }
    table.specs
}

struct Table {
    specs: Vec<TensorSpec>,
    layer: Option<usize>,
}

impl Table {
    fn push(&mut self, name: &str, shape: &[usize], role: Role) {
        let name = match self.layer {
            Some(index) => format!("layers.{index}.{name}"),
            None => name.to_owned(),
        };
        self.specs.push(TensorSpec { name, shape: shape.to_vec(), role, layer: self.layer });
    }

    fn linear_attention(&mut self, config: &TextConfig) {
        let (hidden, heads) = (config.hidden_size, config.linear_num_value_heads);
        let (channels, values) = (config.linear_conv_dim(), config.linear_value_dim());
        self.push("linear_attn.in_proj_qkv.weight", &[channels, hidden], Role::Linear);
        self.push("linear_attn.in_proj_z.weight", &[values, hidden], Role::Linear);
        self.push("linear_attn.in_proj_b.weight", &[heads, hidden], Role::Linear);
        self.push("linear_attn.in_proj_a.weight", &[heads, hidden], Role::Linear);
        self.push(
            "linear_attn.conv1d.weight",
            &[channels, 1, config.linear_conv_kernel_dim],
            Role::Convolution,
        );
        self.push("linear_attn.dt_bias", &[heads], Role::StepBias);
        self.push("linear_attn.A_log", &[heads], Role::DecayLog);
        self.push("linear_attn.norm.weight", &[config.linear_value_head_dim], Role::GatedNorm);
        self.push("linear_attn.out_proj.weight", &[hidden, values], Role::Linear);
    }

    fn full_attention(&mut self, config: &TextConfig) {
        let (hidden, query, kv) =
            (config.hidden_size, config.attention_query_dim(), config.attention_key_value_dim());
        self.push("self_attn.q_proj.weight", &[2 * query, hidden], Role::Linear);
        self.push("self_attn.k_proj.weight", &[kv, hidden], Role::Linear);
        self.push("self_attn.v_proj.weight", &[kv, hidden], Role::Linear);
        self.push("self_attn.q_norm.weight", &[config.head_dim], Role::CenteredNorm);
        self.push("self_attn.k_norm.weight", &[config.head_dim], Role::CenteredNorm);
        self.push("self_attn.o_proj.weight", &[hidden, query], Role::Linear);
    }
}
