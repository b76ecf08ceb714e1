//! A request at work: its latents from step to step.

use std::sync::Arc;

use mixbit_engine::{Cancel, Tensor};
use mixbit_mil::Function;

use super::cache::NetworkCache;
use super::conditioning::{Conditioning, Inputs, UnetInputs, batch};
use super::decoder::DecoderPlan;
use super::error::GenerateError;
use super::event::{Event, OnEvent};
use super::guidance;
use super::network::{PlannedNetwork, as_declared, tensor};
use super::request::Request;
use super::text::DroppedWords;
use crate::arch::io;
use crate::model::DiffusionModel;
use crate::random::{NoiseSource, TorchSource};
use crate::scheduler::{Scheduler, StepInput};

/// An image on its way from noise.
pub struct Run {
    pub(super) model: Arc<DiffusionModel>,
    pub(super) request: Request,
    pub(super) cancel: Cancel,
    pub(super) unet: Arc<PlannedNetwork>,
    pub(super) decoder: Arc<DecoderPlan>,
    conditioning: Conditioning,
    /// The constant inputs of each evaluation of a step.
    unet_inputs: Vec<UnetInputs>,
    scheduler: Box<dyn Scheduler>,
    latents: Vec<f32>,
    predicted: Vec<f32>,
    first: usize,
    next: usize,
}

/// The parts that a run is made of.
pub(super) struct Parts {
    pub(super) model: Arc<DiffusionModel>,
    pub(super) request: Request,
    pub(super) cancel: Cancel,
    pub(super) conditioning: Conditioning,
    pub(super) unet: Arc<PlannedNetwork>,
    pub(super) decoder: Arc<DecoderPlan>,
    pub(super) scheduler: Box<dyn Scheduler>,
    /// The first evaluation.
    pub(super) first: usize,
    /// The sample of the first evaluation.
    pub(super) latents: Vec<f32>,
}

impl Run {
    /// The state before the first evaluation.
    ///
    /// # Errors
    /// If the UNet takes other inputs.
    pub(super) fn new(parts: Parts) -> Result<Self, GenerateError> {
        let Parts { model, request, cancel, conditioning, unet, decoder, scheduler, first, latents } = parts;
        let unet_inputs = conditioning.unet_inputs(&unet, &request)?;
        let predicted = latents.clone();
        Ok(Run {
            model,
            request,
            cancel,
            unet,
            decoder,
            conditioning,
            unet_inputs,
            scheduler,
            latents,
            predicted,
            first,
            next: first,
        })
    }

    /// The words of the prompts that did not fit the text encoders.
    pub fn dropped(&self) -> &[DroppedWords] {
        &self.conditioning.dropped
    }

    /// Channels, height and width of the latents.
    pub fn latent_shape(&self) -> [usize; 3] {
        self.request.latent_shape(&self.model)
    }

    /// Evaluations of the UNet so far.
    pub fn done(&self) -> usize {
        self.next - self.first
    }

    /// Evaluations of the whole run. Some schedulers need more than one for a step.
    pub fn total(&self) -> usize {
        self.scheduler.timesteps().len() - self.first
    }

    /// The timesteps of all evaluations.
    pub fn timesteps(&self) -> &[f64] {
        self.scheduler.timesteps()
    }

    /// The latents (channels, height, width); final after the last step.
    pub fn latents(&self) -> &[f32] {
        &self.latents
    }

    /// The final latents that the last evaluation predicts, for previews.
    pub fn predicted(&self) -> &[f32] {
        &self.predicted
    }

    /// The number of predictions that guidance joins into one: 2, or 1 without guidance.
    pub fn samples(&self) -> usize {
        self.conditioning.samples
    }

    /// The graph of the UNet as it is run.
    pub fn unet_graph(&self) -> &Function {
        self.unet.graph()
    }

