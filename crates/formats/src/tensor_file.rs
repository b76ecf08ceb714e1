//! A file of named tensors, in any of the formats that checkpoints and adapters come in.

use std::collections::BTreeMap;
use std::path::Path;

use mixbit_mil::{Bytes, WeightRef, Weights};

use crate::scales::Scales;
use crate::{Error, Gguf, SafeTensors, Torch, lfs, map_file};

/// A file of named tensors. Its tensors are references into a memory map.
///
/// Weights that are stored with scales (`X.scale_weight` or `X.weight_scale` beside `X.weight`) are read as
/// the products, of type `f32`; the scales are not listed.
#[derive(Debug)]
pub struct TensorFile {
    tensors: Tensors,
    scales: Scales,
}

/// The format of a file of tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorFormat {
    /// Hugging Face's safetensors.
    SafeTensors,
    /// `torch.save`: a pickle and its storages.
    Torch,
    /// The format of ggml's quantized models.
    Gguf,
}

impl TensorFormat {
    /// The format's name for people.
    pub fn name(self) -> &'static str {
        match self {
            TensorFormat::SafeTensors => "safetensors",
            TensorFormat::Torch => "PyTorch",
            TensorFormat::Gguf => "GGUF",
        }
    }
}

impl TensorFile {
    /// Opens a file. Its content says its format, not its name.
    ///
    /// # Errors
    /// [`Error::Read`] if it can't be read, [`Error::LfsPointer`], [`Error::Unknown`] if it has no known
    /// format, [`Error::Scales`] if its weights are quantized in a way that is not supported; else the error
    /// of its format.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::from_bytes(path, map_file(path)?)
    }

    /// A file in memory or in a map, which messages call `path`.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn from_bytes(path: &Path, file: Bytes) -> Result<Self, Error> {
        let tensors = Tensors::from_bytes(path, file)?;
        let scales =
            Scales::find(&tensors.names(), |name| tensors.get(name), [tensors.metadata()].into_iter())
                .map_err(|problem| Error::Scales { path: path.to_path_buf(), problem })?;
        Ok(TensorFile { tensors, scales })
    }

    /// The file's format.
    pub fn format(&self) -> TensorFormat {
        self.tensors.format()
    }

    /// What the file says of itself, as text by name: `__metadata__` of safetensors, the outermost numbers
    /// and texts of a PyTorch file, those of GGUF's header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        self.tensors.metadata()
    }
}

impl Weights for TensorFile {
    fn names(&self) -> Vec<&str> {
        self.tensors.names().into_iter().filter(|name| !self.scales.hides(name)).collect()
    }

    fn get(&self, name: &str) -> Option<WeightRef> {
        self.scales.apply(self.tensors.get(name)?)
    }
}

/// The tensors of a file, as its format has them.
#[derive(Debug)]
pub(crate) enum Tensors {
    SafeTensors(SafeTensors),
    Torch(Torch),
    Gguf(Gguf),
}

impl Tensors {
    /// Reads a file of the format that its first bytes show.
    pub(crate) fn from_bytes(path: &Path, file: Bytes) -> Result<Self, Error> {
        let path = || path.to_path_buf();
        if lfs::is_pointer(&file) {
            return Err(Error::LfsPointer { path: path() });
        }
        if Gguf::is_gguf(&file) && !is_safetensors(&file) {
            return Gguf::from_bytes(&file)
                .map(Tensors::Gguf)
                .map_err(|problem| Error::Gguf { path: path(), problem });
        }
        let of_torch = |problem| Error::Torch { path: path(), problem };
        if Torch::is_torch(&file) && !is_safetensors(&file) {
            return Torch::from_bytes(&file).map(Tensors::Torch).map_err(of_torch);
        }
        if is_safetensors(&file) || path().extension().is_some_and(|end| end == "safetensors") {
            return SafeTensors::from_bytes(file)
                .map(Tensors::SafeTensors)
                .map_err(|problem| Error::SafeTensors { path: path(), problem });
        }
        if let Some(problem) = Torch::refused(&file) {
            return Err(of_torch(problem));
        }
        Err(Error::Unknown { path: path(), what: described(&file) })
    }

    pub(crate) fn format(&self) -> TensorFormat {
        match self {
            Tensors::SafeTensors(_) => TensorFormat::SafeTensors,
            Tensors::Torch(_) => TensorFormat::Torch,
            Tensors::Gguf(_) => TensorFormat::Gguf,
        }
    }

    pub(crate) fn metadata(&self) -> &BTreeMap<String, String> {
        match self {
            Tensors::SafeTensors(file) => file.metadata(),
            Tensors::Torch(file) => file.metadata(),
            Tensors::Gguf(file) => file.metadata(),
        }
    }

