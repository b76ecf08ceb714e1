//! Atomic writing of files.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::Error;
use crate::claim::{Claim, directory_of, remove_leftovers};
use crate::disk::{self, NewFile};

/// A writer of a new file.
pub type Writer = BufWriter<NewFile>;

/// Writes a file whole or not at all: `path` has either its former content or all that `write` wrote.
///
/// The content goes to a temporary in the same directory, is synchronised to the disk and renamed. If
/// anything fails, even by a panic in `write`, the temporary is removed. A symbolic link at `path` is
/// replaced, not followed: a name that mixbit chooses never leads out of its directory.
///
/// # Errors
/// [`Error::Write`] with `path` and the reason: the system's, or the error of `write`. [`Error::Stopped`] if
/// that is [`mixbit_mil::Stopped`].
///
/// ```
/// use std::io::Write;
/// let path = std::env::temp_dir().join(format!("mixbit-doc-{}.txt", std::process::id()));
/// mixbit_formats::write_atomically(&path, |file| file.write_all(b"whole or not at all"))?;
/// assert_eq!(std::fs::read(&path).unwrap(), b"whole or not at all");
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), mixbit_formats::Error>(())
/// ```
pub fn write_atomically<T>(
    path: &Path,
    write: impl FnOnce(&mut Writer) -> io::Result<T>,
) -> Result<T, Error> {
    refuse_directory(path).map_err(|cause| Error::of_write(path, cause))?;
    Claim::new(path, &mut || Ok(()))?.write(write)
}

/// Writes a file that the user named, else as [`write_atomically`] does: a symbolic link stays, and its
/// target is replaced; pipes and devices such as `/dev/stdout` are written directly.
///
/// # Errors
/// Those of [`write_atomically`].
pub fn write_where_asked<T>(
    path: &Path,
    write: impl FnOnce(&mut Writer) -> io::Result<T>,
) -> Result<T, Error> {
    // A link is followed if its target exists. A dangling one is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let of_write = |cause| Error::of_write(path, cause);
    match fs::metadata(&target) {
        Ok(metadata) if !metadata.is_file() && !metadata.is_dir() => {
            let written = || {
                let mut writer = BufWriter::new(NewFile::device(&target)?);
                let value = write(&mut writer)?;
                writer.flush()?;
                Ok(value)
            };
            written().map_err(of_write)
        }
        _ => write_atomically(&target, write),
    }
}

/// Makes a directory for outputs with its parents, unless it is there, and removes what killed processes left
/// in it. The empty path is the current directory. Links are followed: the user named it.
///
/// # Errors
/// [`Error::Make`].
pub fn make_directory(path: &Path) -> Result<(), Error> {
    if !path.as_os_str().is_empty() {
        fs::create_dir_all(path).map_err(|cause| {
            let cause = match cause.kind() {
                io::ErrorKind::AlreadyExists => {
                    io::Error::new(cause.kind(), "a file has that name: choose another")
                }
                _ => cause,
            };
            Error::Make { path: path.to_path_buf(), cause }
        })?;
    }
    remove_leftovers(path);
    Ok(())
}

/// Makes a directory that mixbit names in one that is there, else as [`make_directory`] does.
///
/// # Errors
/// [`Error::Make`], also if there is a link of that name, which would lead elsewhere.
pub fn make_subdirectory(path: &Path) -> Result<(), Error> {
    let make = || match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => {
            Err(io::Error::other("a link has that name, which is not followed: remove it"))
        }
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(io::Error::other("a file has that name")),
        Err(_) => match disk::create_directory(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            made => made,
        },
    };
    make().map_err(|cause| Error::Make { path: path.to_path_buf(), cause })?;
    remove_leftovers(path);
    Ok(())
}

impl Claim {
    /// Writes the claimed file whole or not at all, as [`write_atomically`] does.
    ///
    /// # Errors
    /// Those of [`write_atomically`].
    pub fn write<T>(&self, write: impl FnOnce(&mut Writer) -> io::Result<T>) -> Result<T, Error> {
        let written = || {
            refuse_directory(self.path())?;
            let (temporary, value) = Temporary::write(self, write)?;
            disk::rename(&temporary.0, self.path())?;
            temporary.keep();
            disk::sync_directory(self.directory())?;
            Ok(value)
        };
        written().map_err(|cause| Error::of_write(self.path(), cause))
    }

