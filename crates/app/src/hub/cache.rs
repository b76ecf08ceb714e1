//! The cache of the Hub's clients, in the layout of Python's `huggingface_hub`.
//!
//! ```text
//! models--owner--name/refs/main                  the commit of a branch or tag
//!                     snapshots/COMMIT/unet/…    links to blobs, by their paths in the repository
//!                     blobs/ETAG                 contents
//!                     blobs/ETAG.incomplete      a part of one, which is resumed
//! .locks/models--owner--name/ETAG.lock           locked by the process that downloads the blob
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use mixbit_formats::{make_subdirectory, read_text, write_atomically};
use std::io::Write;

use super::error::HubError;
use super::http::check;
use super::name::is_relative;
use super::{Notice, Watch};

/// The longest file of a reference.
const LONGEST_REFERENCE: u64 = 4096;

/// The interval at which a lock is tried again.
const INTERVAL: Duration = Duration::from_millis(100);

/// A repository's folder in the cache.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    root: PathBuf,
    name: String,
}

/// A lock, which is free when it is dropped.
pub(super) struct Lock(#[allow(dead_code)] Option<File>);

impl Stored {
    /// The folder of `owner/name`.
    pub(super) fn new(root: &Path, repository: &str) -> Self {
        Stored { root: root.to_path_buf(), name: format!("models--{}", repository.replace('/', "--")) }
    }

    /// The folder, which need not exist.
    pub(super) fn folder(&self) -> PathBuf {
        self.root.join(&self.name)
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder().join("snapshots").join(commit)
    }

    /// A content.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder().join("blobs").join(etag)
    }

    /// The commit of a branch or tag when it was last asked for, or the commit itself if it is there.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        let reference = self.folder().join("refs").join(revision);
        let commit = read_text(&reference, LONGEST_REFERENCE).ok().map(|text| text.trim().to_string());
        let commit = commit.filter(|commit| is_commit(commit));
        commit.or_else(|| {
            (is_commit(revision) && self.snapshot(revision).is_dir()).then(|| revision.to_string())
        })
    }

    /// The paths of a commit's files that are there whole.
    pub(super) fn files(&self, commit: &str) -> Vec<String> {
        let mut found = Vec::new();
        files_below(&self.snapshot(commit), "", &mut found);
        found.sort();
        found
    }

    /// Makes the folders of a repository.
    pub(super) fn make(&self) -> Result<(), HubError> {
        fs::create_dir_all(&self.root).map_err(|cause| HubError::io("make", &self.root, cause))?;
        let locks = self.root.join(".locks");
        let folders = [locks.clone(), locks.join(&self.name), self.folder()];
        let inner = ["blobs", "refs", "snapshots"].map(|name| self.folder().join(name));
        // Users move repositories to other disks and leave links: only what lies inside must be plain.
        for folder in folders.into_iter().filter(|folder| !folder.is_dir()).chain(inner) {
            make_subdirectory(&folder)?;
        }
        Ok(())
    }

    /// Notes the commit of a branch or tag.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit || !is_relative(revision) || self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let reference = self.inside(&self.folder().join("refs"), revision)?;
        Ok(write_atomically(&reference, |file| file.write_all(commit.as_bytes()))?)
    }

    /// Gives a content its path in a commit. Where the system has no links, the content moves there.
    pub(super) fn link(&self, etag: &str, commit: &str, path: &str) -> Result<PathBuf, HubError> {
        let snapshot = self.snapshot(commit);
        make_subdirectory(&snapshot)?;
        let pointer = self.inside(&snapshot, path)?;
        if pointer.is_file() {
            return Ok(pointer);
        }
        // A link that leads nowhere.
        if fs::symlink_metadata(&pointer).is_ok_and(|metadata| metadata.is_symlink()) {
            fs::remove_file(&pointer).map_err(|cause| HubError::io("remove", &pointer, cause))?;
        }
        let up = "../".repeat(path.split('/').count() + 1);
        match symlink(Path::new(&format!("{up}blobs/{etag}")), &pointer) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(_) => fs::rename(self.blob(etag), &pointer)
                .map_err(|cause| HubError::io("write", &pointer, cause))?,
        }
        Ok(pointer)
    }

    /// The place of a path in a folder, whose own folders are made. Links among them are refused: they would
    /// lead elsewhere.
    fn inside(&self, folder: &Path, path: &str) -> Result<PathBuf, HubError> {
        debug_assert!(is_relative(path));
        let mut place = folder.to_path_buf();
        let (folders, name) = path.rsplit_once('/').unwrap_or(("", path));
        for part in folders.split('/').filter(|part| !part.is_empty()) {
            place.push(part);
            make_subdirectory(&place)?;
        }
        Ok(place.join(name))
    }

    /// Locks a content, which one process downloads at a time.
    pub(super) fn lock(&self, etag: &str, file: &str, watch: &dyn Watch) -> Result<Lock, HubError> {
        let path = self.root.join(".locks").join(&self.name).join(format!("{etag}.lock"));
        lock(&path, file, watch)
    }

    /// The folder of the locks.
    pub(super) fn locks(&self) -> PathBuf {
        self.root.join(".locks").join(&self.name)
    }
}

/// Locks a file, which is made if it is not there. Without locks, as on some network shares, none is held.
pub(super) fn lock(path: &Path, name: &str, watch: &dyn Watch) -> Result<Lock, HubError> {
    let open = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = open.map_err(|cause| HubError::io("lock", path, cause))?;
    let mut is_said = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock(Some(file))),
            Err(TryLockError::Error(_)) => return Ok(Lock(None)),
            Err(TryLockError::WouldBlock) => {}
        }
        if !is_said {
            watch.notice(&Notice::Waiting { file: name });
            is_said = true;
        }
        check(watch, name)?;
        thread::sleep(INTERVAL);
    }
}

/// True for a commit's name that is a plain folder name.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() <= 64 && is_etag(text)
}

/// True for the name of a content that is a plain file name.
pub(super) fn is_etag(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=128).contains(&text.len()) && text.bytes().all(is_allowed) && !text.starts_with('.')
}

/// Adds the paths of the files below a folder that lead somewhere.
pub(super) fn files_below(folder: &Path, prefix: &str, found: &mut Vec<String>) {
    const DEEPEST: usize = 16;
    if prefix.matches('/').count() > DEEPEST {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = format!("{prefix}{name}");
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_below(&entry.path(), &format!("{path}/"), found),
            Ok(_) if entry.path().is_file() => found.push(path),
            _ => {}
        }
    }
}

#[cfg(unix)]
fn symlink(to: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(to, link)
}

#[cfg(windows)]
fn symlink(to: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(to.to_string_lossy().replace('/', "\\"), link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
