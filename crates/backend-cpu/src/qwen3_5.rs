//! The graph of Qwen3.5: all layers and the head over one chunk of tokens.

use q35_architecture::TextConfig;
use q35_inference::{HiddenStateAt, LogitsFor, Observer};
use q35_kernels::{
    BLOCKS_PER_TASK, BlockSum, BlockWeights, ColumnBlock, DeltaHead, DeltaLayer, KV_BLOCK, KvCache,
    PackedActivations, Product, Rotation, accumulate_blocks, add_assign, attend, delta_head, multiply,
    norm_and_rotate, normalize_blocks, reduce_blocks, rms_norm, score_blocks, sigmoid_multiply,
    silu_multiply,
};

use crate::shared::Shared;
use crate::state::{LayerState, State};
use crate::weights::{FullWeights, LayerWeights, LinearWeights, MixerWeights, StoredMatrix, delta_shape};

/// The forward pass with its scratch buffers, reused from chunk to chunk. Letters: T tokens of a chunk, H hidden size.
#[derive(Debug, Default)]
pub(crate) struct Forward {
    /// The residual stream [T, H].
    hidden: Vec<f32>,
    /// RMS norm of it [T, H].
    normed: Vec<f32>,
    /// Output of a block, to be added to it [T, H].
    update: Vec<f32>,
    /// Outputs of projections. Linear attention: qkv, z, b, a; full attention: q with gates, k, v; MLP: gate, up.
    projected: [Vec<f32>; 4],
    /// Queries, normed and rotated [T, query heads * head_dim].
    queries: Vec<f32>,
    /// Outputs of an attention block before its output projection.
    mixed: Vec<f32>,
    activations: PackedActivations,
    /// [key/value heads][KV blocks]
    block_weights: Vec<BlockWeights>,
    /// [key/value heads][tasks]
    block_sums: Vec<BlockSum>,
    /// Logits of up to [`LOGIT_TOKENS`] tokens [T, vocab].
    logits: Vec<f32>,
}

/// Tokens whose logits are computed at a time.
const LOGIT_TOKENS: usize = 8;

impl Forward {
    pub(crate) fn size_bytes(&self) -> usize {
        let vectors = [
            &self.hidden,
            &self.normed,
            &self.update,
            &self.queries,
            &self.mixed,
            &self.logits,
            &self.projected[0],
            &self.projected[1],
            &self.projected[2],
            &self.projected[3],
        ];
        vectors.into_iter().map(|vector| 4 * vector.capacity()).sum::<usize>() + self.activations.size_bytes()
    }

    /// Computes the tokens `ids` at `position`, updates the state, and shows the observer hidden states and logits.
    #[expect(clippy::too_many_arguments, reason = "one call site, and the arguments have nothing in common")]
    pub(crate) fn run_chunk(
        &mut self,
        shared: &Shared,
        state: &mut State,
        position: usize,
        ids: &[u32],
        logits_for: LogitsFor,
        wants_hidden: bool,
        observer: &mut dyn Observer,
    ) {
        let State { layers, arena, .. } = state;
        let (config, weights) = (shared.config(), &shared.weights);
        let width = config.hidden_size;
        let embedding = weights.embedding.matrix(&shared.directory);
        self.hidden.resize(ids.len() * width, 0.0);
        for (&id, row) in ids.iter().zip(self.hidden.chunks_exact_mut(width)) {
            embedding.row(id as usize, row);
        }
        let mut show = |site, hidden: &[f32]| {
            if wants_hidden {
                observer.hidden(site, position, hidden);
            }
        };
        show(HiddenStateAt::Embedding, &self.hidden);
        let rotations: Vec<Rotation> = (position..position + ids.len())
            .map(|position| Rotation::at(position, config.rotary_dim(), config.rope_theta))
            .collect();
        for (index, (layer, state)) in weights.layers.iter().zip(layers).enumerate() {
            self.norm(shared, &layer.input_norm);
            match (&layer.mixer, state) {
                (MixerWeights::Linear(weights), LayerState::Linear { convolution, recurrent }) => {
                    self.linear_attention(shared, weights, convolution, recurrent);
                }
                (MixerWeights::Full(weights), LayerState::Full(caches)) => {
                    for cache in &mut *caches {
                        cache.reserve(position + ids.len(), arena);
                    }
                    self.full_attention(shared, weights, caches, position, &rotations);
                }
                _ => unreachable!("weights and state are made from one configuration"),
            }
            self.add_update(shared);
            show(HiddenStateAt::AfterAttention(index), &self.hidden);
            self.norm(shared, &layer.post_norm);
            self.mlp(shared, layer);
            self.add_update(shared);
            show(HiddenStateAt::AfterMlp(index), &self.hidden);
        }
        if wants_hidden {
            self.norm(shared, &weights.norm);
            show(HiddenStateAt::FinalNorm, &self.normed);
        }
        let first = match logits_for {
            LogitsFor::None => return,
            LogitsFor::LastToken => ids.len().saturating_sub(1),
            LogitsFor::AllTokens => 0,
        };
        self.hidden.drain(..first * width);
        self.norm(shared, &weights.norm);
        self.head(shared, position + first, observer);
    }

