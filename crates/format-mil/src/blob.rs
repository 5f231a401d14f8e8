//! Writer of `weight.bin` files (blob storage version 2).

use std::collections::BTreeMap;
use std::io::{self, Seek, SeekFrom, Write};

use sha2::{Digest, Sha256};

use crate::DType;

/// Alignment of records in bytes; also the length of the headers of file and records.
pub const ALIGNMENT: u64 = 64;
/// First word of a record's header.
pub const SENTINEL: u32 = 0xDEAD_BEEF;
/// Version of the storage format.
pub const VERSION: u32 = 2;

/// Writes a weight file sequentially. Only the hashes for the deduplication of [`WeightWriter::add`] stay in memory.
///
/// ```
/// use q35_format_mil::{DType, WeightWriter};
///
/// let mut file = WeightWriter::new(std::io::Cursor::new(Vec::new()))?;
/// let first = file.add(DType::I8, 3, &[1, 2, 3])?;
/// assert_eq!(file.add(DType::I8, 3, &[1, 2, 3])?, first, "equal content is stored once");
/// let mut record = file.record(DType::F16, 2)?;
/// record.write(&[0, 60])?;
/// record.write(&[0, 64])?;
/// assert_eq!(record.finish()?, 192);
/// assert_eq!(file.finish()?.into_inner().len(), 192 + 64 + 4);
/// # Ok::<(), q35_format_mil::WeightWriteError>(())
/// ```
#[derive(Debug)]
pub struct WeightWriter<W> {
    out: W,
    position: u64,
    records: u32,
    stored: BTreeMap<[u8; 32], u64>,
}

/// Failure to write a weight file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightWriteError {
    /// Writing to the output failed.
    #[error("cannot write the weight file")]
    Io(#[from] io::Error),
    /// Weight files have no code for the type.
    #[error("{dtype} cannot be stored in a weight file")]
    DType {
        /// The type.
        dtype: DType,
    },
    /// More or fewer bytes were written to a record than its elements need.
    #[error("a record of {expected} bytes got {found}")]
    Length {
        /// Size of the record's elements in bytes.
        expected: u64,
        /// Number of bytes written.
        found: u64,
    },
}

impl<W: Write + Seek> WeightWriter<W> {
    /// Starts a file at the beginning of `out`.
    ///
    /// # Errors
    /// Writing to the output failed.
    pub fn new(mut out: W) -> Result<Self, WeightWriteError> {
        out.write_all(&[0; ALIGNMENT as usize])?;
        Ok(Self { out, position: ALIGNMENT, records: 0, stored: BTreeMap::new() })
    }

    /// Length of the file so far, in bytes.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Writes a record of `count` elements, unless an equal one has been written; returns its offset.
    ///
    /// # Errors
    /// Writing fails, the type cannot be stored, or `bytes` is not the size of `count` elements.
    pub fn add(&mut self, dtype: DType, count: usize, bytes: &[u8]) -> Result<u64, WeightWriteError> {
        let mut hash = Sha256::new();
        hash.update(dtype.code().to_le_bytes());
        hash.update((count as u64).to_le_bytes());
        hash.update(bytes);
        let fingerprint: [u8; 32] = hash.finalize().into();
        if let Some(&offset) = self.stored.get(&fingerprint) {
            return Ok(offset);
        }
        let mut record = self.record(dtype, count)?;
        record.write(bytes)?;
        let offset = record.finish()?;
        self.stored.insert(fingerprint, offset);
        Ok(offset)
    }

