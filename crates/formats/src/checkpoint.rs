//! The weights of one component: one file of tensors, or an index and its shards.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use mixbit_mil::{WeightRef, Weights};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::files::{Files, is_plain};
use crate::scales::Scales;
use crate::shown::shown;
use crate::tensor_file::Tensors;
use crate::{Error, map_file};

/// The weights of one component, in one file or several. Tensors are references into memory maps.
#[derive(Debug)]
pub struct Checkpoint {
    shards: Vec<Tensors>,
    /// The shard of every tensor.
    tensors: BTreeMap<Arc<str>, usize>,
    /// Those of all shards: a weight and its scale may be in two.
    scales: Scales,
    files: Vec<String>,
}

impl Checkpoint {
    /// Opens a file of any format that [`TensorFile`](crate::TensorFile) reads, or the `.json` index of a
    /// sharded one with all its shards beside it.
    ///
    /// # Errors
    /// Those of [`TensorFile::open`](crate::TensorFile::open) and [`Error::Text`] for the file that can't be
    /// used, [`Error::NotFound`] for a missing shard, [`Error::Index`] if a shard lacks a tensor of the
    /// index.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(".json") {
            let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
            return Self::open_index(&Files::Directory(folder), "", name);
        }
        Self::single(Tensors::from_bytes(path, map_file(path)?)?, path, name)
    }

    /// Opens `name` in `folder` of a tree.
    pub(crate) fn open_in(files: &Files, folder: &str, name: &str) -> Result<Self, Error> {
        if name.ends_with(".json") {
            return Self::open_index(files, folder, name);
        }
        let path = join(folder, name);
        Self::single(open_shard(files, &path)?, &files.path(&path), name)
    }

    /// The names of the files that hold the weights.
    pub fn file_names(&self) -> &[String] {
        &self.files
    }

    fn single(file: Tensors, path: &Path, name: &str) -> Result<Self, Error> {
        let tensors = file.names().into_iter().map(|name| (Arc::from(name), 0)).collect();
        Self::with_scales(vec![file], tensors, vec![name.to_string()], path)
    }

    /// A checkpoint of shards, whose scales are found. Messages call it `path`.
    fn with_scales(
        shards: Vec<Tensors>,
        tensors: BTreeMap<Arc<str>, usize>,
        files: Vec<String>,
        path: &Path,
    ) -> Result<Self, Error> {
        let names: Vec<&str> = tensors.keys().map(|name| &**name).collect();
        let get = |name: &str| shards[*tensors.get(name)?].get(name);
        let scales = Scales::find(&names, get, shards.iter().map(Tensors::metadata))
            .map_err(|problem| Error::Scales { path: path.to_path_buf(), problem })?;
        Ok(Checkpoint { shards, tensors, scales, files })
    }

    fn open_index(files: &Files, folder: &str, name: &str) -> Result<Self, Error> {
        let index_name = join(folder, name);
        let index_path = files.path(&index_name);
        let wrong = |what: String| Error::Index { path: index_path.clone(), what };
        let text = files.text(&index_name)?;
        let index: Index = serde_json::from_str(&text).map_err(|error| Error::Text {
            path: index_path.clone(),
            what: format!("the shard index is malformed: {}", shown(&error.to_string())),
        })?;
        let (mut shards, mut tensors, mut names) = (Vec::new(), BTreeMap::new(), Vec::new());
        let mut opened: BTreeMap<String, usize> = BTreeMap::new();
        for (tensor, file) in index.weight_map.0 {
            let shard = match opened.get(&file) {
                Some(&shard) => shard,
                None => {
                    shards.push(open_index_shard(files, folder, &file, &tensor, wrong)?);
                    names.push(file.clone());
                    opened.insert(file.clone(), names.len() - 1);
                    names.len() - 1
                }
            };
            if shards[shard].get(&tensor).is_none() {
                let what =
                    format!("shard `{file}` lacks tensor `{}` that the index puts there", shown(&tensor));
                return Err(wrong(what));
            }
            let tensor: Arc<str> = tensor.into();
            if tensors.insert(tensor.clone(), shard).is_some() {
                return Err(wrong(format!("tensor `{}` is in the index twice", shown(&tensor))));
            }
        }
        Self::with_scales(shards, tensors, names, &index_path)
    }
}

impl Weights for Checkpoint {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(|name| &**name).filter(|name| !self.scales.hides(name)).collect()
    }

    fn get(&self, name: &str) -> Option<WeightRef> {
        self.scales.apply(self.shards[*self.tensors.get(name)?].get(name)?)
    }
}

