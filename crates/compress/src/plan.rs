//! The scheme of each layer of a network.

use std::collections::BTreeMap;

use crate::{Calibration, Layer, Scheme};

/// The storage of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerPlan {
    /// The method and its width.
    pub scheme: Scheme,
    /// Statistics of the layer's inputs to fit to. Without, all errors count the same.
    pub calibration: Option<Calibration>,
}

impl From<Scheme> for LayerPlan {
    fn from(scheme: Scheme) -> Self {
        LayerPlan { scheme, calibration: None }
    }
}

/// The storage of a network's layers, by [name](Layer::name). Layers without an entry stay unchanged.
pub type Plan = BTreeMap<String, LayerPlan>;

/// A plan with one scheme for every layer of more than `min_size` weights.
pub fn uniform(layers: &[Layer], scheme: Scheme, min_size: usize) -> Plan {
    let large = layers.iter().filter(|layer| layer.count() > min_size);
    large.map(|layer| (layer.name.clone(), scheme.into())).collect()
}