    /// Starts a record of `count` elements, to be written in parts.
    ///
    /// # Errors
    /// Writing fails, or the type cannot be stored.
    pub fn record(&mut self, dtype: DType, count: usize) -> Result<RecordWriter<'_, W>, WeightWriteError> {
        let code = dtype.blob_code().ok_or(WeightWriteError::DType { dtype })?;
        let offset = self.position.next_multiple_of(ALIGNMENT);
        self.out.write_all(&[0; ALIGNMENT as usize][..(offset - self.position) as usize])?;
        let size = dtype.packed_bytes(count) as u64;
        let padding_bits = size * 8 - (count * dtype.bits()) as u64;
        let mut header = [0; ALIGNMENT as usize];
        header[..4].copy_from_slice(&SENTINEL.to_le_bytes());
        header[4..8].copy_from_slice(&code.to_le_bytes());
        header[8..16].copy_from_slice(&size.to_le_bytes());
        header[16..24].copy_from_slice(&(offset + ALIGNMENT).to_le_bytes());
        header[24..32].copy_from_slice(&padding_bits.to_le_bytes());
        self.out.write_all(&header)?;
        self.position = offset + ALIGNMENT;
        self.records += 1;
        Ok(RecordWriter { file: self, offset, size, written: 0 })
    }

    /// Completes the file's header and returns the output.
    ///
    /// # Errors
    /// Writing to the output failed.
    pub fn finish(mut self) -> Result<W, WeightWriteError> {
        self.out.seek(SeekFrom::Start(0))?;
        self.out.write_all(&self.records.to_le_bytes())?;
        self.out.write_all(&VERSION.to_le_bytes())?;
        self.out.seek(SeekFrom::Start(self.position))?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Writer of one record.
#[derive(Debug)]
pub struct RecordWriter<'a, W> {
    file: &'a mut WeightWriter<W>,
    offset: u64,
    size: u64,
    written: u64,
}

impl<W: Write + Seek> RecordWriter<'_, W> {
    /// Appends packed little-endian elements.
    ///
    /// # Errors
    /// Writing fails, or the record would exceed its size.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WeightWriteError> {
        let found = self.written + bytes.len() as u64;
        if found > self.size {
            return Err(WeightWriteError::Length { expected: self.size, found });
        }
        self.file.out.write_all(bytes)?;
        self.written = found;
        self.file.position += bytes.len() as u64;
        Ok(())
    }

    /// Completes the record and returns the offset of its header, for [`crate::BlobRef::offset`].
    ///
    /// # Errors
    /// The record is not complete.
    pub fn finish(self) -> Result<u64, WeightWriteError> {
        if self.written != self.size {
            return Err(WeightWriteError::Length { expected: self.size, found: self.written });
        }
        Ok(self.offset)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Expected bytes: written by coremltools (`libmilstoragepython`, coremltools 9.0) for the same records.
    #[test]
    fn bytes_equal_those_of_coremltools() {
        let mut file = WeightWriter::new(Cursor::new(Vec::new())).unwrap();
        assert_eq!(file.add(DType::I4, 5, &[0xe1, 0xc3, 0x07]).unwrap(), 64);
        assert_eq!(file.add(DType::F32, 1, &1.5f32.to_le_bytes()).unwrap(), 192);
        let bytes = file.finish().unwrap().into_inner();
        let mut expected = vec![0u8; 260];
        expected[0] = 2;
        expected[4] = 2;
        expected[64..72].copy_from_slice(&[0xef, 0xbe, 0xad, 0xde, 8, 0, 0, 0]);
        expected[72] = 3;
        expected[80] = 128;
        expected[88] = 4;
        expected[128..131].copy_from_slice(&[0xe1, 0xc3, 0x07]);
        expected[192..200].copy_from_slice(&[0xef, 0xbe, 0xad, 0xde, 2, 0, 0, 0]);
        expected[200] = 4;
        expected[208..210].copy_from_slice(&[0x00, 0x01]);
        expected[256..260].copy_from_slice(&1.5f32.to_le_bytes());
        assert_eq!(bytes, expected);
    }

    #[test]
    fn equal_records_of_one_type_are_stored_once() {
        let mut file = WeightWriter::new(Cursor::new(Vec::new())).unwrap();
        let first = file.add(DType::I8, 4, &[0; 4]).unwrap();
        assert_eq!(file.add(DType::I8, 4, &[0; 4]).unwrap(), first);
        assert_ne!(file.add(DType::U8, 4, &[0; 4]).unwrap(), first);
        assert_ne!(file.add(DType::F16, 2, &[0; 4]).unwrap(), first);
        assert_eq!(file.finish().unwrap().into_inner()[0], 3);
    }

    #[test]
    fn a_record_holds_exactly_its_elements() {
        let mut file = WeightWriter::new(Cursor::new(Vec::new())).unwrap();
        let error = file.add(DType::F16, 3, &[0; 5]).unwrap_err();
        assert_eq!(error.to_string(), "a record of 6 bytes got 5");
        let error = file.record(DType::F16, 1).unwrap().write(&[0; 3]).unwrap_err();
        assert_eq!(error.to_string(), "a record of 2 bytes got 3");
        let error = file.add(DType::Bool, 1, &[0]).unwrap_err();
        assert_eq!(error.to_string(), "bool cannot be stored in a weight file");
    }
}
