//! Whole sequences, layer by layer, with one layer's weights in memory at a time.
//!
//! Who wants the logits of texts that are known from the start does not need the model as a whole: every layer is read,
//! brought to f32, applied to all sequences and given up again. At 0.8 billion weights that is a hundred megabytes
//! instead of three gigabytes, and each weight is read once however many sequences there are. The arithmetic is that of
//! [`crate::Reference`], to the last bit.
//!
//! The head is the largest matrix and its results are larger still. So a run ends with the rows that enter it, and
//! [`Head`] makes logits of a few of them when they are wanted.

use candle_core::{Result as CandleResult, Tensor};
use q35_architecture::{TextConfig, tensor_table};
use q35_inference::{HiddenStateAt, RecurrentState, RunError, Weights};

use crate::full_attention::Rotation;
use crate::layer::no_taps;
use crate::model::read_tensor;
use crate::ops::{project, rms_norm};
use crate::sequence::{PIECE, backend};
use crate::{Device, Layer, LayerState};

/// Numbers of the head's matrix in memory at a time: so few that the allocator keeps the room from block to block.
const HEAD_AT_A_TIME: usize = 1 << 22;

/// Looks on during [`run`].
pub trait Watch {
    /// Whether the residual stream of that sequence is wanted.
    fn wants_hidden(&self, sequence: usize) -> bool;

    /// The residual stream of a whole sequence at one place, in the order of computation: [tokens, hidden].
    fn hidden(&mut self, sequence: usize, site: HiddenStateAt, rows: &[f32]);

    /// So many layers of all have been applied.
    fn layers_done(&mut self, done: usize, of: usize);

    /// Asked before every layer of every sequence.
    fn cancelled(&self) -> bool;
}

/// What is left of a sequence that ran to its end.
#[derive(Clone, Debug, Default)]
pub struct Finished {
    /// [tokens, hidden], after the final norm: what enters the head.
    pub rows: Vec<f32>,
    /// The recurrent state of every linear-attention layer, first to last.
    pub states: Vec<RecurrentState>,
}

/// Runs `sequences`, each from its first token.
///
/// # Errors
/// A token outside the vocabulary, a weight that cannot be read, a failure of candle, or cancellation.
pub fn run(
    weights: &dyn Weights,
    device: Device,
    sequences: &[&[u32]],
    watch: &mut dyn Watch,
) -> Result<Vec<Finished>, RunError> {
    let config = weights.config();
    let vocab_size = config.vocab_size;
    for ids in sequences {
        if let Some(position) = ids.iter().position(|id| *id as usize >= vocab_size) {
            return Err(RunError::Token { id: ids[position], position, vocab_size });
        }
    }
    let device = crate::open_device(device).map_err(|error| loading(error.into()))?;
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
        show(watch, index, HiddenStateAt::Embedding, &x)?;
        let rotations = (0..ids.len())
            .step_by(PIECE)
            .map(|start| Rotation::new(config, start, PIECE.min(ids.len() - start), &device))
            .collect::<CandleResult<Vec<_>>>()
            .map_err(backend)?;
        streams.push(Stream { x, rotations, states: Vec::new() });
    }
    for number in 0..config.num_hidden_layers {
        let layer = Layer::new(config, number, &mut read).map_err(loading)?;
        for (index, stream) in streams.iter_mut().enumerate() {
            if watch.cancelled() {
                return Err(RunError::Cancelled);
            }
            stream.mix(&layer, config, number, &device).map_err(backend)?;
            show(watch, index, HiddenStateAt::AfterAttention(number), &stream.x)?;
        }
        mlp_of_all(&layer, config, &mut streams).map_err(backend)?;
        for (index, stream) in streams.iter().enumerate() {
            show(watch, index, HiddenStateAt::AfterMlp(number), &stream.x)?;
        }
        watch.layers_done(number + 1, config.num_hidden_layers);
    }
    let norm = (read("norm.weight").map_err(loading)? + 1.0).map_err(backend)?;
    let mut finished = Vec::with_capacity(streams.len());
    for (index, stream) in streams.into_iter().enumerate() {
        let x = rms_norm(&stream.x, &norm, config.rms_norm_eps).map_err(backend)?;
        show(watch, index, HiddenStateAt::FinalNorm, &x)?;
        finished.push(Finished { rows: numbers(&x).map_err(backend)?, states: stream.states });
    }
    Ok(finished)
}

