//! Logits depend neither on the division of a prompt into chunks nor on the contents of padding.

mod support;

use std::collections::BTreeMap;

use q35_backend_coreml::Precision;
use q35_format_coreml::{Cache, Compute, Embedding, Layout, Options};
use q35_inference::{LogitsFor, Model};
use q35_mil_eval::{Data, Program, Tensor};
use q35_testkit::{TinyCheckpoint, tiny_more_value_heads};
use support::{Collected, Workspace, feed, ids, open, relative};

/// Relative tolerance: chunks and single tokens add the same terms in different orders.
const TOLERANCE: f32 = 2e-4;

#[test]
fn prompts_of_any_length_equal_single_tokens() {
    let checkpoint = TinyCheckpoint::new().with_config(tiny_more_value_heads());
    let work = Workspace::new(&checkpoint);
    for cache in [Cache::State, Cache::Io] {
        let out = work.convert(&Options { cache, compute: Compute::F32, context: 320, ..Options::default() });
        let model = open(&out, Precision::Exact);
        let ids = ids(264, 320);
        let mut single = model.new_sequence(320).unwrap();
        let mut rows = Collected::default();
        single.extend(&ids, LogitsFor::AllTokens, &mut rows).unwrap();
        for prompt in [1, 63, 64, 65, 200] {
            let mut sequence = model.new_sequence(320).unwrap();
            let last = feed(&mut *sequence, &ids[..prompt]);
            assert!(relative(&rows.0[prompt - 1], &last) < TOLERANCE, "{cache:?} {prompt}");
            // A continued conversation: one generated token, then another turn at an arbitrary position.
            for tokens in [1, 63] {
                let end = sequence.position() + tokens;
                let last = feed(&mut *sequence, &ids[end - tokens..end]);
                assert!(relative(&rows.0[end - 1], &last) < TOLERANCE, "{cache:?} {prompt} then {tokens}");
            }
        }
        let mut chunked = model.new_sequence(320).unwrap();
        feed(&mut *chunked, &ids);
        for (single, chunked) in
            single.recurrent_states().unwrap().iter().zip(chunked.recurrent_states().unwrap())
        {
            assert!(
                relative(&single.values, &chunked.values) < TOLERANCE,
                "{cache:?} layer {}",
                single.layer
            );
        }
    }
}

#[test]
fn a_full_cache_takes_its_last_tokens() {
    // The last 24 positions have no room for a full chunk of 64.
    let work = Workspace::new(&TinyCheckpoint::new());
    let options = Options { compute: Compute::F32, context: 88, ..Options::default() };
    let model = open(&work.convert(&options), Precision::Exact);
    let ids = ids(88, 320);
    let mut rows = Collected::default();
    model.new_sequence(88).unwrap().extend(&ids, LogitsFor::AllTokens, &mut rows).unwrap();
    let last = feed(&mut *model.new_sequence(88).unwrap(), &ids);
    assert!(relative(&rows.0[87], &last) < TOLERANCE);
    assert!(model.new_sequence(89).is_err());
}

/// Calls `prefill` with seven real and nine padding tokens at position 5; returns outputs and states.
fn padded_call(options: &Options, garbage: bool, precision: Precision) -> BTreeMap<String, Tensor> {
    let work = Workspace::new(&TinyCheckpoint::new());
    let program = Program::load(&work.convert(options).join("model.mlpackage"), precision).unwrap();
    let function = program.function("prefill").unwrap();
    let (real, padded) = (7, 9);
    let fill = |i: usize| ((i * 7919) % 1000) as f32 / 500.0 - 1.0;
    let mut inputs = BTreeMap::new();
    for port in function.inputs() {
        let (shape, count) = (&port.ty.shape[..], port.ty.count());
        let value = match port.name.as_str() {
            "input_ids" => {
                let padding =
                    if garbage { [-1, i32::MAX, i32::MIN, 319, 320, 77, -320, 1 << 20, 5] } else { [0; 9] };
                Tensor::int(shape, (1..=real).chain(padding).collect())
            }
            "inputs_embeds" => {
                let width = count / 16;
                let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, -1e-40, 5.0];
                let value = |i: usize| match i / width < real as usize {
                    true => fill(i),
                    false if garbage => odd[i % odd.len()],
                    false => 0.0,
                };
                Tensor::float(shape, (0..count).map(value).collect())
            }
            "attention_mask" => Tensor::int(shape, (0..16).map(|i| i32::from(i < real)).collect()),
            "position" => Tensor::int(shape, vec![5]),
            _ => Tensor::float(shape, (0..count).map(|i| fill(i) / 8.0).collect()),
        };
        inputs.insert(port.name.clone(), value);
    }
    assert_eq!(real + padded, 16);
    let mut state = program.new_state();
    let mut outputs = program.run("prefill", inputs, &mut state).unwrap();
    let names: Vec<String> = state.types().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        outputs.insert(format!("state {name}"), state.get(&name).unwrap().clone());
    }
    outputs
}

#[test]
fn garbage_in_padding_changes_no_bit() {
    for cache in [Cache::State, Cache::Io] {
        for embedding in [Embedding::Model, Embedding::Host] {
            for compute in [Compute::F16, Compute::F32] {
                let base = Options { context: 32, prefill_chunk: 16, ..Options::default() };
                let options = Options { cache, embedding, compute, layout: Layout::Multifunction, ..base };
                for precision in [Precision::Exact, Precision::Half] {
                    let bits = |outputs: BTreeMap<String, Tensor>| -> BTreeMap<String, Vec<u32>> {
                        let bits = |tensor: Tensor| match tensor.data() {
                            Data::Float(values) => values.iter().map(|v| v.to_bits()).collect(),
                            other => panic!("{other:?}"),
                        };
                        outputs.into_iter().map(|(name, tensor)| (name, bits(tensor))).collect()
                    };
                    let clean = bits(padded_call(&options, false, precision));
                    let dirty = bits(padded_call(&options, true, precision));
                    assert!(clean == dirty, "{options:?} {precision:?}");
                    assert!(clean.values().flatten().all(|bits| f32::from_bits(*bits).is_finite()));
                }
            }
        }
    }
}
