//! Activations and softmax.

use mixbit_engine::Error;
use mixbit_engine::fuse::Activation;
use mixbit_engine::geometry::around;
use mixbit_kernels::{AxisShape, UnaryOp};
use mixbit_mil::OpView;

use super::unary::lower;
use super::{Lowering, by_definition};
use crate::plan::PlanBuilder;

pub(super) static LOWERINGS: &[Lowering] = &[
    Lowering { op: "gelu", lower: lower_activation },
    by_definition("leaky_relu"),
    Lowering { op: "relu", lower: lower_activation },
    Lowering { op: "sigmoid", lower: lower_activation },
    Lowering { op: "silu", lower: lower_activation },
    Lowering { op: "softmax", lower: lower_softmax },
];

/// The kernel of an activation.
pub(crate) fn kernel(activation: Activation) -> UnaryOp {
    match activation {
        Activation::Relu => UnaryOp::Relu,
        Activation::Sigmoid => UnaryOp::Sigmoid,
        Activation::Silu => UnaryOp::Silu,
        Activation::Swish { slope } => UnaryOp::Swish { slope },
        Activation::Gelu => UnaryOp::Gelu,
        Activation::GeluTanh => UnaryOp::GeluTanh,
    }
}

fn lower_activation(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let activation = Activation::of(op).ok_or_else(|| op.invalid("it is no activation"))?;
    lower(op, plan, kernel(activation))
}

fn lower_softmax(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let x = op.ty("x")?;
    let [outer, axis, inner] = around(&x.shape, op.axis(op.int("axis")?, x.rank())?);
    plan.step(op, &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::softmax(&AxisShape { outer, axis, inner }, io.floats[0], io.out[0]);
        Ok(())
    })
}