/// One sequence under way.
struct Stream {
    /// The residual stream, [1, tokens, hidden].
    x: Tensor,
    /// Of the pieces, in their order.
    rotations: Vec<Rotation>,
    states: Vec<RecurrentState>,
}

impl Stream {
    /// Applies a layer's mixer from the first token to the last, in the pieces of [`crate::sequence`].
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
        let mut pieces = Vec::with_capacity(self.rotations.len());
        for (start, rotation) in (0..tokens).step_by(PIECE).zip(&self.rotations) {
            let piece = self.x.narrow(1, start, PIECE.min(tokens - start))?;
            pieces.push(layer.mix(&piece, config, rotation, start, &mut state)?);
        }
        self.x = Tensor::cat(&pieces, 1)?;
        if let LayerState::Linear(state) = &state {
            let values = numbers(&state.recurrent)?;
            self.states.push(RecurrentState { layer: number, values });
        }
        Ok(())
    }
}

/// The MLP sees rows and not sequences: all go through it together, so that its matrices are packed once.
fn mlp_of_all(layer: &Layer, config: &TextConfig, streams: &mut [Stream]) -> CandleResult<()> {
    let all: Vec<&Tensor> = streams.iter().map(|stream| &stream.x).collect();
    let all = Tensor::cat(&all, 1)?;
    let tokens = all.dim(1)?;
    let pieces = (0..tokens)
        .step_by(PIECE)
        .map(|start| layer.mlp(&all.narrow(1, start, PIECE.min(tokens - start))?, config, &mut no_taps))
        .collect::<CandleResult<Vec<_>>>()?;
    let all = Tensor::cat(&pieces, 1)?;
    let mut start = 0;
    for stream in streams {
        let tokens = stream.x.dim(1)?;
        stream.x = all.narrow(1, start, tokens)?.contiguous()?;
        start += tokens;
    }
    Ok(())
}

/// [1, tokens, hidden].
fn embed(weights: &dyn Weights, ids: &[u32], device: &candle_core::Device) -> Result<Tensor, RunError> {
    let width = weights.config().hidden_size;
    let (mut all, mut row) = (Vec::with_capacity(ids.len() * width), Vec::new());
    for id in ids {
        let at = *id as usize;
        weights
            .read_rows("embed_tokens.weight", at..at + 1, &mut row)
            .map_err(|error| loading(error.into()))?;
        all.extend_from_slice(&row);
    }
    Tensor::from_vec(all, (1, ids.len(), width), device).map_err(backend)
}

fn show(watch: &mut dyn Watch, sequence: usize, site: HiddenStateAt, x: &Tensor) -> Result<(), RunError> {
    if watch.wants_hidden(sequence) {
        watch.hidden(sequence, site, &numbers(x).map_err(backend)?);
    }
    Ok(())
}

fn numbers(x: &Tensor) -> CandleResult<Vec<f32>> {
    x.flatten_all()?.to_dtype(candle_core::DType::F32)?.to_vec1()
}

fn loading(error: crate::LoadError) -> RunError {
    RunError::Backend { backend: "candle", message: error.to_string() }
}

/// The matrix that turns rows into logits, read block by block whenever it is used.
pub struct Head<'a> {
    weights: &'a dyn Weights,
    device: candle_core::Device,
    block_rows: usize,
}

impl<'a> Head<'a> {
    /// The head of that model: its own, or the embedding where the two are tied.
    ///
    /// # Errors
    /// The device cannot be used.
    pub fn new(weights: &'a dyn Weights, device: Device) -> Result<Self, RunError> {
        let block_rows = (HEAD_AT_A_TIME / weights.config().hidden_size).max(1);
        Ok(Self {
            weights,
            device: crate::open_device(device).map_err(|error| loading(error.into()))?,
            block_rows,
        })
    }

