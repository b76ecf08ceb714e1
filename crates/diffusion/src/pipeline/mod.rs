//! Text to image: prompts to text states, the denoising loop with classifier-free guidance, latents to pixels.
//!
//! ```no_run
//! # fn files() -> Box<dyn mixbit_diffusion::model::ModelFiles> { unimplemented!() }
//! use mixbit_diffusion::{model::DiffusionModel, pipeline::{Pipeline, Request, Start, Text}, random::random_source};
//!
//! let model = DiffusionModel::from_files(&*files())?;
//! let backend = mixbit_engine_cpu::Cpu::new(None)?;
//! let request = Request::new(&model, Text::new("a red circle"));
//! let mut pipeline = Pipeline::new(&model, &backend, request)?;
//! let mut noise = random_source("torch")?.seeded(93)?;
//! let mut run = pipeline.begin(Start::Noise, &mut *noise)?;
//! while pipeline.step(&mut run, &mut *noise)? {
//!     println!("{} of {}", run.done(), run.total());
//! }
//! let pixels: Vec<u8> = pipeline.decode(run.latents())?.to_rgb8();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The results are those of diffusers' pipelines. A pipeline makes one image at a time: image by image, each from its own
//! random source, a batch is the images that its seeds give alone.

mod conditioning;
mod decoding;
mod error;
mod guidance;
mod image;
mod part;
mod stage;
mod start;
mod tiles;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mixbit_engine::{Arithmetic, Backend, Tensor};
use mixbit_mil::DType;

pub use conditioning::{DroppedWords, MicroConditioning, Text};
pub use decoding::Tiling;
pub use error::PipelineError;
pub use image::Image;
pub use part::{Part, Role};
pub use start::Start;

use crate::arch::GraphOptions;
use crate::model::{Decoder, DiffusionModel, Network};
use crate::random::NoiseSource;
use crate::scheduler::{Scheduler, SchedulerConfig, StepInput};
use conditioning::{Conditioning, Told};
use decoding::Decoding;
use stage::Stage;

/// The largest width and height in pixels.
pub const MAX_SIZE: usize = 8192;

/// What to compute in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Every number in `fp32`.
    #[default]
    F32,
    /// What layers multiply is rounded to `bf16`; sums, and everything that is not a product, are `fp32`.
    Bf16,
    /// What layers multiply is quantized to 8 bits, but in those that the model excepts
    /// ([`Network::full_precision`](crate::model::Network::full_precision)); the decoder and the text encoders, which are
    /// small, are computed in [`fastest`](Self::fastest).
    Int8,
    /// Graphs of `fp16`, every result rounded to it, as a Core ML device computes. An autoencoder that asks for `fp32`
    /// gets it.
    F16,
}

/// What to draw.
#[derive(Clone, Debug)]
pub struct Request {
    /// The prompts.
    pub text: Text,
    /// Width and height in pixels, multiples of the latent scale, 8.
    pub size: [usize; 2],
    /// Inference steps.
    pub steps: usize,
    /// The scale of classifier-free guidance; up to 1 there is none and the negative prompt does not count.
    pub guidance_scale: f32,
    /// How far the guided prediction is brought back to the deviation of the unguided one (arXiv 2305.08891), 0 to 1.
    pub guidance_rescale: f32,
    /// The scheduler.
    pub scheduler: SchedulerConfig,
    /// The sizes that the networks of Stable Diffusion XL are told.
    pub micro: MicroConditioning,
    /// What to compute in.
    pub precision: Precision,
    /// Whether the image is decoded in tiles.
    pub tiling: Tiling,
    /// Whether a network is loaded anew each time that it is needed, so that no two are in memory together.
    pub reduce_memory: bool,
    /// A flag that stops the work as soon as it is raised, from any thread.
    pub stop: Option<Arc<AtomicBool>>,
}

impl Request {
    /// The model's own defaults.
    pub fn new(model: &DiffusionModel, text: Text) -> Self {
        Request {
            text,
            size: model.defaults.size,
            steps: model.defaults.steps,
            guidance_scale: model.defaults.guidance_scale,
            guidance_rescale: 0.0,
            scheduler: model.scheduler.clone(),
            micro: MicroConditioning::default(),
            precision: Precision::default(),
            tiling: Tiling::default(),
            reduce_memory: false,
            stop: None,
        }
    }

