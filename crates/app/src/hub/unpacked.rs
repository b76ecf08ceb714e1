//! Archives of models, unpacked into mixbit's own cache.

use std::fs;
use std::path::{Path, PathBuf};

use mixbit_formats::{free_space, hex, sha256, unpack};
use mixbit_mil::{Progress, Stopped, Unit};
use mixbit_packages::source::{is_model, models_below};

use super::cache::lock;
use super::error::HubError;
use super::settings::Settings;
use super::{Notice, Watch};

/// The most bytes that an archive may unpack to.
const LARGEST: u64 = 64 << 30;

/// Progress as the receiver of downloads shows it.
struct Shown<'w>(&'w dyn Watch);

impl Progress for Shown<'_> {
    fn advance(&self, done: u64, total: u64, _: Unit) -> Result<(), Stopped> {
        self.0.check()?;
        self.0.progress(done, total)
    }
}

/// The model of an archive, which is unpacked if it is not yet. The name of its content tells archives apart:
/// that of the Hub's cache is its checksum.
pub(super) fn unpacked(settings: &Settings, archive: &Path, watch: &dyn Watch) -> Result<PathBuf, HubError> {
    let content = archive.canonicalize().map_err(|cause| HubError::io("read", archive, cause))?;
    let metadata = content.metadata().map_err(|cause| HubError::io("read", archive, cause))?;
    let key = match content.file_name().and_then(|name| name.to_str()) {
        Some(name) if name.len() >= 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            name.to_string()
        }
        _ => {
            let text = format!("{}\n{}", content.display(), metadata.len());
            hex(&sha256(text.as_bytes())[..16])
        }
    };
    let folder = folder(settings).join(&key);
    fs::create_dir_all(&folder).map_err(|cause| HubError::io("make", &folder, cause))?;
    let name = archive.file_stem().unwrap_or_default();
    let directory = folder.join(name);
    let shown = name.to_string_lossy();
    let _lock = lock(&folder.join("lock"), &shown, watch)?;
    if !directory.is_dir() {
        watch.notice(&Notice::Unpacking { name: &shown });
        let limit = free_space(&folder).unwrap_or(LARGEST).min(LARGEST);
        unpack(archive, &directory, limit, &Shown(watch)).map_err(|error| match error {
            mixbit_formats::Error::Stopped { .. } => HubError::Stopped { name: shown.to_string() },
            error => error.into(),
        })?;
    }
    model_in(&directory)
}

/// The folder of unpacked archives.
pub(super) fn folder(settings: &Settings) -> PathBuf {
    settings.own_cache.join("unpacked")
}

/// The only model below a directory; the directory itself if there is none, which opening it explains.
fn model_in(directory: &Path) -> Result<PathBuf, HubError> {
    if is_model(directory) {
        return Ok(directory.to_path_buf());
    }
    match &models_below(directory)[..] {
        [] => Ok(directory.to_path_buf()),
        [model] => Ok(model.clone()),
        models => {
            let named: Vec<String> = models.iter().map(|path| path.display().to_string()).collect();
            let what = format!("the archive has several models: give one of {}", named.join(", "));
            Err(HubError::Choice { name: directory.display().to_string(), what })
        }
    }
}
