//! Outputs that are there: kept if they were made of the same source in the same way, else refused.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use mixbit_formats::coreml::{self, CoreMlError, Metadata};
use mixbit_formats::write_atomically;
use serde_json::Value;
use thiserror::Error;

use crate::package::keys;
use crate::package::provenance::options_of;

/// An output that is there and is not what would be written.
#[derive(Debug, Error)]
pub enum ExistsError {
    /// A package of another source, or made in another way.
    #[error(
        "{} is there already, but {differences}: choose another directory, or replace it with --force",
        path.display()
    )]
    Package {
        /// The package.
        path: PathBuf,
        /// What differs, in words.
        differences: String,
    },
    /// A file with other content.
    #[error(
        "{} is there already, with other content: choose another directory, or replace it with --force",
        path.display()
    )]
    File {
        /// The file.
        path: PathBuf,
    },
    /// A package or file that would not fit beside the new ones.
    #[error(
        "{} is there already, and {reason}{}: choose another directory, or remove {} with --force",
        path.display(),
        if *more > 0 { format!(" ({more} more like it)") } else { String::new() },
        if *more > 0 { "them" } else { "it" }
    )]
    Stale {
        /// The first of them.
        path: PathBuf,
        /// Why it does not fit, in words.
        reason: String,
        /// The number of others.
        more: usize,
    },
    /// A package of a kind that is not read, such as one of a newer tool.
    #[error("{} is there already, and can't be compared; --force replaces it: {cause}", path.display())]
    Unreadable {
        /// The package.
        path: PathBuf,
        /// The reason.
        cause: Box<mixbit_formats::Error>,
    },
}

/// True if a package that was made of the same source in the same way is there; false if there is none, or
/// an empty or damaged one, which is to be replaced.
///
/// # Errors
/// [`ExistsError`] for another package.
pub(crate) fn is_there(path: &Path, planned: &Metadata) -> Result<bool, ExistsError> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(false);
    }
    let found = match coreml::read(path) {
        Ok(found) => found.metadata,
        Err(error) if is_damage(&error) => return Ok(false),
        Err(cause) => {
            return Err(ExistsError::Unreadable { path: path.to_path_buf(), cause: Box::new(cause) });
        }
    };
    let differences = differences(&found, planned);
    if differences.is_empty() {
        return Ok(true);
    }
    Err(ExistsError::Package { path: path.to_path_buf(), differences: differences.join("; ") })
}

/// True if an error says that a package is none: empty, cut off, or with files missing.
fn is_damage(error: &mixbit_formats::Error) -> bool {
    use mixbit_formats::Error;
    match error {
        Error::NotFound { .. } | Error::Text { .. } => true,
        Error::Read { cause, .. } => cause.kind() == io::ErrorKind::NotFound,
        // Not what only this reader does not know: the program of another tool is no damage.
        Error::CoreMl { problem, .. } => matches!(
            problem,
            CoreMlError::Malformed { .. } | CoreMlError::Inconsistent { .. } | CoreMlError::Blob { .. }
        ),
        _ => false,
    }
}

/// Metadata that identifies a package, in words for people.
const WORDS: [(&str, &str); 8] = [
    (keys::SOURCE, "it was made of other weights"),
    (keys::CONFIG, "the network's configuration differs"),
    (keys::CLASS, "the network's class differs"),
    (keys::SCHEDULER, "the scheduler's configuration differs"),
    (keys::MODEL_INDEX, "model_index.json differs"),
    (keys::TOKENIZER, "the tokenizer's configuration differs"),
    (keys::FULL_PRECISION, "other layers keep floats"),
    (keys::COMPONENT, "it is of another part of the model"),
];

