//! The functions of a package: what goes in, the graph, what comes out.

use q35_architecture::TextConfig;
use q35_format_mil::build::{FinishedFunction, Tensor};
use q35_format_mil::{DType, PackageWeights, TensorType};

use crate::ConvertError;
use crate::caches::Caches;
use crate::options::{Cache, Embedding, Options};
use crate::qwen3_5::Graph;
use crate::store::{Function, Store};

/// Writes one function's weights and gives its program.
pub(crate) struct Writer<'p, 'a> {
    pub(crate) file: &'p mut PackageWeights,
    pub(crate) store: Store<'a>,
    pub(crate) config: &'a TextConfig,
    pub(crate) options: Options,
}

impl Writer<'_, '_> {
    /// `prefill` or `decode`, by the number of tokens that a call takes.
    pub(crate) fn language_model(
        &mut self,
        name: &str,
        tokens: usize,
    ) -> Result<FinishedFunction, ConvertError> {
        let (config, options, dtype) = (self.config, self.options, self.options.compute.dtype());
        let splits = options.splits(config);
        self.store.begin_function();
        let mut f = Function::new(name, self.file);
        let ids_or_rows = match options.embedding {
            Embedding::Inside => f.input("input_ids", TensorType::new(DType::I32, &[1, tokens]))?,
            Embedding::Host => {
                f.input("inputs_embeds", TensorType::new(dtype, &[1, tokens, config.hidden_size]))?
            }
        };
        let attention_mask = f.input("attention_mask", TensorType::new(DType::I32, &[1, tokens]))?;
        let position = f.input("position", TensorType::new(DType::I32, &[1]))?;
        let mut caches = match options.cache {
            Cache::Io => Caches::io(&mut f, config, options.context, dtype)?,
            Cache::State => Caches::packed(&mut f, config, options.context, dtype)?,
        };
        let (context, weights) = (options.context, &mut self.store);
        let mut graph = Graph { f: &mut f, weights, config, dtype, context };
        let tokens = graph.tokens(&attention_mask, &position)?;
        let embedded = match options.embedding {
            Embedding::Inside => {
                // The head's parts are the embedding's where they share their numbers.
                let splits = if config.tie_word_embeddings { splits } else { 1 };
                // Padding takes the row of token 0, whatever the caller put there.
                let ids = graph.f.mul(&ids_or_rows, &attention_mask)?;
                graph.embedding(&ids, splits)?
            }
            Embedding::Host => without_padding(graph.f, &ids_or_rows, &attention_mask)?,
        };
        let last = graph.layers(&embedded, &tokens, &mut caches)?;
        let logits = graph.head(&last, splits)?;
        f.output(&logits, "logits")?;
        caches.finish(&mut f)?;
        Ok(f.finish()?)
    }

    /// speech-swift's `embedding.mlpackage`: `token_id` int32 [1, 1] to `embedding` fp16 [1, 1, hidden].
    pub(crate) fn swift_embedding(&mut self) -> Result<FinishedFunction, ConvertError> {
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

    /// speech-swift's `decoder.mlpackage`: one token, every cache a state, the scores' mask given.
    pub(crate) fn swift_decoder(&mut self) -> Result<FinishedFunction, ConvertError> {
        let (config, dtype, context) = (self.config, self.options.compute.dtype(), self.options.context);
        let splits = self.options.splits(config);
        self.store.begin_function();
        let mut f = Function::new("main", self.file);
        let embeds = f.input("input_embeds", TensorType::new(DType::F32, &[1, 1, config.hidden_size]))?;
        let position = f.input("position", TensorType::new(DType::I32, &[1]))?;
        let mask = f.input("attention_mask", TensorType::new(DType::F32, &[1, 1, 1, context]))?;
        let mut caches = Caches::states(&mut f, config, context, dtype)?;
        let mut graph = Graph { f: &mut f, weights: &mut self.store, config, dtype, context };
        let tokens = graph.single_token(&mask, &position)?;
        let embedded = graph.f.cast(&embeds, dtype)?;
        let last = graph.layers(&embedded, &tokens, &mut caches)?;
        let logits = graph.head(&last, splits)?;
        f.output(&logits, "logits")?;
        caches.finish(&mut f)?;
        Ok(f.finish()?)
    }
}

/// `rows` [1, T, H], zeros where `attention_mask` int32 [1, T] is 0, whatever stands there.
fn without_padding(
    f: &mut Function<'_>,
    rows: &Tensor,
    attention_mask: &Tensor,
) -> Result<Tensor, ConvertError> {
    f.set_scope("embedding");
    let real = f.cast(attention_mask, DType::Bool)?;
    let real = f.reshape(&real, &[1, rows.shape()[1], 1])?;
    let zero = f.shared_constant("scalar", rows.dtype(), &[], &[0.0])?;
    let kept = f.select(&real, rows, &zero)?;
    f.rename(&kept, "embedded")?;
    Ok(kept)
}
