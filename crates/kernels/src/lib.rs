//! CPU arithmetic of the model on plain slices: packed-weight products, norms, convolution, delta rule, attention,
//! and the thread pool that runs them.
//!
//! Knows nothing of files, tensors by name, or models.
//!
//! # What was tried, and what it gave
//!
//! On Zen 4 with two threads and the 0.8B shape unless said otherwise; `benches/real_sizes.rs` has the pieces.
//!
//! - Activations of eight bits, as llama.cpp has them: mean KL to the exact mode 2e-2 on random weights and 3e-3 on
//!   q35-nano, and no single projection is to blame. Two halves of eight: 1.2e-5. Prefill pays for it with half of the
//!   peak of the dot-product instructions; decode waits for memory anyway.
//! - Three products of bytes instead of four where codes are nibbles, for activations of twelve bits (pairs, see
//!   `halves`): a product of 64 tokens takes 0.82 of its time on AVX-512, prefill as a whole 0.85; one token's from the
//!   caches 0.89, decode as a whole 0.95 with one thread and the same with two. Mean KL to the exact mode 1.4e-4 on
//!   random weights (1.2e-5 before); on q35-nano as before, where the cache's eight bits decide. AVX2 and NEON compute
//!   the same numbers from whole activations or halves: three products would save them nothing.
//! - Tokens in tiles as many at a time as have their sums in registers, from the outside in: with sums of eight tokens
//!   in memory while four are multiplied the above gave half.
//! - Tiles taken apart by vectors instead of byte by byte, and sums over lanes shared by sixteen rows: prefill 1.35
//!   times as fast. A tile then runs at three quarters of its peak; the rest of prefill is the delta rule, attention
//!   and preparing activations.
//! - Prefetch in decode: every line, 4096 bytes ahead, into the second-level cache was best. None, one line in eight,
//!   or into the first level were slower: the hardware's own prefetch stops at each page.
//! - Two rows of a decode product at a time: no gain, the second row's sums spill out of the registers.
//! - The delta rule in chunks by matrix products: a third cheaper in prefill, but then results depend on how a prompt
//!   is cut; kept token by token.
//! - Workers that watch 30 microseconds for the next region before they sleep: shorter watches wake too often in the
//!   hundred regions of a decode step, longer ones burn a core between replies.
//! - AVX2, whose products of bytes overflow sixteen bits: codes and activations widened to sixteen bits, both halves of
//!   an activation at once, instead of each half by itself; sums of nibbles added up before they are widened. One
//!   thread of a Zen 2: decode INT4 1.23 and INT8 1.7 times as fast, prefill 1.34 and 1.82, attention over 8,192
//!   positions 1.7.
//! - Attention's values once for four query heads instead of once for each: 3 % on AVX2.
//! - Buffers that begin at cache lines, on Zen 5: decode 1.2 times as fast with one thread and 1.14 with
//!   two where the allocator had placed them elsewhere; exact decode 1.3.
//! - In tiles, codes widened to sixteen bits and whole activations instead of two halves of eight: AVX2 takes 0.64 of the
//!   time before. On AVX-512 (Zen 5) the innermost loop came to nine tenths of its peak, with two tiles that share each
//!   activation, and prefill as a whole gained a tenth: the rest of a tile's time is scaling, and taking codes apart.
//! - Codes asked for into the first-level cache on AVX-512: 5 % of decode on Zen 5 against the second level, both 4 KB
//!   ahead; see Zen 4 below for both.
//! - Attention's next block asked for early: 2 % at 8,192 tokens.
//! - The matrix unit of Intel's servers (AMX) for prefill, on Emerald Rapids: a product of 64 tokens takes 0.62 of its
//!   time with AVX-512, prefill as a whole 0.6 to 0.7. A third of that is the unit's own work, the rest is scaling,
//!   sums in their order, and taking codes apart.
//! - Keys of the cache laid out as values are, sixteen positions in a vector, so that no sum over lanes remains, two such
//!   vectors to each repeated query, spans in runs whose next lines are asked for early, and spans joined by vectors: the
//!   attention of a decode step from the second-level cache takes 0.60 of its time on Emerald Rapids (AVX2: 0.73), and
//!   reads memory as fast as it gives. At 8,192 tokens decode has 0.89 of its speed at 128 instead of 0.86, which is
//!   what the bytes of weights, states and cache allow.
//! - For that as well: the two vectors of a pair side by side in the cache instead of apart (a tenth less from the
//!   caches, 0.88 at 8,192 tokens: memory prefers two streams), lines asked for into the second-level cache 64 KB ahead
//!   (nothing), values of six bits (the fast mode's KL from 3e-5 to 8e-5 on q35-nano for 1 % of speed).
//! - AVX2 again, on Zen 3: activations joined to sixteen bits when they are prepared instead of in every row, nibbles
//!   widened to sixteen bits too, sums over lanes by unpacking instead of horizontal additions, scales asked for once a
//!   block. From the caches an INT8 product takes 0.63 of its time, INT4 0.88, attention 0.77, with four query heads
//!   at a time instead of two 0.67; from memory INT8 is then as fast as memory.
//! - Nothing computed for groups that a row does not have, since 3,584 columns are three and a half vectors of sixteen
//!   groups: INT4 decode of the whole model 1.07 times as fast on AVX2; with a branch in whole vectors too it was slower.
//! - NEON, whose dot products take bytes of like signs only: 128 times the sum of a group's activations is added once
//!   instead of 128 times each activation in every vector. Three instructions instead of nine for sixteen INT8 codes;
//!   results checked under qemu, speed unmeasured.
//! - AVX-512 again, on Zen 4, whose best loops had never been looked at there. A loop over two tiles indexed their
//!   sums, so these lay in memory and were written with every product, and LLVM made a product and an addition of
//!   every second dot product: without both a tile takes 0.75 of its time, its innermost loop at the peak. Sums of
//!   nibbles packed to sixteen bits and added up by products (until pairs came), high nibbles by one instruction:
//!   0.78. Codes asked for into the second-level cache 8 KB ahead instead of into the first 4 KB ahead, which kept too
//!   few lines on the way: from memory 1.3 times as fast with one thread. Decode as a whole 1.38 (INT4) and 1.5
//!   (INT8), with two threads 1.2; Intel does not mind.
//! - The same distance on AVX2 (the same Zen 4): decode INT8 1.26 with one thread and 1.08 with two, INT4 as before.
//!   Weights that begin at cache lines: INT4 on AVX-512 1.17 and 1.07, INT8 1.03 and none.
//! - Without gain there, the first three in a copy of the loop by itself: two rows at a time, dot products that begin
//!   with the other half's sum, scaling sixteen rows at the end, iterators instead of indices (0.9), scales asked for
//!   two to four blocks ahead, every second or fourth line of codes (0.7 to 1.0).
//! - Large pages for weights, which a file's map holds: 1.3 times as fast with one thread and 1.1 with two on a Zen 4 in
//!   a virtual machine; see `q35-output-dir`'s way of writing. For states and caches as well ([`Pages`]), once spans were
//!   blocks: decode at 8,192 tokens 1.1 times as fast, with both contexts in turn in one process; 128 tokens 1.03.
//! - Codes asked for 2 KB ahead instead of 8, once weights lay in large pages: INT4 1.06 and INT8 1.1 times as fast from
//!   memory where rows have 1,024 columns, but 0.55 and 0.75 where they have 3,584 (0.8 with 2,048), and of the whole
//!   model's decode INT4 0.9, INT8 0.7 to 0.95. So it is 8 KB again, and the benchmark has wide rows. Alike or slower in
//!   the whole model: 12 and 16 KB, every second line for INT8 (0.8), a block's scales a row at a time, into the first
//!   level alone (0.85) or past the second (0.8).
//! - Whole bytes in steps of four lines, each the same, with scales read where they lie instead of from a table of f32
//!   that is written for sixteen rows before them: INT8 decode on Zen 4's AVX-512 1.13 times as fast with one thread and
//!   the same with two, which memory holds; on AVX2 there 1.02; on Intel with AMX 1.00 to 1.03 (1, 2, 8 threads), where
//!   unchanged INT4 read 0.95 to 1.07. Either alone brought 1.04 or less. In a copy of the loop by itself requests for
//!   every line end at 21 to 23 GB/s where reading does 28, as many as a core can have on their way; none at all read
//!   at full speed there, but in the model were 0.96 to 1.1 of the speed, from run to run. INT4 with scales where they
//!   lie: 1.03 to 1.06 on AVX-512, 0.9 to 0.96 on AVX2, 0.96 to 1.05 on Intel; in steps of four lines 0.94. It keeps
//!   its table.
//! - A model that has lain unused for ten minutes was 0.87 as fast as after it was written anew, perhaps because the
//!   system had put it out of memory and read it again without large pages. Measure right after writing it.
//! - INT4's codes asked for once more, 2 KB ahead into the first-level cache: decode 1.05 times as fast with one thread
//!   and 1.02 to 1.04 with two, on AVX2 1.1 and 1.08. INT8: nothing, on AVX2 0.9.
//! - Attention's spans as blocks of the cache, whose keys and values lie in pages that are read from end to end, instead
//!   of four blocks with two kilobytes of each in turn: from memory 0.86 of the time; decode at 8,192 tokens has 0.89 to
//!   0.91 of its speed at 128 with one thread (0.88 before), 0.905 to 0.91 with two (0.89 to 0.90).
//! - What is left of attention there: from the caches it runs at the peak of its dot products, eight to a line with four
//!   query heads, which one thread hardly outruns memory with; two threads read at memory's speed. Nothing came of lines
//!   asked for into the first-level cache, or of keeping a sum out of memory that LLVM had put there. Without lines
//!   asked for, or with those of one of its two runs, decode at 8,192 tokens has 0.80 and 0.82 of its speed at 128 with
//!   one thread, where with both it had 0.865 in the same minutes.
//! - Values in two halves of four bits, the lower ones read only in spans where a position has more than 1 / 256 of all
//!   weight (`attention/fast.rs` says why that is enough), and weights of all spans before the first value, so that this is
//!   known: attention at 8,192 tokens takes 0.7 to 0.8 of its time on Emerald Rapids, and decode has 0.90 to 0.91 of its
//!   speed at 128 instead of 0.88 to 0.89. Mean KL to the exact mode over 4,096 tokens of prose on q35-nano 2.64e-4
//!   instead of 2.61e-4 (INT8 2.22e-4 both), 1,536 random tokens at 0.8B 1.35e-4 both. Keys were not
//!   tried: by calculation four bits move a score by a tenth and more.
//! - Sums of spans added up by the thread that has them in its caches: joining takes 7 us of a layer at 8,192 tokens
//!   instead of 20 to 25. Values asked for 4, 16 or 24 KB ahead instead of 8, keys 16 or 24 KB: nothing, or slower.
//! - Neighbouring items of a parallel region for each thread instead of the next one for whoever is free: nothing.
//! - 128 tokens at a time in prefill instead of 64: 2 % to 5 %, not worth 5 MB and a cancellation that is twice as late.
//!
//! A default method of `Simd` that was not `inline(always)` was compiled without the instruction set and made INT4
//! decode on AVX-512 fourteen times as slow; no test of results sees that, `scripts/bench_cpu` does.
#![deny(missing_docs)]

mod aligned;
mod attention;
mod byte_row;
mod columns;
mod delta;
mod dense;
mod elementwise;
mod format;
mod halves;
mod head_cache;
mod input;
mod matrix;
mod multiply;
mod pages;
mod pool;
mod rotary;
mod row;
mod simd;
mod stream;
mod tile;
mod unit;

pub use attention::{RUN, SpanSum, SpanWeights, attend, join_spans, settle_spans, sum_spans, weigh_spans};
pub use columns::ColumnBlock;
pub use delta::{DeltaHead, DeltaLayer, DeltaShape, delta_head};
pub use dense::{Strided, multiply_dense};
pub use elementwise::{add_assign, exponential, rms_norm, round_to_f16, silu_multiply, softmax};
pub use head_cache::{HeadCache, SPAN};
pub use input::{Inputs, Mode};
pub use matrix::{FloatKind, Floats, Matrix, MatrixError};
pub use multiply::{Product, multiply};
pub use pages::{Pages, Part};
pub use pool::Pool;
pub use rotary::{Rotation, norm_and_rotate, sigmoid_multiply};
pub use simd::Isa;
