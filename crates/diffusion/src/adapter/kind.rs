//! The family of models that an adapter was made for.

use std::collections::BTreeMap;

use super::file::Layer;

/// Channels of the prompt embeddings, and the models that have them.
const WIDTHS: [(usize, &str); 4] =
    [(768, "SD 1.x"), (1024, "SD 2.x"), (2048, "SDXL"), (1280, "the SDXL refiner")];

/// Parts of layers' names that tell other families.
const NAMES: [(&str, &str); 7] = [
    ("single_transformer_blocks", "Flux"),
    ("double_blocks", "Flux"),
    ("joint_blocks", "SD 3"),
    ("joint_transformer_blocks", "SD 3"),
    ("add_k_proj", "SD 3"),
    ("lora_te2_", "SDXL"),
    ("lora_te1_", "SDXL"),
];

/// Metadata by which trainers name the base model: the key, beginnings of values, and the family.
const METADATA: [(&str, &str, &str); 7] = [
    ("ss_base_model_version", "sdxl", "SDXL"),
    ("ss_base_model_version", "sd_v1", "SD 1.x"),
    ("ss_base_model_version", "sd_v2", "SD 2.x"),
    ("modelspec.architecture", "stable-diffusion-xl", "SDXL"),
    ("modelspec.architecture", "stable-diffusion-v1", "SD 1.x"),
    ("modelspec.architecture", "stable-diffusion-v2", "SD 2.x"),
    ("modelspec.architecture", "flux", "Flux"),
];

/// The models that take prompt embeddings of a number of channels.
pub(super) fn of_width(channels: usize) -> String {
    match WIDTHS.iter().find(|(width, _)| *width == channels) {
        Some((_, family)) => family.to_string(),
        None => format!("a model with prompt embeddings of {channels} channels"),
    }
}

/// The channels of the prompt embeddings that a layer takes.
pub(super) fn text_width(layer: &Layer) -> Option<usize> {
    let flat = layer.name.replace('.', "_");
    let is_keys = flat.ends_with("attn2_to_k") || flat.ends_with("attn2_processor_to_k");
    is_keys.then(|| layer.inputs()).flatten()
}

/// The family that the layers and the metadata show.
pub(super) fn made_for(layers: &[Layer], metadata: &BTreeMap<String, String>) -> Option<String> {
    if let Some(channels) = layers.iter().find_map(text_width) {
        return Some(of_width(channels));
    }
    let by_name = |(part, family): &(&str, &str)| {
        layers.iter().any(|layer| layer.name.replace('.', "_").contains(part)).then(|| family.to_string())
    };
    let by_metadata = |(key, begin, family): &(&str, &str, &str)| {
        metadata.get(*key)?.to_ascii_lowercase().starts_with(begin).then(|| family.to_string())
    };
    METADATA.iter().find_map(by_metadata).or_else(|| NAMES.iter().find_map(by_name))
}
