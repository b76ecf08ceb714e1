//! LoRAs on the command line.

use std::path::{Path, PathBuf};

use anyhow::bail;
use mixbit_app::loras::{self, LoraError, Tag};
use mixbit_diffusion::adapter::Strength;
use mixbit_packages::source::{AppliedLora, Lora};

use super::printable::visible_line;
use super::progress::Progress;
use super::table::byte_size;

/// The most names of a warning.
const LISTED: usize = 8;

/// A value of `--lora`.
#[derive(Clone, Debug)]
pub(super) struct Argument {
    /// The file, or a name.
    pub(super) path: PathBuf,
    weight: f32,
}

/// Reads `FILE[=WEIGHT]`. A file that has the whole text as its name wins.
pub(super) fn argument(text: &str) -> Result<Argument, String> {
    let whole = || Argument { path: PathBuf::from(text), weight: 1.0 };
    let Some((path, weight)) = text.rsplit_once('=').filter(|_| !Path::new(text).exists()) else {
        return Ok(whole());
    };
    match weight.trim().parse::<f32>() {
        Ok(weight) if weight.is_finite() && !path.is_empty() => Ok(Argument { path: path.into(), weight }),
        _ if Path::new(path).exists() => Err(format!("the weight `{weight}` is no number")),
        _ => Ok(whole()),
    }
}

impl Argument {
    /// The directory in which it is a name, not a file.
    pub(super) fn named_in<'d>(&self, directory: Option<&'d Path>) -> Option<&'d Path> {
        let is_name = self.path.components().count() == 1 && !self.path.exists();
        directory.filter(|_| is_name)
    }

    /// The LoRA, found in the directory if it is a name.
    ///
    /// # Errors
    /// If the directory has none of that name.
    pub(super) fn resolved(&self, directory: Option<&Path>) -> Result<Lora, LoraError> {
        let path = match self.named_in(directory) {
            Some(directory) if directory.join(&self.path).exists() => directory.join(&self.path),
            Some(directory) => loras::find(directory, &self.path.to_string_lossy())?,
            None => self.path.clone(),
        };
        Ok(Lora { path, strength: Strength::of(self.weight) })
    }
}

/// Says how LoRAs fit a model, one line for each, and what of them fits nothing.
pub(super) fn say(loras: &[AppliedLora], progress: &Progress) {
    for lora in loras {
        let AppliedLora { name, fit, strength, .. } = lora;
        let weight = loras::weights(*strength);
        progress.say(format_args!(
            "lora {}: {} of {} layers, weight {weight}",
            visible_line(name),
            fit.matched,
            fit.layers
        ));
        if !fit.unmatched.is_empty() {
            let shown: Vec<&str> = fit.unmatched.iter().take(LISTED).map(String::as_str).collect();
            let more = match fit.unmatched.len().saturating_sub(LISTED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            progress.say(format_args!(
                "warning: {}: {} names match nothing in the model: {}{more}",
                visible_line(name),
                fit.unmatched.len(),
                visible_line(&shown.join(", "))
            ));
        }
    }
}

/// Says what LoRAs that are not low-rank cost over compressed weights.
pub(super) fn say_unpacked(bytes: usize, progress: &Progress) {
    if bytes > 0 {
        progress.say(format_args!(
            "note: {} of the model's weights are held uncompressed: these LoRAs are not low-rank there",
            byte_size(bytes)
        ));
    }
}

/// Prompts without their tags of LoRAs, and the LoRAs, which all of them must share: they are part of the
/// model.
///
/// # Errors
/// A tag that can't be read, or leads to no LoRA; prompts with different ones.
pub(super) fn taken_from(
    prompts: &[String],
    directory: Option<&Path>,
) -> anyhow::Result<(Vec<String>, Vec<Lora>)> {
    let Some(directory) = directory else { return Ok((prompts.to_vec(), Vec::new())) };
    let read = prompts.iter().map(|prompt| loras::tags(prompt)).collect::<Result<Vec<_>, _>>()?;
    let first: &[Tag] = read.first().map_or(&[], |(_, tags)| tags);
    if let Some(at) = read.iter().position(|(_, tags)| tags != first) {
        bail!(
            "prompt {} names other LoRAs than the first one: draw prompts with different LoRAs in separate \
             runs",
            at + 1
        );
    }
    let loras = first.iter().map(|tag| tag.find(directory)).collect::<Result<Vec<_>, _>>()?;
    Ok((read.into_iter().map(|(text, _)| text).collect(), loras))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_follows_the_last_equals_sign() {
        let scratch = mixbit_testkit::Scratch::new();
        let file = scratch.file("a=0.5", b"x").display().to_string();
        for (text, path, weight) in [
            ("a.safetensors", "a.safetensors", 1.0),
            ("a.safetensors=0.8", "a.safetensors", 0.8),
            ("a=b.safetensors", "a=b.safetensors", 1.0),
            ("a=b.safetensors=-1", "a=b.safetensors", -1.0),
            ("a.safetensors=x", "a.safetensors=x", 1.0),
            (&file, &file, 1.0),
            (&format!("{file}=2"), &file, 2.0),
        ] {
            let found = argument(text).unwrap();
            assert_eq!((found.path.to_str(), found.weight), (Some(path), weight), "{text}");
        }
        assert!(argument(&format!("{file}=x")).unwrap_err().contains("`x`"));
    }
}
