//! The backend of each kind of network.

use std::collections::BTreeMap;
use std::sync::Arc;

use mixbit_engine::Backend;

/// A kind of network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// A text encoder: it encodes each prompt once.
    TextEncoder,
    /// The UNet: it predicts the noise in every step.
    Unet,
    /// The autoencoder's encoder: it encodes the image that denoising starts from, if there is one.
    Encoder,
    /// The autoencoder's decoder: it decodes the latents once.
    Decoder,
}

/// The backend of each kind of network.
#[derive(Clone)]
pub struct Placement {
    default: Arc<dyn Backend>,
    others: BTreeMap<Component, Arc<dyn Backend>>,
}

impl Placement {
    /// One backend for every network.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Placement { default: backend, others: BTreeMap::new() }
    }

    /// The same placement with another backend for one kind of network.
    pub fn with(mut self, component: Component, backend: Arc<dyn Backend>) -> Self {
        self.others.insert(component, backend);
        self
    }

    /// The backend of a kind of network.
    pub fn of(&self, component: Component) -> &Arc<dyn Backend> {
        self.others.get(&component).unwrap_or(&self.default)
    }
}

impl From<Arc<dyn Backend>> for Placement {
    fn from(backend: Arc<dyn Backend>) -> Self {
        Placement::new(backend)
    }
}

impl<B: Backend + 'static> From<Arc<B>> for Placement {
    fn from(backend: Arc<B>) -> Self {
        Placement::new(backend)
    }
}
