//! Reader of weight files (blob storage version 2).
//!
//! A file is a header of 64 bytes (number of records, version) and records, each a header of 64 bytes at a multiple of
//! 64 followed by its data. Files are memory-mapped; a record's [`Bytes`] share the mapping.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::{DType, TensorType};

const ALIGNMENT: u64 = 64;
const SENTINEL: u32 = 0xDEAD_BEEF;
const VERSION: u32 = 2;

/// A mapped weight file.
#[derive(Clone, Debug)]
pub struct WeightFile {
    path: PathBuf,
    map: Arc<Mmap>,
}

/// A record's header, checked against the file's length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Offset of the header, to which a program refers.
    pub offset: u64,
    /// Element type.
    pub dtype: DType,
    /// Number of unused bits after the last element.
    pub padding_bits: u64,
    /// Byte range of the data in the file.
    pub data: Range<u64>,
}

/// Reference-counted bytes: part of a mapped file, or owned memory.
#[derive(Clone, Debug)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

#[derive(Clone, Debug)]
enum Owner {
    Mapped(Arc<Mmap>),
    Memory(Arc<[u8]>),
}

/// A weight file or one of its records is unreadable or malformed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The file cannot be opened or mapped.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// The file has another version of the format or is not a weight file.
    #[error("{path}: storage version {found}, expected {VERSION}")]
    Version {
        /// The file.
        path: PathBuf,
        /// Version found.
        found: u32,
    },
    /// The file is too short for a header.
    #[error("{path}: {length} bytes, too short for a header of 64")]
    Header {
        /// The file.
        path: PathBuf,
        /// Length of the file in bytes.
        length: u64,
    },
    /// An offset is not a multiple of 64 or is outside of the file.
    #[error("{path}: offset {offset} is misaligned or outside of the file of {length} bytes")]
    Offset {
        /// The file.
        path: PathBuf,
        /// The offset.
        offset: u64,
        /// The file's length.
        length: u64,
    },
    /// An offset does not point to a record.
    #[error("{path}: no record at {offset}: sentinel {found:#010x}, expected {SENTINEL:#010x}")]
    Sentinel {
        /// The file.
        path: PathBuf,
        /// The offset.
        offset: u64,
        /// Word found in place of the sentinel.
        found: u32,
    },
    /// A record's type code is unknown.
    #[error("{path}: the record at {offset} has the unknown type code {code}")]
    DType {
        /// The file.
        path: PathBuf,
        /// The record.
        offset: u64,
        /// The code.
        code: u32,
    },
    /// A record's data is outside of the file, misaligned, or does not follow its header.
    #[error("{path}: the record at {offset} has its data at {start}, {bytes} bytes; the file has {length}")]
    Range {
        /// The file.
        path: PathBuf,
        /// The record.
        offset: u64,
        /// Offset of the data.
        start: u64,
        /// Length of the data in bytes.
        bytes: u64,
        /// The file's length.
        length: u64,
    },
    /// The header's number of records differs from the actual one, or bytes follow the last record.
    #[error("{path}: the header counts {counted} records, {found} are there, {trailing} bytes follow them")]
    Count {
        /// The file.
        path: PathBuf,
        /// Number in the header.
        counted: u32,
        /// Actual number.
        found: usize,
        /// Number of bytes after the last record.
        trailing: u64,
    },
    /// A record's type or length differs from that of the value that refers to it.
    #[error(
        "{path}: the record at {offset} holds {dtype}, {bytes} bytes, {padding_bits} padding bits\n  expected: {expected}"
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// The record.
        offset: u64,
        /// Type of the record.
        dtype: DType,
        /// Length of the record in bytes.
        bytes: u64,
        /// Number of unused bits.
        padding_bits: u64,
        /// Type of the value.
        expected: TensorType,
    },
}

impl WeightFile {
    /// Maps a weight file and reads its header.
    ///
    /// # Errors
    /// The file cannot be mapped, is too short, or has another version.
    pub fn open(path: &Path) -> Result<Self, RecordError> {
        let io = |source| RecordError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        // SAFETY: the map is read-only and private to this process. As everywhere in this project, files of a model
        // must not be truncated or rewritten while it is loaded; a reader cannot prevent that.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let file = Self { path: path.to_owned(), map: Arc::new(map) };
        if file.len() < ALIGNMENT {
            return Err(RecordError::Header { path: file.path, length: file.map.len() as u64 });
        }
        match file.u32_at(4) {
            VERSION => Ok(file),
            found => Err(RecordError::Version { path: file.path, found }),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.map.len() as u64
    }

    /// True if the file has no bytes; never the case for an opened file.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    fn u32_at(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.map[at..at + 4]);
        u32::from_le_bytes(bytes)
    }

