//! Matrix products, einsum and attention.

use kernels::{Bias, Epilogue, Mat, MatMut, Operand};
use mil::OpView;
use mil::ops::Equation;

use super::{Binding, broadcast_strides, offsets, strides};
use crate::backend::holds_floats;
use crate::cpu::Lowering;
use crate::reference::{Operands, numbers};
use crate::{Data, Error, Tensor};

pub(super) static BINDINGS: &[Binding] = &[
    Binding { op: "einsum", reference: einsum, lower: |op, plan| plan.by_reference(op, einsum) },
    Binding { op: "linear", reference: linear, lower: lower_linear },
    Binding { op: "matmul", reference: matmul, lower: lower_matmul },
    Binding {
        op: "scaled_dot_product_attention",
        reference: attention,
        lower: |op, plan| plan.by_reference(op, attention),
    },
];

fn einsum(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let text = op.view.str("equation")?;
    let equation = Equation::parse(&text).ok_or_else(|| op.view.invalid("can't read the equation"))?;
    let operands = op.list("values")?;
    let extents: Vec<(char, usize)> = equation
        .inputs
        .iter()
        .zip(&operands)
        .flat_map(|(labels, tensor)| labels.iter().copied().zip(tensor.shape().iter().copied()))
        .collect();
    let extent =
        |label: &char| extents.iter().find(|(known, _)| known == label).map_or(1, |&(_, extent)| extent);
    let mut summed: Vec<char> = equation.inputs.concat();
    summed.retain(|label| !equation.output.contains(label));
    summed.sort_unstable();
    summed.dedup();
    let walk = |labels: &[char], operand: usize| -> Vec<usize> {
        let own = strides(operands[operand].shape());
        let stride = |label: &char| {
            equation.inputs[operand].iter().position(|other| other == label).map_or(0, |axis| own[axis])
        };
        let shape: Vec<usize> = labels.iter().map(extent).collect();
        offsets(&shape, &labels.iter().map(stride).collect::<Vec<_>>(), 0)
    };
    let (x, y) = (numbers(&operands[0]), numbers(&operands[1]));
    let (x_inner, y_inner) = (walk(&summed, 0), walk(&summed, 1));
    let outer = walk(&equation.output, 0).into_iter().zip(walk(&equation.output, 1));
    let dot = |(x_at, y_at): (usize, usize)| {
        let products = x_inner.iter().zip(&y_inner).map(|(i, j)| x[x_at + i] * y[y_at + j]);
        products.sum()
    };
    op.number_result(outer.map(dot))
}

fn linear(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let (x, weight) = (op.floats("x")?, op.floats("weight")?);
    let bias = op.optional_floats("bias")?;
    let depth = op.view.ty("weight")?.shape[1];
    let outs = op.view.ty("weight")?.shape[0];
    let mut out = Vec::with_capacity(op.out(0).count());
    for row in x.chunks_exact(depth.max(1)) {
        for index in 0..outs {
            let start = bias.as_ref().map_or(0.0, |bias| f64::from(bias[index]));
            let products =
                row.iter().zip(&weight[index * depth..]).map(|(&x, &w)| f64::from(x) * f64::from(w));
            out.push(products.fold(start, |sum, product| sum + product) as f32);
        }
    }
    op.float_result(out)
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

/// A mask as numbers to add to scores.
fn additive(mask: &Tensor) -> Vec<f32> {
    match mask.data() {
        Data::Float(values) => values.clone(),
        Data::Int(seen) => seen.iter().map(|&seen| if seen != 0 { 0.0 } else { f32::NEG_INFINITY }).collect(),
    }
}

fn attention(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let (query, key, value) = (op.tensor("query")?, op.tensor("key")?, op.tensor("value")?);
    let rank = query.shape().len();
    let (queries, channels) = (query.shape()[rank - 2], query.shape()[rank - 1]);
    let (keys, width) = (key.shape()[rank - 2], value.shape()[rank - 1]);
    let scores_shape = [&query.shape()[..rank - 1], &[keys]].concat();
    let mask = op.optional("attn_mask")?;
    let mask_places =
        mask.as_ref().map(|mask| offsets(&scores_shape, &broadcast_strides(mask.shape(), &scores_shape), 0));
    let floats = |tensor: &Tensor| tensor.as_f32().map(<[f32]>::to_vec).unwrap_or_default();
    let (q, k, v) = (floats(&query), floats(&key), floats(&value));
    let mask = mask.as_ref().map(additive);
    let batches: usize = query.shape()[..rank - 2].iter().product();
    let mut out = Vec::with_capacity(op.out(0).count());
    for row in 0..batches * queries {
        let batch = row / queries.max(1);
        let score = |at: usize| {
            let products = (0..channels)
                .map(|c| f64::from(q[row * channels + c]) * f64::from(k[(batch * keys + at) * channels + c]));
            let bias = match (&mask, &mask_places) {
                (Some(mask), Some(places)) => f64::from(mask[places[row * keys + at]]),
                _ => 0.0,
            };
            products.sum::<f64>() / (channels as f64).sqrt() + bias
        };
        let scores: Vec<f64> = (0..keys).map(score).collect();
        if scores.iter().all(|&score| score == f64::NEG_INFINITY) {
            out.extend(std::iter::repeat_n(0.0, width));
            continue;
        }
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
        for column in 0..width {
            let weighted = scores
                .iter()
                .enumerate()
                .map(|(at, score)| (score - max).exp() * f64::from(v[(batch * keys + at) * width + column]));
            out.push((weighted.sum::<f64>() / sum) as f32);
        }
    }
    op.float_result(out)
}

fn lower_linear(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let Some(weight) = plan.weight(op.value("weight")?)? else { return plan.by_reference(op, linear) };
    let &[outs, depth] = &op.ty("weight")?.shape[..] else { return plan.by_reference(op, linear) };
    let bias = op.get("bias").map(|id| plan.constant_floats(id)).transpose()?;
    let rows = if depth == 0 { 0 } else { op.ty("x")?.count() / depth };
    plan.step(op.label(), &[op.value("x")?], &op.op().outputs, move |io| {
        let epilogue =
            Epilogue { bias: bias.as_deref().map_or(Bias::None, Bias::PerColumn), ..Epilogue::default() };
        let left = Operand::F32(Mat::new(io.floats[0], rows, depth));
        kernels::gemm(
            MatMut::new(io.out[0], rows, outs),
            left,
            weight.slice().transposed_matrix(outs, depth),
            &epilogue,
        );
        Ok(())
    })
}

fn lower_matmul(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    if !holds_floats(op.ty("x")?.dtype) {
        return plan.by_reference(op, matmul);
    }
    let products = Products::of(op, plan.shape(op.op().outputs[0]))?;
    plan.step(op.label(), &[op.value("x")?, op.value("y")?], &op.op().outputs, move |io| {
        let Products { rows, columns, depth, .. } = products;
        let (x, y) = (io.floats[0], io.floats[1]);
        for (index, &(x_start, y_start)) in products.starts.iter().enumerate() {
            let out = &mut io.out[0][index * rows * columns..(index + 1) * rows * columns];
            let [row, column] = products.x_steps;
            let left = Operand::F32(Mat::with_strides(&x[x_start..], rows, depth, row, column));
            let [row, column] = products.y_steps;
            let right = Operand::F32(Mat::with_strides(&y[y_start..], depth, columns, row, column));
            kernels::gemm(MatMut::new(out, rows, columns), left, right, &Epilogue::default());
        }
        Ok(())
    })
}
