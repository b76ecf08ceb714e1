//! A UNet in segments, of which those before a change need not be run again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use mixbit_compress::{Layer, layers};
use mixbit_engine::{Arithmetic, Backend, Cancel, Model, Options, Tensor};
use mixbit_mil::{Constant, Def, Function, OpView, WeightRef, multiply_adds, segments};

/// Segments that a network is cut into.
const SEGMENTS: usize = 32;

/// The values that cross from segment to segment in one run, by name.
pub(super) type Values = HashMap<String, Arc<Tensor>>;

/// Weights that stand in for others, by the layers' names.
pub(super) type Replaced<'a> = BTreeMap<&'a str, WeightRef>;

/// What a variant of a network has other than the network.
#[derive(Clone, Copy)]
pub(super) enum Change<'a> {
    /// Other weights.
    Weights(&'a Replaced<'a>),
    /// Layers, by name, that are computed in 8-bit integers.
    Int8(&'a BTreeSet<&'a str>),
}

/// A network that is run segment by segment.
pub(super) struct Network<'b> {
    backend: &'b dyn Backend,
    cancel: Cancel,
    segments: Vec<Segment>,
    /// The segment of each layer.
    places: HashMap<String, usize>,
    /// Multiply-adds of all segments.
    work: u64,
    /// The bytes of all weights, each of 16 bits.
    bytes: u64,
}

struct Segment {
    function: Function,
    layers: Vec<Layer>,
    model: Model,
    work: u64,
}

/// A network with other weights in some layers.
pub(super) struct Variant {
    /// The segments that differ.
    models: BTreeMap<usize, Model>,
}

impl<'b> Network<'b> {
    pub(super) fn new(
        function: &Function,
        backend: &'b dyn Backend,
        stop: Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
        let function = mixbit_mil::passes::DEAD_CODE.run(&mixbit_mil::constexpr::decoded(function)?);
        let options = Options::default();
        let segment = |function: Function| {
            let work = function.ops().iter().map(|op| multiply_adds(&function.view(op))).sum();
            let model = backend.compile(&function, &options)?;
            Ok(Segment { layers: layers(&function), model, work, function })
        };
        let segments: Vec<Segment> = segments(&function, SEGMENTS)
            .into_iter()
            .map(segment)
            .collect::<Result<_, mixbit_engine::Error>>()?;
        let mut places = HashMap::new();
        for (index, segment) in segments.iter().enumerate() {
            for layer in &segment.layers {
                places.entry(layer.name.clone()).or_insert(index);
            }
        }
        let work = segments.iter().map(|segment| segment.work).sum();
        let weights = function.values().iter().filter_map(|value| match &value.def {
            Def::Const(Constant::Weight(weight)) => Some(2 * weight.ty().count() as u64),
            _ => None,
        });
        Ok(Network { backend, cancel: Cancel::from(stop), segments, places, work, bytes: weights.sum() })
    }

    /// Every layer, in the order of their first use.
    pub(super) fn layers(&self) -> impl Iterator<Item = &Layer> {
        let mut seen = HashSet::new();
        self.segments.iter().flat_map(|segment| &segment.layers).filter(move |layer| seen.insert(&layer.name))
    }

    /// The bytes of all weights, each of 16 bits.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The part of a run that a change of a layer causes.
    pub(super) fn share(&self, layer: &str) -> f64 {
        let first = self.places.get(layer).copied().unwrap_or(0);
        let rest: u64 = self.segments[first..].iter().map(|segment| segment.work).sum();
        rest as f64 / self.work.max(1) as f64
    }

    /// The multiply-adds of a layer.
    pub(super) fn multiply_adds(&self, layer: &str) -> u64 {
        let Some(segment) = self.places.get(layer).map(|&index| &self.segments[index]) else { return 0 };
        let value = segment.layers.iter().find(|other| other.name == layer).map(|layer| layer.value);
        let ops = segment.function.ops().iter().map(|op| segment.function.view(op));
        let uses = |op: &OpView| op.weight() == value;
        ops.filter(uses).map(|op| multiply_adds(&op)).sum()
    }

    /// The network with a change.
    pub(super) fn variant(&self, change: &Change<'_>) -> anyhow::Result<Variant> {
        match change {
            Change::Weights(replaced) => self.with_weights(replaced),
            Change::Int8(layers) => self.in_int8(layers),
        }
    }

    fn in_int8(&self, layers: &BTreeSet<&str>) -> anyhow::Result<Variant> {
        let mut models = BTreeMap::new();
        for (index, segment) in self.segments.iter().enumerate() {
            let (quantized, others): (Vec<&Layer>, Vec<&Layer>) =
                segment.layers.iter().partition(|layer| layers.contains(layer.name.as_str()));
            if quantized.is_empty() {
                continue;
            }
            let options = Options {
                arithmetic: Arithmetic::Int8,
                full_precision: others.iter().map(|layer| layer.weight.name().to_string()).collect(),
                ..Options::default()
            };
            models.insert(index, self.backend.compile(&segment.function, &options)?);
        }
        Ok(Variant { models })
    }

