//! The file operations that outputs are made of, each in one place.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::path::Path;

/// A new file that is being written.
#[derive(Debug)]
pub struct NewFile(File);

impl NewFile {
    /// Makes a file that must not be there: a link of that name is not followed.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        step()?;
        OpenOptions::new().write(true).create_new(true).open(path).map(NewFile)
    }

    /// Opens a pipe or device to write to.
    pub(crate) fn device(path: &Path) -> io::Result<Self> {
        OpenOptions::new().write(true).open(path).map(NewFile)
    }

    /// Waits until the content is on the disk.
    pub(crate) fn sync(&self) -> io::Result<()> {
        step()?;
        self.0.sync_all()
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        step()?;
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Makes a directory that must not be there.
pub(crate) fn create_directory(path: &Path) -> io::Result<()> {
    step()?;
    fs::create_dir(path)
}

/// Makes what a directory lists durable. Not every system can synchronise a directory, which is no error.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    step()?;
    if let Ok(directory) = File::open(path) {
        let _ = directory.sync_all();
    }
    Ok(())
}

/// Renames a file or directory. A file replaces one of the new name.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    step()?;
    fs::rename(from, to)
}

/// Gives a file a second name, which must not be taken.
pub(crate) fn link(from: &Path, to: &Path) -> io::Result<()> {
    step()?;
    fs::hard_link(from, to)
}

/// Exchanges two paths in one step. Returns false where the file system can't.
pub(crate) fn exchange(a: &Path, b: &Path) -> io::Result<bool> {
    step()?;
    #[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(true),
            Err(error) if [Errno::INVAL, Errno::NOSYS, Errno::NOTSUP].contains(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
    #[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
    {
        let _ = (a, b);
        Ok(false)
    }
}

/// Removes a file, a link or a directory with all that is in it, if it is there. Links are not followed.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    step()?;
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// True if there is something of that name, be it a link that leads nowhere.
pub(crate) fn is_there(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

/// The bytes that the disk of a directory has for this user; `None` where the system does not say.
pub fn free_space(directory: &Path) -> Option<u64> {
    #[cfg(feature = "fault-injection")]
    if let Some(planned) = std::env::var("MIXBIT_FREE_SPACE").ok().and_then(|text| text.parse().ok()) {
        return Some(planned);
    }
    #[cfg(unix)]
    {
        let found = rustix::fs::statvfs(directory).ok()?;
        found.f_bavail.checked_mul(found.f_frsize)
    }
    #[cfg(not(unix))]
    {
        let _ = directory;
        None
    }
}

/// Eight digits that no other run has.
pub(crate) fn token() -> String {
    let hash = RandomState::new().build_hasher().finish();
    format!("{:08x}", hash as u32)
}

/// Fails where a test asks for it.
fn step() -> io::Result<()> {
    #[cfg(feature = "fault-injection")]
    crate::fault::step()?;
    Ok(())
}
