//! Resolves a model's name to a directory.

use std::path::{Path, PathBuf};
use std::thread;

use serde::Deserialize;

use crate::backoff::backoff;
use crate::cache::RepositoryCache;
use crate::download::{Wanted, fetch};
use crate::http::Client;
use crate::{Event, HubError, HubOptions};

/// A model on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The directory with its files.
    pub dir: PathBuf,
    /// The hub id, if it came from a hub.
    pub id: Option<String>,
    /// The commit, if it came from a hub.
    pub commit: Option<String>,
}

#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Chooses the files to fetch, of the names of all files in a repository.
pub type SelectFiles<'a> = dyn Fn(&[&str]) -> Vec<String> + 'a;

/// Finds `model`: an existing directory, or a hub id of whose files those that `select` chooses are fetched unless the
/// cache has them.
///
/// A name that is a path (it starts with `.`, `/` or `~`, has other than two components, a file's extension, or begins
/// with a directory that exists) is not looked up on the hub. When the hub cannot be reached, or answers 401, 404, 429
/// or 5xx, a complete commit in the cache is used.
///
/// # Errors
/// The name is neither; the hub refuses or cannot be reached while the cache lacks the model, or sends damaged files;
/// the disk fails.
pub fn resolve(
    model: &str,
    options: &HubOptions,
    select: &SelectFiles<'_>,
    events: &dyn Fn(Event<'_>),
) -> Result<Resolved, HubError> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(Resolved { dir: path.to_owned(), id: None, commit: None });
    }
    if is_path(model) {
        return Err(HubError::Path { model: model.to_owned(), found: describe_nearest(path) });
    }
    if !is_hub_id(model) {
        return Err(HubError::Name { model: model.to_owned() });
    }
    let cache = RepositoryCache::new(model, options);
    let found = |commit: String| Resolved {
        dir: cache.snapshot(&commit),
        id: Some(model.to_owned()),
        commit: Some(commit),
    };
    let cached = cache.known_commit().filter(|commit| cache.is_complete(commit, select));
    if options.offline {
        return cached.map(found).ok_or_else(|| HubError::Offline {
            id: model.to_owned(),
            revision: options.revision.clone(),
            cache: options.cache_dir.clone(),
        });
    }
    let client = Client::new(options)?;
    // With a complete cache to fall back to, patience would only delay the start.
    let retries = if cached.is_some() { options.retries.min(1) } else { options.retries };
    let info = match list_files(&client, model, options, retries) {
        Ok(info) => info,
        Err(error) => {
            let status = match &error {
                HubError::Connection { .. } | HubError::Unreachable { .. } => None,
                HubError::Status { status: status @ (401 | 404 | 429 | 500..=599), .. } => Some(*status),
                _ => return Err(error),
            };
            let commit = cached.ok_or(error)?;
            events(Event::Cached { commit: &commit, status });
            return Ok(found(commit));
        }
    };
    let names: Vec<&str> = info.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
    let files = select(&names);
    if files.is_empty() {
        let found = names.iter().take(8).copied().collect::<Vec<_>>().join(", ");
        return Err(HubError::Nothing { id: model.to_owned(), found });
    }
    for file in &files {
        if cache.snapshot(&info.sha).join(file).exists() {
            continue;
        }
        let url = format!("{}/{model}/resolve/{}/{file}", options.endpoint.trim_end_matches('/'), info.sha);
        fetch(
            &client,
            &cache,
            &Wanted { id: model, commit: &info.sha, file, url, retries: options.retries },
            events,
        )?;
    }
    let reference = |source| HubError::Io { path: cache.snapshot(&info.sha), source };
    cache.remember_commit(&info.sha).map_err(reference)?;
    Ok(found(info.sha))
}

fn list_files(client: &Client, id: &str, options: &HubOptions, retries: u32) -> Result<Info, HubError> {
    let revision = options.revision.replace('/', "%2F");
    let url = format!("{}/api/models/{id}/revision/{revision}", options.endpoint.trim_end_matches('/'));
    let mut attempt = 0;
    loop {
        attempt += 1;
        let (error, pause) = match client.get(&url, 0) {
            Ok(answer) if answer.is_transient() => {
                (answer.refusal(&url, client.has_token()), answer.retry_after())
            }
            Ok(answer) if answer.status != 200 => return Err(answer.refusal(&url, client.has_token())),
            Ok(mut answer) => match answer.body.read_to_string() {
                Ok(text) => return parse_info(&url, &text),
                Err(error) => (HubError::Connection { url: url.clone(), message: error.to_string() }, None),
            },
            Err(error @ (HubError::Connection { .. } | HubError::Unreachable { .. })) => (error, None),
            Err(error) => return Err(error),
        };
        if attempt > retries {
            // Nothing was transferred that a later run could resume.
            return Err(match error {
                HubError::Connection { url, message } => HubError::Unreachable { url, message },
                error => error,
            });
        }
        thread::sleep(pause.unwrap_or_else(|| backoff(attempt)));
    }
}

