//! The model card, README.md beside the weights.

use crate::Provenance;
use crate::target::CardSection;

/// The text of the card; `parity` is the outcome of the check that followed.
pub(crate) fn model_card(provenance: &Provenance, section: &CardSection, parity: &str) -> String {
    let base_model = match &provenance.id {
        Some(id) if provenance.is_from_hub => {
            format!("base_model: {id}\nbase_model_relation: quantized\n")
        }
        _ => String::new(),
    };
    let source = match (&provenance.id, &provenance.revision) {
        (Some(id), Some(revision)) => format!("`{id}` at revision `{revision}`"),
        (Some(id), None) => format!("`{id}`"),
        (None, _) => "a local checkpoint".to_owned(),
    };
    format!(
        "---\nlibrary_name: {library}\npipeline_tag: text-generation\ntags:\n- {library}\n{base_model}---\n\n\
         # {title}\n\n\
         Converted from {source} by q35 {version}: the language model alone, without vision tower and \
         multi-token-prediction block.\n\n\
         {body}\n\
         `manifest.json` records the hashes of all source and output files and what became of each tensor.\n\n\
         Parity with the float model: {parity}.\n",
        library = section.library,
        title = section.title,
        version = provenance.tool_version,
        body = section.body,
    )
}
