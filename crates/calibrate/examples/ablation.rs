//! Ablation: mean KL(float || quantized) on a text, with the parts of the calibration added one after another.
//!
//! `cargo run --release -p q35-calibrate --example ablation -- CHECKPOINT EVAL.txt [CALIBRATION.txt] [key=value..]`
//!
//! Keys: `bits` (4.66), `calibration` and `eval` (tokens used), `window`, `windows`, `own`, `batch`, `sensitivity`,
//! `passes`, `damping`, `steps`, `scale`, `bias`, `code`, `float` (learning rates), `parts` (the variants to run, of
//! "nearest,feedback,refinement,token-weights,self-generated,bits,distillation").

#![allow(clippy::print_stdout)] // The table is the result.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use candle_core::Device;
use q35_architecture::tensor_table;
use q35_calibrate::{Job, Settings, Stage, calibrate, mean_divergence};
use q35_checkpoint::Checkpoint;
use q35_text::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (keys, files): (Vec<&String>, Vec<&String>) = arguments.iter().partition(|a| a.contains('='));
    let keys: HashMap<&str, &str> = keys.iter().filter_map(|key| key.split_once('=')).collect();
    let number = |key: &str, default: f64| -> Result<f64, std::num::ParseFloatError> {
        keys.get(key).map_or(Ok(default), |value| value.parse())
    };
    let [checkpoint, eval, calibration @ ..] = files.as_slice() else {
        return Err("CHECKPOINT EVAL.txt".into());
    };
    let dir = Path::new(checkpoint.as_str());
    let checkpoint = Checkpoint::open(dir)?;
    let tokenizer = Tokenizer::from_dir(dir)?;
    let tokens = |text: &str, limit: f64| -> Result<Vec<u32>, Box<dyn std::error::Error>> {
        let mut ids = tokenizer.encode(text)?;
        ids.truncate(limit as usize);
        Ok(ids)
    };
    let eval = tokens(&std::fs::read_to_string(eval)?, number("eval", 16_384.0)?)?;
    let text = match calibration {
        [] => q35_calibrate::DEFAULT_TEXT.to_owned(),
        [path, ..] => std::fs::read_to_string(path)?,
    };
    let ids = tokens(&text, number("calibration", 1e9)?)?;
    let matrices = tensor_table(checkpoint.config()).into_iter().filter(|spec| spec.role.is_quantized());
    let weights: usize = matrices.map(|spec| spec.shape.iter().product::<usize>()).sum();
    let budget = (number("bits", 4.66)? * weights as f64 / 8.0) as u64;
    let config = checkpoint.config();
    let mut full = Settings::rounding(config, ids.len(), budget).with_distillation(config);
    full.window = number("window", full.window as f64)? as usize;
    full.windows = number("windows", full.windows as f64)? as usize;
    full.generated_windows = number("own", full.generated_windows as f64)? as usize;
    full.batch = number("batch", full.batch as f64)? as usize;
    full.passes = number("passes", full.passes as f64)? as usize;
    full.damping = number("damping", full.damping)?;
    full.sensitivity_windows = number("sensitivity", full.sensitivity_windows as f64)? as usize;
    if let Some(distillation) = &mut full.distillation {
        distillation.steps = number("steps", distillation.steps as f64)? as usize;
        let rates = &mut distillation.rates;
        rates.scale = number("scale", f64::from(rates.scale))? as f32;
        rates.bias = number("bias", f64::from(rates.bias))? as f32;
        rates.code = number("code", f64::from(rates.code))? as f32;
        rates.float = number("float", f64::from(rates.float))? as f32;
    }
    let whole = Settings { distillation: None, ..full.clone() };
    let generated = Settings { uniform: Some((4, 64)), ..whole.clone() };
    let weighted = Settings { generated_windows: 0, ..generated.clone() };
    let refined = Settings { weighted_tokens: false, ..weighted.clone() };
    let feedback = Settings { passes: 0, ..refined.clone() };
    let nearest = Settings { feedback: false, ..feedback.clone() };
    let variants = [
        ("nearest", nearest),
        ("feedback", feedback),
        ("refinement", refined),
        ("token-weights", weighted),
        ("self-generated", generated),
        ("bits", whole),
        ("distillation", full),
    ];
    println!("{} calibration tokens, {} tokens judged", ids.len(), eval.len());
    let job = Job {
        weights: &checkpoint,
        float: checkpoint.tensor("embed_tokens.weight").ok_or("no embedding")?.dtype,
        ids: &ids,
        device: &Device::Cpu,
        resume: None,
    };
    for (name, settings) in variants {
        if keys.get("parts").is_some_and(|parts| !parts.split(',').any(|part| part == name)) {
            continue;
        }
        let started = Instant::now();
        let (mut recent, mut stage, mut stages) = (Vec::new(), None, Vec::new());
        let done = calibrate(job, &settings, &mut |progress| {
            if stage != Some(progress.stage) {
                stage = Some(progress.stage);
                stages.push(format!("{:?} from {:.0?}", progress.stage, started.elapsed()));
            }
            if progress.stage == Stage::Distillation {
                recent.extend(progress.divergence);
                if progress.done % 10 == 0 {
                    let last = &recent[recent.len().saturating_sub(10)..];
                    let mean = last.iter().sum::<f64>() / last.len() as f64;
                    println!(
                        "  step {} of {}: {mean:.4e}, {:.0?}",
                        progress.done,
                        progress.total,
                        started.elapsed()
                    );
                }
            }
            ControlFlow::Continue(())
        })?;
        let elapsed = started.elapsed();
        let expected: f64 = done.allocations.values().map(|allocation| allocation.expected_kl).sum();
        let divergence = mean_divergence(Job { ids: &eval, ..job }, &done.tensors, 512)?;
        println!(
            "{name:<12} KL {divergence:.4e}  (expected of rounding {expected:.2e}; {elapsed:.0?}: {})",
            stages.join(", ")
        );
    }
    Ok(())
}
