//! Rearranging, joining and splitting.

use mixbit_engine::Error;
use mixbit_engine::geometry::{around, concat_runs, slice_window, split_parts};
use mixbit_kernels::{ConcatInput, Strided};
use mixbit_mil::OpView;
use mixbit_mil::ops::permutation;

use super::unary::alias;
use super::{Lowering, by_definition};
use crate::plan::PlanBuilder;

pub(super) static LOWERINGS: &[Lowering] = &[
    Lowering { op: "concat", lower: lower_concat },
    Lowering { op: "expand_dims", lower: alias },
    by_definition("fill"),
    by_definition("pixel_shuffle"),
    Lowering { op: "reshape", lower: alias },
    Lowering { op: "slice_by_index", lower: lower_slice },
    Lowering { op: "slice_by_size", lower: lower_slice },
    Lowering { op: "split", lower: lower_split },
    Lowering { op: "squeeze", lower: alias },
    Lowering { op: "stack", lower: lower_concat },
    Lowering { op: "tile", lower: lower_tile },
    Lowering { op: "transpose", lower: lower_transpose },
];

fn lower_concat(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let out = op.op().outputs[0];
    if !plan.function().value(out).ty.dtype.is_float() {
        return plan.by_definition(op);
    }
    let (outer, runs) = concat_runs(op, plan.shape(out))?;
    plan.step(op, op.arg("values").values(), &[out], move |io| {
        let inputs: Vec<_> =
            io.floats.iter().zip(&runs).map(|(&data, &axis)| ConcatInput { data, axis }).collect();
        mixbit_kernels::concat(&inputs, outer, 1, io.out[0]);
        Ok(())
    })
}

fn lower_slice(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let (start, counts, steps) = slice_window(op)?;
    let forward: Option<Vec<usize>> = steps.iter().map(|&step| usize::try_from(step).ok()).collect();
    let floats = op.ty("x")?.dtype.is_float();
    match forward {
        Some(steps) if floats && counts.len() <= mixbit_kernels::MAX_RANK && !counts.contains(&0) => plan
            .step(op, &[op.value("x")?], &op.op().outputs, move |io| {
                let input = Strided { data: &io.floats[0][start..], strides: &steps };
                mixbit_kernels::copy_strided(input, &counts, io.out[0]);
                Ok(())
            }),
        _ => plan.by_definition(op),
    }
}

fn lower_split(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let x = op.ty("x")?;
    if !x.dtype.is_float() {
        return plan.by_definition(op);
    }
    let (axis, parts) = split_parts(op)?;
    let [outer, extent, inner] = around(&x.shape, axis);
    for (&out, (start, len)) in op.op().outputs.iter().zip(parts) {
        plan.step(op, &[op.value("x")?], &[out], move |io| {
            if len * inner > 0 {
                let input = Strided { data: &io.floats[0][start * inner..], strides: &[extent * inner, 1] };
                mixbit_kernels::copy_strided(input, &[outer, len * inner], io.out[0]);
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn lower_transpose(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let (shape, axes) = (op.ty("x")?.shape.clone(), permutation(op)?);
    if !op.ty("x")?.dtype.is_float() || shape.len() > mixbit_kernels::MAX_RANK {
        return plan.by_definition(op);
    }
    plan.step(op, &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::permute(io.floats[0], &shape, &axes, io.out[0]);
        Ok(())
    })
}

fn lower_tile(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let (shape, out) = (&op.ty("x")?.shape, plan.shape(op.op().outputs[0]));
    let repeats: Vec<usize> = op.ints("reps")?.iter().map(|&times| times as usize).collect();
    // An axis that is longer than 1 and repeated is two axes of the walk.
    let axes =
        shape.iter().filter(|&&extent| extent != 1).count() + repeats.iter().filter(|&&n| n != 1).count();
    if !op.ty("x")?.dtype.is_float() || axes > mixbit_kernels::MAX_RANK || out.contains(&0) {
        return plan.by_definition(op);
    }
    let shape = shape.clone();
    plan.step(op, &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::tile(io.floats[0], &shape, &repeats, io.out[0]);
        Ok(())
    })
}
