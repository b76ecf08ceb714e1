//! The options of every command that opens a model: which of its files count, and what completes them.

use std::path::{Path, PathBuf};

use clap::Args;
use mixbit_app::hub::Wish;
use mixbit_packages::source::{EmbeddingFile, EmbeddingOptions, Lora, OpenOptions};

use super::hub::Asked;
use super::lora::Argument;
use super::{lora, values};

/// Which of a model's files to take, and what to take in their place.
#[derive(Debug, Default, Args)]
pub(super) struct ModelFileOptions {
    /// Which of several weight files to take, such as fp16
    #[arg(long, value_name = "NAME", help_heading = "Model files")]
    variant: Option<String>,
    /// What the UNet predicts, if the model's files say it wrongly or not at all [default: the model's]
    #[arg(long, value_name = "NAME", value_parser = values::prediction_types(),
          help_heading = "Model files")]
    prediction_type: Option<String>,
    /// The UNet was trained to noise alone at the last timestep (zero terminal SNR)
    #[arg(long, help_heading = "Model files")]
    rescale_zero_snr: bool,
    /// For a single file of unusual widths: a directory with its configurations, in the diffusers layout
    #[arg(long, value_name = "DIR", help_heading = "Model files")]
    config: Option<PathBuf>,
    /// For a single file without text encoders or autoencoder: the model to take them from
    #[arg(long, value_name = "MODEL", help_heading = "Model files")]
    base: Option<PathBuf>,
    /// Take the UNet's running averages of a single file
    #[arg(long, help_heading = "Model files")]
    use_ema: bool,
    /// Another autoencoder: a file, a directory with config.json and weights, or a model
    #[arg(long, alias = "custom-vae-version", value_name = "PATH", help_heading = "Model files")]
    vae: Option<PathBuf>,
    /// A LoRA to add to the model, of weight 1 or the given one; may be given several times
    #[arg(long, value_name = "FILE[=WEIGHT]", value_parser = lora::argument, help_heading = "Model files")]
    lora: Vec<Argument>,
    /// The directory of LoRAs that are given by name: --lora NAME, and <lora:NAME:WEIGHT> in a prompt of
    /// generate
    #[arg(long, value_name = "DIR", help_heading = "Model files")]
    lora_dir: Option<PathBuf>,
    /// A textual inversion; its word is the file's name, or NAME. May be given several times
    #[arg(long, value_name = "FILE[=NAME]", value_parser = embedding, help_heading = "Model files")]
    embedding: Vec<EmbeddingFile>,
    /// A folder of textual inversions; their words are the files' names. May be given several times
    #[arg(long, value_name = "DIR", help_heading = "Model files")]
    embedding_dir: Vec<PathBuf>,
}

/// `FILE` or `FILE=NAME`. A file that is there counts whole, and so does the query of a link.
fn embedding(text: &str) -> Result<EmbeddingFile, String> {
    let is_query = |path: &str| path.contains("://") && path.contains('?');
    match text.rsplit_once('=') {
        Some((path, name)) if !Path::new(text).exists() && !is_query(path) => {
            if name.trim().is_empty() {
                return Err("no name follows the `=`".to_string());
            }
            Ok(EmbeddingFile { path: path.into(), name: Some(name.trim().to_string()) })
        }
        _ => Ok(EmbeddingFile { path: text.into(), name: None }),
    }
}

impl ModelFileOptions {
    /// What of a model the options ask for.
    pub(super) fn wish(&self) -> Wish {
        Wish { variant: self.variant.clone(), ..Wish::default() }
    }

    /// The options that name models.
    pub(super) fn models(&mut self) -> impl Iterator<Item = Asked<'_>> {
        let config = self.config.as_mut().map(|argument| {
            let wish = Wish { without_weights: true, ..Wish::default() };
            Asked { argument, wish }
        });
        let directory = self.lora_dir.clone();
        let is_file = move |lora: &&mut Argument| lora.named_in(directory.as_deref()).is_none();
        let loras = self.lora.iter_mut().filter(is_file).map(|lora| Asked::plain(&mut lora.path));
        let embeddings = self.embedding.iter_mut().map(|embedding| &mut embedding.path);
        let others = self.base.iter_mut().chain(&mut self.vae).chain(embeddings);
        config.into_iter().chain(others.map(Asked::plain)).chain(loras)
    }

    /// The directory of LoRAs.
    pub(super) fn lora_dir(&self) -> Option<&Path> {
        self.lora_dir.as_deref()
    }

    /// The first option that replaces or changes a checkpoint's weights.
    pub(super) fn of_checkpoints(&self) -> Option<&'static str> {
        let given = [(!self.lora.is_empty(), "--lora"), (self.vae.is_some(), "--vae")];
        given.into_iter().find(|(is_given, _)| *is_given).map(|(_, name)| name)
    }

    /// The prediction type that was asked for.
    pub(super) fn prediction_type(&self) -> Option<&str> {
        self.prediction_type.as_deref()
    }

    /// The options as the library has them.
    ///
    /// # Errors
    /// If a LoRA's name leads to none.
    pub(super) fn open(&self) -> anyhow::Result<OpenOptions> {
        let loras = self.lora.iter().map(|lora| lora.resolved(self.lora_dir()));
        let loras = loras.collect::<Result<Vec<Lora>, _>>()?;
        Ok(OpenOptions {
            variant: self.variant.clone(),
            prediction_type: self.prediction_type.clone(),
            rescale_zero_snr: self.rescale_zero_snr,
            config: self.config.clone(),
            base: self.base.clone(),
            use_ema: self.use_ema,
            vae: self.vae.clone(),
            loras,
            embeddings: EmbeddingOptions {
                files: self.embedding.clone(),
                folders: self.embedding_dir.clone(),
                prompts: None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_an_embedding_follows_the_last_equals_sign() {
        for (text, path, name) in [
            ("a.pt", "a.pt", None),
            ("a.pt=my word", "a.pt", Some("my word")),
            ("a=b.pt=x", "a=b.pt", Some("x")),
            ("https://host/a.pt?download=true", "https://host/a.pt?download=true", None),
            ("owner/name/a.pt=x", "owner/name/a.pt", Some("x")),
        ] {
            let expected = EmbeddingFile { path: path.into(), name: name.map(str::to_string) };
            assert_eq!(embedding(text), Ok(expected), "{text}");
        }
        assert!(embedding("a.pt=").is_err());
    }
}
