//! Fault injection: artefacts and runtimes with one fault each. Every one must fail, and the report must name the layer
//! and the class of tensor.

mod support;

use q35_parity::{KnownFault, ParityReport};
use support::{Fixture, NanModel, PermutedRows, StateLosingModel};

#[track_caller]
fn must_name(report: &ParityReport, layer: Option<usize>, class: &str, words: &str) {
    assert!(!report.passed, "the fault went unnoticed");
    let found = report
        .findings
        .iter()
        .any(|finding| finding.layer == layer && finding.class == class && finding.message.contains(words));
    let all: Vec<_> = report.findings.iter().map(|f| (f.layer, &f.class, &f.message)).collect();
    assert!(found, "no finding for layer {layer:?}, {class}, `{words}` among {all:#?}");
}

#[test]
fn a_right_conversion_passes() {
    let fixture = Fixture::new();
    let report = fixture.check_directory();
    assert!(report.passed, "{}", report.to_table());
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    let weights = report.weights.as_ref().unwrap();
    assert!(weights.tensors.iter().all(|tensor| tensor.excess <= 1.0));
    assert!((weights.bits_per_quantized_weight - 4.5).abs() < 0.01);
    assert!(report.implementation.as_ref().unwrap().kl.mean < 1e-12);
    assert!(report.conversion.as_ref().unwrap().kl.mean > 1e-5);
    assert_eq!(report.greedy[0].same_as_own_float, 12);
    assert!(report.consistency.iter().any(|way| way.way == "decode"));
}

#[test]
fn norms_shifted_twice() {
    let report = Fixture::new().damaged(|name, tensor| {
        if name.ends_with("layernorm.weight")
            || name.ends_with("q_norm.weight")
            || name.ends_with("k_norm.weight")
        {
            tensor.add(1.0);
        }
    });
    must_name(&report, Some(0), "norm", "shifted twice");
    must_name(&report, Some(0), "norm", "layers.0.input_layernorm.weight");
}

#[test]
fn final_norm_not_shifted() {
    let report = Fixture::new().damaged(|name, tensor| {
        if name.ends_with("model.norm.weight") {
            tensor.add(-1.0);
        }
    });
    must_name(&report, None, "final norm", "not shifted");
}

#[test]
fn convolution_taps_reversed() {
    let report = Fixture::new().damaged(|name, tensor| {
        if name.contains("layers.1.") && name.ends_with("conv1d.weight") {
            tensor.reverse_within_rows();
        }
    });
    must_name(&report, Some(1), "convolution", "taps reversed");
}

#[test]
fn query_and_gate_as_halves() {
    let (heads, width) = (4, 32);
    let report = Fixture::new().damaged(|name, tensor| {
        if name.contains("layers.3.self_attn.q_proj.") {
            // The converter read the first half as queries and the second as gates, and stored them by head.
            tensor.gather_rows(|row| {
                let (head, part, at) = (row / (2 * width), row / width % 2, row % width);
                part * heads * width + head * width + at
            });
        }
    });
    must_name(&report, Some(3), "attention projection", "halves");
    must_name(&report, Some(3), "attention projection", "layers.3.self_attn.q_proj.weight");
}

#[test]
fn rope_interleaved() {
    let report = Fixture::new().damaged(|name, tensor| {
        let block = if name.contains("q_proj") { 64 } else { 32 };
        if ["q_proj", "k_proj", "q_norm", "k_norm"].iter().any(|part| name.contains(part)) {
            tensor.gather_rows(|row| interleaved(row, block));
        }
    });
    must_name(&report, Some(3), "attention projection", "RoPE interleaved");
}

/// Permutation of the rows of a head whose first 8 components are rotated: (2i, 2i+1) become (i, i+4).
fn interleaved(row: usize, block: usize) -> usize {
    let (start, at) = (row / block * block, row % block);
    match at {
        0..4 => start + 2 * at,
        4..8 => start + 2 * (at - 4) + 1,
        _ => row,
    }
}

#[test]
fn one_scale_corrupted() {
    for factor in [1.25, 2.0] {
        let report = Fixture::new().damaged(|name, tensor| {
            if name.ends_with("layers.2.mlp.down_proj.scales") {
                tensor.multiply_element(4 * 17 + 1, factor);
            }
        });
        must_name(&report, Some(2), "mlp projection", "row 17");
        must_name(&report, Some(2), "mlp projection", "columns 64..128");
        must_name(&report, Some(2), "mlp projection", "scale of one group");
    }
}