    /// The logits [n, vocab] of `rows` [n, hidden], of [`Finished`].
    ///
    /// # Errors
    /// A weight that cannot be read, or a failure of candle.
    pub fn logits(&self, rows: &[f32]) -> Result<Vec<f32>, RunError> {
        let config = self.weights.config();
        let (width, vocab) = (config.hidden_size, config.vocab_size);
        let count = rows.len() / width;
        let x = Tensor::from_slice(&rows[..count * width], (count, width), &self.device).map_err(backend)?;
        let name = if config.tie_word_embeddings { "embed_tokens.weight" } else { "lm_head.weight" };
        let mut logits = vec![0.0; count * vocab];
        for start in (0..vocab).step_by(self.block_rows) {
            let block = start..(start + self.block_rows).min(vocab);
            let matrix = crate::model::read_rows(self.weights, name, block.clone(), &[width], &self.device)
                .map_err(loading)?;
            let part = project(&x, &matrix).and_then(|part| numbers(&part)).map_err(backend)?;
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

    /// Logits and hidden states as they come, of one sequence.
    #[derive(Default, PartialEq, Debug)]
    struct Seen {
        logits: Vec<f32>,
        hidden: Vec<(HiddenStateAt, Vec<f32>)>,
    }

    impl Seen {
        fn add(&mut self, site: HiddenStateAt, rows: &[f32]) {
            match self.hidden.iter_mut().find(|(known, _)| *known == site) {
                Some((_, all)) => all.extend_from_slice(rows),
                None => self.hidden.push((site, rows.to_vec())),
            }
        }
    }

    impl Observer for Seen {
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
    struct Looker {
        seen: Vec<Seen>,
        layers: Vec<(usize, usize)>,
        cancelled_after: Option<usize>,
    }

    impl Watch for Looker {
        fn wants_hidden(&self, _: usize) -> bool {
            true
        }
        fn hidden(&mut self, sequence: usize, site: HiddenStateAt, rows: &[f32]) {
            self.seen[sequence].add(site, rows);
        }
        fn layers_done(&mut self, done: usize, of: usize) {
            self.layers.push((done, of));
        }
        fn cancelled(&self) -> bool {
            self.cancelled_after.is_some_and(|after| self.layers.len() >= after)
        }
    }

    fn looker(sequences: usize) -> Looker {
        Looker { seen: (0..sequences).map(|_| Seen::default()).collect(), ..Looker::default() }
    }

    fn ids(length: u32, seed: u32) -> Vec<u32> {
        (0..length).map(|i| (i * 31 + seed) % 320).collect()
    }

    #[test]
    fn layers_one_after_the_other_are_the_model_to_the_last_bit() {
        let weights = TinyCheckpoint::new().weights();
        let model = Reference::load(&weights, Device::Cpu).unwrap();
        // Longer than a piece, a single token, and lengths that fill no chunk.
        let sequences = [ids(300, 1), ids(1, 2), ids(70, 3)];
        let slices: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let mut looker = looker(3);
        let finished = run(&weights, Device::Cpu, &slices, &mut looker).unwrap();
        let head = Head { block_rows: 96, ..Head::new(&weights, Device::Cpu).unwrap() };
        for ((ids, finished), seen) in sequences.iter().zip(&finished).zip(&mut looker.seen) {
            let mut sequence = model.new_sequence(ids.len()).unwrap();
            let mut expected = Seen::default();
            sequence.extend(ids, LogitsFor::AllTokens, &mut expected).unwrap();
            seen.logits = head.logits(&finished.rows).unwrap();
            assert_eq!(*seen, expected, "{} tokens", ids.len());
            assert_eq!(finished.states, sequence.recurrent_states().unwrap());
        }
        assert_eq!(looker.layers, [(1, 4), (2, 4), (3, 4), (4, 4)]);
    }

    #[test]
    fn logits_of_some_rows_are_those_of_all() {
        let weights = TinyCheckpoint::new().weights();
        let ids = ids(9, 5);
        let finished = &run(&weights, Device::Cpu, &[&ids], &mut looker(1)).unwrap()[0];
        let head = Head::new(&weights, Device::Cpu).unwrap();
        let (width, vocab) = (weights.config().hidden_size, weights.config().vocab_size);
        let all = head.logits(&finished.rows).unwrap();
        let last = head.logits(&finished.rows[8 * width..]).unwrap();
        assert_eq!(last, all[8 * vocab..]);
    }

    #[test]
    fn it_stops_when_asked_and_refuses_foreign_tokens() {
        let weights = TinyCheckpoint::new().weights();
        let mut looker = Looker { cancelled_after: Some(2), ..looker(1) };
        let error = run(&weights, Device::Cpu, &[&ids(5, 0)], &mut looker).unwrap_err();
        assert!(matches!(error, RunError::Cancelled), "{error}");
        assert_eq!(looker.layers.len(), 2);
        let error = run(&weights, Device::Cpu, &[&[1, 320]], &mut Looker::default()).unwrap_err();
        assert!(matches!(error, RunError::Token { id: 320, position: 1, .. }), "{error}");
    }
}