    fn norm(&mut self, shared: &Shared, weight: &[f32]) {
        let Self { hidden, normed, .. } = self;
        normed.resize(hidden.len(), 0.0);
        let (isa, eps) = (shared.isa, shared.config().rms_norm_eps as f32);
        if hidden.len() == weight.len() {
            rms_norm(isa, hidden, weight, eps, normed);
        } else {
            let mut rows: Vec<_> = hidden.chunks(weight.len()).zip(normed.chunks_mut(weight.len())).collect();
            shared.pool.for_each(&mut rows, |(x, out)| rms_norm(isa, x, weight, eps, out));
        }
    }

    fn add_update(&mut self, shared: &Shared) {
        add_assign(shared.isa, &mut self.hidden, &self.update);
    }

    fn linear_attention(
        &mut self,
        shared: &Shared,
        weights: &LinearWeights,
        convolution: &mut [f32],
        recurrent: &mut [f32],
    ) {
        let config = shared.config();
        let shape = delta_shape(config);
        let Self { normed, projected: [qkv, z, b, a], mixed, activations, update, .. } = self;
        project(
            shared,
            activations,
            normed,
            config.hidden_size,
            [(&weights.qkv, &mut *qkv), (&weights.z, &mut *z), (&weights.b, &mut *b), (&weights.a, &mut *a)],
        );
        let layer = DeltaLayer {
            shape,
            taps: &weights.taps,
            decay: &weights.decay,
            step_bias: &weights.step_bias,
            norm: &weights.norm,
            norm_eps: config.rms_norm_eps as f32,
            qkv,
            z,
            b,
            a,
        };
        mixed.resize(z.len(), 0.0);
        let columns = ColumnBlock::split(
            mixed,
            config.linear_value_dim(),
            shape.value_heads_per_key_head() * shape.value_width,
        );
        let states = convolution
            .chunks_exact_mut(shape.convolution_state())
            .zip(recurrent.chunks_exact_mut(shape.value_heads_per_key_head() * shape.recurrent_state()));
        let mut heads: Vec<DeltaHead<'_>> = states
            .zip(columns)
            .enumerate()
            .map(|(head, ((convolution, recurrent), out))| DeltaHead { head, convolution, recurrent, out })
            .collect();
        shared.pool.for_each(&mut heads, |head| delta_head(shared.isa, &layer, head));
        project(shared, activations, mixed, config.linear_value_dim(), [(&weights.out, update)]);
    }

