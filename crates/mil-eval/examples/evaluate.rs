//! Calls a function of a package once per step with inputs from a safetensors file, so that the evaluator can be compared
//! with another implementation on the same inputs.
//!
//! Every input has an extra first axis, the steps, except inputs named by `--carry`, which are replaced after each step
//! by an output. States start at zero (or `--state-in`) and persist between steps.
#![allow(clippy::print_stderr, reason = "an example is a program")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Parser;
use half::f16;
use q35_mil_eval::{Data, Precision, Program, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

#[derive(Parser)]
struct Arguments {
    /// Directory of the package.
    package: PathBuf,
    /// Inputs, a safetensors file.
    #[arg(long)]
    inputs: PathBuf,
    /// Output file: outputs, states (as `state.NAME`) and watched values.
    #[arg(long)]
    outputs: PathBuf,
    /// Name of the function; by default the package's default function.
    #[arg(long)]
    function: Option<String>,
    /// Initial states, a safetensors file that this program wrote.
    #[arg(long)]
    state_in: Option<PathBuf>,
    /// `OUT:IN`: the output OUT becomes the next step's input IN.
    #[arg(long)]
    carry: Vec<String>,
    /// Names of intermediate values to write as well.
    #[arg(long)]
    watch: Vec<String>,
    /// Round fp16 values as the program declares them.
    #[arg(long)]
    half: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let precision = if arguments.half { Precision::Half } else { Precision::Exact };
    let started = std::time::Instant::now();
    let program = Program::load(&arguments.package, precision)?;
    let function = arguments.function.as_deref().unwrap_or_else(|| program.default_function());
    eprintln!(
        "loaded in {:.3} s, {} steps",
        started.elapsed().as_secs_f64(),
        program.function(function)?.steps()
    );
    let mut state = program.new_state();
    if let Some(path) = &arguments.state_in {
        for (name, tensor) in read(path)? {
            if let Some(name) = name.strip_prefix("state.") {
                state.set(name, tensor)?;
            }
        }
    }
    let given = read(&arguments.inputs)?;
    let carries: Vec<(&str, &str)> = arguments
        .carry
        .iter()
        .map(|pair| pair.split_once(':').with_context(|| format!("--carry {pair}: expected OUT:IN")))
        .collect::<Result<_>>()?;
    let mut carried = BTreeMap::new();
    let mut stepped = BTreeMap::new();
    for (name, tensor) in given {
        if carries.iter().any(|(_, input)| *input == name) {
            carried.insert(name, tensor);
        } else {
            stepped.insert(name, tensor);
        }
    }
    let steps = stepped.values().map(|tensor| tensor.shape()[0]).max().unwrap_or(1);
    let mut kept: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
    let started = std::time::Instant::now();
    for step in 0..steps {
        let mut inputs = carried.clone();
        for (name, tensor) in &stepped {
            inputs.insert(name.clone(), slice(tensor, step)?);
        }
        let mut watched = BTreeMap::new();
        let mut watcher = |name: &str, tensor: &Tensor| {
            if arguments.watch.iter().any(|wanted| wanted == name) {
                watched.insert(name.to_owned(), tensor.clone());
            }
        };
        let outputs = program.run_watched(function, inputs, &mut state, &mut watcher)?;
        for (output, input) in &carries {
            let value = outputs.get(*output).with_context(|| format!("no output {output}"))?;
            carried.insert((*input).to_owned(), value.clone());
        }
        for (name, tensor) in outputs.into_iter().chain(watched) {
            kept.entry(name).or_default().push(tensor);
        }
    }
    eprintln!("{steps} steps in {:.3} s", started.elapsed().as_secs_f64());
    let mut results = Vec::new();
    for (name, tensors) in kept {
        let last_only = carries.iter().any(|(output, _)| *output == name);
        let tensors = if last_only { &tensors[tensors.len() - 1..] } else { &tensors[..] };
        let mut shape = tensors[0].shape().to_vec();
        if !last_only {
            shape.insert(0, tensors.len());
        }
        let values = tensors.iter().flat_map(numbers).collect();
        results.push((name, shape, values));
    }
    for (name, ty) in state.types() {
        let values = state.get(name).map(numbers).with_context(|| format!("state {name} is lost"))?;
        results.push((format!("state.{name}"), ty.shape.clone(), values));
    }
    write(&arguments.outputs, results)
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    match tensor.data() {
        Data::Float(values) => values.to_vec(),
        Data::Int(values) => values.iter().map(|&v| v as f32).collect(),
        Data::Bool(values) => values.iter().map(|&v| f32::from(v)).collect(),
        Data::Text(_) => Vec::new(),
    }
}

fn slice(tensor: &Tensor, step: usize) -> Result<Tensor> {
    let shape = &tensor.shape()[1..];
    let size: usize = shape.iter().product();
    Ok(match tensor.data() {
        Data::Float(values) => Tensor::float(shape, values[step * size..(step + 1) * size].to_vec()),
        Data::Int(values) => Tensor::int(shape, values[step * size..(step + 1) * size].to_vec()),
        _ => bail!("inputs are numbers"),
    })
}

fn read(path: &PathBuf) -> Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let file = SafeTensors::deserialize(&bytes)?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let data = view.data();
        let float = |values: Vec<f32>| Tensor::float(view.shape(), values);
        let tensor = match view.dtype() {
            Dtype::F32 => {
                float(data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
            }
            Dtype::F16 => {
                float(data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect())
            }
            Dtype::I32 => Tensor::int(
                view.shape(),
                data.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            ),
            other => bail!("{name}: {other:?} is no type of an input"),
        };
        tensors.insert(name, tensor);
    }
    Ok(tensors)
}

fn write(path: &PathBuf, tensors: Vec<(String, Vec<usize>, Vec<f32>)>) -> Result<()> {
    let bytes: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, shape, values)| (name, shape, values.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = bytes
        .iter()
        .map(|(name, shape, data)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), data)?)))
        .collect::<Result<Vec<_>>>()?;
    std::fs::write(path, safetensors::serialize(views, None)?).with_context(|| path.display().to_string())
}
