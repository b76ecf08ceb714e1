use super::*;
use crate::testing::{Tolerance, check, check_cases, random};

const TOLERANCE: Tolerance = Tolerance::OfLargest(1e-6);

/// The normalisation of one set of elements.
fn normalized(values: &[f64], epsilon: f64) -> Vec<f64> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
    values.iter().map(|x| (x - mean) / (variance + epsilon).sqrt()).collect()
}

fn finish(value: f64, gamma: Option<&f32>, beta: Option<&f32>, activation: Option<UnaryOp>) -> f64 {
    let value = value * gamma.map_or(1.0, |x| f64::from(*x)) + beta.map_or(0.0, |x| f64::from(*x));
    match activation {
        None => value,
        Some(UnaryOp::Silu) => value / (1.0 + (-value).exp()),
        Some(UnaryOp::Relu) => value.max(0.0),
        other => panic!("no oracle for {other:?}"),
    }
}

#[derive(Debug, Clone, Copy)]
struct Affines {
    gamma: bool,
    beta: bool,
    activation: Option<UnaryOp>,
}

const AFFINES: [Affines; 5] = [
    Affines { gamma: true, beta: true, activation: None },
    Affines { gamma: true, beta: true, activation: Some(UnaryOp::Silu) },
    Affines { gamma: false, beta: false, activation: None },
    Affines { gamma: true, beta: false, activation: Some(UnaryOp::Silu) },
    Affines { gamma: true, beta: true, activation: Some(UnaryOp::Relu) },
];

#[test]
fn group_norm_of_every_shape() {
    let mut cases = Vec::new();
    for (batch, channels, spatial, groups) in
        [(1, 1, 1, 1), (2, 6, 5, 3), (1, 32, 1, 32), (2, 64, 33, 32), (1, 4, 20_000, 2), (1, 8, 1025, 8)]
    {
        for affine in AFFINES {
            for offset in [0.0, 30.0] {
                cases.push((GroupNormShape { batch, channels, spatial, groups }, affine, offset));
            }
        }
    }
    check_cases(&cases, |(shape, affine, offset)| {
        let input: Vec<f32> =
            random(1, shape.batch * shape.channels * shape.spatial).into_iter().map(|x| x + offset).collect();
        let (gamma, beta) = (random(2, shape.channels), random(3, shape.channels));
        let params = NormParams {
            gamma: affine.gamma.then_some(&gamma[..]),
            beta: affine.beta.then_some(&beta[..]),
            epsilon: 1e-5,
            activation: affine.activation,
        };
        let group_len = shape.channels / shape.groups * shape.spatial;
        let mut expected = Vec::new();
        for group in input.chunks(group_len) {
            let group: Vec<f64> = group.iter().map(|x| f64::from(*x)).collect();
            for value in normalized(&group, 1e-5) {
                let channel = expected.len() / shape.spatial % shape.channels;
                let (gamma, beta) = (params.gamma.map(|g| &g[channel]), params.beta.map(|b| &b[channel]));
                expected.push(finish(value, gamma, beta, affine.activation));
            }
        }
        // A mean far from zero leaves fewer digits of each difference.
        let tolerance = Tolerance::OfLargest(1e-6 * f64::from(offset / 10.0).max(1.0));
        check(&expected, tolerance, |out| group_norm(shape, &input, &params, out))
    });
}

#[test]
fn large_planes_keep_their_accuracy() {
    // As in the VAE's last level: four channels of 512x512 in one group, with a drift that a single-precision
    // running sum would lose.
    let shape = GroupNormShape { batch: 1, channels: 4, spatial: 512 * 512, groups: 1 };
    let len = shape.channels * shape.spatial;
    let input: Vec<f32> =
        random(1, len).into_iter().enumerate().map(|(i, x)| x + 4.0 + i as f32 / len as f32).collect();
    let values: Vec<f64> = input.iter().map(|x| f64::from(*x)).collect();
    let expected = normalized(&values, 1e-6);
    let params = NormParams { gamma: None, beta: None, epsilon: 1e-6, activation: None };
    check_cases(&[()], |()| check(&expected, TOLERANCE, |out| group_norm(&shape, &input, &params, out)));
}

fn axis_shapes() -> Vec<AxisShape> {
    let mut shapes = Vec::new();
    for outer in [1, 3] {
        for axis in [1, 2, 15, 16, 17, 320] {
            for inner in [1, 2, 63, 64, 65, 200] {
                shapes.push(AxisShape { outer, axis, inner });
            }
        }
    }
    shapes.push(AxisShape { outer: 200, axis: 320, inner: 1 });
    shapes.push(AxisShape { outer: 0, axis: 4, inner: 4 });
    shapes
}

#[test]
fn layer_norm_of_every_axis() {
    let mut cases = Vec::new();
    for shape in axis_shapes() {
        cases.extend(AFFINES.map(|affine| (shape, affine)));
    }
    check_cases(&cases, |(shape, affine)| {
        let input = random(1, shape.element_count());
        let (gamma, beta) = (random(2, shape.axis), random(3, shape.axis));
        let params = NormParams {
            gamma: affine.gamma.then_some(&gamma[..]),
            beta: affine.beta.then_some(&beta[..]),
            epsilon: 1e-5,
            activation: affine.activation,
        };
        let mut expected = vec![0.0; input.len()];
        for outer in 0..shape.outer {
            for inner in 0..shape.inner {
                let at = |axis: usize| (outer * shape.axis + axis) * shape.inner + inner;
                let values: Vec<f64> = (0..shape.axis).map(|axis| f64::from(input[at(axis)])).collect();
                for (axis, value) in normalized(&values, 1e-5).into_iter().enumerate() {
                    let (gamma, beta) = (params.gamma.map(|g| &g[axis]), params.beta.map(|b| &b[axis]));
                    expected[at(axis)] = finish(value, gamma, beta, affine.activation);
                }
            }
        }
        // Two elements a hair apart are normalised by a small deviation: the axis of 2 amplifies rounding.
        let tolerance = if shape.axis == 2 { Tolerance::OfLargest(1e-4) } else { Tolerance::OfLargest(2e-6) };
        check(&expected, tolerance, |out| layer_norm(shape, &input, &params, out))
    });
}

#[test]
fn batch_norm_of_every_axis() {
    check_cases(&axis_shapes(), |shape| {
        let input = random(1, shape.element_count());
        let (gamma, beta, mean) = (random(2, shape.axis), random(3, shape.axis), random(4, shape.axis));
        let variance: Vec<f32> = random(5, shape.axis).into_iter().map(|x| x + 1.5).collect();
        let params = NormParams { gamma: Some(&gamma), beta: Some(&beta), epsilon: 1e-5, activation: None };
        let expected: Vec<f64> = input
            .iter()
            .enumerate()
            .map(|(index, x)| {
                let c = index / shape.inner % shape.axis;
                let scale = f64::from(gamma[c]) / (f64::from(variance[c]) + 1e-5).sqrt();
                (f64::from(*x) - f64::from(mean[c])) * scale + f64::from(beta[c])
            })
            .collect();
        check(&expected, TOLERANCE, |out| batch_norm(shape, &input, &mean, &variance, &params, out))
    });
}