fn open_index_shard(
    files: &Files,
    folder: &str,
    file: &str,
    tensor: &str,
    wrong: impl Fn(String) -> Error,
) -> Result<Tensors, Error> {
    let (file, tensor) = (shown(file), shown(tensor));
    if !is_plain(&file) {
        return Err(wrong(format!("`{file}`, the shard of tensor `{tensor}`, is not a plain file name")));
    }
    if !file.ends_with(".safetensors") && !file.ends_with(".bin") {
        return Err(wrong(format!("shard `{file}` of tensor `{tensor}` is not a .safetensors or .bin file")));
    }
    let path = join(folder, &file);
    if !files.contains(&path) {
        let hint = format!("the shard index names it (for tensor `{tensor}`): download it again");
        return Err(Error::NotFound { path: files.path(&path), hint });
    }
    open_shard(files, &path)
}

fn open_shard(files: &Files, path: &str) -> Result<Tensors, Error> {
    Tensors::from_bytes(&files.path(path), files.map(path)?)
}

fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_string() } else { format!("{folder}/{name}") }
}

/// The part of `*.safetensors.index.json` that is read.
#[derive(Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// Tensor names and their files as written, duplicates included.
struct WeightMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WeightMapVisitor;

        impl<'de> Visitor<'de> for WeightMapVisitor {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of file names by tensor name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(WeightMap(entries))
            }
        }

        deserializer.deserialize_map(WeightMapVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safetensors::tests::file;
    use mixbit_testkit::Scratch;

    const INDEX: &str = "model.safetensors.index.json";

    fn open(weight_map: &str) -> Result<Checkpoint, Error> {
        let scratch = Scratch::new();
        scratch.file("one.safetensors", &file(&[("a", "F32", &[1], &[0, 0, 128, 63])]));
        scratch.file("two.safetensors", &file(&[("b", "U8", &[2], &[7, 8]), ("c", "U8", &[1], &[9])]));
        let text = format!(r#"{{"metadata": {{"total_size": 7}}, "weight_map": {weight_map}}}"#);
        Checkpoint::open(&scratch.file(INDEX, text.as_bytes()))
    }

    #[test]
    fn tensors_come_from_their_shards() {
        let weights =
            open(r#"{"b": "two.safetensors", "a": "one.safetensors", "c": "two.safetensors"}"#).unwrap();
        assert_eq!(weights.names(), ["a", "b", "c"]);
        assert_eq!(weights.file_names(), ["two.safetensors", "one.safetensors"]);
        assert_eq!(&*weights.get("b").unwrap().read().unwrap(), [7, 8]);
        assert_eq!(&*weights.get("a").unwrap().read().unwrap(), 1f32.to_le_bytes());
        assert!(weights.get("d").is_none());
    }

    #[test]
    fn a_single_file_is_a_checkpoint() {
        let scratch = Scratch::new();
        let path = scratch.file("x.safetensors", &file(&[("b", "U8", &[2], &[7, 8])]));
        let weights = Checkpoint::open(&path).unwrap();
        assert_eq!(weights.names(), ["b"]);
        assert_eq!(weights.file_names(), ["x.safetensors"]);
    }

    #[test]
    fn contradictions_are_named() {
        let cases = [
            (
                r#"{"a": "three.safetensors"}"#,
                "three.safetensors is not there: the shard index names it (for tensor `a`)",
            ),
            (r#"{"b": "one.safetensors"}"#, "shard `one.safetensors` lacks tensor `b`"),
            (
                r#"{"a": "../one.safetensors"}"#,
                "`../one.safetensors`, the shard of tensor `a`, is not a plain file name",
            ),
            (r#"{"a": "/etc/passwd"}"#, "not a plain file name"),
            (r#"{"a": "one.pth"}"#, "shard `one.pth` of tensor `a` is not a .safetensors or .bin file"),
            (r#"{"a": "one.safetensors", "a": "two.safetensors"}"#, "`two.safetensors` lacks tensor `a`"),
            (r#"{"a": "one.safetensors", "a": "one.safetensors"}"#, "tensor `a` is in the index twice"),
            (r#"{"a": 3}"#, "the shard index is malformed"),
            (r#"[]"#, "the shard index is malformed"),
        ];
        let mut failures = mixbit_testkit::Failures::new("shard indexes");
        for (weight_map, expected) in cases {
            failures.case(weight_map, || {
                let message =
                    open(weight_map).map(|_| String::new()).unwrap_or_else(|error| error.to_string());
                if message.contains(expected) { Ok(()) } else { Err(message) }
            });
        }
        failures.finish();
    }
}
