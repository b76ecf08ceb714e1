//! A UNet in segments. A change runs its own segment and the later ones again, not the earlier ones.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use mixbit_compress::{Layer, layers};
use mixbit_engine::{Arithmetic, Backend, Cancel, Model, Options, Tensor};
use mixbit_mil::{Constant, Def, Function, OpView, ValueId, WeightRef, multiply_adds, segments};

use super::error::AnalyzeError;

/// The number of segments that a network is cut into.
pub(super) const SEGMENTS: usize = 32;

/// The values that cross from segment to segment in one evaluation, by name.
pub(super) type Values = HashMap<String, Arc<Tensor>>;

/// Weights by the names of the layers that they replace those of.
pub(super) type Replaced<'a> = BTreeMap<&'a str, WeightRef>;

/// The difference between a variant of a network and the network.
#[derive(Clone, Copy)]
pub(super) enum Change<'a> {
    /// Other weights.
    Weights(&'a Replaced<'a>),
    /// Layers, by name, in 8-bit integers.
    Int8(&'a BTreeSet<&'a str>),
}

/// A network that runs segment by segment.
pub(super) struct SegmentedNetwork<'b> {
    backend: &'b dyn Backend,
    /// The number of runs that a variant is planned for.
    samples: usize,
    cancel: Cancel,
    segments: Vec<Segment>,
    /// The first segment of each layer.
    places: HashMap<String, usize>,
    /// Multiply-adds of all segments.
    work: u64,
    /// The bytes of all weights at 16 bits each.
    bytes: u64,
}

struct Segment {
    function: Function,
    layers: Vec<Layer>,
    model: Model,
    work: u64,
}

/// A changed network.
pub(super) struct Variant {
    /// The segments that differ.
    models: BTreeMap<usize, Model>,
}

impl<'b> SegmentedNetwork<'b> {
    /// Compiles a network whose variants will each run on `samples` samples.
    pub(super) fn new(
        function: &Function,
        backend: &'b dyn Backend,
        samples: usize,
        cancel: Cancel,
    ) -> Result<Self, AnalyzeError> {
        let function = mixbit_mil::passes::DEAD_CODE.run(&mixbit_mil::constexpr::decoded(function)?);
        // Every variant runs the later segments again.
        let options = Options { planned_runs: usize::MAX, ..Options::default() };
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
        Ok(SegmentedNetwork { backend, samples, cancel, segments, places, work, bytes: weights.sum() })
    }

    /// Every layer, in the order of first use.
    pub(super) fn layers(&self) -> impl Iterator<Item = &Layer> {
        let mut seen = HashSet::new();
        self.segments.iter().flat_map(|segment| &segment.layers).filter(move |layer| seen.insert(&layer.name))
    }

