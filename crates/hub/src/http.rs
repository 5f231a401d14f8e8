//! One HTTP client for the hub: follows redirects itself, because the first answer's headers describe the file and
//! because the token must not follow to another host.

use std::time::Duration;

use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use crate::{HubError, HubOptions};

const MAX_REDIRECTS: usize = 8;

/// TLS comes from the system on Apple platforms and from rustls elsewhere, so that no target needs a C library.
const TLS: TlsProvider =
    if cfg!(target_vendor = "apple") { TlsProvider::NativeTls } else { TlsProvider::Rustls };

pub(crate) struct Client {
    agent: Agent,
    host: Option<String>,
    token: Option<String>,
}

/// An answer, with the headers of every redirect that led to it.
pub(crate) struct Answer {
    pub status: u16,
    headers: Vec<HeaderMap>,
    pub body: Body,
}

impl Answer {
    /// A header of the first answer that has it: the hub's own word comes before its storage's.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|headers| headers.get(name)?.to_str().ok())
    }

    /// A header of the last answer, the one that carries the body.
    pub fn last_header(&self, name: &str) -> Option<&str> {
        self.headers.last()?.get(name)?.to_str().ok()
    }
}

impl Client {
    pub fn new(options: &HubOptions) -> Self {
        let agent = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .user_agent(concat!("q35/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().provider(TLS).build())
            .build()
            .into();
        Self { agent, host: host_of(&options.endpoint), token: options.token.clone() }
    }

    /// GETs `url`, from byte `from` on when that is not zero.
    pub fn get(&self, url: &str, from: u64) -> Result<Answer, HubError> {
        let connection = |message: String| HubError::Connection { url: url.to_owned(), message };
        let mut headers = Vec::new();
        let mut target = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let mut request = self.agent.get(&target).header("Accept-Encoding", "identity");
            if from > 0 {
                request = request.header("Range", format!("bytes={from}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| host_of(&target) == self.host) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|error| connection(error.to_string()))?;
            let next = redirect(&target, &response);
            let status = response.status().as_u16();
            let (parts, body) = response.into_parts();
            headers.push(parts.headers);
            match next {
                Some(location) => target = location,
                None => return Ok(Answer { status, headers, body }),
            }
        }
        Err(connection(format!("more than {MAX_REDIRECTS} redirects")))
    }
}

fn host_of(url: &str) -> Option<String> {
    url.parse::<Uri>().ok()?.authority().map(|authority| authority.as_str().to_ascii_lowercase())
}

fn redirect(from: &str, response: &Response<Body>) -> Option<String> {
    if !response.status().is_redirection() {
        return None;
    }
    let location = response.headers().get("Location")?.to_str().ok()?;
    if location.contains("://") {
        return Some(location.to_owned());
    }
    let base: Uri = from.parse().ok()?;
    let slash = if location.starts_with('/') { "" } else { "/" };
    Some(format!("{}://{}{slash}{location}", base.scheme_str()?, base.authority()?))
}
