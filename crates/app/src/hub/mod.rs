//! Models by name: repositories of the Hugging Face Hub and links, downloaded into the cache that Python's
//! `huggingface_hub` shares.
//!
//! [`Hub::locate`] turns the argument of a command into a path. Only the files that a model needs are
//! downloaded: its configurations, vocabularies and one set of weights for each component. What the network
//! sends is not trusted; docs/security.md says what is checked.

mod api;
mod cache;
mod choose;
mod download;
mod error;
mod http;
mod inventory;
mod link;
mod name;
mod settings;
mod unpacked;
mod url;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mixbit_formats::{free_space, read_text};
use mixbit_mil::Stopped;

use api::{Api, Listing, bytes_of, near_paths};
use cache::Stored;
use choose::{Choice, NoChoice, choose, missing};
use download::{Meter, Remote, download};
use http::Client;

pub use error::HubError;
pub use inventory::{Kept, KeptIn, kept, remove};
pub use name::{HubName, Place, place};
pub use settings::{Settings, Token};

/// The most bytes of a text that says which files are needed.
const LARGEST_TEXT: u64 = 16 << 20;

/// What of a model is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// The variant of the weights, such as `fp16`.
    pub variant: Option<String>,
    /// True if the safety checker is used.
    pub safety_checker: bool,
    /// True if of a model in the diffusers layout only the configurations are used.
    pub without_weights: bool,
}

/// News of a download.
#[derive(Debug)]
pub enum Notice<'a> {
    /// Files will be downloaded.
    Download {
        /// The model.
        name: &'a str,
        /// The number of files.
        files: usize,
        /// Their bytes that are not there yet, as far as the server says.
        bytes: u64,
        /// The bytes of the model that are there already.
        kept: u64,
        /// Where the files go.
        directory: &'a Path,
    },
    /// Another process downloads the same file.
    Waiting {
        /// The file.
        file: &'a str,
    },
    /// An attempt failed, and another follows.
    Retrying {
        /// Why it failed.
        reason: &'a str,
        /// The time until the next.
        pause: Duration,
    },
    /// The server gives no answer that helps, and the model in the cache is taken.
    Unreachable {
        /// The model.
        name: &'a str,
        /// Why.
        reason: &'a str,
    },
    /// An archive is unpacked.
    Unpacking {
        /// The archive.
        name: &'a str,
    },
}

/// The receiver of news and progress.
pub trait Watch: Sync {
    /// Takes note of news.
    fn notice(&self, notice: &Notice);

    /// Fails if the download should stop. It is asked ten times a second.
    ///
    /// # Errors
    /// [`Stopped`].
    fn check(&self) -> Result<(), Stopped>;

    /// Reports the bytes that are there.
    ///
    /// # Errors
    /// [`Stopped`] if the download should stop.
    fn progress(&self, done: u64, total: u64) -> Result<(), Stopped>;
}

/// A model that is on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The directory or file.
    pub path: PathBuf,
    /// The files of a model that was asked for by name.
    pub files: usize,
    /// The bytes that were downloaded for it now.
    pub downloaded: u64,
}

/// The Hub and the caches.
pub struct Hub {
    settings: Settings,
    client: Client,
}

/// A file to download.
struct Pending {
    path: String,
    version: api::Version,
}