    /// The bytes of all weights at 16 bits each.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The fraction of an evaluation that a changed layer causes to run again.
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
        let uses = |op: &OpView| value.is_some() && op.weight() == value;
        ops.filter(uses).map(|op| multiply_adds(&op)).sum()
    }

    /// The network with a change.
    pub(super) fn variant(&self, change: &Change<'_>) -> Result<Variant, AnalyzeError> {
        let mut models = BTreeMap::new();
        for (index, segment) in self.segments.iter().enumerate() {
            let model = match change {
                Change::Weights(replaced) => self.with_weights(segment, replaced)?,
                Change::Int8(layers) => self.in_int8(segment, layers)?,
            };
            models.extend(model.map(|model| (index, model)));
        }
        Ok(Variant { models })
    }

    /// A segment with layers in 8-bit integers; `None` if it has none of them.
    fn in_int8(&self, segment: &Segment, layers: &BTreeSet<&str>) -> Result<Option<Model>, AnalyzeError> {
        let (quantized, others): (Vec<&Layer>, Vec<&Layer>) =
            segment.layers.iter().partition(|layer| layers.contains(layer.name.as_str()));
        if quantized.is_empty() {
            return Ok(None);
        }
        let options = Options {
            arithmetic: Arithmetic::Int8,
            full_precision: others.iter().map(|layer| layer.weight.name().to_string()).collect(),
            planned_runs: self.samples,
            ..Options::default()
        };
        Ok(Some(self.backend.compile(&segment.function, &options)?))
    }

    /// A segment with other weights; `None` if it has none of the layers.
    fn with_weights(
        &self,
        segment: &Segment,
        replaced: &Replaced<'_>,
    ) -> Result<Option<Model>, AnalyzeError> {
        let new: HashMap<_, _> = segment
            .layers
            .iter()
            .filter_map(|layer| Some((layer.value, replaced.get(layer.name.as_str())?.clone())))
            .collect();
        if new.is_empty() {
            return Ok(None);
        }
        let function = segment.function.with_weights(&new);
        let options = Options { planned_runs: self.samples, ..Options::default() };
        Ok(Some(self.backend.compile(&function, &options)?))
    }

    /// Runs the network, and returns its inputs, every value that crosses between segments, and its outputs.
    pub(super) fn run(&mut self, inputs: &[(&'static str, Tensor)]) -> Result<Values, AnalyzeError> {
        let mut values: Values =
            inputs.iter().map(|(name, tensor)| (name.to_string(), Arc::new(tensor.clone()))).collect();
        for segment in &mut self.segments {
            let results = run(&mut segment.model, &values, &Values::new(), &self.cancel)?;
            values.extend(results);
        }
        Ok(values)
    }

    /// Runs a variant from its first change on, where the network itself gave `base`, and returns the values
    /// that differ.
    pub(super) fn run_variant(
        &mut self,
        variant: &mut Variant,
        base: &Values,
    ) -> Result<Values, AnalyzeError> {
        let mut changed = Values::new();
        let first = variant.models.keys().next().copied().unwrap_or(self.segments.len());
        for (index, segment) in self.segments.iter_mut().enumerate().skip(first) {
            let model = variant.models.get_mut(&index).unwrap_or(&mut segment.model);
            let results = run(model, base, &changed, &self.cancel)?;
            changed.extend(results);
        }
        Ok(changed)
    }

    /// The mean square of every input channel of each layer in one evaluation.
    pub(super) fn mean_squares(&self, base: &Values) -> Result<HashMap<String, Vec<f32>>, AnalyzeError> {
        let mut squares: HashMap<String, Vec<f32>> = HashMap::new();
        for segment in &self.segments {
            let function = &segment.function;
            let mut taps = segment.layer_inputs();
            taps.retain(|tap| !squares.contains_key(&tap.layer));
            let mut outputs: Vec<_> = taps.iter().map(|tap| tap.x).collect();
            outputs.retain(|id| !function.inputs().contains(id));
            outputs.sort();
            outputs.dedup();
            let mut model = self.backend.compile(&function.with_outputs(&outputs), &Options::default())?;
            let results = run(&mut model, base, &Values::new(), &self.cancel)?;
            for tap in taps {
                let name = &function.value(tap.x).name;
                let tensor = results.get(name).or_else(|| base.get(name));
                let tensor = tensor.ok_or_else(|| AnalyzeError::NoValue { name: name.clone() })?;
                squares.insert(tap.layer, channel_mean_squares(tensor, tap.is_conv));
            }
        }
        Ok(squares)
    }
}

/// The input of a layer.
struct LayerInput {
    layer: String,
    x: ValueId,
    is_conv: bool,
}

impl Segment {
    /// The input of each layer at its first use.
    fn layer_inputs(&self) -> Vec<LayerInput> {
        let mut inputs: Vec<LayerInput> = Vec::new();
        for view in self.function.ops().iter().map(|op| self.function.view(op)) {
            let Some(id) = view.weight() else { continue };
            let Some(layer) = self.layers.iter().find(|layer| layer.value == id) else { continue };
            if let Some(x) = view.get("x")
                && inputs.iter().all(|input| input.layer != layer.name)
            {
                // Kernels have spatial axes after [out, in]; matrices have none.
                let is_conv = layer.ty().shape.len() > 2;
                inputs.push(LayerInput { layer: layer.name.clone(), x, is_conv });
            }
        }
        inputs
    }
}

/// Runs a model on values by name. `changed` take precedence over `base`.
fn run(model: &mut Model, base: &Values, changed: &Values, cancel: &Cancel) -> Result<Values, AnalyzeError> {
    let mut inputs: Vec<(String, Arc<Tensor>)> = Vec::new();
    for input in model.inputs() {
        let name = input.name.clone();
        match changed.get(&name).or_else(|| base.get(&name)) {
            Some(value) => inputs.push((name, value.clone())),
            None => return Err(AnalyzeError::NoValue { name }),
        }
    }
    let bound: Vec<(&str, &Tensor)> =
        inputs.iter().map(|(name, tensor)| (name.as_str(), &**tensor)).collect();
    let results = model.run_until(&bound, cancel)?;
    let names = model.outputs().iter().map(|output| output.name.clone());
    Ok(names.zip(results.into_iter().map(Arc::new)).collect())
}

/// The mean square of each channel: axis 1 of (batch, channels, ...) for convolutions, else the last axis.
fn channel_mean_squares(tensor: &Tensor, is_conv: bool) -> Vec<f32> {
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
