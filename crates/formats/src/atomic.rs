//! Atomic writing of files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::Error;

/// Writes a file whole or not at all: `path` has either its former content or all that `write` wrote.
///
/// The content goes to a temporary in the same directory, is synchronised to the disk and renamed. If
/// anything fails, even by a panic in `write`, the temporary is removed. A symbolic link at `path` stays, and
/// its target is replaced. Pipes and devices such as `/dev/stdout` are written directly.
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
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>,
) -> Result<T, Error> {
    replace(path, write).map_err(|cause| Error::of_write(path, cause))
}

/// Makes a directory with its parents, unless it is there. The empty path is the current directory.
///
/// # Errors
/// [`Error::Make`].
pub fn make_directory(path: &Path) -> Result<(), Error> {
    if path.as_os_str().is_empty() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(|cause| Error::Make { path: path.to_path_buf(), cause })
}

fn replace<T>(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<T>) -> io::Result<T> {
    // A link is followed if its target exists. A dangling one is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    match fs::metadata(&target) {
        Ok(metadata) if metadata.is_dir() => {
            return Err(io::Error::other("a directory has that name: choose another"));
        }
        Ok(metadata) if !metadata.is_file() => {
            let mut writer = BufWriter::new(OpenOptions::new().write(true).open(&target)?);
            let value = write(&mut writer)?;
            writer.flush()?;
            return Ok(value);
        }
        _ => {}
    }
    if target.file_name().is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file name"));
    }
    let directory = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let (temporary, file) = Temporary::create(directory)?;
    let mut writer = BufWriter::new(file);
    let value = write(&mut writer)?;
    let file = writer.into_inner().map_err(|error| error.into_error())?;
    file.sync_all()?;
    drop(file);
    temporary.rename(&target)?;
    // Makes the rename durable. Not every system can synchronise a directory, and the file is whole anyway.
    if let Ok(directory) = File::open(directory) {
        let _ = directory.sync_all();
    }
    Ok(value)
}

/// A file that is removed when this is dropped, unless it was renamed.
struct Temporary(Option<PathBuf>);

impl Temporary {
    fn create(directory: &Path) -> io::Result<(Self, File)> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = directory.join(format!(".mixbit-{}-{count}.partial", std::process::id()));
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return Ok((Temporary(Some(path)), file)),
                // Left by a killed process of the same number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn rename(mut self, target: &Path) -> io::Result<()> {
        if let Some(path) = &self.0 {
            fs::rename(path, target)?;
        }
        self.0 = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
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
            let error = write_atomically(&path, |_| Ok(())).unwrap_err();
            assert!(matches!(error, Error::Write { .. }), "{error}");
        }
        assert!(scratch.names().is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_and_devices_are_written_to() {
        let scratch = Scratch::new();
        let path = scratch.file("real", b"old");
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        write_atomically(&link, |file| file.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        write_atomically(Path::new("/dev/null"), |file| file.write_all(b"gone")).unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
