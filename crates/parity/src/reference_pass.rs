//! What the float reference says of the prompts, in a file.
//!
//! At full size a row of logits is a megabyte, and the reference's weights are three gigabytes in f32: it runs once,
//! its rows go to disk as they come, and it is gone before anything else is loaded. The file is an ordinary
//! safetensors file (room for the header is kept at its front), so other tools can read it too.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::rows::{Hidden, Place};
use crate::{ParityError, Prompt};

/// Bytes kept for the header, its length field included.
const HEADER_ROOM: usize = 1 << 18;
const FORMAT: &str = "q35-reference-1";

/// The rows of logits, greedy tokens and hidden states of a float reference over a suite.
#[derive(Debug)]
pub struct ReferencePass {
    file: Mutex<File>,
    path: String,
    vocab: usize,
    rows: usize,
    source: String,
    suite: String,
    /// Greedy continuation by prompt name.
    greedy: BTreeMap<String, Vec<u32>>,
    hidden: Hidden,
}

/// Identifies what was run: prompts, their scored part, and how many greedy tokens followed.
pub(crate) fn suite_key(prompts: &[Prompt], greedy_tokens: usize) -> String {
    let mut hash = Sha256::new();
    for prompt in prompts {
        hash.update(format!("{}\0{}\0", prompt.name, prompt.scored_from));
        hash.update(if prompt.greedy { greedy_tokens as u64 } else { 0 }.to_le_bytes());
        prompt.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        hash.update([0xff; 4]);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes a pass; rows first, the rest and the header at the end.
pub(crate) struct PassWriter {
    file: BufWriter<File>,
    /// The name that the file gets when it is whole; until then it is a temporary one beside it.
    target: Option<(tempfile::TempPath, PathBuf)>,
    path: String,
    vocab: usize,
    rows: usize,
    source: String,
    suite: String,
    bytes: Vec<u8>,
}

impl PassWriter {
    /// A pass in the file at `path`, or in one without a name that is gone with the process.
    pub(crate) fn create(
        path: Option<&Path>,
        vocab: usize,
        source: &str,
        suite: String,
    ) -> Result<Self, ParityError> {
        let name =
            path.map_or_else(|| "temporary file of the reference pass".into(), |p| p.display().to_string());
        let opened = match path {
            Some(path) => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
                tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map(|file| {
                    let (file, temporary) = file.into_parts();
                    (file, Some((temporary, path.to_owned())))
                })
            }
            None => tempfile::tempfile().map(|file| (file, None)),
        };
        let (file, target) = opened.map_err(|error| failed(&name, &error))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.seek(SeekFrom::Start(HEADER_ROOM as u64)).map_err(|error| failed(&name, &error))?;
        Ok(Self {
            file,
            target,
            path: name,
            vocab,
            rows: 0,
            source: source.to_owned(),
            suite,
            bytes: Vec::new(),
        })
    }

    /// Appends rows of logits, [n, vocab].
    pub(crate) fn push(&mut self, rows: &[f32]) -> Result<(), ParityError> {
        debug_assert_eq!(rows.len() % self.vocab, 0);
        self.rows += rows.len() / self.vocab;
        self.write(rows)
    }

    fn write(&mut self, values: &[f32]) -> Result<(), ParityError> {
        for part in values.chunks(1 << 16) {
            self.bytes.clear();
            self.bytes.extend(part.iter().flat_map(|value| value.to_le_bytes()));
            self.file.write_all(&self.bytes).map_err(|error| failed(&self.path, &error))?;
        }
        Ok(())
    }

    /// Adds what is left and the header.
    pub(crate) fn finish(
        mut self,
        greedy: BTreeMap<String, Vec<u32>>,
        hidden: Hidden,
    ) -> Result<ReferencePass, ParityError> {
        let mut header = serde_json::Map::new();
        let metadata = json!({
            "format": FORMAT, "source": self.source, "suite": self.suite,
            "greedy": serde_json::to_string(&greedy).unwrap_or_default(),
        });
        header.insert("__metadata__".into(), metadata);
        let mut at = 0u64;
        let mut entry = |shape: [usize; 2]| {
            let start = at;
            at += 4 * (shape[0] * shape[1]) as u64;
            json!({"dtype": "F32", "shape": shape, "data_offsets": [start, at]})
        };
        header.insert("logits".into(), entry([self.rows, self.vocab]));
        for (place, values) in &hidden.sites {
            header.insert(place_name(*place), entry([hidden.positions, hidden.width]));
            self.write(values)?;
        }
        let path = self.path;
        let mut text = Value::Object(header).to_string().into_bytes();
        if text.len() > HEADER_ROOM - 8 {
            return Err(ParityError::ReferenceFile { path, message: "too many prompts for one file".into() });
        }
        text.resize(HEADER_ROOM - 8, b' ');
        let written = self.file.into_inner().map_err(|error| error.into_error()).and_then(|mut file| {
            file.seek(SeekFrom::Start(0))?;
            file.write_all(&(text.len() as u64).to_le_bytes())?;
            file.write_all(&text)?;
            file.flush()?;
            Ok(file)
        });
        let file = written.map_err(|error| failed(&path, &error))?;
        if let Some((temporary, target)) = self.target {
            temporary.persist(target).map_err(|error| failed(&path, &error.error))?;
        }
        Ok(ReferencePass {
            file: Mutex::new(file),
            path,
            vocab: self.vocab,
            rows: self.rows,
            source: self.source,
            suite: self.suite,
            greedy,
            hidden,
        })
    }
}

impl ReferencePass {
    /// Opens a pass that was saved.
    ///
    /// # Errors
    /// It cannot be read, or is not a whole file of this form.
    pub fn open(path: &Path) -> Result<Self, ParityError> {
        let name = path.display().to_string();
        let broken = |what: &str| ParityError::ReferenceFile {
            path: name.clone(),
            message: format!("not a saved reference pass: {what}"),
        };
        let mut file = File::open(path).map_err(|error| failed(&name, &error))?;
        let size = file.metadata().map_err(|error| failed(&name, &error))?.len();
        let mut head = vec![0; HEADER_ROOM];
        file.read_exact(&mut head).map_err(|_| broken("shorter than its header"))?;
        if head[..8] != (HEADER_ROOM as u64 - 8).to_le_bytes() {
            return Err(broken("another header"));
        }
        let header: Value = serde_json::from_slice(&head[8..]).map_err(|error| broken(&error.to_string()))?;
        let meta = &header["__metadata__"];
        let text =
            |key: &str| meta[key].as_str().map(str::to_owned).ok_or_else(|| broken(&format!("no `{key}`")));
        if text("format")? != FORMAT {
            return Err(broken("another format"));
        }
        let shape = |entry: &Value| -> Option<[usize; 2]> {
            let side = |i: usize| entry["shape"][i].as_u64().and_then(|n| usize::try_from(n).ok());
            Some([side(0)?, side(1)?])
        };
        let offsets =
            |entry: &Value| Some([entry["data_offsets"][0].as_u64()?, entry["data_offsets"][1].as_u64()?]);
        let [rows, vocab] = shape(&header["logits"]).ok_or_else(|| broken("no logits"))?;
        let mut hidden = Hidden::default();
        for (key, entry) in header.as_object().into_iter().flatten() {
            let Some(place) = place_of(key) else { continue };
            let ([positions, width], [start, end]) = shape(entry)
                .zip(offsets(entry))
                .filter(|(shape, at)| {
                    at[0].checked_add(4 * (shape[0] as u64).saturating_mul(shape[1] as u64)) == Some(at[1])
                })
                .ok_or_else(|| broken(key))?;
            if HEADER_ROOM as u64 + end > size {
                return Err(broken("cut short"));
            }
            (hidden.positions, hidden.width) = (positions, width);
            let mut bytes = vec![0; (end - start) as usize];
            file.seek(SeekFrom::Start(HEADER_ROOM as u64 + start))
                .and_then(|_| file.read_exact(&mut bytes))
                .map_err(|error| failed(&name, &error))?;
            hidden.sites.insert(place, floats(&bytes));
        }
        let needed = (rows as u64).checked_mul(4 * vocab as u64).map(|bytes| bytes + HEADER_ROOM as u64);
        if needed.is_none_or(|needed| needed > size) {
            return Err(broken("cut short"));
        }
        let greedy = serde_json::from_str(&text("greedy")?).map_err(|error| broken(&error.to_string()))?;
        let (source, suite) = (text("source")?, text("suite")?);
        Ok(Self { file: Mutex::new(file), path: name, vocab, rows, source, suite, greedy, hidden })
    }

    /// Refuses a pass of another source or other prompts.
    pub(crate) fn expect(&self, source: &str, suite: &str) -> Result<(), ParityError> {
        for (what, expected, found) in [("source", source, &self.source), ("suite", suite, &self.suite)] {
            if expected != found {
                let (expected, found) = (expected.to_owned(), found.clone());
                return Err(ParityError::StaleReference { what, expected, found });
            }
        }
        Ok(())
    }

    /// Row `index` of the logits, in the order of the prompts and their positions.
    pub(crate) fn row(&self, index: usize, out: &mut Vec<f32>) -> Result<(), ParityError> {
        debug_assert!(index < self.rows);
        let mut bytes = vec![0; 4 * self.vocab];
        let mut file = self.file.lock().expect("no panic holds it");
        file.seek(SeekFrom::Start(HEADER_ROOM as u64 + (index * 4 * self.vocab) as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| failed(&self.path, &error))?;
        out.clear();
        out.extend(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])));
        Ok(())
    }

    /// The reference's greedy continuation of that prompt.
    pub(crate) fn greedy(&self, prompt: &str) -> Option<&[u32]> {
        self.greedy.get(prompt).map(Vec::as_slice)
    }

    pub(crate) fn hidden(&self) -> &Hidden {
        &self.hidden
    }
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn failed(path: &str, error: &std::io::Error) -> ParityError {
    ParityError::ReferenceFile { path: path.to_owned(), message: error.to_string() }
}

