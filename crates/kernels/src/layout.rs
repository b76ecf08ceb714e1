//! Data movement: permutation, slicing, concatenation, padding, upsampling, gathering.
//!
//! All of them take any element type: they also move integers and weights.

use crate::binary::Strided;
use crate::matrix::WeightSlice;
use crate::pool::{GRAIN, for_each_chunk_mut, rows_per_task};
use crate::strided::{Axis, MAX_RANK, Walk, contiguous_strides, offsets};

/// Copies the elements of a strided operand, walked over `shape`, to the row-major `out`.
///
/// The operand's strides make it a permutation, a slice with steps, or, with strides of zero, an expansion or
/// a tiling.
///
/// # Panics
///
/// When the operand reaches beyond its slice, its rank differs from the shape's or exceeds [`MAX_RANK`], or
/// `out`'s length is not the shape's.
pub fn copy_strided<T: Copy + Send + Sync>(input: Strided<'_, T>, shape: &[usize], out: &mut [T]) {
    assert_eq!(out.len(), shape.iter().product::<usize>(), "output length differs from the shape's");
    if out.is_empty() {
        return;
    }
    let walk = Walk::new(shape, [input.strides]);
    walk.check_extent(0, input.data.len());
    let (outer, inner) = walk.split_inner();
    let stride = inner.strides[0];
    if stride > 1
        && let Some((last, rest)) = outer.split_last()
        && last.strides[0] == 1
    {
        return transpose_planes(input.data, rest, *last, inner, out);
    }
    let rows = rows_per_task(inner.len);
    let chunk_len = if inner.len >= GRAIN { GRAIN } else { rows * inner.len };
    for_each_chunk_mut(out, chunk_len, |task, mut chunk| {
        let mut position = task * chunk_len;
        while !chunk.is_empty() {
            let column = position % inner.len;
            let [start] = offsets(outer, position / inner.len);
            let count = (inner.len - column).min(chunk.len());
            let (row, rest) = chunk.split_at_mut(count);
            let from = start + column * stride;
            match stride {
                0 => row.fill(input.data[from]),
                1 => row.copy_from_slice(&input.data[from..from + count]),
                _ => {
                    for (out, value) in row.iter_mut().zip(input.data[from..].iter().step_by(stride)) {
                        *out = *value;
                    }
                }
            }
            position += count;
            chunk = rest;
        }
    });
}

/// Side of the square that is transposed at once: its input and output lines fit the L1 cache.
const BLOCK: usize = 16;

/// [`copy_strided`] where the second-to-last axis is contiguous in the input: transposes plane by plane.
fn transpose_planes<T: Copy + Send + Sync>(
    input: &[T],
    outer: &[Axis<1>],
    rows: Axis<1>,
    cols: Axis<1>,
    out: &mut [T],
) {
    let stride = cols.strides[0];
    // A task is a band of output rows of one plane.
    let band = (GRAIN / cols.len).next_multiple_of(BLOCK).clamp(BLOCK, rows.len.next_multiple_of(BLOCK));
    let bands = rows.len.div_ceil(band);
    for_each_plane_mut(out, rows.len * cols.len, |plane, out| {
        let [start] = offsets(outer, plane);
        for_each_chunk_mut(out, band * cols.len, |index, out| {
            let first_row = index % bands * band;
            let count = out.len() / cols.len;
            for row_start in (0..count).step_by(BLOCK) {
                let row_end = (row_start + BLOCK).min(count);
                for col_start in (0..cols.len).step_by(BLOCK) {
                    let col_end = (col_start + BLOCK).min(cols.len);
                    for row in row_start..row_end {
                        let from = start + first_row + row;
                        let line = &mut out[row * cols.len + col_start..row * cols.len + col_end];
                        for (offset, place) in line.iter_mut().enumerate() {
                            *place = input[from + (col_start + offset) * stride];
                        }
                    }
                }
            }
        });
    });
}

/// Calls `body(index, plane)` for consecutive planes, several small ones to a task.
fn for_each_plane_mut<T: Send>(out: &mut [T], plane_len: usize, body: impl Fn(usize, &mut [T]) + Sync) {
    let per_task = rows_per_task(plane_len);
    for_each_chunk_mut(out, per_task * plane_len, |task, chunk| {
        for (index, plane) in chunk.chunks_mut(plane_len).enumerate() {
            body(task * per_task + index, plane);
        }
    });
}

