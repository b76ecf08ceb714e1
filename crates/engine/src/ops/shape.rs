//! Rearranging, joining and splitting.

use mixbit_kernels::{ConcatInput, Strided};
use mixbit_mil::OpView;
use mixbit_mil::ops::{AxisSlice, permutation};

use super::unary::alias;
use super::{Binding, around, offsets, strides};
use crate::backend::holds_floats;
use crate::cpu::Lowering;
use crate::reference::Operands;
use crate::{Data, Error, Tensor};

pub(super) static BINDINGS: &[Binding] = &[
    Binding { op: "concat", reference: concat, lower: lower_concat },
    Binding { op: "expand_dims", reference: rename, lower: alias },
    Binding { op: "fill", reference: fill, lower: |op, plan| plan.by_reference(op, fill) },
    Binding { op: "reshape", reference: rename, lower: alias },
    Binding { op: "slice_by_index", reference: slice, lower: lower_slice },
    Binding { op: "slice_by_size", reference: slice, lower: lower_slice },
    Binding { op: "split", reference: split, lower: lower_split },
    Binding { op: "squeeze", reference: rename, lower: alias },
    Binding { op: "stack", reference: concat, lower: lower_concat },
    Binding { op: "tile", reference: tile, lower: lower_tile },
    Binding { op: "transpose", reference: transpose, lower: lower_transpose },
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

/// The axis along which values are joined, and what each spans: outer, and its own run of elements. A stacked value
/// is one index of the new axis.
fn joined(op: &OpView, out: &[usize]) -> Result<(usize, Vec<usize>), Error> {
    let axis = op.axis(op.int("axis")?, out.len())?;
    let outer: usize = out[..axis].iter().product();
    let count = |id: &mixbit_mil::ValueId| op.function().value(*id).ty.count();
    let runs = op.arg("values").values().iter().map(|id| count(id).checked_div(outer).unwrap_or(0));
    Ok((outer, runs.collect()))
}

fn concat(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let (outer, runs) = joined(&op.view, &op.out(0).shape)?;
    let parts = op.list("values")?;
    if holds_floats(op.out(0).dtype) {
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

fn lower_concat(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let out = op.op().outputs[0];
    if !holds_floats(plan.function().value(out).ty.dtype) {
        return plan.by_reference(op, concat);
    }
    let (outer, runs) = joined(op, plan.shape(out))?;
    plan.step(op.label(), op.arg("values").values(), &[out], move |io| {
        let inputs: Vec<_> =
            io.floats.iter().zip(&runs).map(|(&data, &axis)| ConcatInput { data, axis }).collect();
        mixbit_kernels::concat(&inputs, outer, 1, io.out[0]);
        Ok(())
    })
}

/// Where a slice begins, and its extents and distances along every axis, dropped ones included.
fn window(op: &OpView) -> Result<(usize, Vec<usize>, Vec<isize>), Error> {
    let all = strides(&op.ty("x")?.shape);
    let slices = AxisSlice::of(op)?;
    let start = slices.iter().zip(&all).map(|(slice, &stride)| slice.start * stride as usize).sum();
    let counts = slices.iter().map(|slice| slice.count).collect();
    let steps = slices.iter().zip(&all).map(|(slice, &stride)| slice.step * stride).collect();
    Ok((start, counts, steps))
}

fn slice(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let (start, counts, steps) = window(&op.view)?;
    Ok(vec![pick(&op.tensor("x")?, &offsets(&counts, &steps, start), &op.out(0).shape)?])
}

fn lower_slice(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let (start, counts, steps) = window(op)?;
    let forward: Option<Vec<usize>> = steps.iter().map(|&step| usize::try_from(step).ok()).collect();
    let floats = holds_floats(op.ty("x")?.dtype);
    match forward {
        Some(steps) if floats && counts.len() <= mixbit_kernels::MAX_RANK && !counts.contains(&0) => plan
            .step(op.label(), &[op.value("x")?], &op.op().outputs, move |io| {
                let input = Strided { data: &io.floats[0][start..], strides: &steps };
                mixbit_kernels::copy_strided(input, &counts, io.out[0]);
                Ok(())
            }),
        _ => plan.by_reference(op, slice),
    }
}

/// Where each part of a split begins along its axis, and how long it is.
fn parts(op: &OpView) -> Result<(usize, Vec<(usize, usize)>), Error> {
    let axis = op.axis(op.int("axis")?, op.ty("x")?.rank())?;
    let mut start = 0;
    let extents = op.op().outputs.iter().map(|&id| {
        let extent = op.function().value(id).ty.shape[axis];
        start += extent;
        (start - extent, extent)
    });
    Ok((axis, extents.collect()))
}

fn split(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let x = op.tensor("x")?;
    let (axis, parts) = parts(&op.view)?;
    let all = strides(x.shape());
    let part = |(index, &(start, _)): (usize, &(usize, usize))| {
        let shape = &op.out(index).shape;
        pick(&x, &offsets(shape, &all, start * all[axis] as usize), shape)
    };
    parts.iter().enumerate().map(part).collect()
}

fn lower_split(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let x = op.ty("x")?;
    if !holds_floats(x.dtype) {
        return plan.by_reference(op, split);
    }
    let (axis, parts) = parts(op)?;
    let [outer, extent, inner] = around(&x.shape, axis);
    for (&out, (start, len)) in op.op().outputs.iter().zip(parts) {
        plan.step(op.label(), &[op.value("x")?], &[out], move |io| {
            if len * inner > 0 {
                let input = Strided { data: &io.floats[0][start * inner..], strides: &[extent * inner, 1] };
                mixbit_kernels::copy_strided(input, &[outer, len * inner], io.out[0]);
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn transpose(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let x = op.tensor("x")?;
    let all = strides(x.shape());
    let steps: Vec<isize> = permutation(&op.view)?.iter().map(|&axis| all[axis]).collect();
    Ok(vec![pick(&x, &offsets(&op.out(0).shape, &steps, 0), &op.out(0).shape)?])
}

fn lower_transpose(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let (shape, axes) = (op.ty("x")?.shape.clone(), permutation(op)?);
    if !holds_floats(op.ty("x")?.dtype) || shape.len() > mixbit_kernels::MAX_RANK {
        return plan.by_reference(op, transpose);
    }
    plan.step(op.label(), &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::permute(io.floats[0], &shape, &axes, io.out[0]);
        Ok(())
    })
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

fn lower_tile(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let (shape, out) = (&op.ty("x")?.shape, plan.shape(op.op().outputs[0]));
    let repeats: Vec<usize> = op.ints("reps")?.iter().map(|&times| times as usize).collect();
    // An axis that is longer than 1 and repeated is two axes of the walk.
    let axes =
        shape.iter().filter(|&&extent| extent != 1).count() + repeats.iter().filter(|&&n| n != 1).count();
    if !holds_floats(op.ty("x")?.dtype) || axes > mixbit_kernels::MAX_RANK || out.contains(&0) {
        return plan.by_reference(op, tile);
    }
    let shape = shape.clone();
    plan.step(op.label(), &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::tile(io.floats[0], &shape, &repeats, io.out[0]);
        Ok(())
    })
}

fn fill(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let value = op.view.float("value")?;
    let count = op.out(0).count();
    op.result(match holds_floats(op.out(0).dtype) {
        true => Data::Float(vec![value as f32; count]),
        false => Data::Int(vec![value as i32; count]),
    })
}
