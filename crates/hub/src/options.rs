//! Where to look and how.

use std::path::PathBuf;

/// Settings of a look-up. The default asks the public hub for `main` and keeps files in the user's usual cache.
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
    /// Use what is in the cache and touch no network.
    pub offline: bool,
    /// How often a broken transfer is taken up again before giving up.
    pub retries: u32,
}

impl Default for HubOptions {
    fn default() -> Self {
        Self::from_lookup(|_| None)
    }
}

impl HubOptions {
    /// Settings as Hugging Face's own tools take them from the environment, read through `variable`:
    /// `HF_ENDPOINT`, `HF_TOKEN` (or the token file that `hf auth login` writes), `HF_HUB_CACHE`, `HF_HOME`,
    /// `HF_HUB_OFFLINE`.
    pub fn from_lookup(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
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
        Self {
            revision: "main".to_owned(),
            endpoint: set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned()),
            cache_dir: cache.path().clone(),
            token,
            offline: set("HF_HUB_OFFLINE").is_some_and(truthy),
            retries: 5,
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
                _ => return None,
            };
            Some(value.to_owned())
        };
        let options = HubOptions::from_lookup(env);
        assert_eq!(options.cache_dir, PathBuf::from("/home/of/hf/hub"));
        assert_eq!(options.token.as_deref(), Some("secret"));
        assert_eq!(options.endpoint, "http://127.0.0.1:1");
        assert!(options.offline);
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let options = HubOptions::from_lookup(|name| (name == "HF_HUB_OFFLINE").then(String::new));
        assert!(!options.offline);
        assert_eq!(options.endpoint, "https://huggingface.co");
    }
}
