//! The files of images.

use std::fs;
use std::io::{ErrorKind, IsTerminal, Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use mixbit_app::picture;
use mixbit_diffusion::session::Image;
use mixbit_formats::{Claim, make_directory, write_atomically, write_where_asked};

/// The maximum length of the prompt in a file name, in bytes.
const LONGEST_NAME: usize = 75;

/// The extensions of image formats other than PNG.
const OTHER_FORMATS: [&str; 7] = ["jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"];

/// The images of a run: each prompt with each seed.
pub(super) struct Images<'a> {
    pub(super) prompts: &'a [String],
    pub(super) first_seed: u64,
    pub(super) last_seed: u64,
}

impl Images<'_> {
    fn are_several(&self) -> bool {
        self.prompts.len() > 1 || self.first_seed < self.last_seed
    }
}

/// The files of a run's images.
#[derive(Debug)]
pub(super) struct Output {
    directory: PathBuf,
    naming: Naming,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Naming {
    /// Standard output.
    Standard,
    /// A pipe, a device, or a file named by the user, which may be replaced.
    Given(PathBuf),
    /// Named by the user, for several images: the names' start and end. Files may be replaced.
    GivenSeveral { stem: String, extension: String, prompts: usize },
    /// Named after the prompt; no file is replaced.
    Prompt,
}

/// The place of one image, reserved for this run.
#[derive(Debug)]
pub(super) enum Place<'o> {
    /// Standard output.
    Standard,
    /// A path that the user named.
    Given(PathBuf),
    /// A name that mixbit made of the user's.
    Numbered(PathBuf),
    /// A name that mixbit chose, claimed while the image is drawn.
    New { output: &'o Output, name: String, claim: Claim },
}

impl Output {
    /// The places of images at `path`: `-` for standard output, a pipe, a file ending in `.png`, or a
    /// directory, which is created if absent.
    ///
    /// # Errors
    /// If the path is not writable, or has place for one image only.
    pub(super) fn new(path: &Path, images: &Images<'_>) -> anyhow::Result<Self> {
        let is_standard = path == Path::new("-") || path == Path::new("/dev/stdout");
        let is_stream = fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir());
        if (is_standard || is_stream) && images.are_several() {
            bail!("{} takes one image: give a directory for several", path.display());
        }
        if is_standard {
            if stdout().is_terminal() {
                bail!("standard output is a terminal: send the image to a file or a pipe");
            }
            return Ok(Output { directory: PathBuf::new(), naming: Naming::Standard });
        }
        if is_stream {
            return Ok(Output { directory: PathBuf::new(), naming: Naming::Given(path.to_path_buf()) });
        }
        let output = match is_png(path) {
            true if images.are_several() => Output {
                directory: directory_of(path),
                naming: Naming::GivenSeveral {
                    stem: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
                    extension: path.extension().unwrap_or_default().to_string_lossy().into_owned(),
                    prompts: images.prompts.len(),
                },
            },
            true => Output { directory: directory_of(path), naming: Naming::Given(path.to_path_buf()) },
            false => {
                check_format(path)?;
                Output { directory: path.to_path_buf(), naming: Naming::Prompt }
            }
        };
        output.prepare(images)?;
        Ok(output)
    }

