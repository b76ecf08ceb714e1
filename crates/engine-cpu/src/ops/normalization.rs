//! Normalizations.

use mixbit_engine::Error;
use mixbit_engine::geometry::{around, axes};
use mixbit_kernels::{AxisShape, GroupNormShape, NormParams};
use mixbit_mil::OpView;

use super::{Lowering, adjacent};
use crate::plan::PlanBuilder;

pub(super) static LOWERINGS: &[Lowering] = &[
    Lowering { op: "batch_norm", lower: lower_batch_norm },
    Lowering { op: "instance_norm", lower: lower_instance_norm },
    Lowering { op: "layer_norm", lower: lower_layer_norm },
];

/// The constants that every norm has.
struct Constants {
    gamma: Option<Vec<f32>>,
    beta: Option<Vec<f32>>,
    epsilon: f32,
}

impl Constants {
    fn of(op: &OpView, plan: &mut PlanBuilder) -> Result<Self, Error> {
        let mut optional = |input| op.get(input).map(|id| plan.constant_floats(id)).transpose();
        Ok(Constants {
            gamma: optional("gamma")?,
            beta: optional("beta")?,
            epsilon: op.float("epsilon")? as f32,
        })
    }

    fn params(&self) -> NormParams<'_> {
        NormParams {
            gamma: self.gamma.as_deref(),
            beta: self.beta.as_deref(),
            epsilon: self.epsilon,
            activation: None,
        }
    }
}

fn lower_layer_norm(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let axes = axes(op)?;
    let Some(axis) = adjacent(&op.ty("x")?.shape, &axes) else {
        return plan.by_definition(op);
    };
    let constants = Constants::of(op, plan)?;
    plan.step(op, &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::layer_norm(&axis, io.floats[0], &constants.params(), io.out[0]);
        Ok(())
    })
}

/// A group norm in which every channel is a group.
fn lower_instance_norm(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let [batch, channels, spatial] = around(&op.ty("x")?.shape, 1);
    let constants = Constants::of(op, plan)?;
    if channels == 0 {
        return plan.by_definition(op);
    }
    plan.step(op, &[op.value("x")?], &op.op().outputs, move |io| {
        let shape = GroupNormShape { batch, channels, spatial, groups: channels };
        mixbit_kernels::group_norm(&shape, io.floats[0], &constants.params(), io.out[0]);
        Ok(())
    })
}

fn lower_batch_norm(op: &OpView, plan: &mut PlanBuilder) -> Result<(), Error> {
    let [outer, axis, inner] = around(&op.ty("x")?.shape, 1);
    let mean = plan.constant_floats(op.value("mean")?)?;
    let variance = plan.constant_floats(op.value("variance")?)?;
    let constants = Constants::of(op, plan)?;
    plan.step(op, &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::batch_norm(
            &AxisShape { outer, axis, inner },
            io.floats[0],
            &mean,
            &variance,
            &constants.params(),
            io.out[0],
        );
        Ok(())
    })
}
