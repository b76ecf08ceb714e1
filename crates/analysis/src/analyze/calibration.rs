//! Samples: states of denoising, reached by drawing images.

use std::sync::Arc;

use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::TorchSource;
use mixbit_diffusion::session::{Cancel, GenerateError, Inputs, Request, Run, Session, Text};
use mixbit_engine::Backend;
use mixbit_mil::Function;

use super::error::AnalyzeError;
use super::point::{Point, Setting};

/// A state of denoising, and the meaning of the network's output for the image.
pub(super) struct Sample {
    /// The network's inputs, evaluation by evaluation.
    pub(super) inputs: Vec<Inputs>,
    /// The denoised latents are `offset + slope * guided`, where `guided` is the guided prediction.
    offset: Vec<f32>,
    slope: f32,
    /// The guidance scale, if there are two predictions.
    guidance: Option<f32>,
    pub(super) timestep: f64,
}

impl Sample {
    /// The current state of a run.
    fn new(run: &Run, scale: f32) -> Result<Self, GenerateError> {
        let count = run.samples() * run.latents().len();
        let offset = run.denoised(&vec![0.0; count])?;
        let one = run.denoised(&vec![1.0; count])?;
        let slope = one.iter().zip(&offset).map(|(one, zero)| one - zero).sum::<f32>() / offset.len() as f32;
        let guidance = (run.samples() == 2).then_some(scale);
        let timestep = run.timesteps().get(run.done()).copied().unwrap_or_default();
        Ok(Sample { inputs: run.inputs()?, offset, slope, guidance, timestep })
    }

    /// The number of predictions that guidance joins into one.
    pub(super) fn predictions(&self) -> usize {
        if self.guidance.is_some() { 2 } else { 1 }
    }

    /// The denoised latents for the network's outputs, one after the other.
    pub(super) fn denoised(&self, predictions: &[f32]) -> Vec<f32> {
        let count = self.offset.len();
        let guided = |at: usize| match self.guidance {
            Some(scale) => predictions[at] + scale * (predictions[count + at] - predictions[at]),
            None => predictions[at],
        };
        (0..count).map(|at| self.offset[at] + self.slope * guided(at)).collect()
    }
}

/// The samples of some states, and the network that they are inputs of.
pub(super) struct Samples {
    /// The samples, in the order of the states.
    pub(super) samples: Vec<Sample>,
    /// The network's graph.
    pub(super) graph: Function,
    /// The number of steps that drawing took.
    pub(super) steps: usize,
}

/// Draws the images of some states, each up to its last state.
///
/// # Errors
/// If the model or the setting can't be run, a state is past the end of its run, or the work was cancelled.
pub(super) fn samples(
    model: &Arc<DiffusionModel>,
    backend: &Arc<dyn Backend>,
    setting: &Setting,
    points: &[Point],
    cancel: &Cancel,
) -> Result<Samples, AnalyzeError> {
    let mut samples: Vec<Option<Sample>> = points.iter().map(|_| None).collect();
    let (mut graph, mut steps) = (None, 0);
    let mut session = Session::new(model.clone(), backend.clone());
    for image in images(points) {
        let first = &points[image[0]];
        let mut noise = TorchSource::new(first.seed);
        let request = request(model, setting, first)?;
        let mut run = session.begin(&request, &mut noise, cancel, &mut |_| {})?;
        let last = image.iter().map(|&at| points[at].evaluation).max().unwrap_or(0);
        if last >= run.total() {
            return Err(AnalyzeError::PastTheEnd { evaluation: last, steps: setting.steps });
        }
        for evaluation in 0..=last {
            for &at in image.iter().filter(|&&at| points[at].evaluation == evaluation) {
                samples[at] = Some(Sample::new(&run, setting.guidance_scale)?);
            }
            if evaluation < last {
                session.step(&mut run, &mut noise, &mut |_| {})?;
                steps += 1;
            }
        }
        graph.get_or_insert_with(|| run.unet_graph().clone());
    }
    let graph = graph.ok_or(AnalyzeError::NoPoints)?;
    Ok(Samples { samples: samples.into_iter().flatten().collect(), graph, steps })
}

/// The indices of the states of each image, in the order of its first state.
fn images(points: &[Point]) -> Vec<Vec<usize>> {
    let mut images: Vec<Vec<usize>> = Vec::new();
    for (index, point) in points.iter().enumerate() {
        let is_same = |image: &&mut Vec<usize>| {
            let first = &points[image[0]];
            (&first.prompt, first.seed) == (&point.prompt, point.seed)
        };
        match images.iter_mut().find(is_same) {
            Some(image) => image.push(index),
            None => images.push(vec![index]),
        }
    }
    images
}

fn request(model: &DiffusionModel, setting: &Setting, point: &Point) -> Result<Request, GenerateError> {
    let negative_prompt = setting.negative_prompt.clone();
    Ok(Request {
        size: setting.size,
        steps: setting.steps,
        guidance_scale: setting.guidance_scale,
        ..Request::new(model, Text { negative_prompt, ..Text::new(point.prompt.as_str()) })?
    })
}
