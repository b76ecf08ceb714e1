//! What can go wrong with a file.

use std::io;
use std::path::{Path, PathBuf};

use mixbit_mil::Stopped;
use thiserror::Error;

use crate::coreml::CoreMlError;
use crate::npy::NpyError;
use crate::safetensors::SafeTensorsError;

/// A file or directory that can't be read or written. Every message is one line and names the path.
#[derive(Debug, Error)]
pub enum Error {
    /// The operating system refused to read.
    #[error("can't read {}: {cause}", path.display())]
    Read {
        /// What was to be read.
        path: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
    /// The operating system refused to write, or whoever made the content failed.
    #[error("can't write {}: {cause}", path.display())]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// The reason.
        cause: io::Error,
    },
    /// The progress receiver stopped the writing.
    #[error("writing {} was stopped; what was there is unchanged", path.display())]
    Stopped {
        /// The file or directory.
        path: PathBuf,
    },
    /// Something that is not there, with what to do about it.
    #[error("{} is not there: {hint}", path.display())]
    NotFound {
        /// What was looked for.
        path: PathBuf,
        /// What else was seen and what to do.
        hint: String,
    },
    /// A file that is larger than its kind may be.
    #[error("{} has {len} bytes, more than the {limit} that a file of its kind may have", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        len: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A malformed or unsupported safetensors file.
    #[error("{}: {problem}", path.display())]
    SafeTensors {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: SafeTensorsError,
    },
    /// A malformed or unsupported `.npy` or `.npz` file.
    #[error("{}: {problem}", path.display())]
    Npy {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: NpyError,
    },
    /// A malformed or unsupported Core ML model.
    #[error("{}: {problem}", path.display())]
    CoreMl {
        /// The file in the model's directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: CoreMlError,
    },
    /// Text that is not the JSON, or not the UTF-8, that it should be.
    #[error("{}: {what}", path.display())]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and where.
        what: String,
    },
    /// A shard index and its shards that contradict each other.
    #[error("{}: {what}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// The contradiction, with the shard and the tensor.
        what: String,
    },
    /// A model directory whose parts can't be used.
    #[error("{}: {what}", path.display())]
    Layout {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong and what to do.
        what: String,
    },
}

impl Error {
    /// The error of a file that could not be written.
    pub(crate) fn of_write(path: &Path, cause: io::Error) -> Self {
        let path = path.to_path_buf();
        match cause.get_ref().is_some_and(|cause| cause.is::<Stopped>()) {
            true => Error::Stopped { path },
            false => Error::Write { path, cause },
        }
    }
}

/// A name from a file, safe to print: on one line, and cut where it is absurdly long.
pub(crate) fn shown(name: &str) -> String {
    const LIMIT: usize = 200;
    let mut text = String::new();
    for (count, character) in name.chars().enumerate() {
        if count == LIMIT {
            text.push('…');
            break;
        }
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_stay_on_one_line() {
        assert_eq!(shown("a\nb\u{1b}[2Jé"), "a\\nb\\u{1b}[2Jé");
        assert_eq!(shown(&"x".repeat(5000)).chars().count(), 201);
    }
}
