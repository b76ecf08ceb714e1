//! What is in the caches.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use mixbit_packages::bundle::Bundle;

use super::cache::Stored;
use super::error::HubError;
use super::settings::Settings;
use super::{link, unpacked};

/// The cache that a model is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeptIn {
    /// The Hub's, which other programs use too.
    Hub,
    /// mixbit's own: files of other servers.
    Downloads,
    /// mixbit's own: unpacked archives.
    Unpacked,
}

impl KeptIn {
    /// The cache's name.
    pub fn name(self) -> &'static str {
        match self {
            KeptIn::Hub => "hub",
            KeptIn::Downloads => "downloads",
            KeptIn::Unpacked => "unpacked",
        }
    }
}

/// A model in a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// The name: `owner/name`, a link or an archive's.
    pub name: String,
    /// Which cache has it.
    pub kept_in: KeptIn,
    /// Its folder.
    pub path: PathBuf,
    /// What it is, in words.
    pub kind: &'static str,
    /// The bytes on disk.
    pub bytes: u64,
    /// Those of them that are of unfinished downloads.
    pub partial: u64,
    /// The branches and tags that are there.
    pub revisions: Vec<String>,
}

/// Every model in the caches, by name.
pub fn kept(settings: &Settings) -> Vec<Kept> {
    let mut found = Vec::new();
    for (folder, name) in folders(&settings.cache) {
        let Some(repository) = name.strip_prefix("models--").map(|name| name.replacen("--", "/", 1)) else {
            continue;
        };
        let stored = Stored::new(&settings.cache, &repository);
        let refs = folder.join("refs");
        let revisions = files(&refs);
        let snapshots: Vec<PathBuf> = folders(&folder.join("snapshots")).map(|(path, _)| path).collect();
        found.push(Kept {
            name: repository,
            kept_in: KeptIn::Hub,
            kind: snapshots.iter().map(|path| kind(path)).find(|kind| *kind != OTHER).unwrap_or(OTHER),
            bytes: size(&folder, &|_| true),
            partial: size(&folder, &is_partial),
            path: stored.folder(),
            revisions,
        });
    }
    for (folder, _) in folders(&link::folder(settings)) {
        let source = link::source(&folder);
        let (bytes, partial) = (size(&folder, &|_| true), size(&folder, &is_partial));
        if source.is_none() && partial == 0 {
            continue;
        }
        found.push(Kept {
            name: source.as_ref().map_or_else(|| folder.display().to_string(), |source| source.url.clone()),
            kept_in: KeptIn::Downloads,
            kind: if source.is_some() { "file" } else { "unfinished file" },
            bytes,
            partial,
            path: source.map_or(folder.clone(), |source| folder.join(source.file)),
            revisions: Vec::new(),
        });
    }
    for (folder, _) in folders(&unpacked::folder(settings)) {
        for (path, name) in folders(&folder) {
            let is_partial = name.ends_with(".partial");
            let bytes = size(&path, &|_| true);
            found.push(Kept {
                kept_in: KeptIn::Unpacked,
                kind: if is_partial { "unfinished archive" } else { "Core ML packages" },
                partial: if is_partial { bytes } else { 0 },
                bytes,
                name,
                path,
                revisions: Vec::new(),
            });
        }
    }
    found.sort_by(|a, b| (&a.name, &a.path).cmp(&(&b.name, &b.path)));
    found
}

/// Removes models of a name from the caches, and what other programs downloaded of them. Returns what was
/// there.
///
/// # Errors
/// [`HubError::Name`] if there is none, [`HubError::Io`] if one can't be removed.
pub fn remove(settings: &Settings, name: &str) -> Result<Vec<Kept>, HubError> {
    let all = kept(settings);
    let is_meant = |kept: &&Kept| kept.name == name || kept.path == Path::new(name);
    let meant: Vec<Kept> = all.iter().filter(is_meant).cloned().collect();
    if meant.is_empty() {
        let what = match &all[..] {
            [] => "no model is downloaded".to_string(),
            all => {
                let names: BTreeSet<&str> = all.iter().map(|kept| kept.name.as_str()).collect();
                let near: Vec<&str> = names.iter().copied().take(8).collect();
                format!("no such model is downloaded; there is {}", near.join(", "))
            }
        };
        return Err(HubError::Name { name: name.to_string(), what });
    }
    for kept in &meant {
        let folder = match kept.kept_in {
            KeptIn::Hub => kept.path.clone(),
            KeptIn::Unpacked => kept.path.parent().unwrap_or(&kept.path).to_path_buf(),
            KeptIn::Downloads if kept.path.is_file() => {
                kept.path.parent().unwrap_or(&kept.path).to_path_buf()
            }
            KeptIn::Downloads => kept.path.clone(),
        };
        let removed = match fs::symlink_metadata(&folder) {
            // The folder may be a link to another disk: its content goes, and the link.
            Ok(metadata) if metadata.is_symlink() => {
                fs::canonicalize(&folder).and_then(fs::remove_dir_all).and_then(|()| fs::remove_file(&folder))
            }
            _ => fs::remove_dir_all(&folder),
        };
        removed.map_err(|cause| HubError::io("remove", &folder, cause))?;
        if kept.kept_in == KeptIn::Hub {
            let _ = fs::remove_dir_all(Stored::new(&settings.cache, &kept.name).locks());
        }
    }
    Ok(meant)
}

const OTHER: &str = "other";

/// What the files of a snapshot are.
fn kind(snapshot: &Path) -> &'static str {
    const WEIGHTS: [&str; 4] = ["safetensors", "ckpt", "gguf", "pth"];
    if snapshot.join("model_index.json").is_file() {
        return "diffusers";
    }
    if has_bundle(snapshot, 3) {
        return "Core ML packages";
    }
    let names = files(snapshot);
    let ends = |ends: &[&str]| {
        let mut extensions = names.iter().filter_map(|name| name.rsplit_once('.'));
        extensions.any(|(_, end)| ends.contains(&end.to_ascii_lowercase().as_str()))
    };
    match (ends(&WEIGHTS), ends(&["zip"])) {
        (true, _) if snapshot.join("config.json").is_file() => "component",
        (true, _) => "weight file",
        (_, true) => "archive",
        _ => OTHER,
    }
}

fn has_bundle(folder: &Path, depth: usize) -> bool {
    Bundle::is_at(folder) || depth > 0 && folders(folder).any(|(path, _)| has_bundle(&path, depth - 1))
}

/// The folders in a folder, with their names.
fn folders(folder: &Path) -> impl Iterator<Item = (PathBuf, String)> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| {
        let path = entry.path();
        path.is_dir().then_some((path, entry.file_name().into_string().ok()?))
    })
}

/// The paths of the files below a folder.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    super::cache::files_below(folder, "", &mut found);
    found.sort();
    found
}

fn is_partial(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "incomplete" || extension == "partial")
}

/// The bytes of the files below a folder that are counted; links are not followed.
fn size(folder: &Path, counts: &dyn Fn(&Path) -> bool) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let one = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => size(&entry.path(), counts),
        Ok(metadata) if metadata.is_file() && counts(&entry.path()) => metadata.len(),
        _ => 0,
    };
    entries.map(one).sum()
}