    fn u64_at(&self, at: usize) -> u64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.map[at..at + 8]);
        u64::from_le_bytes(bytes)
    }

    /// The record whose header is at `offset`.
    ///
    /// # Errors
    /// There is no record at `offset`, or its data is not entirely within the file.
    pub fn record(&self, offset: u64) -> Result<Record, RecordError> {
        let (path, length) = (|| self.path.clone(), self.len());
        let inside = offset.checked_add(ALIGNMENT).is_some_and(|end| end <= length);
        if !offset.is_multiple_of(ALIGNMENT) || offset < ALIGNMENT || !inside {
            return Err(RecordError::Offset { path: path(), offset, length });
        }
        let at = offset as usize;
        let found = self.u32_at(at);
        if found != SENTINEL {
            return Err(RecordError::Sentinel { path: path(), offset, found });
        }
        let code = self.u32_at(at + 4);
        let dtype =
            DType::from_blob_code(code).ok_or_else(|| RecordError::DType { path: path(), offset, code })?;
        let (bytes, start) = (self.u64_at(at + 8), self.u64_at(at + 16));
        match start.checked_add(bytes) {
            Some(end) if start == offset + ALIGNMENT && end <= length => {
                Ok(Record { offset, dtype, padding_bits: self.u64_at(at + 24), data: start..end })
            }
            _ => Err(RecordError::Range { path: path(), offset, start, bytes, length }),
        }
    }

    /// The record at `offset` as the data of a value of type `ty`.
    ///
    /// # Errors
    /// There is no record at `offset`, or its type or length differs.
    pub fn data(&self, offset: u64, ty: &TensorType) -> Result<Bytes, RecordError> {
        let record = self.record(offset)?;
        let bytes = record.data.end - record.data.start;
        let bits = ty.count() as u128 * ty.dtype.bits() as u128;
        let padding = (8 - bits % 8) % 8;
        if record.dtype != ty.dtype
            || u128::from(bytes) != bits.div_ceil(8)
            || u128::from(record.padding_bits) != padding
        {
            return Err(RecordError::Content {
                path: self.path.clone(),
                offset,
                dtype: record.dtype,
                bytes,
                padding_bits: record.padding_bits,
                expected: ty.clone(),
            });
        }
        let range = record.data.start as usize..record.data.end as usize;
        Ok(Bytes { owner: Owner::Mapped(Arc::clone(&self.map)), range })
    }

    /// All records, in order. The header and the records must fill the file.
    ///
    /// # Errors
    /// A record is malformed, or the number of records differs from the header's.
    pub fn records(&self) -> Result<Vec<Record>, RecordError> {
        let counted = self.u32_at(0);
        let mut records = Vec::new();
        let mut offset = ALIGNMENT;
        // The count is untrusted: it bounds the loop but no allocation.
        while records.len() < counted as usize && offset < self.len() {
            let record = self.record(offset)?;
            offset = record.data.end.next_multiple_of(ALIGNMENT);
            records.push(record);
        }
        let trailing = self.len().saturating_sub(offset);
        if records.len() != counted as usize || trailing > 0 {
            let (path, found) = (self.path.clone(), records.len());
            return Err(RecordError::Count { path, counted, found, trailing });
        }
        Ok(records)
    }
}

impl Bytes {
    /// Owned bytes.
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Owner::Memory(bytes.into()), range }
    }

    /// True if the bytes are part of a mapped file.
    pub fn is_mapped(&self) -> bool {
        matches!(self.owner, Owner::Mapped(_))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.owner {
            Owner::Mapped(map) => map,
            Owner::Memory(bytes) => bytes,
        };
        &all[self.range.clone()]
    }
}

