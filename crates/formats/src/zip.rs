//! The directory of a ZIP archive, with ZIP64 for large ones, and the bytes of its members.
//!
//! Follows PKWARE's APPNOTE 6.3.10, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16 and 4.5.3.

use mixbit_mil::Bytes;
use thiserror::Error;

const END_SIGNATURE: &[u8; 4] = b"PK\x05\x06";
const CENTRAL_SIGNATURE: &[u8; 4] = b"PK\x01\x02";
pub(crate) const LOCAL_SIGNATURE: &[u8; 4] = b"PK\x03\x04";
const LOCATOR64_SIGNATURE: &[u8; 4] = b"PK\x06\x07";
const END64_SIGNATURE: &[u8; 4] = b"PK\x06\x06";

const END_LEN: usize = 22;
const CENTRAL_LEN: usize = 46;
const LOCAL_LEN: usize = 30;
const LOCATOR64_LEN: usize = 20;
const END64_LEN: usize = 56;

/// The value of a 32-bit field that moves to the ZIP64 extra field.
const IN_ZIP64: u64 = 0xffff_ffff;

/// The reason why an archive or one of its members can't be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum ZipError {
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the archive is encrypted")]
    Encrypted,
    #[error("the archive is compressed")]
    Compressed,
}

/// An entry of the central directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    /// The compression: 0 is none, 8 is deflate.
    pub(crate) method: u16,
    pub(crate) encrypted: bool,
    /// The file's mode, where a Unix system wrote the archive; else 0.
    pub(crate) mode: u32,
    pub(crate) crc: u32,
    compressed: u64,
    pub(crate) uncompressed: u64,
    header: u64,
}

/// The files of an archive.
pub(crate) fn members(file: &[u8]) -> Result<Vec<Member>, ZipError> {
    let outside = || ZipError::Malformed("its ZIP directory lies outside the file");
    let (count, start) = directory(file)?;
    let start = usize::try_from(start).map_err(|_| outside())?;
    let mut rest = file.get(start..).ok_or_else(outside)?;
    let mut members = Vec::new();
    for _ in 0..count {
        let entry = rest.get(..CENTRAL_LEN).ok_or_else(outside)?;
        if !entry.starts_with(CENTRAL_SIGNATURE) {
            return Err(ZipError::Malformed("its ZIP directory is damaged"));
        }
        let name_end = CENTRAL_LEN + usize::from(u16_at(entry, 28));
        let extra_end = name_end + usize::from(u16_at(entry, 30));
        let entry_end = extra_end + usize::from(u16_at(entry, 32));
        if entry_end > rest.len() {
            return Err(outside());
        }
        let name = String::from_utf8(rest[CENTRAL_LEN..name_end].to_vec())
            .map_err(|_| ZipError::Malformed("the name of a member is not UTF-8"))?;
        let mut wide = zip64_values(&rest[name_end..extra_end]);
        let mut field = |at| match u32_at(entry, at) {
            IN_ZIP64 => wide.next().ok_or(ZipError::Malformed("a ZIP64 field is missing")),
            value => Ok(value),
        };
        // The ZIP64 field has its values in this order.
        let (uncompressed, compressed, header) = (field(24)?, field(20)?, field(42)?);
        let (method, encrypted) = (u16_at(entry, 10), u16_at(entry, 8) & 1 != 0);
        let is_of_unix = entry[5] == 3;
        let mode = if is_of_unix { (u32_at(entry, 38) >> 16) as u32 } else { 0 };
        let crc = u32_at(entry, 16) as u32;
        members.push(Member { name, method, encrypted, mode, crc, compressed, uncompressed, header });
        rest = &rest[entry_end..];
    }
    Ok(members)
}

/// The bytes of an uncompressed member.
pub(crate) fn stored(file: &Bytes, member: &Member) -> Result<Bytes, ZipError> {
    if member.encrypted {
        return Err(ZipError::Encrypted);
    }
    if member.method != 0 {
        return Err(ZipError::Compressed);
    }
    if member.compressed != member.uncompressed {
        return Err(ZipError::Malformed("its two sizes differ, though it is not compressed"));
    }
    content(file, member)
}