    fn with_weights(&self, replaced: &Replaced<'_>) -> anyhow::Result<Variant> {
        let options = Options::default();
        let mut models = BTreeMap::new();
        for (index, segment) in self.segments.iter().enumerate() {
            let new: HashMap<_, _> = segment
                .layers
                .iter()
                .filter_map(|layer| Some((layer.value, replaced.get(layer.name.as_str())?)))
                .collect();
            if new.is_empty() {
                continue;
            }
            let mut function = segment.function.clone();
            function.map_constants(|id, _| {
                Ok::<_, mixbit_engine::Error>(new.get(&id).map(|&weight| Constant::Weight(weight.clone())))
            })?;
            models.insert(index, self.backend.compile(&function, &options)?);
        }
        Ok(Variant { models })
    }

    /// Runs the network, and gives every value that crosses between segments, and the outputs.
    pub(super) fn run(&mut self, inputs: &[(&'static str, Tensor)]) -> anyhow::Result<Values> {
        let mut values: Values =
            inputs.iter().map(|(name, tensor)| (name.to_string(), Arc::new(tensor.clone()))).collect();
        for segment in &mut self.segments {
            let results = run(&mut segment.model, &values, &Values::new(), &self.cancel)?;
            values.extend(results);
        }
        Ok(values)
    }

    /// Runs a variant from its first change on, where the network itself gave `base`; gives what is other than there.
    pub(super) fn run_variant(&mut self, variant: &mut Variant, base: &Values) -> anyhow::Result<Values> {
        let mut changed = Values::new();
        let first = variant.models.keys().next().copied().unwrap_or(self.segments.len());
        for (index, segment) in self.segments.iter_mut().enumerate().skip(first) {
            let model = variant.models.get_mut(&index).unwrap_or(&mut segment.model);
            let results = run(model, base, &changed, &self.cancel)?;
            changed.extend(results);
        }
        Ok(changed)
    }

    /// The mean square of every input channel of each layer in one run.
    pub(super) fn moments(&self, base: &Values) -> anyhow::Result<HashMap<String, Vec<f32>>> {
        let options = Options::default();
        let mut moments: HashMap<String, Vec<f32>> = HashMap::new();
        for segment in &self.segments {
            let function = &segment.function;
            let mut taps = Vec::new();
            for op in function.ops() {
                let view = function.view(op);
                let weight = view.weight();
                let Some(layer) = segment.layers.iter().find(|layer| Some(layer.value) == weight) else {
                    continue;
                };
                if let (Some(x), false) = (view.get("x"), moments.contains_key(&layer.name)) {
                    taps.push((layer.name.clone(), x, view.kind() == "conv"));
                    moments.insert(layer.name.clone(), Vec::new());
                }
            }
            let mut outputs: Vec<_> = taps.iter().map(|(_, x, _)| *x).collect();
            outputs.retain(|id| !function.inputs().contains(id));
            outputs.sort();
            outputs.dedup();
            let mut model = self.backend.compile(&function.with_outputs(&outputs), &options)?;
            let results = run(&mut model, base, &Values::new(), &self.cancel)?;
            for (layer, x, is_conv) in taps {
                let name = &function.value(x).name;
                let tensor = results.get(name).or_else(|| base.get(name));
                let tensor = tensor.with_context(|| format!("`{name}` is not there"))?;
                moments.insert(layer, channel_moments(tensor, is_conv));
            }
        }
        Ok(moments)
    }
}

/// Runs a model on values by name; `changed` come before `base`.
fn run(model: &mut Model, base: &Values, changed: &Values, cancel: &Cancel) -> anyhow::Result<Values> {
    let inputs = model.inputs().iter().map(|input| {
        let value = changed.get(&input.name).or_else(|| base.get(&input.name));
        Ok((
            input.name.clone(),
            value.with_context(|| format!("the network takes `{}`", input.name))?.clone(),
        ))
    });
    let inputs: Vec<(String, Arc<Tensor>)> = inputs.collect::<anyhow::Result<_>>()?;
    let bound: Vec<(&str, &Tensor)> =
        inputs.iter().map(|(name, tensor)| (name.as_str(), &**tensor)).collect();
    let results = model.run_until(&bound, cancel)?;
    let names = model.outputs().iter().map(|output| output.name.clone());
    Ok(names.zip(results.into_iter().map(Arc::new)).collect())
}

/// The mean square of each channel: axis 1 of (batch, channels, ...) for convolutions, else the last axis.
fn channel_moments(tensor: &Tensor, is_conv: bool) -> Vec<f32> {
    let (shape, values) = (tensor.shape(), tensor.as_f32().unwrap_or_default());
    let axis = if is_conv { 1 } else { shape.len() - 1 };
    let inner: usize = shape[axis + 1..].iter().product();
    let mut sums = vec![0.0f64; shape[axis]];
    for (index, values) in values.chunks_exact(inner.max(1)).enumerate() {
        let squares: f32 = values.iter().map(|value| value * value).sum();
        sums[index % shape[axis]] += f64::from(squares);
    }
    let count = (values.len() / shape[axis].max(1)).max(1) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}
