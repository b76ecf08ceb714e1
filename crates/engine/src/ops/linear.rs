//! Matrix products; `einsum` and `attention` have files of their own.

use mixbit_kernels::{Bias, Epilogue, Mat, MatMut, Operand};
use mixbit_mil::OpView;

use super::{Binding, Ending, Gated, attention, broadcast_strides, einsum, offsets};
use crate::backend::holds_floats;
use crate::cpu::Lowering;
use crate::reference::{Operands, numbers};
use crate::{Error, Tensor};

pub(super) static BINDINGS: &[Binding] = &[
    Binding { op: "einsum", reference: einsum::reference, lower: einsum::lower },
    Binding { op: "linear", reference: linear, lower: |op, plan| lower_linear(op, plan, Ending::of(op)) },
    Binding { op: "matmul", reference: matmul, lower: lower_matmul },
    Binding { op: "scaled_dot_product_attention", reference: attention::reference, lower: attention::lower },
];

fn linear(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let (x, weight) = (op.floats("x")?, op.floats("weight")?);
    let bias = op.optional_floats("bias")?;
    let (rows, depth) = (rows(&op.view)?, op.view.ty("weight")?.shape[1]);
    let outs = op.view.ty("weight")?.shape[0];
    let mut out = Vec::with_capacity(op.out(0).count());
    for row in 0..rows {
        for index in 0..outs {
            let start = bias.as_ref().map_or(0.0, |bias| f64::from(bias[index]));
            let products = x[row * depth..(row + 1) * depth]
                .iter()
                .zip(&weight[index * depth..])
                .map(|(&x, &w)| f64::from(x) * f64::from(w));
            out.push(products.fold(start, |sum, product| sum + product) as f32);
        }
    }
    op.float_result(out)
}

/// The rows of a `linear`: all axes of x but the last.
pub(crate) fn rows(op: &OpView) -> Result<usize, Error> {
    let shape = &op.ty("x")?.shape;
    Ok(shape.iter().rev().skip(1).product())
}

/// The matrices of a `matmul`: their places and how to step through them.
struct Products {
    rows: usize,
    columns: usize,
    depth: usize,
    /// Distances between rows and between columns of x, and of y.
    x_steps: [usize; 2],
    y_steps: [usize; 2],
    /// Where each product's x and y begin.
    starts: Vec<(usize, usize)>,
}

impl Products {
    fn of(op: &OpView, out: &[usize]) -> Result<Self, Error> {
        let (x, y) = (&op.ty("x")?.shape, &op.ty("y")?.shape);
        let steps = |shape: &[usize], transposed: bool| {
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
        Ok(Products {
            rows: out[out.len() - 2],
            columns: out[out.len() - 1],
            depth,
            x_steps: steps(x, transpose_x),
            y_steps: steps(y, transpose_y),
            starts: starts(x).into_iter().zip(starts(y)).collect(),
        })
    }
}

fn matmul(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let products = Products::of(&op.view, &op.out(0).shape)?;
    let (x, y) = (numbers(&op.tensor("x")?), numbers(&op.tensor("y")?));
    let mut out = Vec::with_capacity(op.out(0).count());
    for (x_start, y_start) in products.starts {
        for (row, column) in
            (0..products.rows).flat_map(|row| (0..products.columns).map(move |column| (row, column)))
        {
            let at = |depth: usize| {
                let x = x[x_start + row * products.x_steps[0] + depth * products.x_steps[1]];
                let y = y[y_start + depth * products.y_steps[0] + column * products.y_steps[1]];
                x * y
            };
            out.push((0..products.depth).map(at).sum());
        }
    }
    op.number_result(out.into_iter())
}

/// Adds the step of a linear layer and what follows it.
pub(crate) fn lower_linear(op: &OpView, plan: &mut Lowering, ending: Ending) -> Result<(), Error> {
    let &[outs, depth] = &op.ty("weight")?.shape[..] else { return plan.by_reference(op, linear) };
    let rows = rows(op)?;
    let Some(weight) = plan.linear_kernel(&[op.value("weight")?], false, [outs, depth], rows)? else {
        return plan.by_reference(op, linear);
    };
    let bias = op.get("bias").map(|id| plan.constant_floats(id)).transpose()?;
    let reads = ending.reads(op.value("x")?);
    plan.step(ending.label.clone(), &reads, &[ending.output], move |io| {
        let (_, residual) = ending.operands(io);
        let epilogue = Epilogue {
            bias: bias.as_deref().map_or(Bias::None, Bias::PerColumn),
            residual: residual.map(|residual| Mat::new(residual, rows, outs)),
            activation: ending.activation,
        };
        let left = Operand::F32(Mat::new(io.floats[0], rows, depth));
        let mut rooms = Vec::new();
        let right = weight.operands(&mut rooms)?[0];
        mixbit_kernels::gemm(MatMut::new(io.out[0], rows, outs), left, right, weight.precision(), &epilogue);
        Ok(())
    })
}

/// As [`lower_gated_conv`](super::lower_gated_conv), of a linear layer.
pub(crate) fn lower_gated_linear(op: &OpView, plan: &mut Lowering, gated: Gated) -> Result<(), Error> {
    let &[outs, depth] = &op.ty("weight")?.shape[..] else { return Err(op.invalid("not of rank 2").into()) };
    let (rows, width) = (rows(op)?, outs / 2);
    let weight = plan.linear_kernel(&[op.value("weight")?], true, [outs, depth], rows)?;
    let weight = weight.ok_or_else(|| op.invalid("of a weight that is computed"))?;
    let bias = op.get("bias").map(|id| plan.constant_floats(id)).transpose()?;
    let Gated { label, output, activation } = gated;
    plan.step(label, &[op.value("x")?], &[output], move |io| {
        let left = Operand::F32(Mat::new(io.floats[0], rows, depth));
        let mut rooms = Vec::new();
        let right = weight.operands(&mut rooms)?[0];
        let out = MatMut::new(io.out[0], rows, width);
        mixbit_kernels::gated_gemm(out, left, right, weight.precision(), bias.as_deref(), activation);
        Ok(())
    })
}

fn lower_matmul(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    if !holds_floats(op.ty("x")?.dtype) {
        return plan.by_reference(op, matmul);
    }
    let products = Products::of(op, plan.shape(op.op().outputs[0]))?;
    let precision = plan.precision();
    plan.step(op.label(), &[op.value("x")?, op.value("y")?], &op.op().outputs, move |io| {
        let Products { rows, columns, depth, .. } = products;
        let (x, y) = (io.floats[0], io.floats[1]);
        for (index, &(x_start, y_start)) in products.starts.iter().enumerate() {
            let out = &mut io.out[0][index * rows * columns..(index + 1) * rows * columns];
            let [row, column] = products.x_steps;
            let left = Operand::F32(Mat::with_strides(&x[x_start..], rows, depth, row, column));
            let [row, column] = products.y_steps;
            let right = Operand::F32(Mat::with_strides(&y[y_start..], depth, columns, row, column));
            mixbit_kernels::gemm(
                MatMut::new(out, rows, columns),
                left,
                right,
                precision,
                &Epilogue::default(),
            );
        }
        Ok(())
    })
}