    fn check(&self, model: &DiffusionModel) -> Result<(), PipelineError> {
        let option = |option, what: String| Err(PipelineError::Option { option, what });
        let scale = model.decoder.latent.scale;
        for (name, extent) in [("width", self.size[0]), ("height", self.size[1])] {
            if !(1..=MAX_SIZE).contains(&extent) || !extent.is_multiple_of(scale) {
                let below = (extent / scale * scale).clamp(scale, MAX_SIZE);
                let what =
                    format!("must be a multiple of {scale} up to {MAX_SIZE}, not {extent}; try {below}");
                return option(name, what);
            }
        }
        if !self.guidance_scale.is_finite() {
            return option("guidance scale", format!("must be finite, not {}", self.guidance_scale));
        }
        if !(0.0..=1.0).contains(&self.guidance_rescale) {
            return option("guidance rescale", format!("must be 0 to 1, not {}", self.guidance_rescale));
        }
        Ok(())
    }
}

/// An image on its way from noise.
pub struct Run {
    scheduler: Box<dyn Scheduler>,
    latents: Vec<f32>,
    predicted: Vec<f32>,
    first: usize,
    next: usize,
}

impl Run {
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

    /// The latents (channels, height, width); final once there is nothing left to do.
    pub fn latents(&self) -> &[f32] {
        &self.latents
    }

    /// The final latents that the last evaluation predicts, for previews.
    pub fn predicted(&self) -> &[f32] {
        &self.predicted
    }
}

/// The inputs of a UNet by name.
pub type Inputs = Vec<(&'static str, Tensor)>;

/// A model that is ready to draw one request.
///
/// One network is at work at a time, and only that one has memory for intermediate results and holds pages of mapped
/// weights: text encoders are gone when the prompts are encoded; the UNet and the decoder rest while the other works.
pub struct Pipeline<'m> {
    model: &'m DiffusionModel,
    request: Request,
    unet: Stage<'m>,
    conditioning: Conditioning,
    /// What the UNet is told in each evaluation of a step.
    told: Vec<Told>,
    decoder: Decoding<'m>,
}

impl<'m> Pipeline<'m> {
    /// Encodes the prompts and prepares the UNet. The decoder is compiled when an image is decoded.
    ///
    /// # Errors
    /// [`PipelineError`] if the request or the model can't be run, the decoder included: what does not fit into memory
    /// is known before the work of all steps is done.
    pub fn new(
        model: &'m DiffusionModel,
        backend: &'m dyn Backend,
        request: Request,
    ) -> Result<Self, PipelineError> {
        request.check(model)?;
        request.scheduler.build(request.steps)?;
        let conditioning = Conditioning::encode(model, backend, &request)?;
        let options = GraphOptions {
            batch: conditioning.samples,
            tokens: conditioning.tokens,
            time_ids: model.unet.time_ids.unwrap_or_default(),
            ..graph_options(model, &request, request.precision)
        };
        let mut unet = Stage::new(&model.unet.network, backend, &options, &request, request.precision)?;
        let told = conditioning.fit(&unet.inputs(), &request)?;
        let decoder = Decoding::new(model, backend, &request)?;
        unet.load()?;
        Ok(Pipeline { model, request, unet, conditioning, told, decoder })
    }

    /// What of the prompts did not fit the text encoders.
    pub fn dropped(&self) -> &[DroppedWords] {
        &self.conditioning.dropped
    }

    /// Channels, height and width of the latents.
    pub fn latent_shape(&self) -> [usize; 3] {
        let latent = &self.model.decoder.latent;
        let [width, height] = self.request.size;
        [latent.channels, height / latent.scale, width / latent.scale]
    }

    /// Begins an image. `noise` gives the starting noise.
    ///
    /// # Errors
    /// If the scheduler can't be built or `start` does not fit the request.
    pub fn begin(&self, start: Start<'_>, noise: &mut dyn NoiseSource) -> Result<Run, PipelineError> {
        let scheduler = self.request.scheduler.build(self.request.steps)?;
        let count = self.latent_shape().iter().product();
        let (first, latents) = start.begin(&*scheduler, &self.request, count, noise)?;
        Ok(Run { predicted: latents.clone(), latents, scheduler, first, next: first })
    }

