//! A file of named tensors, in any of the formats that checkpoints and adapters come in.

use std::collections::BTreeMap;
use std::path::Path;

use mixbit_mil::{WeightRef, Weights};

use crate::{Error, SafeTensors};

/// A file of named tensors. Its tensors are references into a memory map.
#[derive(Debug)]
pub struct TensorFile {
    tensors: SafeTensors,
}

impl TensorFile {
    /// Opens a file. Its content says its format, not its name.
    ///
    /// # Errors
    /// [`Error::Read`] if it can't be read; else the error of its format.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Ok(TensorFile { tensors: SafeTensors::open(path)? })
    }

    /// What the file says of itself, as text by name: `__metadata__` of safetensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        self.tensors.metadata()
    }
}

impl Weights for TensorFile {
    fn names(&self) -> Vec<&str> {
        self.tensors.names()
    }

    fn get(&self, name: &str) -> Option<WeightRef> {
        self.tensors.get(name)
    }
}
