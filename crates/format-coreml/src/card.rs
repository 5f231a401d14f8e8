//! The model card.

use crate::convert::{Provenance, Summary};
use crate::options::{Cache, Compute, Embedding, Encoding, Layout, Options};

pub(crate) fn card(options: &Options, provenance: &Provenance, summary: &Summary) -> String {
    let base = match &provenance.source_id {
        Some(id) if provenance.source_is_hub => format!("base_model: {id}\nbase_model_relation: quantized\n"),
        _ => String::new(),
    };
    let source = match (&provenance.source_id, &provenance.revision) {
        (Some(id), Some(revision)) => format!("`{id}` at revision `{revision}`"),
        (Some(id), None) => format!("`{id}`"),
        (None, _) => "a local checkpoint".to_owned(),
    };
    let packages = match options.layout {
        Layout::Multifunction => format!(
            "`model.mlpackage` has two functions over one weight file: `prefill`, which takes {} tokens at once, and \
             `decode`, which takes one.",
            options.prefill_chunk
        ),
        Layout::Split => format!(
            "`prefill.mlpackage` takes {} tokens at once, `decode.mlpackage` takes one; each is complete.",
            options.prefill_chunk
        ),
        Layout::SpeechSwift => {
            "`embedding.mlpackage` and `decoder.mlpackage` are those of speech-swift's Qwen3.5 chat, \
             with every cache an MLState. Compile them with `xcrun coremlcompiler compile`."
                .to_owned()
        }
    };
    let caches = match (options.layout, options.cache) {
        (Layout::SpeechSwift, _) => "",
        (_, Cache::State) => {
            " Keys and values of all attention layers live in the state `kv_cache`; `conv_state` and \
             `recurrent_state` of the linear layers go in and come out. All begin with zeros."
        }
        (_, Cache::Io) => " Every cache goes in and comes out; all begin with zeros.",
    };
    let embedding = match options.embedding {
        Embedding::Inside => "",
        Embedding::Host => {
            " The caller looks the embedding up in `embedding.safetensors` (rows of int8, each times its \
             scale, or each run of a row times its own) and passes `inputs_embeds`."
        }
    };
    let encoding = match options.encoding {
        Encoding::Channel => "one scale per output channel (`constexpr_blockwise_shift_scale`)",
        Encoding::Block32 => "one scale per 32 weights (`constexpr_blockwise_shift_scale`)",
        Encoding::Lut => "an identity table and one scale per output channel (`constexpr_lut_to_dense`)",
        Encoding::Affine => "one scale per output channel, unsigned (`constexpr_affine_dequantize`)",
    };
    let compute = match options.compute {
        Compute::F16 => "fp16",
        Compute::F32 => "fp32",
    };
    format!(
        "---\nlibrary_name: coreml\npipeline_tag: text-generation\ntags:\n- coreml\n{base}---\n\n\
         # Qwen3.5 text model, INT8 Core ML\n\n\
         Converted from {source} by q35 {version}: the language model alone, without vision tower and \
         multi-token-prediction block.\n\n\
         {packages}{caches}{embedding} They hold {context} tokens and need iOS 18 or macOS 15.\n\n\
         {weights} weights are symmetric INT8 with {encoding}; activations are {compute}. Norms, convolutions, decay \
         parameters and the small gate projections stay in floats.\n\n\
         **Not run by Apple's Core ML.** The packages were checked against the format and evaluated operator by \
         operator on a CPU. How they behave on the Neural Engine is not known here; \
         `q35-convert inspect` lists what is reported about the operators that they use.\n\n\
         Open the directory with q35 on any CPU:\n\n```bash\nq35-chat --model PATH\n```\n\n\
         `manifest.json` records the hashes of all source and output files and what became of each tensor.\n",
        version = provenance.tool_version,
        context = options.context,
        weights = summary.quantized_weights,
    )
}
