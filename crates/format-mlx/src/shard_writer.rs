//! The writing half of a conversion: receives chunks in the order of production and writes them at the offsets that
//! the headers give.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::Receiver;

use q35_output_dir::{FileRecord, HashedFile};

use crate::WriteError;
use crate::layout::{AlignmentClass, OutputTensor, Shard};
use crate::producer::Chunk;

/// Writes all shards into `out` and returns their records.
pub(crate) fn write_shards(
    shards: &[Shard],
    out: &Path,
    chunks: Receiver<Chunk>,
) -> Result<Vec<FileRecord>, WriteError> {
    let mut writer = ShardWriter::new(shards, out);
    // Scales and biases follow the words of all rows.
    let (mut scales, mut biases) = (Vec::new(), Vec::new());
    for chunk in chunks {
        match chunk {
            Chunk::Tensor(bytes) => writer.append(&bytes)?,
            Chunk::Rows { packed, last } => {
                writer.append(&packed.words)?;
                scales.extend_from_slice(&packed.scales);
                biases.extend_from_slice(&packed.biases);
                if last {
                    writer.append(&scales)?;
                    writer.append(&biases)?;
                    scales.clear();
                    biases.clear();
                }
            }
        }
    }
    writer.finish()
}

struct ShardWriter<'a> {
    out: &'a Path,
    /// All output tensors in the order of production, each with its shard.
    tensors: Vec<(&'a Shard, &'a OutputTensor)>,
    /// Index of the tensor after the current one.
    next: usize,
    /// Bytes that the current tensor still lacks.
    missing_bytes: u64,
    file: Option<HashedFile>,
    /// Bytes of the current shard that follow the cache-line-aligned tensors in the file.
    deferred: BTreeMap<AlignmentClass, Vec<u8>>,
    written: Vec<FileRecord>,
}

impl<'a> ShardWriter<'a> {
    fn new(shards: &'a [Shard], out: &'a Path) -> Self {
        let tensors: Vec<_> =
            shards.iter().flat_map(|shard| shard.tensors.iter().map(move |tensor| (shard, tensor))).collect();
        let (deferred, written) = (BTreeMap::new(), Vec::new());
        Self { out, tensors, next: 0, missing_bytes: 0, file: None, deferred, written }
    }

    /// Appends bytes of one tensor.
    fn append(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        if self.missing_bytes == 0 {
            self.start_tensor()?;
        }
        let (_, tensor) = self.tensors[self.next - 1];
        self.missing_bytes -= bytes.len() as u64;
        match &mut self.file {
            Some(file) if tensor.alignment_class() == AlignmentClass::CacheLine => file.write(bytes)?,
            _ => self.deferred.entry(tensor.alignment_class()).or_default().extend_from_slice(bytes),
        }
        Ok(())
    }

    fn start_tensor(&mut self) -> Result<(), WriteError> {
        let (shard, tensor) = self.tensors[self.next];
        if self.next == 0 || !std::ptr::eq(self.tensors[self.next - 1].0, shard) {
            self.close_shard()?;
            let mut file = HashedFile::create(self.out, &shard.file)?;
            file.write(&shard.header())?;
            self.file = Some(file);
        }
        self.missing_bytes = tensor.bytes;
        self.next += 1;
        Ok(())
    }

    fn close_shard(&mut self) -> Result<(), WriteError> {
        if let Some(mut file) = self.file.take() {
            for bytes in std::mem::take(&mut self.deferred).into_values() {
                file.write(&bytes)?;
            }
            self.written.push(file.finish()?);
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<FileRecord>, WriteError> {
        self.close_shard()?;
        Ok(self.written)
    }
}
