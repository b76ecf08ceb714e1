//! Outputs that one process writes at a time, and the leftovers of killed processes.
//!
//! Beside an output `NAME` lie, while it is written:
//!
//! ```text
//! .NAME.mixbit-lock                 locked by the process that writes it, and removed by it
//! .NAME.1a2b3c4d.mixbit-partial     the new content; each run has other digits
//! .NAME.1a2b3c4d.mixbit-old         the former content, where a file system can't exchange two names
//! ```
//!
//! The system frees the lock of a process that ends, however it ends. What lies beside a lock that nobody
//! holds is a leftover.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use mixbit_mil::Stopped;

use crate::disk;
use crate::{Error, hex, sha256};

const LOCK: &str = "mixbit-lock";
const PARTIAL: &str = "mixbit-partial";
const OLD: &str = "mixbit-old";

/// The longest name, in bytes, that its leftovers carry whole: file systems allow 255.
const LONGEST_NAME: usize = 200;

/// The interval at which a lock that another process holds is tried again.
const INTERVAL: Duration = Duration::from_millis(100);

/// The right to write one output, which one claim in one process has at a time.
///
/// A claim is a lock of the operating system on a file beside the output. On NFS it holds among all clients
/// whose mounts lock. Where a file system has no locks (Lustre without `flock`), every process gets its claim
/// and leftovers stay; outputs are whole even then, since each run writes under a name of its own.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    _lock: Option<Lock>,
}

impl Claim {
    /// Claims an output whose directory exists. A link at `path` is not followed. While another process has
    /// the claim, `waiting` is called ten times a second.
    ///
    /// # Errors
    /// [`Error::Write`] if the directory can't be written to, [`Error::Stopped`] if `waiting` says so.
    pub fn new(path: &Path, waiting: &mut dyn FnMut() -> Result<(), Stopped>) -> Result<Self, Error> {
        loop {
            if let Some(claim) = Self::try_new(path)? {
                return Ok(claim);
            }
            waiting().map_err(|stopped| Error::of_write(path, io::Error::other(stopped)))?;
            thread::sleep(INTERVAL);
        }
    }

    /// Claims an output as [`new`](Self::new) does; `None` if another process has the claim.
    ///
    /// # Errors
    /// [`Error::Write`] if the directory can't be written to.
    pub fn try_new(path: &Path) -> Result<Option<Self>, Error> {
        let attempt = || {
            let Some(name) = path.file_name() else {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a name of a file"));
            };
            let lock = match Lock::of(directory_of(path), &key(name))? {
                Attempt::Held(lock) => Some(lock),
                Attempt::Unsupported => None,
                Attempt::Taken => return Ok(None),
            };
            Ok(Some(Claim { path: path.to_path_buf(), _lock: lock }))
        };
        attempt().map_err(|cause| Error::of_write(path, cause))
    }

    /// The output.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the output, a file or a directory, in one step: it is there whole or gone. A link is removed,
    /// not followed.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn remove(self) -> Result<(), Error> {
        let removed = || {
            // A leftover of this name is removed by the next run if this one is killed.
            let partial = self.partial();
            disk::rename(&self.path, &partial)?;
            disk::remove(&partial)?;
            disk::sync_directory(self.directory())
        };
        removed().map_err(|cause| Error::of_write(&self.path, cause))
    }

    /// The directory of the output.
    pub(crate) fn directory(&self) -> &Path {
        directory_of(&self.path)
    }

    /// A name for the new content that nothing has yet.
    pub(crate) fn partial(&self) -> PathBuf {
        self.beside(PARTIAL)
    }

    /// A name for the former content that nothing has yet.
    pub(crate) fn old(&self) -> PathBuf {
        self.beside(OLD)
    }

    fn beside(&self, kind: &str) -> PathBuf {
        let key = key(self.path.file_name().unwrap_or_default());
        self.directory().join(format!(".{key}.{}.{kind}", disk::token()))
    }
}