/// Unpacks elements of fewer than 8 bits: least significant bits first, contiguous across bytes.
///
/// `bits` is 1 to 8. Elements beyond the end of `bytes` are zero.
///
/// ```
/// // uint3 [1, 2, 3, 4, 5, 6, 7]
/// let codes: Vec<u8> = q35_format_mil::unpack_bits(&[0xd1, 0x58, 0x1f], 3).take(7).collect();
/// assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7]);
/// ```
pub fn unpack_bits(bytes: &[u8], bits: usize) -> impl Iterator<Item = u8> + '_ {
    let mask = (1u16 << bits.clamp(1, 8)) - 1;
    (0..).map(move |index: usize| {
        let (byte, shift) = (index * bits / 8, index * bits % 8);
        let at = |i: usize| u16::from(bytes.get(i).copied().unwrap_or(0));
        ((at(byte) | at(byte + 1) << 8) >> shift & mask) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of records with these type codes and contents.
    fn file(records: &[(u32, u64, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..4].copy_from_slice(&(records.len() as u32).to_le_bytes());
        bytes[4..8].copy_from_slice(&2u32.to_le_bytes());
        for (code, padding, data) in records {
            bytes.resize(bytes.len().next_multiple_of(64), 0);
            let start = bytes.len() as u64 + 64;
            bytes.extend(0xDEAD_BEEFu32.to_le_bytes());
            bytes.extend(code.to_le_bytes());
            bytes.extend((data.len() as u64).to_le_bytes());
            bytes.extend(start.to_le_bytes());
            bytes.extend(padding.to_le_bytes());
            bytes.extend([0; 32]);
            bytes.extend(*data);
        }
        bytes
    }

    fn opened(bytes: &[u8]) -> Result<WeightFile, RecordError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weight.bin");
        std::fs::write(&path, bytes).unwrap();
        WeightFile::open(&path)
    }

    #[test]
    fn records_are_found_by_offset() {
        let file = opened(&file(&[(4, 0, &[1, 2, 3]), (8, 4, &[0xe1, 0xc3, 0x07])])).unwrap();
        let records = file.records().unwrap();
        assert_eq!(
            records.iter().map(|r| (r.offset, r.dtype)).collect::<Vec<_>>(),
            [(64, DType::I8), (192, DType::I4)]
        );
        assert_eq!(&*file.data(64, &TensorType::new(DType::I8, &[3])).unwrap(), [1, 2, 3]);
        assert_eq!(&*file.data(192, &TensorType::new(DType::I4, &[5])).unwrap(), [0xe1, 0xc3, 0x07]);
    }

    #[test]
    fn a_record_must_match_the_value() {
        let file = opened(&file(&[(4, 0, &[1, 2, 3])])).unwrap();
        for ty in [TensorType::new(DType::U8, &[3]), TensorType::new(DType::I8, &[4])] {
            assert!(matches!(file.data(64, &ty), Err(RecordError::Content { .. })), "{ty}");
        }
    }

    #[test]
    fn each_kind_of_malformed_file_has_its_error() {
        let good = file(&[(4, 0, &[1, 2, 3]), (4, 0, &[4])]);
        let with = |at: usize, value: u8| {
            let mut bytes = good.clone();
            bytes[at] = value;
            bytes
        };
        assert!(matches!(opened(&good[..63]), Err(RecordError::Header { length: 63, .. })));
        assert!(matches!(
            opened(&[]),
            Err(RecordError::Header { length: 0, .. }) | Err(RecordError::Io { .. })
        ));
        assert!(matches!(opened(&with(4, 1)), Err(RecordError::Version { found: 1, .. })));
        let record = |bytes: &[u8], offset| opened(bytes).unwrap().record(offset);
        for offset in [0, 1, 65, 1 << 40, u64::MAX - 63] {
            assert!(matches!(record(&good, offset), Err(RecordError::Offset { .. })), "{offset}");
        }
        assert!(matches!(record(&good, 128), Err(RecordError::Sentinel { offset: 128, .. })));
        assert!(matches!(record(&with(68, 99), 64), Err(RecordError::DType { code: 99, .. })));
        for (at, value) in [(72, 255), (79, 255), (80, 64), (87, 255)] {
            assert!(matches!(record(&with(at, value), 64), Err(RecordError::Range { .. })), "byte {at}");
        }
        let records = |bytes: &[u8]| opened(bytes).unwrap().records();
        assert!(matches!(records(&with(0, 1)), Err(RecordError::Count { counted: 1, found: 1, .. })));
        assert!(matches!(records(&with(0, 3)), Err(RecordError::Count { counted: 3, found: 2, .. })));
        assert!(matches!(records(&with(3, 255)), Err(RecordError::Count { found: 2, .. })));
        let longer = [good.clone(), vec![0; 100]].concat();
        assert!(matches!(records(&longer), Err(RecordError::Count { .. })));
    }

    #[test]
    fn sub_byte_elements_unpack_as_measured() {
        let unpacked = |bytes: &[u8], bits, count| unpack_bits(bytes, bits).take(count).collect::<Vec<_>>();
        assert_eq!(unpacked(&[0xe1, 0xc3, 0x07], 4, 5), [1, 14, 3, 12, 7]);
        assert_eq!(unpacked(&[0x81, 0x30, 0x00], 6, 3), [1, 2, 3]);
        assert_eq!(unpacked(&[0x39, 0x01], 2, 5), [1, 2, 3, 0, 1]);
        assert_eq!(unpacked(&[0x05], 1, 3), [1, 0, 1]);
        assert_eq!(unpacked(&[7, 255], 8, 2), [7, 255]);
    }
}
