//! Activations and softmax.

use mixbit_kernels::{AxisShape, UnaryOp};
use mixbit_mil::OpView;

use super::unary::{erf, lower, map};
use super::{Binding, around, maximum};
use crate::cpu::Lowering;
use crate::reference::Operands;
use crate::{Error, Tensor};

pub(super) static BINDINGS: &[Binding] = &[
    Binding { op: "gelu", reference: gelu, lower: lower_activation },
    Binding { op: "leaky_relu", reference: leaky_relu, lower: |op, plan| plan.by_reference(op, leaky_relu) },
    Binding {
        op: "relu",
        reference: |op| map(op, |_| Ok(Box::new(|x| maximum(x, 0.0)))),
        lower: lower_activation,
    },
    Binding { op: "sigmoid", reference: |op| map(op, |_| Ok(Box::new(sigmoid))), lower: lower_activation },
    Binding {
        op: "silu",
        reference: |op| map(op, |_| Ok(Box::new(|x| x * sigmoid(x)))),
        lower: lower_activation,
    },
    Binding { op: "softmax", reference: softmax, lower: lower_softmax },
];

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn gelu(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let mode = op.view.str("mode")?;
    let f: fn(f64) -> f64 = match mode.as_str() {
        "TANH_APPROXIMATION" => {
            |x| x / 2.0 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        "SIGMOID_APPROXIMATION" => |x| x * sigmoid(1.702 * x),
        _ => |x| x / 2.0 * (1.0 + erf(x / std::f64::consts::SQRT_2)),
    };
    map(op, |_| Ok(Box::new(f)))
}

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

fn lower_activation(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let kernel = activation(op).ok_or_else(|| op.invalid("it is no activation"))?;
    lower(op, plan, kernel)
}

fn leaky_relu(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let alpha = op.view.float("alpha")?;
    map(op, |_| Ok(Box::new(move |x| if x >= 0.0 { x } else { alpha * x })))
}

fn softmax(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let x = op.floats("x")?;
    let shape = &op.out(0).shape;
    let [outer, axis, inner] = around(shape, op.view.axis(op.view.int("axis")?, shape.len())?);
    let mut out = vec![0.0; x.len()];
    for start in (0..outer).flat_map(|o| (0..inner).map(move |i| o * axis * inner + i)) {
        let places = || (0..axis).map(|at| start + at * inner);
        let max = places().map(|at| x[at]).fold(f32::NEG_INFINITY, f32::max);
        let exp = |at: usize| f64::from(x[at] - max).exp();
        let sum: f64 = places().map(exp).sum();
        places().for_each(|at| out[at] = (exp(at) / sum) as f32);
    }
    op.float_result(out)
}

fn lower_softmax(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let x = op.ty("x")?;
    let [outer, axis, inner] = around(&x.shape, op.axis(op.int("axis")?, x.rank())?);
    plan.step(op.label(), &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::softmax(&AxisShape { outer, axis, inner }, io.floats[0], io.out[0]);
        Ok(())
    })
}
