//! Errors between a model's name and its files.

use std::path::PathBuf;

/// A model whose files could not be found or fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The name is neither a directory nor a hub id.
    #[error(
        "cannot find model `{model}`\n  expected: a directory, or a hub id such as Qwen/Qwen3.5-0.8B\n  found:    \
         no such directory, and not of the form owner/name"
    )]
    Name {
        /// The name.
        model: String,
    },
    /// The name is a path, and there is no such directory. Paths are never looked up on the hub.
    #[error("cannot find model `{model}`\n  expected: a directory\n  found:    {found}")]
    Path {
        /// The path.
        model: String,
        /// The part of the path that exists, and names in it that are similar.
        found: String,
    },
    /// Offline, and the cache does not hold the model completely.
    #[error(
        "offline, and `{id}` at revision `{revision}` is not in the cache {cache}\n\
         hint: unset HF_HUB_OFFLINE, or point HF_HOME at a cache that holds it"
    )]
    Offline {
        /// Hub id.
        id: String,
        /// The requested revision.
        revision: String,
        /// Cache directory.
        cache: PathBuf,
    },
    /// The hub refused.
    #[error("the hub answered {status} to {url}{}\nhint: {hint}", reason(message))]
    Status {
        /// HTTP status.
        status: u16,
        /// The requested address.
        url: String,
        /// The hub's own explanation, if it sent one.
        message: Option<String>,
        /// Advice.
        hint: &'static str,
    },
    /// The hub cannot be reached at all.
    #[error(
        "cannot fetch {url}: {message}\nhint: check the network connection, HF_ENDPOINT and the proxy (HTTPS_PROXY); \
         HF_HUB_OFFLINE=1 uses the cache alone"
    )]
    Unreachable {
        /// The requested address.
        url: String,
        /// The failure.
        message: String,
    },
    /// The server's certificate is not trusted.
    #[error(
        "cannot fetch {url}: {message}\nhint: where a company's proxy inspects connections, point SSL_CERT_FILE at its \
         certificate authority"
    )]
    Certificate {
        /// The requested address.
        url: String,
        /// The failure.
        message: String,
    },
    /// The file of certificate authorities cannot be used.
    #[error("cannot read the certificates in {path}: {message}\nhint: SSL_CERT_FILE names a PEM file")]
    CertificateFile {
        /// The file.
        path: PathBuf,
        /// The failure.
        message: String,
    },
    /// The proxy setting cannot be used. No request is sent past it.
    #[error(
        "cannot use the proxy `{proxy}`: {message}\n  expected: http, https, socks4, socks4a, socks5 or socks5h, as in \
         socks5://127.0.0.1:1080"
    )]
    Proxy {
        /// The setting, without its password.
        proxy: String,
        /// The failure.
        message: String,
    },
    /// The connection kept breaking.
    #[error("cannot fetch {url}: {message}\nhint: run the same command again: it goes on where it stopped")]
    Connection {
        /// The requested address.
        url: String,
        /// The last failure.
        message: String,
    },
    /// The answer does not follow the hub's protocol.
    #[error("the answer to {url} is not a hub's: {message}")]
    Protocol {
        /// The requested address.
        url: String,
        /// The deviation.
        message: String,
    },
    /// A file arrived with another size or hash than declared.
    #[error(
        "`{file}` of `{id}` arrived damaged\n  expected: {expected}\n  found:    {found}\nhint: run the command again; the damaged copy was removed"
    )]
    Damaged {
        /// Hub id.
        id: String,
        /// File in the repository.
        file: String,
        /// Declared size or hash.
        expected: String,
        /// Size or hash that arrived.
        found: String,
    },
    /// Another process is downloading the same file.
    #[error("another process is downloading {path}\nhint: wait for it, then run the command again")]
    Busy {
        /// The unfinished file.
        path: PathBuf,
    },
    /// The repository holds none of the files that a model needs.
    #[error("`{id}` holds none of the files that a model needs (found: {found})")]
    Nothing {
        /// Hub id.
        id: String,
        /// The first names in the repository.
        found: String,
    },
    /// The file system failed.
    #[error("cannot write {path}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

fn reason(message: &Option<String>) -> String {
    message.as_ref().map(|message| format!(": {message}")).unwrap_or_default()
}