    /// Evaluates the UNet once more, and says whether there was anything left to do. `noise` gives what the scheduler
    /// asks for.
    ///
    /// # Errors
    /// If the UNet can't be run, or [`PipelineError::NotFinite`].
    pub fn step(&mut self, run: &mut Run, noise: &mut dyn NoiseSource) -> Result<bool, PipelineError> {
        if run.next >= run.scheduler.timesteps().len() {
            return Ok(false);
        }
        let model_output = self.predict(&*run.scheduler, &run.latents, run.next)?;
        let step =
            StepInput { index: run.next, model_output: &model_output, sample: &run.latents, images: 1 };
        let output = run.scheduler.step(step, noise);
        (run.latents, run.predicted) = (output.previous, output.original);
        run.next += 1;
        self.check_finite(&self.model.unet.network, &run.latents)?;
        Ok(true)
    }

    /// Predictions that make one: 2 with guidance.
    pub fn samples(&self) -> usize {
        self.conditioning.samples
    }

    /// The graph of the UNet as it is run.
    pub fn unet_graph(&self) -> &mixbit_mil::Function {
        self.unet.graph()
    }

    /// Gives all memory of the UNet back. For when no more steps are to follow; one that does loads it again.
    pub fn release_unet(&mut self) {
        self.unet.release();
    }

    /// What the UNet is given in the next evaluation of a run, once or, if it takes one sample at a time, twice.
    ///
    /// # Errors
    /// If there is nothing left to do.
    pub fn inputs(&self, run: &Run) -> Result<Vec<Inputs>, PipelineError> {
        if run.next >= run.scheduler.timesteps().len() {
            let what = format!("has only {} evaluations", run.scheduler.timesteps().len());
            return Err(PipelineError::Option { option: "steps", what });
        }
        let step = self.sample_and_timestep(&*run.scheduler, &run.latents, run.next)?;
        let owned = |(name, value): (&'static str, &Tensor)| (name, value.clone());
        Ok(self.told.iter().map(|told| told.bind(&step).into_iter().map(owned).collect()).collect())
    }

    /// The final latents (channels, height, width) that an evaluation predicts, if the UNet's results for
    /// [`inputs`](Self::inputs) are `predictions`, one after the other.
    ///
    /// # Errors
    /// If the scheduler can't be built or the predictions are not as many as the latents ask for.
    pub fn denoised(&self, run: &Run, predictions: &[f32]) -> Result<Vec<f32>, PipelineError> {
        if predictions.len() != self.conditioning.samples * run.latents.len() {
            let what = format!("must be those of {} samples", self.conditioning.samples);
            return Err(PipelineError::Option { option: "predictions", what });
        }
        let guided = self.guided(predictions);
        // One of its own, for a step changes it.
        let mut scheduler = self.request.scheduler.build(self.request.steps)?;
        let step = StepInput { index: run.next, model_output: &guided, sample: &run.latents, images: 1 };
        Ok(scheduler.step(step, &mut crate::random::TorchSource::new(0)).original)
    }

    /// The inputs of the UNet that differ from step to step.
    fn sample_and_timestep(
        &self,
        scheduler: &dyn Scheduler,
        sample: &[f32],
        index: usize,
    ) -> Result<[Tensor; 2], PipelineError> {
        let input = scheduler.scale_model_input(sample, index);
        let batch = conditioning::batch(&self.unet.inputs());
        let [channels, height, width] = self.latent_shape();
        let sample = tensor(&[batch, channels, height, width], input.repeat(batch))?;
        let timestep = tensor(&[batch], vec![scheduler.timesteps()[index] as f32; batch])?;
        Ok([sample, timestep])
    }

    /// The guided prediction for a sample.
    fn predict(
        &mut self,
        scheduler: &dyn Scheduler,
        sample: &[f32],
        index: usize,
    ) -> Result<Vec<f32>, PipelineError> {
        self.decoder_makes_way();
        let step = self.sample_and_timestep(scheduler, sample, index)?;
        let mut prediction = Vec::with_capacity(self.conditioning.samples * sample.len());
        for told in &self.told {
            let results = self.unet.run(&told.bind(&step))?;
            prediction.extend_from_slice(self.unet.output(&results, "noise_pred")?);
        }
        prediction.truncate(self.conditioning.samples * sample.len());
        self.check_finite(self.unet.network(), &prediction)?;
        Ok(self.guided(&prediction))
    }

    fn guided(&self, prediction: &[f32]) -> Vec<f32> {
        match self.conditioning.samples {
            1 => prediction.to_vec(),
            _ => guidance::guide(prediction, self.request.guidance_scale, self.request.guidance_rescale),
        }
    }

    /// Where the time of the UNet and of the decoder went, by network.
    pub fn profile(&self) -> Vec<(&str, Vec<mixbit_engine::Timing>)> {
        let DiffusionModel { unet, decoder, .. } = self.model;
        vec![
            (unet.network.component(), self.unet.profile()),
            (decoder.network.component(), self.decoder.profile()),
        ]
    }

    /// Decodes latents (channels, height, width).
    ///
    /// # Errors
    /// If the decoder can't be run, or [`PipelineError::NotFinite`].
    pub fn decode(&mut self, latents: &[f32]) -> Result<Image, PipelineError> {
        self.unet_makes_way();
        let Decoder { network, latent, .. } = &self.model.decoder;
        let values = self.decoder.run(self.latent_shape(), latent.to_decoder(latents))?;
        self.check_finite(network, &values)?;
        Ok(Image::new(self.request.size, values))
    }

    fn unet_makes_way(&mut self) {
        match self.request.reduce_memory {
            true => self.unet.release(),
            false => self.unet.rest(),
        }
    }

    fn decoder_makes_way(&mut self) {
        match self.request.reduce_memory {
            true => self.decoder.release(),
            false => self.decoder.rest(),
        }
    }

    fn check_finite(&self, network: &Network, values: &[f32]) -> Result<(), PipelineError> {
        let options = graph_options(self.model, &self.request, self.request.precision);
        check_finite(network, &options, values)
    }
}

/// Refuses results that are not finite, and names the weight that is to blame.
fn check_finite(network: &Network, options: &GraphOptions, values: &[f32]) -> Result<(), PipelineError> {
    if values.iter().all(|value| value.is_finite()) {
        return Ok(());
    }
    Err(PipelineError::NotFinite {
        network: network.component().to_string(),
        weight: Network::not_finite_weight(&network.graph(options)?),
    })
}

fn graph_options(model: &DiffusionModel, request: &Request, precision: Precision) -> GraphOptions {
    let scale = model.decoder.latent.scale;
    GraphOptions {
        height: request.size[1] / scale,
        width: request.size[0] / scale,
        dtype: precision.dtype(),
        ..GraphOptions::default()
    }
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 4] = [Precision::F32, Precision::Bf16, Precision::Int8, Precision::F16];