    fn weights(&self) -> &dyn Weights {
        match self {
            Tensors::SafeTensors(file) => file,
            Tensors::Torch(file) => file,
            Tensors::Gguf(file) => file,
        }
    }
}

impl Weights for Tensors {
    fn names(&self) -> Vec<&str> {
        self.weights().names()
    }

    fn get(&self, name: &str) -> Option<WeightRef> {
        self.weights().get(name)
    }
}

/// True if a file begins with a header's length and a JSON object.
fn is_safetensors(file: &[u8]) -> bool {
    file.get(8) == Some(&b'{')
}

/// The kind of a file that is of no known format.
fn described(file: &[u8]) -> String {
    if file.len() <= 8 {
        return format!("cut off: it has {} bytes", file.len());
    }
    let start = &file[..file.len().min(64)];
    let starts_with = |text: &str| {
        start
            .trim_ascii_start()
            .get(..text.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(text.as_bytes()))
    };
    if starts_with("<!doctype") || starts_with("<html") {
        return "a web page, not a file of weights: the download failed, often for want of a login"
            .to_string();
    }
    let formats =
        [TensorFormat::SafeTensors, TensorFormat::Torch, TensorFormat::Gguf].map(TensorFormat::name);
    format!("none of the files of weights that mixbit reads ({})", formats.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mixbit_testkit::{Failures, Scratch, fixture_root};
    use serde_json::Value as Json;

    /// Every file of `fixtures/checkpoints` has the tensors that its own library reads, under their names.
    #[test]
    fn files_of_every_format_are_read() {
        let folder = fixture_root().join("checkpoints");
        let cases: Json = serde_json::from_slice(&std::fs::read(folder.join("cases.json")).unwrap()).unwrap();
        let expected = TensorFile::open(&folder.join("expected.safetensors")).unwrap();
        let mut failures = Failures::new("files of tensors");
        for case in cases["cases"].as_array().unwrap() {
            let name = case["file"].as_str().unwrap();
            failures.case(name, || {
                let file = TensorFile::open(&folder.join(name)).map_err(|error| error.to_string())?;
                if file.format().name() != case["format"].as_str().unwrap() {
                    return Err(format!("it is of the format {}", file.format().name()));
                }
                let names: Vec<&str> =
                    case["tensors"].as_array().unwrap().iter().filter_map(Json::as_str).collect();
                if file.names() != names {
                    return Err(format!("it has the tensors {:?}", file.names()));
                }
                for tensor in names {
                    let (found, wanted) =
                        (file.get(tensor).unwrap(), expected.get(&format!("{name}/{tensor}")).unwrap());
                    let equal = found.ty() == wanted.ty() && found.read().unwrap() == wanted.read().unwrap();
                    if !equal {
                        return Err(format!(
                            "{tensor}: {} {:?}, not {}",
                            found.ty(),
                            found.read(),
                            wanted.ty()
                        ));
                    }
                }
                for (key, value) in case["metadata"].as_object().unwrap() {
                    let found = file.metadata().get(key).map(String::as_str);
                    if found != value.as_str() {
                        return Err(format!("{key} is {found:?}"));
                    }
                }
                Ok(())
            });
        }
        failures.finish();
    }

    #[test]
    fn files_of_other_kinds_are_described() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
        let cases: [(&str, &[u8], &str); 8] = [
            ("a.ckpt", b"", "a.ckpt is cut off: it has 0 bytes"),
            ("a.safetensors", b"", "too few for safetensors"),
            ("a.bin", b"\n<!DOCTYPE html><html>", "is a web page, not a file of weights"),
            ("a.bin", b"<HTML><body>", "is a web page"),
            ("a.bin", pointer, "is a Git LFS pointer"),
            ("a.pt", b"nothing that is known", "mixbit reads (safetensors, PyTorch, GGUF)"),
            ("a.gguf", b"\x02\0\0\0\0\0\0\0{}", "a.gguf: read"),
            ("a.safetensors", b"GGUF\x01\0\0\0", "version 1 of GGUF"),
        ];
        let mut failures = Failures::new("files");
        for (name, content, expected) in cases {
            failures.case(expected, || {
                let scratch = Scratch::new();
                let message = match TensorFile::open(&scratch.file(name, content)) {
                    Ok(file) => format!("{name}: read as {}", file.format().name()),
                    Err(error) => error.to_string(),
                };
                if message.contains(expected) { Ok(()) } else { Err(message) }
            });
        }
        failures.finish();
    }
}
