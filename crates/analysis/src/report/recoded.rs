//! A model whose UNet is stored in fewer bits.

use std::sync::Arc;

use mixbit_compress::{Encoder, Layer, Plan, layers};
use mixbit_diffusion::arch::ArchError;
use mixbit_diffusion::model::DiffusionModel;
use mixbit_mil::{Function, constexpr};
use mixbit_packages::recipe::MatchError;
use thiserror::Error;

/// The plan for the layers of a UNet, made when its graph is built.
pub type Planner = dyn Fn(&[Layer]) -> Result<Plan, MatchError> + Send + Sync;

/// Why the layers of a UNet can't be stored as planned.
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

/// A model whose UNet can be stored by one plan after the other. Layers on which plans agree are encoded
/// once.
pub struct Recoded {
    model: Arc<DiffusionModel>,
    encoder: Arc<Encoder>,
}

impl Recoded {
    /// A model, with no layer encoded yet.
    pub fn new(model: Arc<DiffusionModel>) -> Self {
        Recoded { model, encoder: Arc::default() }
    }

    /// The model with its own weights.
    pub fn original(&self) -> Arc<DiffusionModel> {
        self.model.clone()
    }

    /// The model with the layers of its UNet stored by a plan. The plan is made and applied when the UNet's
    /// graph is built, so its errors are the network's.
    pub fn with(&self, planner: Box<Planner>) -> Arc<DiffusionModel> {
        let encoder = self.encoder.clone();
        let mut model = DiffusionModel::clone(&self.model);
        model.unet.network = self.model.unet.network.map(move |graph| {
            recoded(&graph, &*planner, &encoder)
                .map_err(|error| ArchError::Option { option: "recipe", what: error.to_string() })
        });
        Arc::new(model)
    }
}

/// The graph with its layers stored as planned.
fn recoded(graph: &Function, planner: &Planner, encoder: &Encoder) -> Result<Function, RecodeError> {
    let function = constexpr::decoded(graph)?;
    let layers = layers(&function);
    let plan = planner(&layers)?;
    let is_compressed = |layer: &&Layer| plan.contains_key(&layer.name) && layer.weight.encoding().is_some();
    if let Some(layer) = layers.iter().find(is_compressed) {
        return Err(RecodeError::Compressed { layer: layer.name.clone() });
    }
    Ok(encoder.apply(&function, &plan, &())?)
}
