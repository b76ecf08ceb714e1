//! Element-wise ops of two or three inputs.

use mixbit_engine::Error;
use mixbit_engine::geometry::broadcast_strides;
use mixbit_kernels::{BinaryOp, Strided};
use mixbit_mil::OpView;

use super::{Lowering, by_definition};
use crate::plan::PlanBuilder;

macro_rules! kernel {
    ($name:literal, $kernel:expr) => {
        Lowering { op: $name, lower: |op, plan| lower(op, plan, $kernel) }
    };
}

pub(super) static LOWERINGS: &[Lowering] = &[
    kernel!("add", BinaryOp::Add),
    by_definition("equal"),
    kernel!("floor_div", BinaryOp::FloorDiv),
    by_definition("greater"),
    by_definition("greater_equal"),
    by_definition("less"),
    by_definition("less_equal"),
    by_definition("logical_and"),
    by_definition("logical_or"),
    by_definition("logical_xor"),
    kernel!("maximum", BinaryOp::Maximum),
    kernel!("minimum", BinaryOp::Minimum),
    kernel!("mod", BinaryOp::Mod),
    kernel!("mul", BinaryOp::Mul),
    by_definition("not_equal"),
    kernel!("pow", BinaryOp::Pow),
    kernel!("real_div", BinaryOp::Div),
    by_definition("select"),
    kernel!("sub", BinaryOp::Sub),
];

fn lower(op: &OpView, plan: &mut PlanBuilder, kernel: BinaryOp) -> Result<(), Error> {
    let (x, y) = (op.value("x")?, op.value("y")?);
    if !op.ty("x")?.dtype.is_float() {
        return plan.by_definition(op);
    }
    let shape = plan.shape(op.op().outputs[0]).to_vec();
    let strides = |own: &[usize]| -> Vec<usize> {
        broadcast_strides(own, &shape).into_iter().map(isize::unsigned_abs).collect()
    };
    let (x_strides, y_strides) = (strides(plan.shape(x)), strides(plan.shape(y)));
    if shape.len() > mixbit_kernels::MAX_RANK {
        return plan.by_definition(op);
    }
    plan.step(op, &[x, y], &op.op().outputs, move |io| {
        let x = Strided { data: io.floats[0], strides: &x_strides };
        let y = Strided { data: io.floats[1], strides: &y_strides };
        mixbit_kernels::binary(kernel, x, y, &shape, io.out[0]);
        Ok(())
    })
}
