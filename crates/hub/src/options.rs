//! Settings of the hub client.

use std::path::PathBuf;

/// Settings of the hub client. The default uses the public hub, the revision `main`, the user's usual cache, and the
/// proxy and certificates that the environment names, as HTTP clients do; it reads no other variable.
#[derive(Clone, Debug)]
pub struct HubOptions {
    /// Branch, tag or commit.
    pub revision: String,
    /// Base address of the hub.
    pub endpoint: String,
    /// Directory that holds `models--owner--name`.
    pub cache_dir: PathBuf,
    /// Access token, sent to the endpoint's host only.
    pub token: Option<String>,
    /// Uses the cache alone and no network.
    pub offline: bool,
    /// Attempts after the first, for every request. Progress of a transfer resets the count.
    pub retries: u32,
    /// Proxy for all connections: `http://`, `https://`, `socks4://`, `socks4a://`, `socks5://` or `socks5h://`.
    pub proxy: Option<String>,
    /// Hosts that are reached without the proxy, separated by commas.
    pub no_proxy: Option<String>,
    /// PEM file of the certificate authorities to trust, such as a company's. `None`: Mozilla's, on Apple's systems the
    /// system's.
    pub certificates: Option<PathBuf>,
}

impl Default for HubOptions {
    fn default() -> Self {
        let of_network =
            |name: &str| name.to_ascii_uppercase().ends_with("_PROXY") || CERTIFICATES.contains(&name);
        Self::from_lookup(|name| of_network(name).then(|| std::env::var(name).ok()).flatten())
    }
}

/// The variables that name a file of certificate authorities, the first one first.
const CERTIFICATES: [&str; 3] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"];

impl HubOptions {
    /// Settings as Hugging Face's own tools take them from the environment, read through `variable`: `HF_ENDPOINT`,
    /// `HF_TOKEN` (or the token file that `hf auth login` writes), `HF_HUB_CACHE`, `HF_HOME`, `HF_HUB_OFFLINE`,
    /// `HTTPS_PROXY` or `HTTP_PROXY` by the endpoint's scheme, `ALL_PROXY`, `NO_PROXY` (upper or lower case), and
    /// `SSL_CERT_FILE`, `REQUESTS_CA_BUNDLE` or `CURL_CA_BUNDLE`.
    pub fn from_lookup(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let either_case = |name: &str| set(name).or_else(|| set(&name.to_ascii_lowercase()));
        let home = set("HF_HOME").map(PathBuf::from);
        let cache = match (set("HF_HUB_CACHE"), &home) {
            (Some(dir), _) => hf_hub::Cache::new(dir.into()),
            (None, Some(home)) => hf_hub::Cache::new(home.join("hub")),
            (None, None) => match set("HOME").or_else(|| set("USERPROFILE")) {
                Some(user) => hf_hub::Cache::new(PathBuf::from(user).join(".cache/huggingface/hub")),
                None => hf_hub::Cache::default(),
            },
        };
        let token = set("HF_TOKEN").map(|token| token.trim().to_owned()).or_else(|| cache.token());
        let truthy =
            |value: String| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE");
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let by_scheme = if endpoint.starts_with("http://") { "HTTP_PROXY" } else { "HTTPS_PROXY" };
        Self {
            revision: "main".to_owned(),
            endpoint,
            cache_dir: cache.path().clone(),
            token,
            offline: set("HF_HUB_OFFLINE").is_some_and(truthy),
            retries: 5,
            proxy: either_case(by_scheme).or_else(|| either_case("ALL_PROXY")),
            no_proxy: either_case("NO_PROXY"),
            certificates: CERTIFICATES.into_iter().find_map(&set).map(PathBuf::from),
        }
    }

    /// The same settings at another revision.
    pub fn with_revision(mut self, revision: impl Into<String>) -> Self {
        self.revision = revision.into();
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_of_hugging_face_tools_is_honoured() {
        let env = |name: &str| {
            let value = match name {
                "HF_HOME" => "/home/of/hf",
                "HF_TOKEN" => "secret\n",
                "HF_ENDPOINT" => "http://127.0.0.1:1",
                "HF_HUB_OFFLINE" => "true",
                "http_proxy" => "socks5://127.0.0.1:9",
                "HTTPS_PROXY" => "http://other:1",
                "NO_PROXY" => "localhost",
                "SSL_CERT_FILE" => "/etc/company.pem",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let options = HubOptions::from_lookup(env);
        assert_eq!(options.cache_dir, PathBuf::from("/home/of/hf/hub"));
        assert_eq!(options.token.as_deref(), Some("secret"));
        assert_eq!(options.endpoint, "http://127.0.0.1:1");
        assert!(options.offline);
        assert_eq!(
            options.proxy.as_deref(),
            Some("socks5://127.0.0.1:9"),
            "the one of the endpoint's scheme"
        );
        assert_eq!(options.no_proxy.as_deref(), Some("localhost"));
        assert_eq!(options.certificates, Some(PathBuf::from("/etc/company.pem")));
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let options = HubOptions::from_lookup(|name| (name == "HF_HUB_OFFLINE").then(String::new));
        assert!(!options.offline);
        assert_eq!(options.endpoint, "https://huggingface.co");
    }

    #[test]
    fn a_proxy_for_all_schemes_is_the_last_choice() {
        let all = |name: &str| (name == "all_proxy").then(|| "socks4://127.0.0.1:9".to_owned());
        assert_eq!(HubOptions::from_lookup(all).proxy.as_deref(), Some("socks4://127.0.0.1:9"));
        let both = |name: &str| match name {
            "HTTPS_PROXY" => Some("http://proxy:1".to_owned()),
            "ALL_PROXY" => Some("socks4://127.0.0.1:9".to_owned()),
            _ => None,
        };
        assert_eq!(HubOptions::from_lookup(both).proxy.as_deref(), Some("http://proxy:1"));
    }
}
