//! Whatever way a package is written, the evaluator finds in it the model whose weights it holds.

mod support;

use std::collections::BTreeMap;

use q35_architecture::{LayerKind, TextConfig, tensor_table};
use q35_backend_coreml::Precision;
use q35_format_coreml::{Cache, Compute, Encoding, Options};
use q35_inference::Weights;
use q35_reference::{Device, Reference};
use q35_testkit::{TinyCheckpoint, tiny, tiny_more_value_heads};
use support::{Work, all_rows, combinations, ids, open, prompt_then_steps, small, summary, weights};

/// Mean KL against the float reference on the package's own weights.
const F32: f64 = 1e-6;
const F16: f64 = 1e-4;

/// Holds a conversion against the float reference on its own weights: a prompt of three chunks, the last one short, and
/// three steps.
fn check(work: &Work, options: &Options) {
    let out = work.convert(options);
    let reference = Reference::load(&weights(&out), Device::Cpu).unwrap();
    compare(&reference, &out, options);
}

fn compare(reference: &Reference, out: &std::path::Path, options: &Options) {
    let model = open(out, Precision::Exact);
    let ids = ids(40, 320);
    let expected = all_rows(reference, &ids);
    let found = prompt_then_steps(&model, &ids, 37);
    let summary = summary(&expected[36..], &found);
    let limit = if options.compute == Compute::F32 { F32 } else { F16 };
    assert!(summary.kl.mean <= limit, "{options:?}: {:?}", summary.kl);
}

/// What a package's weights stand for, as numbers and as the model to compare with.
struct Known {
    numbers: Vec<Vec<f32>>,
    reference: Reference,
}

#[test]
fn every_way_to_write_it_is_the_model_of_its_weights() {
    let work = Work::new(&TinyCheckpoint::new());
    // All encodings but block32 stand for the same numbers, whatever the layout: one reference serves them all.
    let mut known: BTreeMap<(bool, &str), Known> = BTreeMap::new();
    for options in combinations() {
        let out = work.convert(&options);
        let weights = weights(&out);
        let numbers = numbers(&weights);
        let key = (options.encoding == Encoding::Block32, options.compute.name());
        let known = known.entry(key).or_insert_with(|| Known {
            numbers: numbers.clone(),
            reference: Reference::load(&weights, Device::Cpu).unwrap(),
        });
        assert!(known.numbers == numbers, "{options:?} stands for other numbers");
        compare(&known.reference, &out, &options);
    }
}

fn numbers(weights: &dyn Weights) -> Vec<Vec<f32>> {
    let read = |spec: q35_architecture::TensorSpec| {
        let mut values = Vec::new();
        weights.read_rows(&spec.name, 0..spec.shape[0], &mut values).unwrap();
        values
    };
    tensor_table(weights.config()).into_iter().map(read).collect()
}

#[test]
fn other_models_than_the_published_one() {
    use LayerKind::{FullAttention, LinearAttention};
    let of = |config| TinyCheckpoint::new().with_config(config);
    let kinds = |kinds: &[LayerKind]| {
        of(TextConfig { layer_types: kinds.to_vec(), num_hidden_layers: kinds.len(), ..tiny() })
    };
    let checkpoints = [
        TinyCheckpoint::new().untied(),
        TinyCheckpoint::new().text_only().precision(q35_testkit::Precision::F16),
        of(tiny_more_value_heads()),
        of(TextConfig { partial_rotary_factor: 1.0, ..tiny() }),
        of(TextConfig { linear_conv_kernel_dim: 2, ..tiny() }),
        kinds(&[FullAttention, LinearAttention]),
        kinds(&[FullAttention]),
        kinds(&[LinearAttention]),
    ];
    for checkpoint in checkpoints {
        let work = Work::new(&checkpoint);
        for cache in [Cache::State, Cache::Io] {
            check(&work, &Options { cache, compute: Compute::F32, ..small() });
        }
    }
}

#[test]
fn an_untied_table_may_lie_with_the_host_alone() {
    let work = Work::new(&TinyCheckpoint::new().untied());
    let options = Options { embedding: q35_format_coreml::Embedding::Host, ..small() };
    check(&work, &options);
    check(&work, &Options { compute: Compute::F32, head_splits: Some(7), ..options });
}

#[test]
fn chunks_of_any_length() {
    let work = Work::new(&TinyCheckpoint::new());
    for prefill_chunk in [1, 2, 3, 24, 37] {
        check(&work, &Options { prefill_chunk, compute: Compute::F32, ..small() });
    }
}

#[test]
fn half_precision_stays_close_on_the_embedded_model() {
    let work = Work::embedded();
    let out = work.convert(&Options { context: 128, ..Options::default() });
    let reference = Reference::load(&weights(&out), Device::Cpu).unwrap();
    let ids = ids(100, 4000);
    let expected = all_rows(&reference, &ids);
    let found = prompt_then_steps(&open(&out, Precision::Half), &ids, 70);
    let summary = summary(&expected[69..], &found);
    assert!(summary.kl.mean <= F16 && summary.top1_agreement >= 0.99, "{summary:?}");
}
