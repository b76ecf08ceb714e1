//! Sources of weights with some tensors replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{WeightError, WeightRef, Weights};

/// A source of weights with some tensors replaced: merged adapters, palettized layers, trial encodings.
///
/// Nothing is copied. A tensor of a new name is added to those of the base.
#[derive(Clone)]
pub struct Overlay {
    base: Arc<dyn Weights>,
    replaced: BTreeMap<String, WeightRef>,
}

impl Overlay {
    /// The tensors of `base`, except those that `replaced` has under the same name.
    pub fn new(base: Arc<dyn Weights>, replaced: BTreeMap<String, WeightRef>) -> Self {
        Overlay { base, replaced }
    }

    /// The tensors that stand in for those of the base, by name.
    pub fn replaced(&self) -> &BTreeMap<String, WeightRef> {
        &self.replaced
    }
}

impl Weights for Overlay {
    fn names(&self) -> Vec<&str> {
        let own = self.replaced.keys().map(String::as_str);
        let names: BTreeSet<&str> = self.base.names().into_iter().chain(own).collect();
        names.into_iter().collect()
    }

    fn get(&self, name: &str) -> Option<WeightRef> {
        self.replaced.get(name).cloned().or_else(|| self.base.get(name))
    }

    /// A replaced tensor has any shape in which the base gives its own.
    fn require(&self, name: &str, shape: &[usize]) -> Result<WeightRef, WeightError> {
        let Some(weight) = self.replaced.get(name) else { return self.base.require(name, shape) };
        if weight.ty().shape == shape {
            return Ok(weight.clone());
        }
        let reshaped = self.base.require(name, shape).ok().and_then(|_| weight.reshape(shape).ok());
        reshaped.ok_or_else(|| WeightError::Shape {
            name: name.to_string(),
            expected: shape.to_vec(),
            found: weight.ty().shape.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bytes, DType, TensorType};

    fn weight(name: &str, value: u8) -> WeightRef {
        WeightRef::new(name, TensorType::new(DType::U8, [1]), Bytes::new(vec![value])).unwrap()
    }

    fn named(weights: &[(&str, u8)]) -> BTreeMap<String, WeightRef> {
        weights.iter().map(|&(name, value)| (name.to_string(), weight(name, value))).collect()
    }

    struct Base(BTreeMap<String, WeightRef>);

    impl Weights for Base {
        fn names(&self) -> Vec<&str> {
            self.0.keys().map(String::as_str).collect()
        }

        fn get(&self, name: &str) -> Option<WeightRef> {
            self.0.get(name).cloned()
        }
    }

    #[test]
    fn overlays_stack() {
        let base = Arc::new(Base(named(&[("a", 1), ("c", 3)])));
        let first = Overlay::new(base, named(&[("a", 10), ("b", 20)]));
        let second = Overlay::new(Arc::new(first), named(&[("b", 30)]));
        assert_eq!(second.names(), ["a", "b", "c"]);
        let values = ["a", "b", "c"].map(|name| second.get(name).unwrap().read().unwrap()[0]);
        assert_eq!(values, [10, 30, 3]);
        assert!(second.get("d").is_none());
        assert!(second.require("a", &[2]).is_err());
    }
}