    /// The UNet's inputs in the next evaluation: one set, or two if the UNet takes one sample at a time.
    ///
    /// # Errors
    /// If all evaluations are done.
    pub fn inputs(&self) -> Result<Vec<Inputs>, GenerateError> {
        if self.is_done() {
            let what = format!("has only {} evaluations", self.scheduler.timesteps().len());
            return Err(GenerateError::Option { option: "steps", what });
        }
        let step = self.sample_and_timestep()?;
        let owned = |(name, value): (&'static str, &Tensor)| (name, value.clone());
        Ok(self
            .unet_inputs
            .iter()
            .map(|inputs| inputs.bind(&step).into_iter().map(owned).collect())
            .collect())
    }

    /// The final latents (channels, height, width) that the next evaluation predicts if the UNet's results
    /// for [`inputs`](Self::inputs) are `predictions`, one after the other.
    ///
    /// # Errors
    /// If the scheduler can't be built, or the number of predictions is wrong.
    pub fn denoised(&self, predictions: &[f32]) -> Result<Vec<f32>, GenerateError> {
        if predictions.len() != self.conditioning.samples * self.latents.len() {
            let what = format!("must be those of {} samples", self.conditioning.samples);
            return Err(GenerateError::Option { option: "predictions", what });
        }
        let guided = self.guided(predictions);
        // A scheduler of its own, because a step changes it.
        let mut scheduler = self.request.scheduler.build(self.request.steps)?;
        let step = StepInput { index: self.next, model_output: &guided, sample: &self.latents, images: 1 };
        let mut noise = TorchSource::new(0);
        // The evaluation before it tells whether this one is a step's second.
        if scheduler.order() == 2 && !self.done().is_multiple_of(2) {
            scheduler.step(StepInput { index: self.next - 1, ..step }, &mut noise);
        }
        Ok(scheduler.step(step, &mut noise).original)
    }

    /// True if all evaluations are done.
    pub(super) fn is_done(&self) -> bool {
        self.next >= self.scheduler.timesteps().len()
    }

    /// Evaluates the UNet once and takes the scheduler's step.
    ///
    /// # Errors
    /// If the UNet can't be run, or was cancelled, or its result is not finite.
    pub(super) fn step(
        &mut self,
        networks: &mut NetworkCache,
        noise: &mut dyn NoiseSource,
        on: &mut OnEvent,
    ) -> Result<(), GenerateError> {
        let prediction = self.predict(networks, on)?;
        let guided = self.guided(&prediction);
        let step = StepInput { index: self.next, model_output: &guided, sample: &self.latents, images: 1 };
        let output = self.scheduler.step(step, noise);
        (self.latents, self.predicted) = (output.previous, output.original);
        self.next += 1;
        self.unet.check_finite(&self.latents)?;
        on(Event::Step { done: self.done(), total: self.total(), predicted: &self.predicted });
        Ok(())
    }

    /// The UNet's predictions for all samples.
    fn predict(&self, networks: &mut NetworkCache, on: &mut OnEvent) -> Result<Vec<f32>, GenerateError> {
        let step = self.sample_and_timestep()?;
        let count = self.conditioning.samples * self.latents.len();
        let mut prediction = Vec::with_capacity(count);
        for inputs in &self.unet_inputs {
            let results = networks.run(&self.unet, &inputs.bind(&step), &self.cancel, on)?;
            prediction.extend_from_slice(self.unet.output(&results, io::NOISE_PRED)?);
        }
        prediction.truncate(count);
        self.unet.check_finite(&prediction)?;
        Ok(prediction)
    }

    fn guided(&self, prediction: &[f32]) -> Vec<f32> {
        match self.conditioning.samples {
            1 => prediction.to_vec(),
            _ => guidance::guide(prediction, self.request.guidance_scale, self.request.guidance_rescale),
        }
    }

    /// The UNet's inputs that differ from step to step.
    fn sample_and_timestep(&self) -> Result<[Tensor; 2], GenerateError> {
        let input = self.scheduler.scale_model_input(&self.latents, self.next);
        let declared = self.unet.inputs();
        let batch = batch(&declared);
        let [channels, height, width] = self.latent_shape();
        let sample = tensor(&[batch, channels, height, width], input.repeat(batch))?;
        let timesteps = vec![self.scheduler.timesteps()[self.next] as f32; batch];
        let timestep = match declared.iter().find(|input| input.name == io::TIMESTEP) {
            // One timestep for all samples, in packages of some tools.
            Some(input) if input.ty.count() == 1 => {
                as_declared(&input.ty.shape, timesteps[..1].to_vec(), input)?
            }
            Some(input) => as_declared(&[batch], timesteps, input)?,
            None => tensor(&[batch], timesteps)?,
        };
        Ok([sample, timestep])
    }
}
