//! Prompts to the UNet's inputs: prompt embeddings, sizes, guidance.

use std::sync::Arc;

use mixbit_engine::{Cancel, Signature, Tensor};

use super::cache::NetworkCache;
use super::error::GenerateError;
use super::event::{Event, OnEvent};
use super::guidance;
use super::network::{NetworkKey, PlannedNetwork, Section, as_declared, tensor};
use super::placement::{Component, Placement};
use super::recent::Recent;
use super::request::Request;
use super::text::DroppedWords;
use crate::arch::{GraphOptions, io};
use crate::model::{DiffusionModel, TextEncoder, TextStatesLayout};

/// The inputs of a UNet by name.
pub type Inputs = Vec<(&'static str, Tensor)>;

/// The inputs that differ from step to step.
const OF_EACH_STEP: [&str; 2] = [io::SAMPLE, io::TIMESTEP];

/// The most encoded prompts that a session keeps.
const MOST_PROMPTS: usize = 16;

/// One text encoder's embedding of one prompt.
struct Encoded {
    /// (channels, tokens).
    states: Vec<f32>,
    /// The pooled output, if the encoder has one.
    pooled: Option<Vec<f32>>,
    /// The words that did not fit.
    dropped: Option<String>,
}

/// The prompts that a session has encoded.
pub(super) struct PromptCache(Recent<(NetworkKey, String, Arc<Encoded>)>);

impl PromptCache {
    pub(super) fn new() -> Self {
        PromptCache(Recent::new(MOST_PROMPTS))
    }

    fn get(&mut self, key: &NetworkKey, prompt: &str) -> Option<Arc<Encoded>> {
        let entry = self.0.find(|(known, text, _)| known == key && text == prompt);
        entry.map(|(_, _, encoded)| encoded.clone())
    }

    fn insert(&mut self, key: NetworkKey, prompt: &str, encoded: Arc<Encoded>) {
        self.0.push((key, prompt.to_string(), encoded));
    }

    /// Forgets the prompts of networks that `is_kept` does not keep.
    pub(super) fn retain(&mut self, is_kept: impl Fn(&crate::model::Network) -> bool) {
        self.0.retain(|(key, _, _)| is_kept(&key.network));
    }
}

/// The networks that encode prompts and images, with their backends.
pub(super) struct Encoders<'s> {
    pub(super) placement: &'s Placement,
    pub(super) networks: &'s mut NetworkCache,
    pub(super) prompts: &'s mut PromptCache,
    pub(super) cancel: &'s Cancel,
}

/// The embeddings of one prompt by all text encoders.
#[derive(Default)]
struct PromptEmbeddings {
    /// (channels, tokens), the encoders' channels one after another.
    states: Vec<f32>,
    /// The last encoder's pooled output, if the model takes it.
    pooled: Vec<f32>,
}

impl PromptEmbeddings {
    fn push(&mut self, encoded: &Encoded) {
        self.states.extend_from_slice(&encoded.states);
        if let Some(pooled) = &encoded.pooled {
            self.pooled.clone_from(pooled);
        }
    }

    /// Zeros of the same sizes.
    fn zeros(&self) -> Self {
        PromptEmbeddings { states: vec![0.0; self.states.len()], pooled: vec![0.0; self.pooled.len()] }
    }
}

/// The UNet's inputs that stay the same in every step.
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

/// The constant inputs of one evaluation, as the UNet declares them.
pub(super) struct UnetInputs(Inputs);

impl UnetInputs {
    /// All inputs of an evaluation, with those of its step.
    pub(super) fn bind<'t>(&'t self, step: &'t [Tensor; 2]) -> Vec<(&'static str, &'t Tensor)> {
        let constant = self.0.iter().map(|(name, value)| (*name, value));
        OF_EACH_STEP.into_iter().zip(step).chain(constant).collect()
    }
}

impl Conditioning {
    /// Encodes the prompts of a request.
    ///
    /// # Errors
    /// If a text encoder can't be run, or its prompt can't be encoded.
    pub(super) fn encode(
        model: &DiffusionModel,
        request: &Request,
        encoders: &mut Encoders,
        on: &mut OnEvent,
    ) -> Result<Self, GenerateError> {
        let (guided, negative_is_zero) = (request.is_guided(model), negative_is_zero(model, request));
        let (mut positive, mut negative) = (PromptEmbeddings::default(), PromptEmbeddings::default());
        let mut dropped = Vec::new();
        let tokens = token_count(model)?;
        for text_encoder in &model.text_encoders {
            let component = text_encoder.network.component();
            let key = text_encoder_key(model, request, text_encoder, encoders.placement);
            let runs = prompt_count(model, request);
            let mut embed = |prompt: &str, is_negative, to: &mut PromptEmbeddings| {
                let encoded = encoders.encode(text_encoder, &key, prompt, runs, on)?;
                to.push(&encoded);
                let words = encoded.dropped.iter().cloned();
                let component = component.to_string();
                dropped.extend(words.map(|words| DroppedWords {
                    component: component.clone(),
                    negative: is_negative,
                    words,
                }));
                Ok::<(), GenerateError>(())
            };
            embed(request.text.positive(component), false, &mut positive)?;
            if guided && !negative_is_zero {
                embed(request.text.negative(component), true, &mut negative)?;
            }
        }
        if negative_is_zero {
            negative = positive.zeros();
        }
        let embeddings = if guided { vec![negative, positive] } else { vec![positive] };
        let samples = embeddings.len();
        Ok(Conditioning { samples, tokens, dropped, inputs: inputs(model, request, embeddings)? })
    }

