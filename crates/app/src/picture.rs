//! Picture files with generation parameters: PNG is written, JPEG and WebP are read too.

mod exif;

use std::io::{self, BufReader, Read, Seek, Write};
use std::path::{Path, PathBuf};

use mixbit_diffusion::session::Image;
use mixbit_formats::{open_file, write_atomically};
use thiserror::Error;

/// The keyword of the text chunk, the web UI's.
const KEYWORD: &str = "parameters";

/// The longest compressed text that is read, in bytes.
const LONGEST_TEXT: usize = 1 << 24;

/// The bytes at the beginning of a file in which JPEG has its Exif data.
const HEAD: usize = 1 << 20;

/// The most bytes of a WebP file that are read.
const LARGEST: usize = 1 << 28;

/// A picture file without parameters that can be read.
#[derive(Debug, Error)]
pub enum PictureError {
    /// A file that can't be opened, or is not a regular file.
    #[error(transparent)]
    Open(#[from] mixbit_formats::Error),
    /// A file that can't be read.
    #[error("can't read {}: {cause}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        cause: io::Error,
    },
    /// A file that is neither PNG nor JPEG nor WebP, or malformed.
    #[error("{} is no PNG, JPEG or WebP file that can be read: {cause}", path.display())]
    NotPng {
        /// The file.
        path: PathBuf,
        /// The defect.
        cause: png::DecodingError,
    },
    /// Parameters that are damaged, or longer than a text may be.
    #[error("{}: its generation parameters are damaged, or too long: {cause}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The defect.
        cause: png::DecodingError,
    },
    /// A picture without parameters.
    #[error("{} has no generation parameters; {}", path.display(), other_texts(keywords))]
    Absent {
        /// The file.
        path: PathBuf,
        /// The keywords of its other texts.
        keywords: Vec<String>,
    },
}

fn other_texts(keywords: &[String]) -> String {
    match keywords {
        [] => "it has no other text either".to_string(),
        keywords => format!("its texts are {}", keywords.join(", ")),
    }
}

/// Writes an image whole or not at all, as [`encode`] does. A link at `path` is replaced.
///
/// # Errors
/// If the file can't be written, with its path.
pub fn write(path: &Path, image: &Image, parameters: &str) -> Result<(), mixbit_formats::Error> {
    write_atomically(path, |file| encode(file, image, parameters))
}

/// Writes an image as PNG; `parameters` becomes its text.
///
/// # Errors
/// The writer's.
pub fn encode(writer: impl Write, image: &Image, parameters: &str) -> io::Result<()> {
    let pixels = image.to_rgb8();
    let side = |extent: usize| u32::try_from(extent).map_err(io::Error::other);
    let mut encoder = png::Encoder::new(writer, side(image.width)?, side(image.height)?);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    // Every reader knows the older chunk, which holds Latin-1 only.
    match latin1(parameters).is_some_and(|bytes| utf8_in_latin1(&bytes).is_none()) {
        true => encoder.add_text_chunk(KEYWORD.to_string(), parameters.to_string())?,
        false => encoder.add_itxt_chunk(KEYWORD.to_string(), parameters.to_string())?,
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&pixels)?;
    Ok(writer.finish()?)
}

/// The generation parameters of a PNG file, or those in the user comment of a JPEG or WebP file, as text.
///
/// # Errors
/// [`PictureError`].
pub fn read_parameters(path: &Path) -> Result<String, PictureError> {
    parameters_in(path, open_file(path)?.0)
}

/// [`read_parameters`] of an open file, or of bytes in memory. `path` names it in messages.
///
/// # Errors
/// [`PictureError`].
pub fn parameters_in(path: &Path, mut file: impl Read + Seek) -> Result<String, PictureError> {
    let unreadable = |cause| PictureError::Read { path: path.to_path_buf(), cause };
    let mut head = Vec::new();
    (&mut file).take(HEAD as u64).read_to_end(&mut head).map_err(unreadable)?;
    match exif::user_comment(&head) {
        Ok(Some(text)) => return Ok(text),
        // The Exif data of WebP stands behind the pixels.
        Ok(None) if head.len() == HEAD => {
            file.take((LARGEST - HEAD) as u64).read_to_end(&mut head).map_err(unreadable)?;
            let text = exif::user_comment(&head).ok().flatten();
            return text.ok_or_else(|| absent(path, Vec::new()));
        }
        Ok(None) => return Err(absent(path, Vec::new())),
        Err(exif::NotAPicture) => file.rewind().map_err(unreadable)?,
    }
    png_parameters(path, file)
}

