//! The published model families: configurations, schedulers, tokenizers and their vocabulary.
//!
//! A family is a model in the diffusers layout without weights. [`Family::files`] gives it as
//! [`ModelFiles`], so that whatever lacks configurations (a package of another tool) takes them from there,
//! read by the same code as a checkpoint's.

use std::sync::Arc;

use mixbit_mil::Weights;
use serde_json::Value;

use crate::arch::{Config, unet};
use crate::model::{FileError, ModelFiles, component_config, pooled_channels};

/// CLIP's vocabulary of 49,408 tokens, as tokenizer file names and contents (MIT, by OpenAI).
pub static CLIP_VOCABULARY: [(&str, &str); 2] = [
    ("vocab.json", include_str!("../vocabulary/vocab.json")),
    ("merges.txt", include_str!("../vocabulary/merges.txt")),
];

const INDEX: &str = "model_index.json";

/// A published model without weights.
pub struct Family {
    /// The name on command lines.
    pub name: &'static str,
    /// The name for people.
    pub title: &'static str,
    /// Contents by their paths in the model's directory. Tokenizers have no vocabulary: it is
    /// [`CLIP_VOCABULARY`].
    pub texts: &'static [(&'static str, &'static str)],
}

/// A row: the name, the name for people, the files' paths, and the folder of a file that is another's.
macro_rules! family {
    ($name:literal, $title:literal: $($path:literal $(of $folder:literal)?),* $(,)?) => {
        Family {
            name: $name,
            title: $title,
            texts: &[$(($path, family!(@text $name, $path $(, $folder)?))),*],
        }
    };
    (@text $name:literal, $path:literal) => { include_str!(concat!("../families/", $name, "/", $path)) };
    (@text $name:literal, $path:literal, $folder:literal) => {
        include_str!(concat!("../families/", $folder, "/", $path))
    };
}

/// Every family. Where several are alike, the first is the commonest.
pub static FAMILIES: &[Family] = &[
    family!("sd15", "SD 1.x":
        "model_index.json",
        "safety_checker/config.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "vae/config.json",
    ),
    family!("sd21", "SD 2.x for 768x768":
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "unet/config.json",
        "vae/config.json",
    ),
    family!("sd21-base", "SD 2.x for 512x512":
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json" of "sd21",
        "tokenizer/special_tokens_map.json" of "sd21",
        "tokenizer/tokenizer_config.json" of "sd21",
        "unet/config.json",
        "vae/config.json" of "sd21",
    ),
    family!("sdxl-base", "SDXL":
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder_2/config.json",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer_2/special_tokens_map.json",
        "tokenizer_2/tokenizer_config.json",
        "unet/config.json",
        "vae/config.json",
    ),
    family!("sdxl-refiner", "SDXL refiner":
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder_2/config.json",
        "tokenizer_2/special_tokens_map.json",
        "tokenizer_2/tokenizer_config.json",
        "unet/config.json",
        "vae/config.json",
    ),
];

/// The properties of a UNet by which its family is told.
#[derive(Clone, Copy, Debug)]
pub struct UnetTraits {
    /// Channels of the prompt embeddings.
    pub text_channels: Option<usize>,
    /// Length of `time_ids` per image, if the network takes them.
    pub time_ids: Option<usize>,
    /// Height of the latents that it was made for.
    pub latent_height: usize,
}

impl Family {
    /// The family of that name.
    pub fn of_name(name: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|family| family.name == name)
    }

    /// The family whose UNet is the most like this one: with as many `time_ids`, then as many channels of
    /// prompt embeddings, then latents of the nearest size (2.1 at 512x512 and at 768x768 differ in what they
    /// predict).
    pub fn nearest(traits: UnetTraits) -> &'static Family {
        let distance = |family: &&'static Family| {
            let own = family.unet_traits();
            let other_text = own.text_channels != traits.text_channels;
            let other_size = own.latent_height.abs_diff(traits.latent_height);
            let other_sizes = own.time_ids.is_some() != traits.time_ids.is_some();
            (
                other_sizes,
                own.time_ids != traits.time_ids,
                other_text,
                if other_text { 0 } else { other_size },
            )
        };
        FAMILIES.iter().min_by_key(distance).unwrap_or(&FAMILIES[0])
    }

    /// The family's model, whose weights are absent.
    pub fn files(&'static self) -> FamilyFiles {
        FamilyFiles { family: self, index: self.json(INDEX).unwrap_or_default() }
    }

    fn text(&self, path: &str) -> Option<&'static str> {
        self.texts.iter().find(|(found, _)| *found == path).map(|(_, text)| *text)
    }

    fn json(&self, path: &str) -> Result<Value, FileError> {
        let text = self.text(path).ok_or_else(|| format!("the family {} has no {path}", self.name))?;
        Ok(serde_json::from_str(text)?)
    }

    /// The traits of the family's own UNet.
    fn unet_traits(&'static self) -> UnetTraits {
        let files = self.files();
        let config = match component_config(&files, "unet") {
            Ok(Config::Unet(config)) => Some(config),
            _ => None,
        };
        let pooled = pooled_channels(&files).unwrap_or(0);
        let read = |config: &unet::Config| UnetTraits {
            text_channels: config.text_channels,
            time_ids: config.time_id_count(pooled).ok().flatten(),
            latent_height: config.sample_size.map_or(0, |[height, _]| height),
        };
        let none = UnetTraits { text_channels: None, time_ids: None, latent_height: 0 };
        config.map_or(none, |config| read(&config))
    }
}

