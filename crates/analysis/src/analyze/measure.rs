//! The making of measurements: each layer alone, and layers together in the strategy's orders.

use std::collections::BTreeSet;

use mixbit_compress::{Layer, Scheme};
use mixbit_mil::{Progress, Unit};

use super::error::AnalyzeError;
use super::journal::{Journal, Key};
use super::measurements::{Measurements, Order};
use super::network::{Change, Replaced};
use super::options::Shard;
use super::strategy::Strategy;
use super::subject::Subject;

/// Makes the measurements of a shard that are missing, and reads those of the others.
///
/// `quantized` are the layers to measure in 8-bit integers. Layers are measured together once all
/// measurements of single layers exist.
///
/// # Errors
/// If a layer's weights can't be compressed, the network can't be run, a measurement can't be kept, or the
/// work was cancelled.
pub(super) fn measure(
    strategy: &dyn Strategy,
    subject: &mut Subject<'_>,
    quantized: &[Layer],
    journal: Journal,
    shard: Option<Shard>,
    progress: &dyn Progress,
) -> Result<Measurements, AnalyzeError> {
    let layers = subject.layers.clone();
    let schemes = strategy.schemes();
    let probes = probes(&layers, &schemes, quantized);
    let orders = strategy.orders(&layers, &journal);
    let together: usize = orders.iter().map(|order| order.layers.len()).sum();
    let total = probes.len() + together;
    let measured = Measurements { journal, schemes, orders, done: 0, total };
    let mut recorder = Recorder { measured, shard, progress };
    recorder.measure_alone(subject, &probes)?;
    if recorder.measured.done == probes.len() {
        recorder.measured.orders = strategy.orders(&layers, &recorder.measured.journal);
        recorder.measure_together(subject, &layers)?;
    }
    Ok(recorder.measured)
}

/// A measurement of one layer alone.
struct Probe<'l> {
    layer: &'l Layer,
    /// The layer's position, by which shards share the work.
    position: usize,
    /// The scheme of the layer's weight; `None` for 8-bit integers.
    scheme: Option<Scheme>,
}

impl Probe<'_> {
    fn key(&self) -> Key {
        match &self.scheme {
            Some(scheme) => Key::isolated(&self.layer.name, scheme),
            None => Key::int8(&self.layer.name),
        }
    }
}

/// The measurements of single layers: of `layers` under each scheme, then of `quantized` in 8-bit integers.
fn probes<'l>(layers: &'l [Layer], schemes: &[Scheme], quantized: &'l [Layer]) -> Vec<Probe<'l>> {
    let mut probes = Vec::new();
    for (position, layer) in layers.iter().enumerate() {
        probes.extend(schemes.iter().map(|&scheme| Probe { layer, position, scheme: Some(scheme) }));
    }
    let in_int8 = |(position, layer)| Probe { layer, position, scheme: None };
    probes.extend(quantized.iter().enumerate().map(in_int8));
    probes
}

/// Keeps measurements in the journal.
struct Recorder<'r> {
    measured: Measurements,
    shard: Option<Shard>,
    progress: &'r dyn Progress,
}

impl Recorder<'_> {
    fn measure_alone(&mut self, subject: &mut Subject<'_>, probes: &[Probe<'_>]) -> Result<(), AnalyzeError> {
        let keys: Vec<Key> = probes.iter().map(Probe::key).collect();
        self.begin(0, &keys)?;
        for (probe, key) in probes.iter().zip(&keys) {
            if !self.is_due(probe.position, key) {
                continue;
            }
            let name = probe.layer.name.as_str();
            let distortion = match probe.scheme {
                Some(scheme) => {
                    let weight = subject.encoder.encode(probe.layer, scheme)?;
                    subject.evaluator.distortion(&Change::Weights(&Replaced::from([(name, weight)])))?
                }
                None => subject.evaluator.distortion(&Change::Int8(&BTreeSet::from([name])))?,
            };
            self.measured.journal.insert(key.clone(), distortion)?;
            self.advance()?;
        }
        self.end(0, &keys)
    }

    fn measure_together(&mut self, subject: &mut Subject<'_>, layers: &[Layer]) -> Result<(), AnalyzeError> {
        let orders = std::mem::take(&mut self.measured.orders);
        let before = self.measured.done;
        let key = |order: &Order, index: usize| Key::cumulative(&layers[index].name, &order.scheme);
        let keys = |order| move |&index: &usize| key(order, index);
        let keys: Vec<Key> = orders.iter().flat_map(|order| order.layers.iter().map(keys(order))).collect();
        self.begin(before, &keys)?;
        for order in &orders {
            let mut replaced = Replaced::new();
            for (position, &index) in order.layers.iter().enumerate() {
                let layer = &layers[index];
                replaced.insert(&layer.name, subject.encoder.encode(layer, order.scheme)?);
                let key = key(order, index);
                if self.is_due(position, &key) {
                    let distortion = subject.evaluator.distortion(&Change::Weights(&replaced))?;
                    self.measured.journal.insert(key, distortion)?;
                    self.advance()?;
                }
            }
        }
        self.measured.orders = orders;
        self.end(before, &keys)
    }

    /// Counts the measurements of a phase that exist, after `before` of the phases before it.
    fn begin(&mut self, before: usize, keys: &[Key]) -> Result<(), AnalyzeError> {
        let exists = |key: &&Key| self.measured.journal.get(key).is_some();
        self.measured.done = before + keys.iter().filter(exists).count();
        self.report()
    }

    /// Counts them again, with those of the other shards.
    fn end(&mut self, before: usize, keys: &[Key]) -> Result<(), AnalyzeError> {
        self.measured.journal.reload()?;
        self.begin(before, keys)
    }

    /// True if a measurement is missing and this shard's.
    fn is_due(&self, position: usize, key: &Key) -> bool {
        self.shard.is_some_and(|shard| shard.has(position)) && self.measured.journal.get(key).is_none()
    }

    fn advance(&mut self) -> Result<(), AnalyzeError> {
        self.measured.done += 1;
        self.report()
    }

    fn report(&self) -> Result<(), AnalyzeError> {
        let (done, total) = (self.measured.done as u64, self.measured.total as u64);
        Ok(self.progress.advance(done, total, Unit::Measurements)?)
    }
}
