//! The networks of a pipeline by themselves, to measure them.

use mixbit_engine::{Backend, Tensor, Timing, TracedStep};
use mixbit_mil::Function;

use super::conditioning::{self, has_guidance, prompts};
use super::decoding::{self, Decoding};
use super::stage::Stage;
use super::{PipelineError, Precision, Request, graph_options, tensor};
use crate::arch::GraphOptions;
use crate::model::DiffusionModel;
use crate::random::NoiseSource;

/// What a network does for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A text encoder: it encodes the prompts, once.
    Text,
    /// The UNet: it predicts the noise, in every step.
    Unet,
    /// The autoencoder's decoder: it decodes the latents, once.
    Decoder,
}

/// A network of a model, prepared and run as a [`Pipeline`](super::Pipeline) does for the same request, on given prompts
/// and on noise.
pub struct Part<'m> {
    /// What the network does.
    pub role: Role,
    /// The folder that it comes from.
    pub component: &'m str,
    /// What it is computed in.
    pub precision: Precision,
    work: Work<'m>,
}

enum Work<'m> {
    /// A network that is evaluated with the same inputs one or more times.
    Network { stage: Box<Stage<'m>>, inputs: Vec<(String, Tensor)>, evaluations: usize },
    /// A decoder of latents (channels, height, width).
    Decoder { decoding: Decoding<'m>, shape: [usize; 3], latents: Vec<f32> },
}

impl<'m> Part<'m> {
    /// The networks of these roles in the order in which an image needs them. None is compiled yet.
    ///
    /// # Errors
    /// As [`Pipeline::new`](super::Pipeline::new), without what only a run finds.
    pub fn of(
        model: &'m DiffusionModel,
        backend: &'m dyn Backend,
        request: &Request,
        roles: &[Role],
        noise: &mut dyn NoiseSource,
    ) -> Result<Vec<Self>, PipelineError> {
        request.check(model)?;
        let mut parts = Vec::new();
        if roles.contains(&Role::Text) {
            for index in 0..model.text_encoders.len() {
                parts.push(Self::text(model, backend, request, index)?);
            }
        }
        if roles.contains(&Role::Unet) {
            parts.push(Self::unet(model, backend, request, noise)?);
        }
        if roles.contains(&Role::Decoder) {
            let scale = model.decoder.latent.scale;
            let shape = [model.decoder.latent.channels, request.size[1] / scale, request.size[0] / scale];
            let latents = normals(noise, shape.iter().product());
            let decoding = Decoding::new(model, backend, request)?;
            let component = model.decoder.network.component();
            let precision = decoding::precision(model, request, backend);
            let work = Work::Decoder { decoding, shape, latents };
            parts.push(Part { role: Role::Decoder, component, precision, work });
        }
        Ok(parts)
    }

    fn text(
        model: &'m DiffusionModel,
        backend: &'m dyn Backend,
        request: &Request,
        index: usize,
    ) -> Result<Self, PipelineError> {
        let encoder = &model.text_encoders[index];
        let precision = request.precision.around(backend);
        let tokens = encoder.tokenizer.length();
        let options = GraphOptions { tokens, ..graph_options(model, request, precision) };
        let stage = Stage::new(&encoder.network, backend, &options, request, precision)?;
        let encoding = encoder.tokenizer.encode(&request.text.prompt).map_err(PipelineError::Prompt)?;
        let ids = tensor(&[1, tokens], encoding.ids.iter().map(|&id| id as f32).collect())?;
        let work = Work::Network {
            stage: Box::new(stage),
            inputs: vec![("input_ids".to_string(), ids)],
            evaluations: prompts(model, request),
        };
        Ok(Part { role: Role::Text, component: encoder.network.component(), precision, work })
    }

    fn unet(
        model: &'m DiffusionModel,
        backend: &'m dyn Backend,
        request: &Request,
        noise: &mut dyn NoiseSource,
    ) -> Result<Self, PipelineError> {
        let network = &model.unet.network;
        let samples = if has_guidance(model, request) { 2 } else { 1 };
        let options = GraphOptions {
            batch: samples,
            tokens: model.text_encoders.first().map_or(1, |encoder| encoder.tokenizer.length()),
            time_ids: model.unet.time_ids.unwrap_or_default(),
            ..graph_options(model, request, request.precision)
        };
        let stage = Stage::new(network, backend, &options, request, request.precision)?;
        let declared = stage.inputs();
        let evaluations = samples.div_ceil(conditioning::batch(&declared));
        let inputs = declared.into_iter().map(|input| {
            let values = normals(noise, input.ty.count());
            Ok((input.name, tensor(&input.ty.shape, values)?))
        });
        let inputs = inputs.collect::<Result<_, PipelineError>>()?;
        let work = Work::Network { stage: Box::new(stage), inputs, evaluations };
        Ok(Part { role: Role::Unet, component: network.component(), precision: request.precision, work })
    }

    /// Compiles the network, unless it is.
    ///
    /// # Errors
    /// If the backend can't run it.
    pub fn load(&mut self) -> Result<(), PipelineError> {
        match &mut self.work {
            Work::Network { stage, .. } => stage.load().map(|_| ()),
            Work::Decoder { decoding, .. } => decoding.load(),
        }
    }

    /// Does what an image needs of the network: encodes the prompts, evaluates the UNet for one step with guidance if the
    /// request has it, or decodes.
    ///
    /// # Errors
    /// If it can't be run.
    pub fn run(&mut self) -> Result<(), PipelineError> {
        match &mut self.work {
            Work::Network { stage, inputs, evaluations } => {
                let inputs: Vec<(&str, &Tensor)> =
                    inputs.iter().map(|(name, value)| (name.as_str(), value)).collect();
                (0..*evaluations).try_for_each(|_| stage.run(&inputs).map(|_| ()))
            }
            Work::Decoder { decoding, shape, latents } => decoding.run(*shape, latents.clone()).map(|_| ()),
        }
    }

    /// Gives all memory back; the next run compiles the network again.
    pub fn release(&mut self) {
        match &mut self.work {
            Work::Network { stage, .. } => stage.release(),
            Work::Decoder { decoding, .. } => decoding.release(),
        }
    }

    /// The graph that is run; of a decoder in tiles, none.
    pub fn graph(&self) -> Option<&Function> {
        match &self.work {
            Work::Network { stage, .. } => Some(stage.graph()),
            Work::Decoder { decoding: Decoding::Whole(stage), .. } => Some(stage.graph()),
            Work::Decoder { .. } => None,
        }
    }

    /// How often the network is evaluated in one [`run`](Self::run); of a decoder in tiles, once.
    pub fn evaluations(&self) -> usize {
        match self.work {
            Work::Network { evaluations, .. } => evaluations,
            Work::Decoder { .. } => 1,
        }
    }

    /// Where the time of all runs went.
    pub fn profile(&self) -> Vec<Timing> {
        match &self.work {
            Work::Network { stage, .. } => stage.profile(),
            Work::Decoder { decoding, .. } => decoding.profile(),
        }
    }

    /// The steps of the last evaluation; of a decoder in tiles, those of the whole plane and those of the last tile.
    pub fn trace(&self) -> Vec<Vec<TracedStep>> {
        match &self.work {
            Work::Network { stage, .. } => vec![stage.trace()],
            Work::Decoder { decoding, .. } => decoding.trace(),
        }
    }
}

fn normals(noise: &mut dyn NoiseSource, count: usize) -> Vec<f32> {
    let mut values = vec![0.0; count];
    noise.fill(&mut values);
    values
}