    /// The constant inputs of each evaluation of a step, as the UNet declares them. A UNet with a smaller
    /// batch than the samples is evaluated more than once; one with a larger batch gets the last sample
    /// again.
    ///
    /// # Errors
    /// If the UNet takes other inputs.
    pub(super) fn unet_inputs(
        &self,
        unet: &PlannedNetwork,
        request: &Request,
    ) -> Result<Vec<UnetInputs>, GenerateError> {
        let declared = unet.inputs();
        let batch = batch(&declared);
        (0..self.samples)
            .step_by(batch)
            .map(|first| {
                let constant = declared.iter().filter(|input| !OF_EACH_STEP.contains(&input.name.as_str()));
                let inputs = constant.map(|input| self.input(input, first, batch, request));
                Ok(UnetInputs(inputs.collect::<Result<_, _>>()?))
            })
            .collect()
    }

    fn input(
        &self,
        declared: &Signature,
        first: usize,
        batch: usize,
        request: &Request,
    ) -> Result<(&'static str, Tensor), GenerateError> {
        let mismatch = |what| GenerateError::Mismatch { network: "unet".to_string(), what };
        let shape = &declared.ty.shape;
        let found = self.inputs.iter().find(|input| input.name == declared.name).ok_or_else(|| {
            mismatch(format!("it takes `{}`, which text to image does not have", declared.name))
        })?;
        if found.name == io::TIMESTEP_COND {
            let row = guidance::embedding(request.guidance_scale, shape.last().copied().unwrap_or(0));
            return Ok((found.name, tensor(shape, row.repeat(batch))?));
        }
        let row = |index: usize| &found.rows[(first + index).min(found.rows.len() - 1)];
        let values: Vec<f32> = match found.name {
            io::ENCODER_HIDDEN_STATES => {
                let channels = row(0).len() / self.tokens;
                let layout = TextStatesLayout::of(shape, self.tokens).filter(|(_, own)| *own == channels);
                let (layout, _) = layout.ok_or_else(|| {
                    mismatch(format!(
                        "it takes `{}` of shape {shape:?}, and its text encoders make {} tokens of {channels} \
                         channels: they are of another model, or one is missing",
                        found.name, self.tokens
                    ))
                })?;
                (0..batch).flat_map(|index| layout.arranged(row(index), self.tokens)).collect()
            }
            _ => (0..batch).flat_map(row).copied().collect(),
        };
        if values.len() != shape.iter().product::<usize>() {
            return Err(mismatch(format!(
                "it takes `{}` of shape {shape:?}, and there are {} values for each sample: its text encoders are of \
                 another model",
                found.name,
                values.len() / batch
            )));
        }
        Ok((found.name, as_declared(shape, values, declared)?))
    }
}

impl Encoders<'_> {
    /// A text encoder's embedding of a prompt, from the session's earlier ones if it is among them.
    fn encode(
        &mut self,
        encoder: &TextEncoder,
        key: &NetworkKey,
        prompt: &str,
        planned_runs: usize,
        on: &mut OnEvent,
    ) -> Result<Arc<Encoded>, GenerateError> {
        if let Some(encoded) = self.prompts.get(key, prompt) {
            return Ok(encoded);
        }
        let encoding = encoder.tokenizer.encode(prompt).map_err(GenerateError::Prompt)?;
        let planned = self.networks.plan(key.clone(), planned_runs)?;
        on(Event::Encoding(planned.component()));
        let tokens = encoding.ids.len();
        let ids: Vec<f32> = encoding.ids.iter().map(|&id| id as f32).collect();
        let declared = planned.inputs().into_iter().find(|input| input.name == io::INPUT_IDS);
        let ids = match &declared {
            Some(declared) => as_declared(&[1, tokens], ids, declared)?,
            None => tensor(&[1, tokens], ids)?,
        };
        let results = self.networks.run(&planned, &[(io::INPUT_IDS, &ids)], self.cancel, on)?;
        let states = planned.output(&results, encoder.states)?;
        planned.check_finite(states)?;
        let channels = states.len() / tokens;
        let states = (0..states.len()).map(|at| states[at % tokens * channels + at / tokens]).collect();
        let pooled = match planned.has_output(io::POOLED_OUTPUTS) {
            true => Some(planned.output(&results, io::POOLED_OUTPUTS)?.to_vec()),
            false => None,
        };
        planned.check_finite(pooled.as_deref().unwrap_or_default())?;
        let encoded = Arc::new(Encoded { states, pooled, dropped: encoding.dropped });
        self.prompts.insert(key.clone(), prompt, encoded.clone());
        Ok(encoded)
    }
}