    /// The name on command lines and in parameters.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::Int8 => "int8",
            Precision::F16 => "f16",
        }
    }

    /// One line of what it means.
    pub fn about(self) -> &'static str {
        match self {
            Precision::F32 => "32-bit floats",
            Precision::Bf16 => "products of bfloat16, sums in 32 bits",
            Precision::Int8 => "the UNet's products of 8-bit integers, but in layers that a recipe excepts",
            Precision::F16 => "32-bit floats, every result rounded to 16 bits as Core ML devices do",
        }
    }

    /// The fastest on a backend of those that keep the quality of images.
    pub fn fastest(backend: &dyn Backend) -> Self {
        match backend.fastest() {
            Arithmetic::Bf16 => Precision::Bf16,
            _ => Precision::F32,
        }
    }

    /// The precision of networks around the UNet.
    fn around(self, backend: &dyn Backend) -> Self {
        if self == Precision::Int8 { Self::fastest(backend) } else { self }
    }

    fn dtype(self) -> DType {
        match self {
            Precision::F32 | Precision::Bf16 | Precision::Int8 => DType::F32,
            Precision::F16 => DType::F16,
        }
    }

    /// How the engine computes it.
    pub fn arithmetic(self) -> Arithmetic {
        match self {
            Precision::F32 => Arithmetic::F32,
            Precision::Bf16 => Arithmetic::Bf16,
            Precision::Int8 => Arithmetic::Int8,
            Precision::F16 => Arithmetic::AsDeclared,
        }
    }
}

fn engine_error(network: &Network, source: mixbit_engine::Error) -> PipelineError {
    match source {
        mixbit_engine::Error::Cancelled => PipelineError::Stopped,
        source => PipelineError::Engine { network: network.component().to_string(), source },
    }
}

fn tensor(shape: &[usize], values: Vec<f32>) -> Result<Tensor, PipelineError> {
    Tensor::from_f32(shape, values).map_err(PipelineError::Tensor)
}
