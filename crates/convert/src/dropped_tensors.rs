//! Records of dropped tensors, which the text model does not need.

use q35_checkpoint::Inventory;
use q35_output_dir::TensorRecord;
use serde_json::Map;

/// A record per dropped tensor, for the manifest.
pub(crate) fn records(inventory: &Inventory) -> impl Iterator<Item = TensorRecord> {
    inventory.dropped.iter().flat_map(|dropped| {
        dropped.names.iter().map(|name| TensorRecord {
            name: name.clone(),
            decision: "dropped".to_owned(),
            details: Map::from_iter([("part".to_owned(), dropped.part.label().into())]),
        })
    })
}
