//! The whole calibration on a random tiny model.

use std::ops::ControlFlow;

use candle_core::Device;
use q35_architecture::tensor_table;
use q35_calibrate::{
    CalibrateError, Calibrated, Job, Learning, Rates, Replacement, Saved, Settings, Stage, calibrate,
    mean_divergence,
};
use q35_inference::Weights;
use q35_quant::FloatType;
use q35_testkit::{MemoryWeights, Random, TinyCheckpoint};

fn settings(weights: &MemoryWeights) -> Settings {
    let matrices = tensor_table(weights.config()).into_iter().filter(|spec| spec.role.is_quantized());
    let count: usize = matrices.map(|spec| spec.shape.iter().product::<usize>()).sum();
    Settings {
        budget_bytes: (count as f64 * 4.66 / 8.0) as u64,
        uniform: None,
        window: 64,
        windows: 100,
        own_windows: 3,
        own_batch: 2,
        batch: 2,
        sensitivity_windows: 4,
        guided: true,
        feedback: true,
        passes: 2,
        damping: 0.01,
        learning: Some(Learning {
            steps: 3,
            rates: Rates { scale: 1e-3, bias: 1e-2, code: 0.02, float: 1e-4 },
            tables: true,
        }),
        seed: 5,
    }
}

fn job<'a>(weights: &'a MemoryWeights, ids: &'a [u32], saved: Option<&'a Saved>) -> Job<'a> {
    Job { weights, float: FloatType::Bf16, ids, device: &Device::Cpu, saved }
}

fn run(job: Job<'_>, settings: &Settings) -> Result<Calibrated, CalibrateError> {
    calibrate(job, settings, &mut |_| ControlFlow::Continue(()))
}

#[test]
fn it_keeps_to_the_budget_and_repeats_to_the_bit_also_after_a_kill() {
    let weights = TinyCheckpoint::new().weights();
    let ids = Random::new(1).tokens(8 * 64, weights.config().vocab_size);
    let settings = settings(&weights);
    let whole = run(job(&weights, &ids, None), &settings).unwrap();
    let mut bytes = 0;
    for replacement in whole.tensors.values() {
        if let Replacement::Grid(grid) = replacement {
            bytes += grid.pack_rows(0..grid.rows).bytes() as u64;
        }
    }
    let floor = settings.budget_bytes * 9 / 10;
    assert!((floor..=settings.budget_bytes).contains(&bytes), "{bytes} of {}", settings.budget_bytes);

    let dir = tempfile::tempdir().unwrap();
    let saved = Saved::in_dir(dir.path(), "key".into()).unwrap();
    let stopped = calibrate(job(&weights, &ids, Some(&saved)), &settings, &mut |progress| {
        let enough = progress.stage == Stage::Rounding && progress.done == 3;
        if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(CalibrateError::Cancelled)));
    assert!(dir.path().join("layer-1.safetensors").exists());
    assert!(!dir.path().join("layer-2.safetensors").exists());
    let resumed = run(job(&weights, &ids, Some(&saved)), &settings).unwrap();
    assert_eq!(resumed.tensors, whole.tensors);
}

#[test]
fn each_part_lowers_the_divergence() {
    let weights = TinyCheckpoint::new().seed(3).weights();
    let ids = Random::new(2).tokens(16 * 64, weights.config().vocab_size);
    let unseen = Random::new(9).tokens(8 * 64, weights.config().vocab_size);
    let full = settings(&weights);
    let divergence = |settings: &Settings| {
        let done = run(job(&weights, &ids, None), settings).unwrap();
        mean_divergence(job(&weights, &unseen, None), &done.tensors, 64).unwrap()
    };
    let four = Settings { uniform: Some((4, 64)), learning: None, ..full.clone() };
    let nearest = divergence(&Settings { feedback: false, ..four.clone() });
    let feedback = divergence(&Settings { guided: false, passes: 0, own_windows: 0, ..four });
    let sensitive = divergence(&Settings { learning: None, ..full });
    assert!(
        feedback < nearest && sensitive < nearest,
        "nearest {nearest:e}, with feedback {feedback:e}, with bits by sensitivity {sensitive:e}"
    );
}

#[test]
fn what_cannot_be_done_is_said() {
    let weights = TinyCheckpoint::new().weights();
    let ids = Random::new(1).tokens(8 * 64, weights.config().vocab_size);
    let settings = settings(&weights);
    let short = run(job(&weights, &ids[..100], None), &settings);
    assert!(matches!(short, Err(CalibrateError::TooShort { expected: 128, found: 100 })));
    let small = run(job(&weights, &ids, None), &Settings { budget_bytes: 1000, ..settings });
    assert!(matches!(small, Err(CalibrateError::Budget { budget_bytes: 1000, .. })));
}
