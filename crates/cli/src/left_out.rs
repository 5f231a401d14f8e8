//! The parts of a checkpoint that no conversion takes, as every command shows them.

use q35_checkpoint::Inventory;
use serde_json::{Value, json};

use crate::output::{bytes, grouped, line};

/// One object a part.
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

/// Prints a line for each part, after `prefix`.
///
/// # Errors
/// The reader has gone away.
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
