//! Requests to images: prompts to embeddings, the denoising loop with classifier-free guidance, latents to
//! pixels.
//!
//! ```no_run
//! # fn files() -> Box<dyn mixbit_diffusion::model::ModelFiles> { unimplemented!() }
//! # fn backend() -> std::sync::Arc<dyn mixbit_engine::Backend> { unimplemented!() }
//! use std::sync::Arc;
//!
//! use mixbit_diffusion::session::{Cancel, Event, Placement, Request, Session, Text};
//! use mixbit_diffusion::{model::DiffusionModel, random::random_source};
//!
//! let model = Arc::new(DiffusionModel::from_files(&*files())?);
//! let request = Request::new(&model, Text::new("a red circle"))?;
//! let mut session = Session::new(model, Placement::new(backend()));
//! let mut noise = random_source("torch")?.seeded(93)?;
//! let image = session.generate(&request, &mut *noise, &Cancel::default(), &mut |event| {
//!     if let Event::Step { done, total, .. } = event {
//!         println!("{done} of {total}");
//!     }
//! })?;
//! let pixels: Vec<u8> = image.to_rgb8();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The results are those of diffusers' pipelines. A request makes one image: a batch is the images that its
//! seeds give alone, each from its own random source.
//!
//! [`Session::begin`], [`Session::step`] and [`Session::decode`] are the parts of [`Session::generate`], for
//! previews and for measurements.

mod cache;
mod conditioning;
mod decoder;
mod encoder;
mod error;
mod event;
mod guidance;
mod image;
mod network;
mod placement;
mod precision;
mod recent;
mod request;
mod role;
mod run;
mod stage;
mod start;
mod text;
mod tiles;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use mixbit_engine::{Cancel, MemoryBudget};
use mixbit_engine::{Error, Timing};

pub use conditioning::Inputs;
pub use error::GenerateError;
pub use event::{Event, OnEvent};
pub use image::Image;
pub use placement::{Component, Placement};
pub use precision::Precision;
pub use request::{MAX_SIZE, Request, Start};
pub use role::Role;
pub use run::Run;
pub use stage::PipelineStage;
pub use text::{DroppedWords, MicroConditioning, Text};
pub use tiles::Tiling;

use crate::model::{DiffusionModel, Network};
use crate::random::NoiseSource;
use cache::NetworkCache;
use conditioning::{Conditioning, Encoders, PromptCache, unet_key};
use decoder::{DecoderPlan, DecoderPlans};

/// The settings of a session. They decide memory and time, never a picture.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// The memory for intermediate results and packed weights of all networks.
    pub budget: MemoryBudget,
    /// True if a network is unloaded when another is at work, so that no two are in memory together.
    pub reduce_memory: bool,
    /// The number of images for which packing weights is to pay. With 1, packing pays in runs of many steps
    /// alone.
    pub planned_images: usize,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions { budget: MemoryBudget::unlimited(), reduce_memory: false, planned_images: 1 }
    }
}

/// Models that are ready to draw, one request after another.
///
/// Networks are compiled when a request first needs them, and kept with their packed weights for the next
/// requests, as far as the memory budget allows: the least recently used is unloaded first. One network is at
/// work at a time, and only that one holds memory for intermediate results and pages of mapped weights.
pub struct Session {
    models: BTreeMap<Role, Arc<DiffusionModel>>,
    placement: Placement,
    planned_images: usize,
    networks: NetworkCache,
    prompts: PromptCache,
    decoders: DecoderPlans,
}

impl Session {
    /// A session with a base model and default options.
    pub fn new(model: Arc<DiffusionModel>, placement: impl Into<Placement>) -> Self {
        Self::with_options(model, placement, SessionOptions::default())
    }

    /// A session with a base model.
    pub fn with_options(
        model: Arc<DiffusionModel>,
        placement: impl Into<Placement>,
        options: SessionOptions,
    ) -> Self {
        Session {
            models: BTreeMap::from([(Role::Base, model)]),
            placement: placement.into(),
            planned_images: options.planned_images.max(1),
            networks: NetworkCache::new(options.budget, options.reduce_memory),
            prompts: PromptCache::new(),
            decoders: DecoderPlans::new(),
        }
    }

    /// Puts a model into a role. Networks that no model of the session has any longer are unloaded.
    pub fn set_model(&mut self, role: Role, model: Arc<DiffusionModel>) {
        self.models.insert(role, model);
        let models = &self.models;
        let is_kept = |network: &Network| models.values().any(|model| model.has(network));
        self.networks.retain(is_kept);
        self.prompts.retain(is_kept);
        self.decoders.retain(is_kept);
    }

    /// The model in a role.
    ///
    /// # Errors
    /// [`GenerateError::NoModel`] if the session has none.
    pub fn model(&self, role: Role) -> Result<&Arc<DiffusionModel>, GenerateError> {
        self.models.get(&role).ok_or(GenerateError::NoModel { role })
    }

