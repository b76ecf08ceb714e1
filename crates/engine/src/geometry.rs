//! The index arithmetic of ops: strides, offsets, and the extents that an op's inputs and attributes come to.
//!
//! The naive definitions use it, and so may a backend's lowerings.

use mixbit_mil::ops::AxisSlice;
use mixbit_mil::{OpView, ValueId};

use crate::Error;

/// Row-major strides of a shape.
pub fn strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis] as isize;
    }
    strides
}

/// Strides that read a tensor of `shape` as if broadcast to `out`: 0 along repeated axes.
pub fn broadcast_strides(shape: &[usize], out: &[usize]) -> Vec<isize> {
    let own = strides(shape);
    let missing = out.len() - shape.len();
    (0..out.len())
        .map(|axis| if axis < missing || shape[axis - missing] == 1 { 0 } else { own[axis - missing] })
        .collect()
}

/// The offsets of all elements of `shape` in row-major order, for given strides and first offset.
pub fn offsets(shape: &[usize], strides: &[isize], start: usize) -> Vec<usize> {
    let count = shape.iter().product();
    let mut out = Vec::with_capacity(count);
    let mut index = vec![0usize; shape.len()];
    let mut at = start as isize;
    for _ in 0..count {
        out.push(at as usize);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis] as isize;
            index[axis] = 0;
        }
    }
    out
}

/// A shape seen from one axis: the product of the extents before it, its own extent, the product of those
/// after it.
pub fn around(shape: &[usize], axis: usize) -> [usize; 3] {
    [shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product()]
}

/// The `axes` of an op, sorted; all axes of `x` by default.
///
/// # Errors
/// If the op has no `x`, or an axis is out of range.
pub fn axes(op: &OpView) -> Result<Vec<usize>, Error> {
    let rank = op.ty("x")?.rank();
    let Some(axes) = op.opt_ints("axes")? else { return Ok((0..rank).collect()) };
    let mut axes = axes.iter().map(|&axis| op.axis(axis, rank)).collect::<Result<Vec<_>, _>>()?;
    axes.sort_unstable();
    Ok(axes)
}

/// The shapes of a `conv`: batch, channels, height and width of `x`; outputs, inputs of a group, height and
/// width of `weight`.
///
/// # Errors
/// If one is not of rank 4.
pub fn conv_extents(op: &OpView) -> Result<([usize; 4], [usize; 4]), Error> {
    let four = |shape: &[usize]| <[usize; 4]>::try_from(shape).map_err(|_| op.invalid("not of rank 4"));
    Ok((four(&op.ty("x")?.shape)?, four(&op.ty("weight")?.shape)?))
}

/// The elements that a `pad` adds before and after each axis.
///
/// # Errors
/// If an input is missing.
pub fn pad_margins(op: &OpView) -> Result<(Vec<usize>, Vec<usize>), Error> {
    let rank = op.ty("x")?.rank();
    let pad = op.ints("pad")?;
    let first = rank - pad.len() / 2;
    let margin =
        |axis: usize, side: usize| if axis < first { 0 } else { pad[2 * (axis - first) + side] as usize };
    Ok(((0..rank).map(|axis| margin(axis, 0)).collect(), (0..rank).map(|axis| margin(axis, 1)).collect()))
}

/// The rows of a `linear`: the product of all extents of `x` but the last.
///
/// # Errors
/// If the op has no `x`.
pub fn linear_rows(op: &OpView) -> Result<usize, Error> {
    let shape = &op.ty("x")?.shape;
    Ok(shape.iter().rev().skip(1).product())
}

/// The matrix products of a `matmul`.
#[derive(Clone, Debug)]
pub struct MatMulGeometry {
    /// Rows of each result.
    pub rows: usize,
    /// Columns of each result.
    pub columns: usize,
    /// Terms of each sum.
    pub depth: usize,
    /// Strides of rows and of columns of x.
    pub x_strides: [usize; 2],
    /// Strides of rows and of columns of y.
    pub y_strides: [usize; 2],
    /// The offsets of each product's x and y.
    pub starts: Vec<(usize, usize)>,
}

