//! The functions of a package: inputs, graph, outputs.

use q35_architecture::TextConfig;
use q35_format_mil::build::{FinishedFunction, Tensor};
use q35_format_mil::{DType, PackageWeights, TensorType};

use crate::WriteError;
use crate::caches::{Caches, LayerIo, PackedStates, SpeechSwiftStates};
use crate::options::{Cache, Embedding, Options};
use crate::qwen3_5::Graph;
use crate::tokens::Tokens;
use crate::weight_store::{Function, WeightStore};

/// Writes the weights of functions into a package and builds their programs.
pub(crate) struct FunctionWriter<'p, 'a> {
    pub(crate) file: &'p mut PackageWeights,
    pub(crate) store: WeightStore<'a>,
    pub(crate) config: &'a TextConfig,
    pub(crate) options: Options,
}

impl FunctionWriter<'_, '_> {
    /// The language model for calls of `tokens` tokens: `prefill` or `decode`.
    pub(crate) fn language_model(
        &mut self,
        name: &str,
        tokens: usize,
    ) -> Result<FinishedFunction, WriteError> {
        let (config, options, dtype) = (self.config, self.options, self.options.compute.dtype());
        let splits = options.splits(config);
        self.store.begin_function();
        let mut f = Function::new(name, self.file);
        let ids_or_rows = match options.embedding {
            Embedding::Model => f.input("input_ids", TensorType::new(DType::I32, &[1, tokens]))?,
            Embedding::Host => {
                f.input("inputs_embeds", TensorType::new(dtype, &[1, tokens, config.hidden_size]))?
            }
        };
        let attention_mask = f.input("attention_mask", TensorType::new(DType::I32, &[1, tokens]))?;
        let position = f.input("position", TensorType::new(DType::I32, &[1]))?;
        let mut caches: Box<dyn Caches> = match options.cache {
            Cache::Io => Box::new(LayerIo::new(&mut f, config, options.context, dtype)?),
            Cache::State => Box::new(PackedStates::new(&mut f, config, options.context, dtype)?),
        };
        let context = options.context;
        let tokens = Tokens::padded(&mut f, config, context, dtype, &attention_mask, &position)?;
        let mut graph = Graph { f: &mut f, weights: &mut self.store, config, dtype, context };
        let embedded = match options.embedding {
            Embedding::Model => {
                // A tied head shares the embedding's parts.
                let splits = if config.tie_word_embeddings { splits } else { 1 };
                // Padding gets the row of token 0, whatever ids the caller passes.
                let ids = graph.f.mul(&ids_or_rows, &attention_mask)?;
                graph.embedding(&ids, splits)?
            }
            Embedding::Host => without_padding(graph.f, &ids_or_rows, &attention_mask)?,
        };
        let last = graph.layers(&embedded, &tokens, &mut *caches)?;
        let logits = graph.head(&last, splits)?;
        f.output(&logits, "logits")?;
        caches.finish(&mut f)?;
        Ok(f.finish()?)
    }

    /// speech-swift's `embedding.mlpackage`: `token_id` int32 [1, 1] to `embedding` fp16 [1, 1, hidden].
    pub(crate) fn speech_swift_embedding(&mut self) -> Result<FinishedFunction, WriteError> {
        let (config, dtype, context) = (self.config, self.options.compute.dtype(), self.options.context);
        self.store.begin_function();
        let mut f = Function::new("main", self.file);
        let token_id = f.input("token_id", TensorType::new(DType::I32, &[1, 1]))?;
        let mut graph = Graph { f: &mut f, weights: &mut self.store, config, dtype, context };
        let rows = graph.embedding(&token_id, 1)?;
        let rows = f.cast(&rows, DType::F16)?;
        f.output(&rows, "embedding")?;
        Ok(f.finish()?)
    }

    /// speech-swift's `decoder.mlpackage`: one token, every cache a state, the attention mask an input.
    pub(crate) fn speech_swift_decoder(&mut self) -> Result<FinishedFunction, WriteError> {
        let (config, dtype, context) = (self.config, self.options.compute.dtype(), self.options.context);
        let splits = self.options.splits(config);
        self.store.begin_function();
        let mut f = Function::new("main", self.file);
        let embeds = f.input("input_embeds", TensorType::new(DType::F32, &[1, 1, config.hidden_size]))?;
        let position = f.input("position", TensorType::new(DType::I32, &[1]))?;
        let mask = f.input("attention_mask", TensorType::new(DType::F32, &[1, 1, 1, context]))?;
        let mut caches: Box<dyn Caches> = Box::new(SpeechSwiftStates::new(&mut f, config, context, dtype)?);
        let tokens = Tokens::single(&mut f, config, context, dtype, &mask, &position)?;
        let mut graph = Graph { f: &mut f, weights: &mut self.store, config, dtype, context };
        let embedded = graph.f.cast(&embeds, dtype)?;
        let last = graph.layers(&embedded, &tokens, &mut *caches)?;
        let logits = graph.head(&last, splits)?;
        f.output(&logits, "logits")?;
        caches.finish(&mut f)?;
        Ok(f.finish()?)
    }
}

/// `rows` [1, T, H] with the rows of padding, where `attention_mask` int32 [1, T] is 0, set to zero.
fn without_padding(
    f: &mut Function<'_>,
    rows: &Tensor,
    attention_mask: &Tensor,
) -> Result<Tensor, WriteError> {
    f.set_scope("embedding");
    let real = f.cast(attention_mask, DType::Bool)?;
    let real = f.reshape(&real, &[1, rows.shape()[1], 1])?;
    let zero = f.shared_constant("scalar", rows.dtype(), &[], &[0.0])?;
    let kept = f.select(&real, rows, &zero)?;
    f.rename(&kept, "embedded")?;
    Ok(kept)
}
