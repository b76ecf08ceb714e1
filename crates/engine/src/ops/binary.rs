//! Element-wise ops of two or three inputs.

use super::{Definition, Operands, maximum, minimum};
use crate::geometry::{broadcast_strides, offsets};
use crate::{Data, Error, Tensor};

macro_rules! arithmetic {
    ($name:literal, $definition:expr) => {
        Definition { op: $name, eval: |op| arithmetic(op, $definition) }
    };
}

macro_rules! comparison {
    ($name:literal, $definition:expr) => {
        Definition { op: $name, eval: |op| compare(op, $definition) }
    };
}

pub(super) static DEFINITIONS: &[Definition] = &[
    arithmetic!("add", |x, y| x + y),
    comparison!("equal", |x, y| x == y),
    arithmetic!("floor_div", |x, y| (x / y).floor()),
    comparison!("greater", |x, y| x > y),
    comparison!("greater_equal", |x, y| x >= y),
    comparison!("less", |x, y| x < y),
    comparison!("less_equal", |x, y| x <= y),
    comparison!("logical_and", |x, y| x != 0.0 && y != 0.0),
    comparison!("logical_or", |x, y| x != 0.0 || y != 0.0),
    comparison!("logical_xor", |x, y| (x != 0.0) != (y != 0.0)),
    arithmetic!("maximum", maximum),
    arithmetic!("minimum", minimum),
    arithmetic!("mod", modulo),
    arithmetic!("mul", |x, y| x * y),
    comparison!("not_equal", |x, y| x != y),
    arithmetic!("pow", f64::powf),
    arithmetic!("real_div", |x, y| x / y),
    Definition { op: "select", eval: select },
    arithmetic!("sub", |x, y| x - y),
];

/// The remainder with the divisor's sign, exact where `x - floor(x / y) * y` is not.
fn modulo(x: f64, y: f64) -> f64 {
    let rest = x % y;
    if rest != 0.0 && (rest < 0.0) != (y < 0.0) { rest + y } else { rest }
}

/// The elements of an operand as f64, repeated to the result's shape.
fn spread(tensor: &Tensor, shape: &[usize]) -> Vec<f64> {
    let places = offsets(shape, &broadcast_strides(tensor.shape(), shape), 0);
    match tensor.data() {
        Data::Float(values) => places.into_iter().map(|at| values[at].into()).collect(),
        Data::Int(values) => places.into_iter().map(|at| values[at].into()).collect(),
    }
}

fn arithmetic(op: &Operands, f: fn(f64, f64) -> f64) -> Result<Vec<Tensor>, Error> {
    let shape = &op.out(0).shape;
    let (x, y) = (spread(&op.tensor("x")?, shape), spread(&op.tensor("y")?, shape));
    op.number_result(x.into_iter().zip(y).map(|(x, y)| f(x, y)))
}

fn compare(op: &Operands, f: fn(f64, f64) -> bool) -> Result<Vec<Tensor>, Error> {
    let shape = &op.out(0).shape;
    let (x, y) = (spread(&op.tensor("x")?, shape), spread(&op.tensor("y")?, shape));
    op.number_result(x.into_iter().zip(y).map(|(x, y)| f64::from(f(x, y))))
}

fn select(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let shape = &op.out(0).shape;
    let cond = spread(&op.tensor("cond")?, shape);
    let (a, b) = (spread(&op.tensor("a")?, shape), spread(&op.tensor("b")?, shape));
    op.number_result(
        cond.into_iter().zip(a.into_iter().zip(b)).map(|(cond, (a, b))| if cond != 0.0 { a } else { b }),
    )
}
