//! Reductions.

use mixbit_engine::Error;
use mixbit_engine::geometry::axes;
use mixbit_kernels::ReduceOp;
use mixbit_mil::OpView;

use super::{Lowering, adjacent, by_definition};
use crate::plan::PlanBuilder;

macro_rules! kernel {
    ($name:literal, $kernel:expr) => {
        Lowering { op: $name, lower: |op, plan| lower(op, plan, $kernel) }
    };
}

pub(super) static LOWERINGS: &[Lowering] = &[
    by_definition("reduce_argmax"),
    by_definition("reduce_argmin"),
    by_definition("reduce_l2_norm"),
    kernel!("reduce_max", ReduceOp::Max),
    kernel!("reduce_mean", ReduceOp::Mean),
    kernel!("reduce_min", ReduceOp::Min),
    by_definition("reduce_prod"),
    kernel!("reduce_sum", ReduceOp::Sum),
    by_definition("reduce_sum_square"),
];

fn lower(op: &OpView, plan: &mut PlanBuilder, kernel: ReduceOp) -> Result<(), Error> {
    let (x, axes) = (op.ty("x")?, axes(op)?);
    let (Some(shape), true) = (adjacent(&x.shape, &axes), x.dtype.is_float()) else {
        return plan.by_definition(op);
    };
    plan.step(op, &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::reduce(kernel, &shape, io.floats[0], io.out[0]);
        Ok(())
    })
}
