//! The user comment in the Exif data of JPEG and WebP files, where web UIs keep generation parameters.
//!
//! Follows Exif 3.0 (CIPA DC-008), sections 4.5 and 4.6, the JPEG standard's marker segments (ITU-T T.81,
//! annex B) and the WebP container (RFC 9649). Every offset of the file is checked; nothing is allocated by
//! what a file says.

/// The tag of the pointer to the directory of Exif's own tags.
const EXIF_DIRECTORY: u16 = 0x8769;

/// The tag of the user comment.
const USER_COMMENT: u16 = 0x9286;

/// The bytes before the Exif data in a JPEG segment, and in the WebP files of some tools.
const PREFIX: &[u8] = b"Exif\0\0";

/// The user comment of a JPEG or WebP file; `None` if it has none. `Err` for other files.
pub(super) fn user_comment(file: &[u8]) -> Result<Option<String>, NotAPicture> {
    let exif = if file.starts_with(b"\xff\xd8") {
        jpeg_exif(file)
    } else if file.starts_with(b"RIFF") && file.get(8..12) == Some(b"WEBP") {
        webp_exif(file)
    } else {
        return Err(NotAPicture);
    };
    Ok(exif.and_then(|exif| comment(exif.strip_prefix(PREFIX).unwrap_or(exif))))
}

/// A file that is neither JPEG nor WebP.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotAPicture;

/// The Exif data of a JPEG file: the segment APP1 that begins with the prefix.
fn jpeg_exif(file: &[u8]) -> Option<&[u8]> {
    let mut rest = file.get(2..)?;
    loop {
        // Fill bytes may stand before a marker.
        let at = rest.iter().position(|&byte| byte != 0xff)?;
        let (marker, after) = rest[at..].split_first()?;
        if at == 0 {
            return None;
        }
        match marker {
            // Without a length.
            0x01 | 0xd0..=0xd7 => rest = after,
            // The picture itself, and the end.
            0xda | 0xd9 => return None,
            _ => {
                let len = usize::from(u16::from_be_bytes(*after.first_chunk()?));
                let segment = after.get(2..len)?;
                if *marker == 0xe1 && segment.starts_with(PREFIX) {
                    return Some(segment);
                }
                rest = after.get(len..)?;
            }
        }
    }
}

/// The Exif data of a WebP file: the chunk `EXIF`.
fn webp_exif(file: &[u8]) -> Option<&[u8]> {
    let mut rest = file.get(12..)?;
    loop {
        let len = usize::try_from(u32::from_le_bytes(*rest.get(4..)?.first_chunk()?)).ok()?;
        let end = len.checked_add(8)?;
        if rest.starts_with(b"EXIF") {
            return rest.get(8..end);
        }
        rest = rest.get(end.checked_add(len % 2)?..)?;
    }
}

/// The user comment in Exif data, which is a TIFF file of directories.
fn comment(exif: &[u8]) -> Option<String> {
    let tiff = Tiff { bytes: exif, is_big: exif.starts_with(b"MM") };
    let directory = tiff.entry(tiff.u32(4)?, EXIF_DIRECTORY)?;
    let entry = tiff.entry(tiff.u32(directory.checked_add(8)?)?, USER_COMMENT)?;
    let len = tiff.u32(entry.checked_add(4)?)?;
    let start = if len <= 4 { entry.checked_add(8)? } else { tiff.u32(entry.checked_add(8)?)? };
    let value = exif.get(start..start.checked_add(len)?)?;
    let (code, text) = value.split_at_checked(8)?;
    match code {
        b"UNICODE\0" => Some(utf16(text)),
        // JIS is not read.
        b"JIS\0\0\0\0\0" => None,
        _ => Some(String::from_utf8_lossy(text).trim_end_matches('\0').to_string()),
    }
}

