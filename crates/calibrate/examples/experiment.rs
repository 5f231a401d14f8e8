use q35_calibrate::*; use q35_checkpoint::Checkpoint; use q35_model::Weights; use q35_text::Tokenizer; use std::ops::ControlFlow; use std::time::Instant;
use candle_core::Device;
fn env(n: &str, d: f64) -> f64 { std::env::var(n).ok().and_then(|v| v.parse().ok()).unwrap_or(d) }
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let dir = std::path::Path::new(&a[1]);
    let ck = Checkpoint::open(dir).unwrap();
    let tok = Tokenizer::from_dir(dir).unwrap();
    let text = std::fs::read_to_string(&a[2]).unwrap();
    let mut ids = tok.encode(&text).unwrap();
    ids.truncate(env("TOKENS", 1e9) as usize);
    let eval = tok.encode(&std::fs::read_to_string(&a[3]).unwrap()).unwrap();
    let eval = &eval[..(env("EVAL", 8192.0) as usize).min(eval.len())];
    let w: u64 = q35_model::tensor_table(ck.config()).iter().filter(|s| s.role.is_quantized()).map(|s| s.shape.iter().product::<usize>() as u64).sum();
    let steps = env("STEPS", 0.0) as usize;
    let s = Settings { budget_bytes: (env("BPW", 4.66) * w as f64 / 8.0) as u64,
        uniform: if env("UNI", 0.0) > 0.0 { Some((env("UNI", 0.0) as u32, 64)) } else { None },
        window: env("WIN", 256.0) as usize, batch: env("BATCH", 8.0) as usize, sensitivity_windows: env("SENS", 32.0) as usize, feedback: env("FB", 1.0) > 0.0, damping: env("DAMP", 0.01),
        learning: (steps > 0).then(|| Learning { steps, rates: Rates { scale: env("RS", 2e-3) as f32, bias: env("RB", 2e-2) as f32, code: env("RC", 0.0) as f32, float: env("RF", 5e-4) as f32 } }), seed: 1 };
    println!("{} calibration tokens, {s:?}", ids.len());
    let t = Instant::now();
    let mut run = 0.0; 
    let r = calibrate(&ck, &ids, &s, &Device::Cpu, &mut |p| { if let Some(d) = p.divergence { run = if p.done == 1 { d } else { 0.9 * run + 0.1 * d }; if p.done % 10 == 0 || p.done < 3 { println!("{:.0?} {p:?} avg {run:.4}", t.elapsed()); } } else if p.done == p.total { println!("{:.0?} {:?}", t.elapsed(), p.stage); } ControlFlow::Continue(()) }).unwrap();
    if env("SHOW", 0.0) > 0.0 { for (n, d) in &r.decisions { println!("{n} {} {} {:.2e}", d.bits, d.group_size, d.expected_kl); } }
    println!("expected {:.4e}", r.decisions.values().map(|d| d.expected_kl).sum::<f64>());
    let t2 = Instant::now();
    println!("RESULT prose {:.4e}  ({:.0?} calib, {:.0?} eval)", mean_divergence(&ck, &r.tensors, eval, 512, &Device::Cpu).unwrap(), t.elapsed(), t2.elapsed());
    if let Some(f) = a.get(4) { let e = tok.encode(&std::fs::read_to_string(f).unwrap()).unwrap(); let e = &e[..e.len().min(8192)]; println!("RESULT other {:.4e}", mean_divergence(&ck, &r.tensors, e, 512, &Device::Cpu).unwrap()); }
}
