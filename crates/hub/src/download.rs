//! Download of one file into the cache, resumed when the connection breaks.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::backoff::backoff;
use crate::cache::RepositoryCache;
use crate::http::{Answer, Client};
use crate::{Event, HubError};

/// A file of one commit to download.
pub(crate) struct Wanted<'a> {
    pub id: &'a str,
    pub commit: &'a str,
    pub file: &'a str,
    pub url: String,
    pub retries: u32,
}

/// An attempt that ended early.
enum Broken {
    /// Another attempt may succeed: the connection broke, or the server is busy and may name a pause.
    Transfer(HubError, Option<Duration>),
    Final(HubError),
}

/// The hub's declaration of a file.
struct Declared {
    etag: Option<String>,
    size: Option<u64>,
}

/// Fetches `wanted` into the cache.
pub(crate) fn fetch(
    client: &Client,
    cache: &RepositoryCache,
    wanted: &Wanted<'_>,
    events: &dyn Fn(Event<'_>),
) -> Result<(), HubError> {
    let path = cache.unfinished(wanted.commit, wanted.file);
    let io_error = |source: io::Error| HubError::Io { path: path.clone(), source };
    std::fs::create_dir_all(path.parent().unwrap_or(&path)).map_err(io_error)?;
    let mut file = OpenOptions::new().create(true).append(true).read(true).open(&path).map_err(io_error)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(HubError::Busy { path }),
        Err(TryLockError::Error(source)) => return Err(io_error(source)),
    }
    let mut attempts = 0;
    let declared = loop {
        let before = length(&file).map_err(io_error)?;
        match attempt(client, wanted, &mut file, &path, events) {
            Ok(declared) => break declared,
            Err(Broken::Final(error)) => return Err(error),
            Err(Broken::Transfer(error, pause)) => {
                // Progress resets the count: only a connection that delivers nothing at all is given up.
                let moved = length(&file).map_err(io_error)? > before;
                attempts = if moved { 1 } else { attempts + 1 };
                if attempts > wanted.retries {
                    return Err(error);
                }
                thread::sleep(pause.unwrap_or_else(|| backoff(attempts)));
            }
        }
    };
    if let Err(error) = verify(&mut file, &path, wanted, &declared) {
        std::fs::remove_file(&path).map_err(io_error)?;
        return Err(error);
    }
    file.sync_all().map_err(io_error)?;
    // Without a declared ETag the blob is named by the file's SHA-256.
    let blob = match declared.etag {
        Some(etag) => etag,
        None => digest(&mut file, Sha256::new()).map_err(io_error)?,
    };
    cache.publish(&path, &blob, wanted.commit, wanted.file).map_err(io_error)?;
    events(Event::Finished { file: wanted.file });
    Ok(())
}

fn attempt(
    client: &Client,
    wanted: &Wanted<'_>,
    file: &mut File,
    path: &Path,
    events: &dyn Fn(Event<'_>),
) -> Result<Declared, Broken> {
    let io_error = |source: io::Error| Broken::Final(HubError::Io { path: path.to_owned(), source });
    let interrupted = |message: String| HubError::Connection { url: wanted.url.clone(), message };
    let have = length(file).map_err(io_error)?;
    let answer = client.get(&wanted.url, have).map_err(|error| match error {
        error @ (HubError::Connection { .. } | HubError::Unreachable { .. }) => Broken::Transfer(error, None),
        other => Broken::Final(other),
    })?;
    let from = match answer.status {
        206 => have,
        200 => 0,
        // The range begins at or past the end: the file is complete, or another one. The check of size and hash decides.
        416 => return Ok(declared(&answer, Some(have))),
        _ if answer.is_transient() => {
            let message = format!("the hub answered {}", answer.status);
            return Err(Broken::Transfer(interrupted(message), answer.retry_after()));
        }
        _ => return Err(Broken::Final(answer.refusal(&wanted.url, client.has_token()))),
    };
    if from == 0 && have > 0 {
        file.set_len(0).map_err(io_error)?;
    }
    let carried = answer.last_header("content-length").and_then(|text| text.parse::<u64>().ok());
    let size = carried.map(|length| from + length);
    let declared = declared(&answer, size);
    events(Event::Started { file: wanted.file, size_bytes: declared.size, resumed_at_bytes: from });
    let mut body = answer.body.into_with_config().limit(u64::MAX).reader();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Broken::Transfer(interrupted(error.to_string()), None)),
        };
        file.write_all(&buffer[..read]).map_err(io_error)?;
        events(Event::Progress { file: wanted.file, bytes: read as u64 });
    }
    let have = length(file).map_err(io_error)?;
    match declared.size {
        Some(size) if have < size => {
            Err(Broken::Transfer(interrupted(format!("cut off at {have} of {size} bytes")), None))
        }
        _ => Ok(declared),
    }
}

/// The hub describes large files itself (`x-linked-*`); small ones are described by the answer that carries them.
fn declared(answer: &Answer, carried: Option<u64>) -> Declared {
    let linked = answer.header("x-linked-size").and_then(|text| text.parse().ok());
    let whole = answer.last_header("content-range").and_then(|range| range.rsplit('/').next()?.parse().ok());
    let etag = answer.header("x-linked-etag").or_else(|| answer.header("etag")).map(clean_etag);
    Declared { etag: etag.filter(|etag| !etag.is_empty()), size: linked.or(whole).or(carried) }
}

/// An ETag without quotes, weak mark, and characters that could leave the blobs directory.
fn clean_etag(etag: &str) -> String {
    let bare = etag.trim().trim_start_matches("W/").trim_matches('"');
    bare.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect()
}

/// Verifies size and hash: large files have their SHA-256 as ETag, small ones git's SHA-1 of the blob; any other ETag is
/// not a hash.
fn verify(file: &mut File, path: &Path, wanted: &Wanted<'_>, declared: &Declared) -> Result<(), HubError> {
    let io_error = |source: io::Error| HubError::Io { path: path.to_owned(), source };
    let damaged = |expected: String, found: String| {
        Err(HubError::Damaged { id: wanted.id.to_owned(), file: wanted.file.to_owned(), expected, found })
    };
    let size = length(file).map_err(io_error)?;
    if let Some(expected) = declared.size.filter(|expected| *expected != size) {
        return damaged(format!("{expected} bytes"), format!("{size} bytes"));
    }
    let Some(etag) = &declared.etag else { return Ok(()) };
    let is_hex = etag.bytes().all(|b| b.is_ascii_hexdigit());
    let found = match etag.len() {
        64 if is_hex => digest(file, Sha256::new()).map_err(io_error)?,
        40 if is_hex => digest(file, Sha1::new().chain_update(format!("blob {size}\0"))).map_err(io_error)?,
        _ => return Ok(()),
    };
    if found.eq_ignore_ascii_case(etag) { Ok(()) } else { damaged(etag.clone(), found) }
}

fn digest<D: Digest>(file: &mut File, mut hasher: D) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn length(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}
