//! Normalizations.

use super::{Definition, Operands, walks};
use crate::geometry::{around, axes, offsets};
use crate::{Error, Tensor};

pub(super) static DEFINITIONS: &[Definition] = &[
    Definition { op: "batch_norm", eval: batch_norm },
    Definition { op: "instance_norm", eval: instance_norm },
    Definition { op: "layer_norm", eval: layer_norm },
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
