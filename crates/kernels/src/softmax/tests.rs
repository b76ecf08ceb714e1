use super::*;
use crate::testing::{Tolerance, check, check_cases, random};

#[test]
fn every_axis_and_magnitude() {
    let mut cases = Vec::new();
    for outer in [1, 2] {
        for axis in [1, 2, 15, 16, 17, 77, 1031] {
            for inner in [1, 3, 64, 65] {
                for gain in [1.0, 100.0] {
                    cases.push((AxisShape { outer, axis, inner }, gain));
                }
            }
        }
    }
    check_cases(&cases, |(shape, gain)| {
        let mut input: Vec<f32> = random(1, shape.element_count()).into_iter().map(|x| x * gain).collect();
        if shape.axis > 1 {
            input[0] = f32::NEG_INFINITY;
        }
        let mut expected = vec![0.0; input.len()];
        for outer in 0..shape.outer {
            for inner in 0..shape.inner {
                let at = |axis: usize| (outer * shape.axis + axis) * shape.inner + inner;
                let values: Vec<f64> = (0..shape.axis).map(|axis| f64::from(input[at(axis)])).collect();
                let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = values.iter().map(|x| (x - max).exp()).sum();
                for (axis, x) in values.into_iter().enumerate() {
                    expected[at(axis)] = (x - max).exp() / total;
                }
            }
        }
        check(&expected, Tolerance::OfLargest(1e-6), |out| softmax(shape, &input, out))
    });
}

#[test]
fn nan_reaches_the_output() {
    for inner in [1, 70] {
        let shape = AxisShape { outer: 1, axis: 20, inner };
        let mut input = random(1, shape.element_count());
        input[3 * inner] = f32::NAN;
        let mut out = vec![0.0; input.len()];
        softmax(&shape, &input, &mut out);
        for (index, value) in out.iter().enumerate() {
            assert_eq!(value.is_nan(), index % inner == 0, "inner {inner}, element {index}");
        }
    }
}
