//! Element-wise ops of two or three inputs.

use mixbit_kernels::{BinaryOp, Strided};
use mixbit_mil::OpView;

use super::{Binding, broadcast_strides, maximum, minimum, offsets};
use crate::backend::holds_floats;
use crate::cpu::Lowering;
use crate::reference::Operands;
use crate::{Data, Error, Tensor};

macro_rules! arithmetic {
    ($name:literal, $definition:expr, $kernel:expr) => {
        Binding {
            op: $name,
            reference: |op| arithmetic(op, $definition),
            lower: |op, plan| lower(op, plan, $kernel, |op| arithmetic(op, $definition)),
        }
    };
}

macro_rules! comparison {
    ($name:literal, $definition:expr) => {
        Binding {
            op: $name,
            reference: |op| compare(op, $definition),
            lower: |op, plan| plan.by_reference(op, |op| compare(op, $definition)),
        }
    };
}

pub(super) static BINDINGS: &[Binding] = &[
    arithmetic!("add", |x, y| x + y, BinaryOp::Add),
    comparison!("equal", |x, y| x == y),
    arithmetic!("floor_div", |x, y| (x / y).floor(), BinaryOp::FloorDiv),
    comparison!("greater", |x, y| x > y),
    comparison!("greater_equal", |x, y| x >= y),
    comparison!("less", |x, y| x < y),
    comparison!("less_equal", |x, y| x <= y),
    comparison!("logical_and", |x, y| x != 0.0 && y != 0.0),
    comparison!("logical_or", |x, y| x != 0.0 || y != 0.0),
    comparison!("logical_xor", |x, y| (x != 0.0) != (y != 0.0)),
    arithmetic!("maximum", maximum, BinaryOp::Maximum),
    arithmetic!("minimum", minimum, BinaryOp::Minimum),
    arithmetic!("mod", modulo, BinaryOp::Mod),
    arithmetic!("mul", |x, y| x * y, BinaryOp::Mul),
    comparison!("not_equal", |x, y| x != y),
    arithmetic!("pow", f64::powf, BinaryOp::Pow),
    arithmetic!("real_div", |x, y| x / y, BinaryOp::Div),
    Binding { op: "select", reference: select, lower: |op, plan| plan.by_reference(op, select) },
    arithmetic!("sub", |x, y| x - y, BinaryOp::Sub),
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

fn lower(
    op: &OpView,
    plan: &mut Lowering,
    kernel: BinaryOp,
    reference: fn(&Operands) -> Result<Vec<Tensor>, Error>,
) -> Result<(), Error> {
    let (x, y) = (op.value("x")?, op.value("y")?);
    if !holds_floats(op.ty("x")?.dtype) {
        return plan.by_reference(op, reference);
    }
    let shape = plan.shape(op.op().outputs[0]).to_vec();
    let strides = |own: &[usize]| -> Vec<usize> {
        broadcast_strides(own, &shape).into_iter().map(isize::unsigned_abs).collect()
    };
    let (x_strides, y_strides) = (strides(plan.shape(x)), strides(plan.shape(y)));
    if shape.len() > mixbit_kernels::MAX_RANK {
        return plan.by_reference(op, reference);
    }
    plan.step(op.label(), &[x, y], &op.op().outputs, move |io| {
        let x = Strided { data: io.floats[0], strides: &x_strides };
        let y = Strided { data: io.floats[1], strides: &y_strides };
        mixbit_kernels::binary(kernel, x, y, &shape, io.out[0]);
        Ok(())
    })
}
