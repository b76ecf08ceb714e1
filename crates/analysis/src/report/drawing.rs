//! Images of a model whose UNet is stored in fewer bits.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use mixbit_compress::{Layer, Scheme, layers};
use mixbit_diffusion::arch::ArchError;
use mixbit_diffusion::model::{DiffusionModel, ModelError, Network};
use mixbit_diffusion::random::TorchSource;
use mixbit_diffusion::session::{Cancel, GenerateError, Image, Request, Session};
use mixbit_engine::Backend;
use mixbit_mil::{Constant, Function, WeightRef, constexpr};
use rayon::prelude::*;

use mixbit_packages::palettize::{Choices, Chosen};

/// An image and the latents that it was decoded from.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    /// The image.
    pub image: Image,
    /// Its latents (channels, height, width).
    pub latents: Vec<f32>,
}

/// Draws an image from the noise of PyTorch's generator. `progress` is told the evaluations that are done, and all.
///
/// # Errors
/// If the model or the request can't be run, or it was stopped.
pub fn draw(
    model: &DiffusionModel,
    backend: &Arc<dyn Backend>,
    request: &Request,
    cancel: &Cancel,
    seed: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Picture, GenerateError> {
    let mut session = Session::new(Arc::new(model.clone()), backend.clone());
    let mut noise = TorchSource::new(seed);
    let mut run = session.begin(request, &mut noise, cancel, &mut |_| {})?;
    progress(0, run.total());
    while session.step(&mut run, &mut noise, &mut |_| {})? {
        progress(run.done(), run.total());
    }
    Ok(Picture { image: session.decode(&run, run.latents(), &mut |_| {})?, latents: run.latents().to_vec() })
}

/// Says how the layers of a UNet are stored, or why they can't be stored so.
pub type Choose = dyn Fn(&[Layer]) -> anyhow::Result<Choices> + Send + Sync;

/// Weights that were encoded: by layer and scheme, with what they were fitted to.
type Encoded = HashMap<(String, String), (Option<Vec<f32>>, WeightRef)>;

/// A model whose UNet can be stored in one way after the other. What is encoded is kept, so that layers on which two
/// recipes agree are fitted once.
pub struct Recoded {
    model: DiffusionModel,
    original: Arc<Network>,
    encoded: Arc<Mutex<Encoded>>,
}

impl Recoded {
    /// The model as it is.
    pub fn new(mut model: DiffusionModel) -> Self {
        let component = model.unet.network.component().to_string();
        let placeholder = Network::new(component, |_| Err(refused("there is no network")));
        let original = Arc::new(std::mem::replace(&mut model.unet.network, placeholder));
        Recoded { model, original, encoded: Arc::default() }
    }

    /// With the weights that it came with.
    pub fn original(&mut self) -> &DiffusionModel {
        let original = self.original.clone();
        let build = move |options: &_| original.graph(options).map_err(unwrapped);
        self.model.unet.network = Network::new(self.original.component(), build);
        &self.model
    }

    /// With layers stored as `choose` says once their graph is built; what it refuses is then the network's error.
    pub fn with(&mut self, choose: Box<Choose>) -> &DiffusionModel {
        let (original, encoded) = (self.original.clone(), self.encoded.clone());
        let build = move |options: &_| {
            let graph = original.graph(options).map_err(unwrapped)?;
            recoded(&graph, &*choose, &encoded).map_err(|error| refused(&format!("{error:#}")))
        };
        self.model.unet.network = Network::new(self.original.component(), build);
        &self.model
    }
}

/// The graph with layers stored as chosen.
fn recoded(graph: &Function, choose: &Choose, cache: &Mutex<Encoded>) -> anyhow::Result<Function> {
    let mut function = constexpr::decoded(graph)?;
    let found = layers(&function);
    let chosen = choose(&found)?;
    let lock = || cache.lock().unwrap_or_else(PoisonError::into_inner);
    let encode = |layer: &Layer| -> anyhow::Result<Option<_>> {
        let Some(Chosen { scheme, importance }) = chosen.get(&layer.name) else { return Ok(None) };
        let key = (layer.name.clone(), format!("{scheme} {:?}", layer.ty()));
        if let Some((fitted, weight)) = lock().get(&key)
            && fitted == importance
        {
            return Ok(Some((layer.value, weight.clone())));
        }
        let weight = encoded(layer, *scheme, importance.as_deref())?;
        lock().insert(key, (importance.clone(), weight.clone()));
        Ok(Some((layer.value, weight)))
    };
    let new: Vec<Option<_>> = found.par_iter().map(encode).collect::<anyhow::Result<_>>()?;
    let new: HashMap<_, _> = new.into_iter().flatten().collect();
    function.map_constants(|id, _| {
        Ok::<_, mixbit_mil::Error>(new.get(&id).map(|weight| Constant::Weight(weight.clone())))
    })?;
    Ok(function)
}

fn encoded(layer: &Layer, scheme: Scheme, importance: Option<&[f32]>) -> anyhow::Result<WeightRef> {
    if layer.weight.encoding().is_some() {
        anyhow::bail!("layer `{}` is compressed already", layer.name);
    }
    scheme
        .encode(&layer.weight, importance)
        .map_err(|error| anyhow::Error::from(error).context(format!("layer `{}`", layer.name)))
}

/// A network's error without the component, which comes in front again.
fn unwrapped(error: ModelError) -> ArchError {
    match error {
        ModelError::Network { source, .. } => source,
        error => ArchError::Option { option: "network", what: error.to_string() },
    }
}

fn refused(what: &str) -> ArchError {
    ArchError::Option { option: "recipe", what: what.to_string() }
}