/// A family as a model without weights.
pub struct FamilyFiles {
    family: &'static Family,
    index: Value,
}

impl ModelFiles for FamilyFiles {
    fn class(&self) -> &str {
        self.index["_class_name"].as_str().unwrap_or_default()
    }

    fn component(&self, name: &str) -> Option<&str> {
        self.index[name][1].as_str()
    }

    fn option(&self, name: &str) -> Option<Value> {
        self.index.get(name).filter(|value| !value.is_array()).cloned()
    }

    fn json(&self, component: &str, file: &str) -> Result<Value, FileError> {
        self.family.json(&format!("{component}/{file}"))
    }

    fn text(&self, component: &str, file: &str) -> Result<Option<String>, FileError> {
        let own = self.family.text(&format!("{component}/{file}"));
        let is_tokenizer = component.starts_with("tokenizer") && self.component(component).is_some();
        let shared = CLIP_VOCABULARY.iter().find(|(name, _)| is_tokenizer && *name == file);
        Ok(own.or(shared.map(|(_, text)| *text)).map(str::to_string))
    }

    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError> {
        Err(format!("the family {} has no weights for its {component}", self.family.name).into())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::model::read_tokenizer;
    use crate::scheduler::SchedulerConfig;

    /// Channels of the prompt embeddings, length of `time_ids`, height of the latents.
    const TRAITS: [(&str, [Option<usize>; 3]); 5] = [
        ("sd15", [Some(768), None, Some(64)]),
        ("sd21", [Some(1024), None, Some(96)]),
        ("sd21-base", [Some(1024), None, Some(64)]),
        ("sdxl-base", [Some(2048), Some(6), Some(128)]),
        ("sdxl-refiner", [Some(1280), Some(5), Some(128)]),
    ];

    #[test]
    fn every_family_is_known_and_nearest_to_itself() {
        assert!(FAMILIES.iter().map(|family| family.name).eq(TRAITS.iter().map(|(name, _)| *name)));
        for (family, (name, [text_channels, time_ids, height])) in FAMILIES.iter().zip(TRAITS) {
            let own = family.unet_traits();
            assert_eq!(
                [own.text_channels, own.time_ids, Some(own.latent_height)],
                [text_channels, time_ids, height]
            );
            assert_eq!(Family::nearest(own).name, name);
        }
    }

    #[test]
    fn every_file_is_in_the_list_of_its_folder() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("families");
        let names = |path: &Path| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        for folder in names(&root) {
            let family = Family::of_name(folder.file_name().unwrap().to_str().unwrap()).unwrap();
            let files = names(&folder)
                .flat_map(|path| if path.is_dir() { names(&path).collect() } else { vec![path] });
            for file in files {
                let path = file.strip_prefix(&folder).unwrap().to_str().unwrap().replace('\\', "/");
                assert_eq!(family.text(&path), Some(fs::read_to_string(&file).unwrap().as_str()), "{path}");
            }
        }
    }

    #[test]
    fn unknown_widths_go_to_the_commonest_family() {
        let name = |time_ids, latent_height| {
            Family::nearest(UnetTraits { text_channels: Some(32), time_ids, latent_height }).name
        };
        assert_eq!(
            [name(None, 8), name(None, 96), name(Some(6), 96), name(Some(4), 96)],
            ["sd15", "sd15", "sdxl-base", "sdxl-base"]
        );
    }

    #[test]
    fn all_configurations_are_supported() {
        for family in FAMILIES {
            let files = family.files();
            assert!(files.class().starts_with("StableDiffusion"), "{}", family.name);
            for component in files.index.as_object().unwrap().keys() {
                let Some(class) = files.component(component) else { continue };
                match (component.as_str(), class) {
                    ("scheduler", _) => {
                        let config = files.json(component, "scheduler_config.json").unwrap();
                        SchedulerConfig::from_json(&config).unwrap().build(20).unwrap();
                    }
                    ("feature_extractor", _) => {}
                    (_, "CLIPTokenizer") => {
                        let tokenizer = read_tokenizer(&files, component).unwrap();
                        assert_eq!(tokenizer.vocabulary_size(), 49408, "{} {component}", family.name);
                    }
                    _ => drop(component_config(&files, component).unwrap()),
                }
            }
        }
    }
}