/// Text in 16-bit units. The standard has them in the order of the file, and the tools mostly in big endian:
/// the order that gives more characters of the first 256 is right.
fn utf16(text: &[u8]) -> String {
    let (pairs, _) = text.as_chunks::<2>();
    let big: Vec<u16> = pairs.iter().map(|&pair| u16::from_be_bytes(pair)).collect();
    let little: Vec<u16> = pairs.iter().map(|&pair| u16::from_le_bytes(pair)).collect();
    let narrow = |units: &[u16]| units.iter().filter(|unit| **unit < 256).count();
    let units = if narrow(&little) > narrow(&big) { little } else { big };
    String::from_utf16_lossy(&units).trim_end_matches('\0').to_string()
}

/// A TIFF file.
struct Tiff<'a> {
    bytes: &'a [u8],
    is_big: bool,
}

impl Tiff<'_> {
    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        Some(if self.is_big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32(&self, at: usize) -> Option<usize> {
        let bytes = *self.bytes.get(at..)?.first_chunk()?;
        let value = if self.is_big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) };
        usize::try_from(value).ok()
    }

    /// The place of a tag's entry in the directory at `at`: tag, type, count, value or its offset.
    fn entry(&self, at: usize, tag: u16) -> Option<usize> {
        let count = usize::from(self.u16(at)?);
        let places = (0..count).map_while(|index| at.checked_add(2 + 12 * index));
        places.take_while(|&place| place < self.bytes.len()).find(|&place| self.u16(place) == Some(tag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exif data with one comment, in either byte order.
    fn exif(is_big: bool, code: &[u8; 8], text: &[u8]) -> Vec<u8> {
        let u16 = |value: u16| if is_big { value.to_be_bytes() } else { value.to_le_bytes() };
        let u32 = |value: u32| if is_big { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut out = if is_big { b"MM".to_vec() } else { b"II".to_vec() };
        out.extend(u16(42));
        out.extend(u32(8));
        for (tag, kind, count, value) in
            [(EXIF_DIRECTORY, 4, 1, 26), (USER_COMMENT, 7, 8 + text.len() as u32, 44)]
        {
            out.extend(u16(1));
            out.extend([u16(tag), u16(kind)].concat());
            out.extend([u32(count), u32(value), u32(0)].concat());
        }
        out.extend(code);
        out.extend(text);
        out
    }

    fn jpeg(exif: &[u8]) -> Vec<u8> {
        let segment = [PREFIX, exif].concat();
        let mut out = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xff\xe1".to_vec();
        out.extend((segment.len() as u16 + 2).to_be_bytes());
        out.extend(segment);
        out.extend(b"\xff\xda\x00\x02\xff\xd9");
        out
    }

    fn webp(exif: &[u8]) -> Vec<u8> {
        let mut out = b"RIFF\0\0\0\0WEBPVP8 \x03\0\0\0abc\0EXIF".to_vec();
        out.extend((exif.len() as u32).to_le_bytes());
        out.extend(exif);
        out
    }

    #[test]
    fn comments_of_every_form_are_read() {
        let text = "猫, a cat\nSteps: 20";
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        for is_big in [true, false] {
            for (code, bytes) in [
                (b"UNICODE\0", &big),
                (b"UNICODE\0", &little),
                (b"ASCII\0\0\0", &text.as_bytes().to_vec()),
                (&[0; 8], &text.as_bytes().to_vec()),
            ] {
                let exif = exif(is_big, code, bytes);
                assert_eq!(user_comment(&jpeg(&exif)), Ok(Some(text.to_string())));
                assert_eq!(user_comment(&webp(&exif)), Ok(Some(text.to_string())));
                assert_eq!(user_comment(&webp(&[PREFIX, &exif].concat())), Ok(Some(text.to_string())));
            }
        }
        assert_eq!(user_comment(b"\x89PNG"), Err(NotAPicture));
    }

    #[test]
    fn cut_and_changed_files_give_no_panic() {
        let exif = exif(true, b"ASCII\0\0\0", b"text");
        for file in [jpeg(&exif), webp(&exif)] {
            for at in 0..file.len() {
                let _ = user_comment(&file[..at]);
                for byte in [0, 1, 0x7f, 0xff] {
                    let mut changed = file.clone();
                    changed[at] = byte;
                    let _ = user_comment(&changed);
                }
            }
        }
    }
}
