//! Layer by layer evaluation of whole sequences, with one layer's weights in memory at a time.
//!
//! Logits of texts that are known in advance do not need the whole model in memory: every layer is read, converted to f32,
//! applied to all sequences and freed. At 0.8 billion weights that is a hundred megabytes instead of three gigabytes, and
//! each weight is read once for all sequences. The results equal those of [`crate::Reference`] bit for bit.
//!
//! The head is the largest matrix and its logits are larger still. So [`run`] returns the inputs of the head, and [`Head`]
//! computes logits of a few of them on request.

use candle_core::{Result as CandleResult, Tensor};
use q35_architecture::{TextConfig, tensor_table};
use q35_inference::{HiddenStateAt, RecurrentState, RunError, Weights};

use crate::error::run_error;
use crate::loaded::{read_rows, read_tensor};
use crate::ops::{project, rms_norm};
use crate::sequence::PREFILL_CHUNK;
use crate::tap::no_taps;
use crate::{Device, Layer, LayerState, RotaryEmbedding, open_device};

/// Weights of the head per block: few enough that the allocator reuses the memory of the previous block.
const HEAD_BLOCK: usize = 1 << 22;

/// Observer of [`run`].
pub trait LayerwiseObserver {
    /// Returns true if the residual stream of that sequence is requested.
    fn wants_hidden(&self, sequence: usize) -> bool;

    /// Receives the residual stream [tokens, hidden] of a whole sequence at one site, in the order of computation.
    fn hidden(&mut self, sequence: usize, site: HiddenStateAt, rows: &[f32]);

    /// Reports that `done` layers of `of` have been applied.
    fn layers_done(&mut self, done: usize, of: usize);

    /// Returns true to cancel; called before every layer of every sequence.
    fn cancelled(&self) -> bool;
}

/// Results of a sequence.
#[derive(Clone, Debug, Default)]
pub struct SequenceOutput {
    /// Inputs of the head: the states after the final norm, [tokens, hidden].
    pub rows: Vec<f32>,
    /// Recurrent state of every linear-attention layer, in order.
    pub states: Vec<RecurrentState>,
}

/// Evaluates `sequences`, each from its first token.
///
/// # Errors
/// A token outside the vocabulary, a weight that cannot be read, a failure of candle, or cancellation.
pub fn run(
    weights: &dyn Weights,
    device: Device,
    sequences: &[&[u32]],
    observer: &mut dyn LayerwiseObserver,
) -> Result<Vec<SequenceOutput>, RunError> {
    let config = weights.config();
    let vocab_size = config.vocab_size;
    for ids in sequences {
        if let Some(position) = ids.iter().position(|id| *id as usize >= vocab_size) {
            return Err(RunError::Token { id: ids[position], position, vocab_size });
        }
    }
    let device = open_device(device).map_err(|error| load_error(error.into()))?;
    let table = tensor_table(config);
    let mut read = |name: &str| -> Result<Tensor, crate::LoadError> {
        let spec = table.iter().find(|spec| spec.name == name).ok_or_else(|| q35_inference::WeightError {
            name: name.to_owned(),
            message: "not in the table".into(),
        })?;
        read_tensor(weights, spec, &device)
    };
    let mut streams = Vec::with_capacity(sequences.len());
    for (index, ids) in sequences.iter().enumerate() {
        let x = embed(weights, ids, &device)?;
        report_hidden(observer, index, HiddenStateAt::Embedding, &x)?;
        let rotations = (0..ids.len())
            .step_by(PREFILL_CHUNK)
            .map(|start| RotaryEmbedding::new(config, start, PREFILL_CHUNK.min(ids.len() - start), &device))
            .collect::<CandleResult<Vec<_>>>()
            .map_err(run_error)?;
        streams.push(Stream { x, rotations, states: Vec::new() });
    }
    for number in 0..config.num_hidden_layers {
        let layer = Layer::new(config, number, &mut read).map_err(load_error)?;
        for (index, stream) in streams.iter_mut().enumerate() {
            if observer.cancelled() {
                return Err(RunError::Cancelled);
            }
            stream.mix(&layer, config, number, &device).map_err(run_error)?;
            report_hidden(observer, index, HiddenStateAt::AfterAttention(number), &stream.x)?;
        }
        mlp_of_all(&layer, config, &mut streams).map_err(run_error)?;
        for (index, stream) in streams.iter().enumerate() {
            report_hidden(observer, index, HiddenStateAt::AfterMlp(number), &stream.x)?;
        }
        observer.layers_done(number + 1, config.num_hidden_layers);
    }
    let norm = (read("norm.weight").map_err(load_error)? + 1.0).map_err(run_error)?;
    let mut finished = Vec::with_capacity(streams.len());
    for (index, stream) in streams.into_iter().enumerate() {
        let x = rms_norm(&stream.x, &norm, config.rms_norm_eps).map_err(run_error)?;
        report_hidden(observer, index, HiddenStateAt::FinalNorm, &x)?;
        finished.push(SequenceOutput { rows: to_f32_vec(&x).map_err(run_error)?, states: stream.states });
    }
    Ok(finished)
}

