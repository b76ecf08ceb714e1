//! Activations and softmax.

use crate::case::{Case, case};

/// Shapes of every rank, with extents around the vector widths.
pub(crate) const SHAPES: &[&[usize]] =
    &[&[1], &[7], &[16], &[17, 3], &[2, 3, 5], &[1, 4, 1, 13], &[2, 1, 3, 2, 31], &[2063], &[0, 3]];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in SHAPES {
        for op in ["relu", "sigmoid", "silu"] {
            cases.push(case(op).input_in("x", shape, -12.0..12.0));
        }
        for mode in ["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"] {
            cases.push(case("gelu").input_in("x", shape, -6.0..6.0).arg("mode", mode));
        }
        cases.push(case("leaky_relu").input("x", shape).arg("alpha", 0.25));
    }
    cases.push(case("gelu").input_in("x", &[33], -4.0..4.0));
    // Beyond the range in which exp is finite and not zero.
    for op in ["sigmoid", "silu", "gelu"] {
        cases.push(case(op).input_in("x", &[41], -200.0..200.0));
    }
    for shape in [&[5][..], &[3, 7], &[2, 3, 17], &[1, 2, 77, 3], &[2, 1, 3, 2, 9], &[4, 1], &[1, 300]] {
        for axis in -(shape.len() as i32)..shape.len() as i32 {
            cases.push(case("softmax").input_in("x", shape, -8.0..8.0).arg("axis", axis));
        }
    }
    cases.push(case("softmax").input_in("x", &[2, 9], -1e4..1e4));
    cases.push(case("softmax").input("x", &[2, 0]));
    cases
}