#[test]
fn layers_swapped() {
    let fixture = Fixture::new();
    fixture.rename(|name| {
        if name.contains("layers.0.") {
            name.replace("layers.0.", "layers.2.")
        } else {
            name.replace("layers.2.", "layers.0.")
        }
    });
    let report = fixture.check_directory();
    must_name(&report, Some(0), "norm", "layers swapped: layer 0 holds the weights of layer 2");
    must_name(&report, Some(2), "norm", "layers swapped: layer 2 holds the weights of layer 0");
}

#[test]
fn wrong_eps_in_the_configuration() {
    let fixture = Fixture::new();
    fixture.edit_config(|config| config["text_config"]["rms_norm_eps"] = 1e-5.into());
    let report = fixture.check_directory();
    must_name(&report, None, "norm", "rms_norm_eps");
}

#[test]
fn embedding_shifted_by_a_row() {
    let report = Fixture::new().damaged(|name, tensor| {
        if name.contains("embed_tokens.") {
            tensor.gather_rows(|row| (row + 1) % 320);
        }
    });
    must_name(&report, None, "embedding", "rows shifted by 1");
}

#[test]
fn a_scale_that_is_no_number_is_named_and_nothing_is_run() {
    let report = Fixture::new().damaged(|name, tensor| {
        if name.ends_with("layers.1.mlp.up_proj.scales") {
            tensor.multiply_element(3, f32::NAN);
        }
    });
    must_name(&report, Some(1), "mlp projection", "layers.1.mlp.up_proj.weight");
    assert!(report.implementation.is_none());
}

// The same faults in a runtime: the files are right, the execution is not.

#[test]
fn a_runtime_with_rope_interleaved() {
    let fixture = Fixture::new();
    let report = fixture.check_executed(|weights| {
        let wrong = PermutedRows::new(weights, |name, rows| {
            let block = if name.contains("q_proj") { 64 } else { 32 };
            let touched = ["q_proj", "k_proj", "q_norm", "k_norm"].iter().any(|part| name.contains(part));
            touched.then(|| (0..rows).map(|row| interleaved(row, block)).collect())
        });
        q35_parity::float_model(&wrong).unwrap()
    });
    assert!(report.weights.as_ref().unwrap().failed().next().is_none());
    must_name(&report, Some(3), "self_attn", "mixer");
    must_name(&report, Some(3), "attention projection", "RoPE interleaved");
}

#[test]
fn a_runtime_that_splits_query_and_gate_as_halves() {
    let fixture = Fixture::new();
    let report = fixture.check_executed(|weights| {
        let wrong = PermutedRows::new(weights, |name, rows| {
            let source = |row: usize| (row / 32 % 2) * 128 + row / 64 * 32 + row % 32;
            name.contains("q_proj").then(|| (0..rows).map(source).collect())
        });
        q35_parity::float_model(&wrong).unwrap()
    });
    must_name(&report, Some(3), "self_attn", "mixer");
    must_name(&report, Some(3), "attention projection", "halves");
}

#[test]
fn a_runtime_with_wrong_eps() {
    let fixture = Fixture::new();
    let report = fixture.check_executed(|weights| {
        q35_parity::float_model(&q35_parity::FaultyWeights::new(weights, KnownFault::Epsilon(1e-5))).unwrap()
    });
    must_name(&report, Some(0), "linear_attn", "mixer");
    must_name(&report, Some(0), "norm", "rms_norm_eps is 1e-5");
}

#[test]
fn a_runtime_that_swaps_gate_and_up() {
    let fixture = Fixture::new();
    let report = fixture.check_executed(|weights| {
        q35_parity::float_model(&q35_parity::FaultyWeights::new(weights, KnownFault::GateUpSwapped)).unwrap()
    });
    must_name(&report, Some(0), "mlp", "its mixer is right and its MLP is not");
    must_name(&report, Some(0), "mlp projection", "swapped");
}

#[test]
fn a_cache_that_is_lost_between_calls() {
    let fixture = Fixture::new();
    let report = fixture
        .check_executed(|weights| Box::new(StateLosingModel(q35_parity::float_model(weights).unwrap())));
    must_name(&report, None, "cache", "decode");
}

#[test]
fn logits_that_overflow() {
    let fixture = Fixture::new();
    let report = fixture.check_executed(|weights| {
        Box::new(NanModel { inner: q35_parity::float_model(weights).unwrap(), from: 5 })
    });
    must_name(&report, None, "logits", "from position 5");
}