/// Removes from a directory what killed processes left of their outputs, and puts back the former content of
/// an output that was lost between two names. What cannot be removed stays.
pub fn remove_leftovers(directory: &Path) {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    for (name, leftover) in names.iter().filter_map(|name| Some((name, Leftover::of(name)?))) {
        let Ok(Attempt::Held(lock)) = Lock::of(directory, leftover.key) else { continue };
        let (path, output) = (directory.join(name), directory.join(leftover.key));
        // The lock is removed with its claim.
        let _ = match leftover.kind {
            LOCK => Ok(()),
            OLD if !disk::is_there(&output) => disk::rename(&path, &output),
            _ => disk::remove(&path),
        };
        drop(lock);
    }
}

/// The parts of a leftover's name.
struct Leftover<'n> {
    key: &'n str,
    kind: &'n str,
}

impl<'n> Leftover<'n> {
    fn of(name: &'n str) -> Option<Self> {
        let (rest, kind) = name.strip_prefix('.')?.rsplit_once('.')?;
        let is_token = |text: &str| text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let key = match kind {
            LOCK => rest,
            PARTIAL | OLD => rest.rsplit_once('.').filter(|(_, token)| is_token(token))?.0,
            _ => return None,
        };
        Some(Leftover { key, kind })
    }
}

/// The name of an output as its leftovers carry it: a long one is cut, with a checksum.
fn key(name: &OsStr) -> String {
    let name = name.to_string_lossy();
    if name.len() <= LONGEST_NAME {
        return name.into_owned();
    }
    let digest = hex(&sha256(name.as_bytes())[..8]);
    let cut: String = name.chars().take(40).collect();
    format!("{cut}-{digest}")
}

/// The directory that a path is in.
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A lock file that this process holds.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    file: File,
}

enum Attempt {
    Held(Lock),
    Taken,
    Unsupported,
}

