//! The prompts of a request, and the sizes that Stable Diffusion XL is conditioned on.

/// The prompts. Stable Diffusion XL has two text encoders, each of which can have its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// The description of the image.
    pub prompt: String,
    /// The second text encoder's prompt, if it differs; an empty one does not, as in diffusers.
    pub prompt_2: Option<String>,
    /// The description of what the image is not to show. An absent one is not the same as an empty one: see
    /// [`zeros_for_absent_negative`](crate::model::DiffusionModel::zeros_for_absent_negative).
    pub negative_prompt: Option<String>,
    /// The second text encoder's negative prompt, if it differs; an empty one does not.
    pub negative_prompt_2: Option<String>,
}

impl Text {
    /// A prompt without a negative prompt.
    pub fn new(prompt: impl Into<String>) -> Self {
        Text { prompt: prompt.into(), ..Text::default() }
    }

    /// The prompt for a text encoder's folder.
    pub(super) fn positive(&self, component: &str) -> &str {
        match (&self.prompt_2, component) {
            (Some(prompt), SECOND) if !prompt.is_empty() => prompt,
            _ => &self.prompt,
        }
    }

    /// The negative prompt for a text encoder's folder.
    pub(super) fn negative(&self, component: &str) -> &str {
        match (&self.negative_prompt_2, component) {
            (Some(prompt), SECOND) if !prompt.is_empty() => prompt,
            _ => self.negative_prompt.as_deref().unwrap_or_default(),
        }
    }
}

/// The folder of the text encoder that takes the second prompts.
const SECOND: &str = "text_encoder_2";

/// The end of a prompt that did not fit a text encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DroppedWords {
    /// The text encoder's folder.
    pub component: String,
    /// True if the prompt is the negative one.
    pub negative: bool,
    /// The words.
    pub words: String,
}

/// The sizes and scores that Stable Diffusion XL's networks are conditioned on (section 2.2 of arXiv
/// 2307.01952), in pixels, height before width and top before left. An absent size is the image's own.
#[derive(Clone, Debug, PartialEq)]
pub struct MicroConditioning {
    /// The size of the photograph that the image looks scaled from.
    pub original_size: Option<[usize; 2]>,
    /// The corner at which the image looks cropped.
    pub crop: [usize; 2],
    /// The size that the image looks made for.
    pub target_size: Option<[usize; 2]>,
    /// The negative prompt's original size.
    pub negative_original_size: Option<[usize; 2]>,
    /// The negative prompt's crop. It counts only with both negative sizes, or for a refiner.
    pub negative_crop: [usize; 2],
    /// The negative prompt's target size.
    pub negative_target_size: Option<[usize; 2]>,
    /// A refiner's aesthetic score, 1 to 10.
    pub aesthetic_score: f32,
    /// A refiner's aesthetic score for the negative prompt.
    pub negative_aesthetic_score: f32,
}

impl Default for MicroConditioning {
    fn default() -> Self {
        MicroConditioning {
            original_size: None,
            crop: [0, 0],
            target_size: None,
            negative_original_size: None,
            negative_crop: [0, 0],
            negative_target_size: None,
            aesthetic_score: 6.0,
            negative_aesthetic_score: 2.5,
        }
    }
}

impl MicroConditioning {
    /// The time ids of the prompt and of the negative prompt for an image of `size` (height, width): six for
    /// a base model, or five for a refiner, which has a score in place of the target size.
    pub(super) fn time_ids(&self, count: usize, size: [usize; 2]) -> Option<[Vec<f32>; 2]> {
        let original = self.original_size.unwrap_or(size);
        let target = self.target_size.unwrap_or(size);
        let floats = |pairs: &[[usize; 2]]| pairs.iter().flatten().map(|&v| v as f32).collect::<Vec<f32>>();
        match count {
            6 => {
                let positive = floats(&[original, self.crop, target]);
                let negative = match (self.negative_original_size, self.negative_target_size) {
                    (Some(original), Some(target)) => floats(&[original, self.negative_crop, target]),
                    _ => positive.clone(),
                };
                Some([positive, negative])
            }
            5 => {
                let ids = |original, crop, score| [floats(&[original, crop]), vec![score]].concat();
                let negative_original = self.negative_original_size.unwrap_or(original);
                Some([
                    ids(original, self.crop, self.aesthetic_score),
                    ids(negative_original, self.negative_crop, self.negative_aesthetic_score),
                ])
            }
            _ => None,
        }
    }
}
