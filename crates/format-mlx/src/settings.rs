//! The quantization settings of config.json, in the forms of mlx-lm and speech-swift.

use std::collections::HashMap;
use std::path::Path;

use q35_quant::affine::AffineSpec;
use serde_json::Value;

use crate::MlxError;
use crate::names::text_model_name;

/// Bits and group size, each [`None`] if config.json does not state it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stated {
    pub(crate) bits: Option<u64>,
    pub(crate) group_size: Option<u64>,
}

impl Stated {
    /// True if `spec` agrees with the stated values.
    pub(crate) fn admits(self, spec: AffineSpec) -> bool {
        self.bits.is_none_or(|bits| bits == u64::from(spec.bits()))
            && self.group_size.is_none_or(|size| size == spec.group_size() as u64)
    }
}

/// Statement about one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Module {
    /// Quantized with these bits and group size.
    Quantized(Stated),
    /// Not quantized.
    Float,
}

/// The quantization entry of config.json.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    /// Default of modules without an entry; [`None`] if the model is not quantized.
    pub(crate) default: Option<Stated>,
    /// Statements by the module's name in the text model, `layers.0.mlp.up_proj`.
    modules: HashMap<String, Module>,
}

impl Settings {
    /// Reads `quantization`: an object (mlx-lm), or a label with `quantization_bits` and `quantization_group_size` beside
    /// it (speech-swift).
    pub(crate) fn from_config(path: &Path, config: &Value) -> Result<Self, MlxError> {
        let reader = Reader { path };
        match config.get("quantization").or_else(|| config.get("quantization_config")) {
            None | Some(Value::Null) => Ok(Self::default()),
            Some(Value::String(label)) => reader.label(label, config),
            Some(Value::Object(table)) => reader.table(table),
            Some(other) => Err(reader.error("quantization", "an object or a label such as \"int4\"", other)),
        }
    }

    /// The statement about the module `name` of the text model.
    pub(crate) fn of(&self, name: &str) -> Option<Module> {
        self.modules.get(name).copied()
    }
}

struct Reader<'a> {
    path: &'a Path,
}