fn place_name(place: Place) -> String {
    match place {
        Place::Embedding => "hidden.embedding".into(),
        Place::Within(layer, 0) => format!("hidden.{layer}.mixer"),
        Place::Within(layer, _) => format!("hidden.{layer}.layer"),
        Place::FinalNorm => "hidden.norm".into(),
    }
}

fn place_of(name: &str) -> Option<Place> {
    match name.strip_prefix("hidden.")? {
        "embedding" => Some(Place::Embedding),
        "norm" => Some(Place::FinalNorm),
        rest => {
            let (layer, part) = rest.split_once('.')?;
            let part = match part {
                "mixer" => 0,
                "layer" => 1,
                _ => return None,
            };
            Some(Place::Within(layer.parse().ok()?, part))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: Option<&Path>) -> ReferencePass {
        let mut writer = PassWriter::create(path, 3, "abc", "suite".into()).unwrap();
        writer.push(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        writer.push(&[7.0, 8.0, 9.0]).unwrap();
        let mut hidden = Hidden::new(2, 2);
        hidden.sites.insert(Place::Embedding, vec![0.5; 4]);
        hidden.sites.insert(Place::Within(1, 0), vec![1.5; 4]);
        writer.finish(BTreeMap::from([("p".to_owned(), vec![7, 8])]), hidden).unwrap()
    }

    #[test]
    fn a_saved_pass_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass.safetensors");
        let made = write(Some(&path));
        let read = ReferencePass::open(&path).unwrap();
        for pass in [&made, &read, &write(None)] {
            let mut row = Vec::new();
            pass.row(1, &mut row).unwrap();
            assert_eq!(row, [4.0, 5.0, 6.0]);
            pass.row(2, &mut row).unwrap();
            assert_eq!(row, [7.0, 8.0, 9.0]);
            assert_eq!(pass.greedy("p"), Some(&[7, 8][..]));
            assert_eq!(pass.hidden().sites[&Place::Within(1, 0)], [1.5; 4]);
        }
        // It is a safetensors file to everybody else.
        let bytes = std::fs::read(&path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.tensor("logits").unwrap().shape(), [3, 3]);
    }

    #[test]
    fn a_stale_pass_is_refused() {
        let pass = write(None);
        assert!(pass.expect("abc", "suite").is_ok());
        let error = pass.expect("abd", "suite").unwrap_err().to_string();
        assert!(error.contains("another source") && error.contains("abd"), "{error}");
        assert!(pass.expect("abc", "other").unwrap_err().to_string().contains("another suite"));
    }

    #[test]
    fn malformed_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pass.safetensors");
        write(Some(&path));
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 7, 100, HEADER_ROOM, HEADER_ROOM + 10, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let error = ReferencePass::open(&path).unwrap_err().to_string();
            assert!(error.contains("not a saved reference pass"), "{length}: {error}");
        }
        let text =
            String::from_utf8_lossy(&whole[8..HEADER_ROOM]).replace("q35-reference-1", "q35-reference-9");
        let mut other = whole.clone();
        other[8..HEADER_ROOM].copy_from_slice(text.as_bytes());
        std::fs::write(&path, other).unwrap();
        assert!(ReferencePass::open(&path).unwrap_err().to_string().contains("another format"));
    }

    #[test]
    fn the_key_depends_on_all_that_matters() {
        let prompt = |ids: &[u32]| Prompt::new("p", "k", ids.to_vec());
        let plain = suite_key(&[prompt(&[1, 2])], 64);
        assert_ne!(plain, suite_key(&[prompt(&[1, 3])], 64));
        assert_ne!(plain, suite_key(&[prompt(&[1]), prompt(&[2])], 64));
        let scored = Prompt { scored_from: 1, ..prompt(&[1, 2]) };
        assert_ne!(plain, suite_key(&[scored], 64));
        assert_eq!(plain, suite_key(&[prompt(&[1, 2])], 32), "nothing greedy in it");
        let greedy = Prompt { greedy: true, ..prompt(&[1, 2]) };
        assert_ne!(suite_key(std::slice::from_ref(&greedy), 64), suite_key(&[greedy], 32));
    }
}
