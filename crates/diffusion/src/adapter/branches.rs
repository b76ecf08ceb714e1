//! Low-rank changes beside weights that stay compressed.

use mixbit_mil::{Branch, Bytes, DType, TensorType, WeightError, WeightRef};

use super::delta::Delta;

/// True if a weight stays compressed, and its changes are a branch beside it.
pub(super) fn is_branched(weight: &WeightRef, deltas: &[Delta]) -> bool {
    weight.is_compressed() && deltas.iter().all(Delta::is_low_rank)
}

/// The branch of a weight's low-rank changes, in half precision.
///
/// # Errors
/// [`WeightError`] if a part of an adapter can't be read.
pub(super) fn branch(weight: &WeightRef, deltas: &[Delta]) -> Result<Branch, WeightError> {
    let shape = &weight.ty().shape;
    let (rows, columns) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product::<usize>());
    let factors = deltas.iter().map(|delta| delta.factors(rows)).collect::<Result<Vec<_>, _>>()?;
    let ranks: Vec<usize> = factors.iter().map(|[left, _]| left.len() / rows.max(1)).collect();
    let rank = ranks.iter().sum();
    let mut up = vec![0f32; rows * rank];
    let mut down = Vec::with_capacity(rank * columns);
    let mut first = 0;
    for ([left, right], own) in factors.iter().zip(ranks) {
        // Both factors get the same largest element, so that neither leaves the range of half precision.
        let balance = (largest(right) / largest(left)).sqrt();
        let balance = if balance.is_finite() && balance > 0.0 { balance } else { 1.0 };
        for (row, left) in up.chunks_exact_mut(rank).zip(left.chunks_exact(own.max(1))) {
            row[first..][..own].iter_mut().zip(left).for_each(|(up, left)| *up = left * balance);
        }
        down.extend(right.iter().map(|value| value / balance));
        first += own;
    }
    Ok(Branch { down: half(&down, [rank, columns])?, up: half(&up, [rows, rank])? })
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

/// A matrix in half precision, in memory.
fn half(values: &[f32], shape: [usize; 2]) -> Result<WeightRef, WeightError> {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let wide = WeightRef::new("", TensorType::new(DType::F32, shape), Bytes::new(bytes))?;
    let narrow = wide.cast(DType::F16).read()?.into_owned();
    WeightRef::new("lora", TensorType::new(DType::F16, shape), Bytes::new(narrow))
}
