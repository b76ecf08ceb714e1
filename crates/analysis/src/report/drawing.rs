//! Images of a model whose UNet is stored in fewer bits.

use std::sync::Arc;

use mixbit_compress::{Encoder, Layer, Plan, layers};
use mixbit_diffusion::arch::ArchError;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_diffusion::random::TorchSource;
use mixbit_diffusion::session::{Cancel, GenerateError, Image, Request, Run, Session};
use mixbit_mil::{Function, Progress, Stopped, Unit, constexpr};

use mixbit_packages::recipe::MatchError;
use thiserror::Error;

/// An image and the latents that it was decoded from.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// The image.
    pub image: Image,
    /// Its latents (channels, height, width).
    pub latents: Vec<f32>,
}

/// Draws an image from the noise of PyTorch's generator. `progress` counts evaluations of the UNet.
///
/// # Errors
/// If the model or the request can't be run, or the work was cancelled.
pub fn draw(
    session: &mut Session,
    request: &Request,
    seed: u64,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Picture, GenerateError> {
    let report = |run: &Run| {
        let (done, total) = (run.done() as u64, run.total() as u64);
        progress.advance(done, total, Unit::Steps).map_err(|Stopped| GenerateError::Cancelled)
    };
    let mut noise = TorchSource::new(seed);
    let mut run = session.begin(request, &mut noise, cancel, &mut |_| {})?;
    report(&run)?;
    while session.step(&mut run, &mut noise, &mut |_| {})? {
        report(&run)?;
    }
    let image = session.decode(&run, run.latents(), &mut |_| {})?;
    Ok(Picture { image, latents: run.latents().to_vec() })
}

/// The progress of one of several equal pieces of work, as that of all of them.
#[derive(Clone, Copy)]
pub struct OneOf<'p> {
    /// The receiver of the progress of all pieces.
    pub progress: &'p dyn Progress,
    /// The position of the piece, from 0.
    pub index: usize,
    /// The number of pieces.
    pub count: usize,
}

impl Progress for OneOf<'_> {
    fn advance(&self, done: u64, total: u64, unit: Unit) -> Result<(), Stopped> {
        self.progress.advance(self.index as u64 * total + done, self.count as u64 * total, unit)
    }
}

/// The choice of a scheme for each layer of a UNet.
pub type Choose = dyn Fn(&[Layer]) -> Result<Plan, MatchError> + Send + Sync;

/// Why the layers of a UNet can't be stored as chosen.
#[derive(Debug, Error)]
#[allow(missing_docs, reason = "the message names each field")]
enum RecodeError {
    #[error(transparent)]
    Match(#[from] MatchError),
    #[error("layer `{layer}` is compressed already")]
    Compressed { layer: String },
    #[error(transparent)]
    Compress(#[from] mixbit_compress::Error),
    #[error(transparent)]
    Graph(#[from] mixbit_mil::Error),
}

/// A model whose UNet can be stored by one choice of schemes after the other. Layers on which two choices
/// agree are encoded once.
pub struct Recoded {
    model: Arc<DiffusionModel>,
    encoder: Arc<Encoder>,
}

impl Recoded {
    /// A model, and no encoded layers yet.
    pub fn new(model: Arc<DiffusionModel>) -> Self {
        Recoded { model, encoder: Arc::default() }
    }

    /// The model with its own weights.
    pub fn original(&self) -> Arc<DiffusionModel> {
        self.model.clone()
    }

    /// The model with a choice of schemes for the layers of its UNet. It is made when the UNet's graph is
    /// built, and its error is then the network's.
    pub fn with(&self, choose: Box<Choose>) -> Arc<DiffusionModel> {
        let encoder = self.encoder.clone();
        let mut model = DiffusionModel::clone(&self.model);
        model.unet.network = self.model.unet.network.map(move |graph| {
            recoded(&graph, &*choose, &encoder)
                .map_err(|error| ArchError::Option { option: "recipe", what: error.to_string() })
        });
        Arc::new(model)
    }
}

/// The graph with layers stored as chosen.
fn recoded(graph: &Function, choose: &Choose, encoder: &Encoder) -> Result<Function, RecodeError> {
    let function = constexpr::decoded(graph)?;
    let found = layers(&function);
    let plan = choose(&found)?;
    let compressed = |layer: &&Layer| plan.contains_key(&layer.name) && layer.weight.encoding().is_some();
    if let Some(layer) = found.iter().find(compressed) {
        return Err(RecodeError::Compressed { layer: layer.name.clone() });
    }
    Ok(encoder.apply(&function, &plan, &())?)
}
