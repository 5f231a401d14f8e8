//! Compares MLX's logits with those of the float reference and of the CPU backend on the same directories. Needs the
//! feature `mlx` (see `scripts/mlx/setup_linux.sh`).
#![cfg(feature = "mlx")]

mod support;

use std::ops::Range;
use std::sync::Arc;

use q35_architecture::TensorSpec;
use q35_backend_cpu::{CpuModel, CpuOptions, Mode};
use q35_backend_mlx::MlxModel;
use q35_checkpoint::TensorView;
use q35_format_mlx::{Form, Recipe, RoundToNearest, Treatment};
use q35_quant::affine::{AffineSpec, PackedMatrix};
use q35_reference::{Device, Reference};
use q35_testkit::{TinyCheckpoint, tiny_more_value_heads};
use support::{all_rows, check_kl, device, ids, mean_kl, quantized, rounded};

/// Divides ids into two prefill parts, neither a multiple of the prefill alignment, and single decode tokens.
fn cuts(ids: &[u32]) -> Vec<&[u32]> {
    let (first, rest) = ids.split_at(70);
    let (second, steps) = rest.split_at(72);
    let mut cuts = vec![first, second];
    cuts.extend(steps.chunks(1));
    cuts
}

#[test]
fn mlx_agrees_with_the_float_reference_on_the_same_weights() {
    for (source, bits) in
        [(TinyCheckpoint::new(), 4), (TinyCheckpoint::new().with_config(tiny_more_value_heads()), 8)]
    {
        let directory = quantized(&source, &rounded(bits, 32), Form::default());
        let ids = ids(150, directory.config().vocab_size);
        let expected = all_rows(&Reference::load(directory.as_ref(), Device::Cpu).unwrap(), &[&ids]);
        let model = MlxModel::load(directory, device()).unwrap();
        let kl = mean_kl(&expected, &all_rows(&model, &cuts(&ids)));
        check_kl(&format!("{bits} bits"), kl, 1e-6);
    }
}

/// A recipe with different bits and groups for each matrix, as a calibrated model may have; about one in nine stays
/// float.
struct Mixed;

impl Mixed {
    fn spec(name: &str) -> AffineSpec {
        let hash: usize = name.bytes().map(usize::from).sum();
        AffineSpec::new([2, 3, 4, 5, 6, 8][hash % 6], [32, 64, 128][hash % 3]).unwrap()
    }
}

impl Recipe for Mixed {
    fn name(&self) -> &str {
        "mixed"
    }

    fn default_spec(&self) -> AffineSpec {
        AffineSpec::new(4, 64).unwrap()
    }

    fn treatment(&self, tensor: &TensorSpec) -> Treatment {
        let hash: usize = tensor.name.bytes().map(usize::from).sum();
        if hash.is_multiple_of(9) { Treatment::Keep } else { Treatment::Quantize(Self::spec(&tensor.name)) }
    }

    fn quantize(
        &self,
        tensor: &TensorView<'_>,
        spec: AffineSpec,
        rows: Range<usize>,
    ) -> Result<PackedMatrix, String> {
        RoundToNearest(spec).quantize(tensor, spec, rows)
    }
}

#[test]
fn mlx_agrees_with_the_cpu_backend_on_every_form() {
    let tiny = TinyCheckpoint::new();
    let grouped = TinyCheckpoint::new().with_config(tiny_more_value_heads());
    let directories = [
        ("4 bits", quantized(&tiny, &rounded(4, 64), Form::default())),
        ("mixed bits and groups", quantized(&tiny, &Mixed, Form::default())),
        ("mixed, two value heads to a key head", quantized(&grouped, &Mixed, Form::default())),
        ("speech-swift's", quantized(&tiny, &rounded(8, 64), Form::SpeechSwift)),
    ];
    for (name, directory) in directories {
        let ids = ids(150, directory.config().vocab_size);
        let options = CpuOptions::default().with_mode(Mode::Exact).with_threads(1);
        let expected = all_rows(&CpuModel::open(Arc::clone(&directory), options).unwrap(), &[&ids]);
        let model = MlxModel::load(directory, device()).unwrap();
        let kl = mean_kl(&expected, &all_rows(&model, &cuts(&ids)));
        check_kl(name, kl, 1e-6);
    }
}
