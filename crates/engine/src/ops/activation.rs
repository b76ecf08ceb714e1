//! Activations and softmax.

use super::unary::{erf, map};
use super::{Definition, Operands, maximum};
use crate::geometry::around;
use crate::{Error, Tensor};

pub(super) static DEFINITIONS: &[Definition] = &[
    Definition { op: "gelu", eval: gelu },
    Definition { op: "leaky_relu", eval: leaky_relu },
    Definition { op: "relu", eval: |op| map(op, |_| Ok(Box::new(|x| maximum(x, 0.0)))) },
    Definition { op: "sigmoid", eval: |op| map(op, |_| Ok(Box::new(sigmoid))) },
    Definition { op: "silu", eval: |op| map(op, |_| Ok(Box::new(|x| x * sigmoid(x)))) },
    Definition { op: "softmax", eval: softmax },
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
