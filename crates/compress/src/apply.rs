use std::collections::HashMap;

use mixbit_mil::{Constant, Function, ValueId, WeightRef};
use rayon::prelude::*;

use crate::{Error, Layer, Scheme, layers};

/// How a layer is to be stored.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The form.
    pub scheme: Scheme,
    /// How much an error in each input channel matters; all the same without.
    pub importance: Option<&'a [f32]>,
}

impl From<Scheme> for Choice<'_> {
    fn from(scheme: Scheme) -> Self {
        Choice { scheme, importance: None }
    }
}

/// The function with layers compressed as `choose` says; those for which it says nothing stay as they are.
///
/// Palettes are fitted on all threads, and `progress` is told of each layer that is done; indices are computed when they
/// are read. The compressed constants become ops when [`mixbit_mil::constexpr::encoded`] is applied.
///
/// # Errors
/// [`Error::Layer`] for a weight that can't be compressed.
pub fn apply<'a>(
    function: &Function,
    choose: &(dyn Fn(&Layer) -> Option<Choice<'a>> + Sync),
    progress: &(dyn Fn(&Layer) + Sync),
) -> Result<Function, Error> {
    let encode = |layer: &Layer| -> Result<Option<(ValueId, WeightRef)>, Error> {
        let Some(choice) = choose(layer) else { return Ok(None) };
        let encoded = choice
            .scheme
            .encode(&layer.weight, choice.importance)
            .map_err(|source| Error::Layer { layer: layer.name.clone(), source: Box::new(source) })?;
        progress(layer);
        Ok(Some((layer.value, encoded)))
    };
    let encoded: Vec<Option<(ValueId, WeightRef)>> =
        layers(function).par_iter().map(encode).collect::<Result<_, Error>>()?;
    let mut encoded: HashMap<ValueId, WeightRef> = encoded.into_iter().flatten().collect();
    let mut out = function.clone();
    out.map_constants(|id, _| Ok::<_, Error>(encoded.remove(&id).map(Constant::Weight)))?;
    Ok(out)
}
