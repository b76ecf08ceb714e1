//! Encoding of layers by a plan.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use mixbit_mil::{Function, Progress, Tally, Unit, ValueId, WeightRef};
use rayon::prelude::*;

use crate::{Calibration, Error, Layer, LayerPlan, Plan, layers};

/// Starts the threads that layers are fitted on, unless they run already.
///
/// # Errors
/// [`Error::Threads`] if the system refuses them: what runs on them would panic.
pub fn start_threads() -> Result<(), Error> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let start = || match rayon::ThreadPoolBuilder::new().build_global() {
        // Without a cause, somebody else has started them.
        Err(error) => error.source().map_or(Ok(()), |cause| Err(cause.to_string())),
        Ok(()) => Ok(()),
    };
    STARTED.get_or_init(start).clone().map_err(|cause| Error::Threads { cause })
}

/// An encoder of one network's layers, with a cache: layers on which plans agree are fitted once.
///
/// Layers of one name and type must have the same weights, so networks with other weights need another
/// encoder. The cache holds tables and scales; indices are computed whenever they are read.
#[derive(Debug, Default)]
pub struct Encoder {
    /// The latest encoding by layer and scheme.
    cache: Mutex<HashMap<(String, String), Encoded>>,
}

/// An encoded weight and the calibration that it was fitted to.
#[derive(Debug)]
struct Encoded {
    calibration: Option<Calibration>,
    weight: WeightRef,
}

impl Encoder {
    /// An encoder with an empty cache.
    pub fn new() -> Self {
        Encoder::default()
    }

    /// A layer's weight in the planned scheme.
    ///
    /// # Errors
    /// [`Error::Layer`] for a weight that can't be compressed, or a calibration that does not fit it.
    pub fn encode(&self, layer: &Layer, plan: &LayerPlan) -> Result<WeightRef, Error> {
        let key = (layer.name.clone(), plan.scheme.to_string());
        if let Some(known) = self.lock().get(&key)
            && known.calibration == plan.calibration
            && known.weight.ty() == layer.ty()
        {
            return Ok(known.weight.clone());
        }
        let weight = plan
            .scheme
            .encode(&layer.weight, plan.calibration.as_ref())
            .map_err(|source| Error::Layer { layer: layer.name.clone(), source: Box::new(source) })?;
        let calibration = plan.calibration.clone();
        self.lock().insert(key, Encoded { calibration, weight: weight.clone() });
        Ok(weight)
    }

    /// The function with its layers stored as planned.
    ///
    /// Layers are fitted on all threads, and `progress` counts them. The compressed constants become ops when
    /// [`mixbit_mil::constexpr::encoded`] is applied.
    ///
    /// # Errors
    /// [`Error::Layer`] for a weight that can't be compressed, [`Error::Stopped`] if `progress` stops it,
    /// [`Error::Threads`].
    pub fn apply(
        &self,
        function: &Function,
        plan: &Plan,
        progress: &dyn Progress,
    ) -> Result<Function, Error> {
        start_threads()?;
        let layers = layers(function);
        let planned: Vec<(&Layer, &LayerPlan)> =
            layers.iter().filter_map(|layer| Some((layer, plan.get(&layer.name)?))).collect();
        let tally = Tally::new(progress, planned.len() as u64, Unit::Layers);
        let encode = |&(layer, plan): &(&Layer, &LayerPlan)| -> Result<(ValueId, WeightRef), Error> {
            let weight = self.encode(layer, plan)?;
            tally.add(1)?;
            Ok((layer.value, weight))
        };
        let encoded: HashMap<ValueId, WeightRef> =
            planned.par_iter().map(encode).collect::<Result<_, Error>>()?;
        Ok(function.with_weights(&encoded))
    }

    /// The cache. A thread that panicked while it held the lock left it whole.
    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), Encoded>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use mixbit_mil::{Builder, Bytes, DType, Opset, Stopped, TensorType};

    use super::*;
    use crate::{Scheme, Width, uniform};

    fn weight(value: u8) -> WeightRef {
        let bytes = (0..128).map(|at| value.wrapping_add(at) & 0x3f).collect::<Vec<u8>>();
        WeightRef::new("a.weight", TensorType::new(DType::F16, [8, 8]), Bytes::new(bytes)).unwrap()
    }

    fn function(weight: WeightRef) -> Function {
        let mut b = Builder::new("main", Opset::Ios16);
        let x = b.input("x", TensorType::new(DType::F16, [1, 8])).unwrap();
        let w = b.weight(weight);
        let y = b.op("linear").arg("x", x).arg("weight", w).add().unwrap();
        b.finish(&[y]).unwrap()
    }

    #[test]
    fn a_layer_is_fitted_once_for_each_calibration() {
        let layer = layers(&function(weight(1))).remove(0);
        let other = Layer { weight: weight(9), ..layer.clone() };
        let plain = LayerPlan::from(Scheme::palette(Width::Two));
        let mean_square = vec![1.0, 2.0, 3.0, 4.0, 0.0, 0.0, 1.0, 9.0];
        let aware =
            LayerPlan { calibration: Some(Calibration::of_mean_square(mean_square)), ..plain.clone() };
        let encoder = Encoder::new();
        let read = |layer: &Layer, plan: &LayerPlan| {
            encoder.encode(layer, plan).unwrap().read().unwrap().into_owned()
        };
        let first = read(&layer, &plain);
        // From the cache, which has layers by name.
        assert_eq!(read(&other, &plain), first);
        let second = read(&layer, &aware);
        assert_ne!(second, first);
        assert_eq!(read(&layer, &plain), first);
    }

    #[test]
    fn progress_counts_layers_and_stops() {
        struct Stops;
        impl Progress for Stops {
            fn advance(&self, done: u64, total: u64, unit: Unit) -> Result<(), Stopped> {
                assert_eq!((done, total, unit), (1, 1, Unit::Layers));
                Err(Stopped)
            }
        }
        let function = function(weight(1));
        let plan = uniform(&layers(&function), Scheme::linear(), 0);
        let error = Encoder::new().apply(&function, &plan, &Stops).unwrap_err();
        assert!(matches!(error, Error::Stopped(_)), "{error}");
    }
}
