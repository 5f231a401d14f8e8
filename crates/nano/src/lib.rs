//! The embedded model: q35-nano's checkpoint, a few million parameters of exactly the Qwen3.5 architecture, as bytes
//! in the binary. It is a toy with a handful of skills (its card in `model/README.md` lists them) that replaces the real
//! weights wherever something must work without a download.
//!
//! The crate holds only these files. It must not know how they are read.
//!
//! ```
//! let config = q35_nano::FILES.iter().find(|file| file.name == "config.json").unwrap();
//! assert!(config.bytes.starts_with(b"{"));
//! ```
#![deny(missing_docs)]
#![forbid(unsafe_code)]

use std::io;
use std::path::Path;

/// One file of the embedded checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct File {
    /// Name in a Hugging Face checkpoint directory.
    pub name: &'static str,
    /// Contents.
    pub bytes: &'static [u8],
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(File { name: $name, bytes: include_bytes!(concat!("../model/", $name)) }),*]
    };
}

/// The checkpoint's files, in Hugging Face layout.
pub static FILES: &[File] = files![
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "README.md",
];

/// Writes the checkpoint into `dir`, which is created if absent. Files of the same name are replaced.
///
/// # Errors
/// The directory or a file cannot be written.
pub fn write_to(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    FILES.iter().try_for_each(|file| std::fs::write(dir.join(file.name), file.bytes))
}