    fn full_attention(
        &mut self,
        shared: &Shared,
        weights: &FullWeights,
        caches: &mut [KvCache],
        position: usize,
        rotations: &[Rotation],
    ) {
        let (config, isa) = (shared.config(), shared.isa);
        let Self {
            normed,
            projected: [q, k, v, _],
            queries,
            mixed,
            activations,
            update,
            block_weights,
            block_sums,
            ..
        } = self;
        project(
            shared,
            activations,
            normed,
            config.hidden_size,
            [(&weights.q, &mut *q), (&weights.k, &mut *k), (&weights.v, &mut *v)],
        );
        let heads = Heads::of(config);
        queries.resize(rotations.len() * heads.query_width(), 0.0);
        mixed.resize(queries.len(), 0.0);
        let columns = ColumnBlock::split(queries, heads.query_width(), heads.shared_width());
        let mut writers: Vec<_> = caches.iter_mut().zip(columns).enumerate().collect();
        let eps = config.rms_norm_eps as f32;
        shared.pool.for_each(&mut writers, |(head, (cache, queries))| {
            let mut key = vec![0.0; heads.width];
            for (t, rotation) in rotations.iter().enumerate() {
                let from = (t * heads.kv_heads + *head) * heads.width;
                norm_and_rotate(isa, &k[from..from + heads.width], &weights.k_norm, eps, rotation, &mut key);
                cache.write(position + t, &key, &v[from..from + heads.width]);
                let gated = &q[t * 2 * heads.query_width()..][..2 * heads.query_width()];
                for (index, query) in queries.row(t).chunks_exact_mut(heads.width).enumerate() {
                    let (raw, _) = heads.query_and_gate(gated, *head, index);
                    norm_and_rotate(isa, raw, &weights.q_norm, eps, rotation, query);
                }
            }
        });
        let caches = &*caches;
        if rotations.len() == 1 {
            let count = (position + 1).div_ceil(KV_BLOCK);
            let queries = |head: usize| &queries[head * heads.shared_width()..][..heads.shared_width()];
            // Consecutive blocks per task, so that a task can prefetch its next block.
            let share = count * heads.kv_heads / (4 * shared.pool.threads());
            let task_blocks = 1 << share.clamp(1, BLOCKS_PER_TASK).ilog2();
            let tasks = count.div_ceil(task_blocks);
            block_weights.resize(count * heads.kv_heads, BlockWeights::default());
            let mut work: Vec<_> = block_weights
                .chunks_mut(count)
                .enumerate()
                .flat_map(|(head, weights)| {
                    weights.chunks_mut(task_blocks).enumerate().map(move |task| (head, task))
                })
                .collect();
            shared.pool.for_each(&mut work, |(head, (task, weights))| {
                score_blocks(isa, &caches[*head], position + 1, queries(*head), *task * task_blocks, weights);
            });
            block_weights.chunks_mut(count).for_each(normalize_blocks);
            block_sums.resize(tasks * heads.kv_heads, BlockSum::new());
            let mut work: Vec<_> = block_sums.iter_mut().enumerate().collect();
            shared.pool.for_each(&mut work, |(index, sum)| {
                let (head, first) = (*index / tasks, *index % tasks * task_blocks);
                let blocks = first..count.min(first + task_blocks);
                accumulate_blocks(
                    isa,
                    &caches[head],
                    position + 1,
                    blocks,
                    &block_weights[head * count..][..count],
                    sum,
                );
            });
            let outs = mixed.chunks_exact_mut(heads.shared_width()).zip(block_sums.chunks_exact_mut(tasks));
            let mut outs: Vec<_> = outs.enumerate().collect();
            shared.pool.for_each(&mut outs, |(head, (out, sums))| {
                reduce_blocks(isa, sums, out);
                heads.gate(isa, q, *head, out);
            });
        } else {
            let mut work: Vec<_> = mixed
                .chunks_exact_mut(heads.shared_width())
                .zip(queries.chunks_exact(heads.shared_width()))
                .enumerate()
                .collect();
            shared.pool.for_each(&mut work, |(index, (out, queries))| {
                let (t, head) = (*index / heads.kv_heads, *index % heads.kv_heads);
                attend(isa, &caches[head], position + t + 1, queries, out);
                heads.gate(isa, &q[t * 2 * heads.query_width()..][..2 * heads.query_width()], head, out);
            });
        }
        project(shared, activations, mixed, heads.query_width(), [(&weights.out, update)]);
    }