    /// Makes the directory, and fails before the images are generated rather than after.
    fn prepare(&self, images: &Images<'_>) -> anyhow::Result<()> {
        let directory = &self.directory;
        if directory.exists() && !directory.is_dir() {
            bail!("{} is a file; give a name that ends in .png, or a directory", directory.display());
        }
        make_directory(directory)?;
        let unwritable = || format!("{} can't be written to", directory.display());
        drop(Claim::try_new(&directory.join("mixbit")).with_context(unwritable)?);
        for (index, prompt) in images.prompts.iter().enumerate() {
            for seed in [images.first_seed, images.last_seed] {
                let path = self.name(index, prompt, seed);
                match fs::symlink_metadata(&path) {
                    Err(error) if error.kind() != ErrorKind::NotFound => {
                        return Err(error).with_context(|| format!("{} can't be written", path.display()));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Reserves the place of the image of a prompt, by its position among all, and a seed.
    ///
    /// # Errors
    /// If the directory is not writable any more.
    pub(super) fn place(&self, index: usize, prompt: &str, seed: u64) -> anyhow::Result<Place<'_>> {
        match &self.naming {
            Naming::Standard => Ok(Place::Standard),
            Naming::Given(path) => Ok(Place::Given(path.clone())),
            Naming::GivenSeveral { .. } => Ok(Place::Numbered(self.name(index, prompt, seed))),
            Naming::Prompt => {
                let name = format!("{}.{seed}", slug(prompt));
                let claim = self.claim(&name)?;
                Ok(Place::New { output: self, name, claim })
            }
        }
    }

    /// The file of an image, if no other has its name.
    fn name(&self, index: usize, prompt: &str, seed: u64) -> PathBuf {
        match &self.naming {
            Naming::Standard => PathBuf::from("-"),
            Naming::Given(path) => path.clone(),
            Naming::GivenSeveral { stem, extension, prompts: 1 } => {
                self.path(&format!("{stem}.{seed}.{extension}"))
            }
            Naming::GivenSeveral { stem, extension, .. } => {
                self.path(&format!("{stem}.{}.{seed}.{extension}", index + 1))
            }
            Naming::Prompt => self.path(&format!("{}.{seed}.png", slug(prompt))),
        }
    }

    /// Claims the first name that no file has and no other run has claimed.
    fn claim(&self, name: &str) -> anyhow::Result<Claim> {
        let first = self.path(&format!("{name}.png"));
        let others = (2..).map(|index: u64| self.path(&format!("{name}-{index}.png")));
        for path in std::iter::once(first).chain(others) {
            if let Some(claim) = Claim::try_new(&path)?
                && fs::symlink_metadata(&path).is_err()
            {
                return Ok(claim);
            }
        }
        bail!("every name that begins with {name} is taken")
    }

    fn path(&self, name: &str) -> PathBuf {
        let path = self.directory.join(name);
        path.strip_prefix(".").map(Path::to_path_buf).unwrap_or(path)
    }
}

impl Place<'_> {
    /// The file; `None` for standard output.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Place::Standard => None,
            Place::Given(path) | Place::Numbered(path) => Some(path),
            Place::New { claim, .. } => Some(claim.path()),
        }
    }

    /// Writes the image, and returns its file; `None` for standard output.
    ///
    /// # Errors
    /// If it can't be written.
    pub(super) fn write(self, image: &Image, parameters: &str) -> anyhow::Result<Option<PathBuf>> {
        match self {
            Place::Standard => {
                let mut png = Vec::new();
                picture::encode(&mut png, image, parameters)?;
                let mut out = stdout().lock();
                out.write_all(&png)
                    .and_then(|()| out.flush())
                    .context("standard output can't be written to")?;
                Ok(None)
            }
            Place::Given(path) => {
                write_where_asked(&path, |file| picture::encode(file, image, parameters))?;
                Ok(Some(path))
            }
            Place::Numbered(path) => {
                write_atomically(&path, |file| picture::encode(file, image, parameters))?;
                Ok(Some(path))
            }
            Place::New { output, name, mut claim } => loop {
                if claim.write_new(|file| picture::encode(file, image, parameters))?.is_some() {
                    return Ok(Some(claim.path().to_path_buf()));
                }
                // Another program has made a file of that name meanwhile.
                claim = output.claim(&name)?;
            },
        }
    }
}

/// Refuses an image file that would not be PNG.
///
/// # Errors
/// If the path ends as one of another format does.
pub(super) fn check_format(path: &Path) -> anyhow::Result<()> {
    let extension = extension(path);
    if OTHER_FORMATS.iter().any(|other| extension == *other) && !path.is_dir() {
        bail!("{}: images are PNG; give a name that ends in .png, or a directory", path.display());
    }
    Ok(())
}

pub(super) fn is_png(path: &Path) -> bool {
    extension(path) == "png" && !path.is_dir()
}

fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase()).unwrap_or_default()
}

/// The directory that a path is in.
pub(super) fn directory_of(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_path_buf()
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
        let scratch = mixbit_testkit::Scratch::new();
        let root = scratch.path();
        let prompts = ["a cat".to_string(), "a dog".to_string()];
        let (one, two) = (&prompts[..1], &prompts[..]);
        let images = |prompts, first_seed, last_seed| Images { prompts, first_seed, last_seed };
        let output = |path: &Path, images: &Images<'_>| Output::new(path, images).unwrap();
        let path = |output: &Output, index, seed| {
            output.place(index, &prompts[index], seed).unwrap().path().map(Path::to_path_buf).unwrap()
        };
        assert_eq!(path(&output(&root.join("a.PNG"), &images(one, 7, 7)), 0, 7), root.join("a.PNG"));
        assert_eq!(path(&output(&root.join("a.PNG"), &images(one, 7, 8)), 0, 8), root.join("a.8.PNG"));
        assert_eq!(path(&output(&root.join("a.png"), &images(two, 7, 7)), 1, 7), root.join("a.2.7.png"));
        let named = output(&root.join("new/er"), &images(one, 3, 3));
        let first = named.place(0, "a cat", 3).unwrap();
        assert_eq!(first.path(), Some(&*root.join("new/er/a_cat.3.png")));
        assert_eq!(path(&named, 0, 3), root.join("new/er/a_cat.3-2.png"));
        let image = Image { width: 1, height: 1, planes: vec![0.0; 3] };
        let written = first.write(&image, "").unwrap().unwrap();
        assert_eq!(path(&named, 0, 3), root.join("new/er/a_cat.3-2.png"));
        assert_eq!(preview(&written, 5), root.join("new/er/a_cat.3.step-005.png"));
        for wrong in [
            written.join("below"),
            scratch.file("new/er/a_cat.3.txt", b""),
            root.join("n".repeat(300) + ".png"),
            "a.jpg".into(),
        ] {
            assert!(Output::new(&wrong, &images(one, 1, 1)).is_err(), "{}", wrong.display());
        }
        assert!(Output::new(Path::new("-"), &images(one, 1, 2)).is_err());
    }

    #[test]
    fn a_name_that_another_program_takes_is_not_lost() {
        let scratch = mixbit_testkit::Scratch::new();
        let prompts = ["a cat".to_string()];
        let images = Images { prompts: &prompts, first_seed: 3, last_seed: 3 };
        let output = Output::new(scratch.path(), &images).unwrap();
        let place = output.place(0, "a cat", 3).unwrap();
        scratch.file("a_cat.3.png", b"of another program");
        let image = Image { width: 1, height: 1, planes: vec![0.0; 3] };
        let written = place.write(&image, "").unwrap().unwrap();
        assert_eq!(written, scratch.path().join("a_cat.3-2.png"));
        assert_eq!(fs::read(scratch.path().join("a_cat.3.png")).unwrap(), b"of another program");
        drop(output);
        assert_eq!(scratch.names(), ["a_cat.3-2.png", "a_cat.3.png"]);
    }
}
