//! Gathering by index.

use mixbit_engine::Error;
use mixbit_engine::geometry::{around, resolve_index};
use mixbit_mil::OpView;

use super::{Lowering, by_definition};
use crate::plan::PlanBuilder;

pub(super) static LOWERINGS: &[Lowering] =
    &[Lowering { op: "gather", lower: lower_gather }, by_definition("gather_nd")];

/// Rows of a constant table, which stays as stored; other forms run by the definition.
fn lower_gather(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let x = op.ty("x")?;
    let [outer, extent, width] = around(&x.shape, op.axis(op.int("axis")?, x.rank())?);
    let x = op.value("x")?;
    let Some(table) = (outer == 1).then(|| plan.table(x)).flatten() else {
        return plan.by_definition(op);
    };
    let (function, node) = (plan.shared(), op.op().clone());
    plan.step(op, &[op.value("indices")?], &op.op().outputs, move |io| {
        let view = function.view(&node);
        let rows = io.ints[0].iter().map(|&index| resolve_index(&view, index, extent));
        let rows = rows.collect::<Result<Vec<_>, _>>()?;
        mixbit_kernels::gather_weight_rows(table.slice(&mut None)?, width, &rows, io.out[0]);
        Ok(())
    })
}