fn parse_info(url: &str, text: &str) -> Result<Info, HubError> {
    let protocol = |message: String| HubError::Protocol { url: url.to_owned(), message };
    let info: Info = serde_json::from_str(text).map_err(|error| protocol(error.to_string()))?;
    let plain = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric());
    if !plain(&info.sha) {
        return Err(protocol(format!("`{}` is no commit", info.sha)));
    }
    // A name that leaves the snapshot is an attack, not a file.
    match info.siblings.iter().find(|s| !is_inside(&s.rfilename)) {
        Some(bad) => Err(protocol(format!("`{}` is no file name", bad.rfilename))),
        None => Ok(info),
    }
}

fn is_inside(file: &str) -> bool {
    let path = Path::new(file);
    !file.is_empty()
        && !file.contains('\\')
        && path.components().all(|part| matches!(part, std::path::Component::Normal(_)))
}

/// `owner/name` in the hub's alphabet.
fn is_hub_id(model: &str) -> bool {
    let part = |text: &str| {
        !text.is_empty()
            && !text.starts_with(['.', '-'])
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    matches!(model.split_once('/'), Some((owner, name)) if part(owner) && part(name))
}

/// True for a name that can only be meant as a path, although nothing is there.
fn is_path(model: &str) -> bool {
    const EXTENSIONS: [&str; 5] = [".safetensors", ".gguf", ".mlpackage", ".mlmodelc", ".json"];
    let first = Path::new(model).components().next();
    let begins_with_a_directory =
        model.contains('/') && first.is_some_and(|first| Path::new(first.as_os_str()).is_dir());
    model.starts_with(['.', '/', '~'])
        || model.contains('\\')
        || model.ends_with('/')
        || model.matches('/').count() > 1
        || EXTENSIONS.iter().any(|extension| model.ends_with(extension))
        || Path::new(model).is_file()
        || begins_with_a_directory
}

/// The nearest existing parent of a path that does not exist, with the names in it.
fn describe_nearest(path: &Path) -> String {
    if path.is_file() {
        return "a file".to_owned();
    }
    let parent = path.ancestors().skip(1).find(|parent| parent.is_dir() || parent.as_os_str().is_empty());
    let shown = match parent {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let entries = std::fs::read_dir(shown).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    let more = if names.len() > 8 { ", ..." } else { "" };
    names.truncate(8);
    match names.is_empty() {
        true => format!("no such directory; `{}` is empty", shown.display()),
        false => format!("no such directory; `{}` holds {}{more}", shown.display(), names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_owner_slash_name_is_a_hub_id() {
        for id in ["Qwen/Qwen3.5-0.8B", "a/b_c.d-e"] {
            assert!(is_hub_id(id) && !is_path(id), "{id}");
        }
        for other in ["", "model", "./model", "/abs/path", "a/b/c", "a/", "../x", "~/x", "a b/c"] {
            assert!(!is_hub_id(other), "{other}");
        }
    }

    #[test]
    fn paths_are_no_hub_ids_although_nothing_is_there() {
        let below_a_directory = format!("src/{}", "missing");
        let paths = ["./model", "/abs/path", "a/b/c", "owner/", "../x", "~/x", "a\\b", "owner/model.gguf"];
        for path in paths.into_iter().chain([below_a_directory.as_str()]) {
            assert!(is_path(path), "{path}");
        }
        let found = describe_nearest(Path::new("src/missing"));
        assert!(
            found.starts_with("no such directory; `src` holds backoff.rs, cache.rs, download.rs"),
            "{found}"
        );
    }

    #[test]
    fn file_names_stay_inside() {
        for inside in ["config.json", "int4/model.safetensors", "m.mlpackage/Data/x.bin"] {
            assert!(is_inside(inside), "{inside}");
        }
        for outside in ["", "/etc/passwd", "../x", "a/../../x", "a\\b"] {
            assert!(!is_inside(outside), "{outside}");
        }
    }
}
