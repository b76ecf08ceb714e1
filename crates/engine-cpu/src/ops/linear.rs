//! Matrix products; `einsum` and `attention` have files of their own.

use std::sync::Arc;

use mixbit_engine::Error;
use mixbit_engine::fuse;
use mixbit_engine::geometry::{MatMulGeometry, linear_rows};
use mixbit_kernels::{Bias, Epilogue, Mat, MatMut, Operand};
use mixbit_mil::{OpView, ValueId};

use super::{Lowering, attention, einsum, kernel};
use crate::plan::{Label, PlanBuilder};

pub(super) static LOWERINGS: &[Lowering] = &[
    Lowering { op: "einsum", lower: einsum::lower },
    Lowering { op: "linear", lower: |op, plan| lower_linear(op, plan, op.into(), &fuse::Epilogue::none(op)) },
    Lowering { op: "matmul", lower: lower_matmul },
    Lowering { op: "scaled_dot_product_attention", lower: attention::lower },
];

/// Adds the step of a linear layer with its epilogue.
pub(crate) fn lower_linear(
    op: &OpView,
    plan: &mut PlanBuilder,
    label: Label,
    epilogue: &fuse::Epilogue,
) -> Result<(), Error> {
    let &[outs, depth] = &op.ty("weight")?.shape[..] else { return plan.by_definition(op) };
    let rows = linear_rows(op)?;
    let Some(weight) = plan.linear_kernel(&[op.value("weight")?], false, [outs, depth], rows)? else {
        return plan.by_definition(op);
    };
    let weight = Arc::new(weight);
    let packed = weight.clone();
    let bias = op.get("bias").map(|id| plan.constant_floats(id)).transpose()?;
    let &fuse::Epilogue { output, residual, activation, .. } = epilogue;
    let reads: Vec<ValueId> = [Some(op.value("x")?), residual].into_iter().flatten().collect();
    let activation = activation.map(kernel);
    plan.step(label, &reads, &[output], move |io| {
        let residual = io.floats.get(1).copied();
        let epilogue = Epilogue {
            bias: bias.as_deref().map_or(Bias::None, Bias::PerColumn),
            residual: residual.map(|residual| Mat::new(residual, rows, outs)),
            activation,
            gate: None,
        };
        let left = Operand::from(Mat::new(io.floats[0], rows, depth));
        let mut scratch = Vec::new();
        let right = weight.operands(&mut scratch)?[0];
        mixbit_kernels::gemm(MatMut::new(io.out[0], rows, outs), left, right, weight.precision(), &epilogue);
        Ok(())
    })?;
    plan.prepare(move || packed.prepare());
    Ok(())
}

/// As [`lower_gated_conv`](super::lower_gated_conv), of a linear layer.
pub(crate) fn lower_gated_linear(
    op: &OpView,
    plan: &mut PlanBuilder,
    label: Label,
    gated: &fuse::Gated,
) -> Result<(), Error> {
    let &[outs, depth] = &op.ty("weight")?.shape[..] else { return Err(op.invalid("not of rank 2").into()) };
    let (rows, width) = (linear_rows(op)?, outs / 2);
    let weight = plan.linear_kernel(&[op.value("weight")?], true, [outs, depth], rows)?;
    let weight = Arc::new(weight.ok_or_else(|| op.invalid("of a weight that is computed"))?);
    let packed = weight.clone();
    let bias = op.get("bias").map(|id| plan.constant_floats(id)).transpose()?;
    let gate = kernel(gated.activation);
    plan.step(label, &[op.value("x")?], &[gated.output], move |io| {
        let left = Operand::from(Mat::new(io.floats[0], rows, depth));
        let mut scratch = Vec::new();
        let right = weight.operands(&mut scratch)?[0];
        let out = MatMut::new(io.out[0], rows, width);
        let bias = bias.as_deref().map_or(Bias::None, Bias::PerColumn);
        let epilogue = Epilogue { bias, gate: Some(gate), ..Epilogue::default() };
        mixbit_kernels::gemm(out, left, right, weight.precision(), &epilogue);
        Ok(())
    })?;
    plan.prepare(move || packed.prepare());
    Ok(())
}

fn lower_matmul(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    if !op.ty("x")?.dtype.is_float() {
        return plan.by_definition(op);
    }
    let products = MatMulGeometry::of(op, plan.shape(op.op().outputs[0]))?;
    let precision = plan.precision();
    plan.step(op, &[op.value("x")?, op.value("y")?], &op.op().outputs, move |io| {
        let MatMulGeometry { rows, columns, depth, .. } = products;
        let (x, y) = (io.floats[0], io.floats[1]);
        for (index, &(x_start, y_start)) in products.starts.iter().enumerate() {
            let out = &mut io.out[0][index * rows * columns..(index + 1) * rows * columns];
            let [row, column] = products.x_strides;
            let left = Operand::from(Mat::with_strides(&x[x_start..], rows, depth, row, column));
            let [row, column] = products.y_strides;
            let right = Operand::from(Mat::with_strides(&y[y_start..], depth, columns, row, column));
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
