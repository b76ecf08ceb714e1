//! What the UNet is told besides the latents: text states, sizes, guidance.

use mixbit_engine::{Backend, Signature, Tensor};

use super::{Inputs, PipelineError, Request, Stage, check_finite, graph_options, guidance, tensor};
use crate::arch::GraphOptions;
use crate::model::{DiffusionModel, TextEncoder};

/// The prompts. Stable Diffusion XL has two text encoders, which may be given different ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// What to draw.
    pub prompt: String,
    /// The second text encoder's prompt, if it is another.
    pub prompt_2: Option<String>,
    /// What not to draw. Absent is not the same as empty: see
    /// [`zeros_for_absent_negative`](DiffusionModel::zeros_for_absent_negative).
    pub negative_prompt: Option<String>,
    /// The second text encoder's negative prompt, if it is another.
    pub negative_prompt_2: Option<String>,
}

impl Text {
    /// A prompt, and nothing that is not to be drawn.
    pub fn new(prompt: impl Into<String>) -> Self {
        Text { prompt: prompt.into(), ..Text::default() }
    }

    /// The prompt for a component.
    fn positive(&self, component: &str) -> &str {
        match (&self.prompt_2, component) {
            (Some(prompt), SECOND) => prompt,
            _ => &self.prompt,
        }
    }

    /// The negative prompt for a component.
    fn negative(&self, component: &str) -> &str {
        match (&self.negative_prompt_2, component) {
            (Some(prompt), SECOND) => prompt,
            _ => self.negative_prompt.as_deref().unwrap_or_default(),
        }
    }
}

/// The component that the second prompts are for.
const SECOND: &str = "text_encoder_2";

/// The sizes and scores that Stable Diffusion XL's networks are told (section 2.2 of arXiv 2307.01952). All are pixels,
/// height before width and top before left; a size that is absent is the image's own.
#[derive(Clone, Debug, PartialEq)]
pub struct MicroConditioning {
    /// The size that the image is to look as if it had been scaled from.
    pub original_size: Option<[usize; 2]>,
    /// Where the image is to look as if it had been cropped.
    pub crop: [usize; 2],
    /// The size that the image is to look as if it had.
    pub target_size: Option<[usize; 2]>,
    /// The same for the negative prompt.
    pub negative_original_size: Option<[usize; 2]>,
    /// The same for the negative prompt; counts only where the two negative sizes are given, or for a refiner.
    pub negative_crop: [usize; 2],
    /// The same for the negative prompt.
    pub negative_target_size: Option<[usize; 2]>,
    /// The score of refiners, 1 to 10.
    pub aesthetic_score: f32,
    /// The score of refiners for the negative prompt.
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
    /// The time ids of the prompt and of the negative prompt for an image of `size` (height, width): six of a base
    /// model, or five of a refiner, which has a score in place of the target size.
    fn time_ids(&self, count: usize, size: [usize; 2]) -> Option<[Vec<f32>; 2]> {
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

/// The end of a prompt that a text encoder did not see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DroppedWords {
    /// The text encoder's folder.
    pub component: String,
    /// Whether the prompt is the negative one.
    pub negative: bool,
    /// The words.
    pub words: String,
}

/// The text of one prompt as the UNet sees it.
#[derive(Default)]
struct TextStates {
    /// (channels, tokens), the encoders' channels one after another.
    states: Vec<f32>,
    /// The last encoder's pooled output, if the model takes it.
    pooled: Vec<f32>,
}

/// What the UNet is told besides the latents, the same in every step.
pub(super) struct Conditioning {
    /// Samples in each step: 2 with guidance, the negative prompt's before the prompt's.
    pub(super) samples: usize,
    pub(super) tokens: usize,
    pub(super) dropped: Vec<DroppedWords>,
    inputs: Vec<Input>,
}

/// An input of the UNet, one row for each sample.
struct Input {
    name: &'static str,
    rows: Vec<Vec<f32>>,
}

/// What is told for the samples of one evaluation.
pub(super) struct Told {
    /// The inputs by name.
    inputs: Inputs,
}

impl Told {
    /// All inputs of an evaluation, with those of its step.
    pub(super) fn bind<'t>(&'t self, step: &'t [Tensor; 2]) -> Vec<(&'static str, &'t Tensor)> {
        let told = self.inputs.iter().map(|(name, value)| (*name, value));
        OF_EACH_STEP.into_iter().zip(step).chain(told).collect()
    }
}

