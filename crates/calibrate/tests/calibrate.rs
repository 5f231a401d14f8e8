//! Calibration of a random tiny model from start to end.

use std::ops::ControlFlow;

use candle_core::Device;
use q35_architecture::tensor_table;
use q35_calibrate::{
    CalibrateError, Calibrated, Distillation, Job, LearningRates, Replacement, ResumeDir, Settings, Stage,
    calibrate, mean_divergence,
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
        generated_windows: 3,
        generation_batch: 2,
        batch: 2,
        sensitivity_windows: 4,
        weighted_tokens: true,
        feedback: true,
        passes: 2,
        damping: 0.01,
        distillation: Some(Distillation {
            steps: 3,
            rates: LearningRates { scale: 1e-3, bias: 1e-2, code: 0.02, float: 1e-4 },
            tables: true,
        }),
        seed: 5,
    }
}

fn job<'a>(weights: &'a MemoryWeights, ids: &'a [u32], resume: Option<&'a ResumeDir>) -> Job<'a> {
    Job { weights, float: FloatType::Bf16, ids, device: &Device::Cpu, resume }
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
        if let Replacement::Quantized(matrix) = replacement {
            bytes += matrix.pack_rows(0..matrix.rows).bytes() as u64;
        }
    }
    let floor = settings.budget_bytes * 9 / 10;
    assert!((floor..=settings.budget_bytes).contains(&bytes), "{bytes} of {}", settings.budget_bytes);

    let dir = tempfile::tempdir().unwrap();
    let resume = ResumeDir::open(dir.path(), "key".into()).unwrap();
    let stopped = calibrate(job(&weights, &ids, Some(&resume)), &settings, &mut |progress| {
        let enough = progress.stage == Stage::Rounding && progress.done == 3;
        if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(CalibrateError::Cancelled)));
    assert!(dir.path().join("layer-1.safetensors").exists());
    assert!(!dir.path().join("layer-2.safetensors").exists());
    let resumed = run(job(&weights, &ids, Some(&resume)), &settings).unwrap();
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
    let four = Settings { uniform: Some((4, 64)), distillation: None, ..full.clone() };
    let nearest = divergence(&Settings { feedback: false, ..four.clone() });
    let feedback = divergence(&Settings { weighted_tokens: false, passes: 0, generated_windows: 0, ..four });
    let sensitive = divergence(&Settings { distillation: None, ..full });
    assert!(
        feedback < nearest && sensitive < nearest,
        "nearest {nearest:e}, with feedback {feedback:e}, with bits by sensitivity {sensitive:e}"
    );
}

#[test]
fn too_little_text_and_too_small_a_budget_are_errors() {
    let weights = TinyCheckpoint::new().weights();
    let ids = Random::new(1).tokens(8 * 64, weights.config().vocab_size);
    let settings = settings(&weights);
    let short = run(job(&weights, &ids[..100], None), &settings);
    assert!(matches!(short, Err(CalibrateError::TooShort { expected: 128, found: 100 })));
    let small = run(job(&weights, &ids, None), &Settings { budget_bytes: 1000, ..settings });
    assert!(matches!(small, Err(CalibrateError::Budget { budget_bytes: 1000, .. })));
}
