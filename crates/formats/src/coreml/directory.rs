//! Atomic writing of directories.

use std::collections::BTreeSet;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::Error;
use crate::atomic::Writer;
use crate::claim::Claim;
use crate::disk::{self, NewFile};

/// A claimed directory under construction, beside its place. It is removed if it is dropped before
/// [`finish`](Self::finish).
pub(super) struct NewDirectory<'c> {
    claim: &'c Claim,
    partial: PathBuf,
    /// The directories inside, by their path in it.
    folders: BTreeSet<PathBuf>,
    finished: bool,
}

impl<'c> NewDirectory<'c> {
    pub(super) fn create(claim: &'c Claim) -> Result<Self, Error> {
        let target = claim.path();
        if target.is_file() {
            return Err(Error::of_write(target, io::Error::other("a file has that name: choose another")));
        }
        let partial = claim.partial();
        disk::create_directory(&partial).map_err(|cause| Error::of_write(target, cause))?;
        Ok(NewDirectory { claim, partial, folders: BTreeSet::new(), finished: false })
    }

    /// Writes one file, with the directories above it.
    pub(super) fn file(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut Writer) -> io::Result<()>,
    ) -> Result<(), Error> {
        self.write(name, write).map_err(|cause| Error::of_write(&self.claim.path().join(name), cause))
    }

    fn write(&mut self, name: &str, write: impl FnOnce(&mut Writer) -> io::Result<()>) -> io::Result<()> {
        let folders: Vec<&Path> = Path::new(name).ancestors().skip(1).collect();
        for folder in folders.into_iter().rev().filter(|folder| !folder.as_os_str().is_empty()) {
            if self.folders.insert(folder.to_path_buf()) {
                disk::create_directory(&self.partial.join(folder))?;
            }
        }
        let mut writer = BufWriter::with_capacity(1 << 20, NewFile::create(&self.partial.join(name))?);
        write(&mut writer)?;
        writer.into_inner().map_err(|error| error.into_error())?.sync()
    }

    /// Writes one file with the given content.
    pub(super) fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.file(name, |writer| writer.write_all(bytes))
    }

    /// Moves the directory to its place, and removes the old one. If that fails, the old one stays.
    pub(super) fn finish(mut self) -> Result<(), Error> {
        self.settle().map_err(|cause| Error::of_write(self.claim.path(), cause))
    }

    fn settle(&mut self) -> io::Result<()> {
        let target = self.claim.path();
        for folder in self.folders.iter().rev() {
            disk::sync_directory(&self.partial.join(folder))?;
        }
        disk::sync_directory(&self.partial)?;
        if !disk::is_there(target) {
            disk::rename(&self.partial, target)?;
        } else if disk::exchange(&self.partial, target)? {
            // The old content has the partial's name now.
            disk::remove(&self.partial)?;
        } else {
            let old = self.claim.old();
            disk::rename(target, &old)?;
            if let Err(error) = disk::rename(&self.partial, target) {
                disk::rename(&old, target)?;
                return Err(error);
            }
            disk::remove(&old)?;
        }
        self.finished = true;
        disk::sync_directory(self.claim.directory())
    }
}

impl Drop for NewDirectory<'_> {
    fn drop(&mut self) {
        if !self.finished {
            let _ = disk::remove(&self.partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use mixbit_testkit::Scratch;

    fn claim(scratch: &Scratch, name: &str) -> Claim {
        Claim::try_new(&scratch.path().join(name)).unwrap().unwrap()
    }

    #[test]
    fn a_directory_appears_whole_and_replaces_the_old_one() {
        let scratch = Scratch::new();
        scratch.file("m/old", b"old");
        let target = claim(&scratch, "m");
        let mut directory = NewDirectory::create(&target).unwrap();
        directory.bytes("a/b/c", b"new").unwrap();
        directory.bytes("a/d", b"new").unwrap();
        assert!(target.path().join("old").exists());
        directory.finish().unwrap();
        assert_eq!(fs::read(target.path().join("a/b/c")).unwrap(), b"new");
        assert!(!target.path().join("old").exists());
        drop(target);
        assert_eq!(scratch.names(), ["m"]);
    }

    #[test]
    fn a_failure_leaves_what_was_there() {
        let scratch = Scratch::new();
        scratch.file("m/old", b"old");
        let target = claim(&scratch, "m");
        let mut directory = NewDirectory::create(&target).unwrap();
        let error = directory.file("w", |_| Err(io::Error::other("no more"))).unwrap_err();
        assert!(error.to_string().contains("m/w: no more"), "{error}");
        drop(directory);
        drop(target);
        assert_eq!(scratch.names(), ["m"]);
        assert!(scratch.path().join("m/old").exists());
        scratch.file("f", b"");
        assert!(NewDirectory::create(&claim(&scratch, "f")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_replaced() {
        let scratch = Scratch::new();
        let victim = scratch.file("victim/file", b"precious");
        std::os::unix::fs::symlink(scratch.path().join("victim"), scratch.path().join("m")).unwrap();
        let target = claim(&scratch, "m");
        let mut directory = NewDirectory::create(&target).unwrap();
        directory.bytes("file", b"new").unwrap();
        directory.finish().unwrap();
        drop(target);
        assert_eq!(fs::read(victim).unwrap(), b"precious");
        assert_eq!(fs::read(scratch.path().join("m/file")).unwrap(), b"new");
        assert_eq!(scratch.names(), ["m", "victim"]);
    }
}
