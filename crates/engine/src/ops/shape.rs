//! Rearranging, joining and splitting.

use mixbit_mil::ops::permutation;

use super::{Definition, Operands};
use crate::geometry::{concat_runs, offsets, slice_window, split_parts, strides};
use crate::{Data, Error, Tensor};

pub(super) static DEFINITIONS: &[Definition] = &[
    Definition { op: "concat", eval: concat },
    Definition { op: "expand_dims", eval: rename },
    Definition { op: "fill", eval: fill },
    Definition { op: "pixel_shuffle", eval: pixel_shuffle },
    Definition { op: "reshape", eval: rename },
    Definition { op: "slice_by_index", eval: slice },
    Definition { op: "slice_by_size", eval: slice },
    Definition { op: "split", eval: split },
    Definition { op: "squeeze", eval: rename },
    Definition { op: "stack", eval: concat },
    Definition { op: "tile", eval: tile },
    Definition { op: "transpose", eval: transpose },
];

/// The same elements under the result's shape.
fn rename(op: &Operands) -> Result<Vec<Tensor>, Error> {
    Ok(vec![op.tensor("x")?.reshaped(&op.out(0).shape)?])
}

/// The elements at the given places.
fn pick(tensor: &Tensor, places: &[usize], shape: &[usize]) -> Result<Tensor, Error> {
    let data = match tensor.data() {
        Data::Float(values) => Data::Float(places.iter().map(|&at| values[at]).collect()),
        Data::Int(values) => Data::Int(places.iter().map(|&at| values[at]).collect()),
    };
    Tensor::new(shape, data)
}

fn concat(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let (outer, runs) = concat_runs(&op.view, &op.out(0).shape)?;
    let parts = op.list("values")?;
    if op.out(0).dtype.is_float() {
        let mut out = Vec::with_capacity(op.out(0).count());
        for row in 0..outer {
            for (part, &run) in parts.iter().zip(&runs) {
                out.extend_from_slice(&part.as_f32().unwrap_or_default()[row * run..(row + 1) * run]);
            }
        }
        return op.float_result(out);
    }
    let mut out = Vec::with_capacity(op.out(0).count());
    for row in 0..outer {
        for (part, &run) in parts.iter().zip(&runs) {
            out.extend_from_slice(&part.as_i32().unwrap_or_default()[row * run..(row + 1) * run]);
        }
    }
    op.result(Data::Int(out))
}

/// Channel `c * f * f + y * f + x` gives the pixels `(y, x)` of each block of `f` by `f`.
fn pixel_shuffle(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let x = op.tensor("x")?;
    let factor = op.view.int("upscale_factor")? as usize;
    let out = &op.out(0).shape;
    let (height, width) = (out[2] / factor, out[3] / factor);
    let place = |at: usize| {
        let (column, row, image) = (at % out[3], at / out[3] % out[2], at / (out[3] * out[2]));
        let channel = (image * factor + row % factor) * factor + column % factor;
        (channel * height + row / factor) * width + column / factor
    };
    let places: Vec<usize> = (0..op.out(0).count()).map(place).collect();
    Ok(vec![pick(&x, &places, out)?])
}

fn slice(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let (start, counts, steps) = slice_window(&op.view)?;
    Ok(vec![pick(&op.tensor("x")?, &offsets(&counts, &steps, start), &op.out(0).shape)?])
}

fn split(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let x = op.tensor("x")?;
    let (axis, parts) = split_parts(&op.view)?;
    let all = strides(x.shape());
    let part = |(index, &(start, _)): (usize, &(usize, usize))| {
        let shape = &op.out(index).shape;
        pick(&x, &offsets(shape, &all, start * all[axis] as usize), shape)
    };
    parts.iter().enumerate().map(part).collect()
}

fn transpose(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let x = op.tensor("x")?;
    let all = strides(x.shape());
    let steps: Vec<isize> = permutation(&op.view)?.iter().map(|&axis| all[axis]).collect();
    Ok(vec![pick(&x, &offsets(&op.out(0).shape, &steps, 0), &op.out(0).shape)?])
}

fn tile(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let x = op.tensor("x")?;
    let shape = &op.out(0).shape;
    let (own, out) = (strides(x.shape()), strides(shape));
    let place = |index: usize| -> usize {
        (0..shape.len())
            .map(|axis| index / out[axis] as usize % shape[axis] % x.shape()[axis] * own[axis] as usize)
            .sum()
    };
    Ok(vec![pick(&x, &(0..op.out(0).count()).map(place).collect::<Vec<_>>(), shape)?])
}

fn fill(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let value = op.view.float("value")?;
    let count = op.out(0).count();
    op.result(match op.out(0).dtype.is_float() {
        true => Data::Float(vec![value as f32; count]),
        false => Data::Int(vec![value as i32; count]),
    })
}