/// The tokens of a prompt, the same for all text encoders.
fn token_count(model: &DiffusionModel) -> Result<usize, GenerateError> {
    let mut lengths = model.text_encoders.iter().map(|encoder| (encoder, encoder.tokenizer.length()));
    let Some((_, first)) = lengths.next() else { return Ok(1) };
    match lengths.find(|(_, length)| *length != first) {
        Some((encoder, length)) => Err(GenerateError::Mismatch {
            network: encoder.network.component().to_string(),
            what: format!("it takes {length} tokens, and the text encoder before it another number"),
        }),
        None => Ok(first),
    }
}

/// The UNet's constant inputs for each sample's prompt embeddings.
fn inputs(
    model: &DiffusionModel,
    request: &Request,
    embeddings: Vec<PromptEmbeddings>,
) -> Result<Vec<Input>, GenerateError> {
    let guided = embeddings.len() == 2;
    let (states, pooled) = embeddings.into_iter().map(|prompt| (prompt.states, prompt.pooled)).unzip();
    let mut inputs = vec![Input { name: io::ENCODER_HIDDEN_STATES, rows: states }];
    if let Some(count) = model.unet.time_ids {
        inputs.push(Input { name: io::TEXT_EMBEDS, rows: pooled });
        let size = [request.size[1], request.size[0]];
        let [positive, negative] =
            request.micro.time_ids(count, size).ok_or_else(|| GenerateError::Mismatch {
                network: model.unet.network.component().to_string(),
                what: format!("it takes {count} time ids; base models take 6 and refiners 5"),
            })?;
        let rows = if guided { vec![negative, positive] } else { vec![positive] };
        inputs.push(Input { name: io::TIME_IDS, rows });
    }
    if model.unet.takes_guidance {
        inputs.push(Input { name: io::TIMESTEP_COND, rows: Vec::new() });
    }
    Ok(inputs)
}

/// The key of a text encoder.
pub(super) fn text_encoder_key(
    model: &DiffusionModel,
    request: &Request,
    encoder: &TextEncoder,
    placement: &Placement,
) -> NetworkKey {
    let backend = placement.of(Component::TextEncoder);
    let precision = request.precision.around_unet(&**backend);
    // The image's size does not matter to a text encoder.
    let GraphOptions { dtype, .. } = request.graph_options(model, precision);
    let graph = GraphOptions { tokens: encoder.tokenizer.length(), dtype, ..GraphOptions::default() };
    let (network, backend) = (encoder.network.clone(), backend.clone());
    NetworkKey { network, section: Section::Whole, graph, precision, backend }
}

/// The key of a UNet for a number of samples.
pub(super) fn unet_key(
    model: &DiffusionModel,
    request: &Request,
    samples: usize,
    tokens: usize,
    placement: &Placement,
) -> NetworkKey {
    let precision = request.precision;
    let graph = GraphOptions {
        batch: samples,
        tokens,
        time_ids: model.unet.time_ids.unwrap_or_default(),
        ..request.graph_options(model, precision)
    };
    let (network, backend) = (model.unet.network.clone(), placement.of(Component::Unet).clone());
    NetworkKey { network, section: Section::Whole, graph, precision, backend }
}

/// True if the negative prompt's embeddings are zeros, not encoded.
fn negative_is_zero(model: &DiffusionModel, request: &Request) -> bool {
    model.zeros_for_absent_negative && request.text.negative_prompt.is_none()
}

/// The number of prompts that a text encoder encodes.
pub(super) fn prompt_count(model: &DiffusionModel, request: &Request) -> usize {
    if request.is_guided(model) && !negative_is_zero(model, request) { 2 } else { 1 }
}

/// The batch that a UNet is evaluated with.
pub(super) fn batch(unet: &[Signature]) -> usize {
    let sample = unet.iter().find(|input| input.name == io::SAMPLE);
    sample.and_then(|sample| sample.ty.shape.first().copied()).unwrap_or(1).max(1)
}
