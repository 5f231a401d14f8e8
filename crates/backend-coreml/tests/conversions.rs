//! For every combination of conversion options, the evaluator computes the model whose weights the package holds.

mod support;

use std::collections::BTreeMap;

use q35_architecture::{LayerKind, TextConfig, tensor_table};
use q35_backend_coreml::Precision;
use q35_format_coreml::{Cache, Compute, Encoding, Options};
use q35_inference::Weights;
use q35_reference::{Device, Reference};
use q35_testkit::{TinyCheckpoint, tiny, tiny_more_value_heads};
use support::{Workspace, all_rows, combinations, ids, open, prompt_then_steps, small, summary, weights};

/// Largest mean KL to the float reference on the package's dequantized weights, for f32 packages.
const F32: f64 = 1e-6;
/// The same for f16 packages.
const F16: f64 = 1e-4;

/// Compares a conversion with the float reference on its dequantized weights: a prompt of three chunks, the last one
/// short, and three decode steps.
fn check(work: &Workspace, options: &Options) {
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

/// Dequantized weights of a package and the float reference on them.
struct Dequantized {
    numbers: Vec<Vec<f32>>,
    reference: Reference,
}

#[test]
fn every_way_to_write_it_is_the_model_of_its_weights() {
    let work = Workspace::new(&TinyCheckpoint::new());
    // All encodings but block32 dequantize to the same weights in every layout and share one reference.
    let mut references: BTreeMap<(bool, &str), Dequantized> = BTreeMap::new();
    for options in combinations() {
        let out = work.convert(&options);
        let weights = weights(&out);
        let numbers = numbers(&weights);
        let key = (options.encoding == Encoding::Block32, options.compute.name());
        let expected = references.entry(key).or_insert_with(|| Dequantized {
            numbers: numbers.clone(),
            reference: Reference::load(&weights, Device::Cpu).unwrap(),
        });
        assert!(expected.numbers == numbers, "{options:?} has different weights");
        compare(&expected.reference, &out, &options);
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
    let with_config = |config| TinyCheckpoint::new().with_config(config);
    let with_layers = |kinds: &[LayerKind]| {
        with_config(TextConfig { layer_types: kinds.to_vec(), num_hidden_layers: kinds.len(), ..tiny() })
    };
    let checkpoints = [
        TinyCheckpoint::new().untied(),
        TinyCheckpoint::new().text_only().precision(q35_testkit::Precision::F16),
        with_config(tiny_more_value_heads()),
        with_config(TextConfig { partial_rotary_factor: 1.0, ..tiny() }),
        with_config(TextConfig { linear_conv_kernel_dim: 2, ..tiny() }),
        with_layers(&[FullAttention, LinearAttention]),
        with_layers(&[FullAttention]),
        with_layers(&[LinearAttention]),
    ];
    for checkpoint in checkpoints {
        let work = Workspace::new(&checkpoint);
        for cache in [Cache::State, Cache::Io] {
            check(&work, &Options { cache, compute: Compute::F32, ..small() });
        }
    }
}

#[test]
fn an_untied_embedding_may_be_on_the_host_alone() {
    let work = Workspace::new(&TinyCheckpoint::new().untied());
    let options = Options { embedding: q35_format_coreml::Embedding::Host, ..small() };
    check(&work, &options);
    check(&work, &Options { compute: Compute::F32, head_splits: Some(7), ..options });
}

#[test]
fn chunks_of_any_length() {
    let work = Workspace::new(&TinyCheckpoint::new());
    for prefill_chunk in [1, 2, 3, 24, 37] {
        check(&work, &Options { prefill_chunk, compute: Compute::F32, ..small() });
    }
}

#[test]
fn half_precision_stays_close_on_the_embedded_model() {
    let work = Workspace::embedded();
    let out = work.convert(&Options { context: 128, ..Options::default() });
    let reference = Reference::load(&weights(&out), Device::Cpu).unwrap();
    let ids = ids(100, 4000);
    let expected = all_rows(&reference, &ids);
    let found = prompt_then_steps(&open(&out, Precision::Half), &ids, 70);
    let summary = summary(&expected[69..], &found);
    assert!(summary.kl.mean <= F16 && summary.top1_agreement >= 0.99, "{summary:?}");
}