/// Permutes the axes of a row-major tensor: output axis `i` is input axis `axes[i]`.
///
/// # Panics
///
/// When `axes` is not a permutation of the shape's axes, or lengths differ from the shape's.
pub fn permute<T: Copy + Send + Sync>(input: &[T], shape: &[usize], axes: &[usize], out: &mut [T]) {
    let rank = shape.len();
    assert_eq!(axes.len(), rank, "as many axes as dimensions");
    let strides = contiguous_strides(shape);
    let (mut out_shape, mut out_strides, mut seen) = ([0; MAX_RANK], [0; MAX_RANK], [false; MAX_RANK]);
    for (index, &axis) in axes.iter().enumerate() {
        assert!(axis < rank && !seen[axis], "{axes:?} is not a permutation of {rank} axes");
        seen[axis] = true;
        out_shape[index] = shape[axis];
        out_strides[index] = strides[axis];
    }
    copy_strided(Strided { data: input, strides: &out_strides[..rank] }, &out_shape[..rank], out);
}

/// Copies every `step`-th element from `begin` on along each axis of a row-major tensor; `out_shape` has
/// their numbers.
///
/// # Panics
///
/// When the slice reaches beyond the tensor, or ranks or lengths differ.
pub fn slice<T: Copy + Send + Sync>(
    input: &[T],
    shape: &[usize],
    begin: &[usize],
    step: &[usize],
    out_shape: &[usize],
    out: &mut [T],
) {
    let rank = shape.len();
    assert_eq!((begin.len(), step.len(), out_shape.len()), (rank, rank, rank), "ranks differ");
    assert_eq!(input.len(), shape.iter().product::<usize>(), "input length differs from the shape's");
    if out_shape.contains(&0) {
        return;
    }
    let strides = contiguous_strides(shape);
    let (mut start, mut out_strides) = (0, [0; MAX_RANK]);
    for axis in 0..rank {
        assert!(
            begin[axis] + (out_shape[axis] - 1) * step[axis] < shape[axis],
            "axis {axis}: {} elements from {} by {} exceed the length {}",
            out_shape[axis],
            begin[axis],
            step[axis],
            shape[axis]
        );
        start += begin[axis] * strides[axis];
        out_strides[axis] = strides[axis] * step[axis];
    }
    copy_strided(Strided { data: &input[start..], strides: &out_strides[..rank] }, out_shape, out);
}

/// Repeats a row-major tensor `repeats[i]` times along each axis.
///
/// # Panics
///
/// When ranks differ, lengths differ from the shapes', or there are more than [`MAX_RANK`] axes that are
/// repeated or longer than 1.
pub fn tile<T: Copy + Send + Sync>(input: &[T], shape: &[usize], repeats: &[usize], out: &mut [T]) {
    assert_eq!(shape.len(), repeats.len(), "ranks differ");
    let own = contiguous_strides(shape);
    let (mut walk_shape, mut strides, mut rank) = ([1; MAX_RANK], [0; MAX_RANK], 0);
    let mut push = |len: usize, stride: usize| {
        assert!(rank < MAX_RANK, "tiling {shape:?} by {repeats:?} needs more than {MAX_RANK} axes");
        (walk_shape[rank], strides[rank]) = (len, stride);
        rank += 1;
    };
    for axis in 0..shape.len() {
        if repeats[axis] != 1 {
            push(repeats[axis], 0);
        }
        if shape[axis] != 1 {
            push(shape[axis], own[axis]);
        }
    }
    copy_strided(Strided { data: input, strides: &strides[..rank] }, &walk_shape[..rank], out);
}

/// One input of [`concat()`]: `[outer, axis, inner]`, row-major.
#[derive(Clone, Copy, Debug)]
pub struct ConcatInput<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// Its length along the concatenated axis.
    pub axis: usize,
}

