//! The names of image files.

use std::fs;
use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The maximum length of the prompt in a file name, in bytes.
const LONGEST_NAME: usize = 75;

/// The files of a run's images.
#[derive(Debug)]
pub(super) struct Output {
    directory: PathBuf,
    /// The prefix of the names.
    stem: String,
    naming: Naming,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Naming {
    /// Named by the user; an existing file may be replaced.
    Given,
    /// Named by the user, for several images.
    GivenSeveral,
    /// Named after the prompt; no file is replaced.
    Prompt,
}

impl Output {
    /// The images of `prompt` and `seeds` at `path`: a file ending in `.png`, or a directory, which is
    /// created if absent.
    ///
    /// # Errors
    /// If the path is not writable.
    pub(super) fn new(path: &Path, prompt: &str, seeds: &RangeInclusive<u64>) -> anyhow::Result<Self> {
        let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
        let output = match extension.as_deref() {
            Some("png") if !path.is_dir() => {
                let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
                Output {
                    directory: parent.unwrap_or(Path::new(".")).to_path_buf(),
                    stem: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
                    naming: if seeds.start() < seeds.end() { Naming::GivenSeveral } else { Naming::Given },
                }
            }
            Some("jpg" | "jpeg" | "webp" | "gif" | "bmp" | "tif" | "tiff") if !path.is_dir() => {
                bail!("{}: images are PNG; give a name that ends in .png, or a directory", path.display())
            }
            _ => Output { directory: path.to_path_buf(), stem: slug(prompt), naming: Naming::Prompt },
        };
        let directory = &output.directory;
        if directory.exists() && !directory.is_dir() {
            bail!("{} is a file; give a name that ends in .png, or a directory", directory.display());
        }
        fs::create_dir_all(directory)
            .with_context(|| format!("the directory {} can't be made", directory.display()))?;
        // Fails before the images are generated, not after.
        let probe = directory.join(format!(".mixbit-{}", std::process::id()));
        fs::write(&probe, []).with_context(|| format!("{} can't be written to", directory.display()))?;
        let _ = fs::remove_file(&probe);
        for path in [seeds.start(), seeds.end()].map(|&seed| output.image(seed)) {
            match fs::symlink_metadata(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("{} can't be written", path.display()));
                }
                _ => {}
            }
        }
        Ok(output)
    }

    /// The file of the image of `seed`.
    pub(super) fn image(&self, seed: u64) -> PathBuf {
        let path = |name: String| {
            let path = self.directory.join(name);
            path.strip_prefix(".").map(Path::to_path_buf).unwrap_or(path)
        };
        let stem = &self.stem;
        match self.naming {
            Naming::Given => path(format!("{stem}.png")),
            Naming::GivenSeveral => path(format!("{stem}.{seed}.png")),
            Naming::Prompt => {
                let first = path(format!("{stem}.{seed}.png"));
                let others = (2..).map(|index| path(format!("{stem}.{seed}-{index}.png")));
                std::iter::once(first).chain(others).find(|path| !path.exists()).unwrap_or_default()
            }
        }
    }
}

/// The file of a preview of `image` after `evaluation`.
pub(super) fn preview(image: &Path, evaluation: usize) -> PathBuf {
    let stem = image.file_stem().unwrap_or_default().to_string_lossy();
    image.with_file_name(format!("{stem}.step-{evaluation:03}.png"))
}

/// A prompt as the prefix of a file name: letters and digits of any script, separated by `_`.
fn slug(prompt: &str) -> String {
    let mut slug = String::new();
    for c in prompt.chars() {
        let c = if c.is_alphanumeric() { c } else { '_' };
        if slug.len() + c.len_utf8() > LONGEST_NAME {
            break;
        }
        if c != '_' || !(slug.is_empty() || slug.ends_with('_')) {
            slug.push(c);
        }
    }
    // Drops a truncated word, unless it is the only one.
    let is_cut = prompt.chars().filter(|c| c.is_alphanumeric()).count()
        > slug.chars().filter(|c| c.is_alphanumeric()).count();
    let slug = match slug.rsplit_once('_') {
        Some((words, _)) if is_cut => words,
        _ => slug.trim_end_matches('_'),
    };
    if slug.is_empty() { "image".to_string() } else { slug.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_prompt_and_are_safe() {
        assert_eq!(slug("a red circle, at the left!"), "a_red_circle_at_the_left");
        assert_eq!(slug("../../etc/passwd"), "etc_passwd");
        assert_eq!(slug("  ... "), "image");
        assert_eq!(slug("猫と犬"), "猫と犬");
        assert_eq!(slug(&"seven words ".repeat(10)), "seven_words_".repeat(6).trim_end_matches('_'));
        assert!(slug(&"é".repeat(200)).len() <= LONGEST_NAME);
    }

    #[test]
    fn files_are_as_asked_for() {
        let root = std::env::temp_dir().join(format!("mixbit-output-{}", std::process::id()));
        let one = Output::new(&root.join("a.png"), "x", &(7..=7)).unwrap();
        assert_eq!(one.image(7), root.join("a.png"));
        let several = Output::new(&root.join("a.png"), "x", &(7..=8)).unwrap();
        assert_eq!(several.image(8), root.join("a.8.png"));
        let named = Output::new(&root.join("new/er"), "a cat", &(3..=3)).unwrap();
        let first = named.image(3);
        assert_eq!(first, root.join("new/er/a_cat.3.png"));
        fs::write(&first, []).unwrap();
        assert_eq!(named.image(3), root.join("new/er/a_cat.3-2.png"));
        assert_eq!(preview(&first, 5), root.join("new/er/a_cat.3.step-005.png"));
        for wrong in [
            first.join("below"),
            first.with_extension("txt"),
            root.join("n".repeat(300) + ".png"),
            "a.jpg".into(),
        ] {
            fs::write(root.join("new/er/a_cat.3.txt"), []).unwrap();
            assert!(Output::new(&wrong, "x", &(1..=1)).is_err(), "{}", wrong.display());
        }
        fs::remove_dir_all(&root).unwrap();
    }
}
