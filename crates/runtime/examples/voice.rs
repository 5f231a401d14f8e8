//! Speaks a reply through espeak-ng, sentence by sentence, while the rest is still being generated.
//!
//! ```sh
//! cargo run -p q35-runtime --example voice -- MODEL_DIR "Tell me about the tides." [out.wav]
//! ```
//!
//! With a file name, the sentences are written to that sound file instead of being played.
#![expect(clippy::print_stdout, reason = "an example")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

use q35_runtime::{Chat, Sampling, Speaker, Speech, speak};

/// An adapter of a text-to-speech engine in ten lines: plays sentences, or collects them as sound files.
struct Espeak {
    parts: Option<Vec<PathBuf>>,
    dir: PathBuf,
}

impl Speaker for Espeak {
    type Error = io::Error;

    fn speak(&mut self, sentence: &str) -> io::Result<Speech> {
        println!("♪ {sentence}");
        let mut command = Command::new("espeak-ng");
        if let Some(parts) = &mut self.parts {
            let path = self.dir.join(format!("{}.wav", parts.len()));
            command.arg("-w").arg(&path);
            parts.push(path);
        }
        let status = command.arg("--").arg(sentence).status()?;
        if status.success() { Ok(Speech::GoOn) } else { Err(io::Error::other("espeak-ng failed")) }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [model, prompt, out @ ..] = arguments.as_slice() else {
        return Err("usage: voice MODEL_DIR PROMPT [out.wav]".into());
    };
    let dir = env::temp_dir().join(format!("q35-voice-{}", std::process::id()));
    fs::create_dir_all(&dir)?;
    let mut voice = Espeak { parts: (!out.is_empty()).then(Vec::new), dir: dir.clone() };
    let chat = Chat::from_pretrained(model)?;
    let mut session = chat.session();
    let spoken = speak(session.send(prompt.as_str(), &Sampling::default())?, &mut voice)?;
    if let Some(first) = spoken.first_sentence {
        println!("first sentence after {:.0} ms", first.as_secs_f64() * 1000.0);
    }
    if let (Some(out), Some(parts)) = (out.first(), &voice.parts) {
        join(parts, Path::new(out))?;
    }
    Ok(fs::remove_dir_all(dir)?)
}

/// Joins WAV files of one format, as espeak-ng writes them: 44 bytes of header, then samples.
fn join(parts: &[PathBuf], out: &Path) -> io::Result<()> {
    let mut joined: Vec<u8> = Vec::new();
    for part in parts {
        let bytes = fs::read(part)?;
        if joined.is_empty() {
            joined = bytes;
        } else {
            joined.extend(bytes.get(44..).unwrap_or_default());
        }
    }
    if joined.len() >= 44 {
        let samples = (joined.len() - 44) as u32;
        joined[4..8].copy_from_slice(&(samples + 36).to_le_bytes());
        joined[40..44].copy_from_slice(&samples.to_le_bytes());
    }
    fs::write(out, joined)
}
