//! Execution of a plan: a checkpoint streamed into an MLX directory.
//!
//! The calling thread produces: it walks over the tensors and has rayon's threads quantize their rows, chunk by chunk.
//! A second thread hashes and writes the chunks. At most [`CHUNKS_IN_FLIGHT`] chunks wait between the two, so memory
//! use does not depend on the model's size. The output does not depend on the timing of the threads.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use q35_checkpoint::Checkpoint;
use q35_output_dir::{FileRecord, OutputDirError};

use crate::layout::index;
use crate::plan::{Plan, Summary};
use crate::producer::produce;
use crate::shard_writer::write_shards;
use crate::{Recipe, WriteError, WriteOptions, config_json};

/// Chunks that may wait for the shard writer.
const CHUNKS_IN_FLIGHT: usize = 4;

impl Plan<'_> {
    /// Writes weight files, index and config.json into the existing directory `out`, and returns the records of the
    /// weight files. `progress` receives the bytes of the source converted since its last call, on the calling thread;
    /// `Break` cancels.
    ///
    /// # Errors
    /// Weights that are not finite, a recipe that fails, cancellation, or an output that cannot be written. The
    /// contents of `out` are then incomplete.
    pub fn write(
        &self,
        out: &Path,
        progress: &dyn Fn(u64) -> ControlFlow<()>,
    ) -> Result<Vec<FileRecord>, WriteError> {
        let files = std::thread::scope(|scope| {
            let (sender, chunks) = sync_channel(CHUNKS_IN_FLIGHT);
            let writer = scope.spawn(|| write_shards(&self.shards, out, chunks));
            let produced = produce(&self.steps, self.recipe, &sender, progress);
            drop(sender);
            let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // A failure to write comes first: the producer only notices that the channel is closed.
            written.and_then(|files| produced.map(|()| files))
        })?;
        write_file(out, "config.json", &config_json::text(self.config.clone()))?;
        let index = index(&self.shards, self.summary().parameters);
        write_file(out, "model.safetensors.index.json", &format!("{index:#}\n"))?;
        Ok(files)
    }
}

/// Result of [`write()`].
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Records of the weight files, hashed while they were written.
    pub files: Vec<FileRecord>,
    /// Counts and sizes.
    pub summary: Summary,
}

/// Writes `checkpoint` as an MLX model into the existing directory `out`: [`Plan::new`] and [`Plan::write`] in one
/// call, without cancellation.
///
/// # Errors
/// As of those two.
pub fn write(
    checkpoint: &Checkpoint,
    recipe: &dyn Recipe,
    options: &WriteOptions,
    out: &Path,
    progress: &dyn Fn(u64),
) -> Result<Written, WriteError> {
    let plan = Plan::new(checkpoint, recipe, options)?;
    let files = plan.write(out, &|bytes| {
        progress(bytes);
        ControlFlow::Continue(())
    })?;
    Ok(Written { files, summary: plan.summary() })
}

fn write_file(out: &Path, name: &str, text: &str) -> Result<(), WriteError> {
    let path = out.join(name);
    fs::write(&path, text).map_err(|error| OutputDirError::io(&path, error).into())
}