impl Hub {
    /// A client with these settings. Nothing is sent yet.
    ///
    /// # Errors
    /// [`HubError::Setting`].
    pub fn new(settings: Settings) -> Result<Self, HubError> {
        Ok(Hub { client: Client::new(&settings)?, settings })
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The path of what an argument names. A repository or link is downloaded as far as it is not there.
    ///
    /// # Errors
    /// [`HubError`].
    pub fn locate(&self, argument: &Path, wish: &Wish, watch: &dyn Watch) -> Result<Located, HubError> {
        match place(argument, &self.settings.endpoint)? {
            Place::Local(path) => Ok(Located { path, files: 0, downloaded: 0 }),
            Place::Hub(name) => self.repository(&name, wish, watch),
            Place::Link(url) => link::locate(&self.client, &self.settings, &url, watch),
        }
    }

    fn repository(&self, name: &HubName, wish: &Wish, watch: &dyn Watch) -> Result<Located, HubError> {
        const WHOLE_COMMIT: usize = 40;
        let revision = name.revision();
        let is_fixed =
            revision.len() == WHOLE_COMMIT && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
        if self.settings.offline || is_fixed {
            let cached = self.cached(name, wish, watch);
            if self.settings.offline || cached.is_ok() {
                return cached;
            }
        }
        let api = Api { client: &self.client, endpoint: &self.settings.endpoint, watch };
        match api.listing(name) {
            Ok(listing) => Fetch { hub: self, api: &api, name, listing: &listing }.run(wish),
            Err(error) if error.is_for_cache() => {
                let Ok(cached) = self.cached(name, wish, watch) else { return Err(error) };
                watch.notice(&Notice::Unreachable { name: &name.to_string(), reason: &error.to_string() });
                Ok(cached)
            }
            Err(error) => Err(error),
        }
    }

    fn stored(&self, name: &HubName) -> Stored {
        Stored::new(&self.settings.cache, &name.repository)
    }

    /// The model as the cache has it.
    fn cached(&self, name: &HubName, wish: &Wish, watch: &dyn Watch) -> Result<Located, HubError> {
        let stored = self.stored(name);
        let absent = |missing: String| HubError::Offline { name: name.to_string(), missing };
        let commit = stored.commit(name.revision()).ok_or_else(|| {
            absent(match stored.folder().is_dir() {
                true => format!("revision `{}` of it", name.revision()),
                false => "such model".to_string(),
            })
        })?;
        let paths: BTreeSet<String> = stored.files(&commit).into_iter().collect();
        let snapshot = stored.snapshot(&commit);
        let mut read = |path: &str| Ok(read_text(&snapshot.join(path), LARGEST_TEXT)?);
        let asked = name.path.as_deref().unwrap_or_default();
        let choice = choose(&name.to_string(), &paths, asked, wish, &mut read);
        let choice = choice.map_err(|error| match error {
            NoChoice::Read(error) => error,
            NoChoice::Absent => absent(format!("`{asked}` of it")),
            NoChoice::Unclear(what) => {
                HubError::Choice { name: name.repository.clone(), what: format!("{what} (in the cache)") }
            }
        })?;
        let files = choice.files().count();
        let lacking = if wish.without_weights { Vec::new() } else { missing(&choice, &mut read)? };
        if !lacking.is_empty() {
            return Err(absent(lacking.join(", ")));
        }
        let located = |path| Located { path, files, downloaded: 0 };
        match &choice {
            Choice::Folder { folder, .. } => Ok(located(snapshot.join(folder))),
            Choice::File { file, .. } => Ok(located(snapshot.join(file))),
            Choice::Archive(file) => {
                unpacked::unpacked(&self.settings, &snapshot.join(file), watch).map(located)
            }
        }
    }
}

/// The download of a repository's files.
struct Fetch<'a> {
    hub: &'a Hub,
    api: &'a Api<'a>,
    name: &'a HubName,
    listing: &'a Listing,
}

