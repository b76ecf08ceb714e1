//! The networks of a request by themselves, to measure them.

use std::sync::Arc;

use mixbit_engine::{Cancel, Tensor, Timing, TracedStep};
use mixbit_mil::Function;

use super::cache::NetworkCache;
use super::conditioning;
use super::decoder::DecoderPlan;
use super::error::GenerateError;
use super::event::OnEvent;
use super::network::{PlannedNetwork, tensor};
use super::placement::Component;
use super::precision::Precision;
use super::{Request, Session};
use crate::arch::io;
use crate::model::DiffusionModel;
use crate::random::NoiseSource;

/// A network of a session, prepared and run as for a request, on the request's prompt or on noise.
pub struct PipelineStage {
    /// The kind of network.
    pub component: Component,
    /// The folder that it comes from.
    pub folder: String,
    /// The precision that it is computed in.
    pub precision: Precision,
    work: Work,
}

enum Work {
    /// A network that is evaluated with the same inputs one or more times.
    Network { planned: Arc<PlannedNetwork>, inputs: Vec<(String, Tensor)>, evaluations: usize },
    /// A decoder of latents (channels, height, width).
    Decoder { plan: Arc<DecoderPlan>, shape: [usize; 3], latents: Vec<f32> },
}

impl Session {
    /// The stages of these kinds in the order in which an image needs them, each planned for `runs` runs.
    /// Nothing is compiled yet.
    ///
    /// # Errors
    /// As for [`begin`](Self::begin), but for errors that only a run finds.
    pub fn stages(
        &mut self,
        request: &Request,
        components: &[Component],
        runs: usize,
        noise: &mut dyn NoiseSource,
    ) -> Result<Vec<PipelineStage>, GenerateError> {
        let model = self.model(request.role)?.clone();
        request.check(&model)?;
        let mut stages = Vec::new();
        if components.contains(&Component::TextEncoder) {
            for index in 0..model.text_encoders.len() {
                stages.push(self.text_encoder_stage(&model, request, index, runs)?);
            }
        }
        if components.contains(&Component::Unet) {
            stages.push(self.unet_stage(&model, request, runs, noise)?);
        }
        if components.contains(&Component::Decoder) {
            let shape = request.latent_shape(&model);
            let latents = normals(noise, shape.iter().product());
            let (plan, _) = self.decoder_plan(&model, request, runs)?;
            let precision = plan.precision();
            stages.push(PipelineStage {
                component: Component::Decoder,
                folder: model.autoencoder.decoder.component().to_string(),
                precision,
                work: Work::Decoder { plan, shape, latents },
            });
        }
        Ok(stages)
    }

    fn text_encoder_stage(
        &mut self,
        model: &DiffusionModel,
        request: &Request,
        index: usize,
        runs: usize,
    ) -> Result<PipelineStage, GenerateError> {
        let encoder = &model.text_encoders[index];
        let key = conditioning::text_encoder_key(model, request, encoder, &self.placement);
        let precision = key.precision;
        let evaluations = conditioning::prompt_count(model, request);
        let planned = self.networks.plan(key, runs * evaluations)?;
        let tokens = encoder.tokenizer.length();
        let encoding = encoder.tokenizer.encode(&request.text.prompt).map_err(GenerateError::Prompt)?;
        let ids = tensor(&[1, tokens], encoding.ids.iter().map(|&id| id as f32).collect())?;
        Ok(PipelineStage {
            component: Component::TextEncoder,
            folder: planned.component().to_string(),
            precision,
            work: Work::Network { planned, inputs: vec![(io::INPUT_IDS.to_string(), ids)], evaluations },
        })
    }

    fn unet_stage(
        &mut self,
        model: &DiffusionModel,
        request: &Request,
        runs: usize,
        noise: &mut dyn NoiseSource,
    ) -> Result<PipelineStage, GenerateError> {
        let samples = if request.is_guided(model) { 2 } else { 1 };
        let tokens = model.text_encoders.first().map_or(1, |encoder| encoder.tokenizer.length());
        let key = conditioning::unet_key(model, request, samples, tokens, &self.placement);
        let planned = self.networks.plan(key, runs * samples)?;
        let declared = planned.inputs();
        let evaluations = samples.div_ceil(conditioning::batch(&declared));
        let inputs = declared.into_iter().map(|input| {
            let values = normals(noise, input.ty.count());
            Ok((input.name, tensor(&input.ty.shape, values)?))
        });
        Ok(PipelineStage {
            component: Component::Unet,
            folder: planned.component().to_string(),
            precision: request.precision,
            work: Work::Network {
                inputs: inputs.collect::<Result<_, GenerateError>>()?,
                planned,
                evaluations,
            },
        })
    }
}

impl PipelineStage {
    /// Compiles the network, unless the session has it.
    ///
    /// # Errors
    /// If the backend can't run it.
    pub fn load(&self, session: &mut Session) -> Result<(), GenerateError> {
        let (networks, on): (&mut NetworkCache, &mut OnEvent) = (&mut session.networks, &mut |_| {});
        match &self.work {
            Work::Network { planned, .. } => networks.load(planned, on),
            Work::Decoder { plan, .. } => plan.load(networks, on),
        }
    }

    /// Does the network's part of an image: encodes the prompts, evaluates the UNet for one step with
    /// guidance if the request has it, or decodes.
    ///
    /// # Errors
    /// If it can't be run, or was cancelled.
    pub fn run(&self, session: &mut Session, cancel: &Cancel) -> Result<(), GenerateError> {
        let (networks, on): (&mut NetworkCache, &mut OnEvent) = (&mut session.networks, &mut |_| {});
        match &self.work {
            Work::Network { planned, inputs, evaluations } => {
                let inputs: Vec<(&str, &Tensor)> =
                    inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
                (0..*evaluations).try_for_each(|_| networks.run(planned, &inputs, cancel, on).map(|_| ()))
            }
            Work::Decoder { plan, shape, latents } => {
                plan.run(networks, *shape, latents.clone(), cancel, on).map(|_| ())
            }
        }
    }

    /// The graph that is run; `None` for a decoder in tiles.
    pub fn graph(&self) -> Option<&Function> {
        match &self.work {
            Work::Network { planned, .. } => Some(planned.graph()),
            Work::Decoder { plan, .. } => plan.graph(),
        }
    }

    /// Evaluations of the network in one [`run`](Self::run); 1 for a decoder in tiles.
    pub fn evaluations(&self) -> usize {
        match self.work {
            Work::Network { evaluations, .. } => evaluations,
            Work::Decoder { .. } => 1,
        }
    }

    /// The time of all runs by kind of op, the longest first.
    pub fn profile(&self, session: &Session) -> Vec<Timing> {
        match &self.work {
            Work::Network { planned, .. } => session.networks.profile(|key| *key == planned.key),
            Work::Decoder { plan, .. } => plan.profile(&session.networks),
        }
    }

    /// The steps of the last evaluation; for a decoder in tiles, those of the whole plane and those of the
    /// last tile.
    pub fn trace(&self, session: &Session) -> Vec<Vec<TracedStep>> {
        match &self.work {
            Work::Network { planned, .. } => vec![session.networks.trace(planned)],
            Work::Decoder { plan, .. } => plan.trace(&session.networks),
        }
    }
}

fn normals(noise: &mut dyn NoiseSource, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    noise.fill(&mut values);
    values
}
