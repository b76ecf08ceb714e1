//! The Hub's answers: a repository's files, and a file's version.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::cache::{is_commit, is_etag};
use super::error::HubError;
use super::http::{Answer, Ask, Client};
use super::name::{HubName, is_relative};
use super::url::{encoded, encoded_path, host, without_query};
use super::{Watch, Wish};

/// The most bytes of a listing.
const LARGEST_LISTING: usize = 32 << 20;

/// The most files of a repository.
const MOST_FILES: usize = 100_000;

/// The most pages of a listing.
const MOST_PAGES: usize = 200;

/// The most names that are proposed.
const MOST_NEAR: usize = 3;

/// A repository at one commit.
#[derive(Clone, Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    /// Sizes by path, where the Hub says them.
    pub(super) files: BTreeMap<String, Option<u64>>,
}

/// A file as the Hub has it.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) etag: String,
    pub(super) size: Option<u64>,
    /// The address of the content.
    pub(super) url: String,
}

#[derive(Deserialize)]
struct Model {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    size: Option<u64>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Found {
    id: String,
}

/// The Hub at one address.
pub(super) struct Api<'a> {
    pub(super) client: &'a Client,
    pub(super) endpoint: &'a str,
    pub(super) watch: &'a dyn Watch,
}

impl Api<'_> {
    /// The files of a repository at its revision.
    ///
    /// # Errors
    /// [`HubError::Repository`], [`HubError::Revision`], [`HubError::Gated`], [`HubError::Reply`], and those
    /// of the network.
    pub(super) fn listing(&self, name: &HubName) -> Result<Listing, HubError> {
        let revision = encoded(name.revision());
        let url = format!("{}/api/models/{}/revision/{revision}?blobs=true", self.endpoint, name.repository);
        let model: Model = self.json(&url, name)?.0;
        let reply = |what: String| HubError::Reply { url: without_query(&url).to_string(), what };
        let commit = model.sha.filter(|sha| is_commit(sha));
        let commit = commit.ok_or_else(|| reply("it does not say the commit".to_string()))?;
        let size = |sibling: &Sibling| sibling.lfs.as_ref().and_then(|lfs| lfs.size).or(sibling.size);
        let files = model.siblings.iter().map(|sibling| (sibling.rfilename.clone(), size(sibling)));
        let mut files = checked(files).map_err(reply)?;
        if files.values().any(Option::is_none) || files.is_empty() {
            // Sizes are for the user; a Hub that does not list them is no obstacle.
            if let Ok(tree) = self.tree(name, &commit) {
                files.extend(checked(tree.into_iter()).map_err(|what| {
                    let url = format!("{}/api/models/{}/tree/{commit}", self.endpoint, name.repository);
                    HubError::Reply { url, what }
                })?);
            }
        }
        Ok(Listing { commit, files })
    }

    fn tree(&self, name: &HubName, commit: &str) -> Result<Vec<(String, Option<u64>)>, HubError> {
        let mut files = Vec::new();
        let mut url =
            format!("{}/api/models/{}/tree/{commit}?recursive=true", self.endpoint, name.repository);
        for _ in 0..MOST_PAGES {
            let (entries, next): (Vec<Entry>, _) = self.json(&url, name)?;
            let entries = entries.into_iter().filter(|entry| entry.kind == "file");
            files
                .extend(entries.map(|entry| (entry.path, entry.lfs.and_then(|lfs| lfs.size).or(entry.size))));
            match next.filter(|next| next.starts_with(&format!("{}/", self.endpoint))) {
                Some(next) if files.len() <= MOST_FILES => url = next,
                _ => break,
            }
        }
        Ok(files)
    }

    /// A JSON answer, and the address of its next page.
    fn json<T: for<'d> Deserialize<'d>>(
        &self,
        url: &str,
        name: &HubName,
    ) -> Result<(T, Option<String>), HubError> {
        let answer = self.ask(Ask::get(url), name)?;
        let content = answer.content(LARGEST_LISTING, self.watch)?;
        let value = serde_json::from_slice(&content).map_err(|error| HubError::Reply {
            url: without_query(url).to_string(),
            what: format!("its answer is not that of a Hub ({error}): check HF_ENDPOINT and the proxy"),
        })?;
        let next = answer.header("link").and_then(|link| {
            let (address, relation) = link.split(',').find_map(|part| part.split_once('>'))?;
            relation.contains("next").then(|| address.trim().trim_start_matches('<').to_string())
        });
        Ok((value, next))
    }

    /// The version of a file at a commit.
    ///
    /// # Errors
    /// [`HubError::File`], [`HubError::Gated`], [`HubError::Reply`], and those of the network.
    pub(super) fn version(&self, name: &HubName, commit: &str, path: &str) -> Result<Version, HubError> {
        let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, name.repository, encoded_path(path));
        let named = HubName { path: Some(path.to_string()), ..name.clone() };
        let answer = self.ask(Ask { is_head: true, leaves: false, ..Ask::get(&url) }, &named)?;
        let reply = |what: &str| HubError::Reply { url: url.clone(), what: what.to_string() };
        let etag = answer.header("x-linked-etag").or_else(|| answer.header("etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"').to_string());
        let etag =
            etag.filter(|etag| is_etag(etag)).ok_or_else(|| reply("its ETag is missing, or no name"))?;
        let linked = answer.header("x-linked-size").and_then(|text| text.parse().ok());
        let is_moved = (300..400).contains(&answer.status);
        let size = linked.or_else(|| answer.len().filter(|_| !is_moved));
        Ok(Version { etag, size, url })
    }

    /// Sends a request. Redirections and success are answers; anything else is an error.
    fn ask(&self, ask: Ask, name: &HubName) -> Result<Answer, HubError> {
        self.client.with_retries(self.watch, || {
            let answer = self.client.send(ask, self.watch).map_err(|error| (error, false))?;
            match answer.status {
                200..400 => Ok(answer),
                _ => Err((self.refusal(&answer, name), false)),
            }
        })
    }

    /// The error that a status and its code stand for.
    fn refusal(&self, answer: &Answer, name: &HubName) -> HubError {
        let (repository, endpoint) = (name.repository.clone(), self.endpoint.to_string());
        let has_token = self.client.has_token(&answer.url);
        let absent = || HubError::Repository {
            name: repository.clone(),
            endpoint: endpoint.clone(),
            has_token,
            near: self.near(name),
        };
        match (answer.status, answer.header("x-error-code"), &name.path) {
            (401 | 403, Some("GatedRepo"), _) => HubError::Gated { name: repository, endpoint, has_token },
            (_, Some("RevisionNotFound"), _) => {
                HubError::Revision { name: repository, revision: name.revision().to_string(), endpoint }
            }
            (404, Some("EntryNotFound"), Some(path)) => {
                HubError::File { name: repository, path: path.clone(), near: Vec::new() }
            }
            (401 | 404, Some("RepoNotFound"), _) => absent(),
            (404, None, Some(path)) if answer.url.contains("/resolve/") => {
                HubError::File { name: repository, path: path.clone(), near: Vec::new() }
            }
            // To those who may not see a repository, the Hub does not say whether there is one.
            (401, _, _) if !has_token => absent(),
            (404, _, _) => absent(),
            (401 | 403, _, _) => HubError::Denied {
                host: host(&answer.url),
                name: repository,
                status: answer.status,
                has_token,
                variable: "HF_TOKEN",
            },
            _ => answer.refused(),
        }
    }

    /// Repositories with a similar name, if the Hub finds some at once.
    fn near(&self, name: &HubName) -> Vec<String> {
        let Some((_, own)) = name.repository.split_once('/') else { return Vec::new() };
        let url = format!("{}/api/models?search={}&limit={MOST_NEAR}", self.endpoint, encoded(own));
        let answer = self.client.send(Ask::get(&url), self.watch).ok().filter(|answer| answer.status == 200);
        let content = answer.and_then(|answer| answer.content(1 << 20, self.watch).ok()).unwrap_or_default();
        let found: Vec<Found> = serde_json::from_slice(&content).unwrap_or_default();
        let ids = found.into_iter().map(|found| found.id).filter(|id| HubName::parse(id).is_some());
        ids.take(MOST_NEAR).collect()
    }
}

