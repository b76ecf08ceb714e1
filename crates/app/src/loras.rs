//! LoRAs by name: in a directory, in a prompt, and in a picture's parameters.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use mixbit_diffusion::adapter::Strength;
use mixbit_formats::{Sha256, TensorFile, TensorFormat, hex};
use mixbit_packages::source::{AppliedLora, Lora};
use thiserror::Error;

use crate::parameters::Parameters;

/// The ends of names of LoRA files.
const EXTENSIONS: [&str; 5] = ["safetensors", "sft", "pt", "ckpt", "bin"];
/// How deep the folders of a directory are searched.
const DEPTH: usize = 4;
/// The most names of a message.
const LISTED: usize = 6;
/// Characters of a hash in a picture's parameters.
const HASH: usize = 12;
/// The key of the hash in the metadata that kohya's trainer writes.
const HASH_KEY: &str = "sshs_model_hash";

/// A LoRA that a name does not lead to.
#[derive(Debug, Error)]
pub enum LoraError {
    /// A directory that can't be read.
    #[error("can't read {}: {cause}", path.display())]
    Read {
        /// The directory or file.
        path: PathBuf,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// No file of that name.
    #[error("{} has no LoRA `{name}`{}", path.display(), listed(names))]
    NotFound {
        /// The directory.
        path: PathBuf,
        /// The name.
        name: String,
        /// The names that there are.
        names: Vec<String>,
    },
    /// Several files of that name.
    #[error("{} has several LoRAs `{name}`: {} and {}", path.display(), files[0].display(),
        files[1].display())]
    Several {
        /// The directory.
        path: PathBuf,
        /// The name.
        name: String,
        /// Two of the files.
        files: [PathBuf; 2],
    },
    /// A tag of a prompt that can't be read.
    #[error("`{tag}` in the prompt: {what}")]
    Tag {
        /// The tag.
        tag: String,
        /// The defect.
        what: &'static str,
    },
}

/// The names of a directory, for a message.
fn listed(names: &[String]) -> String {
    let shown: Vec<&str> = names.iter().take(LISTED).map(String::as_str).collect();
    match (names.len(), names.len().saturating_sub(LISTED)) {
        (0, _) => String::new(),
        (_, 0) => format!(": it has {}", shown.join(", ")),
        (_, more) => format!(": it has {} and {more} more", shown.join(", ")),
    }
}

/// The file of a name, without its extension, in a directory or a folder of it.
///
/// # Errors
/// [`LoraError`].
pub fn find(directory: &Path, name: &str) -> Result<PathBuf, LoraError> {
    let mut files = Vec::new();
    collect(directory, DEPTH, &mut files)
        .map_err(|cause| LoraError::Read { path: directory.to_path_buf(), cause })?;
    files.sort();
    let stem = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let equal = files.iter().filter(|path| stem(path) == name);
    let mut found: Vec<&PathBuf> = equal.collect();
    if found.is_empty() {
        found = files.iter().filter(|path| stem(path).eq_ignore_ascii_case(name)).collect();
    }
    match found[..] {
        [path] => Ok(path.clone()),
        [] => Err(LoraError::NotFound {
            path: directory.to_path_buf(),
            name: name.to_string(),
            names: files.iter().map(|path| stem(path)).collect(),
        }),
        [one, other, ..] => Err(LoraError::Several {
            path: directory.to_path_buf(),
            name: name.to_string(),
            files: [one.clone(), other.clone()],
        }),
    }
}

fn collect(directory: &Path, depth: usize, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            if depth > 0 {
                // A folder that can't be read has nothing to offer.
                let _ = collect(&path, depth - 1, files);
            }
        } else if path
            .extension()
            .is_some_and(|end| EXTENSIONS.iter().any(|known| end.eq_ignore_ascii_case(known)))
        {
            files.push(path);
        }
    }
    Ok(())
}

/// A LoRA that a prompt names.
#[derive(Clone, Debug, PartialEq)]
pub struct Tag {
    /// The name.
    pub name: String,
    /// The factor of its changes.
    pub strength: Strength,
}

/// A prompt without its tags of LoRAs, and the tags.
///
/// A tag is that of AUTOMATIC1111's web UI: `<lora:NAME>`, `<lora:NAME:WEIGHT>`,
/// `<lora:NAME:TEXT_ENCODERS:UNET>`, and `te=` and `unet=` before numbers.
///
/// # Errors
/// [`LoraError::Tag`].
pub fn tags(prompt: &str) -> Result<(String, Vec<Tag>), LoraError> {
    let (mut text, mut tags, mut rest) = (String::new(), Vec::new(), prompt);
    while let Some(start) = rest.find('<') {
        let inside = rest[start + 1..].split_once('>').map(|(inside, _)| inside);
        let body = inside.and_then(|inside| {
            let (kind, body) = inside.split_once(':')?;
            ["lora", "lyco"].iter().any(|known| kind.eq_ignore_ascii_case(known)).then_some((inside, body))
        });
        match body {
            Some((inside, body)) => {
                text.push_str(&rest[..start]);
                tags.push(tag(inside, body)?);
                rest = &rest[start + 1 + inside.len() + 1..];
            }
            None => {
                text.push_str(&rest[..=start]);
                rest = &rest[start + 1..];
            }
        }
    }
    text.push_str(rest);
    if !tags.is_empty() {
        text = text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    }
    Ok((text, tags))
}

