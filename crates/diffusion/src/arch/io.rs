//! The names of the networks' inputs and outputs. They match Apple's converter and therefore its packages.

/// A text encoder's input: the prompt's token ids (batch, tokens), as floats.
pub const INPUT_IDS: &str = "input_ids";
/// A text encoder's output: the last layer's hidden states (batch, tokens, channels), after the final norm.
pub const LAST_HIDDEN_STATE: &str = "last_hidden_state";
/// A text encoder's output: the penultimate layer's hidden states (batch, tokens, channels).
pub const HIDDEN_EMBEDS: &str = "hidden_embeds";
/// A text encoder's output: the pooled prompt embeddings (batch, channels).
pub const POOLED_OUTPUTS: &str = "pooled_outputs";

/// A UNet's input: the noisy latents (batch, channels, height, width).
pub const SAMPLE: &str = "sample";
/// A UNet's input: the timestep of each sample (batch).
pub const TIMESTEP: &str = "timestep";
/// A UNet's input: the prompt embeddings (batch, channels, 1, tokens).
pub const ENCODER_HIDDEN_STATES: &str = "encoder_hidden_states";
/// A UNet's input: sizes, crop and aesthetic score (batch, count), for Stable Diffusion XL.
pub const TIME_IDS: &str = "time_ids";
/// A UNet's input: the last text encoder's pooled output (batch, channels), for Stable Diffusion XL.
pub const TEXT_EMBEDS: &str = "text_embeds";
/// A UNet's input: the embedding of the guidance scale (batch, channels), for distilled models.
pub const TIMESTEP_COND: &str = "timestep_cond";
/// A UNet's input: the class of each sample.
pub const CLASS_LABELS: &str = "class_labels";
/// A UNet's output: the prediction for each sample (batch, channels, height, width).
pub const NOISE_PRED: &str = "noise_pred";

/// A ControlNet's input: the control image (batch, channels, height, width).
pub const CONTROLNET_COND: &str = "controlnet_cond";

/// A decoder's input: the latents (batch, channels, height, width), divided by the scaling factor.
pub const Z: &str = "z";
/// A decoder's output: the image (batch, channels, height, width), about -1 to 1.
pub const IMAGE: &str = "image";
/// An encoder's input: the image (batch, channels, height, width), -1 to 1.
pub const X: &str = "x";
/// An encoder's output: the means of the latents, then their log variances (batch, 2 × channels, height,
/// width).
pub const LATENT: &str = "latent";

/// A safety checker's input: the images, normalized for CLIP (batch, channels, height, width).
pub const CLIP_INPUT: &str = "clip_input";
/// A safety checker's input: the images to filter (batch, height, width, channels).
pub const IMAGES: &str = "images";
/// A safety checker's input: the offset of the special-care concepts' scores.
pub const ADJUSTMENT: &str = "adjustment";
/// A safety checker's output: the images, black where flagged as unsafe.
pub const FILTERED_IMAGES: &str = "filtered_images";
/// A safety checker's output: 1 for each image flagged as unsafe, else 0 (batch, 1, 1, 1).
pub const HAS_NSFW_CONCEPTS: &str = "has_nsfw_concepts";
/// A safety checker's output: each concept's score minus its threshold (batch, concepts).
pub const CONCEPT_SCORES: &str = "concept_scores";
