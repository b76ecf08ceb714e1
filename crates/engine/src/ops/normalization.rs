//! Normalizations.

use mixbit_kernels::{AxisShape, GroupNormShape, NormParams};
use mixbit_mil::OpView;

use super::{Binding, around, axes, neighbours, offsets, walks};
use crate::cpu::Lowering;
use crate::reference::Operands;
use crate::{Error, Tensor};

pub(super) static BINDINGS: &[Binding] = &[
    Binding { op: "batch_norm", reference: batch_norm, lower: lower_batch_norm },
    Binding { op: "instance_norm", reference: instance_norm, lower: lower_instance_norm },
    Binding { op: "layer_norm", reference: layer_norm, lower: lower_layer_norm },
];

fn factor(values: &Option<Vec<f32>>, index: usize, absent: f64) -> f64 {
    values.as_ref().map_or(absent, |values| values[index].into())
}

fn batch_norm(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let (x, mean, variance) = (op.floats("x")?, op.floats("mean")?, op.floats("variance")?);
    let (gamma, beta) = (op.optional_floats("gamma")?, op.optional_floats("beta")?);
    let epsilon = op.view.float("epsilon")?;
    let [_, channels, inner] = around(&op.out(0).shape, 1);
    let norm = |(at, &x): (usize, &f32)| {
        let channel = at / inner % channels;
        let unit =
            (f64::from(x) - f64::from(mean[channel])) / (f64::from(variance[channel]) + epsilon).sqrt();
        (unit * factor(&gamma, channel, 1.0) + factor(&beta, channel, 0.0)) as f32
    };
    op.float_result(x.iter().enumerate().map(norm).collect())
}

/// Mean and inverse deviation of some elements.
fn statistics(x: &[f32], places: &[usize], epsilon: f64) -> (f64, f64) {
    let count = places.len() as f64;
    let mean = places.iter().map(|&at| f64::from(x[at])).sum::<f64>() / count;
    let variance = places.iter().map(|&at| (f64::from(x[at]) - mean).powi(2)).sum::<f64>() / count;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

fn instance_norm(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let x = op.floats("x")?;
    let (gamma, beta) = (op.optional_floats("gamma")?, op.optional_floats("beta")?);
    let epsilon = op.view.float("epsilon")?;
    let [batch, channels, inner] = around(&op.out(0).shape, 1);
    let mut out = vec![0.0; x.len()];
    for plane in 0..batch * channels {
        let places: Vec<usize> = (plane * inner..(plane + 1) * inner).collect();
        let (mean, inverse) = statistics(&x, &places, epsilon);
        let (gamma, beta) = (factor(&gamma, plane % channels, 1.0), factor(&beta, plane % channels, 0.0));
        places.iter().for_each(|&at| out[at] = ((f64::from(x[at]) - mean) * inverse * gamma + beta) as f32);
    }
    op.float_result(out)
}

fn layer_norm(op: &Operands) -> Result<Vec<Tensor>, Error> {
    let x = op.floats("x")?;
    let (gamma, beta) = (op.optional_floats("gamma")?, op.optional_floats("beta")?);
    let epsilon = op.view.float("epsilon")?;
    let (shape, axes) = (&op.out(0).shape, axes(&op.view)?);
    let [inside, outside] = walks(shape, &axes);
    let mut out = vec![0.0; x.len()];
    for start in offsets(&outside.0, &outside.1, 0) {
        let places = offsets(&inside.0, &inside.1, start);
        let (mean, inverse) = statistics(&x, &places, epsilon);
        for (index, &at) in places.iter().enumerate() {
            let unit = (f64::from(x[at]) - mean) * inverse;
            out[at] = (unit * factor(&gamma, index, 1.0) + factor(&beta, index, 0.0)) as f32;
        }
    }
    op.float_result(out)
}

/// The constants that every norm has.
struct Constants {
    gamma: Option<Vec<f32>>,
    beta: Option<Vec<f32>>,
    epsilon: f32,
}

impl Constants {
    fn of(op: &OpView, plan: &mut Lowering) -> Result<Self, Error> {
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

fn lower_layer_norm(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let axes = axes(op)?;
    let Some(axis) = neighbours(&op.ty("x")?.shape, &axes) else {
        return plan.by_reference(op, layer_norm);
    };
    let constants = Constants::of(op, plan)?;
    plan.step(op.label(), &[op.value("x")?], &op.op().outputs, move |io| {
        mixbit_kernels::layer_norm(&axis, io.floats[0], &constants.params(), io.out[0]);
        Ok(())
    })
}

/// A group norm in which every channel is a group.
fn lower_instance_norm(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let [batch, channels, spatial] = around(&op.ty("x")?.shape, 1);
    let constants = Constants::of(op, plan)?;
    if channels == 0 {
        return plan.by_reference(op, instance_norm);
    }
    plan.step(op.label(), &[op.value("x")?], &op.op().outputs, move |io| {
        let shape = GroupNormShape { batch, channels, spatial, groups: channels };
        mixbit_kernels::group_norm(&shape, io.floats[0], &constants.params(), io.out[0]);
        Ok(())
    })
}

fn lower_batch_norm(op: &OpView, plan: &mut Lowering) -> Result<(), Error> {
    let [outer, axis, inner] = around(&op.ty("x")?.shape, 1);
    let mean = plan.constant_floats(op.value("mean")?)?;
    let variance = plan.constant_floats(op.value("variance")?)?;
    let constants = Constants::of(op, plan)?;
    plan.step(op.label(), &[op.value("x")?], &op.op().outputs, move |io| {
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