fn tag(inside: &str, body: &str) -> Result<Tag, LoraError> {
    let wrong = |what| LoraError::Tag { tag: format!("<{inside}>"), what };
    let number = |text: &str| {
        let number = text.trim().parse().ok().filter(|number: &f32| number.is_finite());
        number.ok_or_else(|| wrong("a weight must be a number"))
    };
    let mut fields = body.split(':');
    let name = fields.next().unwrap_or_default().trim();
    if name.is_empty() {
        return Err(wrong("the name is missing"));
    }
    let (mut plain, mut text_encoders, mut unet) = (Vec::new(), None, None);
    for field in fields {
        match field.split_once('=') {
            Some(("te", value)) => text_encoders = Some(number(value)?),
            Some(("unet", value)) => unet = Some(number(value)?),
            Some(_) => return Err(wrong("only te= and unet= are known")),
            None => plain.push(number(field)?),
        }
    }
    if plain.len() > 2 {
        return Err(wrong("it has more than two weights"));
    }
    let text_encoders = text_encoders.or(plain.first().copied()).unwrap_or(1.0);
    let unet = unet.or(plain.get(1).copied()).unwrap_or(text_encoders);
    Ok(Tag { name: name.to_string(), strength: Strength { unet, text_encoders } })
}

impl Tag {
    /// The LoRA of the tag, in a directory.
    ///
    /// # Errors
    /// [`LoraError`].
    pub fn find(&self, directory: &Path) -> Result<Lora, LoraError> {
        Ok(Lora { path: find(directory, &self.name)?, strength: self.strength })
    }
}

/// Writes the LoRAs of a picture into its parameters, with the web UI's hashes.
///
/// # Errors
/// [`LoraError::Read`].
pub fn record(loras: &[AppliedLora], parameters: &mut Parameters) -> Result<(), LoraError> {
    if loras.is_empty() {
        return Ok(());
    }
    let joined = |of: &dyn Fn(&AppliedLora) -> Result<String, LoraError>| {
        let each = loras.iter().map(|lora| Ok(format!("{}: {}", lora.name, of(lora)?)));
        each.collect::<Result<Vec<_>, LoraError>>().map(|each| each.join(", "))
    };
    parameters.set("Lora hashes", joined(&|lora| hash(&lora.path))?);
    parameters.set("Lora weights", joined(&|lora| Ok(weights(lora.strength)))?);
    Ok(())
}

/// The factors for people.
pub fn weights(strength: Strength) -> String {
    match strength {
        Strength { unet, text_encoders } if unet == text_encoders => unet.to_string(),
        Strength { unet, text_encoders } => format!("{unet} (text encoders {text_encoders})"),
    }
}

/// The web UI's short hash of a LoRA: that of its metadata, or else SHA-256 of the file, of safetensors
/// without the header.
fn hash(path: &Path) -> Result<String, LoraError> {
    let unreadable = |cause| LoraError::Read { path: path.to_path_buf(), cause };
    let tensors = TensorFile::open(path).ok();
    if let Some(hash) = tensors.as_ref().and_then(|tensors| tensors.metadata().get(HASH_KEY))
        && hash.len() >= HASH
        && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        return Ok(hash[..HASH].to_string());
    }
    let mut file = File::open(path).map_err(unreadable)?;
    if tensors.is_some_and(|tensors| tensors.format() == TensorFormat::SafeTensors) {
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(unreadable)?;
        file.seek(SeekFrom::Start(u64::from_le_bytes(length).saturating_add(8))).map_err(unreadable)?;
    }
    let (mut hash, mut block) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut block).map_err(unreadable)? {
            0 => break,
            count => hash.update(&block[..count]),
        }
    }
    Ok(hex(&hash.finish())[..HASH].to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_taken_out_of_prompts() {
        for (prompt, text, expected) in [
            ("a cat", "a cat", vec![]),
            ("a cat <lora:x>", "a cat", vec![("x", 1.0, 1.0)]),
            ("a <lora:x:0.8> cat", "a cat", vec![("x", 0.8, 0.8)]),
            ("<lora:x:0.8:0.5>a", "a", vec![("x", 0.5, 0.8)]),
            ("<LYCO:x y:te=1:unet=-0.5> a <lora:z:2>", "a", vec![("x y", -0.5, 1.0), ("z", 2.0, 2.0)]),
            ("a <3 and <b:c> <lora", "a <3 and <b:c> <lora", vec![]),
        ] {
            let (found, tags) = tags(prompt).unwrap();
            assert_eq!(found, text);
            let tags: Vec<(&str, f32, f32)> = tags
                .iter()
                .map(|tag| (tag.name.as_str(), tag.strength.unet, tag.strength.text_encoders))
                .collect();
            assert_eq!(tags, expected, "{prompt}");
        }
        for prompt in ["<lora:>", "<lora:x:y>", "<lora:x:1:2:3>", "<lora:x:dyn=4>", "<lora:x:inf>"] {
            assert!(matches!(tags(prompt), Err(LoraError::Tag { .. })), "{prompt}");
        }
    }

    #[test]
    fn names_are_found_in_a_directory_and_its_folders() {
        let scratch = mixbit_testkit::Scratch::new();
        let root = scratch.path();
        fs::create_dir(root.join("styles")).unwrap();
        for name in ["one.safetensors", "styles/Two.pt", "styles/one.txt"] {
            fs::write(root.join(name), b"x").unwrap();
        }
        assert_eq!(find(root, "one").unwrap(), root.join("one.safetensors"));
        assert_eq!(find(root, "two").unwrap(), root.join("styles/Two.pt"));
        let message = find(root, "three").unwrap_err().to_string();
        assert!(message.ends_with("has no LoRA `three`: it has one, Two"), "{message}");
        fs::write(root.join("styles/one.safetensors"), b"x").unwrap();
        assert!(matches!(find(root, "one"), Err(LoraError::Several { .. })));
    }
}