impl Conditioning {
    /// Encodes the prompts of a request.
    pub(super) fn encode(
        model: &DiffusionModel,
        backend: &dyn Backend,
        request: &Request,
    ) -> Result<Self, PipelineError> {
        let (guided, negative_is_zero) = (has_guidance(model, request), negative_is_zero(model, request));
        let (mut positive, mut negative) = (TextStates::default(), TextStates::default());
        let (mut dropped, mut tokens) = (Vec::new(), None);
        for encoder in &model.text_encoders {
            let component = encoder.network.component();
            let length = encoder.tokenizer.length();
            if *tokens.get_or_insert(length) != length {
                let what = format!("it takes {length} tokens, and the text encoder before it another number");
                return Err(PipelineError::Mismatch { network: component.to_string(), what });
            }
            let precision = request.precision.around(backend);
            let options = GraphOptions { tokens: length, ..graph_options(model, request, precision) };
            let mut stage = Stage::new(&encoder.network, backend, &options, request, precision)?;
            let mut encode = |prompt: &str, is_negative, to: &mut TextStates| {
                let words = encode_prompt(encoder, &mut stage, &options, prompt, to)?;
                let component = component.to_string();
                dropped.extend(words.map(|words| DroppedWords { component, negative: is_negative, words }));
                Ok::<(), PipelineError>(())
            };
            encode(request.text.positive(component), false, &mut positive)?;
            if guided && !negative_is_zero {
                encode(request.text.negative(component), true, &mut negative)?;
            }
            stage.release();
        }
        if negative_is_zero {
            negative.states = vec![0.0; positive.states.len()];
            negative.pooled = vec![0.0; positive.pooled.len()];
        }
        let told = if guided { vec![negative, positive] } else { vec![positive] };
        let samples = told.len();
        let (states, pooled) = told.into_iter().map(|told| (told.states, told.pooled)).unzip();
        let mut inputs = vec![Input { name: "encoder_hidden_states", rows: states }];
        if let Some(count) = model.unet.time_ids {
            inputs.push(Input { name: "text_embeds", rows: pooled });
            let size = [request.size[1], request.size[0]];
            let [positive, negative] =
                request.micro.time_ids(count, size).ok_or_else(|| PipelineError::Mismatch {
                    network: model.unet.network.component().to_string(),
                    what: format!("it takes {count} time ids; base models take 6 and refiners 5"),
                })?;
            let rows = if guided { vec![negative, positive] } else { vec![positive] };
            inputs.push(Input { name: "time_ids", rows });
        }
        if model.unet.takes_guidance {
            inputs.push(Input { name: GUIDANCE, rows: Vec::new() });
        }
        Ok(Conditioning { samples, tokens: tokens.unwrap_or(1), dropped, inputs })
    }

    /// The inputs of each evaluation of a step, as the UNet declares them. One that takes fewer samples than
    /// there are is evaluated more than once; one that takes more gets the last sample again.
    pub(super) fn fit(&self, unet: &[Signature], request: &Request) -> Result<Vec<Told>, PipelineError> {
        let batch = batch(unet);
        (0..self.samples)
            .step_by(batch)
            .map(|first| {
                let declared = unet.iter().filter(|input| !OF_EACH_STEP.contains(&input.name.as_str()));
                let inputs = declared.map(|input| self.input(input, first, batch, request));
                Ok(Told { inputs: inputs.collect::<Result<_, _>>()? })
            })
            .collect()
    }

    fn input(
        &self,
        declared: &Signature,
        first: usize,
        batch: usize,
        request: &Request,
    ) -> Result<(&'static str, Tensor), PipelineError> {
        let mismatch = |what| PipelineError::Mismatch { network: "unet".to_string(), what };
        let shape = &declared.ty.shape;
        let found = self.inputs.iter().find(|input| input.name == declared.name).ok_or_else(|| {
            mismatch(format!("it takes `{}`, which text to image does not have", declared.name))
        })?;
        if found.name == GUIDANCE {
            let row = guidance::embedding(request.guidance_scale, shape.last().copied().unwrap_or(0));
            return Ok((found.name, tensor(shape, row.repeat(batch))?));
        }
        let row = |index: usize| found.rows[(first + index).min(found.rows.len() - 1)].iter();
        let values: Vec<f32> = (0..batch).flat_map(row).copied().collect();
        if values.len() != shape.iter().product::<usize>() {
            return Err(mismatch(format!(
                "it takes `{}` of shape {shape:?}, and there are {} values for each sample: its text encoders are of \
                 another model",
                found.name,
                values.len() / batch
            )));
        }
        Ok((found.name, tensor(shape, values)?))
    }
}

/// Whether a step makes two predictions: that of the prompt is guided by that of the negative prompt.
pub(super) fn has_guidance(model: &DiffusionModel, request: &Request) -> bool {
    request.guidance_scale > 1.0 && !model.unet.takes_guidance
}

/// Whether the negative prompt's states are zeros, not encoded.
fn negative_is_zero(model: &DiffusionModel, request: &Request) -> bool {
    model.zeros_for_absent_negative && request.text.negative_prompt.is_none()
}

/// The prompts that a text encoder encodes.
pub(super) fn prompts(model: &DiffusionModel, request: &Request) -> usize {
    if has_guidance(model, request) && !negative_is_zero(model, request) { 2 } else { 1 }
}

/// The samples that a UNet takes at a time.
pub(super) fn batch(unet: &[Signature]) -> usize {
    let sample = unet.iter().find(|input| input.name == "sample");
    sample.and_then(|sample| sample.ty.shape.first().copied()).unwrap_or(1).max(1)
}

/// The inputs that differ from step to step.
const OF_EACH_STEP: [&str; 2] = ["sample", "timestep"];

/// The input with the embedding of the guidance scale.
const GUIDANCE: &str = "timestep_cond";

/// Appends a prompt's states, and gives the words that did not fit.
fn encode_prompt(
    encoder: &TextEncoder,
    stage: &mut Stage,
    options: &GraphOptions,
    prompt: &str,
    to: &mut TextStates,
) -> Result<Option<String>, PipelineError> {
    let encoding = encoder.tokenizer.encode(prompt).map_err(PipelineError::Prompt)?;
    let tokens = encoding.ids.len();
    let ids = tensor(&[1, tokens], encoding.ids.iter().map(|&id| id as f32).collect())?;
    let results = stage.run(&[("input_ids", &ids)])?;
    let states = stage.output(&results, encoder.states)?;
    check_finite(&encoder.network, options, states)?;
    let channels = states.len() / tokens;
    to.states.extend((0..states.len()).map(|at| states[at % tokens * channels + at / tokens]));
    if stage.has_output(POOLED) {
        to.pooled = stage.output(&results, POOLED)?.to_vec();
        check_finite(&encoder.network, options, &to.pooled)?;
    }
    Ok(encoding.dropped)
}

/// The output with the pooled text.
const POOLED: &str = "pooled_outputs";
