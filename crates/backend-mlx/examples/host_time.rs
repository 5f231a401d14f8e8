//! Measures decode and prefill of an MLX directory and the worker thread's time per pass, and prints one JSON object:
//! `host_time DIR [--device cpu|gpu] [-p TOKENS] [-n TOKENS] [-r REPETITIONS]`. Tokens are pseudo-random.
#![allow(clippy::print_stdout, reason = "an example is a program")]

#[cfg(not(feature = "mlx"))]
fn main() {
    println!("build this example with --features mlx");
}

#[cfg(feature = "mlx")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    measurement::run()
}

#[cfg(feature = "mlx")]
mod measurement {
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::Instant;

    use q35_backend_mlx::{HostTimes, MlxDevice, MlxModel};
    use q35_format_mlx::MlxDirectory;
    use q35_inference::{Discard, LogitsFor, Model};

    struct Arguments {
        dir: PathBuf,
        device: MlxDevice,
        prompt: usize,
        generate: usize,
        repetitions: usize,
    }

    fn arguments() -> Result<Arguments, Box<dyn std::error::Error>> {
        let mut result = Arguments {
            dir: PathBuf::new(),
            device: MlxDevice::default(),
            prompt: 512,
            generate: 64,
            repetitions: 3,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--device" => {
                    result.device = match value()?.as_str() {
                        "cpu" => MlxDevice::Cpu,
                        "gpu" => MlxDevice::Gpu,
                        other => return Err(format!("unknown device {other}").into()),
                    }
                }
                "-p" => result.prompt = value()?.parse()?,
                "-n" => result.generate = value()?.parse()?,
                "-r" => result.repetitions = value()?.parse()?,
                _ => result.dir = argument.into(),
            }
        }
        Ok(result)
    }

    pub fn run() -> Result<(), Box<dyn std::error::Error>> {
        let arguments = arguments()?;
        let start = Instant::now();
        let model = MlxModel::load(Arc::new(MlxDirectory::open(&arguments.dir)?), arguments.device)?;
        let load_s = start.elapsed().as_secs_f64();
        let vocab = model.config().vocab_size as u32;
        let id = |i: usize| (i as u32).wrapping_mul(2_654_435_761) % vocab;
        let prompt: Vec<u32> = (0..arguments.prompt).map(id).collect();
        let mut sequence = model.new_sequence(arguments.prompt + arguments.generate + 1)?;
        let (mut prefill, mut decode) = (Vec::new(), Vec::new());
        let mut spent = HostTimes::default();
        for repetition in 0..=arguments.repetitions {
            sequence.reset();
            let start = Instant::now();
            sequence.extend(&prompt, LogitsFor::LastToken, &mut Discard)?;
            let prefill_s = start.elapsed().as_secs_f64();
            let before = model.host_times()?;
            let start = Instant::now();
            for i in 0..arguments.generate {
                sequence.extend(&[id(i + 7)], LogitsFor::LastToken, &mut Discard)?;
            }
            let decode_s = start.elapsed().as_secs_f64();
            // The first repetition compiles kernels and fills caches.
            if repetition > 0 {
                let after = model.host_times()?;
                prefill.push(arguments.prompt as f64 / prefill_s);
                decode.push(arguments.generate as f64 / decode_s);
                spent.passes += after.passes - before.passes;
                spent.build += after.build - before.build;
                spent.submit += after.submit - before.submit;
                spent.wait += after.wait - before.wait;
            }
        }
        let per_token = |time: std::time::Duration| time.as_secs_f64() * 1e6 / spent.passes.max(1) as f64;
        println!(
            "{{\"backend\": \"{}\", \"unfused_reason\": {:?}, \"load_s\": {load_s:.3}, \"prompt\": {}, \"generate\": {}, \"prefill_tok_s\": \
             {:.1}, \"decode_tok_s\": {:.1}, \"build_us_per_token\": {:.1}, \"submit_us_per_token\": {:.1}, \
             \"wait_us_per_token\": {:.1}}}",
            model.describe(),
            model.unfused_reason().unwrap_or_default(),
            arguments.prompt,
            arguments.generate,
            median(prefill),
            median(decode),
            per_token(spent.build),
            per_token(spent.submit),
            per_token(spent.wait),
        );
        Ok(())
    }

    fn median(mut values: Vec<f64>) -> f64 {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(0.0)
    }
}
