//! Element-wise ops of one input.

use mixbit_engine::Error;
use mixbit_kernels::UnaryOp;
use mixbit_mil::{DType, OpView};

use super::{Lowering, by_definition};
use crate::plan::PlanBuilder;

/// A kernel with an op's attributes.
type Kernel = fn(&OpView) -> Result<UnaryOp, Error>;

macro_rules! kernel {
    ($name:literal, $kernel:expr) => {
        Lowering {
            op: $name,
            lower: |op, plan| {
                let kernel: Kernel = $kernel;
                lower(op, plan, kernel(op)?)
            },
        }
    };
}

pub(super) static LOWERINGS: &[Lowering] = &[
    kernel!("abs", |_| Ok(UnaryOp::Abs)),
    Lowering { op: "cast", lower: lower_cast },
    kernel!("ceil", |_| Ok(UnaryOp::Ceil)),
    kernel!("clip", clip),
    kernel!("cos", |_| Ok(UnaryOp::Cos)),
    kernel!("erf", |_| Ok(UnaryOp::Erf)),
    kernel!("exp", |_| Ok(UnaryOp::Exp)),
    kernel!("exp2", |_| Ok(UnaryOp::Exp2)),
    kernel!("floor", |_| Ok(UnaryOp::Floor)),
    Lowering { op: "identity", lower: alias },
    kernel!("inverse", |op| Ok(UnaryOp::Inverse { epsilon: epsilon(op)? })),
    kernel!("log", |op| Ok(UnaryOp::Log { epsilon: epsilon(op)? })),
    by_definition("logical_not"),
    kernel!("round", |_| Ok(UnaryOp::Round)),
    kernel!("rsqrt", |op| Ok(UnaryOp::Rsqrt { epsilon: epsilon(op)? })),
    kernel!("sign", |_| Ok(UnaryOp::Sign)),
    kernel!("sin", |_| Ok(UnaryOp::Sin)),
    kernel!("sqrt", |_| Ok(UnaryOp::Sqrt)),
    kernel!("square", |_| Ok(UnaryOp::Square)),
    kernel!("tanh", |_| Ok(UnaryOp::Tanh)),
];

fn epsilon(op: &OpView) -> Result<f32, Error> {
    Ok(op.float("epsilon")? as f32)
}

fn clip(op: &OpView) -> Result<UnaryOp, Error> {
    Ok(UnaryOp::Clip { low: op.float("alpha")? as f32, high: op.float("beta")? as f32 })
}

/// Adds a step that applies a kernel to every element; integers run by the definition.
pub(super) fn lower(op: &OpView, plan: &mut PlanBuilder, kernel: UnaryOp) -> Result<(), Error> {
    if !op.ty("x")?.dtype.is_float() {
        return plan.by_definition(op);
    }
    plan.step(op, &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::unary(kernel, io.floats[0], io.out[0]);
        Ok(())
    })
}

/// Makes the result the same memory as the input.
pub(super) fn alias(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    plan.alias(op.value("x")?, op.op().outputs[0])
}

fn lower_cast(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let out = op.op().outputs[0];
    let (from, to) = (op.ty("x")?.dtype, plan.function().value(out).ty.dtype);
    if from == to || (from == DType::F16 && to == DType::F32) {
        return alias(op, plan);
    }
    if from.is_float() && to.is_float() {
        return plan.step(op, &[op.value("x")?], &[out], |io| {
            io.out[0].copy_from_slice(io.floats[0]);
            Ok(())
        });
    }
    plan.by_definition(op)
}
