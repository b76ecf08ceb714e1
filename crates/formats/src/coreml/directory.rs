//! Atomic writing of directories.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::Error;

/// A directory under construction, beside its target. It is removed if it is dropped before
/// [`finish`](Self::finish). If the process is killed, the next one that writes the same directory removes
/// it.
pub(super) struct NewDirectory {
    target: PathBuf,
    partial: PathBuf,
    finished: bool,
}

impl NewDirectory {
    pub(super) fn create(target: &Path) -> Result<Self, Error> {
        let name = target.file_name().ok_or_else(|| {
            Error::of_write(target, io::Error::new(io::ErrorKind::InvalidInput, "it is not a directory name"))
        })?;
        if target.is_file() {
            return Err(Error::of_write(target, io::Error::other("a file has that name: choose another")));
        }
        let partial = sibling(target, &format!(".{}.partial", name.to_string_lossy()));
        let result = remove(&partial).and_then(|()| fs::create_dir_all(&partial));
        result.map_err(|cause| Error::of_write(target, cause))?;
        Ok(NewDirectory { target: target.to_path_buf(), partial, finished: false })
    }

    /// Writes one file, with the directories above it.
    pub(super) fn file(
        &self,
        name: &str,
        write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
    ) -> Result<(), Error> {
        let path = self.partial.join(name);
        let result = || {
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder)?;
            }
            let mut writer = BufWriter::with_capacity(1 << 20, File::create(&path)?);
            write(&mut writer)?;
            writer.into_inner().map_err(|error| error.into_error())?.sync_all()
        };
        result().map_err(|cause| Error::of_write(&self.target.join(name), cause))
    }

    /// Writes one file with the given content.
    pub(super) fn bytes(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.file(name, |writer| writer.write_all(bytes))
    }

    /// Moves the directory to its target, and removes the old one.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        let name = self.target.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let old = sibling(&self.target, &format!(".{name}.old"));
        let result = || {
            remove(&old)?;
            if self.target.exists() {
                fs::rename(&self.target, &old)?;
            }
            fs::rename(&self.partial, &self.target)?;
            self.finished = true;
            remove(&old)
        };
        let result: io::Result<()> = {
            let mut result = result;
            result()
        };
        result.map_err(|cause| Error::of_write(&self.target, cause))?;
        // Makes the rename durable, where the system can.
        if let Some(parent) = self.target.parent()
            && let Ok(parent) = File::open(parent)
        {
            let _ = parent.sync_all();
        }
        Ok(())
    }
}

impl Drop for NewDirectory {
    fn drop(&mut self) {
        if !self.finished {
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

fn sibling(target: &Path, name: &str) -> PathBuf {
    match target.parent() {
        Some(parent) => parent.join(name),
        None => PathBuf::from(name),
    }
}

/// Removes a directory, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mixbit_testkit::Scratch;

    #[test]
    fn a_directory_appears_whole_and_replaces_the_old_one() {
        let scratch = Scratch::new();
        scratch.file("m/old", b"old");
        scratch.file(".m.partial/left", b"by a killed process");
        let target = scratch.path().join("m");
        let directory = NewDirectory::create(&target).unwrap();
        directory.bytes("a/b", b"new").unwrap();
        assert!(target.join("old").exists());
        directory.finish().unwrap();
        assert_eq!(scratch.names(), ["m"]);
        assert_eq!(fs::read(target.join("a/b")).unwrap(), b"new");
        assert!(!target.join("old").exists());
    }

    #[test]
    fn a_failure_leaves_what_was_there() {
        let scratch = Scratch::new();
        scratch.file("m/old", b"old");
        let directory = NewDirectory::create(&scratch.path().join("m")).unwrap();
        let error = directory.file("w", |_| Err(io::Error::other("no more"))).unwrap_err();
        assert!(error.to_string().contains("m/w: no more"), "{error}");
        drop(directory);
        assert_eq!(scratch.names(), ["m"]);
        assert!(scratch.path().join("m/old").exists());
        scratch.file("f", b"");
        assert!(NewDirectory::create(&scratch.path().join("f")).is_err());
    }
}
