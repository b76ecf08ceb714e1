//! Matrix products; `einsum` and `attention` have files of their own.

use super::{Definition, Operands, attention, einsum};
use crate::geometry::{MatMulGeometry, linear_rows};
use crate::tensor::numbers;
use crate::{Error, Tensor};

pub(super) static DEFINITIONS: &[Definition] = &[
    Definition { op: "einsum", eval: einsum::einsum },
    Definition { op: "linear", eval: linear },
    Definition { op: "matmul", eval: matmul },
    Definition { op: "scaled_dot_product_attention", eval: attention::attention },
];

fn linear(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let (x, weight) = (op.floats("x")?, op.floats("weight")?);
    let bias = op.optional_floats("bias")?;
    let (rows, depth) = (linear_rows(&op.view)?, op.view.ty("weight")?.shape[1]);
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

fn matmul(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let products = MatMulGeometry::of(&op.view, &op.out(0).shape)?;
    let (x, y) = (numbers(&op.tensor("x")?), numbers(&op.tensor("y")?));
    let mut out = Vec::with_capacity(op.out(0).count());
    for (x_start, y_start) in products.starts {
        for (row, column) in
            (0..products.rows).flat_map(|row| (0..products.columns).map(move |column| (row, column)))
        {
            let at = |depth: usize| {
                let x = x[x_start + row * products.x_strides[0] + depth * products.x_strides[1]];
                let y = y[y_start + depth * products.y_strides[0] + column * products.y_strides[1]];
                x * y
            };
            out.push((0..products.depth).map(at).sum());
        }
    }
    op.number_result(out.into_iter())
}