impl Fetch<'_> {
    fn run(&self, wish: &Wish) -> Result<Located, HubError> {
        let stored = self.hub.stored(self.name);
        let commit = &self.listing.commit;
        let snapshot = stored.snapshot(commit);
        let paths: BTreeSet<String> = self.listing.files.keys().cloned().collect();
        let asked = self.name.path.as_deref().unwrap_or_default();
        let mut read = |path: &str| {
            self.files(&stored, &[path.to_string()], true)?;
            Ok(read_text(&snapshot.join(path), LARGEST_TEXT)?)
        };
        let named = HubName { path: None, ..self.name.clone() }.to_string();
        let choice = choose(&named, &paths, asked, wish, &mut read).map_err(|error| match error {
            NoChoice::Read(error) => error,
            NoChoice::Absent => HubError::File {
                name: self.name.repository.clone(),
                path: asked.to_string(),
                near: near_paths(self.listing, asked),
            },
            NoChoice::Unclear(what) => HubError::Choice { name: self.name.repository.clone(), what },
        })?;
        let files: Vec<String> = choice.files().cloned().collect();
        let downloaded = self.files(&stored, &files, false)?;
        stored.set_commit(self.name.revision(), commit)?;
        let path = match &choice {
            Choice::Folder { folder, .. } => snapshot.join(folder),
            Choice::File { file, .. } => snapshot.join(file),
            Choice::Archive(file) => {
                unpacked::unpacked(&self.hub.settings, &snapshot.join(file), self.api.watch)?
            }
        };
        Ok(Located { path, files: files.len(), downloaded })
    }

    /// Downloads files that are not there. Returns their bytes. Texts by which others are chosen come without
    /// a notice.
    fn files(&self, stored: &Stored, paths: &[String], is_text: bool) -> Result<u64, HubError> {
        let (commit, watch) = (&self.listing.commit, self.api.watch);
        let (here, absent): (Vec<String>, Vec<String>) =
            paths.iter().cloned().partition(|path| stored.snapshot(commit).join(path).is_file());
        let mut kept = bytes_of(self.listing, &here);
        if absent.is_empty() {
            return Ok(0);
        }
        stored.make()?;
        let mut pending = Vec::new();
        for path in absent {
            let version = self.api.version(self.name, commit, &path)?;
            match is_blob(stored, &version) {
                true => {
                    kept += version.size.unwrap_or(0);
                    stored.link(&version.etag, commit, &path)?;
                }
                false => pending.push(Pending { path, version }),
            }
        }
        let (mut total, mut partial) = (0u64, 0u64);
        for Pending { version, .. } in &pending {
            total = total.saturating_add(version.size.unwrap_or(0));
            let begun = stored.blob(&format!("{}.incomplete", version.etag)).metadata();
            partial += begun.map_or(0, |metadata| metadata.len().min(version.size.unwrap_or(0)));
        }
        if pending.is_empty() {
            return Ok(0);
        }
        let name = self.name.to_string();
        if is_text {
            if total > LARGEST_TEXT {
                let what = format!("`{}` has {total} bytes, too many for a text", pending[0].path);
                return Err(HubError::Choice { name, what });
            }
        } else {
            let needed = total.saturating_sub(partial);
            let directory = &self.hub.settings.cache;
            check_space(&name, directory, needed)?;
            let (files, kept) = (pending.len(), kept + partial);
            watch.notice(&Notice::Download { name: &name, files, bytes: needed, kept, directory });
        }
        let meter = Meter::new(watch, total);
        for file in &pending {
            self.file(stored, file, &meter)?;
        }
        Ok(total.saturating_sub(partial))
    }

    fn file(&self, stored: &Stored, file: &Pending, meter: &Meter) -> Result<(), HubError> {
        let Pending { path, version } = file;
        let name = format!("{}/{path}", self.name.repository);
        let _lock = stored.lock(&version.etag, &name, self.api.watch)?;
        // Another process may have been faster.
        if is_blob(stored, version) {
            let stopped = |Stopped| HubError::Stopped { name: name.clone() };
            meter.add(version.size.unwrap_or(0)).map_err(stopped)?;
        } else {
            let is_sha256 =
                version.etag.len() == 64 && version.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
            let sha256 = is_sha256.then_some(version.etag.as_str());
            let remote = Remote { name: &name, url: &version.url, size: version.size, sha256, etag: None };
            let partial = stored.blob(&format!("{}.incomplete", version.etag));
            download(&self.hub.client, &remote, &partial, &stored.blob(&version.etag), meter)?;
        }
        stored.link(&version.etag, &self.listing.commit, path).map(drop)
    }
}

/// True if a content is there whole.
fn is_blob(stored: &Stored, version: &api::Version) -> bool {
    let found = stored.blob(&version.etag).metadata();
    found.is_ok_and(|found| found.is_file() && version.size.is_none_or(|size| size == found.len()))
}

/// Fails if a directory's disk has less room than is needed, with a little for the system.
fn check_space(name: &str, directory: &Path, needed: u64) -> Result<(), HubError> {
    const RESERVE: u64 = 64 << 20;
    let there = directory.ancestors().find(|directory| directory.is_dir()).unwrap_or(directory);
    match free_space(there) {
        Some(free) if needed > 0 && free < needed.saturating_add(RESERVE) => {
            let directory = directory.to_path_buf();
            Err(HubError::Disk { name: name.to_string(), directory, needed, free })
        }
        _ => Ok(()),
    }
}
