//! Where the hub and its cache are, and who asks.

use std::path::PathBuf;
use std::time::Duration;

use crate::Interrupt;

/// Settings of a fetch; [`Options::from_env`] reads them as all Hugging Face libraries do.
#[derive(Clone, PartialEq, Eq)]
pub struct Options {
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// Folder that holds `models--org--name` folders.
    pub cache: PathBuf,
    /// Sent to the hub alone, never to the servers that it redirects to.
    pub token: Option<String>,
    /// Never connect: take what the cache has.
    pub offline: bool,
    /// Pause before the first repetition of a failed request; doubles with each further one.
    pub retry_pause: Duration,
    /// Ends a fetch early.
    pub interrupt: Interrupt,
}

impl std::fmt::Debug for Options {
    /// Without the token, which must not end up in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let token = self.token.as_ref().map(|_| "set");
        let Options { endpoint, cache, offline, .. } = self;
        write!(
            f,
            "Options {{ endpoint: {endpoint:?}, cache: {cache:?}, token: {token:?}, offline: {offline} }}"
        )
    }
}

impl Options {
    /// `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH` (else the file
    /// `$HF_HOME/token`) and `HF_HUB_OFFLINE`.
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok(), std::env::home_dir())
    }

    fn from_variables(get: impl Fn(&str) -> Option<String>, home: Option<PathBuf>) -> Self {
        // An empty variable counts as unset, as in a shell's `${VAR:-default}`.
        let get = |name: &str| get(name).map(|v| v.trim().to_string()).filter(|v| !v.is_empty());
        let home = home.unwrap_or_default();
        let path = |name: &str| {
            get(name).map(|value| match value.strip_prefix("~/") {
                Some(rest) => home.join(rest),
                None => PathBuf::from(value),
            })
        };
        let caches = || path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let hf_home = path("HF_HOME").unwrap_or_else(|| caches().join("huggingface"));
        let token_path = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        let stored = || std::fs::read_to_string(token_path).ok().map(|t| t.trim().to_string());
        let on = |name: &str| {
            get(name).is_some_and(|v| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let endpoint = get("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        Options {
            endpoint: endpoint.trim_end_matches('/').into(),
            cache: path("HF_HUB_CACHE").unwrap_or_else(|| hf_home.join("hub")),
            token: get("HF_TOKEN").or_else(stored).filter(|t| !t.is_empty()),
            offline: on("HF_HUB_OFFLINE"),
            retry_pause: Duration::from_secs(1),
            interrupt: Interrupt::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(variables: &[(&str, &str)]) -> Options {
        let get = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_string());
        Options::from_variables(get, Some("/home/me".into()))
    }

    #[test]
    fn defaults_and_variables() {
        let plain = options(&[]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache, PathBuf::from("/home/me/.cache/huggingface/hub"));
        assert!(!plain.offline && plain.token.is_none());
        assert_eq!(options(&[("XDG_CACHE_HOME", "/x")]).cache, PathBuf::from("/x/huggingface/hub"));
        assert_eq!(options(&[("HF_HOME", "~/hf")]).cache, PathBuf::from("/home/me/hf/hub"));
        assert_eq!(options(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]).cache, PathBuf::from("/c"));
        assert_eq!(options(&[("HF_ENDPOINT", "http://mirror/")]).endpoint, "http://mirror");
        for (value, offline) in [("1", true), ("true", true), ("0", false), ("", false), ("no", false)] {
            assert_eq!(options(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value}");
        }
    }

    #[test]
    fn the_token_comes_from_the_variable_else_from_its_file_and_stays_out_of_logs() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "stored\n").unwrap();
        let hf_home = ("HF_HOME", home.path().to_str().unwrap());
        assert_eq!(options(&[hf_home]).token.as_deref(), Some("stored"));
        let set = options(&[hf_home, ("HF_TOKEN", " secret ")]);
        assert_eq!(set.token.as_deref(), Some("secret"));
        assert!(!format!("{set:?}").contains("secret"));
    }
}