    /// Writes the claimed file if there is none of its name, else nothing: returns `None` then. Programs that
    /// make no claims are taken into account, too.
    ///
    /// # Errors
    /// Those of [`write_atomically`].
    pub fn write_new<T>(&self, write: impl FnOnce(&mut Writer) -> io::Result<T>) -> Result<Option<T>, Error> {
        let written = || {
            let (temporary, value) = Temporary::write(self, write)?;
            match disk::link(&temporary.0, self.path()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
                // File systems without links: FAT, some network shares.
                Err(_) if !disk::is_there(self.path()) => {
                    disk::rename(&temporary.0, self.path())?;
                    temporary.keep();
                }
                Err(error) => return Err(error),
            }
            disk::sync_directory(self.directory())?;
            Ok(Some(value))
        };
        written().map_err(|cause| Error::of_write(self.path(), cause))
    }
}

fn refuse_directory(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => {
            Err(io::Error::other("a directory has that name: choose another"))
        }
        _ if !directory_of(path).is_dir() => {
            let directory = directory_of(path).display();
            Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no directory {directory}")))
        }
        _ => Ok(()),
    }
}

/// A file that is removed when this is dropped, unless it is kept.
struct Temporary(PathBuf);

impl Temporary {
    /// Writes the new content of a claimed file, which is on the disk when this returns.
    fn write<T>(claim: &Claim, write: impl FnOnce(&mut Writer) -> io::Result<T>) -> io::Result<(Self, T)> {
        let path = claim.partial();
        let file = NewFile::create(&path)?;
        let temporary = Temporary(path);
        let mut writer = BufWriter::new(file);
        let value = write(&mut writer)?;
        let file = writer.into_inner().map_err(|error| error.into_error())?;
        file.sync()?;
        Ok((temporary, value))
    }

    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mixbit_testkit::Scratch;

    #[test]
    fn a_failure_leaves_the_old_file_and_no_other() {
        let scratch = Scratch::new();
        let path = scratch.file("out", b"old");
        let error = write_atomically(&path, |file| {
            file.write_all(b"half of the new")?;
            Err::<(), _>(io::Error::other("disk on fire"))
        })
        .unwrap_err();
        assert!(error.to_string().contains("out: disk on fire"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(scratch.names(), ["out"]);
    }

    #[test]
    fn a_panic_leaves_no_temporary() {
        let scratch = Scratch::new();
        let path = scratch.path().join("out");
        let outcome = std::panic::catch_unwind(|| write_atomically::<()>(&path, |_| panic!("on purpose")));
        assert!(outcome.is_err());
        assert!(scratch.names().is_empty());
    }

    #[test]
    fn directories_and_absent_directories_are_refused() {
        let scratch = Scratch::new();
        for path in [scratch.path().to_path_buf(), scratch.path().join("no/such"), PathBuf::new()] {
            for written in [write_atomically(&path, |_| Ok(())), write_where_asked(&path, |_| Ok(()))] {
                let error = written.unwrap_err();
                assert!(matches!(error, Error::Write { .. }), "{error}");
            }
        }
        assert!(scratch.names().is_empty());
    }

    #[test]
    fn a_new_file_replaces_none() {
        let scratch = Scratch::new();
        let claim = Claim::try_new(&scratch.path().join("out")).unwrap().unwrap();
        assert_eq!(claim.write_new(|file| file.write_all(b"first")).unwrap(), Some(()));
        assert_eq!(claim.write_new(|file| file.write_all(b"second")).unwrap(), None);
        drop(claim);
        assert_eq!(fs::read(scratch.path().join("out")).unwrap(), b"first");
        assert_eq!(scratch.names(), ["out"]);
    }

    #[cfg(unix)]
    #[test]
    fn only_paths_of_the_user_are_followed() {
        let scratch = Scratch::new();
        let path = scratch.file("real", b"old");
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write_where_asked(&link, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        write_atomically(&link, |file| file.write_all(b"newer")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(!fs::symlink_metadata(&link).unwrap().is_symlink());
        write_where_asked(Path::new("/dev/null"), |file| file.write_all(b"gone")).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());

        let inside = scratch.path().join("inside");
        std::os::unix::fs::symlink(scratch.path(), &inside).unwrap();
        assert!(matches!(make_subdirectory(&inside), Err(Error::Make { .. })));
        make_directory(&inside).unwrap();
        let error = make_directory(&path).unwrap_err().to_string();
        assert!(error.ends_with("a file has that name: choose another"), "{error}");
    }
}
