//! A model with adapters added.

use std::collections::BTreeMap;
use std::sync::Arc;

use mixbit_mil::{Bytes, Computed, DType, Overlay, TensorType, WeightRef, Weights, with_branches};
use rayon::prelude::*;

use super::branches::{branch, is_branched};
use super::change::floats;
use super::delta::{Delta, Kind};
use super::error::AdapterError;
use super::file::Layer;
use super::kind;
use super::targets::{Target, Targets};
use super::{Adapter, Fit, Strength};
use crate::arch::ArchError;
use crate::model::{DiffusionModel, FileError, ModelError, ModelFiles, ModelFilesLayer, Network};

/// The changes of one component's tensors, by name, in the order in which they apply.
type Changes = BTreeMap<String, Vec<Delta>>;

/// The changes of a layer, and the reason why one of them has no place.
type Matches = (Vec<(Target, Delta)>, Option<String>);

/// A model's files with adapters added to the weights. A weight that one changes is computed whenever it is
/// read; [`model`](Self::model) computes them once.
pub struct Merged {
    base: Box<dyn ModelFiles>,
    targets: Targets,
    changes: BTreeMap<&'static str, Changes>,
}

impl Merged {
    /// A model without adapters yet.
    ///
    /// # Errors
    /// A configuration or weights that can't be read.
    pub fn new(base: Box<dyn ModelFiles>) -> Result<Self, AdapterError> {
        let targets = Targets::of(&*base)?;
        Ok(Merged { base, targets, changes: BTreeMap::new() })
    }

    /// Adds an adapter to those that are there.
    ///
    /// # Errors
    /// [`AdapterError::OtherModel`], [`AdapterError::NoMatch`], or weights that can't be read.
    pub fn add(&mut self, adapter: &Adapter, strength: Strength) -> Result<Fit, AdapterError> {
        let mut fit = Fit { layers: adapter.layers.len(), ..Fit::default() };
        let mut weights: BTreeMap<&str, Arc<dyn Weights>> = BTreeMap::new();
        let mut found = Vec::new();
        for layer in &adapter.layers {
            let (own, what) = self.matches(layer, &mut weights, strength)?;
            fit.matched += usize::from(!own.is_empty());
            match what {
                Some(what) => fit.unmatched.push(format!("{} ({what})", layer.name)),
                None if own.is_empty() => fit.unmatched.push(layer.name.clone()),
                None => {}
            }
            found.extend(own);
        }
        fit.unmatched.extend(adapter.others.iter().cloned());
        self.check(adapter, &fit)?;
        for (target, delta) in found {
            let changes = self.changes.entry(target.component).or_default();
            changes.entry(target.tensor).or_default().push(delta);
        }
        Ok(fit)
    }

    /// The tensors that a layer changes, and the reason why it does not change one.
    fn matches(
        &self,
        layer: &Arc<Layer>,
        weights: &mut BTreeMap<&str, Arc<dyn Weights>>,
        strength: Strength,
    ) -> Result<Matches, AdapterError> {
        let (mut found, mut misfit) = (Vec::new(), None);
        let Some(module) = self.targets.find(&layer.name) else { return Ok((found, None)) };
        let of_kind = [
            (Kind::Weight, layer.weight.is_some(), &module.weight),
            (Kind::Bias, layer.bias.is_some(), &module.bias),
        ];
        for (kind, is_there, targets) in of_kind {
            if is_there && targets.is_empty() {
                misfit = Some(format!("the model's layer has no {}", kind.name()));
            }
            for target in targets.iter().filter(|_| is_there) {
                let own = match weights.get(target.component) {
                    Some(own) => own.clone(),
                    None => {
                        let own = self.base.weights(target.component).map_err(AdapterError::File)?;
                        weights.entry(target.component).or_insert(own).clone()
                    }
                };
                let Some(weight) = own.get(&target.tensor) else { continue };
                let factor = strength.for_component(target.component);
                match Delta::new(layer, kind, &weight.ty().shape, target.rows, factor) {
                    Ok(_) if !weight.ty().dtype.is_float() => {
                        misfit = Some("the model's weight is of integers".to_string());
                    }
                    Ok(delta) => found.push((target.clone(), delta)),
                    Err(what) => misfit = Some(what),
                }
            }
        }
        Ok((found, misfit))
    }

    /// Refuses an adapter for other models.
    fn check(&self, adapter: &Adapter, fit: &Fit) -> Result<(), AdapterError> {
        let model = self.targets.text_channels.map(kind::of_width);
        let model = || model.clone().unwrap_or_else(|| "one without prompts".to_string());
        let width = adapter.layers.iter().find_map(|layer| kind::text_width(layer));
        if let (Some(made), Some(own)) = (width, self.targets.text_channels)
            && made != own
        {
            return Err(AdapterError::OtherModel { made_for: kind::of_width(made), model: model() });
        }
        if fit.matched > 0 {
            return Ok(());
        }
        Err(AdapterError::NoMatch {
            layers: fit.layers,
            first: fit.unmatched.first().cloned().unwrap_or_default(),
            made_for: adapter.made_for.clone(),
            model: model(),
        })
    }

    /// The model, ready to run. Each changed weight is computed once and kept in memory, in its element type.
    /// A compressed weight stays as it is if its changes are low-rank: they are computed beside it.
    ///
    /// # Errors
    /// Those of [`DiffusionModel::from_files`].
    pub fn model(&self) -> Result<DiffusionModel, ModelError> {
        let mut model = DiffusionModel::from_files(&InMemory(self))?;
        let encoders = model.text_encoders.iter_mut().map(|encoder| &mut encoder.network);
        for network in encoders.chain([&mut model.unet.network]) {
            if let Some(branched) = self.branched(network).map_err(ModelError::File)? {
                *network = branched;
            }
        }
        Ok(model)
    }

