//! Activations and softmax.

use mixbit_engine::Error;
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

/// The kernel of an op that is an activation; `None` for other ops.
pub(crate) fn activation(op: &OpView) -> Option<UnaryOp> {
    Some(match op.op().def.name {
        "relu" => UnaryOp::Relu,
        "sigmoid" => UnaryOp::Sigmoid,
        "silu" => UnaryOp::Silu,
        "gelu" => match op.str("mode").ok()?.as_str() {
            "TANH_APPROXIMATION" => UnaryOp::GeluTanh,
            "SIGMOID_APPROXIMATION" => UnaryOp::Swish { slope: 1.702 },
            _ => UnaryOp::Gelu,
        },
        _ => return None,
    })
}

fn lower_activation(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let kernel = activation(op).ok_or_else(|| op.invalid("it is no activation"))?;
    lower(op, plan, kernel)
}

fn lower_softmax(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let x = op.ty("x")?;
    let [outer, axis, inner] = around(&x.shape, op.axis(op.int("axis")?, x.rank())?);
    plan.step(op.label(), &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::softmax(&AxisShape { outer, axis, inner }, io.floats[0], io.out[0]);
        Ok(())
    })
}
