//! The states of denoising that a network is measured in.

use serde::{Deserialize, Serialize};

/// The default prompts, alternately for measurement and for verification.
pub static PROMPTS: [&str; 16] = [
    "a fishing boat in a harbour at dawn, mist over the water",
    "portrait of an old woman with a red scarf, window light",
    "a mountain road in autumn seen from above",
    "three apples and a glass jug on a wooden table, oil painting",
    "a cat asleep on a stack of books",
    "the inside of a railway station with a glass roof",
    "a bowl of noodle soup with herbs, close up",
    "a bicycle leaning against a blue wall",
    "a lighthouse in a storm, dramatic sky",
    "a child flying a kite on a beach",
    "a city street at night in the rain, neon signs reflected on the pavement",
    "a watercolour of a garden with hollyhocks",
    "an astronaut walking through a desert, wide shot",
    "a black horse running in snow",
    "a kitchen with copper pots, morning sun",
    "a macro photograph of a dragonfly on a reed",
];

/// A state of denoising: the input of one evaluation of the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The prompt.
    pub prompt: String,
    /// The seed of the noise.
    pub seed: u64,
    /// The position of the evaluation in the run, from 0.
    pub evaluation: usize,
}

/// The settings of the images that are measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// The negative prompt. An absent one is not an empty one.
    pub negative_prompt: Option<String>,
    /// Width and height in pixels.
    pub size: [usize; 2],
    /// Inference steps of the model's own scheduler.
    pub steps: usize,
    /// The scale of classifier-free guidance.
    pub guidance_scale: f32,
}
