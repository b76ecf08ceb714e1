//! Unpacking of zip archives from foreign hands.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use flate2::Crc;
use flate2::read::DeflateDecoder;
use mixbit_mil::{Bytes, Progress, Unit};

use crate::files::is_plain;
use crate::shown::shown;
use crate::zip::{self, Member};
use crate::{Error, disk, map_file};

/// The most files of an archive.
const MOST_FILES: usize = 100_000;

/// The most folders above a file.
const DEEPEST: usize = 16;

/// The bytes that are decompressed between two reports.
const PORTION: usize = 1 << 20;

/// The bits of a mode that say the kind of file, and two of the kinds.
const KIND: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;

/// Unpacks a zip archive into a new directory, whole or not at all. Folders of Macs' resource forks are left
/// out.
///
/// # Errors
/// [`Error::Layout`] for an archive that is malformed, encrypted or larger than `limit` bytes, or that has
/// links, names that lead out of it, or one name twice; [`Error::Stopped`]; [`Error::Read`] and
/// [`Error::Write`].
pub fn unpack(archive: &Path, directory: &Path, limit: u64, progress: &dyn Progress) -> Result<(), Error> {
    let file = map_file(archive)?;
    let malformed = |what: String| Error::Layout { path: archive.to_path_buf(), what };
    let members = zip::members(&file).map_err(|error| malformed(error.to_string()))?;
    let files = checked(&members, limit).map_err(malformed)?;
    let total = files.iter().map(|(member, _)| member.uncompressed).sum();
    let partial = PathBuf::from(format!("{}.{}.partial", directory.display(), disk::token()));
    let mut unpacking = Unpacking { archive, file: &file, progress, done: 0, total };
    let unpacked = fs::create_dir(&partial)
        .map_err(|cause| Error::Make { path: partial.clone(), cause })
        .and_then(|()| files.iter().try_for_each(|(member, parts)| unpacking.member(member, parts, &partial)))
        .and_then(|()| fs::rename(&partial, directory).map_err(|cause| Error::of_write(directory, cause)));
    if unpacked.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    unpacked
}

/// The files among an archive's members, with the parts of their names.
fn checked(members: &[Member], limit: u64) -> Result<Vec<(&Member, Vec<&str>)>, String> {
    if members.len() > MOST_FILES {
        return Err(format!("the archive has {} files, more than {MOST_FILES}", members.len()));
    }
    let (mut files, mut names, mut total) = (Vec::new(), BTreeSet::new(), 0u64);
    for member in members {
        let name = shown(&member.name);
        if member.encrypted {
            return Err(format!("`{name}` in the archive is encrypted"));
        }
        if !matches!(member.mode & KIND, 0 | REGULAR | DIRECTORY) {
            return Err(format!("`{name}` in the archive is a link or a device, which is not unpacked"));
        }
        let is_directory = member.name.ends_with('/');
        let parts: Vec<&str> = member.name.trim_end_matches('/').split('/').collect();
        if !parts.iter().all(|part| is_plain(part)) || parts.len() > DEEPEST {
            return Err(format!("the name `{name}` leads out of the archive"));
        }
        let is_of_mac = parts[0] == "__MACOSX" || parts.last().is_some_and(|part| part.starts_with("._"));
        if is_directory || is_of_mac {
            continue;
        }
        if !names.insert(member.name.to_ascii_lowercase()) {
            return Err(format!("the archive has `{name}` twice"));
        }
        total = total.saturating_add(member.uncompressed);
        files.push((member, parts));
    }
    match total > limit {
        true => Err(format!("the archive unpacks to {total} bytes, more than the {limit} that there are")),
        false => Ok(files),
    }
}

/// An archive on its way to the disk.
struct Unpacking<'a> {
    archive: &'a Path,
    file: &'a Bytes,
    progress: &'a dyn Progress,
    done: u64,
    total: u64,
}

