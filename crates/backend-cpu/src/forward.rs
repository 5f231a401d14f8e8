//! The layers, over one piece of tokens.

use q35_architecture::TextConfig;
use q35_inference::{HiddenStateAt, LogitsFor, Observer};
use q35_kernels::{
    ColumnBlock, DeltaHead, DeltaLayer, HeadCache, Inputs, Product, RUN, Rotation, SPAN, SpanSum,
    SpanWeights, add_assign, attend, delta_head, join_spans, multiply, norm_and_rotate, rms_norm,
    settle_spans, sigmoid_multiply, silu_multiply, sum_spans, weigh_spans,
};

use crate::model::Shared;
use crate::state::{LayerState, State};
use crate::weights::{FullWeights, LayerWeights, LinearWeights, MixerWeights, StoredMatrix, delta_shape};

/// Work space, kept from piece to piece. Letters: T tokens of a piece, H hidden size.
#[derive(Debug, Default)]
pub(crate) struct Forward {
    /// The residual stream [T, H].
    hidden: Vec<f32>,
    /// Its norm [T, H].
    normed: Vec<f32>,
    /// What a block adds to it [T, H].
    update: Vec<f32>,
    /// Outputs of projections: qkv or q and gates; z or k; b or v; a; MLP gate; MLP up.
    projected: [Vec<f32>; 4],
    /// Queries, normed and rotated [T, query heads * head width].
    queries: Vec<f32>,
    /// Outputs of a mixer before its last projection.
    mixed: Vec<f32>,
    inputs: Inputs,
    span_weights: Vec<SpanWeights>,
    span_sums: Vec<SpanSum>,
    /// Logits of some tokens.
    logits: Vec<f32>,
}

/// Rows of logits computed at a time.
const LOGIT_ROWS: usize = 8;

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
        vectors.into_iter().map(|vector| 4 * vector.capacity()).sum::<usize>() + self.inputs.size_bytes()
    }

    /// Computes `ids` at `position`, moving the state on.
    #[expect(clippy::too_many_arguments, reason = "one call site, and every argument is something else")]
    pub(crate) fn piece(
        &mut self,
        shared: &Shared,
        state: &mut State,
        position: usize,
        ids: &[u32],
        rows: LogitsFor,
        wants_hidden: bool,
        observer: &mut dyn Observer,
    ) {
        let State { layers, pages, .. } = state;
        let (config, weights) = (shared.config(), &shared.weights);
        let width = config.hidden_size;
        let embedding = weights.embedding.of(&shared.directory);
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
                        cache.reserve(position + ids.len(), pages);
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
        let first = match rows {
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
        let Self { normed, projected: [qkv, z, b, a], mixed, inputs, update, .. } = self;
        project(
            shared,
            inputs,
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
        let columns =
            ColumnBlock::split(mixed, config.linear_value_dim(), shape.served() * shape.value_width);
        let states = convolution
            .chunks_exact_mut(shape.convolution_state())
            .zip(recurrent.chunks_exact_mut(shape.served() * shape.recurrent_state()));
        let mut heads: Vec<DeltaHead<'_>> = states
            .zip(columns)
            .enumerate()
            .map(|(head, ((convolution, recurrent), out))| DeltaHead { head, convolution, recurrent, out })
            .collect();
        shared.pool.for_each(&mut heads, |head| delta_head(shared.isa, &layer, head));
        project(shared, inputs, mixed, config.linear_value_dim(), [(&weights.out, update)]);
    }

    fn full_attention(
        &mut self,
        shared: &Shared,
        weights: &FullWeights,
        caches: &mut [HeadCache],
        position: usize,
        rotations: &[Rotation],
    ) {
        let (config, isa) = (shared.config(), shared.isa);
        let Self {
            normed,
            projected: [q, k, v, _],
            queries,
            mixed,
            inputs,
            update,
            span_weights,
            span_sums,
            ..
        } = self;
        project(
            shared,
            inputs,
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
                let from = (t * heads.caches + *head) * heads.width;
                norm_and_rotate(isa, &k[from..from + heads.width], &weights.k_norm, eps, rotation, &mut key);
                cache.write(position + t, &key, &v[from..from + heads.width]);
                let gated = &q[t * 2 * heads.query_width()..][..2 * heads.query_width()];
                for (which, query) in queries.row(t).chunks_exact_mut(heads.width).enumerate() {
                    let (raw, _) = heads.query_and_gate(gated, *head, which);
                    norm_and_rotate(isa, raw, &weights.q_norm, eps, rotation, query);
                }
            }
        });
        let caches = &*caches;
        if rotations.len() == 1 {
            let count = (position + 1).div_ceil(SPAN);
            let queries = |head: usize| &queries[head * heads.shared_width()..][..heads.shared_width()];
            // Neighbours together, so that a thread knows what it needs next.
            let share = count * heads.caches / (4 * shared.pool.threads());
            let together = 1 << share.clamp(1, RUN).ilog2();
            let runs = count.div_ceil(together);
            span_weights.resize(count * heads.caches, SpanWeights::default());
            let mut work: Vec<_> = span_weights
                .chunks_mut(count)
                .enumerate()
                .flat_map(|(head, weights)| {
                    weights.chunks_mut(together).enumerate().map(move |run| (head, run))
                })
                .collect();
            shared.pool.for_each(&mut work, |(head, (run, weights))| {
                weigh_spans(isa, &caches[*head], position + 1, queries(*head), *run * together, weights);
            });
            span_weights.chunks_mut(count).for_each(settle_spans);
            span_sums.resize(runs * heads.caches, SpanSum::new());
            let mut work: Vec<_> = span_sums.iter_mut().enumerate().collect();
            shared.pool.for_each(&mut work, |(index, sum)| {
                let (head, first) = (*index / runs, *index % runs * together);
                let spans = first..count.min(first + together);
                sum_spans(
                    isa,
                    &caches[head],
                    position + 1,
                    spans,
                    &span_weights[head * count..][..count],
                    sum,
                );
            });
            let outs = mixed.chunks_exact_mut(heads.shared_width()).zip(span_sums.chunks_exact_mut(runs));
            let mut outs: Vec<_> = outs.enumerate().collect();
            shared.pool.for_each(&mut outs, |(head, (out, sums))| {
                join_spans(isa, sums, out);
                heads.gate(isa, q, *head, out);
            });
        } else {
            let mut work: Vec<_> = mixed
                .chunks_exact_mut(heads.shared_width())
                .zip(queries.chunks_exact(heads.shared_width()))
                .enumerate()
                .collect();
            shared.pool.for_each(&mut work, |(index, (out, queries))| {
                let (t, head) = (*index / heads.caches, *index % heads.caches);
                attend(isa, &caches[head], position + t + 1, queries, out);
                heads.gate(isa, &q[t * 2 * heads.query_width()..][..2 * heads.query_width()], head, out);
            });
        }
        project(shared, inputs, mixed, heads.query_width(), [(&weights.out, update)]);
    }

    fn mlp(&mut self, shared: &Shared, layer: &LayerWeights) {
        let config = shared.config();
        let Self { normed, projected: [gate, up, ..], inputs, update, .. } = self;
        let width = config.intermediate_size;
        project(
            shared,
            inputs,
            normed,
            config.hidden_size,
            [(&layer.gate, &mut *gate), (&layer.up, &mut *up)],
        );
        let mut rows: Vec<_> = gate.chunks_mut(width).zip(up.chunks(width)).collect();
        shared.pool.for_each(&mut rows, |(gate, up)| silu_multiply(shared.isa, gate, up));
        project(shared, inputs, gate, width, [(&layer.down, update)]);
    }

    /// Logits of the normed rows, the first of which is of the token at `position`.
    fn head(&mut self, shared: &Shared, position: usize, observer: &mut dyn Observer) {
        let Self { normed, inputs, logits, .. } = self;
        let config = shared.config();
        let mut position = position;
        for rows in normed.chunks(LOGIT_ROWS * config.hidden_size) {
            project(shared, inputs, rows, config.hidden_size, [(shared.weights.head(), &mut *logits)]);
            for row in logits.chunks_exact(config.vocab_size) {
                observer.logits(position, row);
                position += 1;
            }
        }
    }
}