    fn mlp(&mut self, shared: &Shared, layer: &LayerWeights) {
        let config = shared.config();
        let Self { normed, projected: [gate, up, ..], activations, update, .. } = self;
        let width = config.intermediate_size;
        project(
            shared,
            activations,
            normed,
            config.hidden_size,
            [(&layer.gate, &mut *gate), (&layer.up, &mut *up)],
        );
        let mut rows: Vec<_> = gate.chunks_mut(width).zip(up.chunks(width)).collect();
        shared.pool.for_each(&mut rows, |(gate, up)| silu_multiply(shared.isa, gate, up));
        project(shared, activations, gate, width, [(&layer.down, update)]);
    }

    /// Computes the logits of the normed tokens, the first of which is at `position`.
    fn head(&mut self, shared: &Shared, position: usize, observer: &mut dyn Observer) {
        let Self { normed, activations, logits, .. } = self;
        let config = shared.config();
        let mut position = position;
        for tokens in normed.chunks(LOGIT_TOKENS * config.hidden_size) {
            project(shared, activations, tokens, config.hidden_size, [(shared.weights.head(), &mut *logits)]);
            for logits in logits.chunks_exact(config.vocab_size) {
                observer.logits(position, logits);
                position += 1;
            }
        }
    }
}

/// Computes several products of the same activations `x` [T, columns]; each output is resized to [T, rows].
fn project<const N: usize>(
    shared: &Shared,
    activations: &mut PackedActivations,
    x: &[f32],
    columns: usize,
    outputs: [(&StoredMatrix, &mut Vec<f32>); N],
) {
    let tokens = x.len() / columns;
    let mut matrices = outputs.map(|(stored, out)| (stored.matrix(&shared.directory), out));
    activations.pack(
        shared.isa,
        &shared.pool,
        shared.mode,
        x,
        columns,
        matrices.iter().map(|(matrix, _)| matrix),
    );
    let mut products = matrices.each_mut().map(|(matrix, out)| {
        out.resize(tokens * matrix.rows(), 0.0);
        Product { matrix, out: &mut out[..] }
    });
    multiply(shared.isa, &shared.pool, shared.mode, activations, &mut products);
}

/// Grouped-query attention: the query heads of each key/value head.
#[derive(Clone, Copy)]
struct Heads {
    /// head_dim
    width: usize,
    /// Number of key/value heads, each with a cache.
    kv_heads: usize,
    /// Number of query heads per key/value head.
    queries_per_kv: usize,
}

impl Heads {
    fn of(config: &TextConfig) -> Self {
        let kv_heads = config.num_key_value_heads;
        Self { width: config.head_dim, kv_heads, queries_per_kv: config.num_attention_heads / kv_heads }
    }

    /// Width of all query heads.
    fn query_width(self) -> usize {
        self.kv_heads * self.shared_width()
    }

    /// Width of the query heads of one key/value head.
    fn shared_width(self) -> usize {
        self.queries_per_kv * self.width
    }

    /// Query and gate of query head `index` of a key/value head in a token's output of q_proj, which holds them head by head.
    fn query_and_gate(self, q: &[f32], kv_head: usize, index: usize) -> (&[f32], &[f32]) {
        q[(kv_head * self.queries_per_kv + index) * 2 * self.width..][..2 * self.width].split_at(self.width)
    }

    /// Multiplies the outputs of a key/value head's query heads by the sigmoid of their gates.
    fn gate(self, isa: q35_kernels::Isa, q: &[f32], kv_head: usize, out: &mut [f32]) {
        for (index, out) in out.chunks_exact_mut(self.width).enumerate() {
            sigmoid_multiply(isa, out, self.query_and_gate(q, kv_head, index).1);
        }
    }
}
