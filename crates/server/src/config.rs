//! Settings of the server.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use q35_runtime::Sampling;

use crate::ServeError;

/// Settings of the server.
///
/// ```
/// let config = q35_server::ServerConfig::default();
/// assert_eq!((config.host.to_string().as_str(), config.port), ("127.0.0.1", 8035));
/// assert!(config.check().is_ok());
/// ```
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Address to listen on. Any address but a loopback one needs `api_key` or `allow_without_key`.
    pub host: IpAddr,
    /// Port to listen on; 0 lets the system choose one.
    pub port: u16,
    /// Name under which `/v1/models` lists the model. Requests that name another model are refused.
    pub model_id: String,
    /// Further names that requests may use for the model.
    pub model_aliases: Vec<String>,
    /// Key that requests must send as `Authorization: Bearer KEY` or `x-api-key: KEY`.
    pub api_key: Option<String>,
    /// Permits listening on other than loopback addresses without a key.
    pub allow_without_key: bool,
    /// Origins that browsers may call from (`https://app.example`); none by default.
    pub cors_origins: Vec<String>,
    /// Settings that a request's own replace.
    pub sampling: Sampling,
    /// Largest `max_tokens` of a request, and the value where it names none.
    pub max_tokens: usize,
    /// Reasoning budget in tokens where thinking is on and the request names none.
    pub thinking_tokens: usize,
    /// Conversations that generate at the same time.
    pub concurrent: usize,
    /// Requests that may wait for a free place; further ones receive status 429.
    pub queue: usize,
    /// Largest request body in bytes.
    pub body_bytes: usize,
    /// Idle time after which the weights are unloaded; the next request loads them again.
    pub idle_unload: Option<Duration>,
    /// Interval of keep-alive comments in streams.
    pub keep_alive: Duration,
    /// Sends the reasoning also as `reasoning`, beside `reasoning_content`.
    pub reasoning_alias: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 8035,
            model_id: "q35".into(),
            model_aliases: Vec::new(),
            api_key: None,
            allow_without_key: false,
            cors_origins: Vec::new(),
            sampling: Sampling::default(),
            max_tokens: 4096,
            thinking_tokens: 1024,
            concurrent: 8,
            queue: 64,
            body_bytes: 4 << 20,
            idle_unload: None,
            keep_alive: Duration::from_secs(10),
            reasoning_alias: false,
        }
    }
}

impl ServerConfig {
    /// Checks the settings against each other.
    ///
    /// # Errors
    /// A public address without a key, an origin that is no origin, or a limit of zero.
    pub fn check(&self) -> Result<(), ServeError> {
        let fail = |option, expected: &str, found: String| {
            Err(ServeError::Option { option, expected: expected.to_owned(), found })
        };
        if !self.host.is_loopback() && self.api_key.is_none() && !self.allow_without_key {
            let expected =
                "an API key (or explicit permission to serve without one) for an address that others reach";
            return fail("host", expected, self.host.to_string());
        }
        if self.api_key.as_ref().is_some_and(|key| key.trim().is_empty()) {
            return fail("api_key", "a key that is not empty", "an empty one".into());
        }
        for origin in &self.cors_origins {
            let sound = ["http://", "https://"].iter().any(|scheme| {
                origin.strip_prefix(scheme).is_some_and(|host| !host.is_empty() && !host.contains('/'))
            });
            if !sound {
                return fail("cors_origins", "scheme://host[:port] without a path", origin.clone());
            }
        }
        let limits = [
            ("max_tokens", self.max_tokens),
            ("concurrent", self.concurrent),
            ("queue", self.queue),
            ("body_bytes", self.body_bytes),
        ];
        match limits.iter().find(|(_, value)| *value == 0) {
            Some((option, _)) => fail(option, "a whole number from 1", "0".into()),
            None => Ok(()),
        }
    }

    /// True if requests may use `name` for the served model.
    pub(crate) fn serves(&self, name: &str) -> bool {
        name == self.model_id || self.model_aliases.iter().any(|alias| alias == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_address_needs_a_key_or_permission() {
        let public = ServerConfig { host: "0.0.0.0".parse().unwrap(), ..ServerConfig::default() };
        assert!(public.check().unwrap_err().to_string().contains("API key"));
        assert!(ServerConfig { api_key: Some("k".into()), ..public.clone() }.check().is_ok());
        assert!(ServerConfig { allow_without_key: true, ..public }.check().is_ok());
    }

    #[test]
    fn origins_and_limits_are_checked() {
        let with =
            |origin: &str| ServerConfig { cors_origins: vec![origin.into()], ..ServerConfig::default() };
        assert!(with("https://app.example:8080").check().is_ok());
        for wrong in ["*", "app.example", "https://", "https://app.example/path"] {
            assert!(with(wrong).check().is_err(), "{wrong}");
        }
        assert!(ServerConfig { queue: 0, ..ServerConfig::default() }.check().is_err());
    }
}
