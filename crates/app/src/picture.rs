//! PNG files with generation parameters.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::Path;

use anyhow::Context;
use mixbit_diffusion::pipeline::Image;
use mixbit_formats::write_atomically;

/// The keyword of the text chunk, the web UI's.
const KEYWORD: &str = "parameters";

/// The longest compressed text that is read, in bytes.
const LONGEST_TEXT: usize = 1 << 24;

/// Writes an image whole or not at all; `parameters` becomes its text.
///
/// # Errors
/// If the file can't be written, with its path.
pub fn write(path: &Path, image: &Image, parameters: &str) -> anyhow::Result<()> {
    let pixels = image.to_rgb8();
    let side = |extent: usize| u32::try_from(extent).map_err(io::Error::other);
    write_atomically(path, |file| {
        let mut encoder = png::Encoder::new(file, side(image.width)?, side(image.height)?);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        // The older chunk is what every reader knows, but it holds Latin-1 only.
        let is_latin1 = parameters.chars().all(|c| u32::from(c) < 256);
        match is_latin1 {
            true => encoder.add_text_chunk(KEYWORD.to_string(), parameters.to_string())?,
            false => encoder.add_itxt_chunk(KEYWORD.to_string(), parameters.to_string())?,
        }
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        Ok(writer.finish()?)
    })?;
    Ok(())
}

/// The generation parameters of a PNG file, as text.
///
/// # Errors
/// If the file can't be read, is no PNG, or holds no parameters, with its path.
pub fn read_parameters(path: &Path) -> anyhow::Result<String> {
    let shown = path.display();
    let file = File::open(path).with_context(|| format!("{shown} can't be opened"))?;
    let mut reader = png::Decoder::new(BufReader::new(file))
        .read_info()
        .with_context(|| format!("{shown} is not a PNG file that can be read"))?;
    // Text may also follow the pixels; a file that is cut there still has what came before.
    let _ = reader.finish();
    let info = reader.info();
    let (plain, utf8) = (&info.uncompressed_latin1_text, &info.utf8_text);
    let compressed = &info.compressed_latin1_text;
    let damaged = || format!("{shown}: its generation parameters are damaged, or too long");
    if let Some(chunk) = plain.iter().find(|chunk| chunk.keyword == KEYWORD) {
        return Ok(chunk.text.clone());
    }
    if let Some(mut chunk) = utf8.iter().find(|chunk| chunk.keyword == KEYWORD).cloned() {
        chunk.decompress_text_with_limit(LONGEST_TEXT).with_context(damaged)?;
        return chunk.get_text().with_context(damaged);
    }
    if let Some(mut chunk) = compressed.iter().find(|chunk| chunk.keyword == KEYWORD).cloned() {
        chunk.decompress_text_with_limit(LONGEST_TEXT).with_context(damaged)?;
        return chunk.get_text().with_context(damaged);
    }
    let keywords = plain.iter().map(|chunk| &*chunk.keyword).chain(utf8.iter().map(|chunk| &*chunk.keyword));
    let others: Vec<&str> = keywords.chain(compressed.iter().map(|chunk| &*chunk.keyword)).collect();
    match others.is_empty() {
        true => anyhow::bail!("{shown} has no generation parameters, nor any other text"),
        false => anyhow::bail!("{shown} has no generation parameters; its texts are {}", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_any_script_read_back() {
        let path = std::env::temp_dir().join(format!("mixbit-picture-{}.png", std::process::id()));
        let image = Image { width: 2, height: 1, planes: vec![0.0; 6] };
        for text in ["a cat\nSteps: 1", "café", "猫 and 😀\nSteps: 1, Seed: 2", ""] {
            write(&path, &image, text).unwrap();
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
