//! The HTTP client of the hub. It follows redirects itself, because the first answer's headers describe the file and
//! because the token must not be sent to another host.

use std::time::Duration;

use ureq::http::{HeaderMap, Response, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};
use ureq::{Agent, Body, Proxy};

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
    /// A header of the first answer that has it: the hub's headers take precedence over its storage's.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|headers| headers.get(name)?.to_str().ok())
    }

    /// A header of the last answer, the one that carries the body.
    pub fn last_header(&self, name: &str) -> Option<&str> {
        self.headers.last()?.get(name)?.to_str().ok()
    }

    /// The error of an answer that refuses the request.
    pub fn refusal(&self, url: &str, has_token: bool) -> HubError {
        let hint = match (self.status, self.header("x-error-code")) {
            (401, _) if has_token => {
                "the access token is invalid or has expired: make a new one at \
                 https://huggingface.co/settings/tokens, or remove HF_TOKEN for a public model"
            }
            (_, Some("RevisionNotFound")) => "check the revision",
            (401 | 403, _) => {
                "the model is private or gated, or does not exist: check its id, accept its terms on the hub and set \
                 HF_TOKEN"
            }
            (404, _) => "check the model's id, the revision and HF_ENDPOINT",
            (429, _) => "too many requests: wait a few minutes, or set HF_TOKEN for a higher limit",
            _ => "try again later",
        };
        let message = self.header("x-error-message").map(str::to_owned);
        HubError::Status { status: self.status, url: url.to_owned(), message, hint }
    }

    /// The wait that the server requests before the next attempt, at most half a minute.
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = self.header("retry-after")?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds).min(Duration::from_secs(30)))
    }

    /// True for a status that another attempt may change.
    pub fn is_transient(&self) -> bool {
        matches!(self.status, 408 | 429 | 500..=599)
    }
}

impl Client {
    /// # Errors
    /// The proxy or the certificates cannot be used.
    pub fn new(options: &HubOptions) -> Result<Self, HubError> {
        let config = Agent::config_builder()
            .max_redirects(0)
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(20)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .user_agent(concat!("q35/", env!("CARGO_PKG_VERSION")))
            .tls_config(TlsConfig::builder().provider(TLS).root_certs(root_certificates(options)?).build())
            .proxy(proxy(options)?)
            .build();
        Ok(Self { agent: config.into(), host: host_of(&options.endpoint), token: options.token.clone() })
    }

    /// True if requests to the hub carry an access token.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// GETs `url`, starting at byte `from` if that is not zero.
    ///
    /// # Errors
    /// [`HubError::Connection`] where another attempt may succeed, [`HubError::Unreachable`] or
    /// [`HubError::Certificate`] where it will not.
    pub fn get(&self, url: &str, from: u64) -> Result<Answer, HubError> {
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
            let response = request.call().map_err(|error| classify(url, &error))?;
            let next = redirect(&target, &response);
            let status = response.status().as_u16();
            let (parts, body) = response.into_parts();
            headers.push(parts.headers);
            match next {
                Some(location) => target = location,
                None => return Ok(Answer { status, headers, body }),
            }
        }
        Err(HubError::Protocol {
            url: url.to_owned(),
            message: format!("more than {MAX_REDIRECTS} redirects"),
        })
    }
}

/// Sorts an error into those that another attempt may mend and those that it will not.
fn classify(url: &str, error: &ureq::Error) -> HubError {
    let (url, message) = (url.to_owned(), error.to_string());
    let is_tls = |text: &str| {
        let text = text.to_ascii_lowercase();
        ["certificate", "tls:", "rustls", "native tls"].iter().any(|word| text.contains(word))
    };
    match error {
        _ if is_tls(&message) => HubError::Certificate { url, message },
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::BadUri(_)
        | ureq::Error::ConnectProxyFailed(_)
        | ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => {
            HubError::Unreachable { url, message }
        }
        ureq::Error::Io(cause)
            if matches!(
                cause.kind(),
                std::io::ErrorKind::ConnectionRefused
                    | std::io::ErrorKind::HostUnreachable
                    | std::io::ErrorKind::NetworkUnreachable
                    | std::io::ErrorKind::NetworkDown
                    | std::io::ErrorKind::AddrNotAvailable
                    // A TLS handshake with a server that does not speak TLS.
                    | std::io::ErrorKind::InvalidData
            ) =>
        {
            HubError::Unreachable { url, message }
        }
        _ => HubError::Connection { url, message },
    }
}

fn proxy(options: &HubOptions) -> Result<Option<Proxy>, HubError> {
    let Some(setting) = &options.proxy else { return Ok(None) };
    let shown = match setting.rsplit_once('@') {
        Some((_, host)) => format!("...@{host}"),
        None => setting.clone(),
    };
    let refuse = |message: String| HubError::Proxy { proxy: shown.clone(), message };
    let parsed = Proxy::new(setting).map_err(|error| refuse(error.to_string()))?;
    let mut builder = Proxy::builder(parsed.protocol()).host(parsed.host()).port(parsed.port());
    if let Some(user) = parsed.username() {
        builder = builder.username(user);
    }
    if let Some(password) = parsed.password() {
        builder = builder.password(password);
    }
    for host in options.no_proxy.iter().flat_map(|list| list.split(',')).map(str::trim) {
        let domain = host.trim_start_matches("*.").trim_start_matches('.');
        if domain.is_empty() {
            continue;
        }
        // As in curl and Python, a domain includes its sub-domains.
        builder = builder.no_proxy(domain).no_proxy(&format!(".{domain}"));
    }
    builder.build().map(Some).map_err(|error| refuse(error.to_string()))
}

/// The certificate authorities of `options`, or else the default ones.
fn root_certificates(options: &HubOptions) -> Result<RootCerts, HubError> {
    let Some(path) = &options.certificates else {
        return Ok(match TLS {
            // ureq has Mozilla's certificates for rustls only.
            TlsProvider::NativeTls => RootCerts::PlatformVerifier,
            _ => RootCerts::WebPki,
        });
    };
    let refuse = |message: String| HubError::CertificateFile { path: path.clone(), message };
    let pem = std::fs::read(path).map_err(|error| refuse(error.to_string()))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| refuse(error.to_string()))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(refuse("no certificate in PEM form".to_owned()));
    }
    Ok(RootCerts::new_with_certs(&certificates))
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
