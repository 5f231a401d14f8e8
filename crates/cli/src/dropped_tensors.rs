//! Dropped tensors, which text conversions do not need, as every command prints them.

use q35_checkpoint::Inventory;
use serde_json::{Value, json};

use crate::output::{bytes, grouped, line};

/// One object per dropped part of the checkpoint.
pub fn to_json(inventory: &Inventory) -> Vec<Value> {
    inventory
        .dropped
        .iter()
        .map(|part| {
            json!({
                "part": part.part.label(), "tensors": part.names.len(),
                "weights": part.elements, "bytes": part.bytes,
            })
        })
        .collect()
}

/// Prints a line per dropped part, each after `prefix`.
///
/// # Errors
/// stdout is closed.
pub fn print(inventory: &Inventory, prefix: &str) -> std::io::Result<()> {
    inventory.dropped.iter().try_for_each(|part| {
        line(format!(
            "{prefix}: {}, {} tensors, {} weights, {}",
            part.part.label(),
            part.names.len(),
            grouped(part.elements),
            bytes(part.bytes)
        ))
    })
}
