//! The conversion: stage, write, verify, seal, publish.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use q35_checkpoint::{Checkpoint, Inventory, copy_auxiliary_files};
use q35_inference::CancelToken;
use q35_output_dir::{Existing, FileRecord, Manifest, OutputDirError, Staging};
use q35_parity::{Grade, ParityReport};

use crate::model_card::model_card;
use crate::progress::ProgressCallback;
use crate::provenance::hash_sources;
use crate::target::{Job, Summary, Target, Written};
use crate::verify::{describe_parity, verify};
use crate::{ConvertError, Provenance, Source, dropped_tensors, pinned_checkpoints};

/// Settings of a conversion that do not depend on the target.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// The directory to write. It appears when it is complete.
    pub out: PathBuf,
    /// Treatment of an existing `out`.
    pub existing: Existing,
    /// True to run the parity check before the output is published.
    pub verify: bool,
    /// Cancels the conversion.
    pub cancel: CancelToken,
}

impl ConvertOptions {
    /// Writes `out`, which must not exist, and verifies it.
    pub fn new(out: impl Into<PathBuf>) -> Self {
        Self { out: out.into(), existing: Existing::Refuse, verify: true, cancel: CancelToken::new() }
    }

    /// Skips the parity check; the manifest then says `unverified`.
    pub fn without_verification(self) -> Self {
        Self { verify: false, ..self }
    }

    /// Replaces an existing output.
    pub fn replacing(self) -> Self {
        Self { existing: Existing::Replace, ..self }
    }

    /// Stops the conversion when `cancel` is cancelled.
    pub fn with_cancel(self, cancel: CancelToken) -> Self {
        Self { cancel, ..self }
    }
}

/// A finished conversion.
#[derive(Debug)]
pub struct ConversionReport {
    /// The directory that was written.
    pub out: PathBuf,
    /// Its manifest.
    pub manifest: Manifest,
    /// Counts and sizes.
    pub summary: Summary,
    /// Tensors of the source, with those that were dropped.
    pub inventory: Inventory,
    /// Files that were copied from the source.
    pub auxiliary_files: Vec<String>,
    /// Outcome of the parity check; [`None`] if it was skipped.
    pub parity: Option<ParityReport>,
    /// Time from the opened source to the published output.
    pub elapsed: Duration,
    /// Remarks for people.
    pub notes: Vec<String>,
}

impl ConversionReport {
    /// Bytes of all files except the manifest.
    pub fn output_bytes(&self) -> u64 {
        self.manifest.files.iter().map(|file| file.bytes).sum()
    }

    /// True unless the implementation verdict of the parity check is negative. Fidelity, the loss by quantization, is
    /// [`Self::grade`].
    pub fn passed(&self) -> bool {
        self.parity.as_ref().is_none_or(|report| report.passed)
    }

    /// The grade of the fidelity verdict, if the output was verified and run.
    pub fn grade(&self) -> Option<Grade> {
        self.parity.as_ref().and_then(ParityReport::grade)
    }

    /// The outcome of the parity check as a sentence.
    pub fn describe_parity(&self) -> String {
        describe_parity(self.parity.as_ref())
    }
}

/// Converts `source` to `target`. A failed or cancelled conversion leaves `options.out` as it was. An output that fails
/// its parity check is published all the same, see [`ConversionReport::passed`].
///
/// # Errors
/// The output exists or cannot be written, the source cannot be used, the target cannot express it, or the conversion
/// was cancelled.
pub fn convert(
    source: &Source,
    target: &dyn Target,
    options: &ConvertOptions,
    progress: ProgressCallback<'_>,
) -> Result<ConversionReport, ConvertError> {
    let started = Instant::now();
    let staging = Staging::begin(&options.out, options.existing)?;
    staging.protect(&source.dir)?;
    let checkpoint = Arc::new(Checkpoint::open(&source.dir)?);
    pinned_checkpoints::check(source, &checkpoint)?;
    let provenance = Provenance::new(source);
    let job = Job {
        checkpoint: &checkpoint,
        provenance: &provenance,
        staging: staging.path(),
        out: staging.target(),
        progress,
        cancel: &options.cancel,
    };
    let (written, sources) = write_and_hash(&job, target)?;
    let mut auxiliary_files = written.copied;
    auxiliary_files.extend(copy_auxiliary_files(&checkpoint, staging.path())?);

    let mut manifest = Manifest::new(target.kind(), provenance.tool_version);
    manifest.source.id = provenance.name.clone();
    manifest.source.revision = provenance.revision.clone();
    manifest.source.files = sources;
    manifest.settings = written.settings;
    manifest.tensors = written.tensors;
    manifest.tensors.extend(dropped_tensors::records(checkpoint.inventory()));

    let mut notes: Vec<String> = checkpoint.notes().iter().map(ToString::to_string).collect();
    notes.extend(written.summary.notes.iter().cloned());
    if !auxiliary_files.iter().any(|name| name == "tokenizer.json") {
        notes.push("the source has no tokenizer.json, so the result cannot chat by itself".to_owned());
    }
    let parity = match options.verify {
        true => {
            let settings = &manifest.settings;
            let verified =
                verify(&checkpoint, &source.name, staging.path(), settings, progress, &options.cancel)?;
            if !verified.on_text {
                notes
                    .push("the source has no usable tokenizer; the check ran on arbitrary tokens".to_owned());
            }
            Some(verified.report)
        }
        false => None,
    };
    manifest.parity = Some(parity.as_ref().map_or_else(|| "unverified".into(), ParityReport::summary));
    let card = model_card(&provenance, &written.card, &describe_parity(parity.as_ref()));
    let card_path = staging.path().join("README.md");
    std::fs::write(&card_path, card).map_err(|error| OutputDirError::io(&card_path, error))?;

    let manifest = staging.seal(manifest, written.files)?;
    let out = staging.target().to_owned();
    staging.publish()?;
    if let Some(dir) = written.resume_dir {
        notes.extend(remove_resume_dir(&dir));
    }
    Ok(ConversionReport {
        out,
        manifest,
        summary: written.summary,
        inventory: checkpoint.inventory().clone(),
        auxiliary_files,
        parity,
        elapsed: started.elapsed(),
        notes,
    })
}

/// Has the target write its files while a second thread hashes the source, which takes about as long.
fn write_and_hash(job: &Job<'_>, target: &dyn Target) -> Result<(Written, Vec<FileRecord>), ConvertError> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (checkpoint, release) = (job.checkpoint, target.releases_source());
        let stop = &stop;
        let hasher = scope.spawn(move || hash_sources(checkpoint, release, stop));
        let written = target.write(job);
        stop.store(written.is_err(), Ordering::Relaxed);
        let hashed = hasher.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match hashed? {
            Some(sources) => Ok((written?, sources)),
            None => Err(written.err().unwrap_or(ConvertError::Cancelled { resume_dir: None })),
        }
    })
}

/// Removes the finished stages of a calibration whose result is published; returns a remark if that fails.
fn remove_resume_dir(dir: &Path) -> Option<String> {
    let error = std::fs::remove_dir_all(dir).err()?;
    Some(format!("{} could not be removed: {error}", dir.display()))
}
