//! The names by which a model is asked for: a path, a repository of the Hub, a link.

use std::fmt;
use std::path::{Path, PathBuf};

use super::error::HubError;
use super::url::{decoded, origin_and_path};

/// The Hub's own address.
pub(super) const HUB: &str = "https://huggingface.co";

/// The most bytes of an owner or a name.
const LONGEST: usize = 96;

/// The ends of names of files, which no repository is taken for.
const FILES: [&str; 14] = [
    "safetensors",
    "ckpt",
    "pt",
    "pth",
    "bin",
    "gguf",
    "json",
    "yaml",
    "zip",
    "mlpackage",
    "mlmodelc",
    "mlmodel",
    "png",
    "txt",
];

/// Where a model is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A path of this machine, which need not exist.
    Local(PathBuf),
    /// A repository of the Hub, or a file or folder in it.
    Hub(HubName),
    /// A file on another server.
    Link(String),
}

/// A repository of the Hub: `owner/name[@revision][/path]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    /// `owner/name`.
    pub repository: String,
    /// A branch, tag or commit; `main` if absent.
    pub revision: Option<String>,
    /// A file or folder in the repository.
    pub path: Option<String>,
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))?;
        self.path.as_ref().map_or(Ok(()), |path| write!(f, "/{path}"))
    }
}

impl HubName {
    /// The branch, tag or commit.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Parses `owner/name[@revision][/path]`. A revision with slashes is written with `%2F`, except
    /// `refs/pr/N` and `refs/convert/NAME`. `None` for a text of another form.
    pub fn parse(text: &str) -> Option<Self> {
        let (owner, rest) = text.split_once('/')?;
        let end = rest.find(['/', '@']).unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let (revision, path) = match rest.strip_prefix('@') {
            Some(rest) => {
                let (revision, path) = revision_and_path(rest);
                (Some(decoded(revision)?), path)
            }
            None => (None, rest.strip_prefix('/').unwrap_or_default()),
        };
        let path = path.trim_end_matches('/');
        let is_valid = is_name(owner)
            && is_name(name)
            && revision.as_ref().is_none_or(|revision| is_relative(revision))
            && (path.is_empty() || is_relative(path));
        is_valid.then(|| HubName {
            repository: format!("{owner}/{name}"),
            revision,
            path: (!path.is_empty()).then(|| path.to_string()),
        })
    }
}

/// What an argument names. A path that exists wins over a repository of the same name.
///
/// # Errors
/// [`HubError::Tilde`], and [`HubError::Name`] for a link that can't be read.
pub fn place(argument: &Path, endpoint: &str) -> Result<Place, HubError> {
    let local = || Ok(Place::Local(argument.to_path_buf()));
    let Some(text) = argument.to_str() else { return local() };
    if text.starts_with("https://") || text.starts_with("http://") {
        return of_link(text, endpoint);
    }
    if argument.exists() {
        return local();
    }
    if text == "~" || text.starts_with("~/") || text.starts_with("~\\") {
        return Err(HubError::Tilde { argument: text.to_string() });
    }
    if let Some(name) = text.strip_prefix("hf://") {
        let defect =
            || HubError::Name { name: text.to_string(), what: "it is not hf://OWNER/NAME".to_string() };
        return HubName::parse(name.strip_prefix("models/").unwrap_or(name))
            .map(Place::Hub)
            .ok_or_else(defect);
    }
    match HubName::parse(text) {
        Some(name) if !(name.path.is_none() && is_file_name(&name.repository)) => Ok(Place::Hub(name)),
        _ => local(),
    }
}

/// What a link names: the Hub's pages are repositories and files of it.
fn of_link(link: &str, endpoint: &str) -> Result<Place, HubError> {
    let defect = |what: &str| HubError::Name { name: link.to_string(), what: what.to_string() };
    let (origin, path) = origin_and_path(link).ok_or_else(|| defect("it is not a link that can be read"))?;
    let hubs = [endpoint, HUB, "https://hf.co", "https://www.huggingface.co"];
    let Some(hub) =
        hubs.iter().find(|hub| link.strip_prefix(**hub).is_some_and(|rest| rest.starts_with('/')))
    else {
        let is_near = ["http://127.0.0.1", "http://localhost", "http://[::1]"].iter().any(|near| {
            origin.strip_prefix(near).is_some_and(|rest| rest.is_empty() || rest.starts_with(':'))
        });
        return match link.starts_with("https://") || is_near {
            true => Ok(Place::Link(link.to_string())),
            false => Err(defect("mixbit downloads by https:// only")),
        };
    };
    let path = link.strip_prefix(*hub).map_or(path, |path| path.split(['?', '#']).next().unwrap_or_default());
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let name = match parts[..] {
        [owner, name] => format!("{owner}/{name}"),
        [owner, name, "resolve" | "blob" | "raw" | "tree", ref rest @ ..] if !rest.is_empty() => {
            let rest = decoded(&rest.join("/")).ok_or_else(|| defect("its escapes can't be read"))?;
            format!("{owner}/{name}@{rest}")
        }
        _ => return Err(defect("it is not the page of a model or of a file on the Hub")),
    };
    HubName::parse(&name).map(Place::Hub).ok_or_else(|| defect("it is not the page of a model on the Hub"))
}

