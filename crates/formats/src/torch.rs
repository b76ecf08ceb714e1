//! Files of `torch.save`: a pickle and the storages of its tensors.
//!
//! Two forms are read: the ZIP archive (`.ckpt`, `.pt`, `.pth`, `.bin` since PyTorch 1.6) and the one before
//! it, a series of pickles and storages. The pickle is run by a virtual machine that builds tensors and plain
//! containers and calls nothing: a pickle that names a function without a place beside weights is refused by
//! that name. Tensors are references into the map of the file.

mod error;
mod flatten;
mod globals;
mod pickle;
mod tensor;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use mixbit_mil::{Bytes, WeightRef, Weights};

use crate::zip::{self, Member};

use flatten::flatten;
use globals::Element;
use pickle::{Storage, Unpickled, Value, unpickle};

pub use error::{DEPTH_LIMIT, OPCODE_LIMIT, TorchError};

/// The first pickle of a file in the older form: a number.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The version of the older form, its second pickle.
const VERSION: i64 = 1001;

/// The name of the pickle in an archive, after the archive's own folder.
const PICKLE: &str = "data.pkl";

/// A file of `torch.save`.
pub struct Torch {
    tensors: BTreeMap<Arc<str>, WeightRef>,
    metadata: BTreeMap<String, String>,
}

impl Torch {
    /// True if a file begins as those of PyTorch do.
    pub(crate) fn is_torch(file: &[u8]) -> bool {
        file.starts_with(zip::LOCAL_SIGNATURE) || matches!(file, [0x80, 0..=5, ..])
    }

    /// The error of a file of another format that Python would read as a pickle and that names a function.
    pub(crate) fn refused(file: &[u8]) -> Option<TorchError> {
        unpickle(file).err().filter(|error| matches!(error, TorchError::Global { .. }))
    }

    /// Reads a file in memory or in a map.
    ///
    /// # Errors
    /// [`TorchError`] if it is malformed, unsupported, or names a function that mixbit does not know.
    pub fn from_bytes(file: &Bytes) -> Result<Self, TorchError> {
        match file.starts_with(zip::LOCAL_SIGNATURE) {
            true => of_archive(file),
            false => of_series(file),
        }
    }

    /// The numbers and texts of the outermost dictionary, such as `global_step`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn new(
        file: &Bytes,
        pickle: &Unpickled<'_>,
        bytes_of: impl Fn(&Storage) -> Result<Bytes, TorchError>,
    ) -> Result<Self, TorchError> {
        let flat = flatten(pickle)?;
        let mut tensors = BTreeMap::new();
        for (name, id) in flat.tensors {
            let Value::Tensor(tensor) = pickle.value(id) else { continue };
            let placed = tensor::place(pickle, &name, tensor)?;
            let bytes = bytes_of(placed.storage)?;
            let weight = placed.weight(&name, &bytes, file.len())?;
            tensors.insert(Arc::from(name), weight);
        }
        Ok(Torch { tensors, metadata: flat.metadata })
    }
}

impl Weights for Torch {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(|name| &**name).collect()
    }

    fn get(&self, name: &str) -> Option<WeightRef> {
        self.tensors.get(name).cloned()
    }
}

impl fmt::Debug for Torch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Torch({} tensors)", self.tensors.len())
    }
}

/// The archive: a folder with the pickle `data.pkl` and a file `data/<key>` for each storage.
fn of_archive(file: &Bytes) -> Result<Torch, TorchError> {
    let members: HashMap<String, Member> =
        zip::members(file)?.into_iter().map(|member| (member.name.clone(), member)).collect();
    let mut pickles = members.keys().filter(|name| is_pickle(name));
    let name = pickles.next().ok_or_else(|| TorchError::Archive {
        problem: "the file is a ZIP archive without a `data.pkl`: it is not a file of `torch.save`"
            .to_string(),
    })?;
    if pickles.next().is_some() {
        let problem = "the archive has several files `data.pkl`".to_string();
        return Err(TorchError::Archive { problem });
    }
    let folder = &name[..name.len() - PICKLE.len()];
    if members.contains_key(&format!("{folder}constants.pkl")) {
        return Err(TorchError::TorchScript);
    }
    if let Some(order) = members.get(&format!("{folder}byteorder"))
        && *zip::stored(file, order)? != *b"little"
    {
        return Err(TorchError::ByteOrder);
    }
    let bytes = zip::stored(file, &members[name])?;
    let pickle = unpickle(&bytes)?;
    Torch::new(file, &pickle, |storage| {
        let key = key(&pickle, storage)?;
        let member = members.get(&format!("{folder}data/{key}"));
        Ok(zip::stored(file, member.ok_or_else(|| missing(&key))?)?)
    })
}

