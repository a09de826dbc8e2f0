//! Where the hub and its cache are, and what the hub is shown: the variables of `huggingface_hub`.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::HubError;

/// The hub that is asked unless `HF_ENDPOINT` names another.
const ENDPOINT: &str = "https://huggingface.co";
/// Bytes of a file with a token at most.
const LONGEST_TOKEN: u64 = 4096;

/// Where the hub and its cache are.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address of the hub, without a slash in the end.
    pub endpoint: String,
    /// Shown to the hub, and to nobody else.
    pub token: Option<Token>,
    /// The cache directory of `huggingface_hub`.
    pub cache: PathBuf,
    /// Whether nothing is asked of the network.
    pub offline: bool,
    /// How long a hub is waited for.
    pub patience: Patience,
}

/// A secret that prints as stars.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token, without the spaces around it; `None` for nothing.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self(text.to_owned()))
    }

    pub(crate) fn secret(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// How long a hub is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// Attempts in a row that bring nothing.
    pub attempts: u32,
    /// Wait after the first of them; it doubles.
    pub first_wait: Duration,
    /// The longest wait that a hub may ask for.
    pub longest_wait: Duration,
    /// Silence after which a connection is given up.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 5,
            first_wait: Duration::from_secs(1),
            longest_wait: Duration::from_secs(300),
            silence: Duration::from_secs(30),
        }
    }
}

impl Settings {
    /// Those of this process: `HF_ENDPOINT`, `HF_TOKEN` or a file with the token, `HF_HUB_CACHE`,
    /// `HF_HOME`, `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// [`HubError::NoCache`] where no variable says where the cache is.
    pub fn of_environment() -> Result<Self, HubError> {
        Self::from_variables(|name| std::env::var_os(name))
    }

    fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok());
        let user = set("HOME").map(PathBuf::from);
        let directory = |name: &str| Some(expanded(set(name)?.into(), user.as_deref()));
        let xdg = || Some(directory("XDG_CACHE_HOME")?.join("huggingface"));
        let home = directory("HF_HOME")
            .or_else(xdg)
            .or_else(|| Some(user.as_ref()?.join(".cache/huggingface")));
        let cache = directory("HF_HUB_CACHE")
            .or_else(|| directory("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| Some(home.as_ref()?.join("hub")))
            .ok_or(HubError::NoCache)?;
        let stored = || {
            let file = directory("HF_TOKEN_PATH").or_else(|| Some(home.as_ref()?.join("token")))?;
            token_of(&file)
        };
        let is_on = |name: &str| {
            text(name).is_some_and(|value| {
                ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str())
            })
        };
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.as_deref().and_then(Token::new).or_else(stored),
            cache,
            offline: is_on("HF_HUB_OFFLINE") || is_on("TRANSFORMERS_OFFLINE"),
            patience: Patience::default(),
        })
    }
}

/// `~/` stands for the user's directory.
fn expanded(path: PathBuf, user: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), user) {
        (Ok(rest), Some(user)) => user.join(rest),
        _ => path,
    }
}

fn token_of(file: &Path) -> Option<Token> {
    let meta = std::fs::metadata(file).ok()?;
    if !meta.is_file() || meta.len() > LONGEST_TOKEN {
        return None;
    }
    Token::new(&std::fs::read_to_string(file).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Settings {
        let find = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Settings::from_variables(find).expect("a cache")
    }

    #[test]
    fn variables_mean_what_they_mean_to_others() {
        let plain = of(&[("HOME", "/u")]);
        assert_eq!(plain.cache, Path::new("/u/.cache/huggingface/hub"));
        assert!(plain.token.is_none() && !plain.offline);
        assert!(plain.endpoint.starts_with("https://"));
        let cache = |variables: &[(&str, &str)]| of(variables).cache;
        assert_eq!(
            cache(&[("XDG_CACHE_HOME", "/x")]),
            Path::new("/x/huggingface/hub")
        );
        let home = [("HOME", "/u"), ("HF_HOME", "~/hf")];
        assert_eq!(cache(&home), Path::new("/u/hf/hub"));
        let own = [("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")];
        assert_eq!(cache(&own), Path::new("/c"));
        let asked = of(&[
            ("HOME", "/u"),
            ("HF_ENDPOINT", "http://127.0.0.1:1/"),
            ("HF_TOKEN", " secret\n"),
            ("HF_HUB_OFFLINE", "YES"),
        ]);
        assert_eq!(asked.endpoint, "http://127.0.0.1:1");
        assert!(asked.offline);
        assert_eq!(asked.token, Token::new("secret"));
        assert_eq!(format!("{:?}", asked.token), "Some(Token(***))");
        assert!(matches!(
            Settings::from_variables(|_| None),
            Err(HubError::NoCache)
        ));
    }

    #[test]
    fn a_token_is_found_in_its_file() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("token"), "stored\n").expect("a file");
        let home = dir.path().to_str().expect("UTF-8");
        assert_eq!(of(&[("HF_HOME", home)]).token, Token::new("stored"));
        let both = [("HF_HOME", home), ("HF_TOKEN", "said")];
        assert_eq!(of(&both).token, Token::new("said"));
    }
}
