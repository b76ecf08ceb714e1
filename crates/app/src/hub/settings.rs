//! The environment: caches, tokens, the Hub's address.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::name::HUB;

/// The longest token file.
const LONGEST_TOKEN: u64 = 4096;

/// The time after which a silent server is given up, unless `HF_HUB_DOWNLOAD_TIMEOUT` says another.
const STALL: Duration = Duration::from_secs(20);

/// The pause before the first retry.
const PAUSE: Duration = Duration::from_millis(500);

/// A secret, which is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub(super) String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Where models are kept and asked for.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cache of the Hub's clients, which Python's `huggingface_hub` shares.
    pub cache: PathBuf,
    /// mixbit's own cache: unpacked archives, and files of other servers.
    pub own_cache: PathBuf,
    /// The Hub's address, without a slash at its end.
    pub endpoint: String,
    /// The token for the Hub.
    pub token: Option<Token>,
    /// The token for Civitai.
    pub civitai_token: Option<Token>,
    /// True if the network must not be used.
    pub offline: bool,
    /// The time after which a silent server is given up.
    pub stall: Duration,
    /// The pause before the first retry; each next one is twice as long.
    pub pause: Duration,
    /// A file with the certificates to trust, in place of those of public authorities.
    pub certificates: Option<PathBuf>,
}

impl Settings {
    /// The settings of this process's environment: the variables of Python's `huggingface_hub`,
    /// `MIXBIT_CACHE` and `CIVITAI_TOKEN`.
    pub fn from_environment() -> Self {
        Settings::from_variables(|name| std::env::var_os(name))
    }

    /// The settings of an environment.
    pub fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name)?.into_string().ok().map(|text| text.trim().to_string());
        let is_true = |name: &str| {
            text(name).is_some_and(|value| {
                ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
            })
        };
        let home = set("HOME").or_else(|| set("USERPROFILE")).map_or(PathBuf::from("."), PathBuf::from);
        let path = |name: &str| set(name).map(|value| expanded(&PathBuf::from(value), &home));
        let user_cache = path("XDG_CACHE_HOME").unwrap_or_else(|| home.join(".cache"));
        let hub_home = path("HF_HOME").unwrap_or_else(|| user_cache.join("huggingface"));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| hub_home.join("token"));
        let token = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
        let token = token.or_else(|| token_of(&token_file)).filter(|token| !token.is_empty());
        let seconds = text("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse::<u32>().ok());
        Settings {
            cache: cache.unwrap_or_else(|| hub_home.join("hub")),
            own_cache: path("MIXBIT_CACHE").unwrap_or_else(|| user_cache.join("mixbit")),
            endpoint: text("HF_ENDPOINT")
                .map_or(HUB.to_string(), |text| text.trim_end_matches('/').to_string()),
            token: token.filter(|_| !is_true("HF_HUB_DISABLE_IMPLICIT_TOKEN")).map(Token),
            civitai_token: text("CIVITAI_TOKEN").map(Token),
            offline: is_true("HF_HUB_OFFLINE") || is_true("TRANSFORMERS_OFFLINE"),
            stall: seconds.map_or(STALL, |seconds| Duration::from_secs(seconds.max(1).into())),
            pause: PAUSE,
            certificates: path("SSL_CERT_FILE").or_else(|| path("REQUESTS_CA_BUNDLE")),
        }
    }
}

/// A path with the home directory in place of a `~` at its beginning.
fn expanded(path: &Path, home: &Path) -> PathBuf {
    path.strip_prefix("~").map_or_else(|_| path.to_path_buf(), |rest| home.join(rest))
}

fn token_of(path: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(LONGEST_TOKEN).read_to_string(&mut text).ok()?;
    Some(text.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(variables: &[(&str, &str)]) -> Settings {
        Settings::from_variables(|name| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_variables_are_those_of_the_python_client() {
        let settings = of(&[("HOME", "/u")]);
        assert_eq!(settings.cache, Path::new("/u/.cache/huggingface/hub"));
        assert_eq!(settings.own_cache, Path::new("/u/.cache/mixbit"));
        assert_eq!((settings.endpoint.as_str(), settings.offline), (HUB, false));
        assert_eq!(of(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
        let both =
            [("HOME", "/h"), ("HF_HOME", "~/hf"), ("HF_ENDPOINT", "https://m.co/"), ("HF_HUB_OFFLINE", "on")];
        let settings = of(&both);
        assert_eq!(settings.cache, Path::new("/h/hf/hub"));
        assert_eq!((settings.endpoint.as_str(), settings.offline), ("https://m.co", true));
        assert_eq!(of(&[("HF_HOME", "/a"), ("HF_HUB_CACHE", "/b")]).cache, Path::new("/b"));
    }

    #[test]
    fn tokens_come_from_the_environment_or_the_file() {
        let scratch = mixbit_testkit::Scratch::new();
        scratch.file("token", b"of-file\n");
        let home = scratch.path().to_str().unwrap();
        assert_eq!(of(&[("HF_HOME", home)]).token, Some(Token("of-file".into())));
        assert_eq!(of(&[("HF_HOME", home), ("HF_TOKEN", " own ")]).token, Some(Token("own".into())));
        assert_eq!(of(&[("HF_HOME", home), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token, None);
        assert!(!format!("{:?}", of(&[("HF_TOKEN", "secret")])).contains("secret"));
    }
}
