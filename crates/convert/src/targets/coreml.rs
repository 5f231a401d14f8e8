//! The target Core ML.

use q35_format_coreml::{Cache, Compute, Embedding, Encoding, Layout, Options, Plan, WriteError};

use crate::ConvertError;
use crate::target::{CardSection, Details, Job, Summary, Target, Written};

/// Core ML packages with INT8 weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CoreMl {
    /// Settings of the packages.
    pub options: Options,
}

impl CoreMl {
    /// Packages with these settings.
    pub fn new(options: Options) -> Self {
        Self { options }
    }
}

impl Target for CoreMl {
    fn kind(&self) -> &'static str {
        "coreml"
    }

    fn releases_source(&self) -> bool {
        true
    }

    fn write(&self, job: &Job<'_>) -> Result<Written, ConvertError> {
        let failed = |source: WriteError| match source {
            WriteError::Cancelled => ConvertError::Cancelled { resume_dir: None },
            source => ConvertError::CoreMl { dir: job.checkpoint.dir().to_owned(), source },
        };
        let plan = Plan::new(job.checkpoint, &self.options).map_err(failed)?;
        let files = job
            .quantize(plan.source_bytes(), |progress| plan.write(&job.provenance.name, job.staging, progress))
            .map_err(failed)?;
        let counts = plan.summary();
        let compile = "speech-swift loads compiled packages: run `xcrun coremlcompiler compile` on each of them \
                       on a Mac";
        let notes = match self.options.layout {
            Layout::SpeechSwift => vec![compile.to_owned()],
            Layout::Multifunction | Layout::Split => Vec::new(),
        };
        Ok(Written {
            files,
            copied: vec!["config.json".to_owned()],
            settings: plan.settings(),
            tensors: plan.tensor_records(),
            card: card(&self.options, counts.quantized_weights),
            summary: Summary {
                parameters: counts.parameters,
                source_bytes: counts.source_bytes,
                details: Details::CoreMl {
                    options: self.options,
                    packages: counts.packages,
                    quantized_weights: counts.quantized_weights,
                    head_splits: counts.head_splits,
                },
                notes,
            },
            resume_dir: None,
        })
    }
}

fn card(options: &Options, quantized_weights: u64) -> CardSection {
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
        Embedding::Model => "",
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
    let body = format!(
        "{packages}{caches}{embedding} They hold {context} tokens and need iOS 18 or macOS 15.\n\n\
         {quantized_weights} weights are symmetric INT8 with {encoding}; activations are {compute}. Norms, \
         convolutions, decay parameters and the small gate projections stay in floats.\n\n\
         **Not run by Apple's Core ML.** The packages were checked against the format and evaluated operator by \
         operator on a CPU. How they behave on the Neural Engine is not known here; \
         `q35-convert inspect` lists what is reported about the operators that they use.\n\n\
         Open the directory with q35 on any CPU:\n\n```bash\nq35-chat --model PATH\n```\n",
        context = options.context,
    );
    CardSection { library: "coreml", title: "Qwen3.5 text model, INT8 Core ML".to_owned(), body }
}
