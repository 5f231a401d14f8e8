//! `q35-convert inspect`: the tensors and packages of a checkpoint, a converted model or a file.

use std::collections::BTreeMap;
use std::path::Path;

use q35_architecture::{LayerKind, Role, TensorSpec, TextConfig};
use q35_artefact::{ArtefactDir, ArtefactKind};
use q35_checkpoint::{Checkpoint, SafetensorsFile};
use q35_format_mlx::{MlxDirectory, MlxTensor};
use serde_json::{Value, json};

use crate::backend::VariantArg;
use crate::commands::{Context, inspect_package};
use crate::dropped_tensors;
use crate::exit::Outcome;
use crate::output::{Table, bytes, grouped, json as print_json, line, note};
use crate::source::resolve;

/// Arguments of `q35-convert inspect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A checkpoint or a converted model (a directory, a hub id, or q35-nano), a .mlpackage, or a .safetensors file
    #[arg(value_name = "DIR|ID|FILE")]
    pub path: String,

    /// The variant.
    #[command(flatten)]
    pub variant: VariantArg,
}

/// Runs `q35-convert inspect`.
///
/// # Errors
/// The path holds no model, or a damaged one.
pub fn run(args: &Args, context: Context) -> anyhow::Result<Outcome> {
    let path = Path::new(&args.path);
    if inspect_package::is_package(path) {
        return inspect_package::run(&[path.to_owned()], context);
    }
    if path.is_file() {
        file(path, context)?;
        return Ok(Outcome::Done);
    }
    let variant = args.variant.name();
    let source = resolve(&args.path, None, variant, context.watcher)?;
    let found = ArtefactDir::recognise(&source.dir, variant)?;
    match found.kind {
        ArtefactKind::CoreMl => return inspect_package::run(&found.packages(), context),
        ArtefactKind::Mlx => mlx(&found.dir, context)?,
        ArtefactKind::Checkpoint => checkpoint(&found.dir, context)?,
        _ => return Err(found.refuse_compiled().into()),
    }
    Ok(Outcome::Done)
}

/// The tensors of one part of the model that have the same storage.
#[derive(Default)]
struct Group {
    tensors: usize,
    weights: u64,
    bytes: u64,
}