impl Lock {
    fn of(directory: &Path, key: &str) -> io::Result<Attempt> {
        let path = directory.join(format!(".{key}.{LOCK}"));
        loop {
            let file = open_lock(&path)?;
            match file.try_lock() {
                // The former holder removes the file: the lock may be of one that is gone.
                Ok(()) if is_at(&file, &path) => return Ok(Attempt::Held(Lock { path, file })),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(Attempt::Taken),
                Err(TryLockError::Error(error)) if has_no_locks(&error) => {
                    let _ = fs::remove_file(&path);
                    return Ok(Attempt::Unsupported);
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Elsewhere a file that is open can't be told from another of its name.
        if cfg!(unix) {
            let _ = fs::remove_file(&self.path);
        }
        let _ = self.file.unlock();
    }
}

/// Opens a lock file, or makes it. A link is not followed.
fn open_lock(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    }
    options.open(path)
}

/// True if an open file is the one that a path leads to.
fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        match (file.metadata(), fs::symlink_metadata(path)) {
            (Ok(open), Ok(found)) => identity(open) == identity(found),
            _ => false,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = (file, path);
        true
    }
}

/// True for the error of a file system without locks.
fn has_no_locks(error: &io::Error) -> bool {
    #[cfg(unix)]
    {
        use rustix::io::Errno;
        let none = [Errno::NOLCK, Errno::NOSYS, Errno::NOTSUP, Errno::OPNOTSUPP];
        Errno::from_io_error(error).is_some_and(|errno| none.contains(&errno))
    }
    #[cfg(not(unix))]
    {
        error.kind() == io::ErrorKind::Unsupported
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mixbit_testkit::Scratch;

    #[test]
    fn one_claim_is_given_at_a_time_and_leaves_no_file() {
        let scratch = Scratch::new();
        let path = scratch.path().join("m.mlpackage");
        let claim = Claim::try_new(&path).unwrap().unwrap();
        assert!(Claim::try_new(&path).unwrap().is_none());
        assert!(Claim::try_new(&scratch.path().join("other")).unwrap().is_some());
        let error = Claim::new(&path, &mut || Err(Stopped)).unwrap_err();
        assert!(matches!(error, Error::Stopped { .. }), "{error}");
        let mut claim = Some(claim);
        let mut waited = 0;
        Claim::new(&path, &mut || {
            waited += 1;
            claim = None;
            Ok(())
        })
        .unwrap();
        assert_eq!(waited, 1);
        assert!(scratch.names().is_empty(), "{:?}", scratch.names());
    }

    #[test]
    fn what_is_removed_is_gone_and_links_are_not_followed() {
        let scratch = Scratch::new();
        scratch.file("m.mlpackage/Data/weights", b"old");
        scratch.file("file", b"old");
        let mut names = vec!["m.mlpackage", "file"];
        #[cfg(unix)]
        {
            let kept = scratch.path().join("kept");
            fs::create_dir(&kept).unwrap();
            std::os::unix::fs::symlink(&kept, scratch.path().join("link")).unwrap();
            names.push("link");
        }
        for name in names {
            Claim::try_new(&scratch.path().join(name)).unwrap().unwrap().remove().unwrap();
        }
        assert_eq!(scratch.names(), if cfg!(unix) { vec!["kept"] } else { Vec::new() });
    }

    #[test]
    fn threads_take_turns() {
        let scratch = Scratch::new();
        let path = scratch.path().join("count");
        fs::write(&path, "0").unwrap();
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let claim = loop {
                            if let Some(claim) = Claim::try_new(&path).unwrap() {
                                break claim;
                            }
                            thread::yield_now();
                        };
                        let count: u32 = fs::read_to_string(claim.path()).unwrap().parse().unwrap();
                        fs::write(&path, (count + 1).to_string()).unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_to_string(&path).unwrap(), "40");
        assert_eq!(scratch.names(), ["count"]);
    }

    #[test]
    fn leftovers_go_unless_somebody_writes() {
        let scratch = Scratch::new();
        let names = [
            ".a.png.0123abcd.mixbit-partial",
            ".b.mlpackage.0123abcd.mixbit-partial/Data/x",
            ".b.mlpackage.mixbit-lock",
            ".c.mlpackage.0123abcd.mixbit-old/new",
            ".d.mlpackage.0123abcd.mixbit-old/lost",
            ".busy.0123abcd.mixbit-partial",
            ".user.partial",
            ".user.lock",
            ".user.short.mixbit-partial",
            "c.mlpackage/new",
        ];
        let _ = names.map(|name| scratch.file(name, b""));
        let busy = Claim::try_new(&scratch.path().join("busy")).unwrap();
        remove_leftovers(scratch.path());
        drop(busy);
        let left = [
            ".busy.0123abcd.mixbit-partial",
            ".user.lock",
            ".user.partial",
            ".user.short.mixbit-partial",
            "c.mlpackage",
            "d.mlpackage",
        ];
        assert_eq!(scratch.names(), left);
        assert!(scratch.path().join("d.mlpackage/lost").is_file());
    }

    #[test]
    fn long_names_have_leftovers_too() {
        let scratch = Scratch::new();
        let names = ["a", "b"].map(|end| "é".repeat(126) + end);
        let claims = names.map(|name| Claim::try_new(&scratch.path().join(name)).unwrap().unwrap());
        assert!(claims.iter().all(|claim| claim.partial().file_name().unwrap().len() < 255));
    }

    #[cfg(unix)]
    #[test]
    fn a_lock_is_no_way_out_of_the_directory() {
        let scratch = Scratch::new();
        let victim = scratch.path().join("victim");
        std::os::unix::fs::symlink(&victim, scratch.path().join(".a.mixbit-lock")).unwrap();
        assert!(Claim::try_new(&scratch.path().join("a")).is_err());
        assert!(!victim.exists());
    }
}
