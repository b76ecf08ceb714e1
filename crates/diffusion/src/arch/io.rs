//! The names of the networks' inputs and outputs. They are those of Apple's converter, so packages keep them.

/// A text encoder's input: the ids of the prompt's tokens (batch, tokens), as floats.
pub const INPUT_IDS: &str = "input_ids";
/// A text encoder's output: the states of the last layer (batch, tokens, channels), after the last norm.
pub const LAST_HIDDEN_STATE: &str = "last_hidden_state";
/// A text encoder's output: the states of the last layer but one (batch, tokens, channels).
pub const HIDDEN_EMBEDS: &str = "hidden_embeds";
/// A text encoder's output: one vector for the prompt (batch, channels).
pub const POOLED_OUTPUTS: &str = "pooled_outputs";

/// A UNet's input: the noisy latents (batch, channels, height, width).
pub const SAMPLE: &str = "sample";
/// A UNet's input: the timestep of each sample (batch).
pub const TIMESTEP: &str = "timestep";
/// A UNet's input: the prompt embeddings (batch, channels, 1, tokens).
pub const ENCODER_HIDDEN_STATES: &str = "encoder_hidden_states";
/// A UNet's input: sizes, crop and scores (batch, count), for Stable Diffusion XL.
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

/// A safety checker's input: the image as CLIP takes it (batch, channels, height, width).
pub const CLIP_INPUT: &str = "clip_input";
/// A safety checker's input: the images to be judged (batch, height, width, channels).
pub const IMAGES: &str = "images";
/// A safety checker's input: the number that is added to every score.
pub const ADJUSTMENT: &str = "adjustment";
/// A safety checker's output: the images, black where they were judged unsafe.
pub const FILTERED_IMAGES: &str = "filtered_images";
/// A safety checker's output: 1 for each image that was judged unsafe, else 0 (batch, 1, 1, 1).
pub const HAS_NSFW_CONCEPTS: &str = "has_nsfw_concepts";
/// A safety checker's output: the score of each concept, less its threshold (batch, concepts).
pub const CONCEPT_SCORES: &str = "concept_scores";