/// Tensors by part and storage, in the order of the model.
#[derive(Default)]
struct Groups(BTreeMap<(usize, &'static str, String), Group>);

impl Groups {
    fn add(&mut self, spec: &TensorSpec, representation: String, bytes: u64) {
        let (order, part) = part(spec);
        let group = self.0.entry((order, part, representation)).or_default();
        group.tensors += 1;
        group.weights += spec.shape.iter().map(|&dim| dim as u64).product::<u64>();
        group.bytes += bytes;
    }

    fn json(&self) -> Value {
        let group = |((_, part, stored), group): (&(usize, &str, String), &Group)| {
            json!({
                "part": part, "stored": stored, "tensors": group.tensors,
                "weights": group.weights, "bytes": group.bytes,
            })
        };
        self.0.iter().map(group).collect()
    }

    fn table(&self) -> String {
        let mut table = Table::with_titles(["part", "stored as", "tensors", "weights", "size"]);
        for ((_, part, stored), group) in &self.0 {
            table.row([
                (*part).to_owned(),
                stored.clone(),
                group.tensors.to_string(),
                grouped(group.weights),
                bytes(group.bytes),
            ]);
        }
        table.render()
    }
}

/// The part of the model that a tensor belongs to, after its rank in a listing.
fn part(spec: &TensorSpec) -> (usize, &'static str) {
    match spec.role {
        Role::Embedding => (0, "embedding"),
        Role::Linear if spec.name.contains(".linear_attn.") => (1, "linear attention"),
        Role::Linear if spec.name.contains(".self_attn.") => (2, "full attention"),
        Role::Linear => (3, "mlp"),
        Role::Head => (4, "head"),
        Role::CenteredNorm | Role::GatedNorm => (5, "norms"),
        Role::Convolution => (6, "convolutions"),
        Role::DecayLog | Role::StepBias => (7, "decay"),
    }
}

fn sizes(config: &TextConfig) -> String {
    format!(
        "  {} layers: {} of linear attention, {} of full attention\n  \
         hidden {}, mlp {}, vocabulary {}, {} head",
        config.num_hidden_layers,
        config.layers_of(LayerKind::LinearAttention).count(),
        config.layers_of(LayerKind::FullAttention).count(),
        config.hidden_size,
        config.intermediate_size,
        config.vocab_size,
        if config.tie_word_embeddings { "tied" } else { "separate" },
    )
}

fn mlx(path: &Path, context: Context) -> anyhow::Result<()> {
    let directory = MlxDirectory::open(path)?;
    let mut groups = Groups::default();
    for (spec, tensor) in directory.tensors() {
        let representation = match tensor {
            MlxTensor::Packed(packed) => {
                format!("{} bits / {}", packed.spec.bits(), packed.spec.group_size())
            }
            MlxTensor::Float(float) => float.float.torch_name().to_owned(),
        };
        groups.add(spec, representation, tensor.bytes() as u64);
    }
    if context.json {
        return print_json(&json!({
            "kind": "mlx",
            "dir": directory.dir(),
            "config": directory.config().to_json(),
            "bits_per_weight": directory.bits_per_weight(),
            "bytes": directory.weight_bytes(),
            "groups": groups.json(),
        }));
    }
    line(format!("{}: MLX model", directory.dir().display()))?;
    line(sizes(directory.config()))?;
    line(format!(
        "  {} of tensors, {:.3} bits per matrix weight\n",
        bytes(directory.weight_bytes()),
        directory.bits_per_weight()
    ))?;
    Ok(line(groups.table())?)
}

fn checkpoint(path: &Path, context: Context) -> anyhow::Result<()> {
    let checkpoint = Checkpoint::open(path)?;
    let mut groups = Groups::default();
    for tensor in checkpoint.tensors() {
        groups.add(tensor.spec, tensor.dtype.torch_name().to_owned(), tensor.data.len() as u64);
    }
    let inventory = checkpoint.inventory();
    if context.json {
        return print_json(&json!({
            "kind": "checkpoint",
            "dir": path,
            "config": checkpoint.config().to_json(),
            "weights": inventory.kept_elements,
            "bytes": inventory.kept_bytes,
            "groups": groups.json(),
            "besides": dropped_tensors::to_json(inventory),
            "notes": checkpoint.notes().iter().map(ToString::to_string).collect::<Vec<_>>(),
        }));
    }
    line(format!("{}: Hugging Face checkpoint", path.display()))?;
    line(sizes(checkpoint.config()))?;
    let files = checkpoint.weight_files().len();
    line(format!(
        "  {} weights in {} tensors, {} in {files} file{}\n",
        grouped(inventory.kept_elements),
        inventory.kept_count,
        bytes(inventory.kept_bytes),
        if files == 1 { "" } else { "s" }
    ))?;
    line(groups.table())?;
    dropped_tensors::print(inventory, "besides")?;
    checkpoint.notes().iter().for_each(|text| note(format!("note: {text}")));
    Ok(())
}

fn file(path: &Path, context: Context) -> anyhow::Result<()> {
    let file = SafetensorsFile::open(path)?;
    if context.json {
        let tensors: Vec<Value> = file
            .tensors()
            .map(|tensor| {
                json!({
                    "name": tensor.name, "dtype": tensor.dtype.to_string(),
                    "shape": tensor.shape, "bytes": tensor.data.len(),
                })
            })
            .collect();
        return print_json(&json!({
            "kind": "safetensors", "file": path, "metadata": file.metadata(), "tensors": tensors,
        }));
    }
    line(format!(
        "{}: {} tensors, {}",
        path.display(),
        file.tensors().count(),
        bytes(file.bytes().len() as u64)
    ))?;
    file.metadata().iter().try_for_each(|(key, value)| line(format!("  {key} = {value}")))?;
    let mut table = Table::with_titles(["name", "dtype", "shape", "size"]);
    for tensor in file.tensors() {
        let (dtype, shape) = (tensor.dtype.to_string(), format!("{:?}", tensor.shape));
        table.row([tensor.name.to_owned(), dtype, shape, bytes(tensor.data.len() as u64)]);
    }
    Ok(line(table.render())?)
}
