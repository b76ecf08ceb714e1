//! The measurements of an analysis, by scheme and by layer.

use mixbit_compress::{Layer, Scheme};

use super::distortion::psnrs;
use super::journal::{Journal, Key};
use super::outcome::Curve;

/// An order of layers: all layers up to and including each are measured together.
pub(super) struct Order {
    /// The scheme of all layers.
    pub(super) scheme: Scheme,
    /// The layers' indices.
    pub(super) layers: Vec<usize>,
}

/// The measurements of an analysis.
pub(super) struct Measurements {
    /// The errors by key.
    pub(super) journal: Journal,
    /// The schemes that each layer is measured under alone.
    pub(super) schemes: Vec<Scheme>,
    /// The orders in which layers are measured together.
    pub(super) orders: Vec<Order>,
    /// The number of measurements that exist.
    pub(super) done: usize,
    /// The number of all measurements.
    pub(super) total: usize,
}

impl Measurements {
    /// True if no measurement is missing.
    pub(super) fn are_complete(&self) -> bool {
        self.done == self.total
    }

    /// PSNR with one layer compressed, by scheme.
    pub(super) fn single_layer(&self, layers: &[Layer]) -> Vec<(Scheme, Curve)> {
        let curve = |scheme: &Scheme| {
            let psnr = |layer: &Layer| self.psnr(layer, &Key::isolated(&layer.name, scheme));
            (*scheme, layers.iter().map(psnr).collect())
        };
        self.schemes.iter().map(curve).collect()
    }

    /// PSNR with all layers of an order up to and including one compressed, by scheme.
    pub(super) fn cumulative(&self, layers: &[Layer]) -> Vec<(Scheme, Curve)> {
        let curve = |order: &Order| {
            let psnr = |&index: &usize| {
                let layer = &layers[index];
                self.psnr(layer, &Key::cumulative(&layer.name, &order.scheme))
            };
            (order.scheme, order.layers.iter().map(psnr).collect())
        };
        self.orders.iter().map(curve).collect()
    }

    /// PSNR with one layer in 8-bit integers.
    pub(super) fn int8(&self, layers: &[Layer]) -> Curve {
        layers.iter().map(|layer| self.psnr(layer, &Key::int8(&layer.name))).collect()
    }

    fn psnr(&self, layer: &Layer, key: &Key) -> (String, Vec<f64>) {
        (layer.name.clone(), psnrs(self.journal.get(key).unwrap_or_default()))
    }
}