/// A sequence during the evaluation.
struct Stream {
    /// The residual stream, [1, tokens, hidden].
    x: Tensor,
    /// Rotary embedding of each prefill chunk.
    rotations: Vec<RotaryEmbedding>,
    states: Vec<RecurrentState>,
}

impl Stream {
    /// Applies a layer's mixer to all tokens, in the prefill chunks of [`crate::sequence`].
    fn mix(
        &mut self,
        layer: &Layer,
        config: &TextConfig,
        number: usize,
        device: &candle_core::Device,
    ) -> CandleResult<()> {
        let tokens = self.x.dim(1)?;
        let mut state = LayerState::empty(config, number, device)?;
        if let LayerState::Full(cache) = &mut state {
            cache.grow(config, 0, tokens, tokens)?;
        }
        let mut chunks = Vec::with_capacity(self.rotations.len());
        for (start, rotation) in (0..tokens).step_by(PREFILL_CHUNK).zip(&self.rotations) {
            let chunk = self.x.narrow(1, start, PREFILL_CHUNK.min(tokens - start))?;
            chunks.push(layer.mix(&chunk, config, rotation, start, &mut state)?);
        }
        self.x = Tensor::cat(&chunks, 1)?;
        if let LayerState::Linear(state) = &state {
            let values = to_f32_vec(&state.recurrent)?;
            self.states.push(RecurrentState { layer: number, values });
        }
        Ok(())
    }
}

/// Applies the MLP to all sequences together, which is possible because it treats tokens independently; so `gemm` packs
/// its matrices once.
fn mlp_of_all(layer: &Layer, config: &TextConfig, streams: &mut [Stream]) -> CandleResult<()> {
    let all: Vec<&Tensor> = streams.iter().map(|stream| &stream.x).collect();
    let all = Tensor::cat(&all, 1)?;
    let tokens = all.dim(1)?;
    let chunks = (0..tokens)
        .step_by(PREFILL_CHUNK)
        .map(|start| {
            layer.mlp(&all.narrow(1, start, PREFILL_CHUNK.min(tokens - start))?, config, &mut no_taps)
        })
        .collect::<CandleResult<Vec<_>>>()?;
    let all = Tensor::cat(&chunks, 1)?;
    let mut start = 0;
    for stream in streams {
        let tokens = stream.x.dim(1)?;
        stream.x = all.narrow(1, start, tokens)?.contiguous()?;
        start += tokens;
    }
    Ok(())
}

/// Looks up the embeddings [1, tokens, hidden].
fn embed(weights: &dyn Weights, ids: &[u32], device: &candle_core::Device) -> Result<Tensor, RunError> {
    let width = weights.config().hidden_size;
    let (mut all, mut row) = (Vec::with_capacity(ids.len() * width), Vec::new());
    for id in ids {
        let at = *id as usize;
        weights
            .read_rows("embed_tokens.weight", at..at + 1, &mut row)
            .map_err(|error| load_error(error.into()))?;
        all.extend_from_slice(&row);
    }
    Tensor::from_vec(all, (1, ids.len(), width), device).map_err(run_error)
}

fn report_hidden(
    observer: &mut dyn LayerwiseObserver,
    sequence: usize,
    site: HiddenStateAt,
    x: &Tensor,
) -> Result<(), RunError> {
    if observer.wants_hidden(sequence) {
        observer.hidden(sequence, site, &to_f32_vec(x).map_err(run_error)?);
    }
    Ok(())
}

fn to_f32_vec(x: &Tensor) -> CandleResult<Vec<f32>> {
    x.flatten_all()?.to_dtype(candle_core::DType::F32)?.to_vec1()
}

fn load_error(error: crate::LoadError) -> RunError {
    RunError::Backend { backend: "candle", message: error.to_string() }
}

/// The language-model head, read block by block on every use.
pub struct Head<'a> {
    weights: &'a dyn Weights,
    device: candle_core::Device,
    block_rows: usize,
}

impl<'a> Head<'a> {
    /// Opens the head of a model: `lm_head`, or the embedding if the two are tied.
    ///
    /// # Errors
    /// The device cannot be used.
    pub fn new(weights: &'a dyn Weights, device: Device) -> Result<Self, RunError> {
        let block_rows = (HEAD_BLOCK / weights.config().hidden_size).max(1);
        Ok(Self {
            weights,
            device: open_device(device).map_err(|error| load_error(error.into()))?,
            block_rows,
        })
    }