    /// Draws one image. `noise` gives the starting noise and the noise that the scheduler asks for.
    ///
    /// # Errors
    /// If the request does not fit the model, a network can't be run, or `cancel` was raised. Memory that is
    /// too small is reported before the first step. The session stays usable.
    pub fn generate(
        &mut self,
        request: &Request,
        noise: &mut dyn NoiseSource,
        cancel: &Cancel,
        on: &mut OnEvent,
    ) -> Result<Image, GenerateError> {
        let mut run = self.begin(request, noise, cancel, on)?;
        while self.step(&mut run, noise, on)? {}
        self.decode(&run, run.latents(), on)
    }

    /// Encodes the prompts, compiles the UNet and makes the starting latents. The decoder is planned here and
    /// compiled on first use.
    ///
    /// # Errors
    /// As for [`generate`](Self::generate).
    pub fn begin(
        &mut self,
        request: &Request,
        noise: &mut dyn NoiseSource,
        cancel: &Cancel,
        on: &mut OnEvent,
    ) -> Result<Run, GenerateError> {
        let model = self.model(request.role)?.clone();
        request.check(&model)?;
        let scheduler = request.scheduler.build(request.steps)?;
        let first = start::first_evaluation(request, &*scheduler)?;
        let mut encoders = Encoders {
            placement: &self.placement,
            networks: &mut self.networks,
            prompts: &mut self.prompts,
            cancel,
        };
        let conditioning = Conditioning::encode(&model, request, &mut encoders, on)?;
        let encoded = match &request.start {
            Start::Image { image, .. } => Some(encoders.image(&model, request, image, noise, on)?),
            _ => None,
        };
        let (samples, tokens) = (conditioning.samples, conditioning.tokens);
        let key = unet_key(&model, request, samples, tokens, &self.placement);
        let evaluations = scheduler.timesteps().len() * self.planned_images;
        let unet = self.networks.plan(key, evaluations)?;
        let (decoder, decoder_bytes) = self.decoder_plan(&model, request, self.planned_images)?;
        let count = request.latent_shape(&model).iter().product();
        let latents = start::sample(request, encoded.as_deref(), &*scheduler, first, count, noise)?;
        let parts = run::Parts {
            model,
            request: request.clone(),
            cancel: cancel.clone(),
            conditioning,
            unet: unet.clone(),
            decoder: decoder.clone(),
            scheduler,
            first,
            latents,
        };
        let run = Run::new(parts)?;
        // Packed weights leave room for the decoder, unless the UNet alone needs that memory.
        let room = self.networks.budget().reserve(decoder_bytes as u64);
        let loaded = self.networks.load(&unet, on);
        drop(room);
        match loaded {
            Err(GenerateError::Engine { source: Error::Memory { .. }, .. }) => {
                self.networks.load(&unet, on)?
            }
            loaded => loaded?,
        }
        Ok(run)
    }

    /// Evaluates the UNet once more, and returns whether there was anything left to do. `noise` gives the
    /// noise that the scheduler asks for.
    ///
    /// # Errors
    /// If the UNet can't be run, the run was cancelled, or [`GenerateError::NotFinite`].
    pub fn step(
        &mut self,
        run: &mut Run,
        noise: &mut dyn NoiseSource,
        on: &mut OnEvent,
    ) -> Result<bool, GenerateError> {
        if run.is_done() {
            return Ok(false);
        }
        run.step(&mut self.networks, noise, on)?;
        Ok(true)
    }

    /// Decodes latents (channels, height, width) of a run.
    ///
    /// # Errors
    /// If the decoder can't be run, the run was cancelled, or [`GenerateError::NotFinite`].
    pub fn decode(&mut self, run: &Run, latents: &[f32], on: &mut OnEvent) -> Result<Image, GenerateError> {
        on(Event::Decoding);
        let latents = run.model.autoencoder.latent.to_decoder(latents);
        let planes = run.decoder.run(&mut self.networks, run.latent_shape(), latents, &run.cancel, on);
        self.networks.suspend();
        Ok(Image::new(run.request.size, planes?))
    }

    /// Unloads the UNet of a run. It is compiled again if another step follows.
    pub fn unload_unet(&mut self, run: &Run) {
        self.networks.unload(&run.unet.key.network);
    }

    /// Unloads every network. The next requests compile them again.
    pub fn unload(&mut self) {
        self.networks.unload_all();
    }

    /// The number of networks compiled so far.
    pub fn compilations(&self) -> usize {
        self.networks.compilations()
    }

    /// The time of all runs of the UNet and of the decoder of a role's model by kind of op, with the folder
    /// that each network comes from.
    pub fn profile(&self, role: Role) -> Vec<(String, Vec<Timing>)> {
        let networks = self.models.get(&role).map(|model| [&model.unet.network, &model.autoencoder.decoder]);
        let timings = |network: &Network| {
            (network.component().to_string(), self.networks.profile(|key| key.network == *network))
        };
        networks.into_iter().flatten().map(timings).collect()
    }

    fn decoder_plan(
        &mut self,
        model: &DiffusionModel,
        request: &Request,
        images: usize,
    ) -> Result<(Arc<DecoderPlan>, usize), GenerateError> {
        // Memory of suspended networks counts as free.
        self.networks.suspend();
        self.decoders.plan(model, request, &self.placement, &mut self.networks, images)
    }
}