/// True for the pickle of an archive, at its root or in one folder.
fn is_pickle(name: &str) -> bool {
    name.strip_suffix(PICKLE).is_some_and(|folder| {
        folder.is_empty() || folder.strip_suffix('/').is_some_and(|folder| !folder.contains('/'))
    })
}

/// The series: a number, a version, the writer's machine, the pickle, the keys of the storages, and for each
/// the number of its elements and their bytes.
fn of_series(file: &Bytes) -> Result<Torch, TorchError> {
    let mut at = 0;
    let number = next_pickle(file, &mut at)?;
    if !matches!(number.root(), Value::Long(bytes) if **bytes == MAGIC) {
        return Err(TorchError::NotTorch);
    }
    let version = next_pickle(file, &mut at)?;
    if !matches!(version.root(), Value::Int(VERSION)) {
        let what = format!("its version is {:?}, where {VERSION} is known", version.root());
        return Err(TorchError::Pickle { at: 0, what });
    }
    let machine = next_pickle(file, &mut at)?;
    if let Value::Dict(entries) = machine.root() {
        let is_big = |(key, value): &(u32, u32)| {
            matches!(machine.value(*key), Value::Text(key) if key == "little_endian")
                && matches!(machine.value(*value), Value::Bool(false))
        };
        if entries.iter().any(is_big) {
            return Err(TorchError::ByteOrder);
        }
    }
    let pickle = next_pickle(file, &mut at)?;
    let keys = next_pickle(file, &mut at)?;
    let storages = storages_of_series(file, at, &pickle, &keys)?;
    Torch::new(file, &pickle, |storage| {
        let key = key(&pickle, storage)?;
        storages.get(&key).cloned().ok_or_else(|| missing(&key))
    })
}

fn next_pickle<'a>(file: &'a [u8], at: &mut usize) -> Result<Unpickled<'a>, TorchError> {
    let pickle = unpickle(&file[*at..]).map_err(|error| match error {
        TorchError::Pickle { at: inside, what } => TorchError::Pickle { at: *at + inside, what },
        other => other,
    })?;
    *at += pickle.len;
    Ok(pickle)
}

/// The bytes of the storages by their keys, which are in the order of `keys` from the offset `at`.
fn storages_of_series(
    file: &Bytes,
    mut at: usize,
    pickle: &Unpickled<'_>,
    keys: &Unpickled<'_>,
) -> Result<HashMap<String, Bytes>, TorchError> {
    let mut elements: HashMap<String, Option<&'static Element>> = HashMap::new();
    for value in &pickle.values {
        if let Value::Storage(storage) = value {
            elements.insert(key(pickle, storage)?, storage.element);
        }
    }
    let Value::List(listed) = keys.root() else { return Err(missing("")) };
    let mut storages = HashMap::new();
    for listed in listed {
        let Value::Text(key) = keys.value(*listed) else { return Err(missing("")) };
        let element = elements.get(&**key).ok_or_else(|| missing(key))?;
        let cut_off = || TorchError::CutOff { what: "the data of its tensors" };
        let (count, _) = file.get(at..).and_then(|rest| rest.split_first_chunk()).ok_or_else(cut_off)?;
        let count = usize::try_from(u64::from_le_bytes(*count)).map_err(|_| cut_off())?;
        let len = count.checked_mul(element.map_or(1, |element| element.size)).ok_or_else(cut_off)?;
        let start = at + 8;
        let end = start.checked_add(len).ok_or_else(cut_off)?;
        let bytes = file.slice(start..end).ok_or_else(cut_off)?;
        storages.insert(key.to_string(), bytes);
        at = end;
    }
    Ok(storages)
}

/// A storage's key, which is a number in some files.
fn key(pickle: &Unpickled<'_>, storage: &Storage) -> Result<String, TorchError> {
    match pickle.value(storage.key) {
        Value::Text(key) => Ok(key.to_string()),
        Value::Int(key) => Ok(key.to_string()),
        _ => Err(missing("")),
    }
}

fn missing(key: &str) -> TorchError {
    let key = crate::shown::shown(key);
    TorchError::Archive {
        problem: format!("the storage `{key}` of a tensor is missing: was the file cut off?"),
    }
}

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
