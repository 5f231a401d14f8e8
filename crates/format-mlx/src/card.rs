//! The model card.

use q35_quant::affine::AffineSpec;

use crate::write::Summary;
use crate::{Form, WriteOptions};

pub(crate) fn card(options: &WriteOptions, recipe: &str, spec: AffineSpec, summary: &Summary) -> String {
    let base = match &options.source_id {
        Some(id) if options.source_is_hub => format!("base_model: {id}\nbase_model_relation: quantized\n"),
        _ => String::new(),
    };
    let source = match (&options.source_id, &options.revision) {
        (Some(id), Some(revision)) => format!("`{id}` at revision `{revision}`"),
        (Some(id), None) => format!("`{id}`"),
        (None, _) => "a local checkpoint".to_owned(),
    };
    let use_with = match options.form {
        Form::MlxLm => {
            "Open it with mlx-lm:\n\n```bash\npip install mlx-lm\nmlx_lm.chat --model PATH\n```\n\n\
             or with q35, on any CPU:\n\n```bash\nq35-chat --model PATH\n```\n"
        }
        Form::SpeechSwift => {
            "Open it with speech-swift's Qwen3Chat, or with q35, on any CPU:\n\n```bash\nq35-chat --model PATH\n```\n"
        }
    };
    let kept = match summary.kept_matrices.len() {
        0 => String::new(),
        count => format!(
            " {count} matrices whose rows do not divide into groups of {} stay in float.",
            spec.group_size()
        ),
    };
    format!(
        "---\nlibrary_name: mlx\npipeline_tag: text-generation\ntags:\n- mlx\n{base}---\n\n\
         # Qwen3.5 text model, {bits}-bit MLX\n\n\
         Converted from {source} by q35 {version}: the language model alone, without vision tower and \
         multi-token-prediction block.\n\n\
         Matrices are quantized to {bits} bits in groups of {group} (affine, recipe `{recipe}`), \
         {bpw:.3} bits per weight with scales and biases.{kept} Norms, convolutions and decay parameters keep the \
         source's precision.\n\n\
         {use_with}\n\
         `manifest.json` records the hashes of all source and output files and what became of each tensor.\n",
        bits = spec.bits(),
        group = spec.group_size(),
        version = options.tool_version,
        bpw = summary.bits_per_weight,
    )
}
