//! A tree of files: a directory on disk, or files in memory such as the embedded demo model.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use mixbit_mil::Bytes;

use crate::map::read_file;
use crate::{Error, lfs, map_file};

/// The most bytes of a configuration, such as `config.json`.
const CONFIG_LIMIT: u64 = 1 << 20;

/// The most bytes of text files that are larger than configurations, by the ends of their names. JSON takes
/// up to 36 bytes of memory for a byte of text.
const LIMITS: [(&str, u64); 7] = [
    ("vocab.json", 16 << 20),
    ("merges.txt", 16 << 20),
    ("tokenizer.json", 16 << 20),
    ("added_tokens.json", 16 << 20),
    (".index.json", 16 << 20),
    ("metadata.json", 16 << 20),
    ("model.mil", 100_000_000),
];

/// The most bytes of a model's text file of that name.
fn text_limit(name: &str) -> u64 {
    LIMITS.iter().find(|(end, _)| name.ends_with(end)).map_or(CONFIG_LIMIT, |(_, limit)| *limit)
}

/// The content of a model's text file. Its name decides how large it may be: 16 MiB for tokenizers and
/// indices, 1 MiB for configurations.
///
/// # Errors
/// [`Error::Read`] for what is not a regular file, [`Error::TooLarge`], [`Error::Text`].
pub fn read_model_text(path: &Path) -> Result<String, Error> {
    read_text(path, text_limit(&path.to_string_lossy()))
}

/// The content of a text file of at most `limit` bytes.
///
/// # Errors
/// [`Error::Read`] for what is not a regular file, [`Error::TooLarge`], [`Error::Text`].
pub fn read_text(path: &Path, limit: u64) -> Result<String, Error> {
    utf8(read_file(path, limit)?, || path.to_path_buf())
}

fn utf8(bytes: Vec<u8>, path: impl FnOnce() -> PathBuf) -> Result<String, Error> {
    if lfs::is_pointer(&bytes) {
        return Err(Error::LfsPointer { path: path() });
    }
    String::from_utf8(bytes).map_err(|error| Error::Text {
        path: path(),
        what: format!("it is not UTF-8 text: {}", error.utf8_error()),
    })
}

/// Files by their path relative to a root, with `/` between the parts.
#[derive(Clone, Debug)]
pub(crate) enum Files {
    Directory(PathBuf),
    Memory { label: PathBuf, files: BTreeMap<String, Bytes> },
}

impl Files {
    /// The root, for messages.
    pub(crate) fn root(&self) -> &Path {
        match self {
            Files::Directory(root) => root,
            Files::Memory { label, .. } => label,
        }
    }

    /// The path of `name`, for messages.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// True if there is a file of that name.
    pub(crate) fn contains(&self, name: &str) -> bool {
        match self {
            Files::Directory(root) => root.join(name).is_file(),
            Files::Memory { files, .. } => files.contains_key(name),
        }
    }

    /// True if there is a file of that name.
    ///
    /// # Errors
    /// [`Error::Read`] if the system does not let look, which is no absence.
    pub(crate) fn has(&self, name: &str) -> Result<bool, Error> {
        let Files::Directory(root) = self else { return Ok(self.contains(name)) };
        let found = fs::metadata(root.join(name)).map(|metadata| metadata.is_file());
        self.unless_absent(name, found).map(|found| found.unwrap_or(false))
    }

    /// The names directly in `folder`, sorted. An empty `folder` is the root; a missing one has no names.
    ///
    /// # Errors
    /// [`Error::Read`] if the system does not let read it.
    pub(crate) fn names_in(&self, folder: &str) -> Result<Vec<String>, Error> {
        if let Files::Directory(root) = self {
            self.unless_absent(folder, fs::read_dir(root.join(folder)))?;
        }
        Ok(self.list(folder))
    }

