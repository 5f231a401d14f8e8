//! Estimated duration of a conversion.

use std::time::Duration;

use q35_architecture::{TextConfig, tensor_table};
use q35_calibrate::Settings;
use q35_checkpoint::Checkpoint;
use q35_reference::Device;

use crate::Calibration;

/// Source bytes per second of rounding to nearest, hashing included, whatever the number of threads: hashing a single
/// weight file uses one.
const RTN_BYTES_PER_SECOND: f64 = 0.6e9;
/// Multiply-adds per token and weight of a calibration: generation of half of the windows, forward and backward pass
/// for the sensitivities, forward pass of the partially quantized model.
const WORK_PER_TOKEN_AND_WEIGHT: f64 = 6.0;

/// Speed of the device that computes the float model.
struct Speed {
    /// Multiply-adds per second.
    work: f64,
    /// Seconds per token and layer that do not depend on the model's width.
    token_layer: f64,
}

impl Speed {
    /// Fitted to calibrations of q35-nano and of a model of 0.8 billion weights, on two cores of current x86 processors
    /// and on one H100. More threads than 16 are not counted: the rounding does not scale to them.
    fn of(device: Device, threads: usize) -> Self {
        match device {
            Device::Cpu => {
                let threads = threads.clamp(1, 16) as f64;
                Self { work: 16e9 * threads, token_layer: 4.6e-4 / threads }
            }
            Device::Metal | Device::Cuda => Self { work: 230e9, token_layer: 6e-5 },
        }
    }
}

/// Estimated duration of rounding `checkpoint` to nearest, without verification.
pub fn estimate_round_to_nearest(checkpoint: &Checkpoint) -> Duration {
    Duration::from_secs_f64(checkpoint.inventory().kept_bytes as f64 / RTN_BYTES_PER_SECOND)
}

/// Estimated duration of calibrating `checkpoint` on an otherwise idle machine; correct within a factor of about two.
pub fn estimate_calibration(checkpoint: &Checkpoint, calibration: &Calibration) -> Duration {
    const BYTES_PER_TOKEN: usize = 4;
    let text_bytes = match &calibration.text {
        Some(path) => std::fs::metadata(path).map_or(0, |metadata| metadata.len() as usize),
        None => q35_calibrate::DEFAULT_TEXT.len(),
    };
    let config = checkpoint.config();
    let settings = Settings::rounding(config, text_bytes / BYTES_PER_TOKEN, 0);
    let tokens = ((settings.windows + settings.generated_windows) * settings.window) as f64;
    let speed = Speed::of(calibration.device, rayon::current_num_threads());
    let work = WORK_PER_TOKEN_AND_WEIGHT * tokens * parameters(config) / speed.work;
    let layers = tokens * config.num_hidden_layers as f64 * speed.token_layer;
    Duration::from_secs_f64(work + layers)
}

fn parameters(config: &TextConfig) -> f64 {
    tensor_table(config).iter().map(|spec| spec.shape.iter().product::<usize>() as f64).sum()
}

/// A duration for people: "2 s", "50 s", "3 minutes", "1 hour".
pub fn describe_duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    let plural = |count: f64, unit: &str| match count {
        1.0 => format!("1 {unit}"),
        count => format!("{count:.0} {unit}s"),
    };
    match seconds {
        ..10.0 => format!("{:.0} s", seconds.ceil().max(1.0)),
        ..90.0 => format!("{:.0} s", (seconds / 10.0).ceil() * 10.0),
        ..5400.0 => plural((seconds / 60.0).round(), "minute"),
        _ => plural((seconds / 3600.0).round(), "hour"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Source;

    #[test]
    fn durations_read_well() {
        for (seconds, text) in [
            (0.02, "1 s"),
            (2.6, "3 s"),
            (44.0, "50 s"),
            (100.0, "2 minutes"),
            (1126.0, "19 minutes"),
            (7000.0, "2 hours"),
        ] {
            assert_eq!(describe_duration(Duration::from_secs_f64(seconds)), text);
        }
    }

    #[test]
    fn the_embedded_model_takes_minutes_to_calibrate_and_no_second_to_round() {
        let source = Source::embedded().unwrap();
        let checkpoint = Checkpoint::open(&source.dir).unwrap();
        assert!(estimate_round_to_nearest(&checkpoint) < Duration::from_secs(1));
        let on = |device| {
            let calibration = Calibration { device, ..Calibration::default() };
            estimate_calibration(&checkpoint, &calibration)
        };
        let with_threads = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| on(Device::Cpu))
        };
        // 170 s were measured with two threads, 30 s on an H100.
        let two = with_threads(2).as_secs();
        assert!((85..340).contains(&two), "{two}");
        assert!(with_threads(4) < with_threads(2));
        let gpu = on(Device::Cuda).as_secs();
        assert!((15..60).contains(&gpu), "{gpu}");
    }
}
