//! Normalizations.

use crate::case::{Case, case};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in [&[1, 1, 3][..], &[2, 5, 7], &[2, 3, 4, 5], &[1, 17, 9, 1], &[2, 3, 2, 2, 3]] {
        let channels = [shape[1]];
        let batch_norm = |epsilon: f64| {
            case("batch_norm")
                .input("x", shape)
                .input("mean", &channels)
                .constant()
                .input_in("variance", &channels, 0.1..2.0)
                .constant()
                .arg("epsilon", epsilon)
        };
        cases.push(batch_norm(1e-5));
        cases.push(batch_norm(0.1).input("gamma", &channels).constant());
        cases.push(batch_norm(1e-3).input("beta", &channels).constant());
        cases.push(batch_norm(1e-5).input("gamma", &channels).constant().input("beta", &channels).constant());
        if shape.len() <= 4 && shape[2..].iter().product::<usize>() > 1 {
            let instance_norm = || case("instance_norm").input("x", shape);
            cases.push(instance_norm());
            cases.push(instance_norm().arg("epsilon", 0.1).input("gamma", &channels).constant());
            cases.push(
                instance_norm().input("gamma", &channels).constant().input("beta", &channels).constant(),
            );
        }
    }
    let axes: &[(&[usize], &[i32])] = &[
        (&[17], &[0]),
        (&[3, 8], &[-1]),
        (&[2, 7, 33], &[2]),
        (&[2, 7, 3], &[-2]),
        (&[2, 5, 1, 9], &[1]),
        (&[2, 3, 4, 5], &[2, 3]),
        (&[2, 3, 4, 5], &[-3, -2, -1]),
        (&[2, 3, 4, 5], &[1, 2]),
        // Not next to each other.
        (&[2, 3, 4, 5], &[1, 3]),
        (&[2, 3, 2, 3, 2], &[0, 2, 4]),
    ];
    for (shape, axes) in axes {
        let rank = shape.len() as i32;
        let mut resolved: Vec<i32> = axes.iter().map(|axis| (axis + rank) % rank).collect();
        resolved.sort_unstable();
        let normalized: Vec<usize> = resolved.iter().map(|&axis| shape[axis as usize]).collect();
        let layer_norm = || case("layer_norm").input("x", shape).arg("axes", *axes);
        cases.push(layer_norm());
        cases.push(layer_norm().input("gamma", &normalized).constant().arg("epsilon", 1e-3));
        cases.push(layer_norm().input("beta", &normalized).constant());
        cases.push(layer_norm().input("gamma", &normalized).constant().input("beta", &normalized).constant());
    }
    // All axes; and values far from 0, whose squares would cancel.
    cases.push(case("layer_norm").input("x", &[3, 5]));
    cases.push(case("layer_norm").input_in("x", &[4, 64], 100.0..101.0).arg("axes", [-1]));
    cases
}