fn absent(path: &Path, keywords: Vec<String>) -> PictureError {
    PictureError::Absent { path: path.to_path_buf(), keywords }
}

/// The text in Latin-1, if it has no other characters.
fn latin1(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect()
}

/// The text that bytes of Latin-1 are in UTF-8, if they are such and not the same in both. Some tools write
/// UTF-8 where the PNG standard has Latin-1.
fn utf8_in_latin1(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().filter(|_| !bytes.is_ascii()).map(str::to_string)
}

fn png_parameters(path: &Path, file: impl Read + Seek) -> Result<String, PictureError> {
    let path_buf = || path.to_path_buf();
    let mut reader = png::Decoder::new(BufReader::new(file))
        .read_info()
        .map_err(|cause| PictureError::NotPng { path: path_buf(), cause })?;
    // Text may also follow the pixels; a file that is cut there still has what came before.
    let _ = reader.finish();
    let info = reader.info();
    let (plain, utf8) = (&info.uncompressed_latin1_text, &info.utf8_text);
    let compressed = &info.compressed_latin1_text;
    let damaged = |cause| PictureError::Damaged { path: path_buf(), cause };
    if let Some(chunk) = plain.iter().find(|chunk| chunk.keyword == KEYWORD) {
        let utf8 = latin1(&chunk.text).and_then(|bytes| utf8_in_latin1(&bytes));
        return Ok(utf8.unwrap_or_else(|| chunk.text.clone()));
    }
    if let Some(mut chunk) = utf8.iter().find(|chunk| chunk.keyword == KEYWORD).cloned() {
        chunk.decompress_text_with_limit(LONGEST_TEXT).map_err(damaged)?;
        return chunk.get_text().map_err(damaged);
    }
    if let Some(mut chunk) = compressed.iter().find(|chunk| chunk.keyword == KEYWORD).cloned() {
        chunk.decompress_text_with_limit(LONGEST_TEXT).map_err(damaged)?;
        return chunk.get_text().map_err(damaged);
    }
    let keywords = plain.iter().map(|chunk| &*chunk.keyword).chain(utf8.iter().map(|chunk| &*chunk.keyword));
    let keywords = keywords.chain(compressed.iter().map(|chunk| &*chunk.keyword)).map(str::to_string);
    Err(absent(path, keywords.collect()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn parameters_of_any_script_read_back() {
        let path = std::env::temp_dir().join(format!("mixbit-picture-{}.png", std::process::id()));
        let image = Image { width: 2, height: 1, planes: vec![0.0; 6] };
        for text in ["a cat\nSteps: 1", "café", "cafÃ©", "猫 and 😀\nSteps: 1, Seed: 2", ""] {
            write(&path, &image, text).unwrap();
            assert_eq!(read_parameters(&path).unwrap(), text);
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn utf_8_where_latin_1_should_be_is_read() {
        let path = std::env::temp_dir().join(format!("mixbit-utf8-{}.png", std::process::id()));
        for (bytes, text) in [("猫".as_bytes(), "猫"), (&b"caf\xe9"[..], "café")] {
            let mut encoder = png::Encoder::new(File::create(&path).unwrap(), 1, 1);
            let as_latin1 = bytes.iter().map(|&byte| char::from(byte)).collect();
            encoder.add_text_chunk(KEYWORD.to_string(), as_latin1).unwrap();
            encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
            assert_eq!(read_parameters(&path).unwrap(), text);
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn compressed_parameters_are_read_unless_they_are_huge() {
        let path = std::env::temp_dir().join(format!("mixbit-compressed-{}.png", std::process::id()));
        for (len, is_read) in [(1000, true), (LONGEST_TEXT + 1, false)] {
            let mut encoder = png::Encoder::new(File::create(&path).unwrap(), 1, 1);
            encoder.add_ztxt_chunk(KEYWORD.to_string(), "a".repeat(len)).unwrap();
            encoder.write_header().unwrap().write_image_data(&[0]).unwrap();
            assert_eq!(read_parameters(&path).is_ok(), is_read, "{len}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