    /// Computes logits [n, vocab] of rows [n, hidden] of [`SequenceOutput`].
    ///
    /// # Errors
    /// A weight that cannot be read, or a failure of candle.
    pub fn logits(&self, rows: &[f32]) -> Result<Vec<f32>, RunError> {
        let config = self.weights.config();
        let (width, vocab) = (config.hidden_size, config.vocab_size);
        let count = rows.len() / width;
        let x =
            Tensor::from_slice(&rows[..count * width], (count, width), &self.device).map_err(run_error)?;
        let name = if config.tie_word_embeddings { "embed_tokens.weight" } else { "lm_head.weight" };
        let mut logits = vec![0.0; count * vocab];
        for start in (0..vocab).step_by(self.block_rows) {
            let block = start..(start + self.block_rows).min(vocab);
            let matrix =
                read_rows(self.weights, name, block.clone(), &[width], &self.device).map_err(load_error)?;
            let part = project(&x, &matrix).and_then(|part| to_f32_vec(&part)).map_err(run_error)?;
            for (row, part) in logits.chunks_exact_mut(vocab).zip(part.chunks_exact(block.len())) {
                row[block.clone()].copy_from_slice(part);
            }
        }
        Ok(logits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Reference;
    use q35_inference::{LogitsFor, Model as _, Observer};
    use q35_testkit::TinyCheckpoint;

    /// Logits and hidden states of one sequence.
    #[derive(Default, PartialEq, Debug)]
    struct Recorded {
        logits: Vec<f32>,
        hidden: Vec<(HiddenStateAt, Vec<f32>)>,
    }

    impl Recorded {
        fn add(&mut self, site: HiddenStateAt, rows: &[f32]) {
            match self.hidden.iter_mut().find(|(known, _)| *known == site) {
                Some((_, all)) => all.extend_from_slice(rows),
                None => self.hidden.push((site, rows.to_vec())),
            }
        }
    }

    impl Observer for Recorded {
        fn logits(&mut self, _: usize, row: &[f32]) {
            self.logits.extend_from_slice(row);
        }
        fn wants_hidden(&self) -> bool {
            true
        }
        fn hidden(&mut self, site: HiddenStateAt, _: usize, rows: &[f32]) {
            self.add(site, rows);
        }
    }

    #[derive(Default)]
    struct Recorder {
        recorded: Vec<Recorded>,
        layers: Vec<(usize, usize)>,
        cancelled_after: Option<usize>,
    }

    impl LayerwiseObserver for Recorder {
        fn wants_hidden(&self, _: usize) -> bool {
            true
        }
        fn hidden(&mut self, sequence: usize, site: HiddenStateAt, rows: &[f32]) {
            self.recorded[sequence].add(site, rows);
        }
        fn layers_done(&mut self, done: usize, of: usize) {
            self.layers.push((done, of));
        }
        fn cancelled(&self) -> bool {
            self.cancelled_after.is_some_and(|after| self.layers.len() >= after)
        }
    }

    fn recorder(sequences: usize) -> Recorder {
        Recorder { recorded: (0..sequences).map(|_| Recorded::default()).collect(), ..Recorder::default() }
    }

    fn ids(length: u32, seed: u32) -> Vec<u32> {
        (0..length).map(|i| (i * 31 + seed) % 320).collect()
    }

    #[test]
    fn layers_one_after_the_other_are_the_model_to_the_last_bit() {
        let weights = TinyCheckpoint::new().weights();
        let model = Reference::load(&weights, Device::Cpu).unwrap();
        // Longer than a prefill chunk, a single token, and lengths that fill no chunk.
        let sequences = [ids(300, 1), ids(1, 2), ids(70, 3)];
        let slices: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let mut recorder = recorder(3);
        let finished = run(&weights, Device::Cpu, &slices, &mut recorder).unwrap();
        let head = Head { block_rows: 96, ..Head::new(&weights, Device::Cpu).unwrap() };
        for ((ids, finished), recorded) in sequences.iter().zip(&finished).zip(&mut recorder.recorded) {
            let mut sequence = model.new_sequence(ids.len()).unwrap();
            let mut expected = Recorded::default();
            sequence.extend(ids, LogitsFor::AllTokens, &mut expected).unwrap();
            recorded.logits = head.logits(&finished.rows).unwrap();
            assert_eq!(*recorded, expected, "{} tokens", ids.len());
            assert_eq!(finished.states, sequence.recurrent_states().unwrap());
        }
        assert_eq!(recorder.layers, [(1, 4), (2, 4), (3, 4), (4, 4)]);
    }

    #[test]
    fn logits_of_some_rows_are_those_of_all() {
        let weights = TinyCheckpoint::new().weights();
        let ids = ids(9, 5);
        let finished = &run(&weights, Device::Cpu, &[&ids], &mut recorder(1)).unwrap()[0];
        let head = Head::new(&weights, Device::Cpu).unwrap();
        let (width, vocab) = (weights.config().hidden_size, weights.config().vocab_size);
        let all = head.logits(&finished.rows).unwrap();
        let last = head.logits(&finished.rows[8 * width..]).unwrap();
        assert_eq!(last, all[8 * vocab..]);
    }

    #[test]
    fn it_stops_when_asked_and_refuses_foreign_tokens() {
        let weights = TinyCheckpoint::new().weights();
        let mut recorder = Recorder { cancelled_after: Some(2), ..recorder(1) };
        let error = run(&weights, Device::Cpu, &[&ids(5, 0)], &mut recorder).unwrap_err();
        assert!(matches!(error, RunError::Cancelled), "{error}");
        assert_eq!(recorder.layers.len(), 2);
        let error = run(&weights, Device::Cpu, &[&[1, 320]], &mut Recorder::default()).unwrap_err();
        assert!(matches!(error, RunError::Token { id: 320, position: 1, .. }), "{error}");
    }
}