/// Splits a revision from the path that follows.
fn revision_and_path(text: &str) -> (&str, &str) {
    let is_ref = ["refs/pr/", "refs/convert/"].iter().any(|prefix| text.starts_with(prefix));
    let slash = text.match_indices('/').nth(if is_ref { 2 } else { 0 });
    slash.map_or((text, ""), |(at, _)| (&text[..at], &text[at + 1..]))
}

/// True for an owner or a name that the Hub allows.
fn is_name(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty()
        && text.len() <= LONGEST
        && text.chars().all(is_allowed)
        && !text.starts_with(['-', '.'])
        && !text.ends_with(['-', '.'])
        && !text.contains("--")
        && !text.contains("..")
}

/// True for a path of plain parts with slashes between them, which leads nowhere else.
pub(super) fn is_relative(path: &str) -> bool {
    const LONGEST_PATH: usize = 1024;
    const LONGEST_PART: usize = 255;
    let is_plain = |part: &str| {
        !part.is_empty()
            && part.len() <= LONGEST_PART
            && part != "."
            && part != ".."
            && !part.contains(|c: char| c.is_control() || matches!(c, '\\' | ':'))
    };
    path.len() <= LONGEST_PATH && path.split('/').all(is_plain)
}

/// True for a name that ends as files of models do.
fn is_file_name(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    extension.is_some_and(|extension| FILES.contains(&extension.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(repository: &str, revision: Option<&str>, path: Option<&str>) -> Place {
        let owned = |text: Option<&str>| text.map(str::to_string);
        let (revision, path) = (owned(revision), owned(path));
        Place::Hub(HubName { repository: repository.to_string(), revision, path })
    }

    #[test]
    fn names_links_and_paths_are_told_apart() {
        let endpoint = "http://127.0.0.1:9";
        let cases = [
            ("org/sdxl", hub("org/sdxl", None, None)),
            ("org/sdxl-1.0@v2", hub("org/sdxl-1.0", Some("v2"), None)),
            ("org/sdxl@refs/pr/3/unet", hub("org/sdxl", Some("refs/pr/3"), Some("unet"))),
            ("org/sdxl@a%2Fb/unet", hub("org/sdxl", Some("a/b"), Some("unet"))),
            ("org/m/x.safetensors", hub("org/m", None, Some("x.safetensors"))),
            ("org/m/original/compiled/", hub("org/m", None, Some("original/compiled"))),
            ("hf://org/m", hub("org/m", None, None)),
            ("https://huggingface.co/org/m", hub("org/m", None, None)),
            ("https://huggingface.co/org/m/blob/main/a/b.ckpt", hub("org/m", Some("main"), Some("a/b.ckpt"))),
            (
                "https://hf.co/org/m/resolve/main/x%20y.ckpt?download=true",
                hub("org/m", Some("main"), Some("x y.ckpt")),
            ),
            ("http://127.0.0.1:9/org/m/tree/main/unet", hub("org/m", Some("main"), Some("unet"))),
            (
                "https://civitai.com/api/download/models/1",
                Place::Link("https://civitai.com/api/download/models/1".into()),
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(place(Path::new(text), endpoint).unwrap(), expected, "{text}");
        }
        for text in [
            "sdxl",
            "./org/sdxl",
            "../org/sdxl",
            "/org/sdxl",
            "org/../x",
            "a/b/../../c",
            "models/x.safetensors",
            "org\\sdxl",
            "a b/c",
            "org//sdxl",
            "-x/y",
            ".x/y",
            "org/sdxl@",
            "org/sdxl@../x",
        ] {
            assert_eq!(place(Path::new(text), endpoint).unwrap(), Place::Local(text.into()), "{text}");
        }
        assert!(matches!(place(Path::new("~/models/x"), endpoint), Err(HubError::Tilde { .. })));
        for text in ["http://example.org/x.ckpt", "https://huggingface.co/a", "https://a@b/c", "hf://x"] {
            assert!(matches!(place(Path::new(text), endpoint), Err(HubError::Name { .. })), "{text}");
        }
    }

    #[test]
    fn a_path_that_exists_wins() {
        let scratch = mixbit_testkit::Scratch::new();
        let path = scratch.file("org/sdxl/model_index.json", b"{}");
        let path = path.parent().unwrap();
        assert_eq!(place(path, HUB).unwrap(), Place::Local(path.to_path_buf()));
    }
}