/// The differences between a package that is there and the one that would be written; none if they are the
/// same.
fn differences(found: &Metadata, planned: &Metadata) -> Vec<String> {
    let of = |metadata: &Metadata, key: &str| metadata.user_defined.get(key).cloned();
    if of(found, keys::SOURCE).is_none() {
        return vec!["it does not say what it was made of".to_string()];
    }
    let differs = |key: &str| of(found, key) != of(planned, key);
    let words = WORDS.iter().filter(|(key, _)| differs(key)).map(|(_, words)| (*words).to_string());
    let mut all: Vec<String> = words.collect();
    if found.version != planned.version {
        all.push(format!("it is of the model `{}`, not `{}`", found.version, planned.version));
    }
    if differs(keys::RECIPE) {
        let how = |metadata| match of(metadata, keys::RECIPE) {
            Some(recipe) => format!("palettized by {recipe}"),
            None => "not palettized".to_string(),
        };
        all.push(format!("it is {}, and would be {}", how(found), how(planned)));
    }
    let options = |metadata| options_of(&of(metadata, keys::OPTIONS).unwrap_or_default());
    let (there, here) = (options(found), options(planned));
    let names: BTreeMap<&String, ()> = there.keys().chain(here.keys()).map(|name| (name, ())).collect();
    for name in names.into_keys().filter(|name| there.get(*name) != here.get(*name)) {
        let value = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_string);
        match (there.get(name).map(value), here.get(name).map(value)) {
            (Some(there), Some(here)) => all.push(format!("--{name} was {there}, and is {here}")),
            // The recipe tells these apart already.
            _ if name == "min-size" && differs(keys::RECIPE) => {}
            (Some(there), None) => all.push(format!("--{name} was {there}, and is not given")),
            (None, Some(here)) => all.push(format!("--{name} was not given, and is {here}")),
            (None, None) => {}
        }
    }
    if differs(keys::VERSION) {
        let version = |metadata| of(metadata, keys::VERSION).unwrap_or_else(|| "another tool".to_string());
        all.push(format!("it was written by version {}, not {}", version(found), version(planned)));
    }
    all
}

/// A file beside the packages.
pub(crate) struct SideFile {
    pub(crate) path: PathBuf,
    pub(crate) content: Vec<u8>,
}

impl SideFile {
    /// True if the file is there with this content.
    ///
    /// # Errors
    /// [`ExistsError::File`] for other content.
    pub(crate) fn is_there(&self) -> Result<bool, ExistsError> {
        if fs::symlink_metadata(&self.path).is_err() {
            return Ok(false);
        }
        match fs::read(&self.path) {
            Ok(content) if content == self.content => Ok(true),
            _ => Err(ExistsError::File { path: self.path.clone() }),
        }
    }

    /// Writes the file whole or not at all. A link of its name is replaced.
    ///
    /// # Errors
    /// [`mixbit_formats::Error::Write`].
    pub(crate) fn write(&self) -> Result<(), mixbit_formats::Error> {
        write_atomically(&self.path, |file| file.write_all(&self.content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&str, &str)]) -> Metadata {
        let user_defined = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Metadata { user_defined, ..Metadata::default() }
    }

    #[test]
    fn what_differs_is_named() {
        let planned = metadata(&[
            (keys::SOURCE, "a"),
            (
                keys::OPTIONS,
                r#"{"attention-implementation":"ORIGINAL","min-size":"2048","unet-batch-one":"true"}"#,
            ),
            (keys::RECIPE, "palette-4"),
            (keys::VERSION, "1"),
        ]);
        assert!(differences(&planned, &planned).is_empty());
        let none: [&str; 1] = ["it does not say what it was made of"];
        assert_eq!(differences(&metadata(&[]), &planned), none);
        let other = metadata(&[
            (keys::SOURCE, "b"),
            (keys::OPTIONS, r#"{"attention-implementation":"SPLIT_EINSUM"}"#),
            (keys::VERSION, "2"),
        ]);
        let expected = [
            "it was made of other weights",
            "it is not palettized, and would be palettized by palette-4",
            "--attention-implementation was SPLIT_EINSUM, and is ORIGINAL",
            "--unet-batch-one was not given, and is true",
            "it was written by version 2, not 1",
        ];
        assert_eq!(differences(&other, &planned), expected);
    }
}
