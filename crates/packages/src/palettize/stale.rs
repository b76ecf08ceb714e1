//! Packages and files in the output directories that don't fit beside those of a job: of another model, or
//! the same network in another form. A program that opens the directory would mix them with the new ones.

use std::path::{Path, PathBuf};

use mixbit_formats::coreml;

use super::owner::Owner;
use super::target::Targets;
use crate::bundle::entries;
use crate::error::OpenError;
use crate::existing::ExistsError;
use crate::package::{
    CHUNKS, CONTROLNET, CONTROLNET_PREFIX, PACKAGE_KINDS, PackageKind, VOCABULARY, WHOLE, is_package,
};

/// A package or file that does not fit.
pub(super) struct Stale {
    pub(super) path: PathBuf,
    reason: String,
}

/// A package's kind, its name without the kind's ends, and whether it is a chunk.
struct Form {
    kind: &'static PackageKind,
    base: String,
    is_chunk: bool,
}

impl Form {
    fn of(path: &Path) -> Option<Self> {
        let stem = path.file_stem()?.to_str()?;
        let is_in_folder =
            path.parent().and_then(Path::file_name).is_some_and(|name| name == CONTROLNET.name);
        if is_in_folder || stem.starts_with(CONTROLNET_PREFIX) {
            let kind = PACKAGE_KINDS.iter().find(|kind| **kind == CONTROLNET)?;
            return Some(Form { kind, base: stem.to_string(), is_chunk: false });
        }
        let kind = PackageKind::of_stem(stem)?;
        let end = [CHUNKS[0], CHUNKS[1], WHOLE].into_iter().find(|&ends| kind.has_stem(stem, ends))?;
        let base = end.iter().filter(|end| !end.is_empty()).find_map(|end| stem.strip_suffix(end));
        Some(Form { kind, base: base.unwrap_or(stem).to_string(), is_chunk: end != WHOLE })
    }

    /// The reason why a package does not fit beside one of these that is written to the same directory.
    fn excludes(&self, written: &Path, found: &Path, form: &Form, is_model: bool) -> Option<String> {
        if self.kind != form.kind || self.kind.name == CONTROLNET.name {
            return None;
        }
        if self.base == form.base {
            let is_same_chunk = written.file_stem() == found.file_stem();
            return match (self.is_chunk, form.is_chunk) {
                (true, true) if !is_same_chunk => None,
                (false, true) => Some(format!("it is half of a {}, which is written whole", form.kind.name)),
                (true, false) => Some(format!("it is a whole {}, which is written in two", form.kind.name)),
                _ => Some(format!("it is the same {} in another format", form.kind.name)),
            };
        }
        is_model.then(|| format!("it is a second {}", form.kind.name))
    }
}

/// All that does not fit in a job's directories.
///
/// # Errors
/// If a directory can't be read.
pub(super) fn find(targets: &Targets, compiled: &[PathBuf]) -> Result<Vec<Stale>, OpenError> {
    let mut stale = Vec::new();
    let resources = targets.output.join("Resources");
    let written: Vec<&Path> = targets.packages.iter().map(|target| target.path.as_path()).collect();
    let compiled: Vec<&Path> = compiled.iter().map(PathBuf::as_path).collect();
    let owner = targets.owner.as_ref();
    for (directory, written, owner) in [
        (&targets.output, &written, owner.filter(|_| targets.is_model)),
        (&targets.output.join(CONTROLNET.name), &written, owner.filter(|_| targets.is_model)),
        (&resources, &compiled, owner),
        (&resources.join(CONTROLNET.name), &compiled, owner),
    ] {
        // What is behind a link is not this output.
        let is_there = match directory == &targets.output {
            true => directory.is_dir() || directory.as_os_str().is_empty(),
            false => directory.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()),
        };
        if is_there {
            packages(directory, written, owner, targets.is_model, &mut stale)?;
            vocabulary(directory, targets, &mut stale);
        }
    }
    Ok(stale)
}

/// Adds the packages of a directory that don't fit beside those that are written.
fn packages(
    directory: &Path,
    written: &[&Path],
    owner: Option<&Owner>,
    is_model: bool,
    stale: &mut Vec<Stale>,
) -> Result<(), OpenError> {
    let readable = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let mut found: Vec<PathBuf> = entries(readable)?
        .into_iter()
        .filter_map(|path| Some(directory.join(path.file_name()?)))
        .filter(|path| is_package(path) && !written.contains(&path.as_path()))
        .collect();
    found.sort();
    for path in found {
        let Some(form) = Form::of(&path) else { continue };
        let disowned = || {
            let metadata = coreml::read(&path).ok()?.metadata;
            owner?.disowns(form.kind, &metadata)
        };
        let excluded = || {
            let mut beside = written.iter().filter(|other| other.parent() == path.parent());
            beside.find_map(|other| Form::of(other)?.excludes(other, &path, &form, is_model))
        };
        if let Some(reason) = disowned().or_else(excluded) {
            stale.push(Stale { path, reason });
        }
    }
    Ok(())
}

/// Adds files of a vocabulary that the job's own does not have.
fn vocabulary(directory: &Path, targets: &Targets, stale: &mut Vec<Stale>) {
    let is_written = |path: &PathBuf| targets.files.iter().any(|file| file.path == *path);
    if !is_written(&directory.join(VOCABULARY[0])) {
        return;
    }
    let paths = VOCABULARY.iter().map(|name| directory.join(name));
    for path in paths.filter(|path| !is_written(path) && path.symlink_metadata().is_ok()) {
        stale.push(Stale { path, reason: "the model's tokenizer has none".to_string() });
    }
}

/// The error for what does not fit; none if all does.
pub(super) fn refused(stale: Vec<Stale>) -> Result<(), ExistsError> {
    let more = stale.len().saturating_sub(1);
    match stale.into_iter().next() {
        Some(Stale { path, reason }) => Err(ExistsError::Stale { path, reason, more }),
        None => Ok(()),
    }
}