/// Concatenates row-major tensors `[outer, axis_i, inner]` along the axis.
///
/// # Panics
///
/// When a length differs from its shape's.
pub fn concat<T: Copy + Send + Sync>(
    inputs: &[ConcatInput<'_, T>],
    outer: usize,
    inner: usize,
    out: &mut [T],
) {
    let row: usize = inputs.iter().map(|input| input.axis * inner).sum();
    assert_eq!(out.len(), outer * row, "output length differs from the inputs'");
    for input in inputs {
        assert_eq!(input.data.len(), outer * input.axis * inner, "input length differs from its shape's");
    }
    if out.is_empty() {
        return;
    }
    for_each_plane_mut(out, row, |index, mut out| {
        for input in inputs {
            let len = input.axis * inner;
            let (part, rest) = out.split_at_mut(len);
            copy_shared(&input.data[index * len..(index + 1) * len], part);
            out = rest;
        }
    });
}

/// Copies a slice, on several threads when it is long.
fn copy_shared<T: Copy + Send + Sync>(input: &[T], out: &mut [T]) {
    const LONG: usize = 16 * GRAIN;
    for_each_chunk_mut(out, LONG, |index, chunk| {
        chunk.copy_from_slice(&input[index * LONG..index * LONG + chunk.len()]);
    });
}

/// Surrounds a row-major tensor with `value`: `before[i]` and `after[i]` elements along each axis.
///
/// # Panics
///
/// When ranks differ or lengths differ from the shapes'.
pub fn pad<T: Copy + Send + Sync>(
    input: &[T],
    shape: &[usize],
    before: &[usize],
    after: &[usize],
    value: T,
    out: &mut [T],
) {
    let rank = shape.len();
    assert!(
        before.len() == rank && after.len() == rank && rank <= MAX_RANK,
        "ranks differ or exceed the limit"
    );
    assert_eq!(input.len(), shape.iter().product::<usize>(), "input length differs from the shape's");
    let mut out_shape = [1; MAX_RANK];
    for axis in 0..rank {
        out_shape[axis] = before[axis] + shape[axis] + after[axis];
    }
    let out_shape = &out_shape[..rank];
    assert_eq!(out.len(), out_shape.iter().product::<usize>(), "output length differs from the shape's");
    let Some(&out_row) = out_shape.last() else {
        out.copy_from_slice(input);
        return;
    };
    if out.is_empty() {
        return;
    }
    let row_len = shape[rank - 1];
    let rows = rows_per_task(out_row);
    for_each_chunk_mut(out, rows * out_row, |task, chunk| {
        for (index, out) in chunk.chunks_exact_mut(out_row).enumerate() {
            out.fill(value);
            let mut position = task * rows + index;
            let (mut source, mut step, mut inside) = (0, 1, true);
            for axis in (0..rank - 1).rev() {
                let coordinate = (position % out_shape[axis]).wrapping_sub(before[axis]);
                position /= out_shape[axis];
                inside &= coordinate < shape[axis];
                source += coordinate.min(shape[axis]) * step;
                step *= shape[axis];
            }
            if inside {
                out[before[rank - 1]..][..row_len].copy_from_slice(&input[source * row_len..][..row_len]);
            }
        }
    });
}

/// Repeats each pixel of `input[planes, height, width]` `scale[0]` times downwards and `scale[1]` times to
/// the right.
///
/// # Panics
///
/// When lengths differ from the shapes'.
pub fn upsample_nearest<T: Copy + Send + Sync>(
    input: &[T],
    planes: usize,
    size: [usize; 2],
    scale: [usize; 2],
    out: &mut [T],
) {
    let [height, width] = size;
    assert_eq!(input.len(), planes * height * width, "input length differs from the shape's");
    assert_eq!(out.len(), input.len() * scale[0] * scale[1], "output length differs from the shape's");
    if out.is_empty() {
        return;
    }
    let out_width = width * scale[1];
    // One input row becomes `scale[0]` output rows.
    let band = scale[0] * out_width;
    for_each_plane_mut(out, band, |row, out| {
        let input = &input[row * width..(row + 1) * width];
        let (first, rest) = out.split_at_mut(out_width);
        if scale[1] == 2 {
            for (pair, value) in first.chunks_exact_mut(2).zip(input) {
                pair[0] = *value;
                pair[1] = *value;
            }
        } else {
            for (run, value) in first.chunks_exact_mut(scale[1]).zip(input) {
                run.fill(*value);
            }
        }
        for copy in rest.chunks_exact_mut(out_width) {
            copy.copy_from_slice(first);
        }
    });
}

/// Copies rows of `table[.., width]` by index.
///
/// # Panics
///
/// When an index is not a row of the table, or `out` is not one row for each index.
pub fn gather_rows<T: Copy + Send + Sync>(table: &[T], width: usize, indices: &[usize], out: &mut [T]) {
    assert_eq!(out.len(), indices.len() * width, "output length differs from the indices'");
    if out.is_empty() {
        return;
    }
    for_each_plane_mut(out, width, |index, row| {
        let from = indices[index] * width;
        row.copy_from_slice(&table[from..from + width]);
    });
}

/// Widens rows of a stored table by index: embeddings in half precision or compressed.
///
/// # Panics
///
/// As [`gather_rows`].
pub fn gather_weight_rows(table: WeightSlice<'_>, width: usize, indices: &[usize], out: &mut [f32]) {
    assert_eq!(out.len(), indices.len() * width, "output length differs from the indices'");
    if out.is_empty() {
        return;
    }
    let places: Vec<usize> = indices.iter().map(|index| index * width).collect();
    for_each_plane_mut(out, width, |index, row| table.elements().widen_run(places[index], row));
}

#[cfg(test)]
mod tests;
