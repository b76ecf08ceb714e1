//! What a network is measured on: prompts, seeds and the states that denoising goes through.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, bail};
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::TorchSource;
use mixbit_diffusion::session::{Cancel, Inputs, Request, Run, Session, Text};
use mixbit_engine::Backend;
use mixbit_mil::Function;
use serde::{Deserialize, Serialize};

/// The prompts that are measured on when nobody says others: by turns for calibration and for verification.
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

/// A state to measure on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// What is drawn.
    pub prompt: String,
    /// The seed of the noise.
    pub seed: u64,
    /// The evaluation of the network that is measured: its position in the run.
    pub evaluation: usize,
}

/// How images are drawn that are measured on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// What not to draw; absent is not the same as empty.
    pub negative_prompt: Option<String>,
    /// Width and height in pixels.
    pub size: [usize; 2],
    /// Inference steps of the model's own scheduler.
    pub steps: usize,
    /// The scale of classifier-free guidance.
    pub guidance_scale: f32,
}

/// A state of denoising and what the network's output means for the image.
pub(super) struct Sample {
    /// The network's inputs, run by run.
    pub(super) inputs: Vec<Inputs>,
    /// The denoised latents are `offset + slope * guided`, where `guided` is the guided prediction.
    offset: Vec<f32>,
    slope: f32,
    /// The guidance scale, if there are two predictions.
    guidance: Option<f32>,
    pub(super) timestep: f64,
}

impl Sample {
    /// The state that a run is in.
    fn new(run: &Run, scale: f32) -> anyhow::Result<Self> {
        let count = run.samples() * run.latents().len();
        let offset = run.denoised(&vec![0.0; count])?;
        let one = run.denoised(&vec![1.0; count])?;
        let slope = one.iter().zip(&offset).map(|(one, zero)| one - zero).sum::<f32>() / offset.len() as f32;
        let guidance = (run.samples() == 2).then_some(scale);
        let timestep = run.timesteps().get(run.done()).copied().unwrap_or_default();
        Ok(Sample { inputs: run.inputs()?, offset, slope, guidance, timestep })
    }

    /// The predictions that make one.
    pub(super) fn rows(&self) -> usize {
        if self.guidance.is_some() { 2 } else { 1 }
    }

    /// The denoised latents of the network's outputs, one after the other.
    pub(super) fn denoised(&self, predictions: &[f32]) -> Vec<f32> {
        let count = self.offset.len();
        let guided = |at: usize| match self.guidance {
            Some(scale) => predictions[at] + scale * (predictions[count + at] - predictions[at]),
            None => predictions[at],
        };
        (0..count).map(|at| self.offset[at] + self.slope * guided(at)).collect()
    }
}

/// Draws images as far as the points ask for, and gives the states in the points' order, the network's graph and the
/// number of the network's runs that it took.
pub(super) fn samples(
    model: &DiffusionModel,
    backend: &Arc<dyn Backend>,
    setting: &Setting,
    points: &[Point],
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<(Vec<Sample>, Function, usize)> {
    let mut samples: Vec<Option<Sample>> = points.iter().map(|_| None).collect();
    let (mut graph, mut runs) = (None, 0);
    let (model, cancel) = (Arc::new(model.clone()), Cancel::from(stop.clone()));
    let mut session = Session::new(model.clone(), backend.clone());
    for first in points {
        let same: Vec<usize> = (0..points.len())
            .filter(|&at| (&points[at].prompt, points[at].seed) == (&first.prompt, first.seed))
            .collect();
        if samples[same[0]].is_some() {
            continue;
        }
        let text =
            Text { negative_prompt: setting.negative_prompt.clone(), ..Text::new(first.prompt.as_str()) };
        let request = Request {
            size: setting.size,
            steps: setting.steps,
            guidance_scale: setting.guidance_scale,
            ..Request::new(&model, text)
        };
        let mut noise = TorchSource::new(first.seed);
        let mut run = session.begin(&request, &mut noise, &cancel, &mut |_| {})?;
        let last = same.iter().map(|&at| points[at].evaluation).max().unwrap_or(0);
        if last >= run.total() {
            bail!("evaluation {last} is past the last of {} steps", setting.steps);
        }
        for evaluation in 0..=last {
            for &at in same.iter().filter(|&&at| points[at].evaluation == evaluation) {
                samples[at] = Some(Sample::new(&run, setting.guidance_scale)?);
            }
            if evaluation < last {
                session.step(&mut run, &mut noise, &mut |_| {})?;
                runs += 1;
            }
        }
        if graph.is_none() {
            graph = Some(run.unet_graph().clone());
        }
    }
    let graph = graph.context("there is no prompt to measure on")?;
    Ok((samples.into_iter().flatten().collect(), graph, runs))
}
