//! Folders of reference data.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::safetensors::{Array, read_safetensors};

/// The repository's `fixtures/` folder.
pub fn fixture_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// One folder under `fixtures/`.
#[derive(Debug, Clone)]
pub struct Fixture {
    folder: PathBuf,
}

impl Fixture {
    /// The folder `fixtures/<area>`, e.g. `Fixture::open("schedulers")`.
    ///
    /// # Panics
    ///
    /// If the folder does not exist.
    #[track_caller]
    pub fn open(area: &str) -> Fixture {
        let folder = fixture_root().join(area);
        assert!(folder.is_dir(), "no fixture folder {}", folder.display());
        Fixture { folder }
    }

    /// The path of a file in the folder.
    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// A parsed JSON file, e.g. `cases.json`.
    ///
    /// # Panics
    ///
    /// If the file is absent or not JSON.
    #[track_caller]
    pub fn json(&self, file: &str) -> Value {
        let path = self.path(file);
        let text =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The arrays of a safetensors file, by name.
    ///
    /// # Panics
    ///
    /// If the file is absent or malformed, or has an element type that [`Array`] lacks.
    #[track_caller]
    pub fn arrays(&self, file: &str) -> BTreeMap<String, Array> {
        let path = self.path(file);
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        read_safetensors(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}