impl Reader<'_> {
    fn error(&self, field: &str, expected: &str, found: &Value) -> MlxError {
        MlxError::Quantization {
            path: self.path.to_owned(),
            field: field.to_owned(),
            expected: expected.to_owned(),
            found: found.to_string(),
        }
    }

    fn label(&self, label: &str, config: &Value) -> Result<Settings, MlxError> {
        let labelled = label.strip_prefix("int").and_then(|digits| digits.parse::<u64>().ok());
        let bits = match (labelled, self.number(config, "quantization_bits")?) {
            (Some(labelled), Some(bits)) if labelled != bits => {
                let expected = format!("{labelled}, as the label `{label}` says");
                return Err(self.error("quantization_bits", &expected, &bits.into()));
            }
            (None, None) => {
                return Err(self.error(
                    "quantization",
                    "a label such as \"int4\", or quantization_bits",
                    &label.into(),
                ));
            }
            (labelled, bits) => bits.or(labelled),
        };
        let group_size = self.number(config, "quantization_group_size")?;
        let stated = self.supported("quantization", Stated { bits, group_size })?;
        Ok(Settings { default: Some(stated), modules: HashMap::new() })
    }

    fn table(&self, table: &serde_json::Map<String, Value>) -> Result<Settings, MlxError> {
        let mut modules = HashMap::new();
        for (key, value) in table {
            let module = match value {
                Value::Object(_) => Module::Quantized(self.stated(key, value)?),
                Value::Bool(false) => Module::Float,
                Value::Bool(true) => continue,
                _ if key.contains('.') => return Err(self.error(key, "an object, true or false", value)),
                _ => continue,
            };
            if let Some(name) = text_model_name(key) {
                modules.insert(name.to_owned(), module);
            }
        }
        let default = self.stated("quantization", &Value::Object(table.clone()))?;
        Ok(Settings { default: Some(default), modules })
    }

    fn stated(&self, field: &str, value: &Value) -> Result<Stated, MlxError> {
        match value.get("mode") {
            None | Some(Value::Null) => {}
            Some(mode) if mode == "affine" => {}
            Some(mode) => return Err(self.error(&format!("{field}.mode"), "\"affine\"", mode)),
        }
        if let Some(method) = value.get("quant_method") {
            return Err(self.error(
                &format!("{field}.quant_method"),
                "MLX's own affine quantization",
                method,
            ));
        }
        let stated =
            Stated { bits: self.number(value, "bits")?, group_size: self.number(value, "group_size")? };
        self.supported(field, stated)
    }

    fn number(&self, value: &Value, field: &str) -> Result<Option<u64>, MlxError> {
        match value.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(number) => match number.as_u64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.error(field, "a whole number", number)),
            },
        }
    }

    fn supported(&self, field: &str, stated: Stated) -> Result<Stated, MlxError> {
        let bits_known = |bits: u64| AffineSpec::BITS.iter().any(|known| u64::from(*known) == bits);
        let size_known = |size: u64| AffineSpec::GROUP_SIZES.iter().any(|known| *known as u64 == size);
        match stated {
            Stated { bits: Some(bits), .. } if !bits_known(bits) => Err(self.error(
                &format!("{field}.bits"),
                &format!("one of {:?}", AffineSpec::BITS),
                &bits.into(),
            )),
            Stated { group_size: Some(size), .. } if !size_known(size) => {
                let expected = format!("one of {:?}", AffineSpec::GROUP_SIZES);
                Err(self.error(&format!("{field}.group_size"), &expected, &size.into()))
            }
            stated => Ok(stated),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: Value) -> Result<Settings, String> {
        Settings::from_config(Path::new("config.json"), &config).map_err(|error| error.to_string())
    }

    #[test]
    fn both_forms_are_read() {
        let stated = |bits, group_size| Stated { bits, group_size };
        let table = read(json!({"quantization": {"bits": 4, "group_size": 64, "mode": "affine",
            "language_model.model.layers.0.mlp.up_proj": {"bits": 8, "group_size": 32},
            "language_model.model.embed_tokens": false, "language_model.lm_head": true}}))
        .unwrap();
        assert_eq!(table.default, Some(stated(Some(4), Some(64))));
        assert_eq!(table.of("layers.0.mlp.up_proj"), Some(Module::Quantized(stated(Some(8), Some(32)))));
        assert_eq!(table.of("embed_tokens"), Some(Module::Float));
        assert_eq!(table.of("lm_head"), None);
        let label = read(json!({"quantization": "int4"})).unwrap();
        assert_eq!(label.default, Some(stated(Some(4), None)));
        let with_sizes =
            read(json!({"quantization": "int5", "quantization_bits": 5, "quantization_group_size": 32}))
                .unwrap();
        assert_eq!(with_sizes.default, Some(stated(Some(5), Some(32))));
        assert_eq!(read(json!({})).unwrap().default, None);
    }

    #[test]
    fn unsupported_settings_are_refused_by_name() {
        for (config, message) in [
            (json!({"quantization": {"bits": 7, "group_size": 64}}), "quantization.bits"),
            (json!({"quantization": {"bits": 4, "group_size": 16}}), "group_size"),
            (json!({"quantization": {"bits": "4"}}), "whole number"),
            (json!({"quantization": {"bits": 4, "mode": "mxfp4"}}), "affine"),
            (json!({"quantization": "int4", "quantization_bits": 8}), "as the label"),
            (json!({"quantization": "awq"}), "label such as"),
            (json!({"quantization": 4}), "an object or a label"),
            (json!({"quantization_config": {"quant_method": "fp8"}}), "quant_method"),
            (json!({"quantization": {"bits": 4, "model.embed_tokens": 3}}), "model.embed_tokens"),
        ] {
            let error = read(config).unwrap_err();
            assert!(error.contains(message), "{message}: {error}");
        }
    }
}