impl MatMulGeometry {
    /// The products of an op whose result has the shape `out`.
    ///
    /// # Errors
    /// If an input is missing.
    pub fn of(op: &OpView, out: &[usize]) -> Result<Self, Error> {
        let (x, y) = (&op.ty("x")?.shape, &op.ty("y")?.shape);
        let matrix_strides = |shape: &[usize], transposed: bool| {
            let width = shape[shape.len() - 1];
            if transposed { [1, width] } else { [width, 1] }
        };
        let (transpose_x, transpose_y) = (op.bool("transpose_x")?, op.bool("transpose_y")?);
        let depth = x[x.len() - if transpose_x { 2 } else { 1 }];
        let batch = &out[..out.len() - 2];
        let starts = |shape: &[usize]| {
            let (outer, matrix) = shape.split_at(shape.len() - 2);
            let size = (matrix[0] * matrix[1]) as isize;
            let strides: Vec<isize> =
                broadcast_strides(outer, batch).iter().map(|stride| stride * size).collect();
            offsets(batch, &strides, 0)
        };
        Ok(MatMulGeometry {
            rows: out[out.len() - 2],
            columns: out[out.len() - 1],
            depth,
            x_strides: matrix_strides(x, transpose_x),
            y_strides: matrix_strides(y, transpose_y),
            starts: starts(x).into_iter().zip(starts(y)).collect(),
        })
    }
}

/// The addend of an attention's scores for a mask of truth values: negative infinity where a key is hidden.
pub fn additive_mask(seen: &[i32]) -> Vec<f32> {
    seen.iter().map(|&seen| if seen != 0 { 0.0 } else { f32::NEG_INFINITY }).collect()
}

/// An index into an axis; a negative one counts from the end.
///
/// # Errors
/// [`Error::Index`] if it is out of range.
pub fn resolve_index(op: &OpView, index: i32, extent: usize) -> Result<usize, Error> {
    let wrapped = if index < 0 { i64::from(index) + extent as i64 } else { index.into() };
    usize::try_from(wrapped).ok().filter(|&index| index < extent).ok_or_else(|| Error::Index {
        op: op.label(),
        index: index.into(),
        extent,
    })
}

/// The product of the extents before a `concat`'s or `stack`'s axis, and the contiguous elements of each
/// value there. A stacked value is one index of the new axis.
///
/// # Errors
/// If the axis is out of range.
pub fn concat_runs(op: &OpView, out: &[usize]) -> Result<(usize, Vec<usize>), Error> {
    let axis = op.axis(op.int("axis")?, out.len())?;
    let outer: usize = out[..axis].iter().product();
    let count = |id: &ValueId| op.function().value(*id).ty.count();
    let runs = op.arg("values").values().iter().map(|id| count(id).checked_div(outer).unwrap_or(0));
    Ok((outer, runs.collect()))
}

/// The first offset of a slice, and its extents and strides along every axis of `x`, dropped ones included.
///
/// # Errors
/// If an input is missing.
pub fn slice_window(op: &OpView) -> Result<(usize, Vec<usize>, Vec<isize>), Error> {
    let all = strides(&op.ty("x")?.shape);
    let slices = AxisSlice::of(op)?;
    let start = slices.iter().zip(&all).map(|(slice, &stride)| slice.start * stride as usize).sum();
    let counts = slices.iter().map(|slice| slice.count).collect();
    let steps = slices.iter().zip(&all).map(|(slice, &stride)| slice.step * stride).collect();
    Ok((start, counts, steps))
}

/// The axis of a `split`, and the start and extent of each result along it.
///
/// # Errors
/// If the axis is out of range.
pub fn split_parts(op: &OpView) -> Result<(usize, Vec<(usize, usize)>), Error> {
    let axis = op.axis(op.int("axis")?, op.ty("x")?.rank())?;
    let mut start = 0;
    let extents = op.op().outputs.iter().map(|&id| {
        let extent = op.function().value(id).ty.shape[axis];
        start += extent;
        (start - extent, extent)
    });
    Ok((axis, extents.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_in_row_major_order() {
        assert_eq!(offsets(&[2, 3], &strides(&[2, 3]), 0), [0, 1, 2, 3, 4, 5]);
        assert_eq!(offsets(&[3, 2], &[1, 3], 0), [0, 3, 1, 4, 2, 5]);
        assert_eq!(offsets(&[2, 2], &broadcast_strides(&[2], &[2, 2]), 0), [0, 1, 0, 1]);
        assert_eq!(offsets(&[], &[], 5), [5]);
        assert_eq!(offsets(&[0, 2], &[2, 1], 0), Vec::<usize>::new());
    }
}