/// Several products of the same activations `x` [T, columns], each output resized to its [T, rows].
fn project<const N: usize>(
    shared: &Shared,
    inputs: &mut Inputs,
    x: &[f32],
    columns: usize,
    outputs: [(&StoredMatrix, &mut Vec<f32>); N],
) {
    let tokens = x.len() / columns;
    let mut parts = outputs.map(|(stored, out)| (stored.of(&shared.directory), out));
    inputs.prepare(shared.isa, &shared.pool, shared.mode, x, columns, parts.iter().map(|(matrix, _)| matrix));
    let mut products = parts.each_mut().map(|(matrix, out)| {
        out.resize(tokens * matrix.rows(), 0.0);
        Product { matrix, out: &mut out[..] }
    });
    multiply(shared.isa, &shared.pool, shared.mode, inputs, &mut products);
}

/// How query heads share key/value heads.
#[derive(Clone, Copy)]
struct Heads {
    width: usize,
    caches: usize,
    sharing: usize,
}

impl Heads {
    fn of(config: &TextConfig) -> Self {
        let caches = config.num_key_value_heads;
        Self { width: config.head_dim, caches, sharing: config.num_attention_heads / caches }
    }

    /// Width of all queries.
    fn query_width(self) -> usize {
        self.caches * self.shared_width()
    }

    /// Width of the queries that share a key/value head.
    fn shared_width(self) -> usize {
        self.sharing * self.width
    }

    /// A head's query and gate in a token's row of q_proj: they lie one after the other, head by head.
    fn query_and_gate(self, row: &[f32], cache: usize, which: usize) -> (&[f32], &[f32]) {
        row[(cache * self.sharing + which) * 2 * self.width..][..2 * self.width].split_at(self.width)
    }

    /// Applies a token's gates to the outputs of the queries that share a key/value head.
    fn gate(self, isa: q35_kernels::Isa, row: &[f32], cache: usize, out: &mut [f32]) {
        for (which, out) in out.chunks_exact_mut(self.width).enumerate() {
            sigmoid_multiply(isa, out, self.query_and_gate(row, cache, which).1);
        }
    }
}