/// The bytes of a member as the archive has them.
pub(crate) fn content(file: &Bytes, member: &Member) -> Result<Bytes, ZipError> {
    let outside = || ZipError::Malformed("it lies outside the archive: was the file cut off?");
    let header_start = usize::try_from(member.header).map_err(|_| outside())?;
    let header_end = header_start.checked_add(LOCAL_LEN).ok_or_else(outside)?;
    let header = file.get(header_start..header_end).ok_or_else(outside)?;
    if !header.starts_with(LOCAL_SIGNATURE) {
        return Err(ZipError::Malformed("its ZIP header is damaged"));
    }
    let start = header_end + usize::from(u16_at(header, 26)) + usize::from(u16_at(header, 28));
    let len = usize::try_from(member.compressed).map_err(|_| outside())?;
    let end = start.checked_add(len).ok_or_else(outside)?;
    file.slice(start..end).ok_or_else(outside)
}

/// The number of members and the offset of the central directory.
fn directory(file: &[u8]) -> Result<(u64, u64), ZipError> {
    let at = find_end(file).ok_or(ZipError::Malformed("it has no ZIP directory: was it cut off?"))?;
    let end = &file[at..];
    let (count, start) = (u64::from(u16_at(end, 10)), u32_at(end, 16));
    if count != 0xffff && start != IN_ZIP64 {
        return Ok((count, start));
    }
    // Its locator lies before the end record.
    let missing = ZipError::Malformed("its ZIP64 directory is missing");
    let locator = at.checked_sub(LOCATOR64_LEN).map(|start| &file[start..at]);
    let locator = locator.filter(|locator| locator.starts_with(LOCATOR64_SIGNATURE));
    let end = locator.and_then(|locator| {
        let start = usize::try_from(u64_at(locator, 8)).ok()?;
        file.get(start..start.checked_add(END64_LEN)?).filter(|end| end.starts_with(END64_SIGNATURE))
    });
    let end = end.ok_or(missing)?;
    Ok((u64_at(end, 32), u64_at(end, 48)))
}

/// The offset of the end record: the last signature whose comment reaches exactly to the end of the file.
fn find_end(file: &[u8]) -> Option<usize> {
    let last = file.len().checked_sub(END_LEN)?;
    let first = last.saturating_sub(usize::from(u16::MAX));
    (first..=last).rev().find(|&at| {
        let end = &file[at..];
        end.starts_with(END_SIGNATURE) && usize::from(u16_at(end, 20)) == end.len() - END_LEN
    })
}

/// The 64-bit values of the ZIP64 extra field; none if there is no such field.
fn zip64_values(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut values = Vec::new();
    while extra.len() >= 4 {
        let (id, len) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let field = &extra[4..(4 + len).min(extra.len())];
        if id == 1 {
            values.extend(field.chunks_exact(8).map(|value| u64_at(value, 0)));
        }
        extra = &extra[4 + field.len()..];
    }
    values.into_iter()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u32_at(bytes, at) | u32_at(bytes, at + 4) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_a_large_archive_is_found() {
        let locator = |offset: u64| {
            let mut end = [LOCATOR64_SIGNATURE.as_slice(), &[0; 4], &offset.to_le_bytes(), &[0; 4]].concat();
            end.extend([END_SIGNATURE.as_slice(), &[0xff; 16], &[0; 2]].concat());
            end
        };
        let mut file = [END64_SIGNATURE.as_slice(), &[0; 28]].concat();
        file.extend([70_000u64, 0, 5 << 30].map(u64::to_le_bytes).concat());
        assert_eq!(directory(&[file.clone(), locator(0)].concat()), Ok((70_000, 5 << 30)));
        for offset in [1, 60, u64::MAX] {
            let missing = directory(&[file.clone(), locator(offset)].concat());
            assert_eq!(missing, Err(ZipError::Malformed("its ZIP64 directory is missing")));
        }
    }
}
