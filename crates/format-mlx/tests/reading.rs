//! Directories that must not be taken for what they are not.

use std::fs;
use std::path::PathBuf;

use q35_checkpoint::{Checkpoint, SafetensorsFile};
use q35_format_mlx::{MlxDirectory, MlxTensor, RoundToNearest, WriteOptions, write};
use q35_quant::affine::AffineSpec;
use q35_testkit::TinyCheckpoint;
use safetensors::tensor::{Dtype, View};
use serde_json::{Value, json};
use tempfile::TempDir;

struct Converted {
    home: TempDir,
}

impl Converted {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let (source, out) = (home.path().join("source"), home.path().join("out"));
        TinyCheckpoint::new().write_to(&source);
        fs::create_dir(&out).unwrap();
        let recipe = RoundToNearest(AffineSpec::new(4, 64).unwrap());
        write(&Checkpoint::open(&source).unwrap(), &recipe, &WriteOptions::default(), &out, &|_| {}).unwrap();
        Self { home }
    }

    fn out(&self) -> PathBuf {
        self.home.path().join("out")
    }

    fn edit_config(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.out().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        edit(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    /// Writes the tensors anew after a change.
    fn edit_tensors(&self, edit: impl FnOnce(&mut Vec<Owned>)) {
        let path = self.out().join("model.safetensors");
        let mut tensors: Vec<Owned> = {
            let file = SafetensorsFile::open(&path).unwrap();
            let owned = |tensor: q35_checkpoint::StoredTensor<'_>| Owned {
                name: tensor.name.to_owned(),
                dtype: match tensor.dtype.to_string().as_str() {
                    "U32" => Dtype::U32,
                    "F32" => Dtype::F32,
                    _ => Dtype::BF16,
                },
                shape: tensor.shape.to_vec(),
                data: tensor.data.to_vec(),
            };
            file.tensors().map(owned).collect()
        };
        edit(&mut tensors);
        // The index lists the old ones.
        let _ = fs::remove_file(self.out().join("model.safetensors.index.json"));
        let named: Vec<(String, &Owned)> =
            tensors.iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        fs::write(path, safetensors::serialize(named, None).unwrap()).unwrap();
    }

    fn error(&self) -> String {
        MlxDirectory::open(&self.out()).unwrap_err().to_string()
    }
}

struct Owned {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl View for &Owned {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> std::borrow::Cow<'_, [u8]> {
        self.data.as_slice().into()
    }
    fn data_len(&self) -> usize {
        self.data.len()
    }
}

const UP: &str = "language_model.model.layers.2.mlp.up_proj";

fn find<'a>(tensors: &'a mut [Owned], name: &str) -> &'a mut Owned {
    tensors.iter_mut().find(|tensor| tensor.name == name).unwrap()
}

#[test]
fn config_and_tensors_must_agree() {
    let converted = Converted::new();
    converted.edit_config(|config| config["quantization"]["bits"] = json!(8));
    assert!(
        converted
            .error()
            .contains("states 8 bits in groups of 64, its shape is that of 4 bits in groups of 64")
    );
    converted.edit_config(|config| config["quantization"] = json!({"bits": 4, "group_size": 32}));
    assert!(converted.error().contains("groups of 32"));
    converted.edit_config(|config| {
        config["quantization"] = json!({"bits": 4, "group_size": 64, UP: {"bits": 6, "group_size": 64}})
    });
    assert!(converted.error().contains(UP) && converted.error().contains("states 6 bits"));
    converted.edit_config(|config| config["quantization"] = json!({"bits": 4, "group_size": 64, UP: false}));
    assert!(converted.error().contains("is not quantized"));
    converted.edit_config(|config| config["text_config"]["vocab_size"] = json!(321));
    assert!(converted.error().contains("expected 321 rows"));
}

#[test]
fn a_matrix_in_float_is_read_as_such() {
    let converted = Converted::new();
    converted.edit_config(|config| config["quantization"][UP] = json!(false));
    converted.edit_tensors(|tensors| {
        tensors.retain(|tensor| !tensor.name.starts_with(UP));
        let (name, shape) = (format!("{UP}.weight"), vec![256, 128]);
        tensors.push(Owned { name, dtype: Dtype::BF16, shape, data: vec![0; 2 * 256 * 128] });
    });
    let directory = MlxDirectory::open(&converted.out()).unwrap();
    assert!(matches!(directory.tensor("layers.2.mlp.up_proj.weight"), Some(MlxTensor::Float(_))));
    converted.edit_config(|config| config["quantization"][UP] = json!({"bits": 4, "group_size": 64}));
    assert!(converted.error().contains("it has no scales"));
}

#[test]
fn missing_unknown_and_mistyped_tensors_are_named() {
    type Edit<'a> = &'a dyn Fn(&mut Vec<Owned>);
    let cases: [(Edit<'_>, &str); 6] = [
        (
            &|tensors| tensors.retain(|tensor| tensor.name != format!("{UP}.biases")),
            "its weight or biases are missing",
        ),
        (&|tensors| tensors.retain(|tensor| !tensor.name.ends_with("A_log")), "missing, expected [2]"),
        (&|tensors| find(tensors, &format!("{UP}.weight")).name = "extra".to_owned(), "`extra`: unknown"),
        (
            &|tensors| find(tensors, &format!("{UP}.weight")).dtype = Dtype::F32,
            "expected U32 words, found F32",
        ),
        (&|tensors| find(tensors, &format!("{UP}.scales")).shape = vec![128, 4], "expected 256 rows"),
        (
            &|tensors| find(tensors, "language_model.model.norm.weight").shape = vec![64, 2],
            "expected [128], found [64, 2]",
        ),
    ];
    for (edit, message) in cases {
        let converted = Converted::new();
        converted.edit_tensors(edit);
        let error = converted.error();
        assert!(error.contains(message), "{message}: {error}");
    }
}

#[test]
fn damaged_files_are_errors() {
    let converted = Converted::new();
    let path = converted.out().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(converted.error().contains("truncated"));
    fs::write(&path, b"").unwrap();
    assert!(converted.error().contains("truncated"));
    fs::remove_file(&path).unwrap();
    assert!(converted.error().contains("shard `model.safetensors` is missing"));
    fs::write(converted.out().join("config.json"), "{").unwrap();
    assert!(converted.error().contains("not valid JSON"));
}

#[test]
fn a_float_checkpoint_is_told_from_an_mlx_model_and_the_other_way_round() {
    let converted = Converted::new();
    let source = converted.home.path().join("source");
    assert!(MlxDirectory::matches(&converted.out()) && !MlxDirectory::matches(&source));
    let error = MlxDirectory::open(&source).unwrap_err().to_string();
    assert!(error.contains("not an MLX model but a float checkpoint"), "{error}");
    let error = Checkpoint::open(&converted.out()).unwrap_err().to_string();
    assert!(error.contains("an MLX conversion already"), "{error}");
}