impl Unpacking<'_> {
    fn member(&mut self, member: &Member, parts: &[&str], directory: &Path) -> Result<(), Error> {
        let malformed = |what: &str| Error::Layout {
            path: self.archive.to_path_buf(),
            what: format!("`{}` in the archive {what}", shown(&member.name)),
        };
        let content = zip::content(self.file, member).map_err(|error| malformed(&error.to_string()))?;
        let reader: Box<dyn Read + '_> = match member.method {
            0 => Box::new(&*content),
            8 => Box::new(DeflateDecoder::new(&*content)),
            _ => return Err(malformed("is compressed in another way than deflate")),
        };
        let path: PathBuf = parts.iter().fold(directory.to_path_buf(), |path, part| path.join(part));
        let (len, crc) = self.copy(reader, member.uncompressed, &path)?;
        match (len == member.uncompressed, crc == member.crc) {
            (true, true) => Ok(()),
            (false, _) => Err(malformed("has another size than the archive says: download it again")),
            (true, false) => Err(malformed("has a wrong checksum: download it again")),
        }
    }

    /// Writes a new file of at most one byte more than it should have. Returns its length and checksum.
    fn copy(&mut self, reader: impl Read, expected: u64, path: &Path) -> Result<(u64, u32), Error> {
        let mut reader = reader.take(expected.saturating_add(1));
        let of_write = |cause| Error::of_write(path, cause);
        let parent = path.parent().unwrap_or(path);
        fs::create_dir_all(parent).map_err(|cause| Error::Make { path: parent.to_path_buf(), cause })?;
        let mut writer = BufWriter::new(File::create_new(path).map_err(of_write)?);
        let (mut crc, mut portion) = (Crc::new(), vec![0; PORTION]);
        loop {
            let unreadable = |cause| Error::Read { path: self.archive.to_path_buf(), cause };
            let len = reader.read(&mut portion).map_err(unreadable)?;
            if len == 0 {
                break;
            }
            crc.update(&portion[..len]);
            writer.write_all(&portion[..len]).map_err(of_write)?;
            self.done += len as u64;
            let reported = self.progress.advance(self.done.min(self.total), self.total, Unit::Bytes);
            reported.map_err(|stopped| of_write(io::Error::other(stopped)))?;
        }
        writer.flush().map_err(of_write)?;
        Ok((expected.saturating_add(1) - reader.limit(), crc.sum()))
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;
    use flate2::write::DeflateEncoder;
    use mixbit_testkit::Scratch;

    use super::*;

    /// A member as an archive has it: its name, content, compression and mode.
    type Made<'a> = (&'a str, &'a [u8], bool, u32);

    fn deflated(content: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn zip(members: &[Made]) -> Vec<u8> {
        let (mut file, mut directory) = (Vec::new(), Vec::new());
        for &(name, content, is_deflated, mode) in members {
            let mut crc = Crc::new();
            crc.update(content);
            let data = if is_deflated { deflated(content) } else { content.to_vec() };
            let mut common = vec![20, 0, 0, 0, if is_deflated { 8 } else { 0 }, 0, 0, 0, 0, 0];
            common.extend(crc.sum().to_le_bytes());
            common.extend((data.len() as u32).to_le_bytes());
            common.extend((content.len() as u32).to_le_bytes());
            common.extend((name.len() as u16).to_le_bytes());
            common.extend([0, 0]);
            let start = file.len() as u32;
            file.extend(b"PK\x03\x04");
            file.extend(&common);
            file.extend(name.as_bytes());
            file.extend(data);
            directory.extend(b"PK\x01\x02\x14\x03");
            directory.extend(&common);
            directory.extend([0; 6]);
            directory.extend((mode << 16).to_le_bytes());
            directory.extend(start.to_le_bytes());
            directory.extend(name.as_bytes());
        }
        let start = file.len() as u32;
        let [count, len] = [members.len() as u16, directory.len() as u16];
        file.extend(directory);
        file.extend(b"PK\x05\x06\0\0\0\0");
        file.extend(count.to_le_bytes());
        file.extend(count.to_le_bytes());
        file.extend(u32::from(len).to_le_bytes());
        file.extend(start.to_le_bytes());
        file.extend([0, 0]);
        file
    }

    fn unpacked(members: &[Made], limit: u64) -> (Scratch, Result<(), Error>) {
        let scratch = Scratch::new();
        let archive = scratch.file("a.zip", &zip(members));
        let result = unpack(&archive, &scratch.path().join("out"), limit, &());
        (scratch, result)
    }

    #[test]
    fn files_are_unpacked_with_their_folders() {
        let long = vec![b'x'; 100_000];
        let members: [Made; 4] = [
            ("m/", b"", false, 0o040_755),
            ("m/Unet.mlmodelc/model.mil", &long, true, 0o100_644),
            ("m/vocab.json", b"{}", false, 0),
            ("__MACOSX/m/._vocab.json", b"fork", false, 0),
        ];
        let (scratch, result) = unpacked(&members, 100_002);
        result.unwrap();
        assert_eq!(fs::read(scratch.path().join("out/m/Unet.mlmodelc/model.mil")).unwrap(), long);
        assert_eq!(fs::read(scratch.path().join("out/m/vocab.json")).unwrap(), b"{}");
        assert_eq!(scratch.names(), ["a.zip", "out"]);
        assert!(!scratch.path().join("out/__MACOSX").exists());
    }

    #[test]
    fn hostile_archives_leave_nothing() {
        let cases: [(&[Made], &str); 8] = [
            (&[("../evil", b"", false, 0)], "leads out"),
            (&[("/etc/evil", b"", false, 0)], "leads out"),
            (&[("a/../../evil", b"", false, 0)], "leads out"),
            (&[("a\\evil", b"", false, 0)], "leads out"),
            (&[("link", b"/etc", false, 0o120_777)], "is a link"),
            (&[("a", b"1", false, 0), ("A", b"2", false, 0)], "twice"),
            (&[("a", &[0; 1001], true, 0)], "more than the 1000"),
            (&[("a/b", b"1", false, 0), ("a", b"2", false, 0)], "can't write"),
        ];
        for (members, expected) in cases {
            let (scratch, result) = unpacked(members, 1000);
            let error = result.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(scratch.names(), ["a.zip"]);
        }
    }

    #[test]
    fn damage_is_found() {
        let content = [7; 5000];
        let scratch = Scratch::new();
        let whole = zip(&[("a", &content, true, 0)]);
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            let archive = scratch.file("a.zip", &damaged);
            let out = scratch.path().join(format!("out{at}"));
            if unpack(&archive, &out, 5000, &()).is_ok() {
                let names = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
                names.for_each(|path| assert_eq!(fs::read(path).unwrap(), content, "byte {at}"));
            }
        }
    }
}
