//! Whole files as memory maps, or as vectors with a size limit.

#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
use mixbit_mil::{Bytes, Owner};

use crate::Error;

/// Maps a file read-only. Pages are read when they are used.
///
/// The file must not change while any slice of the bytes lives. If another program truncates it, reading
/// beyond the new end ends the process (SIGBUS on Unix). If another program rewrites it in place, the values
/// change. Replacing the file by renaming is safe, for the map keeps the old file;
/// [`write_atomically`](crate::write_atomically) and the Hugging Face tools do so.
///
/// # Errors
/// [`Error::Read`] if the file can't be opened or is not a regular file.
pub fn map_file(path: &Path) -> Result<Bytes, Error> {
    let (file, len) = open_file(path)?;
    if len == 0 {
        return Ok(Bytes::new(Vec::new()));
    }
    // SAFETY: the map is private to the returned `Bytes`, which gives out shared slices only. What can't be
    // ruled out is that another process changes or truncates the file meanwhile; this function's contract
    // says so, and every value that decides about memory safety (header, offsets) is checked once against the
    // map's fixed length.
    let map = unsafe { Mmap::map(&file) }.map_err(|cause| read_error(path, cause))?;
    Ok(Bytes::of_owner(Mapped(map)))
}

/// A mapped file.
struct Mapped(Mmap);

impl Owner for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn release(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        {
            // SAFETY: the map is shared and read-only, so the pages hold nothing but the file's content, and
            // a page that is used again is read from the file again: no reader sees other bytes.
            let advised = unsafe {
                self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
            // If the system ignores the advice, the pages stay in memory.
            drop(advised);
        }
        #[cfg(not(target_os = "linux"))]
        drop(range);
    }
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let (file, len) = open_file(path)?;
    let too_large = |len| Error::TooLarge { path: path.to_path_buf(), len, limit };
    if len > limit {
        return Err(too_large(len));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|cause| read_error(path, cause))?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    Ok(bytes)
}

/// Opens a regular file, and gives its length. Others, such as pipes, could block forever.
///
/// # Errors
/// [`Error::Read`].
pub fn open_file(path: &Path) -> Result<(File, u64), Error> {
    let metadata = fs::metadata(path).map_err(|cause| read_error(path, cause))?;
    if metadata.is_dir() {
        return Err(read_error(path, io::Error::other("it is a directory, not a file")));
    }
    if !metadata.is_file() {
        return Err(read_error(path, io::Error::other("it is not a regular file")));
    }
    let file = File::open(path).map_err(|cause| read_error(path, cause))?;
    let len = file.metadata().map_err(|cause| read_error(path, cause))?.len();
    Ok((file, len))
}

fn read_error(path: &Path, cause: io::Error) -> Error {
    Error::Read { path: path.to_path_buf(), cause }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mixbit_testkit::Scratch;

    #[test]
    fn files_are_mapped_and_read() {
        let scratch = Scratch::new();
        let path = scratch.file("a", b"hello");
        let bytes = map_file(&path).unwrap();
        assert_eq!(&*bytes, b"hello");
        bytes.release();
        assert_eq!(&*bytes, b"hello");
        assert_eq!(read_file(&path, 5).unwrap(), b"hello");
        assert!(matches!(read_file(&path, 4), Err(Error::TooLarge { len: 5, limit: 4, .. })));
        assert!(map_file(&scratch.file("empty", b"")).unwrap().is_empty());
    }

    #[test]
    fn what_is_not_a_file_is_refused() {
        let scratch = Scratch::new();
        let message = map_file(scratch.path()).unwrap_err().to_string();
        assert!(message.contains("is a directory"), "{message}");
        let message = map_file(&scratch.path().join("absent")).unwrap_err().to_string();
        assert!(message.contains("absent"), "{message}");
    }

    #[test]
    fn a_map_survives_the_replacement_of_its_file() {
        let scratch = Scratch::new();
        let path = scratch.file("a", b"old");
        let bytes = map_file(&path).unwrap();
        crate::write_atomically(&path, |file| io::Write::write_all(file, b"newer")).unwrap();
        assert_eq!(&*bytes, b"old");
        assert_eq!(&*map_file(&path).unwrap(), b"newer");
    }
}