    /// Bytes of compressed weights that are kept uncompressed, as their changes are not low-rank.
    ///
    /// # Errors
    /// Weights that can't be read.
    pub fn unpacked_bytes(&self) -> Result<usize, AdapterError> {
        let mut bytes = 0;
        for (component, changes) in &self.changes {
            let base = self.base.weights(component).map_err(AdapterError::File)?;
            for (name, deltas) in changes {
                let weight =
                    base.get(name).filter(|weight| weight.is_compressed() && !is_branched(weight, deltas));
                bytes += weight.and_then(|weight| weight.ty().byte_len()).unwrap_or(0);
            }
        }
        Ok(bytes)
    }

    /// A network with branches for low-rank changes of compressed weights; `None` if there are none.
    fn branched(&self, network: &Network) -> Result<Option<Network>, FileError> {
        let Some(changes) = self.changes.get(network.component()) else { return Ok(None) };
        let base = self.base.weights(network.component())?;
        let mut branches = BTreeMap::new();
        for (name, deltas) in changes {
            if let Some(weight) = base.get(name).filter(|weight| is_branched(weight, deltas)) {
                branches.insert(name.clone(), branch(&weight, deltas)?);
            }
        }
        if branches.is_empty() {
            return Ok(None);
        }
        let change = move |function| {
            let of = |weight: &WeightRef| branches.get(weight.name()).cloned();
            with_branches(&function, of).map_err(ArchError::Graph)
        };
        Ok(Some(network.map(change)))
    }

    /// The changed tensors of a component.
    fn changed(&self, component: &str, base: &dyn Weights) -> BTreeMap<String, WeightRef> {
        let changes = self.changes.get(component).into_iter().flatten();
        let one = |(name, deltas): (&String, &Vec<Delta>)| {
            let base = base.get(name)?;
            let ty = element_type(&base);
            let sum = Arc::new(Sum { base, deltas: deltas.clone() });
            Some((name.clone(), WeightRef::computed(name.as_str(), ty, sum)))
        };
        changes.filter_map(one).collect()
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Weight => "weight",
            Kind::Bias => "bias",
        }
    }
}

impl ModelFilesLayer for Merged {
    fn base(&self) -> &dyn ModelFiles {
        &*self.base
    }

    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError> {
        let base = self.base.weights(component)?;
        match self.changed(component, &*base) {
            changed if changed.is_empty() => Ok(base),
            changed => Ok(Arc::new(Overlay::new(base, changed))),
        }
    }
}

/// A [`Merged`] model whose changed weights are in memory.
struct InMemory<'m>(&'m Merged);

impl ModelFilesLayer for InMemory<'_> {
    fn base(&self) -> &dyn ModelFiles {
        self.0
    }

    fn weights(&self, component: &str) -> Result<Arc<dyn Weights>, FileError> {
        let base = self.0.base.weights(component)?;
        let mut changed = self.0.changed(component, &*base);
        if let Some(changes) = self.0.changes.get(component) {
            changed
                .retain(|name, _| base.get(name).is_some_and(|weight| !is_branched(&weight, &changes[name])));
        }
        if changed.is_empty() {
            return Ok(base);
        }
        let kept = changed.into_par_iter().map(|(name, weight)| {
            let bytes = Bytes::new(weight.read()?.into_owned());
            weight.release();
            let kept = WeightRef::new(name.as_str(), weight.ty().clone(), bytes)?;
            Ok((name, kept))
        });
        let kept: Result<BTreeMap<_, _>, mixbit_mil::WeightError> = kept.collect();
        Ok(Arc::new(Overlay::new(base, kept?)))
    }
}

/// A tensor with changes added.
#[derive(Debug)]
struct Sum {
    base: WeightRef,
    deltas: Vec<Delta>,
}

impl Computed for Sum {
    /// # Panics
    /// If the system refuses the memory for the `f32` elements.
    fn read(&self) -> Vec<u8> {
        let shape = &self.base.ty().shape;
        let mut values = floats(&self.base).unwrap_or_else(|error| panic!("{error}"));
        if !values.is_empty() {
            let applied = self.deltas.iter().try_for_each(|delta| delta.apply(&mut values, shape));
            applied.unwrap_or_else(|error| panic!("{error}"));
        }
        rounded(values, &element_type(&self.base))
    }

    fn release(&self) {
        self.base.release();
        self.deltas.iter().for_each(Delta::release);
    }
}

/// The type of a changed tensor: the tensor's, and `f32` for `f64`.
fn element_type(base: &WeightRef) -> TensorType {
    match base.ty().dtype {
        DType::F64 => base.ty().with_dtype(DType::F32),
        _ => base.ty().clone(),
    }
}

/// The little-endian elements of a float type.
fn rounded(values: Vec<f32>, ty: &TensorType) -> Vec<u8> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    if ty.dtype == DType::F32 {
        return bytes;
    }
    let wide = WeightRef::new("", ty.with_dtype(DType::F32), Bytes::new(bytes));
    let narrow = wide.and_then(|wide| Ok(wide.cast(ty.dtype).read()?.into_owned()));
    narrow.unwrap_or_else(|error| panic!("{error}"))
}
