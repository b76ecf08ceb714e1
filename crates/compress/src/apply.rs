use std::collections::HashMap;

use mixbit_mil::{Constant, Function, Progress, Tally, Unit, ValueId, WeightRef};
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
/// Palettes are fitted on all threads, and `progress` counts the layers; indices are computed when they are read. The compressed constants become ops when [`mixbit_mil::constexpr::encoded`] is applied.
///
/// # Errors
/// [`Error::Layer`] for a weight that can't be compressed, [`Error::Stopped`] if `progress` stops it.
pub fn apply<'a>(
    function: &Function,
    choose: &(dyn Fn(&Layer) -> Option<Choice<'a>> + Sync),
    progress: &dyn Progress,
) -> Result<Function, Error> {
    let chosen: Vec<(Layer, Choice)> = layers(function)
        .into_iter()
        .filter_map(|layer| Some((choose(&layer)?, layer)))
        .map(|(c, l)| (l, c))
        .collect();
    let tally = Tally::new(progress, chosen.len() as u64, Unit::Layers);
    let encode = |(layer, choice): &(Layer, Choice)| -> Result<(ValueId, WeightRef), Error> {
        let encoded = choice
            .scheme
            .encode(&layer.weight, choice.importance)
            .map_err(|source| Error::Layer { layer: layer.name.clone(), source: Box::new(source) })?;
        tally.add(1)?;
        Ok((layer.value, encoded))
    };
    let mut encoded: HashMap<ValueId, WeightRef> =
        chosen.par_iter().map(encode).collect::<Result<_, Error>>()?;
    let mut out = function.clone();
    out.map_constants(|id, _| Ok::<_, Error>(encoded.remove(&id).map(Constant::Weight)))?;
    Ok(out)
}
