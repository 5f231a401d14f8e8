//! From what a user typed to a directory.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cache::RepositoryCache;
use crate::download::{Wanted, fetch, refused};
use crate::http::Client;
use crate::{HubError, HubOptions};

/// What a look-up reports. Events come on the calling thread, in order: `Started`, any number of `Progress`, then
/// `Finished`; a transfer that is taken up again starts anew. No `Finished` follows a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A transfer begins.
    Started {
        /// File in the repository.
        file: &'a str,
        /// Its whole size, if declared.
        size_bytes: Option<u64>,
        /// Bytes that an earlier transfer left.
        resumed_at_bytes: u64,
    },
    /// More bytes have arrived.
    Progress {
        /// File in the repository.
        file: &'a str,
        /// Bytes since the last event.
        bytes: u64,
    },
    /// A file is whole, verified and in place.
    Finished {
        /// File in the repository.
        file: &'a str,
    },
    /// The hub could not be reached; the cached commit is used.
    Cached {
        /// The commit.
        commit: &'a str,
    },
}

/// Where a model lies.
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
/// # Errors
/// The name is neither; the hub refuses, cannot be reached while the cache lacks the model, or sends damaged files; the
/// disk fails.
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
    if !is_hub_id(model) {
        return Err(HubError::Name { model: model.to_owned() });
    }
    let cache = RepositoryCache::new(model, options);
    let found = |commit: String| Resolved {
        dir: cache.snapshot(&commit),
        id: Some(model.to_owned()),
        commit: Some(commit),
    };
    let cached = || cache.known_commit().filter(|commit| cache.snapshot(commit).is_dir());
    if options.offline {
        return cached().map(found).ok_or_else(|| HubError::Offline {
            id: model.to_owned(),
            revision: options.revision.clone(),
            cache: options.cache_dir.clone(),
        });
    }
    let client = Client::new(options);
    let info = match ask(&client, model, options) {
        Ok(info) => info,
        Err(error @ HubError::Connection { .. }) => {
            let commit = cached().ok_or(error)?;
            events(Event::Cached { commit: &commit });
            return Ok(found(commit));
        }
        Err(error) => return Err(error),
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

fn ask(client: &Client, id: &str, options: &HubOptions) -> Result<Info, HubError> {
    let revision = options.revision.replace('/', "%2F");
    let url = format!("{}/api/models/{id}/revision/{revision}", options.endpoint.trim_end_matches('/'));
    let protocol = |message: String| HubError::Protocol { url: url.clone(), message };
    let mut answer = client.get(&url, 0)?;
    if answer.status != 200 {
        return Err(refused(answer.status, &url));
    }
    let text = answer.body.read_to_string().map_err(|error| protocol(error.to_string()))?;
    let info: Info = serde_json::from_str(&text).map_err(|error| protocol(error.to_string()))?;
    let plain = |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric());
    if !plain(&info.sha) {
        return Err(protocol(format!("`{}` is no commit", info.sha)));
    }
    // A name that climbs out of the snapshot is an attack, not a file.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_owner_slash_name_is_a_hub_id() {
        for id in ["Qwen/Qwen3.5-0.8B", "a/b_c.d-e"] {
            assert!(is_hub_id(id), "{id}");
        }
        for other in ["", "model", "./model", "/abs/path", "a/b/c", "a/", "../x", "~/x", "a b/c"] {
            assert!(!is_hub_id(other), "{other}");
        }
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