    /// A system's answer; `None` if nothing has that name.
    fn unless_absent<T>(&self, name: &str, found: io::Result<T>) -> Result<Option<T>, Error> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(cause) if matches!(cause.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(cause) => Err(Error::Read { path: self.path(name), cause }),
        }
    }

    /// The names directly in `folder`, sorted. An empty `folder` is the root; one that is missing, or can't
    /// be read, has no names.
    pub(crate) fn list(&self, folder: &str) -> Vec<String> {
        let names: BTreeSet<String> = match self {
            Files::Directory(root) => fs::read_dir(root.join(folder))
                .into_iter()
                .flatten()
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .collect(),
            Files::Memory { files, .. } => {
                let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
                let inside = files.keys().filter_map(|name| name.strip_prefix(&prefix));
                inside.filter_map(|name| name.split('/').next()).map(str::to_string).collect()
            }
        };
        names.into_iter().collect()
    }

    /// The bytes of a file, mapped rather than read.
    pub(crate) fn map(&self, name: &str) -> Result<Bytes, Error> {
        let bytes = match self {
            Files::Directory(root) => map_file(&root.join(name))?,
            Files::Memory { files, .. } => files.get(name).cloned().ok_or_else(|| self.absent(name))?,
        };
        match lfs::is_pointer(&bytes) {
            true => Err(Error::LfsPointer { path: self.path(name) }),
            false => Ok(bytes),
        }
    }

    /// A text file's content.
    pub(crate) fn text(&self, name: &str) -> Result<String, Error> {
        match self {
            Files::Directory(root) => read_model_text(&root.join(name)),
            Files::Memory { .. } => utf8(self.map(name)?.to_vec(), || self.path(name)),
        }
    }

    fn absent(&self, name: &str) -> Error {
        Error::Read { path: self.path(name), cause: io::ErrorKind::NotFound.into() }
    }
}

/// True if a name from a file is one plain path component, which can't lead out of its folder.
pub(crate) fn is_plain(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use mixbit_testkit::Scratch;

    #[test]
    fn a_directory_and_memory_look_the_same() {
        let scratch = Scratch::new();
        let content: [(&str, &[u8]); 3] = [("a.json", b"{}"), ("unet/b.txt", b"b"), ("unet/c.txt", b"\xff")];
        for (name, bytes) in content {
            scratch.file(name, bytes);
        }
        let files = content.map(|(name, bytes)| (name.to_string(), Bytes::new(bytes))).into();
        let memory = Files::Memory { label: "embedded".into(), files };
        for files in [Files::Directory(scratch.path().to_path_buf()), memory] {
            assert_eq!(files.list(""), ["a.json", "unet"]);
            assert_eq!(files.list("unet"), ["b.txt", "c.txt"]);
            assert!(files.list("absent").is_empty());
            assert!(files.contains("unet/b.txt") && !files.contains("unet") && !files.contains("b.txt"));
            assert_eq!(files.text("unet/b.txt").unwrap(), "b");
            assert_eq!(&*files.map("a.json").unwrap(), b"{}");
            assert!(matches!(files.text("unet/c.txt"), Err(Error::Text { .. })));
            assert!(matches!(files.map("absent"), Err(Error::Read { .. })));
        }
    }

    #[test]
    fn a_name_decides_how_large_a_file_may_be() {
        let scratch = Scratch::new();
        let spaces = vec![b' '; CONFIG_LIMIT as usize + 1];
        for (name, is_read) in [("unet/config.json", false), ("vocab.json", true), ("x.index.json", true)] {
            let path = scratch.file(name, &spaces);
            match read_model_text(&path) {
                Err(Error::TooLarge { len, limit: CONFIG_LIMIT, .. }) => {
                    assert!(!is_read && len == CONFIG_LIMIT + 1, "{name}");
                }
                read => assert!(is_read && read.is_ok(), "{name}"),
            }
        }
    }

    #[test]
    fn names_can_not_lead_out_of_their_folder() {
        for name in ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "C:x", "a\0"] {
            assert!(!is_plain(name), "{name:?}");
        }
        assert!(is_plain("model-00001-of-00002.safetensors"));
    }
}
