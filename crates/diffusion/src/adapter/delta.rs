//! One adapter's change of one tensor of a model.

use std::sync::Arc;

use mixbit_mil::WeightError;

use super::change::{Change, extent, floats};
use super::file::Layer;

/// The part of a tensor that a delta changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Weight,
    Bias,
}

/// A change of a tensor.
#[derive(Clone, Debug)]
pub(super) struct Delta {
    layer: Arc<Layer>,
    kind: Kind,
    /// The first row of the change that counts.
    first: usize,
    strength: f32,
}

impl Delta {
    /// A layer's change of a tensor of a shape. `rows` is the part of the change that the tensor is, and of
    /// how many.
    ///
    /// # Errors
    /// The misfit.
    pub(super) fn new(
        layer: &Arc<Layer>,
        kind: Kind,
        shape: &[usize],
        (part, of): (usize, usize),
        strength: f32,
    ) -> Result<Self, String> {
        let found = match (kind, &layer.weight, &layer.bias) {
            (Kind::Weight, Some(change), _) => change.extent()?.1,
            (Kind::Bias, _, Some(bias)) => extent(bias),
            _ => return Err("it has no change of that".to_string()),
        };
        let rows = shape.first().copied().unwrap_or(1);
        let columns: usize = shape.iter().skip(1).product();
        // A vector may come with axes of 1.
        let fits = found == [rows * of, columns] || (columns == 1 && found == [1, rows * of]);
        if !fits {
            return Err(format!("its change of {}x{} does not fit {shape:?}", found[0], found[1]));
        }
        if let (Kind::Weight, Some(magnitude)) = (kind, &layer.magnitude) {
            let inputs = shape.get(1).copied().unwrap_or(1);
            let wanted = if magnitude.by_input { inputs } else { rows * of };
            let is_cut = magnitude.by_input && of != 1;
            if magnitude.values.ty().count() != wanted || is_cut {
                return Err(format!("its magnitudes {:?} don't fit {shape:?}", magnitude.values.ty().shape));
            }
        }
        Ok(Delta { layer: layer.clone(), kind, first: part * rows, strength })
    }

    /// Applies the change to a tensor of a shape.
    ///
    /// # Errors
    /// [`WeightError`] if a part of the adapter can't be read.
    pub(super) fn apply(&self, tensor: &mut [f32], shape: &[usize]) -> Result<(), WeightError> {
        let columns: usize = shape.iter().skip(1).product();
        let bias;
        let (change, scale) = match (self.kind, &self.layer.weight, &self.layer.bias) {
            (Kind::Weight, Some(change), _) => (change, self.layer.scale),
            (Kind::Bias, _, Some(weight)) => {
                bias = Change::Full(weight.clone());
                (&bias, 1.0)
            }
            _ => return Ok(()),
        };
        let (Kind::Weight, Some(magnitude)) = (self.kind, &self.layer.magnitude) else {
            return change.add(self.first, self.strength * scale, tensor, columns);
        };
        let mut changed = tensor.to_vec();
        change.add(self.first, scale, &mut changed, columns)?;
        let magnitudes = floats(&magnitude.values)?;
        match magnitude.by_input {
            false => scale_outputs(&mut changed, &magnitudes[self.first..], columns),
            true => scale_inputs(&mut changed, &magnitudes, columns),
        }
        // The whole change counts by its strength, so that 0 leaves the tensor as it is.
        for (value, changed) in tensor.iter_mut().zip(&changed) {
            *value += self.strength * (changed - *value);
        }
        Ok(())
    }

    /// True if the change is a product of two matrices, without magnitudes.
    pub(super) fn is_low_rank(&self) -> bool {
        let is_product = matches!(self.layer.weight, Some(Change::LowRank(_)));
        self.kind == Kind::Weight && is_product && self.layer.magnitude.is_none()
    }

    /// The factors of a low-rank change of a tensor of some rows: rows by rank, times all scales, and rank by
    /// columns. Empty if the change is of another form.
    ///
    /// # Errors
    /// [`WeightError`] if a part of the adapter can't be read.
    pub(super) fn factors(&self, rows: usize) -> Result<[Vec<f32>; 2], WeightError> {
        let Some(Change::LowRank(factors)) = &self.layer.weight else { return Ok([Vec::new(), Vec::new()]) };
        let (mut left, right) = (factors.left()?, factors.right()?);
        let all = factors.extent().map_or(rows, |(_, [all, _])| all).max(1);
        let rank = left.len() / all;
        left = left[self.first * rank..][..rows * rank].to_vec();
        let scale = self.strength * self.layer.scale;
        left.iter_mut().for_each(|value| *value *= scale);
        Ok([left, right])
    }

    /// Releases the memory of the adapter's tensors.
    pub(super) fn release(&self) {
        let parts = self.layer.weight.iter().flat_map(Change::parts);
        parts.chain(&self.layer.bias).for_each(mixbit_mil::WeightRef::release);
    }
}

/// The factor that gives a vector of a squared norm its magnitude.
fn factor(magnitude: f32, squares: f64) -> f32 {
    let norm = squares.sqrt() as f32;
    if norm > 0.0 { magnitude / norm } else { 1.0 }
}

fn scale_outputs(weight: &mut [f32], magnitudes: &[f32], columns: usize) {
    for (row, &magnitude) in weight.chunks_exact_mut(columns.max(1)).zip(magnitudes) {
        let squares = row.iter().map(|value| f64::from(*value).powi(2)).sum();
        let factor = factor(magnitude, squares);
        row.iter_mut().for_each(|value| *value *= factor);
    }
}

fn scale_inputs(weight: &mut [f32], magnitudes: &[f32], columns: usize) {
    let kernel = (columns / magnitudes.len().max(1)).max(1);
    let mut squares = vec![0f64; magnitudes.len()];
    for row in weight.chunks_exact(columns.max(1)) {
        for (square, values) in squares.iter_mut().zip(row.chunks_exact(kernel)) {
            *square += values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>();
        }
    }
    let factors: Vec<f32> =
        magnitudes.iter().zip(&squares).map(|(&magnitude, &squares)| factor(magnitude, squares)).collect();
    for row in weight.chunks_exact_mut(columns.max(1)) {
        for (factor, values) in factors.iter().zip(row.chunks_exact_mut(kernel)) {
            values.iter_mut().for_each(|value| *value *= factor);
        }
    }
}