/// The files of a listing whose names can't lead elsewhere.
fn checked(
    files: impl Iterator<Item = (String, Option<u64>)>,
) -> Result<BTreeMap<String, Option<u64>>, String> {
    let mut found = BTreeMap::new();
    for (path, size) in files {
        let leads_out = path.starts_with('/')
            || path.contains(['\\', '\0'])
            || path.split('/').any(|part| matches!(part, "" | "." | ".."));
        if leads_out {
            return Err(format!("it lists `{}`, a name that leads out of its folder", path.escape_debug()));
        }
        // Names that some system does not take are never among those of a model.
        if is_relative(&path) {
            found.insert(path, size);
        }
        if found.len() > MOST_FILES {
            return Err(format!("it lists more than {MOST_FILES} files"));
        }
    }
    Ok(found)
}

/// The paths of a listing that resemble one.
pub(super) fn near_paths(listing: &Listing, path: &str) -> Vec<String> {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    let stem = |text: &str| text.rsplit('/').next().unwrap_or(text).to_ascii_lowercase();
    let is_near = |other: &&String| {
        let other = stem(other);
        let shared = other.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
        !extension.is_empty() && other.ends_with(extension) && shared * 2 >= name.len().min(other.len())
    };
    listing.files.keys().filter(is_near).take(MOST_NEAR).cloned().collect()
}

/// Files that every wish takes with it, for the total of a download.
pub(super) fn bytes_of(listing: &Listing, paths: &[String]) -> u64 {
    let size = |path: &String| listing.files.get(path).copied().flatten();
    paths.iter().filter_map(size).fold(0, u64::saturating_add)
}

impl Wish {
    /// True if the weights of a component are wanted.
    pub(super) fn takes(&self, component: &str) -> bool {
        !self.without_weights && (self.safety_checker || component != "safety_checker")
    }
}
